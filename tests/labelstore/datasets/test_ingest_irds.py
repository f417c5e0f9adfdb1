"""Datasets through ir_datasets' own API, registered by the test: nothing is fetched."""

from pathlib import Path

import pytest
from registered_datasets import Docs, Qrels, Queries, register

from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_ir_datasets import add_ir_dataset
from labelstore.errors import DataMissing
from labelstore.store.label_store import LabelStore

__all__ = ["register"]  # a fixture


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "s.duckdb")


def test_a_registered_dataset_comes_in_and_its_corpus_is_read_once(store: LabelStore, register) -> None:
    register("msmarco-passage")
    register(
        "msmarco-passage/trec-dl-2020/judged", Queries(("1", "who ")), Qrels(("1", "007", 3), ("1", "9", 0))
    )
    register("msmarco-passage/trec-dl-2019/judged", Queries(("2", "what")), Qrels(("2", "7", 1)))
    added = add_ir_dataset(store, NewDataset("dl20", ir_datasets_id="msmarco-passage/trec-dl-2020/judged"))
    assert (added.collection, added.role) == ("msmarco-passage", "test")
    assert [(s.step, s.n_read, s.n_kept) for s in added.steps] == [
        ("documents", 3, 2),
        ("queries", 1, 1),
        ("qrels", 2, 2),
    ]
    second = add_ir_dataset(store, NewDataset("dl19", ir_datasets_id="msmarco-passage/trec-dl-2019/judged"))
    assert second.collection == "msmarco-passage"
    assert [s.step for s in second.steps] == ["queries", "qrels"]
    assert Docs.reads == 1
    assert not add_ir_dataset(
        store, NewDataset("dl20", ir_datasets_id="msmarco-passage/trec-dl-2020/judged")
    ).changed
    with store.read() as con:
        assert con.execute("SELECT * FROM judgments ORDER BY ALL").fetchall() == [
            ("dl19", "2", "7", 1),
            ("dl20", "1", "007", 3),
            ("dl20", "1", "9", 0),
        ]
        assert con.execute("SELECT ir_datasets_id, source FROM datasets WHERE name = 'dl19'").fetchall() == [
            ("msmarco-passage/trec-dl-2019/judged", "ir_datasets:msmarco-passage/trec-dl-2019/judged")
        ]


def test_an_id_that_the_catalog_lacks(store: LabelStore, register) -> None:
    register("mine/train", Queries(("1", "who")), Qrels(("1", "7", 1)))
    added = add_ir_dataset(store, NewDataset("mine/train"))
    assert (added.collection, added.role) == ("mine", "train")


def test_what_is_out_of_reach(
    store: LabelStore, register, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(DataMissing, match="neither an alias nor an id") as error:
        add_ir_dataset(store, NewDataset("no-such-dataset"))
    assert "--from FOLDER" in str(error.value.hint)
    register("corpus-alone")
    with pytest.raises(DataMissing, match="has no queries"):
        add_ir_dataset(store, NewDataset("corpus-alone"))

    class Unreachable(Qrels):
        def qrels_iter(self):
            raise RuntimeError("All download sources failed", ["NameResolutionError"])

    register("far", Queries(("1", "who")), Unreachable())
    with pytest.raises(DataMissing, match="neither on disk nor within reach") as error:
        add_ir_dataset(store, NewDataset("far"))
    assert "--from FOLDER" in str(error.value.hint)
    assert not store.exists

    class Broken(Qrels):
        def qrels_iter(self):
            raise RuntimeError("a bug")

    register("broken", Queries(("1", "who")), Broken())
    with pytest.raises(RuntimeError, match="a bug"):
        add_ir_dataset(store, NewDataset("broken"))
