"""Pictures that do not fit into memory: decoded from their files while training goes on.

    data = load_streaming("imagenet")                       # lists the files, opens nearly none
    for images, labels in loader(data.train, batches, train=True, seed=epoch, workers=8):
        ...                                                 # uint8 (b, 3, 224, 224), int64 (b,)

What happens to a picture depends on the seed and on its number in the split, and on nothing else:
not on the batch that it is in, nor on how many workers or processes share the work.
"""

import math
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2
from tqdm import tqdm

from helpers.data import (
    DATA_FOLDER,
    NAMED,
    ImageData,
    _check_classes,
    _cut,
    _known_name,
    mean_and_std,
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
    named on stderr if it is none; a broken picture is found when it is needed, see loader.

    Raises load's errors, and ValueError for a data set that is no folder of pictures.
    """
    if img_size < 1:
        raise ValueError(f"img_size is {img_size}; it needs to be a number of pixels, 1 or more.")
    for share, value in (("validation", validation), ("test", test)):
        if not 0 <= value < 1:
            raise ValueError(f"{share} is {value}; it is a share of the images, 0 <= share < 1.")
    places = [DATA_FOLDER if root is None else Path(root).expanduser()]
    if os.environ.get("VIT_DATA"):
        places.append(Path(os.environ["VIT_DATA"]).expanduser())
    path = None if _known_name(folder) else find(Path(folder).expanduser(), places, tuple(NAMED))
    if path is None or path.suffix == ".npz":
        raise ValueError(
            f"{str(folder)!r} is read into memory as a whole: use helpers.data.load, without "
            'streaming. What streams is a folder of pictures; one called digits is "./digits".'
        )

    name = path.resolve().name
    listed, classes = list_folder(path.absolute())  # the working directory may change later
    parts, paths = {}, []  # a part is (numbers into paths, labels), so that _cut can cut it
    for part, (place, files) in listed.items():
        files = _pictures_among(files)
        labels = [label for _, label in files]
        check_present(place, classes, labels)
        parts[part] = torch.arange(len(files)) + len(paths), torch.tensor(labels)
        paths += [path for path, _ in files]
    _check_classes(name, parts["train"][1], classes)
    for part, share in (("test", test), ("validation", validation)):
        if part not in parts:
            parts["train"], parts[part] = _cut(*parts["train"], classes, part, share, split_seed)
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


def loader(split, batches, *, train, seed=0, workers=0, pin_memory=False, flip=True) -> DataLoader:
    """An iterable over batches: images uint8 (b, 3, S, S), labels int64 (b,), with S = img_size.

    split: a FileSplit.
    batches: a list of lists of numbers into split, which come in this order.
    train: a random crop, mirrored half the time unless flip is False, and one random change of
        colour or shape; otherwise the shorter side becomes S * 256 / 224 and the centre is cut out.
    seed: of the random numbers, together with the number of an image. Give each epoch another one.
    workers: processes that decode ahead, beside this one. 0: decode here, one batch at a time.
        They hand batches over in shared memory: two each, so a container needs room in /dev/shm.
    pin_memory: batches lie in page-locked memory, from where copies to a GPU are faster.

    Iterating raises ValueError, which names the file, at a batch with a broken picture. A program
    that uses workers needs `if __name__ == "__main__":` around what it does; a notebook does not.
    """
    options = {}
    if workers:
        options["multiprocessing_context"] = _context()
    return _Loader(
        _Decoder(split, train, seed, flip),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin_memory and torch.cuda.is_available(),  # torch warns where there is no GPU
        generator=torch.Generator(),  # else it draws a number from the caller's
        **options,
    )


class _Loader(DataLoader):
    """A DataLoader that raises what a worker hands over: raised there, a traceback would hide it"""

    def __iter__(self):
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


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


class _Decoder(Dataset):
    """Number -> (image uint8 (3, S, S), label), or the ValueError that says what is wrong.

    The paths lie in one tensor of bytes: workers share a tensor, where each would have to copy a
    list of a million paths.
    """

    def __init__(self, split, train, seed, flip):
        names = [os.fsencode(path) for path in split.paths]
        self.text = torch.from_numpy(np.frombuffer(b"".join(names), np.uint8).copy())
        self.ends = torch.tensor([0, *map(len, names)]).cumsum(0)
        self.labels, self.seed, side = split.labels, seed, split.img_size
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

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        start, stop = self.ends[i : i + 2].tolist()
        path = os.fsdecode(self.text[start:stop].numpy().tobytes())
        with torch.random.fork_rng(devices=[]):  # puts the global generator back afterwards
            mixed = np.random.SeedSequence((self.seed, i)).generate_state(1)  # like no neighbour's
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


def images_per_second(split, *, batch_size, workers, train=True, limit=512) -> float:
    """How many images a second loader gives to one who does nothing but take them.

    limit: how many are timed, at least, in whole batches; beyond the split's end it starts again at
    its beginning. The start of the workers and everyone's first batch come before the clock starts.
    ValueError for an empty split.
    """
    if not len(split):
        raise ValueError("the split is empty: there is nothing to measure")
    turn = max(1, workers)  # batches that are in the making at a time
    timed = turn * math.ceil(limit / batch_size / turn)
    numbers = [i % len(split) for i in range((turn + timed) * batch_size)]
    batches = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    for k, _ in enumerate(loader(split, batches, train=train, workers=workers), start=1):
        if k == turn:
            start = time.perf_counter()
    return timed * batch_size / (time.perf_counter() - start)
