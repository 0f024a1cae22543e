"""Drawings of 01 and its side trips: patches as words, as addresses, as rows of a matrix."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from helpers.plotting import COLORS, draw_image, pale


def word_and_bill(photo, P, at=(0.5, 0.5), sides=(1, 2, 4, 8, 16, 32, 56, 224), near=16):
    """A square photo (C, S, S) cut with side P, a part of it from near, and what P costs.

    at: (row, column), from 0 to 1, of the point whose patch is framed in blue; sides: the P of the
    curve; near: pixels to a side of the part, or P if that is more. ValueError if P and near do
    not fit.
    """
    S, part = photo.shape[-1], max(P, near)
    if S % P or part % P:
        raise ValueError(f"P = {P} divides {S} and {part} only with a rest: take another P")
    N, inside = (S // P) ** 2, (part // P) ** 2
    figure, axes = plt.subplots(1, 3, figsize=(8.6, 3.1), dpi=80, layout="constrained",
                                width_ratios=(1, 1, 1.15))  # fmt: skip
    top, left = (int(share * S) // part * part for share in at)
    draw_image(axes[0], photo, interpolation="nearest", extent=(0, S, S, 0))
    frame(axes[0], left, top, part, COLORS["ink"])
    draw_image(axes[1], photo[:, top : top + part, left : left + part], interpolation="nearest",
               extent=(left, left + part, top + part, top))  # fmt: skip
    for ax, start, end in ((axes[0], (0, 0), S), (axes[1], (top, left), part)):
        if end // P <= 28:  # finer lines would cover the picture
            lines = {"color": COLORS["patches"], "lw": 0.6 if end // P > 14 else 1}
            ax.hlines(range(start[0], start[0] + end + 1, P), start[1], start[1] + end, **lines)
            ax.vlines(range(start[1], start[1] + end + 1, P), start[0], start[0] + end, **lines)
    frame(axes[1], *(int(share * S) // P * P for share in at[::-1]), P, COLORS["queries"])
    axes[0].set_title(f"{S} × {S} pixels, P = {P}\nN = {N:,} patch{'es' * (N > 1)}", size=10)
    many = f"{inside} patches, one" if inside > 1 else "one patch"
    axes[1].set_title(f"in the frame: {part} × {part} pixels\n{many} in blue", size=10)
    x = np.array(sides)
    axes[2].loglog(x, (S // x) ** 4.0, color=COLORS["residual"])
    axes[2].loglog(P, N**2, "o", color=COLORS["queries"], ms=9)
    axes[2].set_xticks(x, labels=x, size=8)
    axes[2].minorticks_off()
    axes[2].set(xlabel="side of a patch P", ylim=(0.3, 2e10))
    axes[2].set_title(f"pairs of patches\nN² = {N**2:,}", size=10)
    axes[2].spines[["top", "right"]].set_visible(False)
    return figure


def frame(ax, left, top, side, color):
    """A square outline that is seen on any picture."""
    for ec, lw in (("white", 4), (color, 2)):
        ax.add_patch(Rectangle((left, top), side, side, fc="none", ec=ec, lw=lw, zorder=3,
                               clip_on=False))  # fmt: skip


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


def follow(images, P, address):
    """How patchify moves the number at address (b, c, row, column) of images (B, C, H, W), uint8.

    On the left its image; on the right a box for each axis, with the number's place along it.
    """
    B, C, H, W = images.shape
    b, c, row, col = address
    (i, p), (j, q) = divmod(row, P), divmod(col, P)
    n, place = i * (W // P) + j, (c * P + p) * P + q
    image, channel = ("B", f"{b} of {B}"), ("C", f"{c} of {C}")
    down, right = ("H/P", f"i = {i} of {H // P}"), ("W/P", f"j = {j} of {W // P}")
    below, beside = ("P", f"p = {p} of {P}"), ("P", f"q = {q} of {P}")
    levels = [  # boxes: name, place, axis, where drawn
        [(*image, 0, 0), (*channel, 1, 1), ("H", f"{row} of {H}", 2, 2.5),
         ("W", f"{col} of {W}", 3, 4.5)],
        [(*image, 0, 0), (*channel, 1, 1), (*down, 2, 2), (*below, 3, 3), (*right, 4, 4),
         (*beside, 5, 5)],
        [(*image, 0, 0), (*down, 2, 1), (*right, 4, 2), (*channel, 1, 3), (*below, 3, 4),
         (*beside, 5, 5)],
        [(*image, 0, 0), ("N", f"{n} of {H * W // P**2}", 1, 1.5),
         ("P²C", f"{place} of {P * P * C}", 2, 4)],
    ]  # fmt: skip
    links = [[(0, 0), (1, 1), (2, 2), (2, 3), (3, 4), (3, 5)],
             [(0, 0), (1, 3), (2, 1), (3, 4), (4, 2), (5, 5)],
             [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]]  # fmt: skip
    figure, (photo, ax) = plt.subplots(1, 2, figsize=(11, 4.8), dpi=100, layout="constrained",
                                       width_ratios=(1, 3))  # fmt: skip
    draw_image(photo, images[b], interpolation="nearest", extent=(0, W, H, 0))
    lines = {"color": COLORS["patches"], "lw": 0.8}
    photo.hlines(range(0, H + 1, P), 0, W, **lines)
    photo.vlines(range(0, W + 1, P), 0, H, **lines)
    frame(photo, j * P, i * P, P, COLORS["ink"])
    photo.plot(col + 0.5, row + 0.5, "s", ms=6, color=COLORS["wrong"], mec="white")
    photo.set(xticks=[col + 0.5], yticks=[row + 0.5], xticklabels=[col], yticklabels=[row])
    photo.tick_params(length=0, labelsize=10)
    photo.set_title(f"image {b}, {H} × {W}: the pixel (red)\nand patch {n}, in its frame", size=10)
    for level, step in enumerate(("the batch", "1. split", "2. permute", "3. merge")):
        ax.text(-0.6, -level, step, ha="right", va="center", size=10)
        for name, place_on_it, axis, x in levels[level]:
            grid = name in ("H/P", "W/P", "N")
            fill = pale(COLORS["patches"], 0.4) if grid else "white" if name in "BHW" else "#DDDDDD"
            box = {"boxstyle": "round,pad=0.35", "fc": fill, "ec": "#555555"}
            ax.text(x, -level, f"axis {axis}: {name}\n{place_on_it}", ha="center", va="center",
                    size=9, linespacing=1.4, bbox=box, zorder=3)  # fmt: skip
    for level, pairs in enumerate(links):
        for start, end in pairs:
            ends = levels[level][start][3], levels[level + 1][end][3]
            ax.plot(ends, (-level, -level - 1), color="#555555", lw=1.2, zorder=1)
    sums = {1.5: f"{i} · {W // P} + {j} = {n}", 4: f"({c} · {P} + {p}) · {P} + {q} = {place}"}
    for x, text in sums.items():
        ax.text(x, -3.52, text, ha="center", va="center", size=10)
    ax.set(xlim=(-1.3, 5.5), ylim=(-3.7, 0.35))
    ax.set_title("each box: an axis, and the place of the pixel on it, counted from 0", size=10)
    ax.axis("off")
    return figure


def patch_and_row(image, patches, P, n):
    """An image (1, H, W), uint8, with its numbers and patch n framed; all patches, row n framed."""
    _, H, W = image.shape
    top, left = n // (W // P) * P, n % (W // P) * P
    figure, (whole, matrix) = plt.subplots(1, 2, figsize=(7, 4.2), dpi=80, layout="constrained",
                                           width_ratios=(3, 2))  # fmt: skip
    for ax, values in ((whole, image[0]), (matrix, patches)):
        values = np.asarray(values)
        ax.imshow(values, cmap="gray", vmin=0, vmax=255, aspect="equal" if ax is whole else "auto")
        for (y, x), value in np.ndenumerate(values):
            color = "white" if value < 128 else COLORS["ink"]
            if ax is whole or y == n:
                ax.text(x, y, value, ha="center", va="center", size=9, color=color)
        ax.tick_params(length=0, labelsize=8)
    lines = {"color": COLORS["patches"], "lw": 1.5}
    whole.hlines(np.arange(0, H + 1, P) - 0.5, -0.5, W - 0.5, **lines)
    whole.vlines(np.arange(0, W + 1, P) - 0.5, -0.5, H - 0.5, **lines)
    matrix.hlines(np.arange(len(patches) + 1) - 0.5, -0.5, P * P - 0.5, **lines)
    for ax, corner, width, height in (
        (whole, (left - 0.5, top - 0.5), P, P),
        (matrix, (-0.5, n - 0.5), P * P, 1),
    ):
        for ec, lw in (("white", 5), (COLORS["queries"], 3)):
            ax.add_patch(Rectangle(corner, width, height, fc="none", ec=ec, lw=lw, zorder=4,
                                   clip_on=False))  # fmt: skip
    whole.set(xticks=range(W), yticks=range(H))
    whole.set_title(f"{H} × {W} pixels, 0 black, 255 white: patch {n}", size=10)
    matrix.set(xticks=range(P * P), yticks=range(len(patches)), xlabel="place in the patch")
    matrix.set_ylabel("patch")
    matrix.set_title(f"{len(patches)} patches, a row each: row {n}", size=10)
    return figure


def side_by_side(pictures, lines=None, title="", cols=None):
    """Pictures {name: uint8 (C, H, W)}, cols in a row (all, if not given).

    lines: the side of the squares of a pink grid, if there is one.
    """
    cols = cols or len(pictures)
    _, H, W = next(iter(pictures.values())).shape
    size = 3 * cols, (3 * H / W + 0.3) * -(-len(pictures) // cols)
    figure, axes = plt.subplots(-(-len(pictures) // cols), cols, figsize=size, dpi=80,
                                layout="constrained", squeeze=False)  # fmt: skip
    for ax in axes.flat[len(pictures) :]:
        ax.axis("off")
    for ax, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        draw_image(ax, picture)
        for step in range(0, picture.shape[-1] + 1, lines) if lines else ():
            ax.axhline(step - 0.5, color=COLORS["patches"], lw=1)
            ax.axvline(step - 0.5, color=COLORS["patches"], lw=1)
        ax.set_title(name, size=10)
    figure.suptitle(title, size=11)
    return figure
