"""Journal segments that cannot be merged: what is sound in them is stored, the rest stands in nobody's way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore
from teachers.generate import merge_journal as merge
from teachers.generate.job import Labelled, generate
from teachers.generate.settings import Settings
from teachers.journal import segments as journal
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

Spoil = Callable[[list[dict[str, Any]]], None]
QUERIES = 6


def label(store: LabelStore, **settings: Any) -> Labelled:
    engine = ScriptedEngine(hashed_order, capacity=4)
    return generate(store, Settings(model="rankzephyr", canaries=0, **settings), engine=engine)


def written(store: LabelStore, monkeypatch: pytest.MonkeyPatch, spoil: Spoil = lambda records: None) -> Path:
    """A job's journal that its merge never saw, spoilt."""
    with monkeypatch.context() as patched:
        patched.setattr(
            "teachers.generate.child_process.merge_small_or_large", lambda *_: merge.MergedJournal()
        )
        label(store)
    (path,) = journal.segments(store.files / "journal")
    records = list(journal.read(path))
    spoil(records)
    path.write_bytes(b"".join(journal.encode(record) for record in records))
    return path


def calls(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["t"] == "call"]


def count(store: LabelStore, table: str) -> int:
    with store.read() as con:
        ((number,),) = con.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(number)


def one(key: str, value: Any) -> Spoil:
    return lambda records: calls(records)[2].update({key: value})


@pytest.mark.test_all
@pytest.mark.parametrize(
    "spoil",
    [
        one("in", 10**12),
        one("attempt", -1),
        one("query_id", "of another store"),
        one("at", "yesterday"),
        one("docs", 5),
        one("parsed", ["x"]),
        one("reply", {"text": 1}),
        one("server", [1]),
        one("in", float("inf")),
        one("out_of_range", float("nan")),
        one("request", float("-inf")),
        one("key", True),
        one("key", [4, 3]),
        lambda records: calls(records)[2].pop("hashes"),
        lambda records: calls(records)[2].update(docs=["nowhere"] * len(calls(records)[2]["docs"])),
    ],
    ids=[
        "tokens",
        "attempt",
        "query",
        "date",
        "docs",
        "parsed",
        "reply",
        "server",
        "infinite",
        "nan",
        "request",
        "key",
        "keys",
        "missing",
        "passages",
    ],
)
def test_one_bad_record_costs_its_own_query_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    store = make(tmp_path / "s.duckdb", QUERIES, length=lambda k: 4)
    path = written(store, monkeypatch, spoil)
    notes: list[str] = []
    done = merge.merge_journal(store, path.parent, notes.append)
    assert (done.aside, done.segments) == (1, 0)
    assert count(store, "calls") == QUERIES - 1
    assert count(store, "permutations") == QUERIES - 1, "a list made from a lost call is not stored"
    ((kept, reasons),) = journal.aside(path.parent)
    assert kept.name == path.name
    assert any(reason.startswith("call ") for reason in reasons)
    assert "set aside" in "".join(notes)
    assert not journal.segments(path.parent)
    again = label(store)
    assert (again.labelled, again.figures.calls, again.aside) == (QUERIES, 1, 0)
    assert label(store, name="another").labelled == QUERIES, "another labeling is in nobody's way"


@pytest.mark.test_all
@pytest.mark.parametrize(
    "spoil",
    [
        lambda records: records[0].update(dataset="gone"),
        lambda records: records[0].update(format=99),
        lambda records: records[0].update(teacher=[]),
        lambda records: records[0].update(labeling={"name": "x"}),
        lambda records: records.pop(0),
        lambda records: records[0].pop("run"),
    ],
    ids=["dataset", "format", "teacher", "labeling", "headless", "run"],
)
def test_a_header_that_cannot_be_read_sets_the_segment_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    store = make(tmp_path / "s.duckdb", QUERIES, length=lambda k: 4)
    path = written(store, monkeypatch, spoil)
    data = path.read_bytes()
    assert label(store).labelled == QUERIES
    ((kept, _),) = journal.aside(path.parent)
    assert kept.read_bytes() == data, "nothing of it is lost"


@pytest.mark.test_all
@pytest.mark.parametrize(
    "line", [b"[]", b"7", b'"call"', b'{"t": 1}', b"[" * 5000, b"{", b"\xff", b'{"t": "call"}']
)
def test_lines_of_any_json_with_a_fitting_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    import hashlib

    store = make(tmp_path / "s.duckdb", QUERIES, length=lambda k: 4)
    path = written(store, monkeypatch)
    with path.open("ab") as file:
        file.write(hashlib.blake2b(line, digest_size=8).hexdigest().encode() + b" " + line + b"\n")
    assert journal.summary(path.parent)
    assert label(store).figures.calls == 0, "all that was sound came in"


def test_journals_of_before_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a surrogate pair in a reply, a finish reason that is a number: both were written once."""

    def old(records: list[dict[str, Any]]) -> None:
        for record, reply in zip(calls(records), ("a\ud83d", "\udc00b", "nul\0"), strict=False):
            record.update(reply=reply, finish=7)

    store = make(tmp_path / "s.duckdb", QUERIES, length=lambda k: 4)
    path = written(store, monkeypatch, old)
    assert merge.merge_journal(store, path.parent).aside == 0
    with store.read() as con:
        replies = con.execute("SELECT reply FROM calls WHERE finish_reason = '7' ORDER BY 1").fetchall()
    assert replies == [("a\ufffd",), ("nul\ufffd",), ("\ufffdb",)]


@pytest.mark.test_all
def test_what_verify_says_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli.main import app

    def says(*arguments: str) -> str:
        app([*arguments, "--store", str(store.path), "--format", "json"], standalone_mode=False)
        return capsys.readouterr().out

    store = make(tmp_path / "s.duckdb", QUERIES, length=lambda k: 4)
    path = written(store, monkeypatch, lambda records: records[0].update(format=99))
    good = b"".join(
        journal.encode(record | ({"format": journal.FORMAT} if record["t"] == "header" else {}))
        for record in journal.read(path)
    )
    merge.merge_journal(store, path.parent)
    assert "set aside" in says("status")
    (found,) = json.loads(says("verify"))
    assert "format is 99" in found["problem"]
    (move,) = [part for part in found["hint"].split("`") if part.startswith("mv ")]
    _, source, _, folder, _ = move.split("'")
    Path(source).write_bytes(good)  # the cause is mended
    shutil.move(source, folder)
    assert label(store).figures.calls == 0, "all calls were in the segment"
    assert json.loads(says("verify")) == []


def test_one_name_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "s.duckdb", QUERIES, length=lambda k: 4)
    path = written(store, monkeypatch, lambda records: records.pop(0))
    data = path.read_bytes()
    for _ in range(2):
        path.write_bytes(data)
        merge.merge_journal(store, path.parent)
    assert [kept.read_bytes() for kept, _ in journal.aside(path.parent)] == [data, data]
