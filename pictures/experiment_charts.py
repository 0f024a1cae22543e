"""Pictures of recorded experiments: every seed as a dot, the mean as a line or a bar."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MultipleLocator,
    NullLocator,
    PercentFormatter,
)

from helpers.plotting import COLORS


def seed_lines(panels, xlabel, ylabel="test accuracy", title=""):
    """Beside each other, for each data set in panels, {name: {x: accuracies by seed}} as lines.

    Dots are seeds, lines join the means; x on a logarithmic axis with a tick at each x; the panels
    have scales of their own. Three lines at most. ValueError without a panel.
    """
    if not panels:
        raise ValueError("no panels given: there is nothing to draw")
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3.4), dpi=100, squeeze=False,
                                layout="constrained")  # fmt: skip
    looks = (("queries", "o", "-"), ("keys", "s", "--"), ("values", "^", ":"))
    for ax, (data, lines) in zip(axes[0], panels.items(), strict=True):
        for (name, points), (hue, marker, style) in zip(lines.items(), looks, strict=False):
            for x, runs in points.items():
                ax.plot([x] * len(runs), runs, marker, ms=3.5, color=COLORS[hue], alpha=0.4, mew=0)
            means = [np.mean(runs) for runs in points.values()]
            ax.plot(list(points), means, style, color=COLORS[hue], lw=1.8, label=name)
        ax.set(xscale="log", xlabel=f"{xlabel}, {data}", ylabel=ylabel)
        ticks = list(next(iter(lines.values())))
        ax.set_xticks(ticks, labels=[f"{x:g}" for x in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        whole_percents(ax.yaxis)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(title, size=10)
    return figure


def whole_percents(axis):
    """Ticks of an axis of accuracies at 1%, 2%, 5%, 10% or so, without decimals."""
    axis.set_major_locator(MultipleLocator(tick_step(*axis.get_view_interval())))
    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def tick_step(low, high):
    """The smallest of 1%, 2%, 5%, 10%, 20% that gives at most seven ticks from low to high."""
    steps = (0.01, 0.02, 0.05, 0.1, 0.2)
    return next((step for step in steps if (high - low) / step <= 6.5), 0.2)


def seed_dots(panels, against=None, title="", xlabel="test accuracy"):
    """Beside each other, for each data set in panels, {name: record} as rows.

    A record's "test" holds accuracies 0..1, one for each seed: the dots. The upright stroke is
    their mean, written at the right. against: the row whose mean is drawn through all rows as a
    dashed line. The panels have the same rows; each has a scale of its own. ValueError without a
    panel, or if the rows differ.
    """
    names = [list(rows) for rows in panels.values()]
    if not names or any(rows != names[0] for rows in names):
        raise ValueError(f"rows {names} given: at least one panel, the same rows in all, needed")
    count = len(names[0])
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 0.32 * count + 1.1), dpi=100,
                                sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    for ax, (data, rows) in zip(axes[0], panels.items(), strict=True):
        for y, (name, record) in enumerate(rows.items()):
            runs = record["test"]
            color = COLORS["keys" if name == against else "queries"]
            ax.plot(runs, [y] * len(runs), "o", ms=4, color=color, alpha=0.5, mew=0)
            ax.plot([np.mean(runs)] * 2, [y - 0.3, y + 0.3], color=color, lw=2)
            ax.text(1.01, y, f"{np.mean(runs):.1%}", transform=ax.get_yaxis_transform(), size=8,
                    va="center")  # fmt: skip
        if against is not None:
            ax.axvline(
                np.mean(rows[against]["test"]), color=COLORS["keys"], ls="--", lw=1, zorder=0
            )
        ax.set_yticks(range(count), labels=names[0], size=9)
        ax.tick_params(axis="y", length=0)
        ax.set(ylim=(count - 0.5, -0.5), xlabel=f"{xlabel}, {data}")
        whole_percents(ax.xaxis)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, size=10)
    return figure


MARKS = {"depth": "o", "width": "s", "patch": "^", "MLP ratio": "D"}
HUES = {"depth": "queries", "width": "keys", "patch": "values", "MLP ratio": "positions"}


def by_size(panels, title=""):
    """Figure 8: accuracy against multiply-adds (left) and parameters (right), a row a data set.

    panels: {data set: {"depth", "width", "patch" or "MLP ratio": {value: record}}}. A record holds
    test, parameters and multiply_adds; values in growing order. Dots are seeds, lines join the
    means, the first and the last value are written at the ends of the line. ValueError without a
    panel.
    """
    if not panels:
        raise ValueError("no panels given: there is nothing to draw")
    figure, axes = plt.subplots(len(panels), 2, figsize=(9, 3.2 * len(panels)), dpi=100,
                                sharey="row", squeeze=False, layout="constrained")  # fmt: skip
    for row, (data, knobs) in zip(axes, panels.items(), strict=True):
        for ax, size in zip(row, ("multiply_adds", "parameters"), strict=True):
            for knob, points in knobs.items():
                color = COLORS[HUES[knob]]
                means = [(r[size], np.mean(r["test"])) for r in points.values()]
                for (x, _), record in zip(means, points.values(), strict=True):
                    ax.plot([x] * len(record["test"]), record["test"], ".", ms=3, color=color,
                            alpha=0.5)  # fmt: skip
                ax.plot(*zip(*means, strict=True), color=color, marker=MARKS[knob], ms=5, lw=1.5,
                        label=knob)  # fmt: skip
                for value in (list(points)[0], list(points)[-1]):
                    record = points[value]
                    ax.annotate(f"{value:g}", (record[size], np.mean(record["test"])), (4, -11),
                                textcoords="offset points", size=8, color=color)  # fmt: skip
            ax.set(xscale="log", xlabel=size.replace("_", "-") + ", " + data)
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
            ax.xaxis.set_minor_locator(NullLocator())
            whole_percents(ax.yaxis)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("test accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(title, size=10)
    return figure


def parts_table(table, chance, title=""):
    """Tasks as rows, removed parts as columns: {task: {part: accuracies 0..1 by seed, or None}}.

    A cell is white at chance[task] and below, dark where all is right; in it the mean and, after
    +-, the standard deviation over seeds, in percent. None: a dot. ValueError without a row, or if
    rows have other columns than the first.
    """
    columns = [list(row) for row in table.values()]
    if not columns or any(names != columns[0] for names in columns):
        raise ValueError(f"columns {columns} given: at least one row, the same in all, needed")
    rows, cols = len(table), len(columns[0])
    figure, ax = plt.subplots(figsize=(9, 0.52 * rows + 1.2), dpi=100, layout="constrained")
    shades = np.full((rows, cols), np.nan)
    for y, (task, row) in enumerate(table.items()):
        for x, runs in enumerate(row.values()):
            if runs is None:
                ax.text(x, y, "·", ha="center", va="center")
                continue
            shades[y, x] = max(0, (np.mean(runs) - chance[task]) / (1 - chance[task]))
            text = f"{100 * np.mean(runs):.0f}\n± {100 * np.std(runs, ddof=1):.1f}"
            color = "white" if shades[y, x] > 0.6 else COLORS["ink"]
            ax.text(x, y, text, ha="center", va="center", size=8, color=color, linespacing=0.95)
    picture = ax.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(picture, ax=ax, fraction=0.03, pad=0.01, ticks=[0, 1]).set_ticklabels(
        ["chance", "all right"], size=8
    )
    ax.set_xticks(range(cols), labels=columns[0], size=9)
    ax.set_yticks(range(rows), labels=table, size=9)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.set_title(title, size=10)
    return figure
