"""lab/masked_patches.py: masked patch prediction."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

import lab.masked_patches as masked
from helpers.augmentation import normalize
from helpers.data import Split, load
from helpers.model import VisionTransformer
from lab.masked_patches import (
    INTACT,
    KEPT,
    MASKED,
    SWAPPED,
    Guesser,
    corrupted,
    draw_corruption,
    few_labels,
    fine_tune,
    held_out_guesses,
    mean_of_neighbours,
    patch_targets,
    pretrain,
)
from tests.peers import randomize


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def tiny_vit(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = dict(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=16, depth=1,
                 num_heads=2, pos_embed_std=0.5)  # fmt: skip
    return VisionTransformer(**(sizes | changes))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Targets


@pytest.mark.parametrize(("C", "H", "W", "P"), [(1, 8, 8, 2), (3, 6, 9, 3), (2, 7, 14, 7)])
def test_targets_are_those_of_a_slow_loop(C, H, W, P):
    images = torch.randint(0, 256, (5, C, H, W), dtype=torch.uint8, generator=generator())
    images[0], images[1] = 0, 255
    found = patch_targets(images, P)
    assert found.shape == (5, H // P * (W // P)) and found.dtype == torch.int64
    for b in range(5):
        for row in range(H // P):
            for col in range(W // P):
                patch = images[b, :, row * P : (row + 1) * P, col * P : (col + 1) * P].tolist()
                target = 0
                for channel in patch:
                    total = sum(sum(line) for line in channel)
                    target = 8 * target + total // (32 * P * P)
                assert found[b, row * (W // P) + col] == target
    assert found[0].max() == 0 and found[1].min() == 8**C - 1


def test_a_level_begins_at_each_multiple_of_32():
    greys = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    assert patch_targets(greys.expand(-1, 1, 3, 3), 3)[:, 0].tolist() == [
        g // 32 for g in range(256)
    ]
    red = torch.tensor([255, 32, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert patch_targets(red, 1).item() == 64 * 7 + 8 * 1


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        patch_targets(torch.rand(2, 1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        patch_targets(torch.zeros(1, 8, 8, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="8 x 8.*patch_size is 3"):
        patch_targets(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 3)


# Corruption


def test_half_is_corrupted_in_the_shares_of_the_paper():
    kinds, other = draw_corruption(5000, 16, generator())
    assert ((kinds != INTACT).sum(dim=1) == 8).all()
    counts = torch.bincount(kinds.flatten(), minlength=4) / (5000 * 8)  # sd below 0.002
    for kind, share in ((INTACT, 1.0), (MASKED, 0.8), (SWAPPED, 0.1), (KEPT, 0.1)):
        assert counts[kind].item() == pytest.approx(share, abs=0.01)
    places = (kinds != INTACT).double().mean(dim=0)  # each place as often, sd 0.007
    torch.testing.assert_close(places, torch.full((16,), 0.5).double(), atol=0.04, rtol=0)
    assert (other != torch.arange(16)).all() and other.min() == 0 and other.max() == 15
    each = torch.bincount(other.flatten(), minlength=16) / other.numel()
    torch.testing.assert_close(each, torch.full((16,), 1 / 16), atol=0.005, rtol=0)


def test_the_generator_decides_and_odd_numbers_round_down():
    first, again, new = (draw_corruption(20, 9, generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], new[0])
    assert ((first[0] != INTACT).sum(dim=1) == 4).all()
    with pytest.raises(ValueError, match="1 patch an image: at least 2"):
        draw_corruption(3, 1, generator())


def test_tokens_are_replaced_as_drawn_and_the_hook_is_gone_afterwards():
    model, x = randomize(tiny_vit()), torch.randn(2, 1, 8, 8)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    clean, logits = model.patch_embed(x), model(x)
    kinds = torch.tensor([INTACT, MASKED, SWAPPED, KEPT] * 8).view(2, 16)
    other = (torch.arange(16) + 5).remainder(16).expand(2, 16)
    mask = torch.randn(16)
    with corrupted(model, mask, kinds, other):
        changed = model.patch_embed(x)
        assert not torch.allclose(model(x), logits)
    for b in range(2):
        for n in range(16):
            expected = {MASKED: mask, SWAPPED: clean[b, other[b, n]]}.get(kinds[b, n].item())
            assert torch.equal(changed[b, n], clean[b, n] if expected is None else expected)
    with pytest.raises(RuntimeError, match="inside"), corrupted(model, mask, kinds, other):
        raise RuntimeError("inside")
    assert torch.equal(model(x), logits) and not model.patch_embed._forward_hooks
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_guess_is_read_from_the_patch_s_own_token(pool):
    """With blocks that do nothing, a guess depends on its own patch and place, and on no other."""
    model, guesser = randomize(tiny_vit(depth=0, global_pool=pool)), randomize(Guesser(16, 1))
    x, nothing = torch.randn(1, 1, 8, 8), torch.zeros(1, 16, dtype=torch.long)
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1  # patch 7, the last of the second row
    moved = guesser(model, changed, nothing, nothing) != guesser(model, x, nothing, nothing)
    assert moved.any(dim=2)[0].nonzero().flatten().tolist() == [7]
    assert moved.shape == (1, 16, 8)


# Pre-training


def test_the_mask_learns_through_the_model():
    model, guesser = randomize(tiny_vit()), randomize(Guesser(16, 3))
    x, none = torch.randn(4, 1, 8, 8), torch.zeros(4, 16, dtype=torch.long)
    for kinds, learns in ((none + MASKED, True), (none + KEPT, False)):
        loss = guesser(model, x, kinds, none).square().mean()
        guesser.zero_grad()
        loss.backward()
        assert (guesser.mask.grad is not None and guesser.mask.grad.abs().min() > 0) == learns
    # the gradient along one direction, against a finite difference
    model, guesser, x = model.double(), guesser.double(), x.double()
    direction, h = torch.randn(16, dtype=torch.float64), 1e-5

    def loss_at(shift):
        found = copy_with(guesser, shift * direction)(model, x, none + MASKED, none)
        return F.cross_entropy(found.flatten(0, 1), torch.arange(64))

    guesser.zero_grad()
    loss = F.cross_entropy(guesser(model, x, none + MASKED, none).flatten(0, 1), torch.arange(64))
    loss.backward()
    slope = (loss_at(h) - loss_at(-h)).item() / (2 * h)
    assert (guesser.mask.grad @ direction).item() == pytest.approx(slope, rel=1e-5)


def copy_with(guesser, shift):
    """A copy of guesser whose mask is moved by shift."""
    copy = Guesser(16, 3).double()
    copy.load_state_dict(guesser.state_dict())
    with torch.no_grad():
        copy.mask += shift
    return copy


def test_intact_patches_carry_no_loss(digits, monkeypatch):
    """At a learning rate of 0, each point is the mean over its step's corrupted patches alone."""
    few = dataclasses.replace(
        digits, train=Split(digits.train.images[:50], digits.train.labels[:50])
    )
    model, guesser = randomize(tiny_vit()), randomize(Guesser(16, 1))
    monkeypatch.setattr(masked, "Guesser", lambda *sizes: guesser)
    curve, _ = pretrain(model, few, steps=2, lr=0.0, batch_size=30, seed=3)
    drawn = generator(3)
    batches = few.train.images[torch.randperm(50, generator=drawn)].split(30)  # 30 and 20 images
    for x, point in zip(batches, curve, strict=True):
        kinds, other = draw_corruption(len(x), 16, drawn)
        chosen, colours = kinds != INTACT, patch_targets(x, 2)
        with torch.no_grad():
            logits = guesser(model, normalize(x, few), kinds, other)  # (b, 16, 8)
        losses = F.cross_entropy(logits.transpose(1, 2), colours, reduction="none")  # (b, 16)
        assert point["loss"] == pytest.approx(losses[chosen].mean().item(), rel=1e-5)
        assert point["loss"] != pytest.approx(losses.mean().item(), rel=1e-3)
        right = (logits.argmax(dim=2) == colours)[chosen].double().mean().item()
        assert point["accuracy"] == pytest.approx(right)
    assert [point["step"] for point in curve] == [1, 2]


