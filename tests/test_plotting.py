"""helpers/plotting.py: the numbers given are the numbers drawn, and nothing is cut off."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import same_color

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from helpers import plotting
from helpers.plotting import COLORS

# Glyphs that are missing, layouts that fail: but no matter what a library deprecates in another.
pytestmark = STRICT = pytest.mark.filterwarnings(
    "error::UserWarning", "error::RuntimeWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def image(channels=1, height=4, width=6):
    """Every pixel another value, so that a wrong cut shows."""
    count = channels * height * width
    return torch.arange(count, dtype=torch.uint8).view(channels, height, width)


def artists(figure, kind, gid=None):
    return [a for a in figure.findobj(kind) if gid is None or a.get_gid() == gid]


def words(texts):
    return [text.get_text() for text in texts]


def shown(figure):
    return [picture for ax in figure.axes for picture in ax.get_images()]


def assert_nothing_outside(figure):
    """All that is visible lies inside the figure."""
    figure.canvas.draw()
    box = figure.get_tightbbox()  # in inches
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01


def overlap(a, b):
    return min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)


def test_the_seven_colours_mean_the_same_on_every_page():
    """Stored figures and the series' readers know them: no change without all pages made again."""
    assert dict(list(COLORS.items())[:7]) == {
        "patches": "#CC79A7",
        "positions": "#7E57C2",
        "class token": "#E69F00",
        "queries": "#0072B2",
        "keys": "#D55E00",
        "values": "#009E73",
        "residual": "#8A8A8A",
    }


def test_show_images_draws_all_and_marks_the_wrong_ones():
    images = torch.stack([image() + i for i in range(5)])
    figure = plotting.show_images(images, list("abcde"), cols=3, correct=[True, False] * 2 + [True])
    for picture, given in zip(shown(figure), images, strict=True):
        assert np.array_equal(picture.get_array(), given[0])
        assert picture.get_clim() == (0, 255)  # black stays black
    labels = [ax.xaxis.label for ax in figure.axes[:5]]
    assert words(labels) == ["✓ a", "✗ b", "✓ c", "✗ d", "✓ e"]
    wrong = [same_color(label.get_color(), COLORS["wrong"]) for label in labels]
    assert wrong == [False, True, False, True, False]
    assert_nothing_outside(figure)
    colours = plotting.show_images(image(3)[None].numpy())
    assert np.array_equal(shown(colours)[0].get_array(), image(3).permute(1, 2, 0))
    for wrong, message in ((images[:4], "5 titles for 4"), (images / 255, "uint8.* needed"),
                           (images.transpose(1, 3), "C = 1 or 3 needed")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            plotting.show_images(wrong, list("abcde"))


def test_patch_grid_numbers_the_patches_row_by_row():
    picture = image(3)
    figure = plotting.patch_grid(picture, 2)
    patches = [p for p in shown(figure) if p.get_gid() == "patch"]
    cut = [picture[:, y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2, 4)]
    for patch, expected in zip(patches, cut, strict=True):
        assert np.array_equal(patch.get_array(), plotting.pixels(expected))
    numbers = artists(figure, plt.Text, "number")
    assert words(numbers) == ["1", "2", "3", "4", "5", "6"]
    assert [np.floor(n.get_position()).tolist() for n in numbers[2:4]] == [[2, 0], [0, 1]]
    assert_nothing_outside(figure)
    with pytest.raises(ValueError, match="4 x 6 .* 4 x 4"):
        plotting.patch_grid(picture, 4)


def test_sample_photos_have_the_size_asked_for():
    for name in plotting.PHOTOS:
        photo = plotting.sample_photo(name, (32, 48))
        assert photo.shape == (3, 32, 48) and photo.dtype == np.uint8 and photo.std() > 20
    assert plotting.sample_photo(name, 24).shape == (3, 24, 24)
    with pytest.raises(ValueError, match="'x.png' is none of astronaut.png"):
        plotting.sample_photo("x.png")


def test_training_curves_end_in_their_last_values():
    def drawn(*rows):
        keys = "epoch train_loss train_accuracy validation_loss validation_accuracy".split()
        epochs = [SimpleNamespace(**dict(zip(keys, row, strict=True))) for row in rows]
        return plotting.training_curves(SimpleNamespace(epochs=epochs))

    figure = drawn((1, 2.3, 0.1, 2.2, 0.2), (2, 1, 0.5, 1.1, 0.6), (3, 0.512, 0.987, 0.513, 0.986))
    for ax, expected, ends in (
        (figure.axes[0], [[2.3, 1, 0.512], [2.2, 1.1, 0.513]], {"0.512", "0.513"}),
        (figure.axes[1], [[0.1, 0.5, 0.987], [0.2, 0.6, 0.986]], {"98.7%", "98.6%"}),
    ):
        train, validation = ax.get_lines()
        assert (train.get_label(), validation.get_label()) == ("train", "validation")
        assert [list(train.get_ydata()), list(validation.get_ydata())] == expected
        assert train.get_linestyle() != validation.get_linestyle()
        assert set(words(ax.texts)) == ends
        figure.canvas.draw()
        assert not overlap(*(t.get_window_extent() for t in ax.texts))  # 0.512 and 0.513
    assert_nothing_outside(figure)
    for ax in drawn((1, 2.3, 0.1, None, None)).axes:
        assert [line.get_label() for line in ax.get_lines()] == ["train"]
    with pytest.raises(ValueError, match="no epoch"):
        drawn()


@pytest.mark.parametrize("first, last", [(1, 1), (1, 2), (1, 3), (1, 7), (4, 9), (1, 30), (21, 80)])
def test_ticks_of_training_curves_are_whole_epochs(first, last):
    losses = dict(train_loss=1.0, validation_loss=1.0, train_accuracy=0.5, validation_accuracy=0.5)
    epochs = [SimpleNamespace(epoch=epoch, **losses) for epoch in range(first, last + 1)]
    figure = plotting.training_curves(SimpleNamespace(epochs=epochs))
    figure.canvas.draw()
    for ax in figure.axes:
        ticks, labels = ax.get_xticks(), words(ax.get_xticklabels())
        assert len(ticks) >= min(2, last + 1 - first) and len(set(ticks)) == len(ticks) < 12
        assert all(tick in range(first, last + 1) for tick in ticks)
        assert labels == [str(int(tick)) for tick in ticks]


def test_numbers_and_heatmaps_draw_what_they_are_given_on_one_scale():
    _, ax = plt.subplots()
    plotting.numbers(ax, torch.tensor([[1.0, -2.5], [0.0, 4.0]]), "m", rows="ab", cols=["c", "d"])
    written = {tuple(map(round, t.get_position())): t.get_text() for t in ax.texts}
    assert written == {(0, 0): "1.00", (1, 0): "-2.50", (0, 1): "0.00", (1, 1): "4.00"}
    assert words(ax.get_yticklabels()) == ["a", "b"] and words(ax.get_xticklabels()) == ["c", "d"]
    (picture,) = ax.get_images()
    assert picture.get_clim() == (-4, 4)  # so that -2.5 does not look like 2.5
    assert picture.to_rgba(0.0)[:3] == pytest.approx((1, 1, 1), abs=0.01)

    arrays = [torch.full((2, 2), value) for value in (0.0, 1.0, 3.0)]
    figure = plotting.heatmaps(arrays, list("abc"), cols=2, label="cosine")
    for picture, array in zip(shown(figure)[:3], arrays, strict=True):
        assert np.array_equal(picture.get_array(), array) and picture.get_clim() == (0, 3)
    assert_nothing_outside(figure)
    with pytest.raises(ValueError, match="give one for each"):
        plotting.heatmaps(arrays, ["a", "b"])


def test_accuracy_bars_end_at_the_mean_and_show_every_seed():
    figure = plotting.accuracy_bars({"with": [0.9, 1.0], "without": [0.2]}, chance=0.25)
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.95, 0.2])
    assert [list(line.get_xdata()) for line in ax.get_lines()[:2]] == [[0.9, 1.0], [0.2]]
    assert {"95%", "20%", "chance 25%"} == set(words(ax.texts))
    assert_nothing_outside(figure)
    with pytest.raises(ValueError, match="one accuracy or more"):
        plotting.accuracy_bars({"with": []})


