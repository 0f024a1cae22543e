"""One point of an experiment: a model tuned on validation images, then tested once, over seeds.

    result = trial("digits", model=dict(depth=2), seeds=[0, 1, 2])
    result["test"]                        # accuracies 0..1 on the test images, one for each seed

benchmarks/experiments.py records many of them; records(name) reads what it recorded.
"""

import functools
import json
from dataclasses import replace

import torch

from helpers.data import HOME, Split, load
from helpers.model import VisionTransformer
from helpers.training import TrainConfig, evaluate, fit
from lab.cnn import SmallResNet
from lab.damage import shuffle_patches
from lab.parts import replace_part, without
from lab.speed import count_flops

RESULTS = HOME / "benchmarks" / "results" / "experiments"

# What an experiment changes one thing of. Both cut an image into 16 patches.
BASE = dict(embed_dim=48, depth=4, num_heads=4, mlp_ratio=2.0, pos_embed_std=0.5)
PATCH = {"digits": 2, "fashion-mnist": 7}
PLAIN = dict(shift=0, rotate=0, zoom=0)  # images as they are
EPOCH = 1280  # images at least, before validation is looked at
LEARNING_RATES = (1e-3, 3e-3, 9e-3)


def records(experiment):
    """What was recorded of an experiment: {point: its JSON as a dict}, in the order of names.

    FileNotFoundError, with the command that makes them, if nothing is recorded: records lie in a
    clone, so where the package was installed they are looked for in the working directory.
    """
    files = sorted((RESULTS / experiment).glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"nothing is recorded of {experiment!r}: run python benchmarks/experiments.py "
            f"{experiment}"
        )
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


whole = functools.cache(load)


def images_of(name, train=None, validation=2000, subset_seed=0, shuffled=False):
    """A data set by its name, with train images of each class alike and at most validation more.

    Its mirror is left out, so that nothing but config changes an image. shuffled: the patches of
    all images in one and the same new order. ValueError if there are too few images.
    """
    data = replace(whole(name), flip=False)
    splits = {"train": data.train, "test": data.test}
    splits["validation"] = Split(data.validation.images[:validation],
                                 data.validation.labels[:validation])  # fmt: skip
    if train:
        splits["train"] = some_of_each(data.train, train, len(data.classes), subset_seed)
    if shuffled:
        splits = {
            part: Split(in_one_order(split.images, PATCH[name]), split.labels)
            for part, split in splits.items()
        }
    return replace(data, **splits)


