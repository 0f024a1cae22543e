"""helpers/model.py against torch, torchvision, timm and the paper."""

import ast
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helpers.model
from helpers.model import (
    MLP,
    VARIANTS,
    EncoderBlock,
    MultiHeadSelfAttention,
    PatchEmbedding,
    VisionTransformer,
    attention,
    create_vit,
)
from tests.peers import images, randomize, small_vit, timm_copy, torchvision_copy

close = torch.testing.assert_close

PARAMETERS = {  # at 224 px, 3 channels, 1000 classes: official tests, timm and torchvision agree
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "S/32": 22_878_952,
    "B/8": 86_576_872,
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "L/16": 304_326_632,
    "L/32": 306_535_400,
    "H/14": 632_045_800,
}


def count(model):
    return sum(p.numel() for p in model.parameters())


# Table 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count(variant):
    with torch.device("meta"):
        assert count(create_vit(variant)) == PARAMETERS[variant]


def test_parameter_count_with_average_pooling():
    with torch.device("meta"):
        assert count(create_vit("B/16", global_pool="avg")) == 86_566_120


def test_parameter_count_follows_the_formula():
    C, P, D, L, M, K, N = 3, 4, 60, 3, 120, 10, 8 * 6
    model = small_vit(mlp_ratio=2.0)
    block = 4 * D**2 + 4 * D + 2 * D * M + M + D + 4 * D
    assert count(model) == (C * P**2 * D + D) + D + (N + 1) * D + L * block + 2 * D + D * K + K


def test_overrides_reach_the_model():
    model = create_vit("Ti/16", img_size=32, patch_size=8, depth=2, num_classes=7)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert len(model.blocks) == 2 and model.patch_embed.num_patches == 16


# Equality with the libraries


def assert_same_model(ours, theirs, x):
    """Same logits and the same gradient for every parameter and for the images."""
    x_ours, x_theirs = (x.clone().requires_grad_() for _ in range(2))
    close(ours(x_ours), theirs(x_theirs))
    for model, inputs in ((ours, x_ours), (theirs, x_theirs)):
        model.zero_grad()
        model(inputs).square().mean().backward()
    close(x_ours.grad, x_theirs.grad)
    # in one order for both: sorted by shape and value, since the names differ
    for p_ours, p_theirs in paired_parameters(ours, theirs):
        close(p_ours.grad, p_theirs.grad)


def paired_parameters(ours, theirs):
    """Parameters that hold the same numbers; every one of ours must find its partner."""
    partners = {(tuple(p.shape), p.double().sum().item()): p for p in theirs.parameters()}
    assert len(partners) == len(list(theirs.parameters()))
    for p in ours.parameters():
        yield p, partners.pop((tuple(p.shape), p.double().sum().item()))
    assert not partners


@pytest.mark.parametrize("pooling", ["token", "avg"])
@pytest.mark.parametrize(
    "img_size, patch_size, in_chans", [((32, 24), 4, 3), (32, 8, 3), ((14, 35), 7, 1)]
)
def test_equals_timm(img_size, patch_size, in_chans, pooling):
    ours = small_vit(
        img_size=img_size, patch_size=patch_size, in_chans=in_chans, global_pool=pooling
    )
    assert_same_model(ours, timm_copy(ours), images(ours))


@pytest.mark.parametrize("patch_size", [4, 8])
@pytest.mark.parametrize("representation_size", [None, 20])
def test_equals_torchvision(patch_size, representation_size):
    ours = small_vit(img_size=32, patch_size=patch_size, representation_size=representation_size)
    assert_same_model(ours, torchvision_copy(ours, representation_size), images(ours))


