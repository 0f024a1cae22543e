"""pictures/photo_charts.py: what is drawn is what was given."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import same_color

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from helpers.plotting import COLORS, pixels
from pictures import photo_charts as charts
from tests import test_plotting
from tests.test_plotting import assert_nothing_outside, image, overlap, shown, words

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures


def pictures(*sides):
    """Pictures (side, side, 3) of numbers from 0 to 1, all different."""
    random = np.random.default_rng(0)
    return [random.random((side, side, 3)) for side in sides]


def titles(figure):
    return words([ax.title for ax in figure.axes if ax.get_title()])


@pytest.mark.parametrize("count", [1, 3])
def test_each_photograph_stands_above_its_picture(count):
    names, given = ["a", "b", "c"][:count], pictures(4, 5, 6)[:count]
    photos = {name: image(3) + i for i, name in enumerate(names)}
    figure = charts.beside(photos.values(), given, names, "above", "below")
    drawn = shown(figure)
    for photo, upper, picture, lower in zip(
        photos.values(), drawn[:count], given, drawn[count:], strict=True
    ):
        assert np.array_equal(upper.get_array(), pixels(photo))
        assert np.array_equal(lower.get_array(), picture)
    assert_nothing_outside(figure)
    boxes = [ax.get_position() for ax in figure.axes]
    for upper, lower in zip(boxes[:count], boxes[count:], strict=True):
        assert upper.y0 > lower.y1 and upper.x0 < (lower.x0 + lower.x1) / 2 < upper.x1
    assert titles(figure) == names
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["above", "below"]


def test_pictures_in_a_row_under_their_titles():
    given = pictures(2, 16, 37)
    given[1] = given[1][..., 0]  # a map
    figure = charts.in_a_row(given, ["2 x 2", "16 x 16", "37 x 37: a longer title"])
    for drawn, picture in zip(shown(figure), given, strict=True):
        assert np.array_equal(drawn.get_array(), picture)
    assert titles(figure) == ["2 x 2", "16 x 16", "37 x 37: a longer title"]
    assert_nothing_outside(figure)
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert boxes[0].x1 < boxes[1].x0 and boxes[1].x1 < boxes[2].x0


def test_what_does_not_fit_is_named():
    photos, given = [image(3)] * 2, pictures(3, 3)
    for call, message in (
        (lambda: charts.beside(photos[:1], given, "ab"), "1 photographs for 2 pictures"),
        (lambda: charts.beside(photos, given, "abc"), "3 titles for 2 pictures"),
        (lambda: charts.in_a_row(given, "a"), "1 titles for 2 pictures"),
        (lambda: charts.in_a_row([], []), "one or more of .rows, cols, 3. or"),
        (lambda: charts.in_a_row([given[0][..., :2]], "a"), r"shapes \[\(3, 3, 2\)\] given"),
        (lambda: charts.in_a_row([given[0].reshape(-1)], "a"), r"shapes \[\(27,\)\] given"),
        (lambda: charts.likeness(np.ones(6), (0, 1)), r"shape \(6,\)"),
        (lambda: charts.likeness(np.ones((2, 3)), (2, 0)), r"the patch \(2, 0\)"),
        (lambda: charts.likeness(np.ones((2, 3)), (0, -1)), r"the patch \(0, -1\)"),
        (lambda: charts.by_labels({}, 0.1), "0 names with 0 numbers"),
        (lambda: charts.by_labels({"a": {}}, 0.1), "1 names with 0 numbers"),
        (lambda: charts.by_labels(dict.fromkeys("abcdef", {1: [0.5]}), 0.1), "6 names .* 1 to 5"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not plt.get_fignums()  # nothing half drawn is left


def test_likeness_frames_its_patch_and_draws_cosines_in_ten_colours():
    cosines = np.linspace(-1, 1, 12).reshape(3, 4)
    figure = charts.likeness(cosines, (2, 1))
    (drawn,) = shown(figure)[:1]
    assert np.array_equal(drawn.get_array(), cosines)
    assert drawn.get_clim() == (0.5, 1) and drawn.get_cmap().N == 10
    (frame,) = figure.axes[0].patches
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((0.5, 1.5), 1, 1)
    assert figure.axes[1].get_ylabel() == "cosine with the framed patch"
    assert_nothing_outside(figure)


def test_accuracies_by_labels_are_dots_and_their_means_lines():
    results = {
        "frozen": {5: [0.5, 0.6], 1: [0.2, 0.4], 100: [0.9, 0.95]},
        "fine-tuned": {1: [0.15, 0.25], 20: [0.5]},
        "from scratch": {1: [0.1, 0.11], 5: [0.2, 0.2]},
    }
    figure = charts.by_labels(results, chance=0.1)
    assert_nothing_outside(figure)
    ax = figure.axes[0]
    found = {line.get_label(): line for line in ax.lines}
    for name, by_count in results.items():
        means = [[count, np.mean(by_count[count])] for count in sorted(by_count)]
        assert np.allclose(found[name].get_xydata(), means)
    dots = [
        point
        for line in ax.lines
        if line.get_marker() == "o" and line.get_label() not in results
        for point in line.get_xydata().tolist()
    ]
    given = [[n, a] for by_count in results.values() for n, runs in by_count.items() for a in runs]
    assert sorted(dots) == sorted(given)
    looks = {(found[name].get_color(), found[name].get_linestyle()) for name in results}
    assert len(looks) == len({style for _, style in looks}) == 3  # not by colour alone
    assert words(ax.get_legend().get_texts()) == list(results)
    assert words(ax.get_xticklabels()) == ["1", "5", "20", "100"]  # of all lines together
    (chance,) = [line for line in ax.lines if same_color(line.get_color(), COLORS["wrong"])]
    assert list(chance.get_ydata()) == [0.1, 0.1] and words(ax.texts) == ["chance"]
    assert not overlap(ax.get_legend().get_window_extent(), ax.texts[0].get_window_extent())
    assert ax.get_ylim() == (0, 1)
