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

from helpers.checkpoints import model_arguments, ratio_for
from helpers.model import SIZES, VARIANTS, VisionTransformer
from helpers.weights.files import Source, few, read
from helpers.weights.names import INTERPOLATIONS, LAYOUTS


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

    source: a path (.safetensors, .npz, or a file of torch.save), a dict of tensors, or a member of
    one of torchvision's weight enums, which alone may download. Positions are resized to the
    model's grid as the source's library does it, or as interpolation says: "official",
    "torchvision" or "timm"; grid is the (rows, columns) of the source's, if they are no square.
    With another number of classes, or new_head=True, the whole head of the source is dropped and a
    linear layer of zeros takes its place (section 3.2 of the paper).

    FileNotFoundError, TypeError for another kind of source, ValueError for a file that is damaged,
    of an unknown layout or of another architecture, and for weights that do not fit. No file tells
    LayerNorm's eps: 1e-6 in all libraries here, torch's default 1e-5 elsewhere.
    """
    found = source if isinstance(source, Source) else read(source, grid)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    head, weights = _with_head(model, found, new_head)
    _check(model, found, weights)
    new = model.patch_embed.grid_size
    class_rows, grids = _grids(found, new)
    if len(grids) != 1:
        could_be = " or ".join(f"{h} x {w}" for h, w in grids) or "no square"
        raise ValueError(
            f"{weights['pos_embed'].shape[1]} positions of the source are {could_be}, in rows x "
            "columns of patches: say which by grid=(rows, columns)"
        )
    missing = model.num_prefix_tokens - class_rows  # a class token without a position gets zeros
    positions = F.pad(weights["pos_embed"], (0, 0, missing, 0))
    ways = {"timm": "timm", "DeiT": "timm", "torchvision": "torchvision"}
    how = interpolation or ways.get(found.format, "official")
    weights["pos_embed"] = resize_positions(positions, grids[0], new, how)
    model.load_state_dict(weights)
    resized = None if grids[0] == new else (grids[0], new)
    return Report(found.format, resized, head, found.normalisation)


def model_from(source, *, interpolation=None, grid=None, **changes):
    """(model in eval mode, Report): the VisionTransformer that fits source, its weights loaded.

    changes: arguments of VisionTransformer that shapes do not tell or that shall be others; None
    leaves what was found. Without num_heads, the source must tell it or be of a model of Table 1,
    Ti or S by depth and width; another img_size resizes the positions, another num_classes gives a
    new head, 0 none. The rest and the errors are load_pretrained's.
    """
    found = read(source, grid)
    settings = _arguments(found)
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes.get("num_classes", settings["num_classes"]) != settings["num_classes"]:
        settings["representation_size"] = None
    settings |= changes
    if "img_size" not in settings:
        raise ValueError("the positions are no square: give grid or img_size")
    if "num_heads" not in settings:
        D, depth = settings["embed_dim"], settings["depth"]
        raise ValueError(
            f"no shape tells num_heads, and {depth} blocks of width {D} are no known model: give "
            f"num_heads, a divisor of {D}, often {max(1, D // 64)}. A wrong one loads as well and "
            "answers wrongly"
        )
    model = VisionTransformer(**settings).eval()
    return model, load_pretrained(model, found, interpolation=interpolation)


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

    ValueError for a model that it cannot be.
    """
    C, H, W = model.patch_embed.input_shape
    has_head = hasattr(model.head, "out_features")
    if not (model.num_prefix_tokens and H == W and C == 3 and has_head):
        raise ValueError(
            "torchvision's VisionTransformer has a class token, square images of 3 channels and a "
            f"head, and the model here is of {model_arguments(model)}"
        )
    return _export(model, "torchvision")


def _export(model, name):
    """The state dict by a layout's names, copied; only for layouts that reshape nothing."""
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    state = model.state_dict().items()
    return {layout.names(ours)[0]: weight.detach().clone() for ours, weight in state}


