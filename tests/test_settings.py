"""What is refused before the first step, with the option and its range: model, settings, places."""

import inspect
import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.checkpoints import model_arguments
from helpers.data import Split, load
from helpers.model import ARGUMENTS, VisionTransformer
from helpers.recipes import RECIPES, SETTINGS, own_recipe
from helpers.training import TrainConfig, fit
from tests.test_training import ROOT, TINY, command, few_digits, quick, tiny_vit

SENSELESS = {
    "epochs": (-1, 0, 1.5), "batch_size": (0, -5), "lr": (-1e-3, math.nan, math.inf),
    "weight_decay": (-3, math.nan), "warmup": (2, -0.1), "grad_clip": (0, -1, math.nan),
    "label_smoothing": (2, -0.5, 1), "crop": (-0.1, 1.5), "shift": (-3, math.inf),
    "rotate": (-1, 720), "zoom": (5, 1, -0.1), "policy": ("best",), "erase": (5, -1),
    "mixup": (2, -1, math.nan), "cutmix": (1.1,), "drop_path": (2, 1, -0.1),
    "ema": (1, 2, math.nan, -0.1), "seed": (10**20, -1), "workers": (-1,),
    "precision": ("half",),
}  # fmt: skip
SENSELESS_SIZES = {
    "patch_size": (0, -2), "in_chans": (0,), "num_classes": (-1,), "embed_dim": (0, -64),
    "depth": (-1, 1.5), "num_heads": (0, -4), "mlp_ratio": (0, -1, math.nan),
    "drop_rate": (1, 2, -0.5), "global_pool": ("max",), "representation_size": (0, -1),
    "norm_eps": (-1, math.nan), "pos_embed_std": (-1, math.nan),
}  # fmt: skip


@pytest.fixture(scope="module")
def few():
    return few_digits(64)


def none_of(split):
    return Split(split.images[:0], split.labels[:0])


# Numbers


def test_every_setting_that_is_a_number_or_a_choice_has_its_range():
    free = {"device", "compile", "fsdp", "run_dir", "resume", "tensorboard"}
    assert set(SETTINGS) == set(SENSELESS) == {f.name for f in fields(TrainConfig)} - free
    taken = set(inspect.signature(VisionTransformer).parameters) - {"img_size"}
    assert set(ARGUMENTS) == set(SENSELESS_SIZES) == taken
    assert TrainConfig(lr=0.0, weight_decay=0, grad_clip=math.inf, warmup=1, mixup=1, shift=0)


def test_senseless_settings_and_sizes_are_refused_with_name_and_range():
    for make, table, words in (
        (TrainConfig, SENSELESS, SETTINGS),
        (lambda **sizes: VisionTransformer(**(TINY | sizes)), SENSELESS_SIZES, ARGUMENTS),
    ):
        for name, values in table.items():
            for value in values:
                with pytest.raises(ValueError) as caught:
                    make(**{name: value})
                assert str(caught.value) == f"{name} is {value!r}: it must be {words[name][0]}"
    with pytest.raises(ValueError, match="mixup . cutmix is 1.2: it must be 0 to 1"):
        TrainConfig(mixup=0.6, cutmix=0.6)


def test_the_command_refuses_them_in_one_line_and_makes_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = [(f"--{name.replace('_', '-')}", x) for name, xs in SENSELESS.items() for x in xs]
    wrong = [(flag, x) for flag, x in wrong if x != 1.5]  # argparse refuses it for --epochs
    wrong += [("--depth", 0), ("--embed-dim", 0), ("--img-size", 0), ("--device", "foo")]
    wrong += [("--num-heads", 7), ("--shift", 8), ("--crop", 0.5), ("--test", 1), ("--json", ".")]
    for flag, value in wrong:
        assert command("--epochs", 1, f"{flag}={value}") == 1, flag
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == 1 and err.startswith("error: "), err
        assert out == "" and list(tmp_path.iterdir()) == [], flag


