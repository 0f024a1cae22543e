"""lab/questions.py, tokens.py, damage.py, cnn.py: what a model knows, and what it can spare."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from helpers.augmentation import normalize
from helpers.data import ImageData, Split, load
from helpers.inspection import tokens_after_each_block
from helpers.training import TrainConfig, fit, predict
from lab import damage, questions
from lab import tokens as lab_tokens
from lab.cnn import SmallCNN
from lab.questions import accuracy, partly_shown
from tests.test_inspection import small, state


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def small_model(**changes):
    """4 x 6 pixels in six patches, three heads of width 4, two blocks; in train mode."""
    return small(**(dict(in_chans=2, drop_rate=0.5) | changes)).float().train()


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def data():
    """Ten random images of 4 x 6 pixels and two channels in each split."""
    images = torch.randint(0, 256, (30, 2, 4, 6), generator=draw(), dtype=torch.uint8)
    labels = torch.randint(0, 3, (30,), generator=draw())
    splits = map(Split, images.split(10), labels.split(10))
    return ImageData("random", *splits, ("a", "b", "c"), (0.4, 0.6), (0.3, 0.2), flip=False)


@pytest.fixture
def images(data):
    return data.test.images


@pytest.fixture
def x(data, images):
    return normalize(images, data)


def answers(model, data, images):
    return predict(copy.deepcopy(model).eval(), data, images).argmax(1)


def test_every_question_has_one_answer_in_any_mode_and_leaves_no_trace(model, data, images, x):
    model.blocks[1].eval()
    labels, before, pixels = data.test.labels, state(model), images.clone()
    given = answers(model, data, images)
    right = sum(int(a == b) for a, b in zip(given, labels, strict=True))
    assert accuracy(model, data, images, given) == 1 > accuracy(model, data, images, labels)
    assert accuracy(model, data, images, labels) == right / 10
    for run in (
        lambda: questions.layer_tokens(model, data, images),
        lambda: questions.layer_features(model, data, images).values(),
        lambda: questions.probe_classes(model, data, data.train, data.test).values(),
        lambda: questions.probe_positions(model, data, data.train.images, images),
        lambda: questions.accuracy_without(model, data, images, labels),
        lambda: questions.accuracy_when_shown(model, data, images, labels, [0.3, 1]),
        lambda: damage.accuracy_under(model, data, images, labels, damage.shift, [0, 2]),
        lambda: questions.occlusion_drop(model, x, labels, 2),
    ):
        first, second = (torch.stack([torch.as_tensor(part) for part in run()]) for _ in range(2))
        assert torch.equal(first, second) and not first.requires_grad  # dropout is off
        assert state(model) == before and torch.equal(images, pixels)
    with pytest.raises(ValueError, match="needed"):
        questions.accuracy_when_shown(model, data, images[:, :, :2], labels, [0.5])
    assert state(model) == before


def test_layer_tokens_are_the_models_and_probes_get_what_they_say(model, data, images, x):
    tokens = questions.layer_tokens(model, data, images, batch_size=3)
    assert_close(tokens, torch.stack(tokens_after_each_block(model, x)))  # (3, 10, 7, 12)
    features = questions.layer_features(model, data, images, batch_size=4)
    assert list(features) == ["class token", "patches"]
    assert_close(features["class token"], tokens[:, :, 0])
    assert_close(features["patches"], sum(tokens.unbind(2)[1:]) / 6)
    probed = questions.probe_classes(model, data, data.train, data.test)["patches"]
    seen = questions.layer_features(model, data, data.train.images)["patches"]
    for layer, found in enumerate(probed):
        asked = seen[layer], data.train.labels, features["patches"][layer], data.test.labels
        assert_close(found, torch.tensor(questions.linear_probe(*asked)))


def test_linear_probe_is_ridge_regression_in_closed_form():
    x, held_out_x = torch.randn(200, 5, generator=draw()).split([120, 80])
    towards = torch.randn(5, 3, generator=draw(1))
    y, held_out_y = ((z @ towards + 0.5 * z[:, :1]).argmax(1) for z in (x, held_out_x))
    sizes = torch.tensor([100, 1, 1, 1, 0.001])  # all are brought to one size
    x, held_out_x = x * sizes, held_out_x * sizes
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    z = (x - mean) / std
    targets = 2.0 * F.one_hot(y).double() - 1
    weights = torch.linalg.solve(z.T @ z + torch.eye(5), z.T @ (targets - targets.mean(0)))
    expected = [
        ((((a - mean) / std) @ weights + targets.mean(0)).argmax(1) == b).double().mean().item()
        for a, b in ((x, y), (held_out_x, held_out_y))
    ]
    assert questions.linear_probe(x, y, held_out_x, held_out_y) == pytest.approx(tuple(expected))
    assert 0.8 < expected[1] != expected[0]


def test_probe_of_positions_names_the_patch_as_long_as_there_are_positions():
    model, black = small_model(in_chans=1), torch.zeros(4, 1, 4, 6, dtype=torch.uint8)
    split = Split(black, torch.tensor([0, 1, 0, 1]))
    data = ImageData("black", split, split, split, ("a", "b"), (0.5,), (0.5,), flip=False)
    assert torch.equal(questions.probe_positions(model, data, black, black), torch.ones(3, 2))
    torch.nn.init.zeros_(model.pos_embed)
    assert_close(questions.probe_positions(model, data, black, black), torch.full((3, 2), 1 / 6))


@torch.no_grad()
def test_place_is_read_where_it_is_written_and_not_from_noise():
    places = torch.cartesian_prod(torch.arange(4), torch.arange(5)).float()  # (20, 2)
    tokens = torch.randn(6, 20, 12, generator=draw())
    written = tokens.clone()
    written[..., :2] = 3 * places + 7
    middle = (places - places.mean(0)).norm(dim=1).mean()
    assert lab_tokens.place_error(written, places) < 0.2 < 0.8 * middle
    assert lab_tokens.place_error(tokens, places) > 0.8 * middle


def test_patches_in_a_box_are_those_it_covers():
    assert lab_tokens.patches_in((1, 3, 0, 2), (32, 32)).tolist() == [32, 33, 64, 65]
    assert lab_tokens.patches_in((0, 5, 28, 32), (8, 4)).tolist() == [3, 7]  # in part is enough


def test_the_nearest_token_is_a_hit_in_the_right_part():
    there = torch.eye(4)
    here = torch.tensor([[0, 0, 2.0, 1], [5, 1, 0, 0], [0, 0, 1, 3]])
    whole = torch.arange(4)
    pairs = {"a": (whole[:2], whole[2:]), "b": (whole[2:3], whole[1:2])}
    found = lab_tokens.nearest_in(here, there, pairs)
    assert [(hits, nearest.tolist()) for hits, nearest in found.values()] == [(1, [2, 0]), (0, [3])]


def test_colours_follow_on_from_layer_to_layer():
    first = torch.randn(30, 8, generator=draw())
    turned = first @ torch.linalg.qr(torch.randn(8, 8, generator=draw(1)))[0] * 3 + 5
    one, same, other = lab_tokens.colours_by_depth([first, turned, first.flip(0)])
    assert one.shape == (30, 3) and one.min() == 0 and one.max() == 1
    assert_close(one, same, atol=1e-4, rtol=0)  # nothing moved among the tokens
    assert (one - other).abs().mean() > 0.1
    assert lab_tokens.colours_by_depth([torch.ones(30, 8)])[0].isfinite().all()


def test_what_heads_write_adds_up_and_a_missing_head_is_as_if_it_wrote_nothing(model, x):
    model.eval()
    z = tokens_after_each_block(model, x)
    written = questions.written_by_heads(model.blocks[0], z[0])  # (B, h, N+1, D)
    block = model.blocks[0]
    assert_close(written.sum(1) + block.attn.proj.bias, block.attn(block.norm1(z[0])))
    changes = questions.change_without_heads(model.train(), x)
    assert model.training and changes.shape == (2, 3)
    with torch.no_grad():
        model.eval()
        halfway = z[0] + block.attn(block.norm1(z[0])) - written[:, 1]
        after = model.blocks[1](halfway + block.mlp(block.norm2(halfway)))
        cosine = F.cosine_similarity(model.norm(after)[:, 0], model.norm(z[-1])[:, 0], dim=-1)
    assert changes[0, 1].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-5)
    assert changes.max() > 1e-3


def test_accuracy_without_a_part_is_as_if_what_it_gathers_were_zero(model, data, images):
    """Without head i: of what all heads gathered, the i-th part of each token is zero."""
    labels = answers(model, data, images)  # all right, to begin
    found = questions.accuracy_without(model, data, images, labels)

    def silent(head):
        return lambda _, gathered: gathered[0] * (torch.arange(12) // 4 != head)

    for row, block in zip(found, model.blocks, strict=True):
        cases = [(block.attn.proj.register_forward_pre_hook, silent(head)) for head in range(3)]
        for half in (block.attn, block.mlp):
            cases.append((half.register_forward_hook, lambda _, came_in, y: 0 * y))
        cases.append((block.register_forward_hook, lambda _, came_in, y: came_in[0]))
        for share, (register, change) in zip(row, cases, strict=True):
            hook = register(change)
            assert share.item() == pytest.approx(accuracy(model, data, images, labels))
            hook.remove()
    assert len(found.unique()) > 2


@torch.no_grad()
@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize("share, count", [(0.01, 1), (0.3, 2), (0.9, 5), (1, 6)])
def test_partly_shown_keeps_tokens_with_their_positions(x, share, count, global_pool):
    model, has_token = small_model(global_pool=global_pool).eval(), global_pool == "token"
    everything, seen = tokens_after_each_block(model, x)[0], []
    whole = model(x)
    hook = model.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with partly_shown(model, share, draw()):
        partly = model(x)
    hook.remove()
    chosen = []
    for image, kept in zip(everything, seen[0], strict=True):
        which = [(image == token).all(1).nonzero().item() for token in kept]
        assert len(set(which)) == len(kept) == count + has_token
        assert not has_token or which[0] == 0
        chosen.append(tuple(sorted(which)))
    if count == 6:
        assert_close(partly, whole, rtol=1e-4, atol=1e-5)  # the order of tokens changes nothing
    else:
        assert len(set(chosen)) > 1  # each image by itself
    assert torch.equal(model(x), whole)


def test_accuracy_when_shown_is_the_accuracy_with_those_patches(data, images):
    model, seen = small_model(global_pool="avg", num_classes=9), []
    labels = answers(model, data, images)
    hook = model.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = questions.accuracy_when_shown(model, data, images, labels, [0.7, 0.3, 1], seed=4)
    with partly_shown(model, 0.3, draw(4)):
        assert found[1].item() == pytest.approx(accuracy(model, data, images, labels))
    hook.remove()
    assert found[1] < 1 == found[2]
    assert torch.equal(seen[1], seen[3])
    assert torch.equal(seen[1], seen[0][:, :2])  # a smaller share is part of a larger one
    for share in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match="above 0 and up to 1"), partly_shown(model, share, 0):
            pass


@pytest.fixture
def pixels():
    """Random images that are not square: uint8 (300, 3, 4, 6), none of them black."""
    return torch.randint(1, 256, (300, 3, 4, 6), generator=draw(5), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["shift", "add_noise", "cover_square", "shuffle_patches"])
def test_changes_are_seeded_and_leave_the_original(pixels, name):
    change, strength = getattr(damage, name), 0.2 if name == "add_noise" else 2
    before, found = pixels.clone(), change(pixels, strength, draw(1))
    assert found.dtype == torch.uint8 and found.shape == pixels.shape
    assert torch.equal(found, change(pixels, strength, draw(1)))
    assert not torch.equal(found, change(pixels, strength, draw(2)))
    assert torch.equal(before, pixels)
    if name != "add_noise":
        with pytest.raises(ValueError, match="4 x 6"):
            change(pixels, 5, draw())


def test_shift_moves_by_k_pixels_in_four_directions(pixels):
    directions, found = [(2, 0), (-2, 0), (0, 2), (0, -2)], damage.shift(pixels, 2, draw())
    framed = F.pad(pixels, (2, 2, 2, 2))  # two pixels of black all around
    moved = torch.stack([framed[..., 2 - y : 6 - y, 2 - x : 8 - x] for y, x in directions])
    fits = (moved == found).flatten(2).all(2)  # (4, 300)
    assert (fits.sum(0) == 1).all() and (fits.sum(1) > 50).all()  # 75 expected


def test_noise_has_its_sigma_and_is_cut_off_and_squares_lie_at_every_place_inside():
    grey = torch.full((100, 3, 20, 10), 128, dtype=torch.uint8)
    error = (damage.add_noise(grey, 0.1, draw()).double() - 128) / 255
    assert abs(error.mean()) < 0.002 and error.std().item() == pytest.approx(0.1, rel=0.01)
    strong = damage.add_noise(grey, 10, draw())
    assert ((strong == 0) | (strong == 255)).double().mean() > 0.9  # nothing wrapped around

    white, places = torch.full((300, 3, 4, 6), 255, dtype=torch.uint8), set()
    for image in damage.cover_square(white, 3, draw()):
        top, left = (image == 128).all(0).nonzero()[0].tolist()
        assert (image[:, top : top + 3, left : left + 3] == 128).all()
        assert (image == 255).sum() == 3 * (24 - 9)
        places.add((top, left))
    assert len(places) == 2 * 4


def test_shuffle_moves_whole_patches_anywhere(pixels):
    goes = torch.zeros(6, 6)
    for image, mixed in zip(pixels, damage.shuffle_patches(pixels, 2, draw()), strict=True):
        old, new = (
            [y[:, r : r + 2, c : c + 2].tolist() for r in (0, 2) for c in (0, 2, 4)]
            for y in (image, mixed)
        )
        order = [old.index(patch) for patch in new]
        assert sorted(order) == list(range(6))
        goes[order, torch.arange(6)] += 1
    assert goes.min() > 25 and goes.max() < 80  # 50 expected


def test_accuracy_under_gives_every_model_the_same_images(data, images):
    seen = []

    def change(images, strength, generator):
        seen.append(torch.rand(3, generator=generator))
        return images if strength == 1 else images.flip(0)

    model, labels = SmallCNN(2, 3, width=2), data.test.labels
    found = damage.accuracy_under(model, data, images, labels, change, [1, 2], seed=7)
    expected = [accuracy(model, data, y, labels) for y in (images, images.flip(0))]
    assert_close(found, torch.tensor(expected))
    assert all(torch.equal(drawn, torch.rand(3, generator=draw(7))) for drawn in seen)


@torch.no_grad()
def test_occlusion_is_the_fall_when_the_patch_is_grey(model, x):
    labels = torch.arange(10) % 3
    found = questions.occlusion_drop(model, x, labels, 2, batch_size=7)
    shares = questions.occlusion_drop(model, x, labels, 2, probability=True)
    model.eval()
    for row in range(2):
        for col in range(3):
            hidden = x.clone()
            hidden[:, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = 0
            for drops, score in ((found, lambda logits: logits), (shares, lambda z: z.softmax(1))):
                fall = (score(model(x)) - score(model(hidden)))[torch.arange(10), labels]
                assert_close(drops[:, row, col], fall, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="4 x 6 pixels given, patch_size is 4"):
        questions.occlusion_drop(model, x, labels, 4)


def test_pointing_gives_the_cosine_of_class_tokens_and_its_own_is_a_summit(model, x):
    pointing = questions.Pointing(model.eval(), x[:2])
    tokens = model.forward_features(x)[:, 0]
    expected = F.cosine_similarity(tokens[:, None], tokens[None, :2], dim=-1)  # (B, 2)
    torch.testing.assert_close(pointing(x), expected)
    assert not pointing.wanted.requires_grad
    shown = x[:2].clone().requires_grad_(True)
    own, other = pointing(shown).diagonal().sum(), pointing(shown)[0, 1]
    flat, steep = (torch.autograd.grad(y, shown, retain_graph=True)[0].norm() for y in (own, other))
    assert flat < 1e-4 * steep


def test_rank_correlation_is_that_of_the_ranks():
    a = torch.tensor([[[10.0, 20, 20, 40]], [[1, 2, 3, 4]]])  # ranks 1, 2.5, 2.5, 4
    b = torch.tensor([[[1.0, 2, 3, 4]], [[9, 8, 7, -6]]])
    # Around their mean the ranks are -1.5, 0, 0, 1.5 and -1.5, -0.5, 0.5, 1.5.
    expected = torch.tensor([4.5 / (4.5 * 5) ** 0.5, -1], dtype=torch.float64)
    assert_close(questions.rank_correlation(a, b), expected)
    assert questions.rank_correlation(a, torch.ones(2, 1, 4)).isnan().all()
    with pytest.raises(ValueError, match=r"\(2, 1, 4\) and \(2, 4, 1\)"):
        questions.rank_correlation(a, torch.rand(2, 4, 1))


def test_the_interval_is_1_96_standard_errors_each_side():
    mean, low, high = questions.mean_and_interval(torch.tensor([1.0, 2.0, 3.0]))
    assert mean == 2 and high - mean == pytest.approx(1.96 / 3**0.5) == mean - low
    for wrong in (torch.ones(1), torch.tensor([1.0, math.nan, 2.0])):
        with pytest.raises(ValueError, match="needs 2 or more"):
            questions.mean_and_interval(wrong)


def test_cnn_has_the_parameters_it_says_takes_any_size_and_learns():
    for C, K, w in ((3, 10, 32), (1, 7, 5)):
        model, expected = SmallCNN(C, K, w), 9 * C * w + 279 * w**2 + 28 * w + 4 * w * K + K
        assert sum(parameter.numel() for parameter in model.parameters()) == expected
        assert {model(torch.randn(2, C, H, 9)).shape for H in (4, 5, 8)} == {(2, K)}
    torch.manual_seed(0)
    digits, model = load("digits"), SmallCNN(1, 10, width=8)
    fit(model, digits, TrainConfig(epochs=3, lr=3e-3, rotate=0, device="cpu"))
    assert accuracy(model, digits, digits.test.images, digits.test.labels) > 0.85
