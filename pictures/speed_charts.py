"""Charts of what lab/speed.py measures. Every function returns its figure."""

import matplotlib.pyplot as plt

from helpers.plotting import COLORS, pale
from pictures.cost_charts import share_bars

TIME_COLORS = {  # kinds of speed.time_by_kind
    "attention": COLORS["attention"],
    "matrix products": COLORS["queries"],
    "norm": COLORS["norm"],
    "GELU": COLORS["mlp"],
    "optimizer": COLORS["class token"],
    "copies": COLORS["keys"],
    "compiled": COLORS["positions"],
    "augmentation": COLORS["patches"],
    "rest": COLORS["encoder"],
    "idle": pale(COLORS["residual"], 0.4),
}


def ladder_bars(rungs, title):
    """A bar for each rung of speed.ladder: its speed as a multiple of the first rung's."""
    figure, ax = plt.subplots(figsize=(8, 0.4 * len(rungs) + 0.9), dpi=100, layout="constrained")
    top = max(rung["over_first"] for rung in rungs)
    for y, rung in enumerate(rungs):
        ax.barh(y, rung["over_first"], color=pale(COLORS["queries"], 0.3), height=0.65)
        text = f"{rung['over_first']:.2f} x"
        ax.text(rung["over_first"] + 0.01 * top, y, text, va="center", size=9)
    ax.set_yticks(range(len(rungs)), labels=[rung["name"] for rung in rungs], size=9)
    first = f"speed, in multiples of {rungs[0]['images_per_second']:,.0f} images a second"
    ax.set(xlim=(0, 1.15 * top), ylim=(len(rungs) - 0.5, -0.5), xlabel=first)
    ax.set_title(title, size=10)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def time_bar(times, title):
    """One bar cut into kinds: {kind: seconds}, as speed.time_by_kind returns them."""
    order = [kind for kind in TIME_COLORS if kind in times]
    bars = {"a step": {kind: times[kind] for kind in order}}
    return share_bars(bars, [TIME_COLORS[kind] for kind in order], title)


def memory_curves(panels):
    """A panel for each name in panels, {xlabel: {line: (x, bytes counted, bytes expected)}}.

    Marks are what was counted, lines what the sizes predict; megabytes, 10^6 bytes.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.1), dpi=100,
                                layout="constrained", squeeze=False)  # fmt: skip
    for ax, (xlabel, lines) in zip(axes.flat, panels.items(), strict=True):
        for i, (name, (x, counted, expected)) in enumerate(lines.items()):
            color, mark = COLORS[("queries", "keys", "values")[i % 3]], "os^"[i % 3]
            ax.plot(x, [b / 1e6 for b in expected], "-", color=color, lw=1.5)
            ax.plot(x, [b / 1e6 for b in counted], mark, color=color, ms=6, label=name)
        ax.set(xlabel=xlabel, ylabel="MB kept for the backward pass")
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=9)
    figure.suptitle("Marks: counted. Lines: expected from the sizes", size=10)
    return figure
