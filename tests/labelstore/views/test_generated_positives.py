"""Generated positives and an LLM judge's grades train when they are named, and never for a test set."""

from pathlib import Path
from typing import Any

import made_store
import pytest

from labelstore.errors import DataMissing, UsageError
from labelstore.generated import filter as filtering
from labelstore.generated import tests as measured
from labelstore.negatives import mine as negatives
from labelstore.retrieval import retrieve
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views
from teachers.generate.single.judge import judge
from teachers.generate.single.queries import generate
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import Wanted, WantedGrades
from tests.helpers.scripted_engine import ScriptedEngine
from tests.teachers.generate.single.test_judge import passage_of
from tests.teachers.generate.single.test_queries import number_of

NAME, N = "c/synthetic", 12


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    store = made_store.make(tmp_path / "s.duckdb", n_documents=40, n_queries=6)
    words = {n: made_store.text_of(n).split()[2] for n in range(40)}
    engine = ScriptedEngine(lambda request: f"{words[number_of(request)]} thing {number_of(request)}")
    generate(store, Wanted("rankzephyr", "c", N), Asking(), engine=engine)
    retrieve(store, NAME, depth=10, name="bm25s")
    return store


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def built(store: LabelStore, **options: Any) -> Any:
    return views.build(
        store, "contrastive", **({"datasets": [NAME], "runs": ["bm25s"], "valid_fraction": 0.0} | options)
    )


def test_generated_positives_are_taken_only_when_named(store: LabelStore) -> None:
    with pytest.raises(DataMissing, match="no positive"):
        built(store)
    view = built(store, positives="generated")
    assert view.n_lists == N
    ((left_out,),) = rows(store, "SELECT count(*) FROM drops WHERE step = 'view queries'")
    assert left_out == 0
    assert rows(store, "SELECT parameters->>'positives' FROM views") == [("generated",)]


def test_what_a_filter_took_out_is_not_trained_on_and_comes_back(store: LabelStore) -> None:
    with store.write() as con:
        con.execute("UPDATE queries SET text = 'eels' WHERE query IN (SELECT min(query) FROM query_origins)")
    filtering.apply(store, NAME, [measured.length(2, 9)])
    assert built(store, positives="generated").n_lists == N - 1
    filtering.undo(store, NAME, ["length"])
    assert built(store, positives="generated").n_lists == N


def test_a_changed_text_is_no_positive_of_the_query_about_the_old_one(store: LabelStore) -> None:
    with store.write() as con:
        con.execute(
            """UPDATE documents SET text = text || ' more', text_hash = text_hash + 1, version = 2
               WHERE document IN (SELECT min(document) FROM query_origins)"""
        )
    assert built(store, positives="generated").n_lists == N - 1
    assert rows(store, "SELECT reason, n FROM drops WHERE step = 'view positives'") == [
        ("the text has changed since its query or grade was made", 1)
    ]


def test_the_passage_of_a_generated_query_is_no_negative(store: LabelStore) -> None:
    mined = negatives.mine(store, dataset=NAME, runs=["bm25s"], depth=10)
    assert mined.mining.n_negatives > 0
    assert rows(store, "SELECT count(*) FROM negatives SEMI JOIN query_origins USING (query, document)") == [
        (0,)
    ]
    view = views.build(
        store, "contrastive", negatives=[mined.mining.name], positives="generated", valid_fraction=0.0
    )
    assert view.n_lists > 0


def test_a_judges_grades_are_positives_where_people_have_not_judged(store: LabelStore) -> None:
    def grade(request: Any) -> str:
        return f"##final score: {3 if passage_of(request) % 5 == 0 else 0}"

    for dataset in ("c/train", "c/test"):
        wanted = WantedGrades("rankzephyr", dataset, ("first",), 10, name=dataset[2:])
        judge(store, wanted, Asking(), engine=ScriptedEngine(grade))
    plain = built(store, datasets=["c/train"], runs=["first"])
    more = built(store, datasets=["c/train"], runs=["first"], judging="train", min_relevance=1)
    assert more.n_lists > plain.n_lists
    for options in (
        {"datasets": ["c/test"]},
        {"datasets": ["c/test"], "allow_overlap": True},
        {"datasets": ["c/train"]},
    ):
        with pytest.raises(UsageError, match="judges the test set c/test"):
            built(store, runs=["first"], judging="test", **options)
    with pytest.raises(UsageError, match="not among the datasets"):
        built(store, judging="train")
    with pytest.raises(DataMissing, match="no judging named 'none'"):
        built(store, judging="none")
