"""Serve a student of the store, or any model, over HTTP (`msft students serve`)."""

import ipaddress
import os
import socket
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.errors import DataMissing
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from msft.host import extras
from students.errors import StudentError
from students.jobs.register import warnings_of
from students.jobs.rerank import Note, student_folder

if TYPE_CHECKING:
    from students.rerank.reranker import Reranker


def serve_student(
    store: LabelStore,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    precision: str = "auto",
    max_texts: int = 1000,
    max_body: int = 16_000_000,
    max_waiting: int = 20_000,
    note: Note | None = None,
    warn: Note | None = None,
) -> None:
    """Serve until interrupted. The store is closed before the first request.

    Args:
        name: a student's name, a model's folder, or a Hugging Face id.
        warn: called with evaluations in which the student is worse than its first stage.

    Raises:
        StudentError: the extra is not installed or the model is not found (exit code 4), or the port is taken.
        DataMissing: the student is not found.
    """
    extras.require("serve")
    from students.rerank.reranker import Reranker
    from students.serve.app import Limits, create_app
    from students.serve.guard import RequireKey, Server, config

    folder, max_length, facts = _find(store, name)
    listening = _listen(host, port)
    if warn is not None and facts:
        with store.read() as con:
            for warning in warnings_of(con, name.removeprefix("student:")):
                warn(warning)
    reranker = Reranker.load(folder, precision=precision, max_length=max_length, any_size=True)
    limits = Limits(texts=max_texts, body=max_body, bodies=4 * max_body, waiting=max_waiting)
    app = create_app(reranker, _info(name, reranker, facts), limits)
    key = os.environ.get("MSFT_SERVE_KEY", "").strip()
    guarded = RequireKey(app, key) if key else app
    server = Server(config(guarded))
    if note is not None:
        address, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        note(f"serving {name} ({reranker.precision}) at http://{shown}:{port}/rerank; stop with Ctrl-C")
        if not key and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            note(
                f"warning: anyone who reaches {host} can use this server; set MSFT_SERVE_KEY to require a key"
            )
    server.run(sockets=[listening])


def _info(name: str, reranker: "Reranker", facts: dict[str, Any]) -> dict[str, Any]:
    """Make the answer of /info, in the keys of text-embeddings-inference."""
    return {
        "model_id": name,
        "model_sha": facts.get("weights_hash"),
        "model_dtype": reranker.precision,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": reranker.encoder.max_length,
        "version": metadata.version("msft"),
        **facts,
    }


def _listen(host: str, port: int) -> socket.socket:
    """Bind a socket. This happens before the model is loaded, so that a taken port is reported at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise StudentError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            hint="give --port 0 for a free port; --host must be an address of this machine",
        ) from error


def _find(store: LabelStore, name: str) -> tuple[str | Path, int | None, dict[str, Any]]:
    """Return a model's folder or id, its tokens per pair, and its facts from the store."""
    if store.exists:
        with store.read() as con:
            try:
                student = lookup.student(con, name.removeprefix("student:"))
            except DataMissing:
                if not ("/" in name or Path(name).exists()):
                    raise
            else:
                facts = {"regime": student.regime, "base": student.base, "weights_hash": student.weights_hash}
                return student_folder(store, student), student.max_length, facts
    return name, None, {}
