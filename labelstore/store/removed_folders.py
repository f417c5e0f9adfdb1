"""Remove the folders of rows that a transaction removes; a process killed in between leaves nothing half.

Before the transaction ends, a note of the folders is written beside the store. After it, the folders are moved away and
removed, then the note. If a note is found when the store is opened, its process has ended, since it held the store until the
folders were moved. Then the rows decide: a folder without a row goes, and a folder with a row stays.
"""

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import duckdb

from labelstore.store.own_folders import own_folder
from msft.host.durable import flush

FOLDER = ".removing"


class Removed(NamedTuple):
    """The folder of a row that goes: of a student, or of the view with this hash."""

    name: str
    folder: str
    view_hash: str | None = None


class Note:
    """A note of the folders to remove, on disk."""

    def __init__(self, files: Path, folders: Sequence[Removed]) -> None:
        self._files, self._folders = files, folders
        self._path = files / FOLDER / f"{secrets.token_hex(8)}.json"
        if not folders:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".part")
        with beside.open("w", encoding="utf-8") as file:
            json.dump([list(folder) for folder in folders], file)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(self._path)
        flush(self._path.parent)

    def move_away(self) -> None:
        """Move the folders out of their places; the rows are gone, and the caller still holds the store."""
        for removed in self._folders:
            _move_away(self._files, removed, self._path)

    def drop(self) -> None:
        """Remove what was moved away, then the note."""
        if self._folders:
            _drop(self._path)


def finish(con: duckdb.DuckDBPyConnection, files: Path) -> None:
    """Finish removals that a kill interrupted."""
    folder = files / FOLDER
    if not os.path.lexists(folder):
        return
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)
    for note in sorted(folder.glob("*.json")):
        try:
            held = [Removed(*row) for row in json.loads(note.read_text("utf-8"))]
        except FileNotFoundError:  # another process has finished it
            continue
        for removed in held:
            if not _has_row(con, removed):
                _move_away(files, removed, note)
        _drop(note)
    with suppress(OSError):
        folder.rmdir()


def _has_row(con: duckdb.DuckDBPyConnection, removed: Removed) -> bool:
    table = "students" if removed.view_hash is None else "views"
    return bool(con.execute(f"SELECT 1 FROM {table} WHERE folder = ?", [removed.folder]).fetchall())


def _move_away(files: Path, removed: Removed, note: Path) -> None:
    what = "student" if removed.view_hash is None else "view"
    where = own_folder(files, what, removed.name, removed.folder, removed.view_hash)
    target = note.with_suffix("")
    target.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        where.rename(target / f"{what}-{secrets.token_hex(4)}")


def _drop(note: Path) -> None:
    shutil.rmtree(note.with_suffix(""), ignore_errors=True)
    note.unlink(missing_ok=True)
    with suppress(OSError):  # another note is there
        note.parent.rmdir()
