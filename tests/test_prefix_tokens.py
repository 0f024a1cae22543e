"""More tokens before the patches than one: everybody asks the model, and nobody counts wrongly."""

import pytest
import torch
from torch.testing import assert_close

from helpers.inspection import (
    answer_mask,
    attention_distance,
    attention_maps,
    attention_rollout,
    position_similarity,
    tokens_after_each_block,
)
from helpers.model import VisionTransformer
from helpers.training import parameter_groups
from lab import cost, speed
from lab.parts import without
from lab.questions import occlusion_drop, partly_shown
from tests.peers import images, randomize


class WithRegisters(VisionTransformer):
    """Two learned tokens between class token and patches, without positions (2309.16588)."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.reg_token = torch.nn.Parameter(torch.randn(1, 2, sizes["embed_dim"]))
        self.num_prefix_tokens += 2

    def forward_features(self, x):
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1)
        x = x + self.pos_embed
        x = torch.cat([x[:, :1], self.reg_token.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        return self.norm(self.blocks(self.pos_drop(x)))

    def no_weight_decay(self):
        return super().no_weight_decay() | {"reg_token"}


@pytest.fixture
def model():
    sizes = dict(img_size=(4, 6), patch_size=2, in_chans=1, num_classes=3, embed_dim=12, depth=2,
                 num_heads=3)  # fmt: skip
    return randomize(WithRegisters(**sizes)).double().eval()


def test_registers_are_no_patches(model):
    x = images(model)
    maps = attention_maps(model, x)
    assert maps[0].shape == (2, 3, 9, 9) and tokens_after_each_block(model, x)[0].shape[1] == 9
    mask = answer_mask(attention_rollout(maps), model)
    assert_close(mask.flatten(1), attention_rollout(maps)[:, 0, 3:])
    places = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0)).double()
    far = 2 * torch.cdist(places, places)
    for layer, found in enumerate(attention_distance(model, x)):
        expected = (maps[layer][:, :, 3:, 3:] * far).sum(dim=-1).mean(dim=(0, 2))
        assert_close(found, expected)
    positions = model.pos_embed[0, 1:]
    assert_close(position_similarity(model)[1, 4], torch.cosine_similarity(*positions[[1, 4]], 0))
    assert occlusion_drop(model, x, torch.tensor([0, 1]), 2).shape == (2, 2, 3)


def test_all_patches_shown_is_the_whole_model(model):
    x = images(model)
    with partly_shown(model, 1.0, torch.Generator().manual_seed(0)):
        shown = model(x)
    assert_close(shown, model(x))


def test_registers_cost_what_they_cost(model):
    single = images(model, batch=1).float()
    flops = speed.count_flops(model.float(), single)
    assert flops == 2 * cost.vit_multiply_adds(model)
    two = single.expand(2, -1, -1, -1).contiguous()
    kept = speed.saved_bytes(model, two, fused=False)
    assert kept == speed.expected_bytes(model, 2, fused=False)


def test_registers_do_not_decay_and_stay_without_a_class_token(model):
    decayed, spared = (group["params"] for group in parameter_groups(model, 0.1))
    assert any(p is model.reg_token for p in spared) and len(decayed) == 1 + 4 * 2 + 1
    changed = without(model, "class token")
    assert changed.num_prefix_tokens == 2 and changed.pos_embed.shape == (1, 6, 12)
