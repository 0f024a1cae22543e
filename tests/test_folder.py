"""helpers/folder.py, through helpers.data.load: pictures in folders, and an .npz of JPEG bytes."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import folder
from helpers.data import load

REAL = os.environ.get("VIT_DATA")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("VIT_DATA", raising=False)


def draw(path, color, size=(20, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path, **options)
    return path


def two_classes(root, n=10):
    """n plain pictures, each of its own shade, of class blue and of class red."""
    for i in range(n):
        draw(root / "red" / f"{i:02}.png", (200 + i, 0, 0), size=(20 + i, 16))
        draw(root / "blue" / f"{i:02}.png", (0, 0, 200 + i), size=(16, 20 + i))
    return root


def test_folder_of_classes(tmp_path, capsys):
    photos = load(two_classes(tmp_path / "photos"), img_size=8)
    assert photos.name == "photos" and photos.classes == ("blue", "red") and photos.flip
    assert [len(photos.train), len(photos.validation), len(photos.test)] == [14, 2, 4]
    for split in (photos.train, photos.validation, photos.test):
        assert split.images.shape == (len(split), 3, 8, 8) and split.images.is_contiguous()
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert torch.bincount(split.labels).tolist() == [len(split) // 2] * 2
        red = split.images[:, 0, 4, 4] > split.images[:, 2, 4, 4]
        assert torch.equal(red.long(), split.labels)
    assert (
        photos.mean[1] == 0 and photos.std[1] == 1
    )  # green never changes, and nothing divides by 0
    assert photos.std[0] > 0.3
    assert capsys.readouterr().err == ""


def test_folder_by_its_place_in_root_and_vit_data(tmp_path, monkeypatch):
    two_classes(tmp_path / "shelf" / "photos")
    assert load("photos", root=tmp_path / "shelf").train.images.shape[2:] == (64, 64)
    monkeypatch.setenv("VIT_DATA", str(tmp_path / "shelf"))
    assert load("photos").classes == ("blue", "red")


@pytest.mark.parametrize(
    ("held_out", "sizes"),
    [
        ((), [14, 2, 4]),
        (("val",), [18, 2, 6]),
        (("valid",), [18, 2, 6]),
        (("test",), [18, 2, 6]),
        (("test", "val"), [20, 6, 6]),
        (("test", "validation"), [20, 6, 6]),
    ],
)
def test_folder_with_splits(held_out, sizes, tmp_path):
    two_classes(tmp_path / "train")
    for i, name in enumerate(held_out):
        for k in range(3):
            draw(tmp_path / name / "red" / f"{k}.png", (100, 1 + i, k))
            draw(tmp_path / name / "blue" / f"{k}.png", (0, 1 + i, 100 + k))
    photos = load(tmp_path, img_size=8)
    assert [len(photos.train), len(photos.validation), len(photos.test)] == sizes
    assert (photos.train.images[:, 1] == 0).all()
    if (
        held_out
    ):  # green tells the folder: the test split holds what its folder held, and that alone
        assert (photos.test.images[:, 1] == 1).all()
    if len(held_out) == 2:
        assert (photos.validation.images[:, 1] == 2).all()
    else:
        assert (photos.validation.images[:, 1] == 0).all()


def test_splits_that_cannot_be_read(tmp_path):
    two_classes(tmp_path / "a" / "train")
    draw(tmp_path / "a" / "val" / "red" / "1.png", "red")
    draw(tmp_path / "a" / "val" / "bleu" / "1.png", "blue")
    with pytest.raises(ValueError, match=r"disagree.*only in val/ \['bleu'\].*train/ \['blue'\]"):
        load(tmp_path / "a")
    two_classes(tmp_path / "b" / "train")
    two_classes(tmp_path / "b" / "extra")
    with pytest.raises(ValueError, match="holds extra, train"):
        load(tmp_path / "b")
    two_classes(tmp_path / "c" / "val")
    two_classes(tmp_path / "c" / "test")
    with pytest.raises(ValueError, match="holds test, val. It needs train/"):
        load(tmp_path / "c")
    for name in ("train", "val", "valid"):
        two_classes(tmp_path / "d" / name)
    with pytest.raises(ValueError, match="keep one val/ and one test/"):
        load(tmp_path / "d")


def test_folders_that_cannot_be_used(tmp_path):
    draw(tmp_path / "flat" / "1.png", "red")
    with pytest.raises(ValueError, match="1 files and no sub-folder"):
        load(tmp_path / "flat")
    draw(tmp_path / "one" / "red" / "1.png", "red")
    with pytest.raises(ValueError, match="one class, 'red'"):
        load(tmp_path / "one")
    two_classes(tmp_path / "empty")
    (tmp_path / "empty" / "green").mkdir()
    with pytest.raises(ValueError, match="green holds no picture"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="1.png is a file"):
        load(tmp_path / "flat" / "1.png")


def test_too_few_images(tmp_path):
    two_classes(tmp_path, n=3)
    photos = load(tmp_path, img_size=8)  # the least: one of each class in each split
    assert [len(photos.train), len(photos.validation), len(photos.test)] == [2, 2, 2]
    (tmp_path / "red" / "00.png").unlink()
    with pytest.raises(
        ValueError, match="too few images to set a validation.*1 left of class 'red'"
    ):
        load(tmp_path)
    assert len(load(tmp_path, validation=0).test) == 2
    (tmp_path / "red" / "01.png").unlink()
    with pytest.raises(ValueError, match="too few images to set a test"):
        load(tmp_path)


def test_hidden_files_are_passed_over(tmp_path, capsys):
    two_classes(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._00.png"):
        (tmp_path / "red" / name).write_bytes(b"not an image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "readme.txt").write_text("beside the classes")
    assert load(tmp_path, strict=True).classes == ("blue", "red")
    assert capsys.readouterr().err == ""


def noise(size=(64, 64)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["text", "truncated JPEG", "truncated PNG", "empty", "folder"])
def test_files_that_are_no_pictures(kind, tmp_path, capsys):
    two_classes(tmp_path)
    bad = tmp_path / "red" / "bad.jpg"
    if kind == "text":
        bad.write_text("I am a shopping list")
    elif kind == "empty":
        bad.touch()
    elif kind == "folder":
        bad.mkdir()
    else:
        noise().save(bad, kind.split()[1])
        bad.write_bytes(bad.read_bytes()[:-2000])
    assert len(load(tmp_path, validation=0, test=0).train) == 20
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped, not a whole picture: ") and str(bad) in line
    with pytest.raises(ValueError, match="bad.jpg is not a whole picture"):
        load(tmp_path, strict=True)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_every_kind_of_picture(mode):
    value = 255 if mode == "1" else 102
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 102 * 257, dtype=np.uint16))
        assert image.mode == mode
    else:
        image = Image.new("RGB", (8, 8), (value,) * 3).convert(mode)
    pixels = folder.pixels(image, 8)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8 and (pixels == value).all()


def test_grey_is_three_equal_channels_and_palettes_keep_their_colours(tmp_path):
    draw(tmp_path / "grey" / "1.png", (10, 200, 30), mode="L")
    draw(tmp_path / "palette" / "1.png", (10, 200, 30), mode="P")
    photos = load(tmp_path, validation=0, test=0, img_size=4)
    grey, palette = photos.train.images[:, :, 0, 0].tolist()
    assert grey[0] == grey[1] == grey[2] == 124
    assert sum(abs(a - b) for a, b in zip(palette, (10, 200, 30), strict=True)) < 60


def test_what_is_transparent_becomes_white():
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    half.paste((200, 0, 0, 255), (0, 0, 4, 8))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.paste(1, (0, 0, 4, 8))
    palette.info["transparency"] = 0
    for image in (half, palette):
        pixels = folder.pixels(image, 8)
        assert pixels[:, 4, 1].tolist() == [200, 0, 0] and pixels[:, 4, 6].tolist() == [255] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    """A picture stored turned or mirrored, with the tag that says so, comes out upright."""
    upright = np.zeros((32, 32, 3), dtype=np.uint8)
    upright[:16, :16], upright[:16, 16:], upright[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    undo = Image.Transpose
    stored = Image.fromarray(upright)
    turns = {2: undo.FLIP_LEFT_RIGHT, 3: undo.ROTATE_180, 4: undo.FLIP_TOP_BOTTOM}
    turns |= {5: undo.TRANSPOSE, 6: undo.ROTATE_90, 7: undo.TRANSVERSE, 8: undo.ROTATE_270}
    if orientation in turns:
        stored = stored.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.jpg", quality=95, subsampling=0, exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        pixels = folder.pixels(image, 16)
    for (row, column), color in {(4, 4): 0, (4, 12): 1, (12, 4): 2}.items():
        assert pixels[:, row, column].argmax() == color and pixels[color, row, column] > 240
    assert pixels[:, 12, 12].max() < 15


@pytest.mark.parametrize("size", [(120, 40), (40, 120), (12, 4), (4000, 1333)])
def test_shorter_side_fitted_and_centre_cut(size, tmp_path):
    """Three equal bands along the long side: only the middle one is left."""
    image = Image.new("RGB", size, "red")
    third = [max(size) // 3, max(size) - max(size) // 3]
    wide = size[0] > size[1]
    box = (third[0], 0, third[1], size[1]) if wide else (0, third[0], size[0], third[1])
    image.paste((0, 255, 0), box)
    image.save(tmp_path / "bands.jpg", quality=95, subsampling=0)
    with Image.open(tmp_path / "bands.jpg") as image:
        pixels = folder.pixels(image, 32)
    assert pixels.shape == (3, 32, 32)
    assert (pixels[1, 2:-2, 2:-2] > 200).all() and (pixels[0, 2:-2, 2:-2] < 55).all()


@pytest.mark.parametrize("seconds", [0.01, 5.0])
def test_progress_only_when_it_takes_long(seconds, tmp_path, capsys, monkeypatch):
    """A clock that jumps stands in for slow pictures."""
    now, whole = [0.0], folder.pixels

    def slow(*args):
        now[0] += seconds
        return whole(*args)

    monkeypatch.setattr(folder, "pixels", slow)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    load(two_classes(tmp_path / "photos"))
    shown = capsys.readouterr().err
    if seconds < 1:
        assert shown == ""
    else:
        assert "reading photos" in shown and "12/20" in shown
        assert shown.endswith(" \r")  # wiped when done


# An .npz of JPEG bytes


def save_npz(path, n=40, size=(16, 16), **changes):
    jpegs, labels = [], np.arange(n, dtype=np.uint8) % 2
    for i in range(n):
        buffer = io.BytesIO()
        color = (255, 3 * i, 0) if labels[i] else (0, 3 * i, 255)
        Image.new("RGB", size, color).save(buffer, "JPEG", quality=95, subsampling=0)
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
    file = save_npz(tmp_path / "sky.npz")
    sky = load(file)
    assert sky.name == "sky" and sky.classes == ("sea", "sun") and sky.flip
    assert [len(sky.train), len(sky.validation), len(sky.test)] == [27, 3, 10]
    for split in (sky.train, sky.validation, sky.test):
        assert split.images.shape == (len(split), 3, 16, 16) and split.images.is_contiguous()
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert torch.equal((split.images[:, 0, 8, 8] > 128).long(), split.labels)
    green = sky.test.images[:, 1, 8, 8].long() - 3 * torch.arange(30, 40)
    assert (green.abs() <= 2).all()  # the last ten, as is_test says, in their order
    assert load("sky.npz", root=tmp_path, img_size=10).test.images.shape == (10, 3, 10, 10)


def test_npz_without_a_test_split_gets_one(tmp_path):
    sky = load(save_npz(tmp_path / "sky.npz", is_test=np.zeros(40, dtype=bool)))
    assert [len(sky.train), len(sky.validation), len(sky.test)] == [28, 4, 8]


def test_npz_of_two_sizes_needs_img_size(tmp_path):
    wide, tall = (
        dict(np.load(save_npz(tmp_path / "part.npz", n=20, size=size)))
        for size in ((24, 16), (16, 24))
    )
    offsets = np.concatenate([wide["offsets"], wide["offsets"][-1] + tall["offsets"][1:]])
    both = {key: np.concatenate([wide[key], tall[key]]) for key in ("data", "labels", "is_test")}
    np.savez(tmp_path / "both.npz", **(wide | both | {"offsets": offsets}))
    with pytest.raises(ValueError, match="2 sizes. Pass img_size"):
        load(tmp_path / "both.npz")
    assert load(tmp_path / "both.npz", img_size=12).test.images.shape == (20, 3, 12, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(is_test=None), "lacks is_test"),
        (dict(class_names=np.array(["sea", None], dtype=object)), "not a whole .npz"),
        (dict(class_names=np.array(["sea"])), "labels 0 to 1 and 1 class names"),
        (dict(labels=np.zeros(40, dtype=np.uint8)), "no training image of sun"),
        (dict(labels=np.zeros(39, dtype=np.uint8)), "39 labels"),
        (dict(data=np.zeros(10, dtype=np.uint8)), "10 bytes"),
        (dict(offsets=np.zeros(41, dtype=int), data=np.zeros(0, np.uint8)), "picture 0"),
    ],
)
def test_npz_that_is_wrong(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(save_npz(tmp_path / "sky.npz", **changes))


def test_npz_that_is_truncated(tmp_path):
    file = save_npz(tmp_path / "sky.npz")
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match="not a whole .npz"):
        load(file)


@pytest.mark.skipif(not REAL, reason="VIT_DATA is not set: no real files to read")
def test_real_photographs():
    photos = Path(REAL, "photos", "hymenoptera_s256")
    if not photos.is_dir():
        pytest.skip("VIT_DATA has no photos/hymenoptera_s256")
    ants = load(photos, strict=True)
    assert ants.classes == ("ants", "bees") and ants.train.images.shape[1:] == (3, 64, 64)
    assert [len(ants.train), len(ants.validation), len(ants.test)] == [219, 25, 153]
    assert all(0.2 < s < 0.35 for s in ants.std)
