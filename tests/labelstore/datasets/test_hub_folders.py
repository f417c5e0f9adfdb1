"""Folders of the Hub's datasets come in by one command: BEIR's, MTEB's and NanoBEIR's layouts, in Parquet or JSON lines."""

import json
from pathlib import Path
from typing import Any

import hub_sets
import pytest
from shelves import msft

from labelstore.store.label_store import LabelStore

CORPUS = [{"_id": f"d{n}", "title": "" if n else "Head", "text": f"passage {n}"} for n in range(4)]
QUERIES = [{"_id": f"q{n}", "text": f"query {n}"} for n in range(3)]
QRELS = {
    "train": [{"query-id": "q0", "corpus-id": "d1", "score": 1}],
    "test": [{"query-id": "q1", "corpus-id": "d2", "score": 2}, {"query-id": "q2", "corpus-id": "d0", "score": 0}],
}  # fmt: skip


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def jsonl(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def beir(folder: Path) -> None:
    jsonl(folder / "corpus.jsonl", CORPUS)
    jsonl(folder / "queries.jsonl", QUERIES)
    (folder / "qrels").mkdir()
    for split, judged in QRELS.items():
        lines = "".join(f"{j['query-id']}\t{j['corpus-id']}\t{j['score']}\n" for j in judged)
        (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)


def mteb_jsonl(folder: Path) -> None:
    jsonl(folder / "corpus.jsonl", CORPUS)
    jsonl(folder / "queries.jsonl", QUERIES)
    for split, judged in QRELS.items():
        jsonl(folder / f"qrels/{split}.jsonl", judged)


def mteb_parquet(folder: Path) -> None:
    hub_sets.table(folder / "corpus/corpus-00000-of-00002.parquet", CORPUS[:3])
    hub_sets.table(folder / "corpus/corpus-00001-of-00002.parquet", CORPUS[3:])
    hub_sets.table(folder / "queries/queries-00000-of-00001.parquet", QUERIES)
    for split, judged in QRELS.items():
        hub_sets.table(folder / f"data/{split}-00000-of-00001.parquet", judged)


def converted(folder: Path) -> None:
    """The Hub's own conversion has a folder per split."""
    hub_sets.table(folder / "corpus/corpus/0000.parquet", CORPUS)
    hub_sets.table(folder / "queries/queries/0000.parquet", QUERIES)
    for split, judged in QRELS.items():
        hub_sets.table(folder / f"default/{split}/0000.parquet", judged)


@pytest.mark.parametrize("layout", [beir, mteb_jsonl, mteb_parquet, converted])
@pytest.mark.parametrize(("name", "test"), [("own", "own/test"), ("nfcorpus", "nfcorpus")])
def test_every_split_comes_in_by_one_command(tmp_path: Path, layout: Any, name: str, test: str) -> None:
    layout(tmp_path / "in")
    store = LabelStore(tmp_path / "s.duckdb")
    msft(store, "data", "add", name, "--from", str(tmp_path / "in"))
    assert rows(store, "SELECT name, role FROM datasets ORDER BY role") == [
        (test, "test"),
        (f"{name}/train", "train"),
    ]
    assert rows(store, "SELECT name FROM collections") == [(name,)]
    assert rows(store, "SELECT dataset, query_id, doc_id, relevance FROM judgments ORDER BY query_id") == [
        (f"{name}/train", "q0", "d1", 1), (test, "q1", "d2", 2), (test, "q2", "d0", 0),
    ]  # fmt: skip
    assert rows(store, "SELECT title, text FROM documents WHERE doc_id IN ('d0', 'd1') ORDER BY doc_id") == [
        ("Head", "passage 0"),
        (None, "passage 1"),
    ]
    before = msft(store, "verify", "--hash").out
    msft(store, "data", "add", name, "--from", str(tmp_path / "in"))
    assert msft(store, "verify", "--hash").out == before


def test_one_split_of_everything_is_one_dataset_and_lists_of_positives_are_judgments(tmp_path: Path) -> None:
    for subset, entries in (
        ("corpus", CORPUS),
        ("queries", QUERIES),
        ("qrels", [{"query-id": "q0", "corpus-id": ["d1", "d3"]}]),
    ):
        hub_sets.table(tmp_path / f"in/{subset}/train-00000-of-00001.parquet", entries)
    store = LabelStore(tmp_path / "s.duckdb")
    msft(store, "data", "add", "NanoNQ", "--from", str(tmp_path / "in"))
    assert rows(store, "SELECT name, role FROM datasets") == [("NanoNQ", "test")]
    assert rows(store, "SELECT doc_id, relevance FROM judgments ORDER BY doc_id") == [("d1", 1), ("d3", 1)]


def test_nano_sets_come_in_with_their_bm25_under_the_names_of_the_suite(tmp_path: Path) -> None:
    hub_sets.make(tmp_path / "in", ["NanoNQ", "NanoQuoraRetrieval"])
    store = LabelStore(tmp_path / "s.duckdb")
    msft(store, "data", "add", "nano-beir", "--from", str(tmp_path / "in"))
    msft(store, "data", "add", "serbian", "--from", str(tmp_path / "in"))
    assert rows(store, "SELECT name FROM datasets ORDER BY name") == [
        ("NanoNQ",), ("NanoQuoraRetrieval",), ("serbian/NanoNQ",), ("serbian/NanoQuoraRetrieval",),
    ]  # fmt: skip
    assert rows(store, "SELECT DISTINCT name, kind FROM runs") == [("bm25", "first_stage")]
    assert rows(store, "SELECT count(*) FROM collections") == [(4,)]


@pytest.mark.parametrize(
    ("subset", "entries", "says"),
    [
        ("queries", [], "has no queries in the Hub's layout"),
        ("qrels", [{"query-id": "q0", "corpus-id": "d 1"}], "corpus-id is 'd 1'"),
        ("qrels", [{"query-id": "q0", "corpus-id": "d1", "score": 0.5}], "score is 0.5"),
        ("corpus", [{"_id": None, "text": "x"}], "_id is None"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, subset: str, entries: list[dict[str, Any]], says: str
) -> None:
    good = {"corpus": CORPUS, "queries": QUERIES, "qrels": [{"query-id": "q0", "corpus-id": "d1"}]}
    for name, own in (good | {subset: entries}).items():
        if own:
            hub_sets.table(tmp_path / f"in/{name}/test.parquet", own)
    store = LabelStore(tmp_path / "s.duckdb")
    done = msft(store, "data", "add", "own", "--from", str(tmp_path / "in"), code=1 if entries else 4)
    assert says in done.err
    assert not entries or f"{subset}/test.parquet:1" in done.err
    (tmp_path / "in/qrels/test.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS" in msft(store, "data", "add", "own", "--from", str(tmp_path / "in"), code=1).err
