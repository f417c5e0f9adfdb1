"""A provider on loopback that speaks the batch interface: files, batches, answers; batches that wait, expire or fail."""

import email
import email.policy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai_servers import Answer, good


@dataclass
class Plan:
    """How a batch goes: looks until it ends, how it ends, and how many of its requests are answered (None: all)."""

    looks: int = 1
    ends: str = "completed"
    answered: int | None = None


@dataclass
class Provider:
    """What the provider holds, and what it was asked.

    Attributes:
        plans: how the next batches go, in turn; further ones complete at the second look.
        answer: a request's body to its answer.
        refuse: a path's beginning to the status with which it is refused.
    """

    plans: list[Plan] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], Answer] = good
    refuse: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # custom ids that were answered, and so are paid for
    looks: int = 0
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def post(self, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        if path == "/v1/files":
            message = email.message_from_bytes(
                b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body,
                policy=email.policy.HTTP,
            )
            parts = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                for part in message.iter_parts()
            }
            if parts["purpose"].strip() != b"batch":
                return 400, {"error": {"message": "purpose must be batch"}}
            name = f"file-{len(self.files)}"
            self.files[name] = parts["file"]
            return 200, {"id": name, "object": "file", "purpose": "batch"}
        if path == "/v1/batches":
            given = json.loads(body)
            if (
                given["endpoint"] not in ("/v1/chat/completions", "/v1/completions")
                or given["completion_window"] != "24h"
            ):
                return 400, {"error": {"message": "bad batch"}}
            lines = [json.loads(line) for line in self.files[given["input_file_id"]].splitlines()]
            if any(line["url"] != given["endpoint"] or line["method"] != "POST" for line in lines):
                return 400, {"error": {"message": "a line for another endpoint"}}
            name = f"batch_{len(self.batches)}"
            plan = self.plans.pop(0) if self.plans else Plan()
            self.batches[name] = {
                "id": name,
                "status": "validating",
                "input_file_id": given["input_file_id"],
                "plan": plan,
            }
            return 200, self.shown(name)
        return 404, {"error": {"message": "no such path"}}

    def get(self, path: str) -> tuple[int, Any]:
        if path.startswith("/v1/batches?"):
            return 200, {"object": "list", "data": [self.shown(name) for name in self.batches]}
        if path.startswith("/v1/batches/"):
            name = path.rpartition("/")[2]
            self.looks += 1
            batch = self.batches[name]
            batch["plan"].looks -= 1
            if batch["status"] != batch["plan"].ends:
                batch["status"] = "in_progress"
                if batch["plan"].looks < 0:
                    self.end(batch)
            return 200, self.shown(name)
        if path.startswith("/v1/files/") and path.endswith("/content"):
            return 200, self.files[path.split("/")[3]]
        return 404, {"error": {"message": "no such path"}}

    def end(self, batch: dict[str, Any]) -> None:
        plan: Plan = batch["plan"]
        batch["status"] = plan.ends
        if plan.ends == "failed":
            batch["errors"] = {
                "object": "list",
                "data": [{"code": "invalid_model", "message": "no such model"}],
            }
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        out, err = [], []
        for k, line in enumerate(lines):
            if plan.answered is not None and k >= plan.answered:
                gone = {
                    "code": "batch_expired",
                    "message": "This request could not be executed before the completion window expired.",
                }
                err.append({"custom_id": line["custom_id"], "response": None, "error": gone})
                continue
            status, _, body = self.answer(line["body"])
            self.asked.append(line["custom_id"])
            done = {
                "custom_id": line["custom_id"],
                "response": {"status_code": status, "body": body},
                "error": None,
            }
            (out if status == 200 else err).append(done)
        for name, rows in (("output_file_id", out), ("error_file_id", err)):
            if rows:
                file = f"file-{len(self.files)}"
                self.files[file] = b"".join(json.dumps(row).encode() + b"\n" for row in reversed(rows))
                batch[name] = file

    def shown(self, name: str) -> dict[str, Any]:
        return {key: value for key, value in self.batches[name].items() if key != "plan"}

    def handle(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        with self._lock:
            for beginning, status in self.refuse.items():
                if f"{method} {path}".startswith(beginning):
                    return status, {"error": {"message": "refused", "code": "busy"}}
            return self.post(path, headers, body) if method == "POST" else self.get(path)


@contextmanager
def provider(**given: Any) -> Iterator[Provider]:
    own = Provider(**given)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET", b"")

        def do_POST(self) -> None:
            self._answer("POST", self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, method: str, sent: bytes) -> None:
            status, body = own.handle(method, self.path, self.headers, sent)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    own.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield own
    finally:
        server.shutdown()
        server.server_close()
