"""Drawings of notebook 08 and its side trips: the residual stream as a road, and what grows on it.

STYLES: a kind of block, or of model, has one colour and line in every figure.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from helpers.plotting import COLORS, pale

STYLES = {
    "norm and residual": ("queries", "-"),
    "no residual": ("keys", "--"),
    "no norm": ("values", ":"),
    "neither": ("patches", "-."),
    "norm before": ("queries", "-"),
    "norm after": ("positions", "-."),
    "fresh": ("residual", "--"),
    "trained": ("queries", "-"),
}
WORKERS = (("MSA", "attention"), ("MLP", "mlp"))
SWITCHES = {  # residual, norm -> kind of block
    ("on", "on"): "norm and residual",
    ("off", "on"): "no residual",
    ("on", "off"): "no norm",
    ("off", "off"): "neither",
}


# The road


def arrow(ax, *points):
    """A line through the points that ends in an arrow head."""
    ax.add_patch(FancyArrowPatch(path=Path(points), color="#444444", arrowstyle="-|>", lw=1.4,
                                 mutation_scale=11, zorder=3))  # fmt: skip


def box(ax, x, y, label, part, width=1.9, height=1.0):
    """A part of a block around (x, y), in the part's colour."""
    shape = "round,pad=0,rounding_size=0.15"
    ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=shape,
                                fc=COLORS[part], ec="#555555", lw=0.8, zorder=4))  # fmt: skip
    ink = "white" if part == "mlp" else COLORS["ink"]
    ax.text(x, y - 0.03, label, ha="center", va="center", size=9.5, color=ink, zorder=5)


def draw_half(ax, start, worker, kind, words):
    """Half a block from x = start to start + 7: what leaves the road, is worked on, and joins."""
    left, right = start + 1.2, start + (6.0 if kind == "norm after" else 6.4)
    stops = [left + 1.5, left + 3.8] if kind in ("norm and residual", "no residual") else []
    parts = [("LN", "norm"), worker] if stops else [worker]
    stops = stops or [left + 2.6]
    if kind in ("no residual", "neither"):
        ways = [[(start, 0.9), (stops[0] - 0.95, 0.9)], [(stops[-1] + 0.95, 0.9), (start + 7, 0.9)]]
        y = 0.9
    else:
        y = 2.3
        ways = [[(left, 0.45), (left, y), (stops[0] - 0.95, y)],
                [(stops[-1] + 0.95, y), (right, y), (right, 0.65)]]  # fmt: skip
        ax.add_patch(Circle((right, 0), 0.62, fc="white", ec="#555555", lw=1.4, zorder=4))
        ax.text(right, -0.04, "+", ha="center", va="center", size=15, zorder=5)
    if len(stops) == 2:
        ways.append([(stops[0] + 0.95, y), (stops[1] - 0.95, y)])
    for points in ways:
        arrow(ax, *points)
    for x, (label, part) in zip(stops, parts, strict=True):
        box(ax, x, y, label, part)
    if kind == "norm after":
        box(ax, right + 1.5, 0, "LN", "norm", width=1.3, height=1.3)
    if words:
        ax.text(left + 0.2, 1.2, "a copy", size=9, va="center", color="#555555")
        ax.text(right - 0.2, 1.2, "a remark", size=9, va="center", ha="right", color="#555555")


def draw_road(ax, kind="norm and residual", blocks=2, words=False):
    """The main road from left to right, side roads to attention and MLP above it; z below."""
    end = 14 * blocks
    if kind not in ("no residual", "neither"):
        ax.add_patch(Rectangle((-1, -0.45), end + 3, 0.9, fc=COLORS["residual"], zorder=1))
        ax.plot((-0.8, end + 1.8), (0, 0), color="white", lw=1.2, dashes=(5, 4), zorder=2)
    for half in range(2 * blocks):
        draw_half(ax, 7 * half, WORKERS[half % 2], kind, words and half == 0)
    for place in range(2 * blocks + 1):
        prime, number = "'" if place % 2 else "", (place + 1) // 2
        x = 7 * place + (1.4 if kind == "norm after" and place else 0.3)
        ax.text(x, -1.25, rf"$\mathbf{{z}}{prime}_{{{number}}}$", ha="center", size=12)
    ax.set(xlim=(-1.2, end + 2.2), ylim=(-1.6, 2.95), aspect="equal")
    ax.axis("off")