def some_of_each(split, count, classes, seed):
    """count images of a split, every class alike (the first few have one more if it must be)."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    labels = split.labels[order]
    shares = [count // classes + (label < count % classes) for label in range(classes)]
    chosen = [order[labels == label][:share] for label, share in enumerate(shares)]
    if any(len(c) < share for c, share in zip(chosen, shares, strict=True)):
        raise ValueError(f"{count} images asked for, not all classes of {len(split)} have so many")
    chosen = torch.cat(chosen)
    return Split(split.images[chosen].contiguous(), split.labels[chosen].contiguous())


def in_one_order(images, patch_size):
    """The patches of all images (n, C, H, W) in the same new order, which never changes."""
    columns = images.transpose(0, 1).flatten(0, 1)[None]  # (1, C n, H, W): one image, many channels
    mixed = shuffle_patches(columns, patch_size, torch.Generator().manual_seed(0))
    return mixed[0].view(images.shape[1], len(images), *images.shape[2:]).transpose(0, 1)


def sizes_of(name, model):
    """Arguments of build: BASE with the patches of a data set, and what model says otherwise."""
    return model if "resnet" in model else dict(patch_size=PATCH[name]) | BASE | model


def build(data, sizes, change=None, removed=(), seed=0):
    """A new model for data, an ImageData, its weights drawn from seed.

    sizes: arguments of VisionTransformer that the data do not tell, or {"resnet": width}. change:
    {"name": ..., options} for parts.replace_part. removed: what parts.without takes away.
    """
    torch.manual_seed(seed)
    C, H, W = data.train.image_shape
    if "resnet" in sizes:
        return SmallResNet(C, len(data.classes), sizes["resnet"])
    model = VisionTransformer((H, W), in_chans=C, num_classes=len(data.classes), **sizes)
    if change:
        replace_part(model, **change)
    for part in removed:
        without(model, part)
    return model


def validated(model, data, **settings):
    """Train model in place -> validation accuracy after the last step, 0 if the loss is no number.

    settings: fields of TrainConfig. The test images stay out of fit.
    """
    config = TrainConfig(device="cpu", precision="float32", **settings)
    try:
        history = fit(model, replace(data, test=data.validation), config)
    except FloatingPointError:
        return 0.0
    if history.interrupted:  # half a training is no trial
        raise KeyboardInterrupt
    return history.epochs[-1].validation_accuracy


def tune(accuracies, lrs):
    """(the learning rate of lrs that is best by validation, {"rate": accuracies} of all).

    accuracies(lr): validation accuracies, one for each seed that helps to choose.
    """
    tried = {lr: accuracies(lr) for lr in lrs}
    best = max(lrs, key=lambda lr: sum(tried[lr]))
    return best, {f"{lr:g}": found for lr, found in tried.items()}


def size_of(model, image_shape):
    """{"parameters": trained numbers, "multiply_adds": of one image, forward}, counted."""
    model.eval()
    with torch.no_grad():
        flops = count_flops(model, torch.zeros(1, *image_shape))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"parameters": trained, "multiply_adds": flops // 2}


def trial(data, model=None, change=None, images=None, training=None, steps=400, tune_steps=None,
          lrs=LEARNING_RATES, tune_seeds=(0,), seeds=(0, 1, 2), test_all=False):  # fmt: skip
    """Tune the learning rate on validation images, train with every seed, test the chosen once.

    data: "digits" or "fashion-mnist"; images: arguments of images_of. model: what differs from
    BASE, or {"resnet": width}; change: see build. training: fields of TrainConfig that differ from
    PLAIN images and batches of 64. Each rate of lrs is tried with tune_seeds for tune_steps
    (default: steps) and the best mean validation accuracy after the last step decides; a run whose
    loss is no number counts as 0. A seed decides the weights, the order of the images and, where
    images["train"] cuts them, which ones.

    -> a dict that JSON can hold: lr, tried {lr: validation accuracies}, and validation and test,
    accuracies 0..1 of the chosen one, one for each seed. With test_all, every rate is trained with
    every seed and tested_all {lr: test accuracies} says how all did: they choose nothing.
    """
    images = images or {}
    tune_seeds = seeds if test_all else tune_seeds
    tune_steps, sizes = tune_steps or steps, sizes_of(data, model or {})

    @functools.cache  # the same run is not done twice
    def run(lr, seed, count):
        """(model, data, validation accuracy) after count steps."""
        part = images_of(data, **({"subset_seed": seed} | images))
        net = build(part, sizes, change, seed=seed)
        again = -(-EPOCH // len(part.train))  # few images come several times in an epoch
        repeated = Split(part.train.images.repeat(again, 1, 1, 1), part.train.labels.repeat(again))
        epochs = max(1, round(count / -(-len(repeated) // 64)))
        settings = dict(batch_size=64, epochs=epochs) | PLAIN | (training or {})
        repeated = replace(part, train=repeated)
        return net, part, validated(net, repeated, **settings, lr=lr, seed=seed)

    def test(lr, seed):
        net, part, validation = run(lr, seed, steps)
        return evaluate(net, part, "test")[1] if validation else 0.0

    lr, tried = tune(lambda lr: [run(lr, seed, tune_steps)[2] for seed in tune_seeds], lrs)
    result = dict(lr=lr, tried=tried)
    result["validation"] = [run(lr, seed, steps)[2] for seed in seeds]
    result["test"] = [test(lr, seed) for seed in seeds]
    if test_all:
        result["tested_all"] = {f"{lr:g}": [test(lr, seed) for seed in seeds] for lr in lrs}
    net, part, _ = run(lr, seeds[0], steps)
    counts = {"train": len(part.train), "validation": len(part.validation), "test": len(part.test)}
    return result | {"images": counts, **size_of(net, part.train.image_shape)}
