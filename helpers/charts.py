"""Charts of numbers: matrices, heat maps, accuracies, curves, shares, in plotting.py's palette.

Every function but numbers returns its figure and leaves plt.show() to the caller.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from helpers.plotting import COLORS, draw_image, pale


def numbers(ax, values, title="", color="attention", rows=None, cols=None, digits=2):
    """Draw a small matrix (n, m) on ax with its numbers written in; more colour is larger.

    rows, cols: labels of the rows and columns. color: a name in COLORS, for the largest size.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    scale = np.abs(values).max() or 1
    shades = LinearSegmentedColormap.from_list("", ["white", pale(COLORS[color], 0.25)])
    ax.imshow(np.abs(values), cmap=shades, vmin=0, vmax=scale)
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", size=9, color=COLORS["ink"])
    for axis, labels, count in ((ax.yaxis, rows, len(values)), (ax.xaxis, cols, values.shape[1])):
        axis.set_ticks(range(count) if labels is not None else [], labels=labels)
        axis.set_tick_params(length=0, labelsize=9)
    ax.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(values) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=2)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, size=10)


def heatmaps(arrays, titles=None, cols=4, label="", size=2.0, limits=None, cmap="viridis"):
    """Matrices (n, m) side by side, cols in a row, one colour scale and one bar for all.

    label says what the bar measures; limits is (low, high), by default what the arrays hold.
    ValueError without an array, or if the titles are not as many.
    """
    arrays = [np.asarray(array, dtype=float) for array in arrays]
    if not arrays or (titles is not None and len(titles) != len(arrays)):
        raise ValueError(f"{len(arrays)} arrays and {len(titles or [])} titles: give one for each")
    low, high = limits or (min(a.min() for a in arrays), max(a.max() for a in arrays))
    rows, cols = -(-len(arrays) // cols), min(cols, len(arrays))
    figure, axes = plt.subplots(rows, cols, figsize=(cols * size + 0.9, rows * (size + 0.2)),
                                dpi=100, squeeze=False, layout="constrained")  # fmt: skip
    for ax in axes.flat[len(arrays) :]:
        ax.set_axis_off()
    for ax, array, title in zip(axes.flat, arrays, titles or [""] * len(arrays), strict=False):
        picture = ax.imshow(array, vmin=low, vmax=high, cmap=cmap)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, size=9)
    figure.colorbar(picture, ax=axes, fraction=0.05, pad=0.02).set_label(label, size=9)
    return figure


def accuracy_bars(results, chance=None, label="test accuracy"):
    """A bar for each name in results, {name: accuracies (0..1), one for each seed}.

    The bar ends at the mean, dots are the seeds, the number is written beside it; a dashed line
    marks chance. ValueError if there is nothing to draw.
    """
    if not results or not all(len(np.atleast_1d(runs)) for runs in results.values()):
        raise ValueError("no results given: each name needs one accuracy or more")
    figure, ax = plt.subplots(figsize=(7, 0.42 * len(results) + 0.9), dpi=100, layout="constrained")
    for y, (name, runs) in enumerate(results.items()):
        runs = np.atleast_1d(np.asarray(runs, dtype=float))
        ax.barh(y, runs.mean(), color=pale(COLORS["attention"], 0.3), height=0.62, label=name)
        ax.plot(runs, [y] * len(runs), "o", ms=4, color=COLORS["ink"], alpha=0.7)
        text = f"{runs.mean():.0%}" if runs.mean() < 0.995 else f"{runs.mean():.1%}"
        ax.text(max(runs.max(), runs.mean()) + 0.02, y, text, va="center", size=9,
                bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    if chance is not None:
        ax.vlines(chance, -0.65, len(results) - 0.5, ls="--", lw=1, color=COLORS["wrong"])
        ax.text(
            chance, -0.75, f"chance {100 * chance:.3g}%", size=8, ha="center", color=COLORS["wrong"]
        )
    ax.set_yticks(range(len(results)), labels=results, size=9)
    ax.set(xlim=(0, 1.12), ylim=(len(results) - 0.5, -0.6 if chance is None else -1), xlabel=label)
    ax.set_xticks(np.arange(0, 1.01, 0.25))
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def curves(series, xlabel, ylabel, title="", log=""):
    """Lines {name: y values, or (x, y)}, each named at its end; log: "x", "y" or "xy" axes.

    ValueError without a line.
    """
    if not series:
        raise ValueError("no lines given: there is nothing to draw")
    figure, ax = plt.subplots(figsize=(7, 3), dpi=100, layout="constrained")
    order = ["queries", "keys", "values", "positions", "class token", "residual", "ink"]
    for i, (name, line) in enumerate(series.items()):
        x, y = line if isinstance(line, tuple) else (range(1, len(line) + 1), line)
        style = ("-", "--", ":", "-.")[i % 4]
        ax.plot(x, y, style, color=COLORS[order[i % len(order)]], lw=1.8, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, size=10)
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure


def looks(image, maps, grid, query=None, titles=None, cols=4, size=2.0):
    """Who looks where: one picture of image (C, H, W) for each map (N,), laid over its patches.

    grid: (rows, cols) of the patches; query: the number of the patch that looks, from 0, framed, or
    a list of them, one for each map. One colour scale for all, its bar beside them. ValueError for
    maps that do not fit the grid.
    """
    maps = [np.asarray(weights, dtype=float) for weights in maps]
    if any(weights.shape != (grid[0] * grid[1],) for weights in maps) or not maps:
        raise ValueError(
            f"maps of shapes {[w.shape for w in maps]} given, {grid[0]} x {grid[1]} = "
            f"{grid[0] * grid[1]} weights needed in each: one for each patch"
        )
    titles = [""] * len(maps) if titles is None else titles
    figure = heatmaps([w.reshape(grid) for w in maps], titles, cols, "attention weight", size)
    queries = query if isinstance(query, list | tuple) else [query] * len(maps)
    for ax, patch in zip(figure.axes[: len(maps)], queries, strict=True):
        over = ax.get_images()[0]
        over.set(alpha=0.7, zorder=2)
        draw_image(ax, image, extent=over.get_extent(), zorder=1)
        if patch is not None:
            row, col = divmod(patch, grid[1])
            frame = {"fc": "none", "ec": COLORS["queries"], "lw": 2.5, "zorder": 3, "gid": "query"}
            ax.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, **frame))
    return figure


