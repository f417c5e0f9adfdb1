"""Connections that send nothing, half a header or drips; the key; SIGTERM: a real server in a real process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import forked
import httpx
import pytest

SERVER = """
import asyncio, os, resource, socket, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from students.serve import guard as serve_guard
from students.serve.app import create_app
class Scorer:
    def scores(self, lists):
        import time
        time.sleep(float(os.environ.get("SLOW", "0")))
        return [[1.0] * len(texts) for _, texts in lists]
serve_guard.SECONDS_FOR_HEADERS = 10.0
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
app = create_app(Scorer(), {"max_input_length": 64})
if key := os.environ.get("MSFT_SERVE_KEY"):
    app = serve_guard.RequireKey(app, key)
serve_guard.Server(serve_guard.config(app)).run(sockets=[listening])
"""


@pytest.fixture
def start():
    processes = []

    def begin(limit=1024, **env):
        process = forked.Popen(
            [sys.executable, "-c", SERVER, str(limit)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **env},
        )  # fmt: skip
        processes.append(process)
        port = int(process.stdout.readline())
        for _ in range(100):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        return process, port

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("limit", [64, 256, 1024])
@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-"])
def test_connections_that_do_not_ask_leave_health_fast_and_the_log_short(start, limit, sent):
    process, port = start(limit)
    held = []
    for _ in range(400):
        client = socket.create_connection(("127.0.0.1", port), timeout=5)
        held.append(client)
        with contextlib.suppress(OSError):  # closed by the server already, which is its right
            client.sendall(sent)
    for _ in range(3):
        began = time.monotonic()
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
        assert time.monotonic() - began < 1
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, log = process.communicate(timeout=15)
    assert time.monotonic() - began < 15
    assert len(log) < 10_000


@pytest.mark.test_all
def test_headers_that_drip_meet_the_deadline(start):
    _, port = start()
    with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 14:
                client.sendall(b"G")
                time.sleep(0.3)
        assert 9 < time.monotonic() - began < 13


@pytest.mark.test_all
def test_sigterm_answers_the_request_in_flight(start):
    process, port = start(SLOW="2")
    body = b'{"query": "q", "texts": ["a"]}'
    with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
        client.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    process.wait(15)


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", "secret-é-7", "Basic secret-7"])
def test_a_wrong_key_is_refused_and_not_shown(start, given):
    _, port = start(MSFT_SERVE_KEY="secret-7")
    headers = {} if given is None else {"authorization": given.encode()}
    for path in ("/info", "/metrics", "/nowhere"):
        answer = httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers)
        assert answer.status_code == 401
        assert "secret" not in answer.text
    assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    right = {"authorization": "Bearer secret-7"}
    assert httpx.get(f"http://127.0.0.1:{port}/info", headers=right).status_code == 200
