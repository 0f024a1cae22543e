"""What notebook 03 draws: the clerk and the witnesses, and the class token's row on its way.

Every function returns its figure and leaves plt.show() to the caller.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle, Wedge
from matplotlib.ticker import PercentFormatter

from helpers.plotting import COLORS, SIGNED, draw_image, pale, pixels, sample_photo

GOLD, PINK = COLORS["class token"], COLORS["patches"]
SEATS = [(-1.45, 0.1), (-0.85, 0.9), (0.0, 1.2), (0.85, 0.9), (1.45, 0.1)]
CLERK = (0.0, -0.45)
PAGES = ((0.1, -0.4, 0.2), (0.6, -1.3, 0.9), (2.1, -3.0, 0.2))  # made up


def clerk_and_witnesses():
    """Five patches of a photograph are witnesses, the class token is the clerk: three scenes."""
    photo = pixels(sample_photo("china.jpg", (60, 300)))  # (60, 300, 3)
    scenes = (
        "1. Each witness saw one patch,\nthe clerk none",
        "2. In every block all hear all,\nthe clerk's page is rewritten",
        "3. The head reads his page alone\nand gives the answer",
    )
    notes = ("$D$ learned numbers,\nfor every image the same", "$D$ new numbers", "$D$ numbers")
    figure, axes = plt.subplots(1, 3, figsize=(10, 4.2), dpi=100, layout="constrained")
    for number, (ax, scene) in enumerate(zip(axes, scenes, strict=True)):
        if number == 1:
            talk(ax)
        for i, (x, y) in enumerate(SEATS):
            person(ax, x, y, PINK if number < 2 else pale(PINK, 0.6), str(i))
            if number == 0:
                thing = (x - 0.2, x + 0.2, y + 0.22, y + 0.62)
                ax.imshow(photo[:, 60 * i : 60 * (i + 1)], extent=thing, zorder=3)
        person(ax, *CLERK, GOLD, "*")
        page(ax, PAGES[number], notes[number])
        ax.set(xlim=(-1.85, 1.85), ylim=(-2.1, 2.5), aspect="equal")
        ax.set_axis_off()
        ax.text(0, 1.95, scene, ha="center", va="bottom", size=11)
    way = {"arrowstyle": "-|>", "color": GOLD, "lw": 2}
    for start in (0.4, 1.24):
        axes[2].annotate("", (start + 0.3, -1.22), (start, -1.22), arrowprops=way)
    box = FancyBboxPatch(
        (0.76, -1.42), 0.42, 0.4, "round,pad=0.04", fc=pale(COLORS["head"]), ec="0.5"
    )
    axes[2].add_patch(box)
    axes[2].text(0.97, -1.22, "head", ha="center", va="center", size=10)
    axes[2].text(1.56, -1.22, "temple", va="center", size=10)
    axes[0].text(-0.66, -0.62, "class\ntoken", ha="center", size=10)
    axes[0].text(1.45, -0.62, "patch\ntokens", ha="center", size=10)
    return figure


def person(ax, x, y, color, name):
    """Head and shoulders, with a name on the chest."""
    ax.add_patch(Wedge((x, y - 0.28), 0.27, 0, 180, fc=color, ec="white", zorder=2))
    ax.add_patch(Circle((x, y + 0.07), 0.13, fc=color, ec="white", zorder=2))
    ax.text(x, y - 0.17, name, ha="center", va="center", size=9, zorder=3)


def page(ax, numbers, note):
    """The clerk's page with its numbers, the last of them dots, and a note below."""
    x, y = CLERK[0] - 0.36, CLERK[1] - 1.13
    ax.add_patch(Rectangle((x, y), 0.72, 0.72, fc="white", ec=GOLD, lw=1.5, zorder=3))
    for line, number in enumerate([*numbers, None]):
        text = "..." if number is None else f"{number:.1f}".replace("-", "\u2212")
        ax.text(x + 0.5, y + 0.6 - 0.16 * line, text, ha="right", va="center", size=8, zorder=4)
    ax.text(CLERK[0], y - 0.08, note, ha="center", va="top", size=9)


def talk(ax):
    """An arrow with two heads between any two people, in gold where one of them is the clerk."""
    everyone = [*SEATS, CLERK]
    for i, one in enumerate(everyone):
        color, width = (GOLD, 1.6) if one == CLERK else ("0.75", 0.8)
        way = {"arrowstyle": "<|-|>", "color": color, "lw": width, "shrinkA": 19, "shrinkB": 19,
               "mutation_scale": 10 * width**0.5}  # fmt: skip
        for other in everyone[:i]:
            ax.annotate("", other, one, arrowprops=way, zorder=1)


