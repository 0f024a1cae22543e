"""Pictures of images, of the model and of its training, all in one palette.

Every function returns its figure and leaves plt.show() to the caller. Images are uint8 and
channels first, (C, H, W) with C = 1 (grey) or 3 (RGB), as tensors or arrays.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator, PercentFormatter

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
PARTS = ("patches", "embedding", "class token", "positions", "attention", "mlp", "norm",
         "residual", "encoder", "head")  # fmt: skip
EQUATIONS = {
    1: r"$\mathbf{z}_0 = [\mathbf{x}_{class};\; \mathbf{x}_p^1\mathbf{E};\; \ldots;\;"
    r" \mathbf{x}_p^N\mathbf{E}] + \mathbf{E}_{pos}$",
    2: r"$\mathbf{z}'_\ell = \mathrm{MSA}(\mathrm{LN}(\mathbf{z}_{\ell-1})) + \mathbf{z}_{\ell-1}$",
    3: r"$\mathbf{z}_\ell = \mathrm{MLP}(\mathrm{LN}(\mathbf{z}'_\ell)) + \mathbf{z}'_\ell$",
    4: r"$\mathbf{y} = \mathrm{LN}(\mathbf{z}_L^0)$",
}
IN_EQUATION = {  # as far as they are drawn: the last norm, in equation 4, is not
    1: {"patches", "embedding", "class token", "positions"},
    2: {"norm", "attention", "residual", "encoder"},
    3: {"norm", "mlp", "residual", "encoder"},
    4: {"class token", "head"},
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


def sample_photo(name="china.jpg", side=210):
    """The middle of a photograph that scikit-learn bundles, uint8 (3, side, side).

    "china.jpg" and "flower.jpg": by danielbuechele and vultilion on Flickr, CC BY 2.0.
    """
    from sklearn.datasets import load_sample_image

    photo = load_sample_image(name)  # (427, 640, 3)
    step = min(photo.shape[:2]) // side
    top, left = ((length - side * step) // 2 for length in photo.shape[:2])
    photo = photo[top : top + side * step, left : left + side * step]
    photo = photo.reshape(side, step, side, step, 3).mean(axis=(1, 3)).round()
    return photo.astype(np.uint8).transpose(2, 0, 1)


class Drawing:
    """The pencil of figure_1, unit a tenth of an inch. A stroke's part, lit or pale, is its gid."""

    def __init__(self, lit):
        self.equations = {lit} if lit in EQUATIONS else set()
        self.lit = set(PARTS) if lit is None else IN_EQUATION.get(lit, {lit})
        if not self.equations:  # light every equation that names one of the parts
            self.equations = {n for n, parts in IN_EQUATION.items() if parts & self.lit}
        if lit == "encoder":
            self.lit = {"encoder", "attention", "mlp", "norm", "residual"}
        self.figure = plt.figure(figsize=(10, 5), dpi=100)
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, 100), ylim=(0, 50))
        self.ax.axis("off")

    def shade(self, part, color=None, towards_white=0.8):
        color = color or COLORS[part]
        return color if part in self.lit else pale(color, towards_white)

    def text(self, part, x, y, label, size=9.5, color=COLORS["ink"], weight="normal"):
        self.ax.text(x, y, label, size=size, ha="center", va="center", weight=weight, gid=part,
                     color=self.shade(part, color, 0.65), zorder=6)  # fmt: skip

    def box(self, part, x, y, width, height, label="", color=None, rounding=0.5):
        """A rounded box with its lower left corner at x, y; white letters where it is dark."""
        fill, edge = self.shade(part, color), self.shade(part, "#555555", 0.7)
        shape = f"round,pad=0,rounding_size={rounding}"
        self.ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc=fill, ec=edge,
                                         lw=0.8, gid=part, zorder=3))  # fmt: skip
        dark = part in self.lit and np.dot(to_rgb(fill), (0.3, 0.6, 0.1)) < 0.45
        ink = "white" if dark else COLORS["ink"]
        self.text(part, x + width / 2, y + height / 2 - 0.1, label, color=ink)

    def arrow(self, part, *points, color="#444444", width=1.3):
        """A line through the points that ends in an arrow head."""
        style = {"arrowstyle": "-|>", "mutation_scale": 9, "lw": width, "zorder": 4, "gid": part}
        color = self.shade(part, color)
        self.ax.add_patch(FancyArrowPatch(path=Path(points), color=color, **style))

    def plus(self, x, y):
        color = self.shade("residual")
        self.ax.add_patch(Circle((x, y), 1.15, fc="white", ec=color, lw=1.6, zorder=5))
        for dx, dy in ((0.6, 0), (0, 0.6)):
            self.ax.plot((x - dx, x + dx), (y - dy, y + dy), color=color, lw=1.6, zorder=6)

    def tag(self, number, x, y, label=None):
        """The number of an equation, lit with any of the parts that stand in it."""
        color = COLORS["ink"] if number in self.equations else pale(COLORS["ink"], 0.65)
        frame = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": color, "lw": 0.8}
        self.ax.text(x, y, f"({number})", size=9, ha="center", va="center", color=color,
                     bbox=frame, gid=f"eq. {number}", zorder=7)  # fmt: skip
        if label:
            self.ax.text(x + 2.2, y, label, size=11, va="center", color=color, zorder=7)


