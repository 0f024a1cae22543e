"""What does a small ViT lose on a made-up task when one of its parts is taken away?

    result = task_trial("chain", "depth")  # the same images and training, but one block
    result["test"]                         # accuracies 0..1 on test images, one for each seed

Each task was made with a part in mind. benchmarks/experiments.py records POINTS, all tasks without
each part in turn; lab.trials.records("probes") reads what it recorded.
"""

import functools
from dataclasses import dataclass

from helpers.training import evaluate
from lab.parts import PARTS
from lab.tasks import make_task
from lab.trials import LEARNING_RATES, PLAIN, build, tune, validated


@dataclass(frozen=True)
class Setting:
    """How a task is learned, with all parts and without: a ViT of width 32, images as they are."""

    task: str  # its name in lab.tasks
    made_for: tuple  # the parts that it was made to need
    best_without: float | None  # the best accuracy without one of them, see SETTINGS
    patch_size: int = 2
    depth: int = 2
    global_pool: str = "avg"
    mlp_ratio: float = 2.0
    pos_embed_std: float = 0.5
    lacks: tuple = ()  # parts that the whole model has to do without, so they are not removed
    train: int = 4096  # images to learn from
    batch_size: int = 64
    epochs: int = 5


# The best without, argued:
# place        Every patch may hold the mark, so without positions all images are alike: 1/4.
# alike        What a patch says by itself says nothing on the answer, and sums of it neither: the
#              loss cannot fall below that of guessing (notebook 05). 1/2.
# two_colours  The class token asks once, before any patch was asked: for one of the two. The other
#              bit is a guess, 1/2. (A mean of both with the right weights could tell 79 %.)
# by_heart     A linear map of the pixels, fitted to all 512 patterns (logistic regression), knows
#              130 of them. The norms are not linear, so a model without MLP may know a few more.
# chain        One block cannot follow two steps, but it can count how often each patch is pointed
#              at, and notebook 13 shows what that is worth: not known beforehand.
# which        With attention the first patch can gather what a class token gathers: 1. Without
#              (which_first_patch), it shows the mark in one image of 16, else a guess: 19/64.
# deep         A stack that lets nothing through guesses, 1/2.
SETTINGS = {
    "place": Setting("place", ("positions",), 1 / 4),
    "alike": Setting("alike", ("attention",), 1 / 2),
    "two_colours": Setting(
        "two_colours", ("heads",), 1 / 2, depth=1, global_pool="token", lacks=("depth",),
        epochs=10,
    ),
    "two_addresses": Setting(
        "two_addresses", ("heads",), None, patch_size=3, depth=1, lacks=("depth", "class token"),
        train=8192,
    ),
    "by_heart": Setting("by_heart", ("mlp",), 130 / 512, patch_size=4, mlp_ratio=4.0, epochs=12),
    "chain": Setting(
        "chain", ("depth",), None, patch_size=3, depth=3, global_pool="token",
        pos_embed_std=0.02, train=32768, batch_size=256,
    ),
    "which": Setting("which", ("class token",), 1.0),
    "deep": Setting("alike", ("residuals", "norm"), 1 / 2, depth=12),
}  # fmt: skip


def build_for(task, data, removed=(), global_pool=None, seed=0):
    """A new ViT for a key of SETTINGS and its ImageData, without the parts called removed.

    Weights are drawn from seed. global_pool, "token" or "avg", replaces that of the setting.
    """
    setting = SETTINGS[task]
    sizes = dict(
        patch_size=setting.patch_size, embed_dim=32, depth=setting.depth, num_heads=4,
        mlp_ratio=setting.mlp_ratio, global_pool=global_pool or setting.global_pool,
        pos_embed_std=setting.pos_embed_std,
    )  # fmt: skip
    return build(data, sizes, removed=(*setting.lacks, *removed), seed=seed)


def task_trial(task, removed=None, seeds=(0, 1, 2), lrs=LEARNING_RATES, global_pool=None):
    """Train without some parts, tune the learning rate on validation images, test once.

    task: a key of SETTINGS; removed: parts of lab.parts.PARTS, or one, or None. Every rate is
    tried with the first seed; the one with the best validation accuracy after the last step is
    used with all seeds. A seed decides the images, the weights and the order. A run whose loss is
    no number any more counts as 0. ValueError for a task that is unknown.

    -> a dict that JSON can hold: test and validation (accuracies 0..1, one for each seed), lr,
    tried {lr: validation accuracy}, chance, steps, parameters (those that learn).
    """
    if task not in SETTINGS:
        raise ValueError(f"task {task!r} is unknown, there are: {', '.join(SETTINGS)}")
    setting = SETTINGS[task]
    removed = [removed] if isinstance(removed, str) else list(removed or ())

    @functools.cache  # no run is done twice
    def run(lr, seed):
        """(model, data, validation accuracy after the last step)"""
        data = make_task(setting.task, setting.train, seed=seed)
        model = build_for(task, data, removed, global_pool, seed)
        accuracy = validated(
            model, data, epochs=setting.epochs, batch_size=setting.batch_size, lr=lr, seed=seed,
            weight_decay=0.01, label_smoothing=0, **PLAIN,
        )  # fmt: skip
        return model, data, accuracy

    lr, tried = tune(lambda lr: [run(lr, seeds[0])[2]], lrs)
    runs = [run(lr, seed) for seed in seeds]
    model, data, _ = runs[0]
    return {
        "test": [evaluate(m, d, "test")[1] if accuracy else 0.0 for m, d, accuracy in runs],
        "validation": [accuracy for _, _, accuracy in runs],
        "lr": lr,
        "tried": {rate: accuracy for rate, (accuracy,) in tried.items()},
        "chance": 1 / len(data.classes),
        "steps": setting.epochs * -(-setting.train // setting.batch_size),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


# What is recorded: {point: (function, arguments)}, "chain_whole" and "chain_class_token" without.
HOW = dict(seeds=[0, 1, 2], lrs=[1e-3, 3e-3])
NOT_RUN = {"deep_heads", "deep_class_token"}  # they are in the row of alike, the same task
POINTS = {
    f"{task}_{part or 'whole'}".replace(" ", "_"): dict(task=task, removed=part)
    for task, setting in SETTINGS.items()
    for part in (None, *PARTS)
    if part not in setting.lacks
}
# Beside "which_whole", which reads the mean, and "which_class_token", which reads the first patch:
POINTS["which_token"] = dict(task="which", removed=None, global_pool="token")
POINTS["which_token_no_attention"] = POINTS["which_token"] | dict(removed="attention")
POINTS["which_first_no_attention"] = dict(
    task="which", removed=["class token", "attention"], global_pool="avg"
)
POINTS = {
    point: ("lab.task_trials.task_trial", HOW | arguments)
    for point, arguments in POINTS.items()
    if point not in NOT_RUN
}
