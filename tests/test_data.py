"""helpers/data.py: splits, statistics, names, real files. test_downloads.py has the rest."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import data
from helpers.data import load

REAL = os.environ.get("VIT_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="VIT_DATA is not set: no real files to read")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No VIT_DATA, no network, and a default root that is not the repository's."""

    def no_network(url):
        raise OSError("no network in tests")

    monkeypatch.delenv("VIT_DATA", raising=False)
    monkeypatch.setattr(data, "_download", no_network)
    monkeypatch.setattr(data, "DATA_FOLDER", tmp_path / "default_root")


# Splits


def keys(split):
    """Each image as bytes: in tiny folders and in MNIST no two images are the same."""
    return [image.numpy().tobytes() for image in split.images]


def test_digits():
    digits = load()
    assert digits.name == "digits" and digits.classes == tuple("0123456789") and not digits.flip
    assert [len(digits.train), len(digits.validation), len(digits.test)] == [1293, 144, 360]
    for split in (digits.train, digits.validation, digits.test):
        assert split.images.shape == (len(split), 1, 8, 8) and split.labels.shape == (len(split),)
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.images.is_contiguous() and split.labels.is_contiguous()
        assert split.images.min() == 0 and split.images.max() == 255
    pixels = digits.train.images.double() / 255
    assert digits.mean == pytest.approx((pixels.mean().item(),), abs=1e-12)
    assert digits.std == pytest.approx((pixels.std(correction=0).item(),), abs=1e-12)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits, source = load(validation=0, test=0), load_digits()
    assert torch.equal(digits.train.labels, torch.from_numpy(source.target))
    sixteenths = (digits.train.images[:, 0] / 255 * 16).round()
    assert torch.equal(sixteenths, torch.from_numpy(source.images).float())


def test_splits_are_disjoint_and_complete():
    digits = load()
    parts = [set(keys(split)) for split in (digits.train, digits.validation, digits.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1797


def test_splits_are_stratified():
    digits = load()
    counts = [
        torch.bincount(split.labels, minlength=10).double()
        for split in (digits.train, digits.validation, digits.test)
    ]
    assert ((counts[2] - 0.2 * sum(counts)).abs() < 1).all()
    assert ((counts[1] - 0.1 * (counts[0] + counts[1])).abs() < 1).all()


def test_split_seed_alone_decides():
    first = load(split_seed=3)
    torch.manual_seed(99)
    np.random.seed(99)
    again, other = load(split_seed=3), load(split_seed=4)
    assert keys(first.train) == keys(again.train) and keys(first.test) == keys(again.test)
    assert keys(first.validation) == keys(again.validation)
    assert set(keys(first.test)) != set(keys(other.test))
    assert set(keys(first.validation)) != set(keys(other.validation))


def test_split_never_changes():
    """Measured results hang on it: which of the 1,797 digits are test images, seed 0."""
    place = {key: i for i, key in enumerate(keys(load(validation=0, test=0).train))}
    places = [place[key] for key in keys(load().test)]
    assert (places[:5], sum(places)) == ([3, 7, 13, 19, 36], 313341)


def test_shares():
    digits = load(validation=0.5, test=0)
    assert [len(digits.train), len(digits.validation), len(digits.test)] == [898, 899, 0]
    for wrong in (-0.1, 1, 20):
        with pytest.raises(ValueError, match="0 <= share < 1"):
            load(test=wrong)


def test_resizing_named_data():
    digits = load(img_size=12)
    assert digits.train.images.shape == (1293, 1, 12, 12) and digits.train.images.is_contiguous()
    assert digits.mean == pytest.approx(load().mean, abs=0.01)
    with pytest.raises(ValueError, match="img_size is 0"):
        load(img_size=0)


# Names


@pytest.mark.parametrize("name", ["nonsense", "./digits", Path("digits")])
def test_unknown_names_list_the_choices(name):
    with pytest.raises(FileNotFoundError, match="digits, mnist, fashion-mnist, cifar10"):
        load(name)


def test_unknown_names_suggest_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match="mean 'fashion-mnist'"):
        load("fashion-mnits")
    (tmp_path / "my_photos").mkdir()
    with pytest.raises(FileNotFoundError, match="mean 'my_photos'"):
        load(tmp_path / "my_photo")
    with pytest.raises(FileNotFoundError, match="mean 'my_photos'"):
        load("my_fotos", root=tmp_path)


def test_spelling_of_names():
    assert load("Digits").name == "digits"
    with pytest.raises(ConnectionError, match="train-images"):
        load("Fashion_MNIST")


# Real files


@needs_real
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_official_test_split_is_untouched(name, monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_DATA", REAL)
    first, other = load(name, root=tmp_path), load(name, root=tmp_path, split_seed=1)
    assert [len(first.train), len(first.validation), len(first.test)] == [54000, 6000, 10000]
    table = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    raw = Path(REAL, table, "raw", "t10k-images-idx3-ubyte.gz").read_bytes()
    official = gzip.decompress(raw)[16:]
    assert first.test.images.numpy().tobytes() == other.test.images.numpy().tobytes() == official
    assert not torch.equal(first.validation.images, other.validation.images)
    counts = torch.bincount(first.train.labels) + torch.bincount(first.validation.labels)
    assert ((torch.bincount(first.validation.labels) - 0.1 * counts).abs() < 1).all()
    assert not any(tmp_path.iterdir())
