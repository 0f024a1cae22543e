"""lab/questions.py and lab/cnn.py: what a model knows, and what it can do without."""

import ast
import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from helpers.augmentation import normalize
from helpers.data import ImageData, Split, load
from helpers.inspection import tokens_after_each_block
from helpers.model import VisionTransformer
from helpers.training import TrainConfig, fit, predict
from lab.cnn import SmallCNN
from lab.questions import (
    REMOVABLE,
    accuracy,
    accuracy_under,
    accuracy_when_shown,
    accuracy_without,
    add_noise,
    cover_square,
    layer_features,
    layer_tokens,
    linear_probe,
    partly_shown,
    probe_classes,
    probe_positions,
    removed,
    shift,
    shuffle_patches,
)
from tests.peers import randomize

CHANGES = {"shift": (shift, 1), "noise": (add_noise, 0.2), "square": (cover_square, 2),
           "shuffle": (shuffle_patches, 2)}  # fmt: skip


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def small_model(**changes):
    """4 x 6 pixels in six patches, three heads of width 4, three blocks; in train mode."""
    sizes = dict(img_size=(4, 6), patch_size=2, in_chans=2, num_classes=3, embed_dim=12, depth=3,
                 num_heads=3, drop_rate=0.5)  # fmt: skip
    return randomize(VisionTransformer(**(sizes | changes)))


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def data():
    """Ten random RG images of 4 x 6 pixels in each split."""
    splits = [
        Split(
            torch.randint(0, 256, (10, 2, 4, 6), generator=draw(seed), dtype=torch.uint8),
            torch.randint(0, 3, (10,), generator=draw(seed)),
        )
        for seed in range(3)
    ]
    return ImageData("random", *splits, ("a", "b", "c"), (0.4, 0.6), (0.3, 0.2), flip=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    """A ViT that tells digits apart well enough, after about two seconds of training."""
    torch.manual_seed(0)
    model = VisionTransformer(8, 2, 1, 10, embed_dim=32, depth=2, num_heads=2, pos_embed_std=0.5)
    quick = TrainConfig(epochs=6, lr=3e-3, shift=0, rotate=0, zoom=0, device="cpu",
                        precision="float32")  # fmt: skip
    fit(model, digits, quick)
    return model


def state(model):
    """All that a function could change: modes, hooks, weights and buffers."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    return modes, hooks, [value.clone() for value in model.state_dict().values()]


def same(before, after):
    weights = all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    return weights and before[:2] == after[:2]


# Accuracy


def test_accuracy_counts_right_answers_in_any_mode(model, data):
    before = state(model)
    answers = predict(copy.deepcopy(model).eval(), data, data.test.images).argmax(1)
    right = sum(int(a == b) for a, b in zip(answers, data.test.labels, strict=True))
    assert accuracy(model, data, data.test.images, data.test.labels) == right / 10
    assert accuracy(model, data, data.test.images, answers) == 1
    assert same(before, state(model))


def test_nothing_is_left_behind(model, data):
    model.blocks[1].eval()
    images, labels, before = data.test.images, data.test.labels, state(model)
    pixels = images.clone()
    for run in (
        lambda: layer_tokens(model, data, images),
        lambda: layer_features(model, data, images),
        lambda: probe_classes(model, data, data.train, data.test),
        lambda: probe_positions(model, data, data.train.images, images),
        lambda: accuracy_without(model, data, images, labels),
        lambda: accuracy_when_shown(model, data, images, labels, [0.3, 1]),
        *(
            lambda change=change, k=k: accuracy_under(model, data, images, labels, change, [0, k])
            for change, k in (*CHANGES.values(),)
            if change is not shuffle_patches
        ),
        lambda: accuracy_under(model, data, images, labels, shuffle_patches, [1, 2]),
    ):
        first, second = run(), run()
        if isinstance(first, dict):
            first, second = (torch.stack(list(found.values())) for found in (first, second))
        assert torch.equal(first, second) and not first.requires_grad  # dropout is off
        assert same(before, state(model)) and torch.equal(images, pixels)


def test_nothing_is_left_behind_after_an_error(model, data):
    before, wrong = state(model), data.test.images[:, :1]
    for run in (
        lambda: accuracy(model, data, wrong[:, :, :2], data.test.labels),
        lambda: layer_tokens(model, data, wrong[:, :, :2]),
        lambda: accuracy_without(model, data, wrong[:, :, :2], data.test.labels),
        lambda: accuracy_when_shown(model, data, wrong[:, :, :2], data.test.labels, [0.5]),
    ):
        with pytest.raises(ValueError, match="needed"):
            run()
        assert same(before, state(model))
    for context in (removed(model, 0, 1), removed(model, 0, "block"), partly_shown(model, 1, None)):
        with pytest.raises(ZeroDivisionError), context:
            assert not same(before, state(model))  # a hook is there
            1 / 0  # noqa: B018
        assert same(before, state(model))


# Probes


def test_layer_tokens_and_features_are_the_models(model, data):
    images = data.test.images
    tokens = layer_tokens(model, data, images, batch_size=3)
    expected = tokens_after_each_block(model, normalize(images, data))
    assert tokens.shape == (4, 10, 7, 12)
    torch.testing.assert_close(tokens, torch.stack(expected))
    features = layer_features(model, data, images, batch_size=4)
    assert list(features) == ["class token", "patches"]
    torch.testing.assert_close(features["class token"], tokens[:, :, 0])
    torch.testing.assert_close(features["patches"], sum(tokens.unbind(2)[1:]) / 6)
    pooled = small_model(global_pool="avg")
    features = layer_features(pooled, data, images)
    assert list(features) == ["patches"]
    torch.testing.assert_close(features["patches"], layer_tokens(pooled, data, images).mean(2))


def test_linear_probe_is_ridge_regression_in_closed_form():
    x, held_out_x = torch.randn(200, 5, generator=draw()).split([120, 80])
    towards = torch.randn(5, 3, generator=draw(1))
    y, held_out_y = ((z @ towards + 0.5 * z[:, :1]).argmax(1) for z in (x, held_out_x))
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    z = (x - mean) / std
    targets = 2.0 * F.one_hot(y).double() - 1
    weights = torch.linalg.solve(z.T @ z + torch.eye(5), z.T @ (targets - targets.mean(0)))
    expected = [
        ((((a - mean) / std) @ weights + targets.mean(0)).argmax(1) == b).double().mean().item()
        for a, b in ((x, y), (held_out_x, held_out_y))
    ]
    assert linear_probe(x, y, held_out_x, held_out_y) == pytest.approx(tuple(expected))
    assert expected[1] > 0.8


def test_linear_probe_of_nothing_is_chance_and_reports_the_held_out_part():
    x, held_out_x = torch.randn(60, 50, generator=draw()).split([30, 30])
    y = torch.arange(30) % 3
    train, held_out = linear_probe(x, y, held_out_x, y)
    assert train == 1 and held_out < 0.7  # learned by heart
    constant = torch.full((30, 4), 0.1)
    assert linear_probe(constant, y, constant, y) == pytest.approx((1 / 3, 1 / 3))


def test_probes_of_a_trained_model(trained, digits):
    test = Split(digits.test.images[:200], digits.test.labels[:200])
    found = probe_classes(trained, digits, digits.train, test)
    assert found["class token"].shape == found["patches"].shape == (3, 2)
    start, end = found["class token"][[0, -1]]
    assert (start < 0.2).all()  # z_0: the same for all images
    assert (end > 0.8).all()
    where = probe_positions(trained, digits, digits.train.images[:100], test.images[:50])
    assert where.shape == (3, 2) and (where[0] > 0.9).all()  # positions have just been added


def test_probe_of_positions_names_the_patch():
    model = small_model(in_chans=1)  # positions alone: no token knows the image
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
    images = torch.zeros(4, 1, 4, 6, dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 1, 0, 1]))
    data = ImageData("black", split, split, split, ("a", "b"), (0.5,), (0.5,), flip=False)
    assert torch.equal(probe_positions(model, data, images, images), torch.ones(4, 2))
    with torch.no_grad():
        model.pos_embed.zero_()
    torch.testing.assert_close(
        probe_positions(model, data, images, images), torch.full((4, 2), 1 / 6)
    )


# Parts removed


@torch.no_grad()
def surgery(model, layer, part):
    """A copy of the model in eval mode whose weights make that part give nothing."""
    model = copy.deepcopy(model).eval()
    block = model.blocks[layer]
    if part in range(3):
        block.attn.proj.weight[:, 4 * part : 4 * part + 4] = 0
    if part in ("attention", "block"):
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
    if part in ("mlp", "block"):
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
    return model


@torch.no_grad()
@pytest.mark.parametrize("part", [0, 1, 2, *REMOVABLE])
def test_removed_is_the_same_as_zero_weights(model, data, part):
    model.eval()
    x = normalize(data.test.images, data)
    whole = model(x)
    for layer in range(3):
        with removed(model, layer, part):
            found = model(x)
        torch.testing.assert_close(found, surgery(model, layer, part)(x))
        assert not torch.allclose(found, whole, rtol=1e-3)
    assert torch.equal(model(x), whole)


@torch.no_grad()
def test_removing_every_block_leaves_the_embedding(model, data):
    model.eval()
    x = normalize(data.test.images, data)
    tokens = tokens_after_each_block(model, x)
    with removed(model, 0, "block"), removed(model, 1, "block"), removed(model, 2, "block"):
        torch.testing.assert_close(model.forward_features(x), model.norm(tokens[0]))


def test_accuracy_without_has_a_column_for_each_part(model, data):
    images = data.test.images
    labels = predict(copy.deepcopy(model).eval(), data, images).argmax(1)  # all right, to begin
    found = accuracy_without(model, data, images, labels)
    assert found.shape == (3, 6)
    for layer in range(3):
        for column, part in enumerate([0, 1, 2, "attention", "mlp", "block"]):
            expected = accuracy(surgery(model, layer, part), data, images, labels)
            assert found[layer, column].item() == pytest.approx(expected), (layer, part)
    assert (found < 1).any()


def test_removed_says_what_there_is(model):
    for part in (3, -1, "head"):
        with pytest.raises(ValueError, match="a head from 0 to 2, or one of 'attention'"):
            with removed(model, 0, part):
                pass
    with pytest.raises(IndexError), removed(model, 3, 0):
        pass


# Patches left out


class Spy(torch.nn.Module):
    """In the place of the blocks: notes the tokens that come in."""

    def forward(self, tokens):
        self.tokens = tokens
        return tokens


@torch.no_grad()
@pytest.mark.parametrize(
    "share, count", [(0.1, 1), (0.3, 2), (0.5, 3), (0.9, 5), (1, 6), (0.01, 1)]
)
@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_partly_shown_keeps_tokens_with_their_positions(data, share, count, global_pool):
    model = small_model(global_pool=global_pool).eval()
    x, has_token = normalize(data.test.images, data), global_pool == "token"
    everything = tokens_after_each_block(model, x)[0]
    model.blocks = Spy()
    chosen = []
    with partly_shown(model, share, draw()):
        model(x)
    for image, kept in zip(everything, model.blocks.tokens, strict=True):
        assert len(kept) == count + has_token
        which = [(image == token).all(1).nonzero().item() for token in kept]
        assert len(set(which)) == len(which)
        assert has_token <= (which[0] == 0) and 0 not in which[1:] * has_token
        chosen.append(tuple(sorted(which)))
    assert len(set(chosen)) > 1 or count == 6  # each image by itself


@torch.no_grad()
def test_the_order_of_the_tokens_changes_nothing(model, data):
    model.double().eval()
    x = normalize(data.test.images, data).double()
    with partly_shown(model, 1, draw()):
        found = model(x)
    torch.testing.assert_close(found, model(x))


def test_accuracy_when_shown_is_the_accuracy_with_those_patches(data):
    model, images = small_model(global_pool="avg", num_classes=9), data.test.images
    labels = predict(copy.deepcopy(model).eval(), data, images).argmax(1)
    found = accuracy_when_shown(model, data, images, labels, [0.2, 1], seed=4)
    with partly_shown(model, 0.2, draw(4)):
        expected = accuracy(model, data, images, labels)
    assert expected < 1
    torch.testing.assert_close(found, torch.tensor([expected, 1]))
    again = accuracy_when_shown(model, data, images, labels, [1, 0.2], seed=4)
    assert torch.equal(found, again.flip(0))


def test_a_smaller_share_is_part_of_a_larger_one(model, data):
    x, seen = normalize(data.test.images, data), []
    model.eval().blocks = Spy()
    for share in (0.3, 0.7):
        with partly_shown(model, share, draw()), torch.no_grad():
            model(x)
        seen.append(model.blocks.tokens)
    assert torch.equal(seen[0], seen[1][:, : seen[0].shape[1]])


def test_a_share_must_leave_something(model):
    for share in (0, -0.5, 1.1, math.nan):
        with pytest.raises(ValueError, match="above 0 and up to 1"), partly_shown(model, share, 0):
            pass


# Changed images


@pytest.fixture
def pictures():
    """300 random images that are not square: uint8 (300, 3, 4, 6), none of them black."""
    return torch.randint(1, 256, (300, 3, 4, 6), generator=draw(5), dtype=torch.uint8)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seeded_and_leave_the_original(pictures, name):
    change, strength = CHANGES[name]
    before = pictures.clone()
    found = change(pictures, strength, draw(1))
    assert found.dtype == torch.uint8 and found.shape == pictures.shape
    assert torch.equal(found, change(pictures, strength, draw(1)))
    assert not torch.equal(found, change(pictures, strength, draw(2)))
    assert not torch.equal(found, pictures) and torch.equal(before, pictures)
    if change is not shuffle_patches:
        assert torch.equal(change(pictures, 0, draw(1)), pictures)  # strength 0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_shift_moves_by_k_pixels_in_four_directions(pictures, k):
    found, seen = shift(pictures, k, draw()), set()
    for image, moved in zip(pictures, found, strict=True):
        fits = []
        for dy, dx in ((k, 0), (-k, 0), (0, k), (0, -k)):
            slow = torch.zeros_like(image)
            for row in range(4):
                for col in range(6):
                    if 0 <= row - dy < 4 and 0 <= col - dx < 6:
                        slow[:, row, col] = image[:, row - dy, col - dx]
            if torch.equal(slow, moved):
                fits.append((dy, dx))
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 4


def test_shift_must_leave_something(pictures):
    for k in (4, -1):
        with pytest.raises(ValueError, match="images are 4 x 6: from 0 to 3"):
            shift(pictures, k, draw())


def test_noise_has_the_given_sigma_and_is_cut_off():
    grey = torch.full((100, 3, 20, 10), 128, dtype=torch.uint8)
    error = (add_noise(grey, 0.1, draw()).double() - 128) / 255
    assert abs(error.mean()) < 0.002 and error.std().item() == pytest.approx(0.1, rel=0.01)
    strong = add_noise(grey, 10, draw())
    assert strong.amin() == 0 and strong.amax() == 255  # and nothing wrapped around:
    assert ((strong == 0) | (strong == 255)).double().mean() > 0.9


@pytest.mark.parametrize("side", [1, 3, 4])
def test_cover_square_hides_one_square_inside(side):
    white = torch.full((300, 3, 4, 6), 255, dtype=torch.uint8)
    places = set()
    for image in cover_square(white, side, draw()):
        assert set(image.unique().tolist()) == {128, 255}
        hidden = (image == 128).all(0)
        assert hidden.sum() == side**2 and torch.equal(hidden, (image == 128).any(0))
        rows, cols = hidden.any(1).nonzero()[:, 0], hidden.any(0).nonzero()[:, 0]
        assert len(rows) == len(cols) == side
        places.add((rows[0].item(), cols[0].item()))
    assert len(places) == (4 - side + 1) * (6 - side + 1)  # every place there is
    with pytest.raises(ValueError, match="side is 5 and the images are 4 x 6"):
        cover_square(white, 5, draw())


def test_shuffle_moves_whole_patches_anywhere(pictures):
    found, goes = shuffle_patches(pictures, 2, draw()), torch.zeros(6, 6)
    for image, mixed in zip(pictures, found, strict=True):
        old, new = (
            [y[:, r : r + 2, c : c + 2] for r in (0, 2) for c in (0, 2, 4)] for y in (image, mixed)
        )
        order = [next(i for i in range(6) if torch.equal(old[i], patch)) for patch in new]
        assert sorted(order) == list(range(6))
        for place, patch in enumerate(order):
            goes[patch, place] += 1
    assert goes.min() > 25 and goes.max() < 80  # 50 expected
    with pytest.raises(ValueError, match="4 x 6 pixels given, patch_size is 4"):
        shuffle_patches(pictures, 4, draw())


@torch.no_grad()
def test_without_positions_a_shuffled_image_is_the_same_image(data):
    model, images = small_model().double().eval(), data.test.images
    shuffled = shuffle_patches(images, 2, draw())
    x, x_shuffled = (normalize(y, data).double() for y in (images, shuffled))
    assert not torch.allclose(model(x), model(x_shuffled), rtol=1e-3)
    model.pos_embed.zero_()
    torch.testing.assert_close(model(x), model(x_shuffled))


def test_accuracy_under_gives_every_model_the_same_images(data):
    seen = []

    def change(images, strength, generator):
        seen.append((strength, torch.rand(3, generator=generator)))
        return images

    for model in (small_model(), SmallCNN(2, 3, width=2)):
        expected = accuracy(model, data, data.test.images, data.test.labels)
        found = accuracy_under(model, data, *vars(data.test).values(), change, [1, 2], seed=7)
        torch.testing.assert_close(found, torch.tensor([expected] * 2))
    assert [strength for strength, _ in seen] == [1, 2, 1, 2]
    assert all(torch.equal(drawn, torch.rand(3, generator=draw(7))) for _, drawn in seen)


def test_a_trained_model_suffers_as_expected(trained, digits):
    images, labels = digits.test.images[:200], digits.test.labels[:200]
    whole = accuracy(trained, digits, images, labels)
    assert whole > 0.85
    noisy = accuracy_under(trained, digits, images, labels, add_noise, [0, 2])
    assert noisy[0].item() == pytest.approx(whole) and noisy[1] < 0.6
    assert accuracy_under(trained, digits, images, labels, shuffle_patches, [2])[0] < 0.6
    shown = accuracy_when_shown(trained, digits, images, labels, [0.1, 0.5, 1])
    assert shown[2].item() == pytest.approx(whole) and shown[0] < shown[1] < shown[2]
    parts = accuracy_without(trained, digits, images, labels)
    assert parts.shape == (2, 5) and parts.min() < whole - 0.2


# The convolutional network


def test_cnn_has_the_parameters_it_says_and_can_match_a_vit():
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    for C, K, w in ((3, 10, 32), (1, 7, 5)):
        expected = 9 * C * w + 279 * w**2 + 28 * w + 4 * w * K + K
        assert count(SmallCNN(C, K, w)) == expected
    vit = VisionTransformer(8, 2, 1, 10, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2)
    nearest = min((count(SmallCNN(1, 10, w)) for w in range(1, 100)),
                  key=lambda n: abs(n - count(vit)))  # fmt: skip
    assert abs(nearest / count(vit) - 1) < 0.1


def test_cnn_takes_any_size_and_learns(digits):
    torch.manual_seed(0)
    for H, W in ((4, 4), (8, 8), (5, 9)):
        assert SmallCNN(3, 10, width=2)(torch.randn(2, 3, H, W)).shape == (2, 10)
    model = SmallCNN(1, 10, width=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = normalize(digits.train.images, digits)
    for numbers in torch.randperm(len(x), generator=draw()).repeat(3).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(x[numbers]), digits.train.labels[numbers]).backward()
        optimizer.step()
    before = state(model)
    assert accuracy(model, digits, digits.test.images, digits.test.labels) > 0.85
    assert same(before, state(model))  # batch norm has learned nothing, and the mode is back
    parameter = next(model.parameters())
    assert parameter.requires_grad


def test_cnn_is_short():
    tree = ast.parse(inspect.getsource(SmallCNN)).body[0]
    assert tree.end_lineno - tree.lineno + 1 <= 30
