"""tools/pretrained.py with random weights in place of the download: no network."""

import urllib.error
import urllib.request

import pytest
import torch
from torchvision.models.vision_transformer import VisionTransformer

from tests.notebook_rules import ROOT
from tests.peers import randomize
from tools import pretrained


def small(seed=0):
    """torchvision's class at 224 px and with 1000 classes, all else small; weights of its start."""
    torch.manual_seed(seed)
    sizes = dict(image_size=224, patch_size=32, num_layers=2, num_heads=3, hidden_dim=24)
    model = VisionTransformer(**sizes, mlp_dim=48)
    torch.nn.init.normal_(model.heads.head.weight)
    return model


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No file of weights on this machine, and no network."""

    def no_network(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv("VIT_DATA", raising=False)
    monkeypatch.setattr(pretrained, "DATA_FOLDER", tmp_path / "data")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def stand_in(monkeypatch):
    """The small model in place of ViT-B/16 and its state dict in place of the download."""
    monkeypatch.setattr(pretrained, "vit_b_16", small)
    monkeypatch.setattr(pretrained, "fetch", lambda: small(seed=1).state_dict())


def test_the_table(stand_in, capsys):
    assert pretrained.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:4]] == list(pretrained.PHOTOS)
    names = pretrained.WEIGHTS.meta["categories"]
    for line in said[1:4]:
        ours, theirs = line[18:46].strip(), line[46:74].strip()
        assert ours == theirs and ours.rpartition(" ")[0] in names
    assert said[4].startswith("3000 logits") and said[4].endswith("within 1e-04")


def test_photographs_are_prepared_as_torchvision_does_it(monkeypatch, stand_in):
    seen = []
    compare = pretrained.compare
    monkeypatch.setattr(pretrained, "compare", lambda *given: seen.append(given) or compare(*given))
    pretrained.main()
    (peer, photos, transforms), *_ = seen
    assert photos.dtype == torch.uint8 and photos.shape == (3, 3, 256, 256)
    assert transforms(photos[0]).shape == (3, 224, 224)
    assert tuple(transforms.mean) == (0.485, 0.456, 0.406)
    assert torch.equal(peer.class_token, small(seed=1).class_token)


def test_another_answer_fails(monkeypatch, stand_in, capsys):
    def wrong(peer, photos, transforms):
        logits = torch.randn(3, 1000)
        return logits, logits + 2e-4

    monkeypatch.setattr(pretrained, "compare", wrong)
    assert pretrained.main() == 1
    assert "ABOVE 1e-04" in capsys.readouterr().out
    monkeypatch.setattr(pretrained, "compare", lambda *_: (torch.full((3, 1000), torch.nan),) * 2)
    assert pretrained.main() == 1


def test_compare_uses_every_weight():
    peer = randomize(small())
    photos = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    ours, theirs = pretrained.compare(peer, photos, lambda photo: photo / 255)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_without_a_network_one_line(nowhere, capsys):
    assert pretrained.main() == 1
    said = capsys.readouterr().err.splitlines()[-1]  # torchvision may announce its download
    assert said.startswith("make pretrained: could not download https://download.pytorch.org/")
    assert "no network" in said and str(nowhere / "data") in said


def test_a_file_that_is_here_needs_no_network(nowhere, monkeypatch):
    file = nowhere / "weights.pth"
    torch.save({"a": torch.ones(2)}, file)
    digest = pretrained.hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, "FILE", f"vit-{digest[:8]}.pth")
    for folder in (nowhere / "data", nowhere / "own", nowhere / "torch/hub/checkpoints"):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / pretrained.FILE
        path.write_bytes(file.read_bytes())
        monkeypatch.setenv("VIT_DATA", str(nowhere / "own"))
        assert torch.equal(pretrained.fetch()["a"], torch.ones(2))
        path.unlink()


def test_a_file_that_is_not_whole_is_named(nowhere, capsys):
    (nowhere / "data" / pretrained.FILE).write_bytes(b"half of it")
    assert pretrained.main() == 1
    said = capsys.readouterr().err
    assert pretrained.FILE in said and "not c867db91" in said and said.count("\n") == 1


def test_make_and_the_readme_know_it():
    assert "\npretrained: $(READY) ## " in (ROOT / "Makefile").read_text()
    assert "| `make pretrained` |" in (ROOT / "README.md").read_text()
