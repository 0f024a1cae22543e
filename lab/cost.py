"""What an encoder block costs in arithmetic, time and memory, and by which rule.

Letters: N tokens (a class token is one of them), D width, h = D / 64 heads, as in Table 1, M =
mlp_ratio D. Times are seconds of every round; all that is compared takes turns (speed.race),
so ratios within a round are fair. Absolute times say little about another machine.
"""

import math
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from helpers.model import EncoderBlock, VisionTransformer, attention
from lab.speed import attention_by, kept_numbers, race, saved_bytes
from lab.trials import BASE

CPU = torch.device("cpu")
HEAD = 64  # d_k, the width of a head

# Arithmetic


def multiply_adds(N, D, mlp_ratio=4.0):
    """Multiply-adds of an encoder block's forward pass for one image, {part: count}.

    Equations 5 to 8 and the MLP of equation 3; their sum is 12 N D^2 + 2 N^2 D for mlp_ratio 4.
    Softmax, GELU, norms and additions are not products and not counted. The heads do not matter.
    """
    return {
        "qkv": 3 * N * D * D,
        "scores": N * N * D,
        "weighted sum": N * N * D,
        "proj": N * D * D,
        "mlp": 2 * N * D * int(mlp_ratio * D),
    }


def vit_multiply_adds(model):
    """Multiply-adds of a VisionTransformer without a tanh layer, forward, for one image."""
    N, D = model.patch_embed.num_patches, model.pos_embed.shape[-1]
    T = N + model.num_prefix_tokens
    mlp_ratio = model.blocks[0].mlp.fc1.out_features / D
    block = sum(multiply_adds(T, D, mlp_ratio).values())
    ends = N * model.patch_embed.proj.weight.numel() + D * model.head.out_features
    return ends + len(model.blocks) * block


# Time


