"""Suites: names and files, the macro mean over datasets, and what a mean would hide."""

import json
from pathlib import Path
from typing import Any

import pytest
from shelves import DOCS, Shelf, msft

from labelstore.datasets import catalog
from labelstore.errors import BadInput, DataMissing
from labelstore.evaluation import scores as evaluation
from labelstore.evaluation import suites
from labelstore.store.label_store import LabelStore


def test_a_suite_is_a_name_or_a_file(tmp_path: Path) -> None:
    assert suites.datasets("dl") == ["dl19", "dl20", "dlhard"]
    beir = suites.datasets("beir")
    assert {"nfcorpus", "scifact", "trec-covid", "cqadupstack/unix"} <= set(beir)
    assert all(catalog.find(name) for name in beir)
    own = tmp_path / "own.txt"
    own.write_text("# in and out of domain\ndl19\n\nnfcorpus  # out\n")
    assert suites.datasets(str(own)) == ["dl19", "nfcorpus"]


def test_what_is_no_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="'bier'") as error:
        suites.datasets("bier")
    assert "beir" in str(error.value.hint)
    own = tmp_path / "own.txt"
    own.write_text("dl19\ndl20\ndl19\n")
    with pytest.raises(BadInput, match=r"own.txt:3: dl19"):
        suites.datasets(str(own))
    own.write_text("# nothing\n")
    with pytest.raises(BadInput, match="names no dataset"):
        suites.datasets(str(own))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Two datasets with bm25 over both, a second run over one of them."""
    shelf = Shelf(LabelStore(tmp_path_factory.mktemp("two") / "msft.duckdb"))
    collection = shelf.collection("toy", DOCS)
    for name, n in (("one", 1), ("two", 3)):
        queries = {f"{name}{k}": f"{name} {k}" for k in range(n)}
        dataset = shelf.dataset(name, collection, queries, {q: {DOCS[k]: 1} for k, q in enumerate(queries)})
        shelf.run("bm25", dataset, dict.fromkeys(queries, DOCS))
        if name == "two":
            shelf.run("extra", dataset, dict.fromkeys(queries, DOCS[::-1]))
    return shelf.store


@pytest.mark.test_all
def test_the_macro_mean_weighs_datasets_alike_and_needs_all_of_them(two: LabelStore) -> None:
    rows = [r for name in ("one", "two") for r in evaluation.evaluate(two, name, measures=["RR@10", "P@1"])]
    means = suites.macro_means("own", rows, ["one", "two"])
    by_measure = {row["measure"]: row for row in means}
    assert {row["system"] for row in means} == {"bm25"}, "a mean over other datasets would not compare"
    assert by_measure["RR@10"]["value"] == pytest.approx((1 + (1 + 1 / 2 + 1 / 3) / 3) / 2)
    assert by_measure["P@1"]["value"] == pytest.approx((1 + 1 / 3) / 2)
    assert {row["dataset"] for row in means} == {"mean(own)"}
    assert by_measure["RR@10"]["n_queries"] == 4
    assert set(means[0]) == set(rows[0])


@pytest.mark.test_all
def test_eval_prints_the_suites_mean_and_says_what_is_missing(two: LabelStore, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("one\ntwo\n")
    done = msft(two, "eval", "--suite", str(own), "--measure", "RR@10", "--format", "json")
    rows: list[dict[str, Any]] = json.loads(done.out)
    assert [(r["dataset"], r["system"]) for r in rows] == [
        ("one", "bm25"), ("two", "bm25"), ("two", "extra"), (f"mean({own})", "bm25"),
    ]  # fmt: skip
    assert rows[0]["recall"] == 1.0
    assert rows[0]["judged"] == pytest.approx(0.1)
    own.write_text("one\ntwo\nthree\n")
    done = msft(two, "eval", "--suite", str(own), "--measure", "RR@10", code=6)
    assert "1 of 3 datasets are missing: three" in done.err
    assert "mean(" not in done.out, "a mean over two of three datasets is no mean of the suite"
    assert msft(two, "eval", "--suite", "dl", "--dataset", "one", code=2).out == ""
