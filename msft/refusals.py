"""Turn errors of the machine from Python, Arrow, DuckDB, torch or safetensors into clear messages.

The errors are a full disk, a read-only file system, a file of another user, too few file descriptors and too little
memory.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msft.errors import MsftError

_FULL = re.compile(
    r"No space left on device|File too large|Disk quota exceeded|failed to offload data block"
    r"|requested and \d+ written"  # numpy's tofile and save
    r"|inline_container.*(unexpected pos|file write failed)"  # torch.save hides the errno
)
_READ_ONLY = re.compile(r"Read-only file system", re.IGNORECASE)
_FORBIDDEN = re.compile(r"Permission denied|Operation not permitted")
_DESCRIPTORS = re.compile(r"Too many open files")
_MEMORY = re.compile(
    r"Out of Memory Error|out of memory|(can't|cannot|unable to|failed to) allocate|Cannot allocate memory|bad_alloc"
    r"|can't start new thread|failed to map segment",
    re.IGNORECASE,
)
_PLACES = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}


class NoRoom(MsftError):
    """The disk is full, or a file must not grow further."""


class NotWritable(MsftError):
    """A file system or a file cannot be written, or not even read."""


class NoMemory(MsftError):
    """The machine does not have the memory that the work needs."""


@contextmanager
def named(folder: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Replace errors of the machine, raised while writing in or beside `folder`, by clear ones.

    Args:
        kinds: a library's errors that hide the system's error; OSError and MemoryError are always included.

    Raises:
        NoRoom, NotWritable, NoMemory, MsftError: in place of the machine's error.
    """
    refused: tuple[type[Exception], ...] = (OSError, MemoryError, *kinds)
    try:
        yield
    except refused as error:
        found = explained(error, folder)
        if found is None:
            raise
        raise found from error


def explained(error: BaseException, where: Path | None = None) -> MsftError | None:
    """Turn an error of the machine into one that a user can act on; None for any other error.

    Args:
        where: the folder of the work, for errors that name no file.
    """
    if hasattr(error, "hint"):
        return None
    if isinstance(error, ImportError) and error.__cause__ is not None:
        return explained(error.__cause__, where)  # numpy hides why a part of it was not loaded
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    name = getattr(error, "filename", None)
    place = where or name or "the place that was written to"
    if _FULL.search(text):
        return NoRoom(
            f"there is no room in {place}: {first}",
            hint="make room on the disk, or work on another one, then run the same command again: what was complete is kept",
        )
    if _READ_ONLY.search(text):
        return NotWritable(
            f"{place} is on a read-only file system: nothing can be written there",
            hint="name a place on a disk that can be written (for a store: copy it there, then --store)",
        )
    if _FORBIDDEN.search(text):
        return NotWritable(
            f"{name or place} may not be used by this user: {first}",
            hint="change its permissions (chmod, chown), or name another place",
        )
    if _DESCRIPTORS.search(text):
        return MsftError(
            f"the system lets this process open no more files: {first}",
            hint="raise the limit with `ulimit -n 1024`, then run it again",
        )
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return NoMemory(
            f"there is too little memory: {first}",
            hint="end other programs, or ask for less: MSFT_MEMORY=1GB bounds DuckDB, --batch-tokens a model,"
            " --set memory_tokens=4096 a training",
        )
    if isinstance(error, OSError) and error.errno in _PLACES and name is not None:
        return MsftError(
            f"{name} cannot be used: {error.strerror}", hint="check the path, or name another one"
        )
    return None
