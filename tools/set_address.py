"""Write the repository's public address where it is needed: make address URL=https://github.com/...

pyproject.toml holds it; from there it goes into each notebook's set-up cell and Colab badge, and
into README.md, where `<!-- colab:NAME -->` stands for a badge. A second call changes nothing, a
call with another address replaces the first.
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"https://github\.com/[A-Za-z0-9-]+/[A-Za-z0-9._-]+")
BADGE = re.compile(r"\[!\[Open In Colab\]\([^)]*\)\]\([^)]*\)")
PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"


def address(root=ROOT):
    """The address in pyproject.toml, or "" as long as none is known."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def badge(url, name):
    """Markdown of the badge that opens notebooks/NAME.ipynb on Colab; "" without an address.

    name: of a side trip, "side_trips/01_name".
    """
    path = url.removeprefix("https://github.com")
    page = f"https://colab.research.google.com/github{path}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open In Colab]({PICTURE})]({page})" if url else ""


def setup_cell(url):
    """The source of the cell with which every notebook begins."""
    source = (Path(__file__).parent / "setup_cell.py").read_text(encoding="utf-8").strip()
    return source.replace('REPOSITORY = ""', f'REPOSITORY = "{url}"')


def update_project(text, url):
    """pyproject.toml with Repository in [project.urls]."""
    text = re.sub(r"(?m)^Repository = .*\n", "", text)
    return text.replace("[project.urls]\n", f'[project.urls]\nRepository = "{url}"\n')


def update_notebook(notebook, name, url):
    """Badge under the title, address in the set-up cell."""
    first = notebook.cells[0]
    title, _, rest = BADGE.sub("", first.source).partition("\n")
    first.source = f"{title}\n\n{badge(url, name)}\n\n{rest.strip()}".strip()
    for cell in notebook.cells:
        if cell.cell_type == "code" and "REPOSITORY = " in cell.source:
            cell.source = setup_cell(url)


def update_readme(text, url):
    """A badge behind each marker."""
    old = rf"<!-- colab:(\w+) -->(?: ?{BADGE.pattern})?"
    return re.sub(old, lambda m: f"<!-- colab:{m[1]} --> {badge(url, m[1])}", text)


def set_address(url, root=ROOT):
    """Write `url` everywhere -> the files that changed."""
    changed = []

    def save(path, old, new):
        if new != old:
            path.write_text(new, encoding="utf-8", newline="\n")
            changed.append(path)

    for name, update in (("pyproject.toml", update_project), ("README.md", update_readme)):
        path = root / name
        old = path.read_text(encoding="utf-8")
        save(path, old, update(old, url))
    for path in sorted((root / "notebooks").rglob("*.ipynb")):
        old = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(old, as_version=4)
        name = path.relative_to(root / "notebooks").with_suffix("").as_posix()
        update_notebook(notebook, name, url)
        save(path, old, nbformat.writes(notebook) + "\n")
    return changed


def main():
    url = sys.argv[1] if len(sys.argv) > 1 else ""
    url = url.strip().removesuffix("/").removesuffix(".git")
    if not ADDRESS.fullmatch(url):
        sys.exit(f"URL must be like https://github.com/owner/repository, not {url!r}")
    changed = set_address(url)
    for path in changed:
        print(f"wrote {path.relative_to(ROOT)}")
    print(f"{url} stands in pyproject.toml; {len(changed)} files changed")


if __name__ == "__main__":
    main()
