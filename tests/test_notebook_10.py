"""The loop that notebook 10 writes out gives the weights of fit, bit for bit."""

import ast
from dataclasses import replace

import nbformat
import pytest
import torch

from helpers.training import TrainConfig, fit
from tests.notebook_rules import ROOT, code_cells, syntax
from tests.test_training import few_digits, tiny_vit

CONFIG = TrainConfig(epochs=2, batch_size=16, lr=1e-2, warmup=0.4, device="cpu",
                     precision="float32", seed=3)  # fmt: skip


@pytest.fixture(scope="module")
def source():
    """(imports, train): source of the notebook's imports and of its function train."""
    notebook = nbformat.read(ROOT / "notebooks" / "10_training.ipynb", as_version=4)
    imports, found = [], []
    for _, cell in code_cells(notebook)[1:]:  # the first is the set-up cell
        for node in syntax(cell.source).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports.append(ast.unparse(node))
            elif isinstance(node, ast.FunctionDef) and node.name == "train":
                found.append(ast.get_source_segment(cell.source, node))
    (train,) = found
    return "\n".join(imports), train


@pytest.fixture(scope="module")
def few():
    """40 digits to learn from: 16, 16 and 8 a batch."""
    return few_digits(40, 10)


def function(source, old="", new=""):
    """The notebook's train, with old replaced by new in its source."""
    imports, train = source
    assert old in train, f"{old!r} is not in the notebook's train: this test must follow it"
    names = {}
    exec(f"{imports}\n\n{train.replace(old, new) if old else train}", names)
    return names["train"]


def same_weights(train, data, **sizes):
    """Whether train and fit leave two equal models with equal weights, bit for bit."""
    trained = []
    for loop in (train, fit):
        model = tiny_vit(**sizes)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        loop(model, data, CONFIG)
        after = list(model.parameters())
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        trained.append(after)
    return all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


@pytest.mark.parametrize("sizes", [{}, {"drop_rate": 0.2}, {"global_pool": "avg"}], ids=str)
@pytest.mark.parametrize("flip", [False, True])
def test_the_loop_of_the_notebook_is_fit(source, few, sizes, flip):
    assert same_weights(function(source), replace(few, flip=flip), **sizes)


MISTAKES = {
    "no clipping": ("config.grad_clip", "math.inf"),
    "Adam with L2": ("torch.optim.AdamW", "torch.optim.Adam"),
    "everything decays": ("parameter_groups(model, config.weight_decay)", "model.parameters()"),
    "rate a step late": ("learning_rate(len(losses)", "learning_rate(len(losses) + 1"),
    "steps rounded down": ("math.ceil(len(images) / config.batch_size)",
                           "(len(images) // config.batch_size)"),
    "no augmentation": ("augment(images[chosen], config, data.flip, generator)", "images[chosen]"),
    "other random numbers": ("data.flip, generator", "data.flip"),
    "not normalised": ("normalize(", "(lambda x, data: x)("),
    "no smoothing": (", label_smoothing=config.label_smoothing", ""),
    "gradients add up": ("optimizer.zero_grad()", "pass"),
    "another order": ("manual_seed(config.seed)  # order", "manual_seed(config.seed + 1)  # order"),
    "eval mode": ("model.train()", "model.eval()"),
    "another dropout": ("torch.manual_seed(config.seed)", "torch.manual_seed(7)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_loop_with_a_mistake_is_seen(source, few, mistake):
    """What is compared would show it, in the notebook or in fit."""
    dropout = 0.2 if mistake in ("eval mode", "another dropout") else 0.0
    assert not same_weights(function(source, *MISTAKES[mistake]), few, drop_rate=dropout)
