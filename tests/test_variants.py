"""lab/parts.py: each change does what it says and leaves the rest alone."""

import ast
import inspect

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.model import VisionTransformer
from helpers.training import parameter_groups
from lab.parts import REPLACEMENTS, Waves, replace_part, sine_positions, sine_positions_2d
from tests.notebook_rules import ROOT, code_cells, syntax

SIZES = dict(img_size=(8, 12), patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=3,
             num_heads=2, mlp_ratio=2.0, pos_embed_std=0.5)  # fmt: skip
WHERE = ("input", "every layer", "every layer, shared")


def vit(seed=0, **changes):
    """A small ViT without a zero in it, for 2 x 3 patches."""
    torch.manual_seed(seed)
    model = VisionTransformer(**(SIZES | changes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def images(count=4, seed=1):
    return torch.randn(count, 1, 8, 12, generator=torch.Generator().manual_seed(seed))


def learned(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_1_d_positions_at_the_input_are_the_models_own():
    model, changed = vit(), vary(vit(), "positions", kind="1-D")
    changed.blocks[0].table.pos_embed.data = model.pos_embed.data.clone()
    torch.testing.assert_close(changed(images()), model(images()))
    assert learned(changed) == learned(model)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("kind", ["1-D", "2-D", "sine"])
def test_where_positions_are_added(kind, pool):
    for where in WHERE:
        model = vary(vit(global_pool=pool), "positions", kind=kind, where=where)
        adders = [m for m in model.blocks if hasattr(m, "table")]
        blocks = [m for m in model.blocks if not hasattr(m, "table")]
        tables = [m.table() for m in adders]
        x = model.patch_embed(images())
        if pool == "token":
            x = torch.cat([model.cls_token.expand(4, -1, -1), x], dim=1)
        for number, block in enumerate(blocks):  # by hand
            if number < len(tables):
                x = x + tables[number]
            x = block(x)
        x = model.norm(x)
        y = model.head(x[:, 0] if pool == "token" else x.mean(1))
        torch.testing.assert_close(model(images()), y)
        assert len(adders) == (1 if where == "input" else 3)
        assert len({id(m.table) for m in adders}) == (3 if where == "every layer" else 1)


def test_tables_in_2_d_share_a_row_and_a_column():
    table = vary(vit(), "positions", kind="2-D").blocks[0].table()[0]
    grid = table[1:].view(2, 3, 16)
    assert table.shape == (7, 16)
    assert torch.equal(grid[0, :, :8], grid[0, :1, :8].expand(3, -1))
    assert torch.equal(grid[:, 1, 8:], grid[:1, 1, 8:].expand(2, -1))
    assert not torch.equal(grid[0, 0, :8], grid[1, 0, :8])
    assert not torch.equal(grid[0, 0, 8:], grid[0, 1, 8:])


def test_waves_are_those_of_2017():
    table = sine_positions(5, 6)
    for place in range(5):
        for i in range(3):
            angle = torch.tensor(place / 10000 ** (2 * i / 6))
            torch.testing.assert_close(table[place, 2 * i : 2 * i + 2],
                                       torch.stack([angle.sin(), angle.cos()]))  # fmt: skip
    grid = sine_positions_2d(2, 3, 16).view(2, 3, 16)
    torch.testing.assert_close(grid[1, 2], torch.cat([sine_positions(2, 8)[1],
                                                      sine_positions(3, 8)[2]]))  # fmt: skip
    waves = Waves((2, 3), 7, 16, 0.5)
    assert not list(waves.parameters())
    assert waves().shape == (1, 7, 16) and not waves()[0, 0].any()


def test_without_positions_the_order_of_patches_does_not_matter():
    x = images()
    swapped = torch.cat([x[..., 4:8], x[..., :4], x[..., 8:]], dim=3)
    changed = vary(vit(), "positions", kind="none")
    torch.testing.assert_close(changed(x), changed(swapped))
    assert (vit()(x) - vit()(swapped)).abs().max() > 0.01


def test_the_class_token_starts_beside_zero_where_no_table_gives_it_a_row():
    for kind in ("none", "sine"):
        torch.manual_seed(0)
        model = vary(VisionTransformer(**SIZES), "positions", kind=kind)
        assert 0.2 < model.cls_token.std() < 1


def test_positions_do_not_decay():
    model = vary(vit(), "positions", kind="2-D", where="every layer")
    decayed = {id(p) for p in parameter_groups(model, 0.1)[0]["params"]}
    tables = [p for name, p in model.named_parameters() if "pos_embed" in name]
    assert len(tables) == 1 + 3 * 3
    assert not decayed & {id(p) for p in tables}


def test_norm_after_is_torchs_post_norm():
    model = vary(vit(), "norm after")
    theirs = nn.TransformerEncoderLayer(
        16, 2, 32, 0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=False
    )
    ours, x = model.blocks[0], torch.randn(2, 7, 16)
    pairs = {"self_attn.in_proj_weight": "attn.qkv.weight", "self_attn.in_proj_bias":
             "attn.qkv.bias", "self_attn.out_proj.weight": "attn.proj.weight",
             "self_attn.out_proj.bias": "attn.proj.bias", "linear1.weight": "mlp.fc1.weight",
             "linear1.bias": "mlp.fc1.bias", "linear2.weight": "mlp.fc2.weight", "linear2.bias":
             "mlp.fc2.bias", "norm1.weight": "norm1.weight", "norm1.bias": "norm1.bias",
             "norm2.weight": "norm2.weight", "norm2.bias": "norm2.bias"}  # fmt: skip
    state = ours.state_dict()
    theirs.load_state_dict({name: state[mine] for name, mine in pairs.items()})
    torch.testing.assert_close(ours(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)
    assert isinstance(model.norm, nn.Identity)


def test_relu_replaces_gelu_everywhere():
    model = vary(vit(), "relu")
    x = torch.randn(5, 16)
    for block in model.blocks:
        mlp = block.mlp
        torch.testing.assert_close(mlp(x), mlp.fc2(F.relu(mlp.fc1(x))))


def test_starts():
    wide = dict(embed_dim=128, depth=1)
    small = vary(vit(**wide), "small normal start")
    for name, parameter in small.named_parameters():
        if parameter.ndim > 1 and parameter.numel() > 200:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
        elif name.endswith("bias") and "norm" not in name:
            assert not parameter.any(), name
    torch.manual_seed(0)
    fresh = VisionTransformer(**(SIZES | wide))
    positions = fresh.pos_embed.clone()
    vary(fresh, "torch start")
    bound = 128**-0.5  # kaiming_uniform(a=sqrt(5)) of a linear layer: 1 / sqrt(fan in)
    for layer in (fresh.blocks[0].attn.qkv, fresh.blocks[0].mlp.fc1, fresh.head):
        assert 0.9 * bound < layer.weight.abs().max() <= bound and layer.bias.any()
    assert torch.equal(fresh.pos_embed, positions)


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="'gelu' is unknown, there are: positions, norm after"):
        vary(vit(), "gelu")
    with pytest.raises(ValueError, match="'3-D' at 'input': choose one of none, 1-D, 2-D, sine"):
        vary(vit(), "positions", kind="3-D")
    with pytest.raises(ValueError, match="the width is 18"):
        vary(vit(embed_dim=18), "positions", kind="sine")
    assert len(CHANGES) == 5


def test_the_sines_are_those_that_notebook_04_builds():
    built = {}
    notebook = nbformat.read(ROOT / "notebooks" / "04_position_embeddings.ipynb", 4)
    for _, cell in code_cells(notebook):
        for node in syntax(cell.source).body:
            if isinstance(node, ast.FunctionDef):
                built[node.name] = ast.dump(node)
    for function in (sine_positions, sine_positions_2d):
        assert ast.dump(ast.parse(inspect.getsource(function)).body[0]) == built[function.__name__]
