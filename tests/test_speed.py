"""lab/speed.py and benchmarks/gpu.py, on a CPU and all tiny."""

import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers import training
from helpers.data import Split, load
from helpers.model import VisionTransformer, create_vit
from helpers.scale.streaming import FileSplit
from helpers.training import TrainConfig, fit
from lab import speed
from tests.notebook_rules import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import streaming

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=16, device="cpu", precision="float32", epochs=1)


@pytest.fixture(scope="module")
def few():
    """70 digits to learn from: four batches of 16, and 6 images left over."""
    data = load("digits")
    return replace(data, train=Split(data.train.images[:70], data.train.labels[:70]))


def tiny(**changes):
    torch.manual_seed(0)
    sizes = dict(img_size=8, embed_dim=16, depth=2, num_heads=2) | changes
    return VisionTransformer(patch_size=2, in_chans=1, num_classes=10, **sizes)


def test_a_race_times_everyone_in_turns_and_the_clock_waits_for_the_device(monkeypatch):
    clock, calls = iter([7.0, 7.25]), []
    with monkeypatch.context() as patch:
        patch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        assert speed.seconds(lambda: calls.append("work"), CPU) == 0.25
    assert calls.pop() == "work"
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = speed.race(works, 3, CPU)
    assert calls == list("abcbcacab") and all(len(t) == 3 for t in times.values())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    speed.seconds(works["a"], torch.device("cuda"))
    assert calls[9:] == ["wait", "a", "wait"]


def by_formula(model, K):
    """Operations of a training step for one image, from the sizes."""
    C, H, W = model.patch_embed.input_shape
    N, P2C = model.patch_embed.num_patches, model.patch_embed.proj.weight[0].numel()
    T, D = model.pos_embed.shape[1:]
    M = model.blocks[0].mlp.fc1.out_features
    blocks = len(model.blocks) * (T * (4 * D * D + 2 * D * M) + 2 * T * T * D)
    return 6 * (N * P2C * D + blocks + D * K) - 2 * N * P2C * D  # pixels get no gradient


def test_operations_are_those_of_the_formula_and_of_the_paper_s_size():
    model = tiny(global_pool="avg", img_size=(8, 12))
    assert speed.training_flops(model) == by_formula(model, 10)
    assert {p.device.type for p in model.parameters()} == {"cpu"}  # the model itself stays
    with torch.device("meta"):
        model = create_vit("B/16")
    assert speed.training_flops(model) == by_formula(model, 1000)
    assert speed.training_flops(model) / 6e9 == pytest.approx(17.564, rel=0.003)  # GMAC


def test_the_peak_is_the_operations_over_the_best_time(monkeypatch):
    times = iter([3.0, 2.0, 4.0])
    monkeypatch.setattr(speed, "seconds", lambda work, device: work() or next(times))
    assert speed.matmul_peak(CPU, "float32", side=8, rounds=3) == 2 * 8**3 / 2.0


def test_a_step_and_its_peak_are_of_one_precision(few, monkeypatch):
    asked = []

    def peak(device, precision, side=None):
        asked.append(precision)
        return {"float32": 1e6, "bfloat16": 4e6}[precision]

    monkeypatch.setattr(speed, "matmul_peak", peak)
    for rung in speed.ladder(tiny, few, CONFIG, CPU, steps=1, rounds=1):
        mfu, of = speed.utilisation(rung, 1000, CPU)
        assert mfu == 1000 * rung["images_per_second"] / of
    assert asked == ["float32"] * 3 + ["bfloat16"] * 2  # as LADDER says, without compiling


def test_the_loop_that_is_timed_is_that_of_fit(few, monkeypatch):
    """Four steps give the weights of an epoch of fit on 64 images, bit for bit."""
    data = replace(few, train=Split(few.train.images[:64], few.train.labels[:64]))
    config = replace(CONFIG, policy="trivial", mixup=0.3, cutmix=0.3, erase=0.3, seed=3)
    monkeypatch.setattr(training, "learning_rate", lambda *_: 1e-4)
    ours, theirs = tiny(), tiny()
    speed.training_work(ours, data, config, CPU, steps=4)()
    fit(theirs, data, config)
    for a, b, new in zip(*(m.parameters() for m in (ours, theirs, tiny())), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, new)


