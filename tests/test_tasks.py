"""lab/tasks.py: the labels follow from the pixels, and a part that is removed adds nothing."""

import itertools

import pytest
import torch

from helpers.model import VisionTransformer
from lab.parts import PARTS, without
from lab.tasks import TASKS, make_task


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


def dots_and_bit(patch):
    """(3, P, P) uint8 -> (index of its red dot, of its blue dot, is the rest light?), or None.

    A dot is where red and blue differ; noise is grey, so it does not make them differ.
    """
    R, _, B = patch.flatten(1).int()
    (red, blue, rest) = ((R - B > 127), (B - R > 127), (R == B))
    assert red.sum() <= 1 and blue.sum() <= 1 and (red | blue | rest).all()
    light = R[rest] > 127
    assert light.all() or not light.any()
    dots = [dot.nonzero().item() if dot.any() else None for dot in (red, blue)]
    return *dots, int(light.all())


def patches_of(image, P):
    """(3, H, W) -> a list of (3, P, P), row by row."""
    _, H, W = image.shape
    corners = itertools.product(range(0, H, P), range(0, W, P))
    return [image[:, y : y + P, x : x + P] for y, x in corners]


def test_two_colours_asks_for_the_bits_at_red_and_at_blue():
    split = make_task("two_colours", 64, 8).train
    places = set()
    for image, label in zip(split.images, split.labels, strict=True):
        seen = [dots_and_bit(patch) for patch in patches_of(image, 2)]
        ((red, red_bit),) = [(i, bit) for i, (dot, _, bit) in enumerate(seen) if dot is not None]
        ((blue, blue_bit),) = [(i, bit) for i, (_, dot, bit) in enumerate(seen) if dot is not None]
        assert red != blue and label == 2 * red_bit + blue_bit
        places |= {red, blue}
    assert len(places) == 16


def test_chain_is_followed_for_two_steps():
    split = make_task("chain", 64, 8).train
    starts = set()
    for image, label in zip(split.images, split.labels, strict=True):
        seen = [dots_and_bit(patch) for patch in patches_of(image, 3)]
        to = {name: target for name, target, _ in seen}
        bits = {name: bit for name, _, bit in seen}
        assert sorted(to) == list(range(6)) and set(to.values()) <= set(range(6))
        first, second = to[0], to[to[0]]
        assert len({0, first, second}) == 3 and label == bits[second]
        # The colours of the four that the second step may end at do not tell which it is.
        assert sum(bits[name] for name in range(1, 6) if name != first) == 2
        starts.add([name for name, _, _ in seen].index(0))
    assert starts == set(range(6))  # the patches lie in any order


def test_which_names_the_mark():
    split = make_task("which", 64, 8).train
    places = set()
    for patches, label in zip(white(split.images, 2), split.labels, strict=True):
        ((place, mark),) = [(i, m) for i, m in enumerate(patches.reshape(16, 4)) if m.any()]
        assert mark.sum() == 3 and label == mark.int().argmin()
        places.add(place)
    assert len(places) == 16


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


def model(pool="token"):
    torch.manual_seed(0)
    sizes = dict(embed_dim=12, depth=2, num_heads=3, global_pool=pool)
    model = VisionTransformer(4, 2, 1, 3, **sizes)
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


def tokens(model, x):
    """What the first block of a model with a class token gets."""
    z = torch.cat([model.cls_token.expand(len(x), -1, -1), model.patch_embed(x)], dim=1)
    return z + model.pos_embed


@torch.no_grad()
def test_without_residuals_a_half_replaces_its_input():
    x = torch.randn(2, 1, 4, 4)
    reference, changed = model(), without(model(), "residuals")
    z = tokens(reference, x)
    for block in reference.blocks:
        z = block.attn(block.norm1(z))
        z = block.mlp(block.norm2(z))
    torch.testing.assert_close(changed(x), reference.head(reference.norm(z)[:, 0]))


@torch.no_grad()
def test_without_norm_tokens_stay_as_they_are():
    x = torch.randn(2, 1, 4, 4)
    reference, changed = model(), without(model(), "norm")
    z = tokens(reference, x)
    for block in reference.blocks:
        z = z + block.attn(z)
        z = z + block.mlp(z)
    torch.testing.assert_close(changed(x), reference.head(z[:, 0]))
    assert not [name for name, _ in changed.named_parameters() if "norm" in name]


@torch.no_grad()
def test_without_depth_the_first_block_is_left():
    x = torch.randn(2, 1, 4, 4)
    reference, changed = model(), without(model(), "depth")
    z = reference.norm(reference.blocks[0](tokens(reference, x)))
    torch.testing.assert_close(changed(x), reference.head(z[:, 0]))


@torch.no_grad()
def test_without_heads_one_looks_with_the_whole_width():
    z = torch.randn(2, 5, 12)
    reference, changed = model(), without(model(), "heads")
    old, new = ({n: p.shape for n, p in m.named_parameters()} for m in (reference, changed))
    assert old == new
    attn = reference.blocks[1].attn
    matrices = zip(attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3), strict=True)
    q, k, v = (z @ W.T + b for W, b in matrices)
    weights = (q @ k.transpose(1, 2) / 12**0.5).softmax(dim=-1)  # (2, 5, 5), one map
    torch.testing.assert_close(changed.blocks[1].attn(z), attn.proj(weights @ v))
    assert (changed.blocks[1].attn(z) - attn(z)).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_without_class_token_the_first_patch_is_read(pool):
    x = torch.randn(2, 1, 4, 4)
    reference, changed = model(pool), without(model(pool), "class token")
    table = reference.pos_embed[:, 1:] if pool == "token" else reference.pos_embed
    z = reference.blocks(reference.patch_embed(x) + table)  # the patches are alone
    torch.testing.assert_close(changed(x), reference.head(reference.norm(z)[:, 0]))
    assert changed.cls_token is None and changed.pos_embed.shape == (1, 4, 12)
    assert changed.pos_embed.requires_grad


@torch.no_grad()
def test_parts_can_be_removed_together_in_any_order():
    x = torch.randn(2, 1, 4, 4)
    assert len(PARTS) == 8
    for a, b in itertools.combinations(PARTS, 2):
        first, second = without(without(model(), a), b), without(without(model(), b), a)
        torch.testing.assert_close(first(x), second(x), msg=f"{a}, {b}")
        assert first.pos_embed.requires_grad == ("positions" not in (a, b))


def test_without_another_part_is_refused():
    with pytest.raises(ValueError, match="'head' is unknown: choose one of positions, attention"):
        without(model(), "head")
