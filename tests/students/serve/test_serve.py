"""The server over real sockets: right scores under load, every bad request its code, work dropped with its client."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import numpy as np
import pytest
import tiny_models
from served import serving_app

from students.rerank.reranker import Reranker
from students.serve.app import Limits, create_app

LIMITS = Limits(
    texts=200, characters=5000, body=200_000, bodies=2_000_000, waiting=3000, seconds_to_send=60.0
)


@contextlib.contextmanager
def serving(scorer, limits: Limits = LIMITS, max_length: int = 64) -> Iterator[str]:
    app = create_app(scorer, {"model_id": "tiny", "max_input_length": max_length}, limits, round_seconds=0.05)
    with serving_app(app) as address:
        yield address


@pytest.fixture(scope="module")
def reranker(tiny) -> Reranker:
    return Reranker.load(tiny("electra"), precision="fp32", max_length=64, device="cpu")


@pytest.fixture(scope="module")
def url(reranker) -> Iterator[str]:
    with serving(reranker) as address:
        yield address


class Stub:
    """A scorer that takes its time for each pair, and what it was asked."""

    def __init__(self, seconds: float = 0.0, fail_on: str | None = None, value: float = 1.0) -> None:
        self.seconds, self.fail_on, self.value = seconds, fail_on, value
        self.asked: list[int] = []
        self.together: list[int] = []

    def scores(self, lists):
        self.asked += [len(texts) for _, texts in lists]
        self.together.append(len(lists))
        time.sleep(self.seconds * sum(len(texts) for _, texts in lists))
        if any(self.fail_on is not None and self.fail_on in texts for _, texts in lists):
            raise RuntimeError("the model is ill")
        return [np.full(len(texts), self.value, dtype=np.float32) for _, texts in lists]

    def pair_lengths(self, query, texts):
        return np.array([len(query.split()) + len(t.split()) for t in texts])


def ask(url: str, **body) -> httpx.Response:
    return httpx.post(f"{url}/rerank", json=body, timeout=30)


def test_scores_equal_the_rerankers_best_first(url, reranker):
    texts = tiny_models.sentences(17, 4)
    expected = reranker.scores([("what is water", texts)])[0]
    answer = ask(url, query="what is water", texts=texts, raw_scores=True, return_text=True)
    assert answer.status_code == 200
    rows = answer.json()
    assert [row["index"] for row in rows] == np.argsort(-expected, kind="stable").tolist()
    for row in rows:
        assert row["score"] == pytest.approx(float(expected[row["index"]]), abs=1e-5)
        assert row["text"] == texts[row["index"]]
    probabilities = ask(url, query="what is water", texts=texts).json()
    assert "text" not in probabilities[0]
    assert probabilities[0]["score"] == pytest.approx(1 / (1 + np.exp(-expected.max())), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "code", "kind"),
    [
        (b"{", 400, "Validation"),
        (b"\xff\xfe", 400, "Validation"),
        (b"[" * 100_000, 400, "Validation"),
        (b"[]", 422, "Validation"),
        (b"{}", 422, "Validation"),
        (json.dumps({"query": 3, "texts": ["a"]}), 422, "Validation"),
        (json.dumps({"query": "q", "texts": "a"}), 422, "Validation"),
        (json.dumps({"query": "q", "texts": ["a", None]}), 422, "Validation"),
        (json.dumps({"query": "q", "texts": ["a"], "truncate": "yes"}), 422, "Validation"),
        (json.dumps({"query": "q", "texts": ["a"], "truncation_direction": "Left"}), 422, "Validation"),
        (json.dumps({"query": "q", "texts": ["\ud800"]}), 422, "Tokenizer"),
        (json.dumps({"query": "q", "texts": []}), 400, "Empty"),
        (json.dumps({"query": "  ", "texts": ["a"]}), 400, "Empty"),
        (json.dumps({"query": "q", "texts": ["a"] * 201}), 413, "Validation"),
        (json.dumps({"query": "q", "texts": ["a" * 5001]}), 413, "Validation"),
        (json.dumps({"query": "q", "texts": ["water " * 80], "truncate": False}), 413, "Validation"),
        (b" " * 200_001, 413, "Validation"),
    ],
)
def test_a_bad_request_gets_its_code_and_why(url, body, code, kind):
    answer = httpx.post(f"{url}/rerank", content=body, timeout=30)
    assert answer.status_code == code, answer.text
    assert answer.json()["error_type"] == kind
    assert answer.json()["error"]
    assert ask(url, query="q", texts=["a"]).status_code == 200


def test_a_body_of_unknown_length_is_cut_off_where_it_is_too_long(url):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 50_000_000:
            sent += 10_000
            yield b" " * 10_000

    with contextlib.suppress(httpx.TransportError):  # the server may close while the client still sends
        assert httpx.post(f"{url}/rerank", content=endless(), timeout=30).status_code == 413
    assert sent < 50_000_000
    assert httpx.get(f"{url}/health").status_code == 200


def refused_bodies(size: int) -> dict[str, list[bytes]]:
    """Requests whose body is refused while the client still sends it, in blocks."""
    body = b'{"query": "q", "texts": ["' + b"x" * size + b'"]}'
    blocks = [body[k : k + 10_000] for k in range(0, len(body), 10_000)]
    chunks = [b"%x\r\n%b\r\n" % (len(block), block) for block in blocks]
    begin = b"POST /rerank HTTP/1.1\r\nHost: x\r\n"
    return {
        "announced": [begin + b"Content-Length: %d\r\n\r\n" % len(body), *blocks],
        "in chunks": [begin + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"],
        "not ended": [begin + b"Transfer-Encoding: chunked\r\n\r\n", *chunks],
        "less than announced": [begin + b"Content-Length: 9000000\r\n\r\n", *blocks],
    }


@pytest.mark.test_all
@pytest.mark.parametrize("size", [250_000, 700_000])
@pytest.mark.parametrize("kind", refused_bodies(1))
def test_a_client_reads_why_its_body_is_refused_even_if_it_sends_all_of_it_first(url, kind, size):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        for block in refused_bodies(size)[kind]:
            connection.sendall(block)
        answer = b""
        while part := connection.recv(1000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"error_type":"Validation"' in answer
    assert b"connection: close" in answer


def test_a_client_that_asks_before_it_sends_is_not_told_to_go_on(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /rerank HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 300000\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_health_info_metrics_and_other_routes(url):
    assert httpx.get(f"{url}/health").status_code == 200
    info = httpx.get(f"{url}/info").json()
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("tiny", 64, 200)
    before = _metric(url, 'msft_requests_total{code="200"}')
    ask(url, query="q", texts=["a", "b"])
    assert _metric(url, 'msft_requests_total{code="200"}') == before + 1
    assert _metric(url, "msft_waiting_pairs") == 0
    assert httpx.get(f"{url}/rerank").status_code == 405
    assert httpx.get(f"{url}/nothing").status_code == 404


SERIES = (
    ["msft_requests_total"],
    [f"msft_request_seconds_{part}" for part in ("bucket", "count", "sum")],
    ["msft_pairs_total", "msft_rounds_total", "msft_round_requests_total", "msft_scoring_seconds_total"],
    ["msft_waiting_pairs", "msft_bytes_in_flight"],
)


@pytest.mark.parametrize("names", SERIES)
def test_dashboards_find_every_metric_under_its_name(url, names):
    ask(url, query="q", texts=["a", "b"])
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {line.split("{")[0].split(" ")[0] for line in answer.text.splitlines() if line[0] != "#"}
    assert set(names) <= found
    assert found == {name for group in SERIES for name in group}, "no other series, such as _created"
    assert all(f"# TYPE {name} " in answer.text for name in names if "request_seconds" not in name)
    edges = [line for line in answer.text.splitlines() if line.startswith("msft_request_seconds_bucket")]
    assert [float(edge.split('"')[1]) for edge in edges][-3:] == [10.0, 30.0, float("inf")]


def test_two_servers_of_a_process_count_apart(reranker, url):
    with serving(reranker) as other:
        ask(url, query="q", texts=["a"])
        assert _metric(other, "msft_rounds_total") == 0
        ask(other, query="q", texts=["a", "b", "c"])
        assert _metric(other, "msft_pairs_total") == 3


def _metric(url: str, name: str) -> float:
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


@pytest.mark.test_all
def test_fifty_clients_with_good_huge_malformed_and_cancelled_requests(url, reranker):
    queries = tiny_models.sentences(10, 8, 6)
    texts = [tiny_models.sentences(3 + 7 * n, 20 + n) for n in range(10)]
    expected = reranker.scores(list(zip(queries, texts, strict=True)))
    wrong: list[str] = []
    seen = {"good": 0, "huge": 0, "malformed": 0, "cancelled": 0}

    async def client(number: int, http: httpx.AsyncClient) -> None:
        for turn in range(4):
            n = (number + turn) % 10
            good = {"query": queries[n], "texts": texts[n], "raw_scores": True}
            kind = ("good", "good", "huge", "malformed", "cancelled")[(number + turn) % 5]
            if kind == "good":
                answer = await http.post("/rerank", json=good)
                got = {row["index"]: row["score"] for row in answer.json()}
                if [got[i] for i in range(len(texts[n]))] != pytest.approx(expected[n].tolist(), abs=1e-5):
                    wrong.append(f"query {n}")
            elif kind == "huge":
                answer = await http.post("/rerank", json={"query": "q", "texts": ["x" * 4000] * 100})
                if answer.status_code != 413:
                    wrong.append(f"huge: {answer.status_code}")
            elif kind == "malformed":
                answer = await http.post("/rerank", content=b'{"query": "q", "texts": [')
                if answer.status_code != 400:
                    wrong.append(f"malformed: {answer.status_code}")
            else:
                task = asyncio.create_task(http.post("/rerank", json=good))
                await asyncio.sleep(0.02)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            seen[kind] += 1

    async def all_clients() -> None:
        async with httpx.AsyncClient(
            base_url=url, timeout=300, limits=httpx.Limits(max_connections=50)
        ) as http:
            await asyncio.gather(*(client(n, http) for n in range(50)))

    asyncio.run(all_clients())
    assert wrong == []
    assert seen == {"good": 80, "huge": 40, "malformed": 40, "cancelled": 40}
    deadline = time.monotonic() + 60
    while _metric(url, "msft_waiting_pairs") or _metric(url, "msft_bytes_in_flight"):
        assert time.monotonic() < deadline, "work or bytes of requests that are over are still held"
        time.sleep(0.02)


@pytest.mark.test_all
def test_small_requests_overtake_a_large_one():
    stub = Stub(seconds=0.01)
    done: list[str] = []
    with serving(stub) as url:

        def send(name: str, n: int) -> None:
            ask(url, query="q", texts=["a"] * n)
            done.append(name)

        large = threading.Thread(target=send, args=("large", 200))
        large.start()
        time.sleep(0.2)
        small = threading.Thread(target=send, args=("small", 2))
        small.start()
        small.join()
        large.join()
    assert done == ["small", "large"]
    assert max(stub.together) >= 2, "waiting requests are scored together"


def test_a_client_that_goes_away_takes_its_work_with_it():
    stub = Stub(seconds=0.01)
    with serving(stub) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/rerank", json={"query": "q", "texts": ["a"] * 200}, timeout=0.12)
        deadline = time.monotonic() + 5
        while _metric(url, "msft_waiting_pairs"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert _metric(url, 'msft_requests_total{code="499"}') == 1
    assert sum(stub.asked) < 200, "the rest of a cancelled request is not scored"


@pytest.mark.test_all
def test_overload_is_refused_and_passes():
    with serving(Stub(seconds=0.01), Limits(texts=200, waiting=150)) as url:
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda: codes.append(ask(url, query="q", texts=["a"] * 100).status_code))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) == [200, 429, 429, 429]
        assert ask(url, query="q", texts=["a"]).status_code == 200


def test_large_bodies_leave_room_for_small_requests():
    """13 clients stop in the middle of bodies that together would be 600 bytes short of what may be held."""
    with serving(Stub()) as url, contextlib.ExitStack() as connections:
        address = httpx.URL(url)
        for _ in range(13):
            connection = connections.enter_context(socket.create_connection((address.host, address.port)))
            connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 160000\r\n\r\n")
            with contextlib.suppress(ConnectionError):  # those that are refused
                connection.sendall(b" " * 153_800)
        deadline = time.monotonic() + 1.5  # they are sent away after 2 s
        while (held := _metric(url, "msft_bytes_in_flight")) < 1_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 1_000_000 <= held <= LIMITS.bodies
        assert ask(url, query="q", texts=["water " * 100] * 2).status_code == 200


def test_a_failing_model_fails_its_requests_and_no_other():
    with serving(Stub(fail_on="poison")) as url:
        answer = ask(url, query="q", texts=["a", "poison"])
        assert (answer.status_code, answer.json()["error_type"]) == (424, "Backend")
        assert ask(url, query="q", texts=["a"]).status_code == 200
    with serving(Stub(value=float("nan"))) as url:
        assert ask(url, query="q", texts=["a"]).status_code == 424


@pytest.mark.parametrize("sent", [b"", b"{", b'{"query": "q", "te'])
def test_a_client_that_dawdles_is_sent_away(sent):
    with serving(Stub(), replace(LIMITS, seconds_to_send=1.0)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + sent)
            assert b" 408 " in connection.recv(1000)
