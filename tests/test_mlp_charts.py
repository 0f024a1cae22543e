"""Charts of 07: what they show is what the MLP computes."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from pictures.mlp_charts import (
    gate_chart,
    key_value_chart,
    ramps_chart,
    silenced_chart,
    unit_card,
)


def test_a_panel_for_each_title_of_the_gate():
    x = torch.linspace(-1, 1, 5)
    figure = gate_chart(x, {"gate": {"a": x, "b": -x}, "strength": {"c": x**2}})
    assert [ax.get_title() for ax in figure.axes] == ["gate", "strength"]
    assert figure.axes[0].get_lines()[1].get_ydata() == pytest.approx(-x.numpy())
    plt.close(figure)


def test_keys_and_values_add_up_to_the_mlp():
    token, W1, b1 = torch.randn(3), torch.randn(3, 4), torch.randn(4)
    W2, b2 = torch.randn(4, 3), torch.randn(3)
    figure = key_value_chart({"one": token}, W1, b1, W2, b2)
    shown = {ax.get_title(): torch.tensor(ax.images[0].get_array().data) for ax in figure.axes}
    out = F.gelu(token @ W1 + b1) @ W2 + b2
    torch.testing.assert_close(shown["out"][0].float(), out)
    torch.testing.assert_close(shown["$W_1$: keys, columns"].float(), W1)
    torch.testing.assert_close(shown["$W_2$: values, rows"].float(), W2)
    plt.close(figure)


def test_ramps_and_what_is_below_them_add_up():
    x, below, parts = torch.linspace(-3, 3, 5), torch.full((5,), 0.5), torch.randn(5, 3)
    figure = ramps_chart(x, torch.sin(x), below, parts, [-2.0, 0.0, 1.0], "three", 4)
    left, right = figure.axes
    assert len(left.get_lines()) == 3 + 1 + 3  # ramps, b2, hinges
    assert left.get_ylim() == (-4, 4)
    assert right.get_lines()[1].get_ydata() == pytest.approx((below + parts.sum(1)).numpy())
    plt.close(figure)


def test_a_value_speaks_up_and_down():
    images, says = torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.randn(10)
    figure = unit_card(5, images, [3, 3, 3, 3, 9, 1], says, 3.0, digit=3)
    bars = figure.axes[-1].patches
    assert [bar.get_height() for bar in bars] == pytest.approx(says.tolist())
    for bar, says_it in zip(bars, says, strict=True):
        red, _, blue, _ = bar.get_facecolor()
        assert (red > blue) == (says_it > 0)
    assert "4 of 6" in figure.subfigs[0].get_suptitle()
    plt.close(figure)


def test_silenced_units_of_a_digit_are_a_row():
    change = torch.linspace(-0.3, 0.1, 100).view(10, 10)
    figure = silenced_chart(change, [12.0] * 10, "who suffers")
    shown = torch.tensor(figure.axes[0].images[0].get_array().data)
    torch.testing.assert_close(shown.float(), 100 * change)
    assert figure.axes[0].images[0].get_clim() == pytest.approx((-30, 30))
    plt.close(figure)
