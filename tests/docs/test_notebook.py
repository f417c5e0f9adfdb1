"""The notebook runs from its first cell to its last, in the folder that the guides' commands run in."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import folders
import pages
import pytest

NOTEBOOK = pages.ROOT / "docs/guides/notebook.ipynb"
RUNNER = """
import ast, json, sys
cells, shown, names = json.load(open("cells.json")), [], {}
for number, cell in enumerate(cells):
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    shown.append(repr(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)) if last else "")
json.dump(shown, open("shown.json", "w"))
"""


def cells() -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.test_all
def test_the_notebook_runs_and_ends_with_verdicts_and_scores(tmp_path: Path) -> None:
    folders.small(tmp_path)
    (tmp_path / "cells.json").write_text(json.dumps(cells()))
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=tmp_path, capture_output=True, text=True, timeout=900,
        env={**os.environ, "PYTHONPATH": str(pages.ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    shown = json.loads((tmp_path / "shown.json").read_text())
    assert "mydata/test" in shown[0]
    assert "first_stage" in shown[3]
    assert "verdict" in shown[4]
    assert shown[5].startswith("array([")


def test_the_notebook_is_stored_without_outputs_and_its_code_is_whole() -> None:
    held = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (held["nbformat"], held["nbformat_minor"]) == (4, 5)
    for cell in held["cells"]:
        assert cell["id"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))
