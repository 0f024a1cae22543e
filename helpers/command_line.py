"""What `python -m helpers.training` does, and the settings that suit each data set."""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from helpers.data import load
from helpers.model import VisionTransformer
from helpers.training import TrainConfig, fit

# For each data set: arguments of VisionTransformer, fields of TrainConfig.
RECIPES = {
    "digits": (
        dict(patch_size=2, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2.0, pos_embed_std=0.5),
        dict(epochs=80, batch_size=64, lr=3e-3, weight_decay=0.3),
    ),
    "mnist": (
        dict(patch_size=7, embed_dim=64, depth=4, num_heads=4, pos_embed_std=0.5),
        dict(epochs=20, batch_size=128, lr=3e-3, shift=2),
    ),
    "fashion-mnist": (  # clothes are photographed upright and centred: no turns, no zoom
        dict(patch_size=7, embed_dim=64, depth=4, num_heads=4, pos_embed_std=0.5),
        dict(epochs=20, batch_size=128, lr=3e-3, rotate=0, zoom=0),
    ),
    "cifar10": (
        dict(patch_size=4, embed_dim=192, depth=9, num_heads=12, mlp_ratio=2.0),
        dict(epochs=100, batch_size=128, lr=1e-3, shift=4, rotate=0, zoom=0),
    ),
}


