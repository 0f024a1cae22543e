"""lab/tasks.py: the labels follow from the pixels, and nothing else gives them away."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from helpers.data import mean_and_std
from lab.task_trials import SETTINGS
from lab.tasks import TASKS, learn_task, make_task


def pictures(name, P, count=64):
    """(patches (N, C, P P), label) of each training image, patches row by row."""
    split = make_task(name, count, 8).train
    cut = split.images.unfold(2, P, P).unfold(3, P, P)  # (n, C, rows, cols, P, P)
    cut = cut.flatten(4).flatten(2, 3).transpose(1, 2)  # (n, N, C, P P)
    return list(zip(cut, split.labels.tolist(), strict=True))


def marks(patches):
    """{place: (P P,) booleans} of the patches in which something is bright."""
    bright = patches[:, 0] > 127
    return {place: mark for place, mark in enumerate(bright) if mark.any()}


def dots_and_bit(patch):
    """(3, P P) -> (pixel of its red dot or None, of its blue dot or None, is the rest light?).

    A dot is where red and blue differ; noise is grey, so it does not make them differ.
    """
    R, _, B = patch.int()
    red, blue, rest = R - B > 127, B - R > 127, R == B
    assert red.sum() <= 1 and blue.sum() <= 1 and (red | blue | rest).all()
    light = R[rest] > 127
    assert light.all() or not light.any()
    dots = [dot.nonzero().item() if dot.any() else None for dot in (red, blue)]
    return *dots, int(light.all())


def test_place_alike_and_which_ask_for_the_quadrant_for_likeness_and_for_the_mark():
    seen = {name: set() for name in ("place", "alike", "which")}
    for patches, label in pictures("place", 2, 128):
        ((place, mark),) = marks(patches).items()
        assert mark.all() and label == 2 * (place // 4 >= 2) + (place % 4 >= 2)
        seen["place"].add(place)
    for patches, label in pictures("alike", 2, 256):
        (a, first), (b, second) = marks(patches).items()
        assert first.sum() == second.sum() == 3 and label == torch.equal(first, second)
        seen["alike"] |= {(a, first.int().argmin().item()), (b, second.int().argmin().item())}
    for patches, label in pictures("which", 2, 512):
        ((place, mark),) = marks(patches).items()
        assert mark.sum() == 3 and label == mark.int().argmin()
        seen["which"].add((place, label))
    assert [len(found) for found in seen.values()] == [16, 64, 64]  # every mark in every place


def test_two_addresses_and_two_colours_ask_for_the_bits_at_red_and_at_blue():
    places = [set(), set()]
    for patches, label in pictures("two_addresses", 3):
        red, blue, _ = dots_and_bit(patches[0])  # the map
        bits = [dots_and_bit(patches[i])[2] for i in (red, blue)]
        assert red != blue and label == 2 * bits[0] + bits[1]
        places[0] |= {red, blue}
    for patches, label in pictures("two_colours", 2):
        seen = [dots_and_bit(patch) for patch in patches]
        ((red, red_bit),) = [(i, bit) for i, (dot, _, bit) in enumerate(seen) if dot is not None]
        ((blue, blue_bit),) = [(i, bit) for i, (_, dot, bit) in enumerate(seen) if dot is not None]
        assert red != blue and label == 2 * red_bit + blue_bit
        places[1] |= {red, blue}
    assert places == [set(range(1, 9)), set(range(16))]


def test_chain_is_followed_for_two_steps():
    starts = set()
    for patches, label in pictures("chain", 3):
        seen = [dots_and_bit(patch) for patch in patches]
        to = {name: target for name, target, _ in seen}
        bits = {name: bit for name, _, bit in seen}
        assert sorted(to) == list(range(6)) and set(to.values()) <= set(range(6))
        first, second = to[0], to[to[0]]
        assert len({0, first, second}) == 3 and label == bits[second]
        # The colours of the four that the second step may end at do not tell which it is.
        assert sum(bits[name] for name in range(1, 6) if name != first) == 2
        starts.add([name for name, _, _ in seen].index(0))
    assert starts == set(range(6))  # the patches lie in any order


def test_by_heart_shows_512_patterns_that_no_linear_map_knows():
    """Another seed shows the same ones, and best_without is what logistic regression knows."""
    data, other = make_task("by_heart", 8192, 1024), make_task("by_heart", 64, 8, seed=1)
    table = {}
    for split in (data.train, data.test, other.train):
        for image, label in zip(split.images > 127, split.labels.tolist(), strict=True):
            pattern = tuple(image.flatten().tolist())
            assert table.setdefault(pattern, label) == label
    x, y = list(table), list(table.values())
    assert torch.bincount(torch.tensor(y)).tolist() == [64] * 8
    knows = LogisticRegression(C=1e6, max_iter=10_000).fit(x, y).score(x, y)
    assert knows == SETTINGS["by_heart"].best_without


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_data_set_made_from_its_seed(name):
    with pytest.raises(ValueError, match=f"'{name}s' is unknown, there are: place, alike"):
        make_task(name + "s")
    data = make_task(name, 600, 100)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [600, 100, 100]
    assert data.train.images.dtype == torch.uint8 and data.train.images.is_contiguous()
    assert (data.mean, data.std) == mean_and_std(data.train.images) and not data.flip
    assert len(data.train.images.unique(dim=0)) == 600  # noise tells all of them apart
    shares = torch.bincount(data.train.labels, minlength=len(data.classes)) / 600
    assert len(shares) == len(data.classes) and shares.min() > 0.6 / len(data.classes)
    again, other = make_task(name, 600, 100), make_task(name, 600, 100, seed=1)
    assert torch.equal(again.train.images, data.train.images)
    assert not torch.equal(other.train.images, data.train.images)
    assert not torch.equal(data.validation.images, data.test.images)


def test_a_small_vit_learns_a_task_and_its_start_is_kept():
    task = make_task("place", train=512, test=64)
    vit, start = learn_task(task, 2, epochs=1, seed=0, depth=1)
    same, again = learn_task(task, 2, epochs=1, seed=0, depth=1)
    assert not vit.training and not start.training
    assert len(vit.blocks) == 1 and vit.patch_embed.grid_size == (4, 4)
    assert torch.equal(vit.pos_embed, same.pos_embed) and torch.equal(
        start.pos_embed, again.pos_embed
    )
    assert not torch.equal(vit.pos_embed, start.pos_embed)
