"""helpers/augmentation.py: what happens to training images before the model sees them."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from helpers import augmentation
from helpers.augmentation import GROUP, augment, erase, mix, normalize
from helpers.data import load
from helpers.plotting import sample_photo
from helpers.scale.distributed import Part
from helpers.training import TrainConfig


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def still(**changes):
    """A TrainConfig whose augmentation does nothing but what is asked for."""
    return TrainConfig(**(dict(shift=0, rotate=0, zoom=0) | changes))


def test_augment_can_leave_images_as_they_are():
    images = torch.randint(0, 256, (5, 2, 6, 4), dtype=torch.uint8)
    out = augment(images, still(), flip=False)
    torch.testing.assert_close(out, images.float(), atol=1e-3, rtol=0)


def centre_of_mass(images):
    """(B, 1, H, W) -> (B, 2): row and column, in pixels."""
    H, W = images.shape[2:]
    mass = images.float().sum((1, 2, 3))
    rows = (images.float() * torch.arange(H)[:, None]).sum((1, 2, 3)) / mass
    columns = (images.float() * torch.arange(W)).sum((1, 2, 3)) / mass
    return torch.stack([rows, columns], dim=1)


def test_augment_moves_each_image_by_up_to_shift_pixels():
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 12, 16)
    images[:, :, 5:7, 7:9] = 255.0
    moves = centre_of_mass(augment(images, still(shift=2), flip=False)) - centre_of_mass(images)
    assert moves.abs().max() <= 2.001 and moves.abs().max(0).values.min() > 1.8
    assert len(moves.unique(dim=0)) > 190 and moves.mean(0).abs().max() < 0.3


def test_augment_turns_by_up_to_rotate_degrees_without_shearing():
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 33, 65)
    images[:, :, 16, 42] = 255.0  # 10 pixels right of the centre
    where = centre_of_mass(augment(images, still(rotate=30), flip=False))
    offsets = where - torch.tensor([16.0, 32.0])
    angles = torch.atan2(offsets[:, 0], offsets[:, 1]).rad2deg()
    assert 28 < angles.abs().max() <= 32 and angles.min() < -25 and angles.max() > 25
    assert ((offsets.norm(dim=1) - 10).abs() < 0.6).all()  # the distance stays


def test_augment_zooms_each_image():
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 33, 33)
    images[:, :, 11:22, 11:22] = 255.0
    sides = (augment(images, still(zoom=0.2), flip=False).sum((1, 2, 3)) / 255).sqrt()
    assert 11 / 1.25 < sides.min() < 11 / 1.1 and 11 / 0.9 < sides.max() < 11 / 0.75


def test_augment_mirrors_about_half():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (400, 1, 4, 6), dtype=torch.uint8)
    out = augment(images, still(), flip=True).round()
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all() and 150 < mirrored.sum() < 250


def test_normalized_training_images_have_mean_0_and_deviation_1():
    digits = load("digits")
    x = normalize(digits.train.images, digits)
    assert x.dtype == torch.float32
    assert x.mean().abs() < 1e-4 and abs(x.std() - 1) < 1e-3


# Policies of torchvision


@pytest.fixture(scope="module")
def photos():
    """40 crops of a photograph, uint8 (40, 3, 24, 24)."""
    photo = torch.from_numpy(sample_photo("china.jpg", 120))
    crops = [photo[:, y : y + 24, x : x + 24] for y in range(0, 96, 12) for x in range(0, 60, 12)]
    return torch.stack(crops)


@pytest.mark.parametrize("policy", augmentation.POLICIES)
def test_a_policy_changes_every_group_in_its_own_way(photos, policy):
    """All images of a group share torchvision's draw; each group has its own."""
    same = photos[:1].expand(6 * GROUP, -1, -1, -1)
    out = augment(same, still(policy=policy), False, seeded(1)).round()
    groups = out.view(6, GROUP, *out.shape[1:])
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].flatten(1).unique(dim=0)) >= 4


def test_a_policy_is_torchvisions_own(photos):
    """With the seed that a group drew, torchvision's transform gives the same images."""
    generator = seeded(3)
    out = augmentation.apply_policy(photos, "trivial", generator, Part(0, 40, 40))
    seeds = torch.randint(2**31, (3,), generator=seeded(3)).tolist()
    for seed, ours, before in zip(seeds, out.split(GROUP), photos.split(GROUP), strict=True):
        torch.manual_seed(seed)
        assert torch.equal(ours, v2.TrivialAugmentWide()(before))


