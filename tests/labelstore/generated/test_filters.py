"""Filters of generated queries find what was planted, all of it and no more; each can be undone; nothing is deleted."""

import random
from itertools import combinations
from pathlib import Path
from typing import Any

import made_store
import pytest
from made_words import WORDS

from labelstore.errors import DataMissing, UsageError
from labelstore.generated import filter as filtering
from labelstore.generated import tests as measured
from labelstore.generated.near_duplicates import near_duplicates, shingles
from labelstore.retrieval import retrieve
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.merge.job import merge_stores
from labelstore.upkeep.remove import plan, remove
from labelstore.upkeep.verify.digest import content_hash
from labelstore.upkeep.verify.verify import verify
from teachers.engines.base import Completion, Request
from teachers.generate.single.queries import generate
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import Wanted
from tests.helpers.scripted_engine import ScriptedEngine
from tests.teachers.generate.single.test_queries import number_of

pytestmark = pytest.mark.test_all

N, NAME = 40, "c/synthetic"


def phrase(n: int) -> str:
    """Words that no other phrase has, nor any like them."""
    drawn = random.Random(n)
    return " ".join("".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(5))


def scripted(planted: dict[int, str]) -> ScriptedEngine:
    def reply(request: Request) -> Completion:
        n = number_of(request)
        return Completion(0, text=planted.get(n, phrase(n)), finish_reason="stop", mean_logprob=-n / 10)

    return ScriptedEngine(reply)


def made(path: Path, planted: dict[int, str] | None = None, **more: Any) -> LabelStore:
    store = made_store.make(path, n_documents=N, n_queries=6, depth=10, **more)
    generate(store, Wanted("rankzephyr", "c", N), Asking(), engine=scripted(planted or {}))
    return store


def rows(store: LabelStore, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql, list(values)).fetchall()


def failing(store: LabelStore, kind: str) -> set[int]:
    """The passages' numbers of what a filter took out."""
    found = rows(store, "SELECT doc_id FROM generated_queries WHERE list_contains(failed, ?)", kind)
    return {int(doc[1:]) for (doc,) in found}


def kept(store: LabelStore) -> set[int]:
    return {int(doc[1:]) for (doc,) in rows(store, "SELECT doc_id FROM generated_queries WHERE kept")}


def test_copies_are_found_all_of_them_and_no_more(tmp_path: Path) -> None:
    texts = {n: made_store.text_of(n) for n in range(N)}
    planted = {
        3: " ".join(texts[3].split()[2:7]),
        8: texts[8].upper() + "?",
        11: " ".join(texts[12].split()[:5]),  # stands in another passage
        20: texts[20][: texts[20].rindex(" ")] + "x",  # the last word is another one
    }
    store = made(tmp_path / "s.duckdb", planted)
    (done,) = filtering.apply(store, NAME, [measured.copied()])
    assert failing(store, "copied") == {3, 8}
    assert (done.n_in, done.n_kept) == (N, N - 2)
    assert kept(store) == set(range(N)) - {3, 8}
    assert verify(store).findings == []


@pytest.mark.parametrize("least", [0.6, 0.8, 1.0])
def test_near_duplicates_are_those_of_every_pair_compared(least: float) -> None:
    rng = random.Random(least)
    texts = []
    for k in range(120):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 7))]
        texts.append((f"n{k:03}", " ".join(words)))
        if k % 3 == 0:  # and a variant of it
            words[rng.randrange(len(words))] += rng.choice(["s", "", "ing"])
            texts.append((f"v{k:03}", " ".join(words).upper()))
    others = {f"o{k}": text + " x" * (k % 2) for k, (_, text) in enumerate(texts[::9])}
    found = near_duplicates(texts, others, least)
    left: dict[str, frozenset[str]] = {name: shingles(text) for name, text in others.items()}
    expected = {}
    for name, text in texts:
        own = shingles(text)
        like = {o: len(own & s) / len(own | s) for o, s in left.items()}
        best = min(like, key=lambda o: (-like[o], o))
        if like[best] >= least:
            expected[name] = (best, like[best])
        else:
            left[name] = own
    assert found == expected
    assert 10 < len(found) < len(texts)
    for (_, one), (_, two) in combinations(left.items(), 2):
        if one not in map(shingles, others.values()):
            assert len(one & two) / len(one | two) < least or two in map(shingles, others.values())


