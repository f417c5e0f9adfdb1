"""Scores over OpenAI-compatible servers: which fields are sent, what is read, and a server without log-probabilities."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai_servers import Answer, Server, serving
from tiny_qwen import tokenizer

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Sampling
from teachers.engines.openai import OpenAIEngine
from teachers.errors import ExitCode, TeacherError
from teachers.generate.calling.teacher import Teacher
from teachers.generate.calls import Rendering
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from teachers.generate.worklist import Candidate, Task
from teachers.prompts import template as prompts

CHAT = ("yes-no@1", "rating@1")


def reply(body: dict[str, Any], top: dict[str, float] | None) -> Answer:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if "prompt" in body:
        choice |= {"text": "yes", "logprobs": None if top is None else {"top_logprobs": [top]}}
    else:
        entries = [{"token": token, "logprob": value} for token, value in (top or {}).items()]
        content = [{"token": "Yes", "logprob": -0.1, "top_logprobs": entries}]
        choice |= {
            "message": {"role": "assistant", "content": "Yes"},
            "logprobs": None if top is None else {"content": content},
        }
    return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 60, "completion_tokens": 1}}


@contextmanager
def engine(server: Server, own: Any = None) -> Iterator[OpenAIEngine]:
    made = OpenAIEngine("tiny", [server.url], Sampling(logprobs=20), in_flight=8, tokenizer=own)
    try:
        yield made
    finally:
        made.close()


def requests(prompt: str, n: int, own: Any = None) -> list[Any]:
    teacher = Teacher(
        "k", "r", prompts.template(prompt), Sampling(logprobs=20), reading="answers", renders=False
    )
    rendering = Rendering(teacher, own)
    made = []
    for k in range(n):
        task = Task(k, f"q{k}", "how deep is it", [Candidate("d", None, f"A lake of {k} m.", 0, 1)])
        request = rendering.request(task, (0,))[0]
        request.ticket = k
        made.append(request)
    return made


def ask(made: OpenAIEngine, asked: list[Any]) -> dict[int, Any]:
    made.submit(asked)
    done: dict[int, Any] = {}
    until = time.monotonic() + 30
    while len(done) < len(asked) and time.monotonic() < until:
        done |= {completion.ticket: completion for completion in made.poll(1.0)}
    return done


@pytest.mark.parametrize("prompt", CHAT)
def test_a_chat_prompt_asks_for_one_token_with_its_alternatives(prompt: str) -> None:
    top = {
        "Yes": math.log(0.6),
        " yes": math.log(0.1),
        "NO": math.log(0.1),
        "3": math.log(0.1),
        "…": math.log(0.05),
    }
    with serving(lambda k, body: reply(body, top)) as server, engine(server) as made:
        done = ask(made, requests(prompt, 6))
    (body,) = {repr(sorted(set(body) - {"messages"})) for body in server.asked}
    first = server.asked[0]
    assert "chat_template_kwargs" in body
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert (first["max_tokens"], first["logprobs"], first["top_logprobs"]) == (1, True, 20)
    assert len(done) == 6
    if prompt == "yes-no@1":
        assert done[0].logprobs == pytest.approx({"yes": math.log(0.7), "no": math.log(0.1)})
    else:
        assert done[0].logprobs == pytest.approx({"3": math.log(0.1)})
    assert done[0].floor == pytest.approx(math.log(0.05), abs=1e-6)


def test_a_whole_prompt_goes_out_as_it_is_and_as_token_ids_if_they_are_known() -> None:
    top = {"yes": -0.2, " yes": -0.1, "no": -1.9}
    with serving(lambda k, body: reply(body, top)) as server, engine(server) as made:
        done = ask(made, requests("qwen3-reranker@1", 1))
    (sent,) = server.asked
    assert sent["prompt"].startswith("<|im_start|>system\nJudge whether the Document meets")
    assert sent["prompt"].endswith("<think>\n\n</think>\n\n")
    assert (sent["logprobs"], sent["max_tokens"]) == (20, 1)
    assert "chat_template_kwargs" not in sent
    assert done[0].logprobs == {"yes": -0.2, "no": -1.9}, "only the tokens that the model was trained on"
    own = tokenizer()
    with serving(lambda k, body: reply(body, top)) as server, engine(server, own) as made:
        asked = requests("mxbai-rerank@1", 1, own)
        ask(made, asked)
    assert server.asked[0]["prompt"] == list(asked[0].token_ids)


@pytest.mark.parametrize("top", [None, {}])
def test_a_server_without_log_probabilities_is_told_at_the_first_call(top: dict[str, float] | None) -> None:
    with serving(lambda k, body: reply(body, top)) as server, engine(server) as made:
        made.submit(requests("yes-no@1", 40))
        kept = []
        with pytest.raises(TeacherError, match="sends no log-probabilities") as caught:  # noqa: PT012
            until = time.monotonic() + 30
            while time.monotonic() < until:
                kept += made.poll(1.0)
        time.sleep(0.2)
        assert len(server.asked) == 1
        assert [completion.text for completion in kept] == ["Yes"], "the call that was paid for is recorded"
    assert caught.value.exit_code == ExitCode.TEACHER_ENGINE
    assert "--engine vllm" in (caught.value.hint or "")


def test_calls_run_side_by_side_once_a_server_has_shown_that_it_sends_them() -> None:
    def slow(k: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.05)
        return reply(body, {"yes": -0.1, "no": -3.0})

    with serving(slow) as server, engine(server) as made:
        assert len(ask(made, requests("yes-no@1", 24))) == 24
        assert server.most_busy > 1


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 2, length=lambda k: 5, passages=12)


def label(store: LabelStore, server: Server, **more: Any) -> Any:
    settings = Settings(
        model="tiny",
        engine="openai",
        base_urls=(server.url,),
        prompt="yes-no@1",
        canaries=0,
        name="labels",
        **more,
    )
    return generate(store, settings)


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def test_from_server_to_store_a_missing_side_is_bounded(store: LabelStore) -> None:
    def answer(k: int, body: dict[str, Any]) -> Answer:
        words = body["messages"][1]["content"].split("Passage: ")[1].split()
        if words[0] < "h":
            return reply(body, {"Yes": -0.2, "…": -4.0, ".": -5.0})
        return reply(body, {"Yes": -0.2, "No": -1.8})

    with serving(answer) as server:
        label(store, server)
    found = dict(rows(store, "SELECT status, min(scores[1]) FROM calls GROUP BY status"))
    assert found["ok"] == pytest.approx(1.6)
    assert found.get("repaired", 4.8) == pytest.approx(4.8)


def test_a_job_over_a_server_that_answers_otherwise_keeps_the_paid_call(store: LabelStore) -> None:
    with serving(lambda k, body: reply(body, None)) as server:
        with pytest.raises(TeacherError, match="sends no log-probabilities"):
            label(store, server)
        assert len(server.asked) == 1
    assert rows(store, "SELECT status, tokens_in FROM calls") == [("wrong_format", 60)]
    with serving(lambda k, body: reply(body, {"Maybe": -0.1})) as server:
        result = label(store, server, max_attempts=2)
    assert result.quarantined == 2
    assert rows(store, "SELECT DISTINCT reason FROM quarantine") == [("wrong_format",)]
