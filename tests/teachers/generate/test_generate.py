"""`msft teachers generate` from store to store, with a scripted model: complete, resumable, honest about failures."""

import json
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.labelling_store import make
from labelstore.errors import DataMissing, UsageError
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Completion, Request
from teachers.errors import TeacherError
from teachers.generate.job import Labelled, generate
from teachers.generate.merge_journal import MergedJournal, merge_journal
from teachers.generate.settings import Settings
from teachers.journal import segments as journal
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

SETTINGS: dict[str, Any] = {"model": "rankzephyr", "canaries": 0}


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 6, length=lambda k: [40, 100, 25, 20, 5, 95][k % 6])


def run(store: LabelStore, engine: ScriptedEngine | None = None, **settings: Any) -> Labelled:
    return generate(store, Settings(**(SETTINGS | settings)), engine=engine or ScriptedEngine(hashed_order))


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


CONTENT = """SELECT q.query_id, p.status, p.repairs, p.n_calls, p.tokens_in, p.tokens_out, p.content_hash
             FROM permutations p JOIN queries q USING (query) ORDER BY q.query_id"""
CALLS = "SELECT call_key, reply, status, attempt, completed_at FROM calls ORDER BY call_key"


def test_every_call_and_permutation_is_on_record(store: LabelStore) -> None:
    result = run(store)
    assert (result.queries, result.labelled, result.quarantined, result.left) == (6, 6, 0, 0)
    calls = 3 + 9 + 2 + 1 + 1 + 9
    assert result.figures.calls == calls
    assert rows(store, "SELECT count(*), count(DISTINCT request) FROM calls") == [(calls, calls)]
    assert rows(store, "SELECT count(*) FROM labeling_calls") == [(calls,)]
    assert rows(store, "SELECT sum(n_passages) FROM requests") == rows(
        store, "SELECT count(*) FROM request_passages"
    )
    assert rows(
        store, "SELECT count(*) FROM calls WHERE status <> 'ok' OR tokens_in = 0 OR seconds IS NULL"
    ) == [(0,)]
    assert rows(store, "SELECT count(*) FROM permutation_items") == [(40 + 100 + 25 + 20 + 5 + 95,)]
    assert rows(store, "SELECT name, strategy, depth, reliable_depth FROM labelings") == [
        ("rankzephyr@first", "sliding", 100, 10)
    ]
    assert not journal.segments(store.files / "journal"), "merged segments are removed"
    assert not list((store.files / "journal").iterdir())


def test_a_permutation_is_what_the_replies_say(store: LabelStore) -> None:
    run(store, limit=4)
    shown, parsed = rows(
        store,
        """SELECT list(d.doc_id ORDER BY rp.position), any_value(c.parsed)
           FROM calls c JOIN requests r USING (request) JOIN request_passages rp USING (request)
           JOIN documents d ON d.document = rp.document JOIN queries q ON q.query = r.query WHERE q.query_id = 'q3'""",
    )[0]
    ranked = rows(
        store,
        """SELECT d.doc_id, i.initial_rank, i.grade FROM permutation_items i JOIN permutations p USING (permutation)
           JOIN queries q USING (query) JOIN documents d ON d.document = i.document
           WHERE q.query_id = 'q3' ORDER BY i.rank""",
    )
    assert [doc_id for doc_id, _, _ in ranked] == [shown[i - 1] for i in parsed]
    assert [shown[initial - 1] for _, initial, _ in ranked] == [doc_id for doc_id, _, _ in ranked]
    assert [grade for _, _, grade in ranked] == list(range(20, 0, -1))


@pytest.mark.test_all
def test_a_rerun_asks_nothing_and_changes_nothing(store: LabelStore) -> None:
    run(store)
    before, calls = rows(store, CONTENT), rows(store, CALLS)
    engine = ScriptedEngine(hashed_order)
    result = run(store, engine)
    assert engine.answered == 0
    assert result.labelled == 6
    assert (rows(store, CONTENT), rows(store, CALLS)) == (before, calls)


