"""Attention on a small scale, for 05: arrows and their dot products, the matrices, maps."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from helpers.plotting import COLORS, SIGNED, numbers, pale

WIDE = 2.4  # how far the plane of the arrows reaches


def query_and_keys(query, keys, names, shares, title):
    """A query (2,) among keys (n, 2) as arrows, and beside them one bar for each key -> Figure.

    Each key drops along a dotted line onto the line of the query: from the origin to where it lands
    lies its shadow, a broad bar on the key's side of the line (a second one there lies beside the
    first), and shadow times the query's length is its score.
    shares (n,): the bars, from 0 to 1; shadow and score stand beside each name.
    """
    query, keys, shares = (np.asarray(a, dtype=float) for a in (query, keys, shares))
    figure, (plane, bars) = plt.subplots(1, 2, figsize=(7.2, 3.2), dpi=72, layout="constrained",
                                         width_ratios=(1.5, 1))  # fmt: skip
    plane.axhline(0, color=COLORS["encoder"], lw=1, zorder=0)
    plane.axvline(0, color=COLORS["encoder"], lw=1, zorder=0)
    length = np.hypot(*query)
    along = query / (length or 1)
    if length:
        plane.axline((0, 0), along, lw=1, color=pale(COLORS["queries"], 0.6), zorder=0.5)
        across, taken = np.array([-along[1], along[0]]), []
        for key in keys:
            foot = key @ along * along
            side = 1 if key @ across > -1e-9 else -1
            half = side, key @ along > 0
            lane = side * (0.08 + 0.15 * taken.count(half)) * across
            taken.append(half)
            plane.plot(*np.stack([key, foot]).T, ":", lw=1.2, color=COLORS["keys"])
            plane.plot(*np.stack([lane, foot + lane]).T, lw=6, color=COLORS["keys"], alpha=0.35,
                       solid_capstyle="butt", zorder=1)  # fmt: skip
    reach = max(1, *np.abs(query) / (0.97 * WIDE, 0.97 * 0.75 * WIDE))  # 1 if within the frame
    if length:
        draw_arrow(plane, query / reach, COLORS["queries"], 2)
    for name, key in zip(names, keys, strict=True):
        draw_arrow(plane, key, COLORS["keys"], 1.6)
        beyond = key * (1 + 0.35 / np.hypot(*key))
        plane.text(*beyond, name, size=9, ha="center", va="center", color=COLORS["keys"],
                   bbox={"fc": "white", "ec": "none", "pad": 0.5})  # fmt: skip
    plane.set(xlim=(-WIDE, WIDE), ylim=(-0.75 * WIDE, 0.75 * WIDE), aspect="equal")
    plane.set(xticks=[], yticks=[])
    plane.set_xlabel("plant  ←   →  animal", size=9)
    plane.set_ylabel("sea  ←   →  air", size=9)
    cut = "" if reach < 1.01 else ", cut at the frame"
    said = f"query (blue, {length:.2f} long{cut})\nkeys (arrows) and shadows (bars)"
    plane.set_title(said, size=9)
    plane.spines[:].set_visible(False)

    bars.barh(range(len(names)), shares, color=pale(COLORS["residual"], 0.3), height=0.6)
    for y, share in enumerate(shares):
        bars.text(share, y, f" {share:.2f}", va="center", size=9)
    shadows = keys @ along + 0.0
    named = [
        f"{name}\n{tidy(shadow, 2)} · {length:.2f} = {tidy(shadow * length, 1)}"
        for name, shadow in zip(names, shadows, strict=True)
    ]
    bars.set(xlim=(0, 1.18), ylim=(len(names) - 0.5, -0.5), xticks=[])
    bars.set_yticks(range(len(names)), labels=named, size=9)
    bars.tick_params(length=0)
    bars.axvline(0, color=COLORS["residual"], lw=1)
    bars.spines[:].set_visible(False)
    bars.set_title(title, size=9)
    return figure


def tidy(number, digits):
    """Rounded, and no -0."""
    return f"{round(float(number), digits) + 0.0:.{digits}f}"


def draw_arrow(ax, to, color, lw):
    style = "-|>,head_width=0.28,head_length=0.5"
    ax.annotate("", to, (0, 0), arrowprops={"arrowstyle": style, "shrinkA": 0, "shrinkB": 0,
                                            "color": color, "lw": lw})  # fmt: skip


def attention_steps(steps, row, column=None, first=4):
    """The matrices of one attention step, `first` of them above and the others below -> Figure.

    steps: {title: (matrix, row labels or None, column labels, digits)}, on one scale of SIGNED,
    each matrix from its own largest number; row: the row that a frame follows, through all matrices
    that have one for each token that asks (those whose title names neither keys nor values).
    column: the one token that is asked, whose key, and whose entries in that row where a row holds
    one for each token, get a dashed frame.
    """
    figure = plt.figure(figsize=(8.2, 5.2), dpi=100, layout="constrained")
    lines = list(steps.items())[:first], list(steps.items())[first:]
    for part, line in zip(figure.subfigures(2, 1), lines, strict=True):
        widths = [matrix.shape[1] for _, (matrix, *_) in line]
        (axes,) = part.subplots(1, len(line), width_ratios=widths, squeeze=False)
        for ax, (title, (matrix, rows, cols, digits)) in zip(axes, line, strict=True):
            numbers(ax, matrix, title, "attention", rows, cols, digits)
            most = 1.6 * float(np.abs(np.asarray(matrix)).max())  # pale enough for black numbers
            ax.images[0].set(cmap=SIGNED, clim=(-most, most))
            ax.tick_params(axis="x", rotation=45)
            if "keys" not in title and "values" not in title:
                framed(ax, (-0.5, row - 0.5), matrix.shape[1], 1, "-")
            if column is not None and "keys" in title:
                framed(ax, (column - 0.5, -0.5), 1, len(matrix), "--")
            elif column is not None and "asked" in title:
                framed(ax, (column - 0.5, row - 0.5), 1, 1, "--")
    return figure


def framed(ax, corner, width, height, style):
    ax.add_patch(Rectangle(corner, width, height, fill=False, lw=1.8, ls=style, ec=COLORS["ink"],
                           zorder=5, clip_on=False))  # fmt: skip


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
                line(step - 0.5, color=COLORS["patches"], lw=2)
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
        axes[1, 0].set_ylabel("patch 0's shares", size=9)
        figure.colorbar(shown, ax=axes[1]).set_label("share", size=9)
    return figure
