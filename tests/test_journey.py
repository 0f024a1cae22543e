"""pictures/journey.py: every step draws the model's own numbers, a row for each token."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from helpers.inspection import attention_maps, tokens_after_each_block
from helpers.model import VisionTransformer
from helpers.plotting import SIGNED
from pictures.journey import journey
from tests.peers import randomize
from tests.test_plotting import image

SCALE = SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def tables(figure):
    """{title: numbers} of what is drawn with a sign."""
    found = [image for ax in figure.axes for image in ax.get_images() if image.cmap.name == SIGNED]
    return [np.asarray(image.get_array()) for image in found[1:]]  # the first is the scale


@torch.no_grad()
def test_each_step_shows_the_models_own_numbers():
    model, picture = randomize(VisionTransformer((4, 6), 2, 3, 3, 16, 2, 2)).eval(), image(3)
    draw = journey(model, picture, SCALE)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SCALE.mean, SCALE.std))
    x = (picture[None] / 255 - mean) / std
    rows = torch.nn.functional.unfold(x, 2, stride=2)[0].T  # (6, 12)
    z, tokens = tokens_after_each_block(model, x), model.patch_embed(x)[0]
    joined = torch.cat([model.cls_token[0], tokens])
    y = model.norm(z[-1])[0, :1]
    wanted = [[], [rows], [rows, tokens], [tokens, joined], [joined, model.pos_embed[0], z[0][0]]]
    wanted += [[z[0][0], z[1][0]], [z[1][0], z[2][0]], [z[2][0], y]]
    for number, expected in enumerate(wanted, 1):
        figure = draw(number)
        assert figure.get_suptitle().startswith(f"{number} of 8 · ")
        for found, theirs in zip(tables(figure), expected, strict=True):
            np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-5)
    widths = [bar.get_width() for bar in figure.axes[-1].patches]
    np.testing.assert_allclose(widths, model(x)[0], rtol=1e-4, atol=1e-5)
    maps = attention_maps(model, x)
    lines = [patch for patch in draw(6).artists if hasattr(patch, "coords1")]
    thick = [line.get_linewidth() for line in lines]
    np.testing.assert_allclose(thick, 0.5 + 12 * maps[0][0, :, 0].mean(0), rtol=1e-4)
    with pytest.raises(IndexError):
        draw(9)
