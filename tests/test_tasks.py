"""helpers/tasks.py: the labels follow from the pixels, and a part that is removed adds nothing."""

import pytest
import torch

from helpers.model import VisionTransformer
from helpers.tasks import TASKS, make_task, without


def white(images, P):
    """(n, 1, H, W) -> (n, rows, cols, P, P) booleans: the patches, True where they are bright."""
    n, _, H, W = images.shape
    return (images > 127).view(n, H // P, P, W // P, P).transpose(2, 3)


def test_place_names_the_quadrant_of_the_white_patch():
    split = make_task("place", 64, 8).train
    for patches, label in zip(white(split.images, 2), split.labels, strict=True):
        ((row, col),) = patches.all(-1).all(-1).nonzero().tolist()
        assert patches.sum() == 4
        assert label == 2 * (row >= 2) + (col >= 2)


def test_alike_compares_the_two_marks():
    split = make_task("alike", 64, 8).train
    for patches, label in zip(white(split.images, 2), split.labels, strict=True):
        marks = patches.reshape(16, 4)
        first, second = marks[marks.any(1)]
        assert first.sum() == second.sum() == 3
        assert label == torch.equal(first, second)


def test_two_addresses_point_at_the_bits():
    split = make_task("two_addresses", 64, 8).train
    patches = split.images.view(64, 3, 3, 3, 3, 3).transpose(3, 4)  # (n, C, row, col, P, P)
    for image, label in zip(patches.reshape(64, 3, 9, 9).long(), split.labels, strict=True):
        red, _, blue = image[:, 0]  # the first patch's channels, 9 pixels each
        bits = [
            int(image[0, address].float().mean() > 127) for address in (red.argmax(), blue.argmax())
        ]
        assert red.argmax() != blue.argmax()
        assert label == 2 * bits[0] + bits[1]


def test_by_heart_shows_the_same_patterns_in_every_split():
    data, other = make_task("by_heart", 4096, 1024), make_task("by_heart", 64, 8, seed=1)
    table = {}
    for split in (data.train, data.test, other.train):
        for image, label in zip(split.images > 127, split.labels.tolist(), strict=True):
            pattern = tuple(image.flatten().tolist())
            assert table.setdefault(pattern, label) == label
    assert 500 < len(table) <= 512
    assert all(60 <= list(table.values()).count(label) <= 64 for label in range(8))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_data_set(name):
    data = make_task(name, 600, 100)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [600, 100, 100]
    assert data.train.images.dtype == torch.uint8 and data.train.images.is_contiguous()
    shares = torch.bincount(data.train.labels, minlength=len(data.classes)) / 600
    assert len(shares) == len(data.classes) and shares.min() > 0.6 / len(data.classes)
    again, other = make_task(name, 600, 100), make_task(name, 600, 100, seed=1)
    assert torch.equal(again.train.images, data.train.images)
    assert torch.equal(again.test.labels, data.test.labels)
    assert not torch.equal(other.train.images, data.train.images)
    assert not torch.equal(data.train.images[:100], data.test.images)


def test_another_task_is_refused():
    with pytest.raises(ValueError, match="'places' is unknown, there are: place, alike"):
        make_task("places")


def model():
    torch.manual_seed(0)
    model = VisionTransformer(4, 2, 1, 3, embed_dim=12, depth=2, num_heads=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@torch.no_grad()
def test_without_positions_order_does_not_matter():
    x = torch.randn(2, 1, 4, 4)
    swapped = torch.cat([x[:, :, 2:], x[:, :, :2]], dim=2)  # the upper two patches below
    assert (model()(x) - model()(swapped)).abs().max() > 0.01
    blind = without(model(), "positions")
    torch.testing.assert_close(blind(x), blind(swapped))
    assert not blind.pos_embed.requires_grad


@torch.no_grad()
def test_without_attention_the_class_token_sees_no_image():
    x = torch.randn(2, 1, 4, 4)
    blind = without(model(), "attention")
    assert torch.equal(blind(x)[0], blind(x)[1])
    assert (model()(x)[0] - model()(x)[1]).abs().max() > 0.1


@torch.no_grad()
def test_without_mlp_only_attention_is_left():
    x = torch.randn(2, 1, 4, 4)
    reference, changed = model(), without(model(), "mlp")
    z = torch.cat([reference.cls_token.expand(2, -1, -1), reference.patch_embed(x)], dim=1)
    z = z + reference.pos_embed
    for block in reference.blocks:
        z = z + block.attn(block.norm1(z))
    torch.testing.assert_close(changed(x), reference.head(reference.norm(z)[:, 0]))


def test_without_another_part_is_refused():
    with pytest.raises(ValueError, match="'head' is unknown: choose positions, attention or mlp"):
        without(model(), "head")
