"""What a training run leaves in its folder, and how it goes on from there.

    run.json           model, settings, data, versions, machine, command: what a repetition needs
    metrics.csv        a row for each epoch
    last.safetensors   the weights after the last whole epoch, for load_checkpoint
    state-00012.pt     the whole state after epoch 12, to go on from; the newest two are kept
    tensorboard/       with config.tensorboard: the same metrics for TensorBoard

Every file is written whole or not at all. The first process writes; all read.
"""

import csv
import datetime
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from helpers.checkpoints import model_arguments, save_checkpoint, whole_file, write_json
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
    """The folder of one training run; without config.run_dir it does nothing."""

    def __init__(self, model, optimizer, ema, generator, data, config, precision, facts=None):
        self.path = Path(config.run_dir) if config.run_dir else None
        self.config = config
        if not self.path:
            return
        self.parts = (model, optimizer, ema, generator)
        self.model, self.data, self.board = model, data, None
        self.settings = {name: x for name, x in vars(config).items() if name not in FREE}
        self.source = {"name": data.name, "classes": list(data.classes), "images": len(data.train)}
        self.facts = {
            "model": model_arguments(model),
            "config": vars(config),
            "data": self.source | {"mean": data.mean, "std": data.std},
            "precision": precision,
            "processes": world_size(),
            "torch_threads": torch.get_num_threads(),
            "machine": machine(config.device),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": " ".join(sys.orig_argv),
            "versions": versions(),
        } | (facts or {})

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
                leftover.unlink()
        path, facts = self.path / "run.json", self.facts
        if resumed_after is not None and path.exists():
            first = json.loads(path.read_text())
            facts = first | {
                "resumed": first.get("resumed", []) + [{"epoch": resumed_after, **facts}]
            }
        write_json(path, facts)

    def save(self, records):
        """After an epoch: state, weights and metrics. records: a dict for each epoch so far."""
        if not self.path:
            return
        epoch = records[-1]["epoch"]
        state = training_state(*self.parts)  # all processes help to gather it
        if rank():
            return
        weights = state["average"] or state["weights"]
        extra = {"epoch": epoch, "config": vars(self.config)}
        save_checkpoint(self.path / "last.safetensors", self.model, self.data, extra, weights)
        with whole_file(self.path / "metrics.csv") as path, path.open("w", newline="") as file:
            table = csv.DictWriter(file, records[-1].keys())
            table.writeheader()
            table.writerows(records)
        if self.board:
            for name, value in records[-1].items():
                self.board.add_scalar(name, value, epoch)
            self.board.flush()
        kept = {"model": self.facts["model"], "settings": self.settings, "data": self.source}
        save_state(self.path, epoch, {**kept, **state, "epoch": epoch, "records": records})


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
    """runs/NAME-3, say: the next number that is free, or the last one to go on with it."""
    found = [path.name.removeprefix(f"{name}-") for path in Path("runs").glob(f"{name}-*")]
    last = max((int(number) for number in found if number.isdigit()), default=0)
    chosen = torch.tensor(max(last, 1) if again else last + 1) * (rank() == 0)
    return f"runs/{name}-{sum_over_processes(chosen).item()}"


def stopped(why, run_dir):
    """What to tell the user when one of several processes ends too early."""
    found = states(run_dir) if run_dir else []
    if not found:
        return f"error: {why}. No state was saved: start again, with --run-dir to be able to go on."
    where = f"--run-dir {run_dir} --resume"
    return f"error: {why}. {found[-1]} is saved: the same command with {where} goes on from there."


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
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name") and line.split(":")[1].strip():
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def versions():
    """Of Python and of the libraries that numbers depend on."""
    found = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    return {"python": platform.python_version()} | found
