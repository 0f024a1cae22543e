"""Charts of 02 and its side trips: filters, their answers, and patches on a map."""

from textwrap import fill

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torchvision.utils import make_grid

from helpers.plotting import COLORS, draw_image, heatmaps, numbers


def filter_pixels(filters, limit=None):
    """Filters (..., C, P, P) as uint8 pictures: mid grey is 0, full brightness is limit or more.

    limit: the largest weight shown, by default that of each filter by itself.
    """
    if limit is None:
        limit = filters.abs().amax((-1, -2, -3), keepdim=True)
    return (127.5 + 127.5 * filters / limit).clamp(0, 255).round().to(torch.uint8)


def filter_panels(panels, cols=8, title=""):
    """Filters side by side, {title: (filters (n, C, P, P), limit or None)}, cols in a row."""
    rows = max(-(-len(filters) // cols) for filters, _ in panels.values())
    width = 9.6 / len(panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(9.6, rows * width / cols + 0.6), dpi=100,
                                squeeze=False, layout="constrained")  # fmt: skip
    for ax, (name, (filters, limit)) in zip(axes[0], panels.items(), strict=True):
        pictures = filter_pixels(filters, limit)
        draw_image(ax, make_grid(pictures, nrow=cols, padding=1, pad_value=255))
        ax.set_title(name, size=10)
    figure.suptitle(title, size=10)
    return figure


def patch_map(patches, filters, tokens, names):
    """Patches (N, C, P, P), 0 to 1, at the two coordinates tokens (N, 2) that two filters give.

    filters (2, C, P, P) stand beside their axes, names say what each of them asks.
    """
    figure, ax = plt.subplots(figsize=(6.4, 4.0), dpi=72)
    figure.subplots_adjust(left=0.25, right=0.985, bottom=0.26, top=0.93)
    low, high = tokens.min(0).values, tokens.max(0).values
    half = (high - low) * torch.tensor([0.026, 0.042])  # of a patch's side on the map
    for patch, (x, y) in zip((patches * 255).to(torch.uint8), tokens.tolist(), strict=True):
        dx, dy = half.tolist()
        draw_image(ax, patch, extent=(x - dx, x + dx, y - dy, y + dy), aspect="auto", zorder=2)
    (left, bottom), (right, top) = (low - 1.5 * half).tolist(), (high + 1.5 * half).tolist()
    ax.set(xlim=(left, right), ylim=(bottom, top))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_tick_params(labelsize=8, color=COLORS["residual"], labelcolor=COLORS["residual"])
    zero = {"color": COLORS["residual"], "lw": 0.8, "ls": "--", "zorder": 1}
    ax.axvline(0, **zero)
    ax.axhline(0, **zero)
    ax.spines[["left", "bottom"]].set_visible(True)
    ax.set_title(f"64 patches; across: {names[0]}, up: {names[1]}", size=9)
    across = figure.add_axes((0.59, 0.01, 0.095, 0.152))
    up = figure.add_axes((0.045, 0.5, 0.095, 0.152))
    limit = 1.3 * filters.abs().amax((-1, -2, -3), keepdim=True)  # white would be the page
    for beside, picture in zip((across, up), filter_pixels(filters, limit), strict=True):
        draw_image(beside, picture)
        frame = {"transform": beside.transAxes, "fc": "none", "clip_on": False}
        beside.add_patch(Rectangle((0, 0), 1, 1, ec=COLORS["ink"], lw=0.8, **frame))
    across.set_ylabel(f"{names[0]} → ", size=9, rotation=0, ha="right", va="center")
    up.set_xlabel(fill(names[1], 10), size=9)
    up.set_title("↑", size=9)
    return figure


def product_chart(x, E, pixels, questions):
    """x (n,), E (n, D) and their product with their numbers, purple above 0, orange below."""
    figure, axes = plt.subplots(1, 3, figsize=(8, 2.6), width_ratios=(len(x), *E.shape[1:] * 2),
                                layout="constrained")  # fmt: skip
    numbers(axes[0], x[None], "patch x, flattened", cols=pixels)
    numbers(axes[1], E, "matrix E", rows=pixels, cols=questions)
    numbers(axes[2], (x @ E)[None], "token x E", cols=questions)
    for ax, values in zip(axes, (x[None], E, (x @ E)[None]), strict=True):
        ax.get_images()[0].set(array=values.numpy(), cmap="PuOr", clim=(-2, 2))
    return figure


def answer_pictures(photo, answers, label):
    """A grey photo (H, W), 0 to 1, and {title: a filter's answers (h, w)}, which share a bar."""
    titles = ["the photograph, grey", *answers]
    shown = [photo, *answers.values()]
    figure = heatmaps(shown, titles, len(shown), label, 2.7, (-0.7, 0.7), "PuOr")
    figure.axes[0].get_images()[0].set(cmap="gray", clim=(0, 1))  # a scale of its own
    return figure
