"""helpers/data.py: data sets by name, splits, statistics, downloads. No network is touched."""

import gzip
import hashlib
import os
import pickle
import re
import shutil
import socket
import tempfile
import threading
from dataclasses import replace
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from helpers import data
from helpers.data import Split, load
from helpers.recipes import recipe
from helpers.scale.streaming import load_streaming


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No VIT_DATA, no network, and a default root that is not the repository's."""
    monkeypatch.delenv("VIT_DATA", raising=False)
    network(monkeypatch, {}, URLError("no network in tests"))
    monkeypatch.setattr(data, "DATA_FOLDER", tmp_path / "default_root")


def network(monkeypatch, files, error=None, where=""):
    """Stands in for download_url: breaks off with error at addresses that begin with where.

    files: {name: bytes} at the others. Returns a list of [address, MD5] of what is asked for.
    """
    asked = []

    def download(url, root, filename, md5):
        asked.append([url, md5])
        broken = error and url.startswith(where)
        Path(root, filename).write_bytes(b"half of it" if broken else files[filename])
        if broken:
            raise error

    monkeypatch.setattr(data, "download_url", download)
    return asked


def put(files, folder):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def keys(split):
    """Each image as bytes: no two of the digits are the same."""
    return [image.numpy().tobytes() for image in split.images]


def sizes(images):
    return [len(images.train), len(images.validation), len(images.test)]


