"""Provider batches, against a server that speaks their interface: whole, resumed, expired half done, failed, refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from batch_servers import Plan, Provider, provider

from benchmarks.labelling_store import make
from labelstore.errors import UsageError
from labelstore.store.label_store import LabelStore
from teachers.engines import openai_batch
from teachers.errors import TeacherError
from teachers.generate.dry_run import forecast
from teachers.generate.job import Labelled, generate
from teachers.generate.settings import Settings

pytestmark = pytest.mark.test_all


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look after batches at once; the pauses are defaults of the engine."""
    monkeypatch.setattr(openai_batch.OpenAIBatchEngine.__init__, "__kwdefaults__", {
        **openai_batch.OpenAIBatchEngine.__init__.__kwdefaults__, "pauses": (0.01, 0.02),
    })  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 6, length=lambda k: 30, passages=60)


def label(store: LabelStore, own: Provider, **settings: Any) -> Labelled:
    given = {"model": "gpt-4o-mini", "engine": "openai-batch", "base_urls": (own.url,), "name": "batch"}
    return generate(store, Settings(**(given | settings)))


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def test_each_round_of_windows_is_one_batch_and_the_answers_are_calls_at_half_the_price(
    store: LabelStore,
) -> None:
    with provider(plans=[Plan(looks=3)]) as own:
        done = label(store, own)
        assert (done.labelled, done.figures.calls) == (6, 12)  # two sliding windows over thirty passages
        assert len(own.batches) == 2, "all queries' first windows, then all queries' second windows"
        assert own.looks >= 4
        assert len(set(own.asked)) == len(own.asked) == 12
        assert rows(
            store, "SELECT count(*), count(DISTINCT request_key) FROM calls JOIN requests USING (request)"
        ) == [(12, 12)]
        prices = rows(store, "SELECT input_price, output_price, engine FROM teachers")
        assert prices == [(0.075, 0.3, "openai-batch")]
        again = label(store, own)
        assert (again.figures.calls, len(own.batches)) == (0, 2)


