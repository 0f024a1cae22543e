"""tools/pretrained.py with random weights in place of the download: no network."""

import hashlib
import urllib.error
import urllib.request

import pytest
import torch
from torchvision.models.vision_transformer import VisionTransformer

from helpers.weights import fetch
from tests.notebook_rules import ROOT
from tests.peers import randomize
from tools import pretrained


def small(seed=0):
    """torchvision's class at 224 px and with 1000 classes, all else small, with random weights."""
    sizes = dict(image_size=224, patch_size=32, num_layers=2, num_heads=3, hidden_dim=24)
    return randomize(VisionTransformer(**sizes, mlp_dim=48), seed)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No file of weights on this machine, and no network."""

    def no_network(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("VIT_DATA", str(tmp_path / "own"))
    monkeypatch.setattr(fetch, "DATA_FOLDER", tmp_path / "data")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    for folder in ("data", "own", "torch/hub/checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def test_the_table_and_its_exit_status(tmp_path, monkeypatch, capsys):
    seen, compare = [], pretrained.compare
    monkeypatch.setattr(pretrained, "vit_b_16", small)
    torch.save(small(seed=1).state_dict(), tmp_path / "vit.pth")
    monkeypatch.setattr(pretrained, "fetch", lambda name: tmp_path / "vit.pth")
    monkeypatch.setattr(pretrained, "compare", lambda *given: seen.append(given) or compare(*given))
    assert pretrained.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:4]] == list(pretrained.PHOTOS)
    for line in said[1:4]:
        ours, theirs = line[18:46].strip(), line[46:74].strip()
        assert ours == theirs
        assert ours.rpartition(" ")[0] in pretrained.WEIGHTS.meta["categories"]
    assert said[4].startswith("3000 logits") and said[4].endswith("within 1e-04")

    ((peer, photos, transforms),) = seen
    assert torch.equal(peer.class_token, small(seed=1).class_token)
    assert photos.dtype == torch.uint8 and photos.shape == (3, 3, 256, 256)
    assert transforms(photos[0]).shape == (3, 224, 224) and transforms.mean[0] == 0.485

    for wrong in (2e-4, torch.nan):
        logits = torch.ones(3, 1000)
        monkeypatch.setattr(pretrained, "compare", lambda *_, w=wrong, z=logits: (z, z + w))
        assert pretrained.main() == 1 and "ABOVE 1e-04" in capsys.readouterr().out


def test_a_file_that_is_here_needs_no_network(nowhere, monkeypatch, capsys):
    torch.save({"a": torch.ones(2)}, nowhere / "weights.pth")
    content = (nowhere / "weights.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    published = fetch.TRAINED["vit-b16"]._replace(file=f"vit-{digest}.pth", sha256=digest)
    monkeypatch.setitem(fetch.TRAINED, "vit-b16", published)
    for folder in ("data", "own", "torch/hub/checkpoints"):
        path = nowhere / folder / published.file
        path.write_bytes(content)
        assert fetch.fetch("vit-b16") == path
        path.write_bytes(content[:-1])
        assert pretrained.main() == 1
        said = capsys.readouterr().err
        assert str(path) in said and f"not {digest}" in said and said.count("\n") == 1
        path.unlink()


def test_without_a_network_one_line(nowhere, capsys):
    assert pretrained.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("make pretrained: vit-b16 is not here") and said.count("\n") == 1
    assert pretrained.WEIGHTS.url in said  # the address that torchvision itself has
    assert "no network" in said and str(nowhere / "data") in said


def test_make_and_the_readme_know_it():
    assert "\npretrained: $(READY) $(WEIGHTS) ## " in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )
    assert "| `make pretrained` |" in (ROOT / "README.md").read_text(encoding="utf-8")
