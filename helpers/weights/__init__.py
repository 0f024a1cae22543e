"""Weights of other libraries into our model and back.

    model, report = model_from("B_16.npz")         # timm, DeiT, torchvision, official, Hugging Face
    report = load_pretrained(model, ViT_B_16_Weights.IMAGENET1K_V1)  # torchvision downloads it
    timm_model.load_state_dict(to_timm(model), strict=True)

The names are in names.py, as tables. Files are read without running code in them.
"""

import math
import warnings
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from helpers.checkpoints import model_arguments, ratio_for
from helpers.model import SIZES, VARIANTS, VisionTransformer
from helpers.weights.files import few
from helpers.weights.matching import read
from helpers.weights.names import INTERPOLATIONS, LAYOUTS


@dataclass(frozen=True)
class Report:
    """What load_pretrained did.

    format: "timm", "DeiT" (timm's names in a file whose name begins with deit), "DINOv2" (timm's
    names, LayerScale and a mask token), "torchvision", "official", "big_vision", "Hugging Face" or
    "helpers" (ours). resized: (rows, columns) of patches in the file and in the model, or None.
    head: "kept", "new" (zeros) or "left out". normalisation: (mean, std), one number per channel on
    the scale from 0 to 1, or None: timm's names serve both 0.5/0.5 and ImageNet's. facts: where
    each fact is from that no shape shows: "told" by an argument or the model, "in the file" or a
    config, or "assumed": heads of Table 1's sizes, the class token read where there is one, the
    exact GELU, norms before, the library's eps. taken: the key of the set of weights, left those of
    the others in the file. zeros: what the file lacks and is zeros, which computes the same.
    folded: the factors, LayerScale's, that the rows of our matrices and biases have taken in.
    aside: what is no weight, or of no part of ours, as a mask token.
    """

    format: str
    resized: tuple | None
    head: str
    normalisation: tuple | None
    facts: dict = field(default_factory=dict, compare=False)
    taken: str = field(default="", compare=False)
    left: tuple = field(default=(), compare=False)
    zeros: tuple = field(default=(), compare=False)
    folded: tuple = field(default=(), compare=False)
    aside: tuple = field(default=(), compare=False)


def load_pretrained(model, source, *, new_head=False, interpolation=None, grid=None, key=None,
                    config=None):  # fmt: skip
    """Copy the weights of source into model, a VisionTransformer -> Report. All of them or none.

    source: a path (.safetensors, .npz, .onnx, a file of torch.save by any name, or a folder as
    Hugging Face writes it), a dict of tensors, or a member of one of torchvision's weight enums,
    which alone may download. key: which of several sets in it, as "state_dict.teacher". Positions
    are resized to the model's grid as the source's library does it, or as interpolation says:
    "official", "torchvision", "timm", "Hugging Face" or "DINOv2"; grid is the (rows, columns) of
    the source's, where their number leaves it open. config: what no tensor tells, in the words of
    a config.json, as {"act_layer": "quick_gelu"}: refused if our model cannot be that. With another
    number of classes, or new_head=True, the whole head of the source is dropped and a linear layer
    of zeros takes its place (section 3.2 of the paper).

    FileNotFoundError, TypeError for another kind of source, ValueError for a file that is damaged,
    of an unknown layout or of another architecture, and for weights that do not fit. A warning for
    weights that are not finite.
    """
    told = ("num_heads", "global_pool", "norm_eps")
    return _load(model, read(source, grid, key, config), new_head, interpolation, told)


def model_from(source, *, interpolation=None, grid=None, key=None, config=None, **changes):
    """(model in eval mode, Report): the VisionTransformer that fits source, its weights loaded.

    changes: arguments of VisionTransformer that shapes do not tell or that shall be others; None
    leaves what was found. Without num_heads, the source must tell it or be of a model of Table 1,
    Ti or S by depth and width, with a warning if its names are not quite a library's; another
    img_size resizes the positions, another num_classes gives a new head, 0 none. The rest and the
    errors are load_pretrained's.
    """
    found = read(source, grid, key, config)
    settings = _arguments(found)
    changes = {name: value for name, value in changes.items() if value is not None}
    if found.other_head and not found.left_over and "num_classes" not in changes:
        raise ValueError(f"{_other_head(found)}: give num_classes for a new head, 0 for none")
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
    report = _load(model, found, bool(found.other_head), interpolation, changes)
    if report.facts["num_heads"] == "assumed" and found.doubt:
        h = settings["num_heads"]
        warnings.warn(
            f"num_heads={h} is assumed from a table of sizes, but the names are not quite those of "
            f"{found.format} ({found.doubt}): pass num_heads={h} if that is right, or the true one",
            stacklevel=2,
        )
    return model, report


