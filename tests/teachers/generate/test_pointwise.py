"""Labels of teachers that score one passage a call: scores and orders, resumption, forecasts, and what is refused."""

import json
import math
from collections import Counter
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.labelling_store import make
from labelstore.errors import UsageError
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify
from labelstore.views import build as views
from teachers.engines.base import Completion, Request
from teachers.generate.dry_run import forecast
from teachers.generate.job import Labelled, generate
from teachers.generate.label_files import export_labels
from teachers.generate.reread import reread
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine

SETTINGS: dict[str, Any] = {"model": "qwen3-reranker-0.6b", "canaries": 0}
LENGTHS = [30, 12, 1, 7]


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 4, length=lambda k: LENGTHS[k], passages=60)


def odds(request: Request) -> float:
    """A score that depends on the prompt alone; some passages tie."""
    digest = blake2b(request.text.encode(), digest_size=4).digest()
    return int.from_bytes(digest) % 23 / 2 - 5.0


def answered(request: Request) -> Completion:
    yes = -math.log1p(math.exp(-odds(request)))
    return Completion(
        ticket=request.ticket, text="yes" if odds(request) > 0 else "no", finish_reason="length", tokens_in=100, tokens_out=1,
        logprobs=dict(zip(request.identifiers, (yes, yes - odds(request)), strict=True)),
    )  # fmt: skip


class Recording(ScriptedEngine):
    def __init__(self, reply: Any = answered) -> None:
        self.asked: list[Request] = []
        super().__init__(self._noted(reply))

    def _noted(self, reply: Any) -> Any:
        def noted(request: Request) -> Any:
            self.asked.append(request)
            return reply(request)

        return noted


def run(store: LabelStore, engine: ScriptedEngine | None = None, **settings: Any) -> Labelled:
    return generate(store, Settings(**(SETTINGS | settings)), engine=engine or Recording())


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def test_every_passage_is_asked_once_and_its_score_gives_its_place(store: LabelStore) -> None:
    engine = Recording()
    result = run(store, engine)
    assert (result.labelled, result.figures.calls) == (4, sum(LENGTHS))
    assert Counter(len(request.identifiers) for request in engine.asked) == {2: sum(LENGTHS)}
    assert all(request.max_tokens == 1 and request.spelling == "exact" for request in engine.asked)
    scores = {
        (text.split("<Query>: ")[1].split("\n")[0], text.split("<Document>: ")[1].split("<|im_end|>")[0]): odds(r)
        for r in engine.asked
        for text in [r.text]
    }  # fmt: skip
    found = rows(
        store,
        """SELECT q.text, d.text, i.score, i.rank, i.grade, i.initial_rank, count(*) OVER (PARTITION BY q.query)
           FROM permutation_items i JOIN permutations p USING (permutation) JOIN queries q USING (query)
           JOIN documents d ON d.document = i.document ORDER BY q.query, i.rank""",
    )
    assert len(found) == sum(LENGTHS)
    for query, text, score, *_ in found:
        assert score == pytest.approx(scores[query, text], abs=1e-5)
    for before, after in pairwise(found):
        if before[0] != after[0]:
            continue
        assert before[2] >= after[2]
        assert (before[4] == after[4]) == (before[2] == after[2]), "equal scores are ties"
        if before[2] == after[2]:
            assert before[5] < after[5], "ties keep the run's order"
    assert rows(store, "SELECT strategy, reliable_depth, depth FROM labelings") == [("pointwise", 30, 30)]
    assert rows(store, "SELECT DISTINCT len(scores), len(parsed), status FROM calls") == [(1, 1, "ok")]
    assert not verify(store).findings


def test_a_rerun_asks_nothing_and_more_queries_only_what_is_new(store: LabelStore) -> None:
    run(store, limit=2)
    engine = Recording()
    assert run(store, engine).labelled == 4
    assert len(engine.asked) == 1 + 7
    again = Recording()
    run(store, again, name="other")
    assert not again.asked, "another labeling of the same teacher takes the answers on record"
    assert rows(store, "SELECT count(DISTINCT content_hash), count(*) FROM permutations") == [(4, 8)]


