"""Settings: what each may be, and which suit a data set, on a CPU, on a GPU, as published."""

import sys

from helpers.augmentation import POLICIES
from helpers.data import Split
from helpers.model import BELOW_1, COUNT, COUNT_OR_0, NUMBER, check
from helpers.scale.devices import PRECISIONS, choose_device, choose_precision
from helpers.scale.distributed import rank, world_size

SHARE = "0 to 1", lambda x: 0 <= x <= 1
SETTINGS = {  # fields of training.TrainConfig: in words, and as a test
    **dict.fromkeys(("epochs", "batch_size"), COUNT),
    **dict.fromkeys(("lr", "weight_decay", "shift"), NUMBER),
    **dict.fromkeys(("warmup", "crop", "erase", "mixup", "cutmix"), SHARE),
    **dict.fromkeys(("label_smoothing", "zoom", "drop_path", "ema"), BELOW_1),
    "grad_clip": ("above 0; inf clips nothing", lambda x: x > 0),
    "rotate": ("0 to 180 degrees", lambda x: 0 <= x <= 180),
    "policy": (f"one of {', '.join(POLICIES)}, or empty", lambda x: x in ("", *POLICIES)),
    "precision": (f"one of {', '.join(PRECISIONS)}", lambda x: x in PRECISIONS),
    "seed": ("a whole number, 0 to 2^63 - 1", lambda n: 0 <= n < 2**63 and n == int(n)),
    "workers": COUNT_OR_0,
}


def check_all(model, data, config):
    """(device, precision), after all that can be known before the first step has been looked at.

    ValueError if something cannot work.
    """
    check(vars(config), SETTINGS)
    device, blocks = choose_device(config.device), list(getattr(model, "blocks", [None]))
    if getattr(model.head, "out_features", 0) != len(data.classes):
        raise ValueError(
            f"the model's head is {model.head} and {data.name} has {len(data.classes)} classes: "
            f"build the model with num_classes={len(data.classes)}"
        )
    if not len(data.train):
        raise ValueError(f"{data.name} has no training images: load it with a smaller test share")
    if config.fsdp and world_size() == 1:
        raise ValueError("fsdp shares a model among processes: start them with torchrun")
    if not blocks:
        raise ValueError("the model has no encoder block: build it with depth 1 or more")
    if any(parameter.numel() == 0 for parameter in model.parameters()):
        raise ValueError("the model has a layer of no width: give a larger mlp_ratio")
    in_memory, (_, H, W) = isinstance(data.train, Split), data.train.image_shape
    if config.shift >= min(H, W):
        raise ValueError(f"shift is {config.shift} and the images are {H} x {W}: it must be below")
    if config.crop and in_memory:
        raise ValueError("crop cuts from whole pictures: load them with load_streaming (--stream)")
    return device, choose_precision(config.precision, device, model.head.in_features)


def say_what_is_idle(model, data, config):
    """A line on stderr for each thing that was asked for, or is usual, and has no effect."""
    lines = {
        "workers do nothing: these images are decoded already": config.workers
        and isinstance(data.train, Split),
        "drop_path does nothing: it spares the first block, and there is no other": config.drop_path
        and len(model.blocks) == 1,
        "tensorboard writes nothing: it needs a run_dir": config.tensorboard and not config.run_dir,
        "no validation images: nothing is measured after an epoch": not len(data.validation),
        "no test images: nothing is measured at the end": not len(data.test),
    }
    for text in [text for text, holds in lines.items() if holds and rank() == 0]:
        print(text, file=sys.stderr)


MIXED = dict(policy="trivial", mixup=0.25, cutmix=0.5, drop_path=0.1, ema=0.999)
UPRIGHT = dict(rotate=0, zoom=0)  # what is photographed upright: no turns, no zoom

DIGITS = dict(patch_size=2, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2.0, pos_embed_std=0.5)

