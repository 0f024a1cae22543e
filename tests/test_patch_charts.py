"""pictures/patch_charts.py: what the drawings of 01 say is what the cut does."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

from helpers.model import PatchEmbedding
from pictures import patch_charts
from tests import test_plotting
from tests.test_plotting import words

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures


@pytest.mark.parametrize("shape, P, address", [((2, 3, 32, 32), 4, (0, 1, 13, 22)),
                                               ((2, 3, 32, 48), 8, (1, 2, 31, 40))])  # fmt: skip
def test_odometer_ends_where_the_patch_embedding_reads(shape, P, address):
    b, *rest = address
    images = torch.zeros(shape)
    images[address] = 1
    embed = PatchEmbedding(shape[2:], P, shape[1], shape[1] * P * P)
    with torch.no_grad():  # a token is its patch
        embed.proj.weight.copy_(torch.eye(shape[1] * P * P).view_as(embed.proj.weight))
        embed.proj.bias.zero_()
        ((image, patch, place),) = embed(images).nonzero().tolist()
    boxes = words(patch_charts.odometer(shape, P, address).axes[0].texts)
    assert image == b and [f"N\n{patch}", f"P²C\n{place}"] == boxes[-2:]
    assert [f"{name}\n{at}" for name, at in zip("BCHW", address, strict=True)] == boxes[1:5]


def test_word_and_bill_frames_the_patch_that_it_shows():
    photo = np.random.default_rng(0).integers(0, 256, (3, 224, 224), dtype=np.uint8)
    for P in (1, 16, 224):
        figure = patch_charts.word_and_bill(photo, P, at=(0.3, 0.28))
        left, top = map(int, figure.axes[0].patches[-1].get_xy())
        near = figure.axes[1].get_images()[0].get_array()
        assert np.array_equal(near.transpose(2, 0, 1), photo[:, top : top + P, left : left + P])
        assert figure.axes[2].get_title().startswith(f"N² = {(224 // P) ** 4:,} pair")


def test_image_and_rows_and_strips_colour_a_number_by_its_patch():
    image = torch.arange(24).view(4, 6)
    rows = image.view(2, 2, 3, 2).permute(0, 2, 1, 3).reshape(6, 4)
    for figure in (
        patch_charts.image_and_rows(image, rows, 2),
        patch_charts.strips(image, rows, 2),
    ):
        before, after = (ax.get_images()[0].get_array() for ax in figure.axes)
        assert before[0].tolist()[:6] == [0, 0, 1, 1, 2, 2]
        assert after.ravel().tolist() == np.arange(6).repeat(4).tolist()


def test_row_of_a_patch_frames_the_row_of_the_patch_that_it_shows():
    patches = torch.arange(16 * 49).view(16, 49) % 256
    figure = patch_charts.row_of_a_patch(patches, 7, 5)
    near, matrix = figure.axes
    assert np.array_equal(near.get_images()[0].get_array().ravel(), patches[5])
    assert matrix.patches[-1].get_xy() == (-0.5, 4.5)
    assert words(near.texts) == [str(k) for k in range(49)]


def test_side_by_side_shows_the_pictures_under_their_names():
    pictures = {name: torch.randint(0, 256, (3, 8, 8)).to(torch.uint8) for name in "ab"}
    figure = patch_charts.side_by_side(pictures, lines=4, ink=True)
    for ax, (name, picture) in zip(figure.axes, pictures.items(), strict=True):
        assert ax.get_title() == name and len(ax.lines) == 2 * 3
        shown = np.asarray(ax.get_images()[0].get_array())
        assert np.array_equal(shown, 255 - picture.permute(1, 2, 0))
