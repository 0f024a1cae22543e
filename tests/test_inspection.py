"""helpers/inspection.py: the numbers are the model's own, and the model is left as it was."""

import math

import pytest
import torch

from helpers.inspection import (
    answer_mask,
    attention_distance,
    attention_maps,
    attention_rollout,
    embedding_components,
    linear_cka,
    position_similarity,
    similarity_by_depth,
    token_similarity,
    tokens_after_each_block,
)
from helpers.model import VisionTransformer
from lab.questions import mean_and_interval, occlusion_drop, rank_correlation
from tests.peers import images, small_vit


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


# Any mode, and no trace


def everything(model, x):
    """Every function that runs the model: name -> what it returns, as a flat tensor."""
    labels = torch.arange(len(x)) % 3
    maps = attention_maps(model, x)
    return {
        "attention_maps": torch.stack(maps).flatten(),
        "attention_distance": attention_distance(model, x).flatten(),
        "tokens_after_each_block": torch.stack(tokens_after_each_block(model, x)).flatten(),
        "similarity_by_depth": similarity_by_depth(model, x),
        "occlusion_drop": occlusion_drop(model, x, labels, 2).flatten(),
        "embedding_components": embedding_components(model)[0].flatten(),
        "position_similarity": position_similarity(model).flatten(),
    }


