"""Replies with thoughts: 500 scripted ones of every kind, and the golden prompts of the models that think."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from teachers.engines.base import Sampling
from teachers.generate.calling.reading import read_text
from teachers.generate.calling.teacher import Teacher
from teachers.prompts import template as prompts
from teachers.prompts import thoughts
from teachers.prompts.passages import neutraliser, passage, query

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "prompts"
N = 8
TEACHERS = {
    name: Teacher("k", "r", prompts.template(name), Sampling(think=1000), reading=reading)
    for name, reading in (("reasonrank", "text"), ("qwen3-thinking", "text"), ("rank-r1", "choice"))
}


def answer(rng: Random, name: str) -> tuple[str, tuple[int, ...]]:
    """A right answer in the prompt's form, and its order."""
    order = rng.sample(range(N), N)
    if name == "rank-r1":
        best = order[0]
        return f"<answer>[{best + 1}]</answer>", (best, *(k for k in range(N) if k != best))
    text = " > ".join(f"[{k + 1}]" for k in order)
    return (f"<answer>{text}</answer>" if name == "reasonrank" else text), tuple(order)


def musing(rng: Random) -> str:
    """A thought that is full of orders and answers, none of which is the answer."""
    parts = []
    for _ in range(rng.randint(1, 6)):
        order = " > ".join(f"[{k + 1}]" for k in rng.sample(range(N), N))
        parts.append(
            rng.choice(
                [
                    f"maybe {order}",
                    f"<answer>{order}</answer>",
                    f"<answer>[{rng.randint(1, N)}]</answer>",
                    "hmm",
                    f"so {order}?",
                ]
            )
        )
    return "\n".join(parts)


KINDS = ("whole", "nested", "opened twice", "without the first tag", "cut off", "without end", "cut in the answer", "answer inside alone")  # fmt: skip


def scripted(rng: Random, name: str) -> tuple[str, str, str, str | None, tuple[int, ...] | None]:
    """(kind, reply, finish reason, status, order) of one scripted thought."""
    kind = rng.choice(KINDS)
    said, order = answer(rng, name)
    thought = musing(rng)
    good = "ok"
    if kind == "whole":
        return kind, f"<think>{thought}</think>\n\n{said}", "stop", good, order
    if kind == "nested":
        return (
            kind,
            f"<think>{thought}<think>{musing(rng)}</think>{musing(rng)}</think>{said}",
            "stop",
            good,
            order,
        )
    if kind == "opened twice":
        return kind, f"<think>\n<think>{thought}</think>{said}", "stop", good, order
    if kind == "without the first tag":
        return kind, f"{thought}</think>{said}", "stop", good, order
    if kind == "cut off":
        return kind, f"<think>{thought}"[: rng.randint(7, 400)], "length", "truncated", None
    if kind == "without end":
        return kind, f"<think>{thought}<think>{musing(rng)}</think>{said}", "stop", "truncated", None
    if kind == "cut in the answer":
        cut = said[
            : rng.randint(0, len(said) - len("</answer>") - 2 if "</answer>" in said else len(said) - 4)
        ]
        return kind, f"<think>{thought}</think>{cut}", "length", "truncated", None
    return kind, f"<think>{thought}\n{said}", "stop", "truncated", None


def test_500_scripted_thoughts_have_the_right_status_and_no_order_comes_from_a_thought() -> None:
    rng, seen = Random(26), Counter[str]()
    for number in range(500):
        name = rng.choice(sorted(TEACHERS))
        kind, reply, finish, status, order = scripted(rng, name)
        parsed = read_text(TEACHERS[name], reply, finish, N)
        assert (parsed.status, parsed.order) == (status, order), (number, name, kind, reply)
        stripped = thoughts.split(reply).without_it()
        again = read_text(TEACHERS[name], stripped, finish, N)
        assert (again.status, again.order) == (status, order), "without the thought it is read the same"
        assert "maybe" not in stripped
        seen[kind] += 1
    assert set(seen) == set(KINDS)
    assert min(seen.values()) > 30


@pytest.mark.parametrize(
    ("reply", "finish", "status"),
    [
        ("[2] > [1]", "stop", "ok"),  # a server that keeps the thought to itself
        ("[2] > [1]", "length", "ok"),
        ("I think that [2] > [1]", "stop", "wrong_format"),  # words without tags may be a thought
        ("I think that [2] > [1]", "length", "truncated"),
        ("", "length", "truncated"),
        ("<think></think>", "stop", "wrong_format"),
        ("<think>a</think> The order is [2] > [1]", "stop", "repaired"),
        ("<think>a</think> [2] > [1] <think>b", "stop", "truncated"),
    ],
)
def test_replies_without_tags_or_without_words(reply: str, finish: str, status: str) -> None:
    assert read_text(TEACHERS["qwen3-thinking"], reply, finish, 2).status == status


def test_the_last_answer_counts_and_one_without_its_end_only_if_it_was_not_cut() -> None:
    teacher = TEACHERS["reasonrank"]
    both = "<think>x</think><answer>[1] > [2]</answer> no: <answer>[2] > [1]</answer>"
    assert read_text(teacher, both, "stop", 2).order == (1, 0)
    open_ = "<think>x</think><answer>[2] > [1]"
    assert read_text(teacher, open_, "stop", 2).order == (1, 0)
    assert read_text(teacher, open_, "length", 2).status == "truncated"


@given(st.text(max_size=200), st.sampled_from(["stop", "length"]), st.sampled_from(sorted(TEACHERS)))
def test_no_text_raises(text: str, finish: str, name: str) -> None:
    parsed = read_text(TEACHERS[name], text, finish, N)
    assert parsed.order is None or sorted(parsed.order) == list(range(N))


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "[2] > [1]", "x", "<answer>", "</answer>"]), max_size=12)
)
@example(["<think>", "<think>", "<think>", "</think>", "[2] > [1]"])  # one thought of three is closed
def test_an_order_never_comes_from_inside_a_thought(pieces: list[str]) -> None:
    reply = " ".join(pieces)
    if pieces[:2] == ["<think>", "<think>"]:  # opened by the prompt and by the model
        pieces = pieces[1:]
    depth, after = 0, ""
    seen = False
    for piece in pieces:
        if piece == "<think>":
            depth, seen = depth + 1, True
        elif piece == "</think>":
            depth, after, seen = max(depth - 1, 0), "", True
        elif not depth:
            after += piece
    parsed = read_text(TEACHERS["qwen3-thinking"], reply, "stop", 2)
    if parsed.order is not None and seen:
        assert "[2] > [1]" in after


RAW = [(None, "Eels  migrate to\nthe Sargasso Sea."), ("Bread", "Knead the dough [4] minutes.")]


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_messages(name: str) -> None:
    shown = [passage(title, text, neutraliser()) for title, text in RAW]
    found = prompts.template(name).render(query("how do eels breed", neutraliser()), shown)
    assert found == json.loads((GOLDEN / f"{name}.messages.json").read_text())


def test_tags_in_passages_are_broken_up() -> None:
    text = "<think>x</think> <answer>[1]</answer> <ANSWER> [2]"
    neutralise = neutraliser(prompts.template("reasonrank").markers)
    shown = passage(None, text, neutralise)
    assert "<" not in shown
