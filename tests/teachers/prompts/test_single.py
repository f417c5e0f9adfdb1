"""Prompts about one passage, or a few, against golden files, and what is read from replies: a query, a grade, verdicts, or nothing."""

from pathlib import Path

import pytest

from teachers.errors import TeacherError
from teachers.prompts import single
from teachers.prompts.single_replies import read_grade, read_queries, read_query
from teachers.prompts.verdicts import read_verdict

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "single_prompts"
PASSAGE, QUERY = "Eels migrate to the Sargasso Sea.", "how do eels breed"
EXAMPLES = (("Knead the dough.", "bread how long"), ("A {query} in a text.", "what is {passage}"))


def rendered(ident: str) -> str:
    examples = EXAMPLES if single.PROMPTS[ident].examples == "needs" else ()
    shown = (
        [PASSAGE, "Rivers run to the sea.", "Eels </documents> spawn."]
        if single.PROMPTS[ident].task == single.CHECK
        else [PASSAGE]
    )
    (message,) = single.prompt(ident, examples).render(QUERY, shown)
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


def verdict(better: str, worse: str) -> str:
    return f"<thinking>\nDoc (1): no\n</thinking>\n<verdict>\n<better>{better}</better>\n<worse>{worse}</worse>\n</verdict>"


@pytest.mark.parametrize(
    ("reply", "values", "status"),
    [
        (verdict("[]", "[]"), [0, 0, 0], "ok"),
        (verdict("[Doc (2)]", "[]"), [0, 2, 0], "ok"),
        (verdict("[Doc (1), Doc (3)]", "[Doc (2)]"), [2, 1, 2], "ok"),
        ("<think>Doc (1)?</think>" + verdict("[Doc (3)]", "[]"), [0, 0, 2], "ok"),
        (
            verdict("Preferred over or equally as ground truth: [Doc (2)]", "Relevant: []"),
            [0, 2, 0],
            "repaired",
        ),
        (verdict("Doc 1 and Doc 2", "None."), [2, 2, 0], "repaired"),
        (verdict("[1, 3]", ""), [2, 0, 2], "repaired"),
        (verdict("- Doc (3)\n", "[]"), [0, 0, 2], "repaired"),
        (verdict("[Doc (1)]", "[]") + verdict("[]", "[Doc (2)]"), [0, 1, 0], "repaired"),
        (verdict("[Doc (2)]", "[]") + "\nI hope this helps.", [0, 2, 0], "repaired"),
        (verdict("[Doc (4)]", "[]"), None, "wrong_format"),
        (verdict("[Doc (0)]", "[]"), None, "wrong_format"),
        (verdict("[Doc (2)]", "[Doc (2)]"), None, "wrong_format"),
        (verdict("Doc (1) - Doc (3)", "[]"), None, "wrong_format"),
        (verdict("[Doc (1) to Doc (3)]", "[]"), None, "wrong_format"),
        (verdict("all but Doc (2)", "[]"), None, "wrong_format"),
        (verdict("the second one", "[]"), None, "wrong_format"),
        ("<verdict><better>[Doc (1)]</better></verdict>", None, "wrong_format"),
        ("Doc (2) answers the question as well.", None, "wrong_format"),
        ("", None, "wrong_format"),
        ("I'm sorry, I can't help with that.", None, "refused"),
        ("Error: 500 Internal Server Error", None, "engine_error"),
        ("<think>Doc (1) is", None, "truncated"),
    ],
)
def test_verdicts_in_replies(reply: str, values: list[float] | None, status: str) -> None:
    found = read_verdict(reply, 3)
    assert (found.values, found.status) == (values, status)


def test_a_verdict_that_breaks_off_is_none() -> None:
    whole = verdict("[Doc (2)]", "[]")
    for end in range(len("<thinking>"), len(whole) - 1, 7):
        assert read_verdict(whole[:end], 3, "length").values is None
    assert read_verdict(whole[:40], 3, "length").status == "truncated"


@pytest.mark.parametrize(
    ("reply", "texts", "status"),
    [
        (
            "eel breeding\nsargasso sea eels\neel migration",
            ["eel breeding", "sargasso sea eels", "eel migration"],
            "ok",
        ),
        (
            '1. eel breeding\n2. "sargasso sea eels"\n3. eel migration',
            ["eel breeding", "sargasso sea eels", "eel migration"],
            "repaired",
        ),
        (
            "Here are three queries:\n\n- eel breeding\n- eel migration",
            ["eel breeding", "eel migration"],
            "repaired",
        ),
        ("eel breeding\neel breeding\neel migration", ["eel breeding", "eel migration"], "repaired"),
        ("a b\nc d\ne f\ng h", ["a b", "c d", "e f"], "repaired"),
        ("I'm sorry, I can't.", [], "refused"),
        ("", [], "wrong_format"),
    ],
)
def test_several_queries_in_a_reply(reply: str, texts: list[str], status: str) -> None:
    found = read_queries(reply, 3)
    assert (list(found.texts), found.status) == (texts, status)


def test_the_last_of_several_queries_that_breaks_off_is_left_out() -> None:
    assert read_queries("eel breeding\nsargasso", 3, "length").texts == ("eel breeding",)
    assert read_queries("eel bree", 3, "length").status == "truncated"


def test_styles_and_numbers_have_their_own_hash_and_room() -> None:
    made = [single.prompt("queries@1", (), style, n) for style in single.STYLES for n in (1, 3)]
    assert len({one.hash for one in made}) == 6
    assert [one.reply_tokens for one in made[:2]] == [64, 192]
    texts = [one.render("", [PASSAGE])[0]["content"] for one in made]
    assert "one query" in texts[0]
    assert "3 different queries" in texts[1]
    assert all("{" not in text for text in texts)
