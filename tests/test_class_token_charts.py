"""pictures/class_token_charts.py: the scenes of 03 show what they say, two rows have one scale."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

from helpers.plotting import COLORS, SIGNED
from pictures import class_token_charts
from tests import test_plotting
from tests.test_plotting import words

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures


def test_the_clerk_hears_all_and_only_the_last_page_names_a_class():
    figure = class_token_charts.clerk_and_witnesses()
    scenes = [words(ax.texts) for ax in figure.axes]
    assert all({"0", "1", "2", "3", "4", "*"} <= set(said) for said in scenes)
    assert ["temple" in said for said in scenes] == [False, False, True]
    assert ["head" in said for said in scenes] == [False, False, True]  # it says temple, not he
    assert all(any("$D$" in text.get_text() for text in ax.texts) for ax in figure.axes)
    assert [len(ax.get_images()) for ax in figure.axes] == [5, 0, 0]  # what each witness saw
    arrows = [text for text in figure.axes[1].texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 15  # any two of six people
    both_ways = matplotlib.patches.ArrowStyle.CurveFilledAB
    assert all(isinstance(arrow.arrow_patch.get_arrowstyle(), both_ways) for arrow in arrows)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_two_pages_draw_what_they_are_given_on_one_scale(depth):
    images = torch.randint(0, 256, (5, 1, 8, 8)).to(torch.uint8)
    maps = [torch.rand(5, 16) for _ in range(2)]
    pages = [torch.randn(5, 32) for _ in range(3)]
    shares = [torch.randn(5, 10).softmax(1) for _ in range(3)]
    figure = class_token_charts.two_pages(images, depth, [3, 1], maps, pages, shares)
    assert figure.get_suptitle().startswith(f"z_{depth}")
    strips, bar = figure.axes[3:8:4], figure.axes[8]
    assert [text.get_text() for text in bar.get_yticklabels()][1] == "0"
    for place, i in enumerate((3, 1)):
        digit, where, bars = figure.axes[4 * place : 4 * place + 3]
        assert np.array_equal(digit.get_images()[0].get_array(), 255 - images[i, 0])
        (shown,) = strips[place].get_images()
        assert np.array_equal(shown.get_array().flatten(), pages[depth][i])
        assert shown.get_clim()[0] == -shown.get_clim()[1]  # white at 0
        assert shown.get_cmap().name == SIGNED
        assert strips[place].spines["left"].get_edgecolor() == matplotlib.colors.to_rgba(
            COLORS["class token"]
        )
        assert np.allclose([b.get_height() for b in bars.patches], shares[depth][i])
        if depth:
            (looked,) = where.get_images()
            assert np.array_equal(looked.get_array().flatten(), maps[depth - 1][i])
            assert looked.get_clim() == pytest.approx((0, max(float(m.max()) for m in maps)))
        else:
            assert words(where.texts) == ["not yet\nlooked"]


def test_bars_with_and_without_attention_are_two_groups():
    seeing, blind = {"a": [0.9, 0.8], "b": [0.7]}, {"a": [0.2], "b": [0.4, 0.6]}
    (ax,) = class_token_charts.with_and_without(seeing, blind, chance=0.25).axes
    assert np.allclose([bar.get_width() for bar in ax.patches], [0.85, 0.7, 0.2, 0.5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "a", "b"]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    assert middles[2] - middles[1] > 1.5 * (middles[1] - middles[0])  # a gap between them
    said = words(ax.texts)
    assert {"with attention", "attention taken away", "chance 25%", "85%", "50%"} <= set(said)
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 1, 1, 2]  # the seeds


def test_moved_alike_has_a_point_for_each_number():
    moved = torch.randn(32)
    line, points = class_token_charts.moved_alike(moved, moved + 0.1).axes[0].lines
    assert np.array_equal(points.get_xdata(), moved)
    assert np.array_equal(points.get_ydata(), moved + 0.1)
    assert np.array_equal(line.get_xdata(), line.get_ydata())
