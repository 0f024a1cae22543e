"""helpers/scale/streaming.py: folders of pictures that are decoded when they are needed."""

import multiprocessing
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data import load
from helpers.folders import decoding
from helpers.scale import streaming
from helpers.scale.streaming import FileSplit, load_streaming
from tests.notebook_rules import ROOT
from tests.test_data import alone  # noqa: F401 (acts by being here)

sys.path.insert(0, str(ROOT / "benchmarks"))
import streaming as benchmark

CPU = torch.device("cpu")
S = 24


def noise(seed, size):
    """A smooth random picture of size (W, H): neighbours alike, as in a photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def photographs(root, n=10):
    """n small JPEGs, wide and tall, of each of two classes."""
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            size = (60 + i, 40) if i % 2 else (40, 52 + i)
            noise(100 * k + i, size).save(root / name / f"{i:02}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """20 files, so labels 0 and 1."""
    root = photographs(tmp_path_factory.mktemp("photographs"))
    return load_streaming(root, img_size=S, validation=0, test=0).train


def in_batches(numbers, size):
    return list(torch.tensor(numbers).split(size))


def together(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def images(split, numbers, seed=0, size=100, **options):
    """The pictures of numbers, decoded here or by workers in batches of size."""
    return together(split.reader(CPU, **options)(in_batches(numbers, size), seed))[0]


@pytest.mark.parametrize("held_out", [(), ("val",), ("test", "val")])
def test_same_splits_classes_and_numbers_as_load(held_out, tmp_path, monkeypatch):
    """Found by a relative VIT_DATA; the working directory is another one afterwards."""
    place = tmp_path / "shelf" / "photos"
    photographs(place / "train" if held_out else place)
    for name in held_out:
        photographs(place / name / "cat", n=1)  # cat/cat and cat/dog: both are of class cat
        photographs(place / name, n=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_DATA", "shelf")
    options = dict(img_size=S, split_seed=3, validation=0.2, test=0.3)
    whole, streamed = load("photos", **options), load_streaming("photos", **options)
    monkeypatch.chdir("/")
    for field in ("name", "classes", "mean", "std", "flip"):
        assert getattr(streamed, field) == getattr(whole, field)
    for part in ("train", "validation", "test"):
        expected, files = getattr(whole, part), getattr(streamed, part)
        assert len(files) == len(files.paths) == len(expected) > 0
        assert files.labels.dtype == torch.int64 and torch.equal(files.labels, expected.labels)
        assert files.image_shape == expected.image_shape == (3, S, S)
        for path, image in zip(files.paths, expected.images, strict=True):
            with Image.open(path) as picture:
                assert np.array_equal(decoding.pixels(picture, S), image)


def test_only_other_endings_and_the_sample_are_opened(tmp_path, monkeypatch, capsys):
    photographs(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("I am a shopping list", encoding="utf-8")
    (tmp_path / "dog" / "00.jpg").rename(tmp_path / "dog" / "no ending")
    opened, whole = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(Path(path)) or whole(path))
    data = load_streaming(tmp_path, img_size=S, validation=0, test=0)
    paths = list(data.train.paths)
    assert len(paths) == 20 and paths[-1].name == "no ending"
    assert opened == [tmp_path / "cat" / "notes.txt", paths[-1], *paths]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped, not a whole") and "notes.txt" in line
    opened.clear()
    streaming.sampled_mean_and_std(data.train, limit=3)  # at even distances, so of every class
    assert opened == [paths[i] for i in (0, 10, 19)]


def test_bad_input_is_refused_as_by_load(tmp_path):
    (tmp_path / "photos.npz").touch()
    for name in ("digits", "FashionMNIST", str(tmp_path / "photos.npz")):
        with pytest.raises(ValueError, match=f"'{name}' is read into memory.*helpers.data.load"):
            load_streaming(name)
    photographs(tmp_path / "good")
    (tmp_path / "empty" / "eel").mkdir(parents=True)
    wrong = [("good", dict(img_size=0)), ("good", dict(validation=1)), ("empty", {}), ("god", {}),
             ("good", dict(split_seed=-1)), ("good", dict(split_seed=10**20))]  # fmt: skip
    for name, options in wrong:
        errors = []
        for read in (load, load_streaming):
            with pytest.raises((ValueError, FileNotFoundError)) as caught:
                read(tmp_path / name, **({"img_size": S} | options))
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]


def test_images_depend_on_seed_and_number_alone(split):
    """Not on workers, batches, order, or the state of the caller's generator: equal to the bit."""
    everything = torch.arange(20)
    [(expected, labels)] = split.reader(CPU, crop=0.08)([everything], 5)
    assert expected.dtype == torch.uint8 and expected.shape == (20, 3, S, S)
    assert labels.dtype == torch.int64 and torch.equal(labels, split.labels)
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for workers, numbers, size in [(0, shuffled, 7), (1, everything, 3), (2, shuffled, 4)]:
        torch.manual_seed(workers)
        before = torch.get_rng_state()
        read = split.reader(CPU, crop=0.08, workers=workers)
        got, labels = together(read(numbers.split(size), 5))
        assert torch.equal(got, expected[numbers]) and torch.equal(labels, split.labels[numbers])
        assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is left alone


