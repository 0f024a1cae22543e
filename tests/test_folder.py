"""helpers/folder.py, through helpers.data.load: pictures in folders, and an .npz of JPEG bytes."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from helpers import folder
from helpers.data import load
from tests.test_data import alone, sizes  # noqa: F401 (alone acts by being here)


def draw(path, color, size=(20, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)


def two_classes(root, n=10, green=0):
    """n plain pictures, each of its own shade, of class blue and of class red."""
    for i in range(n):
        draw(root / "red" / f"{i:02}.png", (200 + i, green, 0), size=(20 + i, 16))
        draw(root / "blue" / f"{i:02}.png", (0, green, 200 + i), size=(16, 20 + i))
    return root


def splits(photos):
    return photos.train, photos.validation, photos.test


def test_a_folder_of_classes_wherever_it_lies(tmp_path, monkeypatch, capsys):
    two_classes(tmp_path / "shelf" / "photos")
    photos = load("photos", root=tmp_path / "shelf", img_size=8)
    assert photos.name == "photos" and photos.classes == ("blue", "red") and photos.flip
    assert sizes(photos) == [14, 2, 4]
    for split in splits(photos):
        assert split.images.shape == (len(split), 3, 8, 8) and split.images.is_contiguous()
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert torch.bincount(split.labels).tolist() == [len(split) // 2] * 2
        red = split.images[:, 0, 4, 4] > split.images[:, 2, 4, 4]
        assert torch.equal(red.long(), split.labels)
    numbers = photos.train.images.double() / 255
    std = numbers.std((0, 2, 3), correction=0)
    std[1] = 1  # green never changes
    assert photos.mean == pytest.approx(numbers.mean((0, 2, 3)).tolist())
    assert photos.std == pytest.approx(std.tolist())
    monkeypatch.setenv("VIT_DATA", str(tmp_path / "shelf"))
    assert load("photos").train.image_shape == (3, 64, 64)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("held_out", [["valid"], ["test"], ["test", "val"]])
def test_split_folders(held_out, tmp_path):
    """Green tells the folder: 0 of train/, 1 of the one that is the test split, 2 of val/."""
    two_classes(tmp_path / "train")
    for i, name in enumerate(held_out, start=1):
        two_classes(tmp_path / name, n=3, green=i)
    photos = load(tmp_path, img_size=8)
    found = [(len(split), split.images[:, 1].unique().tolist()) for split in splits(photos)]
    with_two, with_one = [(20, [0]), (6, [2]), (6, [1])], [(18, [0]), (2, [0]), (6, [1])]
    assert found == (with_two if len(held_out) == 2 else with_one)


def test_pictures_deeper_inside_and_their_order_are_image_folders(tmp_path, capsys):
    """Hidden files and folders, and what macOS and Windows leave, are not looked at."""
    two_classes(tmp_path, n=3)
    for name in ("b/01.png", "a/deep/er/7.png", "Z.png"):
        draw(tmp_path / "red" / name, "red")
    expected = [(Path(path), label) for path, label in ImageFolder(tmp_path).samples]
    for name in ("red/.DS_Store", "red/Thumbs.db", "red/b/desktop.ini", "blue/._00.png",
                 "red/.cache/1.png", "blue/a/__MACOSX/1.png", ".git/1.png", "__MACOSX/1.png",
                 "readme.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"not an image")
    listed, classes = folder.list_folder(tmp_path)
    assert listed == {"train": (tmp_path, expected)} and classes == ("blue", "red")
    photos = load(tmp_path, img_size=8, strict=True, validation=0, test=0)
    assert photos.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert capsys.readouterr().err == ""


def test_folders_that_cannot_be_used(tmp_path):
    bad = "disagree.*only in val/ ['bleu'], only in train/ ['blue']"
    for files, message in [
        (("1.png",), "holds 1 files and no sub-folder"),
        (("red/1.png",), "one class, 'red'"),
        (("train/blue/1.png", "train/red/1.png", "val/bleu/1.png", "val/red/1.png"), bad),
        (("train/red/1.png", "extra/red/1.png"), "holds extra, train. It needs train/"),
        (("test/red/1.png", "val/red/1.png"), "holds test, val. It needs train/"),
        (("train/red/1.png", "val/red/1.png", "valid/red/1.png"), "keep one val/ and one test/"),
        (("red/1.png", "blue/1.png", "green/.1.png"), "green holds no picture"),
    ]:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for file in files:
            draw(root / file, "red")
        with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
            load(root)
    with pytest.raises(ValueError, match="1.png is a file"):
        load(tmp_path / "0" / "1.png")


def test_too_few_images(tmp_path):
    two_classes(tmp_path, n=3)
    photos = load(tmp_path, img_size=8)  # the least: one of each class in each split
    assert sizes(photos) == [2, 2, 2]
    (tmp_path / "red" / "00.png").unlink()
    with pytest.raises(ValueError, match="set a validation.*1 left of class 'red'"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["text", "truncated JPEG", "truncated PNG"])
def test_files_that_are_no_pictures(kind, tmp_path, capsys):
    two_classes(tmp_path)
    bad = tmp_path / "red" / "05x.jpg"  # in the middle, so that labels could slip
    if "truncated" in kind:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(bad, kind.split()[1])
        bad.write_bytes(bad.read_bytes()[:-2000])
    else:
        bad.write_text("I am a shopping list")
    assert load(tmp_path, validation=0, test=0).train.labels.tolist() == [0] * 10 + [1] * 10
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped, not a whole picture: ") and str(bad) in line
    with pytest.raises(ValueError, match="05x.jpg is not a whole picture"):
        load(tmp_path, strict=True)


def test_every_kind_of_picture_and_what_is_transparent_becomes_white():
    grey = Image.new("RGB", (8, 8), (102,) * 3)
    kinds = [grey.convert(mode) for mode in ("L", "RGBA", "LA", "P", "CMYK")]
    kinds.append(Image.fromarray(np.full((8, 8), 102 * 257, dtype=np.uint16)))  # 16 bits
    for image in kinds:
        pixels = folder.pixels(image, 8)
        assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8 and (pixels == 102).all()
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    half.paste((200, 10, 0, 255), (0, 0, 4, 8))
    for image in (half, half.quantize(2)):  # the other one has a palette
        pixels = folder.pixels(image, 8)
        assert pixels[:, 4, 1].tolist() == [200, 10, 0] and pixels[:, 4, 6].tolist() == [255] * 3


@pytest.mark.parametrize("size", [(120, 40), (4, 12), (4000, 1333)])
def test_shorter_side_fitted_and_centre_cut(size, tmp_path):
    """Three equal bands along the long side: only the middle one is left."""
    (width, height), long = size, max(size)
    image = Image.new("RGB", size, "red")
    start, stop = long // 3, long - long // 3
    box = (start, 0, stop, height) if width > height else (0, start, width, stop)
    image.paste((0, 255, 0), box)
    image.save(tmp_path / "bands.jpg", quality=95, subsampling=0)
    with Image.open(tmp_path / "bands.jpg") as image:
        pixels = folder.pixels(image, 32)
    assert (pixels[1, 2:-2, 2:-2] > 200).all() and (pixels[0, 2:-2, 2:-2] < 55).all()


def save_npz(path, n=40, sizes=((16, 16),), **changes):
    jpegs, labels = [], np.arange(n, dtype=np.uint8) % 2
    for i in range(n):
        buffer = io.BytesIO()
        color = (255, 3 * i, 0) if labels[i] else (0, 3 * i, 255)
        Image.new("RGB", sizes[i % len(sizes)], color).save(buffer, "JPEG", quality=95)
        jpegs.append(np.frombuffer(buffer.getvalue(), np.uint8))
    arrays = {
        "data": np.concatenate(jpegs),
        "offsets": np.cumsum([0, *map(len, jpegs)]),
        "labels": labels,
        "is_test": np.arange(n) >= n - 10,
        "class_names": np.array(["sea", "sun"]),
    } | changes
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


def test_npz(tmp_path):
    sky = load(save_npz(tmp_path / "sky.npz"))
    assert sky.name == "sky" and sky.classes == ("sea", "sun") and sky.flip
    assert sizes(sky) == [27, 3, 10]
    for split in splits(sky):
        assert split.image_shape == (3, 16, 16) and split.labels.dtype == torch.int64
        assert torch.equal((split.images[:, 0, 8, 8] > 128).long(), split.labels)
    green = sky.test.images[:, 1, 8, 8].long() - 3 * torch.arange(30, 40)
    assert (green.abs() <= 2).all()  # the last ten, as is_test says, in their order
    save_npz(tmp_path / "untold.npz", is_test=np.zeros(40, dtype=bool), sizes=((24, 16), (16, 24)))
    with pytest.raises(ValueError, match="2 sizes. Pass img_size"):
        load(tmp_path / "untold.npz")
    cut = load("untold.npz", root=tmp_path, img_size=12)
    assert sizes(cut) == [28, 4, 8] and cut.test.images.shape == (8, 3, 12, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(is_test=None), "lacks is_test"),
        (dict(class_names=np.array(["sea", None], dtype=object)), "not a whole .npz"),
        (dict(class_names=np.array(["sea"])), "labels 0 to 1 and 1 class names"),
        (dict(labels=np.zeros(40, dtype=np.uint8)), "no training image of sun"),
        (dict(offsets=np.zeros(41, dtype=int), data=np.zeros(0, np.uint8)), "picture 0"),
    ],
)
def test_npz_that_is_wrong(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(save_npz(tmp_path / "sky.npz", **changes))
