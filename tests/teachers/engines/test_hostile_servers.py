"""Servers that answer anything, drip, never end or repeat the key: every call ends, in time, and the next job runs."""

import base64
import http.server
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_servers import Answer, good, serving
from test_openai_engine import collect, requests, run

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Sampling
from teachers.engines.openai import OpenAIEngine
from teachers.engines.openai_server import Mask, masked_url, server_at
from teachers.errors import TeacherError
from teachers.generate.calling.records import OWN_COUNTS
from teachers.journal import segments as journal

KEY = "Zq9-not.a/usual+key=="
STATUSES = {"ok", "repaired", "refused", "wrong_format", "truncated", "engine_error"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MSFT_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------------------------ any JSON at all
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("[2] > [1] \ud83d\0"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "content",
    "refusal",
    "finish_reason",
    "usage",
    "prompt_tokens",
    "completion_tokens",
    "choices",
    "choice",
    "message",
    "logprobs",
    "error",
    "all",
)


def spoilt(body: dict[str, Any], field: str, value: Any) -> Answer:
    """A good answer with one field replaced."""
    status, headers, answer = good(body)
    choice = answer["choices"][0]
    if field == "all":
        return status, headers, value
    if field == "error":
        return (400, 413, 422)[len(str(value)) % 3], {}, {"error": value}
    if field == "choice":
        answer["choices"] = [value, *answer["choices"]]
    if field in ("message", "logprobs"):
        choice[field] = value
    if field in ("content", "refusal"):
        choice["message"] |= {"content": None, field: value}
    elif field == "finish_reason":
        choice[field] = value
    elif field in ("usage", "choices"):
        answer[field] = value
    elif field in ("prompt_tokens", "completion_tokens"):
        answer["usage"][field] = value
    return status, headers, answer


@pytest.fixture(scope="module")
def one_store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    return make(tmp_path_factory.mktemp("hostile") / "s.duckdb", 1, length=lambda k: 4)


names = itertools.count()


@pytest.mark.test_all
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(FIELDS), value=JSON)
def test_any_json_in_any_field_ends_the_call_and_the_next_job_runs(
    one_store: LabelStore, field: str, value: Any
) -> None:
    odd, well = f"odd{next(names)}", f"well{next(names)}"
    with serving(lambda k, body: spoilt(body, field, value)) as server:
        first = run(one_store, [server.url], name=odd, max_attempts=1, temperature=next(names) / 1e6)
    assert first.labelled + first.quarantined == 1
    assert not journal.segments(one_store.files / "journal"), "all of it was merged"
    assert not journal.aside(one_store.files / "journal")
    with serving() as server:
        assert run(one_store, [server.url], name=well, temperature=next(names) / 1e6).labelled == 1
    with one_store.read() as con:
        found = con.execute("SELECT DISTINCT status FROM calls").fetchall()
        poor = con.execute("SELECT count(*) FROM calls WHERE NOT tokens_in BETWEEN 0 AND 100000").fetchall()
    assert {status for (status,) in found} <= STATUSES
    assert poor == [(0,)]


@pytest.mark.test_all
@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": 9_999_999, "completion_tokens": 3}, {"prompt_tokens": 0}, "free", [7],
     {"prompt_tokens": 1, "completion_tokens": 9}, {"prompt_tokens": 7, "completion_tokens": 0},
     {"prompt_tokens": -1, "completion_tokens": 10**40}],
)  # fmt: skip
def test_absurd_usage_is_counted_here_and_the_row_says_so(tmp_path: Path, usage: Any) -> None:
    def billed(k: int, body: dict[str, Any]) -> Answer:
        status, headers, answer = good(body)
        return status, headers, answer | {"usage": usage}

    store = make(tmp_path / "s.duckdb", 2, length=lambda k: 4)
    with serving(billed) as server:
        result = run(store, [server.url], max_tokens=20_000)
    assert result.labelled == 2, "a budget of 20,000 tokens is enough for two short calls"
    with store.read() as con:
        rows = con.execute("SELECT finish_reason, tokens_in, tokens_out FROM calls").fetchall()
    for reason, tokens_in, tokens_out in rows:
        assert reason == f"stop; {OWN_COUNTS}"
        assert 50 < tokens_in < 2_000
        assert 0 < tokens_out < 50


