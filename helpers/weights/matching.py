"""Tensors by a library's names -> by ours and in our shapes: what fits no model yet, but is known
to be a plain ViT's. What no row of a table has is sorted.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torchvision.models import WeightsEnum

import helpers.weights.names as tables
from helpers.weights.files import few, opened
from helpers.weights.names import FACTOR, RESHAPES, Layout
from helpers.weights.sets import ESSENTIAL, chosen, dicts, without


@dataclass
class Source:
    """Weights on their way: tensors by our names, in our shapes, and what else was found.

    theirs: by their names, the prefix taken off. left_over: their names that no row of the table
    has; other_head: those of a head that is not one linear layer. known: arguments of
    VisionTransformer that shapes do not tell; said: the facts that the file tells. grid: (rows,
    columns) of the positions, if the source says so. doubt: why the names are not quite those of
    the table's library, "" if they are. loose: whether all
    that is left over stands outside the blocks; outside: outside the prefix, so that key leaves it.
    The rest: see helpers.weights.Report.
    """

    layout: Layout
    theirs: dict
    depth: int
    format: str
    normalisation: tuple | None
    taken: str = ""
    left: tuple = ()
    tensors: dict = field(default_factory=dict)
    left_over: list = field(default_factory=list)
    other_head: list = field(default_factory=list)
    aside: list = field(default_factory=list)
    zeros: list = field(default_factory=list)
    folded: dict = field(default_factory=dict)
    known: dict = field(default_factory=dict)
    said: set = field(default_factory=set)
    grid: tuple | None = None
    doubt: str = ""
    loose: bool = True
    outside: bool = False


def read(source, grid=None, key=None, config=None):
    """A path, a dict of tensors or arrays, or a member of a torchvision weight enum -> Source.

    grid: (rows, columns) of the positions; key: which of several sets; config: what the caller
    knows. The errors are those of helpers.weights.load_pretrained that need no model.
    """
    configs, name = [], ""
    if isinstance(source, WeightsEnum):
        if not type(source).__name__.startswith("ViT_"):
            raise ValueError(f"{source} are not the weights of a ViT: nothing was downloaded")
        weights = source.get_state_dict(progress=True, check_hash=True)
    elif isinstance(source, Mapping):
        weights = source
    elif isinstance(source, str | Path):
        path = Path(source).expanduser()
        name = path.name.lower()
        weights, configs = opened(path)
    else:
        raise TypeError(
            f"weights from a {type(source).__name__}? Give a path, a dict of tensors as of "
            "state_dict(), or a member of torchvision's weight enums"
        )
    found = _converted(*chosen(dict(dicts(weights)), key))
    if found.format == "timm" and name.startswith("deit"):
        found.format, found.normalisation = "DeiT", tables.IMAGENET
    if found.format == "timm" and found.folded and "mask_token" in found.aside:
        found.format, found.normalisation = "DINOv2", tables.IMAGENET
    _believe(found, [config or {}, *configs, weights])
    if grid:
        found.grid = tuple(grid)
    return found


def _is_weight(value):
    """Whether a value is an array of floating-point numbers, and more than a scalar."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0 and (value.dtype.kind in "fc" or value.dtype == "V2")
    floats = isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
    return floats and value.ndim > 0


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


def _refuse(names, named, prefix, taken):
    """ValueError for names of models that compute something else."""
    for name, (pattern, what) in product(names, tables.REFUSED):
        if re.search(pattern, name):
            inside = named[name][0][0].startswith(prefix)
            more = "" if inside else f". key={taken!r} reads only what is under that name"
            raise ValueError(f"{name} is {what}: a plain ViT would answer wrongly with it{more}")


