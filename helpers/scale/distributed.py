"""Several processes that train one model together.

`torchrun --nproc-per-node=N -m helpers.train` starts N copies of the program. Each has the whole
model (or a share of it, with FSDP2) and a part of every batch; the gradients' mean is what one
process would have found on the whole batch. With one process, every function here does nothing.
"""

import math
import os
import time
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel


class Part(NamedTuple):
    """Which images of a batch of total images this process holds: start to stop - 1.

    start is even, and stop too unless it is total, so that neighbours are never parted. Where a
    batch is too small for all processes, some hold its first image, which then does not count.
    """

    start: int
    stop: int
    total: int
    counts: bool = True


@contextmanager
def joined(device="auto"):
    """Meet the other processes, if torchrun started this one; part from them at the end.

    device: what all will train on, as helpers.scale.devices.choose_device takes it. Each process
    gets its card here, before anything can land on the first.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun sets it, and all that init needs
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available() and device.split(":")[0] in ("auto", "cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    # torchrun's store outlives a restart (pytorch issue 135712): each attempt gets its own keys.
    store, number, processes = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank():
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def my_part(total):
    """This process's Part of a batch of total images; pairs of neighbours stay whole."""
    pairs, r, world = math.ceil(total / 2), rank(), world_size()
    start, stop = 2 * (r * pairs // world), min(total, 2 * ((r + 1) * pairs // world))
    return Part(start, stop, total) if start < stop else Part(0, 1, total, counts=False)


@contextmanager
def first_process_first():
    """The first process goes through this alone, then the others: a file is downloaded once."""
    if rank():
        dist.barrier()
    yield
    if rank() == 0 and dist.is_initialized():
        dist.barrier()


def sum_over_processes(tensor):
    """The sum of every process's tensor, on each of them."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def from_all_processes(tensor):
    """Every process's tensor, uint8 and of one shape, stacked: (processes, ...)."""
    everyone = torch.zeros(world_size(), *tensor.shape, dtype=torch.uint8)
    everyone[rank()] = tensor
    return sum_over_processes(everyone)


def distribute(model, fsdp):
    """The model that a training step calls: model itself, or wrapped so that gradients are shared.

    fsdp: cut the weights themselves, and with them gradients and the optimizer's numbers, into one
    share a process (FSDP2's fully_shard, block by block), for models that one card cannot hold.
    That changes model in place.
    """
    if not dist.is_initialized():
        return model
    if not fsdp:
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    from torch.distributed.fsdp import fully_shard

    # Without a mesh the weights would go to an accelerator, if there is one, whatever was asked.
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def compile_ahead(model, shared, data, config, precision):
    """(shared after torch.compile, seconds): for both batch sizes of an epoch, ahead of it.

    ValueError if this machine cannot: the reason is most often that it has no compiler.
    """
    start = time.perf_counter()
    fast, device = torch.compile(shared, dynamic=False), next(model.parameters()).device
    model.train()
    whole, rest = divmod(len(data.train), config.batch_size)
    for total in [config.batch_size] * bool(whole) + [rest] * bool(rest):
        part = my_part(total)
        x = torch.zeros(part.stop - part.start, *data.train.image_shape, device=device)
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits = fast(x)
            logits.float().sum().backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler may say, at length
            reason = next(line for line in f"{error}\n?".splitlines() if line.strip())[:150]
            raise ValueError(
                f"torch.compile failed here ({type(error).__name__}: {reason}): train without "
                "compile, or install what it needs, a C++ compiler on a CPU, triton on a GPU"
            ) from error
    if device.type == "cuda":
        torch.cuda.synchronize()
    model.zero_grad()
    return fast, time.perf_counter() - start
