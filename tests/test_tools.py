"""tools/: the runner of notebooks, the address, the summary of `make test`, and the set-up."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from tools import run_notebooks, set_address, test_all

ROOT = Path(__file__).resolve().parents[1]
URL = "https://github.com/owner/repository"


# run_notebooks.py, on notebooks of a few lines


@pytest.fixture
def good(tmp_path, write_notebook):
    """A notebook whose output comes in pieces, in time; its key result is "two times two is 4"."""
    pieces = "import sys, time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(0.05)"
    said = 'print("so:")\nprint("two times two is", 2 * 2)'
    path = tmp_path / "notebooks" / "01_good.ipynb"
    return write_notebook(path, "# Good", [pieces], "And:", [said, "key-result"])


@pytest.fixture
def bad(tmp_path, write_notebook):
    path = tmp_path / "notebooks" / "00_bad.ipynb"
    return write_notebook(path, "# Bad", ["x = 1"], ["y = 0\nprint(x / y)"], ["print('never')"])


def test_outputs_made_twice_are_the_same_bytes(good):
    (result,) = run_notebooks.run([good])
    once = good.read_bytes()
    run_notebooks.run([good])
    assert good.read_bytes() == once

    notebook = nbformat.read(good, as_version=4)
    assert notebook.metadata == run_notebooks.METADATA
    assert [c.execution_count for c in notebook.cells if c.cell_type == "code"] == [1, 2]
    assert [o.text for o in notebook.cells[1].outputs] == ["0\n1\n2\n"]
    assert [dict(c.metadata) for c in notebook.cells] == [{}, {}, {}, {"tags": ["key-result"]}]
    assert (result.key_result, result.error) == ("two times two is 4", None)


def test_failing_notebook_is_named_and_left_alone_and_the_others_run(bad, good, tmp_path):
    broken = bad.with_name("02_broken.ipynb")
    broken.write_text("<<<<<<< HEAD", encoding="utf-8")
    before = bad.read_bytes()
    results = run_notebooks.run([bad, good, broken])
    assert results[0].error == "cell [2] `y = 0`: ZeroDivisionError: division by zero"
    assert results[1].error is None
    assert results[2].error.startswith("JSONDecodeError")
    assert bad.read_bytes() == before
    assert sorted(p.name for p in bad.parent.iterdir()) == [bad.name, good.name, broken.name]


def test_a_page_folds_answers_and_leaves_out_what_is_folded(tmp_path, write_notebook):
    answer = "**Predict.**\n\n<details><summary>Answer</summary>\n\nIt is **four**.\n\n</details>"
    path = write_notebook(tmp_path / "05_page.ipynb", "# T", ["hidden = 1"], answer, ["print(4)"])
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata = dict(run_notebooks.FOLDED)
    nbformat.write(notebook, path)
    run_notebooks.run([path], tmp_path / "build")
    page = (tmp_path / "build" / "05_page.html").read_text(encoding="utf-8")
    inside = page.partition("<details>")[2].partition("</details>")[0]
    assert "<strong>four</strong>" in inside and "hidden" not in page.partition("<main>")[2]
    run_notebooks.run([path])
    assert dict(nbformat.read(path, as_version=4).cells[1].metadata) == run_notebooks.FOLDED


def test_pages_and_table(bad, good, tmp_path, capsys, monkeypatch):
    build = tmp_path / "build"
    build.mkdir()
    (build / "09_stale.html").write_text("an earlier success", encoding="utf-8")
    before = good.read_bytes()
    monkeypatch.setattr(run_notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py"])
    with pytest.raises(SystemExit) as stop:
        run_notebooks.main()
    said = capsys.readouterr().out
    assert stop.value.code == 1
    assert "[2/2] 01_good  ok" in said
    assert "00_bad failed at cell [2] `y = 0`: ZeroDivisionError: division by zero" in said
    assert said.index("01_good  ") < said.index("two times two is 4") < said.index("failed at")

    kinds = [f"{path.stem}{kind}" for path in (bad, good) for kind in (".html", ".ipynb")]
    assert sorted(p.name for p in build.iterdir()) == [*kinds, "index.html"]
    index = (build / "index.html").read_text(encoding="utf-8")
    assert '<a href="01_good.html">01  Good</a>' in index
    assert "two times two is 4" in index and "FAILED at cell [2]" in index
    assert "two times two is 4" in (build / "01_good.html").read_text(encoding="utf-8")
    assert good.read_bytes() == before


def test_ctrl_c_stops_the_whole_run(bad, good):
    begun = bad.with_name("begun")
    slow = f"import time\\nopen({str(begun)!r}, 'w').close()\\ntime.sleep(600)"
    bad.write_text(bad.read_text(encoding="utf-8").replace("x = 1", slow), encoding="utf-8")
    runner = [sys.executable, run_notebooks.__file__, "--inplace", bad, good]
    process = subprocess.Popen(
        runner, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    deadline = time.monotonic() + 300
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=300)
    first, *_ = complaint.split()  # on a busy machine nbclient adds that its kernel died
    assert (process.returncode, said, first) == (1, "", "stopped")


def test_cells_without_ids_get_the_same_ids_each_time(good):
    text = good.read_text(encoding="utf-8").replace('"nbformat_minor": 5', '"nbformat_minor": 4')
    good.write_text(
        "\n".join(line for line in text.splitlines() if '   "id":' not in line), encoding="utf-8"
    )
    ids = [cell.id for cell in run_notebooks.read(good).cells]
    assert ids == ["cell-00", "cell-01", "cell-02", "cell-03"]


# set_address.py


@pytest.fixture
def project(tmp_path, write_notebook):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").write_text(
        "# Us <!-- colab:00_a -->\n| 01 | <!-- colab:01_b --> |\n", encoding="utf-8"
    )
    for name in ("00_a", "01_b"):
        cells = ["# T\n\nText.", [set_address.setup_cell("")], "More.", ["x = 1"]]
        path = write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", *cells)
        path.write_text(
            path.read_text(encoding="utf-8").replace(
                '"execution_count": null', '"execution_count": 3'
            ),
            encoding="utf-8",
        )
    set_address.set_address("https://github.com/first/one", tmp_path)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_address_goes_everywhere_and_replaces_another(project):
    assert len(set_address.set_address(URL, project)) == 4
    assert set_address.address(project) == URL
    assert not [p for p, content in contents(project).items() if b"first/one" in content]
    link = "https://colab.research.google.com/github/owner/repository/blob/main/notebooks"
    readme = (project / "README.md").read_text(encoding="utf-8").splitlines()
    assert readme[0].startswith("# Us <!-- colab:00_a --> [![Open In Colab](")
    assert readme[0].endswith(f"({link}/00_a.ipynb)")
    assert readme[1].endswith(f"({link}/01_b.ipynb) |")
    notebook = nbformat.read(project / "notebooks" / "01_b.ipynb", as_version=4)
    badge = set_address.badge(URL, "01_b")
    assert notebook.cells[0].source == f"# T\n\n{badge}\n\nText."
    assert notebook.cells[1].source == set_address.setup_cell(URL)
    assert f'REPOSITORY = "{URL}"' in notebook.cells[1].source
    assert notebook.cells[3].source == "x = 1"
    assert [c.execution_count for c in notebook.cells if c.cell_type == "code"] == [3, 3]
    before = contents(project)
    assert set_address.set_address(URL, project) == [] and contents(project) == before


@pytest.mark.parametrize("given, kept", [(f"{URL}/", URL), (f"{URL}.git", URL)])
def test_address_is_accepted(given, kept, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["set_address.py", given])
    monkeypatch.setattr(set_address, "set_address", lambda url: [])
    set_address.main()
    assert capsys.readouterr().out.startswith(f"{kept} stands in")


WRONG = ["", "https://github.com/a", "https://x.org/a/b", f'{URL}"\n[x]']


@pytest.mark.parametrize("given", WRONG)
def test_address_is_refused_in_one_line(given, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["set_address.py", given])
    monkeypatch.setattr(set_address, "set_address", None)
    with pytest.raises(SystemExit, match="like https://github.com/owner/repository, not "):
        set_address.main()


# test_all.py


def run_tests(tmp_path, *lines):
    (tmp_path / "test_x.py").write_text("\n".join(["import pytest", *lines]), encoding="utf-8")
    return test_all.check(["pytest", "-q", "-p", "no:cacheprovider", "test_x.py"], tmp_path)


def test_counts_are_pytests(tmp_path):
    lines = ["def test_a(): pass", "def test_b(): assert 0", "def test_c(): pytest.skip('no')"]
    assert run_tests(tmp_path, *lines, "def test_d(): pass") == (2, 1, 1)


def test_cell_that_runs_too_long_counts_as_failed(tmp_path, write_notebook):
    swallows = "import time\ntry:\n    time.sleep(120)\nexcept KeyboardInterrupt:\n    pass"
    write_notebook(tmp_path / "x.ipynb", [swallows], ["1 / 0"])
    options = ["-p", "no:cacheprovider", "--nbval-current-env", "--nbval-cell-timeout=3"]
    assert test_all.check(["pytest", "--nbval", *options, "x.ipynb"], tmp_path) == (1, 1, 0)


def test_broken_collection_and_none_count_as_failed(tmp_path):
    assert run_tests(tmp_path, "import no_such_module") == (0, 1, 0) == run_tests(tmp_path)


def test_all_checks_run_and_one_line_sums_up(monkeypatch, capsys):
    checks = {"broken": ["no_such_module"], "fine": ["json.tool", "--help"]}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(test_all, "CHECKS", checks)
    with pytest.raises(SystemExit) as stop:
        test_all.main()
    assert stop.value.code == 1
    assert capsys.readouterr().out.endswith("\n1 passed, 1 failed, 0 skipped\n")


def test_a_quick_check_leaves_the_notebooks_out_and_names_files_that_are_there():
    (pytest,) = (arguments for arguments in test_all.QUICK.values() if "pytest" in arguments)
    named = [ROOT / part for part in pytest if part.startswith("tests/")]
    assert "--nbval" not in pytest and len(named) == 4 and all(path.is_file() for path in named)


# What `pip install .` brings


def test_installed_elsewhere_all_rooms_are_whole(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="what pyproject.toml asks of a build")
    clone, site, work = (tmp_path / name for name in ("clone", "site", "work"))
    for path in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        clone.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, clone)
    for room in ("helpers", "lab", "pictures"):
        shutil.copytree(ROOT / room, clone / room, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, clone], check=True)
    work.mkdir()
    program = (
        "import helpers.data, helpers.train, lab.task_trials, pictures.explorer as explorer\n"
        "from pathlib import Path\n"
        "assert Path(explorer.__file__).is_relative_to(Path.cwd().parent / 'site')\n"
        "assert explorer.Path(explorer.__file__).with_name('explorer.js').is_file()\n"
        "assert helpers.data.DATA_FOLDER == Path.cwd() / 'data'\n"
        "print(len(helpers.data.load('digits').test))\n"
        "lab.task_trials.make_task('place', 8, 4)\n"
        "try: lab.trials.records('base')\n"
        "except FileNotFoundError as error: print(error)\n"
    )
    program = program.replace("lab.task_trials, ", "lab.task_trials, lab.trials, ")
    environment = os.environ | {"PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("360\nnothing is recorded of 'base'")


# setup.sh, with a Python that only pretends

FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *print*version_info*) echo "$FAKE_VERSION" ;;
    *sys.exit*) 
        "$REAL" -c "import sys; sys.version_info = tuple(map(int, '$FAKE_VERSION'.split('.')))
$2" ;;
    *ensurepip*) [ "$FAKE" != no-venv ] ;;
    "-m venv .venv") mkdir -p .venv/bin .venv/site && cp "$0" .venv/bin/python ;;
    *"pip install"*)
        echo "$*" >>pip-calls
        case $FAKE in
        no-network) echo "Retrying after connection broken by 'NewConnectionError'"; exit 1 ;;
        full) echo "ERROR: [Errno 28] No space left on device"; exit 1 ;;
        no-such) echo "ERROR: No matching distribution found for torch"; exit 1 ;;
        esac
        echo "  Downloading torch-2.15.0.whl (539.1 MB)" ;;
    *purelib*) echo .venv/site ;;
    *torchvision*) [ "$FAKE" != misfit ] || { echo "operator nms does not exist"; exit 1; } ;;
esac
"""


