"""Prepare passages and queries for a prompt: clean, short, and without text that could pass for part of the prompt.

Steps, in this order: cut to the length that can matter (1 MB costs no more than a page); repair mojibake (ftfy); drop
control, format and direction marks; fold white space; keep the first 300 words; write identifiers ``[3]`` as ``(3)``;
break up special tokens of every known chat template and of the model's tokenizer. The last two steps are repeated
until nothing changes, so that a removal cannot build a new token.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.prompts.replies import identifiers_neutralised, may_name_passages

MAX_WORDS = 300
MAX_QUERY_WORDS = 100
MAX_CHARS = 12_000  # long enough for 300 words of any language; texts without spaces are cut here
FLOOR_WORDS = 10
FLOOR_CHARACTERS = 40

# Markers of chat formats that the generic patterns below do not match. They are broken up for every model, because a
# text must not imitate a turn of any model's format.
_MARKERS = """<s> </s> <unk> <pad> <mask> <bos> <eos> <cls> <sep> [INST] [/INST] <<SYS>> <</SYS>> [CLS] [SEP] [PAD] [MASK]
    [UNK] [BOS] [EOS] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [SYSTEM_PROMPT]
    [/SYSTEM_PROMPT] [IMG] [THINK] [/THINK] <start_of_turn> <end_of_turn> <start_of_image> <think> </think> <tool_call>
    </tool_call> <tool_response> </tool_response> <|user|> <|system|> <|assistant|> <|im_start|> <|im_end|>
    <|endoftext|> <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|>
    <|python_tag|> <|end|> <|channel|> <|message|> <|start|> <|return|> <|START_OF_TURN_TOKEN|>
    <|END_OF_TURN_TOKEN|> <BOS_TOKEN> <EOS_TOKEN> <|tool_call_begin|> <fim_prefix> <fim_suffix> <fim_middle>
    """
TEMPLATE_TOKENS = frozenset(_MARKERS.split())
# Turn markers in plain text: in `{system} USER: {user} ASSISTANT:` only their spelling sets them apart.
_ROLE = re.compile(r"\b(USER|ASSISTANT|SYSTEM)(?=\s*:)")

# Markers of chat templates by their shape, because a list becomes outdated. The forms of identifiers are in replies.py.
_SHAPES = re.compile(
    r"""<(?=[^<>\s]{1,40}>)/?(?:[a-z]{1,12}_of_(?:turn|image|text|sentence|audio|video)|reserved_\d{1,6}|unused_?\d{1,6}
          |extra_id_\d{1,6}|(?:user|assistant|system|bot|human|sop|eop|eod)_?(?:token)?)>
      |\[/?(?:g|s)?MASK\]
      |\[/?\|[^\[\]|\n]{1,40}\|\]|\[/?(?:INST|SYS|SYSTEM|USER|ASSISTANT|unused\d{1,6})\]
      |\#{2,6}\s*(?=(?:Instruction|Response|Input|Assistant|User|Human|System|Answer|Output|Question)s?\s*:)""",
    re.I | re.X,
)
_BAR_TOKEN = re.compile(r"<(/?\|[^<>\n]{0,64}?\|)>|<(\|[^<>|\n]{0,64})>|<([^<>|\n]{0,64}\|)>")
_HEAD = re.compile(r"\b(passage|document)\s*[\"'(\[]{0,2}([A-Z]|\d{1,6})[\"')\]]{0,2}\s*:", re.I)
_BRACKETS = str.maketrans(
    {"＜": "<", "﹤": "<", "＞": ">", "﹥": ">", "［": "[", "］": "]", "｜": "|", "¦": "|"}
)
_PARENTHESES = str.maketrans("<>[]", "()()")
_WORD = re.compile(r"\S+")
_LINES = str.maketrans("\n\r\t", "   ")
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True, eq=False)
class Neutraliser:
    """Break up identifiers and special tokens in texts; made once per model by :func:`neutraliser`."""

    pattern: re.Pattern[str]
    bracketed: bool = False  # whether each token has a < or [, as for most models

    def __call__(self, text: str) -> str:
        """Return `text` without anything that a model could take for the prompt's markup; idempotent."""
        if self.bracketed and text.isascii() and not may_name_passages(text):
            return text  # most passages contain nothing that matches below
        text = text.translate(_BRACKETS)
        while True:
            changed = identifiers_neutralised(text)
            changed = _SHAPES.sub(lambda m: _unshaped(m[0]), changed)
            changed = _BAR_TOKEN.sub(lambda m: f"({m[1] or m[2] or m[3]})", changed)
            changed = self.pattern.sub(lambda m: _broken(m[0]), changed)
            changed = _ROLE.sub(lambda m: f"{m[1]} -", changed)
            if changed == text:
                return text
            text = changed


