"""What notebook 03 draws: the clerk and the witnesses, and the class token's row on its way.

Every function returns its figure and leaves plt.show() to the caller.
"""

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle, Wedge

from helpers.plotting import COLORS, draw_image, pale, pixels, sample_photo

GOLD, PINK = COLORS["class token"], COLORS["patches"]
SEATS = [(-1.25, 0.1), (-0.8, 0.85), (0.0, 1.15), (0.8, 0.85), (1.25, 0.1)]
CLERK = (0.0, -0.45)


def clerk_and_witnesses():
    """Five patches of a photograph are witnesses, the class token is the clerk: three scenes."""
    photo = pixels(sample_photo("china.jpg", (60, 300)))  # (60, 300, 3)
    scenes = (
        "1. Each witness saw one patch,\nthe clerk nothing",
        "2. In every block all hear all,\nthe clerk takes notes",
        "3. His page is the verdict:\nthe head reads it alone",
    )
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
        page(ax, ("", "notes", "temple")[number])
        ax.set(xlim=(-1.75, 1.75), ylim=(-1.7, 2.5), aspect="equal")
        ax.set_axis_off()
        ax.text(0, 1.95, scene, ha="center", va="bottom", size=11)
    way = {"arrowstyle": "-|>", "color": GOLD, "lw": 2}
    axes[2].annotate("", (1.0, -1.3), (0.42, -1.3), arrowprops=way)
    box = FancyBboxPatch(
        (1.05, -1.5), 0.5, 0.4, "round,pad=0.04", fc=pale(COLORS["head"]), ec="0.5"
    )
    axes[2].add_patch(box)
    axes[2].text(1.3, -1.3, "head", ha="center", va="center", size=11)
    axes[0].text(-0.62, -0.72, "class\ntoken", ha="center", size=10)
    axes[0].text(1.25, -0.62, "patch\ntokens", ha="center", size=10)
    return figure


def person(ax, x, y, color, name):
    """Head and shoulders, with a name on the chest."""
    ax.add_patch(Wedge((x, y - 0.28), 0.27, 0, 180, fc=color, ec="white", zorder=2))
    ax.add_patch(Circle((x, y + 0.07), 0.13, fc=color, ec="white", zorder=2))
    ax.text(x, y - 0.17, name, ha="center", va="center", size=9, zorder=3)


def page(ax, text):
    """The clerk's page, empty, with notes on it, or with one word."""
    x, y = CLERK[0] - 0.36, CLERK[1] - 1.15
    ax.add_patch(Rectangle((x, y), 0.72, 0.72, fc="white", ec="0.4", zorder=3))
    if text == "notes":
        for line, length in enumerate((0.5, 0.42, 0.54, 0.3)):
            height = y + 0.6 - 0.15 * line
            ax.plot([x + 0.09, x + 0.09 + length], [height] * 2, color="0.4", lw=1.2, zorder=4)
    else:
        ax.text(x + 0.36, y + 0.36, text, ha="center", va="center", size=10, zorder=4)


def talk(ax):
    """A line between any two witnesses, and an arrow from each to the clerk."""
    for i, one in enumerate(SEATS):
        for other in SEATS[:i]:
            ax.plot(*zip(one, other, strict=True), color="0.8", lw=1, zorder=0)
        way = {"arrowstyle": "-|>", "color": GOLD, "lw": 1.6, "shrinkA": 16, "shrinkB": 16}
        ax.annotate("", CLERK, one, arrowprops=way, zorder=1)


def two_pages(images, depth, which, maps, pages, shares):
    """Two digits after depth blocks: where the class token looked, its row, what the head says.

    images (n, 1, H, W) uint8; which: the numbers of the two; maps: for each block (n, N), weights
    on the patches; pages and shares: for z_0, z_1 to z_L, its rows (n, D) and the shares of the
    classes (n, K) that the head reads from them.
    """
    facts = {0: ": the same row for every image", len(maps): ", the row that the head was taught"}
    figure, axes = plt.subplots(2, 4, figsize=(7.4, 3.7), dpi=80, layout="constrained",
                                width_ratios=(1, 1, 2, 1.5))  # fmt: skip
    figure.suptitle(f"z_{depth}" + facts.get(depth, f", after block {depth}"), size=11)
    most, side = float(max(m.max() for m in maps)), round(len(maps[0][0]) ** 0.5)
    size = float(pages[-1].abs().quantile(0.98))
    for i, (digit, looked, row, bars) in zip(which, axes, strict=True):
        draw_image(digit, 255 - images[i])  # ink is dark
        if depth == 0:
            looked.text(0.5, 0.5, "not yet\nlooked", ha="center", va="center", size=9)
            looked.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        else:
            looked.imshow(maps[depth - 1][i].reshape(side, -1), vmin=0, vmax=most)
        row.imshow(pages[depth][i].reshape(4, -1), cmap="PuOr", vmin=-size, vmax=size)
        for spine in row.spines.values():
            spine.set(edgecolor=GOLD, linewidth=2)
        bars.bar(range(len(shares[depth][i])), shares[depth][i], color=COLORS["head"])
        bars.set(ylim=(0, 1), xticks=range(len(shares[depth][i])), yticks=[0, 1])
        bars.tick_params(labelsize=8)
        bars.spines[["top", "right"]].set_visible(False)
        for ax in (looked, row):
            ax.set(xticks=[], yticks=[])
    names = ("digit", f"where it looked:\n0 (dark) to {most:.2f}",
             "its row of numbers, folded:\npurple above 0, orange below",
             "what the head\nreads from it")  # fmt: skip
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name, size=9)
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
