"""Learning without labels: masked patch prediction, appendix B.1.2 of the paper.

    data = images_of("digits")
    model = build(data, sizes_of("digits", {}))
    curve, guesser = pretrain(model, data, steps=600)  # looks at data.train's images alone
    held_out_guesses(model, guesser, data, data.validation.images)

Half of the patch embeddings of each image are corrupted: 8 of 10 of these become one learned [mask]
embedding, 1 of 10 the embedding of another patch of the image, 1 of 10 stays. From its output token
the model guesses the mean colour of every corrupted patch, 3 bits a channel. The model's code stays
as it is: a hook changes what its patch embedding gives; positions are added after it.
"""

import copy
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from helpers.augmentation import normalize
from helpers.data import Split
from helpers.inspection import visiting
from helpers.training import TrainConfig, check_finite, evaluate, learning_rate, parameter_groups
from lab.trials import (
    LEARNING_RATES,
    PLAIN,
    build,
    images_of,
    sizes_of,
    some_of_each,
    tune,
    validated,
)

INTACT, MASKED, SWAPPED, KEPT = range(4)  # what happens to a patch; the last three are guessed
LEVELS = 8  # 3 bits


def patch_sums(images, patch_size):
    """The sum of each patch and channel: uint8 (B, C, H, W) -> int64 (B, C, H/P, W/P).

    ValueError if the images are not uint8, or patch_size does not divide both sides.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: uint8 (B, C, H, W), as a "
            "split holds them, are needed"
        )
    H, W = images.shape[2:]
    if patch_size < 1 or H % patch_size or W % patch_size:
        raise ValueError(
            f"images of {H} x {W} pixels given, patch_size is {patch_size}: it must divide both"
        )
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return patches.sum((3, 5))  # whole numbers: exact on any device


def patch_targets(images, patch_size):
    """The class of each patch's mean colour: uint8 (B, C, H, W) -> int64 (B, N), below 8^C.

    A channel's mean, 0..255, is cut to one of 8 levels of 32 each; the levels are the digits of a
    number, the first channel's first: 64 red + 8 green + blue, 512 classes, or 8 of one grey.
    """
    levels = patch_sums(images, patch_size) // (patch_size**2 * 256 // LEVELS)  # (B, C, H/P, W/P)
    classes = levels[:, 0]
    for level in levels.unbind(1)[1:]:
        classes = LEVELS * classes + level
    return classes.flatten(1)  # (B, H/P, W/P) -> (B, N)


class Guesser(nn.Module):
    """What pre-training adds to a model: the [mask] embedding (D,), and a linear layer D -> 8^C."""

    def __init__(self, embed_dim, in_chans):
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(embed_dim))
        self.head = nn.Linear(embed_dim, LEVELS**in_chans)
        nn.init.zeros_(self.head.weight)  # as the class head starts: all colours alike
        nn.init.zeros_(self.head.bias)

    def forward(self, model, x, kinds, other):
        """Images x, normalised, corrupted as kinds and other say -> logits (B, N, 8^C)."""
        with corrupted(model, self.mask, kinds, other):
            tokens = model.forward_features(x)  # (B, N+1, D)
        return self.head(tokens[:, model.num_prefix_tokens :])


def draw_corruption(B, N, generator):
    """What happens to each patch: kinds (B, N), and which other patch SWAPPED would take (B, N).

    N // 2 patches of each image are not INTACT. Both int64, on the CPU, like the generator.
    ValueError for one patch, which has no other.
    """
    if N < 2:
        raise ValueError(f"{N} patch an image: at least 2 are needed, to guess one from the other")
    rank = torch.rand(B, N, generator=generator).argsort(dim=1)
    chance = torch.rand(B, N, generator=generator)
    kinds = MASKED + (chance >= 0.8).long() + (chance >= 0.9)  # MASKED, SWAPPED, KEPT
    step = torch.randint(1, N, (B, N), generator=generator)
    return kinds.masked_fill(rank >= N // 2, INTACT), (torch.arange(N) + step) % N


@contextmanager
def corrupted(model, mask, kinds, other):
    """While this lasts, model's patch embeddings are corrupted: mask (D,), the rest (B, N)."""

    def corrupt(module, inputs, tokens):
        others = tokens.gather(1, other[:, :, None].expand_as(tokens))  # (B, N, D)
        tokens = torch.where((kinds == SWAPPED)[:, :, None], others, tokens)
        return torch.where((kinds == MASKED)[:, :, None], mask, tokens)

    hook = model.patch_embed.register_forward_hook(corrupt)
    try:
        yield
    finally:
        hook.remove()


