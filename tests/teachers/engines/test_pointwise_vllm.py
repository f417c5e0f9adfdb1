"""Scores of a tiny random Qwen3: in vLLM, over vLLM's server and in transformers, on the same 200 pairs."""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytestmark = pytest.mark.needs("vllm")
PAIRS = 200
WORDS = ["lake", "hill", "deep", "yes", "no", "river?", "Moor,", "1", "why", "<|im_end|>", "the", "of"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_qwen

    return tiny_qwen.make(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def rendered(folder: Path, prompt: str, *, renders: bool = True) -> list[Any]:
    """Requests for 200 pairs of 1 to 60 words, many of a query one after another."""
    import tiny_qwen

    from teachers.engines.base import Sampling
    from teachers.generate.calling.teacher import Teacher
    from teachers.generate.calls import Rendering
    from teachers.generate.worklist import Candidate, Task
    from teachers.prompts import template as prompts

    template = prompts.template(prompt)
    teacher = Teacher(
        "k", "r", template, Sampling(logprobs=20), context=2048, reading="answers", renders=renders
    )
    rendering = Rendering(teacher, tiny_qwen.tokenizer())
    rng, made = Random(5), []
    for k in range(PAIRS):
        query = f"how deep is lake {k // 10}?"
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
        request = rendering.request(Task(k, "q", query, [Candidate("d", None, text, 0, 1)]), (0,))[0]
        request.ticket = k
        made.append(request)
    return made


def ask(engine: Any, requests: list[Any]) -> dict[int, Any]:
    engine.submit(requests)
    done: dict[int, Any] = {}
    while len(done) < len(requests):
        for completion in engine.poll(5.0):
            done[completion.ticket] = completion
    return done


def expected(reference: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return reference(torch.tensor([ids])).logits[0, -1].double()


def spelt(answer: str, spelling: str) -> list[int]:
    import tiny_qwen

    from teachers.engines.spelling import answer_tokens
    from teachers.prompts import template as prompts

    answers = ("yes", "no") if answer in ("yes", "no") else prompts.template("rating@1").answers
    return [
        token
        for token, found in answer_tokens(tiny_qwen.tokenizer(), answers, spelling).items()
        if found == answer
    ]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Any]:
    from teachers.engines.base import Sampling
    from teachers.engines.vllm import VllmEngine

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    own = VllmEngine(
        str(folder), Sampling(logprobs=20), context=2048, max_num_seqs=32, options={"dtype": "float32"}
    )
    yield own
    own.close()


@pytest.mark.parametrize(("prompt", "spelling"), [("qwen3-reranker@1", "exact"), ("yes-no@1", "any")])
def test_log_odds_are_those_of_transformers(
    engine: Any, folder: Path, reference: Any, prompt: str, spelling: str
) -> None:
    from teachers.prompts.answers import read_answers

    requests = rendered(folder, prompt)
    done = ask(engine, requests)
    yes, no = (spelt(answer, spelling) for answer in ("yes", "no"))
    found = []
    for request in requests:
        logits = expected(reference, list(request.token_ids))
        wanted = float(logits[yes].logsumexp(0) - logits[no].logsumexp(0))
        completion = done[request.ticket]
        parsed, scores = read_answers(completion.logprobs, completion.floor, ("yes", "no"), "log-odds")
        assert (parsed.status, completion.tokens_out) == ("ok", 1)
        assert scores == pytest.approx([wanted], abs=1e-3)
        found.append(wanted)
    assert max(found) - min(found) > 0.1, "the control: the scores differ by far more than the tolerance"


def test_a_rating_is_the_expected_value_of_transformers(engine: Any, folder: Path, reference: Any) -> None:
    from teachers.prompts.answers import read_answers

    digits = ("0", "1", "2", "3", "4")
    requests = rendered(folder, "rating@1")[:40]
    done = ask(engine, requests)
    for request in requests:
        logits = expected(reference, list(request.token_ids))
        weights = logits[[spelt(digit, "any")[0] for digit in digits]].softmax(0)
        wanted = sum(k * float(weight) for k, weight in enumerate(weights))
        scores = read_answers(done[request.ticket].logprobs, None, digits, "expected")[1]
        assert scores == pytest.approx([wanted], abs=1e-3)


def test_logits_are_read_as_logits(folder: Path, reference: Any) -> None:
    from teachers.engines.base import Sampling
    from teachers.engines.vllm import VllmEngine
    from teachers.prompts.answers import read_answers

    own = VllmEngine(
        str(folder), Sampling(logprobs=20, logits=True), context=2048, max_num_seqs=32,
        options={"dtype": "float32"},
    )  # fmt: skip
    try:
        requests = rendered(folder, "bge-gemma@1")[:40]
        done = ask(own, requests)
    finally:
        own.close()
    import tiny_qwen

    token = tiny_qwen.tokenizer().convert_tokens_to_ids("Yes")
    for request in requests:
        wanted = float(expected(reference, list(request.token_ids))[token])
        assert read_answers(done[request.ticket].logprobs, None, ("Yes",), "logit")[1] == pytest.approx(
            [wanted], abs=1e-3
        )


def test_over_a_server_the_scores_are_the_same(folder: Path, reference: Any, tmp_path: Path) -> None:
    import tiny_qwen

    from benchmarks.vllm_server import served
    from teachers.engines.base import Sampling
    from teachers.engines.openai import OpenAIEngine
    from teachers.prompts.answers import read_answers

    with served(tmp_path, model=folder, arguments=("--dtype", "float32", "--max-model-len", "2048")) as (
        url,
        _,
    ):
        own = OpenAIEngine("tiny", [url], Sampling(logprobs=20), in_flight=8, tokenizer=tiny_qwen.tokenizer())
        try:
            for prompt, spelling in (("qwen3-reranker@1", "exact"), ("yes-no@1", "any")):
                requests = rendered(folder, prompt, renders=False)
                ids = [list(request.token_ids) for request in rendered(folder, prompt)]
                done = ask(own, requests)
                yes, no = (spelt(answer, spelling) for answer in ("yes", "no"))
                for request, shown in zip(requests, ids, strict=True):
                    completion = done[request.ticket]
                    parsed, scores = read_answers(
                        completion.logprobs, completion.floor, ("yes", "no"), "log-odds"
                    )
                    logits = expected(reference, shown)
                    wanted = float(logits[yes].logsumexp(0) - logits[no].logsumexp(0))
                    assert parsed.status == "ok"
                    assert scores == pytest.approx([wanted], abs=1e-2)
        finally:
            own.close()
