"""Train from a terminal: python -m helpers.train --help"""

import argparse
import dataclasses
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from helpers.checkpoints import check_writable, write_json
from helpers.data import load
from helpers.model import ARGUMENTS, VisionTransformer, check
from helpers.recipes import RECIPES, check_all, own_recipe, recipe
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
    "grad_clip": (float, "largest norm of the gradient; inf: any"),
    "label_smoothing": (float, "share of a label spread over all classes"),
    "crop": (float, "smallest share of a picture that a random crop shows, with --stream; 0: none"),
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
    data.add_argument("--split-seed", type=int, metavar="N", help=seed)
    for part, share in (("validation", 0.1), ("test", 0.2)):
        text = f"share of the images set aside for {part}, where there are none (default {share})"
        data.add_argument(f"--{part}", type=float, metavar="X", help=text)
    no_flip = "no mirror images while training: for signs, letters, digits"
    data.add_argument("--no-flip", action="store_true", help=no_flip)
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

    def listed(settings):
        return ", ".join(f"{name} {'none' if x in ('', None) else x}" for name, x in settings)

    lines = []
    for kind, recipes in RECIPES.items():
        lines.append(f"defaults of --recipe {kind}:")
        own = {} if kind == "published" else {"yours, 64 px": own_recipe(64, 64, kind)}
        for name, (model, training) in (recipes | own).items():
            lines.append(f"  {name:14}{listed((model | training).items())}")
    fields = listed((f.name, f.default) for f in dataclasses.fields(TrainConfig))
    return "\n".join([*lines, f"otherwise: {fields}"])


def given(args, names):
    """The arguments among names that were on the command line."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def print_epoch(record):
    text = f"epoch {record.epoch:3}  {record.seconds:6.1f} s"
    for part in ("train", "validation"):
        loss, accuracy = (getattr(record, f"{part}_{what}") for what in ("loss", "accuracy"))
        if loss is not None:
            text += f"  {part} loss {loss:.3f} accuracy {accuracy:.2%}"
    print(text, flush=True)


def run(args):
    """Load, build, train, report. Returns the exit status."""
    TrainConfig(**given(args, TRAINING_FLAGS))  # refuses what is wrong before anything is read
    check(asked := given(args, MODEL_FLAGS), {name: ARGUMENTS[name] for name in asked})
    if args.json:
        check_writable(args.json)
    cut = given(args, ("split_seed", "validation", "test"))
    options = cut | given(args, ("img_size",))
    read = load_streaming if args.stream else load
    with first_process_first():
        data = read(args.data, args.root, **options)
    data = dataclasses.replace(data, flip=data.flip and not args.no_flip)
    model_args, training = recipe(data, args.recipe)
    model_args |= asked
    config = TrainConfig(**(training | given(args, TRAINING_FLAGS)))
    torch.manual_seed(config.seed)
    model = VisionTransformer(**model_args)
    check_all(model, data, config)  # before a folder is made
    for name in [name for name in cut if name not in data.cut]:
        print(f"{name} does nothing: {data.name} brings its own splits", file=sys.stderr)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # by torchrun
    if config.run_dir is None:
        config.run_dir = default_run_dir(data.name, config.resume or restarted)
    config.resume = config.resume or (restarted and bool(config.run_dir))
    args.run_dir = config.run_dir
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{data.name}: {len(data.train)} training, {len(data.validation)} validation and "
        f"{len(data.test)} test images, {len(data.classes)} classes; "
        f"ViT with {parameters:,} parameters; run folder: {config.run_dir or 'none'}"
    )
    facts = {"arguments": {name: str(x) for name, x in vars(args).items() if x is not None}}
    history = fit(model, data, config, on_epoch=print_epoch, facts=facts)
    if history.interrupted:
        say(stopped(f"stopped after {len(history.epochs)} whole epochs", config.run_dir))
        return 130
    tested = "no test images"
    if history.test_loss is not None:
        tested = f"test accuracy {history.test_accuracy:.2%}, loss {history.test_loss:.3f}"
    say(f"{tested}, {history.seconds:.0f} s on {history.device} in {history.precision}")
    if rank() == 0:
        source = {"data": args.data, "recipe": args.recipe, **data.cut}
        result = source | result_of(history, model, model_args, config)
        if config.run_dir:
            write_json(Path(config.run_dir) / "result.json", result)
        if args.json:
            write_json(args.json, result)
    return 0


def say(text):
    """Print, if this is the first process."""
    if rank() == 0:
        print(text, flush=True)


def main():
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's code page cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    args = parser.parse_args()
    try:
        with joined(args.device or "auto"):
            if world_size() > 1:  # torchrun ends the others so
                why = "another process of this run has ended, so this one stops too"
                signal.signal(
                    signal.SIGTERM, lambda *_: sys.exit(f"error: {stopped(why, args.run_dir)}")
                )
            sys.exit(run(args))
    except KeyboardInterrupt:
        parser.exit(130, "stopped before or after training\n")
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        parser.exit(1, f"error: {error}\n")
    except RuntimeError:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        traceback.print_exc()
        why = "this process has failed, or lost the others (above)"
        sys.exit(f"error: {stopped(why, args.run_dir)}")


if __name__ == "__main__":
    main()