def test_another_seed_and_another_number_change_an_image_differently(split):
    first, second = (images(split, range(20), seed, crop=0.08) for seed in (0, 1))
    assert (first != second).flatten(1).any(1).all()
    same = FileSplit(split.paths[:1] * 20, split.labels[:1].repeat(20), S)
    twenty = images(same, range(20), crop=0.08)
    assert len(twenty.unique(dim=0)) == 20
    swapped = images(same, [0], seed=1, crop=0.08)[0]  # against seed 0, number 1
    assert not torch.equal(swapped, twenty[1])


def ramp(W, H):
    """Red grows from left to right, green from top to bottom, blue is 255 throughout."""
    picture = np.full((H, W, 3), 255, dtype=np.uint8)
    picture[..., 0] = np.linspace(0, 255, W)
    picture[..., 1] = np.linspace(0, 255, H)[:, None]
    return Image.fromarray(picture)


def test_without_a_crop_it_is_the_image_that_load_reads(tmp_path):
    """Upright, the shorter side fitted, the centre cut out; whatever the seed."""
    turned = Image.Exif()
    turned[0x0112] = 6  # stored turned to the left
    ramp(256, 128).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turned)
    path = tmp_path / "turned.png"
    got = images(FileSplit((path,), torch.tensor([0]), 112), [0], seed=9)
    with Image.open(path) as picture:
        assert torch.equal(got[0], torch.from_numpy(decoding.pixels(picture, 112)))
    assert got[0, 0, 0, 0] > 50  # the left quarter is cut off: red is not 0


