"""What a training run leaves in its folder, and how it goes on from there.

    run.json           model, settings, data, versions, machine, command: what a repetition needs
    metrics.csv        a row for each epoch
    last.safetensors   the weights after the last whole epoch, for load_checkpoint
    state-00012.pt     the whole state after epoch 12, to go on from; the newest two are kept
    tensorboard/       with config.tensorboard: the same metrics for TensorBoard
    .lock              held by the process that trains here

Every file is written whole or not at all. The first process writes; all read.
"""

import contextlib
import csv
import datetime
import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from helpers.checkpoints import (
    check_writable,
    model_arguments,
    save_checkpoint,
    whole_file,
    write_json,
)
from helpers.data import Split
from helpers.scale.distributed import rank, sum_over_processes, world_size
from helpers.scale.states import (
    first_difference,
    newest_state,
    restore,
    save_state,
    states,
    training_state,
)

# Settings that change how a run goes, or where, but not what comes out of it.
FREE = ("run_dir", "resume", "tensorboard", "device", "precision", "compile", "fsdp", "workers")


class RunFolder:
    """The folder of one training run, locked while it lasts; without run_dir it does nothing."""

    def __init__(self, model, optimizer, ema, generator, data, config, precision, facts=None):
        self.path = Path(config.run_dir) if config.run_dir else None
        self.config, self.lock = config, None
        if not self.path:
            return
        self.parts = (model, optimizer, ema, generator)
        self.model, self.data, self.board = model, data, None
        self.settings = {name: x for name, x in vars(config).items() if name not in FREE}
        self.source = description(data)
        self.facts = {
            "model": model_arguments(model),
            "config": vars(config),
            "data": self.source,
            "precision": precision,
            "processes": world_size(),
            "torch_threads": torch.get_num_threads(),
            "machine": machine(config.device),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": " ".join(sys.orig_argv),
            "versions": versions(),
        } | (facts or {})

    def __enter__(self):
        """ValueError if another process trains in the folder, OSError if nothing can be written."""
        if self.path and rank() == 0:
            check_writable(self.path / "run.json")
            lock, owner = FileLock(self.path / ".lock"), self.path / ".lock.owner"
            try:
                lock.acquire(timeout=0)
            except Timeout:
                who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
                raise ValueError(
                    f"{self.path} is in use by {who}: wait for its end, or name another run_dir"
                ) from None
            self.lock = lock
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        return self

    def __exit__(self, *error):
        if self.lock:
            (self.path / ".lock.owner").unlink(missing_ok=True)
            self.lock.release()

    def start_or_resume(self):
        """The records of the epochs that are done: [] at the start, more when a run is resumed.

        ValueError if the folder holds a run and config.resume is not set, or if that run has
        another architecture, other settings or other data.
        """
        if not self.path:
            if self.config.resume:
                raise ValueError("resume needs a run_dir: the folder of the run to go on with")
            return []
        found = states(self.path)
        if found and not self.config.resume:
            raise ValueError(
                f"{self.path} holds a run, up to {found[-1].name}: resume it (--resume), or name "
                "another run_dir"
            )
        state = newest_state(self.path)
        if state:
            first_difference(state["model"], self.facts["model"], "architecture")
            first_difference(state["settings"], self.settings, "settings")
            first_difference(state["data"], self.source, "data")
            restore(state, *self.parts)
        elif self.config.resume and rank() == 0:
            print(f"{self.path} holds no state: the run starts anew", file=sys.stderr)
        if rank() == 0:
            self.describe(len(state["records"]) if state else None)
        if self.config.tensorboard and rank() == 0:
            self.board = tensorboard(self.path / "tensorboard")
        return state["records"] if state else []

    def describe(self, resumed_after):
        """Write run.json; a run that is resumed keeps its own and adds when it went on, and how."""
        written = ("run.json", "metrics.csv", "last.safetensors", "state-*.pt", "result.json")
        for name in written:  # what a process that was killed has left
            for leftover in self.path.glob(f".{name}.[0-9]*"):  # .run.json.swp is an editor's
                if leftover.is_file():
                    leftover.unlink()
        path, facts = self.path / "run.json", self.facts
        if resumed_after is not None and path.exists():
            first = json.loads(path.read_text(encoding="utf-8"))
            facts = first | {
                "resumed": first.get("resumed", []) + [{"epoch": resumed_after, **facts}]
            }
        write_json(path, facts)

    def save(self, records):
        """After an epoch: state, weights and metrics. records: a dict for each epoch so far.

        OSError, which says what is safe, if the disk is full, say.
        """
        if not self.path:
            return
        state = training_state(*self.parts)  # all processes help to gather it
        if rank():
            return
        try:
            self.write(records, state)
        except OSError as error:
            raise OSError(stopped(str(error), self.path)) from error

    def write(self, records, state):
        epoch = records[-1]["epoch"]
        weights = state["average"] or state["weights"]
        extra = {"epoch": epoch, "config": vars(self.config)}
        save_checkpoint(self.path / "last.safetensors", self.model, self.data, extra, weights)
        try:
            write_csv(self.path / "metrics.csv", records)
        except PermissionError as error:  # a spreadsheet holds it open: the next epoch tries again
            print(error, file=sys.stderr)
        if self.board:
            for name, value in records[-1].items():
                if value is not None:
                    self.board.add_scalar(name, value, epoch)
            self.board.flush()
        kept = {"model": self.facts["model"], "settings": self.settings, "data": self.source}
        save_state(self.path, epoch, {**kept, **state, "epoch": epoch, "records": records})


