"""pictures/inspection_charts.py: what the pictures must hold."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from pictures.inspection_charts import accuracy_panels, head_distances, masks_over_images

pytestmark = pytest.mark.filterwarnings(
    "error::UserWarning", "error::RuntimeWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def line(ax, label):
    return next(found for found in ax.get_lines() if found.get_label() == label)


def test_every_head_has_its_mark_at_its_layer_and_height():
    distances = torch.tensor([[1.0, 2, 3], [4, 5, 6]])  # two layers, three heads
    figure = head_distances({"ours": distances, "theirs": distances[:1]}, uniform=2.5)
    figure.canvas.draw()
    (ax,) = figure.axes
    marks = line(ax, "ours")
    assert marks.get_ydata().tolist() == [1, 2, 3, 4, 5, 6]
    assert np.round(marks.get_xdata()).tolist() == [1, 1, 1, 2, 2, 2]
    assert len(line(ax, "theirs").get_ydata()) == 3
    assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 6.5  # no mark is cut
    assert set(marks.get_xdata()).isdisjoint(line(ax, "theirs").get_xdata())  # side by side
    assert list(line(ax, "looks at all alike").get_ydata()) == [2.5, 2.5]


def test_models_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="0 models given"):
        head_distances({})
    with pytest.raises(ValueError, match="5 models given"):
        head_distances({str(i): [[1.0]] for i in range(5)})


def test_masks_lie_over_their_images_each_on_its_own_scale():
    images = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    masks = {"plain": torch.rand(2, 2, 2), "signed": torch.tensor([[[-1.0, 3]], [[2, 0]]])}
    figure = masks_over_images(images, masks, ["a", "b"], correct=[True, False], title="all")
    figure.canvas.draw()
    axes = np.array(figure.axes).reshape(3, 2)
    for i in range(2):
        assert np.array_equal(axes[0, i].get_images()[0].get_array(), images[i, 0])
        for row, name in ((1, "plain"), (2, "signed")):
            under, over = axes[row, i].get_images()
            assert np.array_equal(under.get_array(), images[i, 0])
            assert np.allclose(over.get_array(), masks[name][i])
            assert under.get_extent() == over.get_extent()
    assert axes[1, 0].get_images()[1].get_clim() == pytest.approx(
        (masks["plain"][0].min().item(), masks["plain"][0].max().item())
    )
    assert [axes[2, i].get_images()[1].get_clim() for i in range(2)] == [(-3, 3), (-2, 2)]
    assert [ax.get_title() for ax in axes[0]] == ["✓ a", "✗ b"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["image", "plain", "signed"]


def test_a_constant_mask_is_drawn():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    masks_over_images(images, {"zero": torch.zeros(1, 2, 2)}, ["a"]).canvas.draw()


def test_numbers_of_images_masks_and_titles_must_agree():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for masks, titles in ((torch.rand(1, 2, 2), ["a", "b"]), (torch.rand(2, 2, 2), ["a"])):
        with pytest.raises(ValueError, match="2 images"):
            masks_over_images(images, {"m": masks}, titles)
    with pytest.raises(ValueError, match="0 images"):
        masks_over_images(images[:0], {}, [])


def test_panels_draw_the_mean_of_the_runs_and_every_run():
    runs = torch.tensor([[1.0, 0.6], [0.8, 0.2]])  # two runs, two strengths
    panels = {"noise": ([0, 0.5], {"ViT": runs, "CNN": runs[0]}), "shift": ([0, 3], {"ViT": runs})}
    figure = accuracy_panels(panels, chance=0.1, title="all")
    figure.canvas.draw()
    noise, shift = figure.axes
    assert np.allclose(line(noise, "ViT").get_ydata(), [0.9, 0.4])
    assert np.allclose(line(noise, "CNN").get_ydata(), [1.0, 0.6])
    drawn = [found.get_ydata() for found in noise.get_lines()]
    assert all(any(np.allclose(run, y) for y in drawn) for run in runs)
    assert any(np.allclose(y, 0.1) for y in drawn)  # chance
    assert [text.get_text() for text in shift.get_xticklabels()] == ["0", "3"]
    assert (noise.get_xlabel(), shift.get_xlabel()) == ("noise", "shift")


def test_panels_need_one():
    with pytest.raises(ValueError, match="nothing to draw"):
        accuracy_panels({})
