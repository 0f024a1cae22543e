"""Train a ViT: one loop for a notebook and for a terminal.

    python -m helpers.training                                   # digits, about ten seconds
    python -m helpers.training --data fashion-mnist --epochs 5
    python -m helpers.training --data path/to/photos --patch-size 8

AdamW with decoupled weight decay, linear warm-up and cosine decay, gradient clipping at norm 1,
label smoothing, small random moves, turns and mirrors of the training images. Loss and accuracy are
counted over samples. The validation split is looked at after every epoch, the test split once, at
the end.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from helpers.data import ImageData
from helpers.model import VisionTransformer


@dataclass
class TrainConfig:
    """How to train. Defaults suit a small ViT on a few thousand small images."""

    epochs: int = 30  # passes over the training split
    batch_size: int = 64  # images a step
    lr: float = 1e-3  # the highest learning rate, reached after the warm-up
    weight_decay: float = 0.1  # AdamW's; matrices alone decay, see parameter_groups
    warmup: float = 0.1  # share of all steps in which the learning rate climbs
    grad_clip: float = 1.0  # largest norm of the gradient of all parameters together
    label_smoothing: float = 0.1  # share of each label that is spread over all classes
    shift: float = 1.0  # training images move by up to this many pixels, each way
    rotate: float = 10.0  # they turn by up to this many degrees, each way
    zoom: float = 0.1  # they grow or shrink by up to this share
    seed: int = 0  # order of the images, augmentation, dropout
    device: str = "auto"  # "auto" takes cuda, then mps, then cpu
    precision: str = "auto"  # "float32", "bfloat16", or "auto": bfloat16 where it pays
    run_dir: str | None = None  # a folder for last.safetensors, written after every epoch


@dataclass
class EpochRecord:
    """One epoch: mean loss and share of right answers (0..1), over samples."""

    epoch: int
    train_loss: float  # the quantity that is minimised: smoothed labels, augmented images
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float  # since training began


@dataclass
class History:
    """What happened in a training run. test_* are None if it was interrupted."""

    epochs: list[EpochRecord] = field(default_factory=list)
    test_loss: float | None = None
    test_accuracy: float | None = None
    seconds: float = 0.0  # training and validation, without the look at the test split
    device: str = ""
    precision: str = ""
    interrupted: bool = False


def choose_device(name="auto"):
    """The torch.device called name; "auto" is cuda, then mps, then cpu."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(name, device, width):
    """ "float32" or "bfloat16". "auto" takes bfloat16 where it was measured to be faster.

    That is on GPUs that multiply it, and on CPUs that do if tokens are at least 128 wide: below
    that, a step on a CPU is spent on other things than products. ValueError for another name.
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise ValueError(f'precision is {name!r}: choose "auto", "float32" or "bfloat16"')
    if name != "auto":
        return name
    if device.type == "cuda":
        pays = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        pays = device.type == "cpu" and width >= 128 and cpu_multiplies_bfloat16()
    return "bfloat16" if pays else "float32"


def cpu_multiplies_bfloat16():
    """Whether this CPU has instructions for it; False with a torch too old to tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def learning_rate(step, steps, config):
    """The learning rate of a step counted from 0: a line up to config.lr, then a cosine to 0."""
    warmup_steps = max(1, round(config.warmup * steps))
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps  # starts above 0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model, weight_decay):
    """Two groups for AdamW: matrices decay; norms, biases, positions and the class token do not."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and name not in ("pos_embed", "cls_token")
        groups[decays].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def augment(images, config, flip):
    """A small random change to each image (B, C, H, W) by itself -> float32, same shape and scale.

    One affine map an image: moved by up to config.shift pixels, turned by up to config.rotate
    degrees, scaled by 1 +- config.zoom, mirrored with probability 1/2 if flip. What comes in from
    outside is black.
    """
    B, _, H, W = images.shape
    shift, angle, zoom, mirror = torch.rand(4, B, 2, device=images.device) * 2 - 1  # each (B, 2)
    angle = math.radians(config.rotate) * angle[:, 0]
    scale = 1 + config.zoom * zoom[:, :1].expand(B, 2)
    if flip:
        scale = scale * torch.stack([mirror[:, 0].sign(), torch.ones_like(angle)], dim=1)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin * H / W, sin * W / H, cos], dim=1).view(B, 2, 2)
    pixel = 2 / torch.tensor([W, H], device=images.device)  # affine_grid's image is 2 wide, 2 high
    move = shift * config.shift * pixel
    affine = torch.cat([turn * scale[:, :, None], move[:, :, None]], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(affine, images.shape, align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images.float(), grid, align_corners=False)


def normalize(images, data):
    """uint8 (B, C, H, W) -> float32 with the training split's mean 0 and standard deviation 1."""
    mean, std = (
        torch.tensor(numbers, device=images.device)[:, None, None]  # (C, 1, 1)
        for numbers in (data.mean, data.std)
    )
    return (images / 255 - mean) / std


@torch.no_grad()
def predict(model, data, images, batch_size=512):
    """Logits (n, K), float32, on the CPU, of uint8 images (n, C, H, W). In eval mode."""
    was_training = model.training
    device = next(model.parameters()).device
    batches = images.split(batch_size)
    model.eval()
    logits = [model(normalize(batch.to(device), data)).float().cpu() for batch in batches]
    model.train(was_training)
    return torch.cat(logits)


