"""What a constrained reply may say next, by the trie of spellings, against all rankings written out."""

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.needs("vllm")
END = 9
FIRST = [[1], [2, 1], [2, 2], [3, 1, 1]]
LATER = [[5, 1], [5, 2, 1], [5, 2, 2], [6, 3, 1]]


@pytest.mark.parametrize("top", [1, 2, 4])
def test_what_may_come_next_is_what_a_ranking_has_there(top: int) -> None:
    rankings = {
        tuple(FIRST[first] + [token for k in rest for token in LATER[k]] + [END])
        for first, *rest in permutations(range(4), top)
    }
    beginnings = {ranking[:n] for ranking in rankings for n in range(len(ranking))}
    for beginning in beginnings:
        expected = {r[len(beginning)] for r in rankings if r[: len(beginning)] == beginning}
        assert set(state(top, list(beginning)).allowed()) == expected, beginning


def test_a_reply_is_read_as_it_grows() -> None:
    reply: list[int] = []
    growing = state(3, reply)
    for token in [3, 1, 1, 5, 2, 2, 5, 1, END]:
        assert token in growing.allowed()
        assert set(growing.allowed()) == set(state(3, reply).allowed())
        reply.append(token)


def test_after_a_token_that_no_spelling_has_the_reply_ends() -> None:
    assert state(4, [1, 7]).allowed() == [END]
    assert state(4, [1, 7, 5]).allowed() == [END]


@pytest.mark.parametrize("text", ["no JSON", "[1]", '{"first": [[1]]}', 5, {"first": [[1]]}])
def test_arguments_that_make_no_language_are_refused(text: Any) -> None:
    from vllm import SamplingParams

    from teachers.engines.constrained import IdentifierConstraint
    from teachers.engines.spelling import ARGUMENT

    with pytest.raises(ValueError):
        IdentifierConstraint.validate_params(SamplingParams(extra_args={ARGUMENT: text}))
    IdentifierConstraint.validate_params(SamplingParams())


# ------------------------------------------------------------------------------------------- after a model's thought
PIECES = [
    "a",
    "<",
    "</",
    ".</",
    "think",
    ">",
    ">\n\n",
    "</think>",
    "</think",
    "ink>",
    "th",
    " <",
    "<answer>",
    "<ans",
    "wer>",
    "x<",
]


class Pieces:
    """A tokenizer of the pieces above, whose ids are their places; identifiers are spelt by ids that no piece has."""

    def get_vocab(self) -> dict[str, int]:
        return {piece.replace("\n", "Ċ").replace(" ", "Ġ"): k + 100 for k, piece in enumerate(PIECES)}


@given(st.lists(st.sampled_from(range(len(PIECES))), max_size=14), st.sampled_from([1, 2]))
def test_a_reply_is_bound_as_soon_as_its_marks_were_written_and_not_before(pieces: list[int], n: int) -> None:
    from teachers.engines.spelling import steps_to

    marks = ["</think>", "<answer>"][:n]
    after = json.loads(json.dumps([steps_to(Pieces(), mark) for mark in marks]))
    output: list[int] = []
    growing = state(3, output, after)
    for piece in pieces:
        expected = written([PIECES[token - 100] for token in output], marks)
        allowed = growing.allowed()
        assert (allowed is not None) == expected, [PIECES[token - 100] for token in output]
        if expected:
            assert set(allowed) == {1, 2, 3}, "the first identifiers"
            break
        output.append(piece + 100)


def written(pieces: list[str], marks: list[str]) -> bool:
    """Whether the marks stand in the text, one after another, each ended by a token after that of the mark before."""
    text, rest = "", list(marks)
    for piece in pieces:
        text += piece
        if rest and rest[0] in text:
            rest, text = rest[1:], ""
    return not rest


def state(top: int, output: list[int], after: Any = ()) -> Any:
    from teachers.engines.constrained import Language, State

    return State(
        Language.of({"first": FIRST, "later": LATER, "end": END, "top": top, "after": after}), output
    )
