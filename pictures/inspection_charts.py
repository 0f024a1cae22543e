"""Charts of what is found inside a model: similarities, heads by depth, masks on images, curves.

Every function returns its figure and leaves plt.show() to the caller.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

from helpers.plotting import COLORS, draw_image

STYLES = [("keys", "o", "-"), ("queries", "s", "--"), ("values", "^", ":"), ("residual", "D", "-.")]


def head_distances(distances, uniform=None, title=""):
    """Figure 7, right: {name: (L, h) mean attention distances in pixels}, a mark for each head.

    uniform: the distance of a head that looks at all tokens alike, a dashed line. At most four
    names. ValueError without any, or with more.
    """
    if not 1 <= len(distances) <= len(STYLES):
        raise ValueError(f"{len(distances)} models given, 1 to {len(STYLES)} can be told apart")
    figure, ax = plt.subplots(figsize=(7, 3.2), dpi=100, layout="constrained")
    depth, side = max(len(found) for found in distances.values()), 0.24
    highest = max(float(np.max(np.asarray(found))) for found in distances.values())
    for i, (name, found) in enumerate(distances.items()):
        found = np.asarray(found, dtype=float)  # (L, h)
        place = np.arange(1, len(found) + 1) + side * (i - (len(distances) - 1) / 2)
        color, mark, _ = STYLES[i]
        ax.plot(np.repeat(place, found.shape[1]), found.ravel(), mark, ms=5, mfc="none",
                color=COLORS[color], label=name)  # fmt: skip
    if uniform is not None:
        ax.axhline(uniform, ls="--", lw=1, color=COLORS["ink"], label="looks at all alike")
    ax.set(xlabel="layer", ylabel="mean attention distance (pixels)")
    ax.set_ylim(0, 1.15 * max(highest, uniform or 0))
    ax.set_xticks(range(1, depth + 1))
    ax.set_title(title, size=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure


def masks_over_images(images, masks, titles, correct=None, title="", size=1.3):
    """A column for each image (n, C, H, W): the image, and below it one row for each kind of mask.

    masks: {name: (n, rows, cols)}, each laid over its image on a scale of its own, from its
    smallest number to its largest; a kind with negative numbers instead runs from blue to red
    around 0. correct: n booleans, a mark before each title. ValueError if the numbers of images,
    masks and titles differ.
    """
    n = len(images)
    if n == 0 or len(titles) != n or any(len(found) != n for found in masks.values()):
        raise ValueError(
            f"{n} images, {len(titles)} titles and masks for "
            f"{[len(found) for found in masks.values()]} images given: one of each is needed"
        )
    shape = (len(masks) + 1, n)
    figure, axes = plt.subplots(*shape, figsize=(n * size + 0.4, shape[0] * size + 0.5), dpi=100,
                                squeeze=False, layout="constrained")  # fmt: skip
    for i, name in enumerate(titles):
        draw_image(axes[0, i], images[i])
        mark = "" if correct is None else "✓ " if correct[i] else "✗ "
        axes[0, i].set_title(mark + name, size=8, color=COLORS["wrong" if "✗" in mark else "ink"])
    for row, (name, found) in zip(axes[1:], masks.items(), strict=True):
        found = np.asarray(found, dtype=float)  # (n, rows, cols)
        signed = found.min() < 0
        for ax, image, mask in zip(row, images, found, strict=True):
            high = np.abs(mask).max() or 1
            limits = (-high, high) if signed else (mask.min(), mask.max())
            rows, cols = mask.shape
            extent = (0, cols, rows, 0)
            draw_image(ax, image, extent=extent)
            ax.imshow(mask, extent=extent, vmin=limits[0], vmax=limits[1], alpha=0.65,
                      cmap="RdBu_r" if signed else "viridis")  # fmt: skip
        row[0].set_ylabel(name, size=9)
    axes[0, 0].set_ylabel("image", size=9)
    figure.suptitle(title, size=10)
    return figure


def accuracy_panels(panels, chance=None, title="", cols=2):
    """Accuracy against how strong a change is: {xlabel: (strengths, {name: accuracies})}.

    One panel for each change, one line for each name, at most four; accuracies is (n,), or
    (runs, n): then the line is the mean and small marks are the runs. chance: a dotted line.
    ValueError without a panel.
    """
    if not panels:
        raise ValueError("no panels given: there is nothing to draw")
    rows, cols = -(-len(panels) // cols), min(cols, len(panels))
    figure, axes = plt.subplots(rows, cols, figsize=(4 * cols, 2.4 * rows + 0.4), dpi=100,
                                squeeze=False, sharey=True, layout="constrained")  # fmt: skip
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, (xlabel, (strengths, lines)) in zip(axes.flat, panels.items(), strict=False):
        x = np.arange(len(strengths))
        for (name, values), (color, mark, style) in zip(lines.items(), STYLES, strict=False):
            runs = np.atleast_2d(np.asarray(values, dtype=float))  # (runs, n)
            ax.plot(x, runs.mean(axis=0), style, color=COLORS[color], lw=1.8, label=name)
            for run in runs:
                ax.plot(x, run, mark, ms=4, mfc="none", color=COLORS[color])
        if chance is not None:
            ax.axhline(chance, ls=":", lw=1, color=COLORS["ink"])
        ax.set_xticks(x, labels=strengths)
        ax.set(xlabel=xlabel, ylim=(0, 1.03))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, size=10)
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
