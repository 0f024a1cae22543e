"""How fast this machine trains a ViT, what each switch is worth, where time and memory go.

Notebook 14 and benchmarks/gpu.py measure with this. A clock is read only when the device has done
all it was given: a GPU is still at work when Python has long gone on. What is compared takes turns,
round after round, so that a machine whose speed drifts drifts for all.
"""

import copy
import os
import statistics
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from helpers.augmentation import EMA, drop_path
from helpers.training import parameter_groups, train_step, training_batches

# Clocks


def wait_for(device):
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work, device):
    """Wall-clock seconds of work(), the device's queue empty before and after."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def race(works, rounds, device):
    """{name: function} -> {name: seconds of each round}. The order turns round by round."""
    names = list(works)
    times = {name: [] for name in names}
    for turn in range(rounds):
        for k in range(len(names)):
            name = names[(turn + k) % len(names)]
            times[name].append(seconds(works[name], device))
    return times


# Operations


def count_flops(work, *inputs):
    """Floating-point operations of the products in work(*inputs), counted by torch as it runs.

    Attention runs as separate products meanwhile. Its fused kernels differ from device to device,
    torch below 2.15 counts that of a CPU as nothing, and what a kernel computes a second time to
    save memory is no work of the model's.
    """
    with FlopCounterMode(display=False) as counter, attention_by(fused=False):
        work(*inputs)
    return counter.get_total_flops()


def training_flops(model):
    """Floating-point operations of a training step for one image, forward and backward, counted.

    Counted on the meta device, where shapes are followed and nothing is computed.
    """
    twin = copy.deepcopy(model).to("meta").train()
    image = torch.zeros(1, *model.patch_embed.input_shape, device="meta")
    return count_flops(lambda: twin(image).sum().backward())


def matmul_peak(device, precision, side=None, rounds=5):
    """Operations a second of a large product of (side, side) matrices, the best of some rounds.

    What this device gives in practice, and so what a training step is measured against.
    """
    side = side or (8192 if device.type == "cuda" else 1024)
    repeats = 20 if device.type == "cuda" else 1  # launched together, so that launching is hidden
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, precision)) for _ in "ab")

    def work():
        for _ in range(repeats):
            a @ b

    work()
    best = min(seconds(work, device) for _ in range(rounds))
    return 2 * side**3 * repeats / best


def utilisation(rung, flops, device, side=None):
    """(MFU, peak): the share that a rung of ladder reaches of matmul_peak in its own precision.

    flops: of a training step for one image; side: of the product's matrices.
    """
    peak = matmul_peak(device, rung["precision"], side)
    return rung["images_per_second"] * flops / peak, peak


# The ladder

PLAIN = dict(resident=False, wait=True, precision="float32", fused=False, compile=False)
LADDER = {  # each rung keeps the switches of those before it
    "a plain loop": {},
    "+ images on the device": {"resident": True},
    "+ no waiting": {"wait": False},
    "+ bfloat16": {"precision": "bfloat16"},
    "+ fused optimizer": {"fused": True},
    "+ torch.compile": {"compile": True},
}


def endless(data, config, device, resident=True):
    """Training batches (x, y) on device without end, as fit makes them, short ones left out.

    resident: uint8 images lie on the device and are changed there. Otherwise all that happens on
    the CPU, and what is moved is float32. ValueError if there are fewer images than a batch has.
    """
    if len(data.train) < config.batch_size:
        raise ValueError(
            f"{len(data.train)} training images do not make a batch of {config.batch_size}"
        )
    place = device if resident else torch.device("cpu")
    read, generator = data.train.reader(place), torch.Generator().manual_seed(config.seed)
    while True:
        for x, y, _ in training_batches(data, config, generator, read):
            if len(y) == config.batch_size:
                yield x.to(device), y.to(device)


def training_work(model, data, config, device, steps=1, resident=True, wait=False,
                  precision="float32", fused=True, compile=False):  # fmt: skip
    """A function that does so many training steps of fit's loop, augmentation and EMA included.

    wait: the loss is read after every step, so that Python stands still until the device is done.
    fused: AdamW in one kernel; otherwise a loop over the parameters.
    """
    model.to(device).train()
    kind = {"fused": True} if fused else {"fused": False, "foreach": False}
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, **kind)
    ema = EMA(model, config.ema) if config.ema else None
    called = torch.compile(model, dynamic=False) if compile else model
    batches = endless(data, config, device, resident)

    def work():
        for _ in range(steps):
            with record_function("augmentation"):
                x, y = next(batches)
            sums = train_step(called, x, y, optimizer, config, precision)
            if ema:
                with record_function("Optimizer.EMA"):
                    ema.update()
            if wait:
                sums.tolist()

    return work


def ladder(build, data, config, device, large=(), steps=10, rounds=5, compile=None):
    """Images a second of the training loop, one switch of LADDER more on each rung.

    build() returns a new model. A round is steps steps of config.batch_size images; after the last
    switch, as many images in batches of each size in large. compile=None: on a GPU alone. Returns
    a dict for each rung: name, batch_size, precision, images_per_second (median of the rounds),
    over_first (median of the ratios within a round), first_seconds (the first round of all, in
    which torch.compile compiles).
    """
    compiles = device.type == "cuda" if compile is None else compile
    plan, switches = {}, dict(PLAIN)
    for name, change in LADDER.items():
        if compiles or "compile" not in change:
            switches |= change
            plan[name] = (config.batch_size, dict(switches))
    plan |= {f"+ batch of {size}": (size, switches) for size in large}
    works, rungs = {}, []
    with ExitStack() as hooks:
        for name, (size, settings) in plan.items():
            model, count = build(), max(1, round(steps * config.batch_size / size))
            hooks.enter_context(drop_path(model, config.drop_path))
            sized = replace(config, batch_size=size)
            works[name] = training_work(model, data, sized, device, count, **settings)
            first = seconds(works[name], device)
            rungs.append({"name": name, "batch_size": size, "precision": settings["precision"],
                          "images": count * size, "first_seconds": first})  # fmt: skip
        times = race(works, rounds, device)
    plain = times[rungs[0]["name"]]
    for rung in rungs:
        own, images = times[rung["name"]], rung.pop("images")
        rung["images_per_second"] = images / statistics.median(own)
        share = images / (steps * config.batch_size)
        ratios = [share * b / a for a, b in zip(own, plain, strict=True)]
        rung["over_first"] = statistics.median(ratios)
    return rungs


# Memory


def saved_bytes(model, images, precision="float32", fused=True):
    """Bytes that a forward pass keeps for the backward pass, the weights left out.

    fused=False: attention by separate products and a softmax, as the equations say.
    """
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}  # a storage counts once, however many tensors look into it

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that its address stays its own
        return tensor

    bfloat16 = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with bfloat16, attention_by(fused), saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(storage.nbytes() for storage in kept.values())


def attention_by(fused):
    """While this lasts: any kernel for attention, or the one that stores the (N, N) matrices."""
    return nullcontext() if fused else sdpa_kernel(SDPBackend.MATH)


def kept_numbers(N, D, heads, mlp_ratio=4.0, fused=True):
    """Numbers that an encoder block keeps for the backward pass for one image, {part: count}.

    norms: inputs and outputs of both, a mean and a deviation for each token; attention: q, k, v and
    what it returns; pairs: the rows of the softmax, or (fused) one number for each; mlp: both sides
    of GELU. Exact in float32 for two heads and two images or more (with one, torch's separate
    products keep copies of q and k, too).
    """
    return {
        "norms": N * (4 * D + 4),
        "attention": N * 4 * D,
        "pairs": N * heads * (1 if fused else N),
        "mlp": 2 * N * int(mlp_ratio * D),
    }


def expected_bytes(model, batch, fused=True):
    """What saved_bytes should find in float32 for two images or more, from the sizes alone.

    kept_numbers of each block, the images, and around the last norm 2 D + 2 for each token.
    """
    C, H, W = model.patch_embed.input_shape
    N, D = model.patch_embed.num_patches + model.num_prefix_tokens, model.pos_embed.shape[-1]
    numbers = C * H * W + N * (2 * D + 2)
    for block in model.blocks:
        ratio = block.mlp.fc1.out_features / D
        numbers += sum(kept_numbers(N, D, block.attn.num_heads, ratio, fused).values())
    return 4 * batch * numbers


def peak_bytes(work, device):
    """The most memory that is allocated while work() runs; None where the device does not count.

    work runs once before, so that the optimizer's numbers are there. None, too, if it does not fit.
    """
    if device.type != "cuda":
        return None
    try:
        work()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device)


# Where the time goes

KINDS = {  # kind: what the names of its operations hold; the first that fits
    "compiled": ("triton", "Compiled", "TorchDynamo"),
    "attention": ("attention", "aten::bmm", "aten::_softmax"),
    "matrix products": ("aten::addmm", "aten::mm", "mkldnn_linear", "convolution"),
    "norm": ("layer_norm",),
    "GELU": ("gelu",),
    "optimizer": ("_foreach_", "_fused_adam", "vector_norm"),
    "copies": ("aten::copy_", "aten::_to_copy", "aten::cat", "Memcpy"),
}
REGIONS = {"augmentation": "augmentation", "Optimizer.": "optimizer"}


def time_by_kind(work, device):
    """{kind: seconds} of work(), from torch's profiler; it runs once before, unwatched.

    On a GPU the time of its kernels, and as "idle" what is left of the wall clock; elsewhere the
    time of the CPU's operations. "rest" is all that fits no kind.
    """
    gpu = device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes its diary to stderr
    work()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with profile(activities=activities) as profiler:
        wall = seconds(work, device)
    found = dict.fromkeys([*KINDS, "augmentation", "rest"], 0.0)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CPU:
            spent = event.self_device_time_total if gpu else event.self_cpu_time_total
            found[kind_of(event)] += spent / 1e6
    if gpu:
        found["idle"] = max(0.0, wall - sum(found.values()))
    if not found["compiled"]:
        del found["compiled"]
    return found


def kind_of(event):
    """The kind of one of the profiler's events: by the region it lies in, otherwise by its name."""
    outer = event
    while outer is not None:
        for start, kind in REGIONS.items():
            if outer.name.startswith(start):
                return kind
        outer = outer.cpu_parent
    return next((kind for kind, parts in KINDS.items() if any(p in event.name for p in parts)),
                "rest")  # fmt: skip
