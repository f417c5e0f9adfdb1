"""Few-shot examples from judged queries, and first-stage scores in the prompt."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from shelves import DOCS, Shelf

from labelstore.errors import DataMissing, UsageError
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Completion, Request
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from teachers.generate.stored_replies import changed_readings
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

pytestmark = pytest.mark.test_all

QUERIES = {f"q{i}": f"question number {i}" for i in range(5)}


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """A train set of five judged queries, a test set that has one of them in capitals, and one of other queries."""
    shelf = Shelf(LabelStore(tmp_path / "s.duckdb"))
    collection = shelf.collection("toy", DOCS)
    qrels = {q: {DOCS[i]: 2, DOCS[i + 1]: 0} for i, q in enumerate(QUERIES)}
    train = shelf.dataset("toy/train", collection, QUERIES, qrels, role="train")
    scores = {q: [30.0 - k for k in range(len(DOCS))] for q in QUERIES}
    shelf.run("bm25", train, dict.fromkeys(QUERIES, DOCS), scores=scores)
    shelf.dataset("toy/test", collection, {"t4": "Question, NUMBER 4!"}, {"t4": {DOCS[0]: 1}})
    other = shelf.dataset("toy/other", collection, {"o1": "how deep is it"}, {"o1": {DOCS[0]: 1}}, role="dev")
    shelf.run("bm25", other, {"o1": DOCS[:4]})
    return shelf.store


def asked(store: LabelStore, reply: Any = hashed_order, **settings: Any) -> list[list[dict[str, str]]]:
    found: list[list[dict[str, str]]] = []

    def noted(request: Request) -> Any:
        found.append([dict(message) for message in request.messages])
        return reply(request)

    given = {"model": "listwise", "dataset": "toy/other", "canaries": 0, "examples": "toy/train"} | settings
    if given["model"] == "listwise":
        given |= {"model": "someone/chat"}
    generate(store, Settings(**given), engine=ScriptedEngine(noted))
    return found


def text_of(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def test_examples_stand_before_the_question_with_the_order_that_their_judgments_ask_for(
    store: LabelStore,
) -> None:
    (messages,) = asked(store, shots=2)
    roles = [m["role"] for m in messages if m["role"] != "system"]
    assert roles == ["user", "assistant"] * 2 + ["user"]
    turns = [m["content"] for m in messages if m["role"] != "system"]
    for question, answer in zip(turns[:4:2], turns[1:4:2], strict=True):
        number = next(i for i in range(5) if QUERIES[f"q{i}"] in question)
        shown = dict(
            line.removeprefix("[").split("] ", 1) for line in question.splitlines() if line.startswith("[")
        )
        best, *rest = answer.replace("[", "").replace("]", "").split(" > ")
        assert shown[best] == f"text of {DOCS[number]}", "the relevant passage is the first of the answer"
        assert sorted([best, *rest]) == sorted(shown)
    assert "how deep is it" in turns[-1]
    assert "how deep is it" not in text_of(messages[:-1])


def test_no_query_of_a_test_set_is_an_example_and_a_test_set_is_refused(store: LabelStore) -> None:
    with pytest.raises(UsageError, match="toy/test is a test set"):
        asked(store, examples="toy/test")
    for seed in range(6):
        (messages,) = asked(store, seed=seed, shots=3, name=f"seed{seed}")
        assert "number 4" not in text_of(messages).lower()
    with pytest.raises(DataMissing, match="4 judged queries have a relevant passage"):
        asked(store, shots=4)


def test_a_question_is_never_its_own_example(store: LabelStore) -> None:
    for messages in asked(store, dataset="toy/train", shots=3, depth=4):
        question = next(q for q in QUERIES.values() if q in messages[-1]["content"])
        assert question not in text_of(messages[:-1])
        assert sum(m["role"] == "assistant" for m in messages) == 3


def yes(request: Request) -> Completion:
    logs = dict(zip(request.identifiers, (-0.1, -2.0), strict=True))
    return Completion(ticket=0, text="yes", finish_reason="length", tokens_in=9, tokens_out=1, logprobs=logs)


def test_examples_of_one_passage_answer_yes_and_no_and_those_of_a_choice_name_the_best(
    store: LabelStore,
) -> None:
    answers = [m["content"] for m in asked(store, yes, prompt="yes-no@1")[0] if m["role"] == "assistant"]
    assert answers == ["yes", "no"]
    pair = [m["content"] for m in asked(store, lambda r: "A", strategy="pairwise", name="pair", shots=3)[0]]
    shown = [(q.count("Passage "), a) for q, a in pairwise(pair) if a in ("A", "B")]
    assert [n for n, _ in shown] == [4] * 3, "two passages and the question that names both"
    messages = asked(store, lambda request: "A", strategy="setwise", name="choice")[0]
    turns = [m["content"] for m in messages if m["role"] != "system"]
    for question, answer in zip(turns[:4:2], turns[1:4:2], strict=True):
        number = next(i for i in range(5) if QUERIES[f"q{i}"] in question)
        assert f'Passage {answer}: "text of {DOCS[number]}"' in question


def test_other_examples_are_another_teacher_and_stored_replies_are_still_read(store: LabelStore) -> None:
    asked(store, shots=1)
    with pytest.raises(UsageError, match="with other model, prompt or sampling"):
        asked(store, shots=2)
    with store.read() as con:
        keys = con.execute("SELECT sampling ->> 'examples' FROM teachers").fetchall()
        parameters = json.loads(con.execute("SELECT parameters FROM labelings").fetchall()[0][0])
    assert keys[0][0]
    assert (parameters["examples"], parameters["shots"]) == ("toy/train", 1)
    assert changed_readings(store)[0] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "qwen3-reranker-0.6b"}, "trained without examples"),
        ({"model": "qwen3-thinking"}, "begins with a thought"),
        ({"prompt": "rating@1"}, "another scale"),
        ({"prompt": "insertrank@1"}, "shows first-stage scores"),
        ({"shots": 0}, "--shots 0 is below 1"),
    ],
)
def test_prompts_that_take_no_examples_say_so(store: LabelStore, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(store, **given)


# ------------------------------------------------------------------------------------------------ first-stage scores
def test_insertrank_shows_each_passage_with_its_own_score_wherever_a_window_puts_it(
    store: LabelStore,
) -> None:
    found = asked(store, dataset="toy/train", examples=None, prompt="insertrank@1", window=5, stride=2)
    assert len(found) > 5
    for messages in found:
        lines = messages[-1]["content"].splitlines()
        for k, line in enumerate(lines):
            if line.startswith("[") and " text of d" in line:
                number, place = int(line.rpartition("d")[2]), line[1 : line.index("]")]
                assert lines[k + 1] == f"BM25 score for passge [{place}]: {30 - number:.2f}"
