"""From a split to batches on the device: out of memory, or decoded while training goes on."""

import torch

from helpers.augmentation import augment, erase, mix, normalize
from helpers.data import Split
from helpers.distributed import my_part
from helpers.streaming import loader


def pictures(split, batches, device, **options):
    """Images uint8 (b, C, H, W) and labels (b,) on device, for each tensor of numbers in batches.

    From memory, or decoded now where the split is one of files; options: see streaming.loader.
    """
    if isinstance(split, Split):
        for numbers in batches:
            yield split.images[numbers].to(device), split.labels[numbers].to(device)
    else:
        lists = [numbers.tolist() for numbers in batches]
        options = dict(train=False, pin_memory=device.type == "cuda") | options
        for images, labels in loader(split, lists, **options):
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def training_batches(split, data, config, generator, device):
    """One epoch: (images (b, C, H, W) ready for the model, labels, Part) of each step.

    The order is drawn for all processes; each takes its part of every batch.
    """
    order, options = torch.randperm(len(split), generator=generator), {}
    streamed = not isinstance(split, Split)
    if streamed:
        seed = torch.randint(2**31, (), generator=generator).item()
        options = dict(train=True, seed=seed, flip=data.flip, workers=config.workers)
    else:
        order = order.to(split.images.device)  # once an epoch
    batches = order.split(config.batch_size)
    parts = [my_part(len(batch)) for batch in batches]
    mine = [batch[part.start : part.stop] for batch, part in zip(batches, parts, strict=True)]
    for part, (x, y) in zip(parts, pictures(split, mine, device, **options), strict=True):
        if not streamed:  # else the workers have changed them already
            x = augment(x, config, data.flip, generator, part)
        x = normalize(x, data)
        if config.erase:
            x = erase(x, config, generator, part)
        if config.mixup or config.cutmix:
            x, y = mix(x, y, len(data.classes), config, generator, part)
        yield x, y, part
