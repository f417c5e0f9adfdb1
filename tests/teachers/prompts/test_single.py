"""Prompts about one passage against golden files, and what is read from replies: a query or a grade, or nothing."""

from pathlib import Path

import pytest

from teachers.errors import TeacherError
from teachers.prompts import single
from teachers.prompts.single_replies import read_grade, read_query

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "single_prompts"
PASSAGE, QUERY = "Eels migrate to the Sargasso Sea.", "how do eels breed"
EXAMPLES = (("Knead the dough.", "bread how long"), ("A {query} in a text.", "what is {passage}"))


def rendered(ident: str) -> str:
    examples = EXAMPLES if single.PROMPTS[ident].examples == "needs" else ()
    (message,) = single.prompt(ident, examples).render(QUERY, [PASSAGE])
    assert message["role"] == "user"
    return message["content"]


@pytest.mark.parametrize("ident", single.PROMPTS)
def test_prompt_bytes(ident: str) -> None:
    assert rendered(ident) == (GOLDEN / f"{ident.partition('@')[0]}.txt").read_text("utf-8")


def test_hashes_tell_prompts_and_their_examples_apart() -> None:
    hashes = [
        single.prompt(ident, EXAMPLES if form.examples == "needs" else ()).hash
        for ident, form in single.PROMPTS.items()
    ]
    hashes += [single.prompt("question@1", EXAMPLES).hash, single.prompt("question@1", EXAMPLES[:1]).hash]
    hashes.append(single.prompt("promptagator@1", EXAMPLES[::-1]).hash)
    assert len(set(hashes)) == len(hashes)
    assert (
        single.prompt("umbrela@1").hash == "38cfc67471bc68f36a394b72b7b225d5"
    )  # a released prompt never changes


def test_names_are_completed_and_unknown_ones_refused() -> None:
    assert single.ident("inpars", single.GENERATE) == "inpars@1"
    for name, task in (
        ("umbrela", single.GENERATE),
        ("inpars@1", single.JUDGE),
        ("inpars@9", single.GENERATE),
    ):
        with pytest.raises(TeacherError, match="no prompt named"):
            single.ident(name, task)


@pytest.mark.parametrize(
    ("reply", "text", "status"),
    [
        ("how do eels breed", "how do eels breed", "ok"),
        (" how do eels breed\n", "how do eels breed", "ok"),
        ('"how do eels breed?"', "how do eels breed?", "repaired"),
        ("Query: how do eels breed", "how do eels breed", "repaired"),
        ("**Relevant Query:** how do eels breed", "how do eels breed", "repaired"),
        ("Good Question: how?\nBad Question: what?", "how?", "repaired"),
        ("Sure! Here is a query for the passage:\n\n1. how do eels breed", "how do eels breed", "repaired"),
        ("<think>eels, breeding</think>\nhow do eels breed", "how do eels breed", "ok"),
        ("what if I can't sleep", "what if I can't sleep", "ok"),
        ("why does my browser say connection refused", "why does my browser say connection refused", "ok"),
        ("what is http error 404", "what is http error 404", "ok"),
        ("```\nhow do eels breed\n```", "how do eels breed", "repaired"),
        ("Où fraient les anguilles ?", "Où fraient les anguilles ?", "ok"),
        ("", None, "wrong_format"),
        ("   \n ", None, "wrong_format"),
        ("???", None, "wrong_format"),
        ("Query:", None, "wrong_format"),
        ("I'm sorry, but I cannot write a query for this.", None, "refused"),
        ("Error: 500 Internal Server Error", None, "engine_error"),
        ('{"error": "overloaded"}', None, "engine_error"),
        ("<think>eels, bree", None, "truncated"),
        ("word " * 101, None, "wrong_format"),
    ],
)
def test_queries_in_replies(reply: str, text: str | None, status: str) -> None:
    found = read_query(reply)
    assert (found.text, found.status) == (text, status)


def test_a_query_that_breaks_off_is_none_and_one_before_it_counts() -> None:
    assert read_query("how do eels", "length").status == "truncated"
    assert read_query("how do eels breed\nwhere do", "length").text == "how do eels breed"


@pytest.mark.parametrize(
    ("reply", "grade", "status"),
    [
        *((f"##final score: {g}", g, "ok") for g in range(4)),
        ("##Final Score: 2.", 2, "ok"),
        ("M: 3, T: 2, O: 1\n##final score: 3", 3, "repaired"),
        ("**final score:** 2", 2, "repaired"),
        ("The final score is 3 because it answers the query.", 3, "repaired"),
        ('{"M": 2, "T": 1, "O": 1}', 1, "repaired"),
        ("It matches partly. The overall score (O): 2", 2, "repaired"),
        ("Relevance category 1", 1, "repaired"),
        ("It is about eels, category 1 in general, but here it is exact.\n3", 3, "repaired"),
        ("2", 2, "repaired"),
        ("(0)", 0, "repaired"),
        ("final score: 1. No, wait: final score: 2", 2, "repaired"),
        ("<think>final score: 0</think>##final score: 3", 3, "ok"),
        ("##final score: 4", None, "wrong_format"),
        ("##final score: -1", None, "wrong_format"),
        ("##final score: 2.5", None, "wrong_format"),
        ("10", None, "wrong_format"),
        ("The passage is about eels in 2024.", None, "wrong_format"),
        ("##final score: score", None, "wrong_format"),
        ("", None, "wrong_format"),
        ("I'm sorry, I can't judge this passage.", None, "refused"),
        ("Error code: 503", None, "engine_error"),
        ("<think>a final score: 2 would be", None, "truncated"),
    ],
)
def test_grades_in_replies(reply: str, grade: int | None, status: str) -> None:
    found = read_grade(reply)
    assert (found.grade, found.status) == (grade, status)


def test_a_grade_that_breaks_off_is_none() -> None:
    assert read_grade("Consider the underlying intent of the", "length").status == "truncated"
