"""Training step and inference of our ViT beside timm, torchvision and vit-pytorch, in one run.

    python benchmarks/throughput.py                      # all of it, on this machine's device
    python benchmarks/throughput.py --sizes Ti/4@32      # one size, quick
    python benchmarks/throughput.py --json benchmarks/results/throughput_cpu.json

The models take turns, round after round, so that a machine whose speed drifts drifts for all of
them. A speed is the median over rounds; a ratio is the median of the ratios within each round.
Above 1 we are faster. A training step is forward, cross-entropy, backward and AdamW.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.model import VisionTransformer
from helpers.scale.run_folder import machine
from lab import speed

SIZES = {  # patch_size, img_size, embed_dim, num_heads, num_classes; all are 12 blocks deep
    "Ti/4@32": (4, 32, 192, 3, 10),
    "S/4@32": (4, 32, 384, 6, 10),
    "B/16@224": (16, 224, 768, 12, 1000),
}
BATCH = {  # images a step: (CPU, GPU)
    "Ti/4@32": (64, 2048),
    "S/4@32": (32, 1024),
    "B/16@224": (4, 256),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_ours(size):
    return VisionTransformer(**size)


def build_timm(size):
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    return TimmViT(**size)


def build_torchvision(size):
    from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

    return TorchvisionViT(
        image_size=size["img_size"],
        patch_size=size["patch_size"],
        num_layers=size["depth"],
        num_heads=size["num_heads"],
        hidden_dim=size["embed_dim"],
        mlp_dim=4 * size["embed_dim"],
        num_classes=size["num_classes"],
    )


def build_vit_pytorch(size):
    from vit_pytorch import ViT

    return ViT(
        image_size=size["img_size"],
        patch_size=size["patch_size"],
        depth=size["depth"],
        heads=size["num_heads"],
        dim=size["embed_dim"],
        dim_head=size["embed_dim"] // size["num_heads"],
        mlp_dim=4 * size["embed_dim"],
        num_classes=size["num_classes"],
    )


BUILDERS = {
    "ours": build_ours,
    "timm": build_timm,
    "torchvision": build_torchvision,
    "vit-pytorch": build_vit_pytorch,
}


def build_models(size, device):
    """Every model whose library is installed, by name; a missing one is named on stderr."""
    models = {}
    for name, build in BUILDERS.items():
        try:
            models[name] = build(size).to(device)
        except ImportError:
            print(f"{name} is not installed and sits this one out", file=sys.stderr)
    return models


def training_step(model, images, labels, dtype):
    """A function that does one training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def inference_step(model, images, labels, dtype):
    """A function that computes the logits of one batch; labels are not needed."""
    model.eval()

    @torch.inference_mode()
    def step():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            model(images)

    return step


MODES = {"training": training_step, "inference": inference_step}


def race(steps, rounds, device):
    """{name: step} -> {name: seconds of each round}, after two steps of each, untimed."""
    for step in steps.values():
        step()
        step()
    return speed.race(steps, rounds, device)


def compare(size_name, mode, dtype_name, rounds, device):
    """One row of the table: images a second for each model, and our ratio to each peer."""
    names = ("patch_size", "img_size", "embed_dim", "num_heads", "num_classes")
    size = dict(zip(names, SIZES[size_name], strict=True), depth=12)
    batch = BATCH[size_name][device.type == "cuda"]
    torch.manual_seed(0)
    images = torch.randn(batch, 3, size["img_size"], size["img_size"], device=device)
    labels = torch.randint(size["num_classes"], (batch,), device=device)
    models = build_models(size, device)
    dtype = DTYPES[dtype_name]
    steps = {name: MODES[mode](model, images, labels, dtype) for name, model in models.items()}
    times = race(steps, rounds, device)
    ratios = {
        name: [t / ours for t, ours in zip(times[name], times["ours"], strict=True)]
        for name in times
        if name != "ours"
    }
    return {
        "size": size_name,
        "mode": mode,
        "dtype": dtype_name,
        "batch": batch,
        "rounds": rounds,
        "images_per_second": {n: batch / statistics.median(t) for n, t in times.items()},
        "ours_over_peer": {n: statistics.median(r) for n, r in ratios.items()},
        "ours_over_peer_quartiles": {
            n: statistics.quantiles(r, n=4)[::2] for n, r in ratios.items()
        },
    }


def print_row(row):
    speeds = "  ".join(f"{name} {speed:8.1f}" for name, speed in row["images_per_second"].items())
    ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in row["ours_over_peer"].items())
    label = f"{row['size']:9} {row['mode']:9} {row['dtype']:8} batch {row['batch']:4}"
    print(f"{label} | images/s: {speeds} | ours over: {ratios}", flush=True)


def write_result(path, what, device, rows):
    """JSON with the rows, and what anybody needs to repeat or to compare them."""
    result = {
        "what": what,
        "device": machine(device.type),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "versions": {"python": platform.python_version()}
        | {name: installed(name) for name in ("torch", "torchvision", "timm", "vit-pytorch")},
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def installed(library):
    """The library's version, or None where it is missing."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of every model (default 15)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()

    device = torch.device(args.device)
    rows = []
    for size_name in args.sizes:
        for mode in args.modes:
            for dtype_name in args.dtypes:
                rows.append(compare(size_name, mode, dtype_name, args.rounds, device))
                print_row(rows[-1])
    if args.json:
        what = "images a second, interleaved in one run; ours_over_peer above 1: ours is faster"
        write_result(args.json, what, device, rows)


if __name__ == "__main__":
    main()