def sweep(sizes, training=False, rounds=7):
    """Time an encoder block, its two halves and the pairs inside attention, for each size.

    sizes: [[N, D, batch], ...]. training: forward and backward, for the input and all weights;
    otherwise forward alone, nothing kept. The halves are block.attn and block.mlp; norm and
    addition, which both have alike, are in the block alone. -> {"rows": a dict for each size with
    N, D, batch and seconds {part: one number for each round}}, where the parts are

    block; attention; written out: attention by separate products and a softmax; pairs: what
    attention does between qkv and proj; mlp.
    """
    works = {}
    for N, D, batch in sizes:
        block = block_of(D)
        x, qkv = torch.randn(batch, N, D), torch.randn(batch, N, 3 * D)
        x.requires_grad_(training), qkv.requires_grad_(training)
        works[N, D, batch] = own = {}
        for part, module, tokens, fused in (
            ("block", block, x, True),
            ("attention", block.attn, x, True),
            ("written out", block.attn, x, False),
            ("pairs", Pairs(D // HEAD), qkv, True),
            ("mlp", block.mlp, x, True),
        ):
            wanted = [tokens, *module.parameters()] if training else []
            own[part] = partial(step, partial(module, tokens), wanted, fused)
    return {"rows": timed(works, rounds)}


def pieces(sizes, rounds=7):
    """Time the forward pass of a block piece by piece, attention written out, for each size.

    sizes and rows as for sweep. The pieces: qkv, scores, softmax, weighted sum, proj, mlp (its two
    products), GELU, and the fused kernel, which does what scores, softmax and weighted sum do.
    """
    works = {}
    for N, D, batch in sizes:
        block, x = block_of(D), torch.randn(batch, N, D)
        q, k, v = torch.randn(3, batch, D // HEAD, N, HEAD)
        weights, hidden = torch.rand(batch, D // HEAD, N, N), torch.randn(batch, N, 4 * D)
        own = {
            "qkv": partial(block.attn.qkv, x),
            "scores": partial(torch.matmul, q, k.transpose(-2, -1)),
            "softmax": partial(torch.softmax, weights, -1),
            "weighted sum": partial(torch.matmul, weights, v),
            "proj": partial(block.attn.proj, x),
            "mlp": partial(nn.Sequential(block.mlp.fc1, block.mlp.fc2), x),
            "GELU": partial(block.mlp.act, hidden),
            "fused kernel": partial(attention, q, k, v),
        }
        works[N, D, batch] = {piece: partial(step, work, []) for piece, work in own.items()}
    return {"rows": timed(works, rounds)}


def memory(sizes):
    """Bytes that an encoder block keeps for the backward pass, counted and by kept_numbers.

    sizes as for sweep, of two images or more and D of 128 or more. -> {"rows": a dict for each size
    with N, D, batch and {way: [counted, expected]} for the ways fused kernel and written out}.
    """
    rows = []
    for N, D, batch in sizes:
        block, x = block_of(D), torch.randn(batch, N, D)
        row = dict(N=N, D=D, batch=batch)
        for way, fused in (("fused kernel", True), ("written out", False)):
            expected = 4 * batch * sum(kept_numbers(N, D, D // HEAD, fused=fused).values())
            row[way] = [saved_bytes(block, x, fused=fused), expected]
        rows.append(row)
    return {"rows": rows}


def halving(patch_sizes, img_size=28, batch=16, model=None, rounds=7):
    """A whole small ViT for each patch side: trials.BASE, or what model says, on grey images.

    -> {"rows": a dict for each patch side}: patch_size, tokens, multiply_adds (by formula, an
    image, forward), bytes (kept for the backward pass, an image, counted), and seconds {forward;
    training: forward, loss and backward, no optimizer} of a batch, one number for each round.
    """
    works, facts = {}, []
    x, y = torch.randn(batch, 1, img_size, img_size), torch.arange(batch) % 10
    for P in patch_sizes:
        torch.manual_seed(0)
        sizes = dict(in_chans=1, num_classes=10) | BASE | (model or {})
        vit = VisionTransformer(img_size, P, **sizes)
        counts = dict(multiply_adds=vit_multiply_adds(vit), bytes=saved_bytes(vit, x) // batch)
        tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
        facts.append(dict(patch_size=P, tokens=tokens) | counts)
        learn = partial(loss_of, vit, x, y)
        works[tokens, vit.pos_embed.shape[2], batch] = {
            "forward": partial(step, partial(vit, x), []),
            "training": partial(step, learn, list(vit.parameters())),
        }
    rows = timed(works, rounds)
    return {"rows": [row | fact for row, fact in zip(rows, facts, strict=True)]}


def block_of(D):
    """An encoder block of width D with the same weights every time; ValueError if D is no h d_k."""
    if D % HEAD:
        raise ValueError(f"the width is {D}: a multiple of {HEAD}, the width of a head, is needed")
    torch.manual_seed(0)
    return EncoderBlock(D, D // HEAD)


class Pairs(nn.Module):
    """What attention does that has no weights: (B, N, 3 D) -> (B, N, D)."""

    def __init__(self, num_heads):
        super().__init__()
        self.num_heads = num_heads

    def forward(self, qkv):
        B, N, _ = qkv.shape
        q, k, v = (t.view(B, N, self.num_heads, -1).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
        return attention(q, k, v).transpose(1, 2).reshape(B, N, -1)  # (B, h, N, d_k) -> (B, N, D)


def loss_of(model, x, y):
    return F.cross_entropy(model(x), y)


def step(work, wanted, fused=True):
    """Call work() and, if wanted holds tensors, compute their gradients; without, keep nothing."""
    with attention_by(fused), torch.set_grad_enabled(bool(wanted)):
        y = work()
        if wanted:
            torch.autograd.grad(y, wanted, torch.ones_like(y))


def timed(works, rounds):
    """{(N, D, batch): {part: function}} -> rows. All take turns; each runs once before, untimed."""
    flat = {(size, part): work for size, own in works.items() for part, work in own.items()}
    for work in flat.values():
        work()
    times = race(flat, rounds, CPU)
    return [
        dict(N=N, D=D, batch=batch, seconds={part: times[(N, D, batch), part] for part in own})
        for (N, D, batch), own in works.items()
    ]


# Ratios


def spread(numbers):
    """(lowest, median, highest)"""
    return min(numbers), statistics.median(numbers), max(numbers)


def over(row, part, other):
    """Seconds of part over seconds of other, round by round."""
    seconds = row["seconds"]
    return [a / b for a, b in zip(seconds[part], seconds[other], strict=True)]


def growth_of(rows, part, per="image"):
    """Time of part over the first row's, for an image or a batch: (lowest, median, highest) each.

    Within a round, so that a slow moment of the machine does not count as growth.
    """
    each = [[s / (row["batch"] if per == "image" else 1) for s in row["seconds"][part]]
            for row in rows]  # fmt: skip
    return [spread([a / b for a, b in zip(own, each[0], strict=True)]) for own in each]


def price(row, part, other="mlp"):
    """What a multiply-add of part costs in time, in multiply-adds of other, round by round."""
    counts = multiply_adds(row["N"], row["D"])
    counts |= {"attention": sum(counts.values()) - counts["mlp"], "block": sum(counts.values())}
    counts |= {"pairs": 2 * counts["scores"], "written out": counts["attention"]}
    counts |= {"fused kernel": counts["pairs"]}
    return [ratio * counts[other] / counts[part] for ratio in over(row, part, other)]


def crossing(x, ratios):
    """Where ratios, one for each x, rise above 1 for good; straight lines between logarithms.

    None if they end below 1, or never are below it.
    """
    below = [i for i, ratio in enumerate(ratios) if ratio < 1]
    if not below or below[-1] == len(x) - 1:
        return None
    i = below[-1]
    (x0, x1), (r0, r1) = map(math.log, x[i : i + 2]), map(math.log, ratios[i : i + 2])
    return math.exp(x0 - r0 * (x1 - x0) / (r1 - r0))


def crossings(rows, part):
    """N at which part overtakes the MLP, for every round; None for rounds in which it does not."""
    by_round = zip(*[over(row, part, "mlp") for row in rows], strict=True)
    return [crossing([row["N"] for row in rows], list(ratios)) for ratios in by_round]


# Panels and bars for pictures.cost_charts


def growth_panels(costs):
    """Panels for cost_charts.beside from records: a block's time over the first size's.

    By N and by D the time of an image, by the batch that of all its images.
    """
    panels = {}
    for xlabel, name, key in (
        ("tokens N", "width_192", "N"),
        ("width D", "over_D", "D"),
        ("images in a batch", "over_batch", "batch"),
    ):
        lines, per = {}, "batch" if key == "batch" else "image"
        for kind in ("forward", "training"):
            rows = costs[f"{name}_{kind}"]["rows"]
            lines[kind] = [row[key] for row in rows], growth_of(rows, "block", per)
        counts = [sum(multiply_adds(row["N"], row["D"]).values()) for row in rows]
        counts = [row["batch"] for row in rows] if key == "batch" else counts
        panels[xlabel] = [count / counts[0] for count in counts], lines
    return panels


def half_panels(costs, widths=(64, 192)):
    """Panels for cost_charts.beside from records: time of attention over the MLP, by N and D."""
    panels = {}
    for D in widths:
        forward, training = (costs[f"width_{D}_{kind}"]["rows"] for kind in ("forward", "training"))
        Ns, lines = [row["N"] for row in forward], {}
        for name, rows, part in (
            ("forward", forward, "attention"),
            ("training", training, "attention"),
            ("training, written out", training, "written out"),
        ):
            lines[name] = Ns, [spread(over(row, part, "mlp")) for row in rows]
        panels[f"tokens N, D = {D}"] = [(4 * D + 2 * N) / (8 * D) for N in Ns], lines
    return panels


def piece_shares(rows):
    """Two bars for each row of pieces: multiply-adds and time, {name: {piece: amount}}."""
    bars = {}
    for row in rows:
        counts = multiply_adds(row["N"], row["D"])
        times = {p: spread(own)[1] for p, own in row["seconds"].items() if p != "fused kernel"}
        bars[f"N = {row['N']}: multiply-adds"] = {piece: counts.get(piece, 0) for piece in times}
        bars[f"N = {row['N']}: time"] = times
    return bars


# What is recorded

NS = [16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048]
SWEEPS = dict(
    width_64=dict(sizes=[[N, 64, 4096 // N] for N in [*NS, 4096]], rounds=9),
    width_192=dict(sizes=[[N, 192, 2048 // N] for N in NS], rounds=9),
    over_D=dict(sizes=[[64, D, 16] for D in (64, 128, 192, 256, 384, 512, 768)], rounds=9),
    over_batch=dict(sizes=[[64, 192, B] for B in (1, 2, 4, 8, 16, 32, 64)], rounds=9),
)
LIVE = dict(sizes=[[N, 64, 1024 // N] for N in (16, 64, 256, 1024)], rounds=5)  # a few seconds
PIECES = [[N, 192, 2048 // N] for N in (64, 512, 2048)]
KEPT = [[N, 192, 2] for N in (16, 64, 128, 256, 384, 512, 768, 1024)]
POINTS = {
    f"{name}_{kind}": ("lab.cost.sweep", how | dict(training=kind == "training"))
    for name, how in SWEEPS.items()
    for kind in ("forward", "training")
} | {
    "pieces": ("lab.cost.pieces", dict(sizes=PIECES, rounds=9)),
    "memory": ("lab.cost.memory", dict(sizes=KEPT)),
    "halving": ("lab.cost.halving", dict(patch_sizes=[28, 14, 7, 4, 2], rounds=15)),
}
