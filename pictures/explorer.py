"""One interactive figure: choose a patch, and see where every layer and head lets it look.

It is plain HTML with its script inside: it lives in JupyterLab, Notebook 7 and exported pages,
without a network or a kernel; where no script runs a still picture stands in its place. explorer.js
builds it, explorer.css dresses it; what they are given is made here.
"""

import base64
import html
import io
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from helpers.augmentation import normalize
from helpers.inspection import answer_mask, attention_maps, attention_rollout, visiting
from helpers.plotting import COLORS, draw_image, pixels

LIMIT = 300_000  # bytes of HTML: a notebook with a few such figures still opens at once
SHADES = 16  # of viridis that are sent; the script mixes what lies between
# Smallest steps tried, in parts of the largest number of a head's usual map, ROUGHEST at most.
COARSER = (0, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3)
ROUGHEST = 0.01  # of all attention; or an even share, if that is more
PHOTOGRAPH = 200  # pixels a side from which a picture is sent as a JPEG
MOST_LAYERS = 6  # in the still picture


def explorer(model, images, data, titles=None, layers=None, behind=None, limit=None):
    """Who looks where, to be played with: images uint8 (n, C, H, W) -> IPython.display.HTML.

    The reader chooses an image, a layer or the rollout, a head or the mean of the heads, and then,
    by pointing or with the arrow keys, the token that looks: a patch, or the class token if the
    model has one. data: the ImageData that says how images are normalised and what classes are
    called; titles: n names for the images, by default their numbers. layers: those that are sent,
    from 1, by default all; the rollout is of all. behind: (name, n pictures of the tokens, uint8
    (C, rows, cols)), which the reader can lay behind the maps in the place of the images.

    Attention is sent in 8 bits: byte times step, where step is 1/255 of the largest number of that
    layer and head. Where that would be too much for limit bytes (300,000), steps are made coarser,
    each in proportion to its head's usual map, so that a head that spreads its attention keeps fine
    steps; the figure says how exact they are.
    The same input gives the same bytes. ValueError for images, titles or classes that do not fit,
    or if there is more than the limit holds.
    """
    titles = check(model, images, data, titles)
    with torch.no_grad(), visiting(model):
        x = normalize(images.to(model.pos_embed.device), data)  # (n, C, H, W)
        maps = [found.float().cpu() for found in attention_maps(model, x)]  # L of (n, h, T, T)
        shares = model(x).float().cpu().softmax(dim=-1)  # (n, K)
    rollout = attention_rollout(maps)  # (n, T, T)
    shown = torch.arange(rollout.shape[-1])  # the class token and the patches, no tokens between
    shown = shown[(shown < 1) | (shown >= model.num_prefix_tokens)]
    layers = list(range(1, len(maps) + 1)) if layers is None else list(layers)
    if not layers or not set(layers) <= set(range(1, len(maps) + 1)):
        raise ValueError(f"layers {layers} asked for, the model has 1 to {len(maps)}")
    still = still_picture(images[0], maps, rollout, model, layers)
    maps = [maps[layer - 1][..., shown[:, None], shown] for layer in layers]
    rollout = rollout[..., shown[:, None], shown]
    names = data.classes if hasattr(model.head, "out_features") else ()  # without a head: none
    facts = {
        "rows": model.patch_embed.grid_size[0],
        "cols": model.patch_embed.grid_size[1],
        "layers": len(maps),
        "numbers": layers,
        "heads": maps[0].shape[1],
        "classToken": model.num_prefix_tokens > 0,
        "titles": titles,
        "pictures": [picture(image) for image in images],
        "behind": [picture(image) for image in behind[1]] if behind else [],
        "behindName": behind[0] if behind else "",
        "predictions": [answers(row, names) for row in shares],
        "shades": [to_hex(colormaps["viridis"](i / (SHADES - 1))) for i in range(SHADES)],
    }
    limit = limit or LIMIT
    for coarser in COARSER:
        facts |= packed(maps, rollout, coarser, int(facts["classToken"]))
        page = assembled(facts, still)
        if (size := len(page.encode())) <= limit:
            return HTML(page)
    raise ValueError(
        f"{len(images)} images, {len(maps)} layers and {maps[0].shape[1]} heads of "
        f"{rollout.shape[-1]} tokens make {size / 1000:.0f} kB of HTML, {limit // 1000} kB is the "
        f"limit: send {advice(len(images), size, limit)}"
    )


def check(model, images, data, titles):
    """The titles as strings, or a ValueError that says what does not fit."""
    shape = tuple(images.shape)
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or len(shape) != 4:
        raise ValueError(
            f"images of shape {shape} and type {images.dtype} given, a uint8 tensor (n, C, H, W) "
            "is needed: data.test.images[:6], say"
        )
    if not len(images) or shape[1:] != model.patch_embed.input_shape:
        raise ValueError(
            f"images of shape {shape} given, the model needs one or more of (C, H, W) = "
            f"{tuple(model.patch_embed.input_shape)}"
        )
    titles = [f"image {i}" for i in range(1, shape[0] + 1)] if titles is None else list(titles)
    if len(titles) != shape[0]:
        raise ValueError(f"{len(titles)} titles for {shape[0]} images: give one for each image")
    classes = getattr(model.head, "out_features", None)
    if classes is not None and classes != len(data.classes):
        raise ValueError(f"{len(data.classes)} class names given, the model's head needs {classes}")
    return [str(title) for title in titles]


