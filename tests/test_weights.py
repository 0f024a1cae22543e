"""helpers/weights/ against timm, torchvision, numpy, and a checkpoint of a stranger."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import vision_transformer as torchvision_vit

from helpers.data import load
from helpers.model import VisionTransformer, create_vit
from helpers.weights import (
    Report,
    load_pretrained,
    model_from,
    resize_positions,
    to_timm,
    to_torchvision,
)
from helpers.weights.names import LAYOUTS
from tests.peers import SMALL, images, randomize

close = torch.testing.assert_close
timm_vit = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed")
HALF = ((0.5,) * 3,) * 2
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AVERAGED = dict(global_pool="avg", class_token=False, fc_norm=False)  # timm's words for ours
WIDE = dict(img_size=(16, 36))  # 4 x 9 = 36 patches, as many as 6 x 6

# No two numbers alike: 36 patches of side 4, heads of width 8, a hidden width of 60.
SIZES = dict(img_size=24, patch_size=4, num_classes=10, embed_dim=40, depth=3, num_heads=5,
             mlp_ratio=1.5)  # fmt: skip


def ours(**changes):
    """Our model, at its start: zeros in the head and the class token."""
    return VisionTransformer(**(SIZES | changes)).double().eval()


def of_timm(**changes):
    """timm's model with random weights, none of them zero."""
    return randomize(timm_vit.VisionTransformer(**(SIZES | changes))).double().eval()


def of_torchvision(representation_size=None, **changes):
    """torchvision's model with random weights, none of them zero."""
    wanted = SIZES | changes
    names = ("img_size", "patch_size", "depth", "num_heads", "embed_dim")
    sizes, M = [wanted[n] for n in names], int(wanted["mlp_ratio"] * wanted["embed_dim"])
    classes = dict(num_classes=wanted["num_classes"], representation_size=representation_size)
    model = torchvision_vit.VisionTransformer(*sizes, M, **classes)
    return randomize(model).double().eval()


def same_logits(model, peer):
    x = images(model)
    with torch.no_grad():
        close(model.double()(x), peer.double()(x))


def same_state(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def refused(parts, function, *arguments, **options):
    """function must raise ValueError with all parts in its message, the model kept as it was."""
    model = arguments[0] if isinstance(arguments[0], torch.nn.Module) else None
    before = {name: w.clone() for name, w in model.state_dict().items()} if model else {}
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    for part in [parts] if isinstance(parts, str) else parts:
        assert part in str(caught.value)
    if model:
        same_state(before, model.state_dict())
    return str(caught.value)


# In and out


@pytest.mark.parametrize("changes, timms", [
    ({}, {}),
    (dict(global_pool="avg"), AVERAGED),
    (dict(WIDE, in_chans=1), dict(WIDE, in_chans=1)),
], ids=["token", "avg", "wide"])  # fmt: skip
def test_timm_in_and_out(changes, timms):
    peer, model = of_timm(**timms), ours(**changes)
    grid = (4, 9) if "img_size" in changes else None
    report = load_pretrained(model, peer.state_dict(), grid=grid)
    assert report == Report("timm", resized=None, head="kept", normalisation=None)
    same_logits(model, peer)
    same_state(to_timm(model), peer.state_dict())
    built, _ = model_from(peer.state_dict(), num_heads=5, grid=grid)
    assert not built.training and built.norm.eps == 1e-6
    same_logits(built, peer)


@pytest.mark.parametrize("representation_size", [None, 20])
def test_torchvision_in_and_out(representation_size):
    peer = of_torchvision(representation_size)
    model = ours(representation_size=representation_size)
    report = load_pretrained(model, peer.state_dict())
    assert report == Report("torchvision", None, "kept", IMAGENET)
    same_logits(model, peer)
    same_state(to_torchvision(model), peer.state_dict())
    names_before_0_14 = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): w
        for name, w in peer.state_dict().items()
    }
    built, _ = model_from(names_before_0_14, num_heads=5)
    same_logits(built, peer)


