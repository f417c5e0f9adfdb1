"""Mining: each strategy against a plain Python reference, evidence, counts, seeds."""

from pathlib import Path

import made_store
import pytest

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.negatives import mine as negatives
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    store = made_store.make(tmp_path / "s.duckdb")
    with store.write() as con:  # positives inside the top ten, but for q5's, which the run does not rank
        con.execute("UPDATE qrels SET document = query * 3 + query % 7 WHERE dataset = 1 AND query <> 5")
        con.execute("UPDATE qrels SET document = 59 WHERE dataset = 1 AND query = 5")
    return store


def positive_of(n: int) -> str:
    return f"d{59 if n == 5 else n * 3 + n % 7}"


def mined(store: LabelStore, **arguments) -> tuple[dict[str, dict[str, tuple]], dict[str, dict]]:
    """Rows by query and doc_id; counts by step."""
    result = negatives.mine(store, dataset="c/train", **arguments)
    with store.read() as con:
        rows = con.execute(
            "SELECT query_id, doc_id, source_rank, source_score, teacher_rank, label, weight, source_run FROM mined WHERE mining = ?",
            [result.mining.name],
        ).fetchall()
        assert negatives.content_hash(con, result.mining.mining) == result.mining.content_hash
    found: dict[str, dict[str, tuple]] = {}
    for query_id, doc_id, *rest in rows:
        assert doc_id not in found.setdefault(query_id, {})
        found[query_id][doc_id] = tuple(rest)
    for count in result.counts:
        assert count.n_in >= 0
        assert count.kept >= 0
    candidates = next(c for c in result.counts if c.step == "candidates")
    assert candidates.kept == len(rows) == result.mining.n_negatives
    return found, {c.step: {r: n for r, (n, _) in c.drops.items()} for c in result.counts}


def ranked(n: int, step: int = 3) -> list[str]:
    return [f"d{(n * step + k) % 60}" for k in range(30)]


def test_uniform_from_the_top_k(store: LabelStore) -> None:
    found, counts = mined(store, runs=["first"], depth=20, per_query=6)
    assert len(found) == 12
    for query_id, own in found.items():
        n = int(query_id[1:])
        assert len(own) == 6
        assert positive_of(n) not in own
        for doc_id, (rank, score, teacher_rank, label, weight, run) in own.items():
            assert ranked(n)[rank - 1] == doc_id
            assert rank <= 20
            assert (score, teacher_rank, label, weight, run) == (30.0 - rank + 1, None, 0, 1.0, "first")
    assert counts["candidates"]["outside the ranks"] == 120
    assert counts["candidates"]["is a positive"] == 11
    with store.read() as con:
        steps = con.execute("SELECT n_in, n_kept FROM filters WHERE step = 'negatives candidates'").fetchall()
        dropped = con.execute("SELECT sum(n) FROM drops WHERE step = 'negatives candidates'").fetchall()[0][0]
    assert steps == [(360, 72)]
    assert dropped == 360 - 72


def test_seeds_are_exact_and_matter(tmp_path: Path) -> None:
    hashes = []
    for name, offset, seed in (("a", 0, 1), ("b", 700, 1), ("c", 0, 2)):
        store = made_store.make(tmp_path / f"{name}.duckdb", offset=offset)
        hashes.append(
            negatives.mine(
                store, dataset="c/train", runs=["first"], depth=20, per_query=6, seed=seed
            ).mining.content_hash
        )
    assert hashes[0] == hashes[1] != hashes[2]


def test_top_and_rank_window(store: LabelStore) -> None:
    found, _ = mined(store, runs=["first"], strategy="top", min_rank=4, depth=12, per_query=5)
    for query_id, own in found.items():
        n = int(query_id[1:])
        expected = [d for d in ranked(n)[3:12] if d != positive_of(n)][:5]
        assert sorted(own) == sorted(expected)


@pytest.mark.parametrize("relative", [False, True])
def test_margins_against_the_positive(store: LabelStore, relative: bool) -> None:
    arguments = {"relative_margin": 0.2} if relative else {"absolute_margin": 5.0}
    found, counts = mined(store, runs=["first"], strategy="top", depth=30, per_query=30, **arguments)
    unranked = 0
    for n in range(12):
        order = ranked(n)
        if positive_of(n) not in order:
            unranked += 1
            assert f"q{n}" not in found
            continue
        positive = 30.0 - order.index(positive_of(n))
        limit = positive - abs(positive) * 0.2 if relative else positive - 5.0
        expected = {d for k, d in enumerate(order) if 30.0 - k <= limit and d != positive_of(n)}
        assert set(found.get(f"q{n}", {})) == expected
    assert unranked == 1
    assert counts["candidates"]["no positive is ranked: no margin"] == 30 * unranked
    assert counts["queries"]["too few negatives"] >= unranked


