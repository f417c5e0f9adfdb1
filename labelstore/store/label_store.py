"""LabelStore opens the DuckDB file late, closes it early, waits for a lock, and names its holder.

While one process holds the file for writing, no other can open it, even to read; while one reads, none can write. So no job
keeps it open during long work: ``with store.read() as con`` and ``with store.write() as con`` around the few statements that
need it. Each ``write`` is one transaction.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import duckdb

from labelstore.errors import DataMissing, MsftError, StoreDamaged, StoreError, UsageError
from labelstore.store import migrations, removed_folders, writer_first
from labelstore.store.interrupts import interruptible
from msft import refusals

DEFAULT_LOCK_WAIT = 60.0
QUIET_WAIT = 2.0  # seconds after which a wait for another process's lock is told
DEFAULT_MEMORY = "3GB"

_DAMAGE = re.compile(
    r"(Corrupt database file|Could not read enough bytes).*?location (?P<location>\d+)", re.DOTALL
)
ANYWHERE: Sequence[Path] = (Path("/"),)
_HOLDER = re.compile(r"held in (?P<program>.*?) \(PID (?P<pid>\d+)\)")
_CONFIG: dict[str, Any] = {
    "storage_compatibility_version": "v1.5.0",  # DuckDB 1.5 can open what 2 wrote
    "autoinstall_known_extensions": "false",  # no download without a request
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # a table's name never means a variable of this program
}


class Undo(Exception):
    """Raised in a write that finds nothing new: the transaction is rolled back and leaves no trace."""


class LabelStore:
    """A store, named by its path; it holds no connection between uses.

    Example::

        store = LabelStore("msft.duckdb")
        with store.read() as con:
            con.execute("SELECT count(*) FROM documents").fetchone()

    Args:
        path: the DuckDB file, or a link to it. Its companion folder ``<name>.files/`` lies beside it.
        lock_wait: seconds to wait for another process's lock; by default ``MSFT_LOCK_WAIT``, or 60.
    """

    tell: ClassVar[Callable[[str], None]] = staticmethod(lambda message: None)
    """Called with one line when a wait for the lock lasts more than two seconds; the command line prints it."""

    def __init__(self, path: str | Path, lock_wait: float | None = None) -> None:
        self.path = _checked(Path(path))
        if lock_wait is None:
            lock_wait = float(os.environ.get("MSFT_LOCK_WAIT", DEFAULT_LOCK_WAIT))
        self.lock_wait = lock_wait

    @property
    def files(self) -> Path:
        """The companion folder: ``journal/``, ``views/``, ``tokens/``, ``students/``."""
        name = self.path.name.removesuffix(".duckdb")
        return self.path.with_name(name + ".files")

    def missing_hint(self, folder: str) -> str:
        """Say what to do if a folder of the store is missing: it stays behind when a store is renamed or copied.

        Args:
            folder: relative to :attr:`files`.
        """
        held = [
            f for f in sorted(self.files.parent.glob("*.files")) if f != self.files and (f / folder).is_dir()
        ]
        if not held:
            return "put it back"
        return (
            f"{held[0]} holds it: if the store was renamed, `mv {held[0]} {self.files}`; if copied, `cp -r`"
        )

    def folder(self, name: str) -> Path:
        """Return a subfolder of :attr:`files`; make it if it is missing."""
        folder = self.files / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def exists(self) -> bool:
        return self.path.is_file()

    @contextmanager
    def read(self, reach: Sequence[Path] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a read-only connection for a ``with`` block; many readers can read at a time.

        An older store is migrated first (that takes the write lock for a moment).

        Args:
            reach: files and folders that SQL may read and write beside the store; :data:`ANYWHERE` for all.

        Raises:
            DataMissing: the store does not exist yet.
            StoreError: it stays locked, is from a newer version, or is not a store.
            StoreDamaged: a block that was read does not match its checksum.
        """
        if not self.exists:
            raise DataMissing(
                f"store not found: {self.path}",
                hint="make one with `msft data add DATASET`, or name another with --store PATH or MSFT_STORE",
            )
        con = self._connect(read_only=True)
        try:
            confine(con, reach)
            version = migrations.schema_version(con)
            if version is None or version < migrations.CURRENT_VERSION:
                con.close()
                with self.write():
                    pass
                con = self._connect(read_only=True)
                confine(con, reach)
                version = migrations.CURRENT_VERSION
            migrations.check_not_newer(version, self.path)
            with interruptible(con):
                removed_folders.finish(con, self.files)
                yield con
        except duckdb.Error as error:
            if damaged_at(error) is None and not isinstance(error, duckdb.PermissionException):
                raise
            raise self._explain(error) from error
        finally:
            con.close()

    @contextmanager
    def as_it_is(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a read-only connection without checking the schema version; `msft verify` reads damaged files so.

        Raises:
            StoreError, StoreDamaged: the file cannot be opened at all.
        """
        con = self._connect(read_only=True)
        try:
            confine(con, ())
            with interruptible(con):
                yield con
        finally:
            con.close()

    @contextmanager
    def write(
        self, transaction: bool = True, reach: Sequence[Path] = ()
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the one writing connection for a ``with`` block, in one transaction: all of it is stored, or nothing.

        The first write makes the store. To end the block without a change and without an error, raise :class:`Undo`.

        Args:
            transaction: False leaves BEGIN and COMMIT to the caller (bulk loads that checkpoint in between).
            reach: as in :meth:`read`.

        Raises:
            StoreError: the store stays locked, is from a newer version, or is not a store.
            StoreDamaged: a block that was read does not match its checksum.
            NoRoom: the disk is full.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Undo), refusals.named(self.path.parent, duckdb.Error), self._writing(reach) as con:
            if transaction:
                with in_transaction(con):
                    yield con
            else:
                yield con

    @contextmanager
    def _writing(self, reach: Sequence[Path]) -> Iterator[duckdb.DuckDBPyConnection]:
        with writer_first.WriterLock(self.path) as lock:
            con = self._connect(read_only=False, lock=lock)
        try:
            confine(con, reach)
            version = migrations.schema_version(con)
            if version is not None:
                migrations.check_not_newer(version, self.path)
            with interruptible(con):
                migrations.migrate(con)
                removed_folders.finish(con, self.files)
                yield con
        except duckdb.Error as error:
            if damaged_at(error) is None and not isinstance(error, duckdb.PermissionException):
                raise
            raise self._explain(error) from error
        finally:
            con.close()

    def _connect(
        self, read_only: bool, lock: writer_first.WriterLock | None = None
    ) -> duckdb.DuckDBPyConnection:
        wait = _Wait(self.path, self.lock_wait)
        while True:
            if lock is not None:
                lock.try_again()
            elif writer_first.writer_waits(self.path) and not wait.over:
                wait.on("a process that is about to write")
                continue
            try:
                con = duckdb.connect(str(self.path), read_only=read_only, config=_CONFIG)
                configure(con)
                return con
            except duckdb.Error as error:
                found = _HOLDER.search(str(error))
                if found is None:
                    raise self._explain(error) from error
                holder = f"{Path(found['program']).name} (PID {found['pid']})"
                if wait.over:
                    raise StoreError(
                        f"{self.path} is held by {holder} and was not released in {self.lock_wait:.0f} s",
                        hint=f"wait for it or end it (ps {found['pid']}), or set MSFT_LOCK_WAIT to more seconds",
                    ) from error
            wait.on(holder)

    def _explain(self, error: duckdb.Error) -> MsftError:
        text = str(error).splitlines()[0]
        location = damaged_at(error)
        if location is not None:
            return StoreDamaged(
                f"{self.path} is damaged: the block at byte {location:,} is cut short or does not match its checksum",
                hint="run `msft verify` to see what it held; then put back a copy, or `msft import-store` from an archive",
            )
        if isinstance(error, duckdb.PermissionException):
            return StoreError(
                f"{self.path} holds a view or macro that reads another file: {text}",
                hint="use nothing from this store: msft did not make this view",
            )
        if (named := refusals.explained(error, self.path)) is not None:
            return named
        if "not a valid DuckDB database" in text:
            return StoreError(
                f"{self.path} is not a DuckDB file", hint="name the store with --store or MSFT_STORE"
            )
        if "newer version" in text or "storage version" in text:
            return StoreError(
                f"{self.path} was written by a newer DuckDB: {text}", hint="pip install -U duckdb"
            )
        return StoreError(
            f"{self.path} cannot be opened: {text}",
            hint="run `msft verify` to see what is damaged, and restore a copy if it is",
        )


class _Wait:
    """A wait for another process's lock, with growing pauses; after two seconds it is told once who holds the store."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._began = time.monotonic()
        self._pause = 0.02
        self._told = False

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._began + self._seconds

    def on(self, holder: str) -> None:
        """Pause once more for the holder."""
        if not self._told and time.monotonic() >= self._began + QUIET_WAIT:
            self._told = True
            LabelStore.tell(f"waiting for {self._path}: held by {holder}, for {self._seconds:.0f} s at most")
        time.sleep(self._pause)
        self._pause = min(self._pause * 1.5, 0.5)


def _checked(path: Path) -> Path:
    """Follow a link and check that DuckDB can open the path.

    DuckDB reads ``?`` as the start of options, and writes ``\\`` as ``/``.

    Raises:
        UsageError: DuckDB cannot open the path.
    """
    if (
        path.is_symlink()
    ):  # DuckDB would keep its log beside the link, where the file's next user does not find it
        path = path.resolve()
    whole = str(path.absolute())
    for sign in "?\\":
        if sign in whole:
            raise UsageError(
                f"--store {path}: DuckDB cannot take a path with {sign}: {whole}",
                hint="rename the folder or file, or name another with --store",
            )
    return path


def damaged_at(error: duckdb.Error) -> int | None:
    """Return the byte offset of a block that is cut short or does not match its checksum; None for another error."""
    found = _DAMAGE.search(str(error))
    return int(found["location"]) if found else None


def configure(con: duckdb.DuckDBPyConnection) -> None:
    """Configure a connection: no progress bar, and bounded memory, so that DuckDB spills to disk.

    ``MSFT_MEMORY`` (e.g. 8GB) sets the bound, by default 3 GB. The rest goes to a temporary folder beside the store.
    """
    con.execute("SET enable_progress_bar = false")
    limit = os.environ.get("MSFT_MEMORY", DEFAULT_MEMORY)
    try:
        con.execute("SET memory_limit = ?", [limit])
    except (duckdb.ParserException, duckdb.InvalidInputException) as error:
        raise UsageError(f"MSFT_MEMORY is {limit!r}", hint="give a size, e.g. MSFT_MEMORY=2GB") from error


def confine(con: duckdb.DuckDBPyConnection, reach: Sequence[Path]) -> None:
    """Allow only the store's own files and those of `reach`: a view in another's store could read other files."""
    if reach is ANYWHERE:
        return
    folders = [str(path.absolute()) for path in reach if path.is_dir()]
    files = [f"{path.absolute()}{log}" for path in reach if not path.is_dir() for log in ("", ".wal")]
    con.execute("SET allowed_directories = ?", [folders])
    con.execute("SET allowed_paths = ?", [files])
    con.execute("SET enable_external_access = false")


@contextmanager
def in_transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Run the enclosed statements in one transaction: all of it is stored, or nothing."""
    con.execute("BEGIN")
    try:
        yield
    except BaseException:
        # a damaged file and Ctrl-C end the transaction by themselves, so the first error is raised
        with suppress(duckdb.Error, RuntimeError):
            con.execute("ROLLBACK")
        raise
    con.execute("COMMIT")


def next_id(con: duckdb.DuckDBPyConnection, table: str, column: str) -> int:
    """Return the first free surrogate key of a table; safe inside a transaction, since there is one writer at a time."""
    (value,) = con.execute(f"SELECT coalesce(max({column}), 0) + 1 FROM {table}").fetchall()[0]
    return int(value)
