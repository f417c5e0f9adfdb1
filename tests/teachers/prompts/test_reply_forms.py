"""Lists in the forms that models write them, against a slow reader that shares nothing with the parser."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import reference_reader
from test_replies import real_replies

from teachers.prompts import replies
from teachers.prompts.replies import ENGINE_ERROR, OK, REFUSED, REPAIRED, TRUNCATED, WRONG_FORMAT, parse

ORDER = (1, 0, 2, 4, 3)


@pytest.mark.parametrize(
    "reply",
    [
        "[2 > 1 > 3 > 5 > 4]",
        "Ranking: [2 > 1 > 3 > 5 > 4].",
        "[1] > [0] > [2] > [4] > [3]",
        "[1, 0, 2, 4, 3]",
        '```json\n{"order": ["2", "1", "3", "5", "4"]}\n```',
        '["[2]", "[1]", "[3]", "[5]", "[4]"]',
        "[2]\\n[1]\\n[3]\\n[5]\\n[4]",
        "2 &#62; 1 &#62; 3 &#62; 5 &#62; 4",
        "[2] &amp;gt; [1] &amp;gt; [3] &amp;gt; [5] &amp;gt; [4]",
        r"[2] \u003e [1] \u003e [3] \u003e [5] \u003e [4]",
        "1) Document 2\n2) Document 1\n3) Document 3\n4) Document 5\n5) Document 4",
        "• [2]\n• [1]\n• [3]\n• [5]\n• [4]",
        "__[2]__ => __[1]__ => __[3]__ => __[5]__ => __[4]__",
        "【2】⇒【1】⇒【3】⇒【5】⇒【4】",
        "[2] > [1] > [3] > [5] > [4]\n\nThe page on `internal server error` comes last.",
    ],
)
def test_complete_lists_in_other_forms_are_read(reply: str) -> None:
    found = parse(reply, 5)
    assert (found.order, found.status, found.repairs) == (ORDER, REPAIRED, 0)


@pytest.mark.parametrize(
    ("reply", "order"),
    [
        ("[3] > [0] > [2] > [1]", (3, 0, 2, 1)),
        ("[3] > [0] > [2] > [1] > [3]", (3, 0, 2, 1)),
        ("0 > 3 > 1 > 2", (0, 3, 1, 2)),
        ("[4] > [1] > [3] > [2]", (3, 0, 2, 1)),
    ],
)
def test_complete_lists_that_count_from_0_are_read_so(reply: str, order: tuple[int, ...]) -> None:
    assert parse(reply, 4).order == order


@pytest.mark.parametrize(
    "reply", ["[2]", "[2] > [2] > [2]", "[3] > [1]", "I think [4] > [2].", "[9] > [1] > [8]"]
)
def test_fewer_than_half_is_no_ranking(reply: str) -> None:
    assert (parse(reply, 5).order, parse(reply, 5).status) == (None, WRONG_FORMAT)
    assert parse("[2] > [1]", 40, top=4).status == REPAIRED
    assert parse("[2]", 40, top=4).status == WRONG_FORMAT


@pytest.mark.parametrize(
    ("reply", "n", "order"),
    [
        ("[0] > [2] > [1]", 5, (0, 2, 1, 3, 4)),
        ("Ranking: [3] > [0] > [2].", 6, (3, 0, 2, 1, 4, 5)),
        ("[1] > [1] > [0] > [9]", 4, (1, 0, 2, 3)),
        ("[00] > [02] > [01]", 4, (0, 2, 1, 3)),
        ("0 > 2 > [1]", 4, (0, 2, 1, 3)),
        ("[0] > [1] > [3] > [3]", 5, (0, 1, 3, 2, 4)),
    ],
)
def test_a_list_with_a_0_counts_from_0_though_it_lacks_entries(
    reply: str, n: int, order: tuple[int, ...]
) -> None:
    found = parse(reply, n)
    assert (found.order, found.status) == (order, REPAIRED)


@pytest.mark.parametrize(
    ("reply", "n"),
    [
        ("[0] > [2] > [1] > [5]", 5),
        ("[3] > [2] > [1] > [0]", 3),
        ("0 > 4 > 2 > 3", 4),
        ("Here: [6], [0], [1], [2], [3], [4]", 6),
        ("[0] > [1] > [2] > [3] > [4] > [5]", 5),
    ],
)
def test_a_list_with_0_and_n_is_never_given_an_order(reply: str, n: int) -> None:
    assert (parse(reply, n).order, parse(reply, n).status) == (None, WRONG_FORMAT)


@pytest.mark.parametrize("window", range(1, 21))
def test_imported_permutations_replies_and_letters_have_one_rule_for_too_few(window: int) -> None:
    from labelstore.labels.label_list import LabelList, Malformed
    from labelstore.labels.repair import repair

    shown = [f"d{k}" for k in range(window)]
    for named in range(1, window + 1):
        imported = repair(LabelList("f:1", "q", shown[:named], initial=shown), replies.is_ranking)
        replied = parse(" > ".join(f"[{k + 1}]" for k in range(named)), window)
        lettered, _ = replies.from_logprobs({"ABCDEFGHIJKLMNOPQRST"[k]: -1.0 for k in range(named)}, window)
        enough = named >= window / 2
        assert (replied.order is not None) == (lettered.order is not None) == enough
        assert isinstance(imported, Malformed) == (not enough)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("Rate limit reached: [2] > [1] > [3] > [5] > [4]", ENGINE_ERROR),
        ("对不起，我不能排序。", REFUSED),
        ("申し訳ありません。", REFUSED),
        ("[2, 1]", WRONG_FORMAT),
        ("Passage 2 and passage 1", WRONG_FORMAT),
    ],
)
def test_what_is_no_complete_list_is_none_in_the_wide_grammar(reply: str, status: str) -> None:
    assert (parse(reply, 5).order, parse(reply, 5).status) == (None, status)


ITEMS = (
    *("[{}]",) * 6, "[[{}]]", "**[{}]**", "Passage {}", "[Doc {}]", "\\[{}\\]", "[No. {}]", "document #{}", "【{}】", "{}",
    "[ {} ]", "[Passage {}]", "`[{}]`", "#{}", "[[Passage {}]]", "{}]", '"[{}]"', "- [{}]", "__{}__", "\\u005b{}\\u005d",
)  # fmt: skip
JOINS = (
    *(" > ",) * 6, ">", " -> ", " → ", " &gt; ", ", ", "\n", "\n- ", " \\u003e ", " >> ", "; ", " | ", " = ", "\\n", " and ",
    "", " &amp;gt; ", " => ", "\n* ", "\n• ",
)  # fmt: skip
BEFORE = (
    *("",) * 6, "Sure! ", "The ranking:\n", "<think>[1] > [2]</think>", "**Answer** ", "Error code: 500 ", "I'm sorry. ",
    "For example [1] > [2]. ", "From 3 > 2 it follows: ", "<think>", "[", "order = ",
)  # fmt: skip
AFTER = (
    *("",) * 6, ".", "\n\nDone.", " (no rate limit)", " Hope this helps!", " >", " > [", " > [1", ", [", " [2] > [1]", "]", ", 7",
    " > 12 of them", " is the order of the passages",
)  # fmt: skip


def random_list(chance: random.Random, letters: bool, n: int) -> list[str]:
    """Names of a window, often all, at times with gaps, repeats and names of others; from 1 or from 0."""
    base = 0 if letters else chance.choice((0, 1, 1, 1))
    numbers = [k + base for k in chance.sample(range(n), n)]
    if chance.random() < 0.3:
        del numbers[chance.randrange(n) :]
    for _ in range(chance.choice((0, 0, 0, 0, 1, 2))):
        numbers.insert(chance.randint(0, len(numbers)), chance.randint(0, n + 3))
    return [chr(ord("A") + k) if letters else str(k) for k in numbers]


def random_reply(chance: random.Random, letters: bool, n: int) -> str:
    if chance.random() < 0.08:
        return chance.choice(
            ("I'm sorry, [1] is empty.", "I cannot rank 3 texts.", "No, I cannot.", "I'm sorry.")
        )
    names = random_list(chance, letters, n)
    if chance.random() < 0.3:
        return " > ".join(f"[{name}]" for name in names)
    form = chance.random()
    if form < 0.1:
        quoted = chance.choice(("{}", '"{}"', '"[{}]"'))
        body = "[" + ", ".join(quoted.format(name) for name in names) + "]"
        body = chance.choice(("{}", '{{"order": {}}}', "```json\n{}\n```")).format(body)
    elif form < 0.2:
        body = "[" + " > ".join(names) + "]"
    elif form < 0.3:
        line = chance.choice(("{}. [{}]", "{}) Passage {}", "Rank {}: [{}]", "{}. **[{}]**", "- {}. [{}]"))
        body = "\n".join(line.format(k, name) for k, name in enumerate(names, 1))
    else:
        item, join = chance.choice(ITEMS), chance.choice(JOINS)
        body = join.join((item if chance.random() < 0.98 else "[{}]").format(name) for name in names)
    return chance.choice(BEFORE) + body + chance.choice(AFTER)


@pytest.mark.parametrize("kind", ["numbers", "letters"])
@pytest.mark.parametrize("seed", [22, 1, 2, 3, 2026])
def test_random_replies_are_read_as_by_the_reference_reader(seed: int, kind: str) -> None:
    """1,000 each; those without an order and their statuses too."""
    chance = random.Random(f"{seed} {kind}")
    letters = kind == "letters"
    seen: Counter[str] = Counter()
    for _ in range(1_000):
        n = chance.randint(1, 20)
        finish = chance.choice((None, "stop", "stop", "length"))
        top = chance.choice((None, None, None, chance.randint(1, n)))
        reply = random_reply(chance, letters, n)
        found = parse(reply, n, identifiers=kind, finish_reason=finish, top=top)
        wanted = n if top is None else top
        status, order = reference_reader.read(reply, n, letters, finish == "length", wanted)
        said = (found.status, found.order and list(found.order))
        assert said == (status, order), (reply, n, finish, top)
        seen[status] += 1
    assert seen[OK] > 80, seen
    assert seen[REPAIRED] > 300, seen
    assert min(seen[s] for s in (WRONG_FORMAT, TRUNCATED, ENGINE_ERROR, REFUSED)) > 25, seen


@pytest.mark.needs("shared")
def test_real_replies_are_read_in_the_order_of_the_reference_reader(shared: Path) -> None:
    """Every tenth; it knows two phrases of refusals only."""
    n_read = 0
    for _, text, n in real_replies(shared)[::10]:
        found = parse(text, n)
        status, order = reference_reader.read(text, n, False, False, n)
        assert (found.order and list(found.order)) == order, (text, n)
        assert found.status in (status, REFUSED), (text, n)
        n_read += order is not None
    assert n_read > 1_900


@pytest.mark.parametrize(
    "part", ["[1] > ", "&gt;", "-", "[1,", "\\", "no ", "1. [2]\n", "[[1", "Passage 1 ", " "]
)
def test_a_megabyte_of_anything_is_bounded(part: str) -> None:
    text = part * (1_000_000 // len(part))
    assert parse(text, 20).order is None
    assert parse(f"{text}</think>[2] > [1]", 2).order == (1, 0)


LISTED = (
    "Passage", "passage", "PASSAGE", "doc", "No", "no.", "ID", "id", "#", "item", "res", "ult", "text", "Candidate",
    "Rank ", "rank ", "1", "2", "10", "A", "B", "Z", " ", "\t", "*", "_", "`", '"', "'", "$", "~", ",", ";", "=", "|",
    "-", "- ", ".", ")", "x", "hello",
)  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "most", "rate"), [(" \t\n\v\f\r\x1c\x1d\x1e\x1f*_`\"'$~a\x00\x7f", 16, 0.1), (LISTED, 14, 0.05)]
)
def test_the_quick_check_of_a_passage_is_the_slow_one(parts: Sequence[str], most: int, rate: float) -> None:
    drawn = Random(7)
    found = 0
    for _ in range(5_000):
        text = "".join(drawn.choices(parts, k=drawn.randint(2, most)))
        slow = replies._LONG_AROUND.search(text) or replies._MAYBE_LISTED.search(text)
        assert replies.may_name_passages(text) == (slow is not None or "\0" in text), repr(text)
        found += slow is not None
    assert 5_000 * rate < found < 4_750
    assert all(replies.may_name_passages(f"a {mark} b") for mark in "[>&\\<:")
