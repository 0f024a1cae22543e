"""What notebook 06 and its side trips draw: heads side by side, and what a head takes home.

Every function returns its figure and leaves plt.show() to the caller.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Polygon, Rectangle

from helpers.plotting import COLORS, draw_image, pale

LINES = [("queries", "-"), ("keys", "--"), ("values", ":"), ("positions", "-.")]


def split_attend_join_project(B, N, D, h, lit=3):
    """Equations 5 to 8 from top to bottom, channels from left to right: every head is a column.

    lit: the head whose way in (from all D numbers) and way out (to all D) is drawn, from 1.
    """
    d_k = D // h
    figure, ax = plt.subplots(figsize=(10, 6.6), dpi=100, layout="constrained")
    step = 100 / h  # the columns of a head; all widths in hundredths of D

    def box(x, y, width, height, color, text):
        ax.add_patch(Rectangle((x, y), width, height, fc=color, ec="white", lw=1.5))
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=10)

    def row(y, height, name, texts, gap=0.0):
        for i, text in enumerate(texts):
            color = pale(COLORS[name], 0.35 if i == lit - 1 else 0.7)
            box(i * step + gap, y, step - 2 * gap, height, color, text)

    def fan(top, bottom, narrow, wide):
        left, right = (lit - 1) * step, lit * step
        ends = [(left, narrow), (right, narrow), (100, wide), (0, wide)]
        ax.add_patch(Polygon(ends, fc=pale(COLORS["class token"], 0.7), ec="none", zorder=0))

    def note(y, name, code, shape):
        ax.text(106, y, name, size=12, weight="bold", va="center")
        ax.text(126, y - 2.2, code, size=9, family="monospace", va="center")
        ax.text(126, y + 2.2, shape, size=9, va="center")

    heads = range(1, h + 1)
    grey = pale(COLORS["residual"], 0.5)
    box(0, 0, 100, 6, grey, rf"tokens $\mathbf{{z}}$: N = {N} rows, D = {D} columns")
    fan(6, 16, 16, 6)
    ax.text(50, 11, r"$\mathbf{U}_{qkv}$", ha="center", va="center", size=12)
    for i, (letter, name) in enumerate(zip("qkv", ("queries", "keys", "values"), strict=True)):
        row(16 + 6 * i, 6, name, [rf"$\mathbf{{{letter}}}_{j}$" for j in heads])
    row(40, 13, "attention", [f"$A_{j}$\n{N} × {N}" for j in heads], gap=1.7)
    row(57, 7, "values", [rf"$A_{j}\mathbf{{v}}_{j}$" for j in heads], gap=1.7)
    for j in heads:
        x = (j - 0.5) * step
        for start, end in ((34, 40), (53, 57), (64, 68)):
            ax.annotate("", (x, end), (x, start), arrowprops={"arrowstyle": "-|>", "color": "#555"})
    row(68, 6, "values", [rf"$\mathrm{{SA}}_{j}$" for j in heads])
    fan(74, 84, 74, 84)
    ax.text(50, 79, r"$\mathbf{U}_{msa}$", ha="center", va="center", size=12)
    box(0, 84, 100, 6, grey, rf"MSA($\mathbf{{z}}$): {N} rows, {D} columns")
    whole, cut = f"({B}, {N}, {D})", f"({B}, {h}, {N}, {d_k})"
    note(3, "", "(B, N, D)", whole)
    note(25, "split", "qkv, chunk, view, transpose", f"three of {cut}")
    note(50, "attend", "attention(q, k, v)", cut)
    note(71, "join", "transpose, reshape", whole)
    note(87, "project", "proj", whole)
    ax.text(0, -3, f"each head computes its {d_k} columns from all {D} …", size=9, color="#8a5a00")
    ax.text(0, 93, f"… and writes into all {D}", size=9, color="#8a5a00", va="center")
    ax.set(xlim=(-1, 168), ylim=(95, -6))
    ax.set_title(f"Split, attend, join, project: {h} heads side by side", size=11, loc="left")
    ax.set_axis_off()
    return figure


def head_on_image(image, weights, grid, title, query=0):
    """What one patch takes from each: the image (C, H, W) beside its weights (N,), from 0 to 1.

    The patch that asks is framed in blue, the one it takes most from in orange, dashed.
    """
    weights = np.asarray(weights, dtype=float).reshape(grid)
    rows, cols = grid
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.8, 2.8), dpi=80, layout="constrained")
    draw_image(left, image, extent=(0, cols, rows, 0))
    shown = right.imshow(weights, vmin=0, vmax=1, cmap="Blues", extent=(0, cols, rows, 0))
    for (i, j), weight in np.ndenumerate(weights):
        color = "white" if weight > 0.6 else COLORS["ink"]
        right.text(j + 0.5, i + 0.5, f"{weight:.2f}", ha="center", va="center", color=color)
    most = divmod(int(weights.argmax()), cols)
    for ax in (left, right):
        for (i, j), name, style in (
            (divmod(query, cols), "queries", "-"),
            (most, "keys", (0, (3, 1.5))),
        ):
            frame = {"ec": COLORS[name], "ls": style, "fc": "none", "lw": 3}
            ax.add_patch(Rectangle((j + 0.04, i + 0.04), 0.92, 0.92, **frame))
    right.set(xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    figure.colorbar(shown, ax=right, fraction=0.05).set_label("attention weight", size=9)
    figure.suptitle(title, size=10)
    return figure


def one_mixture(share, red, blue, classes, accuracy):
    """Which pairs of greys give one answer: share * red + (1 - share) * blue, each (4, n).

    Left the pairs, a square for each class, and lines on which the answer is the same; right how
    often each answer comes back. accuracy: of the best reader, for the title.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), dpi=80, layout="constrained")
    answers = share * red + (1 - share) * blue
    for x, y, values, name, (color, style) in zip(red, blue, answers, classes, LINES, strict=True):
        corner = (float(x.min()), float(y.min()))
        size = float(x.max() - x.min()), float(y.max() - y.min())
        fill = {"fc": pale(COLORS[color], 0.6), "ec": COLORS[color], "ls": style}
        left.add_patch(Rectangle(corner, *size, **fill))
        middle = corner[0] + size[0] / 2, corner[1] + size[1] / 2
        left.text(*middle, name, ha="center", va="center", size=12)
        counts, edges = np.histogram(values, bins=60, range=(0, 1))
        right.plot((edges[1:] + edges[:-1]) / 2, counts, style, color=COLORS[color], label=name)
    x = np.array([0, 1])
    for answer in np.linspace(0.1, 0.9, 9):
        if share < 1:
            left.plot(x, (answer - share * x) / (1 - share), color=COLORS["residual"], lw=0.8)
        else:
            left.axvline(answer, color=COLORS["residual"], lw=0.8)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="grey at red", ylabel="grey at blue", aspect="equal")
    left.set_title("lines of one answer", size=10)
    right.set(xlim=(0, 1), ylim=(0, None), yticks=[], xlabel="what comes back", ylabel="how often")
    right.set_title(f"best reader: {accuracy:.0%} right", size=10)
    right.legend(frameon=False, fontsize=8, ncols=4, loc="upper center")
    right.set_ylim(0, 1.25 * right.get_ylim()[1])
    figure.suptitle(f"{share:.2f} of the weight on red, {1 - share:.2f} on blue", size=10)
    return figure
