"""Charts of 07: GELU and its gate, an MLP as keys and values, what a trained one keeps.

Numbers with a sign are blue below 0, white at 0, red above.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from helpers.plotting import COLORS, SIGNED, draw_image


def gate_chart(x, curves):
    """curves {title: {name: y (n,)}}: a panel for each, its first line solid, the others dashed."""
    figure, axes = plt.subplots(1, len(curves), figsize=(8, 2.6), dpi=100, layout="constrained")
    for ax, (title, lines) in zip(axes, curves.items(), strict=True):
        for number, (name, y) in enumerate(lines.items()):
            style = {"ls": "--", "color": COLORS["residual"]} if number else {"lw": 2}
            ax.plot(
                x, y, label=name, zorder=2 - number / 10, **{"color": COLORS["queries"]} | style
            )
        ax.axhline(0, color=COLORS["ink"], lw=0.6)
        ax.set(title=title, xlabel="score")
        ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def signed(ax, values, limit, title, rows=None, cols=None, digits=2):
    """A matrix (n, m) on ax with its numbers written in; full colour at -limit and limit."""
    values = np.atleast_2d(np.asarray(values, dtype=float))
    shown = ax.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(values):
        color = "white" if abs(value) > 0.7 * limit else COLORS["ink"]
        ax.text(
            j,
            i,
            f"{round(value, digits) + 0.0:.{digits}f}",
            ha="center",
            va="center",
            size=9,
            color=color,
        )
    ax.set_xticks(range(values.shape[1]) if cols is not None else [], labels=cols)
    ax.set_yticks(range(len(values)) if rows else [], labels=rows)
    ax.tick_params(length=0, labelsize=9)
    ax.set_title(title, size=10)
    ax.spines[:].set_color(COLORS["encoder"])
    return shown


def key_value_chart(tokens, W1, b1, W2, b2):
    """The MLP of tokens {name: (D,)}, rows of a matrix (n, D), from left to right as in equation 3.

    Tokens, W1 (D, M) with a key a column, scores + b1 (n, M), strengths, W2 (M, D) with a value a
    row, and what comes out, b2 (D,) added.
    """
    D, M = W1.shape
    widths = [D, M, M, M, D, D]
    size = (1.1 + 0.72 * sum(widths), 0.8 + 0.62 * max(D, M, len(tokens)))
    figure, axes = plt.subplots(1, 6, figsize=size, dpi=100, layout="constrained",
                                width_ratios=widths)  # fmt: skip
    limit = 1.6 * max(1.0, *(float(part.abs().max()) for part in (W1, W2)))  # not too dark
    units, x = [f"unit {m}" for m in range(M)], torch.stack(list(tokens.values()))
    scores = x @ W1 + b1  # (n, M)
    strengths = torch.nn.functional.gelu(scores)  # (n, M)
    panels = [
        ("tokens", x, list(tokens), None), ("$W_1$: keys, columns", W1, None, units),
        ("scores", scores, None, units), ("GELU:\nstrengths", strengths, None, units),
        ("$W_2$: values, rows", W2, units, None),
        ("out", strengths @ W2 + b2, list(tokens), None),
    ]  # fmt: skip
    for ax, (title, values, rows, cols) in zip(axes, panels, strict=True):
        signed(ax, values, limit, title, rows, cols)
    figure.get_layout_engine().set(w_pad=0.15)
    figure.draw_without_rendering()
    for sign, left, right in zip("×=→×=", axes, axes[1:], strict=False):
        inverse = figure.transFigure.inverted()
        end = inverse.transform(left.get_window_extent().p1)[0]
        start = inverse.transform(right.get_tightbbox().p0)[0]
        middle = left.get_position().y0 + left.get_position().height / 2
        figure.text((end + start) / 2, middle, sign, size=14, ha="center", va="center")
    return figure


def ramps_chart(x, wave, below, parts, hinges, title, most):
    """Left the ramps parts (n, units), right below (n,), which is b2, and the ramps added up.

    The wave (n,) is what the sum should be; a dotted line marks each hinge. most: where the left
    axis ends, up and down.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), dpi=80, layout="constrained")
    left.plot(x, parts, color=COLORS["keys"], lw=1.4)
    left.axhline(float(below[0]), color=COLORS["ink"], ls="--", lw=1.2, label="$b_2$")
    right.plot(x, wave, color=COLORS["residual"], lw=5, alpha=0.5, label="wave")
    right.plot(x, below + parts.sum(1), color=COLORS["queries"], lw=2, label="sum")
    for ax in (left, right):
        for hinge in hinges:
            ax.axvline(float(hinge), color=COLORS["residual"], ls=":", lw=1)
        ax.set(xlabel="x", xlim=(float(x[0]), float(x[-1])))
        ax.legend(frameon=False, loc="upper left", ncols=2)
        ax.spines[["top", "right"]].set_visible(False)
    left.set_ylim(-most, most)
    left.set_title(title, size=10)
    right.set(ylim=(-1.6, 2.2))
    right.set_title("added up", size=10)
    return figure


def unit_card(unit, images, answers, says, limit, digit):
    """One unit of a trained model: six images (C, H, W) that fit its key best, and what it says.

    answers: the digits on the images; says (10,): how far its value raises each digit's logit, on
    an axis from -limit to limit.
    """
    figure = plt.figure(figsize=(8.6, 2.6), dpi=80, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25])
    right_of = sum(int(answer) == digit for answer in answers)
    left.suptitle(
        f"digit {digit}, unit {unit}: {right_of} of 6 that fit its key are {digit}s", size=10
    )
    for ax, image, answer in zip(left.subplots(2, 3).flat, images, answers, strict=True):
        draw_image(ax, image)
        ax.set_xlabel(int(answer), size=9, labelpad=1,
                      fontweight="bold" if int(answer) == digit else "normal")  # fmt: skip
    ax = right.subplots()
    says = np.asarray(says, dtype=float)
    ax.bar(range(10), says, color=plt.get_cmap(SIGNED)(np.where(says > 0, 0.87, 0.13)), width=0.7)
    ax.axhline(0, color=COLORS["ink"], lw=0.8)
    ax.set(
        xticks=range(10),
        ylim=(-1.05 * limit, 1.05 * limit),
        xlabel="digit",
        ylabel="push on the logit",
    )
    ax.set_title("its value speaks for (red) and against (blue)", size=10)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def silenced_chart(change, counts, title):
    """change (10, 10): how much more often (red) or less digit j is read, the units of i silent.

    As shares, drawn in points of a hundred; counts (10,): how many units were silenced.
    """
    figure, ax = plt.subplots(figsize=(6.4, 4.6), dpi=100, layout="constrained")
    limit = float(change.abs().max())
    rows = [f"{digit}  ({count:.0f} units)" for digit, count in enumerate(counts)]
    shown = signed(ax, 100 * change, 100 * limit, title, rows, range(10), digits=0)
    ax.set(xlabel="digit in the image", ylabel="units silenced that say", aspect="auto")
    figure.colorbar(shown, ax=ax).set_label("change of the share read, in points", size=9)
    return figure
