"""pictures/model_drawings.py: the lines are those of the class, the tables those given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from helpers.plotting import SIGNED
from pictures.model_drawings import (
    ROWS,
    attention_in_numbers,
    code_beside_figure,
    lines_of,
    ribbon,
    thick,
)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


class Lines:
    def forward(self, x):
        x = first(x)  # noqa: F821
        x = second(x)  # noqa: F821
        x = third(x)  # noqa: F821
        x = fourth(x)  # noqa: F821
        y = fifth(x)  # noqa: F821
        return sixth(y)  # noqa: F821


def test_the_lines_are_those_of_the_class():
    figure = code_beside_figure(Lines)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert lines_of(Lines)[::5] == ["x = first(x)", "return sixth(y)"]
    assert set(lines_of(Lines)) <= set(said) and "Lines, forward" in said
    assert [text for text in said if text.startswith("(B")] == [shape for _, shape in ROWS]
    assert {f"({n})" for n in range(1, 5)} <= set(said)


@pytest.mark.parametrize("N, times, gap", [(16, 1, 1), (64, 5, 2)])
def test_ribbon_shows_what_it_is_given_with_the_class_token_framed(N, times, gap):
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (3, 8, 8), dtype=np.uint8)
    patches, tokens, y, logits = (random.normal(size=s) for s in ((N, 12), (N + 1, 20), 20, 5))
    figure = ribbon(image, patches, tokens, 2 * tokens, y, logits, "t", pixel=(3, 5))
    assert figure.get_suptitle() == "t" and len(figure.axes) == 7  # the last is the legend
    titles = [text.get_text() for text in figure.texts]
    for shape in ("(3, 8, 8)", f"({N}, 12)", f"({N + 1}, 20)", "(20,)", "(5,)"):
        assert any(title.endswith(shape) for title in titles)
    answer = figure.axes[5]
    assert [bar.get_width() for bar in answer.patches] == list(logits)
    reds = [bar.get_facecolor()[0] > bar.get_facecolor()[2] for bar in answer.patches]
    assert reds == list(logits > 0)  # red above 0, as on the maps
    tables = figure.axes[1:5]
    assert {ax.get_images()[0].get_cmap().name for ax in tables} == {SIGNED}
    shown = figure.axes[2].get_images()[0].get_array()
    np.testing.assert_allclose(shown[times + gap :], tokens[1:] / np.nanstd(thick(tokens)))
    assert np.array_equal(shown[0], shown[times - 1])
    assert np.ma.getmaskarray(shown)[times : times + gap].all()
    (frame,), (place,) = figure.axes[2].patches, figure.axes[0].patches
    assert frame.get_height() == times
    assert place.get_bbox().bounds == (4, 2, 2, 2)  # around column 5, row 3


def test_ribbon_rings_the_number_that_changed_and_measures_each_row():
    image, tokens = np.zeros((3, 8, 8), np.uint8), np.ones((17, 20))
    patches, sizes = np.zeros((16, 12)), np.arange(1.0, 18)
    patches[6, 5] = -1
    figure = ribbon(image, patches, tokens, tokens, np.ones(20), np.ones(5), "", (3, 5), sizes)
    (ring,) = figure.axes[1].patches
    assert ring.get_center() == (5, 6)
    assert [label.get_text() for label in figure.axes[3].get_yticklabels()] == ["0", "1", "16", "7"]
    places = figure.axes[4].collections[0].get_offsets()
    assert list(places[:, 0]) == list(sizes)
    assert places[7, 1] == figure.axes[3].get_yticks()[3]  # the dot of row 7 stands at its row


def test_attention_in_numbers_writes_every_number_and_frames_token_0():
    q, k, v, home = (np.arange(6).reshape(3, 2) + i for i in range(4))
    scores, shares = np.eye(3), np.eye(3) / 3
    figure = attention_in_numbers(q, k, scores, shares, v, home, list("abc"), ["x", "y"])
    for ax, values in zip(figure.axes, (q, k.T, scores, shares, v, home), strict=True):
        said = [float(text.get_text()) for text in ax.texts]
        np.testing.assert_allclose(said, np.ravel(values), atol=0.005)
    framed = [ax.patches[0].get_height() for ax in figure.axes]
    assert framed == [1, 2, 1, 1, 3, 1]  # keys and values are used whole
    assert [text.get_text()[:4] for text in figure.texts] == ["×", "/√2 ", "soft", "×", "=", ""]
