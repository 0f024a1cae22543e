"""Drawings of 00 and 09: figure 1 beside its code, a ribbon of shapes, attention in numbers."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Rectangle

from helpers.model import VisionTransformer
from helpers.plotting import COLORS, SIGNED, draw_image, numbers, pale, sample_photo
from pictures.figure_1 import Drawing

ROWS = (  # what a line of the class begins with, its colour, the shape after it
    ("x = self.patch_embed(", "embedding", "(B, N, D)"),
    ("x = torch.cat(", "class token", "(B, N+1, D)"),
    ("x = self.pos_drop(", "positions", "(B, N+1, D)"),
    ("return self.norm(", "encoder", "(B, N+1, D)"),
    ("y = ", "class token", "(B, D)"),
    ("return self.head(", "head", "(B, K)"),
)
LEFT = 2  # where the parts of figure 1 begin


def lines_of_the_class():
    """The line of VisionTransformer for each of ROWS, without its comment."""
    lines = [line.strip() for line in inspect.getsource(VisionTransformer).splitlines()]
    return [next(s for s in lines if s.startswith(row[0])).split("  #")[0] for row in ROWS]


def code_beside_figure():
    """The parts of figure 1 from top to bottom, each beside its line of code and its shape."""
    d = Drawing(None)
    heights = [41.5 - 7.4 * i for i in range(len(ROWS))]
    for x, title in ((16.5, "figure 1"), (58, "VisionTransformer, forward"), (91, "shape after")):
        d.text("encoder", x, 47.6, title, 10.5, weight="bold")
    for y, line, (_, part, shape) in zip(heights, lines_of_the_class(), ROWS, strict=True):
        d.ax.add_patch(FancyBboxPatch((36.5, y - 1.6), 48.9, 3.2, fc=pale(COLORS[part], 0.75),
                                      ec="none", boxstyle="round,pad=0.3"))  # fmt: skip
        style = {"family": "monospace", "va": "center", "color": COLORS["ink"], "gid": "code"}
        d.ax.text(36.9, y, line, size=7.7, **style)
        d.ax.text(86.8, y, shape, size=9, **style)
    for above, below in zip(heights, heights[1:], strict=False):
        part = "class token" if below == heights[-1] else "encoder"
        x = 4.2 if part == "class token" else 16.5
        d.arrow(part, (x, above - 2.1), (x, below + 2.3),
                color=COLORS["class token"] if part == "class token" else "#444444")  # fmt: skip
    draw_parts(d, heights)
    return d.figure


def draw_parts(d, heights):
    """The left column of code_beside_figure: one part of figure 1 at each height."""
    first, second, third, fourth, fifth, sixth = heights
    draw_image(d.ax, sample_photo(), extent=(LEFT, LEFT + 5.4, first - 2.7, first + 2.7))
    for i in range(4):
        for x, y in (((i, i), (0, 3)), ((0, 3), (i, i))):
            d.ax.plot(LEFT + 1.8 * np.array(x), first - 2.7 + 1.8 * np.array(y), lw=1.2,
                      color=COLORS["embedding"], zorder=4)  # fmt: skip
    d.ax.set(xlim=(0, 100), ylim=(0, 50), aspect="auto")
    d.arrow("embedding", (LEFT + 5.9, first), (LEFT + 8.6, first))
    d.box("embedding", 11, first - 1.8, 20, 3.6, "Linear projection  (E)")
    for i in range(10):
        x, part = LEFT + 1 + 2.9 * i, "embedding" if i else "class token"
        d.box(part, x, second - 1.5, 2, 3, "" if i else "*", rounding=0.3)
        d.box("positions", x - 0.45, third - 1.5, 1.3, 3, str(i), rounding=0.5)
        d.box(part, x + 0.95, third - 1.5, 1, 3, "", rounding=0.3)
        color = pale(COLORS["embedding"], 0.75) if i else None
        d.box(part, x, fifth - 1.5, 2, 3, "" if i else "*", color=color, rounding=0.3)
    d.box("encoder", LEFT, fourth - 1.8, 20, 3.6, "Encoder:  L blocks")
    d.arrow("norm", (22.4, fourth), (24.6, fourth))
    d.box("norm", 25, fourth - 1.8, 6, 3.6, "Norm")
    d.box("head", LEFT, sixth - 1.8, 9, 3.6, "MLP head")
    d.arrow("head", (11.4, sixth), (14.5, sixth))
    d.text("head", 20.5, sixth, "class: temple")
    for number, x, y in ((1, 33.7, third), (2, 33.7, fourth + 1.5), (3, 33.7, fourth - 1.5),
                         (4, 33.7, fifth)):  # fmt: skip
        d.tag(number, x, y)


def thick(tokens):
    """Tokens (N+1, D) with row 0 as high as a 13th of all, and empty rows below it."""
    times = max(1, round(len(tokens) / 13))
    empty = np.full((max(1, times // 2), tokens.shape[1]), np.nan)
    return np.vstack([np.repeat(tokens[:1], times, axis=0), empty, tokens[1:]])


def ribbon(image, patches, z_0, z_L, y, logits, title="", pixel=None, sizes=None):
    """A forward pass from left to right: image (C, H, W), tables of numbers, logits (K,).

    Tables are drawn in standard deviations of their own, white at 0; row 0, the class token, is
    thick and framed, and an arrow leads from it to y. pixel: (row, column) to be framed, with a
    ring around the first number of patches that is not 0. sizes: (N+1,) logarithmic bars
    beside the rows of z_L.
    """
    row, place = np.argwhere(np.asarray(patches))[0]
    wide = 10.4 if sizes is None else 11.5
    figure = plt.figure(figsize=(wide, 3.5), dpi=100)
    shift = wide - 10.4  # of all that stands right of the sizes

    def panel(left, bottom, width, height, name, shape):
        ax = figure.add_axes((left / wide, bottom / 3.5, width / wide, height / 3.5))
        ax.set(xticks=[], yticks=[])
        at = bottom + height + 0.06
        figure.text((left + width / 2) / wide, at / 3.5, f"{name}\n{shape}", ha="center",
                    va="bottom", size=9.5, linespacing=1.25)  # fmt: skip
        return ax

    def table(left, width, height, values, name, top=2.6):
        values = np.asarray(values)
        ax = panel(left, top - height, width, height, name, values.shape)
        tokens, shown = name.startswith(r"$\mathbf{z}"), np.atleast_2d(values)
        shown = thick(shown) if tokens else shown
        ax.imshow(shown / (np.nanstd(shown) or 1), vmin=-3, vmax=3, cmap=SIGNED, aspect="auto",
                  interpolation="nearest")  # fmt: skip
        if tokens or values.ndim == 1:
            rows = np.isnan(shown[:, 0]).argmax() if tokens else 1
            ax.add_patch(Rectangle((-0.5, -0.5), shown.shape[1], rows, lw=2, fc="none",
                                   ec=COLORS["class token"], clip_on=False))  # fmt: skip
        if tokens:
            named = [0, 1, len(values) - 1, *([row + 1] if pixel else [])]
            first_patch = len(shown) - len(values)
            ax.set_yticks([n + first_patch if n else rows / 2 - 0.5 for n in named], labels=named,
                          size=8)  # fmt: skip
            ax.tick_params(length=0, pad=2)
        ax.spines[:].set_visible(values.ndim > 1)
        return ax

    draw_image(first := panel(0.15, 1.2, 1.4, 1.4, "image", tuple(image.shape)), image)
    cut = table(2.05, 0.75, 1.9, patches, "patches")
    if pixel:
        mark = {"fc": "none", "lw": 1.5, "ec": COLORS["ink"]}
        first.add_patch(Rectangle((pixel[1] - 1, pixel[0] - 1), 2, 2, **mark))
        cut.add_patch(Ellipse((place, row), 8, 5, **mark))
    table(3.75, 1.45, 2.05, z_0, r"$\mathbf{z}_0$")
    last = table(5.95, 1.35, 2.05, z_L, r"$\mathbf{z}_L$")
    if sizes is not None:
        beside = panel(7.4, 0.55, 0.85, 2.05, "size of", "each row")
        rows = int(last.patches[0].get_height())
        start = len(last.get_images()[0].get_array()) - len(sizes) + 1
        beside.barh([rows / 2 - 0.5, *range(start, start + len(sizes) - 1)], sizes,
                    [rows, *[1] * (len(sizes) - 1)],
                    color=[COLORS["class token"], *[COLORS["ink"]] * (len(sizes) - 1)])  # fmt: skip
        beside.set(ylim=last.get_ylim(), xscale="log", xlim=(min(sizes) / 4, max(sizes) * 1.5))
        ends = [min(sizes), max(sizes)]
        beside.set_xticks(ends, labels=[f"{end:.1g}" for end in ends], size=8)
        beside.tick_params(which="both", length=0, pad=2)
        beside.spines[["top", "right"]].set_visible(False)
    table(7.9 + shift, 1.1, 0.14, y, r"$\mathbf{y}$")
    answer = panel(9.55 + shift, 0.9, 0.7, 1.7, "logits", f"({len(logits)},)")
    logits = np.asarray(logits)
    signs = plt.get_cmap(SIGNED)(0.5 + 0.37 * np.sign(logits))
    answer.barh(range(len(logits)), logits, color=signs)
    answer.axvline(0, color=COLORS["ink"], lw=0.6)
    answer.set(yticks=range(len(logits)), ylim=(len(logits) - 0.4, -0.6))
    largest = logits[np.abs(logits).argmax()]
    answer.set_xticks([0, largest], labels=["0", f"{largest:.1g}"])
    answer.tick_params(length=0, labelsize=8, pad=2)
    for start, end, y_at, label in ((1.6, 2.0, 1.9, "cut"),
                             (2.85, 3.55, 1.9, "E, class\ntoken,\npositions"),
                             (5.25, 5.75, 1.9, "blocks"), (7.35 + shift, 7.85 + shift, 2.53, "LN"),
                             (9.03 + shift, 9.3 + shift, 2.53, "head")):  # fmt: skip
        color = COLORS["class token"] if y_at > 2 else "#444444"
        ends = [(x / wide, y_at / 3.5) for x in (start, end)]
        figure.add_artist(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=10, lw=1.5,
                                          color=color, transform=figure.transFigure))  # fmt: skip
        at, side = (y_at + 0.06, "bottom") if y_at > 2 else (y_at - 0.08, "top")
        figure.text((start + end) / 2 / wide, at / 3.5, label, ha="center", va=side, size=8.5)
    legend = figure.add_axes((0.15 / wide, 0.42 / 3.5, 1.4 / wide, 0.12 / 3.5))
    legend.imshow(np.linspace(-3, 3, 61)[None], cmap=SIGNED, aspect="auto")
    legend.set_xticks([0, 30, 60], labels=["−", "0", "+"], size=8)
    legend.set(yticks=[])
    legend.tick_params(length=0, pad=2)
    figure.suptitle(title, size=10.5, y=0.985)
    return figure


def attention_in_numbers(q, k, scores, shares, v, home, tokens, features):
    """One attention step from left to right, every number written in; a frame around token 0.

    q, k, v, home: (T, d) with a row for each of tokens and a column for each of features; scores,
    shares: (T, T), a row for each token that asks.
    """
    panels = (("queries", q, "queries", features), ("keys", k, "keys", features),
              ("scores / √2", scores, "attention", tokens),
              ("shares (softmax)", shares, "attention", tokens),
              ("values", v, "values", features),
              ("taken home", home, "values", features))  # fmt: skip
    figure, axes = plt.subplots(1, 6, figsize=(12, 2.5), dpi=100, layout="constrained",
                                width_ratios=[len(columns) for *_, columns in panels])  # fmt: skip
    for ax, (title, values, color, columns) in zip(axes, panels, strict=True):
        digits = 0 if title in ("queries", "keys", "values") else 2
        numbers(ax, values, title, color, tokens, columns, digits)
        ax.tick_params(axis="x", rotation=45)
        if title not in ("keys", "values"):
            ax.add_patch(Rectangle((-0.5, -0.5), len(columns), 1, fill=False, lw=1.8, zorder=5,
                                   ec=COLORS["ink"], clip_on=False))  # fmt: skip
    return figure


def what_it_says(image, answer, before):
    """An image (C, H, W) and the probabilities (K,) of its answer; outlines: those before."""
    figure, (left, ax) = plt.subplots(1, 2, figsize=(5.4, 2.4), dpi=80, layout="constrained")
    draw_image(left, image)
    left.set_title("what it sees", size=10)
    classes = range(len(answer))
    ax.bar(classes, answer, color=COLORS["head"])
    ax.bar(classes, before, fc="none", ec=COLORS["wrong"], lw=1.2)
    ax.set(xticks=classes, ylim=(0, 1), xlabel="outlines: nothing covered")
    ax.set_title(f"it says {answer.argmax()}, {answer.max():.0%}", size=10)
    return figure