def test_it_learns_real_digits_without_a_look_at_labels(digits):
    images = digits.train.images
    blind = dataclasses.replace(digits, train=Split(images, torch.full((len(images),), -1)))
    model = tiny_vit(embed_dim=32, depth=2, drop_rate=0.05)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    curve, guesser = pretrain(model, blind, steps=300, lr=5e-3)
    assert [point["step"] for point in curve] == list(range(15, 301, 15))
    assert curve[-1]["loss"] < 0.75 * curve[0]["loss"]
    assert curve[-1]["accuracy"] > curve[0]["accuracy"] + 0.05
    after = model.state_dict()
    stay = {"head.weight", "head.bias"}
    assert {name for name in before if torch.equal(before[name], after[name])} == stay
    assert guesser.mask.abs().max() > 0 and not model.patch_embed._forward_hooks
    table = held_out_guesses(model, guesser, blind, digits.validation.images)
    for rival in ("always the same", "each place"):
        assert table["model"]["loss"] < table[rival]["loss"] - 0.05
    for rival in ("always the same", "neighbours"):
        assert table["model"]["accuracy"] > table[rival]["accuracy"] + 0.05
    assert not hasattr(model, "mask") and model.training


def test_the_seed_decides(digits):
    runs = []
    for seed in (0, 0, 1):
        model = tiny_vit(drop_rate=0.1)
        torch.manual_seed(len(runs))  # what was drawn before must not matter
        runs.append(pretrain(model, digits, steps=3, seed=seed)[0])
    assert runs[0] == runs[1] != runs[2]


