"""helpers/augmentation.py: random changes to images and labels, to branches, to weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from timm.layers import drop_path as timm_drop_path
from torchvision.transforms import v2

from helpers.augmentation import (
    EMA,
    GROUP,
    POLICIES,
    Rows,
    apply_policy,
    augment,
    averaged,
    drop_path,
    erase,
    mix,
    normalize,
)
from helpers.model import VisionTransformer
from helpers.training import TrainConfig
from tests.peers import randomize

close = torch.testing.assert_close


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def still(**changes):
    """A TrainConfig whose augmentation does nothing but what is asked for."""
    return TrainConfig(**(dict(shift=0, rotate=0, zoom=0) | changes))


def photos(n, H=12, W=16, seed=8):
    """Random images uint8 (n, 3, H, W)."""
    return torch.randint(0, 256, (n, 3, H, W), dtype=torch.uint8, generator=seeded(seed))


# Images


def test_augment_is_one_affine_map_an_image():
    """Pixel by pixel against scipy, with the numbers that the generator draws."""
    H, W, images = 9, 14, photos(12, 9, 14)
    out = augment(images, TrainConfig(shift=2, rotate=30, zoom=0.2), True, seeded(1))
    shift, angle, zoom, mirror = torch.rand(4, 12, 2, generator=seeded(1)).numpy() * 2 - 1
    y, x = np.mgrid[:H, :W] - np.array([(H - 1) / 2, (W - 1) / 2])[:, None, None]  # from the centre
    for i, image in enumerate(images):
        turn, scale = np.deg2rad(30 * angle[i, 0]), 1 + 0.2 * zoom[i, 0]
        right = scale * np.sign(mirror[i, 0]) * (np.cos(turn) * x - np.sin(turn) * y)
        down = scale * (np.sin(turn) * x + np.cos(turn) * y)
        place = [down + (H - 1) / 2 + 2 * shift[i, 1], right + (W - 1) / 2 + 2 * shift[i, 0]]
        for channel, ours in zip(image.double().numpy(), out[i], strict=True):
            theirs = map_coordinates(channel, place, order=1, mode="grid-constant")
            close(ours, torch.from_numpy(theirs).float(), atol=5e-3, rtol=0)


def test_augment_does_nothing_unasked_and_mirrors_half_of_the_images():
    images = photos(400, 4, 6)
    close(augment(images, still(), False), images.float(), atol=1e-3, rtol=0)
    out = augment(images, still(), True, seeded()).round()
    same, mirrored = ((out == x).flatten(1).all(1) for x in (images, images.flip(3)))
    assert (same ^ mirrored).all() and 150 < mirrored.sum() < 250


def test_normalized_channels_have_mean_0_and_deviation_1():
    images = photos(50) // torch.tensor([1, 2, 5])[:, None, None]
    share = images / 255
    mean, std = share.mean((0, 2, 3)).tolist(), share.std((0, 2, 3), correction=0).tolist()
    x = normalize(images, SimpleNamespace(mean=tuple(mean), std=tuple(std)))
    close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    close(x.std((0, 2, 3), correction=0), torch.ones(3))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_torchvisions_own_seeded_for_each_group(name):
    images, auto = photos(40, 24, 24), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    theirs = {"trivial": v2.TrivialAugmentWide(), "rand": v2.RandAugment(), "auto": auto}[name]
    before = torch.get_rng_state()
    out = apply_policy(images, name, seeded(3))
    assert torch.equal(before, torch.get_rng_state())
    seeds = torch.randint(2**31, (3,), generator=seeded(3)).tolist()  # of 16, 16 and 8 images
    for seed, ours, group in zip(seeds, out.split(GROUP), images.split(GROUP), strict=True):
        torch.manual_seed(seed)
        assert torch.equal(ours, theirs(group))
    with pytest.raises(ValueError, match="'autumn'.*trivial, rand"):
        augment(images, still(policy="autumn"), False)


def to_mix(n, K=5):
    """Standardised images, labels and the number of classes."""
    return photos(n) / 255 + 1, torch.randint(K, (n,), generator=seeded(9)), K


def test_mixup_is_torchvisions_for_each_pair_and_the_last_of_an_odd_batch_stays():
    x, y, K = to_mix(9)
    mixed, labels = mix(x, y, K, still(mixup=1.0), seeded())
    stays, theirs = torch.rand(4, 5, generator=seeded())[1], v2.MixUp(num_classes=K)
    for i in range(4):
        pair = slice(2 * i, 2 * i + 2)
        params = {"lam": stays[i].item(), "labels": y[pair], "batch_size": 2}
        close(mixed[pair], theirs.transform(x[pair], params))
        close(labels[pair], theirs.transform(params["labels"], params).float())
    close(mixed[8], x[8])
    close(labels[8], F.one_hot(y[8], K).float())


def test_cutmix_swaps_a_rectangle_of_the_area_drawn_and_labels_say_how_much():
    n = 400
    x, y, K = to_mix(n)
    x = F.interpolate(x, size=(48, 64)) + 2 * torch.arange(n)[:, None, None, None]  # all differ
    mixed, labels = mix(x, y, K, still(cutmix=1.0), seeded())
    other = torch.arange(n) ^ 1
    foreign = (mixed != x).any(1)  # (n, H, W)
    assert torch.equal(mixed, torch.where(foreign[:, None], x[other], x))
    rows, cols = foreign.any(2), foreign.any(1)  # a rectangle is where its rows and columns cross
    assert torch.equal(foreign, rows[:, :, None] & cols[:, None])
    assert all(line.diff(dim=1).sum(1).max() <= 2 for line in (rows, cols))  # in one piece
    area = foreign.float().mean((1, 2))
    ours, theirs = F.one_hot(y, K), F.one_hot(y[other], K)
    close(labels, (1 - area)[:, None] * ours + area[:, None] * theirs)
    _, stays, row, col = torch.rand(4, n // 2, generator=seeded()).repeat_interleave(2, dim=1)
    inside = torch.maximum((row - 0.5).abs(), (col - 0.5).abs()) + (1 - stays).sqrt() / 2 < 0.5
    close(area[inside], (1 - stays)[inside], atol=0.04, rtol=0)
    assert inside.sum() > 20 and (area < 1 - stays + 0.04).all()  # beyond the edge: less
    centre = (rows * torch.arange(48)).sum(1) / rows.sum(1)
    close(centre[inside & (area > 0)], (48 * row - 0.5)[inside & (area > 0)], atol=0.51, rtol=0)


def test_mixing_happens_as_often_as_asked():
    x, y, K = to_mix(2000)
    changed, _ = mix(x, y, K, still(mixup=0.25, cutmix=0.5), seeded())
    same = (changed == x).flatten(1).float().mean(1)
    assert 0.2 < (same < 0.1).float().mean() < 0.33  # blended, or all of it swapped
    assert 0.2 < (same == 1).float().mean() < 0.33  # 1 - 0.25 - 0.5, and swaps of nothing
    unmixed, labels = mix(x, y, K, still(), seeded())
    assert torch.equal(unmixed, x) and torch.equal(labels, F.one_hot(y, K).float())


def test_erase_makes_one_rectangle_of_up_to_a_third_grey():
    x = photos(1000) / 255 + 1
    out = erase(x, still(erase=0.25), seeded(1))
    gone = (out == 0).all(1)
    assert torch.equal(out, x * ~gone[:, None])
    assert torch.equal(gone, gone.any(2)[:, :, None] & gone.any(1)[:, None])
    assert 0.2 < gone.flatten(1).any(1).float().mean() < 0.3
    assert 0.28 < gone.float().mean((1, 2)).max() < 0.36


@pytest.mark.parametrize("cuts", [(0, 26, 51), (0, 2, 18, 50, 51)])
def test_parts_of_a_batch_are_what_the_whole_would_be(cuts):
    """However a batch is cut, every image gets the same change, and the generator moves alike."""
    config = TrainConfig(mixup=0.3, cutmix=0.4, erase=0.3)
    images, y = photos(51), torch.arange(51) % 4

    def go(start, stop):
        generator = seeded(5)
        rows = Rows(generator, 51, start, stop)
        changed = apply_policy(images[start:stop], "trivial", rows)
        moved = augment(images[start:stop], config, True, rows)
        erased = erase(moved + 1, config, rows)
        return changed, moved, erased, *mix(moved, y[start:stop], 4, config, rows), generator

    *whole, last = go(0, 51)
    for start, stop in zip(cuts, cuts[1:], strict=False):
        *part, generator = go(start, stop)
        for ours, theirs in zip(part, whole, strict=True):
            close(ours, theirs[start:stop])
        assert torch.equal(generator.get_state(), last.get_state())


# Branches and weights


def vit(depth):
    torch.manual_seed(0)
    sizes = dict(patch_size=4, in_chans=1, num_classes=3, embed_dim=8, num_heads=2)
    return randomize(VisionTransformer(img_size=8, depth=depth, **sizes))


def test_drop_path_is_timms_with_rates_that_climb_and_leaves_nothing_behind():
    model, x = vit(3).train(), torch.randn(16, 1, 8, 8)
    before = model(x)
    torch.manual_seed(7)
    with drop_path(model, 0.4):
        ours = model(x)
        assert torch.equal(model.eval()(x), before)  # training alone is changed
    torch.manual_seed(7)
    z = torch.cat([model.cls_token.expand(16, -1, -1), model.patch_embed(x)], dim=1)
    z = z + model.pos_embed
    for block, rate in zip(model.blocks, (0.0, 0.2, 0.4), strict=True):
        z = z + timm_drop_path(block.attn(block.norm1(z)), rate, training=True)
        z = z + timm_drop_path(block.mlp(block.norm2(z)), rate, training=True)
    close(ours, model.head(model.norm(z)[:, 0]))
    assert not torch.allclose(ours, before) and torch.equal(model.train()(x), before)


def test_ema_is_the_recursion_and_averaged_swaps_it_in_and_back_even_after_an_error():
    model = vit(1)
    ema, expected, weight = EMA(model, 0.8), model.norm.weight.detach().clone(), model.norm.weight
    for step in range(1, 60):
        with torch.no_grad():
            weight.copy_(torch.randn(8))
        ema.update()
        decay = min(0.8, (1 + step) / (10 + step))  # 0.8 from step 35 on
        expected = decay * expected + (1 - decay) * weight.detach()
    last = {name: w.clone() for name, w in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), averaged(ema):
        close(weight, expected)
        raise KeyboardInterrupt
    assert all(torch.equal(w, last[name]) for name, w in model.state_dict().items())
    with averaged(None):
        pass
