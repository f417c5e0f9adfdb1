"""Working folders beside a target: results appear whole, and leftovers of killed processes are removed."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import duckdb

from msft import refusals
from msft.errors import MsftError

_WORK = ".msft-add-"
_TRIES = 50
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_HINT = "put the store on a file system with locks (flock)"


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Make a hidden folder in `parent` for work before it is stored, and remove it afterwards.

    Folders of killed processes are removed first; a living process holds a lock on its folder.

    Raises:
        NoRoom: if the disk is full.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{_WORK}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    with refusals.named(parent, duckdb.Error), _made(parent) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _made(parent: Path) -> Iterator[Path]:
    """Make a folder and hold its lock; another process that tidies up can take one that is made and not yet locked."""
    for _ in range(_TRIES):
        folder = parent / f"{_WORK}{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        with ExitStack() as held:
            try:
                held.enter_context(_locked(folder))
            except OSError as error:
                with suppress(OSError):
                    folder.rmdir()
                if isinstance(error, FileNotFoundError | BlockingIOError):  # another process tidies it up
                    continue
                if error.errno in _NO_LOCKS:
                    raise MsftError(f"{parent} cannot be locked: {error.strerror}", hint=_HINT) from error
                raise
            if folder.exists():
                yield folder
                return
    raise MsftError(f"no new folder in {parent} can be locked", hint=_HINT)


def set_aside(path: Path) -> None:
    """Rename what is in the way to NAME.aside-1, NAME.aside-2 …: what this store may not have made is not removed."""
    n = 1
    while (beside := path.with_name(f"{path.name}.aside-{n}")).exists():
        n += 1
    path.rename(beside)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder exclusively.

    Raises:
        OSError: if another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
