"""helpers/scale/streaming.py: folders of pictures that are decoded when they are needed."""

import multiprocessing
import os
import warnings
from pathlib import Path

import nbclient
import numpy as np
import pytest
import torch
from nbformat import v4
from PIL import Image

from helpers import folder
from helpers.data import load
from helpers.scale import streaming
from helpers.scale.streaming import FileSplit, images_per_second, load_streaming, loader

REAL = os.environ.get("VIT_DATA")
S = 24


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("VIT_DATA", raising=False)


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


def images(split, batches, **options):
    """All batches, put one after the other."""
    batches = list(loader(split, batches, **options))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def in_batches(numbers, size):
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]


# load_streaming: the same data set as load's


@pytest.mark.parametrize("held_out", [(), ("val",), ("test",), ("test", "val")])
def test_same_splits_classes_and_numbers_as_load(held_out, tmp_path):
    photographs(tmp_path / "train" if held_out else tmp_path)
    for name in held_out:
        photographs(tmp_path / name, n=3)
    for seed in (0, 3):
        options = dict(img_size=S, split_seed=seed, validation=0.2, test=0.3)
        whole, streamed = load(tmp_path, **options), load_streaming(tmp_path, **options)
        for field in ("name", "classes", "mean", "std", "flip"):
            assert getattr(streamed, field) == getattr(whole, field)
        for part in ("train", "validation", "test"):
            expected, files = getattr(whole, part), getattr(streamed, part)
            assert len(files) == len(files.paths) == len(expected) > 0
            assert files.labels.dtype == torch.int64
            assert torch.equal(files.labels, expected.labels)
            assert files.image_shape == expected.image_shape == (3, S, S)
            for path, image in zip(files.paths, expected.images, strict=True):
                with Image.open(path) as picture:
                    assert np.array_equal(folder.pixels(picture, S), image)


def test_split_seed_decides(tmp_path):
    photographs(tmp_path)
    first, again, other = (load_streaming(tmp_path, split_seed=seed) for seed in (1, 1, 2))
    assert first.test.paths == again.test.paths != other.test.paths
    assert first.train.img_size == 224


def test_only_the_sample_is_decoded(tmp_path, monkeypatch):
    """At even distances, so from every class; and the same files each time."""
    photographs(tmp_path)
    opened, whole = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(Path(path)) or whole(path))
    data = load_streaming(tmp_path, img_size=S, validation=0, test=0)
    assert opened == list(data.train.paths)
    opened.clear()
    streaming.sampled_mean_and_std(data.train, limit=3)
    assert opened == [data.train.paths[i] for i in (0, 10, 19)]


def test_found_as_load_finds_it_and_when_the_working_directory_changes(tmp_path, monkeypatch):
    photographs(tmp_path / "shelf" / "photos")
    assert len(load_streaming("photos", root=tmp_path / "shelf", img_size=S).train) == 14
    monkeypatch.setenv("VIT_DATA", str(tmp_path / "shelf"))
    assert load_streaming("photos", img_size=S).classes == ("cat", "dog")
    monkeypatch.delenv("VIT_DATA")
    monkeypatch.chdir(tmp_path)
    data = load_streaming("shelf/photos", img_size=S)
    monkeypatch.chdir("/")
    assert len(images(data.test, [[0, 1]], train=False, workers=1)[0]) == 2


