"""helpers/weights.py against timm, torchvision, numpy, and a checkpoint of a stranger."""

import json
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights, ViT_B_16_Weights, WeightsEnum
from torchvision.models import vision_transformer as torchvision_vit

from helpers.checkpoints import load_checkpoint, save_checkpoint
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
from helpers.weights.names import LAYOUTS, REFUSED
from tests.peers import SMALL, images, randomize, small_vit

close = torch.testing.assert_close
timm_vit = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed")
HALF = ((0.5,) * 3,) * 2
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZES = [  # img_size, patch, width, depth, heads, mlp_ratio
    (32, 4, 24, 2, 3, 4.0),
    (32, 8, 64, 2, 4, 2.0),
    (32, 16, 48, 3, 6, 4.0),
    (16, 4, 40, 12, 2, 3.0),
]
QUARTER = dict(img_size=16, patch_size=4, num_classes=10, embed_dim=24, depth=2, num_heads=3)


def ours(img_size=16, patch=4, width=24, depth=2, heads=3, mlp_ratio=4.0, **changes):
    """Our model, at its start: zeros in the head and the class token."""
    settings = dict(img_size=img_size, patch_size=patch, num_classes=10, embed_dim=width)
    settings |= dict(depth=depth, num_heads=heads, mlp_ratio=mlp_ratio)
    return VisionTransformer(**(settings | changes)).double().eval()


def of_timm(img_size=16, patch=4, width=24, depth=2, heads=3, mlp_ratio=4.0, **changes):
    """timm's model with random weights, none of them zero."""
    settings = dict(img_size=img_size, patch_size=patch, num_classes=10, embed_dim=width)
    settings |= dict(depth=depth, num_heads=heads, mlp_ratio=mlp_ratio)
    model = timm_vit.VisionTransformer(**(settings | changes))
    return randomize(model).double().eval()


def of_torchvision(img_size=16, patch=4, width=24, depth=2, heads=3, mlp_ratio=4.0, **changes):
    """torchvision's model with random weights, none of them zero."""
    settings = dict(image_size=img_size, patch_size=patch, num_layers=depth, num_heads=heads)
    settings |= dict(hidden_dim=width, mlp_dim=int(mlp_ratio * width), num_classes=10)
    model = torchvision_vit.VisionTransformer(**(settings | changes))
    return randomize(model).double().eval()


AVERAGED = dict(global_pool="avg", class_token=False, fc_norm=False)


def same_logits(a, b, shape):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        close(a(x), b(x))


def same_state(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def refused(message, function, *arguments, **options):
    """function must raise ValueError with all parts of message, the model kept as it was."""
    model = arguments[0] if isinstance(arguments[0], torch.nn.Module) else None
    before = {name: w.clone() for name, w in model.state_dict().items()} if model else {}
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    for part in [message] if isinstance(message, str) else message:
        assert part in str(caught.value)
    if model:
        same_state(before, model.state_dict())
    return str(caught.value)


# In and out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("averaged", [False, True], ids=["token", "avg"])
def test_timm_in_and_out(size, averaged):
    peer = of_timm(*size, **(AVERAGED if averaged else {}))
    model = ours(*size, global_pool="avg" if averaged else "token")
    report = load_pretrained(model, peer.state_dict())
    assert report == Report("timm", resized=None, head="kept", normalisation=None)
    same_logits(model, peer, (3, size[0], size[0]))
    same_state(to_timm(model), peer.state_dict())
    fresh = randomize(of_timm(*size, **(AVERAGED if averaged else {})), seed=5)
    fresh.load_state_dict(to_timm(model), strict=True)
    same_logits(model, fresh, (3, size[0], size[0]))


def test_timm_images_that_are_not_square_and_of_one_channel():
    changes = dict(img_size=(32, 24), in_chans=1)
    peer, model = of_timm(**changes), ours(**changes)
    assert load_pretrained(model, peer.state_dict()).resized is None
    same_logits(model, peer, (1, 32, 24))
    same_state(to_timm(model), peer.state_dict())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("representation_size", [None, 20])
def test_torchvision_in_and_out(size, representation_size):
    peer = of_torchvision(*size, representation_size=representation_size)
    model = ours(*size, representation_size=representation_size)
    report = load_pretrained(model, peer.state_dict())
    assert report == Report("torchvision", None, "kept", STATISTICS)
    same_logits(model, peer, (3, size[0], size[0]))
    same_state(to_torchvision(model), peer.state_dict())
    fresh = of_torchvision(*size, representation_size=representation_size)
    randomize(fresh, seed=5).load_state_dict(to_torchvision(model), strict=True)
    same_logits(model, fresh, (3, size[0], size[0]))


def test_torchvision_names_before_0_14():
    peer = of_torchvision()
    old = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): w
        for name, w in peer.state_dict().items()
    }
    assert sum("linear_" in name for name in old) == 8
    model = ours()
    load_pretrained(model, old)
    same_logits(model, peer, (3, 16, 16))


