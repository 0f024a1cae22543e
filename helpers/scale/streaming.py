"""Pictures that do not fit into memory: decoded from their files while training goes on.

    data = load_streaming("imagenet")                       # lists the files, opens nearly none
    fit(model, data, TrainConfig(workers=8))                # as with data from helpers.data.load

The images are those of helpers.data.load, and are changed as those are, so a run ends with the same
weights. With a crop, what a picture shows depends on the seed and on its number in the split alone:
not on its batch, nor on how many workers or processes share the work.
"""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2
from tqdm import tqdm

from helpers.augmentation import send
from helpers.data import (
    NAMED,
    ImageData,
    check_classes,
    check_numbers,
    digest_of,
    known_name,
    mean_and_std,
    places_of,
    three_parts,
)
from helpers.folders.decoding import noted, open_picture, pixels, tell, upright
from helpers.folders.layout import find, list_folder

SAMPLE = 1000  # files that mean and std are measured on


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Pictures as files: decoded when they are needed. Stands where a Split of tensors stands.

    n paths, int64 labels (n,), and the side in pixels of the squares that they become.
    """

    paths: tuple[Path, ...]
    labels: torch.Tensor
    img_size: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return 3, self.img_size, self.img_size

    def digest(self) -> str:
        """16 characters that stand for size, labels and names below the folder that holds all."""
        names = [str(path) for path in self.paths]
        start = os.path.commonprefix(names).rfind(os.sep) + 1
        text = "\0".join(name[start:] for name in names).replace(os.sep, "/")
        paths = np.frombuffer(os.fsencode(text), np.uint8).copy()
        return digest_of(torch.tensor(self.img_size), self.labels, torch.from_numpy(paths))

    def reader(
        self, device: torch.device, crop: float = 0.0, workers: int = 0
    ) -> Callable[..., Iterator]:
        """read(numbers, seed): uint8 images (b, 3, S, S) and labels (b,) on device, S = img_size.

        numbers: a list of tensors of numbers into this split, a batch each. One read at a time: a
            new one may begin before the last one's end, which is then lost.
        crop: 0: the shorter side becomes S and the centre is cut, as helpers.data.load does it.
            Otherwise a random part of at least this share of the picture's area becomes the square.
        seed: of the crops, together with a picture's number. Give each epoch another one.
        workers: processes that decode ahead, beside this one, for as long as the reader lives. 0:
            decode here, one batch at a time. They hand batches over in shared memory: two each, so
            a container needs room in /dev/shm.

        Reading raises ValueError, which names the file, at a batch with a broken picture. A program
        that uses workers needs `if __name__ == "__main__":` around it; a notebook does not.
        """
        wanted = _Wanted()
        loader = DataLoader(
            _Pictures(self, crop),
            batch_sampler=wanted,
            collate_fn=_collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context=_context() if workers else None,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws a number from the caller's
        )

        def read(numbers, seed=0):
            wanted.numbers, wanted.seed = numbers, seed
            for batch in loader:
                if isinstance(batch, Exception):  # raised in a worker, a traceback would hide it
                    raise batch
                images, labels = batch
                yield send(images, device), send(labels, device)

        return read


# From a folder to three splits of files


def load_streaming(
    folder: str | Path,
    root: str | Path | None = None,
    *,
    img_size: int = 224,
    split_seed: int = 0,
    validation: float = 0.1,
    test: float = 0.2,
) -> ImageData:
    """What helpers.data.load does with a folder of pictures, but its splits hold files.

    Arguments, layouts of the folder, classes and splits are load's: the same split_seed puts the
    same pictures on the same side. Nothing is decoded but up to 1,000 training pictures, at even
    distances, for mean and std. A file whose name does not end like a picture's is looked into, and
    named on stderr if it is none; a broken picture is found when it is needed, see reader.

    Raises load's errors, and ValueError for a data set that is no folder of pictures.
    """
    check_numbers(img_size, validation=validation, test=test, split_seed=split_seed)
    places = places_of(root)
    path = None if known_name(folder) else find(Path(folder).expanduser(), places, tuple(NAMED))
    if path is None or path.suffix == ".npz":
        raise ValueError(
            f"{str(folder)!r} is read into memory as a whole: use helpers.data.load, without "
            'streaming. What streams is a folder of pictures; one called digits is "./digits".'
        )

    name = path.resolve().name
    listed = list_folder(path.absolute())  # the working directory may change later
    parts, classes, cut = three_parts(*listed, validation, test, split_seed)
    splits = {
        part: FileSplit(tuple(paths), labels, img_size) for part, (paths, labels) in parts.items()
    }
    check_classes(splits, classes, cut)
    mean, std = sampled_mean_and_std(splits["train"])
    return ImageData(name=name, classes=classes, mean=mean, std=std, flip=True, cut=cut, **splits)


def sampled_mean_and_std(split: FileSplit, limit=SAMPLE):
    """Per channel, on the 0..1 scale, of at most limit pictures at even distances, centres cut out.

    With no more pictures than that they are the very numbers of helpers.data.load. ValueError for
    a broken picture among them.
    """
    numbers = np.linspace(0, len(split) - 1, min(limit, len(split))).round().astype(int)
    bar, notes = tqdm(numbers, "measuring mean and std", delay=2, leave=False, unit="img"), {}
    images = [
        _opened(path, partial(noted, path, img_size=split.img_size, notes=notes))
        for path in (split.paths[i] for i in bar)
    ]
    tell(notes, f" of {len(images)} that were measured")
    return mean_and_std(torch.from_numpy(np.stack(images)))


# From a split of files to batches


class _Wanted:
    """The batches that a loader is asked for: of each epoch anew, while its workers stay."""

    numbers, seed = (), 0

    def __iter__(self):
        for batch in self.numbers:
            yield [(self.seed, i) for i in batch.tolist()]

    def __len__(self):
        return len(self.numbers)


def _collate(items):
    """[(image, label), ...] -> (images, labels), or the first error among the items."""
    return next((x for x in items if isinstance(x, Exception)), None) or default_collate(items)


def _context():
    """How workers start: as copies of a server process that has done the slow imports already.

    A copy of this process (fork) would be as quick, but may hang: it is copied in the middle of
    whatever its other threads do, torch's or Jupyter's. Windows knows neither, only slow starts.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision.transforms.v2"])  # brings torch
    return context


