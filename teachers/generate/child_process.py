"""Large work on the store in a process of its own.

What DuckDB needs for it, up to its memory limit, comes and goes apart from the engine and the journal; and while the
journal of a running job is merged, the engine goes on. Small work is done here: a process takes a second to start.
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

LARGE_BYTES = 4 << 20  # of journal
LARGE_CANDIDATES = 100_000  # of a run

_CHILD = "from teachers.generate.child_process import _answer; _answer()"


class Call:
    """``function(*arguments)`` in another process: both by pickle, so the function stands at the top of its module."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                _CHILD,
            ],  # -P: it imports from where this process does, and nowhere else
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it ended already: `result` says so
                self._process.stdin.write(pickle.dumps((function, arguments)))
                self._process.stdin.close()
            self._process.stdin = None

    @property
    def done(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> Any:
        """What the function returned; waits for it.

        Raises:
            Exception: what it raised there.
            MsftError: if the process ended without an answer.
        """
        answer, _ = self._process.communicate()
        if self._process.returncode:
            raise MsftError(
                f"a process that worked on the store ended with code {self._process.returncode}",
                hint="run the same command again; is memory short? MSFT_MEMORY bounds what DuckDB takes",
            )
        failed, value = pickle.loads(answer)
        if failed:
            raise value
        return value


def _answer() -> None:
    """The child's side: read what to do, answer on the true stdout; what else is printed goes to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    os.nice(5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asker is interrupted, and waits for what was begun
    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        answer = (False, function(*arguments))
    except Exception as error:  # noqa: BLE001  (raised again where it was asked)
        answer = (True, error)
    with os.fdopen(out, "wb") as stream:
        pickle.dump(answer, stream)


def merge_small_or_large(store: LabelStore, folder: Path, note: Callable[[str], None]) -> MergedJournal:
    """:func:`teachers.generate.merge_journal.merge_journal`, here or apart as the journal is small or large."""
    if _closed_bytes(folder) < LARGE_BYTES:
        return merging.merge_journal(store, folder, note)
    done: MergedJournal = Call(merging.merge_journal, store, folder).result()
    for line in done.notes:
        note(line)
    return done


def _closed_bytes(folder: Path) -> int:
    return sum(journal.size(path) for path in journal.segments(folder) if not journal.is_open(path))
