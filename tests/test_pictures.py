"""pictures/: figure 1, the film of a forward pass, and the charts that pages share."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import same_color, to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image, ImageSequence

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from helpers.inspection import attention_maps
from helpers.model import VisionTransformer
from helpers.plotting import COLORS, pixels, sample_photo
from lab import cost, speed
from pictures import animation, cost_charts, figure_1, inspection_charts, speed_charts
from pictures.experiment_charts import by_size, parts_table, seed_dots, seed_lines, tick_step
from tests import test_plotting
from tests.peers import randomize
from tests.test_plotting import artists, assert_nothing_outside, image, overlap, shown, words

pytestmark, close_figures = test_plotting.STRICT, test_plotting.close_figures


def line(ax, label):
    return next(found for found in ax.get_lines() if found.get_label() == label)


def dots(ax, marker):
    """The points [x, y] of all lines with that marker."""
    return np.concatenate([line.get_xydata() for line in ax.lines if line.get_marker() == marker])


def test_figure_1_has_nine_patches_ten_positions_and_the_equations():
    figure = figure_1.figure_1()
    for part, count in {
        "positions": 10,
        "embedding": 9 + 1,
        "class token": 1,
        "norm": 2,
        "last norm": 1,
    }.items():
        assert len(artists(figure, FancyBboxPatch, part)) == count
    texts = [t for t in figure.axes[0].texts if t.get_text()]
    for number, equation in figure_1.EQUATIONS.items():
        assert words(texts).count(f"({number})") == 2  # beside the part, and before the equation
        assert equation in words(texts)
    assert_nothing_outside(figure)
    for a, b in combinations(texts, 2):
        assert not overlap(a.get_window_extent(), b.get_window_extent()), words([a, b])
    # The photograph's patches, cut out of it and then in a row, in reading order.
    row = sorted(shown(figure)[1::2], key=lambda p: p.get_extent()[0])
    for cut in ([p.get_array() for p in drawn] for drawn in (shown(figure)[::2], row)):
        rows = [np.concatenate(cut[i : i + 3], axis=1) for i in (0, 3, 6)]
        assert np.array_equal(np.concatenate(rows), pixels(sample_photo()))


EQUATIONS_OF = {"patches": {1}, "class token": {1, 4}, "attention": {2}, "mlp": {3}, "head": {4},
                "encoder": {2, 3}, "residual": {2, 3}, None: {1, 2, 3, 4}, 2: {2}}  # fmt: skip


@pytest.mark.parametrize("lit", EQUATIONS_OF)
def test_figure_1_shows_what_is_lit_in_colour_and_the_rest_pale(lit):
    figure = figure_1.figure_1(lit)
    inside = {"encoder": {"attention", "mlp", "norm"}, 2: {"attention"}}.get(lit, ())
    for part in ("embedding", "class token", "positions", "attention", "mlp", "norm", "head"):
        fills = [box.get_facecolor() for box in artists(figure, FancyBboxPatch, part)]
        if lit in (None, part) or part in inside:
            assert all(same_color(fill, COLORS[part]) for fill in fills), part
        elif (lit, part) != (2, "norm"):
            assert all(min(fill[:3]) > 0.79 for fill in fills), part
    assert {p.get_alpha() for p in shown(figure)} == ({1} if lit in (None, "patches") else {0.25})
    tags = {n: artists(figure, plt.Text, f"eq. {n}")[0] for n in (1, 2, 3, 4)}
    full = {n for n, tag in tags.items() if same_color(tag.get_color(), COLORS["ink"])}
    assert full == EQUATIONS_OF[lit]


def test_figure_1_lights_what_an_equation_says_and_nothing_of_another():
    def colours(figure, part):
        found = artists(figure, FancyBboxPatch, part)
        return [same_color(box.get_facecolor(), COLORS[part.split()[-1]]) for box in found]

    for lit, norms in {None: [1, 1, 1], "norm": [1, 1, 1], "encoder": [1, 1, 0], 1: [0, 0, 0],
                       2: [1, 0, 0], 3: [0, 1, 0], 4: [0, 0, 1]}.items():  # fmt: skip
        figure = figure_1.figure_1(lit)
        assert colours(figure, "norm") + colours(figure, "last norm") == norms, lit
        skips = [same_color(arrow.get_edgecolor(), COLORS["residual"])
                 for arrow in artists(figure, FancyArrowPatch, "residual")
                 if arrow.get_linewidth() == 2]  # fmt: skip
        both = lit in (None, "encoder")
        assert skips == [both or lit == 2, both or lit == 3], lit
        gold = [arrow for arrow in figure.axes[0].patches if isinstance(arrow, FancyArrowPatch)
                and same_color(arrow.get_edgecolor(), COLORS["class token"])]  # fmt: skip
        assert len(gold) == (2 if lit in (None, 4) else 0), lit  # from the encoder to the head
        box = artists(figure, FancyBboxPatch, "class token")[0]
        assert same_color(box.get_facecolor(), COLORS["class token"]) == (lit in (None, 1)), lit


@pytest.fixture
def model():
    """4 x 6 RGB pixels in six patches, in train mode."""
    return randomize(VisionTransformer((4, 6), 2, 3, 3, 16, 2, 2, drop_rate=0.5))


SCALE = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)  # mean and standard deviation of each channel


@torch.no_grad()
def test_the_film_shows_the_models_own_numbers(model):
    found = animation.follow(model, image(3), *SCALE)
    assert model.training  # left as it was, though the film is made in eval mode
    model.eval()
    mean, std = torch.tensor(SCALE)[:, None, :, None, None]
    x = (image(3)[None] / 255 - mean) / std
    maps, z0 = attention_maps(model, x), torch.tensor(found.tokens[0])[None]
    for ours, theirs in (
        (found.probabilities, model(x)[0].softmax(-1)),
        (found.y[0], model.forward_features(x)[0, 0]),
        (found.embedded, model.patch_embed(x)[0]),
        (found.tokens[0], np.concatenate([found.class_token, found.embedded]) + found.positions),
        (found.tokens[2], model.blocks(z0)[0]),
        (found.attention, torch.stack([layer[0, :, 0].mean(0) for layer in maps])),
        (found.flat[4], image(3)[:, 2:4, 2:4].flatten()),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_film_is_small_moves_never_ends_and_is_always_whole(model, tmp_path, monkeypatch):
    path = tmp_path / "film.gif"
    assert animation.forward_pass_animation(model, image(3), path, "abc", *SCALE) == path
    assert path.stat().st_size < 1_000_000
    frames, duration = [], 0
    with Image.open(path) as film:
        assert film.size == (800, 420) and film.info["loop"] == 0
        for frame in ImageSequence.Iterator(film):
            frames.append(np.asarray(frame.convert("RGB")).astype(np.int16)[::2, ::2])
            duration += frame.info["duration"]
    assert len(frames) > 50 and 8_000 < duration < 13_000
    assert all((a != b).any() for a, b in zip(frames, frames[1:], strict=False))
    for color in ("patches", "class token", "positions", "residual", "head"):
        rgb = 255 * np.array(to_rgb(COLORS[color]))
        assert max((abs(frame - rgb).max(-1) <= 12).sum() for frame in frames) > 100, color

    whole = animation.Film.play
    one_frame = lambda self, *header: whole(self, *header[:5], 1, 100)  # noqa: E731
    monkeypatch.setattr(animation.Film, "play", one_frame)  # for each stretch of the film

    def film(picture):
        return animation.forward_pass_animation(model, picture, path, "abc", *SCALE).read_bytes()

    first = film(image(3))
    assert film(image(3).flip(1)) != first == film(image(3))
    monkeypatch.setattr(animation.os, "replace", lambda *_: 1 / 0)  # a disk that is full, say
    with pytest.raises(ZeroDivisionError):
        film(image(3).flip(1))
    assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]


def test_the_film_refuses_what_it_cannot_draw(model, tmp_path):
    pooled = VisionTransformer((4, 6), 2, 3, 3, 16, 1, 2, global_pool="avg")
    many = VisionTransformer(14, 2, 3, 3, 16, 1, 2)
    for vit, picture, classes, message in (
        (model, image(3), "ab", "2 class names given, the model's head needs 3"),
        (model, image(3) / 255, "abc", "uint8"),
        (pooled, image(3), "abc", "class token"),
        (many, image(3, 14, 14), "abc", "49 patches"),
    ):
        with pytest.raises(ValueError, match=message):
            animation.forward_pass_animation(vit, picture, tmp_path / "x", classes, *SCALE)
    assert not list(tmp_path.iterdir())


def test_every_head_has_its_mark_at_its_layer_and_height():
    distances = torch.tensor([[1.0, 2, 3], [4, 5, 6]])  # two layers, three heads
    models = {"ours": distances, "theirs": distances[:1]}
    figure = inspection_charts.head_distances(models, uniform=2.5)
    (ax,) = figure.axes
    x, y = line(ax, "ours").get_xydata().T
    assert np.round(x).tolist() == [1, 1, 1, 2, 2, 2] and y.tolist() == [1, 2, 3, 4, 5, 6]
    assert set(x).isdisjoint(line(ax, "theirs").get_xdata())  # side by side
    assert list(line(ax, "looks at all alike").get_ydata()) == [2.5, 2.5]
    assert_nothing_outside(figure)


def test_masks_lie_over_their_images_each_on_its_own_scale():
    images = torch.stack([image(), image() + 1])
    masks = {"plain": torch.rand(2, 2, 2), "signed": torch.tensor([[[-1.0, 3]], [[2, 0]]]),
             "constant": torch.zeros(2, 1, 2)}  # fmt: skip
    figure = inspection_charts.masks_over_images(images, masks, ["a", "b"], correct=[True, False])
    figure.canvas.draw()
    axes = np.array(figure.axes).reshape(4, 2)
    for i in range(2):
        assert np.array_equal(axes[0, i].get_images()[0].get_array(), images[i, 0])
        for ax, mask in zip(axes[1:, i], masks.values(), strict=True):
            under, over = ax.get_images()
            assert np.array_equal(under.get_array(), images[i, 0])
            assert np.allclose(over.get_array(), mask[i])
            assert under.get_extent() == over.get_extent()
    for i, mask in enumerate(masks["plain"].numpy()):
        assert axes[1, i].get_images()[1].get_clim() == pytest.approx((mask.min(), mask.max()))
    assert [ax.get_images()[1].get_clim() for ax in axes[2]] == [(-3, 3), (-2, 2)]
    assert [ax.get_title() for ax in axes[0]] == ["✓ a", "✗ b"]


def test_panels_draw_the_mean_of_the_runs_and_every_run():
    runs = torch.tensor([[1.0, 0.6], [0.8, 0.2]])  # two runs, two strengths
    panels = {"noise": ([0, 0.5], {"ViT": runs, "CNN": runs[0]}), "shift": ([0, 3], {"ViT": runs})}
    noise, shift = inspection_charts.accuracy_panels(panels, chance=0.1).axes
    assert np.allclose(line(noise, "ViT").get_ydata(), [0.9, 0.4])
    assert np.allclose(line(noise, "CNN").get_ydata(), [1.0, 0.6])
    np.testing.assert_allclose(dots(shift, "o"), [[0, 1], [1, 0.6], [0, 0.8], [1, 0.2]])
    assert any(np.allclose(found.get_ydata(), 0.1) for found in noise.get_lines())  # chance


def test_grids_stand_in_their_grid():
    similarity = torch.linspace(-1, 1, 36).view(6, 6)
    figure = inspection_charts.grid_of_grids({"one": similarity, "two": -similarity}, (2, 3))
    picture, _ = shown(figure)[:2]
    whole = picture.get_array().filled(np.nan)
    for row in range(2):
        for col in range(3):
            small = whole[3 * row : 3 * row + 2, 4 * col : 4 * col + 3]
            assert np.allclose(small, similarity[3 * row + col].view(2, 3))
    assert np.isnan(whole[2]).all() and np.isnan(whole[:, 3]).all()  # the gaps between
    assert_nothing_outside(figure)


def test_what_is_drawn_of_a_trained_vit_is_what_was_given():
    components = {"ours": torch.rand(9, 3, 4, 4), "theirs": torch.rand(7, 1, 4, 4)}
    ours, theirs = shown(inspection_charts.filters_beside(components))
    assert np.allclose(ours.get_array()[5:9, 5:9], components["ours"][8].permute(1, 2, 0))
    assert np.allclose(theirs.get_array()[:, 30:34], components["theirs"][6, 0])

    weights = {"head 1": torch.rand(3, 4), "head 2": torch.rand(3, 4) / 9}
    figure = inspection_charts.heads_at(image(), weights, (2, 1))
    for ax, found in zip(figure.axes[1:], weights.values(), strict=True):
        assert np.allclose(ax.get_images()[0].get_array(), found)
        assert ax.get_xlabel() == f"up to {100 * found.max():.1f}%"
    assert all(ax.patches[0].get_xy() == (0.5, 1.5) for ax in figure.axes)  # column 1, row 2

    photos, maps = [image(), image() + 1], {"signed": torch.tensor([[[-1.0, 2]], [[3, 0]]])}
    for across in (True, False):
        figure = inspection_charts.maps_beside_photos(
            photos, maps, notes={"signed": ["a", "b"]}, frames=[(0, 1), (0, 0)], across=across
        )
        axes = np.array(figure.axes).reshape(2, 2)
        axes = axes if across else axes.T  # a row is a photograph and its map
        for (left, right), photo, found in zip(axes, photos, maps["signed"], strict=True):
            assert np.array_equal(left.get_images()[0].get_array(), photo[0])
            assert np.array_equal(right.get_images()[0].get_array(), found)
            assert right.get_images()[0].get_clim() == (0, found.max())  # below 0 is as 0
        assert [ax.get_xlabel() for ax in axes[:, 1]] == ["a", "b"]
        assert [axes[i, k].patches[0].get_xy()[0] for i in (0, 1) for k in (0, 1)] == [
            0.5, 0.5, -0.5, -0.5]  # fmt: skip

    cut = {"cut": torch.tensor([[[-1.0, 2]], [[3, 1]]])}
    figure = inspection_charts.maps_beside_photos(photos, cut, brightest=1)
    limits = [ax.get_images()[0].get_clim() for ax in figure.axes[1::2]]
    assert limits == [(0, 2), (0, 1)]  # -1 is no end of a scale; 3 is as 1

    boxes = {"face": (torch.tensor([0, 1, 3, 4]), torch.tensor([2, 5]))}  # in a grid of 2 x 3
    landings = {"trained": {"face": [2, 5, 5]}, "fresh": {"face": [0, 4, 3]}}
    figure = inspection_charts.parts_found([image(), image() + 1], boxes, landings, (2, 3))
    here, *there = figure.axes
    assert [frame.get_bbox().bounds for frame in here.patches] == [(0, 0, 2, 2)]
    for ax, squares in zip(
        there, ([(2, 0), (2, 1), (2, 1)], [(0, 0), (1, 1), (0, 1)]), strict=True
    ):
        box, *landed = ax.patches
        assert box.get_bbox().bounds == (2, 0, 1, 2)
        assert [square.get_xy() for square in landed] == squares  # (column, row)
        (dots,) = ax.collections  # as large as the patches that landed there are many
        middles = dots.get_offsets() - 0.5
        for (col, row), area in zip(middles, dots.get_sizes(), strict=True):
            assert area == 28 * squares.count((int(col), int(row)))
        assert len(middles) == len(set(squares))
    assert words(here.texts) == ["face"]


def test_seeds_are_dots_and_their_means_strokes_or_lines():
    rows = {"one": dict(test=[0.9, 0.92]), "two": dict(test=[0.5, 0.7, 0.6])}
    first, second = seed_dots({"digits": rows, "other": rows}, against="two").axes
    assert sorted(dots(first, "o").tolist()) == [[0.5, 1], [0.6, 1], [0.7, 1], [0.9, 0], [0.92, 0]]
    assert words(first.texts) == ["91.0%", "60.0%"]
    (dashed,) = (line for line in second.lines if line.get_linestyle() == "--")
    assert dashed.get_xdata()[0] == pytest.approx(0.6)

    lines = {"a": {1: [0.2, 0.4], 3: [0.5, 0.7]}, "b": {1: [0.1], 3: [0.9]}}
    first, second = seed_lines({"digits": lines, "other": lines}, "rate").axes
    np.testing.assert_allclose(dots(first, "o"), [[1, 0.2], [1, 0.4], [3, 0.5], [3, 0.7]])
    np.testing.assert_allclose(line(second, "a").get_xydata(), [[1, 0.3], [3, 0.6]])
    np.testing.assert_allclose(line(second, "b").get_xydata(), [[1, 0.1], [3, 0.9]])


def test_sizes_have_their_axes_and_parts_their_cells_and_shades():
    points = {n: dict(test=[n / 10, n / 10 + 0.1], parameters=10 * n, multiply_adds=1000 * n**2)
              for n in (1, 2, 4)}  # fmt: skip
    left, right = by_size({"digits": {"depth": points}}).axes
    np.testing.assert_allclose(dots(left, "o"), [[1000, 0.15], [4000, 0.25], [16000, 0.45]])
    np.testing.assert_allclose(dots(right, "o"), [[10, 0.15], [20, 0.25], [40, 0.45]])
    assert len(dots(left, ".")) == 6 and words(left.texts) == ["1", "4"]
    assert tick_step(0.80, 0.84) == 0.01 and tick_step(0.7, 1) == 0.05 and tick_step(0, 5) == 0.2

    rows = {"a": {"none": [1.0, 0.9], "x": [0.5, 0.5]}, "b": {"none": [0.25, 0.35], "x": None}}
    ax = parts_table(rows, {"a": 0.5, "b": 0.4}).axes[0]
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts == {(0, 0): "95\n± 7.1", (1, 0): "50\n± 0.0", (0, 1): "30\n± 7.1", (1, 1): "·"}
    np.testing.assert_allclose(ax.images[0].get_array().filled(-1), [[0.9, 0], [0, -1]])


def test_marks_stand_beside_the_formula():
    lines = {"forward": ((16, 64), [(1, 1, 1), (3, 4, 9)])}
    panels = {"tokens N": ((1, 5), lines), "width D": ((1, 5), lines)}
    figure = cost_charts.beside(panels, "time", "a title", level=1, named=[{32: "2 D"}, {}])
    formula, forward, level, upright = figure.axes[0].get_lines()
    assert list(formula.get_ydata()) == [1, 5] and list(forward.get_ydata()) == [1, 4]
    assert list(level.get_ydata()) == [1, 1] and list(upright.get_xdata()) == [32, 32]
    strokes = figure.axes[0].collections[0].get_segments()
    assert [tuple(s[:, 1]) for s in strokes] == [(1, 1), (3, 9)]
    assert_nothing_outside(figure)


def test_bars_are_cut_into_shares_of_the_sum_each_part_in_its_colour():
    bars = {"one": {"a": 1, "b": 3, "c": 4}, "two": {"a": 50, "b": 25, "c": 25}}
    figure = cost_charts.share_bars(bars, ["#ffffff", "#000000", "#777777"])
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == [0.125, 0.375, 0.5, 0.5, 0.25, 0.25]
    assert [bar.get_x() for bar in ax.patches] == [0, 0.125, 0.5, 0, 0.5, 0.75]
    assert words(ax.texts) == ["12%", "38%", "50%", "50%", "25%", "25%"]
    assert_nothing_outside(figure)

    seconds = {piece: [1.0, 2.0, 9.0] for piece in [*cost_charts.PIECES, "fused kernel"]}
    shares = cost.piece_shares([dict(N=64, D=64, batch=1, seconds=seconds)])
    times = dict.fromkeys(["idle", *speed.KINDS, "augmentation", "rest"], 1.0)
    for figure, colors in (
        (cost_charts.piece_bars(shares), cost_charts.PIECES),
        (speed_charts.time_bar(times, "a title"), speed_charts.TIME_COLORS),
    ):
        bars = figure.axes[0].patches[-len(colors) :]
        assert [bar.get_width() for bar in bars] == pytest.approx([1 / len(colors)] * len(colors))
        for bar, color in zip(bars, colors.values(), strict=True):
            assert same_color(bar.get_facecolor(), color)
        assert len(set(colors.values())) == len(colors)


def test_ladder_bars_are_multiples_and_memory_is_in_megabytes():
    rungs = [dict(name=f"rung {i}", images_per_second=1234.0 * i, over_first=i) for i in (1, 2)]
    figure = speed_charts.ladder_bars(rungs, "a title")
    (ax,) = figure.axes
    assert words(ax.texts) == ["1.00 x", "2.00 x"] and "1,234 images" in ax.get_xlabel()
    assert [bar.get_width() for bar in ax.patches] == [1, 2]
    assert_nothing_outside(figure)
    lines = {"one way": ((1, 2), (1e6, 2e6), (1e6, 3e6)), "another": ((1, 2), (0, 0), (0, 0))}
    figure = speed_charts.memory_curves({"batch": lines, "tokens": lines})
    expected, counted, *_ = figure.axes[0].get_lines()
    assert list(expected.get_ydata()) == [1, 3] and list(counted.get_ydata()) == [1, 2]
    assert_nothing_outside(figure)


def test_charts_say_what_does_not_fit():
    inside, one = inspection_charts, {"one": dict(test=[0.9])}
    for draw, arguments, message in (
        (figure_1.figure_1, ["decoder"], "'decoder'.*patches.*class token.*head"),
        (inside.head_distances, [{str(i): [[1.0]] for i in range(5)}], "5 models given"),
        (inside.masks_over_images, [[image()] * 2, {"m": [[[1]]]}, ["a", "b"]], "2 images"),
        (inside.accuracy_panels, [{}], "nothing to draw"),
        (inside.grid_of_grids, [{"one": torch.rand(6, 6)}, (2, 2)], r"\(6, 6\) given.* 2 x 2"),
        (seed_dots, [{"a": one, "b": {"two": one["one"]}}], "the same rows"),
        (seed_lines, [{}, "rate"], "no panels"),
        (by_size, [{}], "no panels"),
        (parts_table, [{"a": {"x": [1.0, 1.0]}, "b": {}}, {"a": 0, "b": 0}], "the same in all"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(*arguments)
