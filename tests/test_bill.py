"""lab/cost.py and pictures/cost_charts.py: counts and structure, never times."""

import json

import matplotlib
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from helpers.model import EncoderBlock, VisionTransformer, attention
from lab import cost, speed
from pictures import cost_charts
from tests.test_plotting import artists, assert_nothing_outside


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def counted(work):
    """Multiply-adds of work(), as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops() / 2


# Arithmetic


@pytest.mark.parametrize("N, D, heads, ratio", [(5, 12, 1, 4.0), (7, 24, 3, 2.0), (16, 8, 2, 0.5)])
def test_multiply_adds_are_those_that_torch_counts(N, D, heads, ratio):
    block, x = EncoderBlock(D, heads, ratio), torch.zeros(1, N, D)
    parts = bill.multiply_adds(N, D, ratio)
    assert counted(lambda: block(x)) == sum(parts.values())
    assert counted(lambda: block.attn.qkv(x)) == parts["qkv"]
    assert counted(lambda: block.attn.proj(x)) == parts["proj"]
    assert counted(lambda: block.mlp(x)) == parts["mlp"]
    q = torch.zeros(1, heads, N, D // heads)
    assert counted(lambda: q @ q.transpose(2, 3)) == parts["scores"]
    assert counted(lambda: attention(q, q, q)) == parts["scores"] + parts["weighted sum"]


def test_the_sum_is_the_formula_of_the_notebook():
    for N, D in ((16, 64), (197, 768)):
        assert sum(bill.multiply_adds(N, D).values()) == 12 * N * D**2 + 2 * N**2 * D


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_multiply_adds_of_a_whole_vit(pool):
    model = VisionTransformer((8, 12), 2, 3, 10, embed_dim=12, depth=3, num_heads=2, mlp_ratio=2.0,
                              global_pool=pool)  # fmt: skip
    images = torch.zeros(1, 3, 8, 12)
    assert counted(lambda: model(images)) == bill.vit_multiply_adds(model)


# Memory


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("N, D, heads, ratio, batch", [(9, 24, 2, 4.0, 2), (20, 48, 4, 0.5, 3)])
def test_kept_numbers_are_those_that_torch_keeps(N, D, heads, ratio, batch, fused):
    block, x = EncoderBlock(D, heads, ratio), torch.zeros(batch, N, D)
    numbers = bill.kept_numbers(N, D, heads, ratio, fused)
    assert speed.saved_bytes(block, x, fused=fused) == 4 * batch * sum(numbers.values())


@pytest.mark.parametrize("fused", [True, False])
def test_kept_numbers_are_what_one_more_block_costs_a_model(fused):
    sizes = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=24, num_heads=2)
    one, two = (
        speed.expected_bytes(VisionTransformer(depth=depth, **sizes), 2, fused) for depth in (1, 2)
    )
    assert two - one == 4 * 2 * sum(bill.kept_numbers(17, 24, 2, fused=fused).values())


def test_memory_records_the_count_beside_the_formula():
    rows = bill.memory([[8, 128, 2], [16, 128, 2]])["rows"]
    assert [(row["N"], row["D"], row["batch"]) for row in rows] == [(8, 128, 2), (16, 128, 2)]
    for row in rows:
        assert row["fused kernel"][0] == row["fused kernel"][1]
        assert row["written out"][0] == row["written out"][1]
        more = row["written out"][1] - row["fused kernel"][1]
        assert more == 4 * 2 * 2 * row["N"] * (row["N"] - 1)  # bytes, images, heads


# Time


PARTS = {"block", "attention", "written out", "pairs", "mlp"}


@pytest.mark.parametrize("training", [False, True])
def test_a_sweep_times_all_parts_of_all_sizes(training):
    sizes = [[4, 64, 3], [8, 64, 1], [4, 128, 1]]
    result = bill.sweep(sizes, training, rounds=2)
    assert [[row["N"], row["D"], row["batch"]] for row in result["rows"]] == sizes
    for row in result["rows"]:
        assert set(row["seconds"]) == PARTS
        assert all(len(s) == 2 and min(s) > 0 for s in row["seconds"].values())
    assert json.loads(json.dumps(result)) == result


def watched(monkeypatch, *arguments):
    """{part: multiply-adds, forward and backward} of what a sweep of one size would time."""
    found = {}

    def timed(works, rounds):
        for name, work in next(iter(works.values())).items():
            with FlopCounterMode(display=False) as counter:
                work()
            found[name] = counter.get_total_flops() / 2

    def grad(y, wanted, start):  # the counter cannot watch torch.autograd.grad
        torch.autograd.backward(y, start, inputs=wanted)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(bill, "timed", timed)
    arguments[0](*arguments[1:])
    return found


def test_what_is_timed_is_what_is_counted(monkeypatch):
    N, D, batch = 8, 128, 3
    parts = {part: batch * count for part, count in bill.multiply_adds(N, D).items()}
    forward = watched(monkeypatch, bill.sweep, [[N, D, batch]])
    assert forward["pairs"] == 2 * parts["scores"] and forward["mlp"] == parts["mlp"]
    assert forward["attention"] == forward["written out"] == sum(parts.values()) - parts["mlp"]
    assert forward["block"] == sum(parts.values())
    training = watched(monkeypatch, bill.sweep, [[N, D, batch]], True)
    assert training["mlp"] == 3 * forward["mlp"]  # backward: for the input and for the weights
    assert training["written out"] == 3 * forward["written out"]
    found = watched(monkeypatch, bill.pieces, [[N, D, batch]])
    assert found.pop("fused kernel") == 2 * parts["scores"]
    assert found == parts | {"softmax": 0, "GELU": 0}


def test_training_wants_gradients_and_forward_keeps_nothing():
    block = bill.block_of(64)
    seen = []

    def work():
        seen.append(torch.is_grad_enabled())
        return block(torch.zeros(1, 2, 64)).sum()

    bill.step(work, [])
    bill.step(work, list(block.parameters()))
    assert seen == [False, True]
    assert all(p.grad is None for p in block.parameters())  # nothing piles up between rounds


def test_the_pairs_are_what_attention_does_between_its_layers():
    block, x = bill.block_of(128), torch.randn(2, 5, 128)
    pairs = bill.Pairs(2)(block.attn.qkv(x))
    torch.testing.assert_close(block.attn.proj(pairs), block.attn(x))


def test_a_width_that_is_no_multiple_of_a_head_is_refused():
    with pytest.raises(ValueError, match="the width is 100: a multiple of 64"):
        bill.sweep([[4, 100, 1]])


def test_halving_the_patch_side_makes_four_times_the_patches():
    model = dict(embed_dim=16, depth=1, num_heads=2)
    rows = bill.halving([4, 2], img_size=8, batch=2, model=model, rounds=2)["rows"]
    assert [row["tokens"] for row in rows] == [5, 17] and [r["patch_size"] for r in rows] == [4, 2]
    for row in rows:
        vit = VisionTransformer(8, row["patch_size"], 1, 10, mlp_ratio=2.0, **model)
        assert row["multiply_adds"] == bill.vit_multiply_adds(vit)
        kept = speed.expected_bytes(vit, 2) / 2
        assert row["bytes"] == pytest.approx(kept, rel=1e-2)
        assert {kind: len(s) for kind, s in row["seconds"].items()} == dict(forward=2, training=2)


# Ratios


def row(N, D=64, batch=1, **seconds):
    return dict(N=N, D=D, batch=batch, seconds=seconds)


def test_ratios_are_taken_round_by_round():
    rows = [row(4, batch=2, block=[1.0, 2.0, 4.0]), row(8, block=[1.0, 3.0, 8.0])]
    assert bill.growth_of(rows, "block") == [(1, 1, 1), (2, 3, 4)]
    assert bill.growth_of(rows, "block", per="batch") == [(1, 1, 1), (1, 1.5, 2)]
    assert bill.over(row(4, a=[1.0, 6.0], b=[2.0, 3.0]), "a", "b") == [0.5, 2]


def test_the_price_of_a_multiply_add():
    N, D = 32, 64
    parts = bill.multiply_adds(N, D)
    same = row(N, **{part: [float(count)] for part, count in parts.items()})
    assert all(bill.price(same, part) == [1] for part in parts)
    attention_count = 4 * N * D**2 + 2 * N**2 * D
    twice = row(N, attention=[2.0 * attention_count], mlp=[8.0 * N * D**2])
    assert bill.price(twice, "attention") == [2]
    pairs = row(N, pairs=[3.0 * 2 * N**2 * D], mlp=[8.0 * N * D**2])
    assert bill.price(pairs, "pairs") == [3]


def test_crossings_of_the_counts_are_at_2_and_4_widths():
    rows = []
    for N in (16, 32, 64, 128, 256, 512):
        parts = bill.multiply_adds(N, 64)
        mlp, pairs = parts.pop("mlp"), 2 * parts["scores"]
        rows.append(row(N, attention=[sum(parts.values())], pairs=[pairs], mlp=[mlp]))
    assert bill.crossings(rows, "attention") == [pytest.approx(2 * 64)]
    assert bill.crossings(rows, "pairs") == [pytest.approx(4 * 64)]


def test_a_crossing_is_where_it_stays_above():
    x = [1, 4, 16, 64]
    assert bill.crossing(x, [0.5, 2.0, 4.0, 4.0]) == pytest.approx(2)
    assert bill.crossing(x, [0.5, 2.0, 0.5, 2.0]) == pytest.approx(32)
    assert bill.crossing(x, [0.5, 2.0, 2.0, 0.9]) is None
    assert bill.crossing(x, [2.0, 2.0, 2.0, 2.0]) is None


def test_what_is_recorded_can_be_written_down():
    for function, arguments in bill.POINTS.values():
        assert json.loads(json.dumps(arguments)) == arguments
        assert callable(getattr(bill, function.removeprefix("lab.cost.")))
    for N, D, batch in (size for how in bill.SWEEPS.values() for size in how["sizes"]):
        assert batch >= 1 and D % bill.HEAD == 0 and N >= 1
    for D in (64, 192):
        inner = [N for N, width, _ in bill.SWEEPS[f"width_{D}"]["sizes"] if width == D]
        assert min(inner) < 2 * D < 4 * D < max(inner)  # both crossings lie inside


# Charts


def test_marks_stand_beside_the_formula():
    lines = {"forward": ((16, 64), [(1, 1, 1), (3, 4, 9)])}
    panels = {"tokens N": ((1, 4), lines), "width D": ((1, 4), lines)}
    figure = bill_charts.beside(panels, "time", "a title", level=1, named=[{32: "2 D"}, {}])
    first, second = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == ["tokens N", "width D"]
    formula, forward, level, upright = first.get_lines()
    assert list(formula.get_ydata()) == [1, 4] and list(forward.get_ydata()) == [1, 4]
    assert list(level.get_ydata()) == [1, 1] and list(upright.get_xdata()) == [32, 32]
    strokes = first.collections[0].get_segments()
    assert [tuple(s[:, 1]) for s in strokes] == [(1, 1), (3, 9)]
    assert first.get_xscale() == first.get_yscale() == "log"
    assert len(second.get_lines()) == 3
    assert_nothing_outside(figure)


def as_counted(sizes):
    """Rows of a machine on which every multiply-add takes a second, those written out two."""
    rows = []
    for N, D, batch in sizes:
        parts = {part: batch * count for part, count in bill.multiply_adds(N, D).items()}
        total, mlp = sum(parts.values()), parts["mlp"]
        seconds = dict(block=total, mlp=mlp, attention=total - mlp)
        seconds |= {"written out": 2 * seconds["attention"]}
        rows.append(row(N, D, batch, **{part: [float(s)] * 2 for part, s in seconds.items()}))
    return {"rows": rows}


def test_on_a_machine_that_counts_the_marks_lie_on_the_formula():
    costs = {
        f"{name}_{kind}": as_counted(how["sizes"])
        for name, how in bill.SWEEPS.items()
        for kind in ("forward", "training")
    }
    panels = bill_charts.growth_panels(costs)
    assert list(panels) == ["tokens N", "width D", "images in a batch"]
    for formula, lines in panels.values():
        for x, spreads in lines.values():
            assert len(x) == len(formula) and [low for low, _, _ in spreads] == formula
    halves = bill_charts.half_panels(costs)
    for D, (formula, lines) in zip((64, 192), halves.values(), strict=True):
        x, spreads = lines["training"]
        assert [middle for _, middle, _ in spreads] == formula and x[0] == 16
        assert [m for _, m, _ in lines["training, written out"][1]] == [2 * f for f in formula]
        assert formula[x.index(2 * D)] == 1
    assert_nothing_outside(bill_charts.beside(halves, "attention over MLP", level=1))


def test_pieces_have_a_bar_for_counts_and_one_for_time():
    seconds = {piece: [1.0, 2.0, 9.0] for piece in [*bill_charts.PIECES, "fused kernel"]}
    figure = bill_charts.piece_bars([row(64, **seconds)], "a title")
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    counts = bill.multiply_adds(64, 64)
    total = sum(counts.values())
    pieces = list(bill_charts.PIECES)
    assert widths[: len(pieces)] == pytest.approx([counts.get(p, 0) / total for p in pieces])
    assert widths[len(pieces) :] == pytest.approx([1 / len(pieces)] * len(pieces))
    assert len(set(bill_charts.PIECES.values())) == len(pieces) and set(counts) < set(pieces)
    words = [text.get_text() for text in artists(figure, matplotlib.text.Text)]
    assert {"N = 64: multiply-adds", "N = 64: time", "a title"} <= set(words)
    assert_nothing_outside(figure)
