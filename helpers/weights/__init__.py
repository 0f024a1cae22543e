"""Weights of other libraries into our model and back.

    model, report = model_from("B_16.npz")                       # timm, DeiT, torchvision, official
    report = load_pretrained(model, ViT_B_16_Weights.IMAGENET1K_V1)  # torchvision downloads it
    timm_model.load_state_dict(to_timm(model), strict=True)

The names are in helpers/weights/names.py, as tables. Files are read without running code in them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from helpers.checkpoints import model_arguments
from helpers.model import SIZES, VARIANTS, VisionTransformer
from helpers.weights.files import few, read
from helpers.weights.names import INTERPOLATIONS, LAYOUTS, general_name

# What tells a model's size, with the number of axes.
ESSENTIAL = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}


@dataclass(frozen=True)
class Report:
    """What load_pretrained did. Grids are (rows, columns) of patches, mean and std one per channel.

    format: "timm", "DeiT" (timm's names; told by a file name that begins with deit), "torchvision",
    "official", "big_vision" or "helpers" (ours). resized: (grid in the file, grid in the model), or
    None if the positions were copied. head: "kept", "new" (zeros) or "left out". normalisation:
    (mean, std) on the scale from 0 to 1 that the images need, None where the source does not tell
    (timm's names serve both 0.5/0.5 and ImageNet's statistics).
    """

    format: str
    resized: tuple | None
    head: str
    normalisation: tuple | None


def load_pretrained(model, source, *, new_head=False, interpolation=None, grid=None):
    """Copy the weights of source into model, a VisionTransformer -> Report. All of them or none.

    source: a path (.safetensors, .pth, .pt, .bin or .npz), a dict of tensors, or a member of one of
    torchvision's weight enums, which alone may download. Positions (1, N+1, D) are resized to the
    model's grid as the source's library does it, or as interpolation says: "official",
    "torchvision" or "timm"; grid is the (rows, columns) of the source's positions, for one that is
    not square. With another number of classes, or new_head=True, the whole head of the source is
    dropped and a linear layer of zeros takes its place (section 3.2 of the paper).

    FileNotFoundError without such a file; TypeError for another kind of source; ValueError for a
    file that is damaged, of an unknown layout or of another architecture, and for weights that do
    not fit, which names them and the model that they fit. LayerNorm's eps is not in a file: build
    the model with the right norm_eps (1e-6 in all libraries here, torch's default 1e-5 elsewhere).
    """
    return _load(model, read(source), new_head, interpolation, grid)


def model_from(source, *, img_size=None, num_heads=None, num_classes=None, norm_eps=None,
               interpolation=None, grid=None):  # fmt: skip
    """(model in eval mode, Report): the VisionTransformer that fits source, its weights loaded.

    img_size: pixels, an int or (H, W); without it that of the source's positions, a square.
    num_heads: needed where the file does not tell and depth and width are not of a model of Table
    1, Ti or S, since no shape shows it. num_classes: another than the source's gives a new head, 0
    none. norm_eps: 1e-6 unless given or known. The rest and the errors are load_pretrained's.
    """
    found = read(source)
    settings = _arguments(found, grid)
    if settings is None:
        needed = ", ".join(name for ours in ESSENTIAL for name in found.names(ours))
        raise ValueError(f"no model can be read off the weights ({found.format}) without {needed}")
    given = dict(img_size=img_size, num_heads=num_heads, num_classes=num_classes, norm_eps=norm_eps)
    if num_classes is not None and num_classes != settings["num_classes"]:
        given["representation_size"] = settings["representation_size"] = None
    settings |= {name: value for name, value in given.items() if value is not None}
    if "img_size" not in settings:
        rows = found.tensors["pos_embed"].shape[1]
        raise ValueError(f"{rows} positions are no square: give img_size and grid")
    if "num_heads" not in settings:
        D = settings["embed_dim"]
        fitting = [h for h in range(1, D // 4 + 1) if D % h == 0]
        raise ValueError(
            f"num_heads cannot be read off shapes, and width {D} with {settings['depth']} blocks "
            f"is no known model: give num_heads, one of {fitting} (many take {max(1, D // 64)}). "
            "A wrong one loads as well and answers wrongly"
        )
    model = VisionTransformer(**settings).eval()
    return model, _load(model, found, False, interpolation, grid)


def to_timm(model):
    """A copy of the weights for timm's and DeiT's VisionTransformer, by their names.

    A model that averages needs global_pool="avg", class_token=False and fc_norm=False there.
    ValueError for a tanh layer in the head, which timm has not.
    """
    if len(model.pre_logits):
        raise ValueError("timm has no tanh layer in the head: use a model without it")
    return _export(model, "timm")


def to_torchvision(model):
    """A copy of the weights for torchvision.models.VisionTransformer, by its names.

    ValueError for what it cannot be: without a class token, with images that are not square, not of
    3 channels, or without a head.
    """
    C, H, W = model.patch_embed.input_shape
    problems = {
        "a class token": model.cls_token is None,
        f"square images, these are {H} x {W}": H != W,
        f"3 channels, here are {C}": C != 3,
        "a head (num_classes is 0)": isinstance(model.head, torch.nn.Identity),
    }
    if any(problems.values()):
        needed = "; ".join(text for text, wrong in problems.items() if wrong)
        raise ValueError(f"torchvision's VisionTransformer needs {needed}")
    return _export(model, "torchvision")


def resize_positions(pos_embed, old_grid, new_grid, interpolation="official"):
    """Positions (1, N, D) or (1, N+1, D) of one grid -> those of another, in 2-D (section 3.2).

    Grids are (rows, columns). A class row, the first, is set aside and put back. interpolation:
    "official", "torchvision" or "timm". ValueError for another one, or if the rows do not fit.
    """
    if interpolation not in INTERPOLATIONS:
        choices = ", ".join(INTERPOLATIONS)
        raise ValueError(f"interpolation is {interpolation!r}: choose one of {choices}")
    class_rows = pos_embed.shape[1] - math.prod(old_grid)
    if class_rows not in (0, 1):
        raise ValueError(
            f"{pos_embed.shape[1]} positions are no {old_grid[0]} x {old_grid[1]} grid, with or "
            "without a row for the class token: give another grid"
        )
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    first, rest = pos_embed[:, :class_rows], pos_embed[:, class_rows:]
    images = rest.unflatten(1, tuple(old_grid)).permute(0, 3, 1, 2)  # (1, h, w, D) -> (1, D, h, w)
    images = images.double() if images.dtype == torch.float64 else images.float()
    images = F.interpolate(images, size=tuple(new_grid), **INTERPOLATIONS[interpolation])
    rest = images.flatten(2).transpose(1, 2).to(pos_embed.dtype)  # (1, D, h', w') -> (1, N', D)
    return torch.cat([first, rest], dim=1)


# Fitting


def _load(model, found, new_head, interpolation, grid):
    """Check everything, then copy -> Report."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    head, zeros = _head(model, found, new_head)
    kept = {n: w for n, w in found.tensors.items() if not n.startswith(("head.", "pre_logits."))}
    if head == "kept" or head == "left out" and len(model.pre_logits):
        parts = ("pre_logits.", "head.") if head == "kept" else ("pre_logits.",)
        kept |= {n: w for n, w in found.tensors.items() if n.startswith(parts)}
    kept |= zeros
    _check(model, found, kept, grid)
    old, positions = _positions(model, found, grid)
    new = model.patch_embed.grid_size
    how = interpolation or ("official" if found.format == "helpers" else found.layout.interpolation)
    kept["pos_embed"] = resize_positions(positions, old, new, how)
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            parameter.copy_(kept[name])
    return Report(found.format, None if old == new else (old, new), head, found.normalisation)


def _head(model, found, new_head):
    """("kept", "new" or "left out", the zeros of a new head by name)."""
    if isinstance(model.head, torch.nn.Identity):
        return "left out", {}
    theirs = found.tensors.get("head.weight")
    K = model.head.out_features
    if theirs is not None and len(theirs) == K and not new_head:
        return "kept", {}
    if len(model.pre_logits):
        raise ValueError(
            "a new head is one linear layer (section 3.2 of the paper), and this model has a tanh "
            "layer before it: build the model without representation_size"
        )
    return "new", {f"head.{n}": torch.zeros_like(w) for n, w in model.head.state_dict().items()}


def _check(model, found, kept, grid):
    """ValueError naming all that does not fit, and the model that would."""
    needed = model.state_dict()
    problems = []
    missing = [name for name in needed if name not in kept]
    if missing:
        problems.append(found.missing(missing))
    left_over = found.left_over + [found.names(name)[0] for name in kept if name not in needed]
    if left_over:
        problems.append(f"left over: {few(left_over)}")
    other = []
    for name, weight in kept.items():
        there, here = tuple(weight.shape), tuple(needed[name].shape) if name in needed else None
        if name == "pos_embed" and len(there) == 3 and there[::2] == here[::2]:
            continue  # its rows may be resized
        if here and there != here:
            other.append(f"{found.names(name)[0]} is {there} for a place of {here}")
    if other:
        problems.append(f"other shapes: {few(other)}")
    arguments = model_arguments(model)
    for name in ("num_heads", "norm_eps"):
        if name in found.known and found.known[name] != arguments[name]:
            problems.append(f"{name} is {found.known[name]} there and {arguments[name]} here")
    if problems:
        raise ValueError(
            f"the weights ({found.format}, {len(found.theirs)} tensors) do not fit the model, "
            f"which is as it was.\n  " + "\n  ".join(problems) + _advice(found, grid)
        )


def _grids(found, grid=None, model_grid=None):
    """What the source's positions can be: [(with a class row, (rows, columns))]."""
    rows = found.tensors["pos_embed"].shape[1]
    has_token = "cls_token" in found.tensors
    known = grid or found.grid
    grids = []
    for class_row in (True, False) if has_token else (False,):
        n = rows - class_row
        side = math.isqrt(max(n, 0))
        options = [tuple(known)] if known else [(side, side), model_grid or (side, side)]
        fitting = [g for g in dict.fromkeys(options) if math.prod(g) == n and n]
        grids += [(class_row, g) for g in fitting]
    return [g for g in grids if g[0] == grids[0][0]]


def _positions(model, found, grid):
    """(grid of the source, its positions with a class row if the model has one)."""
    here = model.patch_embed.grid_size
    grids = _grids(found, grid, here)
    positions = found.tensors["pos_embed"]
    if len(grids) != 1:
        could_be = " or ".join(f"{h} x {w}" for _, (h, w) in grids) or "no square"
        raise ValueError(
            f"{positions.shape[1]} positions of the source are {could_be}, in rows x columns of "
            "patches: say which by grid=(rows, columns)"
        )
    class_row, old = grids[0]
    if model.cls_token is not None and not class_row:  # a class token without a position
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return old, positions


def _arguments(found, grid=None):
    """The arguments of VisionTransformer that the shapes tell, or None if too much is missing."""
    w = found.tensors
    if any(name not in w or w[name].ndim != n for name, n in ESSENTIAL.items()):
        return None
    D, C, P, _ = w["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    head, tanh_layer = w.get("head.weight"), w.get("pre_logits.0.weight")
    settings = dict(patch_size=P, in_chans=C, embed_dim=D, depth=depth)
    settings["num_classes"] = 0 if head is None else len(head)
    M = len(w["blocks.0.mlp.fc1.weight"])
    settings["mlp_ratio"] = next(r for r in (M / D, math.nextafter(M / D, M)) if int(r * D) == M)
    settings["global_pool"] = "token" if "cls_token" in w else "avg"
    settings["representation_size"] = None if tanh_layer is None else len(tanh_layer)
    if grids := _grids(found, grid):
        rows, columns = grids[0][1]
        settings["img_size"] = P * rows if rows == columns else (P * rows, P * columns)
    heads = {(size[0], size[1]): size[2] for size in SIZES.values()}.get((depth, D))
    return settings | ({"num_heads": heads} if heads else {}) | found.known


def _advice(found, grid):
    """The model that these weights fit, as a sentence with its code, or nothing."""
    settings = _arguments(found, grid)
    if settings is None:
        return ""
    shape = (settings["depth"], settings["embed_dim"], settings.get("num_heads"))
    size = next((f"{name}/{settings['patch_size']}" for name in SIZES if SIZES[name] == shape), "")
    call, hidden, name = "VisionTransformer(", {}, "such a model"
    if size in VARIANTS and settings["mlp_ratio"] == 4:
        call, name = f'create_vit("{size}", ', size
        hidden = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"}
    defaults = {"in_chans": 3, "global_pool": "token", "representation_size": None}
    defaults |= {"mlp_ratio": 4, "norm_eps": 1e-6, "drop_rate": 0}
    parts = [
        f"{name}={value!r}"
        for name, value in settings.items()
        if name not in hidden and (name not in defaults or defaults[name] != value)
    ]
    if "num_heads" not in settings:
        parts.append("num_heads=...")
    pixels = f" at {settings['img_size']} px" if "img_size" in settings else ""
    return f"\nThese are the weights of {name}{pixels}: build {call}{', '.join(parts)})"


def _export(model, layout):
    """The state dict by a layout's names, copied; only for layouts that reshape nothing."""
    rows = {row.ours: row for lay in LAYOUTS if lay.name == layout for row in reversed(lay.rows)}
    weights = {}
    for name, weight in model.state_dict().items():
        general, i = general_name(name)
        weights[rows[general].theirs[0].format(i=i)] = weight.detach().clone()
    return weights
