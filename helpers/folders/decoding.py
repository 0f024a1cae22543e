"""From a file to pixels: what a person sees in a picture is what is read."""

import contextlib
import functools
import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm, trange

# By split: files (n,) or images uint8 (n, C, H, W), and int64 labels (n,)
Parts = dict[str, tuple[np.ndarray | torch.Tensor, torch.Tensor]]

TOPS = 1, 255, 4095, 65535  # grey beyond 8 bits: what white may be
HEIF = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"


def few(names) -> str:
    """The first three names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@functools.cache
def endings() -> set[str]:
    """How names of pictures end: of all that Pillow opens, and HEIC, be its reader there or not."""
    Image.init()
    known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return known | {".heic", ".heif", ".hif", ".avif"}


def skip(path: Path, error: Exception, strict: bool) -> None:
    """Name a file that is no whole picture on stderr, or with strict=True in a ValueError."""
    if strict:
        raise ValueError(
            f"{path} is not a whole picture ({error}). Repair it or move it elsewhere, or pass "
            "strict=False to skip such files."
        ) from error
    print(f"skipped, not a whole picture: {path} ({error})", file=sys.stderr)


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