def separate(state, fused, names):
    """The state dict with every name that ends in fused split into three of these names."""
    parts = {}
    for name, w in state.items():
        if name.endswith(fused):
            start = name.removesuffix(fused)
            parts |= {start + new: p for new, p in zip(names, w.chunk(3), strict=True)}
        else:
            parts[name] = w
    return parts


def test_separate_q_k_and_v():
    peer, model = of_timm(), ours()
    for letters in (("q", "k", "v"), ("q_proj", "k_proj", "v_proj")):
        state = peer.state_dict()
        for kind in ("weight", "bias"):
            state = separate(state, f"attn.qkv.{kind}", [f"attn.{c}.{kind}" for c in letters])
        assert len(state) == len(peer.state_dict()) + 8
        load_pretrained(randomize(model, seed=3), state)
        same_logits(model, peer, (3, 16, 16))
    peer = of_torchvision()
    names = [f"{letter}_proj_weight" for letter in "qkv"]
    load_pretrained(model, separate(peer.state_dict(), "in_proj_weight", names))
    same_logits(model, peer, (3, 16, 16))


def test_copies_do_not_share_memory():
    peer, model = of_timm(), ours()
    state = peer.state_dict()
    load_pretrained(model, state)
    back = to_timm(model)
    with torch.no_grad():
        model.head.bias.zero_()
    assert state["head.bias"].all() and back["head.bias"].all()


def test_half_precision_becomes_the_models():
    peer, model = of_timm().bfloat16(), ours()
    load_pretrained(model, peer.state_dict())
    assert model.head.weight.dtype == torch.float64
    assert torch.equal(model.head.weight, peer.head.weight.double())


def test_a_compiled_model_is_loaded_inside():
    peer, model = of_timm(), ours()
    load_pretrained(torch.compile(model), peer.state_dict())
    same_state(model.state_dict(), peer.state_dict())


def test_what_other_libraries_cannot_be():
    refused("tanh layer", to_timm, ours(representation_size=20))
    model = ours(global_pool="avg", img_size=(16, 24), in_chans=1, num_classes=0)
    needed = ["a class token", "square images, these are 16 x 24", "3 channels, here are 1"]
    refused([*needed, "a head (num_classes is 0)"], to_torchvision, model)


# The official .npz


