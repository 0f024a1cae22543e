"""pictures/model_drawings.py: the lines are those of the class, the tables those given."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest

from helpers.model import VisionTransformer
from pictures.model_drawings import ROWS, code_beside_figure, lines_of_the_class, ribbon, thick


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_lines_are_those_that_compute():
    figure = code_beside_figure()
    said = [text.get_text() for text in figure.axes[0].texts]
    forward = [VisionTransformer.forward_features, VisionTransformer.forward]
    source = "".join(inspect.getsource(method) for method in forward)
    for line in lines_of_the_class():
        assert line in said and f"  {line}" in source
    assert sum("= self." in line or "return" in line for line in lines_of_the_class()) == 4
    assert [text for text in said if text.startswith("(B")] == [shape for *_, shape in ROWS]
    assert {f"({n})" for n in range(1, 5)} <= set(said)


def test_ribbon_shows_what_it_is_given_with_the_class_token_thick():
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (3, 8, 8), dtype=np.uint8)
    patches, tokens, y, logits = (random.normal(size=s) for s in ((16, 12), (17, 20), 20, 5))
    figure = ribbon(image, patches, tokens, 2 * tokens, y, logits, "t")
    assert figure.get_suptitle() == "t" and len(figure.axes) == 6
    titles = [text.get_text() for text in figure.texts]
    for shape in ("(3, 8, 8)", "(16, 12)", "(17, 20)", "(20,)", "(5,)"):
        assert any(title.endswith(shape) for title in titles)
    assert [bar.get_width() for bar in figure.axes[5].patches] == list(logits)
    shown = figure.axes[2].get_images()[0].get_array()
    np.testing.assert_allclose(shown[7:], tokens[1:] / np.nanstd(thick(tokens)))
    assert np.array_equal(shown[0], shown[4]) and np.ma.getmaskarray(shown)[5:7].all()