@pytest.mark.parametrize("name", ["digits", "FashionMNIST", "photos.npz"])
def test_what_does_not_stream(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.npz").touch()
    with pytest.raises(ValueError, match=f"'{name}' is read into memory.*use helpers.data.load"):
        load_streaming(name)


@pytest.mark.parametrize(
    "change",
    [
        dict(img_size=0), dict(validation=1), dict(test=-0.1),
        "empty class", "one class", "no class", "too few", "no folder", "splits",
    ],
)  # fmt: skip
def test_same_errors_as_load(change, tmp_path):
    root, options = tmp_path / "photos", change if isinstance(change, dict) else {}
    photographs(root, n=2 if change == "too few" else 4)
    if change in ("empty class", "splits"):
        (root / ("eel" if change == "empty class" else "train")).mkdir()
    elif change == "one class":
        (root / "dog").rename(tmp_path / "dog")
    elif change == "no class":
        root = root / "dog"
    elif change == "no folder":
        root = tmp_path / "photo"
    errors = []
    for read in (load, load_streaming):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read(root, **({"img_size": S} | options))
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_what_is_no_picture_by_its_name_is_looked_into(tmp_path, capsys):
    photographs(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("I am a shopping list")
    (tmp_path / "cat" / "more").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"hidden")
    (tmp_path / "dog" / "00.jpg").rename(tmp_path / "dog" / "no ending")
    data = load_streaming(tmp_path, img_size=S, validation=0, test=0)
    assert [path.name for path in data.train.paths].count("no ending") == 1 and len(
        data.train
    ) == 20
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("skipped, not a whole") for line in lines)
    assert "more" in lines[0] and "notes.txt" in lines[1]


# loader: what an image becomes


def test_images_depend_on_seed_and_number_alone(split):
    """Not on workers, batches, order, or the state of the caller's generator: equal to the bit."""
    everything = list(range(20))
    expected, labels = images(split, [everything], train=True, seed=5)
    assert expected.dtype == torch.uint8 and expected.shape == (20, 3, S, S)
    assert labels.dtype == torch.int64 and torch.equal(labels, split.labels)
    shuffled = np.random.default_rng(0).permutation(20).tolist()
    for workers, numbers, size in [(0, shuffled, 7), (1, everything, 3), (2, shuffled, 4)]:
        torch.manual_seed(workers)
        batches = in_batches(numbers, size)
        got, labels = images(split, batches, train=True, seed=5, workers=workers)
        assert torch.equal(got, expected[numbers]) and torch.equal(labels, split.labels[numbers])
    parts = [images(split, [everything[k::2]], train=True, seed=5)[0] for k in range(2)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), expected)  # two processes


