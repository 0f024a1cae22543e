"""Images damaged on purpose, and how a model bears it.

Each damage: uint8 images (n, C, H, W), how strong, a generator on the CPU -> changed copies.
"""

import torch
import torch.nn.functional as F

from lab.questions import accuracy

GREY = 128  # halfway between black and white


def shift(images, pixels, generator):
    """Each image moved by pixels, up, down, left or right; what comes in is black.

    ValueError if nothing would be left of them.
    """
    if not 0 <= pixels < min(images.shape[2:]):
        raise ValueError(
            f"pixels is {pixels} and the images are {images.shape[2]} x {images.shape[3]}: from 0 "
            f"to {min(images.shape[2:]) - 1} is needed"
        )
    direction = torch.randint(0, 4, (len(images),), generator=generator).to(images.device)
    changed = torch.empty_like(images)
    for number, (down, right) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)]):
        down, right, chosen = pixels * down, pixels * right, direction == number
        changed[chosen] = F.pad(images[chosen], (right, -right, down, -down))  # -: cut off
    return changed


def add_noise(images, sigma, generator):
    """Gaussian noise on every pixel and channel, sigma on the scale where 1 is white; cut off."""
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + 255 * sigma * noise).round().clamp(0, 255).to(torch.uint8)


def cover_square(images, side, generator):
    """A GREY square of side x side pixels at a random place of each image, all of it inside.

    ValueError for a side longer than theirs.
    """
    n, _, H, W = images.shape
    if not 0 <= side <= min(H, W):
        raise ValueError(f"side is {side} and the images are {H} x {W}: 0 to {min(H, W)} is needed")
    top = torch.randint(0, H - side + 1, (n, 1), generator=generator)
    left = torch.randint(0, W - side + 1, (n, 1), generator=generator)
    row, col = torch.arange(H), torch.arange(W)
    covered_rows = (row >= top) & (row < top + side)  # (n, H)
    covered_cols = (col >= left) & (col < left + side)  # (n, W)
    covered = (covered_rows[:, :, None] & covered_cols[:, None]).to(images.device)  # (n, H, W)
    return images.masked_fill(covered[:, None], GREY)


def shuffle_patches(images, patch_size, generator):
    """The squares of patch_size x patch_size pixels in a new order, drawn for each image.

    ValueError if patch_size does not divide both sides.
    """
    n, C, H, W = images.shape
    if patch_size < 1 or H % patch_size or W % patch_size:
        raise ValueError(
            f"images of {H} x {W} pixels given, patch_size is {patch_size}: it must divide both"
        )
    grid = (n, C, H // patch_size, patch_size, W // patch_size, patch_size)
    cut = images.reshape(grid).permute(0, 2, 4, 1, 3, 5)  # (n, rows, cols, C, P, P)
    patches = cut.flatten(1, 2)  # (n, N, C, P, P)
    order = torch.rand(patches.shape[:2], generator=generator).argsort(dim=1).to(images.device)
    mixed = patches[torch.arange(n, device=images.device)[:, None], order]
    return mixed.view(cut.shape).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def accuracy_under(model, data, images, labels, change, strengths, seed=0):
    """Accuracy on changed images for each strength: (len(strengths),); any model.

    change: shift, add_noise, cover_square, shuffle_patches, or a function called as they are. Each
    strength starts from the same seed, so every model sees the same images.
    """
    found = []
    for strength in strengths:
        changed = change(images, strength, torch.Generator().manual_seed(seed))
        found.append(accuracy(model, data, changed, labels))
    return torch.tensor(found)
