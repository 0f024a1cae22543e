"""Images in, uint8 tensors and class names out.

    data = load()                      # 1,797 real digits that come with scikit-learn: no network
    data = load("fashion-mnist")       # mnist, fashion-mnist, cifar10: downloaded once
    data = load("my_photos")           # a folder with one sub-folder for each class

Three splits: train to learn from, validation to choose by, test to look at once. Validation images
are cut from the training images, never from the test images. A download lands in data/, or in the
root that you name; files that lie in the folder VIT_DATA names are used where they are.
"""

import gzip
import hashlib
import http.client
import io
import math
import os
import pickle
import tarfile
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from helpers.folder import Parts, find, read_folder, read_npz

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"


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


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: three splits, what the classes are called, and how to standardise the images.

    mean and std hold one number per channel, of the training split, on the scale where 0 is black
    and 1 is white; a channel that never changes has std 1. flip says whether a horizontal mirror
    keeps the class: no for digits, yes for photographs (dataclasses.replace(data, flip=False) if
    yours are different).
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool


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
        from the working directory, then in root, then in VIT_DATA. helpers.folder says how a
        folder may be laid out and which keys the .npz has. A folder called digits is "./digits".
    root: where named data sets lie and are downloaded to; default: the repository's data/.
        The folder in the environment variable VIT_DATA is searched after it and only read.
    img_size: side of the square that images are resized and cropped to. Default: as they are,
        64 for a folder.
    split_seed: decides which images go where; nothing else is random.
    validation: the share of the training images that is set aside, each class alike, where there
        is no validation folder. 0 sets none aside.
    test: the same for the test split, where the data bring none of their own.
    strict: raise at a file in a class folder that is no picture, instead of skipping it.

    Raises FileNotFoundError for a name or folder that does not exist, ConnectionError when a
    download fails, OSError when root cannot be written to, ValueError for files and images that
    are not what they should be. The text says what to do.
    """
    if img_size is not None and img_size < 1:
        raise ValueError(f"img_size is {img_size}; it needs to be a number of pixels, 1 or more.")
    for share, value in (("validation", validation), ("test", test)):
        if not 0 <= value < 1:
            raise ValueError(f"{share} is {value}; it is a share of the images, 0 <= share < 1.")

    root = DATA_FOLDER if root is None else Path(root).expanduser()
    places = [root]
    if os.environ.get("VIT_DATA"):
        places.append(Path(os.environ["VIT_DATA"]).expanduser())

    name = _known_name(name_or_folder)
    if name is None:
        path = find(Path(name_or_folder).expanduser(), places, tuple(NAMED))
        name, flip = path.resolve().name.removesuffix(".npz"), True
        if path.suffix == ".npz":
            parts, classes = read_npz(path, img_size)
        else:
            parts, classes = read_folder(path, img_size or 64, strict)
    else:
        read, flip = NAMED[name]
        parts, classes = read(places)
        if img_size:
            parts = {part: (_resized(x, img_size), y) for part, (x, y) in parts.items()}

    _check_classes(name, parts["train"][1], classes)
    if "test" not in parts:
        parts["train"], parts["test"] = _cut(*parts["train"], classes, "test", test, split_seed)
    if "validation" not in parts:
        parts["train"], parts["validation"] = _cut(
            *parts["train"], classes, "validation", validation, split_seed
        )
    splits = {part: Split(images, labels) for part, (images, labels) in parts.items()}
    mean, std = mean_and_std(splits["train"].images)
    return ImageData(name=name, classes=classes, mean=mean, std=std, flip=flip, **splits)


# Splits and statistics


def _check_classes(name: str, labels: torch.Tensor, classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        raise ValueError(
            f"{name} has one class, {classes[0]!r}. Telling apart needs two: add a sub-folder with "
            "pictures of something else."
        )
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if empty := [c for c, count in zip(classes, counts, strict=True) if count == 0]:
        raise ValueError(
            f"{name} has no training image of {', '.join(empty)}. Each class needs one."
        )


def _cut(images, labels, classes, part: str, share: float, seed: int):
    """Set aside a share of each class: ((images, labels) that stay, (images, labels) set aside).

    n images give ceil(n * share), spread over the classes by the largest remainder, and at least
    one of each class on either side. Both keep the order they came in.
    """
    aside = torch.zeros(len(labels), dtype=torch.bool)
    if share > 0:
        counts = np.bincount(labels.numpy(), minlength=len(classes))
        if counts.min() < 2:
            raise ValueError(
                f"too few images to set a {part} split aside: {int(counts.min())} left of class "
                f"{classes[counts.argmin()]!r}, and both sides need one of each class. "
                f"Add images, or pass {part}=0."
            )
        quota = counts * share
        take = np.floor(quota).astype(int)
        missing = math.ceil(round(len(labels) * share, 6)) - take.sum()
        take[np.argsort(take - quota, kind="stable")[:missing]] += 1
        take = take.clip(1, counts - 1)
        random = np.random.RandomState(seed)  # its numbers never change with numpy's version
        for label, k in enumerate(take):
            members = np.flatnonzero(labels.numpy() == label)
            aside[random.permutation(members)[:k]] = True
    return (images[~aside], labels[~aside]), (images[aside], labels[aside])


def mean_and_std(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, on the 0..1 scale, from counts of the 256 values: the same on any machine."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        std = (share * (values - mean) ** 2).sum().sqrt().item()
        means.append(mean.item())
        stds.append(std if std > 1e-6 else 1.0)
    return tuple(means), tuple(stds)


def _resized(images: torch.Tensor, img_size: int) -> torch.Tensor:
    chunks = tqdm(images.split(1000), "resizing, thousands", delay=2, leave=False)
    return torch.cat([resize(chunk, [img_size, img_size], antialias=True) for chunk in chunks])


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
        raw = gzip.decompress(_fetch(f"{table}/raw/{file}", md5, urls, places))
        shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist()  # raw[3]: dimensions
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape))
    x, y, x_test, y_test = (torch.from_numpy(array.copy()) for array in arrays)
    classes = tuple("0123456789") if table == "MNIST" else tuple(known.classes)
    return {"train": (x[:, None], y.long()), "test": (x_test[:, None], y_test.long())}, classes


def _read_cifar10(places: list[Path]) -> tuple[Parts, tuple[str, ...]]:
    """The python batches, from the folder that torchvision unpacks or straight from the archive.

    The batches are pickles, and a pickle can run any code. So only bytes whose checksum is the
    published one are ever unpickled.
    """
    known = datasets.CIFAR10
    folder, meta = known.base_folder, known.meta
    files = [*known.train_list, *known.test_list, (meta["filename"], meta["md5"])]
    unpacked = [p for p in places if all((p / folder / file).is_file() for file, _ in files)]
    if unpacked:
        found = [_checked(unpacked[0] / folder / file, md5) for file, md5 in files]
    else:
        packed = _fetch(known.filename, known.tgz_md5, [known.url], places)
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r|gz") as archive:  # from front to back
            members = tqdm(archive, "unpacking", delay=2, leave=False, unit="files")
            inside = {m.name: archive.extractfile(m).read() for m in members if m.isfile()}
        found = [inside[f"{folder}/{file}"] for file, _ in files]

    *batches, names = (pickle.loads(content, encoding="latin1") for content in found)
    images = torch.from_numpy(np.concatenate([b["data"] for b in batches])).view(-1, 3, 32, 32)
    labels = torch.tensor([label for batch in batches for label in batch["labels"]])
    n = len(labels) - len(batches[-1]["labels"])  # the last batch is the test split
    parts = {"train": (images[:n], labels[:n]), "test": (images[n:], labels[n:])}
    return parts, tuple(names[meta["key"]])


# name: (reader, a mirror keeps the class)
NAMED = {
    "digits": (_read_digits, False),
    "mnist": (_read_mnist, False),
    "fashion-mnist": (partial(_read_mnist, table="FashionMNIST"), True),
    "cifar10": (_read_cifar10, True),
}


# Finding files and fetching them


def _known_name(name: str | Path) -> str | None:
    """The name as NAMED spells it, for "FashionMNIST" or "fashion_mnist" too; None for a path."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    known = {plain(key): key for key in NAMED}
    return known.get(plain(name)) if isinstance(name, str) else None


