"""The full recipe on a GPU: speed, memory, where the time goes, accuracy, time to an accuracy.

    python benchmarks/gpu.py ladder
    python benchmarks/gpu.py cifar --data cifar10 --seeds 3
    python benchmarks/gpu.py fashion --device cpu --quick --json-dir try    # tiny, to see it run

Each part writes one file, gpu_PART.json, by default to benchmarks/results/, after every row, whole
or not at all. A part of several training runs starts none that would not end within --minutes; the
same command again goes on with those that are missing, until "whole" is true.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import throughput

from helpers.augmentation import drop_path
from helpers.checkpoints import write_json
from helpers.data import ImageData, Split, load
from helpers.model import VisionTransformer, create_vit
from helpers.recipes import recipe
from helpers.scale.devices import choose_device, choose_precision
from helpers.scale.run_folder import machine, versions
from helpers.training import TrainConfig, fit
from lab import speed

RESULTS = ROOT / "benchmarks" / "results"
SHAPES = {"mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
LIGHT = dict(policy="", erase=0.0, mixup=0.0, cutmix=0.0)  # the affine map alone
TINY_MODEL = dict(embed_dim=16, depth=1, num_heads=2)  # for --quick
TINY_TRAINING = dict(epochs=2, batch_size=32)


def noise(name, n):
    """n random images in the shape of a data set: enough to measure speeds, and for --quick."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, *SHAPES[name]), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(n) % 10)
    channels = SHAPES[name][0]
    held_out = Split(images[:40], split.labels[:40])
    return ImageData(name, split, held_out, held_out, tuple("0123456789"), (0.5,) * channels,
                     (0.3,) * channels, flip=True, loaded_as=name)  # fmt: skip


def settings(data, kind, args, **changes):
    """(arguments of the model, TrainConfig) of a recipe, as this run wants them."""
    sizes, training = recipe(data, kind)
    training = training | changes | {"device": args.device, "compile": args.device == "cuda"}
    if args.quick:
        sizes, training = sizes | TINY_MODEL, training | TINY_TRAINING
    elif args.epochs:
        training |= {"epochs": args.epochs}
    return sizes, TrainConfig(**training)


# Speed and memory


def ladder(args, device, save):
    """Images a second of the training loop, one switch more on each rung, in one interleaved run"""
    data = noise("cifar10", 200 if args.quick else 16384)
    large = (64,) if args.quick else (512, 2048)
    counts = dict(steps=2, rounds=2) if args.quick else dict(steps=16, rounds=7)
    rows = []
    for label, changes in (("full recipe", {}), ("affine augmentation alone", LIGHT)):
        sizes, config = settings(data, "full", args, batch_size=128, **changes)
        model = VisionTransformer(**sizes)
        flops = speed.training_flops(model)
        for rung in speed.ladder(
            lambda sizes=sizes: VisionTransformer(**sizes), data, config, device, large, **counts
        ):
            mfu, peak = speed.utilisation(rung, flops, device, side=64 if args.quick else None)
            rows.append({"augmentation": label, **rung, "peak_operations": peak, "mfu": mfu})
            print(f"{label}: {rung['name']:24} {rung['images_per_second']:10,.0f} images/s, "
                  f"{rung['over_first']:.2f} x, MFU {mfu:.1%}", flush=True)  # fmt: skip
        facts = dict(model=sizes, config=asdict(config), flops_per_image=flops)
        save(rows, **facts)
    save(rows, whole=True)


