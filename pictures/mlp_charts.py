"""Charts of 07: an MLP read as keys and values, ramps that add up, a unit of a trained model."""

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import PercentFormatter

from helpers.plotting import COLORS, draw_image, numbers, pale


def key_value_chart(token, W1, b1, W2, b2):
    """MLP of one token (D,), unit by unit: key, score, weight, value, weighted value, their sum.

    W1 (D, M), b1 (M,), W2 (M, D), b2 (D,), as in equation 3. Every unit is a row.
    """
    scores = token @ W1 + b1  # (M,)
    weights = torch.nn.functional.gelu(scores)
    added = weights[:, None] * W2  # (M, D)
    D, M = W1.shape
    panels = {  # place: (title, numbers, colour)
        "x": ("the token", token[None], "attention"),
        "k": ("keys (columns of $W_1$)", W1.T, "keys"),
        "s": ("scores", scores[:, None], "attention"),
        "w": ("GELU:\nweights", weights[:, None], "attention"),
        "v": ("values (rows of $W_2$)", W2, "values"),
        "p": ("weight times value", added, "values"),
        "o": ("added up: MLP(x)", (added.sum(0) + b2)[None], "attention"),
    }
    sizes = {"width_ratios": [D, 1.5, 1.5, D, D], "height_ratios": [1, M, 1]}
    figure, axes = plt.subplot_mosaic("x....;kswvp;....o", figsize=(9.5, 3.6), dpi=100,
                                      layout="constrained", **sizes)  # fmt: skip
    for place, (title, values, color) in panels.items():
        units = [f"unit {m}" for m in range(M)] if place == "k" else None
        numbers(axes[place], values, title, color, units)
    return figure


def ramps_chart(x, wave, parts, hinges, title, top):
    """parts (n, 1 + units): what stands below all (b2), then each unit's ramp, the newest last.

    Left the ramps, the newest thick; right their sum so far and the wave (n,). top: the largest
    ramp, so that every figure has one scale.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), dpi=80, layout="constrained")
    left.plot(x, parts[:, 1:], color=COLORS["residual"], lw=1)
    left.plot(x, parts[:, -1], color=COLORS["keys"], lw=2.5)
    right.axvline(hinges[parts.shape[1] - 2], color=COLORS["keys"], ls=":")
    right.plot(x, wave, color=COLORS["residual"], lw=5, alpha=0.5)
    right.plot(x, parts.sum(1), color=COLORS["queries"], lw=2)
    left.set(title=title, xlim=(-3, 3), ylim=(-1.1 * top, 1.1 * top), xlabel="x")
    right.set(title="their sum so far, and the wave", xlim=(-3, 3), ylim=(-2.5, 2.5), xlabel="x")
    return figure


def unit_card(images, answers, says, limit, before, after, unit, digit):
    """A unit of a trained model: images that fit its key, what its value says, and who misses it.

    images: six, uint8 (C, H, W), with their answers; says (10,): the value, read by the head, full
    colour at limit; before, after (10,): shares read of each digit, with and without the units that
    say digit.
    """
    figure = plt.figure(figsize=(8.4, 3.7), dpi=80, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    axes = above.subplots(1, 7, width_ratios=[1] * 6 + [4.8])
    for ax, image, answer in zip(axes, images, answers, strict=False):
        draw_image(ax, image)
        ax.set_xlabel(int(answer))
    axes[2].set_title(f"fit the key of unit {unit} best", size=10)
    shown = axes[6].imshow(says[None], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes[6].set(xticks=range(10), yticks=[])
    axes[6].set_title("its value speaks for (red), against (blue)", size=10)
    above.colorbar(shown, ax=axes[6], ticks=[-0.5, 0, 0.5])
    ax = below.subplots()
    colors = [COLORS["wrong"] if d == digit else pale(COLORS["mlp"], 0.5) for d in range(10)]
    ax.bar(range(10), after, color=colors, width=0.7)
    ax.bar(range(10), before, color="none", edgecolor=COLORS["ink"], width=0.7, lw=1)
    ax.set(xticks=range(10), ylim=(0, 1.02), xlabel="digit in the image")
    ax.set_title(f"share read: with all units (outline), those that say {digit} silenced (filled)",
                 size=10)  # fmt: skip
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.spines[["top", "right"]].set_visible(False)
    return figure
