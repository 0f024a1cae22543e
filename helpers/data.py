"""Images in, uint8 tensors and class names out.

    data = load()                      # 1,797 real digits that come with scikit-learn: no network
    data = load("fashion-mnist")       # mnist, fashion-mnist, cifar10: downloaded once
    data = load("my_photos")           # a folder with one sub-folder for each class

Three splits: train to learn from, validation, cut from it, to choose by, test to look at once.
A download lands in root, data/ by default; files in the folder VIT_DATA are used where they lie.
"""

import gzip
import hashlib
import math
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import URLError

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5, check_integrity, download_url, extract_archive
from torchvision.transforms.v2.functional import resize

from helpers.folders.decoding import Parts, few, read_npz, read_parts
from helpers.folders.layout import find, list_folder
from helpers.model import BELOW_1, COUNT, check

CLONE = Path(__file__).resolve().parents[1]
HOME = CLONE if (CLONE / "pyproject.toml").is_file() else Path.cwd()  # installed elsewhere
DATA_FOLDER = HOME / "data"


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (n, C, H, W) and labels int64 (n,), contiguous, in an order that is fixed."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return tuple(self.images.shape[1:])

    def digest(self) -> str:
        """16 characters that stand for pixels, labels and their order."""
        return digest_of(self.images, self.labels)

    def reader(self, device: torch.device, **_) -> Callable:
        """read([numbers, ...]): for each, uint8 images (b, C, H, W) and labels (b,) on device."""
        images, labels = self.images.to(device), self.labels.to(device)  # once

        def read(numbers, seed=None):
            sizes = [len(batch) for batch in numbers]
            for chosen in torch.cat(numbers).to(device).split(sizes):
                yield images[chosen], labels[chosen]

        return read


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: three splits, what the classes are called, and how to standardise the images.

    mean and std hold one number per channel, of the training split, where 0 is black and 1 white;
    a channel that never changes has std 1. flip: whether a horizontal mirror keeps the class, as it
    does for photographs, not for digits (dataclasses.replace(data, flip=False)). loaded_as: the key
    in NAMED, None for your own pictures. cut: split_seed and shares of the splits that load cut.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    loaded_as: str | None = None
    cut: dict = field(default_factory=dict)


def load(
    name_or_folder: str | Path = "digits",
    root: str | Path | None = None,
    *,
    img_size: int | None = None,
    split_seed: int = 0,
    validation: float = 0.1,
    test: float = 0.2,
    strict: bool = False,
) -> ImageData:
    """Load a data set by its name, a folder with one sub-folder per class, or an .npz of JPEGs.

    name_or_folder: "digits", "mnist", "fashion-mnist", "cifar10", or a path, which is looked for
        from the working directory, then in root, then in VIT_DATA; helpers/folders/ says how it
        may be laid out. A folder called digits is "./digits".
    root: where named data sets lie and are downloaded to; default: data/. VIT_DATA comes after it.
    img_size: side of the square that images become; default: as they are, 64 for a folder.
    split_seed: decides, with the files' names, which images go where; nothing else is random.
    validation: the share of the training images that is set aside, each class alike, where there
        is no validation folder. 0 sets none aside. A class's last picture stays in training.
    test: the same for the test split, where the data bring none of their own.
    strict: raise at a file in a class folder that is no picture, instead of skipping it.

    FileNotFoundError for an unknown name, ConnectionError for a failed download, OSError for a root
    that cannot be written, ValueError for what is not as it should be: the text says what to do.
    """
    check_numbers(img_size, validation=validation, test=test, split_seed=split_seed)
    places, loaded_as = places_of(root), known_name(name_or_folder)
    flip, path = True, None
    if loaded_as:
        if Path(name_or_folder).is_dir():
            print(f"read {loaded_as}, not the folder ./{name_or_folder}", file=sys.stderr)
        read, flip = NAMED[loaded_as]
        parts, classes = read(places)
        if img_size:
            parts = {part: (_resized(x, img_size), y) for part, (x, y) in parts.items()}
    else:
        path = find(Path(name_or_folder).expanduser(), places, tuple(NAMED))
        in_one = path.suffix == ".npz"
        parts, classes = read_npz(path, img_size) if in_one else list_folder(path, strict)
    parts, classes, cut = three_parts(parts, classes, validation, test, split_seed)
    if path and not in_one:
        parts = read_parts(parts, img_size or 64, strict)
    splits = {part: Split(images, labels) for part, (images, labels) in parts.items()}
    check_classes(splits, classes, cut)
    name = loaded_as or path.resolve().name.removesuffix(".npz")
    numbers = mean_and_std(splits["train"].images)
    return ImageData(name, **splits, classes=classes, mean=numbers[0], std=numbers[1], flip=flip,
                     loaded_as=loaded_as, cut=cut)  # fmt: skip