def test_every_function_takes_a_model_in_any_mode_and_leaves_it_there(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    x = torch.randn(3, 1, 4, 6)
    expected = everything(model, x)
    model.train()
    model.blocks[1].eval()  # a frozen part
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name, found in everything(model, x).items():
        torch.testing.assert_close(found, expected[name], msg=name)
        assert not found.requires_grad, name
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert count_hooks(model) == 0


def test_the_mode_comes_back_after_an_error(model):
    model.train()
    too_small = torch.randn(1, 1, 4, 4)
    for run in (attention_maps, attention_distance, tokens_after_each_block, similarity_by_depth):
        with pytest.raises(ValueError, match="needed"):
            run(model, too_small)
        assert all(module.training for module in model.modules()) and count_hooks(model) == 0
    with pytest.raises(ValueError, match="needed"):
        occlusion_drop(model, too_small, torch.tensor([0]), 2)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_changes_nothing(model, batch_size):
    x, labels = torch.randn(5, 1, 4, 6), torch.tensor([0, 1, 2, 0, 1])
    for run in (attention_distance, similarity_by_depth):
        torch.testing.assert_close(run(model, x, batch_size=batch_size), run(model, x))
    torch.testing.assert_close(
        occlusion_drop(model, x, labels, 2, batch_size=batch_size),
        occlusion_drop(model, x, labels, 2),
    )


# Attention distance


def looks(goes_to):
    """A model of 2 x 3 patches of 2 x 2 pixels whose token q looks at token goes_to[q] alone.

    The class token is token 0. Tokens are one-hot, and a query is the key of where it looks.
    """
    model = VisionTransformer((4, 6), 2, 1, num_classes=3, embed_dim=7, depth=1, num_heads=1)
    with torch.no_grad():
        for parameter in model.patch_embed.parameters():
            parameter.zero_()
        model.pos_embed.copy_(torch.eye(7))
        model.blocks[0].attn.qkv.weight.zero_()
        for q, k in enumerate(goes_to):
            model.blocks[0].attn.qkv.weight[k, q] = 30  # the query of token q ...
        model.blocks[0].attn.qkv.weight[7:14] = 30 * torch.eye(7)  # ... is the key of token k
    return model.eval()


def slow_distance(maps, rows, cols, P):
    """The definition, number by number: maps of one block (B, h, N+1, N+1) -> list of h numbers."""
    found, N = [], rows * cols
    for head in range(maps.shape[1]):
        total = 0.0
        for image in range(len(maps)):
            for q in range(N):
                for k in range(N):
                    dy, dx = q // cols - k // cols, q % cols - k % cols
                    weight = maps[image, head, q + 1, k + 1].item()
                    total += weight * P * math.sqrt(dy**2 + dx**2)
        found.append(total / N / len(maps))
    return found


def test_distance_equals_the_slow_loop():
    model = small_vit()  # 32 x 24 pixels, 8 x 6 patches, 6 heads, 3 blocks
    x = images(model)
    found = attention_distance(model, x)
    assert found.shape == (3, 6)
    for layer, maps in enumerate(attention_maps(model, x)):
        slow = torch.tensor(slow_distance(maps, 8, 6, 4), dtype=torch.float64)
        torch.testing.assert_close(found[layer], slow)


def test_a_model_that_looks_everywhere_alike_has_the_known_distance(model):
    torch.nn.init.zeros_(model.blocks[0].attn.qkv.weight)
    torch.nn.init.zeros_(model.blocks[0].attn.qkv.bias)
    # 2 x 3 patches: of 36 pairs, 14 lie 1 apart, 4 2 apart, 8 sqrt(2), 4 sqrt(5), 6 nothing.
    mean = (14 * 1 + 4 * 2 + 8 * 2**0.5 + 4 * 5**0.5) / 36
    found = attention_distance(model, torch.randn(2, 1, 4, 6))
    torch.testing.assert_close(found[0], torch.full((3,), 2 * mean * 6 / 7))  # 1/7: class token
    pooled = VisionTransformer((4, 6), 2, 1, 3, embed_dim=8, depth=1, num_heads=2,
                               global_pool="avg")  # fmt: skip
    for parameter in pooled.blocks[0].attn.qkv.parameters():
        torch.nn.init.zeros_(parameter)
    found = attention_distance(pooled, torch.randn(2, 1, 4, 6))
    torch.testing.assert_close(found, torch.full((1, 2), 2 * mean))


def test_a_model_that_looks_at_itself_has_distance_0():
    found = attention_distance(looks(range(7)), torch.randn(1, 1, 4, 6))
    torch.testing.assert_close(found, torch.zeros(1, 1))


def test_a_model_that_looks_at_the_next_patch_has_the_known_distance():
    found = attention_distance(looks([0, 2, 3, 4, 5, 6, 1]), torch.randn(1, 1, 4, 6))
    torch.testing.assert_close(found, torch.tensor([[2 * (4 + 2 * 5**0.5) / 6]]))


# Rollout


def slow_rollout(maps, identity=True, renormalised=True, first_layer_first=True):
    """The definition with loops over rows and columns; the switches make the usual mistakes."""
    B, _, N, _ = maps[0].shape
    found = torch.zeros(B, N, N, dtype=maps[0].dtype)
    for image in range(B):
        product = torch.eye(N, dtype=maps[0].dtype)
        for attention in maps if first_layer_first else maps[::-1]:
            layer = sum(attention[image]) / len(attention[image])
            for q in range(N):
                if identity:
                    layer[q, q] += 1
                if renormalised:
                    layer[q] = layer[q] / sum(layer[q])
            new = torch.zeros_like(product)
            for q in range(N):
                for k in range(N):
                    new[q, k] = sum(layer[q, j] * product[j, k] for j in range(N))
            product = new
        found[image] = product
    return found


WRONG = [{"identity": False}, {"renormalised": False}, {"first_layer_first": False}]


def chain():
    """Two blocks of seven tokens, one head: patch 3 -> patch 5, then patch 5 -> class token."""
    first, second = torch.eye(7), torch.eye(7)
    first[5], second[0] = torch.eye(7)[3], torch.eye(7)[5]
    return [first[None, None], second[None, None]]


def test_rollout_follows_a_chain():
    found = attention_rollout(chain())[0]
    expected = torch.zeros(7)
    expected[[0, 5, 3]] = torch.tensor([0.5, 0.25, 0.25])  # stays, one step, two steps
    torch.testing.assert_close(found[0], expected)
    mask = answer_mask(found, (2, 3))
    torch.testing.assert_close(mask, torch.tensor([[0, 0, 0.25], [0, 0.25, 0]]))


@pytest.mark.parametrize("mistake", WRONG, ids=lambda mistake: next(iter(mistake)))
def test_rollout_of_the_chain_tells_each_mistake(mistake):
    found, right, wrong = (
        attention_rollout(chain()), slow_rollout(chain()), slow_rollout(chain(), **mistake)
    )  # fmt: skip
    torch.testing.assert_close(found, right)
    assert (found[:, 0] - wrong[:, 0]).abs().max() > 0.2


def test_rollout_equals_the_slow_loop_on_a_model(model):
    maps = attention_maps(model.double(), torch.randn(2, 1, 4, 6).double())
    found = attention_rollout(maps)
    torch.testing.assert_close(found, slow_rollout(maps))
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 7).double())
    for mistake in WRONG:
        assert (found - slow_rollout(maps, **mistake)).abs().max() > 0.01, mistake
    one = attention_rollout([maps[0]])
    torch.testing.assert_close(one, (maps[0].mean(1) + torch.eye(7)) / 2)


