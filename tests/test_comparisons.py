"""lab/gaps.py: what counts as a difference, and how it is printed."""

import json

import pytest
import torch

import lab.gaps as comparisons
import lab.trials as trials
from lab.gaps import Gap, by_numbers, compare, recorded, steps, table


def a_record(*test, lr=0.003, images=400):
    tried = {"0.001": [0.5], "0.003": [0.6], "0.009": [0.4]}
    return dict(test=list(test), lr=lr, tried=tried, images={"test": images}, parameters=12_345,
                multiply_adds=678_900)  # fmt: skip


def test_a_gap_has_both_noises():
    gap = compare(a_record(0.90, 0.92, 0.94), a_record(0.79, 0.81))
    assert gap.points == pytest.approx(12)
    # variances 4e-4 / 3 and 2e-4 / 2; p = 0.86 on 400 images
    assert gap.over_seeds == pytest.approx(100 * (4e-4 / 3 + 2e-4 / 2) ** 0.5)
    assert gap.over_images == pytest.approx(100 * (0.86 * 0.14 / 400) ** 0.5)
    assert gap.error == pytest.approx((gap.over_seeds**2 + gap.over_images**2) ** 0.5)
    assert gap.counts and compare(a_record(0.79, 0.81), a_record(0.9, 0.92)).counts


def test_what_counts_is_more_than_two_errors():
    assert Gap(2.01, 0.6, 0.8).counts and Gap(-2.01, 0.6, 0.8).counts
    assert not Gap(1.99, 0.6, 0.8).counts
    assert Gap(-2.01, 0.6, 0.8).verdict == "counts"
    assert Gap(1.3, 0.6, 0.8).verdict == Gap(-1.3, 0.6, 0.8).verdict == "(seeds)"
    assert Gap(1.1, 0.6, 0.8).verdict == ""


def test_equal_models_seldom_differ():
    """Two models that are right with the same probability, on the same images, mistakes shared."""
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(300):
        hard = torch.rand(360, generator=generator) < 0.2  # where there is something to get wrong
        right = 1 - 0.3 * hard.double() * (torch.rand(2, 5, 360, generator=generator) < 0.5)
        tests = (torch.rand(2, 5, 360, generator=generator) < right).double().mean(2)
        hits += compare(*(a_record(*runs.tolist(), images=360) for runs in tests)).counts
    assert hits / 300 < 0.05


def test_one_run_has_no_spread():
    with pytest.raises(ValueError, match="two runs or more"):
        compare(a_record(0.9), a_record(0.8, 0.9))
    with pytest.raises(ValueError, match="on the same images"):
        compare(a_record(0.9, 0.9), a_record(0.8, 0.9, images=10))


def test_names_are_sorted_by_their_numbers():
    names = ["width 100", "1-D", "width 16", "none", "16", "2", "0.5"]
    assert sorted(names, key=by_numbers) == ["0.5", "1-D", "2", "16", "none", "width 16",
                                             "width 100"]  # fmt: skip


def test_recorded_picks_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "RESULTS", tmp_path)
    for file in ("base/digits_base", "base/fashion_base", "mlp_ratio/digits_16",
                 "mlp_ratio/digits_2", "mlp_ratio/fashion_2"):  # fmt: skip
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / f"{file}.json").write_text(json.dumps({"file": file}))
    assert list(recorded("digits", "mlp_ratio")) == ["2", "16"]
    both = recorded("digits", "base", "mlp_ratio")
    assert list(both) == ["base", "mlp ratio 2", "mlp ratio 16"]
    assert both["mlp ratio 16"]["file"] == "mlp_ratio/digits_16"
    assert recorded("Fashion-MNIST", "base") == {"base": {"file": "base/fashion_base"}}
    found = comparisons.both("mlp_ratio")
    assert {data: list(points) for data, points in found.items()} == {
        "digits": ["2", "16"],
        "Fashion-MNIST": ["2"],
    }


def test_table_marks_the_edge_and_what_counts():
    points = {"base": a_record(0.90, 0.91), "bad": a_record(0.5, 0.52, lr=0.009),
              "same": a_record(0.9, 0.915)}  # fmt: skip
    lines = table(points, "base", "digits").splitlines()
    assert len(lines) == 4 and lines[0].startswith("digits") and "against base" in lines[0]
    assert "90.50% ± 0.71" in lines[1] and "*" not in lines[1] and "counts" not in lines[1]
    assert "0.009*" in lines[2] and "-39.50" in lines[2] and lines[2].endswith("counts")
    assert "+0.25" in lines[3] and not lines[3].endswith("counts")
    twice = 2 * compare(points["bad"], points["base"]).error
    assert f"± {twice:.2f}" in lines[2]
    sized = table(points, "base", sizes=True).splitlines()
    assert "12.3 k" in sized[1] and "679 k" in sized[1]


def test_steps_go_from_each_to_the_next():
    points = {0.5: a_record(0.6, 0.62), 1: a_record(0.9, 0.92), 2: a_record(0.91, 0.92),
              4: a_record(0.93, 0.93)}  # fmt: skip
    first, second, third = steps(points).split(";  ")
    assert first.startswith("0.5 to 1: +30.00 ±") and first.endswith("*")
    assert second.startswith("1 to 2: +0.50 ±") and "*" not in second
    assert third.startswith("2 to 4: +1.50 ±") and third.endswith("(*)")
