"""lab/task_trials.py: the same training for all, validation decides, the test images come last."""

import json
from dataclasses import replace

import pytest
import torch

from lab import task_trials
from lab.parts import PARTS
from lab.task_trials import POINTS, SETTINGS, task_trial
from lab.tasks import TASKS, make_task
from lab.trials import build


@pytest.fixture
def small(monkeypatch):
    """place, learned from 128 images in two epochs."""
    setting = replace(SETTINGS["place"], train=128, epochs=2, depth=1)
    monkeypatch.setitem(SETTINGS, "place", setting)


def test_every_point_is_a_model_of_its_own():
    """All points of PROBES can be built, and a removal changes the answers."""
    seen = {}
    for name, (function, arguments) in PROBES.items():
        assert function == "lab.task_trials.probe" and json.loads(json.dumps(arguments)) == arguments
        data = make_task(SETTINGS[arguments["task"]].task, 8, 8)
        removed = arguments["removed"] or ()
        removed = [removed] if isinstance(removed, str) else removed
        model = build(arguments["task"], data, removed, arguments.get("global_pool"), seed=1)
        with torch.no_grad():
            torch.manual_seed(0)
            torch.nn.init.normal_(model.head.weight)
            seen[name] = model(torch.randn(2, *data.train.image_shape))
        assert seen[name].shape == (2, len(data.classes))
        whole = seen[f"{arguments['task']}_whole"]
        if arguments["removed"] and name not in ("by_heart_heads", "by_heart_class_token"):
            assert not torch.allclose(seen[name], whole, atol=1e-4), name
    assert len(seen) == len(PROBES) == 8 * 9 - 5 + 3
    # One token looks at itself alone and is its own mean: there the two parts do nothing.
    torch.testing.assert_close(seen["by_heart_heads"], seen["by_heart_whole"])
    torch.testing.assert_close(seen["by_heart_class_token"], seen["by_heart_whole"])


def test_every_task_is_named_with_parts_that_exist():
    for name, setting in SETTINGS.items():
        assert setting.task in TASKS
        assert set(setting.made_for) | set(setting.lacks) <= set(PARTS)
        assert setting.train % setting.batch_size == 0, name
    assert {part for s in SETTINGS.values() for part in s.made_for} == set(PARTS)


def test_a_setting_lacks_what_it_says():
    model = build("two_addresses", make_task("two_addresses", 8, 8))
    assert len(model.blocks) == 1 and type(model).__name__ == "FirstPatchReader"
    assert model.blocks[0].attn.num_heads == 4
    assert build("chain", make_task("chain", 8, 8), ["heads"]).blocks[2].attn.num_heads == 1


def test_probe_tunes_on_validation_and_tests_once(small, monkeypatch):
    looks, runs = [], []
    evaluate, fit = probes.evaluate, probes.fit

    def watched_evaluate(model, data, split):
        looks.append(split)
        return evaluate(model, data, split)

    def watched_fit(model, data, config):
        assert data.test is data.validation and not looks
        runs.append((config.lr, config.seed, data.train.images.sum().item()))
        return fit(model, data, config)

    monkeypatch.setattr(probes, "evaluate", watched_evaluate)
    monkeypatch.setattr(probes, "fit", watched_fit)
    result = probe("place", "positions", seeds=(3, 4), lrs=(1e-5, 1e-2))
    assert [run[:2] for run in runs] == [(1e-5, 3), (1e-2, 3), (result["lr"], 4)]
    assert runs[0][2] == runs[1][2] != runs[2][2]  # a seed has images of its own
    assert looks == ["test", "test"]
    assert max(result["tried"].values()) == result["tried"][f"{result['lr']:g}"]
    assert result["validation"][0] == result["tried"][f"{result['lr']:g}"]
    assert len(result["test"]) == len(result["validation"]) == 2
    assert result["chance"] == 0.25 and result["steps"] == 4
    assert json.loads(json.dumps(result)) == result


def test_the_better_rate_is_chosen_whatever_the_order(small, monkeypatch):
    class History:
        def __init__(self, accuracy):
            self.epochs = [type("Record", (), {"validation_accuracy": accuracy})]

    def pretend(model, data, config):
        if config.lr == 9:
            raise FloatingPointError
        return History({1: 0.4, 2: 0.6, 3: 0.5}[config.lr])

    monkeypatch.setattr(probes, "fit", pretend)
    result = probe("place", seeds=(0, 1), lrs=(9, 1, 2, 3))
    assert result["tried"] == {"9": 0.0, "1": 0.4, "2": 0.6, "3": 0.5} and result["lr"] == 2
    assert result["validation"] == [0.6, 0.6]
    broken = probe("place", "norm", seeds=(0, 1), lrs=(9,))
    assert broken["test"] == broken["validation"] == [0.0, 0.0]


def test_the_same_call_gives_the_same_numbers(small):
    first, second = (probe("place", seeds=(0,), lrs=(1e-2,)) for _ in range(2))
    assert first == second


def test_parameters_are_those_that_learn(small):
    whole = probe("place", seeds=(0,), lrs=(1e-2,))["parameters"]
    assert whole - probe("place", "positions", seeds=(0,), lrs=(1e-2,))["parameters"] == 16 * 32


def test_a_linear_map_knows_few_patterns_by_heart():
    """best_without of by_heart: logistic regression on the 512 patterns, to its end."""
    split = make_task("by_heart", 8192, 8).train
    patterns = {}
    for pattern, label in zip((split.images > 127).flatten(1), split.labels, strict=True):
        patterns[tuple(pattern.tolist())] = label.item()
    x, y = torch.tensor(list(patterns)).double() * 2 - 1, torch.tensor(list(patterns.values()))
    assert len(x) == 512
    weights = torch.zeros(17, 8, dtype=torch.float64, requires_grad=True)
    x = torch.cat([x, torch.ones(512, 1)], dim=1)
    optimizer = torch.optim.LBFGS([weights], max_iter=1000, tolerance_grad=1e-9)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weights, y)
        value.backward()
        return value

    optimizer.step(loss)
    knows = ((x @ weights).argmax(1) == y).double().mean().item()
    assert abs(knows - SETTINGS["by_heart"].best_without) < 0.006


def test_an_unknown_probe_is_refused():
    with pytest.raises(ValueError, match="'depth' is unknown, there are: place, alike"):
        probe("depth")