def memory(args, device, save):
    """Memory of a training step against the batch and against the resolution"""
    if args.quick:
        small = dict(num_classes=10, **TINY_MODEL)
        sweeps = [("batch", 32, b) for b in (2, 4)] + [("resolution", s, 2) for s in (32, 64)]
    else:
        small = {}
        sweeps = [("batch", 224, b) for b in (16, 32, 64, 128, 256)]
        sweeps += [("resolution", side, 16) for side in (112, 224, 336, 448, 672)]
    precision = choose_precision("auto", device, 768)
    rows = []
    for sweep, side, batch in sweeps:
        for fused in (True, False):
            model = create_vit("B/16", img_size=side, **small).to(device)
            counted = step_memory(model, batch, device, precision, fused)
            rows.append({"sweep": sweep, "img_size": side, "batch": batch, "fused": fused,
                         "tokens": model.patch_embed.num_patches + model.num_prefix_tokens,
                         **counted})  # fmt: skip
            kept, peak = counted["saved_bytes"], counted["peak_bytes"]
            text = " / ".join("-" if b is None else f"{b / 1e9:.2f} GB" for b in (kept, peak))
            print(f"{side} px, batch {batch}, fused attention {fused}: kept / peak {text}",
                  flush=True)  # fmt: skip
            del model
        save(rows, precision=precision)
    save(rows, whole=True)