def test_switches_change_the_speed_and_not_the_weights(few):
    def trained(**switches):
        model = tiny()
        speed.training_work(model, few, CONFIG, CPU, steps=3, **switches)()
        return torch.nn.utils.parameters_to_vector(model.parameters())

    usual = trained()
    assert not torch.equal(usual, torch.nn.utils.parameters_to_vector(tiny().parameters()))
    for switches in (speed.PLAIN, {"resident": False}, {"wait": True}, {"fused": False}):
        torch.testing.assert_close(trained(**switches), usual, rtol=1e-4, atol=1e-6)


def test_batches_never_end_and_are_full(few):
    batches = speed.endless(few, CONFIG, CPU)
    drawn = [next(batches) for _ in range(9)]  # more than two epochs
    assert all(x.shape == (16, 1, 8, 8) and x.dtype == torch.float32 for x, _ in drawn)
    assert not torch.equal(drawn[0][1], drawn[4][1])  # another order in the second epoch
    with pytest.raises(ValueError, match="70 training images do not make a batch of 128"):
        next(speed.endless(few, replace(CONFIG, batch_size=128), CPU))
    nothing = replace(few, train=Split(few.train.images[:0], few.train.labels[:0]))
    with pytest.raises(ValueError, match="0 training images do not make a batch of 16"):
        speed.ladder(tiny, nothing, CONFIG, CPU)


def test_each_rung_keeps_the_switches_before_it_and_ratios_are_of_images(few, monkeypatch):
    seen = []

    def work(model, data, config, device, steps, **switches):
        seen.append((config.batch_size, steps, switches))
        assert not model.train().blocks[-1].attn(torch.ones(1, 17, 16)).any()  # always left out

    config = replace(CONFIG, drop_path=1 - 1e-9)
    monkeypatch.setattr(speed, "training_work", work)
    monkeypatch.setattr(speed, "seconds", lambda work, device: 2.0)  # every round
    rungs = speed.ladder(tiny, few, config, CPU, large=(64,), steps=2, rounds=3, compile=True)
    on = dict(resident=True, wait=False, precision="bfloat16", fused=True, compile=True)
    assert [rung["name"] for rung in rungs] == [*speed.LADDER, "+ batch of 64"]
    assert [rung["batch_size"] for rung in rungs] == [16] * len(speed.LADDER) + [64]
    assert seen[0] == (16, 2, speed.PLAIN) and seen[-2:] == [(16, 2, on), (64, 1, on)]
    for before, after in zip(seen[:-2], seen[1:-1], strict=True):
        assert sum(before[2][key] != after[2][key] for key in on) == 1
    assert rungs[0]["images_per_second"] == 16 and rungs[0]["over_first"] == 1
    assert rungs[-1]["images_per_second"] == 32 and rungs[-1]["over_first"] == 2  # a step of 64


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_kept_is_what_the_sizes_say(fused):
    for side, batch in ((8, 2), (16, 5)):
        model = tiny(img_size=side)
        kept = speed.saved_bytes(model, torch.zeros(batch, 1, side, side), fused=fused)
        assert kept == pytest.approx(speed.expected_bytes(model, batch, fused), rel=1e-3)
    assert speed.peak_bytes(lambda: pytest.fail("must not run"), CPU) is None  # it does not count


def test_an_operation_s_kind_is_its_region_s_or_its_name_s():
    def event(name, outer=None):
        return SimpleNamespace(name=name, cpu_parent=outer)

    for name, kind in {
        "aten::addmm": "matrix products",
        "aten::convolution_backward": "matrix products",
        "aten::_scaled_dot_product_flash_attention": "attention",
        "aten::_softmax_backward_data": "attention",
        "aten::_log_softmax": "rest",  # the loss
        "aten::native_layer_norm_backward": "norm",
        "aten::gelu_backward": "GELU",
        "aten::_fused_adamw_": "optimizer",
        "aten::copy_": "copies",
        "triton_poi_fused_gelu_native_layer_norm_0": "compiled",
    }.items():
        assert speed.kind_of(event(name)) == kind
    step = event("Optimizer.step#AdamW.step")
    assert speed.kind_of(event("aten::mul", step)) == "optimizer"
    assert speed.kind_of(event("aten::bmm", event("x", event("augmentation")))) == "augmentation"


def test_time_is_found_for_all_that_a_step_does(few):
    work = speed.training_work(tiny(), few, replace(CONFIG, ema=0.9), CPU, steps=2)
    began = time.perf_counter()
    times = speed.time_by_kind(work, CPU)
    took = time.perf_counter() - began
    assert set(times) == {*speed.KINDS, "augmentation", "rest"} - {"compiled"}
    for kind in set(times) - {"rest", "copies"}:
        assert times[kind] > 0, kind
    assert sum(times.values()) < 2 * took  # seconds: nested operations do not count twice