def test_an_interrupted_wait_goes_on_in_the_same_batch(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = openai_batch.OpenAIBatchEngine._look

    def interrupted(self: Any, batch: Any) -> Any:
        raise KeyboardInterrupt

    with provider(plans=[Plan(looks=1)]) as own:
        monkeypatch.setattr(openai_batch.OpenAIBatchEngine, "_look", interrupted)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                label(store, own, limit=4)
        assert len(own.batches) == 1, "the second start found the batch of the first"
        monkeypatch.setattr(openai_batch.OpenAIBatchEngine, "_look", look)
        assert label(store, own, limit=4).labelled == 4
        assert Counter(own.asked).most_common(1)[0][1] == 1, "nothing is paid twice"


def test_a_job_that_died_before_it_knew_its_batch_finds_it(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = openai_batch.Record.add

    def dies(self: Any, line: dict[str, Any]) -> None:
        if "batch" in line and "file" in line:
            raise KeyboardInterrupt
        add(self, line)

    with provider() as own:
        monkeypatch.setattr(openai_batch.Record, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            label(store, own)
        monkeypatch.setattr(openai_batch.Record, "add", add)
        assert len(own.batches) == 1
        assert label(store, own).labelled == 6
        assert len(set(own.asked)) == len(own.asked) == 12


def test_a_line_of_the_record_that_was_cut_off_costs_no_other_line(tmp_path: Path) -> None:
    record = openai_batch.Record(tmp_path, "provider model")
    record.add({"file": "f1", "keys": ["a", "b"]})
    with record.path.open("ab") as file:
        file.write(b'{"file": "f1", "ba')
    again = openai_batch.Record(tmp_path, "provider model")
    assert again.without_batch() == ["f1"]
    again.add({"file": "f1", "batch": "b1"})
    again.add({"batch": "b1", "again": ["b"]})
    third = openai_batch.Record(tmp_path, "provider model")
    assert third.sent == {"a": ["b1"], "b": []}
    assert third.without_batch() == []


@pytest.mark.parametrize("ends", ["expired", "cancelled"])
def test_a_batch_that_expired_half_done_keeps_what_was_paid_for(store: LabelStore, ends: str) -> None:
    with provider(plans=[Plan(ends=ends, answered=4)]) as own:
        with pytest.raises(TeacherError) as caught:
            label(store, own)
        assert f"batch batch_0 {ends}: 2 of its 6 requests have no answer" in caught.value.message
        assert "run the same command again" in (caught.value.hint or "")
        assert caught.value.exit_code == 5
        assert rows(store, "SELECT status, count(*) FROM calls GROUP BY 1") == [("ok", 4)]
        done = label(store, own)
        assert (done.labelled, done.quarantined) == (6, 0)
        assert Counter(own.asked).most_common(1)[0][1] == 1
        assert len(own.asked) == 12


def test_a_batch_that_failed_says_why(store: LabelStore) -> None:
    with provider(plans=[Plan(ends="failed")]) as own:
        with pytest.raises(
            TeacherError, match="batch_0 failed: 6 of its 6 requests have no answer: no such model"
        ):
            label(store, own)
        assert label(store, own).labelled == 6, "the next run sends them anew"


def test_requests_that_fail_alone_are_tried_again_and_then_set_aside(store: LabelStore) -> None:
    from openai_servers import good

    first: list[str] = []

    def answer(body: dict[str, Any]) -> Any:
        text = json.dumps(body["messages"])
        if not first:
            first.append(text)
        if text == first[0]:
            return 500, {}, {"error": {"message": "overloaded"}}
        return good(body)

    with provider(answer=answer) as own:
        done = label(store, own, max_attempts=2)
        assert (done.labelled, done.quarantined) == (5, 1)
        assert rows(store, "SELECT reason FROM quarantine") == [("engine_error",)]
        assert rows(store, "SELECT DISTINCT reply FROM calls WHERE status = 'engine_error'") == [
            ("500 overloaded",)
        ]


def test_a_reply_that_cannot_be_read_is_asked_for_anew_and_not_read_again(store: LabelStore) -> None:
    replies = iter(["no order", "nor here"])

    def answer(body: dict[str, Any]) -> Any:
        from openai_servers import good

        return good(body, next(replies, None))

    with provider(answer=answer) as own:
        assert label(store, own, limit=1, strategy="single").labelled == 1
        assert rows(store, "SELECT status, attempt FROM calls ORDER BY call") == [
            ("wrong_format", 1), ("wrong_format", 2), ("ok", 3),
        ]  # fmt: skip
        assert len(own.batches) == 3
        assert len(own.asked) == 3


def test_scores_of_one_passage_come_by_batches_and_a_provider_without_log_probabilities_ends_the_job(
    store: LabelStore,
) -> None:
    def answer(body: dict[str, Any]) -> Any:
        assert body["logprobs"] is True
        top = [{"token": "Yes", "logprob": -0.2}, {"token": "No", "logprob": -1.9}]
        choice = {
            "message": {"role": "assistant", "content": "Yes"}, "finish_reason": "length",
            "logprobs": {"content": [{"token": "Yes", "logprob": -0.2, "top_logprobs": top}]},
        }  # fmt: skip
        return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}

    with provider(answer=answer) as own:
        assert label(store, own, prompt="yes-no@1", limit=2).labelled == 2
        assert len(own.batches) == 1
        (score,) = rows(store, "SELECT DISTINCT round(score, 3) FROM permutation_items")
        assert score == (pytest.approx(1.7),)
    with provider() as own, pytest.raises(TeacherError, match="sends no log-probabilities"):
        label(store, own, prompt="rating@1", limit=1, name="other")


@pytest.mark.parametrize(
    ("refuse", "says", "hint"),
    [
        ({"POST /v1/files": 401}, "refused /files: 401", "MSFT_API_KEY"),
        ({"POST /v1/files": 404}, "refused /files: 404", "--engine openai"),
        ({"POST /v1/batches": 500}, "refused /batches: 500", "none is sent twice"),
    ],
)
def test_what_a_provider_refuses_is_one_line_with_a_hint(
    store: LabelStore, refuse: dict[str, int], says: str, hint: str
) -> None:
    with provider(refuse=refuse) as own:
        with pytest.raises(TeacherError) as caught:
            label(store, own)
        assert says in caught.value.message
        assert hint in (caught.value.hint or "")
        own.refuse.clear()
        assert label(store, own).labelled == 6


def test_a_provider_that_is_busy_while_batches_go_on_is_waited_for(store: LabelStore) -> None:
    with provider(refuse={"GET /v1/batches/": 503}) as own:
        import threading

        threading.Timer(0.6, own.refuse.clear).start()
        assert label(store, own).labelled == 6
        assert Counter(own.asked).most_common(1)[0][1] == 1


def test_the_forecast_has_the_batch_price_and_what_does_not_fit_is_refused(store: LabelStore) -> None:
    common: dict[str, Any] = {"model": "gpt-4o-mini", "base_urls": ("http://127.0.0.1:9/v1",)}
    half = forecast(store, Settings(**common, engine="openai-batch")).row()
    whole = forecast(store, Settings(**common, engine="openai")).row()
    assert half["cost_most"] == pytest.approx(whole["cost_most"] / 2)
    for given, says in (
        ({"base_urls": ()}, "needs a server"),
        ({"base_urls": ("http://a/v1", "http://b/v1")}, "asks one provider"),
        ({"top": 5, "constrained": True}, "no constrained decoding"),
    ):
        with pytest.raises(UsageError, match=says):
            generate(store, Settings(**(common | given), engine="openai-batch"))
