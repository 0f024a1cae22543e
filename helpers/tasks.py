"""Small made-up tasks whose right answer is known, each with one part that it cannot do without.

Images are black squares with bright marks and a little noise, made from a seed. A task comes as
ImageData, as real images do, so that helpers.training trains on it.
"""

import torch
from torch import nn

from helpers.data import ImageData, Split, mean_and_std

TASKS = {}


def task(draw):
    """Register draw(count, generator) -> (images, labels, classes) as a task by its name."""
    TASKS[draw.__name__] = draw
    return draw


def make_task(name, train=4096, test=1024, seed=0):
    """The task called name as ImageData; test images to validate with, and as many to test with.

    ValueError for a name that is not in TASKS.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown, there are: {', '.join(TASKS)}")
    generator = torch.Generator().manual_seed(seed)
    count = train + 2 * test
    images, labels, classes = TASKS[name](count, generator)
    noise = torch.randint(0, 40, (count, 1, *images.shape[2:]), generator=generator)  # grey
    images = (images * 215 + noise).to(torch.uint8)
    parts = [
        Split(x.contiguous(), y.contiguous())
        for x, y in zip(
            images.split([train, test, test]), labels.split([train, test, test]), strict=True
        )
    ]
    mean, std = mean_and_std(parts[0].images)
    return ImageData(name, *parts, classes, mean, std, flip=False)


def patches_to_image(patches, rows, cols):
    """(n, rows * cols, P, P) -> (n, 1, rows P, cols P): the patches laid out row by row."""
    n, _, P, _ = patches.shape
    grid = patches.view(n, rows, cols, P, P).transpose(2, 3)  # (n, rows, P, cols, P)
    return grid.reshape(n, 1, rows * P, cols * P)


@task
def place(count, generator):
    """Which quadrant holds the mark? 4 x 4 patches of 2 x 2 pixels, one of them white."""
    spot = torch.randint(0, 16, (count,), generator=generator)
    patches = torch.zeros(count, 16, 2, 2)
    patches[torch.arange(count), spot] = 1
    row, col = spot // 4, spot % 4
    labels = 2 * (row // 2) + col // 2
    return patches_to_image(patches, 4, 4), labels, ("top left", "top right", "bottom left",
                                                      "bottom right")  # fmt: skip


@task
def alike(count, generator):
    """Are the two marks alike? 4 x 4 patches of 2 x 2 pixels; one pixel of a mark is black."""
    spots = torch.rand(count, 16, generator=generator).topk(2).indices  # two different patches
    marks = torch.randint(0, 4, (count, 2), generator=generator)
    same = torch.rand(count, generator=generator) < 0.5
    other = (marks[:, 0] + torch.randint(1, 4, (count,), generator=generator)) % 4
    marks[:, 1] = torch.where(same, marks[:, 0], other)
    patches = torch.zeros(count, 16, 4)
    for i in range(2):
        patches[torch.arange(count), spots[:, i]] = (
            1 - nn.functional.one_hot(marks[:, i], 4).float()
        )
    return (
        patches_to_image(patches.view(count, 16, 2, 2), 4, 4),
        same.long(),
        ("different", "alike"),
    )


@task
def two_addresses(count, generator):
    """The first patch is a small map of the image: which bits lie at its red and its blue dot?

    RGB, 3 x 3 patches of 3 x 3 pixels. Pixel i of the first patch stands for patch i: one is red,
    the first address, another blue, the second. Each of the other patches is one grey, light (bit
    1, from 0.6 to 1) or dark (bit 0, from 0 to 0.4). The class is the bit at red, then at blue.
    """
    bits = torch.randint(0, 2, (count, 8), generator=generator)
    greys = bits + 0.4 * (1 - 2 * bits) * torch.rand(count, 8, generator=generator)
    addresses = torch.rand(count, 8, generator=generator).topk(2).indices  # two different places
    red, blue = nn.functional.one_hot(addresses + 1, 9).float().unbind(1)  # each (count, 9)
    patches = greys[:, None, :, None].repeat(1, 3, 1, 9)  # (count, 3, 8, 9)
    first = torch.stack([red, 0.5 * blue, blue], dim=1)  # (count, 3, 9): a sky blue
    patches = torch.cat([first[:, :, None], patches], dim=2).view(-1, 9, 3, 3)
    images = patches_to_image(patches, 3, 3).view(count, 3, 9, 9)
    answer = bits.gather(1, addresses)  # (count, 2)
    return images, 2 * answer[:, 0] + answer[:, 1], ("00", "01", "10", "11")


@task
def by_heart(count, generator):
    """Which class has this pattern? Nothing in it tells: 512 patterns, to be learned by heart.

    One patch of 4 x 4 pixels, black or white. The 512 patterns were drawn at random once, and so
    was the table of their classes, 64 patterns in each; every split shows the same patterns, with
    other noise.
    """
    table = torch.Generator().manual_seed(0)
    codes = torch.randperm(2**16, generator=table)[:512]  # bit i of a code: is pixel i white?
    patterns = (codes[:, None] >> torch.arange(16)) & 1  # (512, 16)
    class_of = torch.randperm(512, generator=table) % 8
    chosen = torch.randint(0, 512, (count,), generator=generator)
    images = patterns[chosen].float().view(count, 1, 4, 4)
    return images, class_of[chosen], tuple("ABCDEFGH")


class Nothing(nn.Module):
    """Zeros, whatever comes in: what a residual connection adds when a part is removed."""

    def forward(self, x):
        return torch.zeros_like(x)


def without(model, part):
    """Remove "positions", "attention" or "mlp" from a VisionTransformer in place -> model.

    Positions become zeros that do not learn; in every block, attention or the MLP adds nothing.
    ValueError for another part.
    """
    if part == "positions":
        model.pos_embed.requires_grad_(False).zero_()
    elif part in ("attention", "mlp"):
        for block in model.blocks:
            setattr(block, "attn" if part == "attention" else "mlp", Nothing())
    else:
        raise ValueError(f"part {part!r} is unknown: choose positions, attention or mlp")
    return model
