"""What runs on the model's device needs no float64, which MPS lacks, and copies only CUDA may wait
for: every tensor here is taken for one on MPS until .cpu() says otherwise.
"""

import ast
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import augmentation, inspection, training
from helpers.data import Split, load
from helpers.model import VisionTransformer
from helpers.training import TrainConfig, fit
from lab import damage, masked_patches, questions, speed
from pictures.explorer import explorer
from tests import test_rooms
from tests.notebook_rules import ROOT


class OnCPU(torch.Tensor):
    """A tensor that .cpu() gave, and what is made of it."""

    def __format__(self, how):
        return format(self.item(), how)


class Moves(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        return found.as_subclass(OnCPU) if function is torch.Tensor.cpu else found


class AsOnMPS(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given, made = (
            [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]
            for tree in ((args, kwargs), found)
        )
        on_cpu = any(isinstance(x, OnCPU) or x.dtype == torch.float64 for x in given)
        if given and not on_cpu and any(x.dtype == torch.float64 for x in made):
            raise TypeError(f"{function}: MPS has no float64")
        if (kwargs or {}).get("non_blocking"):
            raise TypeError(f"{function}: only CUDA may copy without waiting")
        return found


@contextmanager
def as_on_mps():
    with AsOnMPS(), Moves():
        yield


@pytest.fixture(scope="module")
def few():
    data = load("digits")
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    splits = {name: Split(s.images[:40], s.labels[:40]) for name, s in splits.items()}
    return replace(data, **splits)


@pytest.fixture
def model():
    torch.manual_seed(0)
    vit = VisionTransformer(8, 2, 1, 10, embed_dim=16, depth=2, num_heads=2, pos_embed_std=0.5)
    torch.nn.init.normal_(vit.head.weight)
    return vit


def test_the_house_refuses_what_mps_would():
    x = torch.zeros(3)
    with as_on_mps():
        assert x.cpu().double().sum() == 0 and (x.cpu() + 1).double().dtype == torch.float64
        assert torch.zeros(2, dtype=torch.float64).dtype == torch.float64  # made on the CPU
        for wrong in (x.double, (x + 1).double, lambda: x.to(torch.float64)):
            with pytest.raises(TypeError, match="MPS has no float64"):
                wrong()
        with pytest.raises(TypeError, match="only CUDA"):
            x.to(torch.float16, non_blocking=True)


def test_training(few, model):
    everything = dict(policy="trivial", mixup=0.4, cutmix=0.4, erase=0.3, drop_path=0.2, ema=0.9)
    config = TrainConfig(epochs=2, batch_size=16, device="cpu", precision="float32", **everything)
    with as_on_mps():
        history = fit(model, few, config)
        questions.accuracy(model, few, few.test.images, few.test.labels)
        speed.training_work(model, few, config, torch.device("cpu"), steps=2)()
    assert len(history.epochs) == 2


def test_learning_without_labels(few, model):
    with as_on_mps():
        curve, guesser = masked_patches.pretrain(model, few, steps=2, batch_size=8)
        found = masked_patches.held_out_guesses(model, guesser, few, few.validation.images)
    assert len(curve) == 2 and set(found) == {
        "model", "always the same", "each place", "neighbours"
    }  # fmt: skip


def test_looking_inside(few, model):
    images, labels = few.test.images[:8], few.test.labels[:8]
    with as_on_mps():
        x = augmentation.normalize(images, few)
        maps = inspection.attention_maps(model, x)
        rollout = inspection.attention_rollout(maps)
        inspection.answer_mask(rollout, model)
        inspection.attention_distance(model, x)
        inspection.position_similarity(model)
        questions.similarity_by_depth(model, x)
        features = questions.layer_features(model, few, images)
        questions.linear_cka(list(features["patches"]))
        questions.linear_probe(x.flatten(1), labels, x.flatten(1), labels)
        questions.embedding_components(model)
        drop = questions.occlusion_drop(model, x, labels, 2)
        ranks = questions.rank_correlation(drop, inspection.answer_mask(rollout, model))
        questions.mean_and_interval(ranks)
        questions.mean_and_interval(x.flatten())
        generator = torch.Generator().manual_seed(0)
        damage.add_noise(images, 0.1, generator)
        training.predict(model, few, damage.shuffle_patches(images, 2, generator))
        explorer(model, images[:2], few)


def test_one_place_copies_without_waiting():
    """augmentation.send, which knows the device; and nobody else says non_blocking."""
    users = []
    for room in test_rooms.MAY_IMPORT:
        for path in test_rooms.files(room):
            for node in ast.walk(ast.parse(test_rooms.source(path))):
                if isinstance(node, ast.keyword) and node.arg == "non_blocking":
                    users.append((path.relative_to(ROOT).as_posix(), ast.unparse(node.value)))
    assert users == [("helpers/augmentation.py", "device.type == 'cuda'")]
