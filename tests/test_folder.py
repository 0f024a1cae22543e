"""helpers/folders/, through helpers.data.load: pictures in folders, and an .npz of JPEG bytes."""

import io
import os
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from PIL.BmpImagePlugin import BmpImageFile
from torchvision.datasets import ImageFolder

from helpers import data as data_module
from helpers.data import load
from helpers.folders import decoding, layout
from helpers.scale.streaming import load_streaming
from tests.test_data import alone, sizes  # noqa: F401 (alone acts by being here)


def draw(path, color="red", size=(20, 16), mode="RGB"):
    """A picture of one colour, its upper half darker, but for green."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red, green, blue = ImageColor.getrgb(color) if isinstance(color, str) else color
    image = Image.new("RGB", size, (red, green, blue))
    image.paste((red // 2, green, blue // 2), (0, 0, size[0], size[1] // 2 - 2))
    image.convert(mode).save(path)


def two_classes(root, n=10, green=0):
    """n pictures, each of its own shade, of class blue and of class red."""
    for i in range(n):
        draw(root / "red" / f"{i:02}.png", (200 + i, green, 0), size=(20 + i, 16))
        draw(root / "blue" / f"{i:02}.png", (0, green, 200 + i), size=(16, 20 + i))
    return root


def plant(root, text):
    """Pictures for "a/b 3, c": 3 in root/a/b and 1 in root/c; "d 0" is an empty folder."""
    for what in text.split(", "):
        place, n = what.split() if " " in what else (what, 1)
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(int(n)):
            draw(root / place / f"{i}.png", (10 + len(list(root.rglob("*"))), 0, 200))
    return root


def both(root, **options):
    """What load and load_streaming read, which must be the same."""
    options = {"img_size": 8} | options
    whole, streamed = load(root, **options), load_streaming(root, **options)
    assert (whole.classes, whole.cut) == (streamed.classes, streamed.cut)
    assert (whole.mean, whole.std) == (streamed.mean, streamed.std)
    for part in ("train", "validation", "test"):
        images, files = getattr(whole, part), getattr(streamed, part)
        assert torch.equal(images.labels, files.labels) and len(images) == len(files.paths)
        for path, image in zip(files.paths, images.images, strict=True):
            assert np.array_equal(decoding.pixels(decoding.open_picture(path), 8), image)
    return streamed


def said(capsys):
    """The lines on stderr: of load, which load_streaming, where it read too, has said again."""
    lines = capsys.readouterr().err.splitlines()
    assert lines[len(lines) // 2 :] == lines[: len(lines) // 2]
    return lines[: len(lines) // 2]


def inside(data, root):
    """The files of training, validation and test, below root."""
    return [[path.relative_to(root).as_posix() for path in x.paths] for x in splits(data)]


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
    listed, classes = layout.list_folder(tmp_path)
    assert list(listed) == ["train"] and classes == ("blue", "red")
    assert list(zip(listed["train"][0], listed["train"][1].tolist(), strict=True)) == expected
    photos = load(tmp_path, img_size=8, strict=True, validation=0, test=0)
    assert photos.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert capsys.readouterr().err == ""


# Layouts


@pytest.mark.parametrize(
    "train, validation, test",
    [
        ("Train", "VAL", "TEST"),
        ("Training", None, "Testing"),
        ("train", "dev", "test"),
        ("seg_train/seg_train", None, "seg_test/seg_test"),
        ("archive/data/train", "archive/data/valid", "archive/data/test"),
        ("train_set", "val_set", "test_set"),
        ("asl-train", None, "asl-val"),
        ("TrainSet", "ValidationSet", "TestSet"),
        ("photos/inner", None, None),
    ],
)
def test_a_layout_that_is_guessed_is_said(train, validation, test, tmp_path, capsys):
    for place in filter(None, (train, validation, test)):
        plant(tmp_path, f"{place}/cats 4, {place}/dogs 4")
    data = both(tmp_path)
    for place, files in zip((train, validation, test), inside(data, tmp_path), strict=True):
        assert all(file.startswith(f"{place or train}/") for file in files) and files
    name = tmp_path.name
    expected = [("training", train), ("validation", validation), ("test", test)]
    guess = ", ".join(f"{part} = {name}/{place}" for part, place in expected if place)
    assert said(capsys) == [f"read {tmp_path} as: {guess}, 2 classes"]


@pytest.mark.parametrize(
    "more, left",
    [
        ("seg_pred/seg_pred 3", "seg_pred"),
        ("extra/cats, extra/dogs", "extra"),
        ("val 3", "val"),  # without class folders
        ("val/cats 0", "val"),  # and nothing in one
        ("train 2", "pictures beside the folders of train (2)"),
        (". 2", "pictures beside the folders of photos (2)"),
    ],
)
def test_what_is_left_out_is_said(more, left, tmp_path, capsys):
    places = "train/cats 4, train/dogs 4, test/cats, test/dogs"
    data = both(plant(tmp_path / "photos", f"{places}, {more}"))
    assert len(data.train) + len(data.validation) == 8 and len(data.test) == 2
    [line] = said(capsys)
    assert line.endswith(f"2 classes; left out: {left}")


@pytest.mark.parametrize("places", ["car 4, plane 4, train 4", "test 4, train 4, tram 4",
                                    "car 4, steam-train 4, steam-train/old 2"])  # fmt: skip
def test_a_class_may_be_called_like_a_split(places, tmp_path, capsys):
    data = both(plant(tmp_path, places))
    assert data.classes == tuple(sorted({x.split()[0].split("/")[0] for x in places.split(", ")}))
    assert sum(map(len, splits(data))) == len(list(tmp_path.rglob("*.png")))
    assert said(capsys)[0].endswith(f"training = {tmp_path.name}, {len(data.classes)} classes")


def test_a_split_that_was_found_has_one_class_of_classes(tmp_path):
    """test/cats holds folders, and cats is a class: not a folder to look through."""
    data = both(plant(tmp_path, "train/cats/a 3, train/dogs/b 3, test/cats/a, test/cats/b"))
    assert data.classes == ("cats", "dogs") and data.test.labels.tolist() == [0, 0]


LAYOUTS = [  # what lies there, the error, its advice: (from, to) is moved, "a/b 3" is planted
    (". 3", "3 files and no sub-folder.*cats/1.jpg, dogs/1.jpg", ["cats", "dogs"]),
    ("cats 0, dogs 0", "pictures of no class, and telling apart needs two", ["cats", "dogs"]),
    ("cats 3", "pictures of cats, and.*two.*in a folder of its own beside it", ["dogs"]),
    ("data/cats 3", "pictures of cats, and.*two", ["data/dogs"]),
    ("train/cats 3, test/cats", "pictures of cats, and.*two.*beside it", ["train/dogs"]),
    ("train 3, test 3", "splits without folders for classes.*train/cats", [
        ("train/0.png", "train/cats/0.png"), ("train/1.png", "train/dogs/1.png")]),
    ("train 3, test 3", "If they are classes, give one of them another", [("test", "exam")]),
    ("cats/train 2, cats/test, dogs/train 2, dogs/test", "Turn all of them round: cats/train/ bec",
     [(f"{c}/{s}", f"{s}/{c}") for c in ("cats", "dogs") for s in ("train", "test")]),
    ("val/cats, test/cats", "looks like test = test/, validation = val/, but", [
        ("val", "train"), "train/dogs"]),
    ("cats, dogs, test/cats, test/dogs", "looks like test = test/, but what is the rest", [
        ("cats", "train/cats"), ("dogs", "train/dogs")]),
    ("train/cats, train/dogs, more/cats, more/dogs", "to test on into test/", [
        ("more/cats", "test/cats"), ("more/dogs", "test/dogs")]),
    ("train/cats, train/dogs, more/cats, more/dogs", "a dot before the name", [("more", ".more")]),
    ("car, plane, train/steam, train/diesel", "A class that holds folders needs", [
        ("train", "locomotives")]),
    ("train/a, train/b, val/a, valid/b, test/a", "validation = val/, validation = valid/. Put", [
        ("valid/b", "val/b")]),
    ("train/a, train/b, test/c", "no picture of c is left to train on. Put some", ["train/c 2"]),
    ("train/a, train/b, test/B", "rename what training calls otherwise", [("test/B", "test/b")]),
    ("train/a, train/b, test/unknown", "move them elsewhere", [("test/unknown", "/unknown")]),
]  # fmt: skip


@pytest.mark.parametrize("places, message, advice", LAYOUTS)
def test_the_advice_of_an_error_about_a_layout_helps(places, message, advice, tmp_path):
    root = plant(tmp_path / "photos", places)
    before = {path.read_bytes() for path in root.rglob("*.png")}
    for read in (load, load_streaming):
        with pytest.raises(ValueError, match=message) as caught:
            read(root, img_size=8)
        assert "remove" not in str(caught.value) and str(caught.value).count("\n") == 0
    for step in advice:
        if isinstance(step, str):
            plant(root, step)
        else:
            old, new = (root / name if name[0] != "/" else tmp_path / name[1:] for name in step)
            new.parent.mkdir(exist_ok=True, parents=True)
            old.rename(new)
    data = both(root)
    assert len(data.classes) > 1 and set(data.train.labels.tolist()) == {*range(len(data.classes))}
    assert before <= {path.read_bytes() for path in tmp_path.rglob("*.png")}


# Classes


@pytest.mark.parametrize(
    "places, classes, lines",
    [
        ("a 5, b 5, eel 0", "a b", ["left out, for it has no picture: eel"]),
        ("train/a 3, train/b 3, val/a, val/b 0, test/b", "a b",
         ["no validation picture of b", "no test picture of a"]),
        ("train/a 3, train/b 3, train/eel 0, test/a, test/b", "a b",
         ["left out, for it has no picture: eel"]),
        ("a 5, bee 1", "a bee", ["no test picture of bee: a class's last picture is for training",
         "no validation picture of bee: a class's last picture is for training"]),
        ("a 5, b 2", "a b", ["no validation picture of b: a class's last picture is for training"]),
        ("a 1, b 1", "a b", [f"no {part} picture of a, b: a class's last picture is for training"
                             for part in ("test", "validation")]),
    ],
)  # fmt: skip
def test_a_class_or_split_that_is_missing_is_said(places, classes, lines, tmp_path, capsys):
    data = both(plant(tmp_path, places))
    assert data.classes == tuple(classes.split())
    assert set(data.train.labels.tolist()) == {0, 1}
    assert said(capsys) == lines


def test_a_split_that_is_not_wanted_is_not_said_to_lack_a_class(tmp_path, capsys):
    data = both(plant(tmp_path, "a 3, bee 1"), validation=0, test=0, split_seed=5)
    assert [len(split) for split in splits(data)] == [4, 0, 0] and said(capsys) == []
    assert data.cut == {"split_seed": 5, "validation": 0, "test": 0}


def test_too_few_images(tmp_path):
    two_classes(tmp_path, n=3)
    photos = load(tmp_path, img_size=8)  # the least: one of each class in each split
    assert sizes(photos) == [2, 2, 2]


def test_the_advice_to_find_a_folder_helps(tmp_path):
    root = plant(tmp_path / "my photos", "a 3, b 3")
    for name, message, right in [
        ("my fotos", "Did you mean 'my photos'", "my photos"),
        ("digts", "Did you mean 'digits'", "digits"),
        ("my photos/a/0.png", "0.png is a file. Give a folder with one sub-folder per", root),
    ]:
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            load(name, root=tmp_path)
        load(right, root=tmp_path, img_size=8)


@pytest.mark.parametrize("move", [True, False])
def test_a_class_whose_pictures_are_all_broken(move, tmp_path):
    """Repaired, it is there; moved elsewhere, the class is left out."""
    root = plant(tmp_path / "photos", "a 3, b 3, eel 2")
    whole = {path: path.read_bytes() for path in (root / "eel").iterdir()}
    for path in whole:
        path.write_bytes(whole[path][:40])
    with pytest.raises(ValueError, match="no picture of eel is left to train on.*repair.*move"):
        load(root, img_size=8)
    for path in whole:
        path.rename(tmp_path / path.name) if move else path.write_bytes(whole[path])
    assert both(root).classes == ("a", "b", "eel")[: 2 if move else 3]


def test_a_pictures_side_does_not_depend_on_its_neighbours(tmp_path, capsys):
    """Nor on whether HEIC can be read here: load leaves out broken ones, and moves no other."""
    root = plant(tmp_path, "a 20, b 20")
    (root / "a" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    shares = dict(validation=0.2, test=0.3)
    before, sides = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*")), {}
    for broken in ([], ["a/3.png", "a/4.png", "b/7.png", "b/8.png", "b/9.png"]):
        for name in broken:
            (root / name).write_bytes((root / name).read_bytes()[:50])
        capsys.readouterr()
        parts, classes = layout.list_folder(root)
        cut, _, _ = data_module.three_parts(parts, classes, 0.2, 0.3, 0)
        data = load(root, img_size=8, **shares)
        errors = capsys.readouterr().err
        assert all(f"{name} (" in errors for name in broken) and "phone.heic (" in errors
        left = {"a/phone.heic", *broken}
        for part in cut:
            names = [path.relative_to(root).as_posix() for path in cut[part][0]]
            assert sides.setdefault(part, names) == names
            kept = [name for name in names if name not in left]
            images = [decoding.pixels(Image.open(root / name), 8) for name in kept]
            assert np.array_equal(np.stack(images), getattr(data, part).images)
    assert sorted(sum(sides.values(), [])) == before


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    root, whole = plant(tmp_path, "a 3, b 3, b/secret 2"), os.scandir

    def scandir(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(both(root, validation=0, test=0).train) == 6
    [line] = said(capsys)
    assert line.startswith("skipped") and "Permission denied" in line and "secret" in line
    with pytest.raises(ValueError, match="Permission denied.*secret"):
        load(root, strict=True)


# Links


def test_links_that_loop_and_folders_that_are_linked_twice(tmp_path):
    """No link leads upward, where red would find blue, and a folder counts once a class."""
    root = plant(tmp_path / "photos", "train/blue 2, train/red/real 2, test/blue, test/red, other")
    for i, target in enumerate(("..", "../..", "../../..", "real", "real", "../../other")):
        (root / "train" / "red" / f"link{i}").symlink_to(target, target_is_directory=True)
    (root / "train" / "blue" / "shared").symlink_to("../red/real", target_is_directory=True)
    (root / "train" / "blue" / "round").symlink_to("../red", target_is_directory=True)
    (root / "train" / "green").symlink_to("..", target_is_directory=True)
    data = both(root, validation=0)
    assert data.classes == ("blue", "red") and data.train.labels.tolist() == [0] * 5 + [1] * 3
    assert len({path.resolve() for path in data.train.paths}) == 5


# Pictures


@pytest.mark.parametrize("kind", ["text", "truncated JPEG", "truncated PNG"])
def test_files_that_are_no_pictures(kind, tmp_path, capsys):
    two_classes(tmp_path)
    bad = tmp_path / "red" / "05x.jpg"  # in the middle, so that labels could slip
    if "truncated" in kind:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(bad, kind.split()[1])
        bad.write_bytes(bad.read_bytes()[:-2000])
    else:
        bad.write_text("I am a shopping list", encoding="utf-8")
    assert load(tmp_path, validation=0, test=0).train.labels.tolist() == [0] * 10 + [1] * 10
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped, not a whole picture: ") and str(bad) in line
    with pytest.raises(ValueError, match="05x.jpg is not a whole picture"):
        load(tmp_path, strict=True)
    bad.rename(tmp_path / "05x.jpg")  # elsewhere, as the error says
    assert len(load(tmp_path, strict=True).train) == 14


def test_every_kind_of_picture_and_what_is_transparent_becomes_white():
    grey = Image.new("RGB", (8, 8), (102,) * 3)
    kinds = [grey.convert(mode) for mode in ("L", "RGBA", "LA", "P", "CMYK")]
    kinds.append(Image.fromarray(np.full((8, 8), 102 * 257, dtype=np.uint16)))  # 16 bits
    for image in kinds:
        pixels = decoding.pixels(image, 8)
        assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8 and (pixels == 102).all()
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    half.paste((200, 10, 0, 255), (0, 0, 4, 8))
    for image in (half, half.quantize(2)):  # the other one has a palette
        pixels = decoding.pixels(image, 8)
        assert pixels[:, 4, 1].tolist() == [200, 10, 0] and pixels[:, 4, 6].tolist() == [255] * 3


GREYS = [  # values, as kept in a file of this type, what they become, by which rule
    ("uint16", "png", [0, 102 * 257, 65535, 300], [0, 102, 255, 1], "0..65535"),
    ("uint16", "tiff", [0, 4095, 1000, 300], [0, 255, 62, 19], "0..4095"),
    ("uint16", "png", [0, 255, 7, 3], [0, 255, 7, 3], "0..255"),
    ("uint16", "png", [0, 1, 1, 0], [0, 255, 255, 0], "0..1"),
    (">u2", "tiff", [0, 65535, 256, 257], [0, 255, 1, 1], "0..65535"),
    ("int32", "tiff", [0, 65535, 514, 1], [0, 255, 2, 0], "0..65535"),
    ("int32", "tiff", [0, 256, 200, 255], [0, 16, 12, 16], "0..4095"),
    ("int32", "tiff", [-1000, 1000, 0, -1000], [0, 255, 128, 0], "lowest..highest"),
    ("int32", "tiff", [0, 2**31 - 1, 2**30, 65536], [0, 255, 128, 0], "lowest..highest"),
    ("uint32", "tiff", [0, 2**32 - 1, 2**31, 65536], [0, 255, 128, 0], "lowest..highest"),
    ("float32", "tiff", [0, 1, 0.5, 0.2], [0, 255, 128, 51], "0..1"),
    ("float32", "tiff", [0, 255, 127.6, 9], [0, 255, 128, 9], "0..255"),
    ("float32", "tiff", [-3e38, 3e38, 0, 3e38], [0, 255, 128, 255], "lowest..highest"),
    ("float32", "tiff", [np.nan, np.inf, 0.2, -np.inf], [0, 255, 51, 0], "0..1"),
    ("float32", "tiff", [np.nan, -2, 2, -2], [0, 0, 255, 0], "lowest..highest"),
]


def save_grey(path, values, kind):
    """A 16 x 16 picture, a quarter of each value."""
    array = np.array(values).astype(kind).reshape(2, 2).repeat(8, 0).repeat(8, 1)
    if kind == "uint32":  # for which Pillow has no mode
        Image.fromarray(array.view(np.int32)).save(path)
        signed, unsigned = (struct.pack("<HHIH", 339, 3, 1, form) for form in (2, 1))
        path.write_bytes(path.read_bytes().replace(signed, unsigned))
    elif kind == ">u2":
        Image.frombytes("I;16B", (16, 16), array.tobytes()).save(path)
    else:
        Image.fromarray(array).save(path)


@pytest.mark.parametrize("kind, ending, values, expected, rule", GREYS)
@pytest.mark.filterwarnings("error")
def test_grey_beyond_8_bits(kind, ending, values, expected, rule, tmp_path, capsys):
    """By the first range that holds all values, never wrapped, never silently black; and said."""
    two_classes(tmp_path, n=2)
    name = tmp_path / "red" / f"grey.{ending}"
    save_grey(name, values, kind)
    with Image.open(name) as image:
        assert image.mode[0] in "IF"
        found = decoding.pixels(image, None)[:, ::8, ::8]
    assert found.reshape(3, 4).tolist() == [expected] * 3
    both(tmp_path, validation=0, test=0)
    first, second = capsys.readouterr().err.splitlines()
    line = f"pictures of grey beyond 8 bits, {rule} as black..white: 1"
    assert (first, second) == (f"{line} ({name})", f"{line} of 5 that were measured ({name})")


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_a_picture_with_broken_exif_is_a_picture(ending, tmp_path, capsys):
    root = two_classes(tmp_path, n=2)
    tags = (b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05", b"Exif\0\0II*\0\xff\xff\xff\x7f")
    image = Image.open(root / "red" / "00.png").copy()
    for i, exif in enumerate(tags):
        image.save(root / "red" / f"x{i}.{ending}", exif=exif, quality=95)
    with pytest.warns(UserWarning):  # Pillow's own
        data = load(root, img_size=16, validation=0, test=0, strict=True)
    broken = data.train.images[data.train.labels == 1][2:].float()
    upright = torch.from_numpy(decoding.pixels(image, 16)).float()
    assert len(broken) == 3 and (broken - upright).abs().mean() < 6
    assert "picture" not in capsys.readouterr().err


@pytest.fixture
def heif(monkeypatch):
    """A stand-in for pillow-heif, which reads a BMP behind the twelve bytes of a HEIC."""

    class Reader(BmpImageFile):
        format = "FAKE"

        def _open(self):
            self.fp = io.BytesIO(self.fp.read()[12:])
            super()._open()

    def register():
        Image.register_open("FAKE", Reader, lambda head: head[4:12] == b"ftypheic")

    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))


def save_heic(path, brand=b"heic", shade=90):
    bmp = io.BytesIO()
    draw(path, (shade, 0, 200))
    Image.open(path).save(bmp, "BMP")
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bmp.getvalue())


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A folder with HEIC under any name, as phones and chats leave it."""
    two_classes(tmp_path, n=2)
    for name in ("a.png", "b.jpg"):
        save_heic(tmp_path / "red" / name)
    (tmp_path / "red" / "a.png").rename(tmp_path / "red" / "A.HEIC")
    return tmp_path


