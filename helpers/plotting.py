"""Pictures of images, of numbers and of training, all in one palette.

Every function returns its figure and leaves plt.show() to the caller. Images are uint8 and
channels first, (C, H, W) with C = 1 (grey) or 3 (RGB), as tensors or arrays.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex, to_rgb
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


def sample_photo(name="china.jpg", size=210):
    """A photograph that comes with a library, uint8 (3, H, W); size is an int or (H, W).

    The largest middle part of that shape, made smaller. "china.jpg" (by danielbuechele) and
    "flower.jpg" (by vultilion), both from Flickr, CC BY 2.0, come with scikit-learn;
    "grace_hopper.jpg" (James S. Davis, US Navy, public domain) with matplotlib.
    """
    H, W = (size, size) if isinstance(size, int) else size
    if name == "grace_hopper.jpg":
        from matplotlib.cbook import get_sample_data

        with get_sample_data(name) as file:
            photo = Image.open(file).convert("RGB")
    else:
        from sklearn.datasets import load_sample_image

        photo = Image.fromarray(load_sample_image(name))
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


def attention_on_image(image, attention, grid):
    """Where the class token looks: an image (C, H, W), and beside it the N weights laid over it.

    attention: (N,), the class token's row of a map without its own entry; grid: (rows, cols) of
    the patches. ValueError if they do not fit.
    """
    attention = np.asarray(attention)
    rows, cols = grid
    if attention.shape != (rows * cols,):
        raise ValueError(
            f"attention of shape {attention.shape} given, {rows} x {cols} = {rows * cols} weights "
            "needed: one for each patch, the class token's own left out"
        )
    figure, (plain, laid_over) = plt.subplots(1, 2, figsize=(6, 2.9), layout="constrained", dpi=100)
    for ax, title in ((plain, "image"), (laid_over, "attention of the class token")):
        draw_image(ax, image, extent=(0, cols, rows, 0))
        ax.set_title(title, size=10)
    options = {"extent": (0, cols, rows, 0), "vmin": 0, "alpha": 0.65}
    weights = laid_over.imshow(attention.reshape(grid), **options)
    bar = figure.colorbar(weights, ax=laid_over, fraction=0.05)
    bar.set_label("attention weight (line: the mean)", size=9)
    bar.ax.axhline(attention.mean(), color=COLORS["ink"], lw=1.5)
    return figure