def test_mistakes_of_assembly_keep_the_shape_and_change_the_logits():
    vit = small_vit(img_size=32, representation_size=20)
    x = images(vit)
    answer = vit(x)
    patches, token = vit.patch_embed(x), vit.cls_token.expand(len(x), -1, -1)
    z_0 = torch.cat([token, patches], dim=1) + vit.pos_embed
    late = torch.cat([token, patches + vit.pos_embed[:, 1:]], dim=1)
    last = torch.cat([patches, token], dim=1) + vit.pos_embed

    def rest(y):
        return vit.head(vit.pre_logits(y))

    close(rest(vit.norm(vit.blocks(z_0))[:, 0]), answer)
    mistakes = {
        "no final norm": rest(vit.blocks(z_0)[:, 0]),
        "positions before the class token": rest(vit.norm(vit.blocks(late))[:, 0]),
        "class token at the end": rest(vit.norm(vit.blocks(last))[:, -1]),
        "no tanh": vit.head(vit.pre_logits[0](vit.norm(vit.blocks(z_0))[:, 0])),
    }
    for name, wrong in mistakes.items():
        assert wrong.shape == answer.shape, name
        assert (wrong - answer).abs().max() > 1e-3 * answer.abs().max(), name


def test_features_equal_timm():
    ours = small_vit()
    x = images(ours)
    close(ours.forward_features(x), timm_copy(ours).forward_features(x))


@pytest.mark.parametrize("mlp_ratio", [2.0, 4.0])
def test_block_equals_torch(mlp_ratio):
    D, h, M = 48, 6, int(48 * mlp_ratio)
    ours = randomize(EncoderBlock(D, h, mlp_ratio)).double()
    theirs = nn.TransformerEncoderLayer(
        D, h, M, dropout=0.0, activation=F.gelu, layer_norm_eps=1e-6, batch_first=True,
        norm_first=True, dtype=torch.float64,
    )  # fmt: skip
    weights = {
        "self_attn.in_proj_weight": ours.attn.qkv.weight,
        "self_attn.in_proj_bias": ours.attn.qkv.bias,
        "self_attn.out_proj.weight": ours.attn.proj.weight,
        "self_attn.out_proj.bias": ours.attn.proj.bias,
        "linear1.weight": ours.mlp.fc1.weight,
        "linear1.bias": ours.mlp.fc1.bias,
        "linear2.weight": ours.mlp.fc2.weight,
        "linear2.bias": ours.mlp.fc2.bias,
        "norm1.weight": ours.norm1.weight,
        "norm1.bias": ours.norm1.bias,
        "norm2.weight": ours.norm2.weight,
        "norm2.bias": ours.norm2.bias,
    }
    theirs.load_state_dict(weights)
    assert_same_model(ours, theirs, torch.randn(2, 65, D, dtype=torch.float64))


