"""The whole state of a training run, to go on from, as if nobody had stopped it.

A .pt file a state, read with weights_only=True: nothing in it can run code.
"""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from helpers.augmentation import averaged
from helpers.checkpoints import whole_file
from helpers.scale.distributed import from_all_processes, rank

KEPT = 2  # states kept of a run: the newest, and one in reserve


def training_state(model, optimizer, ema, generator):
    """All that goes on changing in a run, as plain tensors and values.

    Weights and the optimizer's numbers are gathered from all processes, so each must call this; the
    state is whole on the first.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = {
        "weights": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
        "generator": generator.get_state(),
        "random": from_all_processes(torch.get_rng_state()),
        "cuda_random": None,
        "average": None,
    }
    if torch.cuda.is_available():
        state["cuda_random"] = from_all_processes(torch.cuda.get_rng_state())
    if ema:
        with averaged(ema):
            average = get_model_state_dict(model, options=options)
            state["average"] = {name: weight.clone() for name, weight in average.items()}
        state["average_steps"] = ema.steps
    return state


def restore(state, model, optimizer, ema, generator):
    """Put a training_state back into its parts.

    A process that was not there when it was saved keeps the random numbers that it has.
    """
    options = StateDictOptions(full_state_dict=True)
    if ema:
        set_model_state_dict(model, state["average"], options=options)
        ema.swap()
        ema.steps = state["average_steps"]
    set_model_state_dict(model, state["weights"], options=options)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    generator.set_state(state["generator"])
    if rank() < len(state["random"]):
        torch.set_rng_state(state["random"][rank()].clone())  # a view makes torch 2.15 crash
        if torch.cuda.is_available() and state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"][rank()].clone())


def save_state(run_dir, epoch, state):
    """Write state, tensors and plain values, as run_dir/state-EPOCH.pt; remove the older ones."""
    with whole_file(Path(run_dir) / f"state-{epoch:05}.pt") as temporary, temporary.open("wb") as f:
        try:
            torch.save(state, f)
        except RuntimeError as error:  # on a full disk torch loses sight of what went wrong
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    for old in states(run_dir)[:-KEPT]:
        old.unlink()


def states(run_dir):
    """The files of a run's states, oldest first."""
    digits = "[0-9]" * 5  # no copy that the user has made under a name like these
    return sorted(Path(run_dir).glob(f"state-{digits}.pt"))


def newest_state(run_dir):
    """The newest state in run_dir that is whole, or None where there is no file of one.

    A file that is not whole is named on stderr and skipped. ValueError if none of them is whole.
    """
    found = states(run_dir)
    for path in reversed(found):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # half a file makes torch raise nearly anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"skipped, not a whole state: {path} ({reason})", file=sys.stderr)
    if found:
        raise ValueError(
            f"none of the {len(found)} states in {run_dir} is whole: copy them there again, or "
            "start anew in another run_dir"
        )
    return None


def first_difference(saved, now, what):
    """ValueError naming the first entry in which two dicts differ; what: what they describe."""
    for name in [*saved, *(name for name in now if name not in saved)]:
        there, here = (json.loads(json.dumps(d.get(name))) for d in (saved, now))
        if there != here:
            raise ValueError(
                f"the run that would be resumed differs in {what}: {name} is {there} in its state "
                f"and {here} now. Give the same {what}, or start anew in another run_dir"
            )