def test_steps_go_on_after_a_pass_and_bad_numbers_are_refused(digits):
    few = dataclasses.replace(digits, train=Split(digits.train.images[:9], digits.train.labels[:9]))
    curve, _ = pretrain(tiny_vit(), few, steps=45, batch_size=4)
    assert [point["step"] for point in curve][-3:] == [42, 44, 45]
    with pytest.raises(ValueError, match="steps is 0"):
        pretrain(tiny_vit(), few, steps=0)
    with pytest.raises(ValueError, match="images of shape"):
        pretrain(tiny_vit(in_chans=3), few, steps=1)
    broken = tiny_vit()
    torch.nn.init.constant_(broken.pos_embed, float("nan"))
    with pytest.raises(FloatingPointError, match="smaller lr than 0.003"):
        pretrain(broken, few, steps=1)


# Rivals


def test_guesses_without_a_model_against_slow_loops(digits):
    images = digits.validation.images[:12]
    model, guesser = tiny_vit(), Guesser(16, 1)  # a new guesser: all colours alike
    table = held_out_guesses(model, guesser, digits, images, seed=5)
    kinds, _ = draw_corruption(12, 16, generator(5))
    colours, seen = patch_targets(images, 2), patch_targets(digits.train.images, 2)
    assert table["model"]["loss"] == pytest.approx(torch.tensor(8.0).log().item())
    shares = torch.bincount(seen.flatten(), minlength=8) / seen.numel()
    expected = {"always the same": [], "each place": []}
    for b, n in (kinds == MASKED).nonzero().tolist():
        there = torch.bincount(seen[:, n], minlength=8) / len(seen)
        for name, share in (("always the same", shares), ("each place", there)):
            right = float(share.argmax() == colours[b, n])
            expected[name].append([-(share + 1e-6)[colours[b, n]].log().item(), right])
    for name, numbers in expected.items():
        loss, right = torch.tensor(numbers).mean(dim=0).tolist()
        assert table[name]["loss"] == pytest.approx(loss, rel=1e-3)
        assert table[name]["accuracy"] == pytest.approx(right)


