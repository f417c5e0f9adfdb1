"""`msft` itself: its version, shell completion, and the permissions of what commands write."""

import os
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import forked
import made_store
import pytest

from labelstore.store.label_store import LabelStore

ROOT = Path(__file__).resolve().parents[2]


def msft(*words: str, folder: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip


def test_version() -> None:
    done = msft("--version")
    assert (done.returncode, done.stdout) == (0, f"msft {metadata.version('msft')}\n")


def test_msft_alone_shows_help() -> None:
    done = msft()
    assert done.returncode == 0
    assert "students" in done.stdout
    assert done.stdout == msft("--help").stdout


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("serve", "'students serve'"),
        ("generate", "'queries generate' or 'teachers generate'"),
        ("evla", "'eval'"),
        ("tarin", "'students train'"),
        ("data lst", "'list'"),
        ("views bulid", "'build'"),
    ],
)
def test_a_command_that_is_not_there_is_told_where_it_is(words: str, meant: str) -> None:
    done = msft(*words.split(), "x")
    assert done.returncode == 2
    word = words.split()[-1]
    assert done.stderr.startswith(f"error: No such command '{word}'. Did you mean {meant}?\nhint: ")


def test_a_command_that_is_like_no_other_has_the_help_as_its_hint() -> None:
    done = msft("xyzzy")
    assert (done.returncode, done.stderr) == (2, "error: No such command 'xyzzy'.\nhint: msft --help\n")


@pytest.mark.parametrize(
    ("line", "offered"),
    [("msft stud", "students"), ("msft teachers gen", "generate"), ("msft students train --reg", "--regime"),
     ("msft eval --format la", "latex")],
)  # fmt: skip
def test_shell_completion(line: str, offered: str) -> None:
    words = line.split(" ")
    done = msft(_MSFT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert offered in done.stdout.split()


@pytest.mark.parametrize("line", ["msft serve x", "msft tarin ", "msft data lst "])
def test_shell_completion_after_an_unknown_command_prints_no_error(line: str) -> None:
    done = msft(_MSFT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1))
    assert "rror" not in done.stdout + done.stderr


@pytest.mark.test_all
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_what_commands_write_is_readable_as_the_umask_says(
    tmp_path: Path, tiny_bert: Path, umask: int
) -> None:
    store = LabelStore(made_store.make(tmp_path / "s.duckdb").path)
    for words in (
        ("students", "add", str(tiny_bert), "--name", "tiny"),
        ("students", "export", "tiny", "-o", "out/model", "--no-check"),
        ("runs", "export", "first", "--dataset", "c/test", "-o", "out/first.run"),
        ("sql", "SELECT 1 AS one", "-o", "out/one.parquet"),
        ("report", "-o", "out/report.html"),
        (
            "views",
            "build",
            "--kind",
            "distillation",
            "--labels",
            "teacher@first",
            "--allow-overlap",
            "--name",
            "kd",
        ),
        ("views", "export", "kd", "-o", "out/view"),
    ):
        (tmp_path / "out").mkdir(exist_ok=True)
        done = forked.run(
            [sys.executable, "-m", "cli.main", *words, "--store", str(store.path)], cwd=tmp_path, capture_output=True, text=True,
            umask=umask,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) >= 10
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in written}
    assert set(modes.values()) == {oct(0o666 & ~umask)}, modes


def test_the_help_is_quick_and_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cli.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {
        line.rsplit("|", 1)[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "typer" in imported
    assert not imported & {"torch", "transformers", "duckdb", "polars", "numpy", "vllm"}
    assert done.stdout.rstrip().endswith("Example: msft demo")
