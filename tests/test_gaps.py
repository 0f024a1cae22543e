"""lab/gaps.py: what counts as a difference, and how it is printed."""

import numpy as np
import pytest

from lab.gaps import Gap, both, by_numbers, compare, recorded, steps, table


def a_record(*test, lr=0.003, images=400):
    tried = {"0.001": [0.5], "0.003": [0.6], "0.009": [0.4]}
    sizes = dict(images={"test": images}, parameters=12_345, multiply_adds=678_900)
    return dict(test=list(test), lr=lr, tried=tried) | sizes


def test_a_gap_has_both_noises():
    gap = compare(a_record(0.90, 0.92, 0.94), a_record(0.79, 0.81))
    assert gap.points == pytest.approx(12)
    # variances 4e-4 / 3 and 2e-4 / 2; p = 0.86 on 400 images
    assert gap.over_seeds == pytest.approx(100 * (4e-4 / 3 + 2e-4 / 2) ** 0.5)
    assert gap.over_images == pytest.approx(100 * (0.86 * 0.14 / 400) ** 0.5)
    assert Gap(2.01, 0.6, 0.8).counts and not Gap(1.99, 0.6, 0.8).counts
    verdicts = {-2.01: "counts", 1.3: "(seeds)", -1.3: "(seeds)", 1.1: ""}
    assert {points: Gap(points, 0.6, 0.8).verdict for points in verdicts} == verdicts


@pytest.mark.parametrize("seeds, images, mean", [(2, 360, 0.97), (5, 360, 0.9), (3, 2000, 0.84)])
def test_two_of_the_same_rarely_count_as_different(seeds, images, mean):
    """A against A: trained alike, tested on the same images, of which some are hard for all."""
    draw, trials = np.random.default_rng(0), 500
    chances = draw.beta(2 * mean, 2 * (1 - mean), images)  # each image's, to be answered rightly
    gaps = []
    for _ in range(trials):
        tests = draw.binomial(1, chances, (2, seeds, images)).mean(axis=2)
        tests = (tests + draw.normal(0, 0.003, tests.shape)).clip(0, 1)  # and runs differ
        gaps.append(compare(*(a_record(*test, images=images) for test in tests)))
    assert sum(gap.counts for gap in gaps) < 0.05 * trials
    assert sum(gap.verdict != "" for gap in gaps) > 0.05 * trials  # by the seeds alone: too often


def test_one_run_has_no_spread_and_images_must_be_the_same():
    with pytest.raises(ValueError, match="two runs or more"):
        compare(a_record(0.9), a_record(0.8, 0.9))
    with pytest.raises(ValueError, match="on the same images"):
        compare(a_record(0.9, 0.9), a_record(0.8, 0.9, images=10))


def test_recorded_picks_a_data_set_numbers_in_order():
    names = ["width 100", "1-D", "width 16", "none", "16", "2", "0.5"]
    expected = ["0.5", "1-D", "2", "16", "none", "width 16", "width 100"]
    assert sorted(names, key=by_numbers) == expected
    assert list(recorded("digits", "heads")) == ["1", "2", "8", "16"]
    names = ["base", "mlp ratio 0.5", "mlp ratio 1", "mlp ratio 4"]
    found = both("base", "mlp_ratio")
    assert [list(points) for points in found.values()] == [names, names]
    assert found["Fashion-MNIST"]["mlp ratio 4"]["point"] == "fashion_4"


def test_table_marks_the_edge_and_what_counts():
    points = {"base": a_record(0.90, 0.91), "same": a_record(0.9, 0.915, lr=0.001)}
    points["bad"] = a_record(0.5, 0.52, lr=0.009)
    head, *lines = table(points, "base", "digits").splitlines()
    assert head.startswith("digits") and head.endswith("against base") and len(lines) == 3
    assert "90.50% ± 0.71" in lines[0] and "*" not in lines[0] and "counts" not in lines[0]
    twice = 2 * compare(points["bad"], points["base"]).error
    assert "0.009*" in lines[2] and lines[2].endswith(f"-39.50 ± {twice:.2f}  counts")
    assert "0.001*" in lines[1] and "+0.25" in lines[1] and not lines[1].endswith("counts")
    sized = table(points, "base", sizes=True).splitlines()
    assert "12.3 k" in sized[1] and "679 k" in sized[1]


def test_steps_go_from_each_to_the_next():
    tests = {0.5: (0.6, 0.62), 1: (0.9, 0.92), 2: (0.91, 0.92), 4: (0.93, 0.93)}
    points = {value: a_record(*test) for value, test in tests.items()}
    first, second, third = steps(points).split(";  ")
    assert first.startswith("0.5 to 1: +30.00 ±") and first.endswith("*")
    assert second.startswith("1 to 2: +0.50 ±") and "*" not in second
    assert third.startswith("2 to 4: +1.50 ±") and third.endswith("(*)")