def pretrain(model, data, steps, lr=3e-3, weight_decay=0.1, batch_size=64, seed=0):
    """Train model in place to guess colours of data.train's images, labels unseen.

    -> (curve, guesser). curve: about 20 points, {"step", "loss", "accuracy"}, each the mean over
    the corrupted patches of the steps since the point before. AdamW, warm-up, cosine and clipping
    are those of helpers.training. Images come as they are. The class head gets no gradient and
    stays as it was. seed: order of the images, corruption, dropout. ValueError for less than one
    step, FloatingPointError if the loss is no number.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: 1 or more are needed")
    device, patch_size = model.pos_embed.device, model.patch_embed.proj.stride[0]
    config = TrainConfig(lr=lr, weight_decay=weight_decay, batch_size=batch_size, seed=seed)
    guesser = Guesser(model.pos_embed.shape[-1], data.train.image_shape[0]).to(device)
    groups = [g for part in (model, guesser) for g in parameter_groups(part, weight_decay)]
    optimizer = torch.optim.AdamW(groups, fused=True)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    model.train()
    curve, sums = [], torch.zeros(3)
    batches = batches_without_end(len(data.train), batch_size, generator)
    read = data.train.reader(device)
    for step in range(steps):
        x, _ = next(read([next(batches)]))  # the order of a pass is drawn when it begins
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        kinds, other = draw_corruption(len(x), model.patch_embed.num_patches, generator)
        logits = guesser(model, normalize(x, data), kinds.to(device), other.to(device))
        chosen = (kinds != INTACT).to(device)  # (B, N)
        logits, colours = logits[chosen], patch_targets(x, patch_size)[chosen]
        loss = F.cross_entropy(logits, colours)
        optimizer.zero_grad()
        loss.backward()
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, config.grad_clip)
        optimizer.step()
        right = (logits.argmax(dim=1) == colours).sum().item()
        sums += torch.tensor([loss.item() * len(colours), right, len(colours)])
        if (step + 1) % max(1, steps // 20) == 0 or step + 1 == steps:
            check_finite(sums[0].item(), step, config)
            means = (sums[:2] / sums[2]).tolist()
            curve.append({"step": step + 1, "loss": means[0], "accuracy": means[1]})
            sums.zero_()
    return curve, guesser


def batches_without_end(count, batch_size, generator):
    """Numbers below count in batches: pass after pass, each in an order of its own."""
    while True:
        yield from torch.randperm(count, generator=generator).split(batch_size)


# How good are the guesses?


@torch.no_grad()
def guess(model, guesser, data, images, seed=0):
    """(logits (n, N, 8^C), kinds (n, N)) of uint8 images, corrupted as seed says, on the CPU."""
    device, generator = model.pos_embed.device, torch.Generator().manual_seed(seed)
    kinds, other = draw_corruption(len(images), model.patch_embed.num_patches, generator)
    found = []
    with visiting(model):
        for parts in zip(*(t.to(device).split(512) for t in (images, kinds, other)), strict=True):
            found.append(guesser(model, normalize(parts[0], data), *parts[1:]).cpu())
    return torch.cat(found), kinds


def held_out_guesses(model, guesser, data, images, seed=0):
    """How good the guesses are where [mask] stands, beside three that need no model.

    -> {"loss", "accuracy"} of each: "model"; "always the same", the share of each colour in
    data.train; "each place", the same of each place of the grid; "neighbours", the mean of those
    of the up to 8 patches around that are intact, of all intact ones where none is (no loss: it
    names one colour). images: uint8, not of data.train. Shares and means on the CPU, in float64.
    """
    patch_size, images = model.patch_embed.proj.stride[0], images.cpu()
    logits, kinds = guess(model, guesser, data, images, seed)
    colours, learned = (patch_targets(x, patch_size) for x in (images, data.train.images.cpu()))
    seen = F.one_hot(learned, logits.shape[-1]).double()
    places = seen.mean(dim=0) + 1e-6  # (N, 8^C), no share is 0
    masked, rivals = kinds == MASKED, {"model": logits, "always the same": places.mean(0).log()}
    rivals["each place"] = places.log()
    table = {}
    for name, scores in rivals.items():
        scores = scores.expand(logits.shape)[masked]
        right = (scores.argmax(dim=1) == colours[masked]).double().mean().item()
        loss = F.cross_entropy(scores, colours[masked]).item()
        table[name] = {"loss": loss, "accuracy": right}
    means = mean_of_neighbours(images, kinds, patch_size)  # uint8 (n, C, H/P, W/P)
    right = (patch_targets(means, 1) == colours)[masked].double().mean().item()
    return table | {"neighbours": {"accuracy": right}}


def mean_of_neighbours(images, kinds, patch_size):
    """What the intact patches around would say: -> uint8 (n, C, H/P, W/P). See held_out_guesses."""
    means = patch_sums(images.cpu(), patch_size).double() / patch_size**2
    intact = (kinds.cpu() == INTACT).view(len(images), 1, *means.shape[2:]).double()
    near = 9 * F.avg_pool2d(torch.cat([means * intact, intact], dim=1), 3, stride=1, padding=1)
    everywhere = (means * intact).sum((2, 3), True) / intact.sum((2, 3), True)
    around = near[:, :-1] / near[:, -1:].clamp(min=1)
    return torch.where(near[:, -1:] > 0.5, around, everywhere).to(torch.uint8)


# The experiment


def few_labels(data, labels, pretrain_steps, steps, seed, lrs=LEARNING_RATES, model=None,
               pretrain_lr=3e-3):  # fmt: skip
    """Pre-train without labels, then train with few: against the same model from scratch.

    data: "digits" or "fashion-mnist"; model: what differs from trials.BASE. labels: how many
    images of each class have one, several numbers; both sides get the same images and the same
    steps in batches of 64. Pre-training sees all training images, without their labels. Each rate
    of lrs is tried by each side, the best validation accuracy after the last step decides, and its
    model is tested once. The validation images' labels choose this rate and nothing else; they are
    more than the few. seed decides the weights, all orders, and which images are labelled.

    -> a dict that JSON can hold: curve, guesses (see pretrain and held_out_guesses) and, for
    "scratch" and "pretrained" and each number of labels: lr, tried {lr: validation}, validation
    and test, accuracies 0..1.
    """
    whole = images_of(data)
    scratch = build(whole, sizes_of(data, model or {}), seed=seed)
    pretrained = copy.deepcopy(scratch)
    curve, guesser = pretrain(pretrained, whole, pretrain_steps, pretrain_lr, seed=seed)
    guesses = held_out_guesses(pretrained, guesser, whole, whole.validation.images)
    result = {"curve": curve, "guesses": guesses, "scratch": {}, "pretrained": {}}
    for count in labels:
        few = some_of_each(whole.train, count * len(whole.classes), len(whole.classes), seed)
        for side, start in (("scratch", scratch), ("pretrained", pretrained)):
            runs = {lr: fine_tune(start, whole, few, steps, lr, seed) for lr in lrs}
            lr, tried = tune(lambda lr, runs=runs: [runs[lr][1]], lrs)
            result[side][str(count)] = {
                "lr": lr,
                "tried": {rate: validation for rate, (validation,) in tried.items()},
                "validation": runs[lr][1],
                "test": evaluate(runs[lr][0], whole, "test")[1],
            }
    splits = {"train": whole.train, "validation": whole.validation, "test": whole.test}
    return result | {"images": {name: len(split) for name, split in splits.items()}}


def fine_tune(start, data, few, steps, lr, seed):
    """(a copy of start, trained for steps on the labelled images few, its validation accuracy).

    0 if the loss is no number. data's statistics stay. Copies of few make up one long epoch.
    """
    copies = -(-64 * steps // len(few))
    train = Split(few.images.repeat(copies, 1, 1, 1), few.labels.repeat(copies))
    train = Split(train.images[: 64 * steps], train.labels[: 64 * steps])
    model, data = copy.deepcopy(start), replace(data, train=train)
    return model, validated(model, data, epochs=1, batch_size=64, lr=lr, seed=seed, **PLAIN)


FASHION = dict(data="fashion-mnist", labels=[5, 20, 100], pretrain_steps=2000, steps=300)
DIGITS = dict(data="digits", labels=[2, 5, 20], pretrain_steps=1000, steps=200)
POINTS = {
    f"{label}_seed_{seed}": ("lab.masked_patches.few_labels", how | dict(seed=seed))
    for label, how, seeds in (("fashion", FASHION, range(3)), ("digits", DIGITS, range(5)))
    for seed in seeds
}