@pytest.mark.parametrize("letters", [("q", "k", "v"), ("q_proj", "k_proj", "v_proj")])
def test_separate_q_k_and_v(letters):
    peer, model, state = of_timm(), ours(), {}
    for name, w in peer.state_dict().items():
        start, fused, kind = name.partition("qkv.")
        parts = zip(letters, w.chunk(3), strict=True) if fused else ()
        state |= {f"{start}{c}.{kind}": part for c, part in parts} if fused else {name: w}
    assert len(state) == len(peer.state_dict()) + 12
    load_pretrained(model, state)
    same_logits(model, peer)


def of_dinov2(**changes):
    """timm's DINOv2: LayerScale, no head; as Meta's but for the mask token, which its forward
    pass does not read."""
    return of_timm(**dict(init_values=1.0, num_classes=0) | changes)


def in_hugging_faces_names(state, letters):
    """A DINOv2's state by the names that transformers' Dinov2Model has, in memory or saved."""
    old = letters == "query key value"
    renamed = {"embeddings.mask_token": torch.ones(1, 40)}
    for name, w in state.items():
        name = re.sub(r"^blocks\.", "encoder.layer.", name)
        name = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", name)
        name = name.replace("attn.proj", "attention.output.dense" if old else "attention.o_proj")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("cls_token", "embeddings.cls_token")
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = re.sub("^norm", "layernorm", name)
        if "qkv" in name:
            inside = "attention.attention" if old else "attention"
            for letter, part in zip(letters.split(), w.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"{inside}.{letter}")] = part
        else:
            renamed[name] = w
    return renamed


@pytest.mark.parametrize("library", ["timm", "DINOv2", "query key value", "q_proj k_proj v_proj"])
def test_layer_scale_folds_into_the_rows(library):
    peer = of_dinov2()
    state = dict(peer.state_dict())
    if library == "DINOv2":
        state["mask_token"] = torch.ones(1, 40)
    elif library != "timm":
        state = in_hugging_faces_names(state, library)
    model, report = model_from(state, num_heads=5, norm_eps=1e-6)
    assert report.format == (library if library in ("timm", "DINOv2") else "Hugging Face")
    assert report.normalisation == (None if library == "timm" else IMAGENET)
    assert len(report.folded) == 2 * len(model.blocks)
    assert [n.rpartition(".")[2] for n in report.aside] == ["mask_token"] * (library != "timm")
    x = images(model)
    with torch.no_grad():
        close(model.double().forward_features(x), peer.forward_features(x))
    assert load_pretrained(ours(num_classes=0), state).folded == report.folded


def test_a_product_of_half_numbers_is_not_rounded_to_half():
    state = {n: w.bfloat16() for n, w in of_dinov2().state_dict().items()}
    weight = load_pretrained(model := ours(num_classes=0), state) and model.blocks[0].mlp.fc2.weight
    by_hand = (
        state["blocks.0.ls2.gamma"].double()[:, None] * state["blocks.0.mlp.fc2.weight"].double()
    )
    close(weight, by_hand, rtol=1e-6, atol=0)


def test_a_factor_that_does_not_fit():
    state = dict(of_dinov2().state_dict())
    short = state | {"blocks.1.ls1.gamma": torch.ones(39)}
    refused(["blocks.1.ls1.gamma is (39,)", "one number for each"], model_from, short, num_heads=5)
    del state["blocks.2.mlp.fc2.weight"]
    refused("missing: blocks.2.mlp.fc2.weight", load_pretrained, ours(num_classes=0), state)


def test_weights_are_copied_in_the_models_precision():
    peer, model = of_timm().bfloat16(), ours()
    state = peer.state_dict()
    load_pretrained(torch.compile(model), state)  # into the model that is inside
    same_state(model.state_dict(), {name: w.double() for name, w in state.items()})
    peer, back = of_timm().state_dict(), to_timm(model)
    load_pretrained(model, peer)
    with torch.no_grad():
        model.head.bias.zero_()
    assert peer["head.bias"].all() and back["head.bias"].all()


