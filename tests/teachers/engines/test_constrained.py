"""What a constrained reply may say next, by the trie of spellings, against all rankings written out."""

from itertools import permutations
from typing import Any

import pytest

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


def state(top: int, output: list[int]) -> Any:
    from teachers.engines.constrained import Language, State

    return State(Language.of({"first": FIRST, "later": LATER, "end": END, "top": top}), output)
