"""Small random changes while a model learns: to images and labels, to branches, to weights.

A whole batch of images is changed at once, on the device it lies on. All random numbers for images
come from one generator on the CPU, drawn for the whole batch; where several processes share a
batch, each then keeps its rows (see Rows). So neither the device nor the number of processes
changes what is drawn.
"""

import functools
import math
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torchvision.ops import stochastic_depth
from torchvision.transforms import v2

GROUP = 16  # images that share one draw of a policy
POLICIES = {
    "trivial": v2.TrivialAugmentWide(),  # arXiv 2103.10158: one operation, any strength
    "rand": v2.RandAugment(),  # arXiv 1909.13719: two operations, strength 9 of 30
    "auto": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),  # arXiv 1805.09501: found for CIFAR-10
}


class Rows(NamedTuple):
    """A generator for images start to stop - 1 of a batch of total images, in place of a plain one.

    What is drawn for the whole batch is cut to these rows, so an image gets the numbers that it
    would get if one process held all.
    """

    generator: torch.Generator | None
    total: int
    start: int
    stop: int

    def cut(self, numbers, each=1):
        """Numbers (..., groups) for the whole batch, each images in a group -> (..., B)."""
        return numbers.repeat_interleave(each, -1)[..., self.start : self.stop]


def rows_of(generator, images):
    """The Rows that a function was given, or those of a plain generator: all images."""
    whole = Rows(generator, len(images), 0, len(images))
    return generator if isinstance(generator, Rows) else whole


# Images


def augment(images, config, flip, generator=None):
    """A random change to each image (B, C, H, W) by itself -> float32, same shape and scale.

    First config.policy, if there is one, on uint8 images. Then one affine map an image: moved by
    up to config.shift pixels, turned by up to config.rotate degrees, scaled by 1 +- config.zoom,
    mirrored with probability 1/2 if flip. What comes in from outside is black.
    """
    B, _, H, W = images.shape
    rows = rows_of(generator, images)
    draws = torch.rand(4, rows.total, 2, generator=rows.generator).transpose(1, 2) * 2 - 1
    shift, angle, zoom, mirror = send(rows.cut(draws).transpose(1, 2), images.device)  # (B, 2) each
    if config.policy:
        images = apply_policy(images, config.policy, rows)
    angle = math.radians(config.rotate) * angle[:, 0]
    scale = 1 + config.zoom * zoom[:, :1].expand(B, 2)
    if flip:
        scale = scale * torch.stack([mirror[:, 0].sign(), torch.ones_like(angle)], dim=1)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin * H / W, sin * W / H, cos], dim=1).view(B, 2, 2)
    move = shift * config.shift * constants((2 / W, 2 / H), images.device)  # its image is 2 wide
    affine = torch.cat([turn * scale[:, :, None], move[:, :, None]], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(affine, images.shape, align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images.float(), grid, align_corners=False)


def apply_policy(images, name, generator=None):
    """One of POLICIES on uint8 images (B, C, H, W): every GROUP images of a batch share a draw.

    torchvision draws once a call. One call for each image would be slow on a GPU; and an image's
    own chances are the same, whoever shares its draw. ValueError for an unknown policy.
    """
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}: choose one of {', '.join(map(repr, POLICIES))}")
    rows = rows_of(generator, images)
    groups = (math.ceil(rows.total / GROUP),)
    seeds = rows.cut(torch.randint(2**31, groups, generator=rows.generator), each=GROUP)
    seeds, counts = seeds.unique_consecutive(return_counts=True)
    before, changed = torch.get_rng_state(), []
    for seed, group in zip(seeds.tolist(), images.split(counts.tolist()), strict=True):
        torch.default_generator.manual_seed(seed)  # torchvision takes no generator
        changed.append(POLICIES[name](group))
    torch.set_rng_state(before)
    return torch.cat(changed)


