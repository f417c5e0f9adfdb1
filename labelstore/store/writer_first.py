"""A writer's turn: readers that come while one waits let it in first.

Readers of a DuckDB file share its lock, so readers that follow each other without a gap would keep a writer out for
good. Beside the store lies a file that a waiting writer locks; a reader looks whether it is locked before it opens the
store. It holds nothing, and on a file system that cannot lock, nothing waits for it.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path


def _gate(store: Path) -> Path:
    return store.with_name(f".{store.name}.turn")


def writer_waits(store: Path) -> bool:
    """Whether a writer is waiting for the store."""
    try:
        handle = os.open(_gate(store), os.O_RDONLY)
    except OSError:  # no writer has been here yet, or the folder is not ours
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


class Turn:
    """A writer's wish for the store: while it is asked for, readers that come wait. Writers are let in one by one."""

    def __init__(self, store: Path) -> None:
        try:
            self._handle: int | None = os.open(_gate(store), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # the folder is not ours: opening the store will say so
            self._handle = None

    def ask(self) -> None:
        """Ask again: the first time may have been another writer's turn."""
        if self._handle is not None:
            with suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> "Turn":
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