# ------------------------------------------------------------------------------------------------- time and size
@contextmanager
def raw(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers /models as it should, and a completion by writing bytes as it likes."""
    ended = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = b'{"data": []}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.close_connection = True
            with suppress(OSError):
                while not ended.is_set():
                    talk(self.connection)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def slowly(*pieces: bytes) -> Callable[[socket.socket], None]:
    """The pieces one after the other, the last again and again, ten a second."""
    sent: dict[int, int] = {}

    def talk(connection: socket.socket) -> None:
        k = sent.get(id(connection), 0)
        sent[id(connection)] = k + 1
        connection.sendall(pieces[min(k, len(pieces) - 1)])
        time.sleep(0.1)

    return talk


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.test_all
@pytest.mark.parametrize(
    "talk",
    [
        slowly(b"HTTP/1.1 100 Continue\r\n\r\n"),
        slowly(HEAD, b"x"),
        slowly(HEAD, b"x: y\r\n"),
        slowly(HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
        slowly(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        slowly(HEAD + b"Content-Type: text/event-stream\r\n\r\n", b": ping\n\n"),
        slowly(HEAD + b"Content-Length: 10\r\n\r\n12345", b""),
        slowly(b""),
    ],
    ids=["continue", "headline", "headers", "body", "chunks", "events", "half", "silence"],
)
def test_the_timeout_bounds_the_whole_request(talk: Callable[[socket.socket], None]) -> None:
    with raw(talk) as url:
        engine = OpenAIEngine("tiny", [url], Sampling(), in_flight=2, timeout=0.7)
        began = time.monotonic()
        engine.submit(requests(2))
        done = collect(engine, 2, seconds=10)
        took = time.monotonic() - began
        engine.close()
    assert [done[k].error for k in (0, 1)] == ["no reply in time"] * 2
    assert took < 3


def test_an_endless_body_ends_early() -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"\r\n")
        while True:
            connection.sendall(b" " * (1 << 20))

    with raw(talk) as url:
        engine = OpenAIEngine("tiny", [url], Sampling(), in_flight=1, timeout=30)
        engine.submit(requests(1))
        done = collect(engine, 1, seconds=20)
        engine.close()
    assert "larger than" in (done[0].error or "")


@pytest.mark.test_all
def test_a_server_that_was_cut_off_is_asked_again() -> None:
    """The connection that was cut is not used again, and its thread goes on."""

    def late(k: int, body: dict[str, Any]) -> Answer:
        if k % 2:
            time.sleep(0.8)
        return good(body)

    with serving(late) as server:
        engine = OpenAIEngine("tiny", [server.url], Sampling(), in_flight=1, timeout=0.4)
        engine.submit(requests(4))
        done = collect(engine, 4)
        engine.close()
    assert sorted(str(done[k].error) for k in done) == [
        "None",
        "None",
        "no reply in time",
        "no reply in time",
    ]


@pytest.mark.parametrize(
    "answer",
    [(503, {"Content-Encoding": "gzip"}, "no gzip"), (502, {"Content-Encoding": "zstd"}, "x"), (500, {}, "[" * 99_999)],
)  # fmt: skip
def test_an_error_with_an_odd_body_is_the_servers_trouble(answer: Answer) -> None:
    with serving(lambda k, body: answer if k <= 2 else good(body)) as server:
        engine = OpenAIEngine("tiny", [server.url], Sampling(), in_flight=1)
        engine.submit(requests(1))
        done = collect(engine, 1)
        engine.close()
    assert done[0].error is None


@pytest.mark.test_all
def test_a_server_that_sent_rubbish_while_it_was_probed_is_asked_again() -> None:
    def rubbish(k: int, body: dict[str, Any]) -> Answer:
        return (503, {}, "starting") if k <= 3 else (200, {}, "?") if k == 4 else good(body)

    with serving(rubbish) as server:
        engine = OpenAIEngine("tiny", [server.url], Sampling(), in_flight=1, patience=8)
        engine.submit(requests(3))
        done = collect(engine, 3)
        engine.close()
    assert len(done) == 3


@pytest.mark.parametrize(
    "models",
    [[], {"data": 5}, {"data": [5, None, "x"]}, {"data": [{"id": 7}, {"id": ["tiny"]}]}, "[" * 9_999,
     {"data": [{"id": "tiny", "max_model_len": -1}]}, {"data": [{"id": "tiny", "max_model_len": True}]}],
)  # fmt: skip
def test_a_list_of_models_of_any_type(models: Any) -> None:
    with serving() as server:
        server.models = (200, {}, models)
        engine = OpenAIEngine("tiny", [server.url], Sampling(), in_flight=1)
        engine.close()
    assert engine.context is None


# ------------------------------------------------------------------------------------------------------ secrets
def echoing(secret: str) -> list[Answer]:
    """What repeats a secret: replies, errors of every form, bodies that are no JSON."""
    _, _, answer = good(
        {"messages": [{"content": "[1]\n[2]\n[3]\n[4]"}]}, reply=f"[2] > [1] > [3] > [4] {secret}"
    )
    answer["choices"][0]["finish_reason"] = secret
    return [
        (200, {}, answer),
        (200, {}, f"{secret} is no JSON"),
        (200, {}, {"choices": {secret: [secret]}}),
        (400, {}, {"error": {"message": f"{'x' * 480} {' ' * 1990}{secret}", "code": secret}}),
        (422, {}, {"error": [secret, {"message": secret}]}),
        (418, {}, f"<html>{secret}</html>"),
    ]


@pytest.mark.test_all
@pytest.mark.parametrize("number", range(6))
def test_a_key_that_a_server_repeats_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("MSFT_API_KEY", f"  {KEY}\n")
    store = make(tmp_path / "s.duckdb", 1, length=lambda k: 4)
    with serving(lambda k, body: echoing(KEY)[number]) as server:
        run(store, [server.url], max_attempts=2)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    with store.read() as con:
        kept = con.execute("SELECT reply, finish_reason FROM calls").fetchall()
        kept += con.execute("SELECT detail, reason FROM quarantine").fetchall()
    assert kept
    assert KEY[:8] not in str(kept)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_key_is_masked_in_errors_that_end_the_job(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("MSFT_API_KEY", KEY)
    with serving(lambda k, body: (status, {}, {"error": {"message": f"bad key {KEY}"}})) as server:
        engine = OpenAIEngine("tiny", [server.url], Sampling(), in_flight=1)
        engine.submit(requests(1))
        with pytest.raises(TeacherError, match=r"bad key \*\*\*") as caught:
            collect(engine, 1)
        engine.close()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "odd", ["two\nlines", "a\r\nX-Header: b", "with space", "with\ttab", "na\u00efve", "nul\0"]
)
def test_a_key_that_no_header_carries_is_told_without_it(monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    monkeypatch.setattr("os.environ", {"MSFT_API_KEY": odd})
    with pytest.raises(TeacherError, match="MSFT_API_KEY has") as caught:
        server_at("http://127.0.0.1:1/v1", 1.0)
    assert caught.value.exit_code == 2
    assert odd[:3] not in str(caught.value).replace("MSFT_API_KEY has", "")


@pytest.mark.parametrize(
    ("credentials", "query", "sent"),
    [
        (
            "us%65r:p%40ss-word@",
            "",
            {"Authorization": "Basic " + base64.b64encode(b"user:p@ss-word").decode()},
        ),
        ("tok-en-tok-en@", "", {"Authorization": "Basic " + base64.b64encode(b"tok-en-tok-en:").decode()}),
        (":only-password@", "", {"Authorization": "Basic " + base64.b64encode(b":only-password").decode()}),
        ("", "?api-key=tok%2Fen-tok&v=1", {}),
    ],
)
def test_credentials_of_a_base_url_are_sent_and_masked(
    tmp_path: Path, credentials: str, query: str, sent: dict[str, str]
) -> None:
    words = ("p@ss-word", "p%40ss-word", "tok-en-tok-en", "only-password", "tok/en-tok", "tok%2Fen-tok")
    told = [*words, *(value.split()[1] for value in sent.values())]
    store = make(tmp_path / "s.duckdb", 1, length=lambda k: 4)
    with serving(lambda k, body: (400, {}, {"error": {"message": " ".join(told)}})) as server:
        host = server.url.split("/")[2]
        run(store, [f"http://{credentials}{host}/v1{query}"], max_attempts=1)
        assert sent.items() <= server.headers[0].items()
    with store.read() as con:
        ((said, where),) = con.execute("SELECT reply, server FROM calls").fetchall()
    assert where == host
    mine = [word for word in told if word in credentials + query or word in str(sent)]
    assert mine
    assert not [word for word in mine if word in said]


@pytest.mark.parametrize(
    ("url", "label"),
    [("http://[::1]:8000/v1", "[::1]:8000"), ("http://a:b@[::1]/v1/", "[::1]"), ("https://Host.example:8443/x", "host.example:8443")],
)  # fmt: skip
def test_hosts_keep_their_port_and_brackets(url: str, label: str) -> None:
    made = server_at(url, 1.0)
    assert made.label == label
    assert made.url.split("/")[2] == label


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://h:port/v1", "http://h:99999/v1", "http://h:0/v1", "ftp://s3cret-word@h/v1", "h:8000",
     "http://", "http://s3cret-word@:80/v1", "s3cret-word@h", "http://a b/v1", "http://h/v1#s3cret-word", "",
     "http://u:s3cret-word@h:x?k=s3cret-word", "http://h\n/v1", "http://xn--\u00e9.s3cret-word@/"],
)  # fmt: skip
def test_a_bad_base_url_is_a_usage_error_that_shows_no_secret(url: str) -> None:
    with pytest.raises(TeacherError, match="is not an http URL") as caught:
        server_at(url, 1.0)
    assert caught.value.exit_code == 2
    assert "s3cret-word" not in str(caught.value)


def test_masks_leave_the_rest_alone() -> None:
    assert masked_url("http://u:p@h:1/v1?k=v") == "http://***@h:1/v1?***"
    assert masked_url("http://127.0.0.1:8000/v1") == "http://127.0.0.1:8000/v1"
    mask = Mask({"EMPTY", "", KEY})
    assert mask.reply(f"EMPTY [1] > [2] {KEY}") == "EMPTY [1] > [2] ***"
    assert mask.message("sk-abcdefghij") == "***"
    assert json.loads(json.dumps(mask.reply("[1] \u2603"))) == "[1] \u2603"
