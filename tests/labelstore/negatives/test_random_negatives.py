"""`negatives mine --random N`: random passages beside the mined ones, reproducible, counted, never relevant."""

from pathlib import Path

import made_store
import pytest
from read_views import read

from labelstore.errors import UsageError
from labelstore.negatives import mine as negatives
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify
from labelstore.views import build as views


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return made_store.make(tmp_path / "s.duckdb")


def rows(store: LabelStore, name: str, random: bool) -> dict[str, dict[str, tuple]]:
    """(rank, score, label, weight) by query_id and doc_id, of random passages or of mined ones."""
    with store.read() as con:
        found = con.execute(
            f"""SELECT query_id, doc_id, source_rank, source_score, label, weight FROM mined
                WHERE mining = ? AND source_run {"=" if random else "<>"} 'random' ORDER BY query_id, source_rank""",
            [name],
        ).fetchall()
    by_query: dict[str, dict[str, tuple]] = {}
    for query_id, doc_id, *rest in found:
        by_query.setdefault(query_id, {})[doc_id] = tuple(rest)
    return by_query


@pytest.mark.parametrize("n", [1, 3, 10])
def test_each_query_gets_them_beside_what_was_mined(store: LabelStore, n: int) -> None:
    options = {"dataset": "c/train", "runs": ["first"], "depth": 20, "per_query": 5}
    negatives.mine(store, name="plain", **options)
    made = negatives.mine(store, name="both", random=n, **options)
    assert rows(store, "both", random=False) == rows(store, "plain", random=False)
    drawn = rows(store, "both", random=True)
    assert len(drawn) == 12
    for query_id, own in drawn.items():
        q = int(query_id[1:])
        assert list(own.values()) == [(k, None, 0, 1.0) for k in range(1, n + 1)]
        assert f"d{q}" not in own
        assert not set(own) & {f"d{(q * 3 + k) % 60}" for k in range(20)}
    assert made.mining.n_negatives == 12 * (5 + n)
    count = next(c for c in made.counts if c.step == "random passages")
    assert (count.n_in, count.kept, count.drops) == (12 * n, 12 * n, {})
    with store.read() as con:
        stored = con.execute(
            "SELECT n_in, n_kept FROM filters WHERE step = 'negatives random passages' AND subject = 'both'"
        ).fetchall()
    assert stored == [(12 * n, 12 * n)]
    assert not verify(store).findings


def test_the_seed_draws_them_the_same_in_every_store(tmp_path: Path) -> None:
    hashes = []
    for name, offset, seed in (("a", 0, 1), ("b", 700, 1), ("c", 0, 2)):
        made = made_store.make(tmp_path / f"{name}.duckdb", offset=offset)
        found = negatives.mine(
            made, dataset="c/train", runs=["first"], strategy="top", per_query=5, random=4, seed=seed
        )
        hashes.append(found.mining.content_hash)
        with made.read() as con:
            assert negatives.content_hash(con, found.mining.mining) == found.mining.content_hash
    assert hashes[0] == hashes[1] != hashes[2]


def test_nothing_judged_or_equal_in_text_is_drawn_and_a_lack_is_counted(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_documents=36, n_queries=4, depth=30, unheld=(35,))
    with (
        store.write() as con
    ):  # of the six that the run does not rank: a grade of 0, and the text of a mined passage
        con.execute("INSERT INTO qrels VALUES (1, 0, 30, 0)")
        con.execute(
            "UPDATE documents SET text = o.text, text_hash = o.text_hash FROM documents o WHERE documents.doc_id = 'd31' AND o.doc_id = 'd5'"
        )
    made = negatives.mine(store, dataset="c/train", runs=["first"], depth=30, random=8, name="r")
    drawn = rows(store, "r", random=True)
    assert set(drawn["q0"]) == {"d32", "d33", "d34"}
    count = next(c for c in made.counts if c.step == "random passages")
    assert count.n_in == 4 * 8
    assert count.kept == sum(map(len, drawn.values()))
    assert list(count.drops) == ["the collection has too few others"]


def test_lists_of_views_hold_them_as_negatives_without_a_rank(store: LabelStore) -> None:
    negatives.mine(store, dataset="c/train", runs=["first"], depth=10, per_query=4, random=3, name="r")
    drawn = rows(store, "r", random=True)
    _, lists, docs, queries = read(store, views.build(store, "contrastive", negatives=["r"], name="cl"))
    assert lists
    for row in lists:
        own = {
            docs[p]: (label, rank)
            for p, label, rank in zip(row["passages"], row["labels"], row["ranks"], strict=True)
        }
        random = drawn[queries[row["query"]]]
        assert set(random) <= set(own)
        assert {own[doc_id] for doc_id in random} == {(0, 0)}
        assert all(rank > 0 for doc_id, (label, rank) in own.items() if not label and doc_id not in random)


def test_scores_are_refused_since_random_passages_have_none(store: LabelStore) -> None:
    negatives.mine(store, dataset="c/train", runs=["first"], random=2, name="r")
    with pytest.raises(UsageError, match="24 random passages, which have no scores"):
        views.build(store, "contrastive", negatives=["r"], scores=True)


@pytest.mark.parametrize("n", [-1, 1001])
def test_impossible_numbers_leave_no_trace(store: LabelStore, n: int) -> None:
    with pytest.raises(UsageError, match="random is"):
        negatives.mine(store, dataset="c/train", runs=["first"], random=n)
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM minings").fetchall() == [(0,)]


def test_without_them_a_mining_is_what_it_was(store: LabelStore) -> None:
    made = negatives.mine(store, dataset="c/train", runs=["first"])
    with store.read() as con:
        (parameters,) = con.execute("SELECT parameters FROM minings").fetchall()[0]
    assert "random" not in parameters
    assert [c.step for c in made.counts] == ["queries", "candidates"]


def test_a_merged_store_keeps_them(store: LabelStore, tmp_path: Path) -> None:
    from labelstore.upkeep.merge.job import merge_stores

    negatives.mine(store, dataset="c/train", runs=["first"], per_query=5, random=3, name="r")
    into = made_store.make(tmp_path / "into.duckdb", offset=500)
    merge_stores(into, store)
    assert rows(into, "r", random=True) == rows(store, "r", random=True)
    assert not verify(into).findings
