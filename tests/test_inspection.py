"""helpers/inspection.py: the numbers are the model's own, and the model is left as it was."""

import pytest
import torch

from helpers.inspection import (
    attention_maps,
    position_similarity,
    token_similarity,
    tokens_after_each_block,
)
from helpers.model import VisionTransformer


@pytest.fixture
def model():
    """4 x 6 pixels in six patches, three heads of width 4; weights large enough to look around."""
    torch.manual_seed(0)
    model = VisionTransformer((4, 6), 2, 1, num_classes=3, embed_dim=12, depth=2, num_heads=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def count_hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def test_equals_the_softmax_written_out_head_by_head(model):
    x = torch.randn(2, 1, 4, 6)
    maps = attention_maps(model, x)
    z = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(x)], dim=1)
    z = z + model.pos_embed
    assert len(maps) == len(model.blocks)
    for block, found in zip(model.blocks, maps, strict=True):
        q, k, _ = block.attn.qkv(block.norm1(z)).chunk(3, dim=-1)
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            scores = torch.einsum("bqd,bkd->bqk", q[..., part], k[..., part]) / 4**0.5
            torch.testing.assert_close(found[:, head], scores.softmax(-1))
        z = block(z)
    assert not torch.allclose(maps[0][:, 0], maps[0][:, 1], atol=1e-2)  # the heads differ


def test_rows_sum_to_one_and_nothing_needs_a_gradient(model):
    for found in attention_maps(model, torch.randn(2, 1, 4, 6)):
        assert found.shape == (2, 3, 7, 7) and not found.requires_grad
        torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 7))


def test_without_a_class_token_there_are_n_rows():
    model = VisionTransformer(4, 2, 1, 3, embed_dim=8, depth=1, num_heads=2, global_pool="avg")
    assert attention_maps(model, torch.randn(1, 1, 4, 4))[0].shape == (1, 2, 4, 4)


def test_hooks_are_gone_afterwards_and_the_output_is_the_same(model):
    x = torch.randn(1, 1, 4, 6)
    before = model(x)
    attention_maps(model, x)
    assert count_hooks(model) == 0
    assert torch.equal(model(x), before)


def test_hooks_are_gone_after_an_error(model):
    with pytest.raises(ValueError, match="needed"):
        attention_maps(model, torch.randn(1, 1, 5, 5))
    assert count_hooks(model) == 0


def test_an_image_without_a_batch_is_refused(model):
    with pytest.raises(ValueError, match=r"image\[None\]"):
        attention_maps(model, torch.randn(1, 4, 6))


@torch.no_grad()
def test_position_similarity_is_the_cosine_of_the_patches_rows(model):
    found = position_similarity(model)
    rows = model.pos_embed[0, 1:]
    assert found.shape == (6, 6)
    for i in range(6):
        for j in range(6):
            cosine = rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm())
            torch.testing.assert_close(found[i, j], cosine)
    pooled = VisionTransformer(4, 2, 1, 3, embed_dim=8, depth=1, num_heads=2, global_pool="avg")
    assert position_similarity(pooled).shape == (4, 4)


def test_token_similarity_is_the_mean_cosine_of_the_pairs():
    right_angles = torch.eye(3)[None] * torch.tensor([1.0, 2.0, 3.0])
    equal = torch.ones(1, 3, 3)
    torch.testing.assert_close(token_similarity(right_angles), torch.zeros(1))
    torch.testing.assert_close(token_similarity(equal), torch.ones(1))
    a, b, c = torch.randn(3, 5)
    pairs = [torch.cosine_similarity(x, y, dim=0) for x, y in ((a, b), (a, c), (b, c))]
    torch.testing.assert_close(token_similarity(torch.stack([a, b, c])[None])[0], sum(pairs) / 3)


@torch.no_grad()
def test_tokens_after_each_block_are_the_models_own(model):
    x = torch.randn(2, 1, 4, 6)
    found = tokens_after_each_block(model, x)
    assert [z.shape for z in found] == [(2, 7, 12)] * 3
    for block, before, after in zip(model.blocks, found, found[1:], strict=False):
        torch.testing.assert_close(block(before), after)
    torch.testing.assert_close(model.norm(found[-1]), model.forward_features(x))
    assert count_hooks(model) == 0
    with pytest.raises(ValueError, match="needed"):
        tokens_after_each_block(model, x[:, :, :3])
    assert count_hooks(model) == 0
