"""Small random changes to training images: every look at an image is a new one.

Images stay on the device they lie on, a whole batch is changed at once. All random numbers come
from one generator on the CPU and are drawn for the whole batch of all processes, so that neither
the device nor the number of processes changes what is drawn; a Part says which images are here.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

GROUP = 16  # images that share one draw of a policy
POLICIES = {
    "trivial": v2.TrivialAugmentWide(),  # arXiv 2103.10158: one operation, any strength
    "rand": v2.RandAugment(),  # arXiv 1909.13719: two operations, strength 9 of 30
    "auto": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),  # arXiv 1805.09501: found for CIFAR-10
}


class Part(NamedTuple):
    """Which images of a batch of total images this process holds: start to stop - 1.

    start is even, and stop too unless it is total, so that neighbours are never parted. Where a
    batch is too small for all processes, some hold its first image, which then does not count.
    """

    start: int
    stop: int
    total: int
    counts: bool = True


def augment(images, config, flip, generator=None, part=None):
    """A random change to each image (B, C, H, W) by itself -> float32, same shape and scale.

    First config.policy, if there is one, on uint8 images. Then one affine map an image: moved by
    up to config.shift pixels, turned by up to config.rotate degrees, scaled by 1 +- config.zoom,
    mirrored with probability 1/2 if flip. What comes in from outside is black.
    """
    B, _, H, W = images.shape
    part = part or Part(0, B, B)
    draws = torch.rand(4, part.total, 2, generator=generator)[:, part.start : part.stop] * 2 - 1
    shift, angle, zoom, mirror = draws.to(images.device, non_blocking=True)  # each (B, 2)
    if config.policy:
        images = apply_policy(images, config.policy, generator, part)
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


def apply_policy(images, name, generator, part):
    """One of POLICIES on uint8 images (B, C, H, W): every GROUP images of a batch share a draw.

    torchvision draws once a call. One call for each image would be slow on a GPU; and an image's
    own chances are the same, whoever shares its draw. ValueError for an unknown policy.
    """
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}: choose one of {', '.join(map(repr, POLICIES))}")
    seeds = torch.randint(2**31, (math.ceil(part.total / GROUP),), generator=generator).tolist()
    changed = []
    before = torch.get_rng_state()
    for group in range(part.start // GROUP, math.ceil(part.stop / GROUP)):
        torch.default_generator.manual_seed(seeds[group])  # torchvision takes no generator
        first, last = group * GROUP - part.start, (group + 1) * GROUP - part.start
        changed.append(POLICIES[name](images[max(0, first) : last]))
    torch.set_rng_state(before)
    return torch.cat(changed)


def mix(x, y, classes, config, generator=None, part=None):
    """Neighbours 0 and 1, 2 and 3, ... give each other some of their pixels and of their labels.

    With probability config.mixup a pair is blended (MixUp, arXiv 1710.09412), with probability
    config.cutmix it swaps a rectangle (CutMix, arXiv 1905.04899). x (B, C, H, W), y (B,) -> x of
    the same shape, labels (B, classes) that sum to 1. How much stays is uniform in 0..1.
    """
    B, _, H, W = x.shape
    part = part or Part(0, B, B)
    draws = torch.rand(4, math.ceil(part.total / 2), generator=generator)
    draws = draws.repeat_interleave(2, dim=1)[:, part.start : part.stop]  # the same for neighbours
    kind, stays, *centre = draws.to(x.device, non_blocking=True)[..., None, None]  # (B, 1, 1) each
    box = inside(centre, (1 - stays).sqrt(), H, W)  # (B, H, W)
    keep = torch.where(kind < config.mixup, stays, 1.0)  # what stays of each pixel
    keep = torch.where(
        (kind >= config.mixup) & (kind < config.mixup + config.cutmix) & box, 0, keep
    )
    keep = keep.expand(B, H, W)[:, None]  # (B, 1, H, W)
    other = (torch.arange(B, device=x.device) ^ 1).clamp(
        max=B - 1
    )  # the last of an odd batch: itself
    share = keep.mean((1, 2, 3))[:, None]  # (B, 1)
    labels = F.one_hot(y, classes).float()
    return keep * x + (1 - keep) * x[other], share * labels + (1 - share) * labels[other]


def erase(x, config, generator=None, part=None):
    """With probability config.erase a rectangle of up to a third of an image becomes grey, 0.

    x (B, C, H, W), standardised. Random erasing: arXiv 1708.04896.
    """
    B, _, H, W = x.shape
    part = part or Part(0, B, B)
    draws = torch.rand(4, part.total, generator=generator)[:, part.start : part.stop]
    chance, area, *centre = draws.to(x.device, non_blocking=True)[..., None, None]  # (B, 1, 1) each
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


@functools.lru_cache(maxsize=64)
def constants(numbers, device):
    """A few numbers as a tensor on device, copied there once."""
    return torch.tensor(numbers, device=device)
