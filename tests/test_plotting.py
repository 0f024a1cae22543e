"""helpers/plotting.py and pictures/animation.py: what the pictures must hold."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from helpers import plotting
from helpers.inspection import attention_maps
from helpers.model import VisionTransformer
from helpers.plotting import COLORS
from pictures import animation, figure_1
from pictures.figure_1 import PARTS

# Glyphs that are missing, layouts that fail: but no matter what a library deprecates in another.
pytestmark = pytest.mark.filterwarnings(
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


def test_the_colours_are_those_of_the_series():
    for name, color in {"patches": "#CC79A7", "positions": "#7E57C2", "class token": "#E69F00",
                        "queries": "#0072B2", "keys": "#D55E00", "values": "#009E73",
                        "residual": "#8A8A8A"}.items():  # fmt: skip
        assert COLORS[name] == color


def test_figure_1_has_nine_patches_ten_positions_and_the_equations():
    figure = figure_1.figure_1()
    assert len([p for p in shown(figure) if p.get_gid() == "patches"]) == 2 * 9
    assert len(artists(figure, FancyBboxPatch, "positions")) == 10
    assert len(artists(figure, FancyBboxPatch, "embedding")) == 9 + 1  # and E itself
    assert len(artists(figure, FancyBboxPatch, "class token")) == 1
    assert len(artists(figure, FancyBboxPatch, "norm")) == 2
    labels = [t.get_text() for t in artists(figure, plt.Text)]
    for number in (1, 2, 3, 4):
        assert labels.count(f"({number})") == 2  # beside the part, and before the equation
        assert figure_1.EQUATIONS[number] in labels


def test_figure_1_shows_the_photograph_in_reading_order():
    photo = plotting.pixels(plotting.sample_photo())
    row = [p for p in shown(figure_1.figure_1()) if p.get_extent()[1] - p.get_extent()[0] > 3.9]
    row = [p.get_array() for p in sorted(row, key=lambda p: p.get_extent()[0])]
    rows = [np.concatenate(row[i : i + 3], axis=1) for i in (0, 3, 6)]
    assert np.array_equal(np.concatenate(rows), photo)


@pytest.mark.parametrize("lit", [None, *PARTS])
def test_figure_1_shows_the_lit_part_in_colour_and_the_rest_pale(lit):
    figure = figure_1.figure_1(lit)
    inside = {"encoder": {"attention", "mlp", "norm", "residual"}}.get(lit, set())
    boxed = {"embedding", "class token", "positions", "attention", "mlp", "norm", "encoder", "head"}
    for part in boxed:
        fills = [box.get_facecolor() for box in artists(figure, FancyBboxPatch, part)]
        in_colour = [same_color(fill, COLORS[part]) for fill in fills]
        if lit in (None, part) or part in inside:
            # the frame around the block is a lighter grey than the bar, all else has its colour
            assert all(in_colour) or (part == "encoder" and any(in_colour))
        else:
            assert not any(in_colour) and all(min(fill[:3]) > 0.79 for fill in fills)
    arrows = [a.get_edgecolor() for a in artists(figure, FancyArrowPatch, "attention")]
    for name in ("queries", "keys", "values"):
        full = any(same_color(color, COLORS[name]) for color in arrows)
        assert full == (lit in (None, "attention", "encoder"))
    alphas = {p.get_alpha() for p in shown(figure)}
    assert alphas == ({1} if lit in (None, "patches") else {0.25})


def test_figure_1_lights_the_equations_of_the_part():
    expected = {"patches": {1}, "positions": {1}, "class token": {1, 4}, "attention": {2},
                "mlp": {3}, "norm": {2, 3}, "residual": {2, 3}, "head": {4},
                1: {1}, 2: {2}, 3: {3}, 4: {4}}  # fmt: skip
    for lit, numbers in expected.items():
        figure = figure_1.figure_1(lit)
        tags = {n: artists(figure, plt.Text, f"eq. {n}") for n in (1, 2, 3, 4)}
        full = {n for n, tag in tags.items() if same_color(tag[0].get_color(), COLORS["ink"])}
        assert full == numbers, lit


def test_figure_1_lights_the_parts_of_an_equation():
    figure = figure_1.figure_1(3)
    for part, color in (("mlp", COLORS["mlp"]), ("attention", None), ("embedding", None)):
        fills = [box.get_facecolor() for box in artists(figure, FancyBboxPatch, part)]
        assert fills
        assert all(same_color(f, color) if color else min(f[:3]) > 0.79 for f in fills), part


def test_figure_1_has_no_text_outside_or_over_another():
    figure = figure_1.figure_1()
    assert_nothing_outside(figure)
    texts = [t for t in figure.axes[0].texts if t.get_text()]
    boxes = [t.get_window_extent() for t in texts]
    for i in range(len(boxes)):
        for j in range(i):
            assert not overlap(boxes[i], boxes[j]), (texts[i].get_text(), texts[j].get_text())


def test_figure_1_names_the_choices():
    with pytest.raises(ValueError, match="'decoder'.*patches.*class token.*head"):
        figure_1.figure_1("decoder")


def test_show_images_draws_all_and_marks_the_wrong_ones():
    images = torch.stack([image() + i for i in range(5)])
    figure = plotting.show_images(images, list("abcde"), cols=3, correct=[True, False] * 2 + [True])
    drawn = shown(figure)
    assert len(drawn) == 5 and len(figure.axes) == 6
    for i, picture in enumerate(drawn):
        assert np.array_equal(picture.get_array(), images[i, 0])
        assert picture.get_clim() == (0, 255)  # black stays black
    labels = [ax.xaxis.label for ax in figure.axes[:5]]
    assert [label.get_text() for label in labels] == ["✓ a", "✗ b", "✓ c", "✗ d", "✓ e"]
    wrong = [same_color(label.get_color(), COLORS["wrong"]) for label in labels]
    assert wrong == [False, True, False, True, False]
    assert_nothing_outside(figure)


def test_show_images_in_rgb():
    figure = plotting.show_images(image(3)[None].numpy())
    assert np.array_equal(shown(figure)[0].get_array(), image(3).permute(1, 2, 0))


def test_show_images_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 titles for 1 images"):
        plotting.show_images(image()[None], ["a", "b"])
    with pytest.raises(ValueError, match="no images"):
        plotting.show_images([])
    with pytest.raises(ValueError, match="uint8"):
        plotting.show_images(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="C = 1 or 3"):
        plotting.show_images(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_patch_grid_numbers_the_patches_row_by_row(channels):
    picture = image(channels)
    figure = plotting.patch_grid(picture, 2)
    patches = [p for p in shown(figure) if p.get_gid() == "patch"]
    assert len(patches) == 6
    assert np.array_equal(patches[4].get_array(), plotting.pixels(picture[:, 2:4, 2:4]))
    numbers = artists(figure, plt.Text, "number")
    assert [t.get_text() for t in numbers] == ["1", "2", "3", "4", "5", "6"]
    for number, patch in zip(numbers, patches, strict=True):
        left, right, bottom, top = patch.get_extent()
        assert left < number.get_position()[0] < right
        assert bottom < number.get_position()[1] < bottom + 0.3  # below it: y runs down
    lines = [c for c in figure.axes[0].collections if c.get_gid() == "grid"]
    assert sorted(len(c.get_segments()) for c in lines) == [3, 4]
    assert all(same_color(c.get_color(), COLORS["patches"]) for c in lines)
    assert_nothing_outside(figure)


def test_patch_grid_refuses_a_size_that_does_not_divide():
    with pytest.raises(ValueError, match="4 x 6 .* 4 x 4"):
        plotting.patch_grid(image(), 4)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg", "grace_hopper.jpg"])
def test_sample_photos_have_the_size_asked_for(name):
    photo = plotting.sample_photo(name, (32, 48))
    assert photo.shape == (3, 32, 48) and photo.dtype == np.uint8 and photo.std() > 20
    assert plotting.sample_photo(name, 24).shape == (3, 24, 24)


def test_numbers_writes_each_number_into_its_cell():
    figure, ax = plt.subplots()
    charts.numbers(ax, torch.tensor([[1.0, -2.5], [0.0, 4.0]]), "m", rows="ab", cols=["c", "d"])
    written = {tuple(map(round, t.get_position())): t.get_text() for t in ax.texts}
    assert written == {(0, 0): "1.00", (1, 0): "-2.50", (0, 1): "0.00", (1, 1): "4.00"}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["c", "d"]
    assert ax.get_title() == "m"


def test_heatmaps_share_one_scale_and_one_bar():
    arrays = [torch.full((2, 2), value) for value in (0.0, 1.0, 3.0)]
    figure = charts.heatmaps(arrays, list("abc"), cols=2, label="cosine")
    drawn = shown(figure)
    assert [p.get_clim() for p in drawn[:3]] == [(0, 3)] * 3
    assert [ax.get_title() for ax in figure.axes[:3]] == ["a", "b", "c"]
    assert figure.axes[-1].get_ylabel() == "cosine"
    assert_nothing_outside(figure)
    for arrays, titles in (([], None), ([torch.eye(2)], ["a", "b"])):
        with pytest.raises(ValueError, match="give one for each"):
            charts.heatmaps(arrays, titles)


def test_accuracy_bars_end_at_the_mean_and_show_every_seed():
    figure = charts.accuracy_bars({"with": [0.9, 1.0], "without": [0.2]}, chance=0.25)
    (ax,) = figure.axes
    assert [round(bar.get_width(), 3) for bar in ax.patches] == [0.95, 0.2]
    assert [list(line.get_xdata()) for line in ax.get_lines()[:2]] == [[0.9, 1.0], [0.2]]
    assert {"95%", "20%", "chance 25%"} == {t.get_text() for t in ax.texts}
    assert_nothing_outside(figure)
    for nothing in ({}, {"with": []}):
        with pytest.raises(ValueError, match="one accuracy or more"):
            charts.accuracy_bars(nothing)


def test_curves_are_named_and_differ_in_more_than_colour():
    lines = {"a": [3, 2, 1], "b": ([0, 10], [1, 100])}
    figure = charts.curves(lines, "step", "loss", log="y")
    (ax,) = figure.axes
    first, second = ax.get_lines()
    assert list(first.get_xdata()) == [1, 2, 3] and list(second.get_ydata()) == [1, 100]
    assert first.get_linestyle() != second.get_linestyle()
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert_nothing_outside(figure)
    with pytest.raises(ValueError, match="no lines"):
        charts.curves({}, "x", "y")


def test_looks_frame_the_patch_that_looks():
    maps = torch.rand(2, 6)
    figure = charts.looks(image(3), maps, (2, 3), query=4, titles=["head 1", "head 2"])
    for ax, weights in zip(figure.axes[:2], maps, strict=True):
        over, photo = ax.get_images()
        assert np.allclose(over.get_array(), weights.view(2, 3)) and over.get_alpha() < 1
        assert np.array_equal(photo.get_array(), plotting.pixels(image(3)))
        assert photo.get_zorder() < over.get_zorder() and photo.get_extent() == over.get_extent()
        (frame,) = (p for p in ax.patches if p.get_gid() == "query")
        assert frame.get_xy() == (0.5, 0.5)  # column 1, row 1
    moving = charts.looks(image(3), maps, (2, 3), query=[0, 5])
    frames = [ax.patches[-1].get_xy() for ax in moving.axes[:2]]
    assert frames == [(-0.5, -0.5), (1.5, 0.5)]
    with pytest.raises(ValueError, match="2 x 2 = 4 weights"):
        charts.looks(image(), maps, (2, 2))
    with pytest.raises(ValueError, match="weights needed"):
        charts.looks(image(), [], (2, 3))


def test_grid_of_grids_has_every_row_as_a_small_picture_in_its_place():
    similarity = torch.linspace(-1, 1, 36).view(6, 6)
    figure = charts.grid_of_grids(similarity, (2, 3), "positions")
    (picture,) = shown(figure)
    whole = picture.get_array().filled(np.nan)
    assert picture.get_clim() == (-1, 1) and figure.axes[0].get_title() == "positions"
    for row in range(2):
        for col in range(3):
            small = whole[3 * row : 3 * row + 2, 4 * col : 4 * col + 3]
            assert np.allclose(small, similarity[3 * row + col].view(2, 3))
    assert np.isnan(whole[2]).all() and np.isnan(whole[:, 3]).all()  # the gaps between
    assert figure.axes[1].get_ylabel() == "cosine similarity"
    assert_nothing_outside(figure)
    with pytest.raises(ValueError, match=r"\(6, 6\) given, for a grid of 2 x 2 .*\(4, 4\)"):
        charts.grid_of_grids(similarity, (2, 2))


def test_share_bars_are_the_shares():
    amounts = {"one": {"a": 1, "b": 3}, "two": {"a": 50, "b": 50}}
    figure = charts.share_bars(amounts, ["#ffffff", "#000000"], "shares")
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.75, 0.5, 0.5]
    assert [t.get_text() for t in ax.texts] == ["25%", "75%", "50%", "50%"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one", "two"]
    assert_nothing_outside(figure)


def history(*rows):
    keys = "epoch train_loss train_accuracy validation_loss validation_accuracy".split()
    epochs = [SimpleNamespace(**dict(zip(keys, row, strict=True))) for row in rows]
    return SimpleNamespace(epochs=epochs)


def test_training_curves_end_in_their_last_values():
    rows = (1, 2.3, 0.1, 2.2, 0.2), (2, 1.0, 0.5, 1.1, 0.6), (3, 0.512, 0.987, 0.513, 0.986)
    figure = plotting.training_curves(history(*rows))
    loss, accuracy = figure.axes
    curves = {line.get_label(): list(line.get_ydata()) for line in loss.get_lines()}
    assert curves == {"train": [2.3, 1.0, 0.512], "validation": [2.2, 1.1, 0.513]}
    for ax, last in ((loss, {"0.512", "0.513"}), (accuracy, {"98.7%", "98.6%"})):
        assert {t.get_text() for t in ax.texts} == last
        styles = {line.get_label(): line.get_linestyle() for line in ax.get_lines()}
        assert styles["train"] != styles["validation"]  # not by colour alone
        figure.canvas.draw()
        assert not overlap(*(t.get_window_extent() for t in ax.texts))
        assert all(ax.bbox.y0 < t.get_window_extent().y0 for t in ax.texts)
    assert_nothing_outside(figure)
    longer = plotting.training_curves(history(*[(epoch, 1, 0, 1, 0) for epoch in range(1, 24)]))
    assert list(longer.axes[0].get_xticks()) == [5, 10, 15, 20]  # none beyond the last epoch


def test_training_curves_after_one_epoch_and_without_validation():
    figure = plotting.training_curves(history((1, 2.3, 0.1, None, None)))
    for ax in figure.axes:
        assert [line.get_label() for line in ax.get_lines()] == ["train"]
        assert list(ax.get_xticks()) == [1]
    with pytest.raises(ValueError, match="no epoch"):
        plotting.training_curves(history())


def test_attention_lies_on_the_image_in_the_grid():
    weights = torch.tensor([0.1, 0.3, 0.05, 0.25, 0.2, 0.1])
    figure = plotting.attention_on_image(image(), weights, (2, 3))
    over = figure.axes[1].get_images()
    assert np.array_equal(over[0].get_array(), image()[0])
    assert np.array_equal(over[1].get_array(), weights.view(2, 3))
    assert over[1].get_extent() == over[0].get_extent() and over[1].get_alpha() < 1
    assert "attention weight" in figure.axes[2].get_ylabel()
    with pytest.raises(ValueError, match="2 x 2 = 4 weights"):
        plotting.attention_on_image(image(), weights, (2, 2))


@pytest.fixture
def model():
    """4 x 6 RGB pixels in six patches; weights large enough that the numbers differ."""
    torch.manual_seed(0)
    model = VisionTransformer((4, 6), 2, 3, 3, embed_dim=16, depth=2, num_heads=2, drop_rate=0.5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


ARGUMENTS = {"classes": ["cat", "dog", "owl"], "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@torch.no_grad()
def test_the_film_shows_the_models_own_numbers(model):
    found = animation.follow(model, image(3), ARGUMENTS["mean"], ARGUMENTS["std"])
    assert model.training  # left as it was, though the film is made in eval mode
    model.eval()
    x = image(3)[None] / 255
    mean, std = (torch.tensor(ARGUMENTS[k])[None, :, None, None] for k in ("mean", "std"))
    x = (x - mean) / std
    np.testing.assert_allclose(found.probabilities, model(x)[0].softmax(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.y[0], model.forward_features(x)[0, 0], rtol=1e-4, atol=1e-6)
    weight, bias = model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias
    flat = (torch.tensor(found.flat).view(6, 3, 4) / 255 - mean[0, :, 0]) / std[0, :, 0]
    embedded = flat.flatten(1) @ weight.T + bias
    np.testing.assert_allclose(found.embedded, embedded, rtol=1e-4, atol=1e-5)
    z0 = np.concatenate([found.class_token, found.embedded]) + found.positions
    np.testing.assert_allclose(found.tokens[0], z0, rtol=1e-5, atol=1e-6)
    assert len(found.tokens) == 3
    for weights, expected in zip(found.attention, attention_maps(model, x), strict=True):
        np.testing.assert_allclose(weights, expected[0, :, 0].mean(0))


@pytest.fixture
def short_film(monkeypatch):
    """One frame for each stretch of the film."""
    whole = animation.Film.play

    def play(self, *header_and_draw):
        whole(self, *header_and_draw[:5], 1, 100)

    monkeypatch.setattr(animation.Film, "play", play)


def test_the_film_is_small_moves_and_never_ends(model, tmp_path):
    path = animation.forward_pass_animation(model, image(3), tmp_path / "film.gif", **ARGUMENTS)
    assert path == tmp_path / "film.gif" and path.stat().st_size < 1_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]
    with Image.open(path) as film:
        frames, duration = [], 0
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB")).astype(np.int16)[::2, ::2])
            duration += film.info["duration"]
        assert film.size == (800, 420) and film.info["loop"] == 0
    assert len(frames) > 50 and 8_000 < duration < 13_000
    assert all((a != b).any() for a, b in zip(frames, frames[1:], strict=False))
    assert all((frame[0, 0] == 255).all() for frame in frames)  # a white page

    def near(frame, color, slack=12):
        color = np.array(Image.new("RGB", (1, 1), color))[0, 0].astype(np.int16)
        return (abs(frame - color).max(-1) <= slack).sum()

    assert not any(near(frames[0], COLORS[k]) for k in ("class token", "positions"))
    for color in ("patches", "class token", "positions", "residual", "head"):
        assert max(near(frame, COLORS[color]) for frame in frames) > 100, color


def test_the_same_film_has_the_same_bytes_and_another_image_another(model, tmp_path, short_film):
    def film(name, picture):
        return animation.forward_pass_animation(model, picture, tmp_path / name, **ARGUMENTS)

    first = film("a.gif", image(3)).read_bytes()
    assert film("b.gif", image(3)).read_bytes() == first
    assert film("c.gif", image(3).flip(1)).read_bytes() != first


def test_a_film_that_fails_leaves_the_old_one(model, tmp_path, short_film, monkeypatch):
    path = tmp_path / "film.gif"
    path.write_bytes(b"the old one")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(animation.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        animation.forward_pass_animation(model, image(3), path, **ARGUMENTS)
    assert path.read_bytes() == b"the old one"
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]


def test_the_film_refuses_what_it_cannot_draw(model, tmp_path):
    path = tmp_path / "film.gif"
    with pytest.raises(ValueError, match="2 class names given, the model's head needs 3"):
        animation.forward_pass_animation(model, image(3), path, **ARGUMENTS | {"classes": "ab"})
    with pytest.raises(ValueError, match="uint8"):
        animation.forward_pass_animation(model, image(3) / 255, path, **ARGUMENTS)
    pooled = VisionTransformer((4, 6), 2, 3, 3, 16, 1, 2, global_pool="avg")
    with pytest.raises(ValueError, match="class token"):
        animation.forward_pass_animation(pooled, image(3), path, **ARGUMENTS)
    many = VisionTransformer(14, 2, 3, 3, 16, 1, 2)
    with pytest.raises(ValueError, match="49 patches"):
        animation.forward_pass_animation(many, image(3, 14, 14), path, **ARGUMENTS)
    assert not path.exists()
