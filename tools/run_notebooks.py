"""Execute notebooks in order, each from top to bottom in a fresh kernel.

    python tools/run_notebooks.py                executed copies, HTML pages and an index in build/
    python tools/run_notebooks.py --inplace      the committed outputs, made again

Afterwards a table: notebook, seconds, and its key result, which is the last line printed by the
cell with the tag "key-result". A notebook that fails is named with its cell and error after the
others have run, and the exit status is 1; with --inplace its file stays as it was.
"""

import argparse
import asyncio
import base64
import copy
import html
import io
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CELL_SECONDS = 3600  # a cell that takes longer hangs
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # in Jupyter, and on Colab


def all_notebooks(root=ROOT):
    """The path, then the side trips."""
    return [
        p
        for part in ("", "side_trips")
        for p in sorted((root / "notebooks" / part).glob("*.ipynb"))
    ]


@dataclass
class Result:
    """What became of one notebook; `error` is None or one line: which cell, and what broke."""

    path: Path
    title: str
    seconds: float
    key_result: str
    error: str | None


def read(path):
    """The notebook in `path`; cells without an id get "cell-00" and so on, by their place."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    for number, cell in enumerate(raw["cells"]):
        cell.setdefault("id", f"cell-{number:02d}")
    raw["nbformat_minor"] = 5
    return nbformat.reads(json.dumps(raw), as_version=4)


def tidy(notebook):
    """Leave no trace of the machine: the kernel's name stays, tags, and which cells are folded."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        kept = FOLDED if cell.metadata.get("jupyter", {}).get("source_hidden") else {}
        cell.metadata = nbformat.from_dict(kept | ({"tags": tags} if tags else {}))
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])


def smaller(picture):
    """A base64 PNG with a palette of 256 colours: a third of the bytes, the same to the eye."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    out = io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1).save(out, "PNG", optimize=True)
    return min(picture, base64.b64encode(out.getvalue()).decode(), key=len)


def key_result(notebook):
    """The last line on stdout of the cell tagged key-result, or ""."""
    for cell in notebook.cells:
        if "key-result" in cell.metadata.get("tags", []):
            printed = [o.text for o in cell.outputs if o.get("name") == "stdout"]
            lines = "".join(printed).strip().splitlines()
            return lines[-1].strip() if lines else ""
    return ""


def title_of(notebook, default):
    """The first heading."""
    lines = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), default)


def execute(path, label):
    """Run one notebook, saying how far it is -> (notebook with outputs or None, Result)."""
    start, current, notebook, error = time.perf_counter(), [], None, None

    def say(text, end=""):
        if sys.stdout.isatty():
            print(f"\r{label}  {text}\033[K", end=end, flush=True)
        elif end:
            print(f"{label}  {text}", flush=True)

    def on_cell_start(cell, cell_index):
        if cell.cell_type == "code":
            current.append(cell.source)
            say(f"cell {len(current)} of {total}")

    def on_notebook_start(notebook):  # nbclient would take Ctrl-C for an error and we would go on
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    say("starting")
    try:
        notebook = read(path)
        total = sum(cell.cell_type == "code" for cell in notebook.cells)
        NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            extra_arguments=["--log-level=CRITICAL"],  # its talk about ports and sockets
            resources={"metadata": {"path": str(path.parent)}},
            on_notebook_start=on_notebook_start,
            on_cell_start=on_cell_start,
            coalesce_streams=True,
            record_timing=False,
            store_widget_state=False,
        ).execute()
    except Exception as problem:  # whatever it is, the other notebooks still get their turn
        error = describe(problem, current)
    seconds = time.perf_counter() - start
    say(f"{'FAILED' if error else 'ok'}, {seconds:.1f} s", end="\n")

    if notebook is None:
        return None, Result(path, path.stem, seconds, "", error)
    tidy(notebook)
    found = "" if error else key_result(notebook)
    return notebook, Result(path, title_of(notebook, path.stem), seconds, found, error)


def describe(problem, cells):
    """One line: the last of the code cells that were started, its first line, what broke."""
    what = f"{type(problem).__name__}: {problem}"
    if isinstance(problem, CellExecutionError):
        what = f"{problem.ename}: {problem.evalue}"
    what = what.strip().splitlines()[0]
    if not cells:
        return what
    first = next(iter(cells[-1].strip().splitlines()), "")
    return f"cell [{len(cells)}] `{first}`: {what}"


def write(notebook, path):
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}.part")
    nbformat.write(notebook, beside)
    os.replace(beside, path)


def write_page(notebook, result, build):
    """The executed copy and its HTML page: pictures inside, without the cells that are folded.

    Not with embed_images: it parses the prose block by block and unfolds the answers.
    """
    from nbconvert import HTMLExporter

    nbformat.write(notebook, build / result.path.name)
    where = {"name": result.path.stem, "path": str(result.path.parent)}
    page = copy.deepcopy(notebook)
    page.cells = [cell for cell in page.cells if not FOLDED.items() <= cell.metadata.items()]
    page, _ = HTMLExporter().from_notebook_node(page, {"metadata": where})
    (build / f"{result.path.stem}.html").write_text(page, encoding="utf-8")


def write_index(results, build):
    """build/index.html: a row for each notebook."""
    rows = [
        f"<tr><td>{link(r, build)}<td>{r.seconds:.1f}<td>"
        + html.escape(f"FAILED at {r.error}" if r.error else r.key_result)
        for r in results
    ]
    page = f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>The Vision Transformer from nothing</title>
<style>body {{font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em}}
td, th {{text-align: left; padding: .2em 1em .2em 0; vertical-align: top}}</style>
<h1>The Vision Transformer from nothing</h1>
<table><tr><th>notebook<th>seconds<th>key result
{chr(10).join(rows)}
</table>
<p>The pages fetch MathJax for their formulas; without a network, read the series with make lab.
"""
    (build / "index.html").write_text(page, encoding="utf-8")


def link(result, build):
    """The title, leading to the page where there is one."""
    title = html.escape(f"{result.path.stem[:2]}  {result.title}")
    page = f"{result.path.stem}.html"
    return f'<a href="{page}">{title}</a>' if (build / page).exists() else title


def run(paths, build=None):
    """Execute all -> list of Result. Pages go into `build`; without it the files are renewed."""
    if build:
        shutil.rmtree(build, ignore_errors=True)  # nothing of an earlier run can pass for this one
        build.mkdir(parents=True)
    results = []
    for number, path in enumerate(paths, 1):
        notebook, result = execute(path, f"[{number}/{len(paths)}] {path.stem}")
        if build and notebook:
            write_page(notebook, result, build)
        elif notebook and not result.error:
            write(notebook, path)
        results.append(result)
    if build:
        write_index(results, build)
    return results


def print_table(results):
    width = max(len(r.path.stem) for r in results)
    print(f"\n{'notebook':{width}}  seconds  key result")
    for r in results:
        print(f"{r.path.stem:{width}}  {r.seconds:7.1f}  {'FAILED' if r.error else r.key_result}")
    for r in results:
        if r.error:
            print(f"\n{r.path.stem} failed at {r.error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of notebooks/ by default")
    parser.add_argument("--inplace", action="store_true", help="make the committed outputs again")
    args = parser.parse_args()
    paths = args.notebooks or all_notebooks(ROOT)
    if not paths:
        sys.exit("no notebooks in notebooks/: nothing to run")
    try:
        results = run([p.resolve() for p in paths], None if args.inplace else ROOT / "build")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    print_table(results)
    if not args.inplace:
        print("\nPages: build/index.html")
    sys.exit(any(r.error for r in results))


if __name__ == "__main__":
    main()
