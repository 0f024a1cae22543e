"""What a run leaves and how it goes on: helpers/checkpoints.py, helpers/scale/, many processes."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import helpers.scale.states
from helpers import training
from helpers.augmentation import augment, erase, mix, normalize
from helpers.checkpoints import load_checkpoint, model_arguments, save_checkpoint
from helpers.data import Split, load
from helpers.model import MLP, VisionTransformer
from helpers.scale import distributed
from helpers.scale.states import newest_state, restore, states, training_state
from helpers.scale.streaming import load_streaming
from helpers.training import TrainConfig, evaluate, fit, predict
from tests.peers import randomize
from tests.test_training import ROOT, command, few_digits, same_weights, tiny_vit

DROPOUT = dict(drop_rate=0.1, depth=2)


@pytest.fixture(scope="module")
def few():
    return few_digits(100)


def whole(**changes):
    """Everything switched on that has a state: dropout, drop-path, mixing, a policy, EMA."""
    settings = dict(epochs=4, batch_size=32, lr=3e-3, device="cpu", precision="float32")
    settings |= dict(policy="trivial", mixup=0.3, cutmix=0.3, erase=0.2, drop_path=0.2, ema=0.9)
    return TrainConfig(**(settings | changes))


def stop_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise KeyboardInterrupt

    return on_epoch


# Weights


def test_checkpoint_round_trip_with_the_users_own_permissions(few, tmp_path):
    model = randomize(tiny_vit(global_pool="avg", representation_size=12, mlp_ratio=2.0)).eval()
    path, before = tmp_path / "new" / "a.safetensors", os.umask(0o027)
    try:
        save_checkpoint(path, model, few, {"epoch": 3})
    finally:
        os.umask(before)
    again, facts = load_checkpoint(path)
    assert torch.equal(predict(model, few, few.test.images), predict(again, few, few.test.images))
    assert facts["epoch"] == 3 and facts["classes"] == list("0123456789") and not again.training
    assert facts["mean"] == list(few.mean) and facts["data"] == "digits"
    assert list(path.parent.iterdir()) == [path]
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o640


def test_the_arguments_read_off_a_model_build_one_of_its_shape():
    for dim, hidden in ((100, 29), (12, 7)):  # 29 / 100 * 100 is a hair below 29
        model = tiny_vit(img_size=(8, 4), embed_dim=dim, num_heads=1)
        model.blocks[0].mlp = MLP(dim, hidden)
        again = VisionTransformer(**model_arguments(model))
        again.load_state_dict(model.state_dict(), strict=True)
        assert again.patch_embed.input_shape == (1, 8, 4)  # 4 x 8 has weights of the same shapes


def test_a_failed_save_leaves_the_old_file_whole(few, tmp_path, monkeypatch):
    path, write = tmp_path / "a.safetensors", Path.write_bytes
    save_checkpoint(path, tiny_vit(), few)
    before = path.read_bytes()

    def half(self, content):
        write(self, content[:100])
        assert path.read_bytes() == before
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, tiny_vit(seed=1), few)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_broken_and_foreign_checkpoints_are_refused(few, tmp_path):
    path, foreign = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(path)
    save_checkpoint(path, tiny_vit(), few)
    path.write_bytes(path.read_bytes()[:-100])
    save_file({"weight": torch.zeros(2)}, foreign)
    for bad in (path, foreign):
        with pytest.raises(ValueError, match="no whole checkpoint"):
            load_checkpoint(bad)


@pytest.mark.parametrize(
    "change",
    [
        dict(registers=4),
        dict(embed_dim=24),
        dict(depth=3),
        dict(num_heads=5),
        dict(depth="x"),
        None,
    ],
)
def test_a_checkpoint_with_other_facts_is_refused_with_what_to_do(change, few, tmp_path):
    """Of a newer version, or changed by hand."""
    path, model = tmp_path / "a.safetensors", tiny_vit()
    facts = {"model": model_arguments(model) | change} if change else {"classes": []}
    save_file(model.state_dict(), path, metadata={"vit": json.dumps(facts)})
    with pytest.raises(ValueError, match="make no model here.*newer version.*update") as caught:
        load_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1
    save_file(model.state_dict(), path, metadata={"vit": "{"})
    with pytest.raises(ValueError, match="no whole checkpoint"):
        load_checkpoint(path)


def test_the_kept_model_is_as_good_as_its_card_says():
    model, facts = load_checkpoint(ROOT / "data/checkpoints/fashion-mnist.safetensors")
    card = (ROOT / "data/checkpoints/README.md").read_text(encoding="utf-8")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    if not (Path(os.environ.get("VIT_DATA", "")) / "FashionMNIST").is_dir():
        pytest.skip("VIT_DATA names no folder with Fashion-MNIST")
    data = load("fashion-mnist")
    assert facts["mean"] == list(data.mean)  # the same training images
    assert f"{evaluate(model, data)[1]:.2%}".replace("%", " %") in card


# Going on


def test_a_resumed_run_ends_with_the_same_weights(few, tmp_path):
    """Stopped by Ctrl-C, resumed, resumed again when all is done."""
    straight = tiny_vit(**DROPOUT)
    expected = fit(straight, few, whole(run_dir=str(tmp_path / "straight")))
    broken, folder = tiny_vit(**DROPOUT), tmp_path / "broken"
    config = whole(run_dir=str(folder))
    first = fit(broken, few, config, on_epoch=stop_after(2), facts={"turn": 1})
    assert first.interrupted and first.test_accuracy is None and len(first.epochs) == 2
    kept, facts = load_checkpoint(folder / "last.safetensors")
    assert same_weights(kept, broken) and facts["epoch"] == 2 and facts["config"]["epochs"] == 4
    for turn in (2, 3):
        again = tiny_vit(seed=9, **DROPOUT)  # other starting weights: the state brings its own
        config = whole(run_dir=str(folder), resume=True)
        history = fit(again, few, config, facts={"turn": turn})
        assert same_weights(again, straight) and history.test_loss == expected.test_loss
        for ours, theirs in zip(history.epochs, expected.epochs, strict=True):
            assert replace(ours, seconds=0) == replace(theirs, seconds=0)
        seconds = [record.seconds for record in history.epochs]
        assert seconds == sorted(seconds)
    facts = json.loads((folder / "run.json").read_bytes())  # the first description is kept
    assert facts["turn"] == 1
    assert [(r["epoch"], r["turn"]) for r in facts["resumed"]] == [(2, 2), (4, 3)]


def test_the_folder_says_all_that_a_repetition_needs_and_leaves_the_users_files(few, tmp_path):
    own = {".tmp_notes", "notes.txt", ".run.json.swp", "state-00001 (copy).pt", "state-best.pt"}
    folders = {".tmpdir", ".run.json.7"}
    left = {".run.json.123", ".state-00001.pt.4567"}  # by a process that was killed
    for name in own | left:
        (tmp_path / name).touch()
    for name in folders:
        (tmp_path / name).mkdir()
    config = whole(run_dir=str(tmp_path), epochs=3, tensorboard=True)
    history = fit(tiny_vit(), few, config, facts={"why": "test"})
    written = {"last.safetensors", "metrics.csv", "run.json", "state-00002.pt", "state-00003.pt"}
    found = {path.name for path in tmp_path.iterdir()}
    assert found == written | own | folders | {"tensorboard", ".lock"}
    losses = [record.validation_loss for record in history.epochs]
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        assert [float(row["validation_loss"]) for row in csv.DictReader(file)] == losses
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("validation_loss")
    assert [event.value for event in events] == pytest.approx(losses)
    facts = json.loads((tmp_path / "run.json").read_bytes())
    assert facts["why"] == "test" and facts["data"]["train images"] == 100
    assert {"versions", "command", "machine", "processes", "date", "precision"} <= set(facts)
    torch.manual_seed(0)
    repeated = VisionTransformer(**facts["model"])
    fit(repeated, few, TrainConfig(**(facts["config"] | {"run_dir": None})))
    kept, _ = load_checkpoint(tmp_path / "last.safetensors")
    assert same_weights(repeated, kept)
    assert evaluate(kept, few) == (history.test_loss, history.test_accuracy)


class Evil:
    def __reduce__(self):
        return os.system, ("echo pickled code ran",)


def test_a_truncated_state_is_skipped_and_none_can_run_code(few, tmp_path, capfd):
    config, straight, again = whole(run_dir=str(tmp_path)), tiny_vit(), tiny_vit(seed=1)
    fit(straight, few, replace(config, run_dir=None))
    fit(tiny_vit(), few, config, on_epoch=stop_after(3))
    newest = states(tmp_path)[-1]
    content = newest.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        newest.write_bytes(content[:size])
        assert newest_state(tmp_path)["epoch"] == 2
        assert "state-00003.pt" in capfd.readouterr().err
    fit(again, few, replace(config, resume=True))
    assert same_weights(straight, again)
    for path in states(tmp_path):
        torch.save({"x": Evil()}, path)
    with pytest.raises(ValueError, match="none of the 2 states"):
        newest_state(tmp_path)
    assert "pickled code ran" not in capfd.readouterr().out


def test_another_run_is_refused_with_the_first_difference_and_nothing_overwritten(few, tmp_path):
    config = whole(run_dir=str(tmp_path), epochs=1)
    fit(tiny_vit(), few, config)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = replace(config, resume=True)
    fewer = replace(few, train=Split(few.train.images[:90], few.train.labels[:90]))
    for model, data, settings, message in (
        (tiny_vit(embed_dim=24), few, again, "architecture: embed_dim is 16 in its state and 24"),
        (tiny_vit(depth=3, mlp_ratio=2.0), few, again, "depth is 1 in its state and 3 now"),
        (tiny_vit(), few, replace(again, lr=1e-4), "settings: lr is 0.003 in its"),
        (tiny_vit(), fewer, again, "differs in data: train images is 100 in its state and 90 now"),
        (tiny_vit(), few, config, "holds a run, up to state-00001.pt"),
        (tiny_vit(), few, whole(resume=True), "resume needs a run_dir"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, data, settings)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_goes_on_with_the_very_same_data_alone(few, tmp_path):
    """Other splits would make test images training images; nothing else would tell."""
    config = whole(run_dir=str(tmp_path / "run"), epochs=1, shift=0)
    own, other = (
        pictures(tmp_path / name / "cats and dogs", seed) for seed, name in enumerate("ab")
    )
    data = load(own, img_size=8)
    fit(tiny_vit(in_chans=3, num_classes=2), data, config)
    swapped = replace(data, train=Split(data.train.images, data.train.labels.flip(0)))
    for another, message in (
        (load(own, img_size=8, split_seed=1), "split_seed is 0 in its state and 1 now"),
        (load(own, img_size=8, test=0.3), "test is 0.2 in its state and 0.3 now"),
        (load(other, img_size=8), "digest of train is"),
        (load_streaming(own, img_size=8), "streamed is False in its state and True now"),
        (replace(data, flip=False), "flip is True in its state and False now"),
        (swapped, "digest of train is"),
        (replace(data, test=data.validation), "test images is|digest of test is"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(tiny_vit(in_chans=3, num_classes=2), another, replace(config, resume=True))
    streamed, config = load_streaming(own, img_size=8), replace(config, run_dir=str(tmp_path / "s"))
    fit(tiny_vit(in_chans=3, num_classes=2), streamed, config)
    shutil.move(own.parent, tmp_path / "moved")  # the same pictures elsewhere are the same
    moved = load_streaming(tmp_path / "moved" / own.name, img_size=8)
    again = replace(config, resume=True)
    assert fit(tiny_vit(in_chans=3, num_classes=2), moved, again).test_loss is not None
    extra = tmp_path / "moved" / own.name / "cat" / "0x.png"
    (extra.parent / "00.png").rename(extra)
    with pytest.raises(ValueError, match="digest of"):
        fit(
            tiny_vit(in_chans=3, num_classes=2),
            load_streaming(moved_folder(moved), img_size=8),
            again,
        )


def pictures(folder, seed):
    """Twelve pictures each of cats and dogs, of noise."""
    noise = torch.Generator().manual_seed(seed)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            image = torch.randint(256, (8, 8, 3), generator=noise, dtype=torch.uint8)
            Image.fromarray(image.numpy()).save(folder / name / f"{i:02}.png")
    return folder


def moved_folder(data):
    return data.train.paths[0].parents[1]


HOLD = """
import sys
from tests.test_runs import *
def wait(record):
    print("in", flush=True)
    sys.stdin.readline()