def evaluate(model, data, split="test"):
    """(loss, accuracy) on a split of data, "train", "validation" or "test", over its samples.

    ValueError if that split is empty.
    """
    chosen = getattr(data, split)
    if not len(chosen):
        raise ValueError(
            f"the {split} split of {data.name} is empty: load it with {split}=0.1, say"
        )
    logits = predict(model, data, chosen.images)
    loss = F.cross_entropy(logits, chosen.labels).item()
    return loss, (logits.argmax(1) == chosen.labels).float().mean().item()


def train_step(model, x, y, optimizer, config, precision):
    """One step of the optimizer on images x (B, C, H, W), labels y (B,).

    Returns a tensor (2,) on x's device: the loss summed over the batch, how many were right.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(x)  # (B, K)
        loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    right = (logits.argmax(1) == y).sum()
    return torch.stack([loss.detach().float() * len(y), right])


def fit(
    model: VisionTransformer,
    data: ImageData,
    config: TrainConfig | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> History:
    """Train model in place on data.train; on_epoch is called with every epoch's record.

    Sets torch's seed to config.seed. Ctrl-C ends the training after the last whole epoch's
    checkpoint; the history then says interrupted and holds no test result. FloatingPointError if
    the loss is no longer finite, ValueError if the model's head has not one logit per class.
    """
    config = config or TrainConfig()
    if getattr(model.head, "out_features", 0) != len(data.classes):
        raise ValueError(
            f"the model's head is {model.head} and {data.name} has {len(data.classes)} classes: "
            f"build the model with num_classes={len(data.classes)}"
        )
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device, model.pos_embed.shape[-1])
    torch.manual_seed(config.seed)
    model.to(device)
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), fused=True)
    steps = config.epochs * math.ceil(len(images) / config.batch_size)
    history = History(device=str(device), precision=precision)
    start = time.perf_counter()
    step = 0
    bar = tqdm(total=steps, unit="step", disable=None, dynamic_ncols=True)  # on a terminal alone
    try:
        for epoch in range(1, config.epochs + 1):
            model.train()
            sums = torch.zeros(2, device=device)
            for chosen in torch.randperm(len(images), device=device).split(config.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, steps, config)
                x = normalize(augment(images[chosen], config, data.flip), data)
                sums += train_step(model, x, labels[chosen], optimizer, config, precision)
                if step % 50 == 0:
                    check_finite(sums[0].item(), step, config)
                step += 1
                bar.update()
            check_finite(sums[0].item(), step - 1, config)
            train_loss, train_accuracy = (sums / len(images)).tolist()
            seconds = time.perf_counter() - start
            validation = evaluate(model, data, "validation")
            record = EpochRecord(epoch, train_loss, train_accuracy, *validation, seconds)
            history.epochs.append(record)
            bar.set_description(f"epoch {epoch}, validation {record.validation_accuracy:.1%}")
            if config.run_dir:
                path = Path(config.run_dir) / "last.safetensors"
                save_checkpoint(path, model, data, {"epoch": epoch, "config": vars(config)})
            if on_epoch:
                on_epoch(record)
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        bar.close()
    history.seconds = time.perf_counter() - start
    if not history.interrupted:
        history.test_loss, history.test_accuracy = evaluate(model, data, "test")
    return history


def check_finite(loss, step, config):
    """FloatingPointError with advice unless loss is a number; step counts from 0."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} by step {step + 1}: try a smaller lr than {config.lr}, or a "
            f"longer warm-up than {config.warmup}; a checkpoint that was saved before stays"
        )


def model_arguments(model):
    """The arguments that build a VisionTransformer of this model's shape."""
    in_chans, H, W = model.patch_embed.input_shape
    block = model.blocks[0]
    return {
        "img_size": (H, W),
        "patch_size": model.patch_embed.proj.kernel_size[0],
        "in_chans": in_chans,
        "num_classes": getattr(model.head, "out_features", 0),
        "embed_dim": model.pos_embed.shape[-1],
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / block.mlp.fc1.in_features,
        "drop_rate": model.pos_drop.p,
        "global_pool": "avg" if model.cls_token is None else "token",
        "representation_size": model.pre_logits[0].out_features if len(model.pre_logits) else None,
        "norm_eps": model.norm.eps,
    }


def save_checkpoint(path, model, data, extra=None):
    """Write the weights, the model's arguments and how its images are normalised, as safetensors.

    The file is written under a temporary name and renamed, so that what bears its name is whole.
    extra: more facts for the file, JSON-ready.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"model": model_arguments(model), "data": data.name, "classes": data.classes}
    facts |= {"mean": data.mean, "std": data.std, **(extra or {})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        weights = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
        save_file(weights, temporary, metadata={"vit": json.dumps(facts)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path):
    """(model, facts) from a file that save_checkpoint wrote; the model is on the CPU, in eval mode.

    facts: a dict with model, data, classes, mean, std and what was given as extra.
    FileNotFoundError if there is no such file, ValueError if it is not whole or not one of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: python -m helpers.training makes one")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["vit"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is no whole checkpoint of save_checkpoint ({error!r}): "
            "copy it again, or train it anew"
        ) from error
    model = VisionTransformer(**facts["model"])
    model.load_state_dict(weights, strict=True)
    return model.eval(), facts


if __name__ == "__main__":
    from helpers.command_line import main

    main()
