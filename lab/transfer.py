"""A trained ViT on photographs, with few labels: frozen, fine-tuned, or one from scratch.

    data = photographs(126)                          # Imagenette; None where nobody has it
    few = some_of_each(data.train, 50, 10, seed=0)   # five of each class
    linear_probe(features(vit, data, few.images), few.labels, ...)

Ways to spend the same labels: a linear classifier on the frozen class token ("frozen") or on the
pixels themselves ("pixels"), all weights trained on with the settings of the paper's Table 4
("tuned"), and a small ViT that starts from nothing ("scratch"). Notebook 11 draws what
benchmarks/experiments.py transfer records.
"""

import functools
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import Imagenette
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from helpers.augmentation import normalize
from helpers.data import ImageData, Split, places_of
from helpers.training import TrainConfig, learning_rate
from helpers.weights.fetch import trained
from lab.masked_patches import fine_tune
from lab.questions import accuracy, linear_probe
from lab.trials import build, some_of_each

NAMES = ("tench", "springer", "cassette player", "chain saw", "church", "French horn",
         "garbage truck", "gas pump", "golf ball", "parachute")  # fmt: skip
HELD_OUT = 50  # images of each class: the first of the test split, the last of the training split
POOL = 200  # images of each class, of the training split, that the few are drawn from
LABELS = (1, 5, 20, 100)  # of each class
RATES = {"tuned": (1e-3, 3e-3, 1e-2), "scratch": (3e-4, 1e-3, 3e-3)}
SMALL, SMALL_PX = dict(patch_size=9, embed_dim=96, depth=4, num_heads=4), 63  # from scratch


def photographs(img_size):
    """Imagenette, (n, 3, img_size, img_size) for each split -> ImageData; None if it is not here.

    Read from a place of helpers.data: photos/imagenette_64_jpeg.npz, made 64 px wide by others, or
    torchvision's imagenette2-160. Nothing is downloaded. mean and std are ImageNet's.
    """
    found = next((files for place in places_of(None) if (files := _files(place))), None)
    if found is None:
        return None
    name, read, labels, is_test = found
    of_class = [np.flatnonzero((labels == k) & ~is_test) for k in range(len(NAMES))]
    test = [np.flatnonzero((labels == k) & is_test)[:HELD_OUT] for k in range(len(NAMES))]
    parts = {
        "train": [numbers[:POOL] for numbers in of_class],
        "validation": [numbers[POOL:][-HELD_OUT:] for numbers in of_class],
        "test": test,
    }
    splits = {}
    for part, numbers in parts.items():
        numbers = np.concatenate(numbers)
        images = torch.from_numpy(np.stack([_pixels(read(i), img_size) for i in numbers]))
        splits[part] = Split(images, torch.from_numpy(labels[numbers]).long())
    statistics = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return ImageData(name, **splits, classes=NAMES, **statistics, flip=True)


def _files(place):
    """(name, read(i) -> a picture's file, labels (n,), is_test (n,)), or None."""
    packed = place / "photos" / "imagenette_64_jpeg.npz"
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as file:
            data, offsets = file["data"], file["offsets"]
            labels, is_test = file["labels"], file["is_test"].astype(bool)

        def read(i):
            return io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())

        return "Imagenette, 64 px", read, labels, is_test
    if (place / "imagenette2-160").is_dir():
        splits = [Imagenette(place, split, size="160px") for split in ("train", "val")]
        samples = [sample for split in splits for sample in split._samples]
        labels = np.array([label for _, label in samples])
        is_test = np.repeat([False, True], [len(split) for split in splits])
        return "Imagenette, 160 px", lambda i: samples[i][0], labels, is_test
    return None


def _pixels(file, img_size):
    """A picture's file -> its middle, uint8 (3, img_size, img_size)."""
    picture = resize(Image.open(file).convert("RGB"), img_size, antialias=True)
    return pil_to_tensor(center_crop(picture, img_size)).numpy()


@torch.inference_mode()
def features(model, data, images, batch_size=50):
    """The class token after the last norm: uint8 images (n, C, H, W) -> (n, D)."""
    batches = (normalize(batch, data) for batch in images.split(batch_size))
    return torch.cat([model.forward_features(x)[:, 0] for x in batches])


