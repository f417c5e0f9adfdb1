"""Lists with easy passages, the judged passage first, and one passage of each band: their order, seeds and counts."""

from pathlib import Path

import made_store
import pytest
from read_views import read

from labelstore.errors import UsageError
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views
from labelstore.views import parameters

BOTH = [
    ("contrastive", {"datasets": ["c/train"], "runs": ["first"], "per_query": 4, "depth": 8}),
    ("distillation", {"labels": ["teacher@first"]}),
]


@pytest.mark.parametrize("easy", [1, 3, 7])
@pytest.mark.parametrize(("kind", "base"), BOTH)
def test_easy_passages_stand_tied_below_what_was_labelled(
    store: LabelStore, kind: str, base: dict, easy: int
) -> None:
    plain = read(store, views.build(store, kind, **base, name="plain"))
    view = views.build(store, kind, **base, easy=easy, name="easy")
    manifest, lists, docs, queries = read(store, view)
    assert len(lists) == len(plain[1])
    for row, before in zip(lists, plain[1], strict=True):
        n = int(queries[row["query"]][1:])
        own = [docs[p] for p in row["passages"]]
        assert own[:-easy] == [plain[2][p] for p in before["passages"]]
        assert len(set(own)) == len(own) == len(before["passages"]) + easy
        bottom, top = row["labels"][-easy:], row["labels"][:-easy]
        assert set(bottom) == {0}
        assert min(top) > 0 if kind == "distillation" else top == before["labels"]
        assert row["relevances"][-easy:] == [-1] * easy
        seen = 8 if kind == "contrastive" else 10  # of the run, of the labeling
        assert not set(own[-easy:]) & ({f"d{(n * 3 + k) % 60}" for k in range(seen)} | {f"d{n}"})
    count = manifest["more_counts"]["easy passages"]
    assert count == {"in": easy * len(lists), "kept": easy * len(lists), "dropped": {}}
    assert manifest["counts"] == plain[0]["counts"]
    assert manifest["more_counts"]["passages"] == plain[0]["more_counts"]["passages"]
    with store.read() as con:
        found = con.execute(
            "SELECT n_in, n_kept FROM filters WHERE subject = 'easy' AND step = 'view easy passages'"
        ).fetchall()
    assert found == [(easy * len(lists),) * 2]