def test_shares_that_have_no_effect_are_said(tmp_path, capsys):
    for part in ("train", "test", "val"):
        for i in range(4):
            (tmp_path / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 50 * i).save(tmp_path / part / "ab"[i % 2] / f"{i}.png")
    words = ("--data", tmp_path, "--epochs", 1, "--depth", 1, "--img-size", 8, "--run-dir", "")
    assert command(*words, "--split-seed", 3, "--test", 0.5) == 0
    err = capsys.readouterr().err
    assert "split_seed does nothing" in err and "test does nothing" in err
    assert command(*words) == 0 and "does nothing" not in capsys.readouterr().err


def test_what_has_no_effect_is_said(few, capsys):
    fit(tiny_vit(), few, quick(1, drop_path=0.1, workers=2))
    err = capsys.readouterr().err
    assert "workers do nothing" in err and "drop_path does nothing" in err
    fit(tiny_vit(depth=2), few, quick(1, drop_path=0.1))
    assert capsys.readouterr().err == ""


def test_model_arguments_are_all_that_the_model_takes():
    taken = inspect.signature(VisionTransformer).parameters
    assert list(model_arguments(tiny_vit())) == list(taken)
    others = dict(img_size=(8, 4), patch_size=4, in_chans=2, num_classes=3, embed_dim=12, depth=2,
                  num_heads=3, mlp_ratio=2.0, drop_rate=0.1, global_pool="avg",
                  representation_size=5, norm_eps=1e-5, pos_embed_std=0.5)  # fmt: skip
    assert all(taken[name].default != value for name, value in others.items())
    assert model_arguments(VisionTransformer(**others)) == others


# Splits


@pytest.mark.parametrize("lacks", [("validation",), ("test",), ("validation", "test")])
def test_without_validation_or_test_images_it_trains_and_says_so(lacks, few, tmp_path, capsys):
    data = replace(few, **{split: none_of(few.train) for split in lacks})
    config = quick(2, run_dir=str(tmp_path), tensorboard=True)
    history = fit(tiny_vit(), data, config)
    last, err = history.epochs[-1], capsys.readouterr().err
    assert len(history.epochs) == 2 and last.train_loss > 0
    for split, loss, accuracy in (
        ("validation", last.validation_loss, last.validation_accuracy),
        ("test", history.test_loss, history.test_accuracy),
    ):
        assert (loss is None) == (accuracy is None) == (split in lacks) == (f"no {split}" in err)
    fit(tiny_vit(), data, replace(config, resume=True))  # its records are read back


def test_the_command_trains_without_validation_and_test_images(tmp_path, capsys):
    words = ("--epochs", 1, "--depth", 1, "--validation", 0, "--test", 0, "--run-dir", tmp_path)
    assert command(*words) == 0
    out, err = capsys.readouterr()
    assert "validation loss" not in out and "no test images" in out and len(err.splitlines()) == 2
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["test_accuracy"] is None and result["epochs"][0]["validation_loss"] is None


