"""A tiny random model in a real vLLM: free before the end of its thought, bound to a ranking after it."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.needs("vllm")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import tiny_qwen

    from teachers.engines.base import Sampling
    from teachers.engines.vllm import VllmEngine

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    folder = tiny_qwen.make(tmp_path_factory.mktemp("models") / "tiny")
    own = VllmEngine(
        str(folder), Sampling(constraint="identifiers", think=200), context=1024, max_num_seqs=16,
        options={"dtype": "float32"},
    )  # fmt: skip
    yield own
    own.close()


def replies(engine: Any, prompts: list[str], after: tuple[str, ...], most: int) -> list[str]:
    from teachers.engines.base import Request

    requests = [
        Request(
            key=str(k), token_ids=engine.tokenizer(text, add_special_tokens=False)["input_ids"], max_tokens=most,
            identifiers=("1", "2", "3"), after=after, ticket=k,
        )
        for k, text in enumerate(prompts)
    ]  # fmt: skip
    engine.submit(requests)
    done: dict[int, str] = {}
    while len(done) < len(requests):
        done |= {c.ticket: c.text or "" for c in engine.poll(5.0)}
    return [done[k] for k in range(len(requests))]


PROMPTS = [f"how deep is lake {k}? <think>" for k in range(24)]


def test_without_a_mark_the_reply_is_a_ranking_and_before_a_mark_it_is_free(engine: Any) -> None:
    from teachers.prompts.replies import parse

    bound = replies(engine, PROMPTS, (), 40)
    assert {parse(text, 3).status for text in bound} == {"ok"}
    free = replies(engine, PROMPTS, ("</think>",), 40)
    assert not any(text.startswith("[") and parse(text, 3).status == "ok" for text in free)


def test_after_the_mark_comes_a_whole_ranking(engine: Any) -> None:
    """The mark is a character that the random model writes soon, so that real replies pass it."""
    from teachers.prompts.replies import parse

    free = replies(engine, PROMPTS, ("</think>",), 40)
    mark = max(
        {c for text in free for c in text if c.isascii() and c.isprintable()},
        key=lambda c: sum(c in t for t in free),
    )
    found = replies(engine, PROMPTS, (mark,), 120)
    reached = [(text, before) for text, before in zip(found, free, strict=True) if mark in text[:40]]
    assert len(reached) > 3
    for text, before in reached:
        head, _, tail = text.partition(mark)
        assert before.startswith(head + mark) or head == before[: len(head)], "up to the mark nothing changes"
        assert parse(tail, 3).status == "ok"
