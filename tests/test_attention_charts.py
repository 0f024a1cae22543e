"""pictures/attention_charts.py: what is drawn is what was given."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")


from helpers.plotting import COLORS, SIGNED
from pictures import attention_charts as charts
from tests import test_plotting

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures
KEYS = np.array([[1.0, -1], [-1, 0], [0, 1]])


@pytest.mark.parametrize("length", [0, 1, 10])
def test_arrows_shadows_and_bars(length):
    query = length * np.array([2.0, 1])
    figure = charts.query_and_keys(query, KEYS, ["a", "b", "c"], [0.2, 0.3, 0.5], "shares")
    figure.canvas.draw()
    plane, bars = figure.axes
    assert [text.get_text() for text in plane.texts if text.get_text()] == ["a", "b", "c"]
    assert np.allclose([bar.get_width() for bar in bars.patches], [0.2, 0.3, 0.5])
    labels = [label.get_text().split("\n") for label in bars.get_yticklabels()]
    assert [name for name, _ in labels] == ["a", "b", "c"]
    scores = [float(sum_.split("=")[1]) for _, sum_ in labels]
    assert np.allclose(scores, KEYS @ query, atol=0.05)
    lines = [line for line in plane.lines if line.get_color() == COLORS["keys"]]
    drops, shadows = lines[::2], lines[1::2]
    assert len(drops) == len(shadows) == (3 if length else 0)
    for drop, shadow, key in zip(drops, shadows, KEYS, strict=False):
        top, foot = drop.get_xydata()
        assert np.allclose(top, key) and np.isclose((key - foot) @ query, 0)
        assert np.isclose(foot @ query, key @ query)
        lane = shadow.get_xydata()[0]  # beside the line of the query, on the key's side
        assert np.allclose(shadow.get_xydata(), [lane, foot + lane]) and np.isclose(lane @ query, 0)
        assert lane @ (key - foot) > 0


def test_no_two_shadows_lie_on_each_other():
    figure = charts.query_and_keys(
        [1.0, 0], [[1.0, 1], [2, 1], [-1, 1]], "abc", [1, 0, 0], "shares"
    )
    lines = [line for line in figure.axes[0].lines if line.get_color() == COLORS["keys"]]
    a, b, c = (shadow.get_xydata()[0, 1] for shadow in lines[1::2])
    assert 0 < a == c < b - 0.1


def test_steps_frame_one_row_but_not_of_keys_and_values():
    step = (np.array([[1, -1], [0, 1]]), None, "ab", 0)
    steps = {"q": step, "keys: k": step, "values: v": step}
    figure = charts.attention_steps(steps, row=1, first=2)
    axes = [ax for part in figure.subfigs for ax in part.axes]
    assert [len(part.axes) for part in figure.subfigs] == [2, 1]
    assert [len(ax.patches) for ax in axes] == [1, 0, 0]
    assert axes[0].patches[0].get_y() == 0.5
    for ax in axes:  # one map for signed numbers, white at 0
        (image,) = ax.get_images()
        low, high = image.get_clim()
        assert image.get_cmap().name == SIGNED and low == -high < -1


def test_steps_frame_the_key_and_the_entry_of_one_column():
    step = (np.eye(2), None, "ab", 0)
    steps = {"keys: k": step, "A, who is asked": step, "values: v": step}
    figure = charts.attention_steps(steps, row=1, column=0, first=1)
    keys, shares, values = (ax for part in figure.subfigs for ax in part.axes)
    for ax, height in ((keys, 2), (shares, 1)):
        frame = ax.patches[-1]
        assert (frame.get_x(), frame.get_width(), frame.get_height()) == (-0.5, 1, height)
    assert len(shares.patches) == 2 and not values.patches


def test_an_arrow_too_long_for_the_frame_says_so():
    figure = charts.query_and_keys([24.0, 0], KEYS, ["a", "b", "c"], KEYS[:, 0], "score")
    arrow = figure.axes[0].texts[0]
    assert 2 < arrow.xy[0] < charts.WIDE and "24.00 long, cut" in figure.axes[0].get_title()


def test_images_lie_over_their_maps_with_one_patch_outlined():
    patches, maps = np.arange(48.0).reshape(2, 6, 4) / 48, np.arange(12.0).reshape(2, 6) / 12
    figure = charts.images_over_maps(patches, ["one", "two"], (2, 3), maps, [4, 0])
    above, below = figure.axes[:2], figure.axes[2:4]
    for i, place in enumerate([(1, 1), (0, 0)]):
        drawn = above[i].get_images()[0].get_array()
        assert np.array_equal(drawn[:2, 2:4], patches[i, 1].reshape(2, 2))
        assert np.array_equal(below[i].get_images()[0].get_array(), maps[i].reshape(2, 3))
        for ax in (above[i], below[i]):
            assert np.allclose(np.add(ax.patches[0].get_xy(), 0.45), place)
    assert len(charts.images_over_maps(patches, ["one", "two"], (2, 3)).axes) == 2
