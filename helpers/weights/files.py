"""A file or a folder of weights -> tensors by name. Nothing in it is run: .safetensors, .npz and
.onnx are read as arrays alone, and pickles with weights_only=True. But for .onnx, the first bytes
tell what it is.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import torch
from safetensors import safe_open

from helpers.weights.onnx_file import onnx_tensors

SHOWN = 6  # names in a message before "and 12 more"
FOLDER = ("model.safetensors", "model.safetensors.index.json",
          "pytorch_model.bin", "pytorch_model.bin.index.json")  # fmt: skip
CONFIG_FILES = ("config.json", "preprocessor_config.json")  # beside the weights
NO_WEIGHTS = {  # how a file begins that is something else
    b"version https://git-lfs": "a pointer of Git LFS, not the file: git lfs pull fetches it",
    b"<": "a web page: download the file itself",
    b"\x89HDF": "HDF5, as Keras writes it, whose names are not known here",
}


def few(names):
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def opened(path):
    """A file or a folder -> (tensors by name, [what the files beside and inside it say])."""
    files, weights, configs = _files(path), {}, []
    for file in files:
        try:
            part, metadata = _content(file)
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # damaged bytes make the readers raise anything
            raise ValueError(f"{file} is not opened: {_reason(file, error)}") from error
        if not isinstance(part, Mapping):
            raise ValueError(f"{file} holds a {type(part).__name__}, a dict of tensors is needed")
        if twice := [name for name in part if name in weights]:
            raise ValueError(f"{few(twice)}: in {file.name} and in another part: copy both again")
        weights |= part
        configs += [metadata] if metadata else []
    for name in CONFIG_FILES:
        beside = files[0].with_name(name)
        if beside.is_file():
            try:
                configs.append(dict(json.loads(beside.read_text(encoding="utf-8"))))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{beside}, beside the weights, is no JSON object ({error}): copy it again, or "
                    "move the weights to another folder and say yourself what it should tell"
                ) from error
    return weights, configs


def _files(path):
    """The files of weights that a path means: itself, all parts of it, or those in a folder."""
    if path.is_dir():
        inside = next((path / name for name in FOLDER if (path / name).is_file()), None)
        if not inside:
            raise FileNotFoundError(f"no file of weights in the folder {path}: {', '.join(FOLDER)}")
        path = inside
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    if part := re.match(r"(.+)-\d+-of-\d+(\.\w+)$", path.name):  # one of several: all of them
        index = path.with_name(f"{part[1]}{part[2]}.index.json")
        path = index if index.is_file() else path
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted(
            path.with_name(name.replace("\\", "/").rpartition("/")[2]) for name in {*names}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not opened ({error!r}): Copy it again") from error
    if not files:
        raise ValueError(f"{path} is not opened, for it names no parts: Copy it again")
    if absent := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{path} names parts that are not beside it: {few(absent)}")
    return files


def _content(path):
    """(what a file holds, its metadata): safetensors, npz or torch.save, as its first bytes say."""
    with open(path, "rb") as file:
        head = file.read(64)
    for beginning, what in NO_WEIGHTS.items():
        if head.startswith(beginning):
            raise ValueError(what)
    if path.suffix.lower() == ".onnx":
        return onnx_tensors(path), None
    if head[8:9] == b"{":
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return weights, file.metadata()
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
        if all(name.endswith(".npy") for name in names):
            with np.load(path, allow_pickle=False) as file:
                return dict(file), None
    with open(path, "rb") as file:  # by its name, torch would go by the suffix
        return torch.load(file, map_location="cpu", weights_only=True), None


def _reason(path, error):
    """Why a file is not opened and what to do: of a pickle, the classes that it needs."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without colours for a terminal
    classes = []
    if isinstance(error, pickle.UnpicklingError):
        needed = re.findall(r"GLOBAL ([\w.]+)|class '([\w.]+)'", text)
        classes = list(dict.fromkeys(a or b for a, b in needed))
        if zipfile.is_zipfile(path):  # which can be asked for all of them
            with suppress(Exception):
                classes = torch.serialization.get_unsafe_globals_in_checkpoint(path) or classes
    if classes:
        return (
            f"it holds more than tensors and needs {few(classes)}, which could run code. Ask for "
            "the state dict alone, as .safetensors. If you trust the file and have them, allow "
            "them by torch.serialization.add_safe_globals([...]) and call again"
        )
    lines = re.findall(r"WeightsUnpickler error: (.*)", text) or text.splitlines() or [""]
    return (
        f"{type(error).__name__}: {lines[0]}. It is no whole .safetensors, .npz, .onnx or file of "
        "torch.save, or holds more than tensors, which could run code. Copy it again, or ask for "
        "the state dict alone, as .safetensors"
    )
