"""What every notebook must keep. test_notebooks.py applies it and shows that each rule can fail.

A rule takes a notebook's path and content and returns a list of complaints, empty if all is well.
"""

import ast
import functools
import re
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from tools.run_notebooks import FOLDED, METADATA
from tools.set_address import address, badge, setup_cell

ROOT = Path(__file__).resolve().parents[1]
SERIES = (
    "00_overview 01_patches 02_patch_embedding 03_class_token 04_position_embeddings "
    "05_self_attention 06_multi_head_self_attention 07_mlp 08_encoder 09_vision_transformer "
    "10_training 11_pretrained_weights 12_looking_inside 13_what_each_part_buys 14_training_on_gpu"
).split()
SIDE = "side_trips"
# Not yet cut to the length of the path.
TO_CUT = {SERIES[10], SERIES[13], SERIES[14]}
LONG_PAGE, LONG_TRIP = (30, 1800), (24, 1500)  # code cells, words
PROMISED = {  # classes that a page builds and the rest of the repository uses
    "02_patch_embedding": ["PatchEmbedding"],
    "03_class_token": ["ReadFirstPatch"],
    "06_multi_head_self_attention": ["MultiHeadSelfAttention"],
    "07_mlp": ["MLP"],
    "08_encoder": ["EncoderBlock", "NoResidualBlock"],
    "08_norm_before_or_after": ["PostNormBlock"],
    "09_vision_transformer": ["VisionTransformer"],
}
LONGEST = 33  # lines of code in a class: those of VisionTransformer
HALF, LONG_CELL = 8, 18  # lines of code: half of the cells have no more than HALF
TAGS = {"nbval-ignore-output", "nbval-skip", "raises-exception", "key-result"}
SPEAKERS = {"print", "display", "plt.show"}  # a cell that calls one of them has an output
OPENERS = {"open", "Path", "imread", "imsave", "savefig", "Image", "load_file", "save_file"}

MACHINE = re.compile(
    r"/(?:home|Users|root|tmp|content|mnt|var/folders)/|[A-Z]:\\(?:Users|Windows|Program)"
    rf"|site-packages|ipykernel_\d|at 0x[0-9a-f]{{6,}}|{re.escape(str(ROOT))}"
)
REMOTE = re.compile(
    r"!\[[^\]]*\]\(\s*<?(?:https?:)?//|url\(['\"]?(?:https?:)?//|\burl ?= ?['\"]https?://"
    r"|<(?:img|script|iframe|video|audio|source|embed|link)\b[^>]*(?:src|href)=['\"]?(?:https?:)?//"
)
DEBRIS = re.compile(r"\r|\d+%\|.*\||it/s\]|s/it\]")


def code_cells(notebook):
    """(number as in `In [number]`, cell) of each code cell."""
    return list(enumerate((c for c in notebook.cells if c.cell_type == "code"), 1))


def tags(cell):
    return cell.metadata.get("tags", [])


def syntax(source):
    """The tree of a cell, its %magics and !commands turned into plain Python."""
    return ast.parse(TransformerManager().transform_cell(source))


def texts(notebook):
    """(where, text) of every source and every output that is text; pictures' bytes left out."""
    for place, cell in enumerate(notebook.cells):
        yield f"cell {place}, source", cell.source
        for output in cell.get("outputs", []):
            parts = [output.get("text", ""), *output.get("traceback", [])]
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/") or kind == "image/svg+xml":
                    parts.append(str(content))
            yield f"cell {place}, output", re.sub(r"base64,[\w+/=]+", "", "\n".join(parts))


def must_speak(source):
    """Whether a cell surely leaves an output: it prints, shows, or ends in a bare expression."""
    body = syntax(source).body
    for statement in body:
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.If | ast.Try):
            calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
            if SPEAKERS & {ast.unparse(call) for call in calls}:
                return True
    bare = body and isinstance(body[-1], ast.Expr) and not isinstance(body[-1].value, ast.Call)
    return bool(bare) and not source.rstrip().endswith(";")


def is_side_trip(path):
    return path.parent.name == SIDE


def is_cut(path):
    """Whether a page keeps the bounds of the path already; side trips always do."""
    return is_side_trip(path) or path.stem not in TO_CUT


def words(notebook):
    """How many words a reader reads: markdown, without formulas and without code."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"\$\$.*?\$\$|```.*?```|</?\w+>", " ", prose, flags=re.S)
    prose = re.sub(r"^\|.*\|$", " ", prose, flags=re.M)
    return len(prose.split())


def rule_name(path, notebook):
    if is_side_trip(path):
        pages = {name[:2] for name in SERIES}
        good = re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) and path.stem[:2] in pages
        return [] if good else [f"{path.stem} is no number of a page and a name"]
    return [] if path.stem in SERIES else [f"{path.stem} is none of the fifteen names"]


def rule_length(path, notebook):
    """A reader's attention is spent once."""
    if not is_cut(path):
        return []
    cells, most = len(code_cells(notebook)), LONG_TRIP if is_side_trip(path) else LONG_PAGE
    found = [(cells, most[0], "code cells"), (words(notebook), most[1], "words")]
    return [f"{n} {what}, {limit} at most" for n, limit, what in found if n > limit]


