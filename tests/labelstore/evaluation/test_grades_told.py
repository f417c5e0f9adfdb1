"""Over a graded test set of one's own, `eval` says from which grade its binary measures count."""

from pathlib import Path

import pytest
from shelves import DOCS, Shelf, msft

from labelstore.store.label_store import LabelStore


def store_of(path: Path, name: str, grades: tuple[int, ...]) -> LabelStore:
    shelf = Shelf(LabelStore(path / "s.duckdb"))
    collection = shelf.collection("own", DOCS)
    qrels = {f"q{n}": {DOCS[k]: grade for k, grade in enumerate(grades)} for n in range(2)}
    dataset = shelf.dataset(name, collection, {f"q{n}": f"question {n}" for n in range(2)}, qrels)
    shelf.run("bm25", dataset, {f"q{n}": DOCS for n in range(2)})
    return shelf.store


@pytest.mark.parametrize(
    ("name", "grades", "measures", "says"),
    [
        ("own/test", (0, 1, 2), [], "AP, RR@10, R@100"),
        ("shop", (3, 0), ["RR@10"], "--measure 'RR(rel=2)@10'"),
        ("shop", (0, 2), ["nDCG@10", "AP"], "grades up to 2; AP count"),
        ("shop", (0, 1), ["RR@10"], None),
        ("shop", (0, 1, 2), ["RR(rel=2)@10", "nDCG@10"], None),
        ("dl19", (0, 1, 2, 3), ["RR@10"], None),
        ("nfcorpus", (0, 1, 2), [], None),
    ],
)  # fmt: skip
def test_the_grade_that_counts_is_said(
    tmp_path: Path, name: str, grades: tuple[int, ...], measures: list[str], says: str | None
) -> None:
    store = store_of(tmp_path, name, grades)
    words = [word for measure in measures for word in ("--measure", measure)]
    told = " ".join(msft(store, "eval", *words).err.split())
    if says is None:
        assert "has grades up to" not in told
    else:
        assert says in told