def _converted(layout, prefix, own, taken, left):
    """Every row of the layout's table whose names are there, for every block -> Source."""
    named = without(prefix, own)
    theirs = {short: those[0][1] for short, those in named.items() if _is_weight(those[0][1])}
    start = next(r.theirs[0] for r in layout.rows if "{i}" in r.ours).partition("{i}")[0]
    blocks = (re.match(re.escape(start) + r"(\d+)", name) for name in named)
    depth = max((int(block[1]) + 1 for block in blocks if block), default=0)
    factors = [
        (row.ours.format(i=i), row.theirs[0].format(i=i))
        for row in layout.rows
        for i in range(depth)
        if row.reshape == FACTOR
    ]
    known = {name for _, name in factors}
    _refuse([name for name in named if name not in known], named, prefix, taken)
    found = Source(layout, theirs, depth, layout.name, layout.normalisation, taken, left)
    claimed = {}  # our name: the full names of what is it

    def claim(ours, names, reshape):
        full = [name for short in names for name, _ in named[short]]
        if ours in claimed or len(full) > len(names):
            rivals = claimed.get(ours, []) + full
            here = all(name.startswith(prefix) for name in rivals)
            raise ValueError(
                f"{few(rivals)}: more than one would be our {ours}. Give a dict without what is "
                "not meant" + ("" if here else f", or key={taken!r} for what is under that name")
            )
        claimed[ours] = full
        parts = [_tensor(*named[short][0]) for short in names]
        try:
            found.tensors[ours] = torch.cat([RESHAPES[reshape](part) for part in parts])
        except (RuntimeError, IndexError):  # of another number of axes: named by the check
            found.tensors[ours] = parts[0]

    for row in layout.rows:
        for i in range(depth if "{i}" in row.ours else 1):
            names = [name.format(i=i) for name in row.theirs]
            if row.reshape != FACTOR and all(name in named for name in names):
                claim(row.ours.format(i=i), names, row.reshape)
    used = {name for full in claimed.values() for name in full}
    used |= _fold(found, named, factors)
    rest = [short for short, those in named.items() if those[0][0] not in used]
    found.aside = [n for n in rest if n not in theirs or re.search(tables.EXTRAS, n)]
    rest = [name for name in rest if name not in found.aside]
    heads = [name for name in rest if re.match(tables.HEADS, name)]
    weight = next((name for name in heads if name.endswith(".weight")), "")
    if weight and theirs[weight].ndim == 2 and not {*heads} - {weight, weight[:-6] + "bias"}:
        for name in heads:  # one linear layer by another name
            claim("head." + name.rpartition(".")[2], [name], "as it is")
        if len(heads) == 1:  # without a bias
            found.tensors["head.bias"] = torch.zeros(len(theirs[weight]))
            found.zeros.append(weight[:-6] + "bias")
        heads = []
    elif "head.weight" not in claimed:
        found.other_head, heads = heads, []
    found.left_over = [n for n in rest if n in heads or not re.match(tables.HEADS, n)]
    found.loose = not any(n.startswith(start) for n in found.left_over)
    found.outside = not any(named[n][0][0].startswith(prefix) for n in found.left_over)
    _check_essential(found)
    _check_head(found, claimed)
    _fill(found)
    split = any(".attn.qkv." not in n for n in claimed.get("blocks.0.attn.qkv.weight", ()))
    beside = [name for name in found.aside if not name.endswith("mask_token")]
    found.doubt = next((why for sure, why in (
        (layout.name != "Hugging Face", "without config.json"),
        (not prefix or prefix.endswith("/"), f"prefix {prefix!r}"),
        (not beside, f"{few(beside)} beside them"),
        ("blocks.0.attn.qkv.bias" in claimed, "no bias of q, k and v"),
        (layout.name != "timm" or not split, "q, k and v apart"),
        ("cls_token" in found.tensors, "no class token"),
    ) if not sure), "")  # fmt: skip
    return found