def test_rollout_leaves_the_maps_as_they_were(model):
    maps = attention_maps(model, torch.randn(2, 1, 4, 6))
    before = [attention.clone() for attention in maps]
    attention_rollout(maps)
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


def test_answer_mask_is_the_class_row_on_the_grid(model):
    last = attention_maps(model, torch.randn(2, 1, 4, 6))[-1]
    found = answer_mask(last, model.patch_embed.grid_size)
    assert found.shape == (2, 3, 2, 3)  # a mask for each head
    for row in range(2):
        for col in range(3):
            assert torch.equal(found[:, :, row, col], last[:, :, 0, 1 + 3 * row + col])
    assert answer_mask(last.mean(dim=1), (2, 3)).shape == (2, 2, 3)


def test_answer_mask_without_a_class_token_is_the_mean_row():
    attention = torch.rand(2, 6, 6)
    expected = torch.stack([attention[:, :, k].mean(dim=1) for k in range(6)], dim=1)
    torch.testing.assert_close(answer_mask(attention, (2, 3)).flatten(1), expected)
    with pytest.raises(ValueError, match="5 tokens given, 2 x 3 patches need 7"):
        answer_mask(torch.rand(2, 5, 5), (2, 3))


# Filters


def test_embedding_components_are_the_principal_components():
    pca = pytest.importorskip("sklearn.decomposition").PCA
    model = small_vit()  # 60 filters of 3 x 4 x 4 numbers
    found, shares = embedding_components(model)
    assert found.shape == (28, 3, 4, 4) and shares.shape == (28,)
    assert found.amin() >= 0 and torch.equal(found.amax((1, 2, 3)), torch.ones(28))
    peer = pca(28).fit(model.patch_embed.proj.weight.detach().flatten(1).numpy())
    torch.testing.assert_close(
        shares, torch.tensor(peer.explained_variance_ratio_), check_dtype=False
    )
    for ours, theirs in zip(found.flatten(1), torch.tensor(peer.components_), strict=True):
        cosine = torch.cosine_similarity(ours.double() - 0.5, theirs, dim=0)  # 0.5 is zero
        assert abs(cosine.abs() - 1) < 1e-5


def test_embedding_components_find_the_one_pattern_in_all_filters():
    model = VisionTransformer((4, 6), 2, 1, 3, embed_dim=8, depth=1, num_heads=2)
    pattern = torch.tensor([[1.0, -0.5], [0.25, 0.0]])
    with torch.no_grad():
        model.patch_embed.proj.weight.copy_(torch.arange(8.0).view(8, 1, 1, 1) * pattern + 3)
    found, shares = embedding_components(model)
    assert found.shape == (4, 1, 2, 2)  # a patch has four numbers: no more components
    torch.testing.assert_close(found[0, 0], 0.5 + pattern / 2)
    torch.testing.assert_close(shares, torch.tensor([1.0, 0, 0, 0]))


# Tokens


def test_similarity_by_depth_is_the_mean_over_images(model):
    x = torch.randn(5, 1, 4, 6)
    found = similarity_by_depth(model, x, batch_size=2)
    layers = tokens_after_each_block(model, x)
    assert found.shape == (3,)
    torch.testing.assert_close(found, torch.stack([token_similarity(z).mean() for z in layers]))


def slow_cka(a, b):
    """Kornblith et al., equations 1 and 2: HSIC with the centring matrix, entry by entry."""
    n = len(a)
    H = torch.eye(n).double() - 1 / n

    def hsic(x, y):
        K = torch.tensor([[float(x[i] @ x[j]) for j in range(n)] for i in range(n)]).double()
        L = torch.tensor([[float(y[i] @ y[j]) for j in range(n)] for i in range(n)]).double()
        return torch.trace(K @ H @ L @ H) / (n - 1) ** 2

    return hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt()