def _unshaped(marker: str) -> str:
    return marker.translate(_PARENTHESES).replace("|", "").replace("#", "")


def _broken(token: str) -> str:
    """Rewrite a special token so that it no longer is one: ``<s>`` as ``(s)``, ``EOT`` as ``E OT``."""
    plain = token.translate(_PARENTHESES)
    return plain if plain != token else f"{token[0]} {token[1:]}"


@lru_cache(maxsize=64)
def neutraliser(special_tokens: frozenset[str] = frozenset()) -> Neutraliser:
    """Make a neutraliser for all known chat formats and the `special_tokens` of a model (:func:`special_tokens`)."""
    known = TEMPLATE_TOKENS | {t.translate(_BRACKETS) for t in special_tokens} | special_tokens
    tokens = sorted((t for t in known if len(t.strip()) > 1), key=lambda t: (-len(t), t))
    pattern = re.compile("|".join(re.escape(t) for t in tokens), re.IGNORECASE)
    return Neutraliser(pattern, all("<" in t or "[" in t for t in tokens))


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Return all tokens that a Hugging Face tokenizer recognises whole in plain text: special and added tokens."""
    found = set(getattr(tokenizer, "all_special_tokens", []))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found |= {str(getattr(token, "content", token)) for token in added.values()}
    return frozenset(t for t in found if t.strip() and not t.isspace())


def clean(text: str, max_words: int = MAX_WORDS, max_chars: int = MAX_CHARS) -> str:
    """Repair `text` and put it on one line, at most `max_words` white-space words and `max_chars` characters long."""
    import ftfy

    head = _head(text, max_words, max_chars)
    if head.isascii() and "&" not in head:
        printable = head.isprintable()
        if printable and len(head) <= 2 * max_words and "  " not in head:
            return head.strip()  # already clean, and too short for too many words
        plain = head if printable else head.translate(_LINES)
        if printable or plain.isprintable():  # nothing to repair or drop
            return " ".join(plain.split()[:max_words])
    head = head.encode("utf-8", "replace").decode("utf-8")  # lone surrogates
    head = _visible(ftfy.fix_text(head))
    return " ".join(head.split()[:max_words])


def _head(text: str, max_words: int, max_chars: int) -> str:
    """Return the part of a text that can reach the prompt.

    Repairs hardly change the length, so twice the words are enough.
    """
    head = text[: 4 * max_chars]
    if len(head) > 4 * max_words:  # a shorter text cannot have too many words
        for k, word in enumerate(_WORD.finditer(head), 1):
            if k == 2 * max_words:
                head = head[: word.end()]
                break
    return head[:max_chars] if len(head) > max_chars else head


def _visible(text: str) -> str:
    """Drop control, format (direction marks, zero width) and private characters; white space stays white space.

    The joiners needed by Persian, Hindi and emoji stay after a character beyond ASCII.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = []
    previous = ""
    for character in text:
        if character.isspace():
            kept.append(" ")
        elif character in _JOINERS:
            if previous and not previous.isascii() and previous not in _JOINERS:
                kept.append(character)
        elif unicodedata.category(character)[0] != "C":
            kept.append(character)
        previous = character
    return "".join(kept)


