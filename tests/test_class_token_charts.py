"""pictures/class_token_charts.py: the scenes of 03 show what they say, two rows have one scale."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

from helpers.plotting import COLORS
from pictures import class_token_charts
from tests import test_plotting
from tests.test_plotting import words

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures


def test_the_clerk_hears_all_and_only_the_last_page_names_a_class():
    figure = class_token_charts.clerk_and_witnesses()
    scenes = [words(ax.texts) for ax in figure.axes]
    assert all({"1", "2", "3", "4", "5", "*"} <= set(said) for said in scenes)
    assert ["temple" in said for said in scenes] == [False, False, True]
    assert [len(ax.get_images()) for ax in figure.axes] == [5, 0, 0]  # what each witness saw
    arrows = [text for text in figure.axes[1].texts if getattr(text, "arrow_patch", None)]
    assert [arrow.xy for arrow in arrows] == [class_token_charts.CLERK] * 5


@pytest.mark.parametrize("looked", [False, True])
def test_two_pages_draw_what_they_are_given_on_one_scale(looked):
    images = torch.randint(0, 256, (2, 1, 8, 8)).to(torch.uint8)
    weights = torch.rand(2, 4, 4) if looked else None
    rows, scores = torch.randn(2, 32), torch.randn(2, 10).softmax(1)
    figure = class_token_charts.two_pages(images, weights, rows, scores, "z_1", (0.5, 3.0))
    assert figure.get_suptitle() == "z_1"
    for i in range(2):
        digit, where, row, bars = figure.axes[4 * i : 4 * i + 4]
        assert np.array_equal(digit.get_images()[0].get_array(), images[i, 0])
        (shown,) = row.get_images()
        assert np.array_equal(shown.get_array().flatten(), rows[i]) and shown.get_clim() == (-3, 3)
        assert row.spines["left"].get_edgecolor() == matplotlib.colors.to_rgba(
            COLORS["class token"]
        )
        assert np.allclose([bar.get_height() for bar in bars.patches], scores[i])
        if looked:
            assert np.array_equal(where.get_images()[0].get_array(), weights[i])
            assert where.get_images()[0].get_clim() == (0, 0.5)
        else:
            assert words(where.texts) == ["not yet\nlooked"]
