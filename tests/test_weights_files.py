"""helpers/weights/: what a file may be, hold and say, and what is refused by name."""

import argparse
import copy
import json
import pickle
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights, ViT_B_16_Weights, WeightsEnum

from helpers.checkpoints import load_checkpoint, save_checkpoint
from helpers.model import VisionTransformer
from helpers.weights import Report, load_pretrained, model_from, resize_positions
from helpers.weights.names import FACTOR, LAYOUTS, REFUSED
from tests.peers import randomize
from tests.test_weights import (
    AVERAGED,
    HALF,
    IMAGENET,
    SIZES,
    WIDE,
    of_timm,
    of_torchvision,
    official,
    ours,
    refused,
    same_logits,
    same_state,
)

close = torch.testing.assert_close

# Prefixes, wrappers and files


@pytest.mark.parametrize("prefix, wrappers", [
    ("module.", ()),
    ("model.", ("model",)),
    ("_orig_mod.module.", ("model_state_dict",)),
    ("", ("state_dict", "model")),
    ("net.", ()),
    ("backbone.", ("state_dict",)),
    ("model.student_net.vit.", ()),
    ("visual.trunk.", ()),
    ("_forward_module.encoder.", ()),
])  # fmt: skip
def test_prefixes_and_wrappers(prefix, wrappers):
    for peer in (of_timm(), of_torchvision()):
        state = {prefix + name: w for name, w in peer.state_dict().items()}
        for wrapper in wrappers:
            state = {wrapper: state, "epoch": 3, "optimizer": {}}
        model = ours()
        load_pretrained(model, state)
        same_logits(model, peer)