def test_cka_equals_the_gram_matrix_definition_and_the_feature_form():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(9, p, generator=generator).double() + 2 for p in (4, 7, 30)]
    found = linear_cka(features)
    assert found.shape == (3, 3)
    for i, a in enumerate(features):
        for j, b in enumerate(features):
            torch.testing.assert_close(found[i, j], slow_cka(a, b), rtol=1e-5, atol=1e-6)
            a_0, b_0 = a - a.mean(0), b - b.mean(0)
            feature_form = (b_0.T @ a_0).norm() ** 2 / (a_0.T @ a_0).norm() / (b_0.T @ b_0).norm()
            torch.testing.assert_close(found[i, j], feature_form)


def test_cka_sees_neither_rotation_nor_scale_nor_shift_but_sees_a_stretch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator).double())[0]
    stretch = torch.diag(torch.tensor([5.0, 1, 1, 1, 1, 1]).double())
    found = linear_cka([x, x @ turn, 3 * x, x + 7, x @ stretch])[0]
    torch.testing.assert_close(found[:4], torch.ones(4).double())
    assert found[4] < 0.95


def test_cka_of_unlike_features_is_near_0_and_of_constant_ones_undefined():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1000, 3, generator=generator)
    found = linear_cka([a, b, torch.full((1000, 3), 0.1)])
    assert found[0, 1] < 0.02
    assert found[2].isnan().all() and found[:, 2].isnan().all()
    torch.testing.assert_close(found.diagonal()[:2], torch.ones(2).double())


# Occlusion and agreement


class Weighted(torch.nn.Module):
    """Logits that are sums of the pixels, each with a weight: hiding a patch takes its sum away."""

    def __init__(self, weights):  # (K, C, H, W)
        super().__init__()
        self.weights = torch.nn.Parameter(weights)

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", x, self.weights)


@torch.no_grad()
def test_occlusion_is_what_the_patch_added():
    generator = torch.Generator().manual_seed(0)
    model = Weighted(torch.randn(3, 2, 4, 6, generator=generator))
    x, labels = torch.randn(5, 2, 4, 6, generator=generator), torch.tensor([0, 2, 1, 1, 0])
    found = occlusion_drop(model, x, labels, 2, batch_size=4)
    assert found.shape == (5, 2, 3)
    probabilities = occlusion_drop(model, x, labels, 2, probability=True, batch_size=4)
    for image, label in enumerate(labels):
        for row in range(2):
            for col in range(3):
                here = (slice(None), slice(2 * row, 2 * row + 2), slice(2 * col, 2 * col + 2))
                added = (x[image][here] * model.weights[label][here]).sum()
                torch.testing.assert_close(found[image, row, col], added, rtol=1e-4, atol=1e-5)
                hidden = x[image].clone()
                hidden[here] = 0
                before, after = (model(y[None])[0].softmax(0)[label] for y in (x[image], hidden))
                torch.testing.assert_close(probabilities[image, row, col], before - after)


def test_occlusion_asks_for_patches_that_fit(model):
    with pytest.raises(ValueError, match="4 x 6 pixels given, patch_size is 4"):
        occlusion_drop(model, torch.randn(1, 1, 4, 6), torch.tensor([0]), 4)


def test_rank_correlation_is_spearmans():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 5, (20, 3, 4), generator=generator).float()  # many that are equal
    b = a + torch.randn(20, 3, 4, generator=generator)
    found = rank_correlation(a, b)
    for i in range(20):
        expected = stats.spearmanr(a[i].flatten(), b[i].flatten()).statistic
        assert found[i].item() == pytest.approx(expected)


def test_rank_correlation_sees_the_order_alone():
    a = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rank_correlation(a, a.exp()), torch.ones(2).double())
    torch.testing.assert_close(rank_correlation(a, -(a**3)), -torch.ones(2).double())
    assert rank_correlation(a, torch.ones(2, 3, 4)).isnan().all()
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(2, 4, 3\)"):
        rank_correlation(a, torch.rand(2, 4, 3))


def test_the_interval_is_1_96_standard_errors_each_side_and_holds_the_mean():
    mean, low, high = mean_and_interval(torch.tensor([1.0, 2.0, 3.0]))
    assert mean == 2 and high - mean == pytest.approx(1.96 / 3**0.5) == mean - low
    numbers = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    held = [low < 0 < high for _, low, high in map(mean_and_interval, numbers)]
    assert 0.92 < sum(held) / 2000 < 0.96  # 95% for many numbers, a little less for 50
    for wrong in (torch.ones(1), torch.tensor([1.0, math.nan, 2.0])):
        with pytest.raises(ValueError, match="needs 2 or more"):
            mean_and_interval(wrong)
