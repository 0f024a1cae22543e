"""Checkpoints of our own: the weights, and all that is needed to use them, in one file.

A .safetensors file, whole or not there. Those of other libraries: helpers/weights/.
"""

import errno
import json
import math
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from helpers.model import VisionTransformer


@contextmanager
def whole_file(path):
    """A temporary name to write to; at the end it is renamed to path, after an error removed.

    So what bears the name path is whole, at any moment, whatever happens to the program. OSError
    if it cannot be written, which says that.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # on the disk before it gets its name
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(path):
    """OSError, ahead of the work, if whole_file(path) would raise it."""
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.exists() and not path.is_file():
            raise OSError(errno.EEXIST, "a folder or a device is there")


@contextmanager
def _explained(path):
    try:
        yield
    except OSError as error:
        raise type(error)(
            f"{path} cannot be written ({error.strerror or error}); what bears that name is as it "
            "was. Make room, see to it that you may write there, or choose another place"
        ) from error


def write_json(path, facts):
    """Write facts, JSON-ready, as a whole file."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def ratio_for(D, M):
    """The mlp_ratio with which EncoderBlock's int(mlp_ratio * D) is M: M / D, or a hair more."""
    ratio = M / D
    return ratio if int(ratio * D) == M else math.nextafter(ratio, math.inf)


def model_arguments(model):
    """The arguments that build a VisionTransformer of this model's shape."""
    in_chans, H, W = model.patch_embed.input_shape
    block = model.blocks[0]
    return {
        "img_size": (H, W),
        "patch_size": model.patch_embed.proj.kernel_size[0],
        "in_chans": in_chans,
        "num_classes": getattr(model.head, "out_features", 0),
        "embed_dim": model.pos_embed.shape[-1],
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": ratio_for(block.mlp.fc1.in_features, block.mlp.fc1.out_features),
        "drop_rate": model.pos_drop.p,
        "global_pool": "token" if model.num_prefix_tokens else "avg",
        "representation_size": model.pre_logits[0].out_features if len(model.pre_logits) else None,
        "norm_eps": model.norm.eps,
        "pos_embed_std": model.pos_embed_std,
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
    content = save(weights, metadata={"vit": json.dumps(facts)})
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def load_checkpoint(path):
    """(model, facts) from a file that save_checkpoint wrote; the model is on the CPU, in eval mode.

    facts: a dict with model, data, classes, mean, std and what was given as extra.
    FileNotFoundError if there is no such file, ValueError if it is not whole or not one of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: python -m helpers.train makes one")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["vit"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no whole checkpoint of save_checkpoint ({error!r}): "
            "copy it again, or train it anew"
        ) from error
    try:
        model = VisionTransformer(**facts["model"])
        model.load_state_dict(weights, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(
            f"{path} has facts and weights that make no model here ({reason}): it was changed, or "
            "is of a newer version of helpers. Take the file as it was saved, or update"
        ) from error
    return model.eval(), facts