def recipe(data):
    """(arguments of VisionTransformer, fields of TrainConfig) for data, an ImageData.

    A data set without a recipe, your own folder say, is cut into at least 8 x 8
    patches, as large as its size allows.
    """
    _, C, H, W = data.train.images.shape
    fallback = (
        dict(patch_size=largest_patch(H, W), embed_dim=128, depth=6, num_heads=4),
        dict(epochs=50, batch_size=64, lr=1e-3, shift=H // 16),
    )
    sizes, training = RECIPES.get(data.name, fallback)
    return dict(img_size=(H, W), in_chans=C, num_classes=len(data.classes), **sizes), training


def largest_patch(H, W):
    """The largest patch side that divides both sides and leaves at least 8 patches along each."""
    return max((p for p in range(1, min(H, W) // 8 + 1) if H % p == W % p == 0), default=1)


MODEL_FLAGS = {
    "patch_size": (int, "side of a patch in pixels"),
    "embed_dim": (int, "width D of a token"),
    "depth": (int, "number of encoder blocks"),
    "num_heads": (int, "heads, which must divide the width"),
    "mlp_ratio": (float, "hidden width of the MLP over D"),
    "drop_rate": (float, "dropout where the paper puts it"),
    "global_pool": (str, "token (class token) or avg (mean of the tokens)"),
    "pos_embed_std": (float, "standard deviation of the positions at the start"),
}
TRAINING_FLAGS = {
    "epochs": (int, "passes over the training images"),
    "batch_size": (int, "images a step"),
    "lr": (float, "highest learning rate"),
    "weight_decay": (float, "AdamW's, on matrices alone"),
    "warmup": (float, "share of the steps in which the learning rate climbs"),
    "grad_clip": (float, "largest norm of the gradient"),
    "label_smoothing": (float, "share of a label spread over all classes"),
    "shift": (float, "pixels by which training images move at most"),
    "rotate": (float, "degrees by which they turn at most"),
    "zoom": (float, "share by which they grow or shrink at most"),
    "seed": (int, "seed of weights, order, augmentation and dropout"),
    "device": (str, "auto, cuda, mps or cpu"),
    "precision": (str, "auto, float32 or bfloat16"),
    "run_dir": (str, "folder for last.safetensors, written after every epoch"),
}
EXAMPLES = """examples:
  python -m helpers.training
  python -m helpers.training --data fashion-mnist --run-dir runs/fashion --json runs/fashion.json
  python -m helpers.training --data my_photos/ --img-size 96 --patch-size 12
"""


def build_parser():
    """The command line's arguments. A flag that is not given takes the data set's own default."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.training",
        usage="%(prog)s [--data NAME_OR_FOLDER] [options]",
        description="Train a Vision Transformer and look at the test images once, at the end.",
        epilog=EXAMPLES + "\n" + defaults_table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("data")
    choices = (
        "digits (default), mnist, fashion-mnist, cifar10, a folder with one sub-folder per class, "
        "or an .npz of JPEGs"
    )
    data.add_argument("--data", default="digits", metavar="NAME", help=choices)
    root = "where data sets lie or are downloaded to (default: data/)"
    data.add_argument("--root", metavar="FOLDER", help=root)
    side = "resize the images to this side"
    data.add_argument("--img-size", type=int, metavar="N", help=side)
    seed = "seed of the split (default 0)"
    data.add_argument("--split-seed", type=int, default=0, metavar="N", help=seed)
    for title, flags in (("model", MODEL_FLAGS), ("training", TRAINING_FLAGS)):
        group = parser.add_argument_group(f"{title} (defaults: see below)")
        for name, (kind, text) in flags.items():
            metavar = {int: "N", float: "X", str: "NAME"}[kind]
            flag = f"--{name.replace('_', '-')}"
            group.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file")
    return parser


def defaults_table():
    """What each data set sets, and what TrainConfig sets for all, as text."""
    lines = ["defaults by data set:"]
    for name, (model, training) in RECIPES.items():
        settings = ", ".join(f"{key} {value}" for key, value in (model | training).items())
        lines.append(f"  {name:14}{settings}")
    fields = ", ".join(f"{f.name} {f.default}" for f in dataclasses.fields(TrainConfig))
    return "\n".join([*lines, f"otherwise: {fields}"])


def given(args, names):
    """The arguments among names that were on the command line."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def print_epoch(record):
    print(
        f"epoch {record.epoch:3}  {record.seconds:6.1f} s  "
        f"train loss {record.train_loss:.3f} accuracy {record.train_accuracy:.2%}  "
        f"validation loss {record.validation_loss:.3f} accuracy {record.validation_accuracy:.2%}",
        flush=True,
    )


def result_of(history, model, model_args, config, args):
    """The run as a dict for --json: what came out, what went in, on what."""
    return {
        "data": args.data,
        "split_seed": args.split_seed,
        "test_accuracy": history.test_accuracy,
        "test_loss": history.test_loss,
        "epochs": [vars(record) for record in history.epochs],
        "seconds": history.seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model": model_args,
        "config": vars(config),
        "device": history.device,
        "precision": history.precision,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m helpers.training", *sys.argv[1:]]),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "torchvision")},
    }


def write_json(path, result):
    """Write under a temporary name, then rename: a file of this name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(temporary, path)


def run(args):
    """Load, build, train, report. Returns the exit status."""
    options = {} if args.img_size is None else {"img_size": args.img_size}
    data = load(args.data, args.root, split_seed=args.split_seed, **options)
    model_args, training = recipe(data)
    model_args |= given(args, MODEL_FLAGS)
    config = TrainConfig(**(training | given(args, TRAINING_FLAGS)))
    torch.manual_seed(config.seed)
    model = VisionTransformer(**model_args)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{data.name}: {len(data.train)} training, {len(data.validation)} validation and "
        f"{len(data.test)} test images, {len(data.classes)} classes; "
        f"ViT with {parameters:,} parameters",
        flush=True,
    )
    history = fit(model, data, config, on_epoch=print_epoch)
    if history.interrupted:
        saved = config.run_dir and history.epochs
        where = (
            f"the weights are in {config.run_dir}/last.safetensors" if saved else "nothing saved"
        )
        print(f"stopped after {len(history.epochs)} whole epochs; {where}")
        return 130
    print(f"test accuracy {history.test_accuracy:.2%}, loss {history.test_loss:.3f}, "
          f"{history.seconds:.0f} s on {history.device} in {history.precision}")  # fmt: skip
    if args.json:
        write_json(args.json, result_of(history, model, model_args, config, args))
    return 0


def main():
    parser = build_parser()
    args = parser.parse_args()
    try:
        sys.exit(run(args))
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(1, f"error: {error}\n")
