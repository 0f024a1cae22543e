"""Your own pictures: a folder with one sub-folder per class, or an .npz of JPEG bytes.

list_folder says which file belongs to which split and class; read_parts decodes them. In between
helpers.data.load cuts the splits that are missing, so that no picture's side depends on its
neighbours' health. helpers.scale.streaming lists and cuts in the same way.
"""

import contextlib
import difflib
import functools
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm, trange

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
# What systems leave behind; and every name that starts with a dot
IGNORED = ("__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini")
TOPS = 1, 255, 4095, 65535  # grey beyond 8 bits: what white may be
HEIF = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"

# By split: files (n,) or images uint8 (n, C, H, W), and int64 labels (n,)
Parts = dict[str, tuple[np.ndarray | torch.Tensor, torch.Tensor]]


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


def few(names) -> str:
    """The first three names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def list_folder(folder: Path, strict: bool = False) -> tuple[Parts, tuple[str, ...]]:
    """({part: (paths, labels)}, classes) of folder/CLASS/PICTURE or folder/SPLIT/CLASS/PICTURE.

    A split is a folder of folders with train, val or test as a word of its name, as in seg_train. A
    lone val/ beside train/ is the test split. A folder in a folder is looked through. Classes are
    sorted; pictures deeper inside belong to them too. What was guessed is said on stderr.
    """
    places, aside = _layout(folder)
    classes = tuple(sorted({path.name for place in places.values() for path in _folders(place)}))
    for place in sorted({folder, *places.values()}):
        if loose := len(_pictures_in(place)):
            aside.append(f"pictures beside the folders of {place.name} ({loose})")
    plain = {folder / name for name in ("", "train", *SPLITS["validation"][:3], "test")}
    if aside or any(map(split_of, classes)) or not plain.issuperset(places.values()):
        guess = [f"{part} = {os.path.relpath(x, folder.parent)}" for part, x in places.items()]
        guess = ", ".join(guess).replace("train", "training", 1)
        guess += f", {len(classes)} classes" + (f"; left out: {few(aside)}" if aside else "")
        print(f"read {folder} as: {guess}", file=sys.stderr)
    parts = {}
    for part, place in places.items():
        there = {path.name: path for path in _folders(place)}
        found = [_below(there[x], strict) if x in there else [] for x in classes]
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([*map(len, found)]))
        parts[part] = np.array([path for paths in found for path in paths], dtype=object), labels
    return parts, classes


def _layout(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """({split: where its class folders lie}, what else there is), or ValueError with the guess."""
    top = _unwrapped(folder)
    inside = _folders(top)

    def refuse(why):
        names = few(path.name for path in inside) or f"{len(_visible(top))} files and no sub-folder"
        raise ValueError(f"{top} holds {names}. {why}")

    if not inside:
        refuse("It needs one with pictures for each class: cats/1.jpg, dogs/1.jpg.")
    splits = {path: split for path in inside if (split := split_of(path.name))}
    full = [path for path in splits if any(map(_visible, _folders(path)))]
    alike = len(splits) == len(inside) > 1
    if all(map(_pictures_in, full)) and not (alike and full):  # what holds pictures is a class
        if alike:
            why = "These look like splits without folders for classes: put pictures into some, say"
            refuse(f"{why} train/cats/1.jpg. If they are classes, give one of them another name.")
        if all(any(split_of(x.name) == "train" for x in _folders(path)) for path in inside):
            why = "Each looks like a class with splits of its own. Turn all of them round: "
            refuse(f"{why}{inside[0].name}/train/ becomes train/{inside[0].name}/.")
        return {"train": top}, []

    places = {splits[path]: path for path in full}
    aside = [path for path in inside if path not in full]
    guess = "It looks like " + ", ".join(f"{splits[path]} = {path.name}/" for path in full)
    if len(places) < len(full):
        refuse(f"{guess}. Put what is of one split together into one folder.")
    if "train" not in places or (len(places) == 1 and any(path not in splits for path in aside)):
        refuse(
            f"{guess}, but what is the rest? Put class folders to train on into train/, to test on "
            "into test/, and a dot before the name of what is neither. A class that holds folders "
            "needs a name without train, val or test in it."
        )
    if len(places) == 2 and "test" not in places:
        places["test"] = places.pop("validation")
    places["train"] = _unwrapped(places["train"])
    classes = [path.name for path in _folders(places["train"])]
    places = {part: _unwrapped(places[part], classes) for part in SPLITS if part in places}
    return places, [path.name for path in aside]


def split_of(name: str) -> str | None:
    """The split that a folder's name speaks of: seg_train, TestSet, dev. None: of none or two."""
    words = {word.lower().removesuffix("set") for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}
    found = [split for split, known in SPLITS.items() if words.intersection(known)]
    return found[0] if len(found) == 1 else None