@lru_cache(maxsize=4096)  # queries share passages; so many take about 10 MB
def passage(title: str | None, text: str, neutralise: Neutraliser, max_words: int = MAX_WORDS) -> str:
    """Prepare a passage for a prompt; with a title it becomes ``Title: T Content: C``."""
    if title and title.strip():
        text = f"Title: {clean(title, max_words)} Content: {_head(text, max_words, MAX_CHARS)}"
    return neutralise(clean(text, max_words))


def without_labels(text: str) -> str:
    """Break up what could pass for the head of another passage (``Passage B:``); a prepared text stays prepared."""
    return _HEAD.sub(lambda m: f"{m[1]} ({m[2]}) -", text)


def query(text: str, neutralise: Neutraliser, max_words: int = MAX_QUERY_WORDS) -> str:
    """Prepare a query for a prompt."""
    return neutralise(clean(text, max_words))


def cut(text: str, words: int) -> str:
    """Return the first `words` words of a prepared text."""
    parts = text.split(" ", words)
    return " ".join(parts[:words])


@dataclass(frozen=True)
class Fitted:
    """Passages that fit the context.

    Attributes:
        words: words kept per passage if they had to be shortened to fit; otherwise None.
        n_tokens: prompt tokens of the result.
    """

    passages: tuple[str, ...]
    words: int | None
    n_tokens: int


def fit(
    passages: Sequence[str],
    count_prompt_tokens: Callable[[Sequence[str]], int],
    limit: int,
    floor: int = FLOOR_WORDS,
) -> Fitted:
    """Shorten all passages evenly until the prompt fits, to the largest possible number of words per passage.

    Args:
        count_prompt_tokens: returns the tokens of the whole prompt with these passages.
        limit: most tokens of the prompt: the context less the reserved output.
        floor: fewest words per passage; a prompt that needs fewer is refused.

    Raises:
        TeacherError: if the prompt does not fit at the floor.
    """
    n_tokens = count_prompt_tokens(passages)
    if n_tokens <= limit:
        return Fitted(tuple(passages), None, n_tokens)
    longest = max(len(p.split(" ")) for p in passages)
    low, high = min(floor, longest), longest
    shortest = [cut(p, low) for p in passages]
    best = Fitted(tuple(shortest), low, count_prompt_tokens(shortest))
    if best.n_tokens > limit:
        raise TeacherError(
            f"{len(passages)} passages of {low} words take {best.n_tokens} tokens, and {limit} are left of the context",
            hint="give a smaller --window, or a model with a longer context",
            exit_code=ExitCode.TEACHER_ENGINE,
        )
    while low < high - 1:
        middle = (low + high) // 2
        shorter = [cut(p, middle) for p in passages]
        tokens = count_prompt_tokens(shorter)
        if tokens <= limit:
            low, best = middle, Fitted(tuple(shorter), middle, tokens)
        else:
            high = middle
    return best


def fit_characters(
    passages: Sequence[str], count_prompt_tokens: Callable[[Sequence[str]], int], limit: int
) -> Fitted:
    """Cut passages to the largest number of characters that fits; for texts that have no word boundaries.

    Raises:
        TeacherError: if the prompt does not fit with 40 characters each.
    """
    low, high = FLOOR_CHARACTERS, max(map(len, passages))
    best = [text[:low] for text in passages]
    tokens = count_prompt_tokens(best)
    if tokens > limit:
        raise TeacherError(
            f"{len(passages)} passages of {low} characters take {tokens} tokens, and {limit} are left of the context",
            hint="give a smaller --window, or a model with a longer context",
            exit_code=ExitCode.TEACHER_ENGINE,
        )
    while low < high - 1:
        middle = (low + high) // 2
        shorter = [text[:middle] for text in passages]
        n_tokens = count_prompt_tokens(shorter)
        if n_tokens <= limit:
            low, best, tokens = middle, shorter, n_tokens
        else:
            high = middle
    words = max(len(text.split(" ")) for text in best)
    return Fitted(tuple(best), words, tokens)
