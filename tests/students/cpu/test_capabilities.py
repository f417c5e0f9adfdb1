"""Private functions of torch are called by `students.cpu.capabilities` alone."""

import ast

import pytest

from tests.docs.pages import ROOT

DOOR = ROOT / "students" / "cpu" / "capabilities.py"
SOURCES = sorted(f for package in ("students", "teachers") for f in (ROOT / package).rglob("*.py"))


def private(tree: ast.AST) -> list[str]:
    """Private names of torch, its operators by number or name, and the version counters of tensors."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = ast.unparse(node)
            of_torch = chain.startswith("torch.") and (_hidden(node.attr) or chain == "torch.ops")
            if of_torch or node.attr == "_version":
                found.append(chain)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found += [alias.name for alias in node.names if _hidden(alias.name)]
            found += [node.module or ""] if "._" in (node.module or "") else []
    return found


def _hidden(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_nothing_private_of_torch_is_used_elsewhere():
    found = {file: private(ast.parse(file.read_text("utf-8"))) for file in SOURCES}
    assert found.pop(DOOR)
    assert {str(file): names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.ops.aten.mm(a, b)",
        "torch._C._get_mkldnn_enabled()",
        "weight._version",
        "from torch._dynamo import config",
        "from torch import _C",
        "torch.cpu._is_vnni_supported()",
    ],
)
def test_a_private_use_would_be_found(source):
    assert private(ast.parse(source))
