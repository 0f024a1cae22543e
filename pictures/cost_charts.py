"""Charts of what an encoder block costs, from the panels and bars of lab/cost.py."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, NullLocator

from helpers.plotting import COLORS

MARKS = (("queries", "o"), ("keys", "s"), ("values", "^"))
PIECES = {  # of an encoder block's forward pass, in order
    "qkv": COLORS["queries"],
    "scores": COLORS["keys"],
    "softmax": COLORS["wrong"],
    "weighted sum": COLORS["values"],
    "proj": COLORS["attention"],
    "mlp": COLORS["mlp"],
    "GELU": COLORS["norm"],
}


def beside(panels, ylabel, title="", level=None, named=None):
    """Measured marks beside what a formula says, a panel for each name in panels, all logarithmic.

    panels: {xlabel: (formula, {name: (x, spreads)})}, formula: y for the x of the first name;
    spreads: (lowest, median, highest) for each x: the mark is the median, the stroke reaches from
    the lowest to the highest. level: a dashed line across. named: [{x: word}] for each panel,
    upright dotted lines.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.4), dpi=100,
                                layout="constrained", squeeze=False)  # fmt: skip
    for number, (ax, (xlabel, (formula, lines))) in enumerate(
        zip(axes.flat, panels.items(), strict=True)
    ):
        first = next(iter(lines.values()))[0]
        ax.plot(first, formula, "-", color=COLORS["residual"], lw=4, alpha=0.5, label="formula")
        for (name, (x, spreads)), (color, mark) in zip(lines.items(), MARKS, strict=False):
            low, middle, high = zip(*spreads, strict=True)
            ax.plot(x, middle, mark + "-", color=COLORS[color], ms=5, lw=1, label=name)
            ax.vlines(x, low, high, color=COLORS[color], lw=1.5)
        ax.set(xscale="log", yscale="log", xlabel=xlabel)
        if level:
            ax.axhline(level, ls="--", lw=1, color=COLORS["ink"])
        for x, word in (named[number] if named else {}).items():
            ax.axvline(x, ls=":", lw=1.2, color=COLORS["ink"])
            ax.text(x, 0.99, f" {word}", transform=ax.get_xaxis_transform(), va="top", size=9)
        ticks = [first[0]]
        for x in first:
            ticks += [x] if x >= 1.9 * ticks[-1] else []
        ax.set_xticks(ticks)
        ax.xaxis.set_minor_locator(NullLocator())
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel(ylabel)
    names = axes[0, 0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, size=10)
    return figure


def piece_bars(bars, title=""):
    """cost.piece_shares as bars, every piece in its colour."""
    return share_bars(bars, list(PIECES.values()), title)


def share_bars(bars, colors, title=""):
    """One bar for each name in bars, {name: {part: amount}}, cut into the parts' shares of the sum.

    colors: one for each part, in order; all bars have the same parts. Shares are written in where
    they fit.
    """
    figure, ax = plt.subplots(figsize=(8, 0.5 * len(bars) + 1), dpi=100, layout="constrained")
    for y, amounts in enumerate(bars.values()):
        left = 0
        for color, (part, amount) in zip(colors, amounts.items(), strict=True):
            share = amount / sum(amounts.values())
            label = part if y == 0 else None
            ax.barh(y, share, left=left, color=color, edgecolor="white", label=label)
            if share > 0.04:
                ink = "white" if np.dot(to_rgb(color), (0.3, 0.6, 0.1)) < 0.45 else COLORS["ink"]
                ax.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", color=ink)
            left += share
    ax.set_yticks(range(len(bars)), labels=bars)
    ax.tick_params(length=0)
    ax.set(xlim=(0, 1), xticks=[], ylim=(len(bars) - 0.5, -0.5))
    ax.set_title(title, size=10)
    ax.spines[:].set_visible(False)
    ax.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=9)
    return figure
