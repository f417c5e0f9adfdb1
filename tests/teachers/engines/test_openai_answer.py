"""The boundary to servers: any JSON gives an answer of known types or a named refusal, never another error."""

import gzip
import json
import math
import zlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachers.engines.openai_answer import MAX_BODY, Answer, BadAnswer, plausible_count, read, receive
from teachers.prompts.replies import REFUSED, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def body(
    content: object = "[1] > [2]", usage: object = None, reason: object = "stop", **more: object
) -> bytes:
    message = {"role": "assistant", "content": content, **more}
    answer = {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}
    return json.dumps(answer).encode()


@given(content=JSON, usage=JSON, reason=JSON, refusal=JSON, logprobs=JSON, tokens=JSON)
def test_any_json_in_every_field_is_an_answer_or_a_bad_answer(
    content: object, usage: object, reason: object, refusal: object, logprobs: object, tokens: object
) -> None:
    choice = {
        "message": {"content": content, "refusal": refusal},
        "finish_reason": reason,
        "logprobs": logprobs,
    }
    for counts in (usage, {"prompt_tokens": tokens, "completion_tokens": tokens}):
        try:
            answer = read(json.dumps({"choices": [choice], "usage": counts}).encode(), raw=False)
        except BadAnswer:
            continue
        assert isinstance(answer, Answer)
        answer.text.encode()  # a half surrogate pair would raise
        assert "\0" not in answer.text
        for count in (answer.tokens_in, answer.tokens_out):
            assert count is None or (type(count) is int and 0 <= count <= 10_000_000)
        assert answer.finish_reason is None or isinstance(answer.finish_reason, str)


@given(JSON)
def test_any_json_as_the_whole_answer(value: object) -> None:
    with pytest.raises(BadAnswer):
        read(json.dumps([value]).encode(), raw=False)
    with pytest.raises(BadAnswer):
        read(json.dumps({"choices": value if not isinstance(value, list) else []}).encode(), raw=True)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "[2] > "}, {"type": "text", "text": "[1]"}], "[2] > [1]"),
        (["[2]", " > [1]"], "[2] > [1]"),
        ("[2] > [1] \ud83d", "[2] > [1] \ufffd"),
        ("[2]\0", "[2]\ufffd"),
        (None, ""),
    ],
)
def test_content_becomes_text(content: object, text: str) -> None:
    assert read(body(content), raw=False).text == text


@pytest.mark.parametrize("content", [5, 1.5, True, {"text": "[1]"}, [{"type": "image_url"}], [[]]])
def test_content_that_is_not_text_is_named(content: object) -> None:
    with pytest.raises(BadAnswer, match="content is"):
        read(body(content), raw=False)


@pytest.mark.parametrize("count", ["many", [1], -3, 1.5, math.nan, math.inf, 10**30, True, {}])
def test_counts_that_cannot_be_true_are_left_out(count: object) -> None:
    answer = read(body(usage={"prompt_tokens": count, "completion_tokens": 7}), raw=False)
    assert (answer.tokens_in, answer.tokens_out) == (None, 7)


def test_a_refusal_field_is_a_refusal() -> None:
    answer = read(body(None, refusal="No."), raw=False)
    assert parse(answer.text, 5, finish_reason=answer.finish_reason).status == REFUSED


@pytest.mark.parametrize("broken", [b"[" * 100_000, b'{"choices"', b"", b"\xff\xfe", b'{"choices": []}'])
def test_bodies_that_are_no_answer(broken: bytes) -> None:
    with pytest.raises(BadAnswer):
        read(broken, raw=False)


def coded(data: bytes, encoding: str, status: int = 200) -> httpx.Response:
    return httpx.Response(status, headers={"content-encoding": encoding}, stream=httpx.ByteStream(data))


@pytest.mark.parametrize(
    ("data", "encoding", "words"),
    [
        (b"no gzip", "gzip", "does not fit"),
        (gzip.compress(b"{}", mtime=0)[:-3], "gzip", "too early"),
        (b"", "deflate", "too early"),
        (b"{}", "br", "content-encoding is 'br'"),
        (b"{}", "gzip, gzip", "content-encoding is"),
        (b"{}", "x" * 5000, "content-encoding is"),
        (gzip.compress(bytes(64 << 20)), "gzip", "larger than"),
        (zlib.compress(bytes(32 << 20)), "deflate", "larger than"),
        (b" " * (MAX_BODY + 1), "identity", "larger than"),
    ],
)
def test_encodings_that_lie_and_bodies_without_bound(data: bytes, encoding: str, words: str) -> None:
    with pytest.raises(BadAnswer, match=words):
        receive(coded(data, encoding))
    assert receive(coded(data, encoding, 503)).status_code == 503, "the status of an error is enough"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [(gzip.compress(b"{}", mtime=0), "x-gzip"), (zlib.compress(b"{}"), "DEFLATE"), (b"{}", "")],
)
def test_encodings_that_are_read(data: bytes, encoding: str) -> None:
    assert receive(coded(data, encoding)).content == b"{}"


@pytest.mark.parametrize("depth", [10, 300, 900, 5_000, 100_000])
def test_nesting_of_any_depth_is_named(depth: int) -> None:
    for nested in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        for place in (b"%s", b'{"choices": %s}', b'{"choices": [{"message": {"content": %s}}]}'):
            with pytest.raises(BadAnswer) as caught:
                read(place % nested, raw=False)
            assert len(caught.value.message(str)) < 400


@pytest.mark.parametrize(
    ("text", "counts", "absurd"),
    [
        ("[2] > [1] > [3]", [1, 8, 4096], [None, 0, -1, 4097, 9_000_000]),
        ("a prompt of English words " * 100, [650, 82], [None, 0, 1, 81]),
        ("\u65e5\u672c\u8a9e\u306e\u6587 " * 50, [400, 90], [0, 3, 20]),
        ("", [0, 7], [None, -1, 5000]),
        ("x" * 3_000, [94, 3000], [93, 12]),
    ],
)
def test_counts_beyond_what_a_text_can_have_are_not_believed(
    text: str, counts: list[int], absurd: list[int | None]
) -> None:
    assert [plausible_count(count, text, 4096) for count in counts] == counts
    assert [plausible_count(count, text, 4096) for count in absurd] == [None] * len(absurd)


@pytest.mark.parametrize(
    ("content", "mean"),
    [
        ([{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}], -1.0),
        ([{"token": "a", "logprob": 0}], 0.0),
        ([{"token": "a", "logprob": -0.5}, {"token": "b"}], None),
        ([{"token": "a", "logprob": 0.5}], None),
        ([{"token": "a", "logprob": float("nan")}], None),
        ([{"token": "a", "logprob": True}], None),
        ([None], None),
        ([], None),
        ("-0.5", None),
    ],
)
def test_the_mean_log_probability_of_a_reply_is_whole_or_none(content: object, mean: float | None) -> None:
    body = {
        "choices": [{"message": {"content": "hi"}, "finish_reason": "stop", "logprobs": {"content": content}}]
    }
    assert read(json.dumps(body).encode(), raw=False).mean_logprob == mean