def step_memory(model, batch, device, precision, fused):
    """What a step of AdamW keeps for the backward pass, and its peak; None: it does not fit."""
    images = torch.randn(batch, *model.patch_embed.input_shape, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    dtype = throughput.DTYPES[precision]
    try:
        saved = speed.saved_bytes(model, images, precision, fused)
        with speed.attention_by(fused):
            step = throughput.training_step(model, images, labels, dtype)
            peak = speed.peak_bytes(step, device)
    except torch.cuda.OutOfMemoryError:
        saved, peak = None, None
    return {"saved_bytes": saved, "expected_float32_bytes": speed.expected_bytes(
        model, batch, fused), "peak_bytes": peak}  # fmt: skip


def profile(args, device, save):
    """Where the time of a training step goes, by kind of operation, without and with compiling"""
    data = noise("cifar10", 200 if args.quick else 16384)
    rows = []
    for label, changes in (("full recipe", {}), ("affine augmentation alone", LIGHT)):
        sizes, config = settings(data, "full", args, **changes)
        precision = choose_precision("auto", device, sizes["embed_dim"])
        for compiled in (False, True) if device.type == "cuda" else (False,):
            model, steps = VisionTransformer(**sizes), 2 if args.quick else 10
            with drop_path(model, config.drop_path):
                work = speed.training_work(model, data, config, device, steps,
                                           precision=precision, compile=compiled)  # fmt: skip
                work()
                times = {k: s / steps for k, s in speed.time_by_kind(work, device).items()}
            rows.append({"augmentation": label, "compiled": compiled, "precision": precision,
                         "batch": config.batch_size, "seconds_a_step": times})  # fmt: skip
            total = sum(times.values())
            shares = ", ".join(f"{kind} {t / total:.0%}" for kind, t in times.items())
            print(f"{label}, compiled {compiled}: {1e3 * total:.1f} ms a step: {shares}")
            save(rows)
    save(rows, whole=True)


def vit_b16(args, device, save):
    """ViT-B/16 at 224 px, training in bfloat16: ours, timm, torchvision, eager and compiled"""
    names = ("patch_size", "img_size", "embed_dim", "num_heads", "num_classes")
    size = dict(zip(names, throughput.SIZES["B/16@224"], strict=True), depth=12)
    batch, rounds = 256, 12
    if args.quick:
        size |= dict(img_size=32, embed_dim=32, num_heads=2, depth=1)
        batch, rounds = 2, 2
    images = torch.randn(batch, 3, size["img_size"], size["img_size"], device=device)
    labels = torch.randint(size["num_classes"], (batch,), device=device)
    steps, first = {}, {}
    for way in ("eager", "compiled") if device.type == "cuda" else ("eager",):
        models = throughput.build_models(size, device)
        models.pop("vit-pytorch", None)
        for name, model in models.items():
            if name == "ours":
                flops = speed.training_flops(model)
            model = torch.compile(model) if way == "compiled" else model
            key = f"{name}, {way}"
            steps[key] = throughput.training_step(model, images, labels, torch.bfloat16)
            first[key] = speed.seconds(steps[key], device)
            print(f"{key}: the first step took {first[key]:.1f} s", flush=True)
    peak = speed.matmul_peak(device, "bfloat16", side=64 if args.quick else None)
    times = throughput.race(steps, rounds, device)
    rows = []
    for key, own in times.items():
        rate = batch / statistics.median(own)
        ours = times["ours, " + key.split(", ")[1]]
        ratio = statistics.median(t / o for t, o in zip(own, ours, strict=True))
        rows.append({"name": key, "images_per_second": rate, "ours_over_this": ratio,
                     "mfu": rate * flops / peak, "first_seconds": first[key]})  # fmt: skip
        print(f"{key:22} {rate:8.1f} images/s, ours over it {ratio:.3f}, "
              f"MFU {rate * flops / peak:.1%}", flush=True)  # fmt: skip
    save(rows, whole=True, model=size, batch=batch, rounds=rounds, flops_per_image=flops,
         peak_operations=peak)  # fmt: skip


# Training runs


def fashion(args, device, save):
    """Fashion-MNIST, the full recipe, test accuracy of the last epoch"""
    training_runs(args, device, save, "fashion-mnist", ("full",))


def mnist(args, device, save):
    """MNIST, the full recipe, test accuracy of the last epoch"""
    training_runs(args, device, save, "mnist", ("full",))


def cifar(args, device, save):
    """CIFAR-10, our full recipe against the published one, in our trainer, on the same images"""
    training_runs(args, device, save, "cifar10", ("full", "published"), target=0.9)


def time_to_accuracy(args, device, save):
    """Fashion-MNIST: seconds until 93% of the validation images are right, from a cold start"""
    training_runs(args, device, save, "fashion-mnist", ("full",), target=0.93, epochs=30)


def training_runs(args, device, save, name, kinds, target=None, **changes):
    """Train with each recipe and seed that the file does not hold yet; the recipes take turns."""
    data = noise(name, 200) if args.quick else load(args.data or name, args.root)
    data = replace(data, loaded_as=name)  # a copy under another name gets the same recipe
    plans = []
    for seed in range(args.seeds):
        for kind in kinds:
            sizes, config = settings(data, kind, args, **changes, seed=seed)
            plan = {"data": data.name, "recipe": kind, "seed": seed, "model": sizes,
                    "config": asdict(config), "machine": machine(args.device)}  # fmt: skip
            plans.append((json.loads(json.dumps(plan)), sizes, config))
    rows = [row for row in save.rows if any(same(plan, row) for plan, _, _ in plans)]
    start, longest = time.perf_counter(), {}
    for plan, sizes, config in plans:
        kind = plan["recipe"]
        print(f"{data.name}, {kind} recipe, seed {config.seed}:", flush=True)
        if any(same(plan, row) for row in rows):
            print("  recorded already")
            continue
        if time.perf_counter() - start + longest.get(kind, 0) > 60 * args.minutes:
            print(f"  would not end within {args.minutes} minutes: the same command goes on here")
            return
        began = time.perf_counter()
        rows.append(plan | one_run(data, sizes, config, target))
        longest[kind] = time.perf_counter() - began
        save(rows, summary=summary(rows), target=target, whole=len(rows) == len(plans))


def same(plan, row):
    """Whether a row of the file is a run of this plan."""
    return all(row.get(key) == value for key, value in plan.items())


def one_run(data, sizes, config, target):
    """Train once; what came out, JSON-ready."""
    torch.manual_seed(config.seed)
    model = VisionTransformer(**sizes)
    every = max(1, config.epochs // 10)

    def tell(record):
        if record.epoch == 1 or record.epoch % every == 0:
            print(f"  epoch {record.epoch:3}, {record.seconds:6.1f} s, loss "
                  f"{record.train_loss:.3f}, validation {record.validation_accuracy:.2%}",
                  flush=True)  # fmt: skip

    history = fit(model, data, config, on_epoch=tell)
    if history.interrupted:
        raise KeyboardInterrupt
    reached = seconds_to(history.epochs, target)
    row = {
        "test_accuracy": history.test_accuracy,
        "test_loss": history.test_loss,
        "seconds": history.seconds,
        "compile_seconds": history.compile_seconds,
        "seconds_to_target": reached,
        "parameters": sum(p.numel() for p in model.parameters()),
        "precision": history.precision,
        "train_loss": [round(r.train_loss, 5) for r in history.epochs],
        "validation_accuracy": [round(r.validation_accuracy, 5) for r in history.epochs],
        "epoch_seconds": [round(r.seconds, 3) for r in history.epochs],
    }
    to = "" if target is None else f", {target:.0%} of validation after {reached} s"
    print(f"  test {row['test_accuracy']:.2%}, {row['seconds']:.1f} s, compiling "
          f"{row['compile_seconds']:.1f} s{to}", flush=True)  # fmt: skip
    return row


def seconds_to(records, target):
    """Seconds of training until validation first reached target; None if never, or no target."""
    reached = [r.seconds for r in records if target and r.validation_accuracy >= target]
    return round(reached[0], 3) if reached else None


def summary(rows):
    """A row for each recipe: mean and spread of the last epoch's test accuracy over the seeds."""
    found = []
    for kind in dict.fromkeys(row["recipe"] for row in rows):
        runs = [row for row in rows if row["recipe"] == kind]
        accuracies = [row["test_accuracy"] for row in runs]
        reached = [row["seconds_to_target"] for row in runs]
        found.append({
            "data": runs[0]["data"],
            "recipe": kind,
            "seeds": len(runs),
            "mean": statistics.mean(accuracies),
            "std": statistics.stdev(accuracies) if len(runs) > 1 else None,
            "epochs": runs[0]["config"]["epochs"],
            "parameters": runs[0]["parameters"],
            "minutes": statistics.mean(row["seconds"] for row in runs) / 60,
            "compile_seconds": max(row["compile_seconds"] for row in runs),  # later ones reuse
            "seconds_to_target": None if None in reached else statistics.mean(reached),
        })  # fmt: skip
    return found


# The file and the command line

PARTS = {f.__name__: f for f in (ladder, memory, profile, vit_b16, fashion, mnist, cifar,
                                 time_to_accuracy)}  # fmt: skip


class Save:
    """Called with the rows so far and more facts, writes the part's file; rows: what it held."""

    def __init__(self, path, facts):
        self.path, self.facts, self.rows = path, facts, []
        if path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def __call__(self, rows, whole=False, **more):
        self.facts |= more
        write_json(self.path, self.facts | {"whole": whole, "rows": rows})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seeds", type=int, default=3, help="training runs a recipe (default 3)")
    parser.add_argument("--data", help="name, folder or .npz for the training parts")
    parser.add_argument("--root", help="where data sets lie or are downloaded to")
    parser.add_argument("--epochs", type=int, help="other than the recipe's")
    parser.add_argument("--minutes", type=float, default=9.5, help="start no run that ends later")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json-dir", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="all tiny, for tests")
    args = parser.parse_args(argv)
    if args.quick and args.json_dir.resolve() == RESULTS:
        parser.error("--quick measures nothing of interest: name another folder with --json-dir")
    device = choose_device(args.device)
    args.device = device.type
    facts = {
        "what": PARTS[args.part].__doc__,
        "device": machine(args.device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/gpu.py", *(argv or sys.argv[1:])]),
        "versions": versions() | {"timm": throughput.installed("timm")},
        "quick": args.quick,
        "seeds": list(range(args.seeds)),
    }
    PARTS[args.part](args, device, Save(args.json_dir / f"gpu_{args.part}.json", facts))


if __name__ == "__main__":
    main()
