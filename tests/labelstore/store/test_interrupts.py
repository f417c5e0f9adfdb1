"""Ctrl-C ends any statement at once, as a KeyboardInterrupt, and leaves the store as it was."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import forked
import pytest

from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify

pytestmark = pytest.mark.test_all

ROOT = Path(__file__).resolve().parents[3]
LONG = "SELECT sum(a.range * b.range % 7) AS s FROM range(3000000) a, range(3000000) b"
SCRIPT = """
import sys
from labelstore.store.label_store import LabelStore

store = LabelStore(sys.argv[1])
with getattr(store, sys.argv[2])() as con:
    if sys.argv[2] == "write":
        con.execute("CREATE TABLE made (x INTEGER)")
    print("begun", flush=True)
    {statement}
"""
STATEMENTS = {
    "sql": "con.sql(LONG).fetchall()",
    "execute": "con.execute(LONG).fetchall()",
    "parameter": "con.execute(LONG + ' WHERE a.range > ?', [3]).fetchall()",
    "arrow": "con.sql(LONG).to_arrow_table()",
    "create": "con.execute('CREATE TEMP TABLE t AS ' + LONG)",
}


@pytest.fixture
def store(tmp_path):
    store = LabelStore(tmp_path / "s.duckdb")
    with store.write():
        pass
    return store


def begun(arguments: list[str]) -> "subprocess.Popen[str]":
    return forked.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def holds(process: "subprocess.Popen[str]", path: Path) -> bool:
    """Whether the process has the file open."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):
            if descriptor.readlink() == path:
                return True
    return False


@pytest.mark.parametrize("way", ["read", "write"])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_any_statement_ends_as_a_keyboard_interrupt(store, statement, way):
    script = SCRIPT.format(statement=STATEMENTS[statement].replace("LONG", repr(LONG)))
    process = begun(["-c", script, str(store.path), way])
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT, errors  # Python's own end of an unhandled KeyboardInterrupt
    assert "KeyboardInterrupt" in errors
    assert verify(store).findings == []
    with store.read() as con:
        assert con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'made'").fetchall() == []


def test_a_command_says_so_and_exits_130(store):
    process = begun(["-m", "cli.main", "sql", LONG, "--store", str(store.path)])
    deadline = time.monotonic() + 100
    while not holds(process, store.path) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert errors.startswith("interrupted")
    assert "Traceback" not in errors


def test_a_handler_of_the_callers_is_left_alone(store):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with store.read() as con:
            signal.raise_signal(signal.SIGINT)
            assert con.execute("SELECT 42").fetchall() == [(42,)]
        assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, before)
    with store.read():
        inside = signal.getsignal(signal.SIGINT)
    assert inside is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_query_ended_by_something_else_is_no_keyboard_interrupt(store):
    with pytest.raises(RuntimeError, match="interrupted"), store.read():
        raise RuntimeError("Query interrupted")