def files_in(folder):
    """All files below folder, and folders that a download has left behind."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.name.startswith("."))
    return sorted(str(path.relative_to(folder)) for path in found)


def test_digits_are_scikit_learns_in_three_disjoint_stratified_splits():
    digits, source = load(), load_digits()
    assert digits.name == "digits" and digits.classes == tuple("0123456789") and not digits.flip
    assert sizes(digits) == [1293, 144, 360]  # ceil(1797 / 5) for test, ceil(1437 / 10)
    shades = np.round(source.images * 255 / 16).astype(np.uint8)
    of = {x.tobytes(): y for x, y in zip(shades, source.target, strict=True)}
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


@pytest.mark.parametrize(
    "wrong, right",
    [
        (dict(img_size=0), dict(img_size=1)),
        (dict(img_size=-8), dict(img_size=8)),
        (dict(split_seed=-1), dict(split_seed=0)),
        (dict(split_seed=10**20), dict(split_seed=4294967295)),
        (dict(split_seed=0.5), dict(split_seed=1)),
        (dict(validation=float("nan")), dict(validation=0)),
        (dict(test=1.0), dict(test=0.99)),
        (dict(test=-0.1), dict(test=0)),
    ],
)
def test_the_advice_about_a_number_helps(wrong, right):
    [name] = wrong
    words = {"img_size": "a whole number, 1 or more", "split_seed": "0 to 4294967295"}
    with pytest.raises(ValueError, match=f"{name} is .*it must be .*{words.get(name, 'below 1')}"):
        load(**wrong)
    load(**right)


def test_a_data_set_knows_what_it_was_loaded_as_and_how_it_was_cut(mnist, tmp_path):
    put(mnist, tmp_path / "MNIST" / "raw")
    digits = load("Digits", split_seed=3, test=0.5)
    assert digits.loaded_as == "digits"
    assert digits.cut == {"split_seed": 3, "validation": 0.1, "test": 0.5}
    whole = load("mnist", root=tmp_path, test=0.5)  # brings a test split of its own
    assert whole.loaded_as == "mnist" and whole.cut == {"split_seed": 0, "validation": 0.1}
    assert replace(digits, name="mine").loaded_as == "digits"


@pytest.mark.parametrize("name", ["mnist", "mnist_png", "digits_photos", "cifar10", "Digits"])
def test_a_folder_has_no_recipe_by_its_name(name, tmp_path):
    random = np.random.default_rng(0)
    for label in "0123456789ab"[: 3 if name == "mnist" else 2]:
        (tmp_path / name / label).mkdir(parents=True)
        for i in range(2):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / label / f"{i}.png")
    own = load(tmp_path / name, img_size=32), load_streaming(tmp_path / name, img_size=32)
    for photos in own:
        assert (photos.name, photos.loaded_as) == (name, None)
        for kind in ("small", "full"):
            sizes, training = recipe(photos, kind)
            assert (sizes["embed_dim"], sizes["depth"], training["epochs"]) == (128, 6, 50)
        with pytest.raises(ValueError, match=f"published for {name}.*choose small or full"):
            recipe(photos, "published")
        assert recipe(replace(photos, loaded_as="cifar10"), "published")[0]["depth"] == 9


def test_a_folder_that_is_called_like_a_data_set_is_said_to_be_another(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert load("digits").loaded_as == "digits" and capsys.readouterr().err == ""
    (tmp_path / "digits").mkdir()
    assert load("digits").loaded_as == "digits"
    assert capsys.readouterr().err == "read digits, not the folder ./digits\n"


def test_a_digest_stands_for_pixels_labels_and_order():
    digits, other = load().train, load(split_seed=1).train
    assert digits.digest() == load().train.digest() and len(digits.digest()) == 16
    n, images, labels = len(digits), digits.images.clone(), digits.labels.clone()
    images[-1, 0, 7, 7] ^= 1
    labels[0] += 1
    changed = [
        Split(images, digits.labels),
        Split(digits.images, labels),
        Split(digits.images.flip(0), digits.labels.flip(0)),
        Split(digits.images.view(n, 1, 4, 16), digits.labels),
        Split(digits.images[1:], digits.labels[1:]),
        Split(digits.images[:0], digits.labels[:0]),
        other,
    ]
    assert len({split.digest() for split in [digits, *changed]}) == 8
    strided = digits.images.transpose(2, 3).contiguous().transpose(2, 3)
    assert Split(strided, digits.labels).digest() == digits.digest()


def test_reader_gives_the_batches_asked_for():
    split = Split(torch.arange(20, dtype=torch.uint8).view(10, 2, 1, 1), torch.arange(10) % 3)
    read = split.reader(torch.device("cpu"), train=True, flip=True, workers=4)  # no use for these
    for numbers in ([[3, 1, 3], [9], [0, 2]], [[5, 4]]):
        batches = read([torch.tensor(batch) for batch in numbers], seed=7)
        for (images, labels), batch in zip(batches, numbers, strict=True):
            assert images.flatten(1).tolist() == [[2 * i, 2 * i + 1] for i in batch]
            assert labels.tolist() == [i % 3 for i in batch]


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


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def mnist(monkeypatch):
    """{file name: bytes}: 40 training and 10 test images of 28 x 28, in the official format."""

    def packed(array):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        return gzip.compress(head + array.tobytes())

    random, files = np.random.default_rng(0), {}
    for part, n in (("train", 40), ("t10k", 10)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        files[f"{part}-images-idx3-ubyte.gz"] = packed(images)
        files[f"{part}-labels-idx1-ubyte.gz"] = packed(np.arange(n, dtype=np.uint8) % 10)
    for table in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(table, "resources", [(k, md5(v)) for k, v in files.items()])
    return files


@pytest.fixture
def cifar10(monkeypatch, tmp_path_factory):
    """({file name: bytes} of the unpacked folder, the archive's bytes): 100 + 20 images."""
    known, files, random = datasets.CIFAR10, {}, np.random.default_rng(0)
    for table in ("train_list", "test_list"):
        names = [name for name, _ in getattr(known, table)]
        for name in names:
            pixels = random.integers(0, 256, (20, 3072), dtype=np.uint8)
            labels = (random.permutation(20) % 10).tolist()
            files[name] = pickle.dumps({"data": pixels, "labels": labels})
        monkeypatch.setattr(known, table, [[name, md5(files[name])] for name in names])
    files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    monkeypatch.setattr(known, "meta", known.meta | {"md5": md5(files["batches.meta"])})
    folder = tmp_path_factory.mktemp("packed")
    put(files, folder / known.base_folder)
    archive = shutil.make_archive(folder / "packed", "gztar", folder, known.base_folder)
    packed = Path(archive).read_bytes()
    monkeypatch.setattr(known, "tgz_md5", md5(packed))
    return files, packed


@pytest.mark.parametrize("table", [datasets.MNIST, datasets.FashionMNIST])
def test_mnist_equals_torchvisions_and_is_downloaded_once(table, mnist, tmp_path, monkeypatch):
    asked, name = network(monkeypatch, mnist), table.__name__
    ours = load(name)
    whole = load(name, validation=0, split_seed=1)  # neither has a say in the test split
    assert files_in(data.DATA_FOLDER) == sorted(f"{name}/raw/{file}" for file in mnist)
    assert asked == [[table.mirrors[0] + file, md5(content)] for file, content in mnist.items()]
    unpacked = {file.removesuffix(".gz"): gzip.decompress(mnist[file]) for file in mnist}
    put(unpacked, tmp_path / name / "raw")
    for split, train in [(whole.train, True), (whole.test, False), (ours.test, False)]:
        theirs = table(tmp_path, train=train)
        assert torch.equal(split.images[:, 0], theirs.data)
        assert torch.equal(split.labels, theirs.targets)
    assert sizes(ours) == [30, 10, 10] and len(ours.classes) == 10
    fashion = name == "FashionMNIST"
    assert ours.flip == fashion and ours.classes[9] == ("Ankle boot" if fashion else "9")


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
    network(monkeypatch, mnist)
    load("mnist", root=root)
    assert len(files_in(shelf)) == 3
    assert files_in(root) == ["MNIST/raw/t10k-labels-idx1-ubyte.gz"]


def test_cifar10_equals_torchvisions_wherever_it_lies(cifar10, tmp_path, monkeypatch):
    files, packed = cifar10
    put(files, tmp_path / "unpacked" / "cifar-10-batches-py")
    put({"cifar-10-python.tar.gz": packed}, tmp_path / "packed")
    theirs = [datasets.CIFAR10(tmp_path / "unpacked", train=train) for train in (True, False)]
    for shelf in ("unpacked", "packed"):
        monkeypatch.setenv("VIT_DATA", str(tmp_path / shelf))
        ours = load("cifar10", root=tmp_path / f"root of {shelf}", validation=0)
        assert ours.classes == tuple("abcdefghij") and ours.flip
        for split, their in zip((ours.train, ours.test), theirs, strict=True):
            assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), their.data)
            assert split.labels.tolist() == their.targets and split.images.is_contiguous()
        assert files_in(tmp_path / f"root of {shelf}") == []
    monkeypatch.delenv("VIT_DATA")
    asked = network(monkeypatch, {"cifar-10-python.tar.gz": packed})
    assert sizes(load("cifar10")) == sizes(load("cifar10")) == [90, 10, 20]
    assert asked == [[datasets.CIFAR10.url, md5(packed)]]
    assert files_in(data.DATA_FOLDER) == ["cifar-10-python.tar.gz"]


