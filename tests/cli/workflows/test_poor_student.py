"""A student that 8 steps made worse than its first stage: `eval`, `export`, the card and `serve` all say so."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from made_words import WORDS
from runner import ROOT, Done, Shell

pytestmark = pytest.mark.test_all

POOR = "poor alone is worse than bm25s"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("poor")


@pytest.fixture(scope="module")
def shell(folder: Path, tiny) -> Iterator[Shell]:
    """Judged queries that BM25 answers rightly by one rare word, and a student of 8 steps that does not."""
    common = [f"about topic {WORDS[n % 5]}" for n in range(80)]
    (folder / "docs.jsonl").write_text(
        "".join(
            json.dumps({"doc_id": f"d{n}", "text": f"{common[n]} rare{n} {common[n]}"}) + "\n"
            for n in range(80)
        )
    )
    (folder / "queries.tsv").write_text("".join(f"q{n}\t{common[n]} rare{n}\n" for n in range(80)))
    for part, numbers in (("train", range(40)), ("dev", range(40, 80))):
        (folder / f"qrels.{part}.txt").write_text("".join(f"q{n} 0 d{n} 1\n" for n in numbers))
    with Shell(folder) as shell:
        shell.run(f"export MSFT_STORE={folder / 's.duckdb'}", None)
        for part in ("train", "dev"):
            _msft(
                shell, "data", "add", f"c/{part}", "--from", ".", "--qrels", f"qrels.{part}.txt", "--collection", "c",
                "--role", part,
            )  # fmt: skip
            _msft(shell, "retrieve", "--dataset", f"c/{part}", "--retriever", "bm25s", "--depth", "20")
        _msft(
            shell, "students", "train", "--regime", "cl", "--base", str(tiny("bert")), "--dataset", "c/train",
            "--run", "bm25s", "--name", "poor", "--max-steps", "8", "--max-length", "48", "--precision", "fp32",
        )  # fmt: skip
        yield shell


def _msft(shell: Shell, *words: str) -> Done:
    done = shell.run("", words)
    assert done.code == 0, done.err
    return done


def test_the_evaluation_ends_with_it(shell: Shell) -> None:
    done = _msft(shell, "eval", "--dataset", "c/dev", "--measure", "nDCG@10")
    assert f"use bm25s: no student is better on these 40 queries; {POOR}, p < .001" in done.err


def test_the_export_and_its_card_say_it(shell: Shell, folder: Path) -> None:
    _msft(shell, "eval", "--dataset", "c/dev", "--measure", "nDCG@10")
    done = _msft(shell, "students", "export", "poor", "-o", "out")
    assert POOR in done.err
    card = (folder / "out" / "README.md").read_text("utf-8")
    assert f"> **Warning:** {POOR} on c/dev: nDCG@10 0." in card
    assert "use bm25s" in card


@pytest.mark.parametrize("exported", [False, True])
def test_the_server_says_it_before_its_first_request(shell: Shell, folder: Path, exported: bool) -> None:
    """Of a student of the store, and of its exported folder on a machine without the store."""
    _msft(shell, "eval", "--dataset", "c/dev", "--measure", "nDCG@10")
    store = folder / ("none.duckdb" if exported else "s.duckdb")
    if exported:
        _msft(shell, "students", "export", "poor", "-o", "served")
    served = str(folder / "served") if exported else "poor"
    server = forked.Popen(
        [sys.executable, "-m", "cli.main", "students", "serve", served, "--port", "0"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "MSFT_STORE": str(store)},
    )  # fmt: skip
    assert server.stderr is not None
    try:
        said: list[str] = []
        for line in server.stderr:
            said.append(line)
            if line.startswith("serving"):
                break
        assert any(POOR in line for line in said), said
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
