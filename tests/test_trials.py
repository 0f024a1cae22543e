"""What is tried, what is chosen, what the test images see and when, and what is recorded of it."""

import concurrent.futures
import inspect
import json
import pydoc
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.data import Split
from lab import task_trials, trials
from lab.parts import PARTS, ReadFirstPatch
from lab.task_trials import POINTS, SETTINGS, build_for, task_trial
from lab.tasks import make_task
from lab.trials import build, images_of, records, size_of, sizes_of, trial
from tests.notebook_rules import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import experiments

SMALL = dict(model=dict(embed_dim=8, depth=1, num_heads=2), steps=24, lrs=(1e-4, 3e-3))
FACTS = "experiment point function arguments device torch_threads versions date seconds command"


@pytest.fixture
def few(monkeypatch):
    """Every data set is 200 digits."""
    few = images_of("digits", train=200)
    monkeypatch.setattr(trials, "whole", lambda name: few)
    return few


@pytest.fixture
def watched(monkeypatch):
    """What is done, in order: (config, data) of each training, "test" for each look at them."""
    events, fit, evaluate = [], trials.fit, trials.evaluate

    def watched_fit(model, data, config):
        assert data.test is data.validation and "test" not in events
        events.append((config, data))
        return fit(model, data, config)

    def watched_evaluate(model, data, split):
        events.append(split)
        return evaluate(model, data, split)

    for module in (trials, task_trials):
        monkeypatch.setattr(module, "evaluate", watched_evaluate)
    monkeypatch.setattr(trials, "fit", watched_fit)
    return events


def test_a_subset_holds_every_class_alike_and_depends_on_its_seed():
    one, again, other = (images_of("digits", 103, 50, subset_seed=seed) for seed in (0, 0, 1))
    assert torch.bincount(one.train.labels).tolist() == [11] * 3 + [10] * 7
    assert len(one.validation) == 50 and not one.flip
    assert torch.equal(again.train.images, one.train.images)
    assert not torch.equal(other.train.images, one.train.images)
    numbers = torch.arange(300)
    chosen = trials.some_of_each(Split(numbers, numbers % 10), 103, 10, seed=0)
    assert torch.equal(chosen.images % 10, chosen.labels) and len(chosen.images.unique()) == 103
    with pytest.raises(ValueError, match="5000 images asked for"):
        images_of("digits", train=5000)


def test_one_order_for_the_patches_of_all_images_and_splits():
    def patches(images):
        return images.unfold(2, 2, 2).unfold(3, 2, 2).reshape(len(images), 16, 4)

    numbered = torch.arange(16).view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    order = patches(trials.in_one_order(numbered, 2))[0, :, 0].long()
    assert sorted(order.tolist()) == list(range(16)) != order.tolist()
    plain, mixed = images_of("digits"), images_of("digits", shuffled=True)
    for part in ("train", "validation", "test"):
        before, after = getattr(plain, part).images, getattr(mixed, part).images
        assert torch.equal(patches(after), patches(before)[:, order])


def test_sizes_seed_change_and_removed_decide_the_model():
    data, sizes = images_of("digits"), sizes_of("digits", dict(depth=2))
    one, same, other = (build(data, sizes, seed=seed) for seed in (0, 0, 1))
    lesser = build(data, sizes, {"name": "relu"}, ["positions", "class token"])
    weights = [model.blocks[1].mlp.fc2.weight for model in (one, same, lesser, other)]
    assert [torch.equal(weights[0], found) for found in weights] == [True, True, True, False]
    assert isinstance(lesser.blocks[1].mlp.act, torch.nn.ReLU)
    assert lesser.cls_token is None and not lesser.pos_embed.any()
    D, L, N, M = 48, 2, 17, 96
    assert size_of(one, (1, 8, 8)) == {
        "parameters": 5 * D + N * D + D + L * (4 * D * D + 2 * D * M + 9 * D + M) + 12 * D + 10,
        "multiply_adds": 64 * D + L * (N * (4 * D * D + 2 * D * M) + 2 * N * N * D) + 10 * D,
    }


def test_the_two_models_that_compete_are_equally_large():
    data = replace(images_of("digits"), train=Split(torch.zeros(1, 1, 28, 28), torch.zeros(1)))
    models = [build(data, sizes_of("fashion-mnist", model)) for model in ({}, {"resnet": 16})]
    assert [size_of(m, (1, 28, 28))["parameters"] for m in models] == [79_690, 77_754]
    block, x = models[1].blocks[0], torch.randn(2, 16, 14, 14)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(x), x.relu())  # the way around