@pytest.fixture
def set_up(tmp_path):
    """set_up(FAKE=..., ...) -> (exit status, what it printed); a private PATH, no real Python."""
    (tmp_path / "tools").mkdir()
    names = ["tools/setup.sh", "requirements.txt", "requirements-dev.txt", "constraints.txt"]
    for name in names:
        shutil.copy(ROOT / name, tmp_path / name)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in "sh awk cat cksum cp dirname grep mkdir rm tail tee touch uname".split():
        (bin_ / name).symlink_to(shutil.which(name))
    programs = {"python3": FAKE_PYTHON, "df": '#!/bin/sh\necho head\necho "/ 1 1 $FAKE_FREE 1"'}
    for name, text in programs.items():
        (bin_ / name).write_text(text, encoding="utf-8")
        (bin_ / name).chmod(0o755)

    def run(**settings):
        environment = {"PATH": str(bin_), "FAKE_VERSION": "3.11.7", "FAKE_FREE": "99000000"}
        environment["REAL"] = sys.executable
        done = subprocess.run(
            ["sh", "tools/setup.sh"],
            cwd=tmp_path,
            env=environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        return done.returncode, done.stdout

    run.folder = tmp_path
    return run


def test_setup_once(set_up):
    code, said = set_up()
    assert code == 0
    assert said.startswith("Setting up .venv with Python 3.11.7: about ")
    assert "  Downloading torch-2.15.0.whl (539.1 MB)\n" in said
    assert (set_up.folder / ".venv/site/vit_from_nothing.pth").read_text(
        encoding="utf-8"
    ) == "../../../..\n"
    assert (set_up.folder / ".venv/.complete").exists()
    assert not (set_up.folder / ".venv/tmp").exists()
    assert set_up() == (0, "")
    assert len((set_up.folder / "pip-calls").read_text(encoding="utf-8").splitlines()) == 1


def test_setup_again_when_the_requirements_changed_and_with_the_index_given(set_up):
    set_up()
    with open(set_up.folder / "constraints.txt", "a", encoding="utf-8") as file:
        file.write("another==1.0\n")
    assert set_up(TORCH_INDEX="https://example.org/cpu wheels")[1].startswith("Setting up")
    call = (set_up.folder / "pip-calls").read_text(encoding="utf-8").splitlines()[-1]
    assert "--extra-index-url https://example.org/cpu wheels -r requirements-dev.txt -c con" in call


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(FAKE_VERSION="3.14.0"), "Python 3.11, 3.12 or 3.13 is needed (python3 is 3.14.0)"),
        (dict(PYTHON="/no/python"), "(no /no/python here)"),
        (dict(FAKE="no-venv"), "sudo apt install python3.11-venv"),
        (dict(FAKE_FREE="1000000"), "1 GB are free: make room, or take PyTorch's CPU-only build"),
        (dict(FAKE="no-network"), "connect to a network"),
        (dict(FAKE="full"), "the disk ran full: make room"),
        (dict(FAKE="misfit"), "torch and torchvision do not work together: operator nms does not"),
    ],
)
def test_setup_says_in_one_line_what_to_do(set_up, settings, words):
    code, said = set_up(**settings)
    last = said.splitlines()[-1]
    assert code == 1
    assert last.startswith("set-up: ") and words in last
    assert not any(line.startswith("set-up: ") for line in said.splitlines()[:-1])
    assert not (set_up.folder / ".venv/.complete").exists()

    leftover = set_up.folder / ".venv/leftover"
    leftover.parent.mkdir(exist_ok=True)
    leftover.touch()
    assert set_up()[0] == 0 and not leftover.exists()


def test_makefile_names_its_targets():
    make = shutil.which("make") or pytest.skip("no make here")
    said = subprocess.run(
        [make, "-s"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    ).stdout
    names = "lab run check test notebooks bench pretrained address clean"
    assert [line.split()[1] for line in said.splitlines()] == names.split()


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR and os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").rstrip().endswith("\nexec make test")
