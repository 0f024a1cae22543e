"""Charts of 07: what they show is what the MLP computes."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from pictures.mlp_charts import key_value_chart, ramps_chart, unit_card


def test_keys_and_values_add_up_to_the_mlp():
    token, W1, b1 = torch.randn(3), torch.randn(3, 4), torch.randn(4)
    W2, b2 = torch.randn(4, 3), torch.randn(3)
    figure = key_value_chart(token, W1, b1, W2, b2)
    shown = {ax.get_title(): torch.tensor(ax.images[0].get_array().data) for ax in figure.axes}
    out = F.gelu(token @ W1 + b1) @ W2 + b2
    torch.testing.assert_close(shown["added up: MLP(x)"][0].float(), out)
    assert shown["keys (columns of $W_1$)"].shape == shown["weight times value"].shape == (4, 3)
    plt.close(figure)


def test_the_newest_ramp_is_thick_and_the_sum_is_the_sum():
    x, parts = torch.linspace(-3, 3, 5), torch.randn(5, 4)  # b2 and three units
    figure = ramps_chart(x, torch.sin(x), parts, [-2.0, 0.0, 1.0, 2.0], "three", top=2.0)
    left, right = figure.axes
    assert left.get_lines()[-1].get_ydata() == pytest.approx(parts[:, 3].numpy())
    assert right.get_lines()[0].get_xdata()[0] == 1.0  # the hinge of the third
    assert right.get_lines()[2].get_ydata() == pytest.approx(parts.sum(1).numpy())
    plt.close(figure)


def test_the_silenced_digit_stands_out():
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    before, after = [0.9] * 10, [0.8] * 10
    figure = unit_card(images, [3] * 6, torch.randn(10), 1.0, before, after, unit=5, digit=3)
    bars = figure.axes[-1].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.8] * 10 + [0.9] * 10)
    colors = {bar.get_facecolor() for bar in bars[:10]}
    assert len(colors) == 2 and bars[3].get_facecolor() != bars[2].get_facecolor()
    plt.close(figure)