def road(kind="norm and residual", blocks=2, title=""):
    """The road through some blocks."""
    figure, ax = plt.subplots(figsize=(10, 2.3), dpi=100, layout="constrained")
    draw_road(ax, kind, blocks, words=kind == "norm and residual")
    for block in range(1, blocks):
        ax.vlines(14 * block - 0.1, 0.6, 2.9, ls=":", color="#777777")
    for block in range(blocks):
        ax.text(14 * block + 7, 3.05, f"block {block + 1}", ha="center", size=9, color="#555555")
    ax.set_title(title, size=11, pad=14)
    return figure


# Sizes on the way


def draw_sizes(axes, travels, limits=None):
    """Left the signal after each layer, right the gradient: travels is {name: (signal, gradient)}.

    A name that is not one of STYLES gets the colour and line of the next that is free.
    """
    free = [style for name, style in STYLES.items() if name not in travels]
    styles = {name: STYLES.get(name) or free.pop(0) for name in travels}
    titles = "signal, going up $\\rightarrow$", "$\\leftarrow$ gradient, coming back"
    for number, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for name, sizes in travels.items():
            color, line = styles[name]
            ax.plot(sizes[number], ls=line, color=COLORS[color], lw=2, label=name)
        ax.axhline(1, color="#BBBBBB", lw=0.8, zorder=0)
        ax.set(xlabel="after layer (0: before the first)", yscale="log", ylim=limits)
        ax.set_ylabel("times the size that was sent" if number else "size (root mean square)")
        ax.set_title(title, size=10)
        ax.spines[["top", "right"]].set_visible(False)


