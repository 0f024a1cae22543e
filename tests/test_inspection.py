"""helpers/inspection.py: the numbers are the model's own, and the model is left as it was."""

import pytest
import torch
from torch.testing import assert_close

from helpers.inspection import (
    answer_mask,
    attention_distance,
    attention_maps,
    attention_rollout,
    position_similarity,
    token_similarity,
    tokens_after_each_block,
)
from lab.questions import embedding_components, linear_cka, similarity_by_depth
from tests.peers import images, small_vit


def small(**changes):
    """4 x 6 pixels in 2 x 3 patches, three heads of width 4, two blocks; in float64."""
    sizes = dict(img_size=(4, 6), patch_size=2, in_chans=1, num_classes=3, embed_dim=12, depth=2,
                 num_heads=3)  # fmt: skip
    return small_vit(**(sizes | changes))


@pytest.fixture
def model():
    return small()


@pytest.fixture
def x(model):
    return images(model, batch=5)


def state(model):
    """All that a function could change: modes, hooks, weights and buffers."""
    modules = list(model.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    weights = [value.flatten().tolist() for value in model.state_dict().values()]
    return [module.training for module in modules], hooks, weights


@pytest.mark.parametrize(
    "run", [attention_maps, attention_distance, tokens_after_each_block, similarity_by_depth]
)
def test_a_model_in_any_mode_gives_the_same_and_is_left_as_it_was(x, run):
    expected = torch.cat([part.flatten() for part in run(small(), x)])
    model = small(drop_rate=0.5).train()
    model.blocks[1].eval()  # a frozen part
    before = state(model)
    found = torch.cat([part.flatten() for part in run(model, x)])
    assert_close(found, expected)
    assert not found.requires_grad
    with pytest.raises(ValueError, match="needed"):
        run(model, x[..., :4])  # an error on the way leaves no trace either
    assert state(model) == before


@torch.no_grad()
def test_maps_equal_the_softmax_written_out_head_by_head(model, x):
    maps = attention_maps(model, x)
    z = torch.cat([model.cls_token.expand(5, -1, -1), model.patch_embed(x)], dim=1)
    z = z + model.pos_embed
    for block, found in zip(model.blocks, maps, strict=True):
        q, k, _ = block.attn.qkv(block.norm1(z)).chunk(3, dim=-1)
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            scores = torch.einsum("bqd,bkd->bqk", q[..., part], k[..., part]) / 4**0.5
            assert_close(found[:, head], scores.softmax(-1))
        z = block(z)
    assert not torch.allclose(maps[0][:, 0], maps[0][:, 1], atol=1e-2)  # the heads differ
    assert attention_maps(small(global_pool="avg"), x)[0].shape == (5, 3, 6, 6)
    with pytest.raises(ValueError, match=r"image\[None\]"):
        attention_maps(model, x[0])


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_distance_equals_the_slow_loop_whatever_the_batch_size(x, global_pool):
    model, slow = small(global_pool=global_pool), torch.zeros(2, 3).double()
    for layer, maps in enumerate(attention_maps(model, x)):
        maps = maps[:, :, -6:, -6:].mean(0)  # (h, N, N), the class token left out
        for q in range(6):
            for k in range(6):
                dy, dx = q // 3 - k // 3, q % 3 - k % 3  # on the grid of 2 x 3 patches
                slow[layer] += maps[:, q, k] * 2 * (dy**2 + dx**2) ** 0.5 / 6  # 2 pixels a patch
    for batch_size in (2, 64):
        assert_close(attention_distance(model, x, batch_size=batch_size), slow)


def test_rollout_follows_a_chain():
    first, second = torch.eye(7), torch.eye(7)  # patch 3 -> patch 5, patch 5 -> class token
    first[5], second[0] = torch.eye(7)[3], torch.eye(7)[5]
    found = attention_rollout([first[None, None], second[None, None]])[0]
    expected = torch.zeros(7)
    expected[[0, 5, 3]] = torch.tensor([0.5, 0.25, 0.25])  # stays, one step, two steps
    assert_close(found[0], expected)
    assert_close(answer_mask(found, small()), torch.tensor([[0, 0, 0.25], [0, 0.25, 0]]))


def test_rollout_of_a_model_is_the_product_of_its_mean_maps(model, x):
    maps = attention_maps(model, x)
    found = attention_rollout(maps)
    for image in range(5):
        first, second = (sum(layer[image]) / 3 / 2 + torch.eye(7) / 2 for layer in maps)
        assert_close(found[image], second @ first)
    doubled = attention_rollout([2 * maps[0]])  # rows that sum to 3 with the identity
    assert_close(doubled.sum(dim=-1), torch.ones(5, 7).double())


def test_answer_mask_is_the_class_row_or_the_mean_row_on_the_grid():
    attention = torch.rand(2, 3, 7, 7)
    found = answer_mask(attention, small())
    pooled = answer_mask(attention[..., 1:, 1:], small(global_pool="avg"))
    for row in range(2):
        for col in range(3):
            key = 1 + 3 * row + col
            assert torch.equal(found[..., row, col], attention[..., 0, key])
            assert_close(pooled[..., row, col], sum(attention[..., 1:, key].unbind(-1)) / 6)
    with pytest.raises(ValueError, match="between 6 tokens given, the model has 6 patches and 1"):
        answer_mask(attention[..., 1:, 1:], small())


def test_embedding_components_are_the_principal_components():
    pca = pytest.importorskip("sklearn.decomposition").PCA
    model = small_vit()  # 60 filters of 3 x 4 x 4 numbers
    found, shares = embedding_components(model)
    assert found.shape == (28, 3, 4, 4) and not found.requires_grad
    assert found.amin() >= 0 and torch.equal(found.amax((1, 2, 3)), torch.ones(28))
    peer = pca(28).fit(model.patch_embed.proj.weight.detach().flatten(1).numpy())
    assert_close(shares, torch.tensor(peer.explained_variance_ratio_), check_dtype=False)
    for ours, theirs in zip(found.flatten(1), torch.tensor(peer.components_), strict=True):
        cosine = torch.cosine_similarity(ours.double() - 0.5, theirs, dim=0)  # 0.5 is zero
        assert abs(cosine.abs() - 1) < 1e-5


@torch.no_grad()
def test_position_similarity_is_the_cosine_of_the_patches_rows(model):
    found, rows = position_similarity(model), model.pos_embed[0, 1:]
    assert found.shape == (6, 6)
    for i in range(6):
        for j in range(6):
            assert_close(found[i, j], rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm()))