def rule_folded(path, notebook):
    """Set-up and imports are out of the way, directly under the title."""
    if not is_cut(path):
        return []
    first = notebook.cells[1:3]
    folded = [
        cell.cell_type == "code" and FOLDED.items() <= cell.metadata.items() for cell in first
    ]
    if folded != [True, True] or not first[1].source.startswith("# @title Imports"):
        return ["cells 1 and 2 are not the folded set-up and the folded # @title Imports"]
    return []


def rule_something_to_do(path, notebook):
    """Four times Predict, with a folded answer; something to play with; three sentences."""
    if not is_cut(path):
        return []
    problems, last = [], notebook.cells[-1].source
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    asked = len(re.findall(r"\*\*Predict\.\*\*", prose))
    answered = len(re.findall(r"<details>\s*<summary>Answer</summary>\s*\n\n", prose))
    if not is_side_trip(path) and (asked < 4 or answered < asked):
        problems.append(f"{asked} x **Predict.**, {answered} folded answers: 4 at least")
    code = "\n".join(cell.source for _, cell in code_cells(notebook))
    if (
        path.stem < "09"
        and not is_side_trip(path)
        and not re.search(r"\b(flipbook|explorer)\(", code)
    ):
        problems.append("nothing to play with: flipbook() or explorer()")
    ending = last.partition("## Three sentences to remember")[2].partition("## Recap")[0]
    if len(re.findall(r"^\d\. ", ending, re.M)) != 3:
        problems.append("the last cell has no ## Three sentences to remember, numbered")
    return problems


def rule_links(path, notebook):
    """What a page links to beside itself is there; a side trip leads back to its page."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:|#|attachment:)([^)#\s]+)", prose)
    problems = [f"{t} is not there" for t in targets if not (path.parent / t).exists()]
    if is_side_trip(path) and not any(re.match(rf"\.\./{path.stem[:2]}_", t) for t in targets):
        problems.append("no way back to its page")
    return problems


def rule_outputs(path, notebook):
    cells = code_cells(notebook)
    counts = [cell.execution_count for _, cell in cells]
    problems = []
    if not cells or counts != list(range(1, len(cells) + 1)):
        problems.append(f"execution counts are {counts}, not 1 to {len(cells)}: make notebooks")
    for number, cell in cells:
        if not cell.outputs and must_speak(cell.source):
            problems.append(f"cell [{number}] has no stored output: make notebooks")
    return problems


def rule_no_errors(path, notebook):
    problems = []
    for number, cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                problems.append(f"cell [{number}] stopped with {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                problems.append(f"cell [{number}] wrote to stderr: {output.text.strip()[:200]}")
    return problems


def rule_no_machine(path, notebook):
    problems = []
    for where, text in texts(notebook):
        text = re.sub(r"https?://\S+", "", text)
        problems += [f"{where} names a machine: {m[0]}" for m in MACHINE.finditer(text)]
        if where.endswith("output") and DEBRIS.search(text):
            problems.append(f"{where} holds a progress bar")
    return problems


def rule_no_remote_picture(path, notebook, url=None):
    """Nothing is loaded from the net but the Colab badge, which is there once an address is."""
    name = f"{SIDE}/{path.stem}" if is_side_trip(path) else path.stem
    wanted = badge(address() if url is None else url, name)
    problems = []
    for where, text in texts(notebook):
        if wanted and where == "cell 0, source":
            if wanted not in text:
                problems.append("the Colab badge is not there: make address URL=...")
            text = text.replace(wanted, "")
        problems += [f"{where} loads from the net: {m[0]}" for m in REMOTE.finditer(text)]
        for name in re.findall(r"!\[[^\]]*\]\((?!https?:|attachment:|data:)([^)\s]+)", text):
            if not (path.parent / name).exists():
                problems.append(f"{where} shows {name}, which does not exist")
    return problems


def rule_size(path, notebook):
    size = path.stat().st_size
    return [] if size < 1_000_000 else [f"{size / 1e6:.2f} MB, 1 MB is the limit"]


def rule_setup_cell(path, notebook):
    first = [cell.source for _, cell in code_cells(notebook)][:1]
    if first == [setup_cell(address())]:
        return []
    return ["the first code cell is not tools/setup_cell.py with the address of pyproject.toml"]


def rule_metadata(path, notebook):
    problems = []
    if notebook.metadata != METADATA or (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        problems.append(f"metadata is {dict(notebook.metadata)}: make notebooks")
    if path.read_text(encoding="utf-8") != nbformat.writes(notebook) + "\n":
        problems.append("the file is not laid out as nbformat does it: make notebooks")
    for place, cell in enumerate(notebook.cells):
        unknown = set(tags(cell)) - TAGS | set(cell.metadata) - {"tags", *FOLDED}
        if FOLDED.keys() & cell.metadata.keys() and not FOLDED.items() <= cell.metadata.items():
            unknown.add("folded by half")
        if unknown:
            problems.append(f"cell {place} has unknown tags or metadata: {sorted(unknown)}")
    return problems


def rule_key_result(path, notebook):
    marked = [cell for _, cell in code_cells(notebook) if "key-result" in tags(cell)]
    if len(marked) != 1:
        return [f'{len(marked)} cells have the tag "key-result", one must']
    if not any(output.get("name") == "stdout" for output in marked[0].outputs):
        return ['the cell with the tag "key-result" prints nothing']
    return []


def rule_prose(path, notebook):
    problems = []
    if not notebook.cells[0].source.startswith("# "):
        problems.append("the first cell does not begin with a title")
    before = ""
    for cell in notebook.cells:
        lines = before.splitlines()
        if cell.cell_type == "code" and not FOLDED.items() <= cell.metadata.items():
            if not any(line.strip() and not line.startswith("#") for line in lines):
                problems.append(f"no prose before: {cell.source.strip().splitlines()[0]}")
        before = cell.source if cell.cell_type == "markdown" else ""
    return problems


def classes(tree):
    """Name -> syntax tree as text of each top-level class, docstrings aside."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner):
                    inner.body = inner.body[1:]
            found[node.name] = ast.dump(node)
    return found


