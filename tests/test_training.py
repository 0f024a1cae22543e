"""helpers/training.py, recipes.py, scale/devices.py, and the command line helpers/train.py."""

import inspect
import json
import math
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import helpers.training as training
from helpers import train as command_line
from helpers.augmentation import normalize
from helpers.checkpoints import load_checkpoint
from helpers.data import ImageData, Split, load
from helpers.model import VisionTransformer
from helpers.plotting import sample_photo
from helpers.recipes import RECIPES, recipe
from helpers.scale import devices
from helpers.scale.devices import choose_device, choose_precision
from helpers.scale.streaming import load_streaming
from helpers.training import TrainConfig, evaluate, fit, learning_rate, parameter_groups, predict
from tests.peers import randomize

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(img_size=8, patch_size=2, in_chans=1, num_classes=10)


def few_digits(n, others=30):
    """The digits with the first n training images, and so many of the other splits."""
    digits, splits = load("digits"), {}
    for name, size in (("train", n), ("validation", others), ("test", others)):
        split = getattr(digits, name)
        splits[name] = Split(split.images[:size], split.labels[:size])
    return replace(digits, **splits)


@pytest.fixture(scope="module")
def few():
    """70 training images, a number that no batch size here divides."""
    return few_digits(70)


def tiny_vit(seed=0, embed_dim=16, depth=1, num_heads=2, **changes):
    torch.manual_seed(seed)
    sizes = dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads)
    return VisionTransformer(**(TINY | sizes | changes))


def quick(epochs=2, **changes):
    settings = dict(batch_size=32, device="cpu", precision="float32")
    return TrainConfig(epochs, **(settings | changes))


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# The learning rate, the groups of parameters, device and precision


def test_learning_rate_climbs_from_above_zero_then_falls_to_zero():
    config = TrainConfig(lr=1e-3, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == pytest.approx(1e-3) == max(rates)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5e-3)  # half way down the cosine
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(0, 5, TrainConfig(lr=1.0, warmup=0.0)) == 1.0


def test_matrices_decay_and_what_the_model_exempts_does_not():
    model = tiny_vit()
    model.register = torch.nn.Parameter(torch.zeros(1, 1, 16))  # a token more
    model.no_weight_decay = lambda: {"cls_token", "pos_embed", "register"}
    decayed, free = parameter_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3 and free["weight_decay"] == 0.0
    names = {id(p): n for n, p in model.named_parameters()}
    matrices = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    matrices = {
        "patch_embed.proj.weight",
        "head.weight",
        *(f"blocks.0.{x}.weight" for x in matrices),
    }
    assert {names[id(p)] for p in decayed["params"]} == matrices
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert tiny_vit().no_weight_decay() == {"cls_token", "pos_embed"}
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))  # says nothing
    decayed, free = parameter_groups(other, 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)] and len(free["params"]) == 3


def test_auto_precision_is_bfloat16_only_where_it_pays(monkeypatch):
    cpu, mps = torch.device("cpu"), torch.device("mps")
    for able in (True, False):
        monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda able=able: able)
        assert choose_precision("auto", cpu, 127) == "float32"
        assert choose_precision("auto", cpu, 128) == ("bfloat16" if able else "float32")
        assert choose_precision("auto", mps, 192) == "float32"
        assert choose_precision("float32", cpu, 192) == "float32"
    with pytest.raises(ValueError, match="'half'.*bfloat16"):
        choose_precision("half", cpu, 64)
    for cuda, apple, chosen in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda apple=apple: apple)
        assert choose_device() == torch.device(chosen) and choose_device("cpu") == cpu


# Losses and accuracies


def test_loss_and_accuracy_are_counted_over_samples_whatever_the_batch(few):
    """At a learning rate of 0 the numbers of an epoch must equal those of all images at once."""
    model = randomize(tiny_vit())
    config = quick(1, lr=0.0, shift=0, rotate=0, zoom=0, weight_decay=0.0)
    record = fit(model, few, config).epochs[0]
    for split, smoothing, found in (
        ("train", 0.1, (record.train_loss, record.train_accuracy)),
        ("validation", 0.0, (record.validation_loss, record.validation_accuracy)),
        ("test", 0.0, evaluate(model, few)),
        ("test", 0.0, evaluate(model, few, batch_size=7)),
    ):
        images, labels = getattr(few, split).images, getattr(few, split).labels
        logits = predict(model, few, images)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing).item()
        right = (logits.argmax(1) == labels).float().mean().item()
        assert found == pytest.approx((loss, right), rel=1e-5)


def test_prediction_does_not_depend_on_the_batch_and_leaves_the_mode(few):
    model = randomize(tiny_vit(drop_rate=0.5)).train()
    together = predict(model, few, few.test.images)
    torch.testing.assert_close(together, predict(model, few, few.test.images, batch_size=7))
    assert model.training
    with torch.no_grad():
        alone = model.eval()(normalize(few.test.images[:1], few))
    torch.testing.assert_close(together[:1], alone)


