"""Train from a terminal: python -m helpers.train --help"""

import argparse
import dataclasses
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from helpers.checkpoints import write_json
from helpers.data import load
from helpers.model import VisionTransformer
from helpers.recipes import RECIPES, recipe
from helpers.scale.distributed import first_process_first, joined, rank, world_size
from helpers.scale.run_folder import default_run_dir, result_of, stopped
from helpers.scale.streaming import load_streaming
from helpers.training import TrainConfig, fit

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
    "policy": (str, "augmentation policy: trivial, rand or auto"),
    "erase": (float, "share of the images that lose a rectangle"),
    "mixup": (float, "share of the pairs of images that are blended"),
    "cutmix": (float, "share of the pairs that swap a rectangle"),
    "drop_path": (float, "chance of the last block's branches to be left out"),
    "ema": (float, "decay of the weights' running mean, which is then evaluated"),
    "seed": (int, "seed of weights, order, augmentation and dropout"),
    "device": (str, "auto, cuda, mps or cpu"),
    "precision": (str, "auto, float32 or bfloat16"),
    "compile": (bool, "compile the model with torch.compile"),
    "fsdp": (bool, "share the weights among torchrun's processes (FSDP2)"),
    "workers": (int, "processes that decode pictures, with --stream"),
    "run_dir": (str, "folder for metrics.csv, weights, states, run.json (default runs/DATA-N)"),
    "resume": (bool, "go on from the run folder's newest whole state, if there is one"),
    "tensorboard": (bool, "write the metrics for TensorBoard too"),
}
EXAMPLES = """examples:
  python -m helpers.train --data my_photos/ --img-size 96 --patch-size 12
  python -m helpers.train --data cifar10 --recipe full --compile
  torchrun --nproc-per-node=2 --max-restarts=3 -m helpers.train --run-dir runs/digits
"""


def build_parser():
    """The command line's arguments. A flag that is not given takes the data set's own default."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.train",
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
    stream = "decode the pictures while training: for folders larger than the memory"
    data.add_argument("--stream", action="store_true", help=stream)
    seed = "seed of the split (default 0)"
    data.add_argument("--split-seed", type=int, default=0, metavar="N", help=seed)
    kinds = f"settings to start from: {', '.join(RECIPES)} (default small)"
    parser.add_argument("--recipe", default="small", metavar="NAME", help=kinds)
    for title, flags in (("model", MODEL_FLAGS), ("training", TRAINING_FLAGS)):
        group = parser.add_argument_group(f"{title} (defaults: see below)")
        for name, (kind, text) in flags.items():
            flag = f"--{name.replace('_', '-')}"
            if kind is bool:
                group.add_argument(flag, action="store_true", default=None, help=text)
            else:
                metavar = {int: "N", float: "X", str: "NAME"}[kind]
                group.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file")
    return parser


def defaults_table():
    """What each data set sets, and what TrainConfig sets for all, as text."""
    lines = []
    for kind, recipes in RECIPES.items():
        lines.append(f"defaults of --recipe {kind}:")
        for name, (model, training) in recipes.items():
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


def run(args):
    """Load, build, train, report. Returns the exit status."""
    options = {} if args.img_size is None else {"img_size": args.img_size}
    read = load_streaming if args.stream else load
    with first_process_first():
        data = read(args.data, args.root, split_seed=args.split_seed, **options)
    model_args, training = recipe(data, args.recipe)
    model_args |= given(args, MODEL_FLAGS)
    config = TrainConfig(**(training | given(args, TRAINING_FLAGS)))
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # by torchrun
    if config.run_dir is None:
        config.run_dir = default_run_dir(data.name, config.resume or restarted)
    config.resume = config.resume or (restarted and bool(config.run_dir))
    args.run_dir = config.run_dir
    torch.manual_seed(config.seed)
    model = VisionTransformer(**model_args)
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{data.name}: {len(data.train)} training, {len(data.validation)} validation and "
        f"{len(data.test)} test images, {len(data.classes)} classes; "
        f"ViT with {parameters:,} parameters; run folder: {config.run_dir or 'none'}"
    )
    facts = {"arguments": {name: str(x) for name, x in vars(args).items() if x is not None}}
    history = fit(model, data, config, on_epoch=print_epoch, facts=facts)
    if history.interrupted:
        saved = config.run_dir and history.epochs
        where = f"go on with --run-dir {config.run_dir} --resume" if saved else "nothing saved"
        say(f"stopped after {len(history.epochs)} whole epochs; {where}")
        return 130
    say(f"test accuracy {history.test_accuracy:.2%}, loss {history.test_loss:.3f}, "
        f"{history.seconds:.0f} s on {history.device} in {history.precision}")  # fmt: skip
    if rank() == 0:
        asked = {"data": args.data, "split_seed": args.split_seed, "recipe": args.recipe}
        result = asked | result_of(history, model, model_args, config)
        if args.json:
            write_json(args.json, result)
        if config.run_dir:
            write_json(Path(config.run_dir) / "result.json", result)
    return 0


def say(text):
    """Print, if this is the first process."""
    if rank() == 0:
        print(text, flush=True)


def main():
    parser = build_parser()
    args = parser.parse_args()
    try:
        with joined():
            if world_size() > 1:  # torchrun ends the others so
                why = "another process of this run has ended, so this one stops too"
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(stopped(why, args.run_dir)))
            sys.exit(run(args))
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        parser.exit(1, f"error: {error}\n")
    except RuntimeError:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        traceback.print_exc()
        why = "this process has failed, or lost the others (above)"
        sys.exit(stopped(why, args.run_dir))


if __name__ == "__main__":
    main()
