"""Teachers that think first, from a server or a scripted model to the store: budgets, what is stored, what is refused."""

from pathlib import Path
from typing import Any

import pytest
from openai_servers import Answer, serving

from benchmarks.labelling_store import make
from labelstore.errors import UsageError
from labelstore.labels.quality import show
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Request
from teachers.generate.dry_run import forecast
from teachers.generate.job import Labelled, generate
from teachers.generate.reread import reread
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

SETTINGS: dict[str, Any] = {"model": "qwen3-thinking", "canaries": 0, "name": "thought"}


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 3, length=lambda k: 12, passages=40)


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def thinking(request: Request) -> str:
    return f"<think>first [1] > [2], but then {hashed_order(request)}</think>\n\n{hashed_order(request)}"


def run(store: LabelStore, reply: Any = thinking, **settings: Any) -> Labelled:
    return generate(store, Settings(**(SETTINGS | settings)), engine=ScriptedEngine(reply))


def test_the_thought_is_counted_and_not_stored(store: LabelStore) -> None:
    assert run(store).labelled == 3
    for reply, finish in rows(store, "SELECT reply, finish_reason FROM calls"):
        assert reply.startswith("<think></think>\n\n[")
        assert "but then" not in reply
        assert finish.startswith("stop; thought of ")
    with store.read() as con:
        shown = {row["name"]: row["value"] for row in show(con, "thought") if row["topic"] == "cost"}
    assert shown["thought_tokens"] > 0
    assert reread(store, "thought").changes == []


def test_kept_thoughts_are_read_the_same(store: LabelStore) -> None:
    run(store)
    run(store, name="kept", keep_thoughts=True, retry_quarantined=True, model="reasonrank")
    replies = rows(
        store,
        "SELECT reply FROM calls JOIN labeling_calls USING (call) JOIN labelings USING (labeling) WHERE name = 'kept'",
    )
    assert all("but then" in reply for (reply,) in replies)
    assert reread(store, "kept").changes == []


def test_an_unfinished_thought_is_truncated_and_never_an_order(store: LabelStore) -> None:
    def unfinished(request: Request) -> str:
        return f"<think>it must be {hashed_order(request)}"

    assert run(store, unfinished).quarantined == 3
    assert rows(store, "SELECT DISTINCT status, parsed FROM calls") == [("truncated", None)]
    assert rows(store, "SELECT DISTINCT reason, attempts FROM quarantine") == [("truncated", 3)]


def test_the_budget_of_the_thought_is_apart_from_the_answers(store: LabelStore) -> None:
    most = forecast(store, Settings(**SETTINGS, think_tokens=500)).row()["tokens_out_most"]
    less = forecast(store, Settings(**SETTINGS, think_tokens=100)).row()["tokens_out_most"]
    assert most - less == 400 * 3
    asked: list[Request] = []

    def noted(request: Request) -> str:
        asked.append(request)
        return thinking(request)

    run(store, noted, think_tokens=77)
    run(store, noted, name="usual")
    assert {request.max_tokens - asked[0].max_tokens for request in asked} == {0, 4096 - 77}
    assert not {request.key for request in asked[:3]} & {request.key for request in asked[3:]}


def test_rank_r1_names_the_best_of_many(store: LabelStore) -> None:
    def chosen(request: Request) -> str:
        return f"<think>[1]? no.</think> <answer>[{len(request.identifiers)}]</answer>"

    result = run(store, chosen, model="someone/rank-r1", prompt="rank-r1@1", children=5, keep=3)
    assert result.labelled == 3
    assert rows(store, "SELECT DISTINCT strategy, prompt FROM labelings JOIN teachers USING (teacher)") == [
        ("setwise", "rank-r1@1")
    ]
    assert rows(store, "SELECT DISTINCT status FROM calls") == [("ok",)]


def test_a_servers_own_field_for_thoughts_is_read(store: LabelStore) -> None:
    def answer(k: int, body: dict[str, Any]) -> Answer:
        order = " > ".join(f"[{i}]" for i in range(12, 0, -1))
        message = {"role": "assistant", "content": order, "reasoning_content": "maybe [1] > [2]"}
        usage = {
            "prompt_tokens": 500,
            "completion_tokens": 90,
            "completion_tokens_details": {"reasoning_tokens": 31},
        }
        cut = "length" if k == 1 else "stop"
        if k == 1:
            message["content"] = ""
        return 200, {}, {"choices": [{"index": 0, "finish_reason": cut, "message": message}], "usage": usage}

    with serving(answer) as server:
        settings = Settings(
            **(SETTINGS | {"model": "tiny", "prompt": "qwen3-thinking@1", "think_tokens": 500}),
            engine="openai",
            base_urls=(server.url,),
            max_in_flight=1,
        )
        assert generate(store, settings).labelled == 3
    assert rows(
        store, "SELECT status, reply, finish_reason, tokens_out FROM calls ORDER BY call LIMIT 1"
    ) == [("truncated", "<think>", "length; thought of 31 tokens", 90)]
    assert rows(
        store, "SELECT count(*) FROM calls WHERE status = 'ok' AND starts_with(reply, '<think></think>[12]')"
    ) == [(3,)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "rankzephyr", "think_tokens": 50}, "rankzephyr writes no thought"),
        ({"model": "qwen3-reranker-0.6b", "keep_thoughts": True}, "writes no thought"),
        ({"think_tokens": 0}, "--think-tokens 0 is below 1"),
        ({"logprobs": True}, "begins with a thought"),
    ],
)
def test_options_that_do_not_fit_are_refused(store: LabelStore, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        run(store, **given)
    assert caught.value.hint or "below" in said