def mix(x, y, classes, config, generator=None):
    """Neighbours 0 and 1, 2 and 3, ... give each other some of their pixels and of their labels.

    With probability config.mixup a pair is blended (MixUp, arXiv 1710.09412), with probability
    config.cutmix it swaps a rectangle (CutMix, arXiv 1905.04899). x (B, C, H, W), y (B,) -> x of
    the same shape, labels (B, classes) that sum to 1. How much stays is uniform in 0..1.
    """
    B, _, H, W = x.shape
    rows = rows_of(generator, x)
    draws = torch.rand(4, math.ceil(rows.total / 2), generator=rows.generator)  # a pair, a column
    kind, stays, *centre = send(rows.cut(draws, each=2), x.device)[..., None, None]  # (B, 1, 1)
    box = inside(centre, (1 - stays).sqrt(), H, W)  # (B, H, W)
    keep = torch.where(kind < config.mixup, stays, 1.0)  # what stays of each pixel
    swaps = (kind >= config.mixup) & (kind < config.mixup + config.cutmix)
    keep = torch.where(swaps & box, 0, keep).expand(B, H, W)[:, None]  # (B, 1, H, W)
    other = torch.arange(B, device=x.device) ^ 1  # 1, 0, 3, 2, ...
    other = other.clamp(max=B - 1)  # the last of an odd batch: itself
    share = keep.mean((1, 2, 3))[:, None]  # (B, 1)
    labels = F.one_hot(y, classes).float()
    return keep * x + (1 - keep) * x[other], share * labels + (1 - share) * labels[other]


def erase(x, config, generator=None):
    """With probability config.erase a rectangle of up to a third of an image becomes grey, 0.

    x (B, C, H, W), standardised. Random erasing: arXiv 1708.04896.
    """
    B, _, H, W = x.shape
    rows = rows_of(generator, x)
    draws = rows.cut(torch.rand(4, rows.total, generator=rows.generator))
    chance, area, *centre = send(draws, x.device)[..., None, None]  # (B, 1, 1) each
    box = inside(centre, (area / 3).sqrt(), H, W) & (chance < config.erase)
    return x.masked_fill(box[:, None], 0)


def inside(centre, side, H, W):
    """Whether each pixel lies in a rectangle: centre (row, column) and side as shares, (B, 1, 1).

    -> bool (B, H, W)
    """
    rows = (torch.arange(H, device=side.device)[:, None] + 0.5) / H  # (H, 1)
    cols = (torch.arange(W, device=side.device) + 0.5) / W  # (W,)
    return ((rows - centre[0]).abs() < side / 2) & ((cols - centre[1]).abs() < side / 2)


def normalize(images, data):
    """uint8 (B, C, H, W) -> float32 with the training split's mean 0 and standard deviation 1."""
    mean, std = (constants(tuple(n), images.device)[:, None, None] for n in (data.mean, data.std))
    return (images / 255 - mean) / std


def send(tensor, device):
    """A CPU tensor on device. Only CUDA keeps it alive until a copy that does not wait is done."""
    return tensor.to(device, non_blocking=device.type == "cuda")


@functools.lru_cache(maxsize=64)
def constants(numbers, device):
    """A few numbers as a tensor on device, copied there once."""
    return torch.tensor(numbers, device=device)


# Branches and weights


@contextmanager
def drop_path(model, rate):
    """While this lasts, training skips branches of model's blocks at random (arXiv 1603.09382).

    For each image by itself, the output of an attention or an MLP becomes 0 with a probability that
    climbs from 0 in the first block to rate in the last; what is kept is divided by the probability
    of being kept, so that the mean stays. Eval mode is untouched. The model's code stays as it is:
    the branches' outputs are changed by hooks.
    """
    hooks = []
    for depth, block in enumerate(model.blocks if rate else ()):
        drop = rate * depth / max(1, len(model.blocks) - 1)
        for branch in (block.attn, block.mlp) if drop else ():
            hook = functools.partial(_drop, rate=drop)
            hooks.append(branch.register_forward_hook(hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _drop(branch, inputs, output, rate):
    return stochastic_depth(output, rate, "row", branch.training)


class EMA:
    """The exponential moving average of a model's weights: steadier than the last weights.

    average = decay * average + (1 - decay) * weights after each step; early on with a smaller
    decay, (1 + t) / (10 + t), so that the start is forgotten.
    """

    def __init__(self, model, decay):
        self.model, self.decay, self.steps = model, decay, 0
        self.average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self):
        """Take in the model's weights as they are now."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def swap(self):
        """The average goes into the model, the model's weights take its place here."""
        for average, weight in zip(self.average, self.model.parameters(), strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)


@contextmanager
def averaged(ema):
    """While this lasts, the model has its average weights. ema may be None: nothing happens."""
    if ema:
        ema.swap()
    try:
        yield
    finally:
        if ema:
            ema.swap()