fit(tiny_vit(), few_digits(64), whole(epochs=1, run_dir=sys.argv[1]), on_epoch=wait)
"""


def test_two_runs_never_share_a_folder(few, tmp_path):
    config = whole(epochs=1, run_dir=str(tmp_path), resume=True)
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    with subprocess.Popen(words, cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match=f"is in use by process {other.pid} on .*run_dir"):
            fit(tiny_vit(), few, config)
        other.communicate("\n")
    assert other.returncode == 0
    config = replace(config, run_dir=str(tmp_path / "b"))

    def fail(record):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fit(tiny_vit(), few, config, on_epoch=fail)
    assert len(fit(tiny_vit(), few, config).epochs) == 1  # an error gives the folder back


def test_resuming_where_nothing_is_says_that_it_starts_anew(few, tmp_path, capsys):
    fit(tiny_vit(depth=2), few, whole(epochs=1, run_dir=str(tmp_path / "typo"), resume=True))
    assert "typo holds no state: the run starts anew" in capsys.readouterr().err


def test_a_table_held_open_by_another_program_does_not_end_the_run(
    few, tmp_path, monkeypatch, capsys
):
    renamed, held = os.replace, []

    def replaced(source, target):
        if Path(target).name == "metrics.csv" and len(held) < 2:
            held.append(target)
            raise PermissionError(13, "Permission denied")
        renamed(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    fit(tiny_vit(depth=2), few, whole(epochs=3, run_dir=str(tmp_path)))
    assert capsys.readouterr().err.count("metrics.csv cannot be written") == 2
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8").count("\n") == 4


# Ctrl-C


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_ctrl_c_in_an_epoch_leaves_the_weights_of_the_last_whole_one(ema, few, monkeypatch):
    expected, model = tiny_vit(depth=2), tiny_vit(depth=2)
    config = whole(ema=ema, mixup=0, cutmix=0)
    fit(expected, few, config, on_epoch=stop_after(2))
    steps, step = [], training.train_step

    def interrupted(*rest):
        steps.append(0)
        if len(steps) == 2 * 4 + 3:  # in the third epoch
            raise KeyboardInterrupt
        return step(*rest)

    monkeypatch.setattr(training, "train_step", interrupted)
    history = fit(model, few, config)
    assert history.interrupted and len(history.epochs) == 2 and same_weights(model, expected)
    start = tiny_vit(depth=2)
    steps[:] = range(9)
    fit(start, few, config)
    assert same_weights(start, tiny_vit(depth=2))  # in the first: the weights that it came with


def test_in_a_notebook_the_stop_button_stops_the_cell(tmp_path):
    """A loop over models must not go on to the next; what is saved is whole."""
    notebook = nbformat.v4.new_notebook()
    code = f"""
