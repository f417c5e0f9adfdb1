"""Servers on loopback that behave as paid and home-made ones do: well, badly, and at random."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

Answer = tuple[int, dict[str, str], Any]  # status, headers, body (a str goes out as it is)


def ranking(messages: list[dict[str, str]], n: int) -> str:
    """A full ranking that depends on the conversation alone."""
    shown = list(range(1, n + 1))
    Random(json.dumps(messages)).shuffle(shown)
    return " > ".join(f"[{i}]" for i in shown)


def good(body: dict[str, Any], reply: str | None = None) -> Answer:
    """An answer as OpenAI's API gives it."""
    messages = body.get("messages") or [{"content": body.get("prompt", "")}]
    n = sum(line.startswith("[") for message in messages for line in message["content"].splitlines())
    text = ranking(messages, n) if reply is None else reply
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    if "prompt" in body:
        choice["text"] = text
    prompt_tokens = max(100, sum(len(message["content"]) for message in messages) // 5)
    return (
        200,
        {},
        {"choices": [choice], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 5 * n}},
    )


class Server:
    """One server: what it answers, what it was asked."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer | None], port: int = 0) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: Answer = (200, {}, {"data": [{"id": "tiny", "max_model_len": 4096}]})
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(outer.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.asked.append(body)
                    outer.headers.append(dict(self.headers))
                    number = len(outer.asked)
                    outer.busy += 1
                    outer.most_busy = max(outer.busy, outer.most_busy)
                try:
                    answer = outer.answer(number, body)
                finally:
                    with outer._lock:
                        outer.busy -= 1
                if answer is None:  # hang up without a word
                    self.close_connection = True
                    return
                self._send(answer)

            def _send(self, answer: Answer) -> None:
                status, headers, body = answer
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serving(
    answer: Callable[[int, dict[str, Any]], Answer | None] = lambda k, body: good(body),
    port: int = 0,
) -> Iterator[Server]:
    server = Server(answer, port)
    try:
        yield server
    finally:
        server.stop()
