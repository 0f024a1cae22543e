"""lab/cost.py: counts and structure, never times."""

import pytest
import torch
from torch.utils import flop_counter

from helpers.model import EncoderBlock, VisionTransformer, attention
from lab import cost, speed, trials
from tests.notebook_rules import ROOT


def counted(work):
    """Multiply-adds of work(), as torch counts them."""
    with torch.no_grad():
        return speed.count_flops(work) / 2


@pytest.mark.parametrize("N, D, heads, ratio", [(7, 24, 3, 2.0), (16, 8, 2, 0.5)])
def test_multiply_adds_are_those_that_torch_counts(N, D, heads, ratio):
    block, x = EncoderBlock(D, heads, ratio), torch.zeros(1, N, D)
    parts = cost.multiply_adds(N, D, ratio)
    assert counted(lambda: block(x)) == sum(parts.values())
    assert counted(lambda: block.attn.qkv(x)) == parts["qkv"]
    assert counted(lambda: block.attn.proj(x)) == parts["proj"]
    assert counted(lambda: block.mlp(x)) == parts["mlp"]
    q = torch.zeros(1, heads, N, D // heads)
    assert counted(lambda: q @ q.transpose(2, 3)) == parts["scores"]
    assert counted(lambda: attention(q, q, q)) == parts["scores"] + parts["weighted sum"]
    assert sum(cost.multiply_adds(N, D).values()) == 12 * N * D**2 + 2 * N**2 * D
    model = VisionTransformer((8, 12), 2, 3, 10, embed_dim=D, depth=3, num_heads=heads,
                              mlp_ratio=ratio)  # fmt: skip
    images = torch.zeros(1, 3, 8, 12)
    assert counted(lambda: model(images)) == cost.vit_multiply_adds(model)


@pytest.mark.parametrize("N, D, heads, ratio, batch", [(9, 24, 2, 4.0, 2), (20, 48, 4, 0.5, 3)])
def test_kept_numbers_are_those_that_torch_keeps(N, D, heads, ratio, batch):
    block, x = EncoderBlock(D, heads, ratio), torch.zeros(batch, N, D)
    for fused in (True, False):
        numbers = cost.kept_numbers(N, D, heads, ratio, fused)
        assert speed.saved_bytes(block, x, fused=fused) == 4 * batch * sum(numbers.values())


def test_memory_records_the_count_beside_the_formula():
    rows = cost.memory([[8, 128, 2], [16, 128, 3]])["rows"]
    for row, (N, batch) in zip(rows, ((8, 2), (16, 3)), strict=True):
        fused, written_out = row["fused kernel"], row["written out"]
        assert fused[0] == fused[1] and written_out[0] == written_out[1]
        assert written_out[1] - fused[1] == 4 * batch * 2 * N * (N - 1)  # bytes, images, heads


def test_a_sweep_times_all_parts_of_all_sizes():
    sizes = [[4, 64, 3], [8, 64, 1], [4, 128, 1]]
    for training in (False, True):
        result = cost.sweep(sizes, training, rounds=2)
        assert [[row["N"], row["D"], row["batch"]] for row in result["rows"]] == sizes
        for row in result["rows"]:
            assert list(row["seconds"]) == ["block", "attention", "written out", "pairs", "mlp"]
            assert all(len(s) == 2 and min(s) > 0 for s in row["seconds"].values())
    with pytest.raises(ValueError, match="the width is 100: a multiple of 64"):
        cost.sweep([[4, 100, 1]])


def watched(monkeypatch, function, *arguments):
    """{part: multiply-adds, forward and backward} of what function would time of one size."""
    found = {}

    def timed(works, rounds):
        for name, work in next(iter(works.values())).items():
            found[name] = speed.count_flops(work) / 2

    def grad(y, wanted, start):  # the counter cannot watch torch.autograd.grad
        torch.autograd.backward(y, start, inputs=wanted)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(cost, "timed", timed)
    function(*arguments)
    return found


def test_what_is_timed_is_what_is_counted(monkeypatch):
    N, D, batch = 8, 128, 3
    parts = {part: batch * count for part, count in cost.multiply_adds(N, D).items()}
    forward = watched(monkeypatch, cost.sweep, [[N, D, batch]])
    assert forward["pairs"] == 2 * parts["scores"] and forward["mlp"] == parts["mlp"]
    assert forward["attention"] == forward["written out"] == sum(parts.values()) - parts["mlp"]
    assert forward["block"] == sum(parts.values())
    training = watched(monkeypatch, cost.sweep, [[N, D, batch]], True)
    assert training["mlp"] == 3 * forward["mlp"]  # backward: for the input and for the weights
    assert training["written out"] == 3 * forward["written out"]
    found = watched(monkeypatch, cost.pieces, [[N, D, batch]])
    assert found.pop("fused kernel") == 2 * parts["scores"]
    assert found == parts | {"softmax": 0, "GELU": 0}


def test_pairs_lie_between_attention_s_layers_and_gradients_do_not_pile_up():
    block, x, seen = cost.block_of(128), torch.randn(2, 5, 128), []
    torch.testing.assert_close(block.attn.proj(cost.Pairs(2)(block.attn.qkv(x))), block.attn(x))
    for wanted in ([], list(block.parameters())):
        cost.step(lambda: seen.append(torch.is_grad_enabled()) or block(x), wanted)
    assert seen == [False, True] and all(p.grad is None for p in block.parameters())


def test_halving_the_patch_side_makes_four_times_the_patches():
    model = dict(embed_dim=16, depth=1, num_heads=2)
    rows = cost.halving([4, 2], img_size=8, batch=2, model=model, rounds=2)["rows"]
    assert [(row["patch_size"], row["tokens"]) for row in rows] == [(4, 5), (2, 17)]
    for row in rows:
        vit = VisionTransformer(8, row["patch_size"], 1, 10, mlp_ratio=2.0, **model)
        assert row["multiply_adds"] == cost.vit_multiply_adds(vit)
        assert row["bytes"] == pytest.approx(speed.expected_bytes(vit, 2) / 2, rel=1e-2)
        assert {kind: len(s) for kind, s in row["seconds"].items()} == dict(forward=2, training=2)


def row(N, D=64, batch=1, **seconds):
    return dict(N=N, D=D, batch=batch, seconds=seconds)


def test_ratios_are_taken_round_by_round():
    rows = [row(4, batch=2, block=[1.0, 2.0, 4.0]), row(8, block=[1.0, 3.0, 8.0])]
    assert cost.growth_of(rows, "block") == [(1, 1, 1), (2, 3, 4)]
    assert cost.growth_of(rows, "block", per="batch") == [(1, 1, 1), (1, 1.5, 2)]
    assert cost.over(row(4, a=[1.0, 6.0], b=[2.0, 3.0]), "a", "b") == [0.5, 2]


def as_counted(N, D, batch=1, power=1):
    """A row of a machine that needs count ** power seconds; twice that, if written out."""
    counts = cost.multiply_adds(N, D)
    total = sum(counts.values())
    counts |= dict(block=total, attention=total - counts["mlp"], pairs=2 * counts["scores"])
    seconds = {part: [batch * float(count) ** power] * 2 for part, count in counts.items()}
    return row(N, D, batch, **seconds, **{"written out": [2 * s for s in seconds["attention"]]})


def test_a_crossing_is_where_it_stays_above():
    x = [1, 4, 16, 64]
    assert cost.crossing(x, [0.5, 2.0, 4.0, 4.0]) == pytest.approx(2)
    assert cost.crossing(x, [0.5, 2.0, 0.5, 2.0]) == pytest.approx(32)
    assert cost.crossing(x, [0.5, 2.0, 2.0, 0.9]) is cost.crossing(x, [2.0] * 4) is None


def test_on_a_machine_that_counts_prices_crossings_growth_and_halves_follow_the_formula():
    rows = [as_counted(N, 64) for N in (16, 32, 64, 128, 256, 512)]
    for part in rows[0]["seconds"]:
        assert cost.price(rows[0], part) == ([2, 2] if part == "written out" else [1, 1])
    assert cost.crossings(rows, "attention") == [pytest.approx(2 * 64)] * 2
    assert cost.crossings(rows, "pairs") == [pytest.approx(4 * 64)] * 2
    costs = {
        f"{name}_{kind}": {"rows": [as_counted(*size, power=power) for size in how["sizes"]]}
        for name, how in cost.SWEEPS.items()
        for kind, power in (("forward", 1), ("training", 2))
    }
    panels = cost.growth_panels(costs)
    assert list(panels) == ["tokens N", "width D", "images in a batch"]
    for xlabel, (formula, lines) in panels.items():
        squares = formula if "batch" in xlabel else [f**2 for f in formula]
        assert [low for low, _, _ in lines["forward"][1]] == pytest.approx(formula)
        assert [low for low, _, _ in lines["training"][1]] == pytest.approx(squares)
    assert panels["images in a batch"][0] == lines["forward"][0] == [1, 2, 4, 8, 16, 32, 64]
    for D, (formula, lines) in zip((64, 192), cost.half_panels(costs).values(), strict=True):
        assert formula[lines["forward"][0].index(2 * D)] == 1
        ways = {"forward": (1, 1), "training": (1, 2), "training, written out": (2, 2)}
        for name, (scale, power) in ways.items():
            expected = [scale * f**power for f in formula]
            assert [middle for _, middle, _ in lines[name][1]] == pytest.approx(expected)


def test_pieces_have_a_bar_for_counts_and_one_for_time():
    seconds = dict(scores=[1.0, 2.0, 9.0], softmax=[3.0, 3.0, 4.0])
    bars = cost.piece_shares([row(64, 32, **seconds, **{"fused kernel": [1.0] * 3})])
    assert bars == {
        "N = 64: multiply-adds": {"scores": 64 * 64 * 32, "softmax": 0},
        "N = 64: time": {"scores": 2.0, "softmax": 3.0},
    }


def test_attention_counts_where_torch_knows_no_kernel_of_it(monkeypatch):
    """Below 2.15 the table has none for a CPU, and what it does not know counts as nothing."""
    for operation in list(flop_counter.flop_registry):
        if "scaled_dot_product" in str(operation):
            monkeypatch.delitem(flop_counter.flop_registry, operation)
    q = torch.zeros(1, 2, 7, 12)
    assert speed.count_flops(attention, q, q, q) == 2 * 2 * 7 * 7 * 24
    model = VisionTransformer(8, 2, 1, 10, 16, 2, 2)
    counted = trials.size_of(model, (1, 8, 8))["multiply_adds"]
    assert counted == cost.vit_multiply_adds(model)
    pixels = 2 * 16 * model.patch_embed.proj.weight.numel()  # they get no gradient
    assert speed.training_flops(model) == 6 * counted - pixels


def test_one_place_counts():
    rooms = ("helpers", "lab", "pictures", "benchmarks", "tools", "notebooks")
    here = [p for room in rooms for end in ("py", "ipynb") for p in (ROOT / room).rglob(f"*.{end}")]
    users = [p.name for p in here if "import FlopCounterMode" in p.read_text(encoding="utf-8")]
    assert users == ["speed.py"]
