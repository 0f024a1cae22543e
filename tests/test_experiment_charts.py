"""pictures/experiment_charts.py: every seed is drawn, at its place, and bad input is named."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pictures.experiment_charts import by_size, parts_table, seed_dots, seed_lines, tick_step


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def dots(ax, marker):
    """The points (n, 2) of all lines with that marker."""
    return np.concatenate([line.get_xydata() for line in ax.lines if line.get_marker() == marker])


def test_seed_dots_has_every_seed_and_the_mean():
    rows = {"one": dict(test=[0.9, 0.92]), "two": dict(test=[0.5, 0.7, 0.6])}
    figure = seed_dots({"digits": rows, "other": rows}, against="two", title="a title")
    first, second = figure.axes
    assert sorted(dots(first, "o").tolist()) == [[0.5, 1], [0.6, 1], [0.7, 1], [0.9, 0], [0.92, 0]]
    assert [text.get_text() for text in first.texts] == ["91.0%", "60.0%"]
    dashed = [line for line in second.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1 and dashed[0].get_xdata()[0] == pytest.approx(0.6)
    assert [label.get_text() for label in first.get_yticklabels()] == ["one", "two"]
    assert first.get_xlabel() == "test accuracy, digits"


def test_seed_dots_needs_the_same_rows():
    with pytest.raises(ValueError, match="the same rows"):
        seed_dots({"digits": {"one": dict(test=[0.9])}, "other": {"two": dict(test=[0.9])}})
    with pytest.raises(ValueError, match="at least one panel"):
        seed_dots({})


def test_seed_lines_join_the_means():
    lines = {"a": {1: [0.2, 0.4], 3: [0.5, 0.7]}, "b": {1: [0.1], 3: [0.9]}}
    figure = seed_lines({"digits": lines, "other": lines}, "rate", title="a title")
    first, second = figure.axes
    np.testing.assert_allclose(dots(first, "o"), [[1, 0.2], [1, 0.4], [3, 0.5], [3, 0.7]])
    means = {line.get_label(): line.get_ydata() for line in second.lines if line.get_lw() == 1.8}
    np.testing.assert_allclose(means["a"], [0.3, 0.6])
    np.testing.assert_allclose(means["b"], [0.1, 0.9])
    assert [label.get_text() for label in first.get_xticklabels()] == ["1", "3"]
    assert second.get_xlabel() == "rate, other"
    with pytest.raises(ValueError, match="no panels"):
        seed_lines({}, "rate")


def test_by_size_has_products_left_and_parameters_right():
    points = {n: dict(test=[n / 10, n / 10 + 0.1], parameters=10 * n, multiply_adds=1000 * n**2)
              for n in (1, 2, 4)}  # fmt: skip
    figure = by_size({"digits": {"depth": points}})
    left, right = figure.axes
    np.testing.assert_allclose(dots(left, "o"), [[1000, 0.15], [4000, 0.25], [16000, 0.45]])
    np.testing.assert_allclose(dots(right, "o"), [[10, 0.15], [20, 0.25], [40, 0.45]])
    assert len(dots(left, ".")) == 6
    assert [text.get_text() for text in left.texts] == ["1", "4"]
    assert left.get_xlabel() == "multiply-adds, digits" and right.get_xscale() == "log"
    with pytest.raises(ValueError, match="no panels"):
        by_size({})


def test_ticks_stay_readable():
    assert tick_step(0.80, 0.84) == 0.01 and tick_step(0.9, 0.98) == 0.02
    assert tick_step(0.7, 1) == 0.05 and tick_step(0, 5) == 0.2


def test_parts_table_has_a_cell_for_each_pair_and_its_shade():
    rows = {"a": {"none": [1.0, 0.9], "x": [0.5, 0.5]}, "b": {"none": [0.25, 0.35], "x": None}}
    figure = parts_table(rows, {"a": 0.5, "b": 0.4}, title="a title")
    ax = figure.axes[0]
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts == {(0, 0): "95\n± 7.1", (1, 0): "50\n± 0.0", (0, 1): "30\n± 7.1", (1, 1): "·"}
    shades = ax.images[0].get_array().filled(-1)
    np.testing.assert_allclose(shades, [[0.9, 0], [0, -1]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="the same in all, needed"):
        parts_table({"a": {"x": [1.0, 1.0]}, "b": {}}, {"a": 0, "b": 0})
