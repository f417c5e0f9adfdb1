"""Evaluations: values against ir-measures on the text ids, missing queries, reuse, stale ones, p-values."""

import ir_measures
import pytest
from scipy import stats
from shelves import Small

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import measures as measuring
from labelstore.evaluation import scores as evaluation
from labelstore.evaluation import systems
from labelstore.store import lookup

NDCG, AP = "nDCG@10", "AP(rel=2)"


def by_system(rows: list[dict], measure: str = NDCG) -> dict[str, dict]:
    return {row["system"]: row for row in rows if row["measure"] == measure}


def expected(small: Small, ranked: dict[str, list[str]], measure: str) -> dict[str, float]:
    """ir-measures on text ids with scores = -rank, a lacking query as 0."""
    run = {q: {d: -float(i) for i, d in enumerate(docs, 1)} for q, docs in ranked.items()}
    values = dict.fromkeys(small.qrels, 0.0)
    for metric in ir_measures.iter_calc([ir_measures.parse_measure(measure)], small.qrels, run):
        values[metric.query_id] = metric.value
    return values


@pytest.mark.test_all
def test_values_are_those_of_ir_measures(small: Small) -> None:
    rows = evaluation.evaluate(small.store, "toy/test", measures=[NDCG, AP, "RR(rel=2)@10"])
    for measure in (NDCG, AP, "RR(rel=2)@10"):
        for system, ranked in (
            ("bm25", "bm25"),
            ("cl-student", "better"),
            ("oracle@bm25", "better"),
            ("short", "short"),
        ):
            want = expected(small, small.ranked[ranked], measure)
            row = by_system(rows, measure)[system]
            assert row["value"] == pytest.approx(sum(want.values()) / 6, abs=1e-12), (system, measure)
            assert row["n_queries"] == 6


@pytest.mark.test_all
def test_a_judged_query_that_the_run_lacks_scores_zero_and_is_counted(small: Small) -> None:
    notes: list[str] = []
    rows = by_system(evaluation.evaluate(small.store, "toy/test", measures=[NDCG], note=notes.append))
    full, short = rows["oracle@bm25"], rows["short"]
    assert short["n_queries"] == 6
    lost = expected(small, small.ranked["better"], NDCG)["q5"]
    assert lost > 0.5
    assert short["value"] == pytest.approx(full["value"] - lost / 6, abs=1e-12)
    assert any("short: 1 of 6 judged queries are not ranked and score 0" in n for n in notes)
    with small.store.read() as con:
        held = con.execute("SELECT DISTINCT n_missing FROM results WHERE system = 'short'").fetchall()
        zero = con.execute(
            "SELECT value FROM result_queries WHERE system = 'short' AND query_id = 'q5' AND measure = ?",
            [NDCG],
        ).fetchall()
    assert held == [(1,)]
    assert zero == [(0.0,)]


@pytest.mark.test_all
def test_p_values_are_of_the_paired_t_test_against_the_first_stage(small: Small) -> None:
    rows = by_system(evaluation.evaluate(small.store, "toy/test", measures=[NDCG]))
    a, b = expected(small, small.ranked["better"], NDCG), expected(small, small.ranked["bm25"], NDCG)
    want = stats.ttest_rel([a[q] for q in sorted(a)], [b[q] for q in sorted(a)]).pvalue
    assert 0 < want < 1
    assert rows["cl-student"]["p_value"] == pytest.approx(want, abs=1e-12)
    assert rows["oracle@bm25"]["p_value"] == pytest.approx(want, abs=1e-12)
    assert rows["bm25"]["p_value"] is None
    assert rows["cl-student"]["first_stage"] == "bm25"
    assert rows["cl-student"]["regime"] == "cl"


