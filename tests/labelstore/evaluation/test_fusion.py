"""Students fused with their first stage: the arithmetic, where the weight comes from, and that it is kept."""

import numpy as np
import polars as pl
import pytest
from shelves import DOCS, Shelf, Small

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import fusion
from labelstore.store import lookup

NDCG = "nDCG@10"


def frame(scores: dict[int, list[float]], ranks: bool = False) -> pl.DataFrame:
    """Documents 0, 1, … of each query with these scores."""
    rows = [(q, d, s, d + 1) for q, row in scores.items() for d, s in enumerate(row)]
    made = pl.DataFrame(rows, schema=["query", "document", "score", "rank"], orient="row")
    return made.with_columns(pl.col("query", "document", "rank").cast(pl.Int32)).drop(
        [] if ranks else ["rank"]
    )


def test_interpolation_scales_each_query_and_keeps_the_first_stages_order_in_ties() -> None:
    student = frame({1: [-4.0, 0.0, 4.0], 2: [7.0, 7.0, 7.0]})
    first = frame({1: [30.0, 20.0, 10.0], 2: [3.0, 2.0, 1.0]}, ranks=True)
    fused = fusion.interpolate(student, first, 0.25)
    by_document = {(q, d): s for q, d, s, _ in fused.rows()}
    assert [by_document[1, d] for d in range(3)] == pytest.approx([0.75, 0.5, 0.25])
    # a student that tells nothing apart counts as 0.5 for all: the first stage's order stands
    assert [by_document[2, d] for d in range(3)] == pytest.approx([0.875, 0.5, 0.125])
    halves = fusion.interpolate(student, first, 0.5).filter(pl.col("query") == 1)
    assert halves["document"].to_list() == [0, 1, 2]
    assert halves["rank"].to_list() == [1, 2, 3]
    assert set(halves["score"].to_list()) == {0.5}
    extremes = {
        w: fusion.interpolate(student, first, w).filter(pl.col("query") == 1)["document"].to_list()
        for w in (0.0, 1.0)
    }
    assert extremes == {0.0: [0, 1, 2], 1.0: [2, 1, 0]}


def test_passages_that_one_side_lacks_are_left_out() -> None:
    student = frame({1: [1.0, 2.0]})
    first = frame({1: [3.0, 2.0, 1.0], 2: [1.0]}, ranks=True)
    assert fusion.interpolate(student, first, 0.5)["document"].sort().to_list() == [0, 1]


def test_of_weights_that_are_as_good_the_one_nearest_to_a_half_is_taken() -> None:
    rng = np.random.default_rng(5)
    base = rng.uniform(size=400)
    noise = rng.normal(0, 0.2, size=(3, 400))
    flat = {0.3: base + noise[0] - noise[0].mean(), 0.5: base, 0.9: base + noise[1] - noise[1].mean() + 0.002}
    assert fusion.choose_weight(flat) == (0.5, pytest.approx(base.mean()))
    clear = flat | {0.9: base + 0.1 + noise[2] * 0.1}
    assert fusion.choose_weight(clear)[0] == 0.9
    assert fusion.choose_weight({0.4: base, 0.6: base})[0] == 0.4
    assert fusion.choose_weight({0.2: np.array([1.0]), 0.5: np.array([0.0])})[0] == 0.2


@pytest.fixture
def fusable(small: Small) -> Small:
    """`small` with a dev set over the same collection that the first stage ranked; its first query is a test query too."""
    texts = {f"v{i}": f"validation {i}" for i in range(8)} | {"v8": "Question number 0!"}
    qrels = {q: {DOCS[3]: 2} for q in texts}
    dev = small.shelf.dataset("toy/dev", 1, texts, qrels, role="dev")
    small.shelf.run("bm25", dev, dict.fromkeys(texts, DOCS))
    return small


def student_run(small: Small) -> tuple[lookup.Dataset, lookup.Run]:
    with small.store.read() as con:
        of = lookup.dataset(con, "toy/test")
        return of, lookup.run(con, of, "cl-student@bm25")


@pytest.mark.test_all
def test_the_weight_is_fixed_on_validation_queries_and_the_run_kept(fusable: Small) -> None:
    of, run = student_run(fusable)
    asked: list[tuple[str, int]] = []

    def score(over: lookup.Run, queries, depth: int) -> pl.DataFrame:
        asked.append((over.name, len(queries)))
        with fusable.store.read() as con:
            documents = dict(con.execute("SELECT doc_id, document FROM documents").fetchall())
        rows = [(q, documents[d], float(d == DOCS[3])) for q in queries for d in DOCS]
        kinds = {"query": pl.Int32, "document": pl.Int32, "score": pl.Float64}
        return pl.DataFrame(rows, schema=kinds, orient="row")

    notes: list[str] = []
    fused = fusion.fuse(fusable.store, of, run, score, NDCG, note=notes.append)
    assert asked == [("bm25", 8)], "the query that stands in the test set is no validation query"
    assert fused.name == "cl-student+bm25"
    assert fused.kind == "fused"
    assert fused.parameters["validation"] == "toy/dev"
    # the student is perfect on these queries and the first stage is not: whatever puts it first is as good
    assert fused.parameters["weight"] == 0.5
    assert fused.parameters["validation_value"] == 1.0
    assert any("weight 0.50 from 8 queries, dataset toy/dev (role dev)" in note for note in notes)
    again = fusion.fuse(fusable.store, of, run, score, NDCG)
    assert again == fused
    assert len(asked) == 1


@pytest.mark.test_all
def test_without_validation_queries_the_weight_is_not_tuned_and_that_is_said(small: Small) -> None:
    of, run = student_run(small)
    notes: list[str] = []

    def score(*_: object) -> pl.DataFrame:
        raise AssertionError("there is nothing to score")

    fused = fusion.fuse(small.store, of, run, score, NDCG, note=notes.append)
    assert fused.parameters["weight"] == fusion.UNTUNED
    assert "not tuned" in notes[0]


@pytest.mark.test_all
def test_the_queries_under_test_fix_no_weight(fusable: Small) -> None:
    of, run = student_run(fusable)

    def score(*_: object) -> pl.DataFrame:
        raise AssertionError("nothing is scored")

    with pytest.raises(UsageError, match="under test"):
        fusion.fuse(fusable.store, of, run, score, NDCG, on="toy/test")
    Shelf(fusable.store).dataset("toy/bare", 1, {"b1": "no judgment"}, {})
    with pytest.raises(DataMissing, match="no run by bm25"):
        fusion.fuse(fusable.store, of, run, score, NDCG, on="toy/bare")
