"""What each part buys: named experiments, run point by point, recorded for notebook 13.

    python benchmarks/experiments.py                 # which there are, and how far each is
    python benchmarks/experiments.py depth heads     # run what is missing of these
    python benchmarks/experiments.py all
    python benchmarks/experiments.py depth --show    # what is recorded, as a table

A point is one JSON file, results/experiments/NAME/POINT.json, with all its seeds, the learning
rates that were tried, device, versions, date and command. A point that exists is not run again:
stop with Ctrl-C, and the same command goes on. Points run side by side in processes of one thread.
Fashion-MNIST is downloaded once, or read from the folder VIT_DATA.
"""

import argparse
import concurrent.futures
import datetime
import importlib
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from tqdm import tqdm

from helpers.checkpoints import write_json
from helpers.scale.run_folder import machine, versions
from lab import cost, masked_patches, task_trials, transfer
from lab.trials import RESULTS

# How each data set is trained in the appendix: 15 and 3 epochs in batches of 64 images.
DIGITS = dict(data="digits", steps=315, tune_seeds=[0, 1], seeds=[0, 1, 2, 3, 4])
FASHION = dict(
    data="fashion-mnist", images=dict(train=10000), steps=471, tune_seeds=[0], seeds=[0, 1, 2]
)
# Steps with so many training images; few of them are seen often, many only twice.
FASHION_STEPS = {100: 600, 300: 600, 1000: 600, 3000: 1000, 10000: 942, 54000: 1688}
SWEEP = [3e-4, 1e-3, 3e-3, 9e-3, 2.7e-2]  # learning rates, where they are the question


def on_both(points):
    """{point: arguments of trial} for digits and for 10,000 images of Fashion-MNIST."""
    return {
        f"{label}_{name}": ("lab.trials.trial", how | arguments)
        for label, how in (("digits", DIGITS), ("fashion", FASHION))
        for name, arguments in points.items()
    }


def sized(argument, values):
    """A point for each value of one argument of the model."""
    return {f"{value:g}": dict(model={argument: value}) for value in values}


def patches(sizes):
    """{name: patch side over the base's}: so a point has about the same grid on both data sets."""
    table = {}
    for name, factor in sizes.items():
        for label, how, P in (("digits", DIGITS, 2), ("fashion", FASHION, 7)):
            model = {"patch_size": round(P * factor)}
            table[f"{label}_{name}"] = ("lab.trials.trial", how | dict(model=model))
    return table


def positions():
    """Table 8: none, 1-D, 2-D, sine, added once or before every block"""
    table = {"none": dict(change=dict(name="positions", kind="none"))}
    for kind in ("1-D", "2-D", "sine"):
        for where in ("input", "every layer", "every layer, shared"):
            if (kind, where) == ("sine", "every layer, shared"):
                continue  # the waves are fixed: shared or not is the same
            change = dict(name="positions", kind=kind, where=where)
            table[f"{kind}_{where.replace(', ', '_').replace(' ', '_')}"] = dict(change=change)
    return on_both(table)


def pooling():
    """Figure 9: class token or average, over learning rates; all are tested, none by the test"""
    table = on_both({pool: dict(model=dict(global_pool=pool)) for pool in ("token", "avg")})
    extra = dict(lrs=SWEEP, test_all=True)
    return {point: (function, how | extra) for point, (function, how) in table.items()}


def matched():
    """Figure 8 the other way round: one thing changed, the width adjusted to the same size"""
    table = {  # base: depth 4, width 48, ratio 2, patch 7; products stay, and so do parameters,
        "depth_1": dict(depth=1, embed_dim=96),
        "depth_8": dict(depth=8, embed_dim=36),
        "mlp_ratio_1": dict(mlp_ratio=1.0, embed_dim=56),
        "mlp_ratio_4": dict(mlp_ratio=4.0, embed_dim=40),
        "patch_half": dict(patch_size=4, embed_dim=24),  # except here
    }
    return {
        f"fashion_{name}": ("lab.trials.trial", FASHION | dict(model=model))
        for name, model in table.items()
    }


def hunger():
    """Figures 3 and 4: ViT and ResNet of equal size, 100 to 54,000 images, with augmentation"""
    table = {}
    for label, model in (("vit", {}), ("resnet", {"resnet": 16})):
        for kind, training in (("plain", {}), ("augmented", dict(shift=2, zoom=0.1))):
            for count, number in FASHION_STEPS.items():
                if count in (300, 3000) and training:
                    continue  # every second size is enough for a difference
                table[f"{count:05}_{label}_{kind}"] = dict(
                    model=model, images=dict(train=count), training=training, steps=number
                )
    return over_fashion(table)


def one_order():
    """What a convolution knows beforehand: the patches of all images in one new order"""
    table = {}
    for count in (1000, 10000):
        for label, model in (("vit", {}), ("resnet", {"resnet": 16})):
            images = dict(train=count, shuffled=True)
            table[f"{count:05}_{label}_shuffled"] = dict(
                model=model, images=images, steps=FASHION_STEPS[count]
            )
    return over_fashion(table)


def hunger_digits():
    """The row of 100 images with the bundled digits: what a reader can run at once"""
    table = {
        "00100_vit": dict(model={}, images=dict(train=100)),
        "00100_resnet": dict(model={"resnet": 16}, images=dict(train=100)),
    }
    return {point: ("lab.trials.trial", DIGITS | rest) for point, rest in table.items()}