def test_wrong_files_are_named_and_kept_and_not_unpickled(mnist, cifar10, tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    label = "t10k-labels-idx1-ubyte.gz"
    put(mnist | {label: mnist[label][:20]}, tmp_path / "MNIST" / "raw")
    put(cifar10[0] | {"test_batch": pickle.dumps(Trap())}, tmp_path / "cifar-10-batches-py")
    before = files_in(tmp_path)
    for name, message in [("mnist", label), ("cifar10", "cifar-10-batches-py")]:
        with pytest.raises(
            ValueError, match=f"{message} is not .* published.*Move it elsewhere, load"
        ):
            load(name, root=tmp_path)
    assert files_in(tmp_path) == before
    (tmp_path / "MNIST" / "raw" / label).rename(tmp_path / label)  # what the error says
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "elsewhere")
    network(monkeypatch, mnist | {"cifar-10-python.tar.gz": cifar10[1]})
    assert sizes(load("mnist", root=tmp_path)) == [30, 10, 10]
    assert sizes(load("cifar10", root=tmp_path)) == [90, 10, 20]


@pytest.mark.parametrize("kind", [URLError, IncompleteRead, ConnectionResetError, RuntimeError])
def test_a_broken_download_is_a_connection_error(kind, mnist, tmp_path, monkeypatch):
    """It names the addresses; files that were whole stay; the second mirror is tried."""
    error, mirrors, raw = kind(b"in the middle"), datasets.MNIST.mirrors, tmp_path / "MNIST/raw"
    put(dict(list(mnist.items())[:1]), raw)
    network(monkeypatch, {}, error)
    with pytest.raises(ConnectionError) as caught:
        load("mnist", root=tmp_path)
    addresses = [mirror + "train-labels-idx1-ubyte.gz" for mirror in mirrors]
    for part in (*addresses, str(error), str(raw), 'load("digits") needs no network'):
        assert part in str(caught.value)
    put(mnist, tmp_path / "shelf" / "MNIST" / "raw")  # as it says: by hand, or another root
    assert sizes(load("mnist", root=tmp_path / "shelf")) == [30, 10, 10]
    shutil.copytree(tmp_path / "shelf" / "MNIST", tmp_path / "copy" / "MNIST")
    monkeypatch.setenv("VIT_DATA", str(tmp_path / "copy"))
    assert sizes(load("mnist", root=tmp_path)) == [30, 10, 10]
    monkeypatch.delenv("VIT_DATA")
    shutil.rmtree(tmp_path / "shelf")
    shutil.rmtree(tmp_path / "copy")
    assert files_in(tmp_path) == ["MNIST/raw/train-images-idx3-ubyte.gz"]
    network(monkeypatch, mnist, error, where=mirrors[0])
    assert sizes(load("mnist", root=tmp_path)) == [30, 10, 10]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_or_interrupt_leaves_nothing(error, cifar10, tmp_path, monkeypatch):
    def unpack_half(archive, folder):
        put({"data_batch_1": b"half of it"}, Path(folder, "cifar-10-batches-py"))
        raise error

    advice = "cifar.*cannot be written.*Pass as root" if isinstance(error, OSError) else None
    network(monkeypatch, {}, error)
    with pytest.raises(type(error), match=advice):
        load("cifar10", root=tmp_path)
    assert files_in(tmp_path) == []
    network(monkeypatch, {"cifar-10-python.tar.gz": cifar10[1]})
    monkeypatch.setattr(data, "extract_archive", unpack_half)
    with pytest.raises(type(error), match=advice and "cannot be unpacked.*TMPDIR"):
        load("cifar10", root=tmp_path)
    assert files_in(tmp_path) == ["cifar-10-python.tar.gz"]
    monkeypatch.setattr(data, "extract_archive", datasets.utils.extract_archive)
    (tmp_path / "room").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "room"))  # what the error says
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert sizes(load("cifar10", root=tmp_path)) == [90, 10, 20]


