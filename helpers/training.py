"""Train a ViT: one loop for a notebook, for a terminal and for several processes.

    history = fit(model, data, TrainConfig(epochs=5))     # python -m helpers.train does the same

AdamW with decoupled weight decay, linear warm-up and cosine decay, gradient clipping at norm 1,
label smoothing, small random changes to the training images. Loss and accuracy are counted over
samples. The validation split is looked at after every epoch, the test split once, at the end.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from tqdm import tqdm

from helpers.augmentation import EMA, Rows, augment, averaged, drop_path, erase, mix, normalize
from helpers.data import ImageData
from helpers.model import check
from helpers.recipes import SETTINGS, check_all, say_what_is_idle
from helpers.scale.devices import in_a_notebook
from helpers.scale.distributed import (
    compile_ahead,
    distribute,
    my_part,
    rank,
    sum_over_processes,
    world_size,
)
from helpers.scale.run_folder import RunFolder


@dataclass
class TrainConfig:
    """How to train. Defaults suit a small ViT on a few thousand small images."""

    epochs: int = 30  # passes over the training split
    batch_size: int = 64  # images a step
    lr: float = 1e-3  # the highest learning rate, reached after the warm-up
    weight_decay: float = 0.1  # AdamW's; matrices alone decay, see parameter_groups
    warmup: float = 0.1  # share of all steps in which the learning rate climbs
    grad_clip: float = 1.0  # largest norm of the gradient of all parameters together; inf: any
    label_smoothing: float = 0.1  # share of each label that is spread over all classes
    crop: float = 0.0  # least share of a streamed picture that a random crop shows; 0: none
    shift: float = 1.0  # training images move by up to this many pixels, each way
    rotate: float = 10.0  # they turn by up to this many degrees, each way
    zoom: float = 0.1  # they grow or shrink by up to this share
    policy: str = ""  # "trivial", "rand" or "auto": torchvision's augmentation policies
    erase: float = 0.0  # share of the images that lose a rectangle
    mixup: float = 0.0  # share of the pairs of images that are blended
    cutmix: float = 0.0  # share of the pairs that swap a rectangle
    drop_path: float = 0.0  # chance of the last block's branches to be left out, for one image
    ema: float = 0.0  # decay of the weights' running mean, which is then what is evaluated; 0: none
    seed: int = 0  # order of the images, augmentation, dropout
    device: str = "auto"  # "auto" takes cuda, then mps, then cpu
    precision: str = "auto"  # "float32", "bfloat16", or "auto": bfloat16 where it pays
    compile: bool = False  # torch.compile the training step's model
    fsdp: bool = False  # cut the weights into one share a process (torchrun)
    workers: int = 0  # processes that decode pictures, where they are streamed from files
    run_dir: str | None = None  # a folder for what a run leaves: helpers/scale/run_folder.py
    resume: bool = False  # go on from run_dir's newest whole state, if there is one
    tensorboard: bool = False  # write run_dir/tensorboard as well

    def __post_init__(self):
        """ValueError naming the first setting that makes no sense, and what it may be."""
        check(vars(self), SETTINGS)
        check({"mixup + cutmix": self.mixup + self.cutmix}, {"mixup + cutmix": SETTINGS["mixup"]})


@dataclass
class EpochRecord:
    """One epoch: mean loss and share of right answers (0..1), over samples.

    Where images are mixed, the right answer is the label of the larger share. validation_* are None
    where the data have no validation images.
    """

    epoch: int
    train_loss: float  # the quantity that is minimised: smoothed labels, augmented images
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float  # since training began, compiling left out


@dataclass
class History:
    """What happened in a training run. test_*: None if interrupted, or without test images."""

    epochs: list[EpochRecord] = field(default_factory=list)
    test_loss: float | None = None
    test_accuracy: float | None = None
    seconds: float = 0.0  # training and validation, without the look at the test split
    compile_seconds: float = 0.0  # before that, where config.compile asks for it
    device: str = ""
    precision: str = ""
    interrupted: bool = False


def learning_rate(step, steps, config):
    """The learning rate of a step counted from 0: a line up to config.lr, then a cosine to 0."""
    warmup_steps = max(1, round(config.warmup * steps))
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps  # starts above 0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model, weight_decay):
    """Two groups for AdamW: matrices decay; norms, biases and what a model exempts do not.

    A ViT says by no_weight_decay() which parameters are no matrices: positions and class token.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and not exempt & set(name.split("."))].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


