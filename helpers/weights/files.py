"""From a file of weights, or a dict, to tensors by our names and in our shapes: what fits no model
yet, but is known to be a plain ViT's. Nothing in a file is run: .safetensors and .npz hold arrays
alone, and .pth files are read with weights_only=True.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torchvision.models import WeightsEnum

from helpers.weights.names import HALF, IMAGENET, LAYOUTS, PREFIX, REFUSED, RESHAPES, Layout

WRAPPERS = ("state_dict", "model", "model_state_dict", "weights")  # {"model": {name: tensor}}
SHOWN = 6  # names in a message before "and 12 more"

# What tells a model's size, with the number of axes.
ESSENTIAL = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}


@dataclass
class Source:
    """Weights on their way: tensors by our names, in our shapes, and what else was found.

    theirs: by their names, the prefix taken off. left_over: their names that no row of the table
    has. known: arguments of VisionTransformer that shapes do not tell. grid: (rows, columns) of the
    positions, if the source says so. format and normalisation: see helpers.weights.Report.
    """

    format: str
    layout: Layout
    theirs: dict
    depth: int
    normalisation: tuple | None
    tensors: dict = field(default_factory=dict)
    left_over: list = field(default_factory=list)
    known: dict = field(default_factory=dict)
    grid: tuple | None = None


def few(names):
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def read(source, grid=None):
    """A path, a dict of tensors or arrays, or a member of a torchvision weight enum -> Source.

    grid: (rows, columns) of the positions. The errors are those of helpers.weights.load_pretrained
    that need no model.
    """
    facts = {}
    if isinstance(source, WeightsEnum):
        if not type(source).__name__.startswith("ViT_"):
            raise ValueError(f"{source} are not the weights of a ViT: nothing was downloaded")
        weights = source.get_state_dict(progress=True, check_hash=True)
    elif isinstance(source, Mapping):
        weights = source
    elif isinstance(source, str | Path):
        weights, facts = _opened(Path(source).expanduser())
    else:
        raise TypeError(
            f"weights from a {type(source).__name__}? Give a path, a dict of tensors as of "
            "state_dict(), or a member of torchvision's weight enums"
        )
    while wrapper := next((w for w in WRAPPERS if isinstance(weights.get(w), Mapping)), None):
        weights = weights[wrapper]
    found = _recognised(weights)
    if found.layout.name == "timm":  # whose names DeiT and our own checkpoints have as well
        found = replace(found, **facts)
    if grid:
        found.grid = tuple(grid)
    return found


def _opened(path):
    """A file -> (tensors by name, what the file says beside them: values of Source)."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    facts = {}
    if path.name.lower().startswith("deit"):
        facts = {"format": "DeiT", "normalisation": IMAGENET}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if text := (file.metadata() or {}).get("vit"):
                    facts = _facts(json.loads(text))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                weights = dict(file)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make the readers raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path} is not opened ({reason}): it is no whole .safetensors, .npz or file of "
            "torch.save, or holds more than tensors, which could run code. Copy it again, or ask "
            "for the state dict alone, as .safetensors"
        ) from error
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} holds a {type(weights).__name__}, a dict of tensors is needed")
    return weights, facts


def _facts(written):
    """What save_checkpoint of helpers/checkpoints.py has written beside the weights, for Source."""
    settings = written["model"]
    known = {name: settings[name] for name in ("num_heads", "norm_eps")}
    grid = tuple(side // settings["patch_size"] for side in settings["img_size"])
    normalisation = (tuple(written["mean"]), tuple(written["std"]))
    return dict(format="helpers", known=known, grid=grid, normalisation=normalisation)


def _recognised(weights):
    """Tensors by their names -> Source, by the layout that the first of the names tell."""
    for name in weights:
        for pattern, what in REFUSED:
            if re.search(pattern, name):
                raise ValueError(f"{name} is {what}: a plain ViT would answer wrongly with it")
    candidates = []
    for layout in LAYOUTS:
        (kernel,), (positions,) = layout.names("patch_embed.proj.weight"), layout.names("pos_embed")
        for name in weights:
            prefix = name.removesuffix(kernel)
            if re.fullmatch(PREFIX, prefix):
                candidates.append((prefix + positions not in weights, layout, prefix))
    if candidates:  # better one whose positions are there; without them, the layout says what lacks
        _, layout, prefix = min(candidates, key=lambda candidate: candidate[0])
        return _converted(layout, _without(prefix, weights))
    raise ValueError(
        "no layout known here (timm, DeiT, torchvision, official .npz): a patch embedding and "
        f"positions by none of their names, but {few(list(weights)) or 'nothing'}"
    )


def _without(prefix, weights):
    """The prefix taken off; in a .npz, what lies outside it is the optimizer's and is dropped.

    Blocks that jax stacked in one tensor, encoderblock/name (L, ...), become L tensors.
    """
    plain = {}
    for name, value in weights.items():
        if name.startswith(prefix) or not prefix.endswith("/"):
            plain[name.removeprefix(prefix)] = _tensor(name, value)
    for name in [name for name in plain if name.startswith("Transformer/encoderblock/")]:
        for i, value in enumerate(plain.pop(name)):
            plain[name.replace("encoderblock/", f"encoderblock_{i}/")] = value
    return plain


def _tensor(name, value):
    """A tensor or an array of floating-point numbers, as a tensor."""
    if isinstance(value, np.ndarray) and value.dtype == "V2":  # bfloat16, as jax saves it
        value = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"{name} is no tensor of floating-point numbers but {kind}")
    return value.detach()


def _converted(layout, theirs):
    """Every row of the layout's table whose names are there, for every block."""
    blocks = (re.search(r"(?:^blocks\.|encoder_layer_|encoderblock_)(\d+)", n) for n in theirs)
    depth = max((int(block[1]) + 1 for block in blocks if block), default=0)
    found = Source(layout.name, layout, theirs, depth, layout.normalisation)
    used = set()
    for row in layout.rows:
        for i in range(depth if "{i}" in row.ours else 1):
            ours, names = row.ours.format(i=i), [name.format(i=i) for name in row.theirs]
            if ours in found.tensors or not all(name in theirs for name in names):
                continue
            parts = [theirs[name] for name in names]
            try:
                found.tensors[ours] = torch.cat([RESHAPES[row.reshape](part) for part in parts])
            except (RuntimeError, IndexError):  # of another number of axes: named by the check
                found.tensors[ours] = parts[0]
            used.update(names)
    found.left_over = [name for name in theirs if name not in used]
    for ours, axes in ESSENTIAL.items():
        if ours not in found.tensors or found.tensors[ours].ndim != axes:
            wanted = f"{layout.names(ours)[0]} of {axes} axes"
            raise ValueError(f"no ViT can be read off the weights ({layout.name}) without {wanted}")
    C = found.tensors["patch_embed.proj.weight"].shape[1]  # (D, C, P, P)
    if C != 3:
        found.normalisation = ((0.5,) * C,) * 2 if layout.normalisation is HALF else None
    heads = next((len(bias) for name, bias in theirs.items() if name.endswith("/query/bias")), None)
    found.known = {"num_heads": heads} if heads else {}  # such a bias is (h, d)
    return found
