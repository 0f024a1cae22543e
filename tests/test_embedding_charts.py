"""Pictures of filters: mid grey is zero, patches lie where the two filters put them."""

import matplotlib.pyplot as plt
import torch

from pictures.embedding_charts import (
    answer_pictures,
    filter_panels,
    filter_pixels,
    patch_map,
    product_chart,
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
    assert len(figure.axes) == 3  # the map, and the two filters beside it
    plt.close(figure)


def test_a_product_writes_all_its_numbers():
    x, E = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.0, -3.0]])
    figure = product_chart(x, E, ["a", "b"], ["p", "q", "r"])
    written = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert [len(texts) for texts in written] == [2, 6, 3]
    assert written[2] == ["2.00", "-1.00", "-6.00"]
    plt.close(figure)


def test_the_photograph_has_a_scale_of_its_own():
    figure = answer_pictures(torch.rand(8, 8), {"one": torch.randn(2, 2)}, "label")
    limits = [ax.get_images()[0].get_clim() for ax in figure.axes[:2]]
    assert limits == [(0, 1), (-0.7, 0.7)]
    plt.close(figure)
