"""Folders into a store: what is kept, what is refused, and that a refusal or a repetition changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from labelstore.datasets.add import Added, NewDataset, datasets, describe
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.store.lookup import dataset
from labelstore.store.row_hashes import qrels_hash

DOCS = [("01", "T", "one"), ("1", None, "uno"), ("x", None, "two\u2028lines"), ("empty", None, "  ")]
QUERIES = [("q1", "first query"), ("q2", "second\tquery \r"), ("q3", "third")]
QRELS = [("q1", "01", 2), ("q2", "1", 0), ("q2", "unheld", 1)]


def folder(path: Path, docs=DOCS, queries=QUERIES, qrels=QRELS) -> Path:
    path.mkdir(exist_ok=True)
    if docs is not None:
        lines = [json.dumps({"doc_id": i, "title": t, "text": x}, ensure_ascii=False) for i, t, x in docs]
        (path / "docs.jsonl").write_text("".join(line + "\n" for line in lines), newline="\n")
    if queries is not None:
        (path / "queries.tsv").write_text("".join(f"{i}\t{x}\n" for i, x in queries), newline="\n")
    if qrels is not None:
        (path / "qrels.txt").write_text("".join(f"{q} 0 {d} {r}\n" for q, d, r in qrels))
    return path


def content(store: LabelStore) -> dict[str, Any]:
    """Every row of every table."""
    with store.read() as con:
        names = [n for (n,) in con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
        return {n: sorted(map(repr, con.execute(f"SELECT * FROM {n}").fetchall())) for n in names}


def query(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "s.duckdb")


def step(added: Added, name: str) -> Any:
    return next(s for s in added.steps if s.step == name)


def test_a_folder_comes_in_with_counts(store: LabelStore, tmp_path: Path) -> None:
    added = add_folder(store, folder(tmp_path / "f"), NewDataset("mine"))
    assert (added.collection, added.role, added.changed) == ("mine", "test", True)
    documents = step(added, "documents")
    assert (documents.n_read, documents.n_kept, documents.n_new) == (4, 3, 3)
    assert documents.drops == {"empty passage": (1, f"{tmp_path}/f/docs.jsonl:4 (empty)")}
    assert query(store, "SELECT doc_id, title, text, version FROM documents ORDER BY doc_id") == [
        ("01", "T", "one", 1),
        ("1", None, "uno", 1),
        ("unheld", None, None, 0),
        ("x", None, "two\u2028lines", 1),
    ]
    assert query(store, "SELECT query_id, text FROM queries ORDER BY 1") == [
        ("q1", "first query"),
        ("q2", "second\tquery"),
        ("q3", "third"),
    ]
    assert query(store, "SELECT query_id, doc_id, relevance FROM judgments ORDER BY ALL") == sorted(QRELS)
    ((title_hash, text_hash),) = query(
        store,
        "SELECT (SELECT text_hash FROM documents WHERE doc_id = '01'), text_hash FROM queries WHERE query_id = 'q3'",
    )
    assert (title_hash, text_hash) == (keys.text_hash("T", "one"), keys.text_hash(None, "third"))
    assert any("1 of 3 queries have no judgment" in note for note in added.notes)
    assert any("1 judged passages have no text" in note for note in added.notes)
    assert query(store, "SELECT sum(n_in - n_kept) FROM filters") == query(store, "SELECT sum(n) FROM drops")
    with store.read() as con:
        of = dataset(con, "mine")
        assert of.qrels_hash == qrels_hash(con, of.dataset) is not None
        assert datasets(con)[0] | {"judged_queries": 2} == datasets(con)[0]
        assert {r["property"]: r["value"] for r in describe(con, of)}["grades"] == "0: 1, 1: 1, 2: 1"
    assert not list(tmp_path.glob(".msft-add-*"))


def test_adding_twice_changes_nothing(store: LabelStore, tmp_path: Path) -> None:
    add_folder(store, folder(tmp_path / "f"), NewDataset("mine"))
    before = content(store)
    added = add_folder(store, folder(tmp_path / "g", docs=DOCS[::-1], qrels=QRELS[::-1]), NewDataset("mine"))
    assert not added.changed
    assert [s.n_new for s in added.steps] == [0, 0, 0]
    assert content(store) == before


def test_splits_share_a_collection_and_hold_the_queries_judged(store: LabelStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "f")
    (source / "qrels.train.txt").write_text("q3 0 x 1\n")
    train = add_folder(store, source, NewDataset("mine/train", judged_only=True), Path("qrels.train.txt"))
    assert (train.collection, train.role) == ("mine", "train")
    assert step(train, "queries").drops == {"query without a judgment in the given qrels": (2, None)}
    test = add_folder(store, source, NewDataset("mine", judged_only=True), source / "qrels.txt")
    assert (test.collection, step(test, "documents").n_new, step(test, "queries").n_new) == ("mine", 0, 2)
    assert query(store, "SELECT dataset, query_id FROM dataset_query_texts ORDER BY ALL") == [
        ("mine", "q1"),
        ("mine", "q2"),
        ("mine/train", "q3"),
    ]
    # Judgments alone, over queries and passages that the collection holds.
    own = tmp_path / "graded.txt"
    own.write_text("q3 0 01 3\n")
    graded = add_folder(store, None, NewDataset("graded", collection="mine", judged_only=True), own)
    assert graded.changed
    assert query(store, "SELECT query_id, doc_id FROM judgments WHERE dataset = 'graded'") == [("q3", "01")]


def test_judgments_under_other_names_are_mentioned(store: LabelStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "f", qrels=None)
    assert add_folder(store, source, NewDataset("none")).notes == []
    (source / "qrels").mkdir()
    (source / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t01\t1\n")
    (said,) = add_folder(store, source, NewDataset("mine", collection="none")).notes
    assert "no judgments were read" in said
    assert "--qrels qrels/test.tsv" in said


def test_documents_may_follow_the_judgments(store: LabelStore, tmp_path: Path) -> None:
    add_folder(store, folder(tmp_path / "f", docs=None), NewDataset("mine"))
    assert query(store, "SELECT count(*) FROM documents WHERE version = 0") == [(3,)]
    ids = dict(query(store, "SELECT doc_id, document FROM documents"))
    added = add_folder(store, folder(tmp_path / "f"), NewDataset("mine"))
    assert step(added, "documents").n_new == 3
    after = {d: (k, v) for d, k, v in query(store, "SELECT doc_id, document, version FROM documents")}
    assert after["01"] == (ids["01"], 1)
    assert after["unheld"] == (ids["unheld"], 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"docs": [*DOCS, ("01", "T", "other")]},
            r"docs.jsonl:5: 01 again with another text \(first on line 1\)",
        ),
        ({"queries": [*QUERIES, ("q1", "other")]}, r"queries.tsv:4: q1 again with another text"),
        ({"qrels": [*QRELS, ("q1", "01", 1)]}, r"qrels.txt:4: q1 01 again with another judgment"),
        (
            {"qrels": [("none", "01", 1)]},
            r"qrels.txt:1: no judgment names a query that is known \(first: none\)",
        ),
        ({"queries": []}, "no judgment names a query"),
        ({"queries": [], "qrels": None}, "it has no query to keep"),
        ({"qrels": []}, "qrels.txt: the file holds no judgment"),
    ],
)
@pytest.mark.parametrize("empty_store", [True, False])
def test_a_contradiction_is_named_and_leaves_the_store_as_it_was(
    store: LabelStore, tmp_path: Path, changes: dict[str, Any], message: str, empty_store: bool
) -> None:
    if not empty_store:
        add_folder(store, folder(tmp_path / "f"), NewDataset("mine"))
    before = None if empty_store else content(store)
    with pytest.raises(BadInput, match=message) as error:
        add_folder(store, folder(tmp_path / "bad", **changes), NewDataset("new"))
    assert error.value.hint
    if before:
        assert content(store) == before
    elif store.exists:
        assert {name for name, rows in content(store).items() if rows} <= {"migrations"}


def test_a_folder_of_passages_alone_makes_a_collection(store: LabelStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "f", queries=None, qrels=None)
    added = add_folder(store, source, NewDataset("mine/docs", collection="mine"))
    assert any("has passages and no queries yet" in note for note in added.notes)
    assert query(store, "SELECT count(*) FROM documents WHERE text IS NOT NULL") == [(len(DOCS) - 1,)]
    assert query(store, "SELECT count(*) FROM dataset_queries") == [(0,)]
    assert not add_folder(store, source, NewDataset("mine/docs", collection="mine")).changed
    add_folder(store, folder(tmp_path / "g"), NewDataset("mine/log", collection="mine"))
    assert query(store, "SELECT count(*) FROM documents WHERE text IS NOT NULL") == [(len(DOCS) - 1,)]


def test_repeats_count_once(store: LabelStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "f", docs=DOCS * 2, queries=QUERIES * 3, qrels=QRELS * 2)
    added = add_folder(store, source, NewDataset("mine"))
    assert step(added, "documents").drops["same id and text again"][0] == 3
    assert step(added, "queries").drops["same id and text again"][0] == 6
    assert step(added, "qrels").drops["same judgment again"][0] == 3
    assert query(store, "SELECT count(*) FROM judgments") == [(3,)]


def test_another_text_is_refused_and_taken_with_update(store: LabelStore, tmp_path: Path) -> None:
    add_folder(store, folder(tmp_path / "f"), NewDataset("mine"))
    before = content(store)
    newer = folder(tmp_path / "g", docs=[("01", "T", "one, revised"), *DOCS[1:]])
    with pytest.raises(BadInput, match=r"docs.jsonl:1: 01 has another text than in mine") as error:
        add_folder(store, newer, NewDataset("mine"))
    assert "--update" in str(error.value.hint)
    assert content(store) == before
    added = add_folder(store, newer, NewDataset("mine", update=True))
    assert step(added, "documents").n_updated == 1
    assert query(store, "SELECT text, version, text_hash FROM documents WHERE doc_id = '01'") == [
        ("one, revised", 2, keys.text_hash("T", "one, revised"))
    ]
    assert query(store, "SELECT version, title, text FROM document_versions") == [(1, "T", "one")]
    before = content(store)
    assert not add_folder(store, newer, NewDataset("mine", update=True)).changed
    assert content(store) == before


def test_with_update_the_last_text_of_a_file_counts(store: LabelStore, tmp_path: Path) -> None:
    source = folder(
        tmp_path / "f", docs=[("a", None, "old"), ("a", None, "new"), ("b", None, "b")], qrels=None
    )
    added = add_folder(store, source, NewDataset("mine", update=True))
    assert step(added, "documents").drops["an earlier text of the same id"][0] == 1
    assert query(store, "SELECT doc_id, text FROM documents ORDER BY 1") == [("a", "new"), ("b", "b")]


def test_other_judgments_need_update(store: LabelStore, tmp_path: Path) -> None:
    add_folder(store, folder(tmp_path / "f"), NewDataset("mine"))
    before = content(store)
    other = folder(tmp_path / "g", qrels=QRELS[:2])
    with pytest.raises(BadInput, match="is there with other judgments"):
        add_folder(store, other, NewDataset("mine"))
    assert content(store) == before
    assert add_folder(store, other, NewDataset("mine", update=True)).changed
    assert query(store, "SELECT count(*) FROM judgments") == [(2,)]


def test_files_that_are_not_there(store: LabelStore, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="folder not found"):
        add_folder(store, tmp_path / "none", NewDataset("mine"))
    (tmp_path / "file").touch()
    with pytest.raises(DataMissing, match="file is not a folder"):
        add_folder(store, tmp_path / "file", NewDataset("mine"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataMissing, match="has none of"):
        add_folder(store, tmp_path / "empty", NewDataset("mine"))
    with pytest.raises(DataMissing, match="no file q"):
        add_folder(store, folder(tmp_path / "f"), NewDataset("mine", judged_only=True), Path("q"))
    (tmp_path / "f" / "qrels.txt.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"qrels.txt and qrels.txt.gz"):
        add_folder(store, tmp_path / "f", NewDataset("mine"))
    assert not store.exists


def test_a_dataset_stays_with_its_collection(store: LabelStore, tmp_path: Path) -> None:
    add_folder(store, folder(tmp_path / "f"), NewDataset("mine", collection="c"))
    assert not add_folder(store, folder(tmp_path / "f"), NewDataset("mine")).changed
    with pytest.raises(UsageError, match="over collection c"):
        add_folder(store, folder(tmp_path / "f"), NewDataset("mine", collection="other"))


def test_a_folder_named_with_a_quote(store: LabelStore, tmp_path: Path) -> None:
    quoted = LabelStore(tmp_path / "it's" / "s.duckdb")
    assert add_folder(quoted, folder(tmp_path / "o'f"), NewDataset("mi'ne")).changed


@pytest.mark.needs("shared")
@pytest.mark.parametrize(
    ("name", "where", "qrels", "counts"),
    [
        ("nfcorpus/dev", "nfcorpus", "qrels.dev.txt.gz", (324, 11_385, 3_633)),
        ("dl21", "dl21-passage", None, (53, 10_828, 10_558)),
        ("cranfield", "cranfield", None, (225, 1_837, 1_398)),
        ("noveleval", "noveleval", None, (21, 420, 420)),
        ("msmarco-train-rankzephyr100", "msmarco-train-rankzephyr100", None, (99, 0, 1_297)),
    ],
)
def test_real_collections(
    store: LabelStore, shared: Path, name: str, where: str, qrels: str | None, counts: tuple[int, int, int]
) -> None:
    request = NewDataset(name, judged_only=qrels is not None)
    add_folder(store, shared / where, request, Path(qrels) if qrels else None)
    with store.read() as con:
        (row,) = datasets(con)
        assert (row["queries"], row["judgments"], row["passages"]) == counts
        assert con.execute("SELECT count(*) FROM queries WHERE text <> trim(text, ' \r\n')").fetchall() == [
            (0,)
        ]