@pytest.mark.parametrize("training", [True, False])
def test_stack_equals_torch(training):
    """Four blocks, all different, and the norm at the end: what notebook 08 builds up to."""
    ours = small_vit(embed_dim=48, depth=4, num_heads=6).double()
    layer = nn.TransformerEncoderLayer(48, 6, ours.blocks[0].mlp.fc1.out_features, dropout=0.0,
                                       activation="gelu", layer_norm_eps=1e-6, batch_first=True,
                                       norm_first=True)  # fmt: skip
    theirs = nn.TransformerEncoder(
        layer, 4, norm=nn.LayerNorm(48, eps=1e-6), enable_nested_tensor=False
    ).double()
    names = {"blocks.": "layers.", "attn.qkv.": "self_attn.in_proj_",
             "attn.proj.": "self_attn.out_proj.", "mlp.fc1.": "linear1.",
             "mlp.fc2.": "linear2."}  # fmt: skip
    weights = {}
    for name, value in ours.state_dict().items():
        if name.startswith(("blocks.", "norm.")):
            for old, new in names.items():
                name = name.replace(old, new)
            weights[name] = value
    theirs.load_state_dict(weights)
    stack = nn.Sequential(ours.blocks, ours.norm)
    for tokens in (65, 97):  # a block does not know how many come
        x = torch.randn(2, tokens, 48, dtype=torch.float64)
        assert_same_model(stack.train(training), theirs.train(training), x)
        with torch.no_grad():  # in eval mode, torch's fast path
            close(stack(x), theirs(x))


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_attention_equals_torch(heads):
    ours = randomize(MultiHeadSelfAttention(48, heads)).double()
    theirs = nn.MultiheadAttention(48, heads, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x_ours, x_theirs = (
        torch.randn(2, 65, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        .requires_grad_() for _ in range(2)
    )  # fmt: skip
    out_ours = ours(x_ours)
    out_theirs, _ = theirs(x_theirs, x_theirs, x_theirs)
    close(out_ours, out_theirs)
    out_ours.square().sum().backward()
    out_theirs.square().sum().backward()
    close(x_ours.grad, x_theirs.grad)
    close(ours.qkv.weight.grad, theirs.in_proj_weight.grad)
    assert count(ours) == 4 * 48**2 + 4 * 48


def test_output_projection_is_a_sum_over_heads():
    msa, heads = randomize(MultiHeadSelfAttention(48, 6)), torch.randn(2, 10, 6, 8)
    strips = msa.proj.weight.T.split(8)  # (D, D) -> h strips of (d_k, D)
    written = [head @ strip for head, strip in zip(heads.unbind(2), strips, strict=True)]
    close(sum(written) + msa.proj.bias, msa.proj(heads.flatten(2)))
    assert all((part != 0).any(dim=(0, 1)).all() for part in written)  # each reaches every channel


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_attention_in_bfloat16_is_the_same_function(needs_gradient):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 6, 65, 16)
    half = [t.bfloat16().requires_grad_(needs_gradient) for t in (q, k, v)]
    close(attention(*half).float(), F.scaled_dot_product_attention(q, k, v), atol=0.03, rtol=0.03)


def test_strangers_checkpoint_gets_9077_of_10000():
    """A ViT that somebody else trained on Fashion-MNIST (see data/README.md)."""
    folder = os.environ.get("VIT_DATA")
    if not folder:
        pytest.skip("VIT_DATA is not set: it names a folder with Fashion-MNIST and the checkpoint")
    from safetensors.torch import load_file

    from helpers.data import load

    weights = Path(folder) / "weights" / "fashion_vit_d128_L6_h4_p4_timmkeys.safetensors"
    if not weights.exists():
        pytest.skip(f"the checkpoint {weights.name} is not in VIT_DATA/weights")
    model = VisionTransformer(img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=128,
                              depth=6, num_heads=4, mlp_ratio=2.0, norm_eps=1e-5)  # fmt: skip
    model.load_state_dict(load_file(weights), strict=True)
    assert count(model) == 805_130
    test = load("fashion-mnist").test
    right = 0
    with torch.inference_mode():
        for x, y in zip(test.images.split(500), test.labels.split(500), strict=True):
            right += (model.eval()((x / 255 - 0.5) / 0.5).argmax(1) == y).sum().item()
    assert right == 9077


# Shapes and options


def test_shapes():
    model = small_vit(num_classes=7)
    x = images(model, batch=3)
    assert model.patch_embed(x).shape == (3, 48, 60)
    assert model.forward_features(x).shape == (3, 49, 60)
    assert model(x).shape == (3, 7)
    assert small_vit(global_pool="avg").forward_features(x).shape == (3, 48, 60)
    assert small_vit(num_classes=0)(x).shape == (3, 60)
    assert small_vit(num_classes=0, representation_size=20)(x).shape == (3, 20)


def test_average_pooling_is_norm_then_mean():
    model = small_vit(global_pool="avg", num_classes=0)
    x = images(model)
    tokens = model.blocks(model.patch_embed(x) + model.pos_embed)
    close(model(x), model.norm(tokens).mean(1))


def test_patch_embedding_equals_the_loop():
    embed = randomize(PatchEmbedding((8, 12), 4, 3, 5)).double()
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    E = embed.proj.weight.reshape(5, -1)  # (D, C P P)
    tokens = []
    for row in range(2):
        for column in range(3):
            patch = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            tokens.append(patch.reshape(2, -1) @ E.T + embed.proj.bias)
    close(embed(x), torch.stack(tokens, dim=1))
    assert embed(x).is_contiguous()


def test_dropout_is_where_the_paper_puts_it():
    model = VisionTransformer(32, 4, num_classes=10, embed_dim=48, depth=2, num_heads=6,
                              drop_rate=0.5)  # fmt: skip
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    blocks = [f"blocks.{i}.{part}" for i in range(2) for part in ("attn.proj_drop", "mlp.drop")]
    assert rates == dict.fromkeys(["pos_drop", *blocks], 0.5)
    zeros = []
    mlp = MLP(48, 96, drop_rate=0.5).train()
    mlp.fc2.register_forward_pre_hook(lambda _, args: zeros.append((args[0] == 0).float().mean()))
    out = mlp(torch.randn(64, 48))
    assert 0.4 < zeros[0] < 0.6 and 0.4 < (out == 0).float().mean() < 0.6  # after fc1, after fc2
    randomize(model)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(x), model.train()(x))
    assert torch.equal(model.eval()(x), model.eval()(x))


