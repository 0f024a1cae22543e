"""helpers/checkpoints.py and helpers/scale/run_folder.py: what a run leaves, and going on from it."""

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers import checkpoints
from helpers.checkpoints import load_checkpoint, save_checkpoint, whole_file
from helpers.data import Split, load
from helpers.model import MLP, VisionTransformer
from helpers.scale.states import newest_state, states
from helpers.training import TrainConfig, evaluate, fit, predict
from tests.peers import randomize

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(
    img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depth=2, num_heads=2
)


@pytest.fixture(scope="module")
def few():
    """100 training images of the digits."""
    digits = load("digits")

    def first(split, n):
        return Split(split.images[:n], split.labels[:n])

    return dataclasses.replace(
        digits,
        train=first(digits.train, 100),
        validation=first(digits.validation, 30),
        test=first(digits.test, 30),
    )


def tiny_vit(seed=0, **changes):
    torch.manual_seed(seed)
    return VisionTransformer(**(TINY | changes))


def whole(**changes):
    """Everything switched on that has a state: dropout, drop-path, mixing, a policy, EMA."""
    settings = dict(epochs=5, batch_size=32, lr=3e-3, device="cpu", precision="float32")
    settings |= dict(policy="trivial", mixup=0.3, cutmix=0.3, erase=0.2, drop_path=0.2, ema=0.9)
    return TrainConfig(**(settings | changes))


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def stop_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise KeyboardInterrupt

    return on_epoch


# Weights


def test_checkpoint_round_trip(few, tmp_path):
    model = randomize(tiny_vit(global_pool="avg", representation_size=12, mlp_ratio=2.0)).eval()
    save_checkpoint(tmp_path / "new" / "a.safetensors", model, few, {"epoch": 3})
    again, facts = load_checkpoint(tmp_path / "new" / "a.safetensors")
    assert torch.equal(predict(model, few, few.test.images), predict(again, few, few.test.images))
    assert facts["epoch"] == 3 and facts["classes"] == list("0123456789")
    assert facts["mean"] == list(few.mean) and facts["data"] == "digits"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dim, hidden", [(123, 60), (12, 7), (100, 29), (64, 256)])
def test_any_hidden_width_comes_back(few, tmp_path, dim, hidden):
    model = tiny_vit(embed_dim=dim, num_heads=1, depth=1)
    block = model.blocks[0]
    block.mlp = MLP(dim, hidden)
    save_checkpoint(tmp_path / "a.safetensors", model, few)
    again, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert again.blocks[0].mlp.fc1.out_features == hidden


def test_a_failed_save_leaves_the_old_checkpoint_whole(few, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tiny_vit(), few)
    before = path.read_bytes()

    def half(weights, name, metadata):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, tiny_vit(seed=1), few)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_broken_and_foreign_checkpoints_are_refused(few, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(path)
    save_checkpoint(path, tiny_vit(), few)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole checkpoint"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        load_checkpoint(path)


def test_the_kept_model_is_as_good_as_its_card_says():
    model, facts = load_checkpoint(ROOT / "data/checkpoints/fashion-mnist.safetensors")
    card = (ROOT / "data/checkpoints/README.md").read_text()
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    if not (Path(os.environ.get("VIT_DATA", "")) / "FashionMNIST").is_dir():
        pytest.skip("VIT_DATA names no folder with Fashion-MNIST")
    data = load("fashion-mnist")
    assert facts["mean"] == list(data.mean)  # the same training images
    assert f"{evaluate(model, data)[1]:.2%}".replace("%", " %") in card


# Going on


def test_a_resumed_run_ends_with_the_same_weights(few, tmp_path):
    straight = tiny_vit(drop_rate=0.1)
    expected = fit(straight, few, whole(run_dir=str(tmp_path / "straight")))
    broken = tiny_vit(drop_rate=0.1)
    folder = str(tmp_path / "broken")
    first = fit(broken, few, whole(run_dir=folder), on_epoch=stop_after(2))
    assert first.interrupted and len(first.epochs) == 2
    again = tiny_vit(seed=9, drop_rate=0.1)  # other starting weights: the state brings its own
    second = fit(again, few, whole(run_dir=folder, resume=True))
    assert same_weights(again, straight)
    assert second.test_loss == expected.test_loss
    for ours, theirs in zip(second.epochs, expected.epochs, strict=True):
        assert dataclasses.replace(ours, seconds=0) == dataclasses.replace(theirs, seconds=0)
    seconds = [record.seconds for record in second.epochs]
    assert seconds == sorted(seconds)


def test_the_folder_says_all_that_a_repetition_needs(few, tmp_path):
    history = fit(tiny_vit(), few, whole(run_dir=str(tmp_path), epochs=2), facts={"why": "test"})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last.safetensors", "metrics.csv", "run.json", "state-00001.pt", "state-00002.pt"
    ]  # fmt: skip
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation_loss"]) for row in rows] == [
        record.validation_loss for record in history.epochs
    ]
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["why"] == "test" and facts["data"]["images"] == 100
    assert {"versions", "command", "machine", "processes", "date", "precision"} <= set(facts)
    repeated = VisionTransformer(**facts["model"])
    torch.manual_seed(0)
    repeated = VisionTransformer(**facts["model"])
    fit(repeated, few, TrainConfig(**(facts["config"] | {"run_dir": None})))
    kept, _ = load_checkpoint(tmp_path / "last.safetensors")
    assert same_weights(repeated, kept)
    assert evaluate(kept, few) == (history.test_loss, history.test_accuracy)


