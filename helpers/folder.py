"""Your own pictures: a folder with one sub-folder per class, or an .npz of JPEG bytes.

Both readers return (parts, classes). parts maps "train", and where the pictures bring them
"validation" and "test", to a pair of uint8 images (n, 3, H, W) and int64 labels (n,).
helpers.data.load calls them and cuts the splits that are missing. list_folder does the same
without opening the pictures, for helpers.scale.streaming.
"""

import difflib
import functools
import io
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.datasets.folder import make_dataset
from tqdm import tqdm, trange

HELD_OUT = ("val", "valid", "validation", "test")
IGNORED = ("__macosx", "thumbs.db", "desktop.ini")  # and every name that starts with a dot

Parts = dict[str, tuple[torch.Tensor, torch.Tensor]]
Files = list[tuple[Path, int]]  # a picture and the number of its class


def find(path: Path, places: list[Path], names: tuple[str, ...]) -> Path:
    """path from the working directory or the first of places that has it: a folder or an .npz."""
    places = [Path(), *places]
    for found in (place / path for place in places):
        if found.is_dir() or (found.is_file() and found.suffix == ".npz"):
            return found
        if found.is_file():
            raise ValueError(f"{found} is a file. Give a folder with one sub-folder per class.")
    parents = [parent for place in places if (parent := (place / path).parent).is_dir()]
    beside = [sibling.name for parent in parents for sibling in parent.iterdir()]
    near = difflib.get_close_matches(path.name, [*names, *beside], n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"no data set and no folder is called {str(path)!r}.{guess} Data sets: {', '.join(names)}. "
        f"Folders were looked for in {', '.join(str(place.resolve()) for place in places)}."
    )


def read_folder(folder: Path, img_size: int, strict: bool) -> tuple[Parts, tuple[str, ...]]:
    """Read every picture of a folder laid out as list_folder says.

    A file that is no whole picture is skipped and named on stderr; with strict=True it is a
    ValueError.
    """
    listed, classes = list_folder(folder)
    read = {
        part: _read_files(place, files, classes, img_size, strict)
        for part, (place, files) in listed.items()
    }
    return read, classes


