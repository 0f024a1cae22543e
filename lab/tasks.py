"""Small made-up tasks whose right answer is known, each with one part that it cannot do without.

Images are black squares with bright marks and a little noise, made from a seed. A task comes as
ImageData, as real images do, so that helpers.training trains on it.
"""

import copy
from dataclasses import replace

import torch
from torch import nn

from helpers.data import ImageData, Split, mean_and_std
from helpers.model import VisionTransformer
from helpers.training import TrainConfig, fit

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


def learn_task(task, P, epochs, seed, **sizes):
    """A small ViT, D = 32 and 4 heads, learns a task of four classes -> (trained, as it started).

    P: the side of a patch; sizes: further arguments of VisionTransformer, depth for one.
    """
    torch.manual_seed(seed)
    C, H, _ = task.train.image_shape
    sizes = dict(img_size=H, patch_size=P, in_chans=C, num_classes=4, embed_dim=32) | sizes
    vit = VisionTransformer(**sizes, num_heads=4, mlp_ratio=2, pos_embed_std=0.5)
    start = copy.deepcopy(vit).eval()
    still = dict(shift=0, rotate=0, zoom=0, label_smoothing=0)
    config = TrainConfig(epochs=epochs, lr=3e-3, device="cpu", precision="float32", seed=seed)
    fit(vit, task, replace(config, **still))
    return vit.eval(), start


def patches_to_image(patches, rows, cols):
    """(n, rows * cols, P, P) -> (n, 1, rows P, cols P): the patches laid out row by row."""
    n, _, P, _ = patches.shape
    grid = patches.view(n, rows, cols, P, P).transpose(2, 3)  # (n, rows, P, cols, P)
    return grid.reshape(n, 1, rows * P, cols * P)


def light_or_dark(bits, generator):
    """Bits as greys of the same shape: 1 is light, from 0.6 to 1, and 0 is dark, from 0 to 0.4."""
    return bits + 0.4 * (1 - 2 * bits) * torch.rand(bits.shape, generator=generator)


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
    greys = light_or_dark(bits, generator)
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


@task
def two_colours(count, generator):
    """Which bits lie in the patch with a red dot and in the one with a blue dot?

    RGB, 4 x 4 patches of 2 x 2 pixels. Each patch is one grey, light (bit 1) or dark (bit 0); the
    first pixel of one of them is red, that of another is blue. The class is the bit at red, then
    at blue. Where the patches lie does not matter.
    """
    bits = torch.randint(0, 2, (count, 16), generator=generator)
    chosen = torch.rand(count, 16, generator=generator).topk(2).indices  # two different patches
    greys = light_or_dark(bits, generator)
    patches = greys[:, None, :, None].repeat(1, 3, 1, 4)  # (count, 3, 16, 4)
    red, blue = nn.functional.one_hot(chosen, 16).bool().unbind(1)  # each (count, 16)
    for dot, colour in ((red, (1.0, 0.0, 0.0)), (blue, (0.0, 0.5, 1.0))):
        patches[..., 0].transpose(1, 2)[dot] = torch.tensor(colour)
    images = patches_to_image(patches.view(-1, 16, 2, 2), 4, 4).view(count, 3, 8, 8)
    answer = bits.gather(1, chosen)  # (count, 2)
    return images, 2 * answer[:, 0] + answer[:, 1], ("00", "01", "10", "11")


@task
def chain(count, generator):
    """Start at patch 0, go where it points, go where that one points: is it light or dark there?

    RGB, 2 x 3 patches of 3 x 3 pixels, each light or dark. The patches have names, 0 to 5, and lie
    in any order: a patch's red dot is at the pixel of its own name, its blue dot at that of the
    name that it points to. Of the four patches where the second step may end two are light, so
    whoever does not know where it ends can but guess.
    """
    image = torch.arange(count)
    first, second = (1 + torch.rand(count, 5, generator=generator).topk(2).indices).unbind(1)
    away = torch.randint(1, 6, (count, 6), generator=generator)
    to = (torch.arange(6) + away) % 6  # (count, 6): all but 0 and first point anywhere
    to[image, 0], to[image, first] = first, second
    order = torch.rand(count, 6, generator=generator)
    order[:, 0] = order[image, first] = 1
    rank = order.argsort(1).argsort(1)  # 4 and 5 for the start and the first step
    any_bit = torch.randint(0, 2, (count, 6), generator=generator)
    bits = torch.where(rank < 4, rank % 2, any_bit)

    red = torch.eye(6, 9).expand(count, -1, -1)
    blue = nn.functional.one_hot(to, 9).float()
    dots = torch.stack([red, 0.5 * blue, blue], dim=1)  # (count, 3, 6, 9): a sky blue
    greys = light_or_dark(bits, generator)[:, None, :, None]  # (count, 1, 6, 1)
    patches = torch.where((red + blue)[:, None] > 0, dots, greys)
    place_of = torch.rand(count, 6, generator=generator).argsort(1)[:, None, :, None]
    patches = patches.gather(2, place_of.expand_as(patches)).view(-1, 6, 3, 3)
    images = patches_to_image(patches, 2, 3).view(count, 3, 6, 9)
    return images, bits[image, second], ("dark", "light")


@task
def which(count, generator):
    """Which of the four marks of alike is it? 4 x 4 patches of 2 x 2 pixels, one holds a mark."""
    spot = torch.randint(0, 16, (count,), generator=generator)
    mark = torch.randint(0, 4, (count,), generator=generator)
    patches = torch.zeros(count, 16, 4)
    patches[torch.arange(count), spot] = 1 - nn.functional.one_hot(mark, 4).float()
    return patches_to_image(patches.view(count, 16, 2, 2), 4, 4), mark, tuple("ABCD")