# Mistakes that keep the right shape


def test_each_image_is_answered_by_itself():
    model = small_vit()
    x = images(model, batch=4)
    close(model(x), torch.cat([model(image[None]) for image in x]))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[1].sum(), x)
    assert gradient[1].abs().sum() > 0
    assert gradient[[0, 2, 3]].abs().sum() == 0
    assert (gradient[1] != 0).all()  # every pixel counts


def test_mlp_treats_each_token_by_itself_and_bends():
    mlp = small_vit().blocks[0].mlp
    x = torch.randn(5, mlp.fc1.in_features).to(mlp.fc1.weight)
    slopes = torch.autograd.functional.jacobian(mlp, x).norm(dim=(1, 3))  # (5, 5)
    assert (slopes.diag() > 0).all()
    assert (slopes[~torch.eye(5, dtype=torch.bool)] == 0).all()
    close(mlp(x), torch.stack([mlp(token) for token in x]))
    straight = nn.Sequential(mlp.fc1, mlp.fc2)  # without its bend midpoints stay midpoints
    close(straight((x[0] + x[1]) / 2), (straight(x[0]) + straight(x[1])) / 2)
    assert not torch.allclose(mlp((x[0] + x[1]) / 2), (mlp(x[0]) + mlp(x[1])) / 2, atol=1e-3)


def test_class_row_of_positions_and_every_parameter_gets_a_gradient():
    model = small_vit()
    model(images(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert (model.pos_embed.grad[0].abs().sum(-1) > 0).all()


def test_order_of_patches_matters_only_through_the_positions():
    model = small_vit()
    x = images(model)
    shuffled = x.unflatten(2, (8, 4)).unflatten(4, (6, 4))[:, :, torch.randperm(8)]
    shuffled = shuffled.flatten(4, 5).flatten(2, 3)
    assert not torch.allclose(model(x), model(shuffled))
    with torch.no_grad():
        model.pos_embed.copy_(model.pos_embed[:, :1].expand_as(model.pos_embed))
    close(model(x), model(shuffled))


def test_attention_weights_sum_to_one_and_scale_by_d_k():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 6, 65, 16, dtype=torch.float64)
    close(attention(q, k, torch.ones_like(q)), torch.ones_like(q))
    weights = (q @ k.transpose(-2, -1) / 4).softmax(-1)  # 4 = sqrt(16)
    v = torch.randn_like(q)
    close(attention(q, k, v), weights @ v)


def test_loss_at_the_start_is_ln_K():
    model = VisionTransformer(32, 4, num_classes=10, embed_dim=48, depth=2, num_heads=6)
    loss = F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4))
    close(loss.item(), math.log(10))


def test_one_batch_can_be_overfitted():
    torch.manual_seed(0)
    model = VisionTransformer(16, 4, 1, num_classes=4, embed_dim=32, depth=2, num_heads=4)
    x, y = torch.randn(8, 1, 16, 16), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# The official initialisation


