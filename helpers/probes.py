"""Probe tasks: what does a small ViT lose when one of its parts is taken away?

    result = probe("chain", "depth")  # the same images and training, but one block
    result["test"]                    # accuracies 0..1 on test images, one for each seed

Each task of helpers.tasks was made with a part in mind. benchmarks/experiments.py records PROBES,
every task without every part; helpers.trials.records("probes") reads what it recorded.
"""

from dataclasses import dataclass, field, replace

import torch

from helpers.model import VisionTransformer
from helpers.tasks import PARTS, make_task, without
from helpers.training import TrainConfig, evaluate, fit

LEARNING_RATES = (1e-3, 3e-3, 9e-3)


@dataclass(frozen=True)
class Probe:
    """How a task is learned, whatever is removed: a ViT of width 32 with 4 heads, without tricks."""

    task: str  # its name in helpers.tasks.TASKS
    made_for: tuple  # the parts that it was made to need
    patch_size: int = 2
    depth: int = 2
    global_pool: str = "avg"
    mlp_ratio: float = 2.0
    pos_embed_std: float = 0.5
    lacks: tuple = ()  # parts that the whole model does without: there is one block, say
    train: int = 4096  # images to learn from; 1024 to validate with, 1024 to test with
    steps: int = 320
    batch_size: int = 64
    best_without: dict = field(default_factory=dict)  # part: accuracy, why see below


# The best accuracy without a part, where it is known:
# 
PROBE_TASKS = {
    "place": Probe("place", ("positions",), best_without={"positions": 1 / 4}),
    "alike": Probe("alike", ("attention",), best_without={"attention": 1 / 2}),
    "two_colours": Probe(
        "two_colours", ("heads",), depth=1, global_pool="token", lacks=("depth",), steps=640
    ),
    "two_addresses": Probe(
        "two_addresses", ("heads",), patch_size=3, depth=1, lacks=("depth", "class token"),
        train=8192, steps=640,
    ),
    "by_heart": Probe("by_heart", ("mlp",), patch_size=4, mlp_ratio=4.0, steps=768),
    "chain": Probe(
        "chain", ("depth",), patch_size=3, depth=3, global_pool="token", pos_embed_std=0.02,
        train=32768, steps=640, batch_size=256, best_without={"depth": 1 / 2},
    ),
    "which": Probe("which", ("class token",)),
    "deep": Probe("alike", ("residuals", "norm"), depth=12),
}  # fmt: skip


def build(task, data, removed=(), global_pool=None, seed=0):
    """A new ViT for the probe task called task and its ImageData, without the parts removed.

    Weights are drawn from seed. global_pool: "token" or "avg", in the place of the task's own.
    """
    setting = PROBE_TASKS[task]
    C, H, W = data.train.image_shape
    torch.manual_seed(seed)
    model = VisionTransformer(
        (H, W), setting.patch_size, C, len(data.classes), embed_dim=32, depth=setting.depth,
        num_heads=4, mlp_ratio=setting.mlp_ratio, pos_embed_std=setting.pos_embed_std,
        global_pool=global_pool or setting.global_pool,
    )  # fmt: skip
    for part in (*[p for p in setting.lacks if p != "depth"], *removed):
        without(model, part)
    return model


def probe(task, removed=None, seeds=(0, 1, 2), lrs=LEARNING_RATES, global_pool=None):
    """Train on a probe task without a part: tune the rate on seed 0's validation, test once."""
    if task not in PROBE_TASKS:
        raise ValueError(f"probe task {task!r} is unknown, there are: {', '.join(PROBE_TASKS)}")
    setting = PROBE_TASKS[task]
    removed = (removed,) if isinstance(removed, str) else tuple(removed or ())
    done = {}

    def run(lr, seed):
        """(model, data, validation accuracy after the last step); no run is done twice."""
        if (lr, seed) not in done:
            data = make_task(setting.task, setting.train, seed=seed)
            model = build(task, data, removed, global_pool, seed)
            config = TrainConfig(
                epochs=round(setting.steps * setting.batch_size / setting.train),
                batch_size=setting.batch_size, lr=lr, weight_decay=0.01, label_smoothing=0,
                shift=0, rotate=0, zoom=0, seed=seed, device="cpu", precision="float32",
            )  # fmt: skip
            unseen = replace(data, test=data.validation)  # the test images stay out of fit
            try:
                accuracy = fit(model, unseen, config).epochs[-1].validation_accuracy
            except FloatingPointError:  # the loss is no number any more
                accuracy = 0.0
            done[lr, seed] = model, data, accuracy
        return done[lr, seed]

    tried = {lr: run(lr, seeds[0])[2] for lr in lrs}
    lr = max(lrs, key=tried.get)
    runs = [run(lr, seed) for seed in seeds]
    model, data, _ = runs[0]
    best = setting.best_without.get(removed[0]) if len(removed) == 1 else None
    return {
        "test": [evaluate(m, d, "test")[1] if accuracy else 0.0 for m, d, accuracy in runs],
        "validation": [accuracy for _, _, accuracy in runs],
        "lr": lr,
        "tried": {f"{lr:g}": accuracy for lr, accuracy in tried.items()},
        "chance": 1 / len(data.classes),
        "best_without": best,
        "steps": setting.steps,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
