"""One tree of errors and one enum of exit codes: in the source, and in what processes end with."""

import ast
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from labelstore import errors as store_errors
from msft.errors import ExitCode, MsftError
from students import errors as student_errors
from teachers import errors as teacher_errors

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("labelstore", "teachers", "students", "cli")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_every_error_with_a_hint_stands_below_the_one_root() -> None:
    for module in (store_errors, teacher_errors, student_errors):
        classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Exception)]
        assert classes
        assert all(issubclass(c, MsftError) and isinstance(c.exit_code, ExitCode) for c in classes)


@pytest.mark.parametrize(
    "raised",
    [
        store_errors.DataMissing("no run named x", hint="msft runs list"),
        teacher_errors.TeacherError("the engine ended", exit_code=ExitCode.TEACHER_ENGINE),
        student_errors.StudentError("lr is 'a'", hint="lr = 1e-5", exit_code=ExitCode.USAGE),
        store_errors.PartlyDone("3 queries are left"),
        MsftError("it failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_hint_and_code_on_its_way_between_processes(raised: MsftError) -> None:
    back = pickle.loads(pickle.dumps(raised))
    assert type(back) is type(raised)
    assert (back.message, back.hint, back.exit_code) == (raised.message, raised.hint, raised.exit_code)


def _numbers(tree: ast.AST) -> list[str]:
    """Where a call ends a process, or gives an error its code, by a bare number."""
    found = []
    raised = {id(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = [k.value for k in node.keywords if k.arg in ("exit_code", "code")]
        given += node.args if name in ("Exit", "SystemExit", "exit", "_exit") else []
        given += node.args[2:] if id(node) in raised else []  # message, hint, code
        for value in given:
            numbers = [n for n in ast.walk(value) if isinstance(n, ast.Constant) and type(n.value) is int]
            found += [f"line {n.lineno}: {name}({n.value})" for n in numbers if n.value]
    return found


def test_no_exit_code_is_a_bare_number() -> None:
    found = {str(p.relative_to(ROOT)): _numbers(ast.parse(p.read_text())) for p in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_bare_numbers_would_be_found() -> None:
    bad = "raise SystemExit(3)\nE('x', exit_code=2)\ntyper.Exit(code=1)\nE(exit_code=4 if a else 5)\nos._exit(6)"
    bad += "\nraise E('message', 'hint', 5)\nraise E(429, 'kind', 'message')"
    assert len(_numbers(ast.parse(bad))) == 7


def test_no_package_defines_an_exit_code_or_an_error_root_of_its_own() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                assigned = {
                    t.id
                    for s in node.body
                    if isinstance(s, ast.Assign)
                    for t in s.targets
                    if isinstance(t, ast.Name)
                }
                below = any(
                    getattr(b, "id", "").startswith(("Msft", "Teacher", "Student")) for b in node.bases
                )
                assert "exit_code" not in assigned or below, f"{path}: {node.name}"


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (
            ["-m", "students.train", "--view", "nowhere", "--regime", "cl", "--base", "minilm", "--out", "o"],
            ExitCode.DATA_MISSING,
        ),
        (["-m", "cli.main", "teachers", "show", "x"], ExitCode.DATA_MISSING),
        (["-m", "cli.main", "--unknown"], ExitCode.USAGE),
        (
            ["-m", "cli.main", "students", "rerank", "--model", "./nowhere", "--pairs", "p.jsonl"],
            ExitCode.USAGE,
        ),
    ],
)
def test_processes_of_every_package_end_with_a_code_of_the_enum(
    command: list[str], code: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MSFT_STORE": str(tmp_path / "s.duckdb")},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_the_root_imports_nothing_of_the_packages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import msft.errors, sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {*PACKAGES, "duckdb", "polars", "torch"}