WRITERS = {
    "safetensors": save_file,
    "zip": torch.save,
    "old pickle": lambda w, path: torch.save(w, path, _use_new_zipfile_serialization=False),
    "npz": lambda w, path: np.savez(open(path, "wb"), **{n: t.numpy() for n, t in w.items()}),  # noqa: SIM115
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.ckpt", "a.pth.tar", "a.npz", "a"])
def test_what_a_file_is_its_content_tells(tmp_path, kind, name):
    peer, model = of_timm(), ours()
    WRITERS[kind](peer.state_dict(), tmp_path / name)
    for source in (tmp_path / name, str(tmp_path / name)):
        assert load_pretrained(randomize(model, seed=3), source).format == "timm"
        same_state(model.state_dict(), peer.state_dict())


def test_deit_is_known_by_its_file_name_and_resized_as_timm_does(tmp_path):
    peer, path = of_timm(), tmp_path / "deit_small_patch16_224-cd65a155.pth"
    torch.save({"model": peer.state_dict()}, path)
    model = ours(img_size=32)
    assert load_pretrained(model, path) == Report("DeiT", ((6, 6), (8, 8)), "kept", IMAGENET)
    peer.set_input_size((32, 32))
    same_logits(model, peer)


def test_normalisation_for_one_channel():
    arrays = official(of_timm(in_chans=1).state_dict())
    assert load_pretrained(ours(in_chans=1), arrays).normalisation == ((0.5,), (0.5,))
    state = of_torchvision().state_dict() | {"conv_proj.weight": torch.ones(40, 1, 4, 4)}
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
    for ending in (".pt", ".npz", ".safetensors", ".h5"):
        path = (tmp_path / "vit.pth").with_suffix(ending)
        path.write_bytes(pickle.dumps({"model": Marker(str(seen))}, 2))
    arrays = official(state) | {"extra": np.array([Marker(str(seen))], dtype=object)}
    np.savez(tmp_path / "object.npz", **arrays)
    torch.save(of_timm(), tmp_path / "module.pth")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for path in files:
        refused([str(path), "holds more than tensors"], load_pretrained, ours(), path)
    assert not seen.exists()
    pickle.loads((tmp_path / "vit.pt").read_bytes())  # what unpickling would have done
    assert seen.exists()


def test_damaged_files(tmp_path):
    state = of_timm().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    np.savez(tmp_path / "c.npz", **official(state))
    np.savez_compressed(tmp_path / "d.npz", **official(state))
    torch.save(state, tmp_path / "e.pth", _use_new_zipfile_serialization=False)
    for path in sorted(tmp_path.iterdir()):
        whole, middle = path.read_bytes(), path.stat().st_size // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        flipped = [flipped] if path.suffix == ".npz" else []  # which alone has sums that are read
        for content in (b"", whole[:100], whole[:middle], whole[:-1], *flipped):
            path.write_bytes(content)
            refused([f"{path} is not opened", "Copy it again"], load_pretrained, ours(), path)


def test_other_sources(tmp_path):
    state = of_timm().state_dict()
    with pytest.raises(FileNotFoundError, match="no file of weights at .*nothing.pth"):
        load_pretrained(ours(), tmp_path / "nothing.pth")
    with pytest.raises(TypeError, match="from a VisionTransformer"):
        load_pretrained(ours(), of_timm())
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused("holds a list, a dict of tensors", load_pretrained, ours(), tmp_path / "list.pth")
    whole_numbers = {"head.bias": torch.ones(10, dtype=torch.int8)}
    refused("floating-point numbers but torch.int8", load_pretrained, ours(), state | whole_numbers)
    refused("but nothing", load_pretrained, ours(), {})
    unknown = {f"blocks.{i}.weight": torch.ones(2) for i in range(9)}
    refused(["no layout known", "blocks.0.weight", "and 3 more"], load_pretrained, ours(), unknown)


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
    assert report == Report("torchvision", None, "kept", IMAGENET)
    same_logits(model, peer)
    refused("nothing was downloaded", load_pretrained, ours(), ResNet18_Weights.IMAGENET1K_V1)
    assert len(asked) == 1


# A pickle that needs a class


class Settings:
    """What a LightningModule may have put among its hyper-parameters."""


@pytest.mark.parametrize("value, named", [
    (argparse.Namespace(lr=1), "argparse.Namespace"),
    (Settings(), "test_weights_files.Settings"),
    (np.float64(0.5), "multiarray.scalar"),
], ids=["argparse", "own", "numpy"])  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_a_class_names_it(tmp_path, value, named, zipped):
    path, model, allowed = tmp_path / "last.ckpt", ours(), []
    state = {"hyper_parameters": {"value": value}, "state_dict": of_timm().state_dict()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    text = refused([f"{path} is not opened", named, "could run code"], load_pretrained, model, path)
    assert "\x1b" not in text and text.count("\n") == 0 and "add_safe_globals" in text
    known = {"argparse.Namespace": argparse.Namespace, f"{__name__}.Settings": Settings,
             "numpy.dtype": np.dtype, "numpy.dtypes.Float64DType": type(np.dtype(float)),
             "numpy._core.multiarray.scalar": np._core.multiarray.scalar}  # fmt: skip
    for _ in range(4):  # the advice: allow those that are named
        with torch.serialization.safe_globals(allowed):
            try:
                load_pretrained(model, path)
                break
            except ValueError as error:
                allowed += [known[name] for name in known if name in str(error)]
    same_state(model.state_dict(), of_timm().state_dict())


def test_what_is_no_file_of_weights_is_said(tmp_path):
    path = tmp_path / "vit.pth"
    for content, what in ((b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
                          (b"<!DOCTYPE html><html>", "a web page"),
                          (b"\x89HDF\r\n\x1a\n", "HDF5, as Keras")):  # fmt: skip
        path.write_bytes(content)
        refused([str(path), what], load_pretrained, ours(), path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError("not yours")

    torch.save(of_timm().state_dict(), tmp_path / "vit.pth")
    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(PermissionError, match="not yours"):
        load_pretrained(ours(), tmp_path / "vit.pth")

    def bold(*arguments, **options):
        raise RuntimeError("\x1b[1mbroken\x1b[0m")

    monkeypatch.setattr(torch, "load", bold)
    refused("RuntimeError: broken.", load_pretrained, ours(), tmp_path / "vit.pth")


# Hugging Face


def hugging_face(state, new=False, prefix="vit."):
    """A state dict with timm's names -> transformers' names of 4.57, or of 5.12 and later."""
    block = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    if new:
        block |= {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    else:
        block |= {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
                  "mlp.fc2": "output.dense"}  # fmt: skip
    top = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    qkv = ["attention." + n for n in ("q_proj", "k_proj", "v_proj")] if new else [
        "attention.attention." + n for n in ("query", "key", "value")]  # fmt: skip
    theirs = {}
    for name, w in state.items():
        module, _, kind = name.rpartition(".")
        if name.startswith("blocks."):
            _, i, part = module.split(".", 2)
            start = f"{prefix}layers.{i}." if new else f"{prefix}encoder.layer.{i}."
            parts = qkv if part == "attn.qkv" else [block[part]]
            for to, rows in zip(parts, w.chunk(len(parts)), strict=True):
                theirs[f"{start}{to}.{kind}"] = rows.contiguous()
        elif module == "head":
            theirs[f"classifier.{kind}"] = w
        elif module:
            theirs[f"{prefix}{top[module]}.{kind}"] = w
        else:
            to = {"cls_token": "cls_token", "pos_embed": "position_embeddings"}[name]
            theirs[f"{prefix}embeddings.{to}"] = w
    return theirs


CONFIG = dict(model_type="vit", hidden_size=40, num_hidden_layers=3, num_attention_heads=5,
              layer_norm_eps=1e-5, hidden_act="gelu", image_size=24, patch_size=4)  # fmt: skip


def written(folder, config=CONFIG, **more):
    """A folder as Hugging Face writes it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | more), encoding="utf-8")
    processor = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


@pytest.mark.parametrize("new", [False, True], ids=["4.57", "5.12"])
def test_hugging_faces_names(new):
    peer, model = of_timm(), ours()
    state = hugging_face(peer.state_dict(), new)
    report = load_pretrained(model, state)
    assert report == Report("Hugging Face", None, "kept", None) and report.taken == "vit"
    same_logits(model, peer)
    state |= {f"pooler.dense.{kind}": torch.ones(40) for kind in ("weight", "bias")}
    built, report = model_from(state, num_heads=5, norm_eps=1e-6)
    assert report.aside == ("pooler.dense.weight", "pooler.dense.bias")
    same_logits(built, peer)
    assert model_from(state, num_heads=5)[0].norm.eps == 1e-12  # ViTConfig's own
    large = ours(img_size=32)
    assert load_pretrained(large, state).resized == ((6, 6), (8, 8))
    grid = peer.pos_embed[:, 1:].unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid.detach(), (8, 8), mode="bicubic", align_corners=False)
    close(large.pos_embed[:, 1:], grid.flatten(2).transpose(1, 2), check_dtype=False)
    state["vit.embeddings.mask_token"] = torch.ones(1, 1, 40)
    assert load_pretrained(ours(), state).aside[-1] == "embeddings.mask_token"


@pytest.mark.parametrize("kind", ["safetensors", "bin", "parts"])
def test_hugging_faces_folder(tmp_path, kind):
    peer = randomize(ours(norm_eps=1e-5))
    state, folder = hugging_face(peer.state_dict()), written(tmp_path / "vit")
    if kind == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names, places = list(state), {}
        for i in (1, 2):
            file = f"model-0000{i}-of-00002.safetensors"
            part = {name: state[name] for name in names[i - 1 :: 2]}
            save_file(part, folder / file)
            places |= dict.fromkeys(part, file)
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    (file, *_) = [path for path in folder.iterdir() if "config" not in path.name]
    for source in (folder, str(folder), file):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, report = model_from(source)
        same_logits(model, peer)
        assert report == Report("Hugging Face", None, "kept", ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
        said = {name for name, origin in report.facts.items() if origin == "in the file"}
        assert said == {"num_heads", "norm_eps", "activation"}
    text = refused("norm_eps is 1e-05 there and 1e-06 here", load_pretrained, ours(), folder)
    advised = eval(text.split("the weights of ")[-1], {"VisionTransformer": VisionTransformer})
    assert load_pretrained(advised, folder) == report
    written(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(dict(do_normalize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)), "utf-8"
    )
    assert model_from(folder)[1].normalisation is None
    if kind == "parts":
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match="parts .* not beside it: model-00002-of-00002"):
            model_from(folder)
        save_file(state, folder / "model-00002-of-00002.safetensors")
        refused("in another part", model_from, folder)
        index.write_text("{", encoding="utf-8")
        refused(f"{index} is not opened", model_from, folder)
        index.write_text('{"weight_map": {}}', encoding="utf-8")
        refused("names no parts", model_from, folder)


def test_folders_and_configs_that_do_not_help(tmp_path):
    folder = written(tmp_path / "vit")
    with pytest.raises(FileNotFoundError, match="no file of weights in the folder .*index.json"):
        model_from(folder)
    save_file(hugging_face(of_timm().state_dict()), folder / "model.safetensors")
    for wrong in (dict(num_hidden_layers=12), dict(hidden_size=384)):
        refused(["the config beside the weights says", "move it away"], model_from,
                written(folder, **wrong))  # fmt: skip
    for text in ("{", "[1]"):
        (folder / "config.json").write_text(text, encoding="utf-8")
        refused([str(folder / "config.json"), "is no JSON object"], model_from, folder)


@pytest.mark.parametrize("name, value, what", [
    ("hidden_act", "quick_gelu", "another activation than the exact GELU"),
    ("hidden_act", "gelu_new", "another activation"),
    ("act_layer", "gelu_tanh", "another activation"),
    ("activation", "relu", "another activation"),
    ("activation", "GELU(approximate='tanh')", "another activation"),
    ("global_pool", "map", "another pooling"),
    ("global_pool", "avg", "by their names and shapes it is token"),
    ("quick_gelu", True, "another activation"),
    ("use_mean_pooling", True, "a mean of the patches"),
    ("norm_first", False, "norms after"),
    ("normalize_before", False, "norms after"),
    ("pre_norm", False, "norms after"),
    ("norm_order", "post", "norms after"),
    ("pooling_type", "mean", "by their names and shapes it is token"),
    ("use_post_norm", True, "norms after"),
])  # fmt: skip
@pytest.mark.parametrize("where", ["config.json", "metadata", "checkpoint"])
def test_what_a_config_says_and_we_cannot_be(tmp_path, name, value, what, where):
    state = of_timm(depth=1).state_dict()
    path = tmp_path / "model.safetensors"
    if where == "config.json":
        save_file(state, path)
        (tmp_path / where).write_text(json.dumps({"model_args": {name: value}}), encoding="utf-8")
    elif where == "metadata":
        save_file(state, path, metadata={name: value if isinstance(value, str) else str(value)})
    else:
        torch.save({"state_dict": state, "hyper_parameters": {name: value}}, path)
    word = "global_pool" if "by their names" in what else name
    text = refused([word, what], model_from, path, num_heads=5)
    assert "\n" not in text


def test_what_a_config_says_and_we_are(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(of_timm(**AVERAGED).state_dict(), path)
    config = dict(architecture="vit_tiny", global_pool="avg", num_features=40,
                  model_args=dict(num_heads=5, act_layer="gelu"),
                  pretrained_cfg=dict(mean=[0.5] * 3, std=[0.5] * 3))  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model, report = model_from(path)  # as timm's folders on the hub are
    assert report == Report("timm", None, "kept", HALF)
    assert [n for n, origin in report.facts.items() if origin != "in the file"] == [
        "norm_order", "norm_eps"]  # fmt: skip
    refused("num_heads is 5 there and 4 here", model_from, path, num_heads=4)
    plain = tmp_path / "plain" / "vit"
    plain.parent.mkdir()
    save_file(of_timm().state_dict(), plain, metadata={"num_heads": "5", "norm_eps": "1e-5"})
    model, report = model_from(plain)
    assert model.blocks[0].attn.num_heads == 5 and model.norm.eps == 1e-5
    torch.save({"model": of_timm().state_dict(), "args": {"num_heads": 5, "lr": 1}}, plain)
    assert model_from(plain)[1].facts["num_heads"] == "in the file"


# Facts that no shape shows


def table_model(width=192, heads=3, **changes):
    """A model of Table 1's depth and width, small in all else."""
    sizes = dict(img_size=16, patch_size=8, num_classes=4, mlp_ratio=0.125)
    return VisionTransformer(embed_dim=width, depth=12, num_heads=heads, **(sizes | changes))


PLAIN = {
    "timm": lambda: table_model().state_dict(),
    "torchvision": lambda: of_torchvision(embed_dim=192, depth=12, num_heads=3).state_dict(),
    "official": lambda: official(table_model().state_dict(), heads=3),
    "wrapped": lambda: {"model": table_model().state_dict(), "epoch": 3},
}


@pytest.mark.parametrize("layout", PLAIN)
def test_plain_files_print_and_warn_nothing(tmp_path, layout, capfd):
    state = PLAIN[layout]()
    path = tmp_path / ("vit.npz" if layout == "official" else "deit_tiny.pth")
    np.savez(path, **state) if layout == "official" else torch.save(state, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, report = model_from(path)
        load_pretrained(model, path)
    origin = "in the file" if layout == "official" else "assumed"
    assert report.facts == {"num_heads": origin, "global_pool": report.facts["global_pool"],
                            "activation": "assumed", "norm_order": "assumed",
                            "norm_eps": "assumed"}  # fmt: skip
    assert model.blocks[0].attn.num_heads == 3 and capfd.readouterr() == ("", "")


def test_a_number_of_heads_that_is_assumed_is_warned_about():
    state = table_model(384, heads=12).state_dict()  # MoCo v3's ViT-S: 12 heads, not 6
    no_bias = {n: w for n, w in state.items() if "qkv.bias" not in n}
    averaged = table_model(384, heads=6, global_pool="avg").state_dict()
    apart = {}
    for name, w in state.items():
        to = [name.replace("qkv", c) for c in "qkv"] if "qkv" in name else [name]
        apart |= dict(zip(to, w.chunk(len(to)), strict=True))
    for names, why in (
        ({f"module.{n}": w for n, w in state.items()}, "prefix 'module.'"),
        (state | {"n_averaged": torch.tensor(3)}, "n_averaged beside them"),
        (hugging_face(state), "without config.json"),
        (no_bias, "no bias of q, k and v"),
        (apart, "q, k and v apart"),
        (averaged, "no class token"),
    ):
        with pytest.warns(UserWarning, match="num_heads=6 is assumed") as seen:
            _, report = model_from(names)
        assert why in str(seen[0].message) and "\n" not in str(seen[0].message) and len(seen) == 1
        assert seen[0].filename == __file__ and report.facts["num_heads"] == "assumed"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, report = model_from(names, num_heads=12)
            model = table_model(384, heads=12, global_pool=model_pool(names))
            in_own = load_pretrained(model, names)
        assert report.facts["num_heads"] == in_own.facts["num_heads"] == "told"


def model_pool(names):
    return "token" if any("cls_token" in name for name in names) else "avg"


def test_none_in_changes_keeps_what_was_found(tmp_path):
    saved(tmp_path / "a.safetensors", norm_eps=1e-5)
    model, _ = model_from(tmp_path / "a.safetensors", norm_eps=None, num_heads=None, img_size=None)
    assert model.norm.eps == 1e-5 and model.blocks[0].attn.num_heads == 5


def test_weights_that_are_not_finite_are_warned_about():
    state = of_timm().state_dict()
    state["blocks.1.mlp.fc1.bias"][3] = torch.nan
    state["head.bias"][0] = torch.inf
    with pytest.warns(UserWarning, match="blocks.1.mlp.fc1.bias, head.bias is finite") as seen:
        load_pretrained(ours(), state)
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="not all of blocks.1.mlp.fc1.bias is finite"):
        load_pretrained(ours(), state, new_head=True)  # the head that is dropped is no matter
    large = of_timm().state_dict() | {"norm.bias": torch.full((40,), 1e6)}
    with pytest.warns(UserWarning, match="norm.bias"):
        load_pretrained(ours().half(), large)  # beyond float16


# More than one of a name, more than one set


def test_two_tensors_of_one_name_are_refused():
    state = of_timm().state_dict()
    w, inside = torch.ones(10, 40), {f"model.{name}": w for name, w in state.items()}
    fused = "blocks.0.attn.qkv.weight"
    parts = {f"blocks.0.attn.{c}.weight": state[fused][:40] for c in "qkv"}
    vision = of_torchvision().state_dict()
    arrays = official(state, prefix="params/", big_vision=True, stacked=True)
    one = official(state, prefix="params/", big_vision=True)
    block = "params/Transformer/encoderblock_1/LayerNorm_0/scale"
    stacked = "params/Transformer/encoderblock/LayerNorm_0/scale"
    for source, names in (
        (inside | {"head.weight": w}, ["model.head.weight", "head.weight", "key='model'"]),
        (inside | {"classifier.weight": w}, ["model.head.weight", "classifier.weight"]),
        (state | parts, [fused, "blocks.0.attn.q.weight"]),
        (state | {"fc.weight": w}, ["head.weight", "fc.weight"]),
        (vision | {"heads.0.weight": w}, ["heads.head.weight", "heads.0.weight"]),
        (vision | {"encoder.layers.encoder_layer_0.mlp.linear_1.bias": torch.ones(60)},
         ["encoder_layer_0.mlp.0.bias", "encoder_layer_0.mlp.linear_1.bias"]),
        (arrays | {block: one[block]}, [stacked, block]),
    ):  # fmt: skip
        text = refused([*names, "more than one would be our"], load_pretrained, ours(), source)
        assert "key=" in text or source is not inside
    model = ours()
    load_pretrained(model, inside | {"head.weight": w}, key="model")  # the advice
    same_state(model.state_dict(), {n: w.double() for n, w in state.items()})


def several(*names, flat=False):
    """Sets of random weights in one checkpoint, each its own, nested or in one dict."""
    states = {n: randomize(ours(), seed=i).state_dict() for i, n in enumerate(names)}
    if flat:
        states = {f"{n}.{name}": w for n, state in states.items() for name, w in state.items()}
    return states | {"epoch": 3}


@pytest.mark.parametrize("names, flat", [
    (("state_dict", "state_dict_ema"), False), (("model_ema", "model"), False),
    (("net", "ema"), False), (("model", "teacher"), False), (("model.net", "ema_model.net"), True),
    (("module.base_encoder", "module.momentum_encoder"), True),
])  # fmt: skip
def test_one_of_several_sets_is_taken_and_the_others_named(names, flat):
    source = several(*names, flat=flat)
    usual = next(n for n in names if not re.search("ema|momentum|teacher", n))
    (other,) = set(names) - {usual}
    for key, taken, left in ((None, usual, other), (usual, usual, other), (other, other, usual)):
        model = ours()
        report = load_pretrained(model, source, key=key)
        assert (report.taken, report.left) == (taken, (left,))
        same_state(model.state_dict(), randomize(ours(), seed=names.index(taken)).state_dict())
        built, same = model_from(source, num_heads=5, key=key)
        assert same == report and same.taken == taken


@pytest.mark.parametrize("names, flat", [
    (("teacher", "student"), False), (("model", "weights"), False), (("online", "target"), True),
    (("teacher.backbone", "student.backbone"), True), (("image", "audio"), True),
])  # fmt: skip
def test_where_no_set_is_the_usual_one_it_is_asked_for(names, flat):
    source = several(*names, flat=flat)
    refused([*names, "Choose one by key="], load_pretrained, ours(), source)
    for i, name in enumerate(names):
        model = ours()
        assert load_pretrained(model, source, key=name).taken == name
        same_state(model.state_dict(), randomize(ours(), seed=i).state_dict())
    refused(["key 'none' names no set", *names], model_from, source, key="none")


def test_keys_lead_into_what_is_nested():
    inner = several("a", "b")
    source = {"outer": inner, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    refused(["outer.a, outer.b", "key="], load_pretrained, ours(), source)
    refused("outer.a, outer.b", load_pretrained, ours(), source, key="outer")
    model = ours()
    report = load_pretrained(model, source, key="outer.b")
    assert (report.taken, report.left) == ("outer.b", ("outer.a",))
    same_state(model.state_dict(), inner["b"])
    model = ours()  # the set that is not in a dict of its own, and one that is
    source = inner["a"] | {"other": inner["b"]}
    refused("Choose one by key=", load_pretrained, ours(), {"x": inner["a"], "y": inner["b"]})
    assert load_pretrained(model, source, key="").left == ("other",)
    same_state(model.state_dict(), inner["a"])


def test_what_stands_beside_a_set_is_left_alone_where_the_key_says_so():
    state = {f"encoder.{n}": w for n, w in of_timm().state_dict().items()}
    state |= {"neck.weight": torch.ones(3, 40), "decoder_embed.weight": torch.ones(2)}
    refused("key='encoder' reads only", load_pretrained, ours(), state)
    del state["decoder_embed.weight"]
    refused(["left over: neck.weight", "key='encoder' reads only"], load_pretrained, ours(), state)
    model = ours()
    load_pretrained(model, state, key="encoder")
    same_state(model.state_dict(), of_timm().state_dict())


# Heads, layers without a bias, and what is no weight


@pytest.mark.parametrize("put", [
    lambda vit: setattr(vit, "heads", nn.Linear(40, 10)),
    lambda vit: setattr(vit, "heads", nn.Sequential(nn.Dropout(0.1), nn.Linear(40, 10))),
    lambda vit: setattr(vit.heads, "head", nn.Sequential(nn.Dropout(0.1), nn.Linear(40, 10))),
    lambda vit: setattr(vit, "heads", nn.Linear(40, 10, bias=False)),
], ids=["heads.*", "heads.1.*", "heads.head.1.*", "no bias"])  # fmt: skip
def test_a_single_linear_layer_put_in_as_the_head(put):
    peer = of_torchvision()
    put(peer)
    peer = randomize(peer).double().eval()
    model, report = model_from(peer.state_dict(), num_heads=5)
    has_bias = any(name.startswith("heads") and "bias" in name for name in peer.state_dict())
    assert report.head == "kept" and report.zeros == (() if has_bias else ("heads.bias",))
    same_logits(model, peer)


@pytest.mark.parametrize("name", ["head.2", "fc", "classifier", "model.fc", "classifier.1.0"])
def test_heads_by_other_names(name):
    peer, prefix = of_timm(), "model.vit." if name == "model.fc" else ""
    state = {prefix + n: w for n, w in peer.state_dict().items() if not n.startswith("head")}
    state |= {f"{name}.{kind}": w for kind, w in peer.head.state_dict().items()}
    model = ours()
    assert load_pretrained(model, state).head == "kept"
    same_logits(model, peer)


@pytest.mark.parametrize("head", [
    nn.Sequential(nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10)),
    nn.Sequential(nn.LayerNorm(40), nn.Linear(40, 10)),
    nn.Linear(80, 10),
    nn.Linear(80, 10, bias=False),
    nn.utils.parametrizations.weight_norm(nn.Linear(40, 10)),
], ids=["two", "norm", "wide", "wide, no bias", "weight norm"])  # fmt: skip
def test_any_other_head_falls_to_a_new_one(head):
    peer = of_timm()
    peer.head = head
    state, model = peer.double().state_dict(), ours()
    text = refused(
        ["head that is not one linear layer", "new_head=True"], load_pretrained, model, state
    )
    assert "left over" not in text
    assert load_pretrained(model, state, new_head=True).head == "new"
    assert not model.head.weight.any() and torch.equal(model.norm.weight, peer.norm.weight)
    assert load_pretrained(ours(num_classes=0), state).head == "left out"
    refused("give num_classes for a new head, 0 for none", model_from, state, num_heads=5)
    beside = {f"vit.{n}": w for n, w in state.items()} | {"neck.weight": torch.ones(2, 2)}
    refused("key='vit' reads only", model_from, beside, num_heads=5)  # what helps comes first
    refused("give num_classes", model_from, beside, num_heads=5, key="vit")
    for K, done in ((7, "new"), (0, "left out")):
        assert model_from(state, num_heads=5, num_classes=K)[1].head == done


@pytest.mark.parametrize("library", ["timm", "torchvision", "official", "Hugging Face"])
def test_a_bias_that_no_block_has_is_zeros(library):
    peer = of_timm(qkv_bias=False)
    state = peer.state_dict()
    if library == "torchvision":
        state = {n: w for n, w in of_torchvision().state_dict().items() if "in_proj_bias" not in n}
        peer = of_torchvision()
        for layer in peer.encoder.layers:
            nn.init.zeros_(layer.self_attention.in_proj_bias)
    elif library != "timm":
        state = (official if library == "official" else hugging_face)(state)
        peer = peer.double()
    model, report = model_from(state, num_heads=5, norm_eps=1e-6)
    assert len(report.zeros) == (9 if library in ("official", "Hugging Face") else 3)
    same_logits(model, peer)
    if library == "timm":  # and where no layer of the blocks has one
        peer = of_timm(qkv_bias=False, proj_bias=False)
        model, report = model_from(peer.state_dict(), num_heads=5)
        assert len(report.zeros) == 12
        same_logits(model, peer)
    name = next(n for n in of_timm().state_dict() if "1.attn.qkv.bias" in n)
    some = of_timm().state_dict()
    del some[name]
    refused(f"missing: {name}", load_pretrained, ours(), some)  # in one block: damage


@pytest.mark.parametrize("config", [
    {"act_layer": "quick_gelu"}, {"hidden_act": "gelu_pytorch_tanh"}, {"global_pool": "avg"},
    {"pretrained_cfg": {"act_layer": "gelu_tanh"}}, {"norm_first": False}, {"num_heads": 4},
])  # fmt: skip
def test_what_no_tensor_tells_may_be_told_and_is_believed_or_refused(config):
    state, model = of_timm().state_dict(), ours()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="config|num_heads is 4 there"):
        load_pretrained(model, state, config=config)
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
    told = {"act_layer": "gelu", "global_pool": "token", "num_heads": 5}
    facts = model_from(state, config=told)[1].facts
    assert [facts[name] for name in ("activation", "global_pool", "num_heads")] == [
        "in the file"
    ] * 3


def test_what_is_no_weight_is_left_aside_by_name():
    peer, model = of_timm(), ours()
    extras = {
        "n_averaged": torch.tensor(5), "blocks.0.norm1.num_batches_tracked": torch.tensor(1),
        "total_ops": torch.zeros(1, dtype=torch.float64), "blocks.0.mlp.fc1.total_params":
        torch.zeros(1), "embeddings.position_ids": torch.arange(37)[None], "epoch": 3,
        "val_acc.correct": torch.tensor(0.5), "val_metric.total": torch.ones(4), "best": 0.9,
        "criterion.weight": torch.ones(10), "arch": "vit", "confusion": torch.ones(3, 3).int(),
        "head.total_ops": torch.zeros(1), "array": np.arange(3), "nothing": None,
    }  # fmt: skip
    report = load_pretrained(model, peer.state_dict() | extras)
    assert set(report.aside) == set(extras) and report.head == "kept"
    same_logits(model, peer)
    averaged = torch.optim.swa_utils.AveragedModel(peer)
    assert load_pretrained(model, averaged.state_dict()).aside == ("n_averaged",)
    for more in ({"mean": torch.ones(3)}, {"turns": torch.ones(3, dtype=torch.complex64)}):
        refused(f"left over: {[*more][0]}", load_pretrained, model, peer.state_dict() | more)


def test_torchs_own_wrappers_inside_the_names():
    peer, model = of_timm(), ours()
    state = {re.sub(r"(blocks\.\d\.)", r"\1_orig_mod.", n): w for n, w in peer.state_dict().items()}
    load_pretrained(model, state)
    same_state(model.state_dict(), peer.state_dict())
    refused("are both norm.bias", load_pretrained, model,
            {"_orig_mod.norm.bias": torch.ones(40)} | state)  # fmt: skip


# Our own checkpoints


def saved(path, **changes):
    """A model with random weights, written by save_checkpoint."""
    data = SimpleNamespace(name="digits", classes=["0", "1"], mean=(0.3,), std=(0.4,))
    model = randomize(VisionTransformer(**(SIZES | dict(in_chans=1) | changes)))
    save_checkpoint(path, model, data)
    return model


def test_our_own_checkpoints(tmp_path):
    path = tmp_path / "ours.safetensors"
    settings = dict(WIDE, norm_eps=1e-5, representation_size=20)
    source = saved(path, **settings)  # the file says that the 36 positions are 4 x 9
    model, report = model_from(path)
    assert report == Report("helpers", None, "kept", ((0.3,), (0.4,)))
    assert model.norm.eps == 1e-5 and model.blocks[0].attn.num_heads == 5 and not model.training
    same_state(model.state_dict(), load_checkpoint(path)[0].state_dict())
    other = VisionTransformer(**(SIZES | dict(in_chans=1) | settings))
    assert load_pretrained(other, path) == report
    same_state(other.state_dict(), source.state_dict())
    model, report = model_from(path, img_size=32, num_classes=7)
    assert report.resized == ((4, 9), (8, 8)) and report.head == "new"
    close(model.pos_embed, resize_positions(source.pos_embed, (4, 9), (8, 8), "official"))


def test_our_own_checkpoint_of_another_kind(tmp_path):
    path = tmp_path / "ours.safetensors"
    saved(path)
    refused(["num_heads is 5 there and 4 here", "norm_eps is 1e-06 there and 1e-05 here"],
            load_pretrained, ours(in_chans=1, num_heads=4, norm_eps=1e-5), path)  # fmt: skip
    save_file(of_timm().state_dict(), path, metadata={"vit": '{"model": {}}'})
    refused("num_heads", model_from, path)


# What is refused


@pytest.mark.parametrize("changes, message", [
    (dict(reg_tokens=4), "reg_token is register tokens"),
    (dict(qk_norm=True), "blocks.0.attn.q_norm.weight is a norm inside"),
    (dict(scale_attn_norm=True), "blocks.0.attn.norm.weight is a norm inside"),
    (dict(pre_norm=True), "norm_pre.weight is a norm before the first block"),
    (dict(global_pool="avg"), "fc_norm.weight is a norm after"),
    (dict(global_pool="map"), "attn_pool.latent is attention pooling"),
])  # fmt: skip
def test_other_architectures_of_timm(changes, message):
    refused(message, load_pretrained, ours(), of_timm(**changes).state_dict())


NAMED = {
    "dist_token": "the distillation token of DeiT",
    "head_dist.weight": "the distillation token of DeiT",
    "embeddings.distillation_token": "the distillation token of DeiT",
    "embeddings.detection_tokens": "the detection tokens of YOLOS",
    "register_tokens": "register tokens",
    "reg_token": "register tokens",
    "blocks.0.ls.gamma": "layer-scale",
    "blocks.0.gamma_1": "layer-scale",
    "blocks.0.layer_scale1.lambda1": "layer-scale",
    "blocks.0.attn.k_norm.weight": "a norm inside",
    "blocks.0.mlp.norm.weight": "a norm inside",
    "norm_pre.weight": "a norm before the first block",
    "visual.ln_pre.weight": "a norm before the first block",
    "fc_norm.weight": "a norm after average pooling",
    "attn_pool.latent": "attention pooling",
    "params/MAPHead_0/probe": "attention pooling",
    "blocks.0.attn.relative_position_bias_table": "relative or rotary positions",
    "blocks.0.attn.rel_pos_h": "relative or rotary positions",
    "rope.freqs": "relative or rotary positions",
    "decoder_embed.weight": "masked-image",
    "blocks.0.mlp.w12.weight": "a gate",
    "blocks.0.mlp.fc1_g.weight": "a gate",
    "blocks.0.attn.gate.weight": "a gate",
    "patch_embed.backbone.conv1.weight": "another stem",
    "patch_embed.norm.weight": "another stem",
    "patch_embed.proj.0.weight": "another stem",
    "conv_proj.conv_bn_relu_0.0.weight": "another stem",
    "opt/target/conv_root/kernel": "another stem",
}


@pytest.mark.parametrize("name", NAMED)
def test_other_architectures_by_name(name):
    state = of_timm(depth=1).state_dict() | {name: torch.ones(2)}
    refused(f"{name} is {NAMED[name]}", model_from, state, num_heads=5)


def test_no_table_has_a_name_that_is_refused():
    rows = [row for layout in LAYOUTS for row in layout.rows if row.reshape != FACTOR]
    names = [name.format(i=11) for row in rows for name in row.theirs]
    assert len(names) > 100
    assert not [n for n in names for pattern, _ in REFUSED if re.search(pattern, n)]
    for pattern, _ in REFUSED:
        assert [n for n in NAMED if re.search(pattern, n)], f"{pattern} is not tried"