@pytest.mark.test_all
def test_stored_evaluations_are_reused_and_stale_ones_go(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    original = measuring.per_query

    def counting(ranking, qrels, measures):  # type: ignore[no-untyped-def]
        measured.append(len(measures))
        return original(ranking, qrels, measures)

    monkeypatch.setattr(measuring, "per_query", counting)
    first = evaluation.evaluate(small.store, "toy/test", measures=[NDCG])
    assert len(measured) == 4
    assert evaluation.evaluate(small.store, "toy/test", measures=[NDCG]) == first
    assert len(measured) == 4  # nothing was measured again
    evaluation.evaluate(small.store, "toy/test", measures=[NDCG, "P@5"])
    assert measured[4:] == [1, 1, 1, 1]  # only the new measure
    with small.store.write() as con:  # new judgments: every value is stale
        con.execute("UPDATE qrels SET relevance = 3 WHERE relevance = 1")
        con.execute("UPDATE datasets SET qrels_hash = 'other'")
    again = evaluation.evaluate(small.store, "toy/test", measures=[NDCG])
    assert by_system(again)["bm25"]["value"] != by_system(first)["bm25"]["value"]
    with small.store.read() as con:
        assert con.execute("SELECT DISTINCT qrels_hash FROM evaluations").fetchall() == [("other",)]
        orphans = (
            "SELECT count(*) FROM query_scores WHERE evaluation NOT IN (SELECT evaluation FROM evaluations)"
        )
        assert con.execute(orphans).fetchall() == [(0,)]
        assert con.execute("SELECT count(*) FROM evaluations WHERE measure = ?", [NDCG]).fetchall() == [(4,)]


@pytest.mark.test_all
def test_ties_stand_in_the_stored_order(small: Small) -> None:
    ranked = small.ranked["better"]
    flat = {q: [1.0] * len(docs) for q, docs in ranked.items()}
    small.shelf.run("flat", small.dataset, ranked, scores=flat)
    notes: list[str] = []
    rows = by_system(evaluation.evaluate(small.store, "toy/test", measures=[NDCG], note=notes.append))
    assert rows["flat"]["value"] == rows["oracle@bm25"]["value"]
    assert any(n.startswith("flat: scores tie within the top 10 of 6 queries") for n in notes)
    assert not any(n.startswith("bm25: scores tie") for n in notes)


@pytest.mark.test_all
def test_the_ceiling_stands_beside_a_re_ranking(small: Small) -> None:
    top3 = {q: docs[:3] for q, docs in small.ranked["bm25"].items()}
    shallow = small.shelf.run("shallow", small.dataset, top3)
    small.shelf.run("kd@shallow", small.dataset, top3, "student", shallow, small.shelf.student("kd", "kd"))
    rows = by_system(evaluation.evaluate(small.store, "toy/test", measures=[NDCG, AP]))
    # d0 d1 d2 hold the grade-2 passage of q0, q1, q2 alone
    assert rows["kd"]["recall"] == pytest.approx(0.5)
    assert rows["kd"]["depth"] == 3
    assert rows["shallow"]["recall"] == rows["kd"]["recall"]
    assert 0 < rows["kd"]["judged"] < 1


@pytest.mark.test_all
def test_select_by_run_student_and_labeling(small: Small) -> None:
    def names(**options: object) -> set[str]:
        with small.store.read() as con:
            of = lookup.dataset(con, "toy/test")
            return {s.name for s in systems.select(con, of, **options)}  # type: ignore[arg-type]

    assert names(runs=["bm25"]) == {"bm25", "cl-student", "oracle@bm25"}
    assert names(runs=["short"]) == {"short"}
    assert names(labelings=[]) == {"bm25", "short", "cl-student"}
    small.shelf.student("untested")
    assert names(students=["untested"]) == {"bm25", "short", "oracle@bm25"}
    with pytest.raises(DataMissing, match="no run over toy/test named 'bm52'"):
        names(runs=["bm52"])


@pytest.mark.test_all
@pytest.mark.parametrize("name", ["nDCG@x", "wonder@10", "NumQ"])
def test_a_bad_measure_is_a_usage_error_and_writes_nothing(small: Small, name: str) -> None:
    with pytest.raises(UsageError, match="--measure"):
        evaluation.evaluate(small.store, "toy/test", measures=[name])
    with small.store.read() as con:
        assert con.execute("SELECT count(*) FROM provenance").fetchall() == [(0,)]


@pytest.mark.test_all
def test_a_dataset_without_judgments(small: Small) -> None:
    with small.store.read() as con:
        collection = lookup.dataset(con, "toy/test").collection
    bare = small.shelf.dataset("bare", collection, {"q0": "question number 0"}, {})
    small.shelf.run("bm25", bare, {"q0": ["d0"]})
    with pytest.raises(DataMissing, match="bare has no judgments"):
        evaluation.evaluate(small.store, "bare", measures=[NDCG])


@pytest.mark.test_all
def test_many_queries_are_measured_in_batches(monkeypatch: pytest.MonkeyPatch, small: Small) -> None:
    whole = evaluation.evaluate(small.store, "toy/test", measures=[NDCG])
    with small.store.write() as con:
        con.execute("DELETE FROM query_scores")
        con.execute("DELETE FROM evaluations")
    monkeypatch.setattr(measuring, "_QUERIES_AT_ONCE", 2)
    assert evaluation.evaluate(small.store, "toy/test", measures=[NDCG]) == whole
