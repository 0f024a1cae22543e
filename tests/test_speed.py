"""lab/speed.py, pictures/speed_charts.py and benchmarks/gpu.py, on a CPU and all tiny."""

import json
import math
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from torch import nn

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from helpers import training
from helpers.data import Split, load
from helpers.model import VisionTransformer, create_vit
from helpers.training import TrainConfig, fit
from lab import speed
from pictures import speed_charts
from tests.notebook_rules import ROOT
from tests.test_plotting import artists, assert_nothing_outside

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu

CPU = torch.device("cpu")
TINY = dict(
    img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=16, depth=2, num_heads=2
)
CONFIG = TrainConfig(batch_size=16, device="cpu", precision="float32", epochs=1)


@pytest.fixture(scope="module")
def few():
    """70 digits to learn from: four batches of 16, and 6 images left over."""
    data = load("digits")
    return replace(data, train=Split(data.train.images[:70], data.train.labels[:70]))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def tiny():
    torch.manual_seed(0)
    return VisionTransformer(**TINY)


# Clocks


def test_a_race_times_everyone_in_every_round_and_turns_the_order():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "abc"}
    times = speed.race(works, 3, CPU)
    assert order == list("abcbcacab") and all(len(t) == 3 for t in times.values())


def test_seconds_are_seconds():
    assert 0.05 <= speed.seconds(lambda: time.sleep(0.05), CPU) < 2


