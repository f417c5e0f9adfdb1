"""Lists of things with names of usual length fit 80 columns, lose nothing, and are the same in other formats."""

import csv
import io
import json
from pathlib import Path

import pytest
import usual_names
from shelves import msft

from cli.output import fitted, render
from cli.output.render import Format
from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    return usual_names.make(tmp_path_factory.mktemp("usual") / "s.duckdb")


LISTS = (
    "data list",
    "runs list",
    f"runs list --dataset {usual_names.TRAIN}",
    "negatives list",
    f"negatives show {usual_names.NEGATIVES} --limit 3",
    "views list",
    "views show msmarco-train-cl",
    "students list",
    "students bases",
    "teachers list",
    "teachers list --registry",
    f"teachers show {usual_names.LABELS}",
    "status",
    "sql --list",
    f"runs remove {usual_names.RUN} --dataset {usual_names.TRAIN}",
)

WITHOUT = ("made", "model")  # a moment is shown to the minute, and a base's model in other formats alone


@pytest.mark.parametrize("words", LISTS)
def test_lists_fit_and_lose_nothing(usual: LabelStore, words: str) -> None:
    code = 2 if "remove" in words else 0
    shown = msft(usual, *words.split(), code=code).out
    assert max(map(len, shown.splitlines())) <= 80, shown
    found = json.loads(msft(usual, *words.split(), "--format", "json", code=code).out)
    assert found
    flat = "".join(shown.split())
    for row in found:
        for name, value in row.items():
            if isinstance(value, str) and name not in WITHOUT:
                assert "".join(value.split()) in flat, (name, value)
    table = list(csv.DictReader(io.StringIO(msft(usual, *words.split(), "--format", "csv", code=code).out)))
    assert [list(row) for row in table] == [list(row) for row in found]


def test_what_commands_made_fits_too(tmp_path: Path) -> None:
    """A merge, an import, a mining, a view and a comparison tell of names of usual length within the width."""
    store = usual_names.make(tmp_path / "s.duckdb")
    other = usual_names.make(tmp_path / "other.duckdb")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "corpus.jsonl").write_text(
        "".join(f'{{"_id": "d{n}", "text": "thing {n}"}}\n' for n in range(3)) + '{"_id": ""}\n'
    )
    (corpus / "queries.jsonl").write_text('{"_id": "q1", "text": "which thing"}\n')
    run = tmp_path / "dense-retriever-msmarco-distilbert-base.run"
    run.write_text("q1 Q0 d1 1 2.0 t\nq1 Q0 d2 2 1.0 t\nq1 Q0 absent-passage-00001 3 0.5 t\n")
    labels = tmp_path / "orders.run"
    labels.write_text("".join(f"q0 Q0 d{n} {n + 1} {9 - n}.0 rank-zephyr-7b-v1-full\n" for n in range(4)))
    lists = ("--dataset", usual_names.TRAIN, "--run", usual_names.RUN)
    for words in (
        ("data", "add", "passages-of-our-own-engine/train", "--from", str(corpus), "--skip-bad-lines", "1"),
        ("data", "show", "passages-of-our-own-engine/train"),
        ("runs", "import", str(run), "--dataset", "passages-of-our-own-engine/train", "--skip-unknown"),
        ("negatives", "mine", *lists, "--per-query", "4", "--depth", "20", "--name", usual_names.NEGATIVES + "-2"),
        ("views", "build", "--kind", "contrastive", *lists, "--name", "msmarco-passage-train-cl-uniform5of20"),
        ("teachers", "import", str(labels), *lists),
        ("teachers", "compare", usual_names.LABELS),
        ("merge", str(other.path)),
    ):  # fmt: skip
        shown = msft(store, *words).out
        assert shown
        lines = [line for line in shown.splitlines() if str(tmp_path) not in line]  # a path is never broken
        assert max(map(len, lines)) <= 80, shown


