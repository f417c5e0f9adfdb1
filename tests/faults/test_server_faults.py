"""Servers that are half open, and kills while a segment is set aside: no call is lost, and none is paid twice."""

import random
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from openai_servers import Answer, good, serving
from test_kill_generate import rows, start

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore
from teachers.journal import segments as journal

pytestmark = pytest.mark.test_all

GENERATE = """
import sys
from cli.main import run
run(["teachers", "generate", "--store", sys.argv[1], "--model", "tiny", "--engine", "openai", "--canaries", "0",
     "--timeout", "1", "--max-in-flight", "4", "--max-attempts", "9", "--name", "made",
     *(word for url in sys.argv[2:] for word in ("--base-url", url))])
"""


class HalfOpen:
    """Lists its models as it should; then, by chance, it is silent, resets, or ends in the middle of an answer."""

    KINDS = ("silent", "reset", "head", "body", "closed")

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self.seen: set[str] = set()
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()
        for held in self._held:
            held.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._held.append(connection)  # a connection that nothing holds would be closed
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        if connection.recv(1 << 16).startswith(b"GET"):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            connection.shutdown(socket.SHUT_WR)
            return
        kind = self._rng.choice(self.KINDS)
        self.seen.add(kind)
        if kind == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        elif kind == "head":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")
        elif kind == "body":
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [')
        elif kind == "closed":
            connection.shutdown(socket.SHUT_RDWR)


def calls_of(path: Path) -> list[dict[str, Any]]:
    return [record for record in journal.read(path) if record["t"] == "call"]


def half_open(tmp_path: Path, queries: int, servers: int, kills: int) -> set[str]:
    """A job over half-open servers and one that is well, killed at random moments; what the half-open ones did."""
    rng = random.Random(kills)
    bad = [HalfOpen(seed) for seed in range(servers)]
    store = make(tmp_path / "s.duckdb", queries, length=lambda k: 4)

    def slow(k: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.05)
        return good(body)

    with serving(slow) as well:
        urls = [well.url, *(server.url for server in bad)]
        done: set[str] = set()
        for _ in range(kills):
            process = start(GENERATE, str(store.path), *urls)
            time.sleep(rng.uniform(2.0, 6.0))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            for path in journal.segments(store.files / "journal"):
                done |= {r["request"] for r in calls_of(path) if r["status"] == "ok"}
        process = start(GENERATE, str(store.path), *urls)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    for server in bad:
        server.close()
    assert rows(store, "SELECT count(*) FROM permutations WHERE status = 'ok'") == [(queries,)]
    kept = rows(store, "SELECT request_key FROM calls JOIN requests USING (request) WHERE status = 'ok'")
    assert len(kept) == len(set(kept)) == queries, "no call was paid twice"
    assert done <= {key for (key,) in kept}, "no call was lost"
    return set().union(*(server.seen for server in bad))


def test_half_open_servers(tmp_path: Path) -> None:
    assert half_open(tmp_path, 30, 2, 0)


@pytest.mark.slow
def test_half_open_servers_and_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = half_open(tmp_path, 400, 3, 10)
    assert seen == set(HalfOpen.KINDS)
    with capsys.disabled():
        print(f"\nhalf-open servers ({', '.join(sorted(seen))}): 10 kills, 0 losses, no call paid twice")


SETTING_ASIDE = """
import os, signal, sys
from pathlib import Path
from labelstore.store.label_store import LabelStore
from teachers.journal import segments as journal
from teachers.generate import merge_journal as merge

where = sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "begin":
    journal.set_aside = die
elif where == "reasons":
    os.fsync = die
elif where == "rename":
    Path.rename = die
elif where == "after":
    rename = Path.rename
    Path.rename = lambda self, target: (rename(self, target), die())
elif where == "between":
    real, count = journal.set_aside, []
    journal.set_aside = lambda *arguments: die() if count else (real(*arguments), count.append(1))
print(merge.merge_journal(LabelStore(sys.argv[1]), Path(sys.argv[3])).aside)
"""


def spoilt(store: LabelStore, number: int) -> Path:
    """A journal of `number` segments of ten calls each, of which the third names a query that is not in the store."""
    from teachers.generate import job as jobs
    from teachers.generate import merge_journal as merge
    from teachers.generate.settings import Settings
    from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "teachers.generate.child_process.merge_small_or_large", lambda *_: merge.MergedJournal()
        )
        jobs.generate(store, Settings(model="rankzephyr", canaries=0), engine=ScriptedEngine(hashed_order))
    (path,) = journal.segments(store.files / "journal")
    head = journal.header(path)
    assert head is not None
    calls = calls_of(path)
    path.unlink()
    for k in range(number):
        mine = calls[10 * k : 10 * k + 10]
        mine[2]["query_id"] = "of another store"
        lines = b"".join(journal.encode(record) for record in (head, *mine))
        (path.parent / f"{head['job']}.0.1.{k:06d}.calls").write_bytes(lines)
    return path.parent


@pytest.mark.parametrize("where", ["begin", "reasons", "rename", "after", "between"])
def test_killed_while_a_segment_is_set_aside(tmp_path: Path, where: str) -> None:
    store = make(tmp_path / "s.duckdb", 30, length=lambda k: 4)
    folder = spoilt(store, 3)
    before = {path.name: path.read_bytes() for path in journal.segments(folder)}
    process = start(SETTING_ASIDE, str(store.path), where, str(folder))
    _, said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    found = {path.name: path.read_bytes() for path in journal.segments(folder)}
    found |= {path.name: path.read_bytes() for path, _ in journal.aside(folder)}
    assert found == before, "each segment is in one of the two places"
    process = start(SETTING_ASIDE, str(store.path), "none", str(folder))
    output, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert int(output) >= 1
    assert {path.name: path.read_bytes() for path, _ in journal.aside(folder)} == before
    assert all(reasons[0].startswith("call ") for _, reasons in journal.aside(folder))
    assert rows(store, "SELECT count(*), count(DISTINCT call_key) FROM calls") == [(27, 27)]