def test_score_limits(store: LabelStore) -> None:
    found, counts = mined(
        store, runs=["first"], strategy="top", depth=30, per_query=30, max_score=20.0, min_score=11.0
    )
    for query_id, own in found.items():
        n = int(query_id[1:])
        assert set(own) == {d for k, d in enumerate(ranked(n)) if 11 <= 30 - k <= 20 and d != positive_of(n)}
    assert counts["candidates"]["score above the maximum"] > 0
    assert counts["candidates"]["score below the minimum"] > 0


def test_union_with_shares(store: LabelStore) -> None:
    with store.write() as con:
        made_store.add_run(con, 1, "second", 0, list(range(12)), 60, 30, 1, run=50, step=5)
    found, _ = mined(store, runs=["first", "second"], strategy="top", depth=10, per_query=8, shares=(3, 1))
    for query_id, own in found.items():
        n = int(query_id[1:])
        first = [d for d in ranked(n)[:10] if d != positive_of(n)][:6]
        second = [d for d in ranked(n, 5)[:10] if d != positive_of(n) and d not in first][:2]
        assert {d for d, row in own.items() if row[5] == "first"} == set(first)
        assert {d for d, row in own.items() if row[5] == "second"} == set(second)
    # a source that runs dry is made up for by the other
    found, _ = mined(
        store, runs=["first", "second"], strategy="top", depth=10, per_query=16, shares=(1, 1), name="dry"
    )
    for query_id, own in found.items():
        n = int(query_id[1:])
        available = ({*ranked(n)[:10]} | {*ranked(n, 5)[:10]}) - {positive_of(n)}
        assert len(own) == min(16, len(available))
    assert negatives.quotas(10, (1, 1, 1)) == [4, 3, 3]
    assert negatives.quotas(99, (0.7, 0.3)) == [69, 30]


def test_scores_of_another_run(store: LabelStore) -> None:
    """The margin by a re-ranker's scores, which reverse the first stage's order."""
    with store.write() as con:
        made_store.add_run(con, 1, "student", 0, list(range(12)), 60, 30, 1, run=51)
        con.execute("UPDATE candidates SET score = rank WHERE run = 51")
    found, _ = mined(
        store, runs=["first"], scores="student", strategy="top", depth=30, per_query=3, absolute_margin=1.0
    )
    assert len(found) >= 8
    for query_id, own in found.items():
        n = int(query_id[1:])
        order = ranked(n)
        positive = order.index(positive_of(n)) + 1.0
        left = sorted(
            (d for k, d in enumerate(order) if k + 1 <= positive - 1.0), key=lambda d: -order.index(d)
        )
        assert set(own) == set(left[:3])  # best scored first: the re-ranker's order


@pytest.mark.parametrize("action", ["drop", "relabel", "downweight"])
def test_denoising(store: LabelStore, action: str) -> None:
    found, counts = mined(
        store,
        runs=["first"],
        strategy="top",
        depth=10,
        per_query=30,
        denoise_labels="teacher@first",
        denoise=action,
        denoise_weight=0.25,
    )
    above_all = 0
    for n in range(12):
        order = ranked(n)[:10]
        labelled = n != 2  # wrong format: not used
        positive = positive_of(n)
        above = set()
        if labelled and positive in order:  # the teacher reverses the ten
            above = set(order[order.index(positive) + 1 :])
        above_all += len(above)
        own = found.get(f"q{n}", {})
        candidates = set(order) - {positive}
        if action == "drop":
            assert set(own) == candidates - above
        else:
            assert set(own) == candidates
            for doc_id, (rank, _, teacher_rank, label, weight, _) in own.items():
                assert teacher_rank == (11 - rank if labelled else None)
                assert label == int(doc_id in above and action == "relabel")
                assert weight == pytest.approx(0.25 if doc_id in above and action == "downweight" else 1.0)
    assert above_all > 10
    assert sum(counts["denoising"].values()) == above_all