def test_mean_of_neighbours_against_a_slow_loop():
    images = torch.randint(0, 256, (6, 2, 8, 12), dtype=torch.uint8, generator=generator())
    kinds, _ = draw_corruption(6, 24, generator(1))
    kinds[0], kinds[0, 23] = MASKED, INTACT  # one intact patch, far from most
    found = mean_of_neighbours(images, kinds, 2)
    assert found.shape == (6, 2, 4, 6) and found.dtype == torch.uint8
    means = images.double().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))  # (6, 2, 4, 6)
    intact = (kinds == INTACT).view(6, 4, 6)
    for b in range(6):
        for row in range(4):
            for col in range(6):
                if intact[b, row, col]:
                    continue
                near = [
                    (y, x)
                    for y in range(max(0, row - 1), min(4, row + 2))
                    for x in range(max(0, col - 1), min(6, col + 2))
                    if intact[b, y, x]
                ] or intact[b].nonzero().tolist()
                expected = torch.stack([means[b, :, y, x] for y, x in near]).mean(dim=0)
                assert (found[b, :, row, col] - expected.floor()).abs().max() <= 0.5


# The experiment


def test_few_labels_compares_both_sides_alike(digits, monkeypatch):
    calls, looks = [], []

    def watched(start, data, few, steps, lr, seed):
        calls.append((len(few), steps, lr, few.labels.tolist(), start))
        return fine_tune(start, data, few, steps, lr, seed)

    def test_alone(model, data, split):
        looks.append(split)
        return 0.0, 0.5

    monkeypatch.setattr(masked, "fine_tune", watched)
    monkeypatch.setattr(masked, "evaluate", test_alone)
    lrs = [1e-3, 5e-3]
    result = few_labels("digits", [2, 3], pretrain_steps=4, steps=2, seed=1, lrs=lrs,
                        model=dict(embed_dim=16, depth=1))  # fmt: skip
    assert json.loads(json.dumps(result)) == result
    assert [(n, lr) for n, _, lr, _, _ in calls] == [(n, lr) for n in (20, 30) for _ in "ab"
                                                     for lr in lrs]  # fmt: skip
    assert calls[0][3] == calls[2][3] and sorted(calls[0][3]) == [
        k for k in range(10) for _ in "ab"
    ]
    assert calls[0][4] is not calls[2][4] and looks == ["test"] * 4
    for side in ("scratch", "pretrained"):
        assert set(result[side]) == {"2", "3"}
        for row in result[side].values():
            assert set(row["tried"]) == {"0.001", "0.005"} and row["test"] == 0.5
            assert row["validation"] == max(row["tried"].values()) == row["tried"][f"{row['lr']:g}"]
    assert result["curve"][-1]["step"] == 4


def test_fine_tuning_takes_so_many_steps_of_64_and_leaves_the_start(digits, monkeypatch):
    seen = []

    def fit(model, data, config):
        seen.append((data.train, config.epochs, config.batch_size))
        assert data.test is few and data.validation is digits.validation
        return original(model, data, config)

    original = masked.fit
    monkeypatch.setattr(masked, "fit", fit)
    start = tiny_vit()
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    few = Split(digits.train.images[:30], digits.train.labels[:30])
    model, accuracy = fine_tune(start, digits, few, steps=5, lr=5e-3, seed=0)
    ((train, epochs, batch_size),) = seen
    assert (len(train), epochs, batch_size) == (320, 1, 64) and 0 <= accuracy <= 1
    assert torch.equal(train.images[60:90], few.images)
    assert torch.equal(train.labels[300:320], few.labels[:20])
    after = model.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in start.state_dict().items())
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_points_are_arguments_that_the_function_takes():
    import inspect

    for function, arguments in masked.POINTS.values():
        assert function == "lab.masked_patches.few_labels"
        assert json.loads(json.dumps(arguments)) == arguments
        inspect.signature(few_labels).bind(**arguments)
