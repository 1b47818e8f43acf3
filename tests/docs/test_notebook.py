"""The notebook of the site: its cells run in order, and what it shows is what they give."""

from __future__ import annotations

import ast
import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorials" / "notebook.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """The value of a cell's last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def test_its_cells_give_what_it_shows() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    names: dict[str, Any] = {}
    pictures = 0
    for cell in cells:
        value = run_cell("".join(cell["source"]), names)
        shown = [output["data"] for output in cell["outputs"]]
        if isinstance(value, Image.Image):
            (data,) = shown
            assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size == value.size
            pictures += 1
        elif isinstance(value, dict):
            (data,) = shown
            assert ast.literal_eval("".join(data["text/plain"])).keys() == value.keys()
        else:
            assert not shown
    assert pictures == 3


def test_it_is_small() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
