"""The boundary to OpenAI-compatible servers: whatever JSON comes back becomes text and counts of known types."""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from teachers.journal.exact_json import clean

MAX_BODY = 8 << 20  # bytes of an answer, decompressed; a ranking of 1,000 passages takes a few thousand
MAX_TOKENS = 10_000_000  # a larger count is no count
LONGEST_TOKEN = (
    32  # bytes of text, on the average; English takes 4 to 5, scripts of three bytes a character up to 15
)
MAX_REASON = 64  # characters of a finish reason that are kept


class BadAnswer(Exception):
    """The server's answer cannot be read as a completion.

    Args:
        what: is wrong.
        sent: what the server sent there, whole: secrets are masked in it before it is cut.
    """

    def __init__(self, what: str, sent: str = "") -> None:
        super().__init__(what)
        self.what, self.sent = what, sent

    def message(self, mask: Callable[[str], str]) -> str:
        """What is wrong, with the beginning of what was sent."""
        return mask(self.what) + (f": {mask(self.sent)[:200]}" if self.sent else "")


@dataclass(frozen=True)
class Answer:
    """A readable answer. Counts are None where the server sent none, or sent one that cannot be true."""

    text: str
    finish_reason: str | None
    tokens_in: int | None
    tokens_out: int | None
    logprobs: dict[str, float] | None


def receive(response: httpx.Response) -> httpx.Response:
    """Read a streamed response whole, never more of it than `MAX_BODY`.

    Raises:
        BadAnswer: if a good answer is larger or cannot be decoded; an error's status is enough to act on.
    """
    try:
        body = _decoded(response)
    except BadAnswer as error:
        if response.status_code < 400:
            raise
        body = str(error).encode()
    headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in _OF_THE_BODY]
    return httpx.Response(response.status_code, headers=headers, content=body)


_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's numbers; none was asked for, some servers do it


def _decoded(response: httpx.Response) -> bytes:
    """The body, unpacked no further than its bound: httpx would unpack each piece whole."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", *_WINDOWS):
        raise BadAnswer(f"the answer's content-encoding is {encoding[:60]!r}, not gzip, deflate or identity")
    unpack = zlib.decompressobj(_WINDOWS[encoding]) if encoding in _WINDOWS else None
    body = bytearray()
    try:
        for piece in response.iter_raw():
            body += unpack.decompress(piece, MAX_BODY + 1 - len(body)) if unpack is not None else piece
            if len(body) > MAX_BODY:
                raise BadAnswer(f"the answer is larger than {MAX_BODY >> 20} MB")
    except zlib.error as error:
        raise BadAnswer(f"the answer's content-encoding does not fit its bytes: {error}") from error
    if unpack is not None and not unpack.eof:
        raise BadAnswer("the answer's content-encoding does not fit its bytes: they end too early")
    return bytes(body)


def read(body: bytes, raw: bool) -> Answer:
    """Read a completion (`raw`) or a chat completion.

    Raises:
        BadAnswer: with the field that is missing or of the wrong type.
    """
    answer = _object(load(body), "the answer")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _no("choices", choices, "a list with a choice")
    choice = _object(choices[0], "the choice")
    message = choice if raw else _object(choice.get("message"), "the message")
    text = _text(message.get("text" if raw else "content"))
    reason = choice.get("finish_reason")
    refusal = message.get("refusal")
    if not text and isinstance(refusal, str) and refusal:
        text, reason = refusal, "content_filter"
    usage = answer.get("usage")
    counts: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    return Answer(
        clean(text),
        clean(reason) if isinstance(reason, str) else None,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
        _first_position(choice.get("logprobs")),
    )


def load(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        BadAnswer: if it is not JSON, or nested deeper than Python follows.
    """
    try:
        return json.loads(body.decode("utf-8", "replace"))
    except RecursionError as error:
        raise BadAnswer("the answer's JSON is nested too deep") from error
    except ValueError as error:
        said = str(error).partition(":")[0]
        raise BadAnswer(f"the answer is not JSON ({said})", body.decode("utf-8", "replace")) from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _no(what, value, "an object")
    return value


def _text(content: Any) -> str:
    """A message's content as text: a string, parts of text, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise _no("content", content, "text")


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None  # NaN fails the first


def believed(count: int | None, text: str, most: int) -> int | None:
    """A server's count of a text's tokens, or None where it sent none or one that cannot be true.

    Args:
        most: that the text can have. The least is a token for every :data:`LONGEST_TOKEN` bytes.
    """
    least = -(-len(text.encode("utf-8", "replace")) // LONGEST_TOKEN)
    return None if count is None or not least <= count <= most else count


def _first_position(logprobs: Any) -> dict[str, float] | None:
    """Token text -> log-probability at the first position, from either endpoint's form; None where there are none."""
    if not isinstance(logprobs, dict):
        return None
    content, top = logprobs.get("content"), logprobs.get("top_logprobs")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, list) and content and isinstance(content[0], dict):
        entries = content[0].get("top_logprobs")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                pairs.append((entry.get("token"), entry.get("logprob")))
    elif isinstance(top, list) and top and isinstance(top[0], dict):
        pairs = list(top[0].items())
    found = {
        token: float(value)
        for token, value in pairs
        if isinstance(token, str) and isinstance(value, int | float) and -1e6 < value < 1e6
    }
    return found or None


def as_text(value: Any) -> str:
    """A value of any type as a message shows it."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:  # what could just be read may be too deep to be written
        return f"a deeply nested {type(value).__name__}"


def _no(what: str, value: Any, wanted: str) -> BadAnswer:
    kind = "missing" if value is None else f"of type {type(value).__name__}"
    return BadAnswer(f"{what} is {kind}, not {wanted}", as_text(value))