def test_a_currency_stands_beside_costs(usual: LabelStore) -> None:
    """Of prices in the registry, and of what a job would cost at most; none beside what has no price."""
    registry = json.loads(msft(usual, "teachers", "list", "--registry", "--format", "json").out)
    assert {row["input_price"] is None: row["currency"] for row in registry} == {True: None, False: "USD"}
    for words in (
        f"teachers generate --model gpt-4o-mini --dataset {usual_names.TRAIN} --dry-run",
        f"teachers judge --model gpt-4o-mini --dataset {usual_names.TRAIN} --dry-run",
        "queries generate --model gpt-4o-mini --collection msmarco-passage --n 10 --dry-run",
    ):
        asked = [*words.split(), "--engine", "openai", "--base-url", "http://127.0.0.1:1"]
        (row,) = json.loads(msft(usual, *asked, "--format", "json").out)
        assert row["cost_most"] > 0
        assert row["currency"] == "USD"
        assert "currency: USD" in " ".join(msft(usual, *asked).out.split())


def test_a_list_that_fits_is_a_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    fitted.listed([{"run": "a", "depth": 1}, {"run": "b", "depth": 1}], Format.table, keys=("run",))
    assert capsys.readouterr().out == "run  depth\n---  -----\na        1\nb        1\n"


def test_what_does_not_fit_stands_under_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "run": f"r{n}",
            "system": "s" * 30,
            "of": None if n else "o" * 30,
            "note": "a long note " * 8,
            "n": n,
        }
        for n in range(2)
    ]
    fitted.listed(rows, Format.table, keys=("run",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("system: sss")
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["run", "of", "n"]
    assert [line.split()[0] for line in table if not line.startswith(" ")] == ["run", "---", "r0", "r1"]
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("as_rows", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_commands_are_not_wrapped(capsys: pytest.CaptureFixture[str], as_rows: bool, shared: bool) -> None:
    hints = [
        f"mend it, then `mv '{'x' * 60}{0 if shared else n}' '/a/folder'` and run any msft command"
        for n in range(2)
    ]
    rows = [{"name": f"n{n}", "problem": "is damaged " * 9, "hint": hint} for n, hint in enumerate(hints)]
    if as_rows:
        fitted.rows(rows, Format.table, keys=("name",), about={})
    else:
        fitted.listed(rows, Format.table, keys=("name",))
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.endswith(f"hint: {hint}") for line in lines) for hint in hints)
    assert all(len(line) <= 80 for line in lines if "hint: " not in line)


WIDE = "\u4e2d\u6587" * 60  # two columns each, and no space
ACCENTED = "e\u0301"  # one column: a letter and a combining mark


def test_wide_characters_fit_and_are_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    path, hash_ = "/home/" + "\u6587" * 60, "0123456789abcdef" * 6
    rows = [{"id": f"q{n}", "text": WIDE, "marks": ACCENTED * 100, "n": n} for n in range(2)]
    rows[1]["text"] = "short"
    rows[1]["marks"] = f"{path} {hash_}"
    for print_rows in (
        lambda: fitted.listed(rows, Format.table, keys=("id",)),
        lambda: fitted.rows(rows, Format.table, keys=("id",), about={}),
    ):
        print_rows()
        out = capsys.readouterr().out
        whole = [line for line in out.splitlines() if path in line or hash_ in line]
        assert len(whole) == 2
        assert all(render.width(line) <= 80 for line in out.splitlines() if line not in whole)
        assert not any(line.strip().startswith("\u0301") for line in out.splitlines())
        flat = "".join(out.split())
        assert WIDE in flat
        assert ACCENTED * 100 in flat


def test_wide_characters_are_aligned() -> None:
    lines = render.table_lines(
        [{"a": "\u4e2d\u6587", "b": 1}, {"a": ACCENTED, "b": 22}, {"a": "ascii", "b": 3}], ["a", "b"]
    )
    assert {render.width(line) for line in lines} == {9}
    assert [line[line.rindex(" ") + 1 :] for line in lines] == ["b", "--", "1", "22", "3"]


def test_values_under_a_row_are_written_as_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"a": float("nan"), "b": 1234567.891, "c": 0.25, "d": True}
    rows = [{"id": "x" * 79, "text": "long " * 20, **values, "settings": {"lr": 2e-4, "x": [0.5]}}]
    fitted.listed(rows, Format.table, keys=("id",))
    out = capsys.readouterr().out
    assert "  " + "; ".join(f"{name}: {render.cell(value)}" for name, value in values.items()) + "\n" in out
    assert "a: -; b: 1.23e+06; c: 0.2500; d: yes" in out
    assert "settings: lr 0.0002, x 0.5" in out
