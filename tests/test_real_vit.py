"""lab/real_vit.py: the model for photographs, its stand-in, and the colours of tokens."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms.functional import resize, rgb_to_grayscale

from helpers.checkpoints import load_checkpoint
from helpers.plotting import sample_photo
from helpers.weights import fetch as fetching
from helpers.weights.fetch import find
from lab.real_vit import SMALL, as_pixels, colours, read_photo, vit_for_photographs


def tokens(n=200, D=12):
    torch.manual_seed(0)
    return torch.randn(n, D).exp().double()  # longer tails on one side


def turned(D):
    """A rotation of D axes."""
    torch.manual_seed(1)
    return torch.linalg.qr(torch.randn(D, D).double())[0]


def test_colours_are_the_places_along_the_three_directions_of_largest_variance():
    """Tokens made of known coordinates, uncorrelated and the first most spread out."""
    x = tokens(D=4)
    along = torch.linalg.qr(x - x.mean(dim=0))[0]  # (n, 4), of mean 0, orthogonal
    along = along * (along**3).sum(dim=0).sign()  # the longer tail up
    found = colours(along * torch.tensor([8, 4, 2, 1]) @ turned(4))
    low, high = torch.from_numpy(np.quantile(along[:, :3].numpy(), [0.02, 0.98], axis=0))
    assert_close(found, ((along[:, :3] - low) / (high - low)).clamp(0, 1))


def test_colours_lie_from_0_to_1_and_stay_where_all_tokens_move():
    x = tokens()
    found = colours(x)
    assert found.shape == (200, 3) and found.min() == 0 and found.max() == 1
    for same in (x + 7, x + torch.arange(12), x @ turned(12), 5 * x):
        assert_close(colours(same), found)
    assert_close(colours(x.float()), found.float(), atol=1e-3, rtol=0)
    assert not torch.allclose(colours(x * torch.arange(12)), found, atol=0.1)
    for alike in (torch.ones(5, 4), torch.ones(1, 4), torch.tensor([[1.0, 2, 3], [3, 2, 1]])):
        assert colours(alike).isfinite().all()


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """No file in any place, and no network."""
    monkeypatch.setattr(fetching, "DATA_FOLDER", tmp_path)
    monkeypatch.delenv("VIT_DATA", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_without_the_weights_a_small_model_stands_in_and_one_line_says_so(no_weights, capsys):
    model, see, real = vit_for_photographs(448)
    (line,) = capsys.readouterr().out.splitlines()
    assert "put vit_s_focus.onnx" in line and "a small model looks, trained on clothes" in line
    assert not real and not model.training
    photo = sample_photo("chelsea.png", (60, 90))
    x = see(photo)
    assert x.shape == (1, *model.patch_embed.input_shape) == (1, 1, 28, 28)
    assert model(x).shape == (1, 10)
    pixels, facts = as_pixels(see, photo)
    assert_close(see(torch.from_numpy(photo)), x)
    grey = rgb_to_grayscale(resize(torch.from_numpy(photo), (28, 28), antialias=True).double())
    info = load_checkpoint(SMALL)[1]
    assert_close(x[0], ((grey / 255 - info["mean"][0]) / info["std"][0]).float())
    assert pixels.dtype == torch.uint8 and (pixels[0] - grey).abs().max() < 0.6
    assert facts.mean + facts.std == pytest.approx([*info["mean"], *info["std"]], rel=1e-3)


@pytest.mark.skipif(not find("vit-s14"), reason="python -m helpers.weights vit-s14 was not called")
def test_the_weights_get_photographs_as_they_were_trained(capsys):
    pytest.importorskip("onnx", reason="onnx is not installed")
    model, see, real = vit_for_photographs(28)
    assert real and not model.training and not capsys.readouterr().out
    photo = sample_photo("chelsea.png", 28)
    mean, std = (torch.tensor(n)[:, None, None] for n in
                 ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
    assert_close(see(photo), (torch.from_numpy(photo)[None] / 255 - mean) / std)
    with torch.inference_mode():
        assert model.forward_features(see(photo)).shape == (1, 1 + 2 * 2, 384)
    large = sample_photo("chelsea.png", (60, 90))
    assert_close(see(large), see(resize(torch.from_numpy(large), (28, 28), antialias=True)))
    pixels, facts = as_pixels(see, photo)
    assert torch.equal(pixels[0], torch.from_numpy(photo))
    assert facts.mean == pytest.approx(mean.flatten().tolist(), abs=1e-5)
    assert facts.std == pytest.approx(std.flatten().tolist(), abs=1e-5)


@pytest.mark.parametrize("high", [False, True])
def test_a_photo_is_cut_to_its_middle_square(tmp_path, high):
    stripes = np.zeros((20, 60, 3), np.uint8)
    for i in range(3):
        stripes[:, 20 * i : 20 * (i + 1), i] = 200  # red, green, blue
    stripes = stripes.transpose(1, 0, 2) if high else stripes
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    photo = read_photo(tmp_path / "stripes.png", 20)
    assert photo.shape == (3, 20, 20) and photo.dtype == np.uint8
    assert (photo[1, 1:-1, 1:-1] == 200).all() and not photo[::2, 1:-1, 1:-1].any()
    assert read_photo(str(tmp_path / "stripes.png")).shape == (3, 448, 448)


def test_a_photo_is_upright_and_in_colours_whatever_the_file(tmp_path):
    picture = np.zeros((16, 16), np.uint8)
    picture[:8] = 255  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the file's left edge is the upper one
    Image.fromarray(picture.T).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "clear.png")
    for name in ("turned.jpg", "clear.png"):
        photo = read_photo(tmp_path / name, 16)
        assert photo.shape == (3, 16, 16)
        assert photo[:, 1:7].min() > 250 and photo[:, 9:15].max() < 5, name


def test_what_is_no_photo_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holiday.jpg"):
        read_photo(tmp_path / "holiday.jpg")
    (tmp_path / "letter.jpg").write_text("Dear reader,", encoding="utf-8")
    with pytest.raises((OSError, ValueError), match="letter.jpg"):
        read_photo(tmp_path / "letter.jpg")
