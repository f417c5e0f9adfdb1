"""`msft compare` and `msft eval` as commands: formats, notes, exit codes."""

import csv
import io
import json
from pathlib import Path

import pytest
from shelves import Shelf, Small, fill, msft

from labelstore.evaluation import comparison
from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return fill(Shelf(LabelStore(tmp_path_factory.mktemp("toy") / "toy.duckdb")))


@pytest.mark.test_all
def test_compare_gives_the_promised_columns_and_says_what_queries_can_show(toy: Small) -> None:
    done = msft(
        toy.store, "compare", "bm25", "cl-student", "short", "--measure", "nDCG@10", "--format", "json"
    )
    rows = json.loads(done.out)
    assert [(r["system"], r["baseline"]) for r in rows] == [("cl-student", "bm25"), ("short", "bm25")]
    promised = (
        "dataset", "measure", "system", "baseline", "difference", "ci90_low", "ci90_high", "p_value", "p_holm",
        "tost_p", "margin", "verdict",
    )  # fmt: skip
    assert list(rows[0])[: len(promised)] == list(promised)
    assert all(
        value is None or isinstance(value, str | int | float) for row in rows for value in row.values()
    )
    assert "toy/test, the only one" in done.err
    assert "6 queries, margin 0.01" in done.err
    assert "is out of reach for" in done.err


def test_every_format_has_the_same_pairs(toy: Small) -> None:
    arguments = ("compare", "bm25", "cl-student", "oracle@bm25", "--all", "--margin", "0.02", "-q")
    rows = json.loads(msft(toy.store, *arguments, "--format", "json").out)
    assert [r["verdict"] for r in rows if {r["system"], r["baseline"]} == {"cl-student", "oracle@bm25"}] == [
        "equivalent"
    ]
    as_csv = list(csv.DictReader(io.StringIO(msft(toy.store, *arguments, "--format", "csv").out)))
    assert [(r["system"], r["baseline"], r["verdict"]) for r in as_csv] == [
        (r["system"], r["baseline"], r["verdict"]) for r in rows
    ]
    table = msft(toy.store, *arguments, "--correction", "bh").out.splitlines()
    assert max(map(len, table)) <= 80
    (head,) = (k for k, line in enumerate(table) if "verdict" in line)
    assert "p_bh" in table[head]
    assert "p_holm" not in "".join(table)
    assert [line.split()[:3] for line in table[head + 2 : head + 5]] == [
        [r["system"], r["baseline"], r["verdict"]] for r in rows
    ]


@pytest.mark.test_all
def test_latex_marks_what_a_system_beats_and_what_it_equals(toy: Small) -> None:
    text = msft(
        toy.store,
        "compare",
        "bm25",
        "cl-student",
        "oracle@bm25",
        "--all",
        "--measure",
        "RR@10",
        "--format",
        "latex",
    ).out
    lines = {line.split(" & ")[1]: line for line in text.splitlines() if line.count(" & ") == 2}
    assert lines["bm25"].startswith("a & bm25 & $0.")
    assert "^{" not in lines["bm25"]
    # both stand at 1 on every query: bold, better than bm25 at p < .05 or not as the test says, and equal to each other
    rows = comparison.compare(
        toy.store, ["bm25", "cl-student", "oracle@bm25"], ["toy/test"], measures=["RR@10"], all_pairs=True
    )
    beats = {r["system"] for r in rows if r["p_holm"] < 0.05 and r["difference"] > 0}
    for name, other in (("cl-student", "c"), ("oracle@bm25", "b")):
        above = "^{a}" if name in beats else ""
        assert lines[name].split(" & ")[2] == rf"$\mathbf{{1.000}}{above}_{{\equiv {other}}}$ \\"
    assert r"Holm-corrected over 3 comparisons" in text
    assert r"within $\pm0.01$" in text
    assert text.count("{") == text.count("}")


def test_text_cannot_break_the_latex(toy: Small) -> None:
    from cli.output import latex

    assert latex.escape("a_b & 100% #1 {x}~^\\") == (
        r"a\_b \& 100\% \#1 \{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    plain = msft(toy.store, "runs", "list", "--format", "latex", "-q").out
    assert r"first\_stage" in plain
    assert plain.startswith(r"\begin{tabular}{")
    assert msft(toy.store, "eval", "--no-rerank", "--format", "latex", "-q").out.startswith(r"\begin{table}")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["bm25", "nothing"], 4, "nothing"),
        (["bm25", "cl-student", "--dataset", "toy/tset"], 4, "toy/test"),
        (["bm25"], 2, "two systems"),
        (["bm25", "cl-student", "--margin", "-1"], 2, "--margin"),
        (["bm25", "cl-student", "--measure", "nDCG@x"], 2, "--measure"),
        ([], 2, "--baseline"),
    ],
)
def test_a_wrong_command_gets_one_clear_line(toy: Small, arguments: list[str], code: int, says: str) -> None:
    done = msft(toy.store, "compare", *arguments, code=code)
    assert says in done.err
    assert "hint:" in done.err
    assert done.out == ""


def test_the_help_ends_with_an_example(tmp_path: Path) -> None:
    text = msft(LabelStore(tmp_path / "none.duckdb"), "compare", "--help").out
    assert "Example: msft compare" in text.splitlines()[-1]