def test_a_policy_leaves_the_global_random_numbers_alone(photos):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augment(photos, still(policy="trivial"), True, seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_policy_is_refused(photos):
    with pytest.raises(ValueError, match="'autumn'.*'trivial'"):
        augment(photos, still(policy="autumn"), False)


# Mixing


def labels_and_images(n=400, K=5):
    y = torch.randint(K, (n,), generator=seeded(9))
    return torch.rand(n, 3, 12, 16, generator=seeded(8)), y, K


def test_mixup_is_torchvisions_for_each_pair():
    x, y, K = labels_and_images(8)
    mixed, labels = mix(x, y, K, still(mixup=1.0), seeded())
    stays = torch.rand(4, 4, generator=seeded())[1]
    theirs = v2.MixUp(num_classes=K)
    for i in range(4):
        pair = slice(2 * i, 2 * i + 2)
        truth = y[pair]
        params = {"lam": stays[i].item(), "labels": truth, "batch_size": 2}
        torch.testing.assert_close(mixed[pair], theirs.transform(x[pair], params))
        torch.testing.assert_close(labels[pair], theirs.transform(truth, params).float())


def test_cutmix_swaps_one_rectangle_and_labels_say_how_much():
    x, y, K = labels_and_images()
    mixed, labels = mix(x, y, K, still(cutmix=1.0), seeded())
    other = x.view(-1, 2, *x.shape[1:]).flip(1).reshape(x.shape)
    foreign = (mixed != x).any(1)  # (B, H, W)
    assert torch.equal(mixed, torch.where(foreign[:, None], other, x))
    for i in range(0, 60):
        rows, cols = foreign[i].any(1).nonzero(), foreign[i].any(0).nonzero()
        if len(rows):
            box = foreign[i, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
            assert box.all()
    share = 1 - foreign.float().mean((1, 2))[:, None]
    y2 = y.view(-1, 2).flip(1).flatten()
    expected = share * F.one_hot(y, K) + (1 - share) * F.one_hot(y2, K)
    torch.testing.assert_close(labels, expected)
    assert share.min() < 0.3 and share.max() > 0.9


def test_cutmix_swaps_the_area_that_was_drawn():
    x = torch.rand(200, 1, 48, 64, generator=seeded(8))
    mixed, _ = mix(x, torch.zeros(200, dtype=torch.long), 2, still(cutmix=1.0), seeded())
    _, stays, row, col = torch.rand(4, 100, generator=seeded())
    area = (mixed != x)[::2].float().mean((1, 2, 3))
    side = (1 - stays).sqrt()
    uncut = torch.maximum((row - 0.5).abs(), (col - 0.5).abs()) + side / 2 < 0.5
    assert uncut.sum() > 10
    torch.testing.assert_close(area[uncut], (1 - stays)[uncut], atol=0.04, rtol=0)
    assert (area < 1 - stays + 0.04).all()


def test_mixing_happens_as_often_as_asked():
    x, y, K = labels_and_images(2000)
    changed, _ = mix(x, y, K, still(mixup=0.25, cutmix=0.5), seeded())
    blended = (changed != x).flatten(1).all(1).float().mean()
    untouched = (changed == x).flatten(1).all(1).float().mean()
    assert 0.2 < blended < 0.3 and 0.2 < untouched < 0.33
    same, labels = mix(x, y, K, still(), seeded())
    assert torch.equal(same, x) and torch.equal(labels, F.one_hot(y, K).float())


def test_the_last_of_an_odd_batch_stays_as_it_is():
    x, y, K = labels_and_images(7)
    mixed, labels = mix(x, y, K, still(mixup=1.0), seeded())
    torch.testing.assert_close(mixed[-1], x[-1])
    torch.testing.assert_close(labels[-1], F.one_hot(y[-1], K).float())
    assert not torch.equal(mixed[-2], x[-2])


def test_erase_makes_one_rectangle_grey():
    x = torch.rand(1000, 3, 12, 16, generator=seeded()) + 1
    out = erase(x, still(erase=0.25), seeded(1))
    gone = (out == 0).all(1)
    assert torch.equal(out, x * ~gone[:, None])
    assert 0.2 < gone.flatten(1).any(1).float().mean() < 0.3
    assert gone.float().mean((1, 2)).max() < 0.36


# Several processes


@pytest.mark.parametrize("cuts", [(0, 26, 51), (0, 2, 18, 50, 51)])
def test_parts_of_a_batch_are_what_the_whole_would_be(photos, cuts):
    """However a batch is cut, every image gets the same change, and the generator moves alike."""
    config = TrainConfig(policy="trivial", mixup=0.3, cutmix=0.4, erase=0.3)
    images = torch.cat([photos, photos[:11]])
    y = torch.arange(51) % 4

    def go(part):
        generator = seeded(5)
        mine = slice(part.start, part.stop)
        x = augment(images[mine], config, True, generator, part)
        x, labels = mix(erase(x, config, generator, part), y[mine], 4, config, generator, part)
        return x, labels, generator.get_state()

    whole_x, whole_labels, state = go(Part(0, 51, 51))
    for start, stop in zip(cuts, cuts[1:], strict=False):
        x, labels, now = go(Part(start, stop, 51))
        torch.testing.assert_close(x, whole_x[start:stop])
        torch.testing.assert_close(labels, whole_labels[start:stop])
        assert torch.equal(now, state)