def test_relabelled_positives_reach_the_view(store: LabelStore) -> None:
    negatives.mine(
        store,
        dataset="c/train",
        runs=["first"],
        depth=10,
        per_query=30,
        denoise_labels="teacher@first",
        denoise="relabel",
        name="relabelled",
    )
    view = views.build(store, "contrastive", negatives=["relabelled"], positives="all", per_query=None)
    import pyarrow.parquet as pq

    folder = views.folder_of(store, view)
    lists = pq.read_table(folder / "lists.parquet").to_pylist()
    assert max(sum(row["labels"]) for row in lists) > 3
    assert {
        rel for row in lists for rel, lab in zip(row["relevances"], row["labels"], strict=True) if lab
    } == {1, -1}


def test_downweighted_negatives_reach_the_view(store: LabelStore) -> None:
    negatives.mine(
        store,
        dataset="c/train",
        runs=["first"],
        depth=10,
        per_query=30,
        denoise_labels="teacher@first",
        denoise="downweight",
        name="weighted",
    )
    view = views.build(store, "contrastive", negatives=["weighted"], per_query=None)
    import pyarrow.parquet as pq

    weights = [
        w
        for row in pq.read_table(views.folder_of(store, view) / "lists.parquet")["weights"].to_pylist()
        for w in row
    ]
    assert {round(w, 3) for w in weights} == {0.1, 1.0}


def test_positives_can_be_included(store: LabelStore) -> None:
    found, _ = mined(store, runs=["first"], strategy="top", depth=30, per_query=4, include_positives=True)
    for query_id, own in found.items():
        n = int(query_id[1:])
        assert sum(row[3] == 0 for row in own.values()) == 4
        assert (own.get(positive_of(n), (0, 0, 0, 0))[3] == 1) == (n != 5)


def test_at_least(store: LabelStore) -> None:
    with store.write() as con:
        con.execute("DELETE FROM candidates WHERE query = 3 AND rank > 4")
    found, counts = mined(store, runs=["first"], depth=20, per_query=10, at_least=10)
    assert "q3" not in found
    assert counts["queries"] == {"too few negatives": 1}


def test_names(store: LabelStore) -> None:
    first = negatives.mine(store, dataset="c/train", name="n", per_query=5)
    again = negatives.mine(store, dataset="c/train", name="n", per_query=5)
    assert first.new
    assert not again.new
    assert first.mining == again.mining
    with pytest.raises(BadInput, match="other content"):
        negatives.mine(store, dataset="c/train", name="n", per_query=6)
    replaced = negatives.mine(store, dataset="c/train", name="n", per_query=6, replace=True)
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM minings").fetchall() == [(1,)]
        assert con.execute("SELECT count(*) FROM negatives").fetchall() == [(replaced.mining.n_negatives,)]


def test_unheld_and_equal_texts(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", unheld=(4,))
    text = made_store.text_of(0)
    with store.write() as con:
        con.execute(
            "UPDATE documents SET text = ?, text_hash = ? WHERE doc_id = 'd2'",
            [text, keys.text_hash(None, text)],
        )
    found, counts = mined(store, runs=["first"], depth=10, per_query=30)
    assert "d2" not in found["q0"]
    assert counts["candidates"]["same text as a positive"] == 1
    assert not any("d4" in own for own in found.values())
    assert counts["candidates"]["passage not held"] > 0


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"strategy": "best"}, UsageError),
        ({"depth": 0}, UsageError),
        ({"min_rank": 30, "depth": 20}, UsageError),
        ({"absolute_margin": -1.0}, UsageError),
        ({"shares": (1.0, 1.0)}, UsageError),
        ({"at_least": 100}, UsageError),
        ({"runs": ["frist"]}, DataMissing),
        ({"denoise_labels": "none"}, DataMissing),
        ({"max_score": -1.0}, DataMissing),
    ],
)
def test_bad_parameters_leave_no_trace(store: LabelStore, arguments: dict, wanted: type) -> None:
    with pytest.raises(wanted) as error:
        negatives.mine(store, dataset="c/train", **arguments)
    assert error.value.hint
    with store.read() as con:
        assert con.execute(
            "SELECT (SELECT count(*) FROM minings), (SELECT count(*) FROM provenance)"
        ).fetchall() == [(0, 1)]
    assert list((store.files / "views").glob(".*")) == []
