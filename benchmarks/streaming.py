"""Does decoding keep up with training? Images a second of both, side by side in one run.

    python benchmarks/streaming.py              # photographs in VIT_DATA, or made up
    python benchmarks/streaming.py --folder path/to/photos --workers 0 4 8 16
    python benchmarks/streaming.py --json benchmarks/results/streaming_cpu.json

Files are decoded and augmented by helpers.scale.streaming with each number of workers; each model
does training steps (forward, cross-entropy, backward, AdamW) on images that lie ready. All take
turns, round after round; a speed is the median over rounds. Each is measured alone: on a CPU, where
workers and the step share the cores, together they are slower than the slower of the two.
"""

import argparse
import contextlib
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from throughput import DTYPES, training_step, write_result

from helpers.model import create_vit
from helpers.plotting import sample_photo
from helpers.scale.devices import choose_precision
from helpers.scale.run_folder import machine
from helpers.scale.streaming import load_streaming
from lab.speed import seconds

MODELS = {"Ti/16": (16, 512), "S/16": (8, 256), "B/16": (4, 256)}  # images a step: (CPU, GPU)
CLASSES = 1000
SYNTHETIC = 400  # files, where there are no photographs


def make_photographs(folder, n=SYNTHETIC, side=256):
    """n JPEGs of about 4 : 3 whose shorter side has side pixels: crops of two photographs."""
    random = np.random.default_rng(0)
    for name in ("china", "flower"):
        whole = sample_photo(f"{name}.jpg", (427, 640))  # (3, 427, 640), as large as it comes
        (folder / name).mkdir()
        for i in range(n // 2):
            H, W = side, random.integers(side, 4 * side // 3 + 1)
            top, left = random.integers(428 - H), random.integers(641 - W)
            crop = whole[:, top : top + H, left : left + W].transpose(1, 2, 0)
            Image.fromarray(crop).save(folder / name / f"{i:03}.jpg", quality=90)


@contextlib.contextmanager
def photographs(folder):
    """(a folder of photographs, what they are): the one given, VIT_DATA's, or a temporary one."""
    real = Path(os.environ.get("VIT_DATA", ""), "photos", "hymenoptera_s256")
    if folder or ("VIT_DATA" in os.environ and real.is_dir()):
        folder = folder or real
        yield folder, folder.resolve().name
    else:
        with tempfile.TemporaryDirectory() as temporary:
            make_photographs(Path(temporary))
            yield Path(temporary), "crops of two photographs that come with scikit-learn"


def images_per_second(split, *, batch_size, workers, crop=0.08, limit=512) -> float:
    """How many images a second a reader gives to one who does nothing but take them.

    limit: how many are timed, at least, in whole batches; beyond the split's end it starts again at
    its beginning. The start of the workers and everyone's first batch come before the clock starts.
    ValueError for an empty split.
    """
    if not len(split):
        raise ValueError("the split is empty: there is nothing to measure")
    turn = max(1, workers)  # batches that are in the making at a time
    timed = turn * math.ceil(limit / batch_size / turn)
    numbers = torch.arange((turn + timed) * batch_size) % len(split)
    read = split.reader(torch.device("cpu"), crop=crop, workers=workers)
    for k, _ in enumerate(read(numbers.split(batch_size)), start=1):
        if k == turn:
            start = time.perf_counter()
    return timed * batch_size / (time.perf_counter() - start)


def step_of(variant, img_size, device, precision):
    """(a function that does one training step, images it takes) for a model of Table 1."""
    batch = MODELS[variant][device.type == "cuda"]
    torch.manual_seed(0)
    model = create_vit(variant, img_size=img_size, num_classes=CLASSES).to(device)
    images = torch.randn(batch, 3, img_size, img_size, device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    return training_step(model, images, labels, DTYPES[precision]), batch


def race(split, workers, steps, args, device):
    """{("workers", w) or ("step", variant): images a second of each round}, all in turns."""
    for step, _ in steps.values():
        step()
        step()
    speeds = {}
    for _ in range(args.rounds):
        for w in workers:
            speed = images_per_second(split, batch_size=args.batch, workers=w, limit=args.limit)
            speeds.setdefault(("workers", w), []).append(speed)
        for variant, (step, batch) in steps.items():
            times = [seconds(step, device) for _ in range(args.steps)]
            speeds.setdefault(("step", variant), []).append(batch / statistics.median(times))
    return speeds


def rows_of(speeds, steps, precision):
    """The table's rows: first one for each number of workers, then one for each model."""
    medians = {key: statistics.median(rounds) for key, rounds in speeds.items()}
    decoding = {w: speed for (kind, w), speed in medians.items() if kind == "workers"}
    best = max(decoding, key=decoding.get)
    alone = {w: speed / max(1, w) for w, speed in decoding.items()}
    rows = []
    for (kind, which), speed in medians.items():
        low, high = min(speeds[kind, which]), max(speeds[kind, which])
        row = {"kind": kind, "images_per_second": speed, "lowest": low, "highest": high}
        if kind == "workers":
            row |= {"workers": which, "over_one_process": speed / decoding[min(decoding)]}
        else:
            enough = [w for w in sorted(decoding) if w and decoding[w] >= speed]
            row |= {
                "model": which,
                "batch": steps[which][1],
                "dtype": precision[which],
                "bottleneck": "decoding" if decoding[best] < speed else "training step",
                "workers_needed": enough[0] if enough else math.ceil(speed / alone[best]),
                "measured": bool(enough),  # else: as many as would do at the best one's speed each
            }
        rows.append(row)
    return rows


def print_rows(rows):
    for row in rows:
        speed = f"{row['images_per_second']:9,.1f} images/s"
        spread = f"({row['lowest']:,.1f} to {row['highest']:,.1f})"
        if row["kind"] == "workers":
            print(f"decoding, {row['workers']:2} workers       {speed} {spread}, "
                  f"{row['over_one_process']:.2f} x")  # fmt: skip
        else:
            seen = "measured" if row["measured"] else "extrapolated: as many free cores needed"
            print(f"step {row['model']:5} {row['dtype']:8} of {row['batch']:3} {speed} {spread}; "
                  f"the slower one with the best loader: {row['bottleneck']}; "
                  f"workers that feed it: {row['workers_needed']} ({seen})")  # fmt: skip


def default_workers():
    """0, 1, 2, 4, ... and the number of cores."""
    cores = os.cpu_count()
    return [0] + [2**k for k in range(cores.bit_length()) if 2**k < cores] + [cores]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="pictures, one sub-folder for each class")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=default_workers())
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batch", type=int, default=32, help="images a batch, of the loader")
    parser.add_argument("--limit", type=int, default=512, help="images timed each time")
    parser.add_argument("--steps", type=int, default=3, help="steps timed each time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()

    device = torch.device(args.device)
    widths = {"Ti/16": 192, "S/16": 384, "B/16": 768}
    precision = {v: choose_precision("auto", device, widths[v]) for v in args.models}
    steps = {v: step_of(v, args.img_size, device, precision[v]) for v in args.models}
    with photographs(args.folder) as (folder, name):
        split = load_streaming(folder, img_size=args.img_size).train
        what = (f"{len(split)} files ({name}) to {args.img_size} x {args.img_size}; "
                f"{machine(device.type)}, {os.cpu_count()} cores")  # fmt: skip
        print(what, flush=True)
        rows = rows_of(race(split, args.workers, steps, args, device), steps, precision)
    print_rows(rows)
    if args.json:
        what = f"images a second of decoding and of training steps, each alone: {what}"
        write_result(args.json, what, device, rows)


if __name__ == "__main__":
    main()