def test_training_crops(tmp_path):
    ramp(96, 96).save(tmp_path / "ramp.png")
    many = FileSplit((tmp_path / "ramp.png",) * 400, torch.zeros(400, dtype=torch.int64), S)
    for crop, least in ((0.08, 0.24), (0.7, 0.7)):  # crops may be 3 : 4
        got = images(many, range(400), crop=crop).float()
        red = got[:, 0, S // 2]  # (400, S): the middle row
        assert (got[:, 2] == 255).all() and (red.diff() >= 0).all()  # no mirror, no other colour
        seen = (red[:, -1] - red[:, 0]) / 255  # share of the width that a crop shows
        assert least - 0.06 < seen.min() < least + 0.06 and seen.max() > 0.9


def test_large_jpegs_are_decoded_no_larger_than_needed(tmp_path, monkeypatch):
    noise(0, (1600, 1200)).save(tmp_path / "large.jpg")
    sizes, whole = [], decoding.upright
    for module in (streaming, decoding):
        monkeypatch.setattr(module, "upright", lambda x: sizes.append(x.size) or whole(x))
    for side in (24, 96):
        for crop in (0.08, 0):
            one = FileSplit((tmp_path / "large.jpg",), torch.tensor([0]), side)
            assert images(one, [0], crop=crop).shape == (1, 3, side, side)
    assert sizes == [(200, 150), (200, 150), (800, 600), (400, 300)]


def test_workers_stay_from_one_read_to_the_next_and_end_with_the_reader(split):
    """Also when a read stops early: what was asked for in vain is not mixed up with the next."""

    def workers():
        return {child.pid for child in multiprocessing.active_children()} - before

    before, seen = {child.pid for child in multiprocessing.active_children()}, []
    read = split.reader(CPU, crop=0.08, workers=2)
    for seed, stop in enumerate([None, None, "closed", "left open"]):
        if stop:
            stopped = read(in_batches(range(20), 2), 9)
            next(stopped)
            if stop == "closed":
                stopped.close()
        numbers = torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()
        got, labels = together(read(in_batches(numbers, 3), seed))
        assert torch.equal(got, images(split, numbers, seed, crop=0.08))
        assert torch.equal(labels, split.labels[numbers])
        seen.append(workers())
    assert len(seen[0]) == 2 and seen == seen[:1] * 4
    del read, stopped
    assert not workers()


def test_a_broken_picture_is_named_at_its_batch(tmp_path):
    photographs(tmp_path)
    data = load_streaming(tmp_path, img_size=S, validation=0, test=0)
    bad = data.train.paths[5]
    bad.write_bytes(bad.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"05.jpg.*load\(folder, img_size=8\)"):
        load_streaming(tmp_path, img_size=S)  # it is in the sample for mean and std
    for workers in (0, 2):
        read = data.train.reader(CPU, crop=0.08, workers=workers)
        batches = read(in_batches(range(20), 4), 0)
        assert len(next(batches)[0]) == 4
        with pytest.raises(ValueError, match="not a whole picture.*Repair it or move it") as caught:
            next(batches)
        assert str(bad) in str(caught.value) and "Traceback" not in str(caught.value)
        assert len(together(read(in_batches(range(6, 20), 4), 0))[0]) == 14  # it reads on


@pytest.mark.parametrize("what, workers", [("picture", 0), ("folder", 1), ("link", 0)])
def test_what_has_vanished_is_named_at_its_batch(what, workers, tmp_path):
    root, options = photographs(tmp_path / "photos"), dict(img_size=S, validation=0, test=0)
    (root / "dog" / "04.jpg").rename(tmp_path / "beside.jpg")
    (root / "dog" / "04.jpg").symlink_to(tmp_path / "beside.jpg")
    data = load_streaming(root, **options)
    gone = {"picture": root / "dog/03.jpg", "folder": root / "dog", "link": tmp_path / "beside.jpg"}
    gone[what].rename(tmp_path / "away")
    batches = data.train.reader(CPU, workers=workers)(in_batches(range(20), 10))
    assert len(next(batches)[0]) == 10
    with pytest.raises(ValueError, match=f"{root / 'dog'}.*Put it back, or.*link.*load the fold"):
        next(batches)
    if what == "link":
        (root / "dog" / "04.jpg").unlink()
    left = {"picture": 19, "folder": None, "link": 19}[what]
    if left is None:
        (tmp_path / "away").rename(gone[what])
    again = load_streaming(root, **options).train
    assert len(images(again, range(len(again)))) == (left or 20)


def test_what_is_transparent_becomes_white_where_pictures_are_streamed(tmp_path):
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((200, 10, 0, 255), (0, 0, 16, 32))
    picture.save(tmp_path / "half.png")
    one = FileSplit((tmp_path / "half.png",), torch.tensor([0]), S)
    for options in ({}, {"crop": 1.0}):
        [image] = images(one, [0], **options)
        assert image[:, 2, 2].tolist() == [200, 10, 0] and image[:, 2, -3].tolist() == [255] * 3


def test_a_digest_stands_for_names_labels_and_size_wherever_the_folder_lies(tmp_path):
    first = load_streaming(photographs(tmp_path / "photos"), img_size=S)
    digests = [split.digest() for split in (first.train, first.validation, first.test)]
    assert len(set(digests)) == 3 and {len(digest) for digest in digests} == {16}
    (tmp_path / "photos").rename(tmp_path / "moved")
    moved = load_streaming(tmp_path / "moved", img_size=S)
    assert [split.digest() for split in (moved.train, moved.validation, moved.test)] == digests
    train, paths = moved.train, list(moved.train.paths)
    renamed = paths[0].with_name("another.jpg")
    for changed in (
        replace(train, img_size=S + 1),
        replace(train, labels=1 - train.labels),
        replace(train, paths=(renamed, *paths[1:])),
        replace(train, paths=tuple(paths[::-1])),
        load_streaming(tmp_path / "moved", img_size=S, split_seed=1).train,
        FileSplit((), torch.zeros(0, dtype=torch.int64), S),
    ):
        assert changed.digest() not in digests


def test_the_advice_of_errors_helps(tmp_path, monkeypatch, capsys):
    root, options = photographs(tmp_path / "photos"), dict(img_size=S, validation=0, test=0)
    with pytest.raises(ValueError, match="use helpers.data.load, without streaming.*./digits"):
        load_streaming("digits")
    assert load("digits").loaded_as == "digits"
    photographs(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load_streaming("./digits", **options).loaded_as is None
    bad = [root / "cat" / "03.jpg", root / "dog" / "04.jpg"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(ValueError, match="03.jpg.*move it elsewhere.*load.folder, img_size=8"):
        load_streaming(root, **options)
    load(root, img_size=8)  # names them all, as the error says
    errors = capsys.readouterr().err
    assert all(str(path) in errors for path in bad)
    for path in bad:
        path.rename(tmp_path / path.name)
    assert len(load_streaming(root, **options).train) == 18


def test_workers_where_there_is_no_file_to_import(split):
    """As in a notebook; and nothing may be written to stderr."""
    code = f"""
import torch
from helpers.scale.streaming import load_streaming
data = load_streaming({str(split.paths[0].parents[1])!r}, img_size={S}, validation=0, test=0)
read = data.train.reader(torch.device("cpu"), crop=0.08, workers=1)
[(images, labels)] = read([torch.tensor([0, 7])], 3)
print(images.flatten().tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    expected = images(split, [0, 7], seed=3, crop=0.08).flatten().tolist()
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_images_per_second_leaves_out_the_start_of_the_workers(monkeypatch):
    """An hour for the first batch of each of two workers, then a tenth of a second a picture."""

    def read(numbers):
        for k, batch in enumerate(numbers):
            now[0] += 3600 if k < 2 else 0.1 * len(batch)
            yield batch, batch

    now = [0.0]
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(FileSplit, "reader", lambda *_, **options: read)
    split = FileSplit((), torch.zeros(20), S)
    speed = benchmark.images_per_second(split, batch_size=4, workers=2, limit=22)
    assert speed == pytest.approx(10)