@functools.cache
def classes_of_the_rooms():
    """{file: its classes} of helpers, lab and pictures."""
    found = {}
    for path in [p for room in ("helpers", "lab", "pictures") for p in (ROOT / room).rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[path.relative_to(ROOT).as_posix()] = classes(tree)
    return found


def rule_one_source(path, notebook):
    """A class of a page and of helpers, lab or pictures with one name is one; PROMISED are there"""
    problems, twins = [], set()
    here = [
        (number, name, tree)
        for number, cell in code_cells(notebook)
        for name, tree in classes(syntax(cell.source)).items()
    ]
    for module, ours in classes_of_the_rooms().items():
        for number, name, tree in here:
            if ours.get(name, tree) != tree:
                problems.append(f"cell [{number}]: {name} is not {name} of {module}")
            twins |= {name} & set(ours)
    missing = set(PROMISED.get(path.stem, ())) - twins
    problems += [f"{name} is promised, but not here and in a room" for name in sorted(missing)]
    return problems


def rule_recap(path, notebook):
    last = notebook.cells[-1]
    if last.cell_type != "markdown" or "## Recap" not in last.source:
        return ["the last cell is not the recap"]
    if not re.search(r"^\| equation \| code \| shape[^|]*\| proof \|$", last.source, re.M):
        return ["the recap has no table equation | code | shape | proof"]
    return []


def rule_short_classes(path, notebook):
    """At most LONGEST lines of code in a class; docstrings, comments and blank lines are free."""
    problems = []
    for number, cell in code_cells(notebook):
        lines = cell.source.splitlines()
        for node in syntax(cell.source).body:
            if not isinstance(node, ast.ClassDef):
                continue
            free = set()
            for inner in ast.walk(node):
                if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner):
                    free |= set(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
            code = [n for n in range(node.lineno, node.end_lineno + 1) if n not in free]
            code = [n for n in code if lines[n - 1].strip() and lines[n - 1].strip()[0] != "#"]
            if len(code) > LONGEST:
                what = f"{node.name} has {len(code)} lines, {LONGEST} at most"
                problems.append(f"cell [{number}]: {what}")
    return problems


def rule_short_cells(path, notebook):
    """One idea a cell. Classes have a bound of their own; folded cells and comments are free."""
    if not is_cut(path):
        return []
    lengths = {}
    for number, cell in code_cells(notebook):
        defines = any(isinstance(node, ast.ClassDef) for node in syntax(cell.source).body)
        if not defines and not FOLDED.items() <= cell.metadata.items():
            lines = [line.strip() for line in cell.source.splitlines()]
            lengths[number] = sum(bool(line) and line[0] != "#" for line in lines)
    problems = [
        f"cell [{number}] has {n} lines, {LONG_CELL} at most"
        for number, n in lengths.items()
        if n > LONG_CELL
    ]
    half = sorted(lengths.values())[len(lengths) // 2] if lengths else 0
    return problems + [f"half of the cells have {half} lines or more, {HALF}"] * (half > HALF)


def rule_any_directory(path, notebook):
    """The set-up cell finds the repository from anywhere; the rest must not lean on the cwd."""
    problems = []
    for number, cell in code_cells(notebook)[1:]:
        for node in ast.walk(syntax(cell.source)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).split(".")[-1]
            named = [word.value for word in node.keywords if word.arg in ("filename", "fname")]
            first = getattr((node.args[:1] + named + [None])[0], "value", None)
            if name == "chdir" or (name, first) == ("run_line_magic", "cd"):
                problems.append(f"cell [{number}] changes the working directory")
            if name in OPENERS and isinstance(first, str) and not first.startswith("/"):
                problems.append(f"cell [{number}]: {first!r} leans on the working directory")
    return problems


RULES = [rule for name, rule in list(globals().items()) if name.startswith("rule_")]
