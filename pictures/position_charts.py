"""What 04 and its side trips draw: addresses added, who is like whom on the grid, hands of clocks.

Every function returns its figure and leaves plt.show() to the caller.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from helpers.plotting import COLORS, SIGNED, heatmaps, pale


def addition(tokens, table):
    """tokens (B, N+1, D) + table (N+1, D), all numbers written in: the table is drawn once.

    One colour scale for all, SIGNED: blue below 0, white 0, red above.
    """
    B, count, width = tokens.shape
    figure = plt.figure(figsize=(7.6, 0.6 * count * B + 0.6), dpi=100)
    grid = figure.add_gridspec(2 * B, 3, left=0.13, right=0.84, wspace=0.7, hspace=0.7)
    bound = 1.5 * max(part.abs().max().item() for part in (tokens, table, tokens + table))
    names = ["class token", *(f"patch {i}" for i in range(count - 1))]
    rows = [f"row {i}" for i in range(count)]
    middle = slice(B - 1, B + 1)  # the table stands beside all images
    drawn = [(grid[middle, 1], table, f"$E_{{pos}}$: {count} x {width}, for all images", rows)]
    for b, x in enumerate(tokens):
        place = slice(2 * b, 2 * b + 2)
        drawn.append((grid[place, 0], x, f"tokens of image {b}: {count} x {width}", names))
        drawn.append((grid[place, 2], x + table, f"sum of image {b}: {count} x {width}", []))
    for cell, matrix, title, labels in drawn:
        ax = figure.add_subplot(cell)
        picture = ax.imshow(matrix, cmap=SIGNED, vmin=-bound, vmax=bound)
        for (i, j), value in np.ndenumerate(matrix.numpy()):
            ax.text(j, i, f"{value:.1f}", ha="center", va="center", size=9, color=COLORS["ink"])
        ax.set(xticks=[], yticks=range(len(labels)), yticklabels=labels)
        ax.tick_params(length=0, labelsize=9)
        color, lw = (COLORS["positions"], 3) if matrix is table else (COLORS["residual"], 1)
        ax.spines[:].set(color=color, linewidth=lw)
        ax.set_title(title, size=10)
    for x, sign in ((0.345, "+"), (0.6, "=")):
        figure.text(x, 0.5, sign, size=18, ha="center", va="center")
    bar = figure.colorbar(picture, cax=figure.add_axes((0.9, 0.2, 0.02, 0.6)), ticks=[-1, 0, 1])
    bar.set_label("below 0 blue, above 0 red", size=9)
    return figure


def most_alike(similarity):
    """Of each place the other one whose address is most like its own: (N, N) -> (N,)."""
    return similarity.clone().fill_diagonal_(-math.inf).argmax(1)


def pointers(similarities, grid):
    """An arrow from each place of grid (rows, cols) to the one most like it, {title: (N, N)}.

    Arrows to a place that touches (one step up, down, left or right) are thick and purple, one step
    along a diagonal pale, others thin; two places that point at each other share two heads.
    """
    rows, cols = grid
    size = (4.2 * len(similarities), 4.2 * rows / cols + 0.8)
    figure, axes = plt.subplots(1, len(similarities), figsize=size, dpi=100, squeeze=False,
                                layout="constrained")  # fmt: skip
    kinds = {"to a place that touches": (COLORS["positions"], 2.4, 4),
             "one step along a diagonal": (pale(COLORS["positions"], 0.5), 2.4, 3),
             "to another": (pale(COLORS["residual"], 0.3), 0.9, 2)}  # fmt: skip
    for ax, (title, similarity) in zip(axes[0], similarities.items(), strict=True):
        best, touching, diagonal = most_alike(similarity).tolist(), 0, 0
        for place, other in enumerate(best):
            (r, c), (r2, c2) = divmod(place, cols), divmod(other, cols)
            down, right = abs(r - r2), abs(c - c2)
            near, slanted = down + right == 1, down == right == 1
            touching, diagonal = touching + near, diagonal + slanted
            color, lw, above = list(kinds.values())[0 if near else 1 if slanted else 2]
            # bent the other way on the way back, so that both lie on one line
            back = best[other] == place and place > other
            bend = 0 if near or slanted else -0.15 if back else 0.15
            style = {"arrowstyle": "-|>", "shrinkA": 5, "shrinkB": 5, "mutation_scale": 11,
                     "color": color, "lw": lw, "zorder": above,
                     "connectionstyle": f"arc3,rad={bend}"}  # fmt: skip
            ax.annotate("", (c2, r2), (c, r), arrowprops=style)
            ax.plot(c, r, "o", ms=4, color=COLORS["ink"], zorder=5)
        ax.set(xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5), xlabel="column", ylabel="row",
               xticks=range(cols), yticks=range(rows), aspect="equal")  # fmt: skip
        ax.set_title(f"{title}: {touching} of {len(best)} touch, {diagonal} diagonal", size=10)
        ax.spines[:].set_color(COLORS["encoder"])
    lines = [plt.Line2D([], [], color=color, lw=lw) for color, lw, _ in kinds.values()]
    figure.legend(lines, list(kinds), loc="outside lower center", ncols=3, frameon=False,
                  title="two heads: each is most like the other")  # fmt: skip
    return figure


def frame(ax, place, cols):
    """A frame around one place of a grid."""
    r, c = divmod(place, cols)
    ax.add_patch(Rectangle((c - 0.5, r - 0.5), 1, 1, fc="none", ec=COLORS["ink"], lw=2))


def like_one(similarities, place, grid, title=""):
    """How alike each place of grid is to one (framed), small: {title: (N, N)}, cosines."""
    count = len(similarities)
    figure, axes = plt.subplots(1, count, figsize=(2.2 * count + 0.6, 2.6), dpi=80, squeeze=False,
                                layout="constrained")  # fmt: skip
    for ax, (name, similarity) in zip(axes[0], similarities.items(), strict=True):
        picture = ax.imshow(similarity[place].view(grid), vmin=-1, vmax=1, cmap=SIGNED)
        frame(ax, place, grid[1])
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, size=10)
    figure.colorbar(picture, ax=axes, fraction=0.05).set_label("cosine")
    figure.suptitle(title or "row {}, column {}".format(*divmod(place, grid[1])), size=10)
    return figure


def likeness(maps, place, written, low):
    """Maps {title: (rows, cols)} of cosines with one place (framed), purple from low to 1.

    written: the places (row, column) whose cosine stands in the map.
    """
    shown = list(maps.values())
    rows, cols = shown[0].shape
    figure = heatmaps(shown, list(maps), label="cosine", size=2.9, cmap="Purples", limits=(low, 1))
    for ax, one_map in zip(figure.axes, shown, strict=False):
        frame(ax, place, cols)
        for r, c in written:
            shade = "white" if one_map[r, c] > low + 0.6 * (1 - low) else COLORS["ink"]
            ax.text(c, r, f"{one_map[r, c]:.2f}", ha="center", va="center", size=7, color=shade)
        ax.set(xlabel="column", ylabel="row", xticks=range(cols), yticks=range(rows))
    return figure


def clocks(place, width=8):
    """The width / 2 hands of one place, sine and cosine above each face."""
    hands = width // 2
    figure, axes = plt.subplots(1, hands, figsize=(1.2 * hands, 1.6), dpi=80, layout="constrained")
    for i, ax in enumerate(axes):
        angle = place * 10000 ** (-2 * i / width)
        ax.add_patch(plt.Circle((0, 0), 1, fc="white", ec=COLORS["residual"]))
        ax.plot([0, math.sin(angle)], [0, math.cos(angle)], color=COLORS["positions"], lw=3)
        ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
        ax.set_title(f"{math.sin(angle):.2f}, {math.cos(angle):.2f}", size=9)
        ax.set_axis_off()
    figure.suptitle(f"place {place}", size=9)
    return figure


def sines_and_cosines(table):
    """A table of sine positions (N, D): its even columns and its odd ones, hand by hand."""
    titles = ["sines: how far right", "cosines: how far up"]
    figure = heatmaps([table[:, 0::2], table[:, 1::2]], titles, label="value", size=3.4,
                      limits=(-1, 1), cmap=SIGNED)  # fmt: skip
    places, width = table.shape
    for ax in figure.axes[:2]:
        ax.set(xlabel="hand", ylabel="place", xticks=range(0, width // 2, 8),
               yticks=range(0, places, 8))  # fmt: skip
    return figure