def test_the_best_mean_of_the_accuracies_after_the_last_step_is_chosen(few, monkeypatch):
    found = {9: [0.0, 0.9], 1e-3: [0.4, 0.6], 3e-3: [0.6, 0.5], 2: [0.5, 0.6]}
    lr, tried = trials.tune(found.get, list(found))
    assert lr == 3e-3 and list(tried.items())[:2] == [("9", [0.0, 0.9]), ("0.001", [0.4, 0.6])]
    assert trials.tune(found.get, [2, 3e-3])[0] == 2  # of equals the first
    epochs = [SimpleNamespace(validation_accuracy=accuracy) for accuracy in (0.9, 0.7)]
    monkeypatch.setattr(trials, "fit", lambda *_: SimpleNamespace(epochs=epochs, interrupted=False))
    assert trials.validated(None, few, lr=0.1) == 0.7


def test_a_trial_chooses_on_validation_and_tests_that_alone(few, watched):
    result = trial("digits", **SMALL, training=dict(zoom=0.1), tune_seeds=(0, 1), seeds=(0, 1, 2))
    runs = [(config.lr, config.seed) for config, _ in watched[:-3]]
    assert sorted(runs) == [(1e-4, 0), (1e-4, 1), (3e-3, 0), (3e-3, 1), (3e-3, 2)]
    assert watched[-3:] == ["test"] * 3 and len(result["test"]) == 3
    config, data = watched[0]
    assert (config.batch_size, config.zoom, config.shift, len(data.train)) == (64, 0.1, 0, 1400)
    assert result["lr"] == 3e-3 and result["validation"][:2] == result["tried"]["0.003"]
    assert result["images"] == {"train": 200, "validation": 144, "test": 360}
    assert json.loads(json.dumps(result)) == result


def test_all_are_tested_where_that_is_asked_for_the_same_each_time(few):
    result = trial("digits", **SMALL, seeds=(0, 1), test_all=True)
    assert list(result["tested_all"]) == list(result["tried"]) == ["0.0001", "0.003"]
    assert result["tested_all"]["0.003"] == result["test"] and len(result["tried"]["0.0001"]) == 2
    again, other = (trial("digits", **SMALL, seeds=seeds, tune_seeds=seeds) for seeds in ([1], [2]))
    assert again["test"] == result["test"][1:] and other["tried"] != again["tried"]


def test_tuning_may_be_shorter_and_a_run_that_fails_counts_as_nothing(few, monkeypatch):
    seen, fit = [], trials.fit

    def failing(model, data, config):
        seen.append((config.lr, config.epochs, len(data.train), data.train.images.sum().item()))
        if config.lr == 3e-3:
            raise FloatingPointError
        return fit(model, data, config)

    monkeypatch.setattr(trials, "fit", failing)
    how = SMALL | dict(steps=66, tune_steps=22, images=dict(train=100))  # 13 times: 21 batches
    result = trial("digits", **how, seeds=(1,))
    assert [run[:3] for run in seen] == [(1e-4, 1, 1300), (3e-3, 1, 1300), (1e-4, 3, 1300)]
    assert seen[0][3] == seen[1][3] != seen[2][3]  # a seed has images of its own
    assert result["tried"]["0.003"] == [0.0] and result["lr"] == 1e-4
    assert trial("digits", **(how | dict(lrs=(3e-3,))))["test"] == [0.0] * 3


def test_a_trial_that_is_stopped_is_no_trial(few, monkeypatch):
    stopped = SimpleNamespace(interrupted=True, epochs=[SimpleNamespace(validation_accuracy=0.5)])
    monkeypatch.setattr(trials, "fit", lambda *_: stopped)
    with pytest.raises(KeyboardInterrupt):
        trial("digits", **SMALL)


def test_a_task_trial_has_images_of_its_own_for_each_seed(watched, monkeypatch):
    few = replace(SETTINGS["place"], train=128, epochs=2, depth=1)
    monkeypatch.setitem(SETTINGS, "place", few)
    how = dict(removed="positions", seeds=(3, 4), lrs=(1e-5, 1e-2))
    result = task_trial("place", **how)
    runs = [(config.lr, config.seed) for config, _ in watched[:-2]]
    assert runs == [(1e-5, 3), (1e-2, 3), (result["lr"], 4)]
    first, second, other = (data.train.images for _, data in watched[:-2])
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert watched[-2:] == ["test"] * 2 and len(result["test"]) == len(result["validation"]) == 2
    assert (watched[0][0].epochs, watched[0][0].label_smoothing, watched[0][0].shift) == (2, 0, 0)
    best = max(result["tried"].values())
    assert best == result["tried"][f"{result['lr']:g}"] == result["validation"][0]
    assert (result["chance"], result["steps"]) == (0.25, 4)
    watched.clear()
    assert task_trial("place", **how) == result
    monkeypatch.setattr(task_trials, "validated", lambda *a, **settings: 0.0)
    whole = task_trial("place", [])
    assert whole["test"] == [0.0] * 3  # as if the loss were no number
    assert whole["parameters"] - result["parameters"] == 16 * 32  # those that learn
    with pytest.raises(ValueError, match="'depth' is unknown, there are: place, alike"):
        task_trial("depth")