def test_without_training_images_or_blocks_nothing_starts(few, tmp_path):
    config = quick(1, run_dir=str(tmp_path / "new"))
    for model, data, settings, message in (
        (tiny_vit(), replace(few, train=none_of(few.train)), config, "no training images"),
        (tiny_vit(depth=0), few, config, "depth 1 or more"),
        (tiny_vit(mlp_ratio=0.01), few, config, "larger mlp_ratio"),
        (tiny_vit(), few, replace(config, device="foo"), "device is 'foo'.*choose auto or cpu"),
        (tiny_vit(), few, replace(config, crop=0.5), "load_streaming"),
        (tiny_vit(), few, replace(config, fsdp=True), "start them with torchrun"),
        (tiny_vit(), few, replace(config, shift=8), "shift is 8 and the images are 8 x 8"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, data, settings)
    assert not (tmp_path / "new").exists()


def test_a_machine_without_a_compiler_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n" + 90 * "more\n")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    words = ("--epochs", 1, "--depth", 1, "--compile", "--run-dir", tmp_path / "run")
    assert command(*words) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "No working C++ compiler found" in line and "without compile" in line


# What --help says


def test_help_states_what_is_used_for_pictures_of_ones_own(capsys):
    assert command("--help") == 0
    out = capsys.readouterr().out
    for kind in ("small", "full"):
        sizes, training = own_recipe(64, 64, kind)
        listed = ", ".join(f"{name} {x}" for name, x in (sizes | training).items())
        assert f"yours, 64 px  {listed}" in out.replace("policy none", "policy ")
    assert "policy none" in out and "run_dir none" in out and " ," not in out
    assert set(RECIPES) == {"small", "full", "published"}


# Places


def test_a_place_that_cannot_be_written_is_refused_before_training(few, tmp_path, capsys):
    """A file where the folder should be, a folder where the file should be."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for words in (("--run-dir", tmp_path / "file"), ("--run-dir", tmp_path / "file" / "below"),
                  ("--json", tmp_path / "file" / "x.json"), ("--json", tmp_path),
                  ("--json", os.devnull)):  # fmt: skip
        assert command("--epochs", 1, "--depth", 1, *words) == 1
        out, err = capsys.readouterr()
        assert "epoch" not in out and "cannot be written" in err and len(err.splitlines()) == 1
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    with pytest.raises(OSError, match="cannot be written"):
        fit(tiny_vit(), few, quick(1, run_dir=str(tmp_path / "file")))


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_before_training(few, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        fit(tiny_vit(), few, quick(1, run_dir=str(tmp_path / "run")))


FULL = """
import resource, signal, sys
from helpers.scale.states import states
from tests.test_settings import few_digits, fit, quick, tiny_vit

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def no_room(record):
    if record.epoch == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))  # less than a state
try:
    fit(tiny_vit(), few_digits(64), quick(4, run_dir=sys.argv[1]), on_epoch=no_room)
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="no resource limits there")
def test_a_full_disk_says_what_is_safe_in_one_line(few, tmp_path):
    words = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    [line] = done.stdout.splitlines()
    assert "cannot be written (File too large)" in line and "Make room" in line, done.stderr
    assert "state-00002.pt is saved" in line and "--resume" in line
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") and "lock" not in p.name]
    straight, resumed = tiny_vit(), tiny_vit(seed=1)
    fit(straight, few, quick(4))
    fit(resumed, few, quick(4, run_dir=str(tmp_path), resume=True))
    assert torch.equal(straight.head.weight, resumed.head.weight)


def test_the_result_is_kept_where_the_json_fails_at_the_end(tmp_path, capsys, monkeypatch):
    place = tmp_path / "results" / "x.json"

    def vanish(record):
        place.parent.rmdir()
        place.parent.write_text("a file now", encoding="utf-8")

    monkeypatch.setattr("helpers.train.print_epoch", vanish)
    words = ("--epochs", 1, "--depth", 1, "--json", place, "--run-dir", tmp_path / "run")
    assert command(*words) == 1
    assert "x.json cannot be written" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))


def test_everything_that_a_run_writes_has_the_users_permissions(tmp_path):
    before = os.umask(0o022)
    try:
        words = ("--epochs", 1, "--depth", 1, "--tensorboard", "--json", tmp_path / "x.json")
        assert command(*words, "--run-dir", tmp_path / "run") == 0
    finally:
        os.umask(before)
    found = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(found) >= 7
    assert os.name == "nt" or {oct(path.stat().st_mode & 0o777) for path in found} == {"0o644"}


def test_names_that_are_patterns_or_in_another_script(tmp_path, monkeypatch):
    """A folder called [digits] or рис; a terminal that knows neither."""
    from helpers.scale.run_folder import default_run_dir

    monkeypatch.chdir(tmp_path)
    for name in ("[digits]*", "рис"):
        assert [default_run_dir(name, again) for again in (False, False, True)] == [
            f"runs/{name}-1", f"runs/{name}-2", f"runs/{name}-2"
        ]  # fmt: skip
    load("digits")
    code = "import sys; from helpers import train; sys.argv[1:] = sys.argv[1:]; train.main()"
    words = [sys.executable, "-c", code, "--epochs", "1", "--depth", "1", "--run-dir", "рис[1]"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, encoding="ascii")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "run folder: \\u0440\\u0438\\u0441[1]" in done.stdout
    assert Path("рис[1]/result.json").is_file()
