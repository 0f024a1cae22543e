"""lab/masked_patches.py: masked patch prediction."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import lab.masked_patches as masked
from helpers.augmentation import normalize
from helpers.data import Split, load
from helpers.model import VisionTransformer
from lab import trials
from lab.masked_patches import INTACT, KEPT, MASKED, SWAPPED, draw_corruption, patch_targets
from tests.peers import randomize


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def first(data, n):
    """The data with n training images alone."""
    return replace(data, train=Split(data.train.images[:n], data.train.labels[:n]))


def tiny_vit(**changes):
    torch.manual_seed(0)
    sizes = dict(embed_dim=16, depth=1, num_heads=2, pos_embed_std=0.5) | changes
    return VisionTransformer(img_size=8, patch_size=2, in_chans=1, num_classes=10, **sizes)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("C", "H", "W", "P", "other"), [(1, 8, 8, 2, 3), (3, 6, 9, 3, 2)])
def test_targets_are_those_of_a_slow_loop(C, H, W, P, other):
    images = torch.randint(0, 256, (5, C, H, W), dtype=torch.uint8, generator=generator())
    images[0], images[1] = 0, 255
    found = patch_targets(images, P)
    assert found.shape == (5, H // P * (W // P)) and found.dtype == torch.int64
    for b, row, col in torch.cartesian_prod(*map(torch.arange, (5, H // P, W // P))).tolist():
        target = 0
        for channel in images[b, :, row * P : (row + 1) * P, col * P : (col + 1) * P]:
            target = 8 * target + channel.sum().item() // (32 * P * P)
        assert found[b, row * (W // P) + col] == target
    with pytest.raises(ValueError, match="uint8"):
        patch_targets(images.float(), P)
    with pytest.raises(ValueError, match=f"{H} x {W}.*patch_size is {other}"):
        patch_targets(images, other)


def test_half_is_corrupted_in_the_shares_of_the_paper():
    kinds, other = draw_corruption(5000, 16, generator())
    assert ((kinds != INTACT).sum(dim=1) == 8).all()
    counts = torch.bincount(kinds.flatten(), minlength=4) / (5000 * 8)  # sd below 0.002
    for kind, share in ((MASKED, 0.8), (SWAPPED, 0.1), (KEPT, 0.1)):
        assert counts[kind].item() == pytest.approx(share, abs=0.01)
    places = (kinds != INTACT).double().mean(dim=0)  # each place as often, sd 0.007
    torch.testing.assert_close(places, torch.full((16,), 0.5).double(), atol=0.04, rtol=0)
    assert (other - torch.arange(16)).remainder(16).unique().tolist() == list(range(1, 16))
    kinds, again, new = (draw_corruption(20, 9, generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(kinds, again) and not torch.equal(kinds, new)
    assert ((kinds != INTACT).sum(dim=1) == 4).all()  # 9 / 2, rounded down
    with pytest.raises(ValueError, match="1 patch an image: at least 2"):
        draw_corruption(3, 1, generator())


def test_tokens_are_replaced_as_drawn_and_the_hook_is_gone_afterwards():
    model, x, mask = randomize(tiny_vit()), torch.randn(2, 1, 8, 8), torch.randn(16)
    clean, logits = model.patch_embed(x), model(x)
    kinds = torch.tensor([INTACT, MASKED, SWAPPED, KEPT] * 8).view(2, 16)
    other = (torch.arange(16) + 5).remainder(16).expand(2, 16)
    with pytest.raises(RuntimeError, match="inside"), masked.corrupted(model, mask, kinds, other):
        changed = model.patch_embed(x)
        raise RuntimeError("inside")
    for b, n in torch.cartesian_prod(torch.arange(2), torch.arange(16)).tolist():
        expected = {MASKED: mask, SWAPPED: clean[b, other[b, n]]}.get(kinds[b, n].item())
        assert torch.equal(changed[b, n], clean[b, n] if expected is None else expected)
    assert torch.equal(model(x), logits) and not model.patch_embed._forward_hooks


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_guess_is_read_from_the_patch_s_own_token(pool):
    """With no blocks, a guess depends on its own patch and place, and on no other."""
    model = randomize(tiny_vit(depth=0, global_pool=pool))
    guesser, nothing = randomize(masked.Guesser(16, 1)), torch.zeros(1, 16, dtype=torch.long)
    x = torch.randn(1, 1, 8, 8)
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1  # patch 7, the last of the second row
    moved = guesser(model, changed, nothing, nothing) != guesser(model, x, nothing, nothing)
    assert moved.shape == (1, 16, 8)
    assert moved.any(dim=2)[0].nonzero().flatten().tolist() == [7]


def test_the_loss_is_of_the_corrupted_patches_alone(digits, monkeypatch):
    """At a learning rate of 0, step by step, in two passes, each in an order of its own."""
    few, model, guesser = first(digits, 50), randomize(tiny_vit()), randomize(masked.Guesser(16, 1))
    monkeypatch.setattr(masked, "Guesser", lambda *sizes: guesser)
    curve, _ = masked.pretrain(model, few, steps=4, lr=0.0, batch_size=30, seed=3)
    assert [point["step"] for point in curve] == [1, 2, 3, 4]
    drawn, points = generator(3), iter(curve)
    for _ in range(2):
        order = torch.randperm(50, generator=drawn)
        for x in few.train.images[order].split(30):  # 30 and 20 images
            kinds, other = draw_corruption(len(x), 16, drawn)
            chosen, colours, point = kinds != INTACT, patch_targets(x, 2), next(points)
            with torch.no_grad():
                logits = guesser(model, normalize(x, few), kinds, other)  # (b, 16, 8)
            losses = F.cross_entropy(logits.transpose(1, 2), colours, reduction="none")  # (b, 16)
            assert point["loss"] == pytest.approx(losses[chosen].mean().item(), rel=1e-5)
            right = (logits.argmax(dim=2) == colours)[chosen].double().mean().item()
            assert point["accuracy"] == pytest.approx(right)


def test_it_learns_real_digits_without_a_look_at_labels(digits):
    images = digits.train.images
    blind = replace(digits, train=Split(images, torch.full((len(images),), -1)))
    model = tiny_vit(embed_dim=32, depth=2, drop_rate=0.05)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    curve, guesser = masked.pretrain(model, blind, steps=200, lr=1e-2)
    assert curve[-1]["loss"] < 0.75 * curve[0]["loss"]
    stay = {name for name, new in model.state_dict().items() if torch.equal(before[name], new)}
    assert stay == {"head.weight", "head.bias"}
    assert guesser.mask.abs().min() > 0  # the [mask] embedding learns, too
    table = masked.held_out_guesses(model, guesser, blind, digits.validation.images)
    assert table["model"]["loss"] < table["each place"]["loss"] - 0.05
    assert table["model"]["accuracy"] > table["neighbours"]["accuracy"] + 0.05
    assert model.training


def test_the_seed_decides(digits):
    curves = []
    for seed in (0, 0, 1):
        model = tiny_vit(drop_rate=0.1)
        torch.manual_seed(len(curves))  # what was drawn before must not matter
        curves.append(masked.pretrain(model, digits, steps=3, seed=seed)[0])
    assert curves[0] == curves[1] != curves[2]


def test_points_end_with_the_last_step_and_bad_numbers_are_refused(digits):
    few, broken = first(digits, 9), tiny_vit()
    curve, _ = masked.pretrain(tiny_vit(), few, steps=45, batch_size=4)
    assert [point["step"] for point in curve] == [*range(2, 45, 2), 45]
    with pytest.raises(ValueError, match="steps is 0"):
        masked.pretrain(tiny_vit(), few, steps=0)
    torch.nn.init.constant_(broken.pos_embed, float("nan"))
    with pytest.raises(FloatingPointError, match="smaller lr than 0.003"):
        masked.pretrain(broken, few, steps=1)


def test_guesses_with_and_without_a_model_against_slow_loops(digits):
    images = digits.validation.images[:12]
    model, guesser = tiny_vit(drop_rate=0.5), masked.Guesser(16, 1)  # new: all colours alike
    table = masked.held_out_guesses(model, guesser, digits, images, seed=5)
    kinds, other = draw_corruption(12, 16, generator(5))
    colours, seen = patch_targets(images, 2), patch_targets(digits.train.images, 2)
    assert table["model"]["loss"] == pytest.approx(torch.tensor(8.0).log().item())
    expected = {"always the same": [], "each place": []}
    for b, n in (kinds == MASKED).nonzero().tolist():
        for name, those in (("always the same", seen.flatten()), ("each place", seen[:, n])):
            share = torch.bincount(those, minlength=8) / len(those)
            loss = -(share + 1e-6)[colours[b, n]].log().item()
            expected[name].append([loss, float(share.argmax() == colours[b, n])])
    for name, numbers in expected.items():
        loss, right = torch.tensor(numbers).mean(dim=0).tolist()
        assert table[name]["loss"] == pytest.approx(loss, rel=1e-3)
        assert table[name]["accuracy"] == pytest.approx(right)
    logits, drawn = masked.guess(model, randomize(guesser), digits, images, seed=5)
    with torch.no_grad():  # without dropout
        by_hand = guesser(model.eval(), normalize(images, digits), kinds, other)
    assert torch.equal(logits, by_hand) and torch.equal(drawn, kinds)


def test_mean_of_neighbours_against_a_slow_loop():
    images = torch.randint(0, 256, (6, 2, 8, 12), dtype=torch.uint8, generator=generator())
    kinds, _ = draw_corruption(6, 24, generator(1))
    kinds[0], kinds[0, 23] = MASKED, INTACT  # one intact patch, far from most
    found = masked.mean_of_neighbours(images, kinds, 2)
    assert found.shape == (6, 2, 4, 6) and found.dtype == torch.uint8
    means = images.double().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))  # (6, 2, 4, 6)
    kinds = kinds.view(6, 4, 6)
    for b, row, col in (kinds != INTACT).nonzero().tolist():
        intact = (kinds[b] == INTACT).nonzero().tolist()
        near = [(y, x) for y, x in intact if abs(y - row) <= 1 and abs(x - col) <= 1] or intact
        expected = torch.stack([means[b, :, y, x] for y, x in near]).mean(dim=0)
        assert (found[b, :, row, col] - expected.floor()).abs().max() <= 0.5


def test_few_labels_compares_both_sides_alike(monkeypatch):
    calls, looks, validations = [], [], iter([0.1, 0.3, 0.4, 0.2, 0.3, 0.1, 0.5, 0.7])

    def tuned(start, data, few, steps, lr, seed):
        calls.append((few, lr, start))
        return start, next(validations)

    def tested(model, data, split):
        looks.append((model, split))
        return 0.0, 0.25

    monkeypatch.setattr(masked, "fine_tune", tuned)
    monkeypatch.setattr(masked, "evaluate", tested)
    lrs, sizes = [1e-3, 5e-3], dict(embed_dim=16, depth=1)
    result = masked.few_labels("digits", [2, 3], 4, steps=2, seed=1, lrs=lrs, model=sizes)
    assert json.loads(json.dumps(result)) == result
    found = [(len(few), lr) for few, lr, _ in calls]
    assert found == [(n, lr) for n in (20, 30) for _ in "ab" for lr in lrs]
    (few, _, scratch), (same, _, pretrained) = calls[0], calls[2]
    assert torch.equal(few.images, same.images) and few.labels.bincount().tolist() == [2] * 10
    torch.manual_seed(1)
    new = VisionTransformer(8, 2, 1, 10, **(trials.BASE | sizes)).pos_embed
    assert torch.equal(scratch.pos_embed, new) and not torch.equal(pretrained.pos_embed, new)
    assert looks == [(scratch, "test"), (pretrained, "test")] * 2
    tried = {"0.001": 0.1, "0.005": 0.3}
    assert result["scratch"]["2"] == dict(lr=5e-3, tried=tried, validation=0.3, test=0.25)
    assert result["pretrained"]["2"]["lr"] == 1e-3 and result["pretrained"]["3"]["lr"] == 5e-3
    assert result["curve"][-1]["step"] == 4 and "neighbours" in result["guesses"]


def test_fine_tuning_takes_so_many_steps_of_64_and_leaves_the_start(digits, monkeypatch):
    seen, original = [], trials.fit

    def fit(model, data, config):
        seen.append((data.train, config.epochs, config.batch_size, config.lr, config.seed))
        assert data.validation is data.test is digits.validation
        return original(model, data, config)

    monkeypatch.setattr(trials, "fit", fit)
    start, few = tiny_vit(), first(digits, 30).train
    model, accuracy = masked.fine_tune(start, digits, few, steps=5, lr=5e-3, seed=2)
    ((train, *settings),) = seen
    assert (len(train), *settings) == (320, 1, 64, 5e-3, 2) and 0 <= accuracy <= 1
    assert torch.equal(train.images[60:90], few.images)
    assert torch.equal(train.labels[300:320], few.labels[:20])
    for now, before in zip(start.parameters(), tiny_vit().parameters(), strict=True):
        assert torch.equal(now, before)
    assert not torch.equal(model.head.weight, start.head.weight)