def _checked(path: Path, md5: str) -> bytes:
    """The bytes of a file, if they are the published ones."""
    content = path.read_bytes()
    if (found := _md5(content)) != md5:
        raise ValueError(
            f"{path} is not the published file, or not all of it: its MD5 is {found}, expected "
            f"{md5}. Delete it and load again: a missing file is downloaded."
        )
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _fetch(file: str, md5: str, urls: list[str], places: list[Path]) -> bytes:
    """The checked bytes of a file that lies in one of the places, or is downloaded to the first.

    What arrives is checked before it is written, written under a temporary name, and renamed: the
    file is there whole or not at all.
    """
    for place in places:
        if (place / file).is_file():
            return _checked(place / file, md5)

    path = places[0] / file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # fails now, not after a long download
        content = _download_checked(path, md5, urls)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(
            f"{path} is not there yet and cannot be written: {error}. Pass as root a folder that "
            'you may write to and that has room. load("digits") needs none.'
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()
    return content


def _download_checked(path: Path, md5: str, urls: list[str]) -> bytes:
    """The bytes for path, from the first address that answers with the right ones."""
    reasons = []
    for url in urls:
        try:
            content = _download(url)
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"  {url}: {error}")
            continue
        if (found := _md5(content)) == md5:
            return content
        reasons.append(f"  {url}: sent {len(content)} bytes with MD5 {found}, expected {md5}")
    raise ConnectionError(
        f"could not download {path.name}:\n" + "\n".join(reasons) + f"\nPut it by hand into "
        f"{path.parent}, or name a folder that has it as root or in VIT_DATA. "
        'load("digits") needs no network.'
    )


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "python"})
    content, name = io.BytesIO(), url.rsplit("/", 1)[1]
    with urllib.request.urlopen(request, timeout=30) as answer:
        size = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(desc=name, total=size, unit="B", unit_scale=True, delay=2, leave=False) as bar:
            while chunk := answer.read(1 << 16):
                content.write(chunk)
                bar.update(len(chunk))
    return content.getvalue()
