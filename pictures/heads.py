"""What notebook 06 and its side trips draw: heads side by side, and what a head takes home.

Every function returns its figure and leaves plt.show() to the caller.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Polygon, Rectangle

from helpers.plotting import COLORS, draw_image, numbers, pale

CLASSES = ("queries", "keys", "values", "positions")


def map_and_bits(image):
    """An image of two_addresses, its patches numbered from 0, and its patch 0 enlarged: the map."""
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.4), dpi=100, layout="constrained")
    titles = ("the image: 9 patches of 3 × 3 pixels", "patch 0, enlarged: a map of the patches")
    for ax, shown, title in zip(axes, (image, image[:, :3, :3]), titles, strict=True):
        draw_image(ax, shown, extent=(0, 3, 3, 0))
        frame = {"color": COLORS["patches"], "lw": 2, "clip_on": False}
        ax.hlines(range(4), 0, 3, **frame)
        ax.vlines(range(4), 0, 3, **frame)
        for i in range(9):
            label = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}
            ax.text(i % 3 + 0.15, i // 3 + 0.17, i, ha="center", va="center", size=9, bbox=label)
        ax.set_title(title, size=10)
    return figure


def heads_in_numbers(q, k, v, heads):
    """Every step of every head in numbers, a row each: queries, keys and values are (N, D)."""
    names = [f"token {i}" for i in range(len(q))]
    keys = range(len(k))
    figure, axes = plt.subplots(heads, 6, figsize=(11, 2 * heads), dpi=100, layout="constrained")
    cuts = zip(*(np.split(np.asarray(t), heads, axis=1) for t in (q, k, v)), strict=True)
    for i, (row, (q_i, k_i, v_i)) in enumerate(zip(axes, cuts, strict=True), 1):
        scores = q_i @ k_i.T
        weights = np.exp(scores / q_i.shape[1] ** 0.5)
        weights /= weights.sum(axis=1, keepdims=True)
        numbers(row[0], q_i, f"head {i}: queries", "queries", names, digits=0)
        numbers(row[1], k_i, "keys", "keys", digits=0)
        numbers(row[2], scores, "query · key", cols=keys, digits=0)
        numbers(row[3], weights, rf"softmax(· / $\sqrt{{{q_i.shape[1]}}}$)", cols=keys)
        numbers(row[4], v_i, "values", "values", digits=0)
        numbers(row[5], weights @ v_i, "answer", "values")
    return figure


def split_attend_join_project(B, N, D, h, lit=3):
    """Equations 5 to 8 from top to bottom, channels from left to right: every head is a column.

    lit: the head whose way in (from all D numbers) and way out (to all D) is filled, from 1.
    """
    d_k = D // h
    figure, ax = plt.subplots(figsize=(10, 6.6), dpi=100, layout="constrained")
    step = 100 / h  # the columns of a head; all widths in hundredths of D

    def box(x, y, width, height, color, text):
        ax.add_patch(Rectangle((x, y), width, height, fc=color, ec="white", lw=1.5))
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=10)

    def row(y, height, name, texts, gap=0.0):
        for i, text in enumerate(texts):
            color = pale(COLORS[name], 0.35 if i == lit - 1 else 0.7)
            box(i * step + gap, y, step - 2 * gap, height, color, text)

    def fans(narrow, wide):
        for i in range(h):  # filled for the lit head, thin lines for the others
            left, right = i * step, (i + 1) * step
            if i != lit - 1:
                for x, end in ((left, 0), (right, 100)):
                    ax.plot([x, end], [narrow, wide], color="#BBB", lw=0.8, zorder=0.5)
                continue
            ends = [(left, narrow), (right, narrow), (100, wide), (0, wide)]
            ax.add_patch(Polygon(ends, fc=pale(COLORS["class token"], 0.7), ec="none", zorder=0))

    def note(y, name, code, shape):
        ax.text(106, y, name, size=12, weight="bold", va="center")
        ax.text(126, y - 2.2, code, size=9, family="monospace", va="center")
        ax.text(126, y + 2.2, shape, size=9, va="center")

    heads = range(1, h + 1)
    grey, green = pale(COLORS["residual"], 0.5), COLORS["values"]
    box(0, 0, 100, 6, grey, rf"tokens $\mathbf{{z}}$: N = {N} rows, D = {D} columns")
    fans(16, 6)
    ax.text(50, 11, rf"$U_{{qkv}}^{{\,{lit}}}$", ha="center", va="center", size=12)
    for i, (letter, name) in enumerate(zip("vqk", ("values", "queries", "keys"), strict=True)):
        row(16 + 6 * i, 6, name, [rf"$\mathbf{{{letter}}}_{j}$" for j in heads], gap=3)
    row(40, 13, "attention", [f"$A_{j}$\n{N} × {N}" for j in heads], gap=1.4)
    for j in heads:
        arrow = {"arrowstyle": "-|>", "color": "#555", "shrinkA": 0, "shrinkB": 0}
        for start, end in ((34, 40), (53, 63)):  # k and q make A, A makes SA
            ax.annotate("", ((j - 0.5) * step, end), ((j - 0.5) * step, start), arrowprops=arrow)
        x = (j - 1) * step + 2  # q goes past k
        ax.plot([x + 1, x, x], [25, 25, 36], color=COLORS["queries"], lw=1.5)
        blue = arrow | {"color": COLORS["queries"], "lw": 1.5}
        ax.annotate("", (x, 40), (x, 35), arrowprops=blue)
        x = j * step - 0.6  # v goes past A, straight to SA
        ax.plot([x - 2.4, x, x], [19, 19, 58], color=green, lw=1.5)
        ax.annotate("", (x, 63), (x, 57), arrowprops=arrow | {"color": green, "lw": 1.5})
    texts = [rf"$\mathrm{{SA}}_{j} = A_{j}\mathbf{{v}}_{j}$" for j in heads]
    row(63, 8, "values", texts)
    fans(71, 84)
    ax.text(50, 77.5, r"$U_{msa}$", ha="center", va="center", size=12)
    box(0, 84, 100, 6, grey, rf"MSA($\mathbf{{z}}$): {N} rows, {D} columns")
    whole, cut = f"({B}, {N}, {D})", f"({B}, {h}, {N}, {d_k})"
    note(3, "", "(B, N, D)", whole)
    note(25, "split", "qkv, chunk, view, transpose", f"three of {cut}")
    note(46.5, "attend", "attention(q, k, v)", cut)
    note(67, "join", "transpose, reshape", whole)
    note(87, "project", "proj", whole)
    ax.text(0, -3, f"each head computes its {d_k} columns from all {D} …", size=9, color="#8a5a00")
    ax.text(0, 93, f"… and writes into all {D}", size=9, color="#8a5a00", va="center")
    ax.set(xlim=(-1, 168), ylim=(95, -6))
    ax.set_title(f"Split, attend, join, project: {h} heads side by side", size=11, loc="left")
    ax.set_axis_off()
    return figure


def head_on_image(image, weights, grid, red, blue, title, query=0):
    """What one patch takes from each: the image (C, H, W) beside its weights (N,), from 0 to 1.

    red, blue: the patches that its map names, framed in their colours. The patch that asks has an
    orange frame, dashed.
    """
    weights = np.asarray(weights, dtype=float).reshape(grid)
    rows, cols = grid
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.4, 2.6), dpi=90, layout="constrained")
    draw_image(left, image, extent=(0, cols, rows, 0))
    shown = right.imshow(weights, vmin=0, vmax=1, cmap="Purples", extent=(0, cols, rows, 0))
    names = {query: ("asks", COLORS["class token"], (0, (3, 1.5)))}
    for color, patch in (("red", red), ("blue", blue)):
        names[int(patch)] = (color, f"tab:{color}", "-")
    for patch, weight in enumerate(weights.flat):
        i, j = divmod(patch, cols)
        name, color, style = names.get(patch, ("", "none", "-"))
        ink = "white" if weight > 0.5 else COLORS["ink"]
        text = f"{name}\n{weight:.2f}" if name else f"{weight:.2f}"
        right.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink)
        if name:
            for ax in (left, right):
                frame = {"ec": color, "ls": style, "fc": "none", "lw": 3}
                ax.add_patch(Rectangle((j + 0.04, i + 0.04), 0.92, 0.92, **frame))
    right.set(xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    figure.colorbar(shown, ax=right, fraction=0.05).set_label("attention weight", size=9)
    figure.suptitle(title, size=10)
    return figure


def one_mixture(share, red, blue, classes, accuracy):
    """Which pairs of greys give one mixture: share * red + (1 - share) * blue, each (4, n).

    Left the pairs, a square for each class, and lines on which the mixture is the same; right, in
    a row for each class, how often each mixture comes back. accuracy: of the best guess.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), dpi=80, layout="constrained")
    answers = share * red + (1 - share) * blue
    rows = zip(red, blue, answers, classes, CLASSES, strict=True)
    tallest = max(np.histogram(row, bins=60, range=(0, 1))[0].max() for row in answers)
    for i, (x, y, values, name, color) in enumerate(rows):
        corner = (float(x.min()), float(y.min()))
        size = float(x.max() - x.min()), float(y.max() - y.min())
        fill = {"fc": pale(COLORS[color], 0.6), "ec": COLORS[color]}
        left.add_patch(Rectangle(corner, *size, **fill))
        middle = corner[0] + size[0] / 2, corner[1] + size[1] / 2
        left.text(*middle, name, ha="center", va="center", size=12)
        counts, edges = np.histogram(values, bins=60, range=(0, 1))
        height = 0.85 * counts / tallest
        right.stairs(3 - i + height, edges, baseline=3 - i, fill=True, **fill)
        right.axhline(3 - i, color=COLORS["ink"], lw=0.8)
    x = np.array([0, 1])
    for answer in np.linspace(0.1, 0.9, 9):
        if share < 1:
            left.plot(x, (answer - share * x) / (1 - share), color=COLORS["residual"], lw=0.8)
        else:
            left.axvline(answer, color=COLORS["residual"], lw=0.8)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="grey at red", ylabel="grey at blue", aspect="equal")
    left.set(xticks=[0, 0.4, 0.6, 1], yticks=[0, 0.4, 0.6, 1])
    left.set_title("a line: one and the same mixture", size=10)
    right.set(xlim=(0, 1), ylim=(0, 4), xlabel="what comes back", ylabel="how often, by class")
    right.set_yticks([3.4, 2.4, 1.4, 0.4], labels=classes)
    right.tick_params(axis="y", length=0)
    right.set_title(f"best guess: {accuracy:.0%} right", size=10)
    figure.suptitle(f"{share:.2f} of the weight on red, {1 - share:.2f} on blue", size=10)
    return figure


