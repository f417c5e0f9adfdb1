"""Replies to orders: the grammar, the repairs, and everything that must never yield an order."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.prompts import replies
from teachers.prompts.replies import ENGINE_ERROR, OK, REFUSED, REPAIRED, TRUNCATED, WRONG_FORMAT, parse


def identifiers(order: list[int]) -> str:
    return " > ".join(f"[{i + 1}]" for i in order)


@pytest.mark.parametrize(
    ("reply", "order"),
    [
        ("[2] > [1] > [3]", (1, 0, 2)),
        ("2] > [1] > [3]", (1, 0, 2)),  # the prompt supplied the first bracket
        ("\n [2]>[1]  >[3] \n", (1, 0, 2)),
        ("<think>is it [3] > [1]? no</think>[2] > [1] > [3]", (1, 0, 2)),
        ("<think>a</think>[1] > [2] > [3]</think>\n\n[2] > [1] > [3]", (1, 0, 2)),
        ("[２] > [１] > [３]", (1, 0, 2)),
        ("［2］ ＞ ［1］ ＞ ［3］", (1, 0, 2)),
        ("[٢] > [١] > [٣]", (1, 0, 2)),
    ],
)
def test_complete_lists_in_the_grammar_are_ok(reply: str, order: tuple[int, ...]) -> None:
    assert parse(reply, 3) == replies.Parsed(order, OK)


@pytest.mark.parametrize(
    ("reply", "order", "missing", "repeated", "out_of_range"),
    [
        ("[2] > [1]", (1, 0, 2), 1, 0, 0),
        ("[2] > [2] > [1] > [3]", (1, 0, 2), 0, 1, 0),
        ("[2] > [9] > [1] > [3] > [8]", (1, 0, 2), 0, 0, 2),
        ("[3] > [3] > [7] > [1]", (2, 0, 1), 1, 1, 1),
        ("Sure! [2] > [1] > [3].", (1, 0, 2), 0, 0, 0),
        ("The format is [1] > [2]. The ranking is [3] > [2] > [1]", (2, 1, 0), 0, 0, 0),
        ("e.g., [2] > [1] or rather [1] > [2]", (0, 1, 2), 1, 0, 0),
        ("2 > [1] > [3]", (1, 0, 2), 0, 0, 0),
        ("[2] [1] [3]", (1, 0, 2), 0, 0, 0),
        ("[2], [1], [3]", (1, 0, 2), 0, 0, 0),
        ("[No. 2] > [No. 1] > [No. 3]", (1, 0, 2), 0, 0, 0),
        ("```\n[2] > [1] > [3]\n```", (1, 0, 2), 0, 0, 0),
        ("[2] > [99999999999999999999] > [1] > [3]", (1, 0, 2), 0, 0, 1),
    ],
)
def test_repairs_are_counted(
    reply: str, order: tuple[int, ...], missing: int, repeated: int, out_of_range: int
) -> None:
    found = parse(reply, 3)
    assert (found.status, found.order) == (REPAIRED, order)
    assert (found.n_missing, found.n_repeated, found.n_out_of_range) == (missing, repeated, out_of_range)
    assert found.repairs == missing + repeated + out_of_range


ERRORS = [
    "Error code: 400 - {'error': {'message': \"maximum context length is 4097 tokens, you asked [3] > [1] > [2]\"}}",
    "ERROR::reduce_length",
    'Traceback (most recent call last):\n  File "a.py", line 3\nValueError: [2] > [1] > [3]',
    "openai.RateLimitError: rate limit reached for [2] > [1] > [3] requests",
    "HTTP 503 Service Unavailable [2] > [1] > [3]",
    '{"error": {"code": 429, "message": "[3] > [2] > [1]"}}',
    "<html><body>502 Bad Gateway [1] > [2] > [3]</body></html>",
    "Connection refused: [1] > [2] > [3]",
    "CUDA out of memory. Tried to allocate [2] > [1] GiB",
    "ReadTimeout(HTTPSConnectionPool [3] > [2])",
]
BROKEN_THOUGHTS = [
    "<think> passage [3] > [1] > [2] seems",
    "<think>",
    "[1] > [2] > [3] <think> but then [3] > [2] > [1]",
    "<think>a</think> so <think> [2] > [1] > [3]",
]


@pytest.mark.parametrize("reply", ERRORS)
def test_error_messages_never_yield_an_order(reply: str) -> None:
    assert parse(reply, 3) == replies.Parsed(None, ENGINE_ERROR)


@pytest.mark.parametrize("reply", BROKEN_THOUGHTS)
@pytest.mark.parametrize("finish", [None, "length", "stop"])
def test_thoughts_that_broke_off_never_yield_an_order(reply: str, finish: str | None) -> None:
    assert parse(reply, 3, finish_reason=finish) == replies.Parsed(None, TRUNCATED)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("I'm sorry, I cannot rank these passages.", REFUSED),
        ("[No passage is relevant to the search query.]", REFUSED),
        ("Not enough information to rank the passages. Please provide the passages.", REFUSED),
        ("As an AI language model I do not rank", REFUSED),
        ("", WRONG_FORMAT),
        ("   \n", WRONG_FORMAT),
        ("[] > []", WRONG_FORMAT),
        ("20 passages were provided.", WRONG_FORMAT),
        ("[²] > [①]", WRONG_FORMAT),  # no decimal digits: int() of them would raise or lie
        ("[7] > [8] > [9]", WRONG_FORMAT),
        ("The answer is passage 2.", WRONG_FORMAT),
        ("[A] > [B]", WRONG_FORMAT),
        ("[1] > [2] >", TRUNCATED),
        ("The ranking: [1] > [2] > [", TRUNCATED),
    ],
)
def test_what_states_no_order_has_none(reply: str, status: str) -> None:
    found = parse(reply, 3)
    assert (found.order, found.status) == (None, status)
    assert not found.usable


def test_the_length_limit_makes_an_incomplete_list_truncated() -> None:
    assert parse("[2] > [1]", 3, finish_reason="length").status == TRUNCATED
    assert parse("[2] > [1]", 3, finish_reason="length").order is None
    assert parse("Sure: [2] > [1]", 3, finish_reason="length").status == TRUNCATED
    assert parse("let me see", 3, finish_reason="length").status == TRUNCATED
    assert (
        parse("[2] > [1] > [3]", 3, finish_reason="length").status == OK
    )  # the list was whole when it was cut


def test_an_early_stop_settles_what_was_named() -> None:
    found = parse("[4] > [2]", 5, top=2)
    assert found == replies.Parsed((3, 1, 0, 2, 4), OK, settled=2)
    assert parse("[4]", 5, top=2).n_missing == 1


def test_letters() -> None:
    assert parse("[B] > [A] > [C]", 3, identifiers="letters") == replies.Parsed((1, 0, 2), OK)
    assert parse("B] > [A] > [C]", 3, identifiers="letters").status == OK
    found = parse("Ranking: [B] > [Z] > [A]", 3, identifiers="letters")
    assert (found.order, found.n_missing, found.n_out_of_range) == ((1, 0, 2), 1, 1)
    assert parse("A cat sat", 3, identifiers="letters").order is None
    assert parse("[2] > [1]", 3, identifiers="letters").order is None


@given(st.permutations(range(12)), st.sampled_from(["numbers", "letters"]))
def test_every_permutation_reads_back(order: list[int], kind: str) -> None:
    names = [str(i + 1) if kind == "numbers" else "ABCDEFGHIJKL"[i] for i in order]
    text = " > ".join(f"[{name}]" for name in names)
    assert parse(text, 12, identifiers=kind) == replies.Parsed(tuple(order), OK)


PIECES = st.sampled_from(
    [
        "[1]",
        "[2]",
        "[3]",
        "[9]",
        " > ",
        ">",
        "<think>",
        "</think>",
        "[",
        "]",
        "error",
        "1",
        "20",
        "²",
        "３",
        "\n",
        ".",
        "[A]",
        "No.",
    ]
)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(PIECES | st.text(max_size=6), max_size=40).map("".join),
    st.integers(1, 30),
    st.sampled_from([None, "stop", "length"]),
    st.sampled_from(["numbers", "letters"]),
    st.none() | st.integers(1, 30),
)
def test_any_text_gets_a_status_and_a_whole_order_or_none(
    text: str, n: int, finish: str | None, kind: str, top: int | None
) -> None:
    found = parse(text, n, finish_reason=finish, identifiers=kind, top=top)
    assert found.status in replies.STATUSES
    assert (found.order is not None) == (found.status in replies.USABLE)
    if found.order is not None:
        assert sorted(found.order) == list(range(n))
    if found.status == OK:
        assert found.repairs == 0


def test_a_megabyte_of_openings_is_read_in_bounded_work() -> None:
    for text in (
        "[1] > " * 200_000,
        "[" * 1_000_000,
        "1 " * 500_000,
        "<think>" * 100_000,
        "[1] >" + " " * 500_000,
    ):
        assert parse(text, 20).status in replies.STATUSES


def test_first_orders_by_the_best_log_probability_of_each_letter() -> None:
    found, scores = replies.from_logprobs(
        {" B": -0.5, "A": -1.0, "B": -2.0, "▁C": -3.0, "Z": -0.1, "the": -0.2}, 4
    )
    assert found.order == (1, 0, 2, 3)
    assert (found.status, found.n_missing, found.settled) == (REPAIRED, 1, 3)
    assert scores == (-1.0, -0.5, -3.0, None)
    found, scores = replies.from_logprobs({"A": -1.0, "B": -1.0}, 2)
    assert (found.order, found.status) == ((0, 1), OK)  # equals keep their prior order
    found, scores = replies.from_logprobs({"the": -0.1, "Q": float("nan")}, 20)
    assert (found.order, found.status) == (None, WRONG_FORMAT)


def test_a_permutation_is_as_good_as_its_worst_call() -> None:
    assert replies.worst(["ok", "repaired", "ok"]) == REPAIRED
    assert replies.worst(["truncated", "engine_error", "refused"]) == ENGINE_ERROR
    assert replies.worst([]) == OK


def real_replies(shared: Path) -> list[tuple[str, str, int]]:
    folder = shared / "llm-raw-outputs"
    with gzip.open(folder / "rankvicuna-vicuna-window-responses.jsonl.gz", "rt", newline="\n") as file:
        found = [("vicuna", row["response"], row["n"]) for row in map(json.loads, file)]
    with gzip.open(folder / "gpt-3.5-invalid-permutations.tsv.gz", "rt", newline="\n") as file:
        return found + [("gpt-3.5", line.rstrip("\n").split("\t", 1)[1], 20) for line in file]


def strictly_complete(text: str, n: int) -> bool:
    """The grammar once more, written otherwise than in the parser: no regular expression."""
    parts = text.strip().split(" > ")
    named = []
    for place, part in enumerate(parts):
        if not part.endswith("]") or not (part.startswith("[") or place == 0):
            return False
        number = part.removeprefix("[").removesuffix("]")
        if not (number.isascii() and number.isdigit()):
            return False
        named.append(int(number))
    return sorted(named) == list(range(1, n + 1))


@pytest.mark.needs("shared")
def test_all_real_replies_get_a_status_and_exactly_the_complete_ones_are_ok(shared: Path) -> None:
    found = real_replies(shared)
    assert len(found) == 19_858
    statuses: Counter[tuple[str, str]] = Counter()
    for source, text, n in found:
        parsed = parse(text, n)
        statuses[source, parsed.status] += 1
        assert (parsed.status == OK) == strictly_complete(text, n), text
        if parsed.order is not None:
            assert sorted(parsed.order) == list(range(n))
    assert sum(statuses.values()) == 19_858
    assert statuses["vicuna", OK] == 8_689
    assert statuses["gpt-3.5", OK] == 0  # a file of malformed permutations
    table = "\n".join(f"{source:8} {status:13} {n:6}" for (source, status), n in sorted(statuses.items()))
    print(table)
    assert dict(statuses) == {
        ("vicuna", OK): 8_689,
        ("vicuna", REPAIRED): 1_844,
        ("vicuna", WRONG_FORMAT): 23,
        ("vicuna", TRUNCATED): 1,
        ("gpt-3.5", REPAIRED): 9_057,
        ("gpt-3.5", TRUNCATED): 87,
        ("gpt-3.5", WRONG_FORMAT): 87,
        ("gpt-3.5", REFUSED): 70,
    }