def test_another_seed_and_another_number_change_an_image_differently(split):
    first, second = (images(split, [list(range(20))], train=True, seed=s)[0] for s in (0, 1))
    assert (first != second).flatten(1).any(1).all()
    same = FileSplit(split.paths[:1] * 20, split.labels[:1].repeat(20), S)
    twenty, _ = images(same, [list(range(20))], train=True)
    assert len(twenty.unique(dim=0)) == 20
    # seed 0, number 1 and seed 1, number 0 are not the same draw
    assert not torch.equal(twenty[1], images(same, [[0]], train=True, seed=1)[0][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_random_numbers_are_left_alone(workers, split):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches = loader(split, [[0, 1], [2]], train=True, workers=workers)
    for _ in batches:
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(batches) == 2


def ramp(path, size=(96, 96)):
    """Red grows from left to right, green from top to bottom, blue is 255 throughout."""
    W, H = size
    picture = np.full((H, W, 3), 255, dtype=np.uint8)
    picture[..., 0] = np.linspace(0, 255, W)
    picture[..., 1] = np.linspace(0, 255, H)[:, None]
    Image.fromarray(picture).save(path)
    return path


def test_evaluation_keeps_the_centre(tmp_path):
    """Of 128 x 256 pixels: the shorter side becomes 256 / 224 S, and S x S of the middle stay."""
    paths = ramp(tmp_path / "wide.png", (256, 128)), ramp(tmp_path / "tall.png", (128, 256))
    side = 112  # so that the shorter side stays as it is
    split = FileSplit(paths, torch.tensor([0, 1]), side)
    got, labels = images(split, [[0, 1]], train=False)
    for image, path in zip(got, paths, strict=True):
        whole = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        top, left = ((n - side) // 2 for n in whole.shape[1:])
        assert torch.equal(image, whole[:, top : top + side, left : left + side])
    assert torch.equal(got, images(split, [[0, 1]], train=False, seed=9)[0])
    half = images(FileSplit(paths, split.labels, side // 2), [[0, 1]], train=False)[0].float()
    assert (half - torch.nn.functional.avg_pool2d(got.float(), 2)).abs().max() < 4


def test_training_crops_mirrors_and_changes_colour(tmp_path):
    path = ramp(tmp_path / "ramp.png")
    many = FileSplit((path,) * 400, torch.zeros(400, dtype=torch.int64), S)
    got = images(many, [list(range(400))], train=True)[0].float()
    red = got[:, 0, S // 2]  # (400, S): the middle row
    mirrored = (red[:, -3] < red[:, 2]).float().mean()
    assert 0.35 < mirrored < 0.65
    straight = images(many, [list(range(400))], train=True, flip=False)[0].float()[:, 0, S // 2]
    assert (straight[:, -3] < straight[:, 2]).float().mean() < 0.25  # an operation
    untouched = (got[:, 2] == 255).flatten(1).all(1)  # blue still all 255: no change of colour
    assert 0.1 < untouched.float().mean() < 0.9
    seen = (red.amax(1) - red.amin(1))[untouched] / 255  # share of the width that a crop shows
    assert seen.min() < 0.5 and seen.max() > 0.9


def test_large_jpegs_are_decoded_no_larger_than_needed(tmp_path, monkeypatch):
    noise(0, (1600, 1200)).save(tmp_path / "large.jpg")
    sizes, whole = [], streaming.upright
    monkeypatch.setattr(
        streaming, "upright", lambda image: sizes.append(image.size) or whole(image)
    )
    for side in (24, 96):
        split = FileSplit((tmp_path / "large.jpg",), torch.tensor([0]), side)
        for train in (True, False):
            images(split, [[0]], train=train)
    assert sizes == [(200, 150), (200, 150), (800, 600), (400, 300)]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("train", [True, False])
def test_every_kind_of_picture(mode, train, tmp_path):
    value = 255 if mode == "1" else 102
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 102 * 257, dtype=np.uint16))
    else:
        image = Image.new("RGB", (8, 8), (value,) * 3).convert(mode)
    image.save(tmp_path / "a.tif")
    one = FileSplit((tmp_path / "a.tif",), torch.tensor([0]), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = images(one, [[0]], train=train)[0]
    assert got.shape == (1, 3, 8, 8) and (train or (got == value).all())


@pytest.mark.parametrize("kind", ["turned", "transparent"])
def test_turned_and_transparent_pictures_as_folder_reads_them(kind, tmp_path):
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "a.jpg"
        noise(0, (64, 48)).save(path, exif=exif)
    else:
        path = tmp_path / "a.png"
        half = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        half.paste((200, 0, 0, 255), (0, 0, 32, 64))
        half.save(path)
    with Image.open(path) as image:
        upright = Image.fromarray(folder.pixels(image, None).transpose(1, 2, 0))
    upright.save(tmp_path / "upright.png")
    pair = FileSplit((path, tmp_path / "upright.png"), torch.tensor([0, 0]), S)
    first, second = images(pair, [[0, 1]], train=False)[0]
    assert torch.equal(first, second)
    if kind == "transparent":
        assert first[:, S // 2, 1].tolist() == [200, 0, 0]
        assert first[:, S // 2, -2].tolist() == [255] * 3


# loader: what goes wrong, and where it is called from


@pytest.mark.parametrize("kind", ["text", "truncated", "gone", "folder"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_at_its_batch(kind, workers, tmp_path):
    photographs(tmp_path)
    data = load_streaming(tmp_path, img_size=S, validation=0, test=0)
    bad = data.train.paths[5]
    content = bad.read_bytes()
    bad.unlink()
    if kind == "text":
        bad.write_text("I am a shopping list")
    elif kind == "truncated":
        bad.write_bytes(content[:-300])
    elif kind == "folder":
        bad.mkdir()
    batches = iter(loader(data.train, in_batches(range(20), 4), train=True, workers=workers))
    assert len(next(batches)[0]) == 4
    with pytest.raises(ValueError, match=r"05.jpg is not a whole picture.*Repair or rem") as caught:
        next(batches)
    assert str(bad) in str(caught.value) and "Traceback" not in str(caught.value)
    if kind != "gone":
        with pytest.raises(ValueError, match="05.jpg is not a whole picture"):
            load_streaming(tmp_path, img_size=S)  # it is in the sample for mean and std


def test_advice_for_broken_pictures_holds(tmp_path, capsys):
    photographs(tmp_path)
    bad = [tmp_path / "cat" / "03.jpg", tmp_path / "dog" / "07.jpg"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"helpers.data.load\(folder, img_size=8\)"):
        load_streaming(tmp_path)
    load(tmp_path, img_size=8)
    lines = capsys.readouterr().err.splitlines()
    assert [str(path) in line for path, line in zip(bad, lines, strict=True)] == [True, True]


def test_stopping_early_ends_the_workers(split):
    before = set(multiprocessing.active_children())
    batches = iter(loader(split, in_batches(range(20), 1), train=True, workers=2))
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert set(multiprocessing.active_children()) <= before


def test_workers_in_a_notebook(split, tmp_path):
    """In a notebook there is no file to import; and nothing may be written to stderr."""
    torch.save(images(split, [[0, 7]], train=True)[0], tmp_path / "expected.pt")
    code = f"""
import sys
sys.path.insert(0, {str(Path(streaming.__file__).parents[1])!r})
import torch
from helpers.scale.streaming import load_streaming, loader
data = load_streaming({str(split.paths[0].parents[1])!r}, img_size={S}, validation=0, test=0)
[(images, labels)] = loader(data.train, [[0, 7]], train=True, workers=1)
print(torch.equal(images, torch.load("expected.pt")))
"""
    notebook = v4.new_notebook(cells=[v4.new_code_cell(code)])
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})
    [output] = client.execute().cells[0].outputs
    assert output.text == "True\n"


@pytest.mark.parametrize("workers", [0, 2])
def test_images_per_second(workers, split, monkeypatch):
    """A clock by which every picture takes a tenth of a second, the first batches an hour."""
    taken, make = [], streaming.loader

    def slow(split, batches, **options):
        for k, batch in enumerate(batches):
            taken.append(batch)
            now[0] += 3600 if k < max(1, workers) else 0.1 * len(batch)
            yield next(iter(make(split, [batch], train=options["train"])))

    now = [0.0]
    monkeypatch.setattr(streaming, "loader", slow)
    monkeypatch.setattr(streaming.time, "perf_counter", lambda: now[0])
    speed = images_per_second(split, batch_size=4, workers=workers, limit=22)
    assert speed == pytest.approx(10)
    assert [len(batch) for batch in taken] == [4] * (7 if workers == 0 else 8)
    assert sum(taken, [])[18:22] == [18, 19, 0, 1]


def test_images_per_second_for_real(split):
    assert images_per_second(split, batch_size=4, workers=1, train=False, limit=8) > 0
    with pytest.raises(ValueError, match="empty"):
        images_per_second(FileSplit((), torch.tensor([]), S), batch_size=4, workers=0)


@pytest.mark.skipif(not REAL, reason="VIT_DATA is not set: no real files to read")
def test_real_photographs():
    photos = Path(REAL, "photos", "hymenoptera_s256")
    if not photos.is_dir():
        pytest.skip("VIT_DATA has no photos/hymenoptera_s256")
    ants = load_streaming(photos, img_size=64)
    whole = load(photos)
    assert ants.classes == ("ants", "bees") and (ants.mean, ants.std) == (whole.mean, whole.std)
    assert [len(ants.train), len(ants.validation), len(ants.test)] == [219, 25, 153]
    numbers = list(range(153))
    one, _ = images(ants.test, [numbers], train=True)
    two, _ = images(ants.test, in_batches(numbers, 32), train=True, workers=2)
    assert torch.equal(one, two)