def test_the_clock_waits_for_the_device(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    speed.seconds(lambda: calls.append("work"), torch.device("cuda"))
    assert calls == ["wait", "work", "wait"]


# Operations


def by_formula(model, K):
    """Operations of a training step for one image, from the sizes."""
    C, H, W = model.patch_embed.input_shape
    N, P2C = model.patch_embed.num_patches, model.patch_embed.proj.weight[0].numel()
    T, D = model.pos_embed.shape[1:]
    M = model.blocks[0].mlp.fc1.out_features
    blocks = len(model.blocks) * (T * (4 * D * D + 2 * D * M) + 2 * T * T * D)
    return 6 * (N * P2C * D + blocks + D * K) - 2 * N * P2C * D


@pytest.mark.parametrize("sizes", [{}, {"global_pool": "avg"}, {"img_size": (8, 12)}], ids=str)
def test_operations_are_those_of_the_formula(sizes):
    model = VisionTransformer(**(TINY | sizes))
    assert speed.training_flops(model) == by_formula(model, 10)
    assert {p.device.type for p in model.parameters()} == {"cpu"}  # the model itself stays


def test_operations_of_vit_b16_are_those_that_the_paper_s_size_implies():
    with torch.device("meta"):
        model = create_vit("B/16")
    assert speed.training_flops(model) == by_formula(model, 1000)
    assert speed.training_flops(model) / 6e9 == pytest.approx(17.564, rel=0.003)  # GMAC


def test_the_peak_is_the_operations_over_the_best_time(monkeypatch):
    monkeypatch.setattr(speed, "seconds", lambda work, device: work() or 2.0)
    assert speed.matmul_peak(CPU, "float32", side=8) == 2 * 8**3 / 2.0


# The training loop that is timed


def test_the_loop_that_is_timed_is_that_of_fit(few, monkeypatch):
    """Four steps give the weights of an epoch of fit on 64 images, bit for bit."""
    data = replace(few, train=Split(few.train.images[:64], few.train.labels[:64]))
    config = replace(CONFIG, policy="trivial", mixup=0.3, cutmix=0.3, erase=0.3)
    monkeypatch.setattr(training, "learning_rate", lambda *_: 1e-4)
    ours, theirs = tiny(), tiny()
    speed.training_work(ours, data, config, CPU, steps=4)()
    fit(theirs, data, config)
    for a, b, new in zip(*(m.parameters() for m in (ours, theirs, tiny())), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, new)


@pytest.mark.parametrize(
    "switches", [speed.PLAIN, {"resident": False}, {"wait": True}, {"fused": False}], ids=str
)
def test_switches_change_the_speed_and_not_the_weights(few, switches):
    weights = []
    for how in ({}, switches):
        model = tiny()
        speed.training_work(model, few, CONFIG, CPU, steps=3, **how)()
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
    assert not torch.equal(weights[0], nn.utils.parameters_to_vector(tiny().parameters()))


def test_batches_never_end_and_are_full(few):
    batches = speed.endless(few, CONFIG, CPU)
    drawn = [next(batches) for _ in range(9)]  # more than two epochs
    assert all(x.shape == (16, 1, 8, 8) and len(y) == 16 for x, y in drawn)
    assert drawn[0][0].dtype == torch.float32
    assert not torch.equal(drawn[0][0], drawn[4][0])  # another order in the second epoch


def test_too_few_images_for_a_batch_are_refused(few):
    with pytest.raises(ValueError, match="70 training images do not make a batch of 128"):
        next(speed.endless(few, replace(CONFIG, batch_size=128), CPU))


def test_the_ladder_has_a_rung_for_each_switch(few):
    config = replace(CONFIG, drop_path=0.2, ema=0.9)
    rungs = speed.ladder(tiny, few, config, CPU, large=(32, 64), steps=2, rounds=2)
    names = [name for name in speed.LADDER if name != "+ torch.compile"]
    assert [rung["name"] for rung in rungs] == [*names, "+ batch of 32", "+ batch of 64"]
    assert [rung["batch_size"] for rung in rungs] == [16] * len(names) + [32, 64]
    assert rungs[0]["over_first"] == 1
    for rung in rungs:
        assert rung["images_per_second"] > 0 and rung["first_seconds"] > 0


def test_ratios_are_of_images_not_of_rounds(few, monkeypatch):
    """Every round takes a second: then only the number of its images counts."""
    monkeypatch.setattr(speed, "seconds", lambda work, device: 1.0)
    rungs = speed.ladder(tiny, few, CONFIG, CPU, large=(64,), steps=2, rounds=3)
    assert rungs[0]["images_per_second"] == 32 and rungs[0]["over_first"] == 1
    assert rungs[-1]["images_per_second"] == 64 and rungs[-1]["over_first"] == 2  # one step of 64


def test_each_rung_keeps_the_switches_before_it(few, monkeypatch):
    seen = []

    def work(model, data, config, device, steps, **switches):
        seen.append((config.batch_size, steps, switches))
        return lambda: time.sleep(1e-4)

    monkeypatch.setattr(speed, "training_work", work)
    speed.ladder(tiny, few, CONFIG, CPU, large=(64,), steps=8, rounds=1, compile=True)
    on = dict(resident=True, wait=False, precision="bfloat16", fused=True, compile=True)
    assert seen[0] == (16, 8, speed.PLAIN) and seen[-2:] == [(16, 8, on), (64, 2, on)]
    for before, after in zip(seen[:-2], seen[1:-1], strict=True):
        changed = [key for key in on if before[2][key] != after[2][key]]
        assert len(changed) == 1


# Memory


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("side, batch", [(8, 2), (8, 5), (16, 2), (24, 3)])
def test_what_is_kept_is_what_the_sizes_say(side, batch, fused):
    model = VisionTransformer(**(TINY | dict(img_size=side)))
    kept = speed.saved_bytes(model, torch.zeros(batch, 1, side, side), fused=fused)
    assert kept == pytest.approx(speed.expected_bytes(model, batch, fused), rel=1e-3)


def test_stored_rows_cost_heads_times_tokens_squared():
    model = VisionTransformer(**TINY)
    more = speed.expected_bytes(model, 5, False) - speed.expected_bytes(model, 5)
    assert more == 4 * 5 * 2 * 2 * 17 * (17 - 1)  # bytes, images, blocks, heads, tokens


def test_a_device_that_does_not_count_its_memory_says_nothing():
    assert speed.peak_bytes(lambda: pytest.fail("must not run"), CPU) is None


# Where the time goes


def event(name, outer=None):
    return SimpleNamespace(name=name, cpu_parent=outer)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("aten::addmm", "matrix products"),
        ("aten::mm", "matrix products"),
        ("aten::convolution_backward", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention", "attention"),
        ("aten::_efficient_attention_backward", "attention"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::_log_softmax", "rest"),  # the loss
        ("aten::native_layer_norm_backward", "norm"),
        ("aten::gelu_backward", "GELU"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::copy_", "copies"),
        ("triton_poi_fused_gelu_native_layer_norm_0", "compiled"),
        ("## Call CompiledFxGraph fu6bxpcj ##", "compiled"),
        ("aten::add", "rest"),
    ],
)
def test_kinds_of_operations(name, kind):
    assert speed.kind_of(event(name)) == kind


def test_a_region_goes_before_a_name():
    step = event("Optimizer.step#AdamW.step")
    assert speed.kind_of(event("aten::mul", step)) == "optimizer"
    assert speed.kind_of(event("aten::bmm", event("x", event("augmentation")))) == "augmentation"


def test_time_is_found_for_all_that_a_step_does(few):
    config = replace(CONFIG, ema=0.9)
    work = speed.training_work(tiny(), few, config, CPU, steps=2)
    times = speed.time_by_kind(work, CPU)
    assert set(times) == {*speed.KINDS, "augmentation", "rest"} - {"compiled"}
    for kind in set(times) - {"rest", "copies"}:
        assert times[kind] > 0, kind
    assert sum(times.values()) < 30


# Charts


def test_the_ladder_s_bars_are_multiples_of_the_first_rung():
    rungs = [dict(name=f"rung {i}", images_per_second=1234.0 * i, over_first=i) for i in (1, 2, 3)]
    figure = speed_charts.ladder_bars(rungs, "a title")
    words = [text.get_text() for text in artists(figure, matplotlib.text.Text)]
    assert {"3.00 x", "a title", "rung 2"} <= set(words)
    assert "1,234 images a second" in figure.axes[0].get_xlabel()
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1, 2, 3]
    assert_nothing_outside(figure)


def test_the_time_s_bar_has_a_colour_for_every_kind():
    times = dict.fromkeys([*speed.KINDS, "augmentation", "rest", "idle"], 1.0)
    assert set(times) == set(speed_charts.TIME_COLORS)
    figure = speed_charts.time_bar(times, "a title")
    shares = [bar.get_width() for bar in figure.axes[0].patches]
    assert len(shares) == len(times) and math.isclose(sum(shares), 1)
    assert len({bar.get_facecolor() for bar in figure.axes[0].patches}) == len(times)
    assert_nothing_outside(figure)


def test_memory_is_drawn_in_megabytes_marks_and_lines():
    lines = {"one way": ((1, 2), (1e6, 2e6), (1e6, 3e6)), "another": ((1, 2), (0, 0), (0, 0))}
    figure = speed_charts.memory_curves({"batch": lines, "tokens": lines})
    assert [ax.get_xlabel() for ax in figure.axes] == ["batch", "tokens"]
    expected, counted, *_ = figure.axes[0].get_lines()
    assert list(expected.get_ydata()) == [1, 3] and list(counted.get_ydata()) == [1, 2]
    assert counted.get_linestyle() == "None" and expected.get_linestyle() == "-"
    assert_nothing_outside(figure)


# benchmarks/gpu.py


def run(part, folder, *more):
    gpu.main([part, "--device", "cpu", "--quick", "--json-dir", str(folder), *more])
    return json.loads((folder / f"gpu_{part}.json").read_text())


@pytest.mark.parametrize("part", ["ladder", "memory", "profile", "vit_b16"])
def test_a_part_that_measures_writes_one_file(tmp_path, part):
    if part == "vit_b16":
        pytest.importorskip("timm", reason="no timm")
    result = run(part, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"gpu_{part}.json"]
    assert result["whole"] and result["quick"] and result["rows"] and "\n" not in result["what"]
    assert result["device"] and result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["command"].startswith(f"python benchmarks/gpu.py {part} --device cpu --quick")
    assert len(result["date"]) == 10


def test_the_recipes_take_turns_and_are_summed_up(tmp_path):
    result = run("cifar", tmp_path, "--seeds", "2")
    runs = [(row["recipe"], row["seed"]) for row in result["rows"]]
    assert runs == [("full", 0), ("published", 0), ("full", 1), ("published", 1)]
    assert result["whole"] and result["seeds"] == [0, 1] and result["target"] == 0.9
    for row, kind in zip(result["summary"], ("full", "published"), strict=True):
        found = [run["test_accuracy"] for run in result["rows"] if run["recipe"] == kind]
        assert row["mean"] == pytest.approx(sum(found) / 2) and row["seeds"] == 2
        assert row["std"] == pytest.approx(abs(found[0] - found[1]) / 2**0.5)
        assert row["minutes"] > 0 and row["parameters"] > 0 and row["epochs"] == 2
    assert {"seconds", "compile_seconds", "config", "model"} <= set(result["rows"][0])


def test_a_part_that_was_cut_short_goes_on(tmp_path, capsys):
    first = run("fashion", tmp_path, "--seeds", "1")["rows"]
    gpu.main(["fashion", "--device=cpu", "--quick", f"--json-dir={tmp_path}", "--minutes=0"])
    assert "the same command goes on here" in capsys.readouterr().out
    again = run("fashion", tmp_path, "--seeds", "2")
    assert again["rows"][0] == first[0] and len(again["rows"]) == 2 and again["whole"]
    assert "recorded already" in capsys.readouterr().out


def test_other_settings_do_not_count_as_recorded(tmp_path):
    run("mnist", tmp_path, "--seeds", "1")
    path = tmp_path / "gpu_mnist.json"
    path.write_text(path.read_text().replace('"lr": 0.002', '"lr": 0.1'))
    assert [row["config"]["lr"] for row in run("mnist", tmp_path, "--seeds=1")["rows"]] == [0.002]


def test_seconds_to_a_target():
    records = [SimpleNamespace(seconds=s, validation_accuracy=a)
               for s, a in ((1.0, 0.5), (2.0, 0.9), (3.0, 0.8))]  # fmt: skip
    assert gpu.seconds_to(records, 0.9) == 2 and gpu.seconds_to(records, 0.5) == 1
    assert gpu.seconds_to(records, 0.95) is None and gpu.seconds_to(records, None) is None


def test_quick_numbers_never_land_among_the_results(capsys):
    before = sorted(gpu.RESULTS.iterdir())
    with pytest.raises(SystemExit) as stop:
        gpu.main(["ladder", "--device", "cpu", "--quick"])
    assert stop.value.code == 2 and "--json-dir" in capsys.readouterr().err
    assert sorted(gpu.RESULTS.iterdir()) == before


def test_recorded_results_are_not_quick_ones():
    for path in gpu.RESULTS.glob("gpu_*.json"):
        facts = json.loads(path.read_text())
        assert not facts["quick"] and facts["device"] and facts["date"], path.name
