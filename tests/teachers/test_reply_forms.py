"""Complete lists in the forms that models write them, against a slow reader that shares nothing with the parser."""

import random

import pytest

from teachers.prompts.replies import ENGINE_ERROR, OK, REFUSED, REPAIRED, WRONG_FORMAT, parse

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


@pytest.mark.parametrize("named", range(1, 12))
def test_imported_permutations_and_replies_have_one_rule(named: int) -> None:
    from labelstore.labels.label_list import LabelList, Malformed
    from labelstore.labels.repair import repair

    shown = [f"d{k}" for k in range(11)]
    imported = repair(LabelList("f:1", "q", shown[:named], initial=shown))
    replied = parse(" > ".join(f"[{k + 1}]" for k in range(named)), 11)
    assert isinstance(imported, Malformed) == (replied.order is None)


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
    "[{}]",
    "[[{}]]",
    "**[{}]**",
    "Passage {}",
    "[Doc {}]",
    "\\[{}\\]",
    "[No. {}]",
    "document #{}",
    "【{}】",
    "{}",
)
JOINS = (" > ", ">", " -> ", " → ", " &gt; ", ", ", "\n", "\n- ", " \\u003e ", " >> ")
BEFORE = ("", "Sure! ", "The ranking:\n", "<think>[1] > [2]</think>", "**Answer** ")
AFTER = ("", ".", "\n\nDone.", " (no rate limit)", " Hope this helps!")


def slow_reader(reply: str) -> list[int]:
    """The numbers of a reply's answer, character by character, in their order."""
    answer = reply.split("</think>")[-1]
    for entity in ("\\u003e", "&gt;"):
        answer = answer.replace(entity, ">")
    numbers: list[int] = []
    digits = ""
    for character in answer + " ":
        if character in "0123456789":
            digits += character
        elif digits:
            numbers.append(int(digits))
            digits = ""
    return numbers


def slow_order(numbers: list[int], n: int) -> list[int]:
    base = 0 if 0 in numbers and n not in numbers and set(range(n)) <= set(numbers) else 1
    order: list[int] = []
    for number in numbers:
        if 0 <= number - base < n and number - base not in order:
            order.append(number - base)
    return order + [k for k in range(n) if k not in order]


def test_ten_thousand_random_replies_never_get_another_order() -> None:
    chance = random.Random(22)
    n_read = n_whole = 0
    for _ in range(10_000):
        n = chance.randint(2, 20)
        base = chance.choice((0, 1, 1, 1))
        numbers = [k + base for k in chance.sample(range(n), n)]
        if chance.random() < 0.3:
            del numbers[chance.randrange(n) :]
        for _ in range(chance.choice((0, 0, 0, 1, 2))):
            numbers.insert(chance.randint(0, len(numbers)), chance.randint(0, n + 3))
        item, join = chance.choice(ITEMS), chance.choice(JOINS)
        body = join.join((item if chance.random() < 0.98 else "[{}]").format(k) for k in numbers)
        if chance.random() < 0.1:
            body = "[" + ", ".join(map(str, numbers)) + "]"
        elif chance.random() < 0.1:
            body = "[" + " > ".join(map(str, numbers)) + "]"
        reply = chance.choice(BEFORE) + body + chance.choice(AFTER)
        found = parse(reply, n)
        if found.order is None:
            continue
        n_read += 1
        n_whole += found.status == OK
        assert list(found.order) == slow_order(slow_reader(reply), n), (reply, n, found)
    assert n_read > 4_000
    assert n_whole > 0


@pytest.mark.parametrize(
    "part", ["[1] > ", "&gt;", "-", "[1,", "\\", "no ", "1. [2]\n", "[[1", "Passage 1 ", " "]
)
def test_a_megabyte_of_anything_is_bounded(part: str) -> None:
    text = part * (1_000_000 // len(part))
    assert parse(text, 20).order is None
    assert parse(f"{text}</think>[2] > [1]", 2).order == (1, 0)