def tune_all(model, data, few, steps, lr, seed, batch_size=32):
    """Fine-tune model in place on few, a Split, as Table 4 does: SGD with momentum 0.9, a cosine
    without warm-up, no weight decay, gradients clipped at 1; each image is mirrored or not."""
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(few), (min(batch_size, len(few)),), generator=chance)
        mirrored = torch.rand(len(chosen), 1, 1, 1, generator=chance) < 0.5
        images = few.images[chosen]
        x = normalize(torch.where(mirrored, images.flip(-1), images), data)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, TrainConfig(lr=lr, warmup=0))
        optimizer.zero_grad()
        F.cross_entropy(model(x), few.labels[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def transfer(way, labels, seed, img_size=126, steps=20, lrs=None):
    """One way with so many labels of each class -> a dict that JSON can hold.

    seed decides which images have labels, their order, and the weights of "scratch". Of lrs, the
    best on validation images counts; the test images are looked at once. steps: of "tuned", with
    32 images or all; the small ViT from scratch gets 300 of 64. It and "pixels" see images of
    SMALL_PX, half of 126.

    ValueError for another way, or if not all classes have so many images; FileNotFoundError
    without Imagenette.
    """
    if way not in ("frozen", "pixels", *RATES) or labels < 1:
        raise ValueError(
            f"way {way!r} with {labels} labels of each class asked for: frozen, pixels, tuned or "
            "scratch, with at least 1, needed"
        )
    data = whole(SMALL_PX if way in ("pixels", "scratch") else img_size)
    if data is None:
        raise FileNotFoundError(
            "Imagenette is not here: torchvision.datasets.Imagenette('data', size='160px', "
            "download=True) fetches it, 99 MB; then start again"
        )
    few = some_of_each(data.train, labels * len(NAMES), len(NAMES), seed)
    splits = {"validation": data.validation, "test": data.test}
    facts = {"data": data.name, "images": {name: len(split) for name, split in splits.items()}}
    if way not in RATES:
        if way == "frozen":
            held_out = {name: frozen(img_size, name) for name in splits}
            ours = features(trained("vit-s14", img_size=img_size)[0], data, few.images)
        else:
            held_out = {name: split.images.flatten(1) for name, split in splits.items()}
            ours = few.images.flatten(1)  # (n, 3 * SMALL_PX**2)
        found = {
            name: linear_probe(ours, few.labels, held_out[name], split.labels)[1]
            for name, split in splits.items()
        }
        return facts | found
    models, tried = {}, {}
    for lr in lrs or RATES[way]:
        if way == "tuned":
            vit, _ = trained("vit-s14", img_size=img_size, num_classes=len(NAMES))
            models[lr] = tune_all(vit, data, few, steps, lr, seed)
            tried[lr] = accuracy(vit, data, data.validation.images, data.validation.labels)
        else:
            start = build(data, SMALL, seed=seed)
            models[lr], tried[lr] = fine_tune(start, data, few, 300, lr, seed)
    best = max(tried, key=tried.get)
    test = accuracy(models[best].eval(), data, data.test.images, data.test.labels)
    tried = {f"{lr:g}": right for lr, right in tried.items()}
    return facts | {"lr": best, "tried": tried, "validation": tried[f"{best:g}"], "test": test}


whole = functools.cache(photographs)


@functools.cache
def frozen(img_size, part):
    """The features of a split, computed once."""
    data = whole(img_size)
    return features(trained("vit-s14", img_size=img_size)[0], data, getattr(data, part).images)


POINTS = {
    f"{way}_{labels}_seed_{seed}": (
        "lab.transfer.transfer",
        dict(way=way, labels=labels, seed=seed),
    )
    for way in ("frozen", "pixels", "scratch", "tuned")
    for labels in LABELS
    for seed in range(3)
}
POINTS |= {  # ten times the steps, at the rate that won most often with 20
    f"longer_20_seed_{seed}": (
        "lab.transfer.transfer",
        dict(way="tuned", labels=20, seed=seed, steps=200, lrs=[3e-3]),
    )
    for seed in range(3)
}
