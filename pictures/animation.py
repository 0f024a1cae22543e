"""A film of one image on its way through a Vision Transformer, every number from the model."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from helpers.data import load
from helpers.inspection import attention_maps, tokens_after_each_block
from helpers.model import VisionTransformer
from helpers.plotting import COLORS, pixels
from helpers.training import TrainConfig, fit, predict

SHOWN = 12  # numbers that are drawn of each vector of D
MOST_PATCHES = 36  # more would be too narrow to see
STEPS = ("image", "patches", "embedding", "class token", "positions", "encoder", "head")
BASE, HIGH, TALL = 76, 240, 96  # lower row, upper row, height of a vector, in pixels
PINK, GOLD, GREY, PURPLE = (COLORS[k] for k in ("patches", "class token", "residual", "positions"))


def forward_pass_animation(model, image, path, classes, mean, std):
    """Write the film of one image's forward pass as a GIF (800 x 420, endless), return its path.

    model: a VisionTransformer with a class token and at most MOST_PATCHES patches; image: uint8
    (C, H, W); classes: K names; mean, std: one number for each channel, on the 0..1 scale, as the
    model was trained with. The file appears whole or not at all, and the same input gives the same
    bytes: about 0.5 MB for a digit of 16 patches and 3 blocks. ValueError for a model that cannot
    be drawn.
    """
    if model.num_prefix_tokens != 1:
        raise ValueError(
            f"the model has {model.num_prefix_tokens} tokens before the patches, and the film "
            'follows one class token: build it with global_pool="token" and no others'
        )
    if (N := model.patch_embed.num_patches) > MOST_PATCHES:
        raise ValueError(f"{N} patches given, at most {MOST_PATCHES} can be drawn: cut larger ones")
    film = Film(follow(model, image, mean, std))
    if len(classes) != (K := len(film.j.probabilities)):
        raise ValueError(f"{len(classes)} class names given, the model's head needs {K}")
    for scene in (cut_and_flatten, embed, add_class_token, add_positions, encode):
        scene(film)
    classify(film, [str(name) for name in classes])
    return film.save(Path(path))


@torch.no_grad()
def follow(model, image, mean, std):
    """Run the uint8 image (C, H, W) through the model and note its numbers at every station."""
    pixels(image)  # complains about anything but a uint8 image
    mean, std = (torch.tensor(value).float().view(-1, 1, 1) for value in (mean, std))
    x = ((torch.as_tensor(image) / 255 - mean) / std)[None]  # (1, C, H, W)
    was_training = model.training
    model.eval()
    P = model.patch_embed.proj.stride[0]
    places = [(r, c) for r in range(x.shape[2] // P) for c in range(x.shape[3] // P)]
    pieces = [image[:, r * P : (r + 1) * P, c * P : (c + 1) * P] for r, c in places]
    embedded = model.patch_embed(x)  # (1, N, D)
    tokens = tokens_after_each_block(model, x)
    journey = SimpleNamespace(
        places=places,  # N times (row, column)
        patches=[pixels(piece) for piece in pieces],  # N times (P, P) or (P, P, 3)
        flat=np.stack([np.asarray(piece).reshape(-1) for piece in pieces]),  # (N, P^2 C)
        embedded=embedded[0].numpy(),  # (N, D)
        class_token=model.cls_token[0].numpy(),  # (1, D)
        positions=model.pos_embed[0].numpy(),  # (N+1, D)
        tokens=[z[0].numpy() for z in tokens],  # z_0 ... z_L, each (N+1, D)
        attention=[a[0, :, 0].mean(0).numpy() for a in attention_maps(model, x)],  # L times (N+1,)
        y=model.norm(tokens[-1])[0, :1].numpy(),  # (1, D)
        probabilities=model(x)[0].softmax(dim=-1).numpy(),  # (K,)
    )
    model.train(was_training)
    return journey


class Film:
    """Frames of 800 x 420 pixels, origin at the lower left.

    Pictures and vectors are painted on the stage, an array; matplotlib writes and draws over it.
    """

    def __init__(self, journey):
        self.j, self.frames, self.durations = journey, [], []
        figure = Figure(figsize=(8, 4.2), dpi=100, facecolor="none")
        self.canvas = FigureCanvasAgg(figure)
        self.ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 800), ylim=(0, 420))
        self.ax.axis("off")
        pitch = 590 / len(journey.positions)  # from token to token
        self.width = 0.62 * pitch
        self.xs = [188 + pitch * (i + 0.19) for i in range(len(journey.positions))]  # left edges

    def play(self, step, title, symbol, note, draw, frames=5, hold=650):
        """draw(t) for t up to 1, slow at both ends, under a headline; the last stays hold ms."""
        self.stage = np.full((420, 800, 3), 255, np.float32)
        self.text(24, 393, title, 16, ha="left", weight="bold")
        self.text(776, 393, symbol, 16, ha="right")
        self.text(24, 366, note, 11, ha="left", color="#555555")
        self.ax.plot((60, 740), (31, 31), color="#D0D0D0", lw=2, zorder=1)
        for i, name in enumerate(STEPS):
            x, now, later = 60 + i * 680 / 6, name == step, i > STEPS.index(step)
            color = COLORS.get("residual" if name == "encoder" else name, COLORS["ink"])
            dot, ink = ("#D0D0D0", "#999999") if later else (color, COLORS["ink"])
            self.ax.plot(x, 31, "o", ms=10 if now else 6, color=dot)
            self.text(x, 13, name, 9.5, weight="bold" if now else "normal", color=ink)
        self.lay_over()
        page = self.stage
        for t in np.linspace(0, 1, frames + 1)[1:]:
            self.stage = page.copy()
            draw(t * t * (3 - 2 * t))
            self.lay_over()
            self.frames.append(Image.fromarray(self.stage.round().astype(np.uint8)))
            self.durations.append(50 if t < 1 else hold)

    def lay_over(self):
        """Move what matplotlib has drawn onto the stage."""
        self.canvas.draw()
        drawn = np.asarray(self.canvas.buffer_rgba(), np.float32)
        self.stage += drawn[..., 3:] / 255 * (drawn[..., :3] - self.stage)
        for artist in (*self.ax.lines, *self.ax.texts, *self.ax.patches):
            artist.remove()

    def text(self, x, y, label, size=11.0, ha="center", **options):
        options = {"color": COLORS["ink"], "va": "center", "zorder": 9} | options
        self.ax.text(x, y, label, size=size, ha=ha, **options)

    def box(self, x, y, width, height, part, label, color):
        shape = {"boxstyle": "round,pad=0,rounding_size=5", "ec": "#555555", "lw": 0.8}
        self.ax.add_patch(FancyBboxPatch((x, y), width, height, fc=COLORS[part], **shape))
        self.text(x + width / 2, y + height / 2 - 1, label, 12, color=color)

    def picture(self, image, x, y, width, height, edge=None, alpha=1.0):
        """Paint an image (h, w) or (h, w, 3), 0 to 255, its lower left corner at x, y."""
        if edge:
            self.fill(edge, x - 1, y - 1, width + 2, height + 2, alpha)
        left, right, top, bottom = np.round((x, x + width, 420 - y - height, 420 - y)).astype(int)
        image = np.stack([image] * 3, -1) if np.ndim(image) == 2 else image
        rows = np.arange(bottom - top) * image.shape[0] // max(bottom - top, 1)
        cols = np.arange(right - left) * image.shape[1] // max(right - left, 1)
        place = self.stage[top:bottom, left:right]
        place += alpha * (image[rows][:, cols] - place)

    def fill(self, color, x, y, width, height, alpha=1.0):
        self.picture(255 * np.array([[to_rgb(color)]]), x, y, width, height, alpha=alpha)

    def vectors(self, values, color, y, first=0, alpha=1.0):
        """Columns of cells, the first numbers of each vector: the smallest white, the largest dark.

        The extreme fortieth at both ends is cut off, so that one outlier does not bleach the rest.
        """
        values = values[:, :SHOWN]
        low, high = np.quantile(values, (0.025, 0.975))
        levels = (values - low) / max(high - low, 1e-9)  # (n, SHOWN)
        shades = [np.interp(levels, (0, 0.6, 1), (1, c, 0.35 * c)) for c in to_rgb(color)]
        cells = 255 * np.stack(shades, -1)  # (n, SHOWN, 3)
        for x, column in zip(self.xs[first : first + len(cells)], cells, strict=True):
            self.picture(column[::-1, None], x, y, self.width, TALL, color, alpha)

    def tokens(self, layer, y, alpha=1.0):
        """z_layer in the grey of the residual stream; the class token keeps its golden frame."""
        self.fill(GOLD, self.xs[0] - 4, y - 4, self.width + 8, TALL + 8, alpha)
        self.vectors(self.j.tokens[layer], GREY, y, alpha=alpha)
        if alpha == 1:
            self.text(171, y + TALL / 2, rf"$\mathbf{{z}}_{{{layer}}}$", 14)

    def reminder(self, weights=None, label="", row=True):
        """The image at the left, its patches golden by weights (N,), and the patches as a row."""
        rows, cols = np.add(self.j.places[-1], 1)
        side = 132 / max(rows, cols)
        for i, (patch, (r, c)) in enumerate(zip(self.j.patches, self.j.places, strict=True)):
            x, y = 24 + c * side, 276 - (r + 1) * side
            self.picture(patch, x, y, side, side)
            if weights is not None:
                self.fill(GOLD, x, y, side, side, 0.8 * weights[i])
            if row:
                self.picture(patch, self.xs[i + 1], BASE - 26, self.width, 20)
        self.text(24 + cols * side / 2, 276 - rows * side - 14, label, 9.5, color="#555555")

    def save(self, path):
        """All frames in one palette, written under a temporary name first."""
        sample = np.concatenate([np.asarray(frame)[::3, ::3] for frame in self.frames])
        palette = Image.fromarray(sample).quantize(64, Image.Quantize.FASTOCTREE)
        frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in self.frames]
        entries = np.array(palette.getpalette()).reshape(-1, 3)
        entries[frames[0].getpixel((0, 0))] = 255  # the background: white, not nearly white
        for frame in frames:
            frame.putpalette(entries.flatten().tolist())
        unfinished = path.with_name(path.name + ".part")
        options = {"append_images": frames[1:], "duration": self.durations, "loop": 0}
        try:
            frames[0].save(unfinished, format="GIF", save_all=True, **options)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path


def cut_and_flatten(film):
    """The image is cut, the patches fly into a row, each becomes a vector of pixel values."""
    j, (rows, cols), P = film.j, np.add(film.j.places[-1], 1), len(film.j.patches[0])
    side, gap, above = 240 / max(rows, cols), 56 / max(rows, cols), BASE + film.width + 8

    def patches(apart, flown, flat=0.0):
        if flown:
            film.reminder(row=False)
        for i, (patch, (row, col)) in enumerate(zip(j.patches, j.places, strict=True)):
            x = 400 - side / 2 + (side + gap * apart) * (col - (cols - 1) / 2)
            y = 196 - side / 2 - (side + gap * apart) * (row - (rows - 1) / 2)
            x, y = x + flown * (film.xs[i + 1] - x), y + flown * (BASE - y)
            size = side + flown * (film.width - side)
            film.picture(patch, x, y, size, size, PINK if apart else None)
            if flat:
                film.picture(j.flat[i][:, None], x, above, film.width, 70 * flat, PINK)

    size = f"{rows * P} × {cols * P} pixels"
    film.play("image", "One image", r"$\mathbf{x}$", size, lambda t: patches(0, 0), 1, 800)
    title, note = f"Cut it into {len(j.patches)} patches", f"{P} × {P} pixels each"
    symbol = r"$\mathbf{x}_p^1 \ldots \mathbf{x}_p^N$"
    film.play("patches", title, symbol, note, lambda t: patches(t, 0), 6, 500)
    note = f"each patch becomes a vector of {j.flat.shape[1]} pixel values"
    flatten = ("patches", "Flatten them", r"$\mathbf{x}_p^i \in \mathbb{R}^{P^2 C}$", note)
    film.play(*flatten, lambda t: patches(1, t), 9, 50)
    film.play(*flatten, lambda t: patches(1, 1, t), 4)


def embed(film):
    """E takes one flat vector after the other to a vector of D numbers."""
    j, y, x, right = film.j, BASE + film.width + 8, film.xs[1] - 4, film.xs[-1] + film.width + 4

    def draw(t):
        film.reminder(row=False)
        film.box(x, y + 80, right - x, 26, "embedding", "linear projection  E", COLORS["ink"])
        for left, patch, flat in zip(film.xs[1:], j.patches, j.flat, strict=True):
            film.picture(patch, left, BASE, film.width, film.width, PINK)
            film.picture(flat[:, None], left, y, film.width, 70, PINK)
        film.vectors(j.embedded, PINK, y + 116, 1)
        curtain = x + t * (right - x)
        film.fill("white", curtain, y + 112, right - curtain, TALL + 8)

    D = j.embedded.shape[1]
    shown = f" ({SHOWN} of them drawn)" if D > SHOWN else ""
    note = f"one matrix for all patches: {j.flat.shape[1]} → {D} numbers{shown}"
    film.play("embedding", "Embed each patch", r"$\mathbf{x}_p^i\,\mathbf{E}$", note, draw, 10)


def add_class_token(film):
    def draw(t):
        film.reminder()
        film.vectors(film.j.embedded, PINK, BASE + (1 - t) * (film.width + 124), 1)
        film.vectors(film.j.class_token, GOLD, BASE, alpha=t)
        film.text(film.xs[0] + film.width / 2, BASE - 16, "class", 9)

    note = "one more learned vector: it will collect what the patches say"
    symbol = r"$[\mathbf{x}_{class};\ \mathbf{x}_p^1\mathbf{E};\ \ldots]$"
    film.play("class token", "Add the class token", symbol, note, draw, 6)


def add_positions(film):
    def draw(t):
        film.reminder()
        if t == 1:
            return film.tokens(0, BASE)
        film.vectors(film.j.embedded, PINK, BASE, 1)
        film.vectors(film.j.class_token, GOLD, BASE)
        film.vectors(film.j.positions, PURPLE, HIGH - max(2 * t - 1, 0) * (HIGH - BASE))
        film.text(171, BASE + TALL + 34, "+", 20)

    symbol = r"$\mathbf{z}_0 = [\mathbf{x}_{class};\ \mathbf{x}_p^i\mathbf{E}] + \mathbf{E}_{pos}$"
    note = f"a learned vector for each of the {len(film.xs)} places, or their order would be lost"
    film.play("positions", "Add the positions", symbol, note, draw, 12)


def encode(film):
    """Through the blocks: lines as wide as the class token's attention, then the next z."""
    L, middles = len(film.j.attention), [x + film.width / 2 for x in film.xs]
    note = "attention mixes the tokens, an MLP works on each; lines: where the class token looks"

    def reveal(t, layer):
        weights = film.j.attention[layer]
        film.reminder(weights[1:] / weights[1:].max(), f"attention in block {layer + 1}")
        if t <= 1:  # the lines grow
            film.tokens(layer, BASE)
            for x, w in zip(middles, weights / weights.max(), strict=True):
                ends = (x, x + t * (middles[0] - x)), (BASE + TALL, BASE + TALL + t * 68)
                film.ax.plot(*ends, color=GOLD, lw=0.6 + 4 * w, alpha=0.3 + 0.7 * w, zorder=2)
        else:  # the next tokens sink to where the last ones were
            film.tokens(layer, BASE, alpha=0.6 * (2 - t))
        if t >= 1:
            film.tokens(layer + 1, HIGH + (t - 1) * (BASE - HIGH))

    for layer in range(L):
        symbol = rf"$\mathbf{{z}}_{{{layer}}} \rightarrow \mathbf{{z}}_{{{layer + 1}}}$"
        header = ("encoder", f"Encoder block {layer + 1} of {L}", symbol, note)
        film.play(*header, lambda t, i=layer: reveal(t, i), max(2, 15 // L), max(200, 1800 // L))
        film.play(*header, lambda t, i=layer: reveal(1 + t, i), max(2, 12 // L), 50)


def classify(film, classes):
    """Equation 4 and the head: the class token alone, and a bar for each class (at most ten)."""
    p, x = film.j.probabilities, film.xs[0] + film.width
    chosen = sorted(np.argsort(-p, kind="stable")[:10])
    best, step = int(p.argmax()), 276 / len(chosen)
    left = 395 + 8 * max(len(classes[k]) for k in chosen)  # where the bars begin

    def leave(t):
        film.reminder(row=False)
        film.vectors(film.j.tokens[-1][1:], GREY, BASE, 1, alpha=1 - t)
        film.vectors(film.j.y, GOLD, BASE + t * 96)

    def answer(t):
        leave(1)
        film.text(x - film.width / 2, 156, r"$\mathbf{y}$", 14)
        film.box(x + 44, 198, 76, 44, "head", "head", "white")
        for a, b in ((x + 8, x + 40), (x + 124, x + 156)):
            arrow = FancyArrowPatch((a, 220), (b, 220), arrowstyle="-|>", mutation_scale=12, lw=1.5)
            film.ax.add_patch(arrow)
        for i, k in enumerate(chosen):
            y, end = 340 - (i + 0.5) * step, left + t * p[k] * (740 - left)
            weight = "bold" if k == best and t == 1 else "normal"
            film.text(left - 10, y, classes[k], ha="right", weight=weight)
            film.ax.barh(y, end - left, 0.62 * step, left=left, color=GOLD if k == best else GREY)
            film.text(end + 7, y, f"{p[k]:.0%}" if t == 1 else "", ha="left", weight=weight)

    header = ("head", "Read the class token", r"$\mathbf{y} = \mathrm{LN}(\mathbf{z}_L^0)$",
              "normalise it; one linear layer, the head, gives each class a score")  # fmt: skip
    film.play(*header, leave, 5, 50)
    film.play(*header, answer, 7, 1600)


if __name__ == "__main__":  # python -m pictures.animation film.gif: the README's, model of 00
    data = load("digits")
    torch.manual_seed(0)
    vit = VisionTransformer(8, 2, 1, 10, 64, 3, 4, mlp_ratio=2.0, pos_embed_std=0.5)
    fit(vit, data, TrainConfig(epochs=80, batch_size=64, lr=3e-3, weight_decay=0.3))
    right = predict(vit, data, data.test.images).argmax(1) == data.test.labels
    digit = data.test.images[right.nonzero()[2, 0]]
    forward_pass_animation(vit.cpu(), digit, sys.argv[1], data.classes, data.mean, data.std)