class _Pictures(Dataset):
    """(seed, number) -> (image uint8 (3, S, S), label), or a ValueError that says what is wrong.

    The paths lie in one tensor of bytes: workers share a tensor, where each would have to copy a
    list of a million paths.
    """

    def __init__(self, split, crop):
        names = [os.fsencode(path) for path in split.paths]
        self.text = torch.from_numpy(np.frombuffer(b"".join(names), np.uint8).copy())
        self.ends = torch.tensor([0, *map(len, names)]).cumsum(0)
        self.labels, self.side, self.crop = split.labels, split.img_size, crop

    def __getitem__(self, key):
        seed, i = key
        start, stop = self.ends[i : i + 2].tolist()
        path = os.fsdecode(self.text[start:stop].numpy().tobytes())
        try:
            image = _opened(path, lambda image: self.decode(image, key))
        except ValueError as error:
            return error
        return torch.from_numpy(image), self.labels[i]

    def decode(self, image, key):
        """(3, S, S): the centre, or with crop a random part that (seed, number) decides."""
        if not self.crop:
            return pixels(image, self.side)
        # A large JPEG is decoded at a half, a quarter or an eighth of its size, where that is
        # enough for the smallest crop not to be enlarged; and crops may be 3 : 4.
        enough = math.ceil(self.side / (self.crop * 3 / 4) ** 0.5)
        image.draft(None, (enough, enough))
        image = upright(image)
        with torch.random.fork_rng(devices=[]):  # puts the global generator back afterwards
            mixed = np.random.SeedSequence(key).generate_state(1)  # like no neighbour's
            torch.default_generator.manual_seed(mixed.item())  # torchvision takes no generator
            cut = v2.RandomResizedCrop(self.side, scale=(self.crop, 1))(image)
        return np.asarray(cut).transpose(2, 0, 1).copy()


def _opened(path, function):
    """function(picture) of a file. ValueError, which says what to do, if it is no whole picture."""
    try:
        with open_picture(path) as image:
            return function(image)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not there. Put it back, or take away a link that leads nowhere, and load "
            "the folder again."
        ) from error
    except Exception as error:  # a broken file makes a decoder raise nearly anything
        raise ValueError(
            f"{path} is not a whole picture ({error}). Repair it or move it elsewhere. To have all "
            "such files of a folder named at once: helpers.data.load(folder, img_size=8)"
        ) from error
