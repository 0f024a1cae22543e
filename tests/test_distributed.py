"""Several processes on the CPU (gloo): the same training as one process, and what failures do."""

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import training
from helpers.data import Split, load
from helpers.scale import distributed
from helpers.scale.distributed import my_part
from tests.peers import small_vit

ROOT = Path(__file__).resolve().parents[1]
# 1,293 images in batches of 68: in the last one there is a single image, none for a second process.
RUN = "--epochs 4 --embed-dim 16 --depth 2 --num-heads 2 --batch-size 68 --device cpu --ema 0.9 "
RUN += "--grad-clip 100 --precision float32 --policy trivial --mixup 0.3 --cutmix 0.3 --erase 0.2"


def start(*words, processes=2):
    """The command line by torchrun, or by python for one process; its output is one text."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        restarts = [word for word in words if word.startswith("--max-restarts")]
        launcher += [*restarts, "-m"]
    words = [word for word in words if not word.startswith("--max-restarts")]
    command = [*launcher, "helpers.training", *RUN.split(), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, text=True, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def output_of(process):
    """(exit status, all it printed)."""
    text, _ = process.communicate(timeout=240)
    return process.returncode, text


def metrics(folder):
    """metrics.csv as rows of numbers, seconds left out."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return torch.tensor(
        [[float(x) for name, x in row.items() if name != "seconds"] for row in rows]
    )


def weights(folder):
    """last.safetensors without the key biases.

    A key's bias adds the same to all scores of a query, so its true gradient is 0; AdamW turns what
    rounding leaves of it into steps of full size, and nothing depends on them.
    """
    found = load_file(folder / "last.safetensors")
    for name, weight in found.items():
        if name.endswith("attn.qkv.bias"):
            weight[len(weight) // 3 : 2 * len(weight) // 3] = 0
    return found


def assert_same(folder, expected, atol=2e-6):
    torch.testing.assert_close(metrics(folder), metrics(expected), atol=atol, rtol=1e-5)
    theirs = weights(expected)
    for name, weight in weights(folder).items():
        torch.testing.assert_close(weight, theirs[name], atol=atol, rtol=1e-5, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of an undisturbed run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    status, text = output_of(start("--run-dir", str(folder), processes=1))
    assert status == 0, text
    return folder


def kill_one(launcher, folder, state):
    """SIGKILL a process of the run as soon as folder/state is there; its number."""
    deadline = time.monotonic() + 120
    while not (folder / state).exists():
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    return children[-1]


# The parts of a batch


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parts_cover_a_batch_once_in_whole_pairs(monkeypatch, world):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    for total in [*range(1, 40), 512]:
        seen = []
        for r in range(world):
            monkeypatch.setattr(distributed, "rank", lambda r=r: r)
            part = my_part(total)
            assert part.start % 2 == 0 and part.total == total and part.stop > part.start
            seen += range(part.start, part.stop) if part.counts else []
        assert seen == list(range(total))


@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_counts_every_sample_once(monkeypatch, world):
    """An uneven split, in batches of which the last one leaves a process without images."""
    digits = load("digits")
    split = Split(digits.test.images[:43], digits.test.labels[:43])
    data = dataclasses.replace(digits, test=split)
    model = small_vit(img_size=8, in_chans=1).float()
    expected = training.evaluate(model, data)
    sums = []
    monkeypatch.setattr(training, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(training, "sum_over_processes", lambda t: (sums.append(t), t)[1])
    for r in range(world):
        monkeypatch.setattr(distributed, "rank", lambda r=r: r)
        training.evaluate(model, data, batch_size=42 // world)
    assert tuple((sum(sums) / 43).tolist()) == pytest.approx(expected)


# The same training


def test_two_processes_do_what_one_does(alone, tmp_path):
    """Same losses, same weights, also of the mean; no sample of an uneven split lost or doubled."""
    status, text = output_of(start("--run-dir", str(tmp_path)))
    assert status == 0, text
    assert_same(tmp_path, alone)
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (tmp_path, alone))
    assert ours["processes"] == 2 and theirs["processes"] == 1
    assert ours["test_accuracy"] == theirs["test_accuracy"]
    assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-5)
    assert len(re.findall(r"^epoch ", text, re.M)) == 4  # the first alone prints


def test_shared_weights_train_the_same(alone, tmp_path):
    """FSDP2, and its state is one that a single process can go on from."""
    status, text = output_of(start("--fsdp", "--run-dir", str(tmp_path)))
    assert status == 0, text
    assert_same(tmp_path, alone)
    newest = tmp_path / "state-00004.pt"
    newest.unlink()
    status, text = output_of(start("--run-dir", str(tmp_path), "--resume", processes=1))
    assert status == 0 and newest.exists(), text
    assert_same(tmp_path, alone)


# Failures


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_a_killed_process_stops_the_run_and_resume_goes_on(alone, tmp_path):
    launcher = start("--run-dir", str(tmp_path))
    killed = kill_one(launcher, tmp_path, "state-00001.pt")
    status, text = output_of(launcher)
    assert status != 0
    assert "--resume goes on from there" in text, text
    assert f"Signal 9 (SIGKILL) received by PID {killed}" in text
    assert not (tmp_path / "result.json").exists()
    status, text = output_of(start("--run-dir", str(tmp_path), "--resume"))
    assert status == 0, text
    assert_same(tmp_path, alone)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_torchrun_restarts_a_killed_process_from_the_last_state(alone, tmp_path):
    launcher = start("--max-restarts=1", "--run-dir", str(tmp_path))
    kill_one(launcher, tmp_path, "state-00002.pt")
    status, text = output_of(launcher)
    assert status == 0, text
    assert json.loads((tmp_path / "run.json").read_text())["resumed"][0]["epoch"] >= 2
    assert_same(tmp_path, alone)


def test_fsdp_alone_is_refused(tmp_path):
    status, text = output_of(start("--fsdp", processes=1))
    assert status == 1 and "start them with torchrun" in text