class Dying(Recording):
    """Answers in small portions and is interrupted after a few, as by Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        self.capacity = 3

    def poll(self, timeout: float) -> list[Completion]:
        if self.answered >= 9:
            raise KeyboardInterrupt
        return super().poll(timeout)


def test_an_interrupted_job_repeats_no_call(store: LabelStore) -> None:
    dying = Dying()
    with pytest.raises(KeyboardInterrupt):
        run(store, dying)
    kept = rows(store, "SELECT count(*) FROM calls")[0][0]
    assert 0 < kept < sum(LENGTHS)
    engine = Recording()
    assert run(store, engine).labelled == 4
    assert len(engine.asked) == sum(LENGTHS) - kept
    assert rows(store, "SELECT count(*), count(DISTINCT request) FROM calls") == [(sum(LENGTHS),) * 2]


def test_without_an_answer_the_query_is_quarantined_and_its_paid_calls_stay(store: LabelStore) -> None:
    def one_fails(request: Request) -> Completion:
        done = answered(request)
        if request.text.count("<Document>: ") and odds(request) == worst:
            done.logprobs = {}
        return done

    probe = Recording()
    run(store, probe, name="probe", model="qwen3-reranker-4b")
    worst = min(odds(r) for r in probe.asked)
    result = run(store, Recording(one_fails))
    assert result.quarantined >= 1
    assert result.labelled + result.quarantined == 4
    failed = "SELECT DISTINCT reason, attempts FROM quarantine"
    assert rows(store, failed) == [("wrong_format", 3)]
    assert rows(store, "SELECT count(*) FROM calls WHERE status = 'wrong_format' AND scores IS NOT NULL") == [
        (0,)
    ]
    retried = run(store, Recording(), retry_quarantined=True)
    assert retried.labelled == 4


def test_a_bounded_side_marks_the_list_as_repaired(store: LabelStore) -> None:
    def bounded(request: Request) -> Completion:
        done = answered(request)
        done.logprobs, done.floor = {"yes": -0.2}, -9.0
        return done

    run(store, Recording(bounded), limit=1)
    assert rows(store, "SELECT status, repairs FROM permutations") == [("repaired", 30)]
    assert rows(store, "SELECT DISTINCT status, n_missing, scores[1] FROM calls") == [
        ("repaired", 1, pytest.approx(8.8))
    ]


def test_a_rating_scale_stores_the_expected_value(store: LabelStore) -> None:
    def rated(request: Request) -> Completion:
        assert list(request.identifiers) == ["0", "1", "2", "3", "4"]
        done = Completion(ticket=request.ticket, text="4", tokens_in=100, tokens_out=1)
        done.logprobs = {"4": math.log(0.5), "2": math.log(0.25), "0": math.log(0.2), "1": -9.0, "3": -9.0}
        return done

    run(store, Recording(rated), model="someone/chat", prompt="rating@1", limit=1)
    expected = (4 * 0.5 + 2 * 0.25 + math.exp(-9) * 4) / (0.95 + 2 * math.exp(-9))
    assert rows(store, "SELECT DISTINCT scores[1] FROM calls") == [(pytest.approx(expected),)]


def test_the_forecast_is_exact_and_knows_what_is_on_record(store: LabelStore) -> None:
    before = forecast(store, Settings(**SETTINGS)).row()
    assert (before["calls_least"], before["calls_most"], before["strategy"]) == (50, 50, "pointwise")
    assert before["tokens_out_most"] == 50
    run(store, limit=2)
    after = forecast(store, Settings(**SETTINGS)).row()
    assert (after["queries"], after["calls_least"], after["calls_most"]) == (2, 8, 8)


def test_labels_with_their_scores_leave_the_store(store: LabelStore, tmp_path: Path) -> None:
    run(store)
    out = tmp_path / "labels.jsonl"
    assert export_labels(store, "qwen3-reranker-0.6b@first", out)[0] == 4
    lists = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(len(one["scores"]) == len(one["permutation"]) for one in lists)
    assert reread(store, "qwen3-reranker-0.6b@first").changes == []


def test_training_views_take_the_scores(store: LabelStore) -> None:
    run(store)
    view = views.build(store, "distillation", labels=["qwen3-reranker-0.6b@first"])
    lists = pl.read_parquet(store.files / view.folder / "lists.parquet")
    kept = rows(
        store,
        """SELECT q.query_id, list(i.score ORDER BY i.rank) FROM permutation_items i JOIN permutations p USING (permutation)
           JOIN queries q USING (query) GROUP BY ALL HAVING count(*) > 1 ORDER BY 1""",
    )
    assert sorted(map(sorted, lists["scores"].to_list())) == sorted(sorted(scores) for _, scores in kept)


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        ({"strategy": "sliding"}, "--strategy sliding does not apply", "leave it out"),
        ({"window": 10}, "--window does not apply", "leave it out"),
        ({"samples": 3}, "--samples does not apply", "leave it out"),
        ({"engine": "cross-encoder"}, "--engine cross-encoder does not apply", "--engine vllm"),
        ({"model": "rankzephyr", "strategy": "pointwise"}, "orders lists by its prompt rankzephyr@1", "--prompt yes-no@1"),
        ({"model": "bge-reranker-v2-gemma", "engine": "openai", "base_urls": ("http://127.0.0.1:1/v1",)}, "is a logit", "--engine vllm"),
    ],
)  # fmt: skip
def test_lists_and_single_passages_are_not_mixed(
    store: LabelStore, given: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        generate(store, Settings(**(SETTINGS | given)))
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")
    assert rows(store, "SELECT count(*) FROM labelings") == [(0,)]


def test_canaries_ask_single_passages_too(store: LabelStore) -> None:
    run(store, limit=1, canaries=2)
    assert rows(store, "SELECT count(*) FROM canaries") == [(2,)]