def test_every_point_of_the_tasks_is_a_model_of_its_own():
    seen = {}
    for name, (_, arguments) in POINTS.items():
        data = make_task(SETTINGS[arguments["task"]].task, 8, 8)
        removed = [arguments["removed"]] if arguments["removed"] in PARTS else arguments["removed"]
        model = build_for(arguments["task"], data, removed or (), arguments.get("global_pool"))
        torch.manual_seed(1)
        torch.nn.init.normal_(model.head.weight)
        seen[name] = model(torch.randn(2, *data.train.image_shape))
        whole = seen[f"{arguments['task']}_whole"]
        # One token looks at itself alone and is its own mean: there the two parts do nothing.
        same = name.endswith("whole") or name in ("by_heart_heads", "by_heart_class_token")
        assert torch.allclose(seen[name], whole, atol=1e-4) == same, name
    assert len(seen) == 8 * 9 - 5 + 3
    assert not torch.allclose(seen["which_token"], seen["which_class_token"])
    model = build_for("two_addresses", make_task("two_addresses", 8, 8))
    assert len(model.blocks) == 1 and isinstance(model, ReadFirstPatch)  # what the setting lacks


@pytest.fixture
def quick(monkeypatch):
    """Two experiments of the same two quick points."""
    table = dict.fromkeys(("one", "two"), ("builtins.dict", {"test": [0.5, 0.7]}))
    both = {"first": lambda: table, "second": lambda: table}
    monkeypatch.setattr(experiments, "EXPERIMENTS", both)
    return table


def stay_here(monkeypatch):
    """Points run one after the other in this process."""
    one_thread = lambda processes, mp_context: concurrent.futures.ThreadPoolExecutor(1)  # noqa: E731
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", one_thread)


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_point_can_be_called_and_every_record_is_what_the_table_asks_for(name):
    points, found = experiments.EXPERIMENTS[name](), records(name)
    assert set(found) == set(points) and not experiments.missing(name, experiments.RESULTS)
    for label, (place, arguments) in points.items():
        inspect.signature(pydoc.locate(place)).bind(**arguments)
        record = found[label]
        assert set(FACTS.split()) <= set(record) and record["arguments"] == arguments
        assert (record["experiment"], record["point"], record["torch_threads"]) == (name, label, 1)
        if "test" in record:
            if "seed" in arguments:  # one seed a point
                found_there = [record["test"]]
            else:
                found_there = record["test"]
                least = 5 if arguments.get("data") == "digits" else 3
                assert len(found_there) == len(arguments["seeds"]) >= least
            assert all(0 <= accuracy <= 1 for accuracy in found_there)


def test_a_point_is_run_once(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trials, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="python benchmarks/experiments.py first"):
        records("first")
    where = ["--json-dir", str(tmp_path)]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # whatever it says
    experiments.main(["first", *where, "--processes", "1"])
    record = records("first")["two"]
    assert set(FACTS.split()) <= set(record) and record["test"] == [0.5, 0.7]
    assert record["command"] == "python benchmarks/experiments.py first"
    assert record["torch_threads"] == 1 and not (tmp_path / "second").exists()
    stay_here(monkeypatch)
    (tmp_path / "first" / "two.json").unlink()
    before = (tmp_path / "first" / "one.json").stat().st_mtime_ns
    experiments.main(where)
    experiments.main(["all", *where])
    assert (tmp_path / "first" / "one.json").stat().st_mtime_ns == before
    assert len(list(tmp_path.glob("*/*"))) == 4
    experiments.main(["first", "--show", *where])
    printed = capsys.readouterr().out
    assert "first                  1 of   2 recorded" in printed
    assert "test 60.00% +- 14.14% over 2 seeds" in printed


def test_what_is_whole_is_left_and_other_tables_refused(quick, tmp_path, monkeypatch, capsys):
    stay_here(monkeypatch)
    quick["two"] = ("sys.exit", {})  # stops with no Exception, as Ctrl-C does
    with pytest.raises(SystemExit):
        experiments.main(["first", "--json-dir", str(tmp_path)])
    assert [file.name for file in tmp_path.glob("*/*")] == ["one.json"]
    quick["one"] = (quick["one"][0], {"test": [0.6]})
    with pytest.raises(ValueError, match="one.json was made with other arguments than first"):
        experiments.main(["first", "--json-dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        experiments.main(["third"])
    assert "unknown: third; there are: first, second" in capsys.readouterr().err
