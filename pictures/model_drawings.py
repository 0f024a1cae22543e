"""Drawings of 00 and 09: figure 1 beside its code, a ribbon of shapes, attention in numbers."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Rectangle

from helpers.plotting import COLORS, SIGNED, draw_image, numbers, pale, sample_photo
from pictures.figure_1 import Drawing

ROWS = (  # for each line of forward: its colour, the shape after it
    ("embedding", "(B, N, D)"),
    ("class token", "(B, N+1, D)"),
    ("positions", "(B, N+1, D)"),
    ("encoder", "(B, N+1, D)"),
    ("norm", "(B, D)"),
    ("head", "(B, K)"),
)
LEFT = 2  # where the parts of figure 1 begin


def lines_of(model_class):
    """The lines of its forward, without comments: one for each of ROWS."""
    lines = inspect.getsource(model_class.forward).strip().splitlines()[1:]
    return [line.strip().split("  #")[0] for line in lines]


def code_beside_figure(model_class):
    """The parts of figure 1 from top to bottom, each beside its line of forward and its shape."""
    d = Drawing(None)
    heights = [41.5 - 7.4 * i for i in range(len(ROWS))]
    titles = (16.5, "figure 1"), (58, f"{model_class.__name__}, forward"), (91, "shape after")
    for x, title in titles:
        d.text("encoder", x, 47.6, title, 10.5, weight="bold")
    for y, line, (part, shape) in zip(heights, lines_of(model_class), ROWS, strict=True):
        d.ax.add_patch(FancyBboxPatch((36.5, y - 1.6), 48.9, 3.2, fc=pale(COLORS[part], 0.75),
                                      ec="none", boxstyle="round,pad=0.3"))  # fmt: skip
        style = {"family": "monospace", "va": "center", "color": COLORS["ink"], "gid": "code"}
        d.ax.text(36.9, y, line, size=8.2, **style)
        d.ax.text(86.8, y, shape, size=9, **style)
    for above, below in zip(heights, heights[1:], strict=False):
        reads = above <= heights[3]  # from the encoder on, the class token alone
        part, x = ("class token", 4.2) if reads else ("encoder", 16.5)
        color = COLORS["class token"] if reads else "#444444"
        d.arrow(part, (x, above - 2.1), (x, below + 2.3), color=color)
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
    d.box("encoder", LEFT, fourth - 1.8, 29, 3.6, "Encoder:  L blocks")
    d.box("norm", LEFT, fifth - 1.8, 6, 3.6, "Norm")
    d.text("class token", 6.8, (fourth + fifth) / 2, "row 0", 9)
    d.text("norm", 5.5, (fifth + sixth) / 2, r"$\mathbf{y}$", 11)
    d.box("head", LEFT, sixth - 1.8, 6, 3.6, "Head")
    d.arrow("head", (8.4, sixth), (11.5, sixth))
    d.text("head", 14.7, sixth, "logits")
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
    ring around the first number of patches that is not 0. sizes: (N+1,) dots on a
    logarithmic axis beside the rows of z_L.
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
    cut = table(2.05, 0.75, 1.4, patches, "patches")
    if pixel:
        mark = {"fc": "none", "lw": 1.5, "ec": COLORS["ink"]}
        first.add_patch(Rectangle((pixel[1] - 1, pixel[0] - 1), 2, 2, **mark))
        cut.add_patch(Ellipse((place, row), 9, 9, **mark))
        ink = plt.get_cmap(SIGNED)(0.9 if np.asarray(patches)[row, place] > 0 else 0.1)
        cut.plot(place, row, "o", ms=4, color=ink)
    table(3.75, 1.45, 2.05, z_0, r"$\mathbf{z}_0$")
    last = table(5.95, 1.35, 2.05, z_L, r"$\mathbf{z}_L$")
    if sizes is not None:
        beside = panel(7.4, 0.55, 0.85, 2.05, "length of", "each row")
        rows = int(last.patches[0].get_height())
        start = len(last.get_images()[0].get_array()) - len(sizes) + 1
        at = [rows / 2 - 0.5, *range(start, start + len(sizes) - 1)]
        dots = [COLORS["class token"], *[COLORS["ink"]] * (len(sizes) - 1)]
        beside.scatter(sizes, at, [26, *[7] * (len(sizes) - 1)], dots)
        beside.set(ylim=last.get_ylim(), xscale="log", xlim=(min(sizes) / 1.8, max(sizes) * 1.8))
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
    """One attention step as a line of matrices with its signs, every number written in.

    q, k, v, home: (T, d) with a row for each of tokens and a column for each of features; the keys
    are drawn turned, (d, T). scores, shares: (T, T), a row for each token that asks. A frame goes
    around token 0, a dashed one around what it uses whole.
    """
    panels = (("queries", q, "queries", tokens, features, "×"),
              ("keys, turned", k.T, "keys", features, tokens, "/√2 ="),
              ("scores / √2", scores, "attention", tokens, tokens, "softmax\n⟶"),
              ("shares", shares, "attention", tokens, tokens, "×"),
              ("values", v, "values", tokens, features, "="),
              ("taken home", home, "values", tokens, features, ""))  # fmt: skip
    figure, x, cell = plt.figure(figsize=(12, 2.6), dpi=100), 0.0, 0.41  # all in inches
    for title, values, color, rows, columns, sign in panels:
        x, (high, wide) = x + 0.56, np.shape(values)
        ax = figure.add_axes((x / 12, (1.3 - high * cell / 2) / 2.6, wide * cell / 12,
                              high * cell / 2.6))  # fmt: skip
        whole = title in ("keys, turned", "values")
        digits = 0 if whole or title == "queries" else 2
        numbers(ax, values, f"{title}\n{tuple(values.shape)}", color, rows, columns, digits)
        ax.tick_params(axis="x", rotation=45)
        frame = (-0.5, -0.5), wide, high if whole else 1
        ax.add_patch(Rectangle(*frame, fill=False, lw=1.8, ls="--" if whole else "-", zorder=5,
                               ec=COLORS["ink"], clip_on=False))  # fmt: skip
        x, space = x + wide * cell, {"/√2 =": 0.5, "softmax\n⟶": 0.8}.get(sign, 0.3)
        size = 15 if len(sign) < 2 else 10
        figure.text((x + space / 2) / 12, 1.3 / 2.6, sign, size=size, ha="center", va="center")
        x += space
    return figure