def test_a_root_that_cannot_be_written(mnist, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("I am no folder", encoding="utf-8")
    network(monkeypatch, mnist)
    with pytest.raises(OSError, match="train-images.*cannot be written.*Pass as root a folder"):
        load("mnist", root=tmp_path / "taken")
    assert sizes(load("mnist", root=tmp_path / "free")) == [30, 10, 10]
    assert load("digits", root=tmp_path / "taken").name == "digits"


# The real download_url, from a server on this machine


@pytest.mark.parametrize("answer", ["whole", "another file", "half", "silence"])
def test_a_real_download_is_whole_or_not_there_and_never_waits_for_ever(
    answer, monkeypatch, tmp_path
):
    content = bytes(range(256)) * 40
    sent = {"whole": content, "another file": b"<html>", "half": content[:99], "silence": b""}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            if answer == "silence":
                over.wait(5)
                return
            self.send_response(200)
            length = len(content if answer == "half" else sent[answer])
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(sent[answer])

        do_HEAD = do_GET  # torchvision asks for redirections first

        def log_message(self, *args):
            pass

    over, server = threading.Event(), ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(data, "download_url", datasets.utils.download_url)
    monkeypatch.setattr(data, "PATIENCE", 0.5)
    url = f"http://127.0.0.1:{server.server_port}/some.gz"
    try:
        if answer == "whole":
            path = data._published("A/some.gz", md5(content), [url], [tmp_path])
            assert path.read_bytes() == content and files_in(tmp_path) == ["A/some.gz"]
        else:
            why = ".*timed out" if answer == "silence" else ""
            with pytest.raises(ConnectionError, match=re.escape(url) + why):
                data._published("A/some.gz", md5(content), [url], [tmp_path])
            assert files_in(tmp_path) == [] and socket.getdefaulttimeout() is None
    finally:
        over.set()
        server.shutdown()
        server.server_close()