def official(state, heads, prefix="", big_vision=False, stacked=False):
    """A state dict with timm's names -> the arrays of an official file, written independently."""
    state = {name: w.float().numpy() for name, w in state.items()}
    attention, mlp, second = (0, 0, 1) if big_vision else (1, 3, 2)
    D = state["norm.weight"].shape[0]
    positions = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    arrays = {
        "embedding/kernel": np.einsum("dchw->hwcd", state["patch_embed.proj.weight"]),
        "embedding/bias": state["patch_embed.proj.bias"],
        positions: state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    if "cls_token" in state:
        arrays["cls"] = state["cls_token"]
    if "pre_logits.0.weight" in state:
        arrays["pre_logits/kernel"] = state["pre_logits.0.weight"].T
        arrays["pre_logits/bias"] = state["pre_logits.0.bias"]
    depth = sum(name.endswith("norm1.weight") for name in state)
    blocks = []
    for i in range(depth):
        b = {n.removeprefix(f"blocks.{i}."): w for n, w in state.items() if f"blocks.{i}." in n}
        block = {}
        for n, norm in ((0, "norm1"), (second, "norm2")):
            block[f"LayerNorm_{n}/scale"] = b[f"{norm}.weight"]
            block[f"LayerNorm_{n}/bias"] = b[f"{norm}.bias"]
        for n, layer in enumerate(("fc1", "fc2")):
            block[f"MlpBlock_{mlp}/Dense_{n}/kernel"] = b[f"mlp.{layer}.weight"].T
            block[f"MlpBlock_{mlp}/Dense_{n}/bias"] = b[f"mlp.{layer}.bias"]
        start = f"MultiHeadDotProductAttention_{attention}"
        for n, part in enumerate(("query", "key", "value")):
            rows = slice(n * D, (n + 1) * D)
            weight = b["attn.qkv.weight"][rows].reshape(heads, D // heads, D)  # out is (head, d)
            block[f"{start}/{part}/kernel"] = np.einsum("hdi->ihd", weight)
            block[f"{start}/{part}/bias"] = b["attn.qkv.bias"][rows].reshape(heads, D // heads)
        weight = b["attn.proj.weight"].reshape(D, heads, D // heads)
        block[f"{start}/out/kernel"] = np.einsum("ohd->hdo", weight)
        block[f"{start}/out/bias"] = b["attn.proj.bias"]
        blocks.append(block)
    if stacked:
        for name in blocks[0]:
            arrays[f"Transformer/encoderblock/{name}"] = np.stack([b[name] for b in blocks])
    else:
        for i, block in enumerate(blocks):
            arrays |= {f"Transformer/encoderblock_{i}/{name}": w for name, w in block.items()}
    return {prefix + name: w for name, w in arrays.items()}


LAYOUT_OPTIONS = {
    "plain": {},
    "opt/target": dict(prefix="opt/target/"),
    "params": dict(prefix="params/"),
    "big_vision": dict(prefix="params/", big_vision=True),
    "stacked": dict(prefix="params/", big_vision=True, stacked=True),
}


@pytest.mark.parametrize("layout", LAYOUT_OPTIONS)
@pytest.mark.parametrize("averaged", [False, True], ids=["token", "avg"])
@pytest.mark.parametrize("size", SIZES[:2])
def test_official_npz_as_timm_reads_it(tmp_path, layout, averaged, size):
    options = LAYOUT_OPTIONS[layout]
    # big_vision adds the positions before the class token joins: no row of its own
    late = dict(no_embed_class=True) if "big_vision" in options and not averaged else {}
    changes = AVERAGED if averaged else late
    source = of_timm(*size, **changes).float()
    path = tmp_path / "vit.npz"
    arrays = official(source.state_dict(), heads=size[4], **options)
    if layout == "opt/target":
        arrays |= {"opt/state/step": np.array(7), "opt/state/cls/v": np.ones(3, np.float32)}
    np.savez(path, **arrays)
    model = ours(*size, global_pool="avg" if averaged else "token")
    report = load_pretrained(model, path)
    name = "big_vision" if "big_vision" in options else "official"
    assert report == Report(name, None, "kept", HALF)
    same_logits(model, source.double(), (3, size[0], size[0]))
    if layout != "params":  # which timm takes for big_vision's layout whatever the names are
        reader = randomize(of_timm(*size, **changes), seed=4)
        timm_vit._load_weights(reader, str(path))
        same_logits(model, reader, (3, size[0], size[0]))
    built, _ = model_from(path)  # the heads are in the shapes of this layout
    assert built.blocks[0].attn.num_heads == size[4]
    same_logits(built.double(), source, (3, size[0], size[0]))


def test_official_npz_with_the_tanh_layer(tmp_path):
    peer = of_torchvision(representation_size=20).float()
    model = ours(representation_size=20)
    load_pretrained(model, peer.state_dict())
    state = {name: w.float() for name, w in model.state_dict().items()}
    np.savez_compressed(tmp_path / "vit.npz", **official(state, heads=3))
    built, report = model_from(tmp_path / "vit.npz")
    assert report.head == "kept" and built.pre_logits[0].out_features == 20
    same_logits(built.double(), peer.double(), (3, 16, 16))


def test_bfloat16_as_jax_saves_it(tmp_path):
    peer = of_timm().bfloat16()
    arrays = official(peer.state_dict(), heads=3)
    two_bytes = {
        name: np.frombuffer(
            torch.from_numpy(np.ascontiguousarray(w)).bfloat16().view(torch.int16).numpy(), "V2"
        ).reshape(w.shape)
        for name, w in arrays.items()
    }
    np.savez(tmp_path / "vit.npz", **two_bytes)
    model = ours()
    load_pretrained(model, tmp_path / "vit.npz")
    same_state(model.state_dict(), {n: w.double() for n, w in peer.state_dict().items()})


def test_heads_of_an_official_file_are_checked():
    arrays = official(of_timm().state_dict(), heads=3)
    refused("num_heads is 3 there and 6 here", load_pretrained, ours(heads=6), arrays)


# Prefixes, wrappers and files


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module.model."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
def test_prefixes_and_wrappers(prefix, wrapper):
    for peer in (of_timm(), of_torchvision()):
        state = {prefix + name: w for name, w in peer.state_dict().items()}
        state = {wrapper: state, "epoch": 3} if wrapper else state
        model = ours()
        load_pretrained(model, state)
        same_logits(model, peer, (3, 16, 16))


def test_wrapped_twice():
    model, peer = ours(), of_timm()
    load_pretrained(model, {"state_dict": {"model": peer.state_dict()}, "optimizer": {}})
    same_logits(model, peer, (3, 16, 16))


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin"])
def test_files(tmp_path, ending):
    peer, model = of_timm(), ours()
    path = tmp_path / f"vit{ending}"
    if ending == ".safetensors":
        save_file(peer.state_dict(), path)
    else:
        torch.save({"model": peer.state_dict(), "epoch": 300}, path)
    for source in (path, str(path)):
        load_pretrained(randomize(model), source)
        same_logits(model, peer, (3, 16, 16))


def test_deit_is_known_by_its_file_name(tmp_path):
    peer = of_timm()
    torch.save({"model": peer.state_dict()}, tmp_path / "deit_small_patch16_224-cd65a155.pth")
    report = load_pretrained(ours(), tmp_path / "deit_small_patch16_224-cd65a155.pth")
    assert report == Report("DeiT", None, "kept", STATISTICS)


def test_normalisation_for_one_channel():
    peer = of_timm(in_chans=1)
    report = load_pretrained(ours(in_chans=1), official(peer.state_dict(), heads=3))
    assert report.normalisation == ((0.5,), (0.5,))
    names = {"conv_proj.weight": torch.ones(24, 1, 4, 4)}
    state = of_torchvision().state_dict() | names
    assert load_pretrained(ours(in_chans=1), state).normalisation is None


class Marker:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_code_in_a_file_is_never_run(tmp_path):
    seen = tmp_path / "code ran"
    state = of_timm().state_dict()
    torch.save({"model": state, "args": Marker(str(seen))}, tmp_path / "vit.pth")
    (tmp_path / "vit.pt").write_bytes(pickle.dumps({"model": Marker(str(seen))}, 2))
    (tmp_path / "vit.npz").write_bytes(pickle.dumps({"model": Marker(str(seen))}, 2))
    (tmp_path / "vit.safetensors").write_bytes(pickle.dumps({"model": Marker(str(seen))}, 2))
    arrays = official(state, heads=3) | {"extra": np.array([Marker(str(seen))], dtype=object)}
    np.savez(tmp_path / "object.npz", **arrays)
    torch.save(of_timm(), tmp_path / "module.pth")
    files = sorted(path for path in tmp_path.iterdir())
    assert len(files) == 6
    for path in files:
        refused([str(path), "holds more than tensors", "not opened"], load_pretrained, ours(), path)
    assert not seen.exists()
    pickle.loads((tmp_path / "vit.pt").read_bytes())  # what unpickling would have done
    assert seen.exists()


def test_truncated_files(tmp_path):
    state = of_timm().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "d.npz", **official(state, heads=3))
    np.savez_compressed(tmp_path / "e.npz", **official(state, heads=3))
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for length in (0, 1, 7, 8, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            refused([f"{path} is not whole", "Copy it again"], load_pretrained, ours(), path)


def test_damaged_npz(tmp_path):
    path = tmp_path / "vit.npz"
    np.savez_compressed(path, **official(of_timm().state_dict(), heads=3))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    refused("is not whole", load_pretrained, ours(), path)


def test_other_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of weights at .*nothing.pth"):
        load_pretrained(ours(), tmp_path / "nothing.pth")
    with pytest.raises(TypeError, match=re.escape("from a VisionTransformer? Give a path")):
        load_pretrained(ours(), of_timm())
    (tmp_path / "vit.h5").write_bytes(b"")
    refused(
        "ends in '.h5': one of .safetensors, .npz", load_pretrained, ours(), tmp_path / "vit.h5"
    )
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused("holds a list, a dict of tensors", load_pretrained, ours(), tmp_path / "list.pth")
    refused("epoch is no tensor", load_pretrained, ours(), of_timm().state_dict() | {"epoch": 3})
    state = of_timm().state_dict() | {"head.bias": torch.ones(10, dtype=torch.int8)}
    refused("head.bias is no tensor of floating-point numbers but torch.int8",
            load_pretrained, ours(), state)  # fmt: skip
    refused("but nothing", load_pretrained, ours(), {})


def test_an_unknown_layout_or_prefix():
    text = refused("no layout known here", load_pretrained, ours(),
                   {f"transformer.layers.{i}.weight": torch.ones(2) for i in range(9)})  # fmt: skip
    assert text.endswith("transformer.layers.4.weight, transformer.layers.5.weight and 3 more")
    state = {f"visual.trunk.{name}": w for name, w in of_timm().state_dict().items()}
    refused(["no layout known", "visual.trunk.cls_token"], load_pretrained, ours(), state)


def test_download_is_torchvisions_and_checked(monkeypatch):
    peer, asked = of_torchvision(), []
    monkeypatch.setattr(
        WeightsEnum,
        "get_state_dict",
        lambda self, **options: asked.append((self, options)) or peer.state_dict(),
    )
    model = ours()
    report = load_pretrained(model, ViT_B_16_Weights.IMAGENET1K_V1)
    ((member, options),) = asked
    assert member is ViT_B_16_Weights.IMAGENET1K_V1 and options["check_hash"] is True
    assert report == Report("torchvision", None, "kept", STATISTICS)
    same_logits(model, peer, (3, 16, 16))
    refused("nothing was downloaded", load_pretrained, ours(), ResNet18_Weights.IMAGENET1K_V1)
    assert len(asked) == 1


# Our own checkpoints


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.mark.parametrize("img_size", [(16, 16), (16, 36)])
def test_our_own_checkpoints(tmp_path, digits, img_size):
    settings = dict(QUARTER, img_size=img_size, in_chans=1, norm_eps=1e-5, mlp_ratio=2.0)
    saved = randomize(VisionTransformer(**settings, representation_size=20))
    save_checkpoint(tmp_path / "ours.safetensors", saved, digits)
    model, report = model_from(tmp_path / "ours.safetensors")
    assert report == Report("helpers", None, "kept", (digits.mean, digits.std))
    assert model.norm.eps == 1e-5 and model.blocks[0].attn.num_heads == 3 and not model.training
    same_state(model.state_dict(), saved.state_dict())
    same_state(model.state_dict(), load_checkpoint(tmp_path / "ours.safetensors")[0].state_dict())
    other = randomize(VisionTransformer(**settings, representation_size=20), seed=8)
    load_pretrained(other, tmp_path / "ours.safetensors")
    same_state(other.state_dict(), saved.state_dict())


def test_our_own_checkpoint_at_another_size(tmp_path, digits):
    saved = randomize(VisionTransformer(**dict(QUARTER, img_size=(16, 36), in_chans=1)))
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, saved, digits)  # 4 x 9 = 36 positions: the file says that they are 4 x 9
    model, report = model_from(path, img_size=24, num_classes=7)
    assert report.resized == ((4, 9), (6, 6)) and report.head == "new"
    close(model.pos_embed, resize_positions(saved.pos_embed, (4, 9), (6, 6), "official"))


def test_our_own_checkpoint_of_another_kind(tmp_path, digits):
    path = tmp_path / "ours.safetensors"
    settings = dict(QUARTER, in_chans=1)
    save_checkpoint(path, randomize(VisionTransformer(**settings)), digits)
    other = VisionTransformer(**(settings | dict(num_heads=6, norm_eps=1e-5)))
    refused(["num_heads is 3 there and 6 here", "norm_eps is 1e-06 there and 1e-05 here"],
            load_pretrained, other, path)  # fmt: skip
    refused("num_heads is 3 there and 2 here", model_from, path, num_heads=2)
    save_file(of_timm().state_dict(), path, metadata={"vit": json.dumps({"model": {}})})
    refused("the facts of save_checkpoint in this file are not whole", model_from, path)


# Positions


def test_positions_equal_timms():
    resample = pytest.importorskip("timm.layers").resample_abs_pos_embed
    for class_rows in (0, 1):
        positions = torch.randn(1, 48 + class_rows, 24)
        for new in ((6, 8), (12, 16), (3, 4), (5, 11), (8, 6), (1, 1)):
            wanted = resample(positions, list(new), [6, 8], num_prefix_tokens=class_rows)
            close(resize_positions(positions, (6, 8), new, "timm"), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("new", [4, 5, 7, 12])
def test_positions_equal_torchvisions(new):
    state = {"encoder.pos_embedding": torch.randn(1, 50, 24)}
    positions = state["encoder.pos_embedding"]
    wanted = torchvision_vit.interpolate_embeddings(new * 4, 4, state)["encoder.pos_embedding"]
    ours_ = resize_positions(positions, (7, 7), (new, new), "torchvision")
    close(ours_, wanted, rtol=0, atol=0)


def bilinear(grid, new):
    """(h, w, D) -> (h', w', D), one number after another, the corners on the corners."""
    (h, w, _), (H, W) = grid.shape, new
    out = np.zeros((H, W, grid.shape[2]))
    for i in range(H):
        for j in range(W):
            y, x = i * (h - 1) / max(H - 1, 1), j * (w - 1) / max(W - 1, 1)
            top, left = min(int(y), h - 2), min(int(x), w - 2)
            dy, dx = y - top, x - left
            for a, b, share in ((0, 0, (1 - dy) * (1 - dx)), (0, 1, (1 - dy) * dx),
                                (1, 0, dy * (1 - dx)), (1, 1, dy * dx)):  # fmt: skip
                out[i, j] += share * grid[top + a, left + b]
    return out


@pytest.mark.parametrize("new", [(6, 9), (4, 3), (3, 7), (10, 10)])
def test_positions_equal_the_official_ones(new):
    zoom = pytest.importorskip("scipy.ndimage").zoom
    positions = torch.randn(1, 1 + 30, 8, dtype=torch.float64)
    grid = positions[0, 1:].unflatten(0, (5, 6)).numpy()
    resized = resize_positions(positions, (5, 6), new)
    assert torch.equal(resized[:, 0], positions[:, 0])
    resized = resized[0, 1:].unflatten(0, new)
    close(resized, torch.from_numpy(bilinear(grid, new)))
    factors = (new[0] / 5, new[1] / 6, 1)
    close(resized, torch.from_numpy(zoom(grid, factors, order=1)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("source, how", [("timm", "timm"), ("torchvision", "torchvision"),
                                         ("official", "official")])  # fmt: skip
def test_positions_follow_the_source_unless_told(source, how):
    peer = of_torchvision() if source == "torchvision" else of_timm()
    state = peer.state_dict()
    if source == "official":
        state = official(state, heads=3)
    before = next(torch.as_tensor(w) for name, w in state.items() if "pos_embed" in name)
    model = ours(img_size=(32, 24))
    report = load_pretrained(model, state)
    assert report.resized == ((4, 4), (8, 6))
    close(model.pos_embed.float(), resize_positions(before, (4, 4), (8, 6), how).float())
    for other in ("official", "torchvision", "timm"):
        load_pretrained(model, state, interpolation=other)
        wanted = resize_positions(before, (4, 4), (8, 6), other).float()
        close(model.pos_embed.float(), wanted)
        follows = resize_positions(before, (4, 4), (8, 6), how).float()
        assert (other == how) == torch.allclose(wanted, follows)


def test_a_larger_image_gives_the_logits_of_the_source_libraries():
    peer = of_timm()
    model = ours(img_size=(24, 32))
    load_pretrained(model, peer.state_dict())
    peer.set_input_size((24, 32))  # timm's own way to another resolution
    same_logits(model, peer, (3, 24, 32))
    peer = of_torchvision()
    state = torchvision_vit.interpolate_embeddings(32, 4, peer.state_dict())
    large = of_torchvision(img_size=32)
    large.load_state_dict(state)
    model = ours(img_size=32)
    load_pretrained(model, peer.state_dict())
    same_logits(model, large, (3, 32, 32))


def test_a_larger_image_without_a_class_token():
    peer = of_timm(**AVERAGED)
    model = ours(img_size=(24, 32), global_pool="avg")
    assert load_pretrained(model, peer.state_dict()).resized == ((4, 4), (6, 8))
    peer.set_input_size((24, 32))
    same_logits(model, peer, (3, 24, 32))


def test_a_class_token_without_a_position():
    peer = of_timm(no_embed_class=True)
    for img_size in (16, (24, 32)):
        model = ours(img_size=img_size)
        load_pretrained(model, peer.state_dict())
        assert not model.pos_embed[:, 0].any()
        if img_size != 16:
            peer.set_input_size(img_size)
        same_logits(model, peer, (3, *model.patch_embed.input_shape[1:]))


def test_positions_that_could_be_two_grids():
    square, wide = of_timm(img_size=24), of_timm(img_size=(16, 36))  # 6 x 6 and 4 x 9
    model = ours(img_size=(16, 36))
    message = "37 positions of the source are 6 x 6 or 4 x 9"
    refused([message, "grid=(rows, columns)"], load_pretrained, model, wide.state_dict())
    assert load_pretrained(model, wide.state_dict(), grid=(4, 9)).resized is None
    same_logits(model, wide, (3, 16, 36))
    report = load_pretrained(model, square.state_dict(), grid=(6, 6))
    assert report.resized == ((6, 6), (4, 9))
    square.set_input_size((16, 36))
    same_logits(model, square, (3, 16, 36))


def test_positions_that_are_no_grid():
    wide = of_timm(img_size=(16, 32))
    refused("33 positions of the source are no square", load_pretrained, ours(), wide.state_dict())
    report = load_pretrained(ours(), wide.state_dict(), grid=(4, 8))
    assert report.resized == ((4, 8), (4, 4))
    refused("no square", load_pretrained, ours(), wide.state_dict(), grid=(4, 7))
    with pytest.raises(ValueError, match="33 positions are no 5 x 5 grid"):
        resize_positions(wide.pos_embed, (5, 5), (4, 4))
    with pytest.raises(ValueError, match="'cubic': choose one of official, torchvision, timm"):
        resize_positions(wide.pos_embed, (4, 8), (4, 4), "cubic")
    refused("'cubic'", load_pretrained, ours(), of_timm().state_dict(), interpolation="cubic")


# The head


def features_of(model, x):
    with torch.no_grad():
        return model.forward_features(x)


@pytest.mark.parametrize("representation_size", [None, 24, 20])
def test_another_number_of_classes_gives_a_head_of_zeros(representation_size):
    peer = of_torchvision(representation_size=representation_size)
    model = randomize(ours(num_classes=7))
    report = load_pretrained(model, peer.state_dict())
    assert report.head == "new"
    assert not model.head.weight.any() and not model.head.bias.any()
    x = images(model)
    close(model(x), torch.zeros(2, 7).double())
    with torch.no_grad():
        wanted = peer.encoder(
            torch.cat([peer.class_token.expand(2, -1, -1), peer._process_input(x)], dim=1)
        )
    close(features_of(model, x), wanted)


def test_a_new_head_of_the_same_size():
    peer, model = of_torchvision(representation_size=24), randomize(ours())
    text = refused(["left over: heads.pre_logits.weight", "representation_size=24"],
                   load_pretrained, model, peer.state_dict())  # fmt: skip
    assert "missing" not in text
    assert load_pretrained(model, peer.state_dict(), new_head=True).head == "new"
    assert not model.head.weight.any() and model.pos_embed.all()


def test_a_source_without_a_head_and_a_model_without_one():
    bare = of_timm(num_classes=0)
    model = randomize(ours())
    assert load_pretrained(model, bare.state_dict()).head == "new"
    assert not model.head.weight.any()
    peer, model = of_torchvision(representation_size=20), ours(num_classes=0)
    assert load_pretrained(model, peer.state_dict()).head == "left out"
    model = ours(num_classes=0, representation_size=20)
    assert load_pretrained(model, peer.state_dict()).head == "left out"
    assert torch.equal(model.pre_logits[0].weight, peer.heads.pre_logits.weight)
    assert "head.weight" not in to_timm(ours(num_classes=0))


def test_a_new_head_has_no_tanh_layer():
    peer = of_torchvision(representation_size=20)
    model = ours(num_classes=7, representation_size=20)
    refused("build the model without representation_size", load_pretrained, model,
            peer.state_dict())  # fmt: skip


# What is refused


DISTILLED = "distillation token"
VARIANTS_OF_TIMM = {
    "registers": (dict(reg_tokens=4), "reg_token is register tokens"),
    "layer-scale": (dict(init_values=1e-5), "blocks.0.ls1.gamma is layer-scale"),
    "qk-norm": (dict(qk_norm=True), "blocks.0.attn.q_norm.weight is qk-norm"),
    "scale norm": (dict(scale_attn_norm=True), "blocks.0.attn.norm.weight is a norm inside"),
    "norm before": (dict(pre_norm=True), "norm_pre.weight is a norm before the first block"),
    "norm after pooling": (dict(global_pool="avg"), "fc_norm.weight is a norm after"),
    "attention pooling": (dict(global_pool="map"), "attn_pool.latent is attention pooling"),
}


@pytest.mark.parametrize("kind", VARIANTS_OF_TIMM)
def test_other_architectures_of_timm(kind):
    changes, message = VARIANTS_OF_TIMM[kind]
    refused(message, load_pretrained, ours(), of_timm(**changes).state_dict())


def test_distilled_deit():
    deit = pytest.importorskip("timm.models.deit").VisionTransformerDistilled(**QUARTER)
    text = refused(DISTILLED, load_pretrained, ours(), deit.state_dict())
    assert text.startswith("dist_token is the distillation token of DeiT")
    state = {name: w for name, w in deit.state_dict().items() if name != "dist_token"}
    assert refused(DISTILLED, model_from, state).startswith("head_dist.weight is")


@pytest.mark.parametrize("name, what", [
    ("blocks.3.gamma_1", "layer-scale"),
    ("module.register_tokens", "register tokens"),
    ("blocks.0.mlp.norm.weight", "a norm inside"),
    ("params/MAPHead_0/probe", "attention pooling"),
    ("blocks.0.attn.relative_position_bias_table", "relative positions"),
    ("rope.freqs", "rotary"),
    ("mask_token", "masked-image"),
    ("decoder_embed.weight", "masked-image"),
    ("blocks.0.mlp.w12.weight", "SwiGLU"),
    ("blocks.0.attn.gate.weight", "gated attention"),
    ("patch_embed.backbone.conv1.weight", "another stem"),
    ("patch_embed.proj.0.c.weight", "another stem"),
    ("conv_proj.conv_bn_relu_0.0.weight", "another stem"),
    ("opt/target/conv_root/kernel", "another stem"),
])  # fmt: skip
def test_other_architectures_by_name(name, what):
    state = of_timm().state_dict() | {name: torch.ones(2)}
    text = refused(f"{name} is", load_pretrained, ours(), state)
    assert what in text.split(". helpers")[0]


def test_no_name_in_the_tables_is_refused():
    names = [n.format(i=11) for lay in LAYOUTS for row in lay.rows for n in row.theirs]
    assert len(names) > 100
    assert not [n for n in names for pattern, _ in REFUSED if re.search(pattern, n)]


def test_every_layout_has_every_weight_of_ours():
    model = VisionTransformer(**dict(SMALL, depth=1), representation_size=20)
    general = {name.replace("blocks.0.", "blocks.{i}.") for name in model.state_dict()}
    for layout in LAYOUTS:
        assert {row.ours for row in layout.rows} == general


# What does not fit


def test_missing_left_over_and_other_shapes():
    state = of_timm().state_dict()
    del state["blocks.1.norm2.bias"], state["norm.weight"]
    state["aux.weight"] = torch.ones(2, dtype=torch.float64)
    state["blocks.0.mlp.fc1.bias"] = torch.ones(95, dtype=torch.float64)
    text = refused(
        [
            "(timm, 31 tensors) do not fit the model, which is as it was",
            "missing: blocks.1.norm2.bias, norm.weight\n",
            "left over: aux.weight\n",
            "other shapes: blocks.0.mlp.fc1.bias is (95,) for a place of (96,)\n",
        ],
        load_pretrained,
        randomize(ours()),
        state,
    )
    assert "build VisionTransformer(patch_size=4, embed_dim=24, depth=2, num_classes=10, " in text
    assert text.endswith("img_size=16, num_heads=...)")


def test_names_in_a_message_are_the_sources():
    arrays = official(of_timm().state_dict(), heads=3)
    block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    del arrays[f"{block}/key/kernel"], arrays["cls"]
    refused([f"missing: cls, {block}/key/kernel\n", f"left over: {block}/query/kernel"],
            load_pretrained, ours(), arrays)  # fmt: skip
    state = of_torchvision().state_dict()
    del state["encoder.layers.encoder_layer_0.mlp.3.bias"]
    refused("missing: encoder.layers.encoder_layer_0.mlp.3.bias", load_pretrained, ours(), state)


def test_many_names_are_cut_short():
    refused("and 18 more", load_pretrained, ours(depth=4), of_timm().state_dict())
    refused(
        "left over: blocks.2.norm1.weight", load_pretrained, ours(), of_timm(depth=4).state_dict()
    )


def test_tensors_of_another_number_of_axes():
    arrays = official(of_timm().state_dict(), heads=3)
    arrays["embedding/kernel"] = arrays["embedding/kernel"].reshape(-1, 24)
    arrays["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"] = np.ones(24)
    refused(["embedding/kernel is (48, 24) for a place of (24, 3, 4, 4)", "query/kernel is (24,)"],
            load_pretrained, ours(), arrays)  # fmt: skip
    refused("no model can be read off the weights (official) without embedding/kernel",
            model_from, arrays)  # fmt: skip


def test_class_token_against_average():
    refused(["left over: cls_token", "img_size=16"], load_pretrained,
            ours(global_pool="avg"), of_timm().state_dict())  # fmt: skip
    refused(["missing: cls_token", "global_pool='avg'"], load_pretrained, ours(),
            of_timm(**AVERAGED).state_dict())  # fmt: skip


@pytest.mark.parametrize("variant, img_size, text", [
    ("S/16", 224, 'S/16 at 224 px: build create_vit("S/16", num_classes=1000, img_size=224)'),
    ("B/32", 384, 'B/32 at 384 px: build create_vit("B/32", num_classes=1000, img_size=384)'),
    ("H/14", 518, 'H/14 at 518 px: build create_vit("H/14", num_classes=1000, img_size=518)'),
])  # fmt: skip
def test_the_model_that_fits_is_named(variant, img_size, text):
    with torch.device("meta"):  # shapes without memory
        state = create_vit(variant, img_size=img_size).state_dict()
    text = f"These are the weights of {text}"
    assert refused("do not fit", load_pretrained, ours(), state).endswith(text)


def test_what_the_message_says_to_build_fits():
    peer = of_timm(mlp_ratio=3.0, in_chans=1, depth=3)
    text = refused("do not fit", load_pretrained, ours(), peer.state_dict())
    code = text.split("build ")[1].replace("num_heads=...", "num_heads=3")
    model = eval(code, {"VisionTransformer": VisionTransformer})
    load_pretrained(model, peer.state_dict())


# A model from a file alone


@pytest.mark.parametrize("size", SIZES[1:3])
def test_model_from_shapes(size):
    peer = of_timm(*size)
    model, report = model_from(peer.state_dict(), num_heads=size[4])
    assert report == Report("timm", None, "kept", None)
    assert not model.training and model.norm.eps == 1e-6
    same_logits(model.double(), peer, (3, size[0], size[0]))
    peer = of_torchvision(*size, representation_size=20)
    model, _ = model_from(peer.state_dict(), num_heads=size[4])
    same_logits(model.double(), peer, (3, size[0], size[0]))
    peer = of_timm(*size, **AVERAGED)
    model, _ = model_from(peer.state_dict(), num_heads=size[4])
    same_logits(model.double(), peer, (3, size[0], size[0]))


def test_model_from_knows_the_heads_of_known_models():
    state = VisionTransformer(16, 8, 3, 10, embed_dim=192, depth=12, num_heads=3).state_dict()
    model, _ = model_from(state)
    assert model.blocks[0].attn.num_heads == 3
    state = {name: w for name, w in state.items() if not name.startswith("blocks.11")}
    refused("width 192 with 11 blocks is no known model: give num_heads", model_from, state)


def test_model_from_asks_for_the_heads():
    text = refused(
        ["one of [1, 2, 3, 4, 6]", "answers wrongly"], model_from, of_timm().state_dict()
    )
    assert text.startswith("num_heads cannot be read off shapes")
    with pytest.raises(ValueError, match="the heads must divide the width"):
        model_from(of_timm().state_dict(), num_heads=5)


def test_model_from_with_changes():
    peer = of_torchvision(representation_size=20)
    model, report = model_from(
        peer.state_dict(), img_size=(16, 32), num_heads=3, num_classes=4, norm_eps=1e-5
    )
    assert report == Report("torchvision", ((4, 4), (4, 8)), "new", STATISTICS)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    assert model.head.weight.shape == (4, 24) and not len(model.pre_logits)
    model, report = model_from(peer.state_dict(), num_heads=3, num_classes=0)
    assert report.head == "left out" and isinstance(model.head, torch.nn.Identity)
    wide = of_timm(img_size=(16, 32))
    refused("33 positions are no square: give img_size", model_from, wide.state_dict(), num_heads=3)
    model, _ = model_from(wide.state_dict(), num_heads=3, img_size=(16, 32))
    same_logits(model.double(), wide, (3, 16, 32))
    model, _ = model_from(wide.state_dict(), num_heads=3, grid=(4, 8))
    same_logits(model.double(), wide, (3, 16, 32))


@pytest.mark.parametrize("D, M", [(11, 15), (53, 19), (24, 64)])
def test_model_from_any_hidden_width(D, M):
    peer = of_timm(width=D, heads=1, mlp_ratio=(M + 0.5) / D)
    model, _ = model_from(peer.state_dict(), num_heads=1)
    assert model.blocks[0].mlp.fc1.out_features == M
    same_logits(model.double(), peer, (3, 16, 16))


# A checkpoint that somebody else trained


VIT_DATA = os.environ.get("VIT_DATA", "")
STRANGER = Path(VIT_DATA) / "weights/fashion_vit_d128_L6_h4_p4_timmkeys.safetensors"


@pytest.mark.skipif(
    not (VIT_DATA and STRANGER.is_file()), reason="VIT_DATA has no weights: no stranger to load"
)
def test_a_strangers_checkpoint_gives_its_own_answers(monkeypatch):
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


def test_no_warnings_and_nothing_printed(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_from(official(of_timm().state_dict(), heads=3))
        load_pretrained(small_vit(), small_vit().state_dict())
    assert capfd.readouterr() == ("", "")
