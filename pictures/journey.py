"""One image's way through a Vision Transformer in steps, each drawn from the model's numbers."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import ConnectionPatch, FancyArrowPatch, Rectangle

from helpers.plotting import COLORS, SIGNED, draw_image
from pictures.animation import follow

WIDE, HIGH, BOTTOM, TABLE = 8.4, 3.75, 0.55, 2.0  # inches: figure, foot and height of a table
GOLD, INK = COLORS["class token"], COLORS["ink"]


def journey(model, image, data):
    """A uint8 image (C, H, W) on its way -> draw(step), which gives a Figure; steps from 1.

    There are six steps and one more for each block. Tables have a row for each patch or token, blue
    below 0 and red above; data: the ImageData that says how pixels are normalised.
    """
    j, steps = follow(model, image, data.mean, data.std), []
    mean, std = (np.repeat(v, j.flat.shape[1] // len(image)) for v in (data.mean, data.std))
    rows, joined = (j.flat / 255 - mean) / std, np.vstack([j.class_token, j.embedded])
    with torch.no_grad():
        logits = model.head(torch.tensor(j.y))[0].numpy()
    (N, n), D, L, P = rows.shape, joined.shape[1], len(j.attention), len(j.patches[0])
    names = [rf"$\mathbf{{z}}_{i}$" for i in range(L + 1)]

    def step(title, said, draw, shares=None):
        steps.append((title, said, draw, shares))

    def cut(s):
        s.arrow(1.95, 2.6, "")
        s.patches(2.75)

    def flat(s):
        s.patches(2.75)
        s.arrow(4.95, 5.6, "")
        s.table(6.3, 0.6, rows, "patches in rows")

    def embedding(s):
        s.table(2.9, 0.6, rows, "patches in rows")
        s.arrow(3.7, 5.3, f"times E\n({n}, {D})")
        s.table(6.0, 1.7, j.embedded, "tokens")

    def class_token(s):
        s.table(2.9, 1.7, j.embedded, "tokens")
        s.arrow(4.75, 5.3, "")
        s.table(6.0, 1.7, joined, "class token in front")

    def positions(s):
        scale = j.tokens[0].std()
        for x, values, name, sign in ((2.6, joined, "tokens", "+"),
                                      (4.7, j.positions, "positions, $E_{pos}$", "="),
                                      (6.8, j.tokens[0], names[0], "")):  # fmt: skip
            s.table(x, 1.4, values, name, scale)
            s.text(x + 1.73, BOTTOM + TABLE / 2, sign, 16, "center")

    def block(s, layer):
        left = s.table(2.9, 1.6, j.tokens[layer], names[layer])
        right = s.table(6.2, 1.6, j.tokens[layer + 1], names[layer + 1], named=False)
        for row, share in enumerate(s.shares):
            s.figure.add_artist(ConnectionPatch(
                (D - 0.5, row), (-0.5, 0), "data", "data", axesA=left,
                axesB=right, color=GOLD, lw=0.5 + 12 * share, alpha=0.85))  # fmt: skip

    def head(s):
        s.table(2.7, 1.1, j.tokens[-1], names[-1])
        y = s.axes(4.45, BOTTOM + TABLE - 0.13, 1.1, 0.13, r"$\mathbf{y}$" + f"\n({D},)")
        s.colored(y, j.y, j.y.std(), 1)
        s.bars(logits, j.probabilities)
        top = BOTTOM + TABLE - 0.06
        s.arrow(2.7 + 1.13, 4.42, "LN", top, GOLD)
        s.arrow(5.58, 6.15, "head", top, GOLD)

    step("Cut", f"{N} patches of {P} x {P} pixels, counted row by row from 0", cut)
    step("Lay flat", f"each patch becomes a row of {n} numbers; after normalising, black is below "
         "0", flat)  # fmt: skip
    step("Times E", f"one learned matrix makes every row a token of {D} numbers", embedding)
    step("Class token", "one more learned row goes in front; it belongs to no patch", class_token)
    step(
        "Positions",
        "a learned row for each place is added: what stood where (one scale for all)",
        positions,
    )
    for i in range(L):
        said = "lines: from whom the class token takes, the thicker the more (mean of all heads)"
        step(f"Block {i + 1} of {L}", said, lambda s, i=i: block(s, i), j.attention[i])
    step("Read the answer", "the class token alone: normalised, then a score for each class, the "
         "logits, and their shares", head)  # fmt: skip

    def drawing(number):
        title, said, draw, shares = steps[number - 1]
        stage = Stage(f"{number} of {len(steps)} · {title}", said, image, j, shares)
        draw(stage)
        return stage.figure

    return drawing


class Stage:
    """The sheet of one step: title, sentence and image at the left; lengths in inches."""

    def __init__(self, title, said, image, j, shares):
        self.figure, self.j, self.shares = plt.figure(figsize=(WIDE, HIGH), dpi=85), j, shares
        self.figure.suptitle(title, x=0.02, y=0.975, ha="left", size=13, weight="bold")
        self.text(0.02 * WIDE, HIGH - 0.52, said, 10)
        ax = self.axes(0.2, BOTTOM + 0.4, 1.6, 1.6, f"image\n{tuple(image.shape)}")
        draw_image(ax, image)
        P, patches = len(j.patches[0]), zip(j.places, range(len(j.places)), strict=True)
        for (row, col), i in patches:
            corner = (col * P - 0.5, row * P - 0.5)
            ax.add_patch(Rectangle(corner, P, P, fc="none", ec=COLORS["patches"], lw=0.8))
            if shares is not None:
                gold = 0.8 * shares[i + 1] / shares[1:].max()
                ax.add_patch(Rectangle(corner, P, P, fc=GOLD, ec="none", alpha=gold))
        if shares is not None:
            self.text(1.0, BOTTOM + 0.26, "the more gold,\nthe more it takes", 8.5, "center", "top")
        scale = self.axes(0.2, 0.12, 0.9, 0.1)
        scale.imshow([np.linspace(-1, 1, 64)], cmap=SIGNED, aspect="auto")
        scale.spines[:].set_visible(False)
        scales = "" if "Positions" in title else "; each on a scale of its own"
        self.text(1.2, 0.16, "tables: blue below 0, white 0, red above" + scales, 8.5, va="center")

    def text(self, x, y, label, size=9, ha="left", va="center", **options):
        self.figure.text(x / WIDE, y / HIGH, label, size=size, ha=ha, va=va, **options)

    def axes(self, x, y, width, height, title=""):
        ax = self.figure.add_axes((x / WIDE, y / HIGH, width / WIDE, height / HIGH))
        ax.set(xticks=[], yticks=[])
        self.text(x + width / 2, y + height + 0.05, title, 9.5, "center", "bottom")
        return ax

    def arrow(self, start, end, label, y=BOTTOM + TABLE / 2, color="#444444"):
        ends = ((start / WIDE, y / HIGH), (end / WIDE, y / HIGH))
        self.figure.add_artist(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=12, lw=1.6,
                                               color=color))  # fmt: skip
        self.text((start + end) / 2, y + 0.06, label, 9, "center", "bottom")

    def patches(self, x):
        """The image cut apart, a number on each patch."""
        rows, cols = np.add(self.j.places[-1], 1)
        side = TABLE / max(rows, cols)
        for i, (patch, (row, col)) in enumerate(zip(self.j.patches, self.j.places, strict=True)):
            y = BOTTOM + TABLE - (row + 0.74) * side
            ax = self.axes(x + col * side, y, 0.74 * side, 0.74 * side)
            ax.imshow(patch, cmap="gray", vmin=0, vmax=255)
            ax.spines[:].set(color=COLORS["patches"], lw=1.2)
            ax.set_xlabel(str(i), size=7, labelpad=1)

    def colored(self, ax, values, scale, framed):
        """Numbers (n, m) by sign; the first rows, the class token's, get a golden frame."""
        ax.imshow(values, cmap=SIGNED, vmin=-3 * scale, vmax=3 * scale, aspect="auto",
                  interpolation="nearest")  # fmt: skip
        if framed:
            ax.add_patch(Rectangle((-0.5, -0.5), values.shape[1], framed, lw=2, fc="none", ec=GOLD,
                                   clip_on=False, zorder=5))  # fmt: skip

    def table(self, x, width, values, name, scale=None, named=True):
        """A row for each patch; where one row more is given, the first is the class token's."""
        N = len(self.j.places)
        ax = self.axes(x, BOTTOM, width, TABLE, f"{name}\n{values.shape}")
        self.colored(ax, values, scale or values.std(), len(values) - N)
        places = {0: "0", N - 1: str(N - 1)} if len(values) == N else {0: "class", N: str(N - 1)}
        if named:
            ax.set_yticks(list(places), labels=places.values(), size=8)
        ax.tick_params(length=0, pad=3)
        return ax

    def bars(self, logits, probabilities):
        """A bar for each class, red above 0 and blue below, and the softmax's share beside it."""
        ax = self.axes(6.4, BOTTOM, 1.0, TABLE, f"logits\n({len(logits)},)")
        sides = plt.get_cmap(SIGNED)([0.15, 0.85])
        ax.barh(range(len(logits)), logits, color=[sides[int(v > 0)] for v in logits])
        ax.axvline(0, color=INK, lw=0.8)
        ax.set(yticks=range(len(logits)), ylim=(len(logits) - 0.4, -0.6))
        ends = sorted({round(float(end), 1) for end in (min(logits), 0, max(logits))})
        ax.set_xticks(ends, labels=[f"{end:.3g}" for end in ends])
        ax.tick_params(length=0, labelsize=8, pad=2)
        self.text(7.85, BOTTOM + TABLE + 0.05, "softmax\nof them", 9.5, "center", "bottom")
        for k, share in enumerate(probabilities):
            y = BOTTOM + TABLE * (1 - (k + 0.6) / (len(logits) + 0.2))
            bold = "bold" if k == probabilities.argmax() else "normal"
            self.text(8.05, y, f"{share:.0%}", 8.5, "right", weight=bold)
