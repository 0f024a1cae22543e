"""What is kept of a model and of a training run, in files that are whole or not there.

Weights to use or to pass on go into a .safetensors file with all that is needed to use them. The
state of a training run, to go on from, goes into a .pt file, read with weights_only=True: nothing
in it can run code.
"""

import json
import math
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from helpers.distributed import from_all_processes, rank
from helpers.model import VisionTransformer
from helpers.regularization import averaged

KEPT = 2  # states kept of a run: the newest, and one in reserve


@contextmanager
def whole_file(path):
    """A temporary name to write to; at the end it is renamed to path, after an error removed.

    So what bears the name path is whole, at any moment, whatever happens to the program.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # on the disk before it gets its name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, facts):
    """Write facts, JSON-ready, as a whole file."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


# Weights


def model_arguments(model):
    """The arguments that build a VisionTransformer of this model's shape."""
    in_chans, H, W = model.patch_embed.input_shape
    block = model.blocks[0]
    D, M = block.mlp.fc1.in_features, block.mlp.fc1.out_features
    exact = int(M / D * D) == M  # else a hair more, so that EncoderBlock's int(mlp_ratio * D) is M
    return {
        "img_size": (H, W),
        "patch_size": model.patch_embed.proj.kernel_size[0],
        "in_chans": in_chans,
        "num_classes": getattr(model.head, "out_features", 0),
        "embed_dim": model.pos_embed.shape[-1],
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": M / D if exact else math.nextafter(M / D, math.inf),
        "drop_rate": model.pos_drop.p,
        "global_pool": "avg" if model.cls_token is None else "token",
        "representation_size": model.pre_logits[0].out_features if len(model.pre_logits) else None,
        "norm_eps": model.norm.eps,
    }


def save_checkpoint(path, model, data, extra=None, weights=None):
    """Write the weights, the model's arguments and how its images are normalised, as safetensors.

    extra: more facts for the file, JSON-ready. weights: a state dict to write in place of the
    model's own.
    """
    facts = {"model": model_arguments(model), "data": data.name, "classes": data.classes}
    facts |= {"mean": data.mean, "std": data.std, **(extra or {})}
    weights = model.state_dict() if weights is None else weights
    weights = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
    with whole_file(path) as temporary:
        save_file(weights, temporary, metadata={"vit": json.dumps(facts)})


def load_checkpoint(path):
    """(model, facts) from a file that save_checkpoint wrote; the model is on the CPU, in eval mode.

    facts: a dict with model, data, classes, mean, std and what was given as extra.
    FileNotFoundError if there is no such file, ValueError if it is not whole or not one of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: python -m helpers.training makes one")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["vit"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is no whole checkpoint of save_checkpoint ({error!r}): "
            "copy it again, or train it anew"
        ) from error
    model = VisionTransformer(**facts["model"])
    model.load_state_dict(weights, strict=True)
    return model.eval(), facts


# States of a run


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
    with whole_file(Path(run_dir) / f"state-{epoch:05}.pt") as temporary:
        torch.save(state, temporary)
    for old in states(run_dir)[:-KEPT]:
        old.unlink()


def states(run_dir):
    """The files of a run's states, oldest first."""
    return sorted(Path(run_dir).glob("state-*.pt"))


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
                f"the run that would be resumed has another {what}: {name} is {there} in its "
                f"state and {here} now. Give the same {what}, or start anew in another run_dir"
            )
