"""Pictures of images, of numbers and of training, all in one palette.

Every function that draws no axes given to it returns its figure and leaves plt.show() to the
caller. Images are uint8 and
channels first, (C, H, W) with C = 1 (grey) or 3 (RGB), as tensors or arrays.
"""

from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image, ImageOps

# The first seven are Okabe and Ito's, or near, and mean the same thing in every notebook. Colour
# never stands alone: a label, a mark or a line style says it too.
COLORS = {
    "patches": "#CC79A7",
    "positions": "#7E57C2",
    "class token": "#E69F00",
    "queries": "#0072B2",
    "keys": "#D55E00",
    "values": "#009E73",
    "residual": "#8A8A8A",
    "embedding": "#CC79A7",
    "attention": "#56B4E9",
    "mlp": "#44546A",
    "norm": "#F0E442",
    "encoder": "#DADADA",
    "head": "#44546A",
    "train": "#8A8A8A",
    "validation": "#1F4E79",
    "wrong": "#C0282D",
    "ink": "#222222",
}
SIGNED = "RdBu_r"  # the map of numbers with a sign: blue below 0, white 0, red above


def pixels(image):
    """A uint8 image (C, H, W) as matplotlib wants it: (H, W) grey or (H, W, 3) RGB."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an image of shape {image.shape} and type {image.dtype} given, uint8 (C, H, W) with "
            "C = 1 or 3 needed: undo the normalisation, put the channels first"
        )
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def draw_image(ax, image, **options):
    """Draw a uint8 image (C, H, W) on ax, 0 black and 255 white, without ticks and frame."""
    ax.imshow(pixels(image), cmap="gray", vmin=0, vmax=255, **options)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def pale(color, towards_white=0.8):
    """The colour mixed with white, as a hex string: how figure_1 shows what is not the subject."""
    return to_hex([c + (1 - c) * towards_white for c in to_rgb(color)])


PHOTOS = (
    "astronaut.png", "chelsea.png", "china.jpg", "coffee.png", "flower.jpg", "grace_hopper.jpg",
    "rocket.jpg",
)  # fmt: skip


def sample_photo(name="china.jpg", size=210):
    """One of PHOTOS, which come with libraries, uint8 (3, H, W); size is an int or (H, W).

    The largest middle part of that shape. "china.jpg" (by danielbuechele) and "flower.jpg" (by
    vultilion), both from Flickr, CC BY 2.0, come with scikit-learn; "grace_hopper.jpg" (James S.
    Davis, US Navy, public domain) with matplotlib; "astronaut.png" (NASA), "rocket.jpg" (SpaceX),
    both public domain, "chelsea.png" (Stéfan van der Walt) and "coffee.png" (Rachel Michetti), both
    CC0, with scikit-image. ValueError for another name.
    """
    if name not in PHOTOS:
        raise ValueError(f"{name!r} is none of {', '.join(PHOTOS)}")
    H, W = (size, size) if isinstance(size, int) else size
    if name == "grace_hopper.jpg":
        from matplotlib.cbook import get_sample_data

        with get_sample_data(name) as file:
            photo = Image.open(file).convert("RGB")
    elif name in ("china.jpg", "flower.jpg"):
        from sklearn.datasets import load_sample_image

        photo = Image.fromarray(load_sample_image(name))
    else:
        photo = Image.open(str(resources.files("skimage") / "data" / name)).convert("RGB")
    photo = ImageOps.fit(photo, (W, H), Image.Resampling.LANCZOS)
    return np.array(photo).transpose(2, 0, 1)


def show_images(images, titles=None, cols=8, correct=None, size=1.1):
    """A grid of images (n, C, H, W), cols in a row, size inches each, with titles below if given.

    correct: n booleans that put a mark before each title, and red on the wrong ones. ValueError
    without an image, or if titles or correct are not as many as the images.
    """
    n = len(images)
    if n == 0:
        raise ValueError("no images given: there is nothing to show")
    for name, given in (("titles", titles), ("correct", correct)):
        if given is not None and len(given) != n:
            raise ValueError(f"{len(given)} {name} for {n} images: give one for each image")
    rows, cols = -(-n // cols), min(cols, n)
    height = size if titles is None and correct is None else size + 0.25
    figure, axes = plt.subplots(rows, cols, figsize=(cols * size, rows * height), dpi=100,
                                squeeze=False, layout="constrained")  # fmt: skip
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    for i, ax in enumerate(axes.flat[:n]):
        draw_image(ax, images[i])
        mark = "" if correct is None else "✓ " if correct[i] else "✗ "
        title = mark + ("" if titles is None else str(titles[i]))
        ax.set_xlabel(title, size=9, labelpad=2, color=COLORS["wrong" if "✗" in mark else "ink"])
    return figure


def patch_grid(image, patch_size):
    """An image (C, H, W) with the grid that cuts it, and its N patches beside it, numbered 1..N.

    The numbers run row by row, as in equation 1; they are left out where they would be too small
    to read. ValueError if patch_size does not divide H and W.
    """
    C, H, W = image.shape
    if patch_size < 1 or H % patch_size or W % patch_size:
        raise ValueError(
            f"an image of {H} x {W} does not cut into patches of {patch_size} x {patch_size}: "
            "both sides must be a multiple of the patch size"
        )
    rows, cols = H // patch_size, W // patch_size
    inches = 4 / max(rows, cols)  # the side of one patch's cell
    figure, (whole, apart) = plt.subplots(1, 2, figsize=(8.4, rows * inches + 0.4), dpi=100,
                                          layout="constrained")  # fmt: skip
    draw_image(whole, image, extent=(0, cols, rows, 0))
    grid = {"color": COLORS["patches"], "lw": 1.2, "clip_on": False, "gid": "grid"}
    whole.hlines(range(rows + 1), 0, cols, **grid)
    whole.vlines(range(cols + 1), 0, rows, **grid)
    for i in range(rows * cols):
        y, x = divmod(i, cols)
        patch = image[:, y * patch_size : (y + 1) * patch_size, x * patch_size :][..., :patch_size]
        draw_image(apart, patch, extent=(x + 0.13, x + 0.87, y + 0.74, y), gid="patch")
        apart.add_patch(Rectangle((x + 0.13, y), 0.74, 0.74, fc="none", ec=COLORS["patches"],
                                  lw=0.8, clip_on=False))  # fmt: skip
        if inches > 0.39:
            apart.text(x + 0.5, y + 0.87, i + 1, ha="center", va="center", gid="number",
                       size=min(9, 15 * inches), color=COLORS["ink"])  # fmt: skip
    apart.set(xlim=(0, cols), ylim=(rows, 0))
    whole.set_title(f"image {H} × {W} × {C}", size=10)
    apart.set_title(f"N = {rows * cols} patches of {patch_size} × {patch_size} × {C}", size=10)
    return figure


def training_curves(history):
    """Loss (left) and accuracy (right) after each epoch, last values at the ends of the lines.

    history.epochs: records with epoch, train_loss, train_accuracy, validation_loss and
    validation_accuracy (accuracies from 0 to 1; validation's may be None). ValueError if empty.
    """
    if not history.epochs:
        raise ValueError("the history has no epoch yet: train first")
    first, last = history.epochs[0].epoch, history.epochs[-1].epoch
    span = max(last - first, 1)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), dpi=100, layout="constrained")
    for ax, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        ends = []
        for split, style in (("train", "--"), ("validation", "-")):
            points = [(r.epoch, getattr(r, f"{split}_{quantity}")) for r in history.epochs]
            points = [(epoch, value) for epoch, value in points if value is not None]
            if points:
                ax.plot(*zip(*points, strict=True), style, color=COLORS[split], label=split, lw=1.8,
                        marker="o" if len(points) == 1 else "")  # fmt: skip
                ends.append((points[-1][1], split))
        sides = ("center",) if len(ends) == 1 else ("top", "bottom")  # apart, however close
        for (value, split), side in zip(sorted(ends), sides, strict=True):
            text = f"{value:.1%}" if quantity == "accuracy" else f"{value:.3f}"
            ax.text(last + 0.02 * span, value, text, va=side, size=9, color=COLORS[split])
        locator = MaxNLocator(steps=[1, 2, 5, 10], min_n_ticks=1, integer=True)
        ax.set_xticks([t for t in locator.tick_values(first, last) if first <= t <= last])
        ax.set(xlabel="epoch", title=quantity, xlim=(first - 0.03 * span, last + 0.2 * span))
        ax.margins(y=0.1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    return figure


# Numbers


def numbers(ax, values, title="", color="attention", rows=None, cols=None, digits=2):
    """Draw a small matrix (n, m) on ax with its numbers written in; white is 0.

    color: a name in COLORS, for what is above 0; grey is below. rows, cols: labels of the rows and
    columns.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float)) + 0.0  # no -0
    scale = np.abs(values).max() or 1
    shades = [pale(COLORS["residual"], 0.1), "white", pale(COLORS[color], 0.25)]
    ax.imshow(values, cmap=LinearSegmentedColormap.from_list("", shades), vmin=-scale, vmax=scale)
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

    The bar ends at the mean, which is written in a column on the right; dots are the seeds; a
    dashed line marks chance. ValueError if there is nothing to draw.
    """
    if not results or not all(len(np.atleast_1d(runs)) for runs in results.values()):
        raise ValueError("no results given: each name needs one accuracy or more")
    figure, ax = plt.subplots(figsize=(7, 0.42 * len(results) + 0.9), dpi=100, layout="constrained")
    for y, (name, runs) in enumerate(results.items()):
        runs = np.atleast_1d(np.asarray(runs, dtype=float))
        ax.barh(y, runs.mean(), color=pale(COLORS["attention"], 0.3), height=0.62, label=name)
        ax.plot(runs, [y] * len(runs), "o", ms=4, color=COLORS["ink"], alpha=0.7)
        text = f"{runs.mean():.0%}" if runs.mean() < 0.995 else f"{runs.mean():.1%}"
        ax.text(1.12, y, text, va="center", ha="right", size=9)
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