@torch.no_grad()
def predict(model, data, images, batch_size=512):
    """Logits (n, K), float32, on the CPU, of uint8 images (n, C, H, W). In eval mode."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        batches = (normalize(batch.to(device), data) for batch in images.split(batch_size))
        return torch.cat([model(x).float().cpu() for x in batches])
    finally:
        model.train(was_training)


def evaluate(model, data, split="test", workers=0, batch_size=512, read=None):
    """(loss, accuracy) on a split of data, "train", "validation" or "test", over its samples.

    With several processes each looks at its part, and all get the result of the whole. read: the
    split's reader, where it is open already. ValueError if that split is empty.
    """
    chosen = getattr(data, split)
    if not len(chosen):
        raise ValueError(f"{data.name} has no {split} images: choose another split")
    read = read or chosen.reader(torch.device("cpu"), workers=workers)
    sums = torch.zeros(2, dtype=torch.float64)
    batches = torch.arange(len(chosen)).split(batch_size * world_size())
    parts = [my_part(len(batch)) for batch in batches]
    mine = [batch[part.start : part.stop] for batch, part in zip(batches, parts, strict=True)]
    for part, (x, y) in zip(parts, read(mine), strict=True):
        logits = predict(model, data, x, len(x))  # once, in each process: FSDP counts on it
        if part.counts:
            loss = F.cross_entropy(logits, y, reduction="sum")
            sums += torch.stack([loss.double(), (logits.argmax(1) == y).sum()])
    loss, accuracy = (sum_over_processes(sums) / len(chosen)).tolist()
    return loss, accuracy


# Training: a step, the batches of an epoch, an epoch, a run


def train_step(model, x, y, optimizer, config, precision, weight=1.0):
    """One step of the optimizer on images x (B, C, H, W), labels y: (B,), or (B, K) if mixed.

    weight: of the loss, see training_batches. Returns a tensor (2,) on x's device: the loss summed
    over the batch, how many were right.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(x)  # (B, K)
        loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
    optimizer.zero_grad()
    (loss * weight).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    right = (logits.argmax(1) == (y.argmax(1) if y.ndim == 2 else y)).sum()
    return torch.stack([loss.detach().float() * len(y), right])


def training_batches(data, config, generator, read):
    """One epoch of data.train: (images (b, C, H, W) ready for the model, labels, weight).

    read: the split's reader. The order is drawn for all processes; each takes its part of every
    batch, and weighs its loss by b over what it would be if all had the same share (0 where a batch
    is too small for all): with one process, 1.
    """
    order = torch.randperm(len(data.train), generator=generator)
    seed = torch.randint(2**31, (), generator=generator).item() if config.crop else 0
    batches = order.split(config.batch_size)
    parts = [my_part(len(batch)) for batch in batches]
    mine = [batch[part.start : part.stop] for batch, part in zip(batches, parts, strict=True)]
    for part, (x, y) in zip(parts, read(mine, seed), strict=True):
        rows = Rows(generator, part.total, part.start, part.stop)
        x = normalize(augment(x, config, data.flip, rows), data)
        if config.erase:
            x = erase(x, config, rows)
        if config.mixup or config.cutmix:
            x, y = mix(x, y, len(data.classes), config, rows)
        yield x, y, part.counts * len(y) * world_size() / part.total


def train_epoch(model, batches, optimizer, config, precision, step, steps, ema=None,
                after_step=None):  # fmt: skip
    """Notebook 10's loop over the batches of one epoch -> tensor (2,): summed loss, right answers.

    step: the number of the first of them, of steps in the whole run.
    """
    sums = 0
    for x, y, weight in batches:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        sums = sums + train_step(model, x, y, optimizer, config, precision, weight) * (weight > 0)
        if ema:
            ema.update()
        if step % 50 == 0:
            check_finite(sums[0].item(), step, config)
        step += 1
        if after_step:
            after_step()
    check_finite(sums[0].item(), step - 1, config)
    return sums