def _fold(found, named, factors):
    """The rows of our tensors times the factors that are there; their full names."""
    w, used = found.tensors, set()
    for ours, name in factors:
        if name not in named:
            continue
        gamma = _tensor(*named[name][0])
        if ours in w and gamma.shape != w[ours].shape[:1]:
            raise ValueError(
                f"{name} is {tuple(gamma.shape)} and is to scale the rows of "
                f"{found.layout.names(ours)[0]}, {tuple(w[ours].shape)}: one number for each"
            )
        if ours in w:  # in float32 at least: the product has more digits than its factors
            wide = torch.promote_types(w[ours].dtype, torch.float32)
            rows = gamma.to(wide).reshape(-1, *[1] * (w[ours].ndim - 1))
            w[ours] = rows * w[ours].to(wide)
            found.folded |= {name: None}
            used.add(named[name][0][0])
    return used


def _check_essential(found):
    """ValueError without what tells a model's size."""
    w, lacking = found.tensors, []
    for ours, axes in ESSENTIAL.items():
        if ours not in w or w[ours].ndim != axes or not w[ours].numel():
            lacking.append(f"{found.layout.names(ours)[0]} of {axes} axes")
    if lacking:
        raise ValueError(
            f"no ViT can be read off the weights ({found.format}) without {', '.join(lacking)}"
        )


def _check_head(found, claimed):
    """A head of another width, a bias alone or of another length: a head that we cannot be."""
    w, parts = found.tensors, [n for n in found.tensors if n.startswith("head.")]
    width = w.get("pre_logits.0.weight", w["patch_embed.proj.weight"]).shape[:1]
    shapes = [w[name].shape for name in parts]  # (K, D) and (K,)
    if parts and not (shapes[0][1:] == width and shapes[-1][:1] == shapes[0][:1]):
        found.other_head += [n for ours in parts for n in claimed.get(ours, [])]
        found.tensors = {n: t for n, t in w.items() if n not in parts}
        found.zeros = []


def _fill(found):
    """Zeros for the biases of a layer that has one in no block."""
    w = found.tensors
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        names = [f"blocks.{i}.{layer}.bias" for i in range(found.depth)]
        matrices = [w.get(name.replace("bias", "weight")) for name in names]
        if not any(name in w for name in names) and all(m is not None and m.ndim for m in matrices):
            w |= {name: m.new_zeros(len(m)) for name, m in zip(names, matrices, strict=True)}
            found.zeros += [n for name in names for n in found.layout.names(name)]


def _believe(found, configs):
    """What the shapes do not tell and the configs do, into found. ValueError if it is not so."""
    said, w = tables.told(configs), found.tensors
    D, C, P, _ = w["patch_embed.proj.weight"].shape
    heads = [t.shape for n, t in found.theirs.items() if re.search("/query/(kernel|bias)$", n)]
    shapes = {"embed_dim": D, "depth": found.depth}
    shapes |= {"num_heads": heads[0][-2]} if heads and len(heads[0]) > 1 else {}
    pool = "token" if "cls_token" in w else "avg"
    for name, value in (shapes | {"global_pool": pool}).items():
        if said.get(name, value) != value:
            raise ValueError(
                f"the config beside the weights says {name}={said[name]}, and by their names and "
                f"shapes it is {value}: if that is another model's config, move it away from them"
            )
    arguments = ("num_heads", "norm_eps", "global_pool")
    found.known = {n: v for n, v in (said | shapes).items() if n in arguments}
    found.said = {*found.known, *said}
    size = said.get("img_size", 0)
    sides = size if isinstance(size, list | tuple) else (size, size)
    grid = tuple(int(side) // P for side in sides[-2:])
    if len(w["pos_embed"][0]) - math.prod(grid) in (0, 1):
        found.grid = grid
    if C != 3:
        half = found.normalisation is tables.HALF
        found.normalisation = ((0.5,) * C,) * 2 if half else None
    statistics = [said.get(name, ()) for name in ("mean", "std")]
    if all(isinstance(one, list | tuple) and len(one) == C for one in statistics):
        found.normalisation = tuple(map(tuple, statistics))
    if found.format == "timm" and any(isinstance(c.get("vit"), str) for c in configs):
        found.format = "helpers"