def sizes(travels, title, limits=None):
    """draw_sizes as a figure of its own."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.1), dpi=100, layout="constrained")
    draw_sizes(axes, travels, limits)
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, size=11)
    return figure


def by_block(series, ylabel, title, log=False):
    """{kind: values, z_0's first}: a line for each kind, named beside it."""
    figure, ax = plt.subplots(figsize=(7, 3), dpi=100, layout="constrained")
    for name, values in series.items():
        color, line = STYLES[name]
        ax.plot(values, ls=line, color=COLORS[color], lw=2, label=name)
    ax.set(xlabel="after block", ylabel=ylabel, yscale="log" if log else "linear")
    ax.set_title(title, size=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure


def remarks(stacks, title):
    """{name: (stream, remark)}, one of each for every layer: a panel for each name.

    A bar for the stream after each layer, a narrow one before it for what the layer added. Panels
    have axes of their own; the last one's stream is a dashed line in the others.
    """
    figure, axes = plt.subplots(1, len(stacks), figsize=(9.5, 3.2), dpi=100, layout="constrained")
    *_, (last, (last_stream, _)) = stacks.items()
    for ax, (name, (stream, remark)) in zip(axes, stacks.items(), strict=True):
        layers = np.arange(1, len(stream) + 1)
        grey = pale(COLORS["residual"], 0.3)
        ax.bar(layers, stream, width=0.85, color=grey, label="the stream after the layer")
        ax.bar(layers, remark, width=0.45, color=COLORS["mlp"], label="the layer's remark")
        if name != last:
            ax.plot(layers, last_stream, "--", color=COLORS["ink"], label="right panel's stream")
        ax.set(xlim=(0.3, len(stream) + 0.7), ylim=(0, 1.12 * max(stream)), xlabel="layer")
        ax.text(layers[-1], stream[-1], f"{stream[-1]:.1f}", ha="center", va="bottom", size=9)
        ax.set_ylabel("size (root mean square)")
        ax.set_title(name, size=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(title, size=11)
    return figure


def stack_frame(residual, norm, measured):
    """The block with residual and norm "on" or "off", and what 24 of it do to what passes.

    measured: {kind: (signal, gradient, own share)}, each before the first block and after each;
    the three other kinds stay in sight as thin lines. Shares have a linear axis, sizes do not.
    """
    kind = SWITCHES[residual, norm]
    figure = plt.figure(figsize=(9, 4.2), dpi=80, layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1, 2))
    draw_road(figure.add_subplot(grid[0, :]), kind, blocks=1)
    titles = {
        "signal, going up $\\rightarrow$": "size",
        "$\\leftarrow$ gradient, coming back": "size",
        "what is a token's own $\\rightarrow$": "share of the stream",
    }
    for number, (title, ylabel) in enumerate(titles.items()):
        ax = figure.add_subplot(grid[1, number])
        for name, values in measured.items():
            color, line = STYLES[name]
            lit = name == kind
            color, width = (COLORS[color], 3) if lit else (pale(COLORS[color], 0.2), 1.8)
            ax.plot(values[number], ls=line, color=color, lw=width, zorder=2 + lit, label=name)
        ax.set(xlabel="after block", ylabel=ylabel, xticks=range(0, len(values[number]), 4))
        if ylabel == "size":
            ax.axhline(1, color="#BBBBBB", lw=0.8, zorder=0)
            ax.set_yscale("log")
            ax.minorticks_off()
        else:
            ax.set_ylim(-0.03, 1.05)
        ax.set_title(title, size=10)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=10, handlelength=3)  # fmt: skip
    figure.suptitle(f"residual {residual}, norm {norm}", size=12)
    return figure


def by_setting(runs, title, xlabel, ylabel, top, first=0):
    """{(kind, setting): lines of each seed}: a panel for each setting, a colour for each kind.

    top: of the vertical axis, which begins at 0; first: the number of a line's first point.
    """
    settings = list(dict.fromkeys(setting for _, setting in runs))
    figure, axes = plt.subplots(1, len(settings), figsize=(10, 2.8), dpi=100, sharey=True,
                                layout="constrained")  # fmt: skip
    for (name, setting), seeds in runs.items():
        color, style = STYLES[name]
        ax = axes[settings.index(setting)]
        for number, values in enumerate(seeds):
            ax.plot(range(first, first + len(values)), values, ls=style, color=COLORS[color],
                    label=None if number else name)  # fmt: skip
        ax.set(xlabel=xlabel, ylim=(0, top))
        ax.set_title(setting, size=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title, size=11)
    return figure


# Which numbers share a mean


def norm_axes(images=3, tokens=5, channels=8):
    """The numbers that LayerNorm, and BatchNorm, take one mean and one variance of, outlined."""
    figure, axes = plt.subplots(2, images, figsize=(8.4, 4), dpi=100, layout="constrained")
    titles = ("LayerNorm: one token, all its channels",
              "BatchNorm: one channel, of every token of every image")  # fmt: skip
    for row, title in zip(axes, titles, strict=True):
        layer = title.startswith("Layer")
        for image, ax in enumerate(row):
            here = np.zeros((tokens, channels), dtype=bool)
            if layer:
                here[1] = image == 0
            else:
                here[:, 2] = True
            for (y, x), taken in np.ndenumerate(here):
                color = COLORS["norm"] if taken else pale(COLORS["residual"], 0.75)
                ax.add_patch(Rectangle((x, y), 0.9, 0.9, fc=color))
            if here.any():
                y, x = np.argwhere(here)[0]
                size = (channels, 1) if layer else (1, tokens)
                ax.add_patch(Rectangle((x - 0.05, y - 0.05), *size, fc="none", lw=2, zorder=3,
                                       ec=COLORS["ink"], clip_on=False))  # fmt: skip
            ax.set(xlim=(-0.1, channels), ylim=(tokens, -0.1), xticks=[], yticks=[], aspect="equal")
            ax.set_xlabel(f"image {image}: channels $\\to$", size=9)
            ax.spines[:].set_visible(False)
        row[0].set_ylabel("$\\leftarrow$ tokens", size=9)
        row[images // 2].set_title(title, size=11)
    return figure