def test_heic_is_read_where_its_reader_is_installed(phone, heif, capsys):
    data = both(phone, validation=0, test=0)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1, 1] and said(capsys) == []
    assert decoding.pixels(decoding.open_picture(phone / "red" / "A.HEIC"), 8)[0, 6, 4] == 90


def test_heic_and_avif_are_named_with_what_to_install(phone, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    save_heic(phone / "red" / "c.png", b"avif")
    save_heic(phone / "red" / "film.png", b"isom")
    assert len(load(phone, img_size=8, validation=0, test=0).train) == 4
    lines = capsys.readouterr().err.splitlines()
    for name, what in [
        ("A.HEIC", "HEIC: pip install pillow-heif"),
        ("b.jpg", "HEIC: pip install pillow-heif"),
        ("c.png", "AVIF.*pip install -U pillow"),
        ("film.png", "cannot identify"),
    ]:
        assert any(re.search(f"skipped.*{name} .{what}", line) for line in lines)
    with pytest.raises(ValueError, match="A.HEIC is not a whole picture .HEIC: pip install"):
        load_streaming(phone, img_size=8, validation=0, test=0)


def test_pictures_in_one_colour_are_counted_and_named(tmp_path, capsys):
    """White lines on transparent ground, say, which white ground hides."""
    two_classes(tmp_path, n=2)
    drawing = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawing.paste((255, 255, 255, 255), (4, 4, 8, 8))
    for name in "vwxyz":
        drawing.save(tmp_path / "red" / f"{name}.png")
    both(tmp_path, validation=0, test=0)
    names = ", ".join(str(tmp_path / "red" / f"{name}.png") for name in "vwx")
    lines = capsys.readouterr().err.splitlines()
    start, end = "pictures that came out in one single colour: 5", f"({names} and 2 more)"
    assert lines == [f"{start} {end}", f"{start} of 9 that were measured {end}"]


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
        pixels = decoding.pixels(image, 32)
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
        (dict(is_test=None), "lacks is_test. It needs the keys data, offsets, labels, is_test, cl"),
        (dict(is_test=np.zeros(39, dtype=bool)), "40 labels, 39 is_test, 41 offsets.*needs n, n"),
        (dict(labels=np.zeros(41, dtype=np.uint8)), "41 labels, 40 is_test, 41 offsets"),
        (dict(offsets=np.arange(40)), "40 labels, 40 is_test, 40 offsets"),
        (dict(data=np.zeros(9, np.uint8)), "9 bytes. It needs.*the last offset equal"),
        (
            dict(labels=np.zeros(0, int), is_test=np.zeros(0, bool), offsets=np.zeros(1, int),
                 data=np.zeros(0, np.uint8)),
            "n at least 1",
        ),
        (dict(class_names=np.array(["sea", None], dtype=object)), "not a whole .npz.*Fetch it"),
        (dict(class_names=np.array(["sea"])), "labels 0 to 1 and 1 class names. Give.*more names"),
        (dict(labels=np.arange(40) - 1), "labels -1 to 38 and 2 class names. Give labels in 0 to"),
        (dict(labels=np.zeros(40, dtype=np.uint8)), "pictures of sea.* add pictures of another"),
        (dict(is_test=np.ones(40, dtype=bool)), "no picture of sea, sun is left.*Put some into tr"),
        (dict(offsets=np.zeros(41, dtype=int), data=np.zeros(0, np.uint8)), "leave out picture 0"),
        (dict(sizes=((24, 16), (16, 24))), "2 sizes. Pass img_size"),
    ],
)  # fmt: skip
def test_npz_that_is_wrong(changes, message, tmp_path):
    """What an error asks for is what save_npz writes: then it is read."""
    with pytest.raises(ValueError, match=message):
        load(save_npz(tmp_path / "sky.npz", **changes))
    sky = load(
        save_npz(tmp_path / "sky.npz", **(changes if "sizes" in changes else {})), img_size=9
    )
    assert sizes(sky) == [27, 3, 10]


def test_npz_with_a_name_too_many(tmp_path, capsys):
    data = load(save_npz(tmp_path / "sky.npz", class_names=np.array(["sea", "moon", "sun"]),
                         labels=np.arange(40, dtype=np.uint8) % 2 * 2))  # fmt: skip
    assert data.classes == ("sea", "sun") and set(data.test.labels.tolist()) == {0, 1}
    assert "left out, for it has no picture: moon" in capsys.readouterr().err