def test_curves_are_named_and_differ_in_more_than_colour():
    figure = plotting.curves({"a": [3, 2, 1], "b": ([0, 10], [1, 100])}, "step", "loss", log="y")
    (ax,) = figure.axes
    first, second = ax.get_lines()
    assert first.get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert second.get_xydata().tolist() == [[0, 1], [10, 100]]
    assert first.get_linestyle() != second.get_linestyle()
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert words(ax.get_legend().get_texts()) == ["a", "b"]


def test_looks_lie_on_the_image_and_frame_the_patch_that_looks():
    maps = torch.rand(2, 6)
    figure = plotting.looks(image(3), maps, (2, 3), query=4, titles=["head 1", "head 2"])
    for ax, weights in zip(figure.axes[:2], maps, strict=True):
        over, photo = ax.get_images()
        assert np.allclose(over.get_array(), weights.view(2, 3)) and over.get_alpha() < 1
        assert np.array_equal(photo.get_array(), plotting.pixels(image(3)))
        assert photo.get_zorder() < over.get_zorder() and photo.get_extent() == over.get_extent()
        assert ax.patches[-1].get_xy() == (0.5, 0.5)  # column 1, row 1
    moving = plotting.looks(image(3), maps, (2, 3), query=[0, 5])
    assert [ax.patches[-1].get_xy() for ax in moving.axes[:2]] == [(-0.5, -0.5), (1.5, 0.5)]
    with pytest.raises(ValueError, match="2 x 2 = 4 weights"):
        plotting.looks(image(), maps, (2, 2))
