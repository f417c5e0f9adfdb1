"""Run large work on the store in a child process.

The memory that DuckDB needs, up to its limit, is then freed when the child ends, and the engine continues while the
journal of a running job is merged. Small work is done in this process, because a child takes a second to start.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from labelstore.errors import MsftError
from labelstore.store.label_store import LabelStore
from teachers.generate import merge_journal as merging
from teachers.generate.merge_journal import MergedJournal
from teachers.journal import segments as journal

LARGE_BYTES = 4 << 20  # bytes of a journal
LARGE_CANDIDATES = 100_000  # candidates of a run

_CHILD = "from teachers.generate.child_process import _answer; _answer()"


class Call:
    """Call ``function(*arguments)`` in a child process. Both are pickled, so the function must be at module level."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                _CHILD,
            ],  # -P: imports come only from this process's paths
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # the child has already ended; `result` reports it
                self._process.stdin.write(pickle.dumps((function, arguments)))
                self._process.stdin.close()
            self._process.stdin = None

    @property
    def done(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> Any:
        """Wait for the function and return its result.

        Raises:
            Exception: the exception that the function raised.
            MsftError: if the process ended without an answer.
        """
        answer, _ = self._process.communicate()
        if self._process.returncode:
            raise MsftError(
                f"a process that worked on the store ended with code {self._process.returncode}",
                hint="run the same command again; if memory is short, bound DuckDB's with MSFT_MEMORY",
            )
        failed, value = pickle.loads(answer)
        if failed:
            raise value
        return value


def _answer() -> None:
    """Run in the child: read the call, answer on the true stdout; other output goes to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    os.nice(5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and waits for this work
    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        answer = (False, function(*arguments))
    except Exception as error:  # noqa: BLE001  (raised again in the parent)
        answer = (True, error)
    with os.fdopen(out, "wb") as stream:
        pickle.dump(answer, stream)


def merge_small_or_large(store: LabelStore, folder: Path, note: Callable[[str], None]) -> MergedJournal:
    """Run :func:`teachers.generate.merge_journal.merge_journal`, in a child process if the journal is large."""
    if _closed_bytes(folder) < LARGE_BYTES:
        return merging.merge_journal(store, folder, note)
    done: MergedJournal = Call(merging.merge_journal, store, folder).result()
    for line in done.notes:
        note(line)
    return done


def _closed_bytes(folder: Path) -> int:
    return sum(journal.size(path) for path in journal.segments(folder) if not journal.is_open(path))
