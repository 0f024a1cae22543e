"""What earlier versions of the pages proved and the pages no longer show: nothing is lost."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vision_transformer import Encoder

from helpers.data import load
from helpers.inspection import attention_maps
from helpers.model import EncoderBlock, MultiHeadSelfAttention, PatchEmbedding, VisionTransformer
from helpers.training import TrainConfig, evaluate, fit
from tests.peers import images, randomize, small_vit

close = torch.testing.assert_close


def test_a_convolution_of_stride_p_and_a_linear_layer_are_one_there_and_back():
    embed = randomize(PatchEmbedding((12, 20), 4, 3, 30)).double()
    linear = nn.Linear(48, 30).double()
    with torch.no_grad():
        linear.weight.copy_(embed.proj.weight.flatten(1))
        linear.bias.copy_(embed.proj.bias)
    x = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    patches = F.unfold(x, 4, stride=4).transpose(1, 2)  # (B, N, C P^2), row by row
    close(embed(x), linear(patches))
    assert torch.equal(linear.weight.view_as(embed.proj.weight), embed.proj.weight)


def test_every_pixel_lands_at_its_address():
    numbers = torch.arange(2 * 3 * 8 * 12, dtype=torch.float64).view(2, 3, 8, 12)
    cut = F.unfold(numbers, 4, stride=4).transpose(1, 2)  # (B, N, C P^2)
    for b, c, y, x in torch.cartesian_prod(*map(torch.arange, numbers.shape)).tolist():
        place = (y // 4) * 3 + x // 4, c * 16 + (y % 4) * 4 + x % 4
        assert cut[b, *place] == numbers[b, c, y, x]


def test_positions_for_each_image_do_not_fit_another_batch():
    table = torch.zeros(2, 65, 96)
    with pytest.raises(RuntimeError):
        torch.zeros(3, 65, 96) + table


@pytest.mark.parametrize("torchs", [False, True], ids=["ours", "torch's"])
def test_a_block_and_its_gradients_follow_a_new_order_of_the_tokens(torchs):
    block = EncoderBlock(60, 6)
    if torchs:
        block = nn.TransformerEncoderLayer(
            60, 6, 90, 0.0, "gelu", batch_first=True, norm_first=True
        )
    block = randomize(block).double().eval()
    z, order = torch.randn(2, 9, 60, dtype=torch.float64), torch.randperm(9)
    results = []
    for tokens in (z, z[:, order]):
        tokens = tokens.clone().requires_grad_()
        out = block(tokens)
        results.append((out, *torch.autograd.grad(out.square().sum(), tokens)))
    for straight, shuffled in zip(*results, strict=True):
        close(straight[:, order], shuffled)
        assert not torch.allclose(straight, shuffled)


def test_scores_with_one_matrix_for_queries_and_keys_would_be_symmetric():
    z, q, k = torch.randn(9, 60), torch.randn(60, 10), torch.randn(60, 10)
    close(one := (z @ k) @ (z @ k).T, one.T)
    two = (z @ q) @ (z @ k).T
    assert not torch.allclose(two, two.T)


def test_weights_of_several_heads_equal_torchs():
    vit = small_vit(depth=1)
    attn, x = vit.blocks[0].attn, images(vit)
    theirs = nn.MultiheadAttention(60, 6, batch_first=True).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), attn.state_dict().values(), strict=True)))
    seen = []
    hook = vit.blocks[0].norm1.register_forward_hook(lambda *given: seen.append(given[2]))
    maps = attention_maps(vit, x)[0]  # (B, h, N, N)
    hook.remove()
    z = seen[0]
    _, wanted = theirs(z, z, z, average_attn_weights=False)
    close(maps, wanted)


def test_without_the_output_projection_a_head_reaches_its_own_channels_alone():
    attn = randomize(MultiHeadSelfAttention(60, 6)).double()
    z = torch.randn(1, 9, 60, dtype=torch.float64)

    def reached(layer):
        """Channels of the output that move with the values of head 2."""
        changed = copy.deepcopy(layer)
        with torch.no_grad():
            changed.qkv.weight[120 + 20 : 120 + 30] += 1  # rows of U_v of the third head
            return ((changed(z) - layer(z)).abs().amax((0, 1)) > 1e-9).nonzero()[:, 0].tolist()

    assert reached(attn) == list(range(60))
    attn.proj = nn.Identity()
    assert reached(attn) == list(range(20, 30))


def test_layer_norm_number_by_number_and_upside_down():
    norm, z = randomize(nn.LayerNorm(6)).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    by_loop = torch.empty_like(z)
    for b in range(2):
        for n in range(3):
            row = z[b, n].tolist()
            mean = sum(row) / 6
            spread = (sum((x - mean) ** 2 for x in row) / 6 + norm.eps) ** 0.5
            for d, x in enumerate(row):
                by_loop[b, n, d] = (x - mean) / spread * norm.weight[d] + norm.bias[d]
    close(norm(z), by_loop)
    plain = nn.LayerNorm(6).double()
    close(plain(-z), -plain(z))
    assert not torch.allclose(plain(-z), plain(z))


def test_batch_norm_looks_at_the_company_and_layer_norm_does_not():
    x = torch.randn(4, 6)
    for norm, alike in ((nn.LayerNorm(6), True), (nn.BatchNorm1d(6), False)):
        assert torch.allclose(norm(x)[:2], norm(x[:2]), atol=1e-6) == alike


def test_gelu_is_lowest_near_minus_three_quarters():
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    assert x[F.gelu(x).argmin()].item() == pytest.approx(-0.752, abs=2e-3)
    assert F.gelu(x).min().item() == pytest.approx(-0.170, abs=1e-3)


def test_evaluation_repeats_what_training_reported():
    digits = load("digits")
    torch.manual_seed(0)
    vit = VisionTransformer(8, 2, 1, 10, 16, 1, num_heads=2)
    config = TrainConfig(epochs=1, device="cpu", precision="float32")
    history = fit(vit, digits, config)
    assert evaluate(vit, digits, "test") == (history.test_loss, history.test_accuracy)


def test_torchvision_adds_positions_as_we_do_and_their_gradient_is_a_sum_over_the_batch():
    encoder = Encoder(65, 0, 1, 96, 384, dropout=0.0, attention_dropout=0.0)  # without blocks
    encoder.ln, positions = nn.Identity(), encoder.pos_embedding  # (1, 65, 96)
    x, back = torch.randn(2, 2, 65, 96)  # tokens, and gradients that come back
    out = encoder(x)
    assert torch.equal(out, x + positions)
    close(torch.autograd.grad(out, positions, back)[0][0], back.sum(0))