def fit(
    model: torch.nn.Module,
    data: ImageData,
    config: TrainConfig | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    facts: dict | None = None,
) -> History:
    """Train model in place on data.train; on_epoch is called with every epoch's record.

    model is a VisionTransformer, or, without a run_dir, drop-path and FSDP, anything that maps
    images (B, C, H, W) to logits (B, K) with a linear layer called head. Sets torch's seed to
    config.seed. With config.ema the model ends as the mean of its weights.

    Ctrl-C ends the training: the model gets the weights of the last whole epoch, and the history,
    which says interrupted, holds no test result. In a notebook KeyboardInterrupt then goes on, so
    that the stop button stops the cell. facts: what else run_dir/run.json should say, JSON-ready.
    FloatingPointError if the loss is no longer finite. Before the first step: ValueError for a
    model, data and settings that do not fit together, or a run_dir that holds another run, OSError
    for one that cannot be written.
    """
    config = config or TrainConfig()
    device, precision = check_all(model, data, config)
    say_what_is_idle(model, data, config)
    history = History(device=str(device), precision=precision)
    model.to(device)
    shared = distribute(model, config.fsdp)  # what a step calls: with one process, the model
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), fused=True)
    ema = EMA(model, config.ema) if config.ema else None
    generator = torch.Generator().manual_seed(config.seed)  # order, augmentation: for all processes
    folder = RunFolder(model, optimizer, ema, generator, data, config, precision, facts)
    read = data.train.reader(device, crop=config.crop, workers=config.workers)
    look = data.validation.reader(torch.device("cpu"), workers=config.workers)
    per_epoch = math.ceil(len(data.train) / config.batch_size)
    steps = config.epochs * per_epoch
    with folder, drop_path(model, config.drop_path), progress(steps) as bar:
        if config.compile:
            shared, history.compile_seconds = compile_ahead(model, shared, data, config, precision)
        torch.manual_seed(config.seed + rank())  # dropout and drop-path
        history.epochs = [EpochRecord(**record) for record in folder.start_or_resume()]
        done = len(history.epochs)
        bar.update(done * per_epoch)
        kept = weights_to_keep(model, ema)
        start = time.perf_counter() - (history.epochs[-1].seconds if history.epochs else 0)
        try:
            for epoch in range(done + 1, config.epochs + 1):
                model.train()
                batches = training_batches(data, config, generator, read)
                step = (epoch - 1) * per_epoch
                sums = train_epoch(shared, batches, optimizer, config, precision, step, steps,
                                   ema=ema, after_step=bar.update)  # fmt: skip
                train = (sum_over_processes(sums) / len(data.train)).tolist()
                seconds, validation = time.perf_counter() - start, (None, None)
                if len(data.validation):
                    with averaged(ema):
                        validation = evaluate(model, data, "validation", read=look)
                    bar.set_description(f"epoch {epoch}, validation {validation[1]:.1%}")
                history.epochs.append(EpochRecord(epoch, *train, *validation, seconds))
                kept = weights_to_keep(model, ema)
                folder.save([asdict(record) for record in history.epochs])
                if on_epoch and rank() == 0:
                    on_epoch(history.epochs[-1])
        except KeyboardInterrupt:
            history.interrupted = True
        history.seconds = time.perf_counter() - start
        read = look = None  # their workers end
        put(kept, model)
        if not history.interrupted and len(data.test):
            history.test_loss, history.test_accuracy = evaluate(model, data, "test", config.workers)
    if history.interrupted and in_a_notebook():
        raise KeyboardInterrupt(f"stopped after {len(history.epochs)} whole epochs")
    return history


def weights_to_keep(model, ema):
    """Copies of what the model shall end with: its weights or their mean, and its buffers."""
    weights = ema.average if ema else model.parameters()
    return [tensor.detach().clone() for tensor in [*weights, *model.buffers()]]


@torch.no_grad()
def put(kept, model):
    """What weights_to_keep has kept goes back into the model."""
    for tensor, copy in zip([*model.parameters(), *model.buffers()], kept, strict=True):
        tensor.copy_(copy)


def progress(steps):
    """A bar that counts steps, on the terminal of the first process alone."""
    hidden = True if rank() else None  # None: shown on a terminal, nowhere else
    return contextlib.closing(tqdm(total=steps, unit="step", dynamic_ncols=True, disable=hidden))


def check_finite(loss, step, config):
    """FloatingPointError with advice unless loss is a number; step counts from 0."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} by step {step + 1}: try a smaller lr than {config.lr}, or a "
            f"longer warm-up than {config.warmup}; a checkpoint that was saved before stays"
        )


if __name__ == "__main__":
    raise SystemExit("the command line is now: python -m helpers.train, with the same flags")
