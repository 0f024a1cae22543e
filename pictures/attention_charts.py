"""Attention on a small scale, for 05: arrows and their dot products, the matrices, one map."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from helpers.plotting import COLORS, draw_image, numbers, pale

WIDE = 2.4  # how far the plane of the arrows reaches


def query_and_keys(query, keys, names, amounts, title, shares=False):
    """A query (2,) among keys (n, 2) as arrows, and beside them one bar for each key -> Figure.

    Each key's shadow falls on the line of the query, where its dot product can be read as a length.
    amounts (n,): the bars, shares from 0 to 1, or signed scores.
    """
    query, keys, amounts = (np.asarray(a, dtype=float) for a in (query, keys, amounts))
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

    colors = [pale(COLORS["attention" if amount > 0 else "residual"], 0.2) for amount in amounts]
    bars.barh(range(len(names)), amounts, color=colors, height=0.6)
    for y, amount in enumerate(amounts):
        text = f"{amount:.2f}" if shares else f"{amount:+.0f}".replace("+0", "0")
        bars.text(max(amount, 0), y, f" {text}", va="center", size=9)
    low, high = (0, 1.18) if shares else (-3.3, 4)
    bars.set(xlim=(low, high), ylim=(len(names) - 0.5, -0.5), xticks=[])
    bars.set_yticks(range(len(names)), labels=names, size=9)
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


def maps_beside(image, maps, grid, queries, outlined, titles):
    """An image (C, H, W), and beside it maps (N,), each with the patch that looks framed -> Figure.

    queries: its number in each map; outlined: patches with a dashed outline in all of them.
    """
    figure, axes = plt.subplots(1, len(maps) + 1, figsize=(1.9 * len(maps) + 2.4, 2.1), dpi=100,
                                layout="constrained")  # fmt: skip
    draw_image(axes[0], image)
    for steps, size, line in zip(
        grid, image.shape[1:], (axes[0].axhline, axes[0].axvline), strict=True
    ):
        for step in range(1, steps):
            line(step * size / steps - 0.5, color=COLORS["patches"], lw=1)
    axes[0].set_title("the image", size=9)
    high = max(float(weights.max()) for weights in maps)
    for ax, weights, query, title in zip(axes[1:], maps, queries, titles, strict=True):
        shown = ax.imshow(np.asarray(weights).reshape(grid), vmin=0, vmax=high)
        for patch, style in ((query, "-"), *((patch, ":") for patch in outlined)):
            row, col = divmod(patch, grid[1])
            ax.add_patch(Rectangle((col - 0.45, row - 0.45), 0.9, 0.9, fill=False, ls=style, lw=2.2,
                                   ec="white" if style == "-" else COLORS["keys"]))  # fmt: skip
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, size=9)
    figure.colorbar(shown, ax=axes[1:]).set_label("attention weight", size=9)
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
