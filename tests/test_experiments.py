"""benchmarks/experiments.py: the table, and that a point is run once, whole or not at all."""

import importlib
import inspect
import json
import sys

import pytest

from tests.notebook_rules import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import experiments

FACTS = {"experiment", "point", "function", "arguments", "device", "torch_threads", "versions",
         "date", "seconds", "command"}  # fmt: skip


@pytest.fixture
def few(monkeypatch):
    """Two experiments of the same two quick points."""
    table = {
        name: ("tests.test_experiments.point", {"seed": seed})
        for seed, name in enumerate(("one", "two"))
    }
    monkeypatch.setattr(
        experiments, "EXPERIMENTS", {"first": lambda: table, "second": lambda: table}
    )
    return table


def point(seed):
    """What a quick point returns."""
    return {"test": [0.5, 0.5 + seed / 4, 0.5]}


def in_this_process(monkeypatch):
    """Points one after the other, here, so that a test sees each."""

    class Pool:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def submit(self, function, *args):
            future = experiments.concurrent.futures.Future()
            future.set_result(function(*args))
            return future

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(experiments.concurrent.futures, "ProcessPoolExecutor", Pool)


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_point_can_be_called(name):
    points = experiments.EXPERIMENTS[name]()
    assert points
    for label, (place, arguments) in points.items():
        module, function = place.rsplit(".", 1)
        signature = inspect.signature(getattr(importlib.import_module(module), function))
        signature.bind(**arguments)
        assert json.loads(json.dumps(arguments)) == arguments, label  # nothing but JSON
        assert not set(label) - set("abcdefghijklmnopqrstuvwxyzD0123456789_-."), label


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_record_is_whole_and_what_the_table_asks_for(name):
    points = experiments.EXPERIMENTS[name]()
    files = {file.stem: file for file in (experiments.RESULTS / name).glob("*")}
    assert set(files) == set(points)
    assert not experiments.missing(name, experiments.RESULTS)
    for label, file in files.items():
        record = json.loads(file.read_text())
        assert FACTS <= set(record)
        assert (record["experiment"], record["point"]) == (name, label)
        assert record["torch_threads"] == 1 and "torch" in record["versions"]
        if "test" in record:
            seeds = record["arguments"].get("seeds", record.get("seeds"))
            digits = record["arguments"].get("data") == "digits"
            assert len(record["test"]) == len(seeds) >= (5 if digits else 3)
            assert all(0 <= accuracy <= 1 for accuracy in record["test"])


def test_a_point_is_run_once(few, tmp_path, monkeypatch, capsys):
    in_this_process(monkeypatch)
    where = ["--json-dir", str(tmp_path)]
    experiments.main(["first", *where])
    record = json.loads((tmp_path / "first" / "two.json").read_text())
    assert FACTS <= set(record) and record["test"] == [0.5, 0.75, 0.5]
    assert record["command"] == "python benchmarks/experiments.py first"
    assert not (tmp_path / "second").exists()
    (tmp_path / "first" / "two.json").unlink()
    before = (tmp_path / "first" / "one.json").stat().st_mtime_ns
    experiments.main(["all", *where])
    assert (tmp_path / "first" / "one.json").stat().st_mtime_ns == before
    assert len(list(tmp_path.glob("*/*"))) == 4
    capsys.readouterr()
    experiments.main(where)
    assert "first                  2 of   2 recorded" in capsys.readouterr().out
    experiments.main(["first", "--show", *where])
    assert "test 58.33% +- 14.43% over 3 seeds" in capsys.readouterr().out


def test_what_stops_in_the_middle_leaves_what_is_whole(few, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    few["two"] = ("tests.test_experiments.interrupted", {})
    with pytest.raises(KeyboardInterrupt):
        experiments.main(["first", "--json-dir", str(tmp_path)])
    assert [file.name for file in tmp_path.glob("*/*")] == ["one.json"]


def interrupted():
    raise KeyboardInterrupt


def test_two_processes_write_the_same(few, tmp_path):
    experiments.main(["first", "--json-dir", str(tmp_path), "--processes", "2"])
    record = json.loads((tmp_path / "first" / "two.json").read_text())
    assert record["test"] == [0.5, 0.75, 0.5] and record["torch_threads"] == 1


def test_another_table_than_the_record_s_is_refused(few, tmp_path):
    experiments.run_point("first", "one", *few["one"], tmp_path, "by hand")
    few["one"] = (few["one"][0], {"seed": 7})
    with pytest.raises(ValueError, match="one.json was made with other arguments than first"):
        experiments.main(["first", "--json-dir", str(tmp_path)])


def test_unknown_names_are_named(few, capsys):
    with pytest.raises(SystemExit):
        experiments.main(["third"])
    assert "unknown: third; there are: first, second" in capsys.readouterr().err