@pytest.mark.test_all
@pytest.mark.parametrize(("kind", "base"), BOTH)
def test_easy_draws_follow_the_seed_and_no_surrogate_key(tmp_path: Path, kind: str, base: dict) -> None:
    hashes = []
    for name, offset, seed in (("a", 0, 1), ("b", 700, 1), ("c", 0, 2)):
        store = made_store.make(tmp_path / f"{name}.duckdb", offset=offset)
        hashes.append(views.build(store, kind, **base, easy=3, seed=seed).view_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_easy_passages_are_neither_judged_nor_equal_in_text_and_a_lack_is_counted(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_documents=14, n_queries=2, depth=10, unheld=(13,))
    with store.write() as con:  # q0's run ranks d0 … d9: d10, d11 and d12 are left
        con.execute("DELETE FROM dataset_queries WHERE query = 1")
        con.execute("INSERT INTO qrels VALUES (1, 0, 10, 0)")
        con.execute(
            "UPDATE documents SET text = ?, text_hash = ? WHERE doc_id = 'd11'",
            [made_store.text_of(0), keys.text_hash(None, made_store.text_of(0))],
        )
    view = views.build(store, "contrastive", datasets=["c/train"], runs=["first"], easy=3, allow_overlap=True)
    manifest, (row,), docs, _ = read(store, view)
    assert docs[row["passages"][-1]] == "d12"
    assert not {"d10", "d11", "d13"} & {docs[p] for p in row["passages"]}
    assert manifest["more_counts"]["easy passages"] == {
        "in": 3,
        "kept": 1,
        "dropped": {"the collection has too few others": 2},
    }


def judge(store: LabelStore, query: int, grades: dict[int, int]) -> None:
    """Grades for passages at these places of the teacher's order over `query` (0 is its first)."""
    with store.write() as con:
        for place, grade in grades.items():
            con.execute(
                """INSERT INTO qrels SELECT 1, p.query, i.document, ? FROM permutation_items i JOIN permutations p
                   USING (permutation) WHERE p.query = ? AND i.rank = ? AND NOT EXISTS (FROM qrels q
                   WHERE q.dataset = 1 AND q.query = p.query AND q.document = i.document)""",
                [grade, query, place + 1],
            )


@pytest.mark.parametrize("grades", [{9: 2}, {4: 1, 7: 3}, {2: 0, 5: 1, 8: 1}, {1: 1, 0: 1}])
def test_judged_first_leads_by_grade_and_counts_lists_without_one(store: LabelStore, grades: dict) -> None:
    base = {"labels": ["teacher@first"]}
    judge(store, 5, grades)
    with store.write() as con:
        con.execute("UPDATE permutation_items SET score = 100 - rank")
    before = {r["query"]: r for r in read(store, views.build(store, "distillation", **base))[1]}
    view = views.build(store, "distillation", **base, judged_first=True)
    manifest, lists, _, _ = read(store, view)
    led = 0
    for row in lists:
        plain = before[row["query"]]
        leads = [r > 0 for r in plain["relevances"]]
        order = sorted(range(len(leads)), key=lambda k: (not leads[k], -plain["relevances"][k] * leads[k], k))
        assert row["passages"] == [plain["passages"][k] for k in order]
        assert row["ranks"] == list(range(1, len(order) + 1))
        n, labels = sum(leads), row["labels"]
        assert labels[n:] == [plain["labels"][k] for k in order[n:]], "below them the teacher's order stands"
        assert not n or min(labels[:n]) > max(plain["labels"])
        assert [labels[k] > labels[k + 1] for k in range(n - 1)] == [
            row["relevances"][k] > row["relevances"][k + 1] for k in range(n - 1)
        ], "equal judgments are ties"
        assert (row["scores"] is None) == (order != sorted(order)), "scores that no longer fit are left out"
        led += bool(n)
    assert led
    left = len(lists) - led
    drops = {"no passage of the list is judged relevant": left} if left else {}
    assert manifest["more_counts"]["judged first"] == {"in": len(lists), "kept": led, "dropped": drops}


@pytest.mark.test_all
@pytest.mark.parametrize("bands", [2, 3, 5])
@pytest.mark.parametrize("place", [0, 3, 9])
def test_judged_first_is_always_drawn_by_stratified(store: LabelStore, bands: int, place: int) -> None:
    judge(store, 5, {place: 1})
    view = views.build(
        store, "distillation", labels=["teacher@first"], judged_first=True, stratified=bands, easy=2
    )
    _, lists, _, queries = read(store, view)
    (row,) = (r for r in lists if queries[r["query"]] == "q5")
    assert row["relevances"][0] == 1
    assert len(row["passages"]) == bands + 2
    assert row["labels"] == sorted(row["labels"], reverse=True)


@pytest.mark.parametrize("bands", [2, 3, 5])
def test_stratified_takes_one_passage_of_each_band_of_the_order(store: LabelStore, bands: int) -> None:
    every = read(store, views.build(store, "distillation", labels=["teacher@first"]))
    view = views.build(store, "distillation", labels=["teacher@first"], stratified=bands)
    manifest, lists, docs, _ = read(store, view)
    picks = set()
    for row, before in zip(lists, every[1], strict=True):
        order = [every[2][p] for p in before["passages"]]
        places = [order.index(docs[p]) for p in row["passages"]]
        assert [place * bands // len(order) for place in places] == list(range(bands))
        assert row["ranks"] == list(range(1, bands + 1))
        picks.add(tuple(places))
    assert len(picks) > 1
    count = manifest["more_counts"]["passages"]
    assert count["kept"] == bands * len(lists)
    assert count["in"] - count["kept"] == count["dropped"]["not drawn"]


@pytest.mark.test_all
def test_defaults_of_easy_and_stratified_keep_a_views_key(store: LabelStore) -> None:
    for kind, base in BOTH:
        plain = views.build(store, kind, **base)
        assert views.build(store, kind, **base, easy=0) == plain
    assert views.build(store, "distillation", labels=["teacher@first"], judged_first=False) == plain
    few = views.build(store, "distillation", labels=["teacher@first"], stratified=50)
    assert few == plain  # shorter lists are taken whole


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("contrastive", {"easy": -1}),
        ("distillation", {"easy": 5000}),
        ("distillation", {"stratified": 0}),
        ("contrastive", {"stratified": 3}),
        ("contrastive", {"judged_first": True}),
        ("rerank", {"easy": 3}),
        ("contrastive", {"easy": 3, "scores": True}),
    ],
)
def test_easy_and_stratified_are_refused_where_they_make_no_sense(kind: str, given: dict) -> None:
    with pytest.raises(UsageError):
        parameters.make_parameters(kind, given)