def _load(model, found, new_head, interpolation, told):
    """load_pretrained from a Source; told: the names of the facts that the caller knows."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    new = model.patch_embed.grid_size
    head, weights = _with_head(model, found, new_head)
    problems = _problems(model, found, weights, head)
    try:
        class_rows, old = _reading(found, new)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError(
            f"the weights ({found.format}, {len(found.theirs)} tensors) do not fit the model, "
            "which is as it was.\n  " + "\n  ".join(problems) + _advice(model, found, new_head)
        )
    missing = model.num_prefix_tokens - class_rows  # a class token without a position gets zeros
    positions = F.pad(weights["pos_embed"], (0, 0, missing, 0))
    own = "timm" if found.format == "DeiT" else found.format
    how = interpolation or (own if own in INTERPOLATIONS else "official")
    weights["pos_embed"] = resize_positions(positions, old, new, how)
    model.load_state_dict(weights)
    loaded = model.state_dict().items()
    finite = {n: w.is_meta or w.isfinite().all() for n, w in loaded}
    if broken := [found.layout.names(n)[0] for n, yes in finite.items() if not yes]:
        warnings.warn(
            f"not all of {few(broken)} is finite, and the model answers NaN: copy the file again",
            stacklevel=3,
        )
    facts = {
        name: "in the file" if name in found.said else "told" if name in told else "assumed"
        for name in ("num_heads", "global_pool", "activation", "norm_order", "norm_eps")
    }
    zeros = [*found.zeros, *["the class token's row of the positions"] * missing]
    resized = None if old == new else (old, new)
    return Report(found.format, resized, head, found.normalisation, facts, found.taken, found.left,
                  tuple(zeros), tuple(found.folded), tuple(found.aside))  # fmt: skip


def to_timm(model):
    """A copy of the weights for timm's and DeiT's VisionTransformer, by their names.

    A model that averages needs global_pool="avg", class_token=False and fc_norm=False there; the
    number of heads and LayerNorm's eps, which no weight holds, must be this model's.
    ValueError for a tanh layer in the head, which timm has not.
    """
    if len(model.pre_logits):
        raise ValueError("timm has no tanh layer in the head: use a model without it")
    return _export(model, "timm")


def to_torchvision(model):
    """A copy of the weights for torchvision.models.VisionTransformer, by its names.

    The number of heads and LayerNorm's eps, which no weight holds, must be this model's there.
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

    Grids are (rows, columns). A class row, the first, is set aside and put back. ValueError for an
    unknown interpolation, or if the rows do not fit.
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
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    how = dict(INTERPOLATIONS[interpolation])
    if offset := how.pop("offset", 0):
        how["scale_factor"] = [(n + offset) / o for n, o in zip(new_grid, old_grid, strict=True)]
    images = F.interpolate(images, None if offset else tuple(new_grid), **how)
    rest = images.flatten(2).transpose(1, 2).to(pos_embed.dtype)  # (1, D, h', w') -> (1, N', D)
    return torch.cat([first, rest], dim=1)


def _with_head(model, found, new_head):
    """("kept", "new" or "left out", the weights with the head that the model shall have)."""
    K, theirs = getattr(model.head, "out_features", 0), found.tensors.get("head.weight", ())
    if len(theirs) == K > 0 and not new_head:
        return "kept", dict(found.tensors)
    if K and len(model.pre_logits):
        raise ValueError(
            "a new head would follow a tanh layer: build the model without representation_size"
        )
    dropped = ("head.",) if len(model.pre_logits) else ("head.", "pre_logits.")
    weights = {name: w for name, w in found.tensors.items() if not name.startswith(dropped)}
    for name, w in model.head.state_dict(prefix="head.").items():
        weights[name] = torch.zeros_like(w)
    if found.other_head and K and not new_head:
        return "other", weights
    return "new" if K else "left out", weights


def _other_head(found):
    return f"{few(found.other_head)} are a head that is not one linear layer on the features"


