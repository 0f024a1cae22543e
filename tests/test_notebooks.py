"""All notebooks keep all rules; each rule sees a bad notebook; the set-up cell works anywhere."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import notebook_rules as rules
from tools.run_notebooks import FOLDED, METADATA, all_notebooks
from tools.set_address import address, badge, setup_cell

ROOT = rules.ROOT
NOTEBOOKS = all_notebooks(ROOT)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    problems = [f"{r.__name__}: {said}" for r in rules.RULES for said in r(path, notebook)]
    assert not problems, f"{path.stem}: " + "; ".join(problems)


def test_there_are_notebooks():
    assert NOTEBOOKS, "notebooks/ is empty: no rule was checked"


def test_readme_maps_the_series():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    there = {path.stem for path in NOTEBOOKS}
    for name in rules.SERIES:
        assert name in readme, f"README.md does not name {name}"
        linked = f"(notebooks/{name}.ipynb)" in readme
        assert linked == (name in there), f"README.md must link {name} if and only if it is there"


def test_readme_of_the_notebooks_links_and_times_those_that_are_there():
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for name in rules.SERIES:
        (row,) = re.findall(rf"^\| {name[:2]} \|.*{name}.*$", text, re.M)
        if ROOT / "notebooks" / f"{name}.ipynb" in NOTEBOOKS:
            assert f"[{name}]({name}.ipynb)" in row and re.search(r"\| \d+ s \|$", row), row
        else:
            assert "(" not in row and row.endswith("| planned |"), row


def test_every_side_trip_is_on_the_map_with_its_minutes():
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    listed = dict(
        re.findall(r"^\| \[(\w+)\]\(side_trips/\w+\.ipynb\) \|.*\| (\d+) min \|$", text, re.M)
    )
    there = {path.stem: path for path in NOTEBOOKS if rules.is_side_trip(path)}
    assert set(listed) == set(there)
    for name, path in there.items():
        head = nbformat.read(path, as_version=4).cells[0].source
        assert f"{listed[name]} minutes" in head, f"{name}: {listed[name]} min on the map"
        page = next(p for p in NOTEBOOKS if p.stem[:2] == name[:2])
        prose = "\n".join(c.source for c in nbformat.read(page, as_version=4).cells)
        assert f"(side_trips/{name}.ipynb)" in prose, f"{page.stem} does not lead to {name}"


# Each rule on a notebook that is well, and on notebooks with one thing wrong.


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


@pytest.fixture
def page(tmp_path):
    """A small notebook that keeps all rules, as (path, notebook): cells 1, 3 and 5 are code."""
    head = badge(address(), "13_what_each_part_buys")
    model = (ROOT / "helpers" / "model.py").read_text(encoding="utf-8")
    mlp = model[model.index("class MLP") :].split("\n\n\n")[0]
    notebook = new_notebook(
        metadata=METADATA,
        nbformat_minor=5,
        cells=[
            new_markdown_cell(f"# A title\n\n{head}\n\nWhat it is about."),
            new_code_cell(setup_cell(address()), execution_count=1),
            new_markdown_cell("## A heading\n\nA [link](https://arxiv.org/abs/2010.11929)."),
            new_code_cell(mlp, execution_count=2),
            new_markdown_cell("The sum:"),
            new_code_cell(
                "print(1 + 1)",
                execution_count=3,
                metadata={"tags": ["key-result"]},
                outputs=[printed("2\n")],
            ),
            new_markdown_cell("## Recap\n\n| equation | code | shape | proof |\n|---|---|---|---|"),
        ],
    )
    return tmp_path / "13_what_each_part_buys.ipynb", notebook


def complaints(rule, page):
    path, notebook = page
    nbformat.write(notebook, path)
    return rule(path, nbformat.read(path, as_version=4))


def test_good_notebook_keeps_every_rule(page):
    assert [said for rule in rules.RULES for said in complaints(rule, page)] == []


def output(cell, *outputs):
    def change(notebook):
        notebook.cells[cell].outputs = list(outputs)

    return change


def source(cell, text):
    def change(notebook):
        notebook.cells[cell].source = text

    return change


def data(kind, content):
    return new_output("display_data", data={kind: content})


BAD = [
    (rules.rule_outputs, lambda nb: nb.cells[5].update(execution_count=7), r"\[1, 2, 7\]"),
    (rules.rule_outputs, lambda nb: nb.cells[1].update(execution_count=None), "not 1 to 3"),
    (rules.rule_outputs, output(5), r"cell \[3\] has no stored output"),
    (rules.rule_outputs, source(3, "for i in range(3):\n    print(i)"), r"cell \[2\] has no"),
    (rules.rule_outputs, source(3, "x = 1\nx"), r"cell \[2\] has no"),
    (rules.rule_outputs, lambda nb: nb.update(cells=nb.cells[:1]), "not 1 to 0"),
    (
        rules.rule_no_errors,
        output(5, new_output("error", ename="KeyError", evalue="'x'", traceback=[])),
        "stopped with KeyError: 'x'",
    ),
    (rules.rule_no_errors, output(5, printed("UserWarning: no", "stderr")), "UserWarning: no"),
    (rules.rule_no_machine, output(5, printed("/home/me/x.py\n")), "cell 5, output.*/home/"),
    (rules.rule_no_machine, output(5, printed(f"at {ROOT}\n")), "cell 5, output names"),
    (rules.rule_no_machine, source(0, "# T\n\nSee C:\\Users\\me."), "cell 0, source names"),
    (rules.rule_no_machine, output(5, data("text/plain", "<A at 0x7f3a5c1d>")), "at 0x7f3a5c1d"),
    (rules.rule_no_machine, output(5, printed(" 50%|####  | 5/10")), "progress bar"),
    (rules.rule_no_remote_picture, source(2, "![x](https://a.org/x.png)"), "cell 2, source loads"),
    (rules.rule_no_remote_picture, source(2, '<img width=1 src="//a.org/x.png">'), "cell 2"),
    (rules.rule_no_remote_picture, output(5, data("text/html", "<script src='http://a'>")), "5"),
    (rules.rule_no_remote_picture, source(5, 'Image(url="https://a.org/x.png")'), "cell 5, source"),
    (rules.rule_no_remote_picture, source(2, "![x](figures/none.png)"), "which does not exist"),
    (rules.rule_size, output(5, data("image/png", "A" * 1_000_000)), "1.00 MB"),
    (rules.rule_setup_cell, source(1, "import torch"), "first code cell is not"),
    (rules.rule_metadata, lambda nb: nb.metadata.kernelspec.update(name="me"), "metadata is"),
    (rules.rule_metadata, lambda nb: nb.metadata.update(widgets={}), "metadata is.*widgets"),
    (rules.rule_metadata, lambda nb: nb.metadata.language_info.update(version="3"), "version"),
    (rules.rule_metadata, lambda nb: nb.cells[5].metadata.update(tags=["hide"]), "cell 5.*hide"),
    (rules.rule_metadata, lambda nb: nb.cells[5].metadata.update(execution={}), "execution"),
    (rules.rule_key_result, lambda nb: nb.cells[5].update(metadata={}), "0 cells have the tag"),
    (rules.rule_key_result, output(5), "prints nothing"),
    (rules.rule_prose, source(4, "## A heading alone"), r"no prose before: print\(1 \+ 1\)"),
    (rules.rule_prose, lambda nb: nb.cells.pop(2), "no prose before: class MLP"),
    (rules.rule_prose, source(0, "No title"), "title"),
    (
        rules.rule_one_source,
        source(3, "class MLP:\n    pass"),
        r"cell \[2\]: MLP is not MLP of helpers/model.py",
    ),
    (rules.rule_recap, lambda nb: nb.cells.pop(), "is not the recap"),
    (rules.rule_recap, source(6, "## Recap\n\nAll done."), "has no table"),
    (
        rules.rule_short_classes,
        source(3, 'class Long:\n    """A word."""\n\n    # free\n' + rules.LONGEST * "    x = 1\n"),
        rf"cell \[2\]: Long has {rules.LONGEST + 1} lines",
    ),
    (rules.rule_any_directory, source(5, "import os\nos.chdir('..')"), "changes the working"),
    (rules.rule_any_directory, source(5, "%cd .."), r"cell \[3\] changes the working"),
    (rules.rule_any_directory, source(5, "print(open('x.txt'))"), "'x.txt' leans"),
    (rules.rule_any_directory, source(5, "print(Image(filename='x.gif'))"), "'x.gif' leans"),
]


@pytest.mark.parametrize("rule, change, words", BAD)
def test_rule_sees_a_bad_notebook(rule, change, words, page):
    change(page[1])
    found = complaints(rule, page)
    assert len(found) == 1
    assert re.search(words, found[0])


@pytest.fixture
def trip(page, tmp_path):
    """A side trip that keeps all rules, and beside it a page: cells 1, 2, 4 and 6 are code."""
    _, notebook = page
    (tmp_path / "01_patches.ipynb").touch()
    answer = "**Predict.** What?\n\n<details><summary>Answer</summary>\n\nThat.\n\n</details>"
    notebook.cells[0].source = "# A title\n\nFrom [01](../01_patches.ipynb)."
    notebook.cells[1].metadata = dict(FOLDED)
    notebook.cells[2:3] = [
        new_code_cell("# @title Imports\nimport torch", execution_count=2, metadata=dict(FOLDED)),
        new_markdown_cell("\n\n".join(["## A heading"] + [answer] * 4)),
    ]
    notebook.cells[4].execution_count, notebook.cells[6].execution_count = 3, 4
    notebook.cells[6].source += "\nflipbook(draw)"
    ending = "## Three sentences to remember\n\n1. A.\n2. B.\n3. C.\n\n"
    notebook.cells[-1].source = ending + notebook.cells[-1].source
    (tmp_path / "side_trips").mkdir()
    return tmp_path / "side_trips" / "01_other_ways.ipynb", notebook


def test_a_good_side_trip_and_a_good_page_of_the_path_keep_every_rule(trip, monkeypatch):
    path, notebook = trip
    assert [said for rule in rules.RULES for said in complaints(rule, trip)] == []
    monkeypatch.setattr(rules, "TO_CUT", set())
    notebook.cells[0].source = "# A title\n\nOn [01](01_patches.ipynb)."
    page = path.parents[1] / path.name.replace("other_ways", "patches"), notebook
    assert [said for rule in rules.RULES for said in complaints(rule, page)] == []


@pytest.mark.parametrize(
    "rule, change, words",
    [
        (rules.rule_length, source(3, "word " * 1801), "18.. words, 1800 at most"),
        (
            rules.rule_length,
            lambda nb: nb.cells.extend(new_code_cell("x = 1") for _ in range(27)),
            "31 code cells, 30",
        ),
        (
            rules.rule_short_cells,
            source(6, rules.LONG_CELL * "x = 1\n" + "# free\nprint(1)"),
            rf"cell \[4\] has {rules.LONG_CELL + 1} lines, {rules.LONG_CELL} at most",
        ),
        (
            rules.rule_short_cells,
            lambda nb: [cell.update(source=rules.HALF * "x = 1\n" + "y") for cell in nb.cells[4:8]],
            f"half of the cells have {rules.HALF + 1} lines or more, {rules.HALF}",
        ),
        (rules.rule_folded, lambda nb: nb.cells[1].update(metadata={}), "not the folded set-up"),
        (rules.rule_folded, source(2, "import torch"), "folded # @title Imports"),
        (
            rules.rule_folded,
            lambda nb: nb.cells.insert(1, new_markdown_cell("Set-up:")),
            "not the folded set-up",
        ),
        (rules.rule_something_to_do, source(3, "## A heading"), "0 x .*Predict"),
        (rules.rule_something_to_do, source(6, "print(1)"), "nothing to play with"),
        (rules.rule_something_to_do, source(7, "1. A\n2. B\n3. C\n## Recap"), "Three sentences"),
        (rules.rule_links, source(0, "# T [x](none.ipynb)"), "none.ipynb is not there"),
        (rules.rule_metadata, lambda nb: nb.cells[1].metadata.pop("cellView"), "folded by half"),
    ],
)
def test_rules_of_the_path_see_a_bad_page(rule, change, words, trip, monkeypatch):
    path, notebook = trip
    monkeypatch.setattr(rules, "TO_CUT", set())
    change(notebook)
    found = complaints(rule, (path.parents[1] / "01_patches.ipynb", notebook))
    assert found and re.search(words, found[0]), found


def test_a_side_trip_leads_back(trip):
    trip[1].cells[0].source = "# A title\n\nNo way back."
    assert complaints(rules.rule_links, trip) == ["no way back to its page"]
    assert complaints(rules.rule_name, (trip[0].with_name("other.ipynb"), trip[1]))


def test_rule_sees_a_bad_name(page):
    path, notebook = page
    assert complaints(rules.rule_name, (path.with_name("99_other.ipynb"), notebook))


def test_rule_sees_a_file_laid_out_by_another_program(page):
    path, notebook = page
    nbformat.write(notebook, path)
    path.write_text(path.read_text(encoding="utf-8").replace('\n "', '\n  "'), encoding="utf-8")
    assert "not laid out" in rules.rule_metadata(path, notebook)[0]


def test_badge_belongs_to_the_address(page):
    path, notebook = page
    url = "https://github.com/a/b"
    notebook.cells[0].source = f"# T\n\n{badge(url, '13_what_each_part_buys')}\n\nText."
    assert rules.rule_no_remote_picture(path, notebook, url) == []
    assert "loads from the net" in rules.rule_no_remote_picture(path, notebook, "")[0]
    other = rules.rule_no_remote_picture(path, notebook, "https://github.com/a/c")
    assert "badge is not there" in other[0]


def test_a_promised_class_must_be_there(page):
    path, notebook = page
    missing = rules.rule_one_source(path.with_name("07_mlp.ipynb"), notebook)
    assert missing == []  # the page holds MLP
    notebook.cells[3].source = notebook.cells[3].source.replace("class MLP", "class Mlp")
    (problem,) = rules.rule_one_source(path.with_name("07_mlp.ipynb"), notebook)
    assert problem == "MLP is promised, but not here and in a room"


def test_docstrings_may_differ(page):
    path, notebook = page
    mlp = notebook.cells[3].source
    notebook.cells[3].source = re.sub(r'"""[^"]*"""', '"""Other words."""', mlp, count=1)
    assert notebook.cells[3].source != mlp
    assert rules.rule_one_source(path, notebook) == []


# The set-up cell, from anywhere.


@pytest.fixture
def run_setup_cell(monkeypatch):
    """run_setup_cell(folder, url="", path=()) -> the first entry of sys.path afterwards."""

    def run(folder, url="", path=()):
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "path", [*path])
            exec(setup_cell(url), {})
            return Path(sys.path[0])

    return run