def description(data):
    """What tells one data set from another, and one split of it from another, JSON-ready."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        "name": data.name,
        "classes": list(data.classes),
        "image_shape": list(data.train.image_shape),
        "streamed": not isinstance(data.train, Split),
        "flip": data.flip,
        **data.cut,
        **{f"{name} images": len(split) for name, split in parts.items()},
        **{f"digest of {name}": split.digest() for name, split in parts.items()},
        "mean": list(data.mean),
        "std": list(data.std),
    }


def write_csv(path, records):
    """Write dicts with the same keys as a whole file, a row each."""
    with whole_file(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, records[-1].keys())
            table.writeheader()
            table.writerows(records)


def result_of(history, model, model_args, config):
    """A run as a dict for result.json: what came out, what went in, on what."""
    return {
        "test_accuracy": history.test_accuracy,
        "test_loss": history.test_loss,
        "epochs": [vars(record) for record in history.epochs],
        "seconds": history.seconds,
        "compile_seconds": history.compile_seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model": model_args,
        "config": vars(config),
        "device": history.device,
        "machine": machine(config.device),
        "precision": history.precision,
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m helpers.train", *sys.argv[1:]]),
        "versions": versions(),
    }


def default_run_dir(name, again):
    """runs/NAME-3, say: the next number, which is then taken, or the last one to go on with it."""
    runs, number = Path("runs"), 0
    if rank() == 0:
        runs.mkdir(exist_ok=True)
        found = [p.name.removeprefix(f"{name}-") for p in runs.iterdir() if p.name.startswith(name)]
        number = max((int(n) for n in found if n.isdecimal()), default=0)
        while not (again and number):
            number += 1
            with contextlib.suppress(FileExistsError):  # another run has just taken it
                (runs / f"{name}-{number}").mkdir()
                break
    return f"runs/{name}-{sum_over_processes(torch.tensor(number)).item()}"


def stopped(why, run_dir):
    """What to tell the user when one of several processes ends too early."""
    found = states(run_dir) if run_dir else []
    if not found:
        return f"{why}. No state was saved: start again, with --run-dir to be able to go on."
    where = f"--run-dir {shlex.quote(str(run_dir))} --resume"
    return f"{why}. {found[-1]} is saved: the same command with {where} goes on from there."


def tensorboard(path):
    """A writer of TensorBoard's files; ImportError with advice where TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard is not installed: pip install tensorboard") from error
    return SummaryWriter(path)


def machine(device):
    """What this runs on, in words: the GPU's name, or the processor's."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        if line.startswith("model name") and line.split(":")[1].strip():
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def versions():
    """Of Python and of the libraries that numbers depend on."""
    found = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    return {"python": platform.python_version()} | found
