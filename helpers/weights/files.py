"""From a file of weights, or a dict, to tensors by our names and in our shapes: what fits no model
yet, but is known to be a plain ViT's. Nothing in a file is run: .safetensors and .npz hold arrays
alone, and .pth files are read with weights_only=True.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torchvision.models import WeightsEnum

from helpers.weights.names import HALF, IMAGENET, LAYOUTS, REFUSED, RESHAPES, Layout, general_name

WRAPPERS = ("state_dict", "model", "model_state_dict", "weights")  # {"model": {name: tensor}}
SHOWN = 6  # names in a message before "and 12 more"


@dataclass
class Source:
    """Weights on their way: tensors by our names, in our shapes, and what else was found.

    theirs: by their names, the prefix taken off. left_over: their names that no row of the table
    has. known: arguments of VisionTransformer that shapes do not tell. grid: (rows, columns) of the
    positions, if the source says so. normalisation: (mean, std), one per channel, or None.
    """

    format: str
    layout: Layout
    theirs: dict
    tensors: dict = field(default_factory=dict)
    left_over: list = field(default_factory=list)
    known: dict = field(default_factory=dict)
    normalisation: tuple | None = None
    grid: tuple | None = None

    def names(self, ours):
        """Their names for ours: those that are missing, or else all.

        Of several rows of the table the one of which most is there.
        """
        general, i = general_name(ours)
        rows = [
            [name.format(i=i) for name in row.theirs]
            for row in self.layout.rows
            if row.ours == general
        ]
        absent = [[name for name in row if name not in self.theirs] for row in rows]
        best = min(range(len(rows)), key=lambda n: len(absent[n]) / len(rows[n]))
        return absent[best] or rows[best]

    def missing(self, ours):
        """The sentence that says which of their names are missing for our names."""
        return f"missing: {few([name for one in ours for name in self.names(one)])}"


def few(names):
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def read(source):
    """A path, a dict of tensors or arrays, or a member of a torchvision weight enum -> Source.

    The errors are those of helpers.weights.load_pretrained that need no model.
    """
    metadata, file = {}, ""
    if isinstance(source, WeightsEnum):
        if not type(source).__name__.startswith("ViT_"):
            raise ValueError(f"{source} are not the weights of a ViT: nothing was downloaded")
        weights = source.get_state_dict(progress=True, check_hash=True)
    elif isinstance(source, Mapping):
        weights = source
    elif isinstance(source, str | Path):
        weights, metadata = _read_file(Path(source).expanduser())
        file = Path(source).name
    else:
        raise TypeError(
            f"weights from a {type(source).__name__}? Give a path, a dict of tensors (a model's "
            "state_dict()) or a member of torchvision's weight enums"
        )
    while wrapper := next((w for w in WRAPPERS if isinstance(weights.get(w), Mapping)), None):
        weights = weights[wrapper]
    found = _recognise(weights)
    if "vit" in metadata:  # written by helpers.checkpoints.save_checkpoint
        _take_facts(found, metadata["vit"])
    elif found.format == "timm" and file.lower().startswith("deit"):
        found.format, found.normalisation = "DeiT", IMAGENET
    return found


def _take_facts(found, text):
    """What save_checkpoint wrote beside the weights goes into found."""
    try:
        facts = json.loads(text)
        found.known = {name: facts["model"][name] for name in ("img_size", "num_heads", "norm_eps")}
        found.normalisation = (tuple(facts["mean"]), tuple(facts["std"]))
        P = facts["model"]["patch_size"]
        found.grid = tuple(side // P for side in found.known["img_size"])
        found.format = "helpers"
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the facts of save_checkpoint in this file are not whole ({error!r}): copy it again"
        ) from error


def _safetensors(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def _npz(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, {}


def _pth(path):
    return torch.load(path, map_location="cpu", weights_only=True), {}


READERS = {".safetensors": _safetensors, ".npz": _npz, ".pth": _pth, ".pt": _pth, ".bin": _pth}


def _read_file(path):
    """(tensors by name, metadata of a .safetensors file) of a file, no code in it run."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    if path.suffix not in READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}: one of {', '.join(READERS)} needed")
    try:
        weights, metadata = READERS[path.suffix](path)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make the readers raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path} is not whole, or holds more than tensors, which could run code and is not "
            f"opened ({reason}). Copy it again, or ask its author for the state dict alone, best "
            "as .safetensors"
        ) from error
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} holds a {type(weights).__name__}, a dict of tensors is needed")
    return weights, metadata


def _tensor(name, value):
    """A tensor or an array of floating-point numbers, as a tensor."""
    if isinstance(value, np.ndarray) and (value.dtype.kind == "f" or value.dtype == "V2"):
        bits = value.view(np.int16) if value.dtype == "V2" else value  # V2: bfloat16, as jax saves
        value = torch.from_numpy(np.ascontiguousarray(bits))
        value = value.view(torch.bfloat16) if value.dtype == torch.int16 else value
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"{name} is no tensor of floating-point numbers but {kind}")
    return value.detach()


def _recognise(weights):
    """Tensors by their names -> Source, by the layout whose table takes most of the names."""
    for name in weights:
        for pattern, what in REFUSED:
            if re.search(pattern, name):
                raise ValueError(
                    f"{name} is {what}. helpers.model computes the plain ViT of the paper, so "
                    "these weights would give wrong answers in it"
                )
    candidates = []
    for layout in LAYOUTS:
        for name in weights:
            if re.fullmatch(layout.prefix + re.escape(layout.patch_kernel), name):
                prefix = name.removesuffix(layout.patch_kernel)
                candidates.append(_converted(layout, _without(prefix, weights)))
    if not candidates:
        raise ValueError(
            "no layout known here (timm, DeiT, torchvision, official .npz): none of their patch "
            f"embeddings, {', '.join(sorted({lay.patch_kernel for lay in LAYOUTS}))}, is there, "
            f"but {few(list(weights)) or 'nothing'}"
        )
    return max(candidates, key=lambda found: len(found.tensors))


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


def _converted(layout, theirs):
    """Every row of the layout's table whose names are there, for every block."""
    found = Source(layout.name, layout, theirs, normalisation=layout.normalisation)
    block = re.compile(r"(?:^blocks\.|encoder_layer_|encoderblock_)(\d+)")
    depth = 1 + max((int(b[1]) for name in theirs if (b := block.search(name))), default=-1)
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
    heads = next((w.shape[0] for n, w in theirs.items() if n.endswith("/query/bias")), None)
    found.known = {"num_heads": heads} if heads else {}
    kernel = found.tensors["patch_embed.proj.weight"]  # (D, C, P, P)
    if kernel.ndim == 4 and kernel.shape[1] != 3:
        C = kernel.shape[1]
        found.normalisation = ((0.5,) * C,) * 2 if layout.normalisation is HALF else None
    return found
