"""helpers/data.py: files that are found, checked, downloaded. A download is always a stand-in."""

import gzip
import hashlib
import http.client
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from helpers import data
from helpers.data import load
from tests.test_data import alone, keys  # noqa: F401 (alone acts by being here)


def md5(content):
    return hashlib.md5(content).hexdigest()


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# A tiny MNIST whose checksums stand in torchvision's table


@pytest.fixture
def tiny_mnist(monkeypatch):
    """{file name: bytes}: 40 training and 10 test images of 28 x 28, in the official format."""
    random = np.random.default_rng(0)
    contents = {}
    for part, n in (("train", 40), ("t10k", 10)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        head = bytes([0, 0, 8, 3]) + np.array([n, 28, 28], ">u4").tobytes()
        contents[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(head + images.tobytes())
        head = bytes([0, 0, 8, 1]) + np.array([n], ">u4").tobytes()
        contents[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(head + labels.tobytes())
    table = [(name, md5(content)) for name, content in contents.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", table)
    return contents


@pytest.fixture
def served(tiny_mnist, monkeypatch):
    """A network that has the tiny MNIST, and a list of what was asked of it."""
    asked = []

    def download(url):
        asked.append(url)
        return tiny_mnist[url.rsplit("/", 1)[1]]

    monkeypatch.setattr(data, "_download", download)
    return asked


def put(contents, root):
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name, content in contents.items():
        (root / "MNIST" / "raw" / name).write_bytes(content)
    return root


def test_download_lands_in_root_once(served, tiny_mnist, tmp_path):
    mnist = load("mnist", root=tmp_path)
    assert [len(mnist.train), len(mnist.validation), len(mnist.test)] == [30, 10, 10]
    assert mnist.test.labels.tolist() == list(range(10))
    raw = gzip.decompress(tiny_mnist["t10k-images-idx3-ubyte.gz"])
    assert b"".join(keys(mnist.test)) == raw[16:]
    assert files_in(tmp_path) == sorted(f"MNIST/raw/{name}" for name in tiny_mnist)
    assert len(served) == 4
    load("mnist", root=tmp_path)
    assert len(served) == 4


def test_default_root(served):
    load("mnist")
    assert len(files_in(data.DATA_FOLDER)) == 4


def test_files_in_vit_data_are_used_and_nothing_is_written(tiny_mnist, tmp_path, monkeypatch):
    put(tiny_mnist, tmp_path / "shelf")
    monkeypatch.setenv("VIT_DATA", str(tmp_path / "shelf"))
    assert len(load("mnist", root=tmp_path / "root").test) == 10
    assert not (tmp_path / "root").exists()
    assert len(files_in(tmp_path)) == 4


def test_missing_files_never_go_to_vit_data(served, tiny_mnist, tmp_path, monkeypatch):
    put(dict(list(tiny_mnist.items())[:3]), tmp_path / "shelf")
    monkeypatch.setenv("VIT_DATA", str(tmp_path / "shelf"))
    load("mnist", root=tmp_path / "root")
    assert len(files_in(tmp_path / "shelf")) == 3
    assert files_in(tmp_path / "root") == ["MNIST/raw/t10k-labels-idx1-ubyte.gz"]


def test_read_only_root_with_files(tiny_mnist, tmp_path, monkeypatch):
    put(tiny_mnist, tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for method in ("mkdir", "touch", "write_bytes", "unlink"):
        monkeypatch.setattr(Path, method, refuse)
    monkeypatch.setattr(os, "replace", refuse)
    assert len(load("mnist", root=tmp_path).test) == 10


def test_read_only_root_without_files(served, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OSError, match=r"train-images.*cannot be written.*Pass as root a folder"):
        load("mnist", root=tmp_path)
    assert not served and files_in(tmp_path) == []


def test_root_that_is_a_file(served, tmp_path):
    (tmp_path / "root").write_text("I am no folder")
    with pytest.raises(OSError, match="cannot be written"):
        load("mnist", root=tmp_path / "root")
    assert not served


def test_offline(tmp_path):
    with pytest.raises(ConnectionError) as caught:
        load("mnist", root=tmp_path)
    for part in ("train-images-idx3-ubyte.gz", *datasets.MNIST.mirrors, "no network in tests"):
        assert part in str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)  # where to put it by hand
    assert 'load("digits") needs no network' in str(caught.value)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("failure", ["cut", "other", "breaks off"])
def test_broken_download_leaves_nothing(failure, served, tiny_mnist, tmp_path, monkeypatch):
    def download(url):
        content = tiny_mnist[url.rsplit("/", 1)[1]]
        if "labels" not in url:
            return content
        if failure == "breaks off":
            raise http.client.IncompleteRead(content[:10])
        return content[:-10] if failure == "cut" else b"<html>log in first</html>"

    whole = data._download
    monkeypatch.setattr(data, "_download", download)
    with pytest.raises(ConnectionError, match="train-labels-idx1-ubyte.gz") as caught:
        load("mnist", root=tmp_path)
    if failure != "breaks off":
        assert md5(tiny_mnist["train-labels-idx1-ubyte.gz"]) in str(caught.value)
    assert files_in(tmp_path) == ["MNIST/raw/train-images-idx3-ubyte.gz"]

    monkeypatch.setattr(data, "_download", whole)  # the network is back
    assert len(load("mnist", root=tmp_path).test) == 10


def test_second_mirror_is_tried(tiny_mnist, tmp_path, monkeypatch):
    def download(url):
        if url.startswith(datasets.MNIST.mirrors[0]):
            return b"sorry"
        return tiny_mnist[url.rsplit("/", 1)[1]]

    monkeypatch.setattr(data, "_download", download)
    assert len(load("mnist", root=tmp_path).test) == 10


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_broken_writing_leaves_nothing(error, served, tmp_path, monkeypatch):
    def write_half(self, content):
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", write_half)
    expected = OSError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is OSError else None):
        load("mnist", root=tmp_path)
    assert files_in(tmp_path) == []


def test_wrong_file_is_named_and_kept(served, tiny_mnist, tmp_path):
    put(tiny_mnist, tmp_path)
    bad = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:20])
    with pytest.raises(ValueError, match="Delete it and load again") as caught:
        load("mnist", root=tmp_path)
    for part in (str(bad), md5(whole), md5(whole[:20])):
        assert part in str(caught.value)
    assert bad.read_bytes() == whole[:20] and not served  # not ours to delete
    bad.unlink()
    assert len(load("mnist", root=tmp_path).test) == 10 and len(served) == 1


def test_download_reads_to_the_end(monkeypatch, tmp_path):
    """The real function, on a stand-in for what urlopen returns."""
    monkeypatch.undo()
    content = bytes(range(256)) * 1000

    class Answer(io.BytesIO):
        headers = {"Content-Length": str(len(content))}

    monkeypatch.setattr(data.urllib.request, "urlopen", lambda *a, **k: Answer(content))
    assert data._download("https://example.org/some.gz") == content


# CIFAR-10, tiny, as torchvision unpacks it and as the archive


@pytest.fixture
def tiny_cifar10(monkeypatch):
    """{path: bytes} of the unpacked files, and the archive's bytes."""
    random = np.random.default_rng(0)
    known, contents = datasets.CIFAR10, {}
    lists = {"train_list": [f"data_batch_{i}" for i in range(1, 6)], "test_list": ["test_batch"]}
    for attribute, names in lists.items():
        for name in names:
            pixels = random.integers(0, 256, (20, 3072), dtype=np.uint8)
            contents[name] = pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(20)]})
        monkeypatch.setattr(known, attribute, [[name, md5(contents[name])] for name in names])
    contents["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(contents["batches.meta"])}
    monkeypatch.setattr(known, "meta", meta)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in sorted(contents.items(), reverse=True):  # in no useful order
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(known, "tgz_md5", md5(packed.getvalue()))
    return contents, packed.getvalue()


def unpack(contents, root):
    (root / "cifar-10-batches-py").mkdir()
    for name, content in contents.items():
        (root / "cifar-10-batches-py" / name).write_bytes(content)


def test_cifar10_equals_torchvisions(tiny_cifar10, tmp_path, monkeypatch):
    contents, packed = tiny_cifar10
    monkeypatch.setattr(data, "_download", lambda url: packed)
    (tmp_path / "unpacked").mkdir()
    unpack(contents, tmp_path / "unpacked")
    theirs = datasets.CIFAR10(tmp_path / "unpacked", train=False)
    for place in ("unpacked", "archive"):
        ours = load("cifar10", root=tmp_path / place)
        assert [len(ours.train), len(ours.validation), len(ours.test)] == [90, 10, 20]
        assert np.array_equal(ours.test.images.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert ours.test.labels.tolist() == theirs.targets and ours.classes == tuple("abcdefghij")
    assert files_in(tmp_path / "archive") == ["cifar-10-python.tar.gz"]


def test_cifar10_unpickles_only_what_is_known(tiny_cifar10, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    contents, _ = tiny_cifar10
    unpack(contents | {"test_batch": pickle.dumps(Trap())}, tmp_path)
    with pytest.raises(ValueError, match="test_batch is not the published file"):
        load("cifar10", root=tmp_path)
    assert not (tmp_path / "sprung").exists()
