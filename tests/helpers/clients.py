"""Run code in the environment of clients from PyPI (make setup-clients), and find the examples of a page."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("MSFT_CLIENTS_PYTHON", ROOT / ".venv-clients/bin/python"))


def run(code: str, given: dict[str, Any], folder: Path) -> Any:
    """Run code with variables, and return its `result`; modules that examples share are imported before."""
    before = "import json, sys, cohere, requests\nglobals().update(json.load(open(sys.argv[1])))\n"
    after = "\njson.dump(result, open(sys.argv[2], 'w'))\n"
    (folder / "code.py").write_text(before + code + after)
    (folder / "given.json").write_text(json.dumps(given))
    done = subprocess.run(
        [str(PYTHON), "code.py", "given.json", "result.json"], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stderr[-4000:]}"
    return json.loads((folder / "result.json").read_text())


def blocks(page: Path) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