from tests.test_runs import *
for name in ("a", "b"):
    fit(tiny_vit(), few_digits(64), whole(run_dir={str(tmp_path)!r} + "/" + name), stop_after(2))
"""
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    with pytest.raises(
        nbclient.exceptions.CellExecutionError, match="stopped after 2 whole epochs"
    ):
        nbclient.NotebookClient(notebook, resources={"metadata": {"path": ROOT}}).execute()
    assert newest_state(tmp_path / "a")["epoch"] == 2 and not (tmp_path / "b").exists()


def kill_at_twenty_random_moments(root):
    """In a process of its own with one thread: copies of it train, are killed and go on.

    Each is left alone until it has saved a state, so that there is progress on any machine.
    """
    data, moments, kills, folders = few_digits(100), random.Random(0), 0, [root / "run0"]
    torch.set_num_threads(1)

    def attempt(folder):
        child = os.fork()
        if not child:
            fit(tiny_vit(**DROPOUT), data, whole(epochs=20, run_dir=str(folder), resume=True))
            os._exit(0)
        return child

    while kills < 20:
        folder = folders[-1]
        reached, child, deadline = states(folder), attempt(folder), time.monotonic() + 60
        while states(folder) == reached and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(moments.choice((0, moments.uniform(0, 0.1))))  # at once, or later
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert states(folder) > reached and code in (0, -signal.SIGKILL)
        for path in states(folder):  # what bears the name is whole
            torch.load(path, weights_only=True)
        kills += code != 0
        if states(folder)[-1].name == "state-00020.pt":  # done: the next ones are for a new run
            folders.append(root / f"run{len(folders)}")
    for folder in [root / "straight", *folders]:
        assert os.waitpid(attempt(folder), 0)[1] == 0
        found, expected = (load_file(f / "last.safetensors") for f in (folder, root / "straight"))
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
        assert [path.name for path in folder.glob(".*")] == [".lock"]  # nothing half-written


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_killed_at_twenty_random_moments_a_run_always_goes_on(tmp_path):
    """Each time the next attempt goes on; the end is that of a run that nobody disturbed."""
    script = "from tests.test_runs import *; kill_at_twenty_random_moments(Path(sys.argv[1]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(words, cwd=ROOT, env=environment, check=True)


# What each of several processes does, seen from one


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_share_each_batch_and_evaluation(few, monkeypatch, world):
    """Of 67 images in batches of 33, the last holds one: too few for all processes."""
    few = replace(few, train=Split(few.train.images[:67], few.train.labels[:67]))
    model, config, sums, parts = randomize(tiny_vit()), whole(batch_size=33), [], []
    expected, read = evaluate(model, few, "train"), few.train.reader(torch.device("cpu"))
    monkeypatch.setattr(training, "sum_over_processes", lambda t: (sums.append(t), t)[1])
    for module in (distributed, training):
        monkeypatch.setattr(module, "world_size", lambda: world)
    for r in range(world):
        monkeypatch.setattr(distributed, "rank", lambda r=r: r)
        generator = torch.Generator().manual_seed(1)
        parts.append(list(training.training_batches(few, config, generator, read)))
        evaluate(model, few, "train", batch_size=66 // world)
    assert tuple((sum(sums) / 67).tolist()) == pytest.approx(expected)
    generator.manual_seed(1)
    order = torch.randperm(67, generator=generator).split(33)
    for chosen, *shares in zip(order, *parts, strict=True):
        images = augment(few.train.images[chosen], config, few.flip, generator)
        images = erase(normalize(images, few), config, generator)
        images, labels = mix(images, few.train.labels[chosen], 10, config, generator)
        shares = [share for share in shares if share[2]]  # those of weight 0 do not count
        assert torch.equal(torch.cat([share[0] for share in shares]), images)
        assert torch.equal(torch.cat([share[1] for share in shares]), labels)
        for x, _, weight in shares:  # DDP takes the mean over processes of weight * mean loss
            assert weight == pytest.approx(len(x) * world / len(chosen))


def test_each_process_has_random_numbers_of_its_own_and_gets_them_back(few, monkeypatch):
    models = [tiny_vit(**DROPOUT) for _ in range(2)]
    for r, model in enumerate(models):
        monkeypatch.setattr(training, "rank", lambda r=r: r)
        fit(model, few, whole(epochs=1))
    assert not same_weights(*models)
    optimizer = torch.optim.AdamW(models[0].parameters())
    optimizer.step()  # an optimizer without a state cannot be restored
    parts = models[0], optimizer, None, torch.Generator()
    saved = [torch.Generator().manual_seed(seed).get_state() for seed in (5, 6)]
    state = training_state(*parts) | {"random": torch.stack(saved), "cuda_random": None}
    for r, seed in enumerate((5, 6, 7)):  # the third was not there: it keeps what it has
        torch.manual_seed(7)
        monkeypatch.setattr(helpers.scale.states, "rank", lambda r=r: r)
        restore(state, *parts)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.manual_seed(seed)))


@pytest.mark.parametrize("total", [*range(1, 40), 512])
def test_every_image_of_a_batch_has_one_process_and_pairs_stay_whole(total, monkeypatch):
    for world in (1, 2, 3, 5, 8):
        monkeypatch.setattr(distributed, "world_size", lambda world=world: world)
        held = []
        for r in range(world):
            monkeypatch.setattr(distributed, "rank", lambda r=r: r)
            part = distributed.my_part(total)
            assert 0 <= part.start < part.stop <= total == part.total and part.start % 2 == 0
            held += range(part.start, part.stop) if part.counts else []
        assert held == list(range(total))


def test_in_evaluation_each_process_calls_the_model_once_a_batch(few, monkeypatch):
    """FSDP gathers weights in each call: where one calls more often, all wait for ever."""
    model, calls = tiny_vit(), []
    model.register_forward_hook(lambda *_: calls.append(0))
    for module in (distributed, training):
        monkeypatch.setattr(module, "world_size", lambda: 2)
    for total in (100, 99, 61, 3, 1):
        data, counts = (
            replace(few, test=Split(few.train.images[:total], few.train.labels[:total])),
            [],
        )
        for r in range(2):
            calls.clear()
            monkeypatch.setattr(distributed, "rank", lambda r=r: r)
            evaluate(model, data, batch_size=15)
            counts.append(len(calls))
        assert counts[0] == counts[1] == -(-total // 30)


def test_processes_on_a_cpu_leave_the_gpu_alone(monkeypatch):
    """As on a machine with a GPU, asked for --device cpu."""
    backends = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda i: backends.append(i))
    monkeypatch.setattr(distributed.dist, "rendezvous", lambda _: iter([(None, 0, 1)]))
    monkeypatch.setattr(distributed.dist, "PrefixStore", lambda *_: None)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda b, **_: backends.append(b))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("on the first card"))
    for device in ("cpu", "auto", "cuda"):
        with distributed.joined(device):
            pass
    assert backends == ["gloo"] + 2 * [3, "cpu:gloo,cuda:nccl"]


def test_shared_weights_stay_on_the_device_of_the_model(monkeypatch):
    """Without a mesh of its own fully_shard would take the accelerator, whatever was asked."""
    meshes, model = [], tiny_vit(depth=2)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "init_device_mesh", lambda *mesh: mesh)
    monkeypatch.setattr(
        torch.distributed.fsdp, "fully_shard", lambda part, mesh=None, **_: meshes.append(mesh)
    )
    distributed.distribute(model, fsdp=True)
    assert meshes == [("cpu", (2,))] * 3  # two blocks and the model


# Several processes in earnest, on the CPU (gloo)

# 1,293 images in batches of 38: 18 for one process, 20 for the other; the last batch is one image.
RUN = "--epochs 4 --embed-dim 16 --depth 2 --num-heads 2 --batch-size 38 --device cpu --ema 0.9 "
RUN += "--precision float32 --policy trivial --mixup 0.3 --cutmix 0.3 --erase 0.2 --run-dir"
RUN = RUN.split()


def start(*words, restarts=0):
    """The command line by torchrun, in two processes; its output is one text."""
    launcher = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    launcher += [f"--max-restarts={restarts}", "-m", "helpers.train"]
    return subprocess.Popen([sys.executable, *launcher, *RUN, *map(str, words)], cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def numbers(folder):
    """metrics.csv without the seconds, and last.safetensors without the key biases.

    A key's bias adds the same to all scores of a query, so its true gradient is 0; AdamW turns what
    rounding leaves of it into steps of full size, and nothing depends on them.
    """
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row | {"seconds": 0} for row in csv.DictReader(file)]
    found = {"metrics": torch.tensor([[float(x) for x in row.values()] for row in rows])}
    for name, weight in load_file(folder / "last.safetensors").items():
        if name.endswith("attn.qkv.bias"):
            weight[len(weight) // 3 : 2 * len(weight) // 3] = 0
        found[name] = weight
    return found


def assert_same(folder, expected):
    torch.testing.assert_close(numbers(folder), numbers(expected), atol=2e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of an undisturbed run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert command(*RUN, folder) == 0
    return folder


@pytest.mark.parametrize("words", [(), ("--fsdp",)], ids=["DDP", "FSDP2"])
def test_two_processes_do_what_one_does_and_one_goes_on_from_their_state(alone, tmp_path, words):
    """Same losses, same weights, also of the mean; no sample of an uneven split lost or doubled."""
    process = start(tmp_path, *words)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert_same(tmp_path, alone)
    ours, theirs = (json.loads((f / "result.json").read_bytes()) for f in (tmp_path, alone))
    assert ours["processes"] == 2 and theirs["processes"] == 1
    assert ours["test_accuracy"] == theirs["test_accuracy"]
    assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-5)
    assert len(re.findall(r"^epoch ", text, re.M)) == 4  # the first alone prints
    newest = tmp_path / "state-00004.pt"
    newest.unlink()
    assert command(*RUN, tmp_path, "--resume") == 0
    assert newest.exists()
    assert_same(tmp_path, alone)


def kill_one(launcher, folder, seen=()):
    """SIGKILL a process of the run at its next state -> (the process's number, states then)."""
    deadline = time.monotonic() + 120
    while set(states(folder)) <= set(seen):
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_bytes().split()
    os.kill(killed := int(children[-1]), signal.SIGKILL)
    return killed, states(folder)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_a_killed_process_is_started_again_or_stops_the_run_and_resume_goes_on(alone, tmp_path):
    launcher = start(tmp_path, restarts=1)
    _, seen = kill_one(launcher, tmp_path)
    killed, _ = kill_one(launcher, tmp_path, seen)  # torchrun has started all again, once
    text, _ = launcher.communicate(timeout=240)
    assert launcher.returncode != 0
    assert "--resume goes on from there" in text, text
    assert f"Signal 9 (SIGKILL) received by PID {killed}" in text
    assert not (tmp_path / "result.json").exists()
    assert command(*RUN, tmp_path, "--resume") == 0
    restarted, resumed = json.loads((tmp_path / "run.json").read_bytes())["resumed"]
    assert 1 <= restarted["epoch"] < resumed["epoch"]
    assert_same(tmp_path, alone)