def check_numbers(img_size, **others) -> None:
    """ValueError for arguments of load that make no sense."""
    seed = "a whole number, 0 to 4294967295", lambda n: 0 <= n < 2**32 and n == int(n)
    allowed = dict(img_size=COUNT, split_seed=seed, validation=BELOW_1, test=BELOW_1)
    check(others | {"img_size": 1 if img_size is None else img_size}, allowed)


def three_parts(parts: Parts, classes, validation, test, seed):
    """(parts with all three splits, the classes with pictures, what was cut from "train" and how).

    A class without a picture is left out, which is said. ValueError if there are not two others.
    """
    there = torch.bincount(torch.cat([y for _, y in parts.values()]), minlength=len(classes)) > 0
    if gone := [name for name, kept in zip(classes, there, strict=True) if not kept]:
        print(f"left out, for it has no picture: {few(gone)}", file=sys.stderr)
        parts = {part: (x, (there.cumsum(0) - 1)[y]) for part, (x, y) in parts.items()}
    classes = tuple(name for name in classes if name not in gone)
    if len(classes) < 2:
        raise ValueError(
            f"there are pictures of {few(classes) or 'no class'}, and telling apart needs two "
            "classes: add pictures of another, in a folder of its own beside it."
        )
    cut = {}
    for part, share in (("test", test), ("validation", validation)):
        if part not in parts:
            parts["train"], parts[part] = _cut(*parts["train"], classes, share, seed)
            cut |= {"split_seed": seed, part: share}
    return parts, classes, cut


def check_classes(splits, classes, cut) -> None:
    """Say which classes validation and test lack. ValueError if training lacks one."""
    for part, split in splits.items():
        counts = torch.bincount(split.labels, minlength=len(classes))
        lacking = [name for name, count in zip(classes, counts, strict=True) if not count]
        if lacking and part == "train":
            raise ValueError(
                f"no picture of {few(lacking)} is left to train on. Put some into training, repair "
                "those named above or move them elsewhere, or rename what training calls otherwise."
            )
        if lacking and cut.get(part) != 0:
            why = ": a class's last picture is for training" if part in cut else ""
            print(f"no {part} picture of {few(lacking)}{why}", file=sys.stderr)


def _cut(images, labels, classes, share: float, seed: int):
    """Set aside a share of each class: ((images, labels) that stay, (images, labels) set aside).

    n images give ceil(n * share), spread over the classes by the largest remainder, and at least
    one of each class on either side; a class of one stays. Both keep the order they came in.
    """
    aside = torch.zeros(len(labels), dtype=torch.bool)
    if share > 0:
        counts = np.bincount(labels.numpy(), minlength=len(classes))
        quota = counts * share
        take = np.floor(quota).astype(int)
        missing = math.ceil(round(len(labels) * share, 6)) - take.sum()
        take[np.argsort(take - quota, kind="stable")[:missing]] += 1
        take = take.clip(np.minimum(1, counts - 1), counts - 1)
        random = np.random.RandomState(seed)  # its numbers never change with numpy's version
        for label, k in enumerate(take):
            aside[random.permutation(np.flatnonzero(labels.numpy() == label))[:k]] = True
    return (images[~aside], labels[~aside]), (images[aside], labels[aside])


def digest_of(*tensors: torch.Tensor) -> str:
    """16 characters, the same for the same tensors on any machine."""
    digest = hashlib.blake2b(digest_size=8)
    for x in tensors:
        digest.update(f"{x.dtype} {tuple(x.shape)}".encode() + x.cpu().numpy().tobytes())
    return digest.hexdigest()