@pytest.mark.test_all
def test_more_queries_continue_the_labeling(store: LabelStore) -> None:
    assert run(store, limit=2).labelled == 2
    engine = ScriptedEngine(hashed_order)
    assert run(store, engine).labelled == 6
    assert engine.answered == 2 + 1 + 1 + 9
    assert rows(store, "SELECT count(*) FROM labelings") == [(1,)]


@pytest.mark.test_all
def test_another_labeling_reuses_the_answers_of_the_same_teacher(store: LabelStore) -> None:
    run(store)
    engine = ScriptedEngine(hashed_order)
    result = run(store, engine, strategy="sliding", stride=10, name="again")
    assert engine.answered == 0
    assert result.figures.resumed == 25
    assert rows(store, "SELECT count(*) FROM permutations") == [(12,)]


class Stop(Exception):
    pass


class Stopping(ScriptedEngine):
    """Raises once it has given so many answers, as a machine that dies would."""

    def __init__(self, after: int) -> None:
        super().__init__(hashed_order, capacity=3)
        self._after = after

    def poll(self, timeout: float) -> list[Completion]:
        if self.answered >= self._after:
            raise Stop
        return super().poll(timeout)


@pytest.mark.test_all
def test_a_job_that_broke_off_goes_on(store: LabelStore, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.duckdb", 6, length=lambda k: [40, 100, 25, 20, 5, 95][k % 6])
    run(whole)
    recorded = 0
    for after in (3, 1, 9, 4):
        with pytest.raises(Stop):
            run(store, Stopping(after))
        (now,) = rows(store, "SELECT count(*) FROM calls")[0]
        assert now > recorded
        recorded = now
    kept = rows(store, CALLS)
    engine = ScriptedEngine(hashed_order)
    run(store, engine)
    assert engine.answered == 25 - len(kept)
    assert set(kept) <= set(rows(store, CALLS)), "no completed call has changed"
    assert rows(store, "SELECT count(*), count(DISTINCT request) FROM calls") == [(25, 25)]
    assert rows(store, CONTENT) == rows(whole, CONTENT)
    assert {s for (s,) in rows(store, "SELECT status FROM provenance WHERE kind = 'teachers.generate'")} == {
        "failed",
        "done",
    }


@pytest.mark.test_all
def test_failed_queries_are_reported_and_not_filled(store: LabelStore) -> None:
    def reply(request: Request) -> str | Completion:
        return "I cannot do that." if len(request.identifiers) == 5 else hashed_order(request)

    result = run(store, ScriptedEngine(reply))
    assert (result.labelled, result.quarantined, result.left) == (5, 1, 0)
    error = result.partly_done()
    assert error is not None
    assert error.exit_code == 6
    assert rows(
        store, "SELECT q.query_id, step, reason, attempts FROM quarantine JOIN queries q USING (query)"
    ) == [("q4", 0, "refused", 3)]
    assert rows(
        store, "SELECT count(*) FROM permutations p JOIN queries q USING (query) WHERE query_id = 'q4'"
    ) == [(0,)]
    assert rows(store, "SELECT status, attempt FROM calls WHERE status <> 'ok' ORDER BY attempt") == [
        ("refused", 1), ("refused", 2), ("refused", 3)
    ]  # fmt: skip
    engine = ScriptedEngine(reply)
    assert run(store, engine).quarantined == 1
    assert engine.answered == 0, "a quarantined query stays so until it is asked for"
    engine = ScriptedEngine(hashed_order)
    result = run(store, engine, retry_quarantined=True)
    assert engine.answered == 1
    assert (result.labelled, result.quarantined) == (6, 0)
    assert rows(store, "SELECT count(*) FROM quarantine") == [(0,)]


@pytest.mark.test_all
def test_a_budget_leaves_usable_labels_and_exit_code_6(store: LabelStore) -> None:
    result = run(store, max_calls=20)
    assert result.figures.calls <= 20
    assert 0 < result.labelled < 6
    error = result.partly_done()
    assert error is not None
    assert error.exit_code == 6
    assert "--max-calls" in str(error)
    assert rows(store, "SELECT status FROM provenance ORDER BY job DESC LIMIT 1") == [("partial",)]
    rest = run(store, max_calls=20)
    assert rest.labelled == 6
    assert rest.partly_done() is None


@pytest.mark.test_all
def test_the_store_is_free_while_the_job_runs(store: LabelStore) -> None:
    seen: list[int] = []

    def reply(request: Request) -> str:
        other = LabelStore(store.path, lock_wait=0.0)
        thread = threading.Thread(target=lambda: seen.append(_count_and_write(other)))
        thread.start()
        thread.join()
        return hashed_order(request)

    run(store, ScriptedEngine(reply), limit=2)
    assert len(seen) == 12


def _count_and_write(store: LabelStore) -> int:
    with store.write() as con:
        con.execute("CREATE TABLE IF NOT EXISTS other (k INTEGER)")
        con.execute("INSERT INTO other VALUES (1)")
        return int(con.execute("SELECT count(*) FROM other").fetchall()[0][0])


@pytest.mark.test_all
def test_merging_twice_changes_nothing(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    real = journal.remove

    def keep(path: Path) -> None:
        (kept / path.name).write_bytes(path.read_bytes())
        real(path)

    monkeypatch.setattr(journal, "remove", keep)
    run(store)
    before = rows(store, CONTENT), rows(store, CALLS), rows(store, "SELECT count(*) FROM labeling_calls")
    again = tmp_path / "again"
    again.mkdir()
    for path in kept.iterdir():
        (again / path.name).write_bytes(path.read_bytes())
    merged = merge_journal(store, again)
    assert merged.segments == 1
    assert merged.calls == merged.permutations == 0
    assert (
        rows(store, CONTENT),
        rows(store, CALLS),
        rows(store, "SELECT count(*) FROM labeling_calls"),
    ) == before


def test_a_torn_segment_is_merged_up_to_its_tear(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("teachers.generate.merge_journal.merge_journal", lambda *_: MergedJournal())
        with pytest.raises(Stop):
            run(store, Stopping(7))
    (path,) = journal.segments(store.files / "journal")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    engine = ScriptedEngine(hashed_order)
    generate(store, Settings(**SETTINGS), engine=engine, note=notes.append)
    assert any("unfinished last line" in note for note in notes)
    assert rows(store, "SELECT count(*) FROM calls") == [(25,)]


@pytest.mark.test_all
def test_tampered_text_asks_again(store: LabelStore) -> None:
    """The request key is over what was shown: a changed passage is a new question, the old answer stays."""
    run(store, limit=4)
    with store.write() as con:
        con.execute("UPDATE documents SET text = 'other text', text_hash = 7 WHERE doc_id IN (SELECT doc_id FROM"
                    " documents d JOIN candidates c USING (document) WHERE c.query = 3 AND c.rank = 1)")  # fmt: skip
    engine = ScriptedEngine(hashed_order)
    run(store, engine, limit=4, name="second")
    assert engine.answered >= 1
    assert rows(store, "SELECT count(*) FROM request_passages WHERE text_hash = 7")[0][0] >= 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"model": "rankzefir"}, TeacherError, "rankzephyr"),
        ({"dataset": "none"}, DataMissing, "none"),
        ({"run": "none"}, DataMissing, "none"),
        ({"depth": 0}, UsageError, "--depth"),
        ({"strategy": "spiral"}, TeacherError, "sliding"),
        ({"strategy": "single", "stride": 5}, TeacherError, "stride"),
        ({"window": 20, "stride": 20}, TeacherError, "--stride"),
        ({"model": "first", "window": 40}, TeacherError, "26"),
        ({"max_cost": 1.0}, UsageError, "price"),
        ({"max_calls": -1}, UsageError, "--max-calls"),
        ({"temperature": -1.0}, UsageError, "--temperature"),
        ({"top": 5}, UsageError, "--top"),
        ({"prompt": "none@1"}, TeacherError, "prompt"),
        ({"fuse": True}, UsageError, "--fuse"),
        ({"fuse_weight": 0.7}, UsageError, "--fuse-weight"),
        ({"fuse_by": "scores"}, UsageError, "--fuse-by"),
        ({"fuse_by": "votes"}, UsageError, "votes"),
    ],
)
def test_bad_settings_leave_the_store_as_it_was(
    store: LabelStore, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    before = store.path.read_bytes()
    with pytest.raises(error) as caught:
        run(store, **settings)
    assert words in f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert store.path.read_bytes() == before


@pytest.mark.test_all
def test_other_parameters_need_another_name(store: LabelStore) -> None:
    run(store, limit=1)
    with pytest.raises(UsageError, match="already"):
        run(store, window=10)
    assert run(store, window=10, name="narrow", limit=1).labelled == 1


def test_passages_without_text_are_refused(store: LabelStore) -> None:
    with store.write() as con:
        con.execute(
            "UPDATE documents SET text = NULL WHERE document IN (SELECT document FROM candidates WHERE rank = 3)"
        )
    with pytest.raises(DataMissing, match="have no text"):
        run(store)
    assert rows(store, "SELECT count(*) FROM labelings") == [(0,)]


def test_self_consistency_keeps_the_disagreement(store: LabelStore) -> None:
    result = run(store, samples=3, limit=4, strategy="single")
    assert result.figures.calls == 12
    found = rows(store, "SELECT disagreement FROM permutations")
    assert len(found) == 4
    assert all(0 < d < 2 for (d,) in found)
    assert rows(store, "SELECT count(*) FROM permutation_items WHERE score IS NULL AND rank <= 20")[0][0] == 0


def first_token(request: Request) -> Completion:
    letters = hashed_order(request).replace("[", "").replace("]", "").split(" > ")
    return Completion(
        0, text="A]", finish_reason="length", tokens_in=9, tokens_out=1,
        logprobs={letter: -float(rank) for rank, letter in enumerate(letters, 1)},
    )  # fmt: skip


def test_single_token_scoring_stores_scores(store: LabelStore) -> None:
    result = run(store, ScriptedEngine(first_token), model="first", limit=4)
    assert result.labelled == 4
    assert rows(store, "SELECT count(*) FROM calls WHERE len(scores) <> len(parsed) OR scores IS NULL") == [
        (0,)
    ]
    items = rows(
        store,
        """SELECT i.rank, i.score FROM permutation_items i JOIN permutations p USING (permutation)
           JOIN queries q USING (query) WHERE q.query_id = 'q3' ORDER BY i.rank""",
    )
    assert [score for _, score in items] == [-float(rank) for rank, _ in items]
    several = rows(
        store,
        """SELECT count(i.score) FROM permutation_items i JOIN permutations p USING (permutation)
           JOIN queries q USING (query) WHERE q.query_id = 'q1'""",
    )
    assert several == [(0,)], "scores of different windows do not compare"


def scoring(scores: Callable[[str], float]) -> ScriptedEngine:
    engine = ScriptedEngine(lambda r: Completion(0, tokens_in=1, scores=[scores(p) for p in r.passages]))
    engine.name = "cross-encoder"
    return engine


def test_a_scoring_teacher_ranks_by_its_scores(store: LabelStore, tmp_path: Path) -> None:
    folder = scorer(tmp_path)
    result = run(store, scoring(lambda text: float(len(text) // 10)), model=str(folder), limit=2)
    assert result.labelled == 2
    found = rows(
        store,
        """SELECT q.query_id, i.rank, i.score, i.grade, i.initial_rank FROM permutation_items i
           JOIN permutations p USING (permutation) JOIN queries q USING (query) ORDER BY 1, 2""",
    )
    for before, after in pairwise(found):
        if before[0] != after[0]:
            continue
        assert before[2] >= after[2]
        assert (before[2] == after[2]) == (before[3] == after[3]), "equal scores are ties, others are not"
        assert before[2] != after[2] or before[4] < after[4], "ties keep the run's order"
    assert rows(store, "SELECT strategy FROM labelings") == [("pointwise",)]


def scorer(folder: Path) -> Path:
    """A folder that passes for a classifier; a scripted engine scores in its place."""
    (folder / "scorer").mkdir()
    config = {"architectures": ["BertForSequenceClassification"]}
    (folder / "scorer/config.json").write_text(json.dumps(config))
    return folder / "scorer"


@pytest.mark.parametrize("share", [0.5, 0.7, 0.2, 0.9])
def test_fusion_is_reciprocal_ranks_with_the_run(store: LabelStore, tmp_path: Path, share: float) -> None:
    folder = scorer(tmp_path)
    reverse = {"d": 0.0}

    def score(_: str) -> float:
        reverse["d"] += 1.0
        return reverse["d"]

    run(store, scoring(score), model=str(folder), limit=1, fuse=True, fuse_weight=share)
    found = rows(store, "SELECT initial_rank, score FROM permutation_items ORDER BY rank")
    n = len(found)
    assert n == 40
    for initial, value in found:
        teacher, first = 1 / (60 + n + 1 - initial), 1 / (60 + initial)
        assert value == pytest.approx(2 * (share * teacher + (1 - share) * first), rel=1e-6)
    if share == 0.5:
        assert {initial for initial, _ in found[:2]} == {1, n}
    else:
        assert found[0][0] == (n if share > 0.5 else 1)
    ((parameters,),) = rows(store, "SELECT parameters ->> 'fuse_weight' FROM labelings")
    assert parameters == (None if share == 0.5 else str(share)), "older labelings keep their parameters"


def test_fusion_by_scores_scales_both_within_the_query(store: LabelStore, tmp_path: Path) -> None:
    folder = scorer(tmp_path)
    given = {"n": 0}

    def score(_: str) -> float:
        given["n"] += 1
        return float(given["n"] ** 2)  # not linear, so that ranks would give another sum

    run(store, scoring(score), model=str(folder), limit=1, fuse=True, fuse_by="scores", fuse_weight=0.8)
    found = rows(
        store,
        """SELECT p.initial_rank, c.score, p.score FROM permutation_items p JOIN permutations USING (permutation)
           JOIN labelings l USING (labeling) JOIN candidates c
             ON c.run = l.run AND c.query = permutations.query AND c.document = p.document ORDER BY p.rank""",
    )
    firsts = [first for _, first, _ in found]
    n = len(found)
    assert n == 40
    for rank, first, fused in found:
        teacher = (rank**2 - 1) / (n**2 - 1)
        of_run = (first - min(firsts)) / (max(firsts) - min(firsts))
        assert fused == pytest.approx(0.8 * teacher + 0.2 * of_run, abs=1e-6)
    assert [fused for *_, fused in found] == sorted((fused for *_, fused in found), reverse=True)
    ((how,),) = rows(store, "SELECT parameters ->> 'fuse' FROM labelings")
    assert how == "scores with the run's, each scaled to 0..1 within the query"


@pytest.mark.parametrize("by", ["ranks", "scores"])
def test_a_query_with_one_candidate_is_fused_without_a_call(
    store: LabelStore, tmp_path: Path, by: str
) -> None:
    engine = scoring(lambda _: 1.0)
    run(store, engine, model=str(scorer(tmp_path)), limit=2, depth=1, fuse=True, fuse_by=by)
    found = rows(store, "SELECT rank, score FROM permutation_items")
    assert [rank for rank, _ in found] == [1, 1]
    assert all(score is not None for _, score in found)
