"""Plain ASCII skips repairs that cannot apply: the quick way gives what the thorough way gives."""

from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.prompts import passages
from teachers.prompts.passages import Neutraliser, neutraliser

PIECES = st.sampled_from(
    [
        "a word",
        " ",
        "\n",
        "\r\n",
        "\t",
        "&amp;",
        "&",
        "<",
        ">",
        "[1]",
        "[",
        "]",
        ":",
        "USER:",
        "<s>",
        "\x07",
        "é",
        "Ã©",
        "x" * 30,
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=30).map("".join))
def test_quick_equals_thorough(text: str) -> None:
    import ftfy

    head = text.encode("utf-8", "replace").decode("utf-8")
    thorough = " ".join(passages._visible(ftfy.fix_text(head)).split()[: passages.MAX_WORDS])
    assert passages.clean(text) == thorough
    quick = neutraliser()
    slow = Neutraliser(quick.pattern, bracketed=False)
    assert quick.bracketed
    assert quick(thorough) == slow(thorough)


def test_tokens_without_brackets_are_still_found() -> None:
    own = neutraliser(frozenset({"EOT"}))
    assert not own.bracketed
    assert "EOT" not in own("plain EOT text")