def share_bars(bars, colors, title=""):
    """One bar for each name in bars, {name: {part: amount}}, cut into the parts' shares of the sum.

    colors: one for each part, in order; all bars have the same parts. Shares are written in where
    they fit.
    """
    figure, ax = plt.subplots(figsize=(8, 0.5 * len(bars) + 1), dpi=100, layout="constrained")
    for y, amounts in enumerate(bars.values()):
        left = 0
        for color, (part, amount) in zip(colors, amounts.items(), strict=True):
            share = amount / sum(amounts.values())
            label = part if y == 0 else None
            ax.barh(y, share, left=left, color=color, edgecolor="white", label=label)
            if share > 0.04:
                ink = "white" if np.dot(to_rgb(color), (0.3, 0.6, 0.1)) < 0.45 else COLORS["ink"]
                ax.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", color=ink)
            left += share
    ax.set_yticks(range(len(bars)), labels=bars)
    ax.tick_params(length=0)
    ax.set(xlim=(0, 1), xticks=[], ylim=(len(bars) - 0.5, -0.5))
    ax.set_title(title, size=10)
    ax.spines[:].set_visible(False)
    ax.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=9)
    return figure


def grid_of_grids(similarity, grid, title=""):
    """Figure 7, centre: the small picture at row r, column c is row (r, c) of similarity (N, N).

    grid: (rows, cols) of the patches; ValueError if N is not rows * cols.
    """
    rows, cols = grid
    if np.shape(similarity) != (rows * cols, rows * cols):
        raise ValueError(
            f"similarity of shape {tuple(np.shape(similarity))} given, for a grid of {rows} x "
            f"{cols} patches ({rows * cols}, {rows * cols}) is needed"
        )
    gaps = np.full((rows, rows + 1, cols, cols + 1), np.nan)  # white between the small pictures
    small = np.asarray(similarity).reshape(rows, cols, rows, cols)
    gaps[:, :-1, :, :-1] = small.transpose(0, 2, 1, 3)
    picture = gaps.reshape(rows * (rows + 1), cols * (cols + 1))[:-1, :-1]
    figure, ax = plt.subplots(figsize=(5.4, 4.6), dpi=100, layout="constrained")
    shown = ax.imshow(picture, vmin=-1, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=ax, fraction=0.05).set_label("cosine similarity", size=9)
    ax.set_xticks(np.arange(cols) * (cols + 1) + (cols - 1) / 2, labels=range(1, cols + 1))
    ax.set_yticks(np.arange(rows) * (rows + 1) + (rows - 1) / 2, labels=range(1, rows + 1))
    ax.set(xlabel="column of the patch", ylabel="row of the patch")
    ax.set_title(title, size=10)
    ax.spines[:].set_visible(False)
    return figure