def test_initialisation():
    torch.manual_seed(0)
    D = 192
    model = VisionTransformer(64, 4, num_classes=10, embed_dim=D, depth=2, num_heads=6,
                              representation_size=96)  # fmt: skip
    weights = dict(model.named_parameters())
    for i in range(2):
        for name, bound in (
            ("attn.qkv", math.sqrt(3 / D)),  # each of q, k, v by itself: sqrt(6 / (D + D))
            ("attn.proj", math.sqrt(3 / D)),
            ("mlp.fc1", math.sqrt(6 / (5 * D))),
            ("mlp.fc2", math.sqrt(6 / (5 * D))),
        ):
            weight = weights[f"blocks.{i}.{name}.weight"]
            assert bound * 0.99 < weight.abs().max() <= bound, name
            close(weight.std().item(), bound / math.sqrt(3), rtol=0.02, atol=0)
        assert weights[f"blocks.{i}.attn.qkv.bias"].abs().max() == 0
        assert weights[f"blocks.{i}.attn.proj.bias"].abs().max() == 0
        for name in ("fc1", "fc2"):
            bias = weights[f"blocks.{i}.mlp.{name}.bias"]
            close(bias.std().item(), 1e-6, rtol=0.2, atol=0)
    close(weights["pos_embed"].std().item(), 0.02, rtol=0.02, atol=0)
    close(weights["patch_embed.proj.weight"].std().item(), 48**-0.5, rtol=0.03, atol=0)
    close(weights["pre_logits.0.weight"].std().item(), D**-0.5, rtol=0.03, atol=0)
    for name in ("cls_token", "head.weight", "head.bias", "patch_embed.proj.bias"):
        assert weights[name].abs().max() == 0, name
    assert all(norm.eps == 1e-6 for norm in model.modules() if isinstance(norm, nn.LayerNorm))


def test_standard_deviation_of_positions_is_an_argument():
    torch.manual_seed(0)
    model = VisionTransformer(64, 4, embed_dim=48, depth=1, num_heads=6, pos_embed_std=0.5)
    close(model.pos_embed.std().item(), 0.5, rtol=0.05, atol=0)


# Bad input


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(img_size=30), ["30", "patch_size", "4", "(32, 32)"]),
        (dict(img_size=(32, 3)), ["32 x 3", "(32, 4)"]),
        (dict(num_heads=7), ["7", "60", "nearest such num_heads is 6"]),
        (dict(num_heads=0), ["num_heads is 0", "a whole number, 1 or more"]),
        (dict(global_pool="mean"), ["'mean'", '"token"', '"avg"']),
    ],
)
def test_sizes_that_do_not_fit(changes, words):
    with pytest.raises(ValueError) as error:
        small_vit(**changes)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("shape", [(2, 1, 32, 24), (2, 3, 24, 32), (3, 32, 24), (2, 3, 32, 28)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"\(3, 32, 24\) needed") as error:
        small_vit()(torch.zeros(shape, dtype=torch.float64))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    "name, nearest",
    [("b/16", "B/16"), ("H/16", "H/14"), ("L-32", "L/32"), ("vit_base_patch16_224", "B/16"),
     ("vit_base_patch8_224.augreg", "B/8"), ("vit_tiny_patch16_384", "Ti/16"), ("vit_l_32", "L/32"),
     ("deit_small_patch16_224", "S/16"), ("google/vit-huge-patch14-224-in21k", "H/14")],
)  # fmt: skip
def test_unknown_variant(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        create_vit(name)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_exported_traced_and_compiled_with_a_batch_of_any_size(pool):
    model = randomize(small_vit(global_pool=pool)).float().eval()
    x = torch.randn(2, 3, 32, 24)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("B")}})
    with warnings.catch_warnings(action="ignore", category=torch.jit.TracerWarning):
        traced = torch.jit.trace(model, x)
    compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
    for B in (1, 2, 5):
        x = torch.randn(B, 3, 32, 24)
        for ours in (exported.module(), traced, compiled):
            torch.testing.assert_close(ours(x), model(x))


def test_model_imports_torch_alone():
    tree = ast.parse(Path(helpers.model.__file__).read_text(encoding="utf-8"))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} == {"torch"}