def resize_positions(pos_embed, old_grid, new_grid, interpolation="official"):
    """Positions (1, N, D) or (1, N+1, D) of one grid -> those of another, in 2-D (section 3.2).

    Grids are (rows, columns). A class row, the first, is set aside and put back. interpolation:
    "official", "torchvision" or "timm". ValueError for another one, or if the rows do not fit.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r} is none of {', '.join(INTERPOLATIONS)}")
    rows, (h, w) = pos_embed.shape[1], old_grid
    class_rows = rows - h * w
    if class_rows not in (0, 1):
        raise ValueError(f"{rows} positions are no {h} x {w} grid, with a class row or without")
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    first, rest = pos_embed[:, :class_rows], pos_embed[:, class_rows:]
    images = rest.unflatten(1, tuple(old_grid)).permute(0, 3, 1, 2)  # (1, h, w, D) -> (1, D, h, w)
    images = images.double() if images.dtype == torch.float64 else images.float()
    images = F.interpolate(images, size=tuple(new_grid), **INTERPOLATIONS[interpolation])
    rest = images.flatten(2).transpose(1, 2).to(pos_embed.dtype)  # (1, D, h', w') -> (1, N', D)
    return torch.cat([first, rest], dim=1)


def _with_head(model, found, new_head):
    """("kept", "new" or "left out", the weights with the head that the model shall have)."""
    K, theirs = getattr(model.head, "out_features", 0), found.tensors.get("head.weight", ())
    if len(theirs) == K > 0 and not new_head:
        return "kept", dict(found.tensors)
    if K and len(model.pre_logits):
        raise ValueError(
            "a new head is one linear layer, and this model has a tanh layer before it: build the "
            "model without representation_size"
        )
    dropped = ("head.",) if len(model.pre_logits) else ("head.", "pre_logits.")
    weights = {name: w for name, w in found.tensors.items() if not name.startswith(dropped)}
    for name, w in model.head.state_dict(prefix="head.").items():
        weights[name] = torch.zeros_like(w)
    return "new" if K else "left out", weights


def _check(model, found, weights):
    """ValueError naming all that does not fit, and the model that would."""
    needed, names = model.state_dict(), found.layout.names
    missing = [n for ours in needed if ours not in weights for n in names(ours)]
    left_over = [n for ours in weights if ours not in needed for n in names(ours)]
    other = []
    for ours in [ours for ours in weights if ours in needed]:
        there, here = tuple(weights[ours].shape), tuple(needed[ours].shape)
        only_rows = ours == "pos_embed" and there[::2] == here[::2]  # which may be resized
        if there != here and not only_rows:
            other.append(f"{names(ours)[0]} is {there} for a place of {here}")
    problems = {
        "missing": [name for name in missing if name not in found.theirs],
        "left over": found.left_over + left_over,
        "other shapes": other,
    }
    lines = [f"{problem}: {few(those)}" for problem, those in problems.items() if those]
    arguments = model_arguments(model)
    for name, value in found.known.items():
        if value != arguments[name]:
            lines.append(f"{name} is {value} there and {arguments[name]} here")
    if lines:
        raise ValueError(
            f"the weights ({found.format}, {len(found.theirs)} tensors) do not fit the model, "
            "which is as it was.\n  " + "\n  ".join(lines) + "\n" + _advice(found)
        )


def _grids(found, model_grid=None):
    """(rows of the class token, the grids that the others can be) of the source's positions."""
    for class_rows in (1, 0) if "cls_token" in found.tensors else (0,):
        n = found.tensors["pos_embed"].shape[1] - class_rows
        square = (math.isqrt(n), math.isqrt(n))
        options = [found.grid] if found.grid else [square, model_grid or square]
        fitting = [grid for grid in dict.fromkeys(options) if math.prod(grid) == n > 0]
        if fitting:
            break
    return class_rows, fitting


def _arguments(found):
    """The arguments of VisionTransformer that the shapes, and what else is known, tell."""
    w = found.tensors
    D, C, P, _ = w["patch_embed.proj.weight"].shape
    settings = dict(patch_size=P, in_chans=C, embed_dim=D, depth=found.depth)
    settings["num_classes"] = len(w["head.weight"]) if "head.weight" in w else 0
    settings["mlp_ratio"] = ratio_for(D, len(w["blocks.0.mlp.fc1.weight"]))
    settings["global_pool"] = "token" if "cls_token" in w else "avg"
    tanh_layer = w.get("pre_logits.0.weight")
    settings["representation_size"] = None if tanh_layer is None else len(tanh_layer)
    _, grids = _grids(found)
    if grids:
        rows, columns = grids[0]
        settings["img_size"] = P * rows if rows == columns else (P * rows, P * columns)
    for depth, width, heads in SIZES.values():
        if (depth, width) == (found.depth, D):
            settings["num_heads"] = heads
    return settings | found.known


def _advice(found):
    """The model that these weights fit, as a sentence with its code."""
    settings = {"num_heads": "?"} | _arguments(found)
    sizes = {name: settings.pop(name) for name in ("depth", "embed_dim", "num_heads", "patch_size")}
    depth, D, heads, P = sizes.values()
    variant = f"{next((s for s in SIZES if SIZES[s] == (depth, D, heads)), '')}/{P}"
    if variant not in VARIANTS:
        return f"These are the weights of VisionTransformer(**{sizes | settings})"
    usual = dict(in_chans=3, mlp_ratio=4, global_pool="token", representation_size=None)
    others = [f"{n}={value!r}" for n, value in settings.items() if usual.get(n, "") != value]
    code = f'create_vit("{variant}", {", ".join(others)})'
    at = f" at {settings['img_size']} px" if "img_size" in settings else ""
    return f"These are the weights of {variant}{at}: build {code}"