def _unwrapped(folder: Path, classes=()) -> Path:
    """Down through folders that hold one folder of folders and no pictures, unless it's a class."""
    while len(inside := _folders(folder)) == 1 and inside[0].name not in classes:
        if not _folders(inside[0]) or _pictures_in(inside[0]):
            break
        folder = inside[0]
    return folder


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without what is hidden or left by macOS and Windows."""
    return [p for p in sorted(folder.iterdir(), key=lambda p: p.name) if not _is_hidden(p.name)]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _pictures_in(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.suffix.lower() in _endings() and p.is_file()]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


@functools.cache
def _endings() -> set[str]:
    """How names of pictures end: of all that Pillow opens, and HEIC, be its reader there or not."""
    Image.init()
    known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return known | {".heic", ".heif", ".hif", ".avif"}


def _below(folder: Path, strict: bool) -> list[Path]:
    """All pictures in a class folder, however deep, in the order of torchvision's ImageFolder.

    A folder counts once, and one that this lies in never: links may lead round in a circle.
    """
    above = Path(os.path.realpath(folder.parent))
    seen, found, kept = {str(above), *map(str, above.parents)}, [], []
    told = functools.partial(skip, folder, strict=strict)  # of a folder that may not be read
    for where, folders, names in os.walk(folder, followlinks=True, onerror=told):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [(where, name) for name in names if not _is_hidden(name)]
    for path in (Path(*x) for x in sorted(found)):
        try:
            if path.suffix.lower() not in _endings():
                open_picture(path).close()  # reads no more than the header
            kept.append(path)
        except Exception as error:
            skip(path, error, strict)
    return kept


def skip(path: Path, error: Exception, strict: bool) -> None:
    """Name a file that is no whole picture on stderr, or with strict=True in a ValueError."""
    if strict:
        raise ValueError(
            f"{path} is not a whole picture ({error}). Repair it or move it elsewhere, or pass "
            "strict=False to skip such files."
        ) from error
    print(f"skipped, not a whole picture: {path} ({error})", file=sys.stderr)


# From files to tensors


def read_parts(parts: Parts, img_size: int, strict: bool) -> Parts:
    """Files -> images uint8 (n, 3, img_size, img_size), without those that are no whole picture."""
    notes, read = {}, {}
    for part, (paths, labels) in parts.items():
        broken, images = {}, torch.zeros((len(paths), 3, img_size, img_size), dtype=torch.uint8)
        for i, path in enumerate(tqdm(paths, f"reading {part}", delay=2, leave=False, unit="img")):
            try:
                with open_picture(path) as image:
                    images[i] = torch.from_numpy(noted(path, image, img_size, notes))
            except Exception as error:  # a broken file makes a decoder raise nearly anything
                broken[i] = error
        for i, error in broken.items():
            skip(paths[i], error, strict)
        whole = [i for i in range(len(paths)) if i not in broken]
        read[part] = (images[whole], labels[whole]) if broken else (images, labels)
    tell(notes)
    return read


def noted(name, image: Image.Image, img_size: int | None, notes: dict[str, list]) -> np.ndarray:
    """pixels(image, img_size), with name in notes under whatever is odd about the picture."""
    array = pixels(image, img_size)
    if scale := getattr(image, "scaled", None):
        notes.setdefault(f"of grey beyond 8 bits, {scale} as black..white", []).append(name)
    if (array == array[:, :1, :1]).all():
        notes.setdefault("that came out in one single colour", []).append(name)
    return array


def tell(notes: dict[str, list], among: str = "") -> None:
    for what, names in notes.items():
        print(f"pictures {what}: {len(names)}{among} ({few(names)})", file=sys.stderr)


def open_picture(file) -> Image.Image:
    """Image.open, and HEIC where pillow-heif is installed; otherwise the error says what to do."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        with open(file, "rb") as stream:
            head = stream.read(12)
        if head[4:] in (b"ftypavif", b"ftypavis"):
            raise ValueError("AVIF, which this Pillow cannot read: pip install -U pillow") from None
        if head[4:8] != b"ftyp" or head[8:] not in HEIF:
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ValueError("HEIC: pip install pillow-heif") from None
    register_heif_opener()
    return Image.open(file)


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
    image.load()
    with contextlib.suppress(Exception):  # broken tags make no broken picture
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey beyond 8 bits, with a note in image.scaled of what became black and white.

    That is the first of 0..1, 0..255, 0..4095, 0..65535 which holds all of the picture's values,
    or else its own lowest and highest. NaN becomes black.
    """
    values, tags = np.asarray(image).astype(np.float64), getattr(image, "tag_v2", {})
    if tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):  # Pillow wraps unsigned 32 bits
        values %= 2**32
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    top = next((top for top in TOPS if 0 <= low and high <= top), None)
    image.scaled = f"0..{top}" if top else "lowest..highest"
    low, high = (0, top) if top else (low, high)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return Image.fromarray(np.rint((values - low) * 255 / (high - low or 1)).astype(np.uint8))


def read_npz(file: Path, img_size: int | None) -> tuple[Parts, tuple[str, ...]]:
    """Read an .npz of JPEG bytes.

    Keys: data uint8 (all files' bytes, one after the other), offsets (n + 1,) where each begins and
    the last ends, labels (n,), is_test bool (n,), class_names (K,). Without img_size the pictures
    keep their size, which must be one for all.
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
            f"{file} holds {n} labels, {len(is_test)} is_test, {len(offsets)} offsets, {len(data)} "
            "bytes. It needs n, n and n + 1, n at least 1, and the last offset equal to the bytes."
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"{file} has labels {labels.min()} to {labels.max()} and {len(names)} class names. "
            f"Give labels in 0 to {len(names) - 1}, or more names."
        )

    images, ends, notes = [], offsets.tolist(), {}
    for i in trange(n, desc=f"decoding {file.name}", delay=2, leave=False, unit="img"):
        try:
            with Image.open(io.BytesIO(data[ends[i] : ends[i + 1]])) as image:
                images.append(noted(f"number {i}", image, img_size, notes))
        except Exception as error:
            raise ValueError(f"{file}: leave out picture {i}, not whole ({error}).") from error
    tell(notes)
    if len(sizes := {image.shape for image in images}) > 1:
        raise ValueError(f"{file} holds pictures of {len(sizes)} sizes. Pass img_size, say 64.")

    images = torch.from_numpy(np.stack(images))
    labels = torch.from_numpy(labels.astype(np.int64))
    held_out = torch.from_numpy(is_test.astype(bool))
    parts = {"train": (images[~held_out], labels[~held_out])}
    if held_out.any():
        parts["test"] = (images[held_out], labels[held_out])
    return parts, tuple(str(name) for name in names)
