"""Drop-path and the running mean of the weights: two parts of the full recipe."""

from contextlib import contextmanager

import torch


@contextmanager
def drop_path(model, rate):
    """While this lasts, training skips branches of model's blocks at random (arXiv 1603.09382).

    For each image by itself, the output of an attention or an MLP becomes 0 with a probability that
    climbs from 0 in the first block to rate in the last; what is kept is divided by the probability
    of being kept, so that the mean stays. Eval mode is untouched. The model's code stays as it is:
    the branches' outputs are changed by hooks.
    """
    hooks = []
    for depth, block in enumerate(model.blocks if rate else ()):
        drop = rate * depth / max(1, len(model.blocks) - 1)
        for branch in (block.attn, block.mlp) if drop else ():
            hooks.append(branch.register_forward_hook(_dropper(1 - drop)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _dropper(keep):
    def hook(module, inputs, output):  # (B, N, D)
        if module.training:
            kept = output.new_empty(len(output), 1, 1).bernoulli_(keep)
            return output * (kept / keep)

    return hook


class EMA:
    """The exponential moving average of a model's weights: steadier than the last weights.

    average = decay * average + (1 - decay) * weights after each step; early on with a smaller
    decay, (1 + t) / (10 + t), so that the start is forgotten.
    """

    def __init__(self, model, decay):
        self.model, self.decay, self.steps = model, decay, 0
        self.average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self):
        """Take in the model's weights as they are now."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def swap(self):
        """The average goes into the model, the model's weights take its place here."""
        for average, weight in zip(self.average, self.model.parameters(), strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)


@contextmanager
def averaged(ema):
    """While this lasts, the model has its average weights. ema may be None: nothing happens."""
    if ema:
        ema.swap()
    try:
        yield
    finally:
        if ema:
            ema.swap()
