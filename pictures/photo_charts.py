"""Drawings of 11: photographs, the colours of their patches, and what is near what."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from helpers.plotting import COLORS, draw_image


def beside(photos, pictures, titles, above="the photograph", below="", size=1.7):
    """Photographs uint8 (3, H, W) in a row, and under each a picture (rows, cols, 3), 0 to 1.

    ValueError unless each photograph has a picture and a title.
    """
    pictures = fitting(pictures, photographs=photos, titles=titles)
    figure, axes = plt.subplots(2, len(photos), figsize=(size * len(photos) + 0.3, 2 * size + 0.4),
                                dpi=80, squeeze=False, layout="constrained")  # fmt: skip
    for column, photo, picture, title in zip(axes.T, photos, pictures, titles, strict=True):
        draw_image(column[0], photo)
        column[1].imshow(picture, interpolation="nearest")
        column[1].set(xticks=[], yticks=[])
        column[1].spines[:].set_visible(False)
        column[0].set_title(title, size=9)
    axes[0, 0].set_ylabel(above, size=9)
    axes[1, 0].set_ylabel(below, size=9)
    return figure


def in_a_row(pictures, titles, size=2.2):
    """Pictures (rows, cols, 3), 0 to 1, or maps (rows, cols) beside each other, unsmoothed.

    ValueError unless each picture has a title.
    """
    pictures = fitting(pictures, titles=titles)
    figure, axes = plt.subplots(1, len(pictures), figsize=(size * len(pictures), size + 0.35),
                                dpi=80, squeeze=False, layout="constrained")  # fmt: skip
    for ax, picture, title in zip(axes[0], pictures, titles, strict=True):
        ax.imshow(picture, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, size=9)
    return figure


def fitting(pictures, **others):
    """Pictures and maps as arrays. ValueError for other shapes and other lengths of others."""
    pictures = [np.asarray(picture) for picture in pictures]
    for name, given in others.items():
        if len(given) != len(pictures):
            raise ValueError(f"{len(given)} {name} for {len(pictures)} pictures: give one for each")
    if not pictures or any(p.ndim < 2 or p.shape[2:] not in ((), (3,)) for p in pictures):
        raise ValueError(
            f"pictures of shapes {[picture.shape for picture in pictures]} given, one or more of "
            "(rows, cols, 3) or (rows, cols) needed"
        )
    return pictures


def likeness(cosines, patch):
    """The cosine (rows, cols) of one patch, (row, column), with each, in ten colours.

    What is below 0.5 is as 0.5. ValueError if no patch lies there.
    """
    cosines = np.asarray(cosines)
    if cosines.ndim != 2 or not (0 <= patch[0] < len(cosines) and 0 <= patch[1] < len(cosines[0])):
        raise ValueError(
            f"cosines of shape {cosines.shape} and the patch {tuple(patch)} given: (rows, cols), "
            "and a row and a column from 0, needed"
        )
    figure, ax = plt.subplots(figsize=(2.9, 2.4), dpi=64, layout="constrained")
    shown = ax.imshow(cosines, cmap=plt.get_cmap("viridis", 10), vmin=0.5, vmax=1)
    corner = (patch[1] - 0.5, patch[0] - 0.5)
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec=COLORS["wrong"], lw=1.5))
    ax.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=ax, shrink=0.9).set_label("cosine with the framed patch", size=8)
    return figure


def by_labels(results, chance):
    """Accuracy against labels of each class: {name: {labels: accuracies, one for each seed}}.

    Lines join the means, dots are seeds. ValueError without a point, or for more than five names.
    """
    styles = (("queries", "-o"), ("attention", "-.D"), ("values", "--s"), ("keys", ":^"),
              ("residual", "--v"))  # fmt: skip
    ticks = sorted({count for by_count in results.values() for count in by_count})
    if not ticks or len(results) > len(styles):
        raise ValueError(
            f"{len(results)} names with {len(ticks)} numbers of labels given: 1 to {len(styles)} "
            "names, and one number of labels or more, can be drawn"
        )
    figure, ax = plt.subplots(figsize=(7, 3.2), dpi=100, layout="constrained")
    for (name, by_count), (color, style) in zip(results.items(), styles, strict=False):
        counts = sorted(by_count)
        means = [np.mean(by_count[count]) for count in counts]
        ax.plot(counts, means, style, color=COLORS[color], label=name)
        for count in counts:
            dots = np.asarray(by_count[count])
            ax.plot([count] * len(dots), dots, "o", ms=3, color=COLORS[color], alpha=0.6)
    ax.axhline(chance, color=COLORS["wrong"], ls="--", lw=1)
    ax.text(ticks[-1], chance + 0.01, "chance", size=8, ha="right", color=COLORS["wrong"])
    ax.set(xscale="log", xlabel="photographs with a label, of each class", ylim=(0, 1))
    ax.set_ylabel("test accuracy")
    ax.set_xticks(ticks, labels=ticks)
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left")
    return figure
