"""Attention on a small scale, for 05: arrows and their dot products, the matrices, maps."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from helpers.plotting import COLORS, numbers, pale

WIDE = 2.4  # how far the plane of the arrows reaches


def query_and_keys(query, keys, names, shares, title):
    """A query (2,) among keys (n, 2) as arrows, and beside them one bar for each key -> Figure.

    Each key's shadow falls on the line of the query, where its dot product can be read as a length.
    shares (n,): the bars, from 0 to 1; its score stands beside each name.
    """
    query, keys, shares = (np.asarray(a, dtype=float) for a in (query, keys, shares))
    figure, (plane, bars) = plt.subplots(1, 2, figsize=(6.2, 2.7), dpi=80, layout="constrained",
                                         width_ratios=(1.1, 1))  # fmt: skip
    plane.axhline(0, color=COLORS["encoder"], lw=1, zorder=0)
    plane.axvline(0, color=COLORS["encoder"], lw=1, zorder=0)
    length = np.hypot(*query)
    if length:
        along = query / length
        plane.axline((0, 0), along, ls=":", lw=1, color=COLORS["queries"])
        for key in keys:
            plane.plot(*np.stack([key, key @ along * along]).T, ":", lw=1.2, color=COLORS["keys"])
    reach = max(1, *np.abs(query) / (0.97 * WIDE, 0.97 * 0.75 * WIDE))  # 1 if within the frame
    if length:
        draw_arrow(plane, query / reach, COLORS["queries"], 3)
    for name, key in zip(names, keys, strict=True):
        draw_arrow(plane, key, COLORS["keys"], 1.6)
        beyond = key * (1 + 0.35 / np.hypot(*key))
        plane.text(*beyond, name, size=8, ha="center", va="center", color=COLORS["keys"],
                   bbox={"fc": "white", "ec": "none", "pad": 0.5})  # fmt: skip
    plane.set(xlim=(-WIDE, WIDE), ylim=(-0.75 * WIDE, 0.75 * WIDE), aspect="equal")
    plane.set(xticks=[], yticks=[])
    plane.set_xlabel("plant  ←   →  animal", size=9)
    plane.set_ylabel("sea  ←   →  air", size=9)
    longer = "" if reach < 1.01 else f", {reach:.1f} times as long"
    plane.set_title(f"query (blue{longer}), keys, shadows", size=9)
    plane.spines[:].set_visible(False)

    bars.barh(range(len(names)), shares, color=pale(COLORS["attention"], 0.2), height=0.6)
    for y, share in enumerate(shares):
        bars.text(share, y, f" {share:.2f}", va="center", size=9)
    scores = [f"{score:+.1f}" if abs(score) > 0.05 else "0.0" for score in keys @ query]
    named = [f"{name} {score}" for name, score in zip(names, scores, strict=True)]
    bars.set(xlim=(0, 1.18), ylim=(len(names) - 0.5, -0.5), xticks=[])
    bars.set_yticks(range(len(names)), labels=named, size=9)
    bars.tick_params(length=0)
    bars.axvline(0, color=COLORS["residual"], lw=1)
    bars.spines[:].set_visible(False)
    bars.set_title(title, size=10)
    return figure


def draw_arrow(ax, to, color, lw):
    style = "-|>,head_width=0.28,head_length=0.5"
    ax.annotate("", to, (0, 0), arrowprops={"arrowstyle": style, "shrinkA": 0, "shrinkB": 0,
                                            "color": color, "lw": lw})  # fmt: skip


def attention_steps(steps, row, column=None):
    """The matrices of one attention step from left to right -> Figure.

    steps: {title: (matrix, color, row labels or None, column labels, digits)}; row: the row that a
    frame follows, through all matrices that have one for each token that asks (those whose title
    names neither the keys nor v alone). column: the one token that is asked, whose key, and whose
    entries in that row, get a dashed frame.
    """
    widths = [matrix.shape[1] for matrix, *_ in steps.values()]
    figure, axes = plt.subplots(1, len(steps), figsize=(12, 2.5), dpi=100, layout="constrained",
                                width_ratios=widths)  # fmt: skip
    for ax, (title, (matrix, color, rows, cols, digits)) in zip(axes, steps.items(), strict=True):
        numbers(ax, matrix, title, color, rows, cols, digits)
        ax.tick_params(axis="x", rotation=60)
        if "keys" not in title and "values" not in title:
            ax.add_patch(Rectangle((-0.5, row - 0.5), matrix.shape[1], 1, fill=False, lw=1.8,
                                   ec=COLORS["ink"], zorder=5, clip_on=False))  # fmt: skip
        if column is not None and ("keys" in title or color == "attention"):
            top, height = (-0.5, len(matrix)) if "keys" in title else (row - 0.5, 1)
            ax.add_patch(Rectangle((column - 0.5, top), 1, height, fill=False, lw=1.8, ls="--",
                                   ec=COLORS["ink"], zorder=6, clip_on=False))  # fmt: skip
    return figure


def images_over_maps(patches, titles, grid, maps=None, outlined=None):
    """Images given as patches (n, N, P P), and below each one its map (N,) -> Figure.

    maps: what one token of each image gives to all N, or None for the images alone; outlined: the
    number of one patch in each image, dashed in both rows.
    """
    n, (rows, cols), side = len(patches), grid, int(np.sqrt(patches.shape[-1]))
    high = 1 if maps is None else 2
    figure, axes = plt.subplots(high, n, figsize=(1.55 * n + 0.9 * (high - 1), 1.75 * high),
                                dpi=100, squeeze=False, layout="constrained")  # fmt: skip
    for i, (ax, title) in enumerate(zip(axes[0], titles, strict=True)):
        image = np.asarray(patches[i]).reshape(rows, cols, side, side).transpose(0, 2, 1, 3)
        ax.imshow(image.reshape(rows * side, -1), cmap="gray", vmin=0, vmax=1,
                  extent=(-0.5, cols - 0.5, rows - 0.5, -0.5))  # fmt: skip
        for line, count in ((ax.axhline, rows), (ax.axvline, cols)):
            for step in range(1, count):
                line(step - 0.5, color=COLORS["patches"], lw=1)
        ax.set_title(title, size=9)
        if maps is not None:
            weights = np.asarray(maps[i]).reshape(grid)
            shown = axes[1, i].imshow(weights, vmin=0, vmax=1)
        if outlined is not None:
            row, col = divmod(int(outlined[i]), cols)
            for each in axes[:, i]:
                each.add_patch(Rectangle((col - 0.45, row - 0.45), 0.9, 0.9, fill=False, ls="--",
                                         lw=2.2, ec=COLORS["keys"]))  # fmt: skip
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    if maps is not None:
        axes[1, 0].set_ylabel("patch 0 looks", size=9)
        figure.colorbar(shown, ax=axes[1]).set_label("weight", size=9)
    return figure


def look_of_a_patch(patch, weights, grid, most=0.1):
    """The weights (N,) that one patch gives to all, on the grid, the patch framed -> Figure."""
    figure, ax = plt.subplots(figsize=(3.3, 2.7), dpi=75, layout="constrained")
    shown = ax.imshow(np.asarray(weights).reshape(grid), vmin=0, vmax=most)
    row, col = divmod(patch, grid[1])
    ax.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, fill=False, ec="white", lw=2.5))
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"attention weight, {weights.max():.2f} at most", size=9)
    bar = figure.colorbar(shown, ax=ax, extend="max", shrink=0.9)
    even = 1 / len(weights)
    bar.set_ticks([0, even, most / 2, most], labels=["0", f"1/{len(weights)}", most / 2, most])
    return figure
