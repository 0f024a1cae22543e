"""A figure to play with: it is drawn once for every value of its controls, and the reader leafs.

Plain HTML with its script inside, as explorer.py: alive in Jupyter and in exported pages, without a
network or a kernel; where no script runs, one of the drawings stands still.
"""

import html
import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from helpers.plotting import pixels
from pictures.explorer import picture, png, style_and_script

LIMIT = 250_000  # bytes of HTML
MOST = 80  # drawings


def flipbook(draw, controls=None, start=None, patches=None, grid=None):
    """draw(*values) for every combination of the controls' values -> IPython.display.HTML.

    draw: gives a matplotlib Figure, of one size for all. controls: {label: values}; numbers become
    a slider, texts a list to choose from. patches: an image, uint8 (C, H, W), cut into grid =
    (rows, columns), one of which is pointed at: draw then gets its number first, row by row from 0.
    start: the values that are shown first, and where no script runs; default: the first of each.

    The same drawings give the same bytes. ValueError for more than 80 drawings, or above 250 kB.
    """
    controls = {label: list(values) for label, values in (controls or {}).items()}
    if patches is not None:
        controls = {"patch": list(range(grid[0] * grid[1]))} | controls
    every = list(itertools.product(*controls.values()))
    if not controls or len(every) > MOST:
        raise ValueError(f"{len(every)} drawings asked for, 2 to {MOST} can be sent: fewer values")
    start = every[0] if start is None else tuple(start)
    if start not in every:
        raise ValueError(f"start is {start}: give one value of each of {list(controls)}")
    drawings, said = zip(*(drawn(draw(*values)) for values in every), strict=True)
    facts = {
        "controls": [
            {
                "label": label,
                "values": [str(value) for value in values],
                "slide": not any(isinstance(value, str) for value in values),
                "start": values.index(chosen),
            }
            for (label, values), chosen in zip(controls.items(), start, strict=True)
        ],
        "drawings": drawings,
        "said": said,
    }
    if patches is not None:
        size = Image.fromarray(pixels(patches)).size
        facts["patches"] = {"rows": grid[0], "cols": grid[1], "picture": picture(patches),
                            "shape": f"{size[0]} / {size[1]}"}  # fmt: skip
    page = assembled(facts, every.index(start))
    if (size := len(page.encode())) > LIMIT:
        raise ValueError(
            f"{len(every)} drawings make {size / 1000:.0f} kB of HTML, {LIMIT // 1000} kB is the "
            "limit: draw them smaller, or fewer"
        )
    return HTML(page)


def drawn(figure):
    """A Figure as (PNG of 64 colours in a data: address, its titles), and it is closed."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
    plt.close(figure)
    image = image.quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    return png(image), "; ".join(title.replace("\n", " ") for title in titles if title)


def assembled(facts, first):
    """The page: style, the drawing that stands still, script and what it is given."""
    style, script = style_and_script("flipbook")
    names = " and ".join(control["label"] for control in facts["controls"])
    still = html.escape(facts["said"][first])
    # In a script only "<" could end it early; in JSON that is the same as \u003c.
    given = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="vit-flipbook">\n<style>\n{style}\n</style>\n<figure class="fb-still">'
        f'<img src="{facts["drawings"][first]}" alt="{still}"><figcaption>A still of a figure to '
        f"play with. Run the cell to choose: {html.escape(names)}.</figcaption></figure>\n"
        f"<script>\n{script}(document.currentScript.parentElement, {given});\n"
        "</script>\n</div>"
    )
