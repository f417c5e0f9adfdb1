"""One training of a student, one job of a labeling at a time: a file is locked while it runs, and names the process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from labelstore.errors import StoreError
from labelstore.store import keys
from labelstore.store.label_store import LabelStore


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold the file ``lock`` meanwhile. It stays: removing it could let a third process in beside a second.

    Args:
        what: what happens to what, for the message: ``student x is being trained``.

    Raises:
        StoreError: if another process holds it (exit code 3); the message has its PID.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StoreError(
                f"{what} by another process (PID {holder})",
                hint=f"wait for it or end it (ps {holder}), then give this command again",
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def labeling_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Hold a labeling, so that one job at a time writes it (:func:`alone`)."""
    file = keys.content_key("labeling", name)  # a name may hold what a file's may not
    return alone(store.folder("locks") / f"{file}.lock", f"labeling {name} is being made")
