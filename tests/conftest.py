"""What more than one test file builds."""

import nbformat
import pytest
from nbformat import v4


@pytest.fixture
def write_notebook():
    """write_notebook(path, "prose", ["code", "tag", ...], ...) -> path, a notebook not yet run."""

    def write(path, *cells):
        notebook = v4.new_notebook()
        for cell in cells:
            if isinstance(cell, str):
                notebook.cells.append(v4.new_markdown_cell(cell))
            else:
                metadata = {"tags": cell[1:]} if cell[1:] else {}
                notebook.cells.append(v4.new_code_cell(cell[0], metadata=metadata))
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write