def figure_1(lit=None):
    """Figure 1 of the paper, redrawn: the whole model left, one encoder block right.

    lit: what is in full colour while the rest is pale ("you are here"): one of PARTS, or the number
    of an equation, 1 to 4; None for all. Numbers in frames are the equations of section 3.1.
    ValueError for another lit.
    """
    if lit is not None and lit not in PARTS and lit not in EQUATIONS:
        choices = ", ".join(map(str, (*PARTS, *EQUATIONS)))
        raise ValueError(f"part {lit!r} is unknown, choose None or one of: {choices}")
    drawing = Drawing(lit)
    for draw in (draw_tokens, draw_top, draw_block):
        draw(drawing)
    return drawing.figure


TOKEN_X = [12.5 + 5.3 * i for i in range(10)]  # the middle of each token's column in figure 1


def draw_tokens(d):
    """The lower half of figure 1: photograph, patches, E, class token and positions."""
    photo = sample_photo()
    side = photo.shape[1] // 3
    for i, x in enumerate(TOKEN_X[1:]):
        row, col = divmod(i, 3)
        patch = photo[:, row * side : (row + 1) * side, col * side : (col + 1) * side]
        for left, bottom, size in ((1 + 3.6 * col, 9.2 - 3.6 * row, 3.4), (x - 2, 3, 4)):
            draw_image(d.ax, patch, extent=(left, left + size, bottom, bottom + size), zorder=3,
                       alpha=1 if "patches" in d.lit else 0.25, gid="patches")  # fmt: skip
            d.ax.add_patch(Rectangle((left, bottom), size, size, fc="none", lw=1.5, zorder=4,
                                     ec=d.shade("patches"), gid="patches"))  # fmt: skip
        d.arrow("embedding", (x, 7.5), (x, 12.2))
        d.arrow("embedding", (x, 16.2), (x, 20.2))
        d.box("embedding", x + 0.1, 20.6, 2, 4.2)
    d.ax.set(xlim=(0, 100), ylim=(0, 50), aspect="auto")
    d.arrow("patches", (12.2, 5), (TOKEN_X[1] - 2.4, 5))
    d.text("patches", 6.3, 1.1, "image")
    d.text("patches", TOKEN_X[5], 1.1, r"flattened patches $\mathbf{x}_p^1 \ldots \mathbf{x}_p^9$")
    width = TOKEN_X[9] - TOKEN_X[1] + 4.6
    label = "Linear projection of flattened patches  (E)"
    d.box("embedding", TOKEN_X[1] - 2.3, 12.5, width, 3.6, label)
    d.box("class token", TOKEN_X[0] + 0.1, 20.6, 2, 4.2, "*")
    d.text("class token", 7.5, 17.2, "* extra learnable\nclass token", 9)
    d.text("positions", 5, 22.7, "patch +\nposition\nembedding", 9)
    for i, x in enumerate(TOKEN_X):
        d.box("positions", x - 2.1, 20.6, 2, 4.2, str(i), rounding=0.9)
        d.arrow("encoder", (x, 25.2), (x, 29.2))
    d.tag(1, TOKEN_X[0] - 2.7, 27.2)


def draw_top(d):
    """The upper half of figure 1: encoder, head, class, and the four equations in full."""
    left, right, x = TOKEN_X[0] - 2.3, TOKEN_X[9] + 2.3, TOKEN_X[0]
    d.box("encoder", left, 29.6, right - left, 4.6, "Transformer encoder:  L blocks")
    for y, corner in ((34.2, 44), (29.6, 5.6)):
        d.ax.plot((right + 0.3, 71.4), (y, corner), ":", lw=1, color=d.shade("encoder", "#777777"))
    part = "class token" if "class token" in d.lit else "head"
    d.arrow(part, (x, 34.6), (x, 39), color=COLORS["class token"], width=2)
    d.tag(4, x + 2.6, 36.8)
    d.box("head", x - 4.5, 39.4, 9, 4, "MLP head")
    d.arrow("head", (x, 43.8), (x, 46.6))
    d.text("head", x, 48, "class: temple")
    for number, equation in EQUATIONS.items():
        d.tag(number, 27, 49.8 - 2.9 * number, equation)


def draw_block(d, x=86):
    """The right side of figure 1: one encoder block around the vertical line at x."""
    d.box("encoder", 71.5, 4.6, 27, 40.4, color="#F2F2F2", rounding=1.2)
    d.text("encoder", x, 48.4, "Encoder block", 10.5, weight="bold")
    d.text("encoder", 68.6, 24.5, r"L $\times$", 13)
    d.text("encoder", x, 1.1, "embedded patches")
    d.arrow("encoder", (x, 2.3), (x, 8.6))
    d.arrow("encoder", (x, 41.9), (x, 47))
    halves = ((9, 24.2, "attention", "Multi-head\nattention", 4.4), (28.2, 40.7, "mlp", "MLP", 3.6))
    for bottom, top, part, label, height in halves:
        around = (x, bottom - 2), (74.5, bottom - 2), (74.5, top), (x - 1.2, top)
        d.arrow("residual", *around, color=COLORS["residual"], width=2)
        d.arrow("residual", (x, top - 2.5), (x, top - 1.2))
        d.box("norm", x - 7, bottom, 14, 2.8, "Norm")
        d.box(part, x - 7, top - 2.6 - height, 14, height, label)
        d.plus(x, top)
    for name, dx in (("queries", -4), ("keys", 0), ("values", 4)):
        d.arrow("attention", (x + dx, 12), (x + dx, 16.9), color=COLORS[name], width=1.8)
        d.text("attention", x + dx + 1, 14.1, name[0], 9)
    d.arrow("mlp", (x, 31.2), (x, 34.2))
    d.arrow("residual", (x, 25.4), (x, 27.8))
    d.tag(2, x + 3.6, 24.2)
    d.tag(3, x + 3.6, 40.7)


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
