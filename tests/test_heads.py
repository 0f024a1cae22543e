"""pictures/heads.py: the diagram of the heads, a head's weights on an image, one mixture."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.patches import Polygon, Rectangle, StepPatch

from helpers.model import attention
from helpers.plotting import COLORS
from lab.tasks import light_or_dark, make_task
from pictures import heads
from tests import test_plotting
from tests.test_plotting import artists, assert_nothing_outside, image, shown, words

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures


@pytest.mark.parametrize("h, lit", [(6, 3), (4, 1)])
def test_the_diagram_has_a_column_for_each_head_and_all_shapes(h, lit):
    figure = heads.split_attend_join_project(2, 64, 96, h, lit)
    said = words(figure.axes[0].texts)
    steps = [word for word in said if word in ("split", "attend", "join", "project")]
    assert steps == ["split", "attend", "join", "project"]
    for part in ("SA}_", "64 × 64"):
        assert sum(part in word for word in said) == h
    assert f"(2, {h}, 64, {96 // h})" in said and said.count("(2, 64, 96)") == 3
    way_in, way_out = artists(figure, Polygon)  # from all columns to the head's, and back to all
    for fan in (way_in, way_out):
        ends = fan.get_xy()[:4, 0]
        assert np.allclose(ends, [(lit - 1) * 100 / h, lit * 100 / h, 100, 0])
    assert_nothing_outside(figure)


def test_weights_stand_in_their_patches_and_frames_around_the_right_ones():
    weights = torch.tensor([0.1, 0.2, 0.05, 0.05, 0.05, 0.55])
    figure = heads.head_on_image(image(), weights, (2, 3), 5, 3, "a head", query=1)
    picture, found = shown(figure)[:2]
    assert np.array_equal(picture.get_array(), image()[0])
    assert np.allclose(found.get_array(), weights.view(2, 3)) and found.get_clim() == (0, 1)
    names = ("", "asks\n", "", "blue\n", "", "red\n")
    for text, name, weight in zip(figure.axes[1].texts, names, weights, strict=True):
        assert text.get_text() == f"{name}{weight:.2f}"
    for ax in figure.axes[:2]:
        frames = [p for p in ax.patches if isinstance(p, Rectangle)]
        for p, color in zip(frames, (COLORS["class token"], "tab:blue", "tab:red"), strict=True):
            assert same_color(p.get_edgecolor(), color)
        assert [np.floor(p.get_xy()).tolist() for p in frames] == [[1, 0], [0, 1], [2, 1]]
    assert_nothing_outside(figure)


@pytest.mark.parametrize("share", [0.5, 0.63, 1.0])
def test_on_a_line_the_answer_is_the_same(share):
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    red, blue = (light_or_dark(bits[:, i, None].expand(4, 500), generator) for i in (0, 1))
    names = ("00", "01", "10", "11")
    figure = heads.one_mixture(share, red, blue, names, 0.5)
    left, right = figure.axes
    assert words(left.texts) == list(names)
    for text, square in zip(left.texts, left.patches, strict=True):
        assert square.get_bbox().contains(*text.get_position())
    for line in left.lines:
        x, y = (np.asarray(data, dtype=float) for data in line.get_data())
        assert np.ptp(share * x + (1 - share) * y) < 1e-9
    rows = [row.get_data() for row in artists(figure, StepPatch)]
    counts = [
        np.histogram(share * x + (1 - share) * y, rows[0][1])[0]
        for x, y in zip(red, blue, strict=True)
    ]
    tallest = max(count.max() for count in counts)  # one scale for all rows
    for i, ((height, _, bottom), count) in enumerate(zip(rows, counts, strict=True)):
        assert bottom == 3 - i and count.sum() == 500
        assert np.allclose((height - bottom) / 0.85, count / tallest)
    assert_nothing_outside(figure)


def test_the_map_is_patch_0_and_both_are_numbered_from_0():
    picture = make_task("two_addresses", train=8, test=4).train.images[0]
    figure = heads.map_and_bits(picture)
    whole, enlarged = shown(figure)
    assert np.array_equal(whole.get_array(), picture.permute(1, 2, 0))
    assert np.array_equal(enlarged.get_array(), picture[:, :3, :3].permute(1, 2, 0))
    for ax in figure.axes:
        assert words(ax.texts) == [str(i) for i in range(9)]
        assert [int(y) * 3 + int(x) for x, y in (t.get_position() for t in ax.texts)] == [*range(9)]
    assert_nothing_outside(figure)


def test_steps_of_each_head_are_those_of_attention():
    q, k, v = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    figure = heads.heads_in_numbers(q, k, v, heads=2)
    panels = np.asarray(figure.axes).reshape(2, 6)
    for i, row in enumerate(panels):
        q_i, k_i, v_i = (t.chunk(2, dim=1)[i] for t in (q, k, v))
        weights = (q_i @ k_i.T / 2**0.5).softmax(dim=1)
        wanted = (q_i, k_i, q_i @ k_i.T, weights, v_i, attention(q_i, k_i, v_i))
        for ax, values in zip(row, wanted, strict=True):
            assert np.allclose(ax.images[0].get_array(), values, atol=1e-6)
        assert row[0].get_title() == f"head {i + 1}: queries"
    assert_nothing_outside(figure)


def test_a_token_keeps_its_colour_wherever_it_ends():
    q = 10 * torch.arange(3)[:, None] + torch.arange(4)
    cuts = {"right": q.view(3, 2, 2).transpose(0, 1), "wrong": q.view(2, 3, 2)}
    figure = heads.tokens_in_heads(q, cuts)
    panels = [q, *cuts["right"], q, *cuts["wrong"]]
    colors = [p.get_facecolor() for p in figure.axes[0].patches[::4]]  # of tokens 0, 1, 2
    assert len(set(colors)) == 3
    for ax, labels in zip(figure.axes, panels, strict=True):
        assert words(ax.texts) == [f"{n:02}" for n in labels.flatten().tolist()]
        for patch, label in zip(ax.patches, labels.flatten().tolist(), strict=True):
            assert same_color(patch.get_facecolor(), colors[label // 10])
    assert_nothing_outside(figure)


def test_rows_of_qkv_are_drawn_in_their_order():
    kind = torch.tensor([0, 0, 1, 1, 2, 2])
    figure = heads.orders_of_rows({"ours": kind, "by head": kind.view(3, 2).T.reshape(-1)})
    assert [words(ax.texts) for ax in figure.axes] == [[*"qkv"], [*"qkvqkv"]]
    assert [p.get_width() for p in figure.axes[0].patches] == [2, 2, 2]
    assert_nothing_outside(figure)


def test_shares_and_curves_are_those_given():
    table = torch.eye(4)
    figure = heads.confusions({"one": table, "two": table.flip(0)}, ("00", "01", "10", "11"))
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    assert np.array_equal(figure.axes[1].images[0].get_array(), table.flip(0))
    assert_nothing_outside(figure)
    figure = heads.right_by_share([0.5, 1.0], {"spread 0.4": [0.7, 0.5], "spread 0": [0.75, 0.5]})
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0.7, 0.5], [0.75, 0.5]]