# For each recipe and data set: arguments of VisionTransformer, fields of TrainConfig.
RECIPES = {
    "small": {  # minutes on a CPU
        "digits": (
            DIGITS,
            dict(epochs=80, batch_size=64, lr=3e-3, weight_decay=0.3),
        ),
        "mnist": (
            dict(patch_size=7, embed_dim=64, depth=4, num_heads=4, pos_embed_std=0.5),
            dict(epochs=20, batch_size=128, lr=3e-3, shift=2),
        ),
        "fashion-mnist": (
            dict(patch_size=7, embed_dim=64, depth=4, num_heads=4, pos_embed_std=0.5),
            dict(epochs=20, batch_size=128, lr=3e-3, **UPRIGHT),
        ),
        "cifar10": (
            dict(patch_size=4, embed_dim=192, depth=9, num_heads=12, mlp_ratio=2.0),
            dict(epochs=100, batch_size=128, lr=1e-3, shift=4, **UPRIGHT),
        ),
    },
    "full": {  # minutes on a GPU
        "digits": (
            DIGITS,
            dict(epochs=80, batch_size=128, lr=5e-3, weight_decay=0.3, mixup=0.1, drop_path=0.05,
                 ema=0.98),
        ),
        "mnist": (
            dict(patch_size=4, embed_dim=192, depth=6, num_heads=6),
            dict(epochs=60, batch_size=512, lr=2e-3, shift=3, rotate=15, zoom=0.15, drop_path=0.1,
                 cutmix=0.25, ema=0.999),
        ),
        "fashion-mnist": (
            dict(patch_size=4, embed_dim=192, depth=9, num_heads=6),
            dict(epochs=120, batch_size=512, lr=2e-3, shift=2, **UPRIGHT, **MIXED),
        ),
        "cifar10": (
            dict(patch_size=4, embed_dim=256, depth=9, num_heads=8),
            dict(epochs=120, batch_size=512, lr=2e-3, shift=4, **UPRIGHT, **MIXED),
        ),
    },
    "published": {  # the strongest plain ViT from scratch that we know of: aanna0701/SPT_LSA_ViT
        "cifar10": (
            dict(patch_size=4, embed_dim=192, depth=9, num_heads=12, mlp_ratio=2.0),
            dict(epochs=100, batch_size=128, lr=1e-3, weight_decay=0.05, shift=4, **UPRIGHT,
                 policy="auto", erase=0.25, mixup=0.5, cutmix=0.5, drop_path=0.1),
        ),
    },
}  # fmt: skip


def recipe(data, kind="small"):
    """(arguments of VisionTransformer, fields of TrainConfig) for data, an ImageData.

    kind: a key of RECIPES. A set that was not loaded by name, like your own folder, be it called
    digits, is cut into at least 8 x 8 patches, as large as its size allows; if it is one under
    another name, dataclasses.replace(data, loaded_as="cifar10") says so. ValueError for another
    kind, or one that is for other data.
    """
    if kind not in RECIPES:
        raise ValueError(f"recipe is {kind!r}: choose one of {', '.join(RECIPES)}")
    C, H, W = data.train.image_shape
    if data.loaded_as in RECIPES[kind]:
        sizes, training = RECIPES[kind][data.loaded_as]
    elif kind == "published":
        raise ValueError(
            f"no recipe is published for {data.name}, only for cifar10: choose small or full"
        )
    else:
        sizes, training = own_recipe(H, W, kind)
    return dict(img_size=(H, W), in_chans=C, num_classes=len(data.classes), **sizes), training


def own_recipe(H, W, kind):
    """The same for pictures of your own, H x W pixels large."""
    sizes = dict(patch_size=largest_patch(H, W), embed_dim=128, depth=6, num_heads=4)
    training = dict(epochs=50, batch_size=64, lr=1e-3, shift=H // 16)
    return sizes, training | (MIXED if kind == "full" else {})


def largest_patch(H, W):
    """The largest patch side that divides both sides and leaves at least 8 patches along each."""
    return max((p for p in range(1, min(H, W) // 8 + 1) if H % p == W % p == 0), default=1)