# benchmarks/streaming.py


@pytest.mark.parametrize("count, size, workers", [(10, 4, 0), (10, 4, 2), (3, 4, 0), (1, 8, 3)])
def test_images_a_second_are_of_whole_batches_also_beyond_a_split_s_end(
    count, size, workers, monkeypatch
):
    now, asked = [0.0], []

    def read(batches):
        for numbers in batches:
            asked.append(numbers.tolist())
            now[0] += 0.5 * len(numbers)
            yield numbers, numbers

    monkeypatch.setattr(streaming, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    split = type("S", (), {"__len__": lambda _: count, "reader": lambda *_, **__: read})()
    found = streaming.images_per_second(split, batch_size=size, workers=workers, limit=9)
    assert found == pytest.approx(2)
    assert {len(batch) for batch in asked} == {size}  # whole, however small the split
    assert sum(asked, []) == [i % count for i in range(len(asked) * size)]
    assert (len(asked) - max(1, workers)) * size >= 9  # those before the clock starts left out


def test_an_empty_split_has_no_speed():
    with pytest.raises(ValueError, match="the split is empty: there is nothing to measure"):
        streaming.images_per_second(FileSplit((), torch.zeros(0), 8), batch_size=4, workers=0)


# benchmarks/gpu.py


def run(part, folder, *more):
    gpu.main([part, "--device", "cpu", "--quick", "--json-dir", str(folder), *more])
    return json.loads((folder / f"gpu_{part}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", ["ladder", "memory", "profile", "vit_b16"])
def test_a_part_that_measures_writes_one_file(tmp_path, part):
    result = run(part, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"gpu_{part}.json"]
    assert result["whole"] and result["quick"] and result["rows"] and result["device"]
    assert result["command"].startswith(f"python benchmarks/gpu.py {part} --device cpu --quick")
    if part == "ladder":
        row = result["rows"][-1]
        assert row["name"] == "+ batch of 64" and len(result["rows"]) == 2 * 6  # no compiling
        assert row["precision"] == "bfloat16"
        used = row["images_per_second"] * result["flops_per_image"] / row["peak_operations"]
        assert row["mfu"] == pytest.approx(used)


def test_the_recipes_take_turns_and_are_summed_up(tmp_path):
    result = run("cifar", tmp_path, "--seeds", "2")
    runs = [(row["recipe"], row["config"]["seed"]) for row in result["rows"]]
    assert runs == [("full", 0), ("published", 0), ("full", 1), ("published", 1)]
    assert result["whole"] and result["seeds"] == [0, 1] and result["target"] == 0.9
    for row, kind in zip(result["summary"], ("full", "published"), strict=True):
        found = [run["test_accuracy"] for run in result["rows"] if run["recipe"] == kind]
        assert row["mean"] == pytest.approx(sum(found) / 2)
        assert row["std"] == pytest.approx(abs(found[0] - found[1]) / 2**0.5)


def test_a_part_goes_on_where_it_was_cut_short_but_not_with_other_settings(tmp_path, capsys):
    first = run("fashion", tmp_path, "--seeds", "1")["rows"]
    run("fashion", tmp_path, "--minutes=0")
    assert "the same command goes on here" in capsys.readouterr().out
    again = run("fashion", tmp_path, "--seeds", "2")
    assert again["rows"][0] == first[0] and len(again["rows"]) == 2 and again["whole"]
    assert "recorded already" in capsys.readouterr().out
    path = tmp_path / "gpu_fashion.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"lr": 0.0', '"lr": 0.1'), encoding="utf-8"
    )
    assert run("fashion", tmp_path, "--seeds", "1")["rows"][0]["config"] == first[0]["config"]


def test_seconds_to_a_target():
    records = [SimpleNamespace(seconds=s, validation_accuracy=a)
               for s, a in ((1.0, 0.5), (2.0, 0.9), (3.0, 0.8))]  # fmt: skip
    found = [gpu.seconds_to(records, target) for target in (0.9, 0.5, 0.95, None)]
    assert found == [2, 1, None, None]


def test_quick_numbers_never_land_among_the_results(capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main(["ladder", "--device", "cpu", "--quick"])
    assert stop.value.code == 2 and "--json-dir" in capsys.readouterr().err
