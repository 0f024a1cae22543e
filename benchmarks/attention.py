"""Attention alone: torch's fused kernel beside two products and a softmax, forward and backward.

    python benchmarks/attention.py --json benchmarks/results/attention_cpu.json

It shows why helpers.model.attention writes attention out in bfloat16 training on a CPU.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.throughput import DTYPES, race, write_result

SHAPES = {"Ti/4@32": (64, 3, 65, 64), "B/16@224": (8, 12, 197, 64)}  # (B, h, N, d_k)


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def math_backend(q, k, v):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v)


def written_out(q, k, v):
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


WAYS = {"fused": fused, "math backend": math_backend, "written out": written_out}


def inference(way, qkv):
    @torch.inference_mode()
    def step():
        way(*qkv.unbind(0))

    return step


def training(way, qkv):
    qkv = qkv.clone().requires_grad_()

    def step():
        way(*qkv.unbind(0)).sum().backward()
        qkv.grad = None

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = []
    for size, shape in SHAPES.items():
        for dtype_name, dtype in DTYPES.items():
            torch.manual_seed(0)
            qkv = torch.randn(3, *shape, device=device, dtype=dtype)
            for mode, make in (("inference", inference), ("training", training)):
                steps = {name: make(way, qkv) for name, way in WAYS.items()}
                times = race(steps, args.rounds, device)
                ms = {name: 1000 * statistics.median(t) for name, t in times.items()}
                row = {"size": size, "shape": shape, "dtype": dtype_name, "mode": mode}
                rows.append(row | {"milliseconds": ms})
                print(f"{size:9} {dtype_name:8} {mode:9}", ms, flush=True)
    if args.json:
        write_result(args.json, "milliseconds of attention alone, median", device, rows)


if __name__ == "__main__":
    main()