def test_what_other_libraries_cannot_be():
    refused("tanh layer", to_timm, ours(representation_size=20))
    for changes in (dict(global_pool="avg"), WIDE, dict(in_chans=1), dict(num_classes=0)):
        refused("square images of 3 channels and a head", to_torchvision, ours(**changes))


# The official .npz


def official(state, heads=5, prefix="", big_vision=False, stacked=False):
    """A state dict with timm's names -> the arrays of an official file, written independently."""
    attention, mlp, second = (0, 0, 1) if big_vision else (1, 3, 2)
    attention = f"MultiHeadDotProductAttention_{attention}"
    positions = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    modules = {"patch_embed.proj": "embedding", "norm": "Transformer/encoder_norm",
               "pre_logits.0": "pre_logits", "head": "head", "norm1": "LayerNorm_0",
               "norm2": f"LayerNorm_{second}", "mlp.fc1": f"MlpBlock_{mlp}/Dense_0",
               "mlp.fc2": f"MlpBlock_{mlp}/Dense_1", "attn.proj": f"{attention}/out"}  # fmt: skip
    arrays = {}
    for name, w in state.items():
        block, i, w = "", "", w.float().numpy()
        if name.startswith("blocks."):
            _, i, name = name.split(".", 2)
            block = f"Transformer/encoderblock_{i}/"
        module, _, kind = name.rpartition(".")
        if name in ("cls_token", "pos_embed"):
            arrays[positions if name == "pos_embed" else "cls"] = w
        elif name == "attn.qkv.weight":
            for part, rows in zip(("query", "key", "value"), np.split(w, 3), strict=True):
                rows = rows.reshape(heads, -1, w.shape[1])  # out is (head, d)
                arrays[f"{block}{attention}/{part}/kernel"] = np.einsum("hdi->ihd", rows)
        elif name == "attn.qkv.bias":
            for part, rows in zip(("query", "key", "value"), np.split(w, 3), strict=True):
                arrays[f"{block}{attention}/{part}/bias"] = rows.reshape(heads, -1)
        elif name == "attn.proj.weight":
            w = np.einsum("ohd->hdo", w.reshape(len(w), heads, -1))
            arrays[f"{block}{attention}/out/kernel"] = w
        else:
            kind = "bias" if kind == "bias" else "scale" if w.ndim == 1 else "kernel"
            w = np.einsum("dchw->hwcd", w) if w.ndim == 4 else w.T
            arrays[f"{block}{modules[module]}/{kind}"] = w
    for name in [name for name in arrays if stacked and "block_0/" in name]:
        blocks = [arrays.pop(name.replace("block_0", f"block_{i}")) for i in range(SIZES["depth"])]
        arrays[name.replace("block_0", "block")] = np.stack(blocks)
    return {prefix + name: w for name, w in arrays.items()}


LAYOUT_OPTIONS = {
    "plain": {},
    "opt/target": dict(prefix="opt/target/"),
    "big_vision": dict(prefix="params/", big_vision=True),
    "stacked": dict(prefix="params/", big_vision=True, stacked=True),
}


@pytest.mark.parametrize("layout", LAYOUT_OPTIONS)
@pytest.mark.parametrize("averaged", [False, True], ids=["token", "avg"])
def test_official_npz_as_timm_reads_it(tmp_path, layout, averaged):
    options = LAYOUT_OPTIONS[layout]
    # big_vision adds the positions before the class token joins: no row of its own
    late = dict(no_embed_class=True) if "big_vision" in options and not averaged else {}
    changes = AVERAGED if averaged else late
    source, path = of_timm(**changes).float(), tmp_path / "vit.npz"
    arrays = official(source.state_dict(), **options)
    if layout == "opt/target":
        arrays |= {"opt/state/step": np.array(7), "opt/state/cls/v": np.ones(3, np.float32)}
    np.savez(path, **arrays)
    model, report = model_from(path)  # the heads are in the shapes of this layout
    name = "big_vision" if "big_vision" in options else "official"
    assert report == Report(name, None, "kept", HALF)
    assert model.blocks[0].attn.num_heads == 5
    reader = timm_vit.VisionTransformer(**(SIZES | changes)).eval()
    timm_vit._load_weights(reader, str(path))
    same_logits(model, reader)
    same_logits(model, source)
    model = ours(num_heads=4, global_pool="avg" if averaged else "token")
    refused("num_heads is 5 there and 4 here", load_pretrained, model, path)


