"""helpers/training.py and its command line."""

import dataclasses
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import helpers.training as training
from helpers import train
from helpers.augmentation import normalize
from helpers.checkpoints import load_checkpoint
from helpers.data import ImageData, Split, load
from helpers.model import VisionTransformer
from helpers.plotting import sample_photo
from helpers.recipes import RECIPES, recipe
from helpers.scale.devices import choose_precision
from helpers.scale.streaming import load_streaming
from helpers.training import TrainConfig, evaluate, fit, learning_rate, parameter_groups, predict
from tests.peers import randomize

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(
    img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=16, depth=1, num_heads=2
)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def few(digits):
    """70 training images of the digits, a number that no batch size here divides."""

    def first(split, n):
        return Split(split.images[:n], split.labels[:n])

    return dataclasses.replace(
        digits,
        train=first(digits.train, 70),
        validation=first(digits.validation, 30),
        test=first(digits.test, 30),
    )


def tiny_vit(seed=0, **changes):
    torch.manual_seed(seed)
    return VisionTransformer(**(TINY | changes))


def quick(**changes):
    return TrainConfig(
        **(dict(epochs=2, batch_size=32, device="cpu", precision="float32") | changes)
    )


# The learning rate and the groups of parameters


def test_learning_rate_climbs_from_above_zero_then_falls_to_zero():
    config = TrainConfig(lr=1e-3, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == pytest.approx(1e-3) == max(rates)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5e-3)  # half way down the cosine
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(0, 5, TrainConfig(lr=1.0, warmup=0.0)) == 1.0


def test_matrices_alone_decay():
    model = tiny_vit()
    decayed, free = parameter_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3 and free["weight_decay"] == 0.0
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "patch_embed.proj.weight",
        *(f"blocks.0.{x}.weight" for x in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        "head.weight",
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)


# The loop


def test_same_seed_same_weights_other_seed_other_weights(few):
    runs = []
    for seed in (0, 0, 1):
        model = tiny_vit(drop_rate=0.1)
        fit(model, few, quick(seed=seed))
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_loss_and_accuracy_are_counted_over_samples(few):
    """At a learning rate of 0 the numbers of an epoch must equal those of all images at once."""
    model = randomize(tiny_vit())
    config = quick(epochs=1, lr=0.0, shift=0, rotate=0, zoom=0, weight_decay=0.0)
    record = fit(model, few, config).epochs[0]
    logits = predict(model, few, few.train.images)
    loss = F.cross_entropy(logits, few.train.labels, label_smoothing=0.1).item()
    assert record.train_loss == pytest.approx(loss, rel=1e-5)
    right = (logits.argmax(1) == few.train.labels).float().mean().item()
    assert record.train_accuracy == pytest.approx(right)
    assert (record.validation_loss, record.validation_accuracy) == evaluate(
        model, few, "validation"
    )


def test_prediction_does_not_depend_on_the_batch_and_leaves_the_mode(few):
    model = randomize(tiny_vit(drop_rate=0.5)).train()
    together = predict(model, few, few.test.images)
    torch.testing.assert_close(together, predict(model, few, few.test.images, batch_size=7))
    assert model.training
    loss, accuracy = evaluate(model, few)
    assert loss == pytest.approx(F.cross_entropy(together, few.test.labels).item())
    assert accuracy == pytest.approx((together.argmax(1) == few.test.labels).float().mean().item())


def test_the_test_split_is_looked_at_once_at_the_end(few, monkeypatch):
    looks = []

    def watched(model, data, split, workers):
        looks.append(split)
        return evaluate(model, data, split, workers)

    monkeypatch.setattr(training, "evaluate", watched)
    history = fit(tiny_vit(), few, quick(epochs=3))
    assert looks == ["validation"] * 3 + ["test"]
    assert 0 <= history.test_accuracy <= 1


def test_it_learns_real_digits(digits):
    model = tiny_vit(embed_dim=32, depth=2, pos_embed_std=0.5)
    history = fit(model, digits, quick(epochs=8, lr=5e-3, shift=0, rotate=0, zoom=0))
    assert history.epochs[0].train_loss > history.epochs[-1].train_loss
    assert history.test_accuracy > 0.85  # chance is 0.1
    assert history.device == "cpu" and history.precision == "float32"