def list_folder(folder: Path) -> tuple[dict[str, tuple[Path, Files]], tuple[str, ...]]:
    """List folder/CLASS/PICTURE, or folder/train/CLASS/PICTURE with val/ and test/ beside train/.

    With train/ and one held-out folder, be it called val/ or test/, that folder is the test split.
    With all three each is what it is called. Classes are the sub-folders' names, sorted; a picture
    deeper inside belongs to the class too. Returns ({part: (its folder, what lies in it)},
    classes); no file is opened.
    """
    names = [path.name for path in _visible(folder) if path.is_dir()]
    splits = [name for name in names if name in ("train", *HELD_OUT)]
    if not splits:
        classes = _class_names(folder)
        return {"train": (folder, _list_classes(folder, classes))}, classes
    if "train" not in splits or splits != names:
        raise ValueError(
            f"{folder} holds {', '.join(names)}. It needs train/ with val/ or test/ beside it and "
            "nothing else, or one sub-folder for each class. Move or rename what does not belong."
        )
    held_out = [name for name in splits if name != "train"]
    if len(held_out) > 2 or (len(held_out) == 2 and "test" not in held_out):
        raise ValueError(f"{folder} holds {', '.join(held_out)}: keep one val/ and one test/.")

    classes = _class_names(folder / "train")
    for name in held_out:
        if (found := _class_names(folder / name)) != classes:
            raise ValueError(
                f"{folder / name} and train/ disagree about the classes: only in {name}/ "
                f"{sorted(set(found) - set(classes))}, only in train/ "
                f"{sorted(set(classes) - set(found))}. Give both the same sub-folders."
            )
    parts = {}
    for name in splits:
        alone = name != "train" and len(held_out) == 1
        part = "test" if alone else "validation" if name.startswith("val") else name
        parts[part] = folder / name, _list_classes(folder / name, classes)
    return parts, classes


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files and what macOS and Windows leave."""
    return [p for p in sorted(folder.iterdir(), key=lambda p: p.name) if not _is_hidden(p.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _class_names(folder: Path) -> tuple[str, ...]:
    inside = _visible(folder)
    classes = tuple(path.name for path in inside if path.is_dir())
    if not classes:
        raise ValueError(
            f"{folder} holds {len(inside)} files and no sub-folder. It needs one sub-folder for "
            "each class, with that class's pictures inside: cats/1.jpg, dogs/1.jpg."
        )
    return classes


def _list_classes(folder: Path, classes: tuple[str, ...]) -> Files:
    """By torchvision, as for ImageFolder: pictures in sub-folders of a class are among them."""

    real, seen = functools.cache(os.path.realpath), {}

    def shown(path):
        parts, where = Path(path).relative_to(folder).parts, os.path.dirname(path)
        # A folder counts once a class, so links that lead round in a circle add nothing.
        first = seen.setdefault((parts[0], real(where)), where)
        return first == where and not any(map(_is_hidden, parts))

    numbers = {name: i for i, name in enumerate(classes)}
    found = make_dataset(folder, numbers, is_valid_file=shown, allow_empty=True)
    return [(Path(path), label) for path, label in found]


def _read_files(folder: Path, files: Files, classes: tuple[str, ...], img_size: int, strict: bool):
    """The pictures -> images uint8 (n, 3, img_size, img_size), labels (n,)."""
    images, labels, skipped = [], [], []
    for path, label in tqdm(files, f"reading {folder.name}", delay=2, leave=False, unit="img"):
        try:
            with Image.open(path) as image:
                images.append(pixels(image, img_size))
            labels.append(label)
        except Exception as error:  # a broken file makes a decoder raise nearly anything
            if strict:
                raise ValueError(
                    f"{path} is not a whole picture ({error}). Repair or remove it, or pass "
                    "strict=False to skip such files."
                ) from error
            skipped.append(f"{path} ({error})")
    for line in skipped:
        print(f"skipped, not a whole picture: {line}", file=sys.stderr)

    check_present(folder, classes, labels)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def check_present(folder: Path, classes: tuple[str, ...], labels: list[int]) -> None:
    """ValueError if one of the classes has no picture in folder."""
    present = set(labels)
    for i, name in enumerate(classes):
        if i not in present:
            raise ValueError(
                f"{folder / name} holds no picture that can be read. Put some in, or remove the "
                "empty class folder."
            )


def pixels(image: Image.Image, img_size: int | None) -> np.ndarray:
    """Any picture -> uint8 (3, H, W), upright, in RGB, what is transparent made white.

    With img_size, H = W = img_size: the shorter side is fitted and the centre cut out.
    """
    if img_size:
        image.draft(None, (2 * img_size, 2 * img_size))  # a JPEG is decoded smaller, so sooner
    image = upright(image)
    if img_size:
        image = ImageOps.fit(image, (img_size, img_size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def upright(image: Image.Image) -> Image.Image:
    """Any picture in RGB: turned as its EXIF tag says, what is transparent made white."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def read_npz(file: Path, img_size: int | None) -> tuple[Parts, tuple[str, ...]]:
    """Read an .npz of JPEG bytes.

    Keys: data uint8 (all files' bytes, one after the other), offsets (n + 1,) where each begins
    and the last ends, labels (n,), is_test bool (n,), class_names (K,). Pictures keep their size,
    which must be one for all, unless img_size is given.
    """
    keys = ("data", "offsets", "labels", "is_test", "class_names")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in keys if key in archive}
    except Exception as error:  # a zip that breaks off is reported in many ways
        raise ValueError(f"{file} is not a whole .npz: {error}. Fetch it again.") from error
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{file} lacks {', '.join(missing)}. It needs the keys {', '.join(keys)}.")
    data, offsets, labels, is_test, names = arrays.values()
    n = len(labels)
    if len(offsets) != n + 1 or len(is_test) != n or n == 0 or int(offsets[-1]) != len(data):
        raise ValueError(
            f"{file} holds {n} labels, {len(is_test)} is_test, {len(offsets)} offsets up to "
            f"{offsets[-1:]} and {len(data)} bytes. It needs n, n, n + 1 and the last offset equal "
            "to the number of bytes, with n at least 1."
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"{file} has labels {labels.min()} to {labels.max()} and {len(names)} class names. "
            f"Labels must lie in 0 to {len(names) - 1}."
        )

    images, ends = [], offsets.tolist()
    for i in trange(n, desc=f"decoding {file.name}", delay=2, leave=False, unit="img"):
        try:
            with Image.open(io.BytesIO(data[ends[i] : ends[i + 1]])) as image:
                images.append(pixels(image, img_size))
        except Exception as error:
            raise ValueError(f"{file}: picture {i} is not whole ({error}).") from error
    if len(sizes := {image.shape for image in images}) > 1:
        raise ValueError(f"{file} holds pictures of {len(sizes)} sizes. Pass img_size, say 64.")

    images = torch.from_numpy(np.stack(images))
    labels = torch.from_numpy(labels.astype(np.int64))
    held_out = torch.from_numpy(is_test.astype(bool))
    parts = {"train": (images[~held_out], labels[~held_out])}
    if held_out.any():
        parts["test"] = (images[held_out], labels[held_out])
    return parts, tuple(str(name) for name in names)