def two_pages(images, depth, which, maps, pages, shares):
    """Two digits after depth blocks: where the class token looked, what the head says, its row.

    images (n, 1, H, W) uint8; which: the numbers of the two; maps: for each block (n, N), shares
    of attention on the patches; pages and shares: for z_0, z_1 to z_L, the rows (n, D) and the
    shares of the classes (n, K) that the head reads from them.
    """
    facts = {
        0: "before the first block: the same row for every image",
        len(maps): f"after block {depth}: the row that the head was trained to read",
    }
    figure = plt.figure(figsize=(9.4, 3.6), dpi=80, layout="constrained")
    figure.suptitle(f"z_{depth}, " + facts.get(depth, f"after block {depth}"), size=11)
    grid = figure.add_gridspec(3, 6, height_ratios=(3.4, 1, 1), width_ratios=(1, 1, 1.4) * 2)
    strips, size = [], float(pages[-1].abs().quantile(0.98))
    for place, (i, side) in enumerate(zip(which, ("left", "right"), strict=True)):
        digit, looked, bars = (figure.add_subplot(grid[0, 3 * place + n]) for n in range(3))
        draw_image(digit, 255 - images[i])
        digit.set_title(f"{side} digit\n(dark is ink)", size=9)
        where_it_looked(looked, images[i], maps, depth, i)
        bars.bar(range(len(shares[depth][i])), shares[depth][i], color=COLORS["head"])
        bars.set(ylim=(0, 1), xticks=range(len(shares[depth][i])), yticks=[0, 1])
        bars.set_title("the head reads\n(shares)", size=9)
        bars.tick_params(labelsize=7.5)
        bars.spines[["top", "right"]].set_visible(False)
        strips.append(figure.add_subplot(grid[1 + place, :]))
        shown = a_row(strips[-1], pages[depth][i], size, f"{side}\nrow")
    bar = figure.colorbar(shown, ax=strips, fraction=0.03, pad=0.01, extend="both")
    bar.set_ticks([-size, 0, size], labels=[f"\u2212{size:.0f}", "0", f"{size:.0f}"], size=8)
    strips[1].set_xticks([0, pages[0].shape[1] - 1])
    strips[1].tick_params(labelsize=8, length=0)
    strips[1].set_xlabel(f"the {pages[0].shape[1]} numbers of each row", size=9, labelpad=-8)
    return figure


def where_it_looked(ax, image, maps, depth, i):
    """The shares of attention on the patches in block number depth, the digit as an outline."""
    most, side = float(max(m.max() for m in maps)), round(len(maps[0][0]) ** 0.5)
    if depth == 0:
        ax.text(0.5, 0.5, "not yet\nlooked", ha="center", va="center", size=9)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    else:
        shown = maps[depth - 1][i].reshape(side, -1)
        ax.imshow(shown, cmap="Purples", vmin=0, vmax=most, extent=(0, side, side, 0))
        ink = image[0].float()  # (H, W), half of the darkest is the outline
        middles = (torch.arange(len(ink)) + 0.5) * side / len(ink)
        ax.contour(middles, middles, ink, [ink.max() / 2], colors=COLORS["ink"], linewidths=1)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"where it looked\n(white 0, dark {most:.2f})", size=9)


def a_row(ax, row, size, name):
    """The numbers of a row side by side -> what a colour bar needs."""
    shown = ax.imshow(row[None], cmap=SIGNED, vmin=-size, vmax=size, aspect="auto")
    for spine in ax.spines.values():
        spine.set(edgecolor=GOLD, linewidth=2)
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center", size=9)
    return shown


def with_and_without(seeing, blind, chance=0.1):
    """Bars of {reader: accuracies, one a seed}: a group with attention, and one without."""
    figure, ax = plt.subplots(figsize=(7, 3.6), dpi=100, layout="constrained")
    groups = (("with attention", seeing, 0), ("attention taken away", blind, len(seeing) + 1.2))
    for title, results, first in groups:
        ax.text(0, first - 0.6, title, size=10, weight="bold")
        for y, runs in enumerate(results.values()):
            y, mean = first + y, sum(runs) / len(runs)
            ax.barh(y, mean, color=pale(COLORS["attention"], 0.3), height=0.62)
            ax.plot(runs, [y] * len(runs), "o", ms=4, color=COLORS["ink"], alpha=0.7)
            ax.text(1.12, y, f"{mean:.0%}", va="center", ha="right", size=9)
        ends = (first - 0.4, first + len(results) - 0.6)
        ax.vlines(chance, *ends, ls="--", lw=1, color=COLORS["wrong"])
    ax.set_yticks([first + y for *_, first in groups for y in range(len(seeing))],
                  labels=[*seeing, *blind], size=9)  # fmt: skip
    ax.set(xlim=(0, 1.12), ylim=(groups[1][2] + len(blind) - 0.4, -1.3))
    note = {"size": 8, "color": COLORS["wrong"], "ha": "center"}
    ax.text(chance, groups[1][2] - 1.35, f"chance {chance:.0%}", **note)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel("share of the test images that is right: bar the mean, dots the seeds", size=9)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def moved_alike(position, token):
    """A point for each number: how far its position has moved, and how far the class token."""
    figure, ax = plt.subplots(figsize=(3.8, 3.4), dpi=100, layout="constrained")
    ends = [position.min(), position.max()]
    ax.plot(ends, ends, color=COLORS["residual"], lw=1)
    ax.plot(position, token, "o", color=GOLD)
    ax.set(xlabel="position: end minus start", ylabel="class token: end minus 0")
    ax.set_title("class token and position have moved alike", size=10)
    return figure