def test_bfloat16_learns_too(digits):
    history = fit(
        tiny_vit(embed_dim=32, pos_embed_std=0.5), digits,
        quick(epochs=6, lr=5e-3, shift=0, rotate=0, zoom=0, precision="bfloat16"),
    )  # fmt: skip
    assert history.precision == "bfloat16" and history.test_accuracy > 0.7


def test_a_loss_that_is_no_number_stops_with_advice(few):
    model = tiny_vit()
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="by step 1: try a smaller lr than 0.001"):
        fit(model, few, quick())


def test_a_head_of_another_size_is_refused(few):
    with pytest.raises(ValueError, match="num_classes=10"):
        fit(tiny_vit(num_classes=7), few, quick())


def test_an_empty_split_is_refused(few):
    empty = dataclasses.replace(few, validation=Split(few.train.images[:0], few.train.labels[:0]))
    with pytest.raises(ValueError, match="validation split of digits is empty"):
        fit(tiny_vit(), empty, quick())


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'half'.*bfloat16"):
        choose_precision("half", torch.device("cpu"), 64)


def test_auto_precision_is_bfloat16_only_where_it_pays(monkeypatch):
    cpu, mps = torch.device("cpu"), torch.device("mps")
    for able in (True, False):
        monkeypatch.setattr(training, "cpu_multiplies_bfloat16", lambda able=able: able)
        assert choose_precision("auto", cpu, 64) == "float32"
        assert choose_precision("auto", cpu, 192) == ("bfloat16" if able else "float32")
        assert choose_precision("auto", mps, 192) == "float32"
        assert choose_precision("float32", cpu, 192) == "float32"


# Pictures that are streamed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 24 pictures each, crops of two photographs."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("china", "flower"):
        photo = sample_photo(f"{name}.jpg", 96).transpose(1, 2, 0)
        (root / name).mkdir()
        for i in range(24):
            y, x = 2 * i, 3 * (i % 16)
            Image.fromarray(photo[y : y + 48, x : x + 48]).save(root / name / f"{i}.jpg")
    return root


def test_streamed_pictures_train_the_same_with_any_number_of_workers(folder):
    data = load_streaming(folder, img_size=32)
    runs = []
    for workers in (0, 2):
        model = tiny_vit(img_size=32, patch_size=8, in_chans=3, num_classes=2)
        history = fit(model, data, quick(epochs=2, batch_size=10, mixup=0.3, workers=workers))
        runs.append((model.state_dict(), history.test_loss))
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])
    assert runs[0][1] == runs[1][1]


def test_streamed_pictures_are_learned(folder):
    data = load_streaming(folder, img_size=32)
    torch.manual_seed(0)
    sizes = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, pos_embed_std=0.1)
    model = VisionTransformer(img_size=32, num_classes=2, **sizes)
    history = fit(model, data, quick(epochs=12, batch_size=12, lr=2e-3))
    assert history.test_accuracy > 0.85  # chance is 0.5


# Stopping


def test_ctrl_c_keeps_the_last_checkpoint(few, tmp_path):
    def stop(record):
        if record.epoch == 2:
            raise KeyboardInterrupt

    model = tiny_vit()
    history = fit(model, few, quick(epochs=5, run_dir=str(tmp_path)), on_epoch=stop)
    assert history.interrupted and history.test_accuracy is None and len(history.epochs) == 2
    kept, facts = load_checkpoint(tmp_path / "last.safetensors")
    assert facts["epoch"] == 2 and facts["config"]["epochs"] == 5
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, kept.state_dict()[name])


# The command line


def command(*words, folder=ROOT):
    words = [sys.executable, "-m", "helpers.training", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)


def test_command_writes_its_result(tmp_path):
    run = command("--epochs", "1", "--depth", "1", "--embed-dim", "16", "--seed", "3",
                  "--run-dir", str(tmp_path), "--json", str(tmp_path / "result.json"))  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["seed"] == 3 and result["model"]["depth"] == 1
    assert result["model"]["patch_size"] == 2  # the recipe's own
    assert {"seconds", "parameters", "versions", "device", "test_loss"} <= set(result)
    assert f"test accuracy {result['test_accuracy']:.2%}" in run.stdout
    model, _ = load_checkpoint(tmp_path / "last.safetensors")
    assert evaluate(model, load("digits"))[1] == pytest.approx(result["test_accuracy"])
    assert len(load_file(tmp_path / "last.safetensors")) == len(model.state_dict())


