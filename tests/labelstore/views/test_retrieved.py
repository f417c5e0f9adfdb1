"""Positives that the negatives' runs do not rank: when they are left out, and that it is said and recorded."""

from pathlib import Path
from typing import Any

import made_store
import pytest
from read_views import read

from labelstore.errors import UsageError
from labelstore.negatives import mine as negatives
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views

QUERIES = 49  # of fifty training queries one stands in the test set
FROM_RUN: dict[str, Any] = {"datasets": ["c/train"], "runs": ["first"]}


def judged(path: Path, retrieved: int, others: int, first: int = 0) -> LabelStore:
    """Make a store where each query has so many positives that its run ranks, and so many that it does not.

    Args:
        first: rank of the first retrieved one, from 0.
    """
    store = made_store.make(path, n_queries=50, labels=False)
    with store.write() as con:  # query i's run ranks documents 3i … 3i + 29 of sixty
        con.execute("DELETE FROM qrels WHERE dataset = 1")
        con.execute(
            """INSERT INTO qrels SELECT 1, q.query, (q.query * 3 + k) % 60, 1
               FROM dataset_queries q, range(60) r(k)
               WHERE q.dataset = 1 AND (k BETWEEN ? AND ? OR k BETWEEN 30 AND 29 + ?)""",
            [first, first + retrieved - 1, others],
        )
    return store


def built(store: LabelStore, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """Build a view; returns its manifest and the notes."""
    notes: list[str] = []
    view = views.build(store, "contrastive", note=notes.append, **{**FROM_RUN, **options})
    return read(store, view)[0], notes


def told(notes: list[str]) -> list[str]:
    return [note for note in notes if "positives are retrieved" in note]


@pytest.mark.parametrize(
    ("retrieved", "others", "only"),
    [
        (5, 6, True),
        (5, 5, False),  # half of them
        (20, 3, False),
        (4, 6, False),  # 196 are too few
    ],
)
def test_only_retrieved_positives_are_used_where_they_are_the_minority_and_enough(
    tmp_path: Path, retrieved: int, others: int, only: bool
) -> None:
    manifest, notes = built(judged(tmp_path / "s.duckdb", retrieved, others))
    assert manifest["parameters"]["retrieved"] is only
    dropped = manifest["more_counts"]["positives"]["dropped"]
    assert dropped.get("positive not retrieved", 0) == (QUERIES * others if only else 0)
    assert manifest["more_counts"]["positives"]["kept"] == QUERIES * (
        retrieved if only else retrieved + others
    )
    n, n_all = QUERIES * retrieved, QUERIES * (retrieved + others)
    if only:
        expected = [
            f"{n} of {n_all} positives are retrieved, so only these are used; --no-retrieved uses all"
        ]
    elif n < 200:
        expected = [
            f"{n} of {n_all} positives are retrieved: too few to use only these, so all are used; --retrieved uses only these"
        ]
    else:
        expected = []
    assert told(notes) == expected


@pytest.mark.parametrize(("retrieved", "others"), [(5, 6), (20, 3)])
@pytest.mark.parametrize("asked", [True, False])
def test_what_is_given_wins_over_the_share(tmp_path: Path, retrieved: int, others: int, asked: bool) -> None:
    manifest, notes = built(judged(tmp_path / "s.duckdb", retrieved, others), retrieved=asked)
    assert manifest["parameters"]["retrieved"] is asked
    assert ("positive not retrieved" in manifest["more_counts"]["positives"]["dropped"]) is asked
    assert not told(notes)


@pytest.mark.parametrize("mined", [False, True])
def test_the_runs_are_those_that_the_negatives_come_from(tmp_path: Path, mined: bool) -> None:
    store = judged(tmp_path / "s.duckdb", 15, 0, first=5)
    source: dict[str, Any] = {"depth": 10}  # five of the fifteen positives are within it
    if mined:  # all of them are within the run of the mining
        negatives.mine(store, dataset="c/train", runs=["first"], depth=30, per_query=5, name="hard")
        source = {"runs": [], "negatives": ["hard"]}
    assert built(store, **source)[0]["parameters"]["retrieved"] is not mined


def test_random_negatives_alone_come_from_no_run(tmp_path: Path) -> None:
    store = judged(tmp_path / "s.duckdb", 5, 6)
    negatives.mine(store, dataset="c/train", runs=["first"], per_query=1, random=5, name="easy")
    with store.write() as con:
        con.execute("DELETE FROM negatives WHERE source_run IS NOT NULL")
    manifest, notes = built(store, runs=[], negatives=["easy"])
    assert manifest["parameters"]["retrieved"] is False
    assert not told(notes)


def test_a_view_that_was_recorded_with_all_positives_stays_beside_the_new_one(tmp_path: Path) -> None:
    """A store from before the default: its view is found again by what it recorded."""
    store = judged(tmp_path / "s.duckdb", 5, 6)
    old = views.build(store, "contrastive", name="v", retrieved=False, **FROM_RUN)
    new = views.build(store, "contrastive", name="v", **FROM_RUN)
    assert new.view_hash != old.view_hash
    assert views.build(store, "contrastive", retrieved=False, **FROM_RUN) == old
    assert views.build(store, "contrastive", retrieved=True, **FROM_RUN) == new
    with store.read() as con:
        recorded = con.execute("SELECT parameters->>'retrieved' FROM views ORDER BY view").fetchall()
    assert recorded == [("false",), ("true",)]


def test_a_view_that_the_default_leaves_as_it_was_is_reused(tmp_path: Path) -> None:
    store = judged(tmp_path / "s.duckdb", 20, 3)
    old = views.build(store, "contrastive", retrieved=False, **FROM_RUN)
    assert views.build(store, "contrastive", **FROM_RUN) == old


def test_the_share_that_is_held_out_follows_the_decision(tmp_path: Path) -> None:
    store = judged(tmp_path / "s.duckdb", 5, 6)
    for retrieved in (None, True, False):
        manifest, _ = built(store, retrieved=retrieved)
        assert views.held_out(store, "contrastive", retrieved=retrieved, **FROM_RUN) == manifest["held_out"]


def test_retrieved_is_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="retrieved is 'mostly'"):
        built(judged(tmp_path / "s.duckdb", 5, 6), retrieved="mostly")


@pytest.mark.parametrize("mined", [False, True])
def test_positives_that_no_run_ranks_are_left_out_when_asked(store: LabelStore, mined: bool) -> None:
    with store.write() as con:  # q1's run ranks d3 … d32, q2's d6 … d35; q0's begins with its positive
        con.execute("INSERT INTO qrels VALUES (1, 1, 20, 1), (1, 2, 7, 1)")
    source: dict[str, object] = {"runs": ["first"], "depth": 10}
    if mined:
        negatives.mine(store, dataset="c/train", runs=["first"], depth=10, per_query=5, name="hard")
        source = {"negatives": ["hard"]}
    manifest, lists, docs, queries = read(
        store, views.build(store, "contrastive", datasets=["c/train"], retrieved=True, **source)
    )
    positives = {(queries[row["query"]], docs[row["passages"][0]]): row["ranks"][0] for row in lists}
    # d20 is at rank 18: within the mining's run, not within the ten taken straight from it
    assert positives.keys() == {("q0", "d0"), ("q2", "d7")} | ({("q1", "d20")} if mined else set())
    assert manifest["more_counts"]["positives"]["dropped"]["positive not retrieved"] == 11 - mined
    assert manifest["counts"]["dropped"] == {
        "positive not retrieved": 9 - mined,
        "stands in a test set": 1,
    }
