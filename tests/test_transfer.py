"""lab/transfer.py: three ways with few labels, on tiny models and pictures of one colour."""

import colorsys
import functools
import inspect
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close
from torchvision.datasets import Imagenette

from helpers.augmentation import normalize
from helpers.data import ImageData, Split
from helpers.model import VisionTransformer
from lab import transfer as module
from lab.transfer import NAMES, POINTS, features, photographs, some_of_each, transfer, tune_all
from tests.peers import randomize

SIZES = dict(embed_dim=12, depth=1, num_heads=2)
WAYS = ("frozen", "pixels", "tuned", "scratch")
HOW = dict(img_size=14, steps=40, lrs=(1e-9, 0.4))


def colour_data(img_size):
    """Ten hues, eight images of each in a split, a little unlike each other."""
    hues = torch.tensor([colorsys.hsv_to_rgb(k / 10, 1, 0.8) for k in range(10)])
    generator, labels, splits = torch.Generator().manual_seed(0), torch.arange(80) % 10, []
    for _ in range(3):
        values = 255 * hues[labels] + 16 * torch.rand(80, 3, generator=generator)
        images = values.to(torch.uint8)[:, :, None, None].expand(-1, -1, img_size, img_size)
        splits.append(Split(images.contiguous(), labels))
    return ImageData("colours", *splits, NAMES, (0.4, 0.4, 0.4), (0.3, 0.3, 0.3), flip=True)


def tiny_vit(img_size=14, num_classes=10):
    torch.manual_seed(0)
    return randomize(VisionTransformer(img_size, 7, 3, num_classes, **SIZES)).eval()


@pytest.fixture
def tiny(monkeypatch):
    """Colours in place of photographs, small models, and fewer steps from scratch."""

    def trained(name, img_size, num_classes=0):
        assert name == "vit-s14"
        return tiny_vit(img_size, num_classes), None

    def fine_tune(start, data, few, steps, lr, seed, original=module.fine_tune):
        assert steps == 300
        return original(start, data, few, 40, lr / 8, seed)

    monkeypatch.setattr(module, "whole", functools.cache(colour_data))
    monkeypatch.setattr(module, "frozen", module.frozen.__wrapped__)  # nothing stays behind
    monkeypatch.setattr(module, "trained", trained)
    monkeypatch.setattr(module, "fine_tune", fine_tune)
    monkeypatch.setattr(module, "SMALL_PX", 18)
    monkeypatch.setattr(module, "SMALL", dict(patch_size=9) | SIZES)


@pytest.fixture
def labelled(monkeypatch):
    """The images that get labels, a Split for each call of transfer."""
    seen = []

    def watched(*arguments):
        seen.append(some_of_each(*arguments))
        return seen[-1]

    monkeypatch.setattr(module, "some_of_each", watched)
    return seen


@pytest.mark.parametrize("way", WAYS)
def test_a_way_learns_and_gives_the_same_again(tiny, way):
    result = transfer(way, 5, 0, **HOW)
    assert json.loads(json.dumps(result)) == result == transfer(way, 5, 0, **HOW)
    assert result["images"] == {"validation": 80, "test": 80} and result["data"] == "colours"
    assert 0.4 < result["test"] <= 1 and 0.4 < result["validation"] <= 1  # chance: 0.1
    if way in module.RATES:
        assert result["lr"] == 0.4 and list(result["tried"]) == ["1e-09", "0.4"]
        assert result["validation"] == result["tried"]["0.4"] > result["tried"]["1e-09"]


@pytest.mark.parametrize("way", WAYS)
def test_the_test_images_choose_nothing_and_are_looked_at_once(tiny, monkeypatch, way):
    looks, accuracy = [], module.accuracy

    def watched(model, data, images, labels):
        looks.append(images is data.test.images)
        return accuracy(model, data, images, labels)

    monkeypatch.setattr(module, "accuracy", watched)
    result = transfer(way, 5, 0, **HOW)
    assert (
        looks == {"frozen": [], "pixels": [], "tuned": [False, False, True], "scratch": [True]}[way]
    )

    def mislabelled(img_size):
        data = colour_data(img_size)
        return replace(data, test=Split(data.test.images, (data.test.labels + 1) % 10))

    monkeypatch.setattr(module, "whole", functools.cache(mislabelled))
    other = transfer(way, 5, 0, **HOW)
    assert other.pop("test") < result.pop("test") and other == result


