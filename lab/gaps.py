"""Which differences between recorded points are more than noise, and tables that say so.

depth = recorded("digits", "depth")                       # {"1": record, "2": ..., "8": ...}
gap = compare(depth["1"], recorded("digits", "base")["base"])
gap.points, gap.error, gap.counts
"""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lab.trials import records


def recorded(data, *experiments):
    """{name: record} of all points on one data set, numbers in order.

    data: "digits" or "Fashion-MNIST". The name is the point's; with several experiments the
    experiment stands before it, "depth 1".
    """
    found, prefix = {}, data.split("-")[0].lower() + "_"
    for experiment in experiments:
        label = experiment.replace("_", " ")
        mine = {
            point.removeprefix(prefix).replace("_", " "): record
            for point, record in records(experiment).items()
            if point.startswith(prefix)
        }
        for name in sorted(mine, key=by_numbers):
            alone = len(experiments) == 1 or name == label
            found[name if alone else f"{label} {name}"] = mine[name]
    return found


def both(*experiments):
    """{data set: recorded(data set, *experiments)} for digits and Fashion-MNIST."""
    return {data: recorded(data, *experiments) for data in ("digits", "Fashion-MNIST")}


def by_numbers(name):
    """A key for sorting: "width 16" before "width 100"."""
    parts = re.split(r"(\d+\.?\d*)", name)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


@dataclass
class Gap:
    """By how many points (hundredths of accuracy) one record is better than another.

    over_seeds: standard error of it if the test images were fixed. over_images: what another
    draw of as many test images would add.
    """

    points: float
    over_seeds: float
    over_images: float

    @property
    def error(self):
        """The standard error with both sources of noise."""
        return float(np.hypot(self.over_seeds, self.over_images))

    @property
    def counts(self):
        """Whether the gap is more than two standard errors."""
        return abs(self.points) > 2 * self.error

    @property
    def verdict(self):
        """Either "counts", or "(seeds)" if it would count by the seeds alone, or nothing."""
        if self.counts:
            return "counts"
        return "(seeds)" if abs(self.points) > 2 * self.over_seeds else ""


def compare(record, against):
    """The Gap between the test accuracies of two records (two seeds or more each).

    Seeds: the variances of the two means added. Images: sqrt(p (1 - p) / n) for n test images, p
    the mean of all runs: what one accuracy has. Two models that see the same images share much of
    it, and two that were right independently would have sqrt(2) times as much.
    ValueError if one has a single seed, or they were tested on different numbers of images.
    """
    n, other = record["images"]["test"], against["images"]["test"]
    a, b = np.array(record["test"]), np.array(against["test"])
    if n != other or min(len(a), len(b)) < 2:
        raise ValueError(
            f"{len(a)} runs tested on {n} images and {len(b)} on {other} given: two runs or more "
            "of each are needed, on the same images"
        )
    seeds = np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    p = (a.mean() + b.mean()) / 2
    gap = 100 * np.array([a.mean() - b.mean(), seeds, np.sqrt(p * (1 - p) / n)])
    return Gap(*gap.tolist())


def table(points, against, title="", sizes=False):
    """Lines of text, one for each record in points {name: record}, compared with against's.

    Mean and standard deviation of the test accuracy, the learning rate chosen (* if it is the
    lowest or highest of those tried), and the gap to against with twice its error and its
    verdict. against: one of the names in points. sizes: parameters and multiply-adds as
    well, in thousands.
    """
    width = max(len(title), *map(len, points))
    head = f"{title:{width}}   test accuracy    rate    "
    lines = [head + ("parameters  products  " if sizes else "") + f"against {against}"]
    for name, record in points.items():
        test, rates = 100 * np.array(record["test"]), [float(rate) for rate in record["tried"]]
        edge = "*" if record["lr"] in (min(rates), max(rates)) else " "
        line = f"{name:{width}}   {test.mean():5.2f}% ± {test.std(ddof=1):4.2f}  "
        line += f"{record['lr']:6g}{edge}  "
        if sizes:
            line += f"{record['parameters'] / 1e3:7.1f} k  {record['multiply_adds'] / 1e3:6.0f} k  "
        if name != against:
            gap = compare(record, points[against])
            line += f"{gap.points:+6.2f} ± {2 * gap.error:.2f}  {gap.verdict}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def steps(points):
    """One line: what each of points {value: record} gains over the one before it.

    * counts, (*) is more than seeds alone explain.
    """
    found = []
    for (low, a), (high, b) in pairwise(points.items()):
        gap = compare(b, a)
        text = f"{low:g} to {high:g}: {gap.points:+.2f} ± {2 * gap.error:.2f}"
        found.append(text + {"counts": "*", "(seeds)": "(*)", "": ""}[gap.verdict])
    return ";  ".join(found)
