"""Charts of what is found inside a model: similarities, heads by depth, masks on images, curves.

Every function returns its figure and leaves plt.show() to the caller.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from helpers.plotting import COLORS, SIGNED, draw_image

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
                      cmap=SIGNED if signed else "viridis")  # fmt: skip
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
    if max(len(lines) for _, lines in panels.values()) > 1:
        axes[0, 0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, size=10)
    return figure


def filters_beside(components):
    """Figure 7, left: {name: components (n, C, P, P), 0.5 is zero}, seven in a row for each."""
    figure, axes = plt.subplots(1, len(components), figsize=(4.6 * len(components), 2.95), dpi=90,
                                squeeze=False, layout="constrained")  # fmt: skip
    for ax, (name, found) in zip(axes[0], components.items(), strict=True):
        found = np.asarray(found)
        n, C, P, _ = found.shape
        rows = -(-n // 7)
        mosaic = np.ones((rows, P + 1, 7, P + 1, C))  # white between them
        for i, one in enumerate(found):
            mosaic[i // 7, :P, i % 7, :P] = one.transpose(1, 2, 0)
        picture = mosaic.reshape(rows * (P + 1), 7 * (P + 1), C)[:-1, :-1]
        ax.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, size=10)
        ax.spines[:].set_visible(False)
    return figure


def grid_of_grids(similarities, grid, title="", every=1):
    """Figure 7, centre: {name: (N, N)}; the small picture at row r, column c is row (r, c) of it.

    grid: (rows, cols) of the patches; every: 2 draws every second row and column of small pictures.
    ValueError if N is not rows * cols.
    """
    rows, cols = grid
    figure, axes = plt.subplots(1, len(similarities), figsize=(4.4 * len(similarities) + 0.7, 4.4),
                                dpi=90, squeeze=False, layout="constrained")  # fmt: skip
    for ax, (name, similarity) in zip(axes[0], similarities.items(), strict=True):
        if np.shape(similarity) != (rows * cols, rows * cols):
            raise ValueError(
                f"similarity of shape {tuple(np.shape(similarity))} given, for a grid of {rows} x "
                f"{cols} patches ({rows * cols}, {rows * cols}) is needed"
            )
        small = np.asarray(similarity).reshape(rows, cols, rows, cols)[::every, ::every]
        down, across = small.shape[:2]
        gaps = np.full((down, rows + 1, across, cols + 1), np.nan)  # white between small pictures
        gaps[:, :-1, :, :-1] = small.transpose(0, 2, 1, 3)
        picture = gaps.reshape(down * (rows + 1), across * (cols + 1))[:-1, :-1]
        shown = ax.imshow(picture, vmin=-1, vmax=1, cmap=SIGNED, interpolation="nearest")
        places = np.arange(across) * (cols + 1) + (cols - 1) / 2
        ax.set_xticks(places, labels=range(0, cols, every))
        places = np.arange(down) * (rows + 1) + (rows - 1) / 2
        ax.set_yticks(places, labels=range(0, rows, every))
        ax.set(xlabel="column of the patch", ylabel="row of the patch")
        ax.set_title(name, size=10)
        ax.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, fraction=0.05, shrink=0.8).set_label("cosine", size=9)
    figure.suptitle(title, size=10)
    return figure


def heads_at(photo, maps, query, title=""):
    """Where one patch looks, head by head: photo (C, H, W), {name: (rows, cols)}, query (row, col).

    The photograph with a frame around the patch that looks, and beside it each map on its own
    scale, from 0; below it the share of its brightest patch.
    """
    figure, axes = plt.subplots(1, len(maps) + 1, figsize=(1.5 * len(maps) + 1.6, 2.1), dpi=100,
                                layout="constrained")  # fmt: skip
    rows, cols = np.shape(next(iter(maps.values())))
    draw_image(axes[0], photo, extent=(-0.5, cols - 0.5, rows - 0.5, -0.5))
    axes[0].set_title("who looks", size=9)
    for ax, (name, weights) in zip(axes[1:], maps.items(), strict=True):
        weights = np.asarray(weights, dtype=float)
        ax.imshow(weights, vmin=0, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, size=9)
        ax.set_xlabel(f"up to {100 * weights.max():.1f}%", size=8)
    for ax in axes:
        frame = {"fc": "none", "ec": COLORS["wrong"], "lw": 1.8}
        ax.add_patch(Rectangle((query[1] - 0.5, query[0] - 0.5), 1, 1, **frame))
    figure.suptitle(title, size=10)
    return figure


def maps_beside_photos(photos, kinds, title="", notes=None, frames=None, size=1.2, across=True,
                       brightest=0):  # fmt: skip
    """Images uint8 (C, H, W), one a row, and beside each {name: maps (n, rows, cols)}.

    across=False: one image a column, its maps below it. Each map has a scale of its own, from 0
    (what is below 0 is as 0) to its largest number; brightest=k: to that of rank k, counted from 0,
    so that k squares do not darken the rest. notes: {name: n texts}, written below the maps of that
    name. frames: n places (row, column), framed in the image and in all its maps.
    """
    kinds = {"": list(photos)} | kinds
    n, notes = len(kinds[""]), notes or {}
    high, wide = (n, len(kinds)) if across else (len(kinds), n)
    figure, axes = plt.subplots(
        high, wide, figsize=(wide * size + 0.4, high * (size + 0.14 * bool(notes)) + 0.5), dpi=80,
        squeeze=False, layout="constrained")  # fmt: skip
    for line, (name, pictures) in zip(axes.T if across else axes, kinds.items(), strict=True):
        for i, (ax, found) in enumerate(zip(line, pictures, strict=True)):
            grid = np.shape(next(iter(kinds[k] for k in kinds if k))[i])
            extent = (-0.5, grid[1] - 0.5, grid[0] - 0.5, -0.5)
            if not name:
                draw_image(ax, found, extent=extent)
            else:
                found = np.asarray(found, dtype=float)
                high = np.sort(found, axis=None)[-1 - brightest]
                high = high if high > 0 else found.max()
                ax.imshow(found, vmin=0, vmax=high, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if name in notes:
                ax.set_xlabel(notes[name][i], size=9, labelpad=2)
            if frames is not None:
                row, col = frames[i]
                frame = {"fc": "none", "ec": COLORS["wrong"], "lw": 1.5}
                ax.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, **frame))
        if across:
            line[0].set_title(name, size=9)
        else:
            line[0].set_ylabel(name, size=9)
    figure.suptitle(title, size=10)
    return figure


def parts_found(photos, boxes, landings, grid, title="", size=3.0):
    """Which patch there is most like which here? Parts as boxes, and where their patches land.

    photos: two uint8 (C, H, W); boxes {part: (patches here, patches there)}, patches as numbers,
    row by row, in a grid of (rows, cols), each a full rectangle; landings {name: {part: patches
    there}}: after the first photograph the second for each name, a square for every landing and
    over it a dot, whose area is the number of patches that landed there.
    """
    colors = ("queries", "class token", "patches", "values", "positions", "keys")
    here, there = photos
    n = len(landings) + 1
    figure, axes = plt.subplots(1, n, figsize=(size * n, size + 0.5), dpi=80, squeeze=False,
                                layout="constrained")  # fmt: skip
    panels = [
        ("these look for their like", here, {}),
        *((k, there, v) for k, v in landings.items()),
    ]
    for number, (ax, (name, photo, landed)) in enumerate(zip(axes[0], panels, strict=True)):
        draw_image(ax, photo, extent=(0, grid[1], grid[0], 0))
        ax.get_images()[0].set_alpha(0.75)
        for (part, both), color in zip(boxes.items(), colors, strict=False):
            patches = np.asarray(both[number > 0])
            row, col = patches // grid[1], patches % grid[1]
            corner, down, across = (col.min(), row.min()), np.ptp(row) + 1, np.ptp(col) + 1
            ax.add_patch(Rectangle(corner, across, down, fill=False, ec=COLORS[color], lw=2))
            if not number:
                ax.text(corner[0] + across + 0.3, corner[1] + down / 2, part, size=9, va="center",
                        bbox={"fc": "white", "ec": COLORS[color], "pad": 1.5})  # fmt: skip
            for patch in np.asarray(landed.get(part, []), dtype=int):
                r, c = divmod(int(patch), grid[1])
                ax.add_patch(Rectangle((c, r), 1, 1, fc=COLORS[color], ec="white", lw=0.6))
            spots, counts = np.unique(
                np.asarray(landed.get(part, []), dtype=int), return_counts=True
            )
            dots = {"c": COLORS[color], "ec": "white", "lw": 0.7, "zorder": 3}
            ax.scatter(spots % grid[1] + 0.5, spots // grid[1] + 0.5, s=28 * counts, **dots)
        ax.set_title(name, size=9)
    figure.suptitle(title, size=10)
    return figure
