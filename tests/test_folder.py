"""helpers/folder.py, through helpers.data.load: pictures in folders, and an .npz of JPEG bytes."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torchvision.datasets import ImageFolder

from helpers import data as data_module
from helpers import folder
from helpers.data import load
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
            assert np.array_equal(folder.pixels(folder.open_picture(path), 8), image)
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
    listed, classes = folder.list_folder(tmp_path)
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
        ("train 2", "2 pictures beside the folders of train"),
        (". 2", "2 pictures beside the folders of photos"),
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
        parts, classes = folder.list_folder(root)
        cut, _, _ = data_module.three_parts(parts, classes, 0.2, 0.3, 0)
        data = load(root, img_size=8, **shares)
        errors = capsys.readouterr().err
        assert all(f"{name} (" in errors for name in broken) and "phone.heic (" in errors
        left = {"a/phone.heic", *broken}
        for part in cut:
            names = [path.relative_to(root).as_posix() for path in cut[part][0]]
            assert sides.setdefault(part, names) == names
            kept = [name for name in names if name not in left]
            images = [folder.pixels(Image.open(root / name), 8) for name in kept]
            assert np.array_equal(np.stack(images), getattr(data, part).images)
    assert sorted(sum(sides.values(), [])) == before


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
        bad.write_text("I am a shopping list")
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
        (dict(labels=np.zeros(40, dtype=np.uint8)), "pictures of sea, and telling apart needs two"),
        (dict(offsets=np.zeros(41, dtype=int), data=np.zeros(0, np.uint8)), "picture 0"),
    ],
)
def test_npz_that_is_wrong(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(save_npz(tmp_path / "sky.npz", **changes))
