"""The house: imports go down only, nothing goes round in a circle, the core stays small."""

import ast
import json
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {  # room: the rooms that its files may import from
    "helpers": {"helpers"},
    "lab": {"helpers", "lab"},
    "pictures": {"helpers", "pictures"},
    "benchmarks": {"helpers", "lab", "benchmarks"},
    "tools": {"helpers", "tools"},
    "notebooks": {"helpers", "lab", "pictures"},
}
SUB_ROOMS = ("helpers/folders", "helpers/scale", "helpers/weights")  # one stop each on the way down


def source(path):
    """The Python in a file; of a notebook all code cells, without the lines that are no Python."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.startswith(("%", "!")))


def imported(path, root=ROOT):
    """The files of the repository that a file imports, wherever in it, as paths from root."""
    found = set()
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            place = root / name.replace(".", "/")
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file() and file != path:
                    found.add(file.relative_to(root).as_posix())
    return found


def files(room, root=ROOT):
    found = [p for end in ("py", "ipynb") for p in (root / room).rglob(f"*.{end}")]
    return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts)


def upward(root=ROOT):
    """["file imports file", ...] where an import goes to a room that it must not know."""
    return [
        f"{path.relative_to(root).as_posix()} imports {other}"
        for room, allowed in MAY_IMPORT.items()
        for path in files(room, root)
        for other in sorted(imported(path, root))
        if other.split("/")[0] not in allowed
    ]


def stop(file):
    """A file of the way down: itself, or the sub-room that it lies in."""
    return next((room for room in SUB_ROOMS if file.startswith(room)), file)


def way_down(root=ROOT):
    """All files and sub-rooms, those that know nobody first. CycleError if there is no such way."""
    graph = {}
    for room in ("helpers", "lab", "pictures"):
        for path in files(room, root):
            here = path.relative_to(root).as_posix()
            for other in imported(path, root):
                graph.setdefault(here, set()).add(other)
                if stop(here) != stop(other):
                    graph.setdefault(stop(here), set()).add(stop(other))
    inside = {file for file in graph if stop(file) != file}
    list(TopologicalSorter(graph).static_order())  # file by file
    rooms = {k: {stop(f) for f in v} - {k} for k, v in graph.items() if k not in inside}
    return list(TopologicalSorter(rooms).static_order())  # room by room


def test_imports_go_down_only():
    assert upward() == []


def test_there_is_no_circle():
    order = way_down()
    model, scale, training, train = (
        order.index(f"helpers/{name}") for name in ("model.py", "scale", "training.py", "train.py")
    )
    assert model < scale < training < train


def test_the_model_knows_nobody():
    assert imported(ROOT / "helpers" / "model.py") == set()


def test_the_core_is_small():
    core = {p.name: len(source(p).splitlines()) for p in (ROOT / "helpers").glob("*.py")}
    assert len(core) <= 11 and sum(core.values()) <= 2200, core
    for room in ("helpers", "lab", "pictures"):
        for path in files(room):
            assert len(source(path).splitlines()) <= 350, path


def test_every_room_is_installed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for path in ROOT.glob("[a-z]*/**/__init__.py"):
        package = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        assert package == "tests" or f'"{package}"' in text, f"{package} is not in pyproject.toml"


def test_the_map_names_every_file_and_no_other():
    text = (ROOT / "helpers" / "README.md").read_text(encoding="utf-8")
    there = {path.name for room in ("helpers", "lab", "pictures") for path in files(room)}
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(\w+\.py)`", tables)) == there


@pytest.mark.parametrize(
    "file, line, seen",
    [
        ("helpers/a.py", "from lab import b", True),
        ("helpers/a.py", "def f():\n    import lab.b", True),
        ("pictures/a.py", "from lab.b import x", True),
        ("lab/a.py", "from lab.b import x", False),
    ],
)
def test_an_import_upward_is_seen(tmp_path, file, line, seen):
    for room in ("helpers", "lab", "pictures"):
        (tmp_path / room).mkdir()
    (tmp_path / "lab" / "b.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / file).write_text(line + "\n", encoding="utf-8")
    assert bool(upward(tmp_path)) == seen


@pytest.mark.parametrize("inner", ["from helpers.scale.d import x", "from helpers.c import x"])
def test_a_circle_is_seen(tmp_path, inner):
    """Between two files, and between a file and a sub-room by way of two of its files."""
    (tmp_path / "helpers" / "scale").mkdir(parents=True)
    (tmp_path / "helpers" / "a.py").write_text("from helpers.scale.c import x\n", encoding="utf-8")
    (tmp_path / "helpers" / "c.py").write_text("from helpers.a import x\n", encoding="utf-8")
    (tmp_path / "helpers" / "scale" / "c.py").write_text(f"{inner}\n", encoding="utf-8")
    (tmp_path / "helpers" / "scale" / "d.py").write_text(
        "from helpers.a import x\n", encoding="utf-8"
    )
    with pytest.raises(CycleError):
        way_down(tmp_path)