def test_the_mean_of_the_weights_is_evaluated_and_kept_but_not_trained_on(few):
    plain, model = tiny_vit(depth=2), tiny_vit(depth=2)
    expected = fit(plain, few, quick(lr=1e-2)).epochs
    dropping = fit(tiny_vit(depth=2), few, quick(lr=1e-2, drop_path=0.5)).epochs
    assert dropping[-1].train_loss != expected[-1].train_loss
    history = fit(model, few, quick(lr=1e-2, ema=0.9))
    assert [r.train_loss for r in history.epochs] == [r.train_loss for r in expected]
    last = history.epochs[-1]
    found = last.validation_loss, last.validation_accuracy
    assert found == evaluate(model, few, "validation") != evaluate(plain, few, "validation")
    assert (history.test_loss, history.test_accuracy) == evaluate(model, few)


# A whole run


def test_it_learns_real_digits_and_looks_at_the_test_split_once_at_the_end(monkeypatch):
    looks = []

    def watched(model, data, split, *rest, **named):
        looks.append(split)
        return evaluate(model, data, split, *rest, **named)

    monkeypatch.setattr(training, "evaluate", watched)
    model, records = tiny_vit(embed_dim=32, depth=2, pos_embed_std=0.5), []
    settings = quick(8, lr=5e-3, shift=0, rotate=0, zoom=0)
    history = fit(model, load("digits"), settings, on_epoch=records.append)
    assert history.epochs[0].train_loss > history.epochs[-1].train_loss
    assert history.test_accuracy > 0.85  # chance is 0.1
    assert history.device == "cpu" and history.precision == "float32"
    assert looks == ["validation"] * 8 + ["test"] and records == history.epochs


def test_bfloat16_trains_nearly_as_float32(few):
    histories = [fit(tiny_vit(), few, quick(precision=p, lr=1e-2)) for p in ("float32", "bfloat16")]
    ours, theirs = (history.epochs[-1].train_loss for history in histories)
    assert ours != theirs and ours == pytest.approx(theirs, rel=1e-2)
    assert histories[1].precision == "bfloat16"


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("cl")), reason="no C++ compiler")
def test_compiled_training_is_the_same_training_and_compiles_ahead(few):
    """Only rounding may differ; how long compiling took is counted apart."""
    torch._dynamo.reset()
    eager, compiled = (fit(tiny_vit(), few, quick(1, compile=on)) for on in (False, True))
    assert compiled.epochs[0].train_loss == pytest.approx(eager.epochs[0].train_loss, rel=1e-4)
    assert compiled.test_loss == pytest.approx(eager.test_loss, rel=1e-3)
    assert eager.compile_seconds == 0 < compiled.epochs[0].seconds < compiled.compile_seconds


def test_what_cannot_be_trained_is_refused_with_advice(few):
    model = tiny_vit()
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="by step 1: try a smaller lr than 0.001"):
        fit(model, few, quick())
    with pytest.raises(ValueError, match="num_classes=10"):
        fit(tiny_vit(num_classes=7), few, quick())


def two_photographs(folder):
    """A folder with two classes: 24 crops each of two photographs."""
    for name in ("china", "flower"):
        photo = sample_photo(f"{name}.jpg", 96).transpose(1, 2, 0)
        (folder / name).mkdir()
        for i in range(24):
            y, x = 2 * i, 3 * (i % 16)
            Image.fromarray(photo[y : y + 48, x : x + 48]).save(folder / name / f"{i}.jpg")
    return load_streaming(folder, img_size=32)


PHOTO_SIZES = dict(img_size=32, patch_size=8, in_chans=3, num_classes=2, embed_dim=32, depth=2)


def test_streamed_pictures_are_learned_as_those_in_memory(tmp_path):
    """Shift, turn, zoom, mirror, policy and mixing are one code for both: the same weights."""
    streamed = two_photographs(tmp_path)
    settings = dict(batch_size=12, lr=2e-3, mixup=0.1, erase=0.1, policy="trivial", shift=3)

    def trained(data, **changes):
        model = tiny_vit(**PHOTO_SIZES, pos_embed_std=0.1)
        return model, fit(model, data, quick(2, **(settings | changes)))

    expected, history = trained(load(tmp_path, img_size=32))
    for workers in (0, 2):
        model, again = trained(streamed, workers=workers)
        assert same_weights(model, expected) and again.test_loss == history.test_loss
    cropped, _ = trained(streamed, crop=0.5)
    assert same_weights(cropped, trained(streamed, crop=0.5, workers=2)[0])
    changes = [dict(shift=0), dict(rotate=0), dict(zoom=0), dict(policy=""), dict(crop=0.5)]
    for change in changes:
        assert not same_weights(trained(streamed, **change)[0], expected), change
    assert not same_weights(trained(replace(streamed, flip=False))[0], expected)


def test_streamed_pictures_are_learned(tmp_path):
    model = tiny_vit(**PHOTO_SIZES, pos_embed_std=0.1)
    config = quick(12, batch_size=12, lr=2e-3, crop=0.3, rotate=0)
    assert fit(model, two_photographs(tmp_path), config).test_accuracy > 0.85  # chance is 0.5