@torch.no_grad()
def test_tokens_after_each_block_are_the_models_own(model, x):
    found = tokens_after_each_block(model, x)
    assert [z.shape for z in found] == [(5, 7, 12)] * 3
    assert_close(found[0][:, 1:], model.patch_embed(x) + model.pos_embed[:, 1:])
    for block, before, after in zip(model.blocks, found, found[1:], strict=False):
        assert_close(block(before), after)
    assert_close(model.norm(found[-1]), model.forward_features(x))


def test_token_similarity_is_the_mean_cosine_of_the_pairs(model, x):
    found = token_similarity(torch.stack([2 * torch.eye(3), torch.ones(3, 3)]))
    assert_close(found, torch.tensor([0.0, 1.0]))  # at right angles, and all the same
    a, b, c = torch.randn(3, 5)
    pairs = [torch.cosine_similarity(u, v, dim=0) for u, v in ((a, b), (a, c), (b, c))]
    assert_close(token_similarity(torch.stack([a, b, c])[None])[0], sum(pairs) / 3)

    by_layer = [token_similarity(z).mean() for z in tokens_after_each_block(model, x)]
    for batch_size in (2, 64):
        assert_close(similarity_by_depth(model, x, batch_size), torch.stack(by_layer))


def test_cka_equals_the_definition_and_the_form_with_features():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(9, p, generator=generator).double() + 2 for p in (4, 7, 30)]
    found = linear_cka(features)
    H = torch.eye(9).double() - 1 / 9  # Kornblith et al.: the centring matrix

    def hsic(a, b):  # their equation 1, up to a factor
        return torch.trace(a @ a.T @ H @ b @ b.T @ H)

    for i, a in enumerate(features):
        for j, b in enumerate(features):
            assert_close(found[i, j], hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt())
            a_0, b_0 = a - a.mean(0), b - b.mean(0)
            with_features = (b_0.T @ a_0).norm() ** 2 / (a_0.T @ a_0).norm() / (b_0.T @ b_0).norm()
            assert_close(found[i, j], with_features)
    constant = linear_cka([features[0], torch.full((9, 2, 3), 0.1)])  # the same for all images
    assert constant.isnan().tolist() == [[False, True], [True, True]]
