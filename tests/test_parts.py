"""lab/parts.py: what is taken away is gone, what replaces it is right, the rest stays."""

import ast
import inspect
import itertools
import re

import nbformat
import pytest
import torch
from torch import nn

from helpers.model import VisionTransformer
from helpers.training import parameter_groups
from lab.parts import PARTS, replace_part, sine_positions, sine_positions_2d, without
from tests.notebook_rules import ROOT, code_cells, syntax

SIZES = dict(img_size=(8, 12), patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=3,
             num_heads=2, mlp_ratio=2.0, pos_embed_std=0.5)  # fmt: skip
X = torch.randn(4, 1, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vit(pool="token", **changes):
    """A small ViT without a zero in it, for 2 x 3 patches, in double precision."""
    torch.manual_seed(0)
    model = VisionTransformer(**(SIZES | dict(global_pool=pool) | changes)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def first_tokens(model, table):
    """What comes before the first block where table holds the positions: (B, N+1, D)"""
    z = model.patch_embed(X)
    if table.shape[1] > z.shape[1]:
        z = torch.cat([model.cls_token.expand(len(X), -1, -1), z], dim=1)
    return z + table


def attend(attn, z, heads, silent):
    """Multi-head attention head by head; what the head called silent gathers is zero."""
    width, gathered = z.shape[-1] // heads, []
    q, k, v = (part.split(width, dim=-1) for part in attn.qkv(z).chunk(3, dim=-1))
    for head in range(heads):
        weights = (q[head] @ k[head].transpose(1, 2) / width**0.5).softmax(dim=-1)
        gathered.append(weights @ v[head] * (head != silent))
    return attn.proj(torch.cat(gathered, dim=-1))


def written_out(model, part, layer):
    """What a whole model would say of X without part: its formula, with the part left out."""
    table = model.pos_embed * (part != "positions")
    z = first_tokens(model, table[:, -6:] if part == "class token" else table)
    blocks = model.blocks[:1] if part == "depth" else model.blocks
    for number, block in enumerate(blocks):
        gone = part if layer in (None, number, number - len(blocks)) else None
        norms = [nn.Identity()] * 2 if gone == "norm" else [block.norm1, block.norm2]
        if gone not in ("attention", "block"):
            made = attend(block.attn, norms[0](z), 1 if gone == "heads" else 2, gone)
            z = made if gone == "residuals" else z + made
        if gone not in ("mlp", "block"):
            made = block.mlp(norms[1](z))
            z = made if gone == "residuals" else z + made
    z = z if (part, layer) == ("norm", None) else model.norm(z)
    return model.head(z[:, 0] if z.shape[1] == 7 or part == "class token" else z.mean(dim=1))


CASES = [  # part, layer, the names of what goes or changes
    ("positions", None, "pos_embed"), ("heads", None, ""), ("depth", None, r"blocks\.[12].*"),
    ("class token", None, "cls_token|pos_embed"), ("norm", None, r"(blocks\.\d\.)?norm.*"),
    ("norm", 1, r"blocks\.1\.norm.*"), ("norm", -1, r"blocks\.2\.norm.*"),
    *((part, layer, rf"blocks\.{place}\.({names})")
      for part, names in (("attention", "attn.*"), ("mlp", "mlp.*"), ("block", "attn.*|mlp.*"),
                          ("residuals", "-"), (0, "attn.proj.weight"), (1, "attn.proj.weight"))
      for layer, place in ((None, r"\d"), (0, 0), (-1, 2))),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize(("part", "layer", "names"), CASES)
def test_without_is_the_formula_with_a_part_left_out(part, layer, names, pool):
    whole, model = vit(pool), vit(pool)
    assert without(model, part, layer) is model
    torch.testing.assert_close(model(X), written_out(whole, part, layer))
    assert (model(X) - whole(X)).abs().max() > 1e-3
    old, new = whole.state_dict(), model.state_dict()
    touched = {name for name in old if name not in new or not torch.equal(old[name], new[name])}
    if (part, pool) != ("class token", "avg"):  # there is none, the mean alone goes
        assert touched == {name for name in old if re.fullmatch(names, name)}
    assert set(new) <= set(old)  # nothing came in its place
    still = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert still == ["pos_embed"] * (part == "positions")
    assert (model.cls_token is None) == (pool == "avg" or part == "class token")
    assert model.forward_features(X)[:, model.num_prefix_tokens :].shape == (4, 6, 16)


@torch.no_grad()
def test_parts_are_taken_together_in_any_order():
    assert {part for part, *_ in CASES} == {*PARTS, "block", 0, 1}
    for a, b in itertools.combinations([*PARTS, "block"], 2):
        first, second = without(without(vit(), a), b), without(without(vit(), b), a)
        torch.testing.assert_close(first(X), second(X), msg=f"{a}, {b}")
        assert first.pos_embed.requires_grad == ("positions" not in (a, b))
    model = without(without(without(vit(), 1), "mlp"), 0)  # of all heads, proj's bias is left
    bias = sum(block.attn.proj.bias for block in model.blocks)
    z = first_tokens(model, model.pos_embed) + bias
    torch.testing.assert_close(model.forward_features(X), model.norm(z))


@torch.no_grad()
def test_without_residuals_an_image_is_one_token_and_images_still_differ():
    """What notebook 08 says of a fresh stack: the tokens of an image and its class token."""
    for part in (None, "residuals"):
        torch.manual_seed(0)
        model = VisionTransformer(**SIZES | dict(embed_dim=48, num_heads=3, depth=12))
        z = (without(model, part) if part else model).double().forward_features(X)  # (B, N+1, D)
        own = (z - z.mean(dim=1, keepdim=True)).norm(dim=(1, 2)) / z.norm(dim=(1, 2))
        assert (own < 1e-12).all() if part else (own > 0.2).all()
        class_tokens = nn.functional.normalize(z[:, 0], dim=1)
        cosines = (class_tokens @ class_tokens.T).triu(diagonal=1)  # of different images
        assert cosines.max() < (0.99 if part else 0.9)


def test_what_is_unknown_is_refused_and_nothing_changes():
    model = vit()
    for part in ("head", 2, -1, None):
        with pytest.raises(
            ValueError, match=f"{part!r} is unknown: choose one of pos.*block, 0, 1"
        ):
            without(model, part)
    for part in ("positions", "heads", "depth", "class token"):
        with pytest.raises(ValueError, match=f"{part} cannot be taken from one layer"):
            without(model, part, 0)
    with pytest.raises(IndexError):
        without(model, "mlp", 3)
    with pytest.raises(ValueError, match="'gelu' is unknown, there are: positions, norm after"):
        replace_part(model, "gelu")
    for options in (dict(kind="3-D"), dict(kind="2-D", where="last layer")):
        with pytest.raises(ValueError, match="choose one of none, 1-D, 2-D, sine, and one of inp"):
            replace_part(model, "positions", **options)
    with pytest.raises(ValueError, match="the width is 18"):
        replace_part(vit(embed_dim=18), "positions", kind="sine")
    assert torch.equal(model(X), vit()(X))


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("kind", ["1-D", "2-D", "sine"])
def test_where_positions_are_added(kind, pool):
    for where in ("input", "every layer", "every layer, shared"):
        model = replace_part(vit(pool), "positions", kind=kind, where=where)
        adders = [m for m in model.blocks if hasattr(m, "table")]
        blocks = [m for m in model.blocks if not hasattr(m, "table")]
        tables = [m.table() for m in adders]
        z = first_tokens(model, torch.zeros_like(model.pos_embed))
        for number, block in enumerate(blocks):  # by hand
            z = block(z + tables[number] if number < len(tables) else z)
        torch.testing.assert_close(model.forward_features(X), model.norm(z))
        counts = len(adders), len({id(m.table) for m in adders})
        assert counts == {"input": (1, 1), "every layer": (3, 3)}.get(where, (3, 1))


@torch.no_grad()
def test_the_class_token_starts_beside_zero_where_no_table_has_a_row_for_it():
    blind = replace_part(vit(), "positions", kind="none")
    torch.testing.assert_close(blind(X), blind(X.roll(4, dims=3)))  # patches in another order
    for kind in ("none", "sine", "1-D"):
        fresh = replace_part(VisionTransformer(**SIZES), "positions", kind=kind)
        assert 0.3 < fresh.cls_token.std() < 0.8 if kind != "1-D" else not fresh.cls_token.any()
    assert 0.4 < fresh.blocks[0].table().std() < 0.6


def test_learned_tables_share_rows_and_columns_and_do_not_decay():
    model = replace_part(vit(), "positions", kind="2-D", where="every layer")
    grid = model.blocks[0].table()[0, 1:].view(2, 3, 16)
    assert torch.equal(grid[..., :8], grid[:, :1, :8].expand(-1, 3, -1))
    assert torch.equal(grid[..., 8:], grid[:1, :, 8:].expand(2, -1, -1))
    assert len(grid[:, 0, :8].unique(dim=0)) == 2 and len(grid[0, :, 8:].unique(dim=0)) == 3
    decayed = {id(p) for p in parameter_groups(model, 0.1)[0]["params"]}
    tables = {id(p) for m in model.blocks if hasattr(m, "table") for p in m.table.parameters()}
    assert len(tables) == 3 * 3 and not decayed & tables


def test_the_sines_are_those_of_2017_and_of_the_side_trip():
    waves = replace_part(vit(), "positions", kind="sine").blocks[0].table
    assert not list(waves.parameters()) and not waves()[0, 0].any()  # a class token has no place
    grid = waves()[0, 1:].view(2, 3, 16)
    for row, col, i in itertools.product(range(2), range(3), range(4)):
        for place, half in ((row, 0), (col, 8)):
            angle = torch.tensor(place / 10000 ** (2 * i / 8))
            found = grid[row, col, half + 2 * i : half + 2 * i + 2]
            torch.testing.assert_close(found, torch.stack([angle.sin(), angle.cos()]))
    notebook = nbformat.read(ROOT / "notebooks/side_trips/04_sines_and_rotations.ipynb", 4)
    built = [ast.dump(n) for _, cell in code_cells(notebook) for n in syntax(cell.source).body]
    for function in (sine_positions, sine_positions_2d):
        assert ast.dump(ast.parse(inspect.getsource(function)).body[0]) in built


@torch.no_grad()
@pytest.mark.parametrize("name", ["norm after", "relu"])
def test_blocks_are_those_of_torch_that_have_the_change(name):
    model, after = replace_part(vit(), name), name == "norm after"
    how = dict(activation="relu" if name == "relu" else "gelu", norm_first=not after)
    theirs = nn.TransformerEncoderLayer(16, 2, 32, 0, layer_norm_eps=1e-6, batch_first=True, **how)
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj."}
    names |= {"linear1.": "mlp.fc1.", "linear2.": "mlp.fc2.", "norm1.": "norm1."}
    pairs = list(itertools.product((names | {"norm2.": "norm2."}).items(), ("weight", "bias")))
    z = first_tokens(model, model.pos_embed)
    for block in model.blocks:
        state = block.state_dict()
        theirs.load_state_dict({new + kind: state[old + kind] for (new, old), kind in pairs})
        z = theirs.double().eval()(z)
    z = z if after else vit().norm(z)  # norm after: none at the end
    torch.testing.assert_close(model(X), model.head(z[:, 0]))


def test_starts():
    wide = dict(embed_dim=128, depth=1, num_classes=100)
    small = replace_part(vit(**wide), "small normal start")
    default = replace_part(vit(**wide), "torch start")
    for name, before in vit(**wide).named_parameters():
        normal, uniform = small.get_parameter(name), default.get_parameter(name)
        if "norm" in name:
            assert torch.equal(normal, before), name
        else:
            std = 0 if name.endswith("bias") else 0.02
            assert normal.std().item() == pytest.approx(std, rel=0.2), name
        if "norm" in name or name in ("pos_embed", "cls_token"):
            assert torch.equal(uniform, before), name
        else:  # kaiming_uniform(a=sqrt(5)): up to 1 / sqrt(fan in)
            bound = small.get_parameter(name.replace("bias", "weight"))[0].numel() ** -0.5
            assert 0.9 * bound < uniform.abs().max() <= bound, name
