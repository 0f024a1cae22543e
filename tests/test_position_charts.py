"""pictures/position_charts.py: sums, arrows and frames say what was given."""

import matplotlib
import pytest
import torch

matplotlib.use("Agg")

from matplotlib.patches import Rectangle

from helpers.plotting import COLORS, SIGNED
from lab.parts import sine_positions
from pictures import position_charts as charts
from tests import test_plotting
from tests.test_plotting import words

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures


def test_an_addition_shows_the_table_once_and_tokens_and_sum_of_each_image():
    tokens, table = torch.arange(12.0).view(2, 3, 2), torch.full((3, 2), 0.5)
    figure = charts.addition(tokens, table)
    *matrices, bar = figure.axes
    shown = [table, tokens[0], tokens[0] + table, tokens[1], tokens[1] + table]
    assert len(matrices) == len(shown) and words(figure.texts) == ["+", "="]
    for ax, values in zip(matrices, shown, strict=True):
        assert words(ax.texts) == [f"{value:.1f}" for value in values.flatten()]
        low, high = ax.get_images()[0].get_clim()
        assert low == -high and ax.get_images()[0].get_cmap().name == SIGNED


def test_most_alike_is_never_the_place_itself_and_arrows_lead_there():
    similarity = -torch.ones(6, 6)
    best = [1, 0, 5, 0, 2, 2]  # on a 2 x 3 grid: 2 of them a step away in a row, 3 in a column
    similarity[torch.arange(6), best] = -0.5
    assert charts.most_alike(similarity).tolist() == best
    best[0] = 5
    similarity[0, 5] = 0.0
    figure = charts.pointers({"now": similarity}, (2, 3))
    arrows = [text for text in figure.axes[0].texts if text.arrow_patch]
    assert [arrow.xy for arrow in arrows] == [(i % 3, i // 3) for i in best]
    colours = [arrow.arrowprops["color"] for arrow in arrows]
    far, near, slanted = colours[0], COLORS["positions"], colours[4]
    assert colours == [far, near, near, near, slanted, near] and len({far, near, slanted}) == 3
    assert figure.axes[0].get_title() == "now: 4 of 6 touch, 1 diagonal"


def corner(ax):
    (frame,) = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return frame.get_x() + 0.5, frame.get_y() + 0.5


def test_maps_frame_the_place_that_was_asked_for():
    one = charts.like_one({"a": torch.eye(6), "b": torch.ones(6, 6)}, 4, (2, 3))
    assert [corner(ax) for ax in one.axes[:2]] == [(1, 1)] * 2
    assert one.get_suptitle() == "row 1, column 1"
    assert one.axes[0].get_images()[0].get_array().tolist() == [[0, 0, 0], [0, 1, 0]]
    two = charts.likeness({"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}, 5, [(0, 2)], 0)
    assert [corner(ax) for ax in two.axes[:2]] == [(2, 1)] * 2
    assert [words(ax.texts) for ax in two.axes[:2]] == [["1.00"], ["0.00"]]


@pytest.mark.parametrize("place", [0, 5])
def test_clocks_and_columns_show_the_table(place):
    figure = charts.clocks(place)
    said = [float(n) for ax in figure.axes for n in ax.get_title().split(", ")]
    torch.testing.assert_close(torch.tensor(said), sine_positions(6, 8)[place], atol=0.006, rtol=0)
    left, right = charts.sines_and_cosines(sine_positions(6, 8)).axes[:2]
    assert left.get_images()[0].get_array()[place, 0] == pytest.approx(said[0], abs=0.006)
    assert right.get_images()[0].get_array()[place, 0] == pytest.approx(said[1], abs=0.006)
