"""Bad lines of a corpus can be left out, counted and named; a BEIR folder's splits, and several runs, come in at once."""

import gzip
import json
import re
from pathlib import Path

import pytest
from shelves import msft

from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify

GOOD = [f'{{"_id": "d{n}", "title": "T{n}", "text": "text of {n}"}}\n' for n in range(6)]
BAD = {
    "not JSON": '{"_id": "x", "text": \n',
    "a list": '["x"]\n',
    "no text": '{"_id": "x"}\n',
    "an id with a space": '{"_id": "x y", "text": "t"}\n',
    "a number as text": '{"_id": "x", "text": 3}\n',
    "not UTF-8": '{"_id": "x", "text": "\udcff"}\n',
}


def beir(folder: Path, lines: list[str], name: str = "corpus.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = "".join(lines).encode("utf-8", "surrogateescape")
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{n}", "text": f"query {n}"}) + "\n" for n in range(6))
    )
    (folder / "qrels").mkdir(exist_ok=True)
    for split, numbers in (("train", (0, 1, 2)), ("dev", (3,)), ("test", (4, 5))):
        rows = [f"q{n}\td{n}\t1\n" for n in numbers]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


def add(tmp_path: Path, *more: str, code: int = 0):
    store = LabelStore(tmp_path / "s.duckdb")
    return store, msft(store, "data", "add", "own", "--from", "beir", "--format", "json", *more, code=code)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_bad_line_is_left_out_counted_and_named(tmp_path: Path, kind: str, name: str) -> None:
    beir(tmp_path / "beir", [*GOOD[:2], BAD[kind], *GOOD[2:]], name)
    store, done = add(tmp_path, "--qrels", "qrels/test.tsv", code=1)
    assert f"{name}:3" in done.err
    assert re.search(r"\nhint: \w.*; or --skip-bad-lines N leaves out up to N such lines\n$", done.err)
    assert not store.exists
    store, done = add(tmp_path, "--qrels", "qrels/test.tsv", "--skip-bad-lines", "1")
    row = json.loads(done.out)[0]
    assert (row["step"], row["read"], row["kept"], row["rejected"]) == ("documents", 7, 6, 1)
    assert f"{name}:3" in row["reasons"]
    assert "bad lines skipped, 1: " in done.err
    assert verify(store).findings == []


def test_more_bad_lines_than_allowed_change_nothing(tmp_path: Path) -> None:
    beir(tmp_path / "beir", [BAD["a list"], *GOOD, BAD["no text"], BAD["not JSON"]])
    store, done = add(tmp_path, "--qrels", "qrels/test.tsv", "--skip-bad-lines", "2", code=1)
    assert "corpus.jsonl:9" in done.err
    assert "2 bad lines were skipped before it" in done.err
    assert "--skip-bad-lines N, N above 2, leaves out" in done.err
    assert not store.exists or "own" not in msft(store, "data", "list").out
    _, done = add(tmp_path, "--qrels", "qrels/test.tsv", "--skip-bad-lines", "5")
    assert "bad lines skipped, 3: " in done.err


@pytest.mark.parametrize(
    ("file", "text"),
    [("collection.tsv", "d0\tone\nno tab\nd1\ttwo\n"), ("docs.tsv", "id\ttext\nd0\tone\nx y\ttwo\nd1\ttwo\n")],
)  # fmt: skip
def test_bad_lines_of_tables_too(tmp_path: Path, file: str, text: str) -> None:
    folder = tmp_path / "beir"
    folder.mkdir()
    (folder / file).write_text(text)
    (folder / "queries.tsv").write_text("q0\tone\nbad\nq1\ttwo\n")
    add(tmp_path, code=1)
    _, done = add(tmp_path, "--skip-bad-lines", "1")
    kept = {row["step"]: (row["kept"], row["rejected"]) for row in json.loads(done.out)}
    assert kept == {"documents": (2, 1), "queries": (2, 1)}


def test_all_splits_of_a_folder_come_in_at_once(tmp_path: Path) -> None:
    beir(tmp_path / "beir", GOOD)
    store, done = add(tmp_path, "--splits")
    rows = json.loads(done.out)
    assert [row["dataset"] for row in rows if row["step"] == "qrels"] == ["own/train", "own/dev", "own/test"]
    assert sum(row["step"] == "documents" for row in rows) == 1, "passages are read once"
    listed = json.loads(msft(store, "data", "list", "--format", "json").out)
    assert {row["dataset"]: row["role"] for row in listed} == {
        "own/train": "train",
        "own/dev": "dev",
        "own/test": "test",
    }
    assert {row["collection"] for row in listed} == {"own"}
    assert {row["dataset"]: row["queries"] for row in listed} == {"own/train": 3, "own/dev": 1, "own/test": 2}
    before = msft(store, "verify", "--hash").out
    add(tmp_path, "--splits")
    assert msft(store, "verify", "--hash").out == before


@pytest.mark.parametrize("more", [("--qrels", "qrels/test.tsv"), ("--role", "test")])
def test_splits_with_one_splits_options_are_refused(tmp_path: Path, more: tuple[str, ...]) -> None:
    beir(tmp_path / "beir", GOOD)
    add(tmp_path, "--splits", *more, code=2)


def test_several_runs_come_in_at_once(tmp_path: Path) -> None:
    beir(tmp_path / "beir", GOOD)
    store, _ = add(tmp_path, "--splits")
    for name in ("a.run", "b.trec", "c.run"):
        (tmp_path / name).write_text("".join(f"q{n} Q0 d{n} 1 2.0 t\n" for n in (4, 5)))
    done = msft(
        store, "runs", "import", "a.run", "b.trec", "c.run", "--dataset", "own/test", "--format", "json"
    )
    assert [row["kept"] for row in json.loads(done.out)] == [2, 2, 2]
    assert len(json.loads(msft(store, "runs", "list", "--format", "json").out)) == 3
    msft(store, "runs", "import", "a.run", "b.trec", "--dataset", "own/test", "--name", "x", code=2)
    done = msft(store, "runs", "import", "a.run", "nowhere.run", "--dataset", "own/test", code=4)
    assert "nowhere.run" in done.err