def test_the_seed_decides_which_images_have_labels_the_same_for_all_ways(
    tiny, labelled, monkeypatch
):
    starts, build = [], module.build

    def watched(*arguments, **options):
        starts.append(build(*arguments, **options))
        return starts[-1]

    monkeypatch.setattr(module, "build", watched)
    for way, seed in ((way, seed) for seed in (0, 1) for way in WAYS):
        transfer(way, 3, seed, **(HOW | dict(steps=2, lrs=(0.4,))))
    assert all(torch.bincount(few.labels).tolist() == [3] * 10 for few in labelled)
    one, *same, other = (few.images[:, :, 0, 0] for few in labelled[:5])  # colours tell them apart
    assert all(torch.equal(one, found) for found in same) and not torch.equal(one, other)
    one, other = (start.patch_embed.proj.weight for start in starts)  # from scratch
    assert not torch.equal(one, other)


def test_what_cannot_be_done_is_said(tiny, monkeypatch):
    for way, labels, message in (("thawed", 1, "way 'thawed'.*frozen, pixels, tuned or scratch"),
                                 ("frozen", 0, "0 labels of each class"),
                                 ("tuned", 9, "90 images asked for")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            transfer(way, labels, 0, **HOW)
    monkeypatch.setattr(module, "whole", lambda img_size: None)
    with pytest.raises(FileNotFoundError, match="Imagenette is not here"):
        transfer("frozen", 1, 0)


def test_features_are_class_tokens():
    model, data = tiny_vit(), colour_data(14)
    images = data.test.images[:7]
    found = features(model, data, images, batch_size=3)
    with torch.no_grad():
        assert_close(found, model.forward_features(normalize(images, data))[:, 0])


def test_tuning_is_momentum_on_clipped_gradients_with_a_cosine():
    """One image that is its own mirror: three steps by hand."""
    model, data = tiny_vit(), colour_data(14)
    other, few = tiny_vit(), Split(data.train.images[:1], data.train.labels[:1])
    assert tune_all(model.train(), data, few, steps=3, lr=0.4, seed=0) is model
    assert not model.training
    weights, x, norms = list(other.parameters()), normalize(few.images, data), []
    speed = [torch.zeros_like(w) for w in weights]
    for lr in (0.4, 0.4, 0.2):
        slopes = torch.autograd.grad(F.cross_entropy(other(x), few.labels), weights)
        norms.append(math.sqrt(sum(slope.square().sum().item() for slope in slopes)))
        with torch.no_grad():
            for w, v, slope in zip(weights, speed, slopes, strict=True):
                v.mul_(0.9).add_(slope / max(1, norms[-1]))
                w.sub_(lr * v)
    assert norms[0] > 1.1  # there was something to clip
    for found, expected in zip(model.parameters(), weights, strict=True):
        assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_tuning_mirrors_some_images_and_its_seed_decides():
    data, seen = colour_data(14), []
    image = torch.arange(3 * 14 * 14).remainder(251).to(torch.uint8).view(1, 3, 14, 14)
    model = tiny_vit()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    tune_all(model, data, Split(image, torch.tensor([3])), steps=20, lr=1e-3, seed=0)
    kinds = [normalize(picture, data) for picture in (image, image.flip(-1))]
    counts = [sum(torch.equal(x, kind) for x in seen) for kind in kinds]
    assert sum(counts) == len(seen) == 20 and min(counts) > 3
    heads = [
        tune_all(tiny_vit(), data, data.train, steps=3, lr=0.1, seed=seed).head.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_every_point_is_another_and_can_be_called():
    assert len({json.dumps(arguments) for _, arguments in POINTS.values()}) == len(POINTS) == 51
    for name, (place, arguments) in POINTS.items():
        assert place == "lab.transfer.transfer" and inspect.signature(transfer).bind(**arguments)
        name = name.replace("longer", "tuned")
        assert name == "{way}_{labels}_seed_{seed}".format(**arguments)


# Where the photographs come from


WNIDS = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916",
         "n03417042", "n03425413", "n03445777", "n03888257")  # fmt: skip


def write_pictures(place):
    """Six pictures to train and three to test of each class, in torchvision's folders and packed.

    Grey in the middle, red at both ends: 20 k for class k, 2 more for each picture, 1 in the test.
    """
    files = []
    for part, count in (("train", 6), ("val", 3)):
        for k, wnid in enumerate(WNIDS):
            folder = place / "folder" / "imagenette2-160" / part / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                picture = np.full((16, 48, 3), 20 * k + 2 * i + (part == "val"), np.uint8)
                picture[:, :8] = picture[:, -8:] = (255, 0, 0)
                file = folder / f"{i}.JPEG"
                Image.fromarray(picture).save(file, "JPEG", quality=100, subsampling=0)
                files.append((file.read_bytes(), k, part == "val"))
    files = files[1::2] + files[::2]  # packed in another order, that of a class kept in each half
    files.sort(key=lambda file: not file[2])  # test images first
    content, labels, is_test = zip(*files, strict=True)
    (place / "packed" / "photos").mkdir(parents=True)
    np.savez(
        place / "packed" / "photos" / "imagenette_64_jpeg.npz",
        data=np.frombuffer(b"".join(content), np.uint8),
        offsets=np.cumsum([0, *map(len, content)]),
        labels=np.array(labels, np.uint8),
        is_test=np.array(is_test),
    )


@pytest.mark.parametrize("kind, name", [("folder", "160 px"), ("packed", "64 px")])
def test_photographs_of_each_class_alike_no_image_in_two_splits(tmp_path, monkeypatch, kind, name):
    write_pictures(tmp_path)
    monkeypatch.setattr(module, "places_of", lambda root: [tmp_path, tmp_path / kind])
    monkeypatch.setattr(module, "POOL", 4)
    monkeypatch.setattr(module, "HELD_OUT", 2)
    data, values = photographs(16), {}
    assert data.name == f"Imagenette, {name}" and data.classes == NAMES and data.flip
    for part, count in (("train", 4), ("validation", 2), ("test", 2)):
        split = getattr(data, part)
        assert split.images.dtype == torch.uint8 and split.image_shape == (3, 16, 16)
        assert split.labels.tolist() == [k for k in range(10) for _ in range(count)]
        middles = split.images.double().mean(dim=(1, 2, 3))  # what is red is cut off
        values[part] = middles.round().long()
        assert split.images.flatten(1).double().std(dim=1).max() < 3
        assert torch.equal(values[part] // 20, split.labels)
        assert ((values[part] % 2 == 1) == (part == "test")).all()
    assert len(torch.cat(list(values.values())).unique()) == 80
    monkeypatch.setattr(module, "POOL", 5)  # too few for both: validation gets what is left
    assert [len(split) for split in (photographs(8).train, photographs(8).validation)] == [50, 10]


def test_the_classes_are_in_torchvisions_order():
    for name, wnid in zip(NAMES, WNIDS, strict=True):
        assert name in Imagenette._WNID_TO_CLASS[wnid][0]
    assert sorted(WNIDS) == list(WNIDS)  # as folders are


def test_no_photographs_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "places_of", lambda root: [tmp_path])
    assert photographs(16) is None


VIT_DATA = os.environ.get("VIT_DATA", "")
PACKED = Path(VIT_DATA) / "photos" / "imagenette_64_jpeg.npz"


@pytest.mark.skipif(not (VIT_DATA and PACKED.is_file()), reason="VIT_DATA has no Imagenette")
def test_the_packed_photographs_are_as_expected(monkeypatch):
    with np.load(PACKED, allow_pickle=False) as file:
        assert file["wnids"].tolist() == list(WNIDS)
    monkeypatch.setattr(module, "places_of", lambda root: [Path(VIT_DATA)])
    monkeypatch.setattr(module, "POOL", 2)
    monkeypatch.setattr(module, "HELD_OUT", 1)
    data = photographs(32)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 10, 10]
    everything = torch.cat([data.train.images, data.validation.images, data.test.images])
    assert len(everything.flatten(1).unique(dim=0)) == 40 and everything.double().std() > 40
