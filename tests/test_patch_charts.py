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
def test_follow_ends_where_the_patch_embedding_reads(shape, P, address):
    b, _, row, col = address
    images = torch.zeros(shape)
    images[address] = 1
    embed = PatchEmbedding(shape[2:], P, shape[1], shape[1] * P * P)
    with torch.no_grad():  # a token is its patch
        embed.proj.weight.copy_(torch.eye(shape[1] * P * P).view_as(embed.proj.weight))
        embed.proj.bias.zero_()
        ((image, patch, place),) = embed(images).nonzero().tolist()
    photo, ax = patch_charts.follow(images.to(torch.uint8), P, address).axes
    boxes = words(ax.texts)
    B, C, H, W = shape
    last = [f"axis 1: N\n{patch} of {H * W // P**2}", f"axis 2: P²C\n{place} of {P * P * C}"]
    assert image == b and last == [text for text in boxes if "N\n" in text or "P²C" in text]
    first = zip(range(4), "BCHW", address, shape, strict=True)
    assert [f"axis {k}: {name}\n{at} of {size}" for k, name, at, size in first] == boxes[1:5]
    permuted = boxes[boxes.index("2. permute") + 1 : boxes.index("3. merge")]
    assert "".join(text[5] for text in permuted) == "024135"
    assert photo.patches[-1].get_xy() == (col // P * P, row // P * P)
    sums = [text.split(" = ") for text in boxes[-2:]]
    assert [eval(left.replace("·", "*")) for left, _ in sums] == [patch, place]


def test_word_and_bill_shows_what_it_frames():
    photo = np.random.default_rng(0).integers(0, 256, (3, 224, 224), dtype=np.uint8)
    for P in (1, 16, 224):
        part = max(P, 16)
        figure = patch_charts.word_and_bill(photo, P, at=(0.3, 0.28))
        left, top = map(int, figure.axes[0].patches[-1].get_xy())
        near = figure.axes[1].get_images()[0].get_array()
        shown = photo[:, top : top + part, left : left + part]
        assert np.array_equal(near.transpose(2, 0, 1), shown)
        x, y = figure.axes[1].patches[-1].get_xy()  # the patch with the point
        assert x <= 0.28 * 224 < x + P and y <= 0.3 * 224 < y + P
        assert f"N² = {(224 // P) ** 4:,}" in figure.axes[2].get_title()
    with pytest.raises(ValueError, match="another P"):
        patch_charts.word_and_bill(photo, 14)


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


def test_patch_and_row_frames_the_patch_and_its_row():
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    patches = image.view(4, 2, 4, 2).permute(0, 2, 1, 3).reshape(16, 4)
    whole, matrix = patch_charts.patch_and_row(image, patches, 2, 5).axes
    assert whole.patches[-1].get_xy() == (1.5, 1.5) and matrix.patches[-1].get_xy() == (-0.5, 4.5)
    assert words(whole.texts) == [str(k) for k in range(64)]
    assert words(matrix.texts) == ["18", "19", "26", "27"]


def test_side_by_side_shows_the_pictures_under_their_names():
    pictures = {name: torch.randint(0, 256, (3, 8, 8)).to(torch.uint8) for name in "abc"}
    for cols, rows in ((None, 1), (2, 2)):
        figure = patch_charts.side_by_side(pictures, lines=4, cols=cols)
        assert len({ax.get_subplotspec().rowspan.start for ax in figure.axes}) == rows
        for ax, (name, picture) in zip(figure.axes, pictures.items(), strict=False):
            assert ax.get_title() == name and len(ax.lines) == 2 * 3
            shown = np.asarray(ax.get_images()[0].get_array())
            assert np.array_equal(shown, picture.permute(1, 2, 0))
