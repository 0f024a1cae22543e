"""Figure 1 of the paper, redrawn: the map of the series, any part of it lit."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from helpers.plotting import COLORS, draw_image, pale, sample_photo

PARTS = ("patches", "embedding", "class token", "positions", "attention", "mlp", "norm",
         "residual", "encoder", "head")  # fmt: skip
EQUATIONS = {
    1: r"$\mathbf{z}_0 = [\mathbf{x}_{class};\; \mathbf{x}_p^1\mathbf{E};\; \ldots;\;"
    r" \mathbf{x}_p^N\mathbf{E}] + \mathbf{E}_{pos}$",
    2: r"$\mathbf{z}'_\ell = \mathrm{MSA}(\mathrm{LN}(\mathbf{z}_{\ell-1})) + \mathbf{z}_{\ell-1}$",
    3: r"$\mathbf{z}_\ell = \mathrm{MLP}(\mathrm{LN}(\mathbf{z}'_\ell)) + \mathbf{z}'_\ell$",
    4: r"$\mathbf{y} = \mathrm{LN}(\mathbf{z}_L^0)$",
}
IN_EQUATION = {
    1: {"patches", "embedding", "class token", "positions"},
    2: {"norm", "attention", "residual", "encoder"},
    3: {"norm", "mlp", "residual", "encoder"},
    4: {"class token", "last norm", "head"},
}


class Drawing:
    """The pencil of figure_1, unit a tenth of an inch. A stroke's part, lit or pale, is its gid.

    place: the equation that is being drawn; where another one is lit, its strokes are pale.
    """

    def __init__(self, lit):
        self.number, self.place = lit if lit in EQUATIONS else None, None
        self.equations = {lit} if lit in EQUATIONS else set()
        self.lit = set(PARTS) if lit is None else IN_EQUATION.get(lit, {lit})
        if lit in (None, "norm"):
            self.lit = self.lit | {"last norm"}
        if not self.equations:  # light every equation that names one of the parts
            self.equations = {n for n, parts in IN_EQUATION.items() if parts & self.lit}
        if lit == "encoder":
            self.lit = {"encoder", "attention", "mlp", "norm", "residual"}
        self.figure = plt.figure(figsize=(10, 5), dpi=100)
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, 100), ylim=(0, 50))
        self.ax.axis("off")

    def on(self, part):
        elsewhere = self.number and self.place and self.number != self.place
        return part in self.lit and not elsewhere

    def shade(self, part, color=None, towards_white=0.8):
        color = color or COLORS[part]
        return color if self.on(part) else pale(color, towards_white)

    def text(self, part, x, y, label, size=9.5, color=COLORS["ink"], weight="normal"):
        self.ax.text(x, y, label, size=size, ha="center", va="center", weight=weight, gid=part,
                     color=self.shade(part, color, 0.65), zorder=6)  # fmt: skip

    def box(self, part, x, y, width, height, label="", color=None, rounding=0.5):
        """A rounded box with its lower left corner at x, y; white letters where it is dark."""
        fill, edge = self.shade(part, color), self.shade(part, "#555555", 0.7)
        shape = f"round,pad=0,rounding_size={rounding}"
        self.ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc=fill, ec=edge,
                                         lw=0.8, gid=part, zorder=3))  # fmt: skip
        dark = self.on(part) and np.dot(to_rgb(fill), (0.3, 0.6, 0.1)) < 0.45
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
    d.place = 1
    photo = sample_photo()
    side = photo.shape[1] // 3
    for i, x in enumerate(TOKEN_X[1:]):
        row, col = divmod(i, 3)
        patch = photo[:, row * side : (row + 1) * side, col * side : (col + 1) * side]
        for left, bottom, size in ((1 + 3.6 * col, 9.2 - 3.6 * row, 3.4), (x - 2, 3, 4)):
            draw_image(d.ax, patch, extent=(left, left + size, bottom, bottom + size), zorder=3,
                       alpha=1 if d.on("patches") else 0.25, gid="patches")  # fmt: skip
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
    d.place = None
    for x in TOKEN_X:
        d.arrow("encoder", (x, 25.2), (x, 29.2))
    d.tag(1, TOKEN_X[0] - 2.7, 27.2)


def draw_top(d):
    """The upper half of figure 1: encoder, head, class, and the four equations in full."""
    left, right, x = TOKEN_X[0] - 2.3, TOKEN_X[9] + 2.3, TOKEN_X[0]
    d.box("encoder", left, 29.6, right - left, 4.6, "Transformer encoder:  L blocks")
    for y, corner in ((34.2, 44), (29.6, 5.6)):
        d.ax.plot((right + 0.3, 71.4), (y, corner), ":", lw=1, color=d.shade("encoder", "#777777"))
    d.place = 4
    part = "class token" if d.on("class token") else "head"
    d.arrow(part, (x, 34.4), (x, 36.5), color=COLORS["class token"], width=2)
    d.box("last norm", x - 4.5, 36.6, 9, 2.4, "Norm", COLORS["norm"])
    d.arrow(part, (x, 39.2), (x, 41.2), color=COLORS["class token"], width=2)
    d.box("head", x - 4.5, 41.3, 9, 3.2, "MLP head")
    d.arrow("head", (x, 44.7), (x, 46.9))
    d.text("head", x, 48.2, "class: temple")
    d.place = None
    d.tag(4, x + 6.8, 37.7)
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
    for d.place, (bottom, top, part, label, height) in enumerate(halves, 2):
        around = (x, bottom - 2), (74.5, bottom - 2), (74.5, top), (x - 1.2, top)
        d.arrow("residual", *around, color=COLORS["residual"], width=2)
        d.arrow("residual", (x, top - 2.5), (x, top - 1.2))
        d.box("norm", x - 7, bottom, 14, 2.8, "Norm")
        d.box(part, x - 7, top - 2.6 - height, 14, height, label)
        d.plus(x, top)
    d.place = 2
    for name, dx in (("queries", -4), ("keys", 0), ("values", 4)):
        d.arrow("attention", (x + dx, 12), (x + dx, 16.9), color=COLORS[name], width=1.8)
        d.text("attention", x + dx + 1, 14.1, name[0], 9)
    d.place = 3
    d.arrow("mlp", (x, 31.2), (x, 34.2))
    d.arrow("residual", (x, 25.4), (x, 27.8))
    d.place = None
    d.tag(2, x + 3.6, 24.2)
    d.tag(3, x + 3.6, 40.7)