# The command line


def command(*words):
    """The exit status of the command line, run here."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["train", *map(str, words)])
        command_line.main()
    return end.value.code


def test_a_terminal_and_a_notebook_train_the_same_model(tmp_path, capsys):
    """The same recipe, once by the command and once by fit here: the same weights, bit for bit."""
    words = "--recipe full --epochs 2 --depth 2 --seed 3 --device cpu --run-dir".split()
    assert command(*words, tmp_path, "--json", tmp_path / "x.json") == 0
    data = load("digits")
    sizes, settings = recipe(data, "full")
    torch.manual_seed(3)
    model = VisionTransformer(**(sizes | {"depth": 2}))
    history = fit(model, data, TrainConfig(**settings | dict(epochs=2, seed=3, device="cpu")))
    assert same_weights(load_checkpoint(tmp_path / "last.safetensors")[0], model)
    result = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert result == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["config"]["seed"] == 3 and result["model"]["depth"] == 2
    assert result["model"]["patch_size"] == 2 and result["config"]["lr"] == 5e-3  # the recipe's own
    assert result["test_accuracy"] == history.test_accuracy
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    assert {"seconds", "versions", "device", "machine", "split_seed", "recipe"} <= set(result)
    out = capsys.readouterr().out
    assert f"test accuracy {history.test_accuracy:.2%}" in out and out.count("epoch  ") == 2


def test_every_run_gets_a_folder_and_resume_takes_the_last(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    outs = []
    for words in ((), (), ("--resume",), ("--run-dir", "")):
        assert command("--epochs", 1, "--depth", 1, "--embed-dim", 8, *words) == 0
        outs.append(capsys.readouterr().out)
    for out, folder in zip(outs, ("runs/digits-1", "runs/digits-2", "runs/digits-2", "none"),
                           strict=True):  # fmt: skip
        assert f"run folder: {folder}\n" in out
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits-1", "digits-2"]
    assert "epoch   1" in outs[1] and "epoch   1" not in outs[2]
    assert len({out.splitlines()[-1].split(",")[0] for out in outs}) == 1  # the test accuracy


def test_the_command_says_what_is_wrong_in_one_line(capsys):
    words = [sys.executable, "-m", "helpers.train", "--data", "digit", "--epochs", "1"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 1 and run.stderr.startswith("error: ") and "digits" in run.stderr
    assert "Traceback" not in run.stderr
    for wrong, reason in ((("--num-heads", 7), "num_heads is 7"), (("--fsdp",), "torchrun")):
        assert command("--run-dir", "", *wrong) == 1
        err = capsys.readouterr().err
        assert reason in err and len(err.splitlines()) == 1


def test_flags_are_arguments_that_exist_and_help_names_them_and_the_defaults():
    assert set(command_line.TRAINING_FLAGS) == {f.name for f in fields(TrainConfig)}
    assert set(command_line.MODEL_FLAGS) <= set(inspect.signature(VisionTransformer).parameters)
    text = command_line.build_parser().format_help()
    for name in [*command_line.MODEL_FLAGS, *command_line.TRAINING_FLAGS]:
        assert f"--{name.replace('_', '-')}" in text
    assert "lr 0.003" in text and "fashion-mnist" in text


# Recipes


@pytest.mark.parametrize("kind", ["small", "full"])
@pytest.mark.parametrize("shape, patch", [((3, 63, 63), 7), ((3, 32, 48), 4), ((3, 17, 17), 1)])
def test_every_data_set_gets_a_model_that_fits(shape, patch, kind):
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 1]))
    data = ImageData("mine", split, split, split, ("a", "b"), (0.0,) * 3, (1.0,) * 3, True)
    sizes, config = recipe(data, kind)
    assert sizes["patch_size"] == patch and TrainConfig(**config).epochs == 50
    assert VisionTransformer(**sizes)(normalize(images, data)).shape == (2, 2)


def test_recipes_go_by_what_was_loaded_by_name_and_unknown_ones_are_refused(few, tmp_path):
    assert recipe(replace(few, loaded_as="cifar10"), "published")[0]["num_heads"] == 12
    assert recipe(few)[1]["epochs"] == 80
    for name in ("digits", "mnist", "mnist_png"):  # folders: called like a set, and none
        folder = tmp_path / name
        for i, x in enumerate(few.train.images[:8, 0]):
            (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(x.numpy()).save(folder / "ab"[i % 2] / f"{i}.png")
        for own in (load(folder, img_size=8), load_streaming(folder, img_size=8)):
            assert recipe(own)[1]["epochs"] == 50 and recipe(own)[0]["patch_size"] == 1
    for kind, message in (("best", "'best'.*small, full, published"), ("published", "cifar10")):
        with pytest.raises(ValueError, match=message):
            recipe(few, kind)
    for name, (sizes, settings) in [item for kind in RECIPES.values() for item in kind.items()]:
        TrainConfig(**settings)
        VisionTransformer({"digits": 8, "cifar10": 32}.get(name, 28), **sizes)
