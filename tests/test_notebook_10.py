"""The loop that notebook 10 writes out gives the weights of fit, bit for bit."""

import ast
from dataclasses import replace

import nbformat
import pytest
import torch

from helpers.data import Split, load
from helpers.model import VisionTransformer
from helpers.training import TrainConfig, fit
from tests.notebook_rules import ROOT, code_cells, syntax

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
    data = load("digits")

    def first(split, n):
        return Split(split.images[:n], split.labels[:n])

    return replace(
        data,
        train=first(data.train, 40),
        validation=first(data.validation, 10),
        test=first(data.test, 10),
    )


def function(source, old="", new=""):
    """The notebook's train, with old replaced by new in its source."""
    imports, train = source
    assert old in train, f"{old!r} is not in the notebook's train: this test must follow it"
    names = {}
    exec(f"{imports}\n\n{train.replace(old, new) if old else train}", names)
    return names["train"]


def same_weights(train, data, config, fit_config=None, **sizes):
    """Whether train and fit leave two equal models with equal weights, bit for bit."""
    trained = []
    for loop, settings in ((train, config), (fit, fit_config or config)):
        torch.manual_seed(0)
        model = VisionTransformer(img_size=8, patch_size=2, in_chans=1, num_classes=10,
                                  embed_dim=16, depth=1, num_heads=2, **sizes)  # fmt: skip
        before = [parameter.detach().clone() for parameter in model.parameters()]
        loop(model, data, settings)
        after = list(model.parameters())
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        trained.append(after)
    return all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


@pytest.mark.parametrize("sizes", [{}, {"drop_rate": 0.2}, {"global_pool": "avg"}], ids=str)
@pytest.mark.parametrize("flip", [False, True])
def test_the_loop_of_the_notebook_is_fit(source, few, sizes, flip):
    assert same_weights(function(source), replace(few, flip=flip), CONFIG, **sizes)


def test_the_loop_returns_a_loss_and_a_norm_for_every_step(source, few):
    torch.manual_seed(0)
    model = VisionTransformer(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=16,
                              depth=1, num_heads=2)  # fmt: skip
    losses, norms = function(source)(model, few, CONFIG)
    assert len(losses) == len(norms) == 6 and losses[0] == pytest.approx(2.302585, abs=1e-4)
    assert max(norms) > CONFIG.grad_clip  # the length before the cut


MISTAKES = {
    "no clipping": ("config.grad_clip", "math.inf"),
    "Adam with L2": ("torch.optim.AdamW", "torch.optim.Adam"),
    "everything decays": ("parameter_groups(model, config.weight_decay)", "model.parameters()"),
    "rate a step late": ("learning_rate(len(losses)", "learning_rate(len(losses) + 1"),
    "steps rounded down": ("math.ceil(len(images) / config.batch_size)",
                           "(len(images) // config.batch_size)"),
    "no augmentation": ("augment(images[chosen], config, data.flip, generator)", "images[chosen]"),
    "other random numbers": ("data.flip, generator",
                             "data.flip"),
    "not normalised": ("normalize(", "(lambda x, data: x)("),
    "no smoothing": (", label_smoothing=config.label_smoothing", ""),
    "gradients add up": ("optimizer.zero_grad()", "pass"),
    "another order": ("manual_seed(config.seed)  # order", "manual_seed(config.seed + 1)  # order"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_loop_with_a_mistake_is_seen(source, few, mistake):
    assert not same_weights(function(source, *MISTAKES[mistake]), few, CONFIG)


@pytest.mark.parametrize("mistake", ["eval mode", "another dropout"])
def test_a_mistake_about_dropout_is_seen(source, few, mistake):
    changes = {
        "eval mode": ("model.train()", "model.eval()"),
        "another dropout": ("torch.manual_seed(config.seed)", "torch.manual_seed(7)"),
    }
    train = function(source, *changes[mistake])
    assert not same_weights(train, few, CONFIG, drop_rate=0.2)


@pytest.mark.parametrize(
    "drift",
    [
        {"lr": 2e-2},
        {"warmup": 0.0},
        {"weight_decay": 0.2},
        {"grad_clip": 2.0},
        {"label_smoothing": 0.0},
        {"shift": 0.5},
        {"seed": 4},
        {"batch_size": 15},
        {"epochs": 3},
    ],
    ids=str,
)
def test_a_fit_that_does_otherwise_is_seen(source, few, drift):
    assert not same_weights(function(source), few, CONFIG, fit_config=replace(CONFIG, **drift))