def over_fashion(table):
    """Points on Fashion-MNIST with three seeds, each with training images of its own."""
    how = dict(data="fashion-mnist", tune_steps=300, tune_seeds=[0], seeds=[0, 1, 2])
    return {point: ("lab.trials.trial", how | rest) for point, rest in table.items()}


EXPERIMENTS = {
    "probes": lambda: task_trials.POINTS,
    "base": lambda: on_both({"base": {}}),
    "positions": positions,
    "pooling": pooling,
    "depth": lambda: on_both(sized("depth", (1, 2, 8))),
    "width": lambda: on_both(sized("embed_dim", (16, 32, 96))),
    "patch": lambda: patches({"half": 0.5, "double": 2, "whole": 4}),
    "heads": lambda: on_both(sized("num_heads", (1, 2, 8, 16))),
    "mlp_ratio": lambda: on_both(sized("mlp_ratio", (0.5, 1.0, 4.0))),
    "matched": matched,
    "activation": lambda: on_both({"relu": dict(change=dict(name="relu"))}),
    "norm": lambda: on_both({
        "after": dict(change=dict(name="norm after")),
        "after_depth_8": dict(change=dict(name="norm after"), model=dict(depth=8)),
    }),
    "start": lambda: on_both({
        "small_normal": dict(change=dict(name="small normal start")),
        "torch": dict(change=dict(name="torch start")),
    }),
    "start_of_positions": lambda: on_both({
        f"{std}_width_{width}": dict(model=dict(pos_embed_std=std, embed_dim=width))
        for std, width in ((0.02, 16), (0.02, 48))
    }),
    "hunger": hunger,
    "one_order": one_order,
    "hunger_digits": hunger_digits,
    "few_labels": lambda: masked_patches.POINTS,
    "transfer": lambda: transfer.POINTS,
    "bill": lambda: cost.POINTS,
}  # fmt: skip


def missing(name, results):
    """{point: (function, arguments)} of an experiment that no file holds yet.

    ValueError if a file holds the point with other arguments than the table's.
    """
    table = {}
    for point, (function, arguments) in EXPERIMENTS[name]().items():
        file = results / name / f"{point}.json"
        if not file.exists():
            table[point] = function, arguments
        elif json.loads(file.read_text(encoding="utf-8"))["arguments"] != json.loads(
            json.dumps(arguments)
        ):
            raise ValueError(
                f"{file} was made with other arguments than {name} has now: delete it to run it "
                "again, or take back the change"
            )
    return table


def run_point(name, point, function, arguments, results, command):
    """Run one point in this process and write its file -> seconds."""
    torch.set_num_threads(1)
    module, function_name = function.rsplit(".", 1)
    start = time.perf_counter()
    result = getattr(importlib.import_module(module), function_name)(**arguments)
    seconds = time.perf_counter() - start
    facts = {
        "experiment": name,
        "point": point,
        "function": function,
        "arguments": arguments,
        "device": machine("cpu"),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "command": command,
    }
    write_json(results / name / f"{point}.json", facts | result)
    return seconds


def run(names, results, processes, command):
    """Run all missing points of the experiments in names, some at a time, with the time left."""
    todo = [
        (name, point, *how, results, command)
        for name in names
        for point, how in missing(name, results).items()
    ]
    spawn = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool,
        tqdm(total=len(todo), unit="point", dynamic_ncols=True) as bar,
    ):
        running = {pool.submit(run_point, *point): point for point in todo}
        try:
            for finished in concurrent.futures.as_completed(running):
                name, point = running[finished][:2]
                seconds = finished.result()
                bar.update()
                bar.write(f"{name} {point}: {seconds:.0f} s")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # a point that runs is finished
            raise


def show(name, results):
    """Print what is recorded of an experiment, a line for each point."""
    for file in sorted((results / name).glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if "test" not in record:
            print(f"{record['point']:36} {record['seconds']:6.0f} s")
            continue
        test = torch.atleast_1d(torch.tensor(record["test"], dtype=torch.float64))
        spread = f" +- {test.std():5.2%} over {len(test)} seeds" if len(test) > 1 else ""
        print(f"{record['point']:36} test {test.mean():6.2%}{spread}, "
              f"lr {record.get('lr')}, {record['seconds']:.0f} s")  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments, or all")
    parser.add_argument("--show", action="store_true", help="print what is recorded and stop")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="points at a time")
    parser.add_argument("--json-dir", type=Path, default=RESULTS, help="where records are kept")
    args = parser.parse_args(arguments)
    unknown = set(args.names) - set(EXPERIMENTS) - {"all"}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(EXPERIMENTS)}")
    names = list(EXPERIMENTS) if "all" in args.names else list(dict.fromkeys(args.names))
    if not names:
        for name in EXPERIMENTS:
            count = len(EXPERIMENTS[name]())
            print(f"{name:20} {count - len(missing(name, args.json_dir)):3} of {count:3} recorded")
        return
    if args.show:
        for name in names:
            print(f"\n{name}")
            show(name, args.json_dir)
        return
    run(names, args.json_dir, args.processes, "python benchmarks/experiments.py " + " ".join(names))


if __name__ == "__main__":
    main()
