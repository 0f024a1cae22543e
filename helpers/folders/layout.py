"""Which file of a folder belongs to which split and class.

Nothing is opened that has the name of a picture: helpers.data.load and load_streaming cut the
splits that are missing from this list, so no picture's side depends on its neighbours' health.
"""

import difflib
import functools
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch

from helpers.folders.decoding import Parts, endings, few, open_picture, skip

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
# What systems leave behind; and every name that starts with a dot
IGNORED = ("__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini")


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
    return [p for p in _visible(folder) if p.suffix.lower() in endings() and p.is_file()]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


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
            if path.suffix.lower() not in endings():
                open_picture(path).close()  # reads no more than the header
            kept.append(path)
        except Exception as error:
            skip(path, error, strict)
    return kept
