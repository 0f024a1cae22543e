"""Pictures that do not fit into memory: decoded from their files while training goes on.

    data = load_streaming("imagenet")                       # lists the files, opens nearly none
    fit(model, data, TrainConfig(workers=8))                # as with data from helpers.data.load

What happens to a picture depends on the seed and on its number in the split, and on nothing else:
not on the batch that it is in, nor on how many workers or processes share the work.
"""

import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2
from tqdm import tqdm

from helpers.augmentation import send
from helpers.data import (
    NAMED,
    ImageData,
    check_numbers,
    known_name,
    mean_and_std,
    places_of,
    three_parts,
)
from helpers.folder import Files, check_present, find, list_folder, pixels, upright

SAMPLE = 1000  # files that mean and std are measured on
SMALLEST_CROP = 0.08  # share of a picture's area that a training image shows at least
EVALUATION_ZOOM = 256 / 224  # side of the whole picture over side of the centre that is kept


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

    def reader(
        self, device: torch.device, train: bool = False, flip: bool = True, workers: int = 0
    ) -> Callable[..., Iterator]:
        """read(numbers, seed): uint8 images (b, 3, S, S) and labels (b,) on device, S = img_size.

        numbers: a list of tensors of numbers into this split, a batch each. One read at a time: a
            new one may begin before the last one's end, which is then lost.
        train: a random crop, mirrored half the time unless flip is False, and one random change of
            colour or shape; otherwise the shorter side becomes S * 256 / 224, the centre is cut.
        seed: of the random numbers, together with a picture's number. Give each epoch another one.
        workers: processes that decode ahead, beside this one, for as long as the reader lives. 0:
            decode here, one batch at a time. They hand batches over in shared memory: two each, so
            a container needs room in /dev/shm.

        Reading raises ValueError, which names the file, at a batch with a broken picture. A program
        that uses workers needs `if __name__ == "__main__":` around it; a notebook does not.
        """
        wanted = _Wanted()
        loader = DataLoader(
            _Pictures(self, train, flip),
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
    check_numbers(img_size, validation, test)
    places = places_of(root)
    path = None if known_name(folder) else find(Path(folder).expanduser(), places, tuple(NAMED))
    if path is None or path.suffix == ".npz":
        raise ValueError(
            f"{str(folder)!r} is read into memory as a whole: use helpers.data.load, without "
            'streaming. What streams is a folder of pictures; one called digits is "./digits".'
        )

    name = path.resolve().name
    listed, classes = list_folder(path.absolute())  # the working directory may change later
    parts, paths = {}, []  # a part is (numbers into paths, labels), so that three_parts can cut it
    for part, (place, files) in listed.items():
        files = _pictures_among(files)
        labels = [label for _, label in files]
        check_present(place, classes, labels)
        parts[part] = torch.arange(len(files)) + len(paths), torch.tensor(labels)
        paths += [path for path, _ in files]
    parts = three_parts(name, parts, classes, validation, test, split_seed)
    splits = {
        part: FileSplit(tuple(paths[i] for i in numbers.tolist()), labels, img_size)
        for part, (numbers, labels) in parts.items()
    }
    mean, std = sampled_mean_and_std(splits["train"])
    return ImageData(name=name, classes=classes, mean=mean, std=std, flip=True, **splits)


def _pictures_among(files: Files) -> Files:
    """The files that are pictures by their names, or else by their first bytes."""
    Image.init()
    endings = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    kept = []
    for path, label in files:
        if path.suffix.lower() not in endings:
            try:
                Image.open(path).close()  # reads no more than the header
            except Exception as error:
                print(f"skipped, not a whole picture: {path} ({error})", file=sys.stderr)
                continue
        kept.append((path, label))
    return kept


def sampled_mean_and_std(split: FileSplit, limit=SAMPLE):
    """Per channel, on the 0..1 scale, of at most limit pictures at even distances, centres cut out.

    With no more pictures than that they are the very numbers of helpers.data.load. ValueError for
    a broken picture among them.
    """
    numbers = np.linspace(0, len(split) - 1, min(limit, len(split))).round().astype(int)
    bar = tqdm(numbers, "measuring mean and std", delay=2, leave=False, unit="img")
    images = [_opened(split.paths[i], lambda image: pixels(image, split.img_size)) for i in bar]
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

    def __init__(self, split, train, flip):
        names = [os.fsencode(path) for path in split.paths]
        self.text = torch.from_numpy(np.frombuffer(b"".join(names), np.uint8).copy())
        self.ends = torch.tensor([0, *map(len, names)]).cumsum(0)
        self.labels, side = split.labels, split.img_size
        whole = math.ceil(side * EVALUATION_ZOOM)
        changes = [
            v2.RandomResizedCrop(side, scale=(SMALLEST_CROP, 1)),
            v2.RandomHorizontalFlip(0.5 if flip else 0),
            v2.TrivialAugmentWide(),
        ]
        changes = changes if train else [v2.Resize(whole), v2.CenterCrop(side)]
        self.change = v2.Compose([*changes, v2.PILToTensor()])
        # A large JPEG is decoded at a half, a quarter or an eighth of its size, where that is
        # enough: in training, for the smallest crop not to be enlarged, and crops may be 3 : 4.
        self.enough = math.ceil(side / (SMALLEST_CROP * 3 / 4) ** 0.5) if train else 2 * whole

    def __getitem__(self, key):
        seed, i = key
        start, stop = self.ends[i : i + 2].tolist()
        path = os.fsdecode(self.text[start:stop].numpy().tobytes())
        with torch.random.fork_rng(devices=[]):  # puts the global generator back afterwards
            mixed = np.random.SeedSequence((seed, i)).generate_state(1)  # like no neighbour's
            torch.default_generator.manual_seed(mixed.item())  # torchvision takes no generator
            try:
                return _opened(path, self.decode), self.labels[i]
            except ValueError as error:
                return error

    def decode(self, image):
        image.draft(None, (self.enough, self.enough))  # JPEGs only
        return self.change(upright(image))


def _opened(path, function):
    """function(picture) of a file. ValueError, which says what to do, if it is no whole picture."""
    try:
        with Image.open(path) as image:
            return function(image)
    except Exception as error:  # a broken file makes a decoder raise nearly anything
        raise ValueError(
            f"{path} is not a whole picture ({error}). Repair or remove it. To have all such files "
            "of a folder named at once: helpers.data.load(folder, img_size=8)"
        ) from error