def tokens_in_heads(q, cuts):
    """Who ends where: q (N, D) and {name: q cut into heads (h, N, d_k)}, one colour a token.

    An entry is ten times the number of its token plus its column, so 12 is token 1, column 2.
    """
    heads = len(next(iter(cuts.values())))
    figure, axes = plt.subplots(len(cuts), 1 + heads, figsize=(8, 3.8), dpi=100,
                                layout="constrained", width_ratios=(2, *[1] * heads))  # fmt: skip
    colors = [pale(COLORS[name], 0.45) for name in CLASSES]
    for row, (name, cut) in zip(axes, cuts.items(), strict=True):
        titles = ["q", *(f"{name}: head {i}" for i in range(1, heads + 1))]
        for ax, title, labels in zip(row, titles, [q, *cut], strict=True):
            for (i, j), label in np.ndenumerate(np.asarray(labels)):
                color = colors[label // 10]
                ax.add_patch(Rectangle((j, i), 1, 1, fc=color, ec="white", lw=2))
                ax.text(j + 0.5, i + 0.5, f"{label:02}", ha="center", va="center", size=10)
            ax.set(xlim=(0, labels.shape[1]), ylim=(len(labels), 0), aspect="equal", xticks=[])
            ax.set_yticks(np.arange(len(labels)) + 0.5, [f"row {i}" for i in range(len(labels))])
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
            ax.set_title(title, size=10)
    return figure


def orders_of_rows(orders):
    """How the rows of qkv may be sorted: {name: kinds of all rows, 0 for q, 1 for k, 2 for v}."""
    shape = {"figsize": (9, 1.15 * len(orders)), "dpi": 100, "layout": "constrained"}
    figure, axes = plt.subplots(len(orders), 1, sharex=True, **shape)
    for ax, (name, rows) in zip(axes, orders.items(), strict=True):
        rows = np.asarray(rows)
        starts = [0, *np.flatnonzero(np.diff(rows)) + 1]
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            color = pale(COLORS[CLASSES[rows[start]]], 0.3)
            ax.barh(0, end - start, left=start, color=color, align="edge")
            ax.text((start + end) / 2, 0.4, "qkv"[rows[start]], ha="center", va="center")
        ax.set(yticks=[], xlim=(0, len(rows)), ylabel=name)
        ax.set_xticks(range(0, len(rows) + 1, len(rows) // 6))
    axes[-1].set_xlabel("row of the matrix")
    return figure


def confusions(tables, classes):
    """{name: shares (K, K)}: a row for the truth, a column for what the model says."""
    figure, axes = plt.subplots(1, len(tables), figsize=(3.3 * len(tables), 3), dpi=100,
                                layout="constrained")  # fmt: skip
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        numbers(ax, table, name, rows=classes, cols=classes)
        ax.set(xlabel="answer", ylabel="truth")
    return figure


def right_by_share(shares, curves):
    """{name: how many are right at each share of red}, a line each."""
    figure, ax = plt.subplots(figsize=(7, 3), dpi=100, layout="constrained")
    names, styles = ("ink", "queries", "positions", "keys", "values"), ("-", "--", "-.", "-", ":")
    for (label, found), name, style in zip(curves.items(), names, styles, strict=False):
        ax.plot(shares, found, style, color=COLORS[name], label=label)
    ax.set(xlabel="share of red", ylabel="right", ylim=(0.45, 1.03))
    ax.set_title("What one mixture can tell, by share and spread", size=10)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
