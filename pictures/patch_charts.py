"""Drawings of 01 and its side trips: patches as words, as addresses, as rows of a matrix."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from helpers.plotting import COLORS, draw_image, pale


def word_and_bill(photo, P, at=(0.5, 0.5), sides=(1, 2, 4, 8, 16, 32, 56, 224)):
    """A square photo (C, S, S) cut with side P, one of its patches from near, and what P costs.

    at: (row, column), from 0 to 1, of the point whose patch is shown; sides: the P of the curve.
    """
    S = photo.shape[-1]
    N = (S // P) ** 2
    top, left = (int(part * S) // P * P for part in at)
    figure, axes = plt.subplots(1, 3, figsize=(8.0, 2.9), dpi=80, layout="constrained",
                                width_ratios=(1, 1, 1.15))  # fmt: skip
    draw_image(axes[0], photo, interpolation="nearest", extent=(0, S, S, 0))
    if P >= 4:  # below, the lines would cover the picture
        lines = {"color": COLORS["patches"], "lw": min(1, P / 14)}
        axes[0].hlines(range(0, S + 1, P), 0, S, **lines)
        axes[0].vlines(range(0, S + 1, P), 0, S, **lines)
    for color, width in (("white", 4), (COLORS["ink"], 2)):
        axes[0].add_patch(Rectangle((left, top), P, P, fc="none", ec=color, lw=width,
                                    clip_on=False))  # fmt: skip
    axes[0].set_title(f"P = {P}: N = {N:,} patch{'es' * (N > 1)}", size=10)
    draw_image(axes[1], photo[:, top : top + P, left : left + P], interpolation="nearest")
    axes[1].set_title(f"the framed one: {P} × {P} pixels", size=10)
    x = np.array(sides)
    axes[2].loglog(x, (S // x) ** 4.0, color=COLORS["residual"])
    axes[2].loglog(P, N**2, "o", color=COLORS["queries"], ms=9)
    axes[2].set_xticks(x, labels=x, size=8)
    axes[2].minorticks_off()
    axes[2].set(xlabel="P", ylim=(0.3, 2e10))
    axes[2].set_title(f"N² = {N**2:,} pair{'s' * (N > 1)}", size=10)
    axes[2].spines[["top", "right"]].set_visible(False)
    return figure


def numbered(ax, owner, numbers, title, **labels):
    """A matrix of numbers, each on the colour of its owner: owner and numbers (n, m)."""
    ax.imshow(owner, cmap="Set3", vmin=0, vmax=11)
    for (i, j), number in np.ndenumerate(np.asarray(numbers)):
        ax.text(j, i, number, ha="center", va="center", size=9)
    ax.set_title(title, size=10)
    ax.set(xticks=[], yticks=[], **labels)


def owners(H, W, P):
    """(H, W): the number of the patch that owns each pixel."""
    return np.arange(H)[:, None] // P * (W // P) + np.arange(W) // P


def image_and_rows(image, rows, P):
    """An image (H, W) of the numbers 0 to HW - 1, and its patches (N, P²): a colour for each."""
    H, W = image.shape
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), dpi=100, layout="constrained",
                                width_ratios=(3, 2))  # fmt: skip
    owner = owners(H, W, P)
    numbered(axes[0], owner, image, f"image, {H} x {W}: {len(rows)} patches")
    title = f"patches, {len(rows)} x {P * P}: a row each"
    numbered(axes[1], owner.ravel()[np.asarray(rows)], rows, title)
    axes[1].set(xticks=range(P * P), yticks=range(len(rows)), xlabel="place in the patch")
    axes[1].set_ylabel("patch")
    return figure


def strips(image, rows, P):
    """The numbers of image_and_rows as they lie in memory: before, and after the cut."""
    figure, axes = plt.subplots(2, 1, figsize=(10, 1.9), dpi=100, layout="constrained")
    owner, many = owners(*image.shape, P).ravel(), P * P
    titles = (f"in memory: a frame of {many} neighbours mixes patches",
              f"needed: a frame of {many} neighbours is one patch")  # fmt: skip
    for ax, numbers, title in zip(axes, (image, rows), titles, strict=True):
        strip = np.asarray(numbers).reshape(1, -1)
        numbered(ax, owner[strip], strip, title)
        for left in range(0, strip.size, many):
            frame = Rectangle((left - 0.5, -0.5), many, 1, fc="none", ec=COLORS["ink"], lw=2)
            ax.add_patch(frame)
    return figure


def odometer(shape, P, address):
    """How patchify moves the number at address (b, c, row, column) of images (B, C, H, W).

    Each box is an axis: its name, and the number's place along it.
    """
    _, _, H, W = shape
    b, c, row, col = address
    (i, p), (j, q) = divmod(row, P), divmod(col, P)
    wheels = [
        [("B", b, 0), ("C", c, 1), ("H", row, 2.5), ("W", col, 4.5)],
        [("B", b, 0), ("C", c, 1), ("H/P", i, 2), ("P", p, 3), ("W/P", j, 4), ("P", q, 5)],
        [("B", b, 0), ("H/P", i, 1), ("W/P", j, 2), ("C", c, 3), ("P", p, 4), ("P", q, 5)],
        [("B", b, 0), ("N", i * (W // P) + j, 1.5), ("P²C", (c * P + p) * P + q, 4)],
    ]
    links = [[(0, 0), (1, 1), (2, 2), (2, 3), (3, 4), (3, 5)],
             [(0, 0), (1, 3), (2, 1), (3, 4), (4, 2), (5, 5)],
             [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]]  # fmt: skip
    inside = {(1, 3): "p", (1, 5): "q", (2, 4): "p", (2, 5): "q"}
    figure, ax = plt.subplots(figsize=(8.4, 4.2), dpi=100, layout="constrained")
    names = "the image", "1. split", "2. permute", "3. merge"
    for level, (step, row_of_wheels) in enumerate(zip(names, wheels, strict=True)):
        ax.text(-0.7, -level, step, ha="right", va="center", size=10)
        for k, (name, place, x) in enumerate(row_of_wheels):
            grid = name in ("H/P", "W/P", "N")
            fill = pale(COLORS["patches"], 0.4) if grid else "white" if name in "BHW" else "#DDDDDD"
            box = {"boxstyle": "round,pad=0.35", "fc": fill, "ec": "#555555"}
            label = f"{name} ({inside[level, k]})" if (level, k) in inside else name
            ax.text(x, -level, f"{label}\n{place}", ha="center", va="center", size=11,
                    linespacing=1.4, bbox=box, zorder=3)  # fmt: skip
    for level, pairs in enumerate(links):
        for above, below in pairs:
            ends = wheels[level][above][2], wheels[level + 1][below][2]
            ax.plot(ends, (-level, -level - 1), color="#555555", lw=1.2, zorder=1)
    ax.set(xlim=(-1.9, 5.5), ylim=(-3.4, 0.4))
    ax.set_title("each box: an axis, and where the number stands on it", size=10)
    ax.axis("off")
    return figure


def row_of_a_patch(patches, P, n):
    """Patch n of (N, P²) from near, its pixels numbered, and its row of the matrix."""
    figure, (near, matrix) = plt.subplots(1, 2, figsize=(8.2, 3.6), dpi=80, layout="constrained",
                                          width_ratios=(1, 1.5))  # fmt: skip
    ink = {"cmap": "gray_r", "vmin": 0, "vmax": 255}
    patch = np.asarray(patches[n]).reshape(P, P)
    near.imshow(patch, **ink)
    for k, value in enumerate(patch.flat):
        color = "white" if value > 127 else COLORS["ink"]
        near.text(k % P, k // P, k, ha="center", va="center", size=9, color=color)
    near.set(xticks=[], yticks=[], title=f"patch {n}: places 0 to {P * P - 1}")
    matrix.imshow(patches, aspect="auto", interpolation="nearest", **ink)
    matrix.add_patch(Rectangle((-0.5, n - 0.5), P * P, 1, fc="none", ec=COLORS["patches"], lw=3,
                               clip_on=False))  # fmt: skip
    matrix.set_yticks(range(len(patches)), labels=range(len(patches)), size=8)
    matrix.set(xticks=range(0, P * P, P), xlabel="place in the vector", ylabel="patch")
    matrix.set_title(f"all {len(patches)} patches, a row each; framed: row {n}")
    for ax in (near, matrix):
        ax.title.set_size(10)
    return figure


def side_by_side(pictures, lines=None, title="", ink=False):
    """Pictures {name: uint8 (C, H, W)} in one row.

    lines: the side of the squares of a pink grid, if there is one; ink: large values are dark.
    """
    figure, axes = plt.subplots(1, len(pictures), figsize=(3 * len(pictures), 3.3), dpi=80,
                                layout="constrained", squeeze=False)  # fmt: skip
    for ax, (name, picture) in zip(axes[0], pictures.items(), strict=True):
        picture = 255 - picture if ink else picture
        draw_image(ax, picture)
        for step in range(0, picture.shape[-1] + 1, lines) if lines else ():
            ax.axhline(step - 0.5, color=COLORS["patches"], lw=1)
            ax.axvline(step - 0.5, color=COLORS["patches"], lw=1)
        ax.set_title(name, size=10)
    figure.suptitle(title, size=11)
    return figure
