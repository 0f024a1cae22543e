"""helpers/data.py: data sets by name, splits, statistics, downloads. Nothing here needs a network."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from helpers import data
from helpers.data import Split, load, mean_and_std

REAL = os.environ.get("VIT_DATA")
real_files = pytest.mark.skipif(not REAL, reason="VIT_DATA is not set: no real files to read")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No VIT_DATA, no network, and a default root that is not the repository's."""
    monkeypatch.delenv("VIT_DATA", raising=False)
    monkeypatch.setattr(data, "download_url", breaks_off(URLError("no network in tests")))
    monkeypatch.setattr(data, "DATA_FOLDER", tmp_path / "default_root")


def breaks_off(error):
    """A stand-in for torchvision's download_url that leaves half a file and raises error."""

    def download(url, root, filename, md5):
        Path(root, filename).write_bytes(b"half of it")
        raise error

    return download


def keys(split):
    """Each image as bytes: in the digits, the tiny MNIST and MNIST no two are the same."""
    return [image.numpy().tobytes() for image in split.images]


def sizes(images):
    return [len(images.train), len(images.validation), len(images.test)]


def files_in(folder):
    """All files below folder, and folders that a download has left behind."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.name.startswith("."))
    return sorted(str(path.relative_to(folder)) for path in found)


# Splits and statistics


def test_digits_are_scikit_learns_in_three_disjoint_stratified_splits():
    digits, source = load(), load_digits()
    assert digits.name == "digits" and digits.classes == tuple("0123456789") and not digits.flip
    assert sizes(digits) == [1293, 144, 360]  # ceil(1797 / 5) for test, ceil(1437 / 10)
    of = {}
    for image, label in zip(source.images, source.target, strict=True):
        of[np.round(image * 255 / 16).astype(np.uint8).tobytes()] = label
    splits = digits.train, digits.validation, digits.test
    for split in splits:
        assert split.images.shape == (len(split), 1, 8, 8) and split.image_shape == (1, 8, 8)
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.images.is_contiguous() and split.labels.is_contiguous()
        assert [of[key] for key in keys(split)] == split.labels.tolist()
    assert len(set(sum(map(keys, splits), []))) == len(of) == 1797
    train, validation, test = (torch.bincount(s.labels, minlength=10).double() for s in splits)
    assert ((test - 0.2 * (train + validation + test)).abs() < 1).all()
    assert ((validation - 0.1 * (train + validation)).abs() < 1).all()
    pixels = digits.train.images.double() / 255
    assert digits.mean == pytest.approx((pixels.mean().item(),), abs=1e-12)
    assert digits.std == pytest.approx((pixels.std(correction=0).item(),), abs=1e-12)


def test_mean_and_std_are_per_channel_and_a_channel_that_never_changes_has_std_1():
    images = torch.zeros(2, 3, 1, 2, dtype=torch.uint8)
    images[0, 0], images[:, 1, 0, 0], images[:, 2] = 255, 51, 102
    mean, std = mean_and_std(images)  # of 1 1 0 0, of 0.2 0 0.2 0, of 0.4 throughout
    assert mean == pytest.approx((0.5, 0.1, 0.4)) and std == pytest.approx((0.5, 0.1, 1))


def test_split_seed_alone_decides_and_its_splits_never_change():
    first = load(split_seed=3)
    torch.manual_seed(99)
    np.random.seed(99)
    again, other = load(split_seed=3), load(split_seed=4)
    for part in ("train", "validation", "test"):
        assert keys(getattr(first, part)) == keys(getattr(again, part))
        assert set(keys(getattr(first, part))) != set(keys(getattr(other, part)))
    place = {key: i for i, key in enumerate(keys(load(validation=0, test=0).train))}
    places = [place[key] for key in keys(load().test)]  # measured results hang on these
    assert (places[:5], sum(places)) == ([3, 7, 13, 19, 36], 313341)


def test_shares_and_img_size():
    assert sizes(load(validation=0.5, test=0)) == [898, 899, 0]
    resized = load(img_size=12)
    assert resized.train.images.shape == (1293, 1, 12, 12)
    assert resized.mean == pytest.approx(load().mean, abs=0.01)
    for wrong, message in [(dict(test=1), "test is 1"), (dict(validation=-0.1), "0 <= share < 1"),
                           (dict(img_size=0), "img_size is 0")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load(**wrong)


def test_reader_gives_the_batches_asked_for():
    split = Split(torch.arange(20, dtype=torch.uint8).view(10, 2, 1, 1), torch.arange(10) % 3)
    read = split.reader(torch.device("cpu"), train=True, flip=True, workers=4)  # no use for these
    for numbers in ([[3, 1, 3], [9], [0, 2]], [[5, 4]]):
        batches = list(read([torch.tensor(batch) for batch in numbers], seed=7))
        assert [images[:, 1, 0, 0].tolist() for images, _ in batches] == [
            [2 * i + 1 for i in batch] for batch in numbers
        ]
        assert [y.tolist() for _, y in batches] == [[i % 3 for i in batch] for batch in numbers]


# Names


def test_names_that_are_unknown_and_names_spelt_differently(tmp_path):
    (tmp_path / "my_photos").mkdir()
    for name in ("nonsense", "./digits", Path("digits")):
        with pytest.raises(FileNotFoundError, match="digits, mnist, fashion-mnist, cifar10"):
            load(name)
    for name, nearest in [("fashion-mnits", "fashion-mnist"), ("my_fotos", "my_photos")]:
        with pytest.raises(FileNotFoundError, match=f"mean '{nearest}'"):
            load(name, root=tmp_path)
    assert load("Digits").name == "digits"
    with pytest.raises(ConnectionError, match="FashionMNIST/raw"):
        load("Fashion_MNIST")


# A tiny MNIST and a tiny CIFAR-10 whose checksums stand in torchvision's tables


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def mnist(monkeypatch):
    """{file name: bytes}: 40 training and 10 test images of 28 x 28, in the official format."""
    random = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 40), ("t10k", 10)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        head = bytes([0, 0, 8, 3]) + np.array([n, 28, 28], ">u4").tobytes()
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(head + images.tobytes())
        head = bytes([0, 0, 8, 1]) + np.array([n], ">u4").tobytes()
        labels = np.arange(n, dtype=np.uint8) % 10
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(head + labels.tobytes())
    monkeypatch.setattr(datasets.MNIST, "resources", [(k, md5(v)) for k, v in files.items()])
    return files


@pytest.fixture
def cifar10(monkeypatch):
    """({file name: bytes} of the unpacked folder, the archive's bytes): 100 + 20 images."""
    random = np.random.default_rng(0)
    known, files = datasets.CIFAR10, {}
    for table in ("train_list", "test_list"):
        names = [name for name, _ in getattr(known, table)]
        for name in names:
            pixels = random.integers(0, 256, (20, 3072), dtype=np.uint8)
            labels = random.permutation(20) % 10
            files[name] = pickle.dumps({"data": pixels, "labels": labels.tolist()})
        monkeypatch.setattr(known, table, [[name, md5(files[name])] for name in names])
    files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    monkeypatch.setattr(known, "meta", known.meta | {"md5": md5(files["batches.meta"])})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{known.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(known, "tgz_md5", md5(packed.getvalue()))
    return files, packed.getvalue()


def serve(monkeypatch, files):
    """Let files be downloaded from now on; returns a list of the addresses that are asked for."""
    asked = []

    def download(url, root, filename, md5):
        asked.append(url)
        Path(root, filename).write_bytes(files[url.rsplit("/", 1)[1]])

    monkeypatch.setattr(data, "download_url", download)
    return asked


def put(files, folder):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


# Files that are found


def test_mnist_equals_torchvisions_and_is_downloaded_once(mnist, tmp_path, monkeypatch):
    asked = serve(monkeypatch, mnist)
    ours = load("mnist")
    assert files_in(data.DATA_FOLDER) == sorted(f"MNIST/raw/{name}" for name in mnist)
    assert asked == [datasets.MNIST.mirrors[0] + name for name in mnist]
    load("mnist")
    assert len(asked) == 4
    unpacked = {name.removesuffix(".gz"): gzip.decompress(mnist[name]) for name in mnist}
    put(unpacked, tmp_path / "MNIST" / "raw")
    theirs = [datasets.MNIST(tmp_path, train=train) for train in (True, False)]
    assert sizes(ours) == [30, 10, 10] and ours.classes == tuple("0123456789") and not ours.flip
    assert torch.equal(ours.test.images[:, 0], theirs[1].data)
    assert torch.equal(ours.test.labels, theirs[1].targets)
    of = {i.numpy().tobytes(): y.item() for i, y in zip(theirs[0].data, theirs[0].targets)}  # noqa: B905
    for split in (ours.train, ours.validation):
        assert [of.pop(key) for key in keys(split)] == split.labels.tolist()
    assert not of


def test_vit_data_is_read_and_never_written_to(mnist, tmp_path, monkeypatch):
    """A file that it lacks goes to root; where it has them all, nothing is made anywhere."""
    shelf, root = tmp_path / "shelf", tmp_path / "root"
    put(mnist, shelf / "MNIST" / "raw")
    monkeypatch.setenv("VIT_DATA", str(shelf))
    with monkeypatch.context() as patch:
        for function in ("mkdir", "unlink", "rename", "replace", "rmdir"):
            patch.setattr(os, function, lambda *_, **__: pytest.fail("nothing is to be written"))
        assert sizes(load("mnist", root=root)) == [30, 10, 10]
    assert files_in(tmp_path) == sorted(f"shelf/MNIST/raw/{name}" for name in mnist)
    (shelf / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    serve(monkeypatch, mnist)
    load("mnist", root=root)
    assert len(files_in(shelf)) == 3
    assert files_in(root) == ["MNIST/raw/t10k-labels-idx1-ubyte.gz"]


def test_cifar10_equals_torchvisions_wherever_it_lies(cifar10, tmp_path, monkeypatch):
    files, packed = cifar10
    put(files, tmp_path / "unpacked" / "cifar-10-batches-py")
    put({"cifar-10-python.tar.gz": packed}, tmp_path / "packed")
    theirs = [datasets.CIFAR10(tmp_path / "unpacked", train=train) for train in (True, False)]
    unpacked = [f"cifar-10-batches-py/{name}" for name in sorted(files)]
    for shelf, expected in [("unpacked", []), ("packed", unpacked)]:
        monkeypatch.setenv("VIT_DATA", str(tmp_path / shelf))
        ours = load("cifar10", root=tmp_path / f"root of {shelf}", validation=0)
        assert ours.classes == tuple("abcdefghij") and ours.flip
        for split, their in zip((ours.train, ours.test), theirs, strict=True):
            assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), their.data)
            assert split.labels.tolist() == their.targets and split.images.is_contiguous()
        assert files_in(tmp_path / f"root of {shelf}") == expected
    monkeypatch.delenv("VIT_DATA")
    asked = serve(monkeypatch, {"cifar-10-python.tar.gz": packed})
    assert sizes(load("cifar10")) == sizes(load("cifar10")) == [90, 10, 20]
    assert asked == [datasets.CIFAR10.url]
    assert files_in(data.DATA_FOLDER) == [*unpacked, "cifar-10-python.tar.gz"]


def test_cifar10_unpickles_only_what_is_known(cifar10, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    put(cifar10[0] | {"test_batch": pickle.dumps(Trap())}, tmp_path / "cifar-10-batches-py")
    with pytest.raises(ValueError, match="cifar-10-batches-py is not as published.*Delete it"):
        load("cifar10", root=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_wrong_file_is_named_and_kept(mnist, tmp_path, monkeypatch):
    put(mnist, tmp_path / "MNIST" / "raw")
    bad = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    bad.write_bytes(bad.read_bytes()[:20])
    asked = serve(monkeypatch, mnist)
    with pytest.raises(ValueError, match="Delete it and load again") as caught:
        load("mnist", root=tmp_path)
    assert str(bad) in str(caught.value)
    assert len(bad.read_bytes()) == 20 and not asked  # not ours to delete
    bad.unlink()
    assert sizes(load("mnist", root=tmp_path)) == [30, 10, 10] and len(asked) == 1


# Downloads that fail: the name, the address and what to do are told, and nothing is left


FAILURES = [URLError("offline"), IncompleteRead(b""), ConnectionResetError(104, "reset by peer"),
            TimeoutError("slow"), RuntimeError("File not found or corrupted.")]  # fmt: skip


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_broken_download_is_a_connection_error_and_leaves_nothing(
    error, mnist, tmp_path, monkeypatch
):
    raw = tmp_path / "MNIST" / "raw"
    put(dict(list(mnist.items())[:1]), raw)
    monkeypatch.setattr(data, "download_url", breaks_off(error))
    with pytest.raises(ConnectionError) as caught:
        load("mnist", root=tmp_path)
    addresses = [mirror + "train-labels-idx1-ubyte.gz" for mirror in datasets.MNIST.mirrors]
    for part in (*addresses, str(error), str(raw), 'load("digits") needs no network'):
        assert part in str(caught.value)
    assert files_in(tmp_path) == ["MNIST/raw/train-images-idx3-ubyte.gz"]
    serve(monkeypatch, mnist)  # the network is back
    assert sizes(load("mnist", root=tmp_path)) == [30, 10, 10]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_or_interrupt_leaves_nothing(error, cifar10, tmp_path, monkeypatch):
    def unpack_half(archive, folder):
        put({"data_batch_1": b"half of it"}, Path(folder, "cifar-10-batches-py"))
        raise error

    advice = "cifar.*cannot be written.*Pass as root a folder" if isinstance(error, OSError) else ""
    monkeypatch.setattr(data, "download_url", breaks_off(error))
    with pytest.raises(type(error), match=advice):
        load("cifar10", root=tmp_path)
    assert files_in(tmp_path) == []
    serve(monkeypatch, {"cifar-10-python.tar.gz": cifar10[1]})
    monkeypatch.setattr(data, "extract_archive", unpack_half)
    with pytest.raises(type(error), match=advice):
        load("cifar10", root=tmp_path)
    assert files_in(tmp_path) == ["cifar-10-python.tar.gz"]


def test_root_that_cannot_be_written_to(mnist, tmp_path, monkeypatch):
    (tmp_path / "root").write_text("I am no folder")
    asked = serve(monkeypatch, mnist)
    with pytest.raises(OSError, match=r"train-images.*cannot be written.*Pass as root a folder"):
        load("mnist", root=tmp_path / "root")
    assert not asked


def test_torchvisions_download_from_the_second_mirror(mnist, tmp_path, monkeypatch):
    """The real download_url, from file:// addresses: the first has other bytes, as a log-in has."""
    monkeypatch.undo()
    monkeypatch.delenv("VIT_DATA", raising=False)
    mirrors = [tmp_path / "first", tmp_path / "second"]
    put(dict.fromkeys(mnist, b"<html>log in first</html>"), mirrors[0])
    put(mnist, mirrors[1])
    table = [(name, md5(content)) for name, content in mnist.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", table)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{path.as_uri()}/" for path in mirrors])
    assert sizes(load("mnist", root=tmp_path / "root")) == [30, 10, 10]
    for name, content in mnist.items():
        assert (tmp_path / "root" / "MNIST" / "raw" / name).read_bytes() == content
    assert len(files_in(tmp_path / "root")) == 4


# Real files


@real_files
def test_official_test_split_is_untouched(monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_DATA", REAL)
    first, other = (load("fashion-mnist", root=tmp_path, split_seed=seed) for seed in (0, 1))
    assert sizes(first) == [54000, 6000, 10000] and first.classes[9] == "Ankle boot" and first.flip
    raw = Path(REAL, "FashionMNIST", "raw", "t10k-images-idx3-ubyte.gz").read_bytes()
    official = gzip.decompress(raw)[16:]
    assert b"".join(keys(first.test)) == b"".join(keys(other.test)) == official
    assert torch.bincount(first.validation.labels).tolist() == [600] * 10
    assert not torch.equal(first.validation.images, other.validation.images)
    assert not any(tmp_path.iterdir())