def test_near_duplicates_of_the_dataset_and_of_the_store_are_taken_out_once(tmp_path: Path) -> None:
    store = made(tmp_path / "s.duckdb")
    (real,) = rows(
        store, "SELECT text FROM dataset_query_texts WHERE dataset = 'c/train' AND query_id = 'q2'"
    )[0]
    store = made(
        tmp_path / "t.duckdb",
        {5: phrase(4).upper() + "!", 9: real + "s", 14: phrase(4), 30: phrase(29)[:-1] + "0"},
    )
    filtering.apply(store, NAME, [measured.duplicates(0.8)])
    duplicates = failing(store, "duplicate")
    assert 9 in duplicates
    assert len(duplicates & {4, 5, 14}) == 2, "one of three that are alike stays"
    assert len(duplicates & {29, 30}) == 1
    assert len(duplicates) == 4
    evidence = dict(
        rows(
            store,
            "SELECT d.doc_id, t.evidence FROM query_tests t JOIN query_origins USING (query) JOIN documents d USING (document) WHERE NOT passed",
        )
    )
    assert evidence["d9"] == "c q2"


def test_round_trip_keeps_what_the_run_finds_again(tmp_path: Path) -> None:
    lost = {n: f"find {WORDS[5]} {WORDS[6]} of another age {n * 1000}" for n in (2, 17, 33)}
    planted = {n: made_store.text_of(n).rsplit(" ", 3)[0] + f" number {n}" for n in range(N)} | lost
    store = made(tmp_path / "s.duckdb", planted)
    retrieve(store, NAME, depth=5, name="bm25s")
    with store.read() as con:
        run = lookup.run(con, lookup.dataset(con, NAME), "bm25s")
    filtering.apply(store, NAME, [measured.round_trip(run, 5)])
    expected = {
        int(doc[1:])
        for doc, rank in rows(
            store,
            """SELECT g.doc_id, r.rank FROM generated_queries g LEFT JOIN ranked r
               ON r.query_id = g.query_id AND r.doc_id = g.doc_id AND r.dataset = g.dataset""",
        )
        if rank is None
    }
    assert failing(store, "round-trip") == expected
    assert set(lost) <= expected
    values = rows(
        store,
        "SELECT value, rank FROM query_tests t JOIN query_origins o USING (query) LEFT JOIN candidates c ON c.query = o.query AND c.document = o.document WHERE passed",
    )
    assert values
    assert all(value == rank for value, rank in values)
    for most in (0, 6):
        with pytest.raises(UsageError, match=f"--round-trip {most}"):
            measured.round_trip(run, most)


def test_length_probability_and_score_take_out_what_is_beyond_their_bounds(tmp_path: Path) -> None:
    store = made(tmp_path / "s.duckdb", {1: "eels", 2: "eels? breed!", 3: "word " * 30})
    filtering.apply(store, NAME, [measured.log_probability(-2.0), measured.length(3, 10)])
    assert failing(store, "length") == {1, 2, 3}
    assert failing(store, "log-probability") == set(range(21, N)), (
        "what an earlier filter took out is not tested"
    )
    scores = {query: float(query % 7) for (query,) in rows(store, "SELECT query FROM query_origins")}
    left = kept(store)
    filtering.apply(store, NAME, [measured.reranker("m", scores, 5, None)])
    assert len(kept(store)) == 5
    filtering.apply(store, NAME, [measured.reranker("m", scores, None, 3.0)])
    passing = {
        int(doc[1:])
        for doc, query in rows(
            store, "SELECT doc_id, query FROM query_origins JOIN documents USING (document)"
        )
        if scores[query] >= 3
    }
    assert kept(store) == left & passing, "a new threshold takes the place of the old one"
    for bounds in ((None, None), (3, 0.5), (0, None)):
        with pytest.raises(UsageError, match="either --top N"):
            measured.reranker("m", scores, *bounds)


