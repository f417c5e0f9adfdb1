"""The catalog against ir_datasets and ir_measures themselves."""

import ir_datasets
import ir_measures
import pytest

from labelstore.datasets import catalog


def test_every_id_is_one_that_ir_datasets_has_with_queries_judgments_and_documents() -> None:
    for entry in catalog.ENTRIES.values():
        if entry.ir_datasets_id:
            source = ir_datasets.load(entry.ir_datasets_id)
            assert source.has("docs"), entry
            assert source.has("queries"), entry
            assert source.has("qrels"), entry


def test_datasets_of_one_collection_share_ir_datasets_corpus() -> None:
    corpora: dict[str, set[str]] = {}
    for entry in catalog.ENTRIES.values():
        if entry.ir_datasets_id:
            corpora.setdefault(entry.collection, set()).add(ir_datasets.docs_parent_id(entry.ir_datasets_id))
    assert {name: ids for name, ids in corpora.items() if len(ids) != 1} == {}


def test_measures_are_spelt_as_ir_measures_spells_them() -> None:
    for name in [*catalog.ENTRIES, "own", "beir/other", "msmarco-passage/trec-dl-2019"]:
        for measure in catalog.measures(name):
            assert str(ir_measures.parse_measure(measure)) == measure


def test_suites_name_entries() -> None:
    for suite in catalog.SUITES.values():
        assert all(catalog.find(name) for name in suite)


@pytest.mark.parametrize(
    ("name", "judged", "role"),
    [
        ("dl19", True, "test"),
        ("train", True, "train"),
        ("nfcorpus/dev", True, "dev"),
        ("mine/validation", True, "dev"),
        ("mine/valid", False, "dev"),
        ("mine/test", False, "test"),
        ("msmarco-train-x", True, "train"),
        ("mine", True, "test"),
        ("mine", False, "train"),
        ("test", False, "train"),
    ],
)
def test_role(name: str, judged: bool, role: str) -> None:
    assert catalog.role(name, judged) == role


@pytest.mark.parametrize(
    ("name", "collection"),
    [
        ("dl19", "msmarco-passage"),
        ("msmarco-passage/trec-dl-hard", "msmarco-passage"),
        ("nfcorpus/train", "nfcorpus"),
        ("mine/train", "mine"),
        ("mine/deep/test", "mine/deep"),
        ("mine/other", "mine/other"),
    ],
)
def test_collection(name: str, collection: str) -> None:
    assert catalog.collection(name) == collection


def test_measures_of_what_the_catalog_lacks_follow_from_the_name() -> None:
    assert catalog.measures("nfcorpus/validation") == catalog.BEIR
    assert catalog.measures("msmarco-passage/trec-dl-2019") == catalog.TREC_DL
    assert catalog.measures("own") == catalog.OTHER
    assert catalog.find("own") is None