def mean_and_std(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, on the 0..1 scale, from counts of the 256 values: the same on any machine."""
    values = torch.arange(256, dtype=torch.float64) / 255
    found = []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        std = (share * (values - mean) ** 2).sum().sqrt().item()
        found.append((mean.item(), std if std > 1e-6 else 1.0))
    return tuple(zip(*found, strict=True))


def _resized(images: torch.Tensor, img_size: int) -> torch.Tensor:
    return torch.cat([resize(x, [img_size] * 2, antialias=True) for x in images.split(1000)])


# Data sets by name: each reader takes the folders to look in, root first


def _read_digits(places: list[Path]) -> tuple[Parts, tuple[str, ...]]:
    from sklearn.datasets import load_digits  # here: its import takes a second

    digits = load_digits()
    images = torch.from_numpy((digits.images * 255 / 16).round().astype(np.uint8))  # 0..16 before
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return {"train": (images[:, None], labels)}, tuple(str(name) for name in digits.target_names)


def _read_mnist(places: list[Path], table: str = "MNIST") -> tuple[Parts, tuple[str, ...]]:
    """The IDX files, unpacked in memory; names, addresses and checksums are torchvision's."""
    known = getattr(datasets, table)
    arrays = []
    for file, md5 in known.resources:  # training images, training labels, test images, test labels
        urls = [mirror + file for mirror in known.mirrors]
        raw = gzip.decompress(_published(f"{table}/raw/{file}", md5, urls, places).read_bytes())
        shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist()  # raw[3]: dimensions
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape))
    x, y, x_test, y_test = (torch.from_numpy(array.copy()) for array in arrays)
    classes = tuple("0123456789") if table == "MNIST" else tuple(known.classes)
    return {"train": (x[:, None], y.long()), "test": (x_test[:, None], y_test.long())}, classes


def _read_cifar10(places: list[Path]) -> tuple[Parts, tuple[str, ...]]:
    """By torchvision, which unpickles the batches only after it has checked their MD5s."""
    known, parts = datasets.CIFAR10, {}
    files = [f"{known.base_folder}/{name}" for name, _ in [*known.train_list, *known.test_list]]
    whole = (place for place in places if all((place / file).is_file() for file in files))
    with tempfile.TemporaryDirectory() as temporary:  # nothing is left of an unpacked archive
        if not (place := next(whole, None)):
            place = temporary
            archive = _published(known.filename, known.tgz_md5, [known.url], places)
            try:
                extract_archive(str(archive), place)
            except OSError as error:
                raise OSError(
                    f"{archive} cannot be unpacked in {place}: {error}. Make room there, or name "
                    "another folder in TMPDIR."
                ) from error
        try:
            for part, train in (("train", True), ("test", False)):
                found = known(place, train=train)
                images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
                parts[part] = images, torch.tensor(found.targets)
        except RuntimeError as error:
            folder = f"{place}/{known.base_folder}"
            raise ValueError(f"{folder} is not as published ({error}). {ANEW}") from error
    return parts, tuple(found.classes)


ANEW = "Move it elsewhere, load again: what is missing is downloaded."

# name: (reader, a mirror keeps the class)
NAMED = {
    "digits": (_read_digits, False),
    "mnist": (_read_mnist, False),
    "fashion-mnist": (partial(_read_mnist, table="FashionMNIST"), True),
    "cifar10": (_read_cifar10, True),
}


# Finding files and fetching them

PATIENCE = 30  # seconds without a byte, after which a server counts as gone
# What download_url raises (RuntimeError: the checksum is another), but for a full disk's OSError
NETWORK_ERRORS = HTTPException, URLError, ConnectionError, TimeoutError, SSLError, RuntimeError


def known_name(name: str | Path) -> str | None:
    """The name as NAMED spells it, for "FashionMNIST" or "fashion_mnist" too; None for a path."""
    known = {key.replace("-", ""): key for key in NAMED}
    return known.get(re.sub("[-_]", "", name.lower())) if isinstance(name, str) else None


def places_of(root: str | Path | None) -> list[Path]:
    """Where data sets are looked for: root, or data/, then VIT_DATA."""
    shelf = os.environ.get("VIT_DATA")
    places = [DATA_FOLDER if root is None else root, *([shelf] if shelf else [])]
    return [Path(place).expanduser() for place in places]


def _published(file: str, md5: str, urls: list[str], places: list[Path]) -> Path:
    """Where a file lies whole: in one of the places, or downloaded to the first, whole or not."""
    for path in (place / file for place in places):
        if check_integrity(path, md5):
            return path
        if path.is_file():
            raise ValueError(
                f"{path} is not the published file, or not all of it: its MD5 is "
                f"{calculate_md5(path)}, expected {md5}. {ANEW}"
            )
    path, reasons, before = places[0] / file, "", socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(PATIENCE)  # download_url itself would wait for ever
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
            for url in urls:
                try:
                    download_url(url, temporary, path.name, md5)
                    return Path(temporary, path.name).replace(path)
                except NETWORK_ERRORS as error:
                    reasons += f"  {url}: {error}\n"
    except OSError as error:
        raise OSError(
            f"{path} is not there, and cannot be written: {error}. Pass as root a folder that you "
            'may write to and that has room. load("digits") needs none.'
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    raise ConnectionError(
        f"could not download {path.name}:\n{reasons}Put it by hand into {path.parent}, or name a "
        'folder that has it as root or in VIT_DATA. load("digits") needs no network.'
    )