def test_every_run_gets_a_folder_and_resume_takes_the_last(tmp_path):
    short = ("--epochs", "1", "--depth", "1", "--embed-dim", "8")
    for number in (1, 2):
        run = command(*short, folder=tmp_path)
        assert f"run folder: runs/digits-{number}" in run.stdout, run.stderr
        assert (tmp_path / f"runs/digits-{number}/metrics.csv").read_text().startswith("epoch,")
    again = command(*short, "--resume", folder=tmp_path)
    assert "run folder: runs/digits-2" in again.stdout and "epoch   1" not in again.stdout
    assert again.stdout.splitlines()[-1].split(",")[0] == run.stdout.splitlines()[-1].split(",")[0]
    none = command(*short, "--run-dir", "", folder=tmp_path)
    assert "run folder: none" in none.stdout and len(list((tmp_path / "runs").iterdir())) == 2


def test_a_notebook_and_a_terminal_train_the_same_model(tmp_path):
    """The same recipe, once by the command and once by fit here: the same weights, bit for bit."""
    run = command("--recipe", "full", "--epochs", "2", "--device", "cpu",
                  "--run-dir", str(tmp_path))  # fmt: skip
    assert run.returncode == 0, run.stderr
    data = load("digits")
    sizes, settings = recipe(data, "full")
    torch.manual_seed(0)
    model = VisionTransformer(**sizes)
    fit(model, data, TrainConfig(**(settings | dict(epochs=2, device="cpu"))))
    kept, _ = load_checkpoint(tmp_path / "last.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, kept.state_dict()[name]), name


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("cl")), reason="no C++ compiler")
def test_compiled_training_is_the_same_training_and_compiles_ahead(few):
    """Only rounding may differ; how long compiling took is counted apart."""
    eager = fit(tiny_vit(), few, quick(batch_size=35, epochs=1))
    torch._dynamo.reset()
    compiled = fit(tiny_vit(), few, quick(batch_size=35, epochs=1, compile=True))
    assert compiled.epochs[0].train_loss == pytest.approx(eager.epochs[0].train_loss, rel=1e-4)
    assert compiled.test_loss == pytest.approx(eager.test_loss, rel=1e-3)
    assert eager.compile_seconds == 0 < compiled.epochs[0].seconds < compiled.compile_seconds


def test_command_says_what_is_wrong_in_one_line():
    run = command("--data", "digit", "--epochs", "1")
    assert run.returncode == 1 and run.stderr.startswith("error: ") and "digits" in run.stderr
    assert "Traceback" not in run.stderr
    run = command("--num-heads", "7")
    assert run.returncode == 1 and "num_heads is 7" in run.stderr


def test_help_names_every_flag_and_every_default():
    text = command_line.build_parser().format_help()
    for name in [*command_line.MODEL_FLAGS, *command_line.TRAINING_FLAGS]:
        assert f"--{name.replace('_', '-')}" in text
    assert "lr 0.003" in text and "fashion-mnist" in text


def test_flags_are_arguments_that_exist():
    assert set(command_line.TRAINING_FLAGS) == {f.name for f in dataclasses.fields(TrainConfig)}
    assert set(command_line.MODEL_FLAGS) <= set(inspect.signature(VisionTransformer).parameters)


@pytest.mark.parametrize("kind", ["small", "full"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64), (3, 32, 48), (1, 28, 28), (3, 17, 17)])
def test_every_data_set_gets_a_model_that_fits(shape, kind):
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 1]))
    channels = (0.0,) * shape[0], (1.0,) * shape[0]
    data = ImageData("mine", split, split, split, ("a", "b"), *channels, True)
    sizes, config = recipe(data, kind)
    assert VisionTransformer(**sizes)(normalize(images, data)).shape == (2, 2)
    TrainConfig(**config)


def test_recipes_are_found_by_name_and_unknown_ones_refused(digits):
    jpegs = dataclasses.replace(digits, name="cifar10_jpeg")
    assert recipe(jpegs, "published")[0]["num_heads"] == 12
    assert recipe(dataclasses.replace(digits, name="digitsy"))[1]["epochs"] == 50
    with pytest.raises(ValueError, match="'best'.*small, full, published"):
        recipe(digits, "best")
    with pytest.raises(ValueError, match="only for cifar10"):
        recipe(digits, "published")
    for recipes in RECIPES.values():
        for sizes, settings in recipes.values():
            TrainConfig(**settings)
            VisionTransformer(img_size=28 if sizes["patch_size"] == 7 else 32, **sizes)
