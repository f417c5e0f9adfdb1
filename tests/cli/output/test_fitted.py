"""Tables for people fit 80 columns, have no JSON in a cell, and say what their columns mean; other formats are whole."""

import json

import pytest
from shelves import Shelf, Small, fill, msft

from cli.output import fitted
from cli.output.render import Format
from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = fill(Shelf(LabelStore(tmp_path_factory.mktemp("fitted") / "s.duckdb")))
    settings = json.dumps(
        {"lr": 2e-4, "schedule": "linear", "epochs": 1, "batch": {"lists": 8}, "clip": None}
    )
    with small.store.write() as con:
        for stage, objective in enumerate(("cl", "kd"), 1):
            con.execute(
                """INSERT INTO stages VALUES (1, ?, ?, 'lce', NULL, ?, 'a', 'b', ?, 100, 12345, 0, 3, 61.5, 0.0123, 90, 0.4321, 'end')""",
                [stage, objective, f"{'0123456789abcdef' * 2}", settings],
            )
    return small


def widths(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize(
    "words",
    ["students show cl-student", "eval --no-rerank", "eval --no-rerank --measure nDCG@10 --measure RR@10 --measure R@100 --measure AP"],
)  # fmt: skip
def test_tables_fit_and_explain_their_columns(small: Small, words: str) -> None:
    done = msft(small.store, *words.split())
    assert widths(done.out) <= 80, done.out
    assert "{" not in done.out
    assert widths(done.err.partition("warning")[0]) <= 120
    named = "weights_moved: how far" if "show" in words else "recall: recall of the candidates"
    assert named in " ".join(done.err.split())


@pytest.mark.parametrize("form", ["table", "md", "latex"])
def test_every_format_for_people_has_its_notes(small: Small, form: str) -> None:
    done = msft(small.store, "eval", "--no-rerank", "--measure", "R@100", "--format", form)
    assert "R@100 over lists of 12: nothing below rank 12 counts, so it is R@12" in done.err
    assert ("recall: recall of the candidates" in " ".join(done.err.split())) == (form != "latex")
    assert "over lists of 12" not in done.out
    shown = msft(small.store, "students", "show", "cl-student", "--format", form)
    assert ("weights_moved: how far" in " ".join(shown.err.split())) == (form != "latex")


@pytest.mark.parametrize("form", ["json", "csv"])
def test_formats_for_programs_have_none(small: Small, form: str) -> None:
    done = msft(small.store, "eval", "--no-rerank", "--measure", "R@100", "--format", form)
    assert "over lists of" not in done.err
    assert "recall of the candidates" not in done.err


def test_nothing_is_lost_on_the_way(small: Small) -> None:
    rows = json.loads(msft(small.store, "students", "show", "cl-student", "--format", "json").out)
    shown = " ".join(msft(small.store, "students", "show", "cl-student").out.split())
    for value in (
        "0123456789abcdef0123456789abcdef",
        "12345",
        "0.0123",
        "0.4321",
        "lr 0.0002",
        "schedule linear",
        "lists 8",
    ):
        assert value in shown
    assert [row["stage"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        ("R@100", "R@100 over lists of 12: nothing below rank 12 counts, so it is R@12"),
        # their divisor or their ideal keeps the cut
        (
            "nDCG@1000",
            "nDCG@1000 over lists of 12: nothing below rank 12 counts, though up to rank 1000 could",
        ),
        ("P@20", "P@20 over lists of 12: nothing below rank 12 counts, though up to rank 20 could"),
        ("nDCG@10", None),
        ("RR@12", None),
    ],
)
def test_a_measure_beyond_the_lists_says_so(small: Small, measure: str, says: str | None) -> None:
    done = msft(small.store, "eval", "--no-rerank", "--measure", measure)
    assert "over lists of 12" not in done.err if says is None else says in done.err


def test_measures_that_all_tie_stay_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    tied = [{"system": name, "dataset": "d", "AP": 0.5, "queries": 6} for name in ("a", "b")]
    fitted.rows(tied, Format.table, keys=("system",), about={})
    above, _, table = capsys.readouterr().out.partition("\n\n")
    assert above == "dataset: d; queries: 6"
    assert "AP" in table


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"system": "a", "dataset": "d", "x": 1.0}, {"system": "b", "dataset": "d", "x": 2.0}], ["dataset: d"]),
        ([{"system": f"s{n}", **{f"measure_{k}": float(n) for k in range(12)}} for n in range(3)], ["measure_0", "measure_11"]),
        ([{"system": "a", "text": "long " * 40}], ["a text: long long"]),
        ([{"system": "a", "settings": {"k": [1, 2], "q": {"b": .5}}}], ["a settings: k 1 2, q b 0.5"]),
        ([], []),
    ],
)  # fmt: skip
def test_any_rows_fit(capsys: pytest.CaptureFixture[str], rows: list, expected: list[str]) -> None:
    fitted.rows(rows, Format.table, keys=("system",), about={"x": "a value"})
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    for piece in expected:
        assert piece in out
    heads = [line for line in out.splitlines() if line.startswith("system")]
    assert len(heads) == (0 if not rows else 2 if len(rows) == 3 else 1)