def _problems(model, found, weights, head):
    """All that does not fit, by name, one line for each kind."""
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
    return lines + [_other_head(found)] * (head == "other")


def _readings(found, model_grid=None):
    """[(rows of the class token, grid)], all that the source's positions can be."""
    n, readings = found.tensors["pos_embed"].shape[1], []
    for class_rows in (1, 0) if "cls_token" in found.tensors else (0,):
        side = math.isqrt(n - class_rows)
        options = [(side, side), model_grid or (side, side)]
        for grid in dict.fromkeys([found.grid] if found.grid else options):
            if math.prod(grid) == n - class_rows > 0:
                readings.append((class_rows, grid))
    return readings


def _reading(found, model_grid):
    """The one reading of the positions. ValueError if there are more, or none."""
    readings = _readings(found, model_grid)
    if len(readings) == 1:
        return readings[0]
    class_rows = ("", " and a class row") if len({r for r, _ in readings}) > 1 else ("", "")
    could_be = " or ".join(f"{h} x {w}{class_rows[r]}" for r, (h, w) in readings)
    none = "no {} x {}".format(*found.grid) if found.grid else "no square"
    raise ValueError(
        f"{found.tensors['pos_embed'].shape[1]} positions of the source are {could_be or none}, in "
        "rows x columns of patches: say which by grid=(rows, columns)"
    )


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
    settings["norm_eps"] = found.layout.norm_eps
    if readings := _readings(found):
        rows, columns = readings[0][1]
        settings["img_size"] = P * rows if rows == columns else (P * rows, P * columns)
    for depth, width, heads in SIZES.values():
        if (depth, width) == (found.depth, D):
            settings["num_heads"] = heads
    return settings | found.known


def _advice(model, found, new_head):
    """What would help, its code last; "" unless the advised model would be accepted."""
    here = model_arguments(model)
    settings = {"num_heads": "?"} | _arguments(found)
    guessed = found.doubt if settings["num_heads"] != "?" else "no known model"
    if (here["embed_dim"], here["depth"]) == (settings["embed_dim"], settings["depth"]):
        settings["num_heads"], guessed = here["num_heads"], ""
    settings |= {"norm_eps": here["norm_eps"]} | found.known
    if found.other_head:
        settings |= dict(num_classes=here["num_classes"], representation_size=None)
    heads = 1 if settings["num_heads"] == "?" else settings["num_heads"]
    try:
        with torch.device("meta"):  # shapes without memory
            advised = VisionTransformer(**settings | {"num_heads": heads})
        _reading(found, advised.patch_embed.grid_size)
        head, weights = _with_head(advised, found, new_head or bool(found.other_head))
    except ValueError:
        return ""
    if _problems(advised, replace(found, left_over=[]), weights, head):
        return ""
    advice = "\n"
    if found.other_head and here["num_classes"]:
        advice += "Give new_head=True for a head of zeros in its place. "
    if found.left_over and not found.loose:
        return ""
    if found.left_over:
        advice += f"If the model answers without {few(found.left_over)}, give a dict without. "
        advice += f"key={found.taken!r} reads only what is under that name. " * found.outside
    if all(here[name] == settings[name] for name in settings if name != "img_size"):
        return advice.rstrip()
    if guessed and "num_heads" not in found.known:
        advice += f"How many heads there are no shape tells, check num_heads ({guessed}). "
    return advice + _code(settings)


def _code(settings):
    """The model of these settings, as a sentence that ends with its code."""
    sizes = {name: settings.pop(name) for name in ("depth", "embed_dim", "num_heads", "patch_size")}
    depth, D, heads, P = sizes.values()
    variant = f"{next((s for s in SIZES if SIZES[s] == (depth, D, heads)), '')}/{P}"
    if variant not in VARIANTS:
        return f"These are the weights of VisionTransformer(**{sizes | settings})"
    usual = dict(in_chans=3, mlp_ratio=4, global_pool="token", representation_size=None,
                 norm_eps=1e-6)  # fmt: skip
    others = [f"{n}={value!r}" for n, value in settings.items() if usual.get(n, "") != value]
    code = f'create_vit("{variant}", {", ".join(others)})'
    at = f" at {settings['img_size']} px" if "img_size" in settings else ""
    return f"These are the weights of {variant}{at}: build {code}"
