"""lab/trials.py: what is tried, what is chosen, what the test images see, and when."""

import json
from dataclasses import replace

import pytest
import torch
from torchinfo import summary

import lab.trials as trials
from helpers.data import load
from lab.cnn import SmallResNet
from lab.trials import build, images_of, in_one_order, records, size_of, some_of_each, trial

SMALL = dict(model=dict(embed_dim=8, depth=1, num_heads=2), steps=24, lrs=(1e-4, 3e-3))


@pytest.fixture
def few(monkeypatch):
    """Every data set is 200 digits."""
    digits = load("digits")
    few = replace(digits, train=some_of_each(digits.train, 200, 10, 0))
    monkeypatch.setattr(trials, "whole", lambda name: few)
    return few


def test_a_trial_chooses_on_validation_and_tests_that_alone(few, monkeypatch):
    seen, fitted = [], []
    evaluate, fit = trials.evaluate, trials.fit

    def watched_evaluate(model, data, split):
        seen.append(split)
        return evaluate(model, data, split)

    def watched_fit(model, data, config):
        fitted.append((config.lr, config.seed))
        assert data.test is data.validation and len(data.train) == 1400  # 200, seven times
        return fit(model, data, config)

    monkeypatch.setattr(trials, "evaluate", watched_evaluate)
    monkeypatch.setattr(trials, "fit", watched_fit)
    result = trial("digits", **SMALL, tune_seeds=(0, 1), seeds=(0, 1, 2))
    assert sorted(fitted) == [(1e-4, 0), (1e-4, 1), (3e-3, 0), (3e-3, 1), (3e-3, 2)]
    assert result["lr"] == 3e-3
    assert sum(result["tried"]["0.003"]) > sum(result["tried"]["0.0001"])
    assert seen == ["test"] * 3 and len(result["test"]) == len(result["validation"]) == 3
    assert result["images"] == {"train": 200, "validation": 144, "test": 360}
    assert json.loads(json.dumps(result)) == result


def test_a_trial_repeats_itself_to_the_last_digit(few):
    first = trial("digits", **SMALL, seeds=(4,), tune_seeds=(4,))
    assert trial("digits", **SMALL, seeds=(4,), tune_seeds=(4,)) == first
    assert trial("digits", **SMALL, seeds=(5,), tune_seeds=(5,))["tried"] != first["tried"]


def test_all_are_tested_where_that_is_asked_for(few):
    result = trial("digits", **SMALL, seeds=(0, 1), test_all=True)
    assert set(result["tested_all"]) == {"0.0001", "0.003"}
    assert result["tested_all"]["0.003"] == result["test"]
    assert len(result["tried"]["0.0001"]) == 2


def test_tuning_may_be_shorter_and_a_run_that_fails_counts_as_nothing(few, monkeypatch):
    lengths, fit = [], trials.fit

    def watched_fit(model, data, config):
        lengths.append((config.lr, config.epochs))
        if config.lr == 3e-3:
            raise FloatingPointError
        return fit(model, data, config)

    monkeypatch.setattr(trials, "fit", watched_fit)
    how = SMALL | dict(steps=66, tune_steps=22)  # 22 batches are an epoch
    result = trial("digits", **how, seeds=(0,))
    assert lengths == [(1e-4, 1), (3e-3, 1), (1e-4, 3)]
    assert result["tried"]["0.003"] == [0.0] and result["lr"] == 1e-4


def test_a_subset_holds_every_class_alike_and_depends_on_its_seed():
    data = images_of("digits", train=103, validation=50)
    assert torch.bincount(data.train.labels).tolist() == [11] * 3 + [10] * 7
    assert len(data.validation) == 50 and not data.flip
    again, other = (images_of("digits", train=103, subset_seed=seed) for seed in (0, 1))
    assert torch.equal(again.train.images, data.train.images)
    assert not torch.equal(other.train.images, data.train.images)
    assert len({x.numpy().tobytes() for x in other.train.images}) > 100  # no image twice
    with pytest.raises(ValueError, match="5000 images asked for"):
        images_of("digits", train=5000)


def test_one_order_for_all_images_and_splits():
    plain, mixed = images_of("digits"), images_of("digits", shuffled=True)

    def patches(images):
        return images.unfold(2, 2, 2).unfold(3, 2, 2).reshape(len(images), 16, 4)

    numbered = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    numbered = numbered.repeat_interleave(2, 2).repeat_interleave(2, 3)
    order = patches(in_one_order(numbered, 2))[0, :, 0].long()
    assert sorted(order.tolist()) == list(range(16)) != order.tolist()
    for part in ("train", "validation", "test"):
        before, after = getattr(plain, part).images, getattr(mixed, part).images
        assert torch.equal(patches(after), patches(before)[:, order])


def test_size_is_what_torchinfo_counts():
    data = images_of("digits")
    model = build(data, "digits", {}, None, 0)
    found = size_of(model, (1, 8, 8))
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    D, L, N, M = 48, 4, 17, 96
    assert found["multiply_adds"] == (
        16 * 4 * D + L * (N * (4 * D * D + 2 * D * M) + 2 * N * N * D) + 10 * D
    )


def test_the_two_models_that_compete_are_equally_large():
    model = SmallResNet(1, 10, 16)
    vit = trials.VisionTransformer(28, 7, 1, 10, **trials.BASE)
    sizes = [size_of(m, (1, 28, 28))["parameters"] for m in (model, vit)]
    assert sizes == [77_754, 79_690]
    assert summary(model, (1, 1, 28, 28), verbose=0).total_params == 77_754
    assert model.blocks(torch.zeros(1, 16, 14, 14)).shape == (1, 64, 4, 4)
    resnet = build(images_of("digits"), "digits", {"resnet": 4}, None, 0)
    assert isinstance(resnet, SmallResNet) and resnet.head.in_features == 16


def test_the_way_around_a_residual_block():
    block = SmallResNet(1, 10, 8).blocks[0].eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(x), x.relu(), atol=1e-4, rtol=1e-4)


def test_seeds_and_changes_decide_the_weights():
    data = images_of("digits")
    one, same, other = (build(data, "digits", {}, None, seed) for seed in (0, 0, 1))
    changed = build(data, "digits", {}, {"name": "relu"}, 0)
    assert torch.equal(one.pos_embed, same.pos_embed)
    assert not torch.equal(one.pos_embed, other.pos_embed)
    assert torch.equal(one.pos_embed, changed.pos_embed)
    assert isinstance(changed.blocks[0].mlp.act, torch.nn.ReLU)


def test_records_are_read_by_experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "RESULTS", tmp_path)
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "digits_2.json").write_text('{"test": [0.5]}')
    assert records("depth") == {"digits_2": {"test": [0.5]}}
    with pytest.raises(FileNotFoundError, match="python benchmarks/experiments.py width"):
        records("width")