def test_resuming_keeps_the_first_description_and_adds_to_it(few, tmp_path):
    config = whole(run_dir=str(tmp_path), epochs=3)
    fit(tiny_vit(), few, config, on_epoch=stop_after(1), facts={"turn": 1})
    fit(tiny_vit(), few, dataclasses.replace(config, resume=True), facts={"turn": 2})
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["turn"] == 1
    assert [(r["epoch"], r["turn"]) for r in facts["resumed"]] == [(1, 2)]


def test_a_finished_run_is_resumed_to_its_result(few, tmp_path):
    config = whole(run_dir=str(tmp_path), epochs=2)
    model, again = tiny_vit(), tiny_vit(seed=1)
    expected = fit(model, few, config)
    history = fit(again, few, dataclasses.replace(config, resume=True))
    assert same_weights(model, again) and history.test_loss == expected.test_loss


def test_a_truncated_state_is_named_and_skipped(few, tmp_path, capsys):
    config = whole(run_dir=str(tmp_path), epochs=4)
    straight = tiny_vit()
    fit(straight, few, dataclasses.replace(config, run_dir=None))
    fit(tiny_vit(), few, config, on_epoch=stop_after(3))
    newest = states(tmp_path)[-1]
    content = newest.read_bytes()
    again = tiny_vit()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        newest.write_bytes(content[:size])
        state = newest_state(tmp_path)
        assert state["epoch"] == 2
        assert "state-00003.pt" in capsys.readouterr().err
    fit(again, few, dataclasses.replace(config, resume=True))
    assert same_weights(straight, again)
    for path in states(tmp_path):
        path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="none of the 2 states"):
        newest_state(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("echo pickled code ran",)


def test_a_state_cannot_run_code(tmp_path, capfd):
    torch.save({"x": Evil()}, tmp_path / "state-00001.pt")
    with pytest.raises(ValueError, match="none of the 1 states"):
        newest_state(tmp_path)
    assert "pickled code ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "changes, settings, message",
    [
        (dict(embed_dim=24), {}, "another architecture: embed_dim is 16 in its state and 24 now"),
        (dict(depth=3, mlp_ratio=2.0), {}, "depth is 2 in its state and 3 now"),
        ({}, dict(lr=1e-4), "another settings: lr is 0.003 in its state and 0.0001 now"),
    ],
)
def test_another_run_is_refused_with_the_first_difference(
    few, tmp_path, changes, settings, message
):
    config = whole(run_dir=str(tmp_path), epochs=1)
    fit(tiny_vit(), few, config)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = dataclasses.replace(config, resume=True, **settings)
    with pytest.raises(ValueError, match=message):
        fit(tiny_vit(**changes), few, other)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_data_is_refused(few, tmp_path):
    config = whole(run_dir=str(tmp_path), epochs=1)
    fit(tiny_vit(), few, config)
    fewer = dataclasses.replace(few, train=Split(few.train.images[:90], few.train.labels[:90]))
    with pytest.raises(ValueError, match="another data: images is 100 in its state and 90 now"):
        fit(tiny_vit(), fewer, dataclasses.replace(config, resume=True))


def test_a_run_is_not_overwritten_and_resume_needs_a_folder(few, tmp_path):
    config = whole(run_dir=str(tmp_path), epochs=1)
    fit(tiny_vit(), few, config)
    with pytest.raises(ValueError, match="holds a run, up to state-00001.pt"):
        fit(tiny_vit(), few, config)
    with pytest.raises(ValueError, match="resume needs a run_dir"):
        fit(tiny_vit(), few, whole(resume=True))


def test_a_file_gets_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError), whole_file(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "old"


def test_tensorboard_gets_the_same_numbers(few, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = fit(tiny_vit(), few, whole(run_dir=str(tmp_path), epochs=2, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = [event.value for event in events.Scalars("validation_loss")]
    assert values == pytest.approx([record.validation_loss for record in history.epochs])


# Killed at any moment

KILLED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from tests.test_checkpoints import few, tiny_vit, whole
from helpers.training import fit
data = few.__wrapped__()
for line in sys.stdin:
    moment, folder = line.split()
    child = os.fork()
    if not child:
        fit(tiny_vit(drop_rate=0.1), data, whole(epochs=40, run_dir=folder, resume=True))
        os._exit(0)
    time.sleep(float(moment))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def one_thread():
    """Sums of one thread and of several differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_killed_at_twenty_random_moments_a_run_always_goes_on(few, tmp_path, one_thread):
    """Each time the next attempt goes on; the end is that of a run that nobody disturbed."""
    straight = tiny_vit(drop_rate=0.1)
    fit(straight, few, whole(epochs=40))
    script = KILLED.format(root=str(ROOT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    harness = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, env=environment)  # fmt: skip
    moments, kills, folders, reached = random.Random(0), 0, [tmp_path / "run0"], 0
    while kills < 20:
        print(moments.uniform(0.01, 0.3), folders[-1], file=harness.stdin, flush=True)
        killed = int(harness.stdout.readline()) == -signal.SIGKILL
        kills += killed
        for path in states(folders[-1]):  # what bears the name is whole
            torch.load(path, weights_only=True)
        epochs = [int(path.stem[-5:]) for path in states(folders[-1])]
        assert max(epochs, default=0) >= reached
        reached = max(epochs, default=0)
        if not killed:  # it was faster: the next ones are for a new run
            assert reached == 40
            folders.append(tmp_path / f"run{len(folders)}")
            reached = 0
    harness.stdin.close()
    assert harness.wait() == 0
    for folder in folders:
        finished = tiny_vit(seed=3, drop_rate=0.1)
        fit(finished, few, whole(epochs=40, run_dir=str(folder), resume=True))
        assert same_weights(finished, straight)
        assert not list(folder.glob(".*"))  # no half-written file is left
