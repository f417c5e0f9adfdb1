"""The report's answer to "one stage or two?": grouped by seed, with the verdict and the margin of `msft compare`."""

import json
import re
from pathlib import Path

import pytest
import report_store

from labelstore.evaluation import comparison
from labelstore.evaluation import scores as evaluation
from labelstore.report import page
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import run_hash

pytestmark = pytest.mark.test_all

Trained = tuple[str, int, int]  # regime, seed, skill


def make(path: Path, students: dict[str, Trained], base: str = "tiny") -> LabelStore:
    """A store with trained students over bm25, evaluated."""
    store = report_store.make(path)
    with store.write() as con:
        con.execute("DELETE FROM runs WHERE kind IN ('student', 'fused')")
        for table in ("stages", "training_log", "students"):
            con.execute(f"DELETE FROM {table}")
        for key, (name, (regime, seed, skill)) in enumerate(students.items(), 11):
            identity = {"recipe": {"regime": regime, "seed": seed}, "base": base}
            report_store.insert(
                con, "students", student=key, name=name, base=base, architecture="bert", regime=regime, folder=name,
                weights_hash=name, max_length=64, seed=seed, recipe=json.dumps(identity), job=1,
            )  # fmt: skip
            report_store.insert(
                con, "runs", run=key, name=f"{name}@bm25", dataset=1, kind="student", system=name, source_run=1, student=key,
                parameters=json.dumps({"depth": report_store.DEPTH}), depth=report_store.DEPTH, n_queries=report_store.N_TEST,
                n_candidates=report_store.N_TEST * report_store.DEPTH, content_hash="", job=1,
            )  # fmt: skip
            rankings = {
                query: report_store._ranked(query, skill + (query + seed) % 2)
                for query in range(report_store.N_TEST)
            }
            report_store.candidates(con, key, rankings)
            con.execute("UPDATE runs SET content_hash = ? WHERE run = ?", [run_hash(con, key), key])
    evaluation.evaluate(store, "toy/test", measures=report_store.MEASURES)
    return store


def seeds(regime: str, name: str, skill: int, n: int) -> dict[str, Trained]:
    return {f"{name}-s{seed}": (regime, seed, skill) for seed in range(1, n + 1)}


@pytest.mark.parametrize("n", [1, 2, 5])
def test_seeds_are_one_row_with_the_verdict_of_compare(tmp_path: Path, n: int) -> None:
    store = make(tmp_path / "s.duckdb", seeds("cl", "cl", 2, n) | seeds("cl,kd", "both", 7, n))
    with store.read() as con:
        made = page.gather(con, "s", [], []).question
    assert made is not None
    (row,) = made.rows
    assert (row.one, row.two, row.seeds) == ("cl", "cl,kd", (n, n))
    (same,) = comparison.compare(store, ["cl-s*", "both-s*"], ["toy/test"])
    assert row.difference == pytest.approx(same["difference"])
    assert (row.low, row.high) == pytest.approx((same["ci95_low"], same["ci95_high"]))
    assert (row.verdict, row.p_holm, row.margin) == (same["verdict"], same["p_holm"], comparison.MARGIN)
    assert made.says == "Two stages are better in the one comparison."
    assert bool(made.notes) == (n < comparison.ENOUGH_SEEDS)


@pytest.mark.parametrize(
    ("skills", "says"),
    [
        ((5, 5), f"One stage is as good, within ± {comparison.MARGIN} in the one comparison."),
        ((8, 1), "One stage is better in the one comparison."),
    ],
)
def test_the_answer_follows_the_verdict(tmp_path: Path, skills: tuple[int, int], says: str) -> None:
    one, two = skills
    store = make(tmp_path / "s.duckdb", seeds("kd", "kd", one, 2) | seeds("kd,cl", "both", two, 2))
    html = page.write(store, tmp_path / "r.html").path.read_text("utf-8")
    found = re.search(r'<section id="question".*?</section>', html, re.DOTALL)
    assert found is not None
    assert says in found[0]
    assert html.index('id="question"') < html.index('id="leaderboard"')


def test_different_verdicts_are_counted(tmp_path: Path) -> None:
    trained = seeds("cl", "cl", 1, 2) | seeds("kd", "kd", 7, 2) | seeds("cl,kd", "both", 7, 2)
    with make(tmp_path / "s.duckdb", trained).read() as con:
        made = page.gather(con, "s", [], []).question
    assert made is not None
    assert {row.one: row.verdict for row in made.rows} == {"cl": "better", "kd": "equivalent"}
    assert made.says.startswith("It depends: two stages are better in 1, one stage is as good")


@pytest.mark.parametrize(
    "trained",
    [
        {},
        seeds("cl", "cl", 2, 2) | seeds("kd", "kd", 2, 2),  # no second stage
        seeds("cl,kd", "both", 2, 2) | seeds("none", "untrained", 2, 1),  # nothing to compare with
        seeds("cl", "cl", 2, 1) | seeds("cl+kd", "joint", 2, 1),  # both in one stage
    ],
    ids=["none", "single", "several", "joint"],
)
def test_without_both_kinds_the_question_is_not_asked(tmp_path: Path, trained: dict[str, Trained]) -> None:
    store = make(tmp_path / "s.duckdb", trained)
    html = page.write(store, tmp_path / "r.html").path.read_text("utf-8")
    assert "One stage or two?" not in html


@pytest.mark.parametrize("other", ["base = 'other'", "max_length = 128"])
def test_students_of_another_base_or_length_are_not_compared(tmp_path: Path, other: str) -> None:
    store = make(tmp_path / "s.duckdb", seeds("cl", "cl", 2, 2) | seeds("cl,kd", "both", 7, 2))
    with store.write() as con:
        con.execute(f"UPDATE students SET {other} WHERE regime = 'cl'")
    with store.read() as con:
        assert page.gather(con, "s", [], []).question is None
