"""helpers/augmentation.py: drop-path, and the running mean of the weights."""

import torch
from timm.layers import drop_path as timm_drop_path

from helpers.augmentation import EMA, averaged, drop_path
from helpers.model import VisionTransformer
from tests.peers import randomize

SIZE = dict(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, num_heads=2)


def vit(depth=3):
    torch.manual_seed(0)
    return randomize(VisionTransformer(depth=depth, **SIZE))


def test_drop_path_is_timms_with_rates_that_climb():
    model = vit().train()
    x = torch.randn(16, 1, 8, 8)
    torch.manual_seed(7)
    with drop_path(model, 0.4):
        ours = model(x)
    torch.manual_seed(7)
    z = model.patch_embed(x)
    z = torch.cat([model.cls_token.expand(16, -1, -1), z], dim=1) + model.pos_embed
    for block, rate in zip(model.blocks, (0.0, 0.2, 0.4), strict=True):
        z = z + timm_drop_path(block.attn(block.norm1(z)), rate, training=True)
        z = z + timm_drop_path(block.mlp(block.norm2(z)), rate, training=True)
    torch.testing.assert_close(ours, model.head(model.norm(z)[:, 0]))


def test_drop_path_keeps_eval_mode_and_leaves_nothing_behind():
    model, x = vit().eval(), torch.randn(5, 1, 8, 8)
    before = model(x)
    with drop_path(model, 0.9):
        assert torch.equal(model(x), before)
        assert not torch.equal(model.train()(x), before)
    torch.testing.assert_close(model(x), before)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_mean_over_many_draws_is_the_branch_itself():
    model = vit(depth=2).train()
    tokens = torch.randn(1, 5, 8).expand(4000, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad(), drop_path(model, 0.5):
        mean = model.blocks[1].mlp(tokens).mean(0)
    torch.testing.assert_close(mean, model.blocks[1].mlp(tokens[0]), atol=0.1, rtol=0.1)


def test_ema_is_the_recursion():
    model = vit(depth=1)
    ema = EMA(model, 0.9)
    expected = model.norm.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.norm.weight.copy_(torch.randn(8))
        ema.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.norm.weight.detach()
    index = [name for name, _ in model.named_parameters()].index("norm.weight")
    torch.testing.assert_close(ema.average[index], expected)


def test_averaged_swaps_in_and_back_even_after_an_error():
    model = vit(depth=1)
    ema = EMA(model, 0.5)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    try:
        with averaged(ema):
            now = model.state_dict()
            assert all(torch.equal(now[name], w) for name, w in before.items())
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    now = model.state_dict()
    assert all(torch.equal(now[name], w + 1) for name, w in before.items())
    with averaged(None):
        pass
