"""pictures/heads.py: the diagram of the heads, a head's weights on an image, one mixture."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.patches import Polygon, Rectangle, StepPatch

from helpers.plotting import COLORS
from lab.tasks import light_or_dark
from pictures import heads
from tests import test_plotting
from tests.test_plotting import artists, assert_nothing_outside, image, shown, words

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures


@pytest.mark.parametrize("h, lit", [(6, 3), (4, 1)])
def test_the_diagram_has_a_column_for_each_head_and_all_shapes(h, lit):
    figure = heads.split_attend_join_project(2, 64, 96, h, lit)
    said = words(figure.axes[0].texts)
    steps = [word for word in said if word in ("split", "attend", "join", "project")]
    assert steps == ["split", "attend", "join", "project"]
    for part in ("SA}_", "64 × 64"):
        assert sum(part in word for word in said) == h
    assert f"(2, {h}, 64, {96 // h})" in said and said.count("(2, 64, 96)") == 3
    way_in, way_out = artists(figure, Polygon)  # from all columns to the head's, and back to all
    for fan in (way_in, way_out):
        ends = fan.get_xy()[:4, 0]
        assert np.allclose(ends, [(lit - 1) * 100 / h, lit * 100 / h, 100, 0])
    assert_nothing_outside(figure)


def test_weights_stand_in_their_patches_and_frames_around_the_right_ones():
    weights = torch.tensor([0.1, 0.2, 0.05, 0.05, 0.05, 0.55])
    named = {"red": 5, "blue": 3}
    figure = heads.head_on_image(image(), weights, (2, 3), "a head", named, query=1)
    picture, found = shown(figure)[:2]
    assert np.array_equal(picture.get_array(), image()[0])
    assert np.allclose(found.get_array(), weights.view(2, 3)) and found.get_clim() == (0, 1)
    names = ("", "asks\n", "", "blue\n", "", "red\n")
    for text, name, weight in zip(figure.axes[1].texts, names, weights, strict=True):
        assert text.get_text() == f"{name}{weight:.2f}"
    for ax in figure.axes[:2]:
        frames = [p for p in ax.patches if isinstance(p, Rectangle)]
        for p, color in zip(frames, (COLORS["class token"], "tab:blue", "tab:red"), strict=True):
            assert same_color(p.get_edgecolor(), color)
        assert [np.floor(p.get_xy()).tolist() for p in frames] == [[1, 0], [0, 1], [2, 1]]
    assert_nothing_outside(figure)


@pytest.mark.parametrize("share", [0.5, 0.63, 1.0])
def test_on_a_line_the_answer_is_the_same(share):
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    red, blue = (light_or_dark(bits[:, i, None].expand(4, 500), generator) for i in (0, 1))
    names = ("00", "01", "10", "11")
    figure = heads.one_mixture(share, red, blue, names, 0.5)
    left, right = figure.axes
    assert words(left.texts) == list(names)
    for text, square in zip(left.texts, left.patches, strict=True):
        assert square.get_bbox().contains(*text.get_position())
    for line in left.lines:
        x, y = (np.asarray(data, dtype=float) for data in line.get_data())
        assert np.ptp(share * x + (1 - share) * y) < 1e-9
    for i, (row, x, y) in enumerate(zip(artists(figure, StepPatch), red, blue, strict=True)):
        height, edges, bottom = row.get_data()
        counts = np.histogram(share * x + (1 - share) * y, edges)[0]
        assert bottom == 3 - i and counts.sum() == 500
        assert np.allclose((height - bottom) / 0.85, counts / counts.max())
    assert_nothing_outside(figure)