def answers(shares, names, n=3):
    """The model's first n answers: softmax (K,) -> "Bag 97%, Shirt 2%, Dress 1%"."""
    best = shares.argsort(descending=True, stable=True)[: min(n, len(names))]
    return ", ".join(f"{names[i]} {100 * shares[i]:.0f}%" for i in best.tolist())


def picture(image):
    """A uint8 image (C, H, W) in a data: address: a PNG, or a JPEG where it is a photograph."""
    drawn = Image.fromarray(pixels(image))
    if min(drawn.size) < PHOTOGRAPH:
        return png(drawn)
    drawn.save(out := io.BytesIO(), "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def packed(maps, rollout, coarser=0, first=0):
    """Maps and rollout as 8-bit numbers -> {"attention", "steps", "rolloutStep"}.

    Bytes in the order layer, head, image, query, key, then the rollout's image, query, key; zlib;
    base64. steps[layer][head] and rolloutStep give what one count of a byte is worth. coarser: the
    smallest step, in parts of the largest number of the head's usual map (the median over tokens,
    three even shares at least, as the script scales its colours), at most ROUGHEST. first: tokens
    before the patches, which do not count for that.
    """
    T = rollout.shape[-1]
    values = torch.stack(maps).transpose(1, 2).double().numpy()  # (L, h, n, T, T)
    blocks = [*values.reshape(-1, values[0, 0].size), rollout.double().numpy().ravel()]
    usual = np.median(
        np.maximum(values[..., first:].max(axis=-1), 3 / T), axis=(2, 3)
    ).ravel()  # (L h,)
    low = [min(coarser * one, max(ROUGHEST, 1 / T)) for one in usual]
    low.append(coarser * 3 / T / 5)  # the rollout is one map: finer
    steps = [float(f"{max(b.max() / 254.5, s):.6g}") for b, s in zip(blocks, low, strict=True)]
    counts = [np.rint(b / step).astype(np.uint8) for b, step in zip(blocks, steps, strict=True)]
    # Matches are few among fine numbers: without looking for them zlib makes it a tenth smaller.
    ways = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY) if coarser else (zlib.Z_HUFFMAN_ONLY,)
    streams = [zlib.compressobj(9, zlib.DEFLATED, 15, 8, way) for way in ways]
    all_bytes = np.concatenate(counts).tobytes()
    stored = min((stream.compress(all_bytes) + stream.flush() for stream in streams), key=len)
    heads = values.shape[1]
    return {
        "attention": "data:application/zlib;base64," + base64.b64encode(stored).decode(),
        "steps": [steps[i : i + heads] for i in range(0, len(steps) - 1, heads)],
        "rolloutStep": steps[-1],
    }


def advice(n, size, limit):
    """What would fit: fewer images, or, if already one is too much, a smaller model."""
    fewer = int(n * 0.9 * limit / size)
    if fewer or n > 1:
        return f"images[:{max(fewer, 1)}]"
    return "fewer layers, or a model with larger patches or fewer heads"


def still_picture(image, maps, rollout, model, layers):
    """What the answer takes from the patches of the first image: mean of the heads, each layer.

    layers: those that can be chosen, from 1; of more than MOST_LAYERS as many, evenly spread.
    """
    n = len(layers)
    chosen = [
        layers[i] for i in sorted({round(i) for i in np.linspace(0, n - 1, min(n, MOST_LAYERS))})
    ]
    panels = [(f"layer {i}", answer_mask(maps[i - 1][0].mean(dim=0), model)) for i in chosen]
    panels.append(("rollout", answer_mask(rollout[0], model)))
    figure = Figure(figsize=(1.1 * (len(panels) + 1) + 0.2, 1.75), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels) + 1)
    draw_image(axes[0], np.asarray(image))
    axes[0].set_title("image", size=9)
    for ax, (title, values) in zip(axes[1:], panels, strict=True):
        ax.imshow(values.numpy(), cmap="viridis", vmin=0)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, size=9)
        ax.set_xlabel(f"to {100 * values.max():.1f}%", size=8, labelpad=2)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    return png(drawn.quantize(128, Image.Quantize.MAXCOVERAGE, kmeans=1))


def style_and_script(name):
    """name.css with the colours of plotting.py, and name.js, a function of (root, given)."""
    style, script = (
        "\n".join(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        for path in (Path(__file__).with_name(f"{name}.{end}") for end in ("css", "js"))
    )
    for part, color in COLORS.items():
        style = style.replace(f"COLOR({part})", color)
    return style, script.removesuffix(";")


def assembled(facts, still):
    """The page: style, still picture, script and what it is given."""
    style, script = style_and_script("explorer")
    who = "class token" if facts["classToken"] else "mean of all patches"
    said = (
        f"Where the {who} looks in {html.escape(facts['titles'][0])}: the mean of the heads, layer "
        "by layer, then the rollout; below each the share of its brightest patch. This is the "
        "still picture of an interactive figure: run the cell to explore patches, heads and images."
    )
    # In a script only "<" could end it early; in JSON that is the same as \u003c.
    given = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="vit-explorer">\n<style>\n{style}\n</style>\n'
        f'<figure class="vx-still"><img src="{still}" alt="Attention maps of one image">'
        f"<figcaption>{said}</figcaption></figure>\n"
        f"<script>\n{script}(document.currentScript.parentElement, "
        f"{given});\n</script>\n</div>"
    )