def test_official_npz_with_the_tanh_layer(tmp_path):
    peer = of_torchvision(20).float()
    state = model_from(peer.state_dict(), num_heads=5)[0].state_dict()
    np.savez_compressed(tmp_path / "vit.npz", **official(state))
    same_logits(model_from(tmp_path / "vit.npz")[0], peer)


def test_bfloat16_as_jax_saves_it(tmp_path):
    peer = of_timm().bfloat16()
    two_bytes = {
        name: torch.tensor(w).bfloat16().view(torch.int16).numpy().view("V2")
        for name, w in official(peer.state_dict()).items()
    }
    np.savez(tmp_path / "vit.npz", **two_bytes)
    model = ours()
    load_pretrained(model, tmp_path / "vit.npz")
    same_state(model.state_dict(), {n: w.double() for n, w in peer.state_dict().items()})


# Positions


@pytest.mark.parametrize("class_rows", [0, 1])
def test_positions_equal_timms(class_rows):
    resample = pytest.importorskip("timm.layers").resample_abs_pos_embed
    positions = torch.randn(1, 48 + class_rows, 24)
    for new in ((12, 16), (3, 4), (5, 11), (8, 6), (1, 1)):
        wanted = resample(positions, list(new), [6, 8], num_prefix_tokens=class_rows)
        close(resize_positions(positions, (6, 8), new, "timm"), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("new", [4, 12])
def test_positions_equal_torchvisions(new):
    state = {"encoder.pos_embedding": torch.randn(1, 50, 24)}
    resized = resize_positions(state["encoder.pos_embedding"], (7, 7), (new, new), "torchvision")
    wanted = torchvision_vit.interpolate_embeddings(new * 4, 4, state)["encoder.pos_embedding"]
    close(resized, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("new", [(6, 9), (3, 7)])
def test_positions_equal_the_official_ones(new):
    zoom = pytest.importorskip("scipy.ndimage").zoom
    positions = torch.randn(1, 1 + 30, 8, dtype=torch.float64)
    grid = positions[0, 1:].unflatten(0, (5, 6)).numpy()
    wanted = torch.from_numpy(zoom(grid, (new[0] / 5, new[1] / 6, 1), order=1)).flatten(0, 1)
    resized = resize_positions(positions, (5, 6), new)
    close(resized[0], torch.cat([positions[0, :1], wanted]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("new", [(8, 8), (4, 9), (7, 5)])
def test_positions_as_dinov2_resizes_them(new):
    """Meta scales by (new + 0.1) / old; here coordinate by coordinate."""
    grid = torch.rand(1, 36, 1, dtype=torch.float64)

    def cubic(t):  # Keys' kernel with a = -0.75, as torch's
        t = t.abs()
        near = 1.25 * t**3 - 2.25 * t**2 + 1
        far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
        return near.where(t <= 1, far.where(t < 2, torch.zeros_like(t)))

    def along(n):  # (n, 6): how much each old row weighs in each new one
        at = (torch.arange(n) + 0.5) * 6 / (n + 0.1) - 0.5
        weights = torch.zeros(n, 6, dtype=torch.float64)
        for step in range(-1, 3):
            old = at.floor() + step
            into = torch.arange(n), old.clamp(0, 5).long()
            weights.index_put_(into, cubic((at - old).double()), accumulate=True)
        return weights

    rows, columns = along(new[0]), along(new[1])
    wanted = rows @ grid.reshape(6, 6) @ columns.T
    found = resize_positions(grid, (6, 6), new, "DINOv2")
    close(found.reshape(new), wanted, rtol=0, atol=1e-6)
    assert (found - resize_positions(grid, (6, 6), new, "Hugging Face")).abs().max() > 1e-3


def test_positions_follow_the_source_unless_told():
    state, model = official(of_timm().state_dict()), ours(img_size=(32, 20))
    before = torch.tensor(state["Transformer/posembed_input/pos_embedding"])
    for told in (None, "official", "torchvision", "timm"):
        report = load_pretrained(model, state, interpolation=told)
        assert report.resized == ((6, 6), (8, 5))
        wanted = resize_positions(before, (6, 6), (8, 5), told or "official")
        assert torch.equal(model.pos_embed, wanted.double())


@pytest.mark.parametrize("changes", [{}, AVERAGED, dict(no_embed_class=True)],
                         ids=["token", "avg", "a class token without a position"])  # fmt: skip
def test_another_resolution_gives_timms_logits(changes):
    peer = of_timm(**changes)
    model = ours(img_size=(32, 20), global_pool=changes.get("global_pool", "token"))
    load_pretrained(model, peer.state_dict())
    assert "no_embed_class" not in changes or not model.pos_embed[:, 0].any()
    peer.set_input_size((32, 20))  # timm's own way to another resolution
    same_logits(model, peer)


def test_another_resolution_gives_torchvisions_logits():
    peer, large = of_torchvision(), of_torchvision(img_size=32)
    large.load_state_dict(torchvision_vit.interpolate_embeddings(32, 4, peer.state_dict()))
    same_logits(model_from(peer.state_dict(), num_heads=5, img_size=32)[0], large)


def test_positions_that_could_be_two_grids():
    square, wide, model = of_timm(), of_timm(**WIDE), ours(**WIDE)
    refused(["37 positions of the source are 6 x 6 or 4 x 9", "grid=(rows, columns)"],
            load_pretrained, model, wide.state_dict())  # fmt: skip
    assert load_pretrained(model, square.state_dict(), grid=(6, 6)).resized == ((6, 6), (4, 9))
    square.set_input_size((16, 36))
    same_logits(model, square)


@pytest.mark.parametrize("late, size, other", [
    (True, (20, 28), "5 x 7 and a class row"),  # 36 = 6 * 6 = 1 + 5 * 7
    (False, (4, 148), "1 x 37"),  # 37 = 1 + 6 * 6 = 1 * 37
])  # fmt: skip
def test_positions_with_a_class_row_or_without(late, size, other):
    peer = of_timm(no_embed_class=late)
    state, n = peer.state_dict(), 36 + (not late)
    text = refused(f"{n} positions of the source are ", load_pretrained, ours(img_size=size), state)
    assert other in text and "6 x 6" in text and "grid=(rows, columns)" in text
    model = ours(img_size=size)
    report = load_pretrained(model, state, grid=(6, 6))
    assert report.resized == ((6, 6), (size[0] // 4, size[1] // 4))
    assert report.zeros == ("the class token's row of the positions",) * late
    peer.set_input_size(size)
    same_logits(model, peer)
    grid = (size[0] // 4, size[1] // 4)
    assert load_pretrained(model, state, grid=grid).resized is None  # the other reading, told
    assert model_from(state, num_heads=5)[0].patch_embed.grid_size == (6, 6)  # squares alone


def test_positions_that_are_no_square():
    wide = of_timm(img_size=(16, 32))
    state = wide.state_dict()
    refused("33 positions of the source are no square", load_pretrained, ours(), state)
    assert load_pretrained(ours(), state, grid=(4, 8)).resized == ((4, 8), (6, 6))
    refused("positions of the source are no 4 x 7", load_pretrained, ours(), state, grid=(4, 7))
    refused("no square: give grid or img_size", model_from, state, num_heads=5)
    for given in (dict(img_size=(16, 32)), dict(grid=(4, 8))):
        same_logits(model_from(state, num_heads=5, **given)[0], wide)
    with pytest.raises(ValueError, match="33 positions are no 5 x 5 grid"):
        resize_positions(wide.pos_embed, (5, 5), (4, 4))
    refused("'cubic' is none of official, torchvision, timm", load_pretrained,
            ours(img_size=(16, 32)), state, interpolation="cubic")  # fmt: skip


# The head


@pytest.mark.parametrize("representation_size", [None, 40])  # 40: as wide as the tokens
def test_another_number_of_classes_gives_a_head_of_zeros(representation_size):
    peer = of_torchvision(representation_size)
    model = randomize(ours(num_classes=7))
    assert load_pretrained(model, peer.state_dict()).head == "new"
    x = images(model)
    with torch.no_grad():
        assert not model(x).any() and not model.head.weight.any()
        tokens = [peer.class_token.expand(2, -1, -1), peer._process_input(x)]
        close(model.forward_features(x), peer.encoder(torch.cat(tokens, dim=1)))


def test_a_new_head_of_the_same_size():
    state, model = of_torchvision(40).state_dict(), randomize(ours())
    text = refused(["left over: heads.pre_logits.weight", "'representation_size': 40"],
                   load_pretrained, model, state)  # fmt: skip
    assert "missing" not in text
    assert load_pretrained(model, state, new_head=True).head == "new"
    assert not model.head.weight.any() and model.pos_embed.all()
    refused("build the model without representation_size", load_pretrained,
            ours(representation_size=40), state, new_head=True)  # fmt: skip


def test_a_source_without_a_head_and_a_model_without_one():
    model, peer = randomize(ours()), of_torchvision(20)
    assert load_pretrained(model, of_timm(num_classes=0).state_dict()).head == "new"
    assert not model.head.weight.any()
    assert load_pretrained(ours(num_classes=0), peer.state_dict()).head == "left out"
    model = ours(num_classes=0, representation_size=20)
    assert load_pretrained(model, peer.state_dict()).head == "left out"
    assert torch.equal(model.pre_logits[0].weight, peer.heads.pre_logits.weight)


def test_every_layout_has_every_weight_of_ours():
    model = VisionTransformer(**dict(SMALL, depth=1), representation_size=20)
    general = {name.replace("blocks.0.", "blocks.{i}.") for name in model.state_dict()}
    for layout in LAYOUTS:  # Hugging Face's has no tanh layer in the head
        tanh = layout.name != "Hugging Face"
        lacks = {n for n in general if n.startswith("pre_logits") and not tanh}
        assert {row.ours for row in layout.rows} == general - lacks


# What does not fit


def test_missing_left_over_and_other_shapes():
    state = of_timm().state_dict()
    del state["blocks.1.norm2.bias"], state["norm.weight"]
    state |= {"aux.weight": torch.ones(2), "blocks.0.mlp.fc1.bias": torch.ones(61)}
    lines = [
        "(timm, 43 tensors) do not fit the model, which is as it was",
        "missing: blocks.1.norm2.bias, norm.weight\n",
        "left over: aux.weight\n",
        "other shapes: blocks.0.mlp.fc1.bias is (61,) for a place of (60,)",
    ]
    text = refused(lines, load_pretrained, randomize(ours()), state)
    assert text.endswith("(60,)")  # no model would take them: no advice
    state = of_timm().state_dict()
    refused("and 6 more", load_pretrained, ours(depth=4), state)
    refused("left over: blocks.2.norm1.weight", load_pretrained, ours(depth=2), state)
    refused("left over: cls_token", load_pretrained, ours(global_pool="avg"), state)
    state = of_timm(**AVERAGED).state_dict()
    refused("missing: cls_token", load_pretrained, ours(), state)


@pytest.mark.parametrize("library", [lambda w: w, official], ids=["timm", "official"])
def test_no_tensor_may_be_missing_or_smaller(library):
    state = library(of_timm().state_dict())
    for name, w in state.items():
        for changed in ({n: w for n, w in state.items() if n != name}, state | {name: w[:-1]}):
            if name != "pos_embed" or changed.get(name) is None:
                refused("", load_pretrained, ours(), changed)


def test_names_in_a_message_are_the_sources():
    arrays = official(of_timm().state_dict())
    block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    del arrays[f"{block}/key/kernel"], arrays["cls"]
    arrays[f"{block}/out/kernel"] = np.ones(40)
    lines = [f"missing: cls, {block}/key/kernel\n", f"left over: {block}/query/kernel",
             f"{block}/out/kernel is (40,) for a place of (40, 40)"]  # fmt: skip
    refused(lines, load_pretrained, ours(), arrays)
    arrays["embedding/kernel"] = arrays["embedding/kernel"].reshape(-1, 40)
    refused("without embedding/kernel of 4 axes", load_pretrained, ours(), arrays)
    del arrays["Transformer/posembed_input/pos_embedding"]
    refused("without embedding/kernel of 4 axes, Transformer/posembed_input/pos_embedding of 3",
            model_from, arrays)  # fmt: skip
    state = of_timm().state_dict()
    del state["pos_embed"]
    refused("without pos_embed of 3 axes", load_pretrained, ours(), state)


@pytest.mark.parametrize("variant, changes, code", [
    ("S/16", {}, 'create_vit("S/16", num_classes=1000, img_size=224)'),
    ("B/32", dict(img_size=384), 'create_vit("B/32", num_classes=1000, img_size=384)'),
    ("Ti/16", dict(in_chans=1, mlp_ratio=3, num_classes=0),
     'create_vit("Ti/16", in_chans=1, num_classes=0, mlp_ratio=3.0, img_size=224)'),
])  # fmt: skip
def test_the_variant_that_fits_is_named(variant, changes, code):
    with torch.device("meta"):  # shapes without memory
        state = create_vit(variant, **changes).state_dict()
    text = f"the weights of {variant} at {changes.get('img_size', 224)} px: build {code}"
    assert refused("do not fit", load_pretrained, ours(), state).endswith(text)


def test_the_advised_model_has_the_eps_that_was_told():
    text = refused(
        "do not fit", load_pretrained, ours(depth=2, norm_eps=1e-5), of_timm().state_dict()
    )
    assert "'norm_eps': 1e-05" in text


@pytest.mark.parametrize("D, M", [(11, 15), (53, 19)])  # widths for which M / D * D is not M
def test_the_model_that_a_message_says_fits(D, M):
    peer = of_timm(embed_dim=D, num_heads=1, mlp_ratio=(M + 0.5) / D, in_chans=1, depth=2)
    text = refused("do not fit", load_pretrained, ours(), peer.state_dict())
    code = text.split("the weights of ")[-1].replace("'num_heads': '?'", "'num_heads': 1")
    model = eval(code, {"VisionTransformer": VisionTransformer})
    load_pretrained(model, peer.state_dict())
    same_logits(model, peer)


def followed(text, model, source):
    """Do what the advice of an error says -> the Report of what it leads to."""
    source, options = dict(source), {}
    if "new_head=True" in text:
        options["new_head"] = True
    if without := re.search(r"answers without (.+?), give a dict without", text):
        for name in without[1].split(", "):
            del source[name]
    if key := re.search(r"key=('[^']+')", text):
        options["key"] = eval(key[1])
    if code := re.search(r"(create_vit|VisionTransformer)\(.+\)$", text):
        known = {"VisionTransformer": VisionTransformer, "create_vit": create_vit}
        model = eval(code[0].replace("'num_heads': '?'", "'num_heads': 1"), known)
    assert options or without or code, text
    return load_pretrained(model, source, **options)


ADVISED = {
    "smaller": (lambda: of_timm(), dict(embed_dim=30), {}),
    "averaged": (lambda: of_timm(**AVERAGED), {}, {}),
    "tanh layer": (lambda: of_torchvision(20), {}, {}),
    "another head": (lambda: of_timm(), {}, {"head.0.weight": (5, 40), "head.2.weight": (3, 5)}),
    "both": (lambda: of_timm(), dict(depth=2), {"fc.0.weight": (5, 40), "fc.2.weight": (3, 5)}),
    "extra": (lambda: of_timm(), {}, {"aux.weight": (2, 2), "aux.bias": (2,)}),
    "extra, smaller": (lambda: of_timm(), dict(depth=2), {"aux.weight": (2, 2)}),
    "no bias": (lambda: of_timm(qkv_bias=False), dict(mlp_ratio=2), {}),
    "grey": (lambda: of_timm(in_chans=1), {}, {}),
}


@pytest.mark.parametrize("case", ADVISED)
def test_advice_is_followed_and_helps(case):
    make, changes, extra = ADVISED[case]
    state, model = make().state_dict(), randomize(ours(**changes))
    if any(re.match("head|fc", name) for name in extra):
        state = {n: w for n, w in state.items() if not n.startswith("head")}
    state |= {name: torch.ones(shape) for name, shape in extra.items()}
    text = refused("do not fit", load_pretrained, model, state)
    assert followed(text, model, state).format in ("timm", "torchvision")


def test_no_advice_where_none_would_help():
    for changes in (
        {"blocks.1.norm1.weight": torch.ones(7)},
        {"pos_embed": torch.ones(1, 1, 40)},
        {"blocks.1.attn.q_bias": torch.ones(40)},
    ):
        state = of_timm().state_dict() | changes
        text = refused("do not fit", load_pretrained, ours(depth=2), state)
        assert "build" not in text and "weights of V" not in text and "give a dict" not in text


# A model from a file alone


def test_model_from_knows_the_heads_of_known_models_and_asks_for_others():
    state = VisionTransformer(16, 8, 3, 10, embed_dim=192, depth=12, num_heads=3).state_dict()
    model, _ = model_from(state)
    assert model.blocks[0].attn.num_heads == 3
    state = {name: w for name, w in state.items() if not name.startswith("blocks.11")}
    text = refused("11 blocks of width 192 are no known model", model_from, state)
    assert "give num_heads, a divisor of 192" in text
    refused("the heads must divide the width", model_from, state, num_heads=5)


def test_model_from_with_changes():
    state = of_torchvision(20).state_dict()
    model, report = model_from(
        state, num_heads=5, img_size=(16, 32), num_classes=4, norm_eps=1e-5, drop_rate=0.1
    )
    assert report == Report("torchvision", ((6, 6), (4, 8)), "new", IMAGENET)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    assert model.head.weight.shape == (4, 40) and not len(model.pre_logits)
    model, report = model_from(state, num_heads=5, num_classes=0, interpolation="timm")
    assert report.head == "left out" and isinstance(model.head, torch.nn.Identity)


# A checkpoint that somebody else trained


VIT_DATA = os.environ.get("VIT_DATA", "")
STRANGER = Path(VIT_DATA) / "weights/fashion_vit_d128_L6_h4_p4_timmkeys.safetensors"


@pytest.mark.skipif(
    not (VIT_DATA and STRANGER.is_file()), reason="VIT_DATA has no weights: no stranger to load"
)
def test_a_strangers_checkpoint_gives_its_own_answers():
    """Trained by SunnyCodeverse333/Fashion-MNIST-Classification-Vision-Transformer."""
    test = load("fashion-mnist").test
    model, report = model_from(STRANGER, num_heads=4, norm_eps=1e-5)
    assert report == Report("timm", None, "kept", None)
    assert sum(p.numel() for p in model.parameters()) == 805_130
    with torch.inference_mode():
        right = sum(
            (model((x / 255 - 0.5) / 0.5).argmax(1) == y).sum().item()
            for x, y in zip(test.images.split(250), test.labels.split(250), strict=True)
        )
    assert len(test) == 10_000 and right == 9_077
