"""pictures/encoder_drawings.py: what stands on the road; figures show what is given."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from helpers.plotting import COLORS
from pictures.encoder_drawings import (
    STYLES,
    SWITCHES,
    by_block,
    by_setting,
    norm_axes,
    remarks,
    road,
    sizes,
    stack_frame,
)

PARTS = {  # of two blocks: norms, additions
    "norm and residual": (4, 4), "no residual": (4, 0), "no norm": (0, 4), "neither": (0, 0),
    "norm after": (4, 4),
}  # fmt: skip


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def words(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize("kind", PARTS)
def test_road_has_the_parts_of_its_kind(kind):
    said = words(road(kind, blocks=2, title="t"))
    assert (said.count("LN"), said.count("+")) == PARTS[kind]
    assert said.count("MSA") == said.count("MLP") == 2
    assert said.count(r"$\mathbf{z}'_{2}$") == said.count(r"$\mathbf{z}_{2}$") == 1


def test_norm_axes_marks_one_token_or_one_channel_of_all():
    axes = norm_axes(images=3, tokens=5, channels=8).axes
    yellow = [sum(to_hex(p.get_facecolor()) == COLORS["norm"].lower() for p in ax.patches)
              for ax in axes]  # fmt: skip
    assert yellow == [8, 0, 0, 5, 5, 5]


def test_lines_and_bars_are_the_numbers_given():
    left, right = sizes({"with": ([1, 2], [3, 4]), "no residual": ([5, 6], [7, 8])}, "t").axes
    assert [list(line.get_ydata()) for line in left.lines[:2]] == [[1, 2], [5, 6]]
    assert [list(line.get_ydata()) for line in right.lines[:2]] == [[3, 4], [7, 8]]
    assert left.lines[0].get_color() != left.lines[1].get_color()
    (ax,) = by_block({"no norm": [1, 2, 3]}, "y", "t", log=True).axes
    assert list(ax.lines[0].get_ydata()) == [1, 2, 3] and ax.get_yscale() == "log"
    assert ax.lines[0].get_color() == COLORS[STYLES["no norm"][0]]
    bars = [[50, 60], [7, 8]], [[1, 2], [3, 4]]
    left, right = remarks({"as it is": bars[0], "normed": bars[1]}, "t").axes
    for ax, wanted in ((left, bars[0]), (right, bars[1])):
        assert [[bar.get_height() for bar in some] for some in ax.containers] == wanted
    assert list(left.lines[0].get_ydata()) == bars[1][0] and not right.lines
    assert left.get_ylim()[1] > 60 and right.get_ylim()[1] < 10


def test_frames_have_one_size_and_light_up_their_kind():
    measured = {kind: ([n, 2], [2, n], [1, n]) for n, kind in enumerate(SWITCHES.values(), 3)}
    assert measured.keys() <= STYLES.keys()
    sides = set()
    for (residual, norm), kind in SWITCHES.items():
        figure = stack_frame(residual, norm, measured)
        sides.add(tuple(figure.get_size_inches() * figure.dpi))
        assert figure.get_suptitle() == f"residual {residual}, norm {norm}"
        said = [text.get_text() for text in figure.axes[0].texts]
        assert ("+" in said, "LN" in said) == (residual == "on", norm == "on")
        assert [text.get_text() for text in figure.legends[0].texts] == list(measured)
        assert [ax.get_yscale() for ax in figure.axes[1:]] == ["log", "log", "linear"]
        for ax, values in zip(figure.axes[1:], measured[kind], strict=True):
            (lit,) = [line for line in ax.lines if line.get_linewidth() == 3]
            assert list(lit.get_ydata()) == list(values)
            assert lit.get_color() == COLORS[STYLES[kind][0]]
    assert len(sides) == 1


def test_lines_are_drawn_in_the_panel_of_their_setting():
    runs = {("norm before", "small"): [[3, 2], [3, 1]], ("norm after", "small"): [[3, 3]],
            ("norm before", "large"): [[2, 1]]}  # fmt: skip
    small, large = by_setting(runs, "t", "step", "loss", 3).axes
    assert [ax.get_title() for ax in (small, large)] == ["small", "large"]
    assert [list(line.get_ydata()) for line in small.lines] == [[3, 2], [3, 1], [3, 3]]
    assert [list(line.get_ydata()) for line in large.lines] == [[2, 1]]


def test_lines_begin_where_they_are_told_to():
    runs = {("no norm", "a"): [[0.1, 0.2], [0.2, 0.3]], ("no residual", "b"): [[0.4, 0.5]]}
    left, right = by_setting(runs, "t", "after epoch", "read", 1, first=1).axes
    assert [ax.get_title() for ax in (left, right)] == ["a", "b"]
    assert [list(line.get_ydata()) for line in left.lines] == [[0.1, 0.2], [0.2, 0.3]]
    assert [list(line.get_xdata()) for line in right.lines] == [[1, 2]]
    assert right.lines[0].get_color() == COLORS[STYLES["no residual"][0]]