@pytest.fixture
def offline(monkeypatch):
    """Whatever the set-up cell would run fails the test."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("fetched again"))


@pytest.fixture
def remote(tmp_path):
    """A repository to fetch, in a folder with a hard name -> its path."""
    source = tmp_path / "far [a] way"
    (source / "helpers").mkdir(parents=True)
    (source / "helpers" / "model.py").touch()
    git = ["git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    return source


@pytest.fixture
def alone(tmp_path):
    """An empty folder with a space in its name, as a notebook that was opened alone has it."""
    folder = tmp_path / "my notes"
    folder.mkdir()
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("folder", [".", "helpers", "tests"])
def test_setup_cell_finds_the_repository_around_it(run_setup_cell, offline, capfd, folder):
    assert run_setup_cell(ROOT / folder) == ROOT
    assert capfd.readouterr() == ("", "")


def test_setup_cell_finds_an_installed_repository(run_setup_cell, offline, tmp_path):
    assert run_setup_cell(tmp_path, path=["elsewhere", str(ROOT)]) == ROOT


def test_setup_cell_alone_says_what_to_do(run_setup_cell, alone):
    with pytest.raises(AssertionError, match="open this notebook in a clone, or set REPOSITORY"):
        run_setup_cell(alone)


def test_setup_cell_alone_fetches_the_repository_once(run_setup_cell, remote, alone, request):
    home = run_setup_cell(alone, remote)
    assert home == alone / "vit-from-nothing" and (home / "helpers" / "model.py").is_file()
    assert names(alone) == ["vit-from-nothing"]
    request.getfixturevalue("offline")
    assert run_setup_cell(alone, remote) == home


def test_setup_cell_never_brings_another_torch():
    assert re.findall(r"pip install (.*?)'", setup_cell("")) == ["-q torchinfo onnx"]


@pytest.mark.parametrize("left", [".git/objects/half", "notes.txt", None])
def test_what_an_interrupted_clone_left_blocks_nothing_and_stays(
    run_setup_cell, remote, alone, request, left
):
    place = alone / "vit-from-nothing" / (left or "")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine", encoding="utf-8") if left else place.mkdir()
    home = run_setup_cell(alone, remote)
    assert home.parent == alone and (home / "helpers" / "model.py").is_file()
    assert names(alone) == ["vit-from-nothing", home.name]
    assert not left or place.read_text(encoding="utf-8") == "mine"
    request.getfixturevalue("offline")
    assert run_setup_cell(alone, remote) == home


def test_a_clone_gets_its_name_when_it_is_whole(run_setup_cell, alone, monkeypatch):
    def half(command, **_):
        part = Path(re.search(r"(\S+/clone)", command)[1])
        (part / "helpers").mkdir(parents=True)
        (part / "helpers" / "model.py").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "getstatusoutput", half)
    with pytest.raises(KeyboardInterrupt):
        run_setup_cell(alone, "https://github.com/a/b")
    assert names(alone) == []


@pytest.mark.parametrize("lacking", ["git", "network", "pip's network"])
def test_without_git_or_a_network_one_line_says_so(
    run_setup_cell, remote, alone, monkeypatch, capfd, lacking
):
    if lacking == "git":
        monkeypatch.setenv("PATH", str(alone))
    if lacking == "pip's network":
        monkeypatch.setattr(sys, "executable", "no-such-python")
    url = "https://no.such.host.invalid/a/b" if lacking == "network" else remote
    with pytest.raises(AssertionError, match=": check the network and git, then run") as error:
        run_setup_cell(alone, url)
    assert "\n" not in str(error.value) and len(error.traceback) == 3  # the test, run, the cell
    assert names(alone) == [] and capfd.readouterr() == ("", "")


def test_setup_cell_is_short():
    assert len([line for line in setup_cell("").splitlines() if line]) <= 21