def test_each_filter_is_a_row_that_can_be_undone(tmp_path: Path) -> None:
    store = made(tmp_path / "s.duckdb", {1: "eels", 8: made_store.text_of(8)})
    before = rows(store, "SELECT query, text FROM queries ORDER BY query")
    filtering.apply(store, NAME, [measured.copied(), measured.length(2, 12)])
    assert kept(store) == set(range(N)) - {1, 8}
    assert filtering.undo(store, NAME, ["length"]) == 1
    assert kept(store) == set(range(N)) - {8}
    assert rows(store, "SELECT kind, active FROM query_filters ORDER BY filter") == [
        ("length", False),
        ("copied", True),
    ]
    assert filtering.undo(store, NAME, ["all"]) == 1
    assert kept(store) == set(range(N))
    assert rows(store, "SELECT query, text FROM queries ORDER BY query") == before, "nothing is deleted"
    with pytest.raises(DataMissing, match="no active filter length"):
        filtering.undo(store, NAME, ["length"])
    with pytest.raises(UsageError, match="there is no such filter"):
        filtering.undo(store, NAME, ["lenght"])
    assert verify(store).findings == []


def test_the_same_filter_again_changes_nothing_and_tests_what_is_new(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", n_documents=N, n_queries=6, depth=10)
    generate(store, Wanted("rankzephyr", "c", 10), Asking(), engine=scripted({}))
    assert filtering.apply(store, NAME, [measured.length(1, 50)])[0].new
    jobs = rows(store, "SELECT count(*) FROM provenance")
    assert not filtering.apply(store, NAME, [measured.length(1, 50)])[0].new
    assert rows(store, "SELECT count(*) FROM provenance") == jobs
    generate(store, Wanted("rankzephyr", "c", 15), Asking(), engine=scripted({}))
    (again,) = filtering.apply(store, NAME, [measured.length(1, 50)])
    assert (again.new, again.n_in) == (True, 15)


def test_examples_of_what_each_filter_took_out(tmp_path: Path) -> None:
    planted = dict.fromkeys((1, 4, 6, 7, 12), "eels") | {8: made_store.text_of(8)}
    store = made(tmp_path / "s.duckdb", planted)
    filtering.apply(store, NAME, [measured.length(3, 30), measured.copied()])
    with store.read() as con:
        shown = filtering.show(con, lookup.dataset(con, NAME), 2)
    assert [row["filter"] for row in shown] == ["length", "length", "copied"]
    assert {(row["tested"], row["left_out"]) for row in shown} == {(N, 5), (N - 5, 1)}
    assert [(row["query"], row["evidence"]) for row in shown[:2]] == [("eels", "too short")] * 2
    assert shown[2]["doc_id"] == "d8"


def test_real_queries_are_never_filtered(tmp_path: Path) -> None:
    store = made(tmp_path / "s.duckdb")
    with pytest.raises(DataMissing, match="c/train has no generated queries"):
        filtering.apply(store, "c/train", [measured.copied()])
    with pytest.raises(DataMissing, match="no dataset named"):
        filtering.apply(store, "c/none", [measured.copied()])


def test_stores_with_filters_merge_and_a_dataset_is_removed_with_them(tmp_path: Path) -> None:
    one = made(tmp_path / "one.duckdb", {1: "eels", 8: made_store.text_of(8)})
    two = made_store.make(tmp_path / "two.duckdb", n_documents=N, n_queries=6, depth=10, offset=900)
    filtering.apply(one, NAME, [measured.length(2, 12)])
    merge_stores(two, one)
    assert kept(two) == set(range(N)) - {1}
    assert verify(two).findings == []
    filtering.apply(one, NAME, [measured.copied()])
    filtering.undo(one, NAME, ["length"])
    merge_stores(two, one)
    assert kept(two) == set(range(N)) - {8}
    assert not merge_stores(two, one).new
    assert verify(two).findings == []
    before = rows(one, "SELECT count(*) FROM queries")
    remove(one, "dataset", NAME, plan(one, "dataset", NAME))
    assert rows(one, "SELECT count(*) FROM queries") == [(before[0][0] - N,)]
    for table in ("query_origins", "query_filters", "query_tests"):
        assert rows(one, f"SELECT count(*) FROM {table}") == [(0,)]
    assert rows(one, "SELECT count(*) FROM calls") == [(N,)], (
        "calls stay: the same queries cost nothing a second time"
    )
    assert verify(one).findings == []
    with one.read() as con:
        content_hash(con)
