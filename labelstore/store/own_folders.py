"""Names and folders of students and views in rows: where they may lie, and what their folders may hold.

A row of a store from elsewhere can name a folder that leads out of the store. Every use of such a folder goes through
:func:`own_folder`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from labelstore.errors import BadInput, UsageError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def check_name(name: str, what: str = "student") -> str:
    """Check a student's name, which is also a folder's name.

    Raises:
        UsageError: it cannot be a folder's name.
    """
    if (
        not name
        or name != Path(name).name
        or name.startswith(".")
        or "\\" in name
        or ":" in name
        or CONTROL.search(name)
    ):
        raise UsageError(
            f"{name!r} cannot be a {what}'s name", hint="use letters, digits, '-', '_', '.' and ','"
        )
    return name


def student_inside(folder: str) -> bool:
    """Tell whether a student's folder is ``students/NAME``."""
    kind, _, name = folder.partition("/")
    try:
        return kind == "students" and check_name(name) == name
    except UsageError:
        return False


def view_inside(folder: str, view_hash: str) -> bool:
    """Tell whether a view's folder is ``views/HASH``."""
    return re.fullmatch(r"\w+", view_hash, re.ASCII) is not None and folder == f"views/{view_hash}"


def own_folder(files: Path, what: str, name: str, folder: str, view_hash: str | None = None) -> Path:
    """Return the folder of a student's or view's row. Links are not followed.

    Args:
        files: the store's companion folder.
        view_hash: the hash of a view; None for a student.

    Raises:
        BadInput: the path leads out of the store's folder.
    """
    inside = student_inside(folder) if view_hash is None else view_inside(folder, view_hash)
    where = files / folder
    if not inside or where.is_symlink() or where.parent.is_symlink():
        wanted = "students/NAME" if view_hash is None else f"views/{view_hash}"
        raise BadInput(
            f"{what} {name}: its folder {folder!r} leads out of the store, expected {wanted}, a folder and no link",
            hint="put back a copy of the store; use nothing of this row",
        )
    return where


def check_plain(folder: Path) -> None:
    """Check that a folder to be copied holds only files and folders, because a copy would follow its links.

    Raises:
        BadInput: names the first link, pipe or device.
    """
    for odd in odd_files(folder):
        raise BadInput(
            f"{odd} is a link, or neither file nor folder", hint=f"rm {odd}, or put a copy in its place"
        )


def odd_files(folder: Path) -> Iterator[Path]:
    """List links and special files at or below a folder; they are neither copied nor read."""
    if folder.is_symlink():
        yield folder
        return
    for where, folders, files in os.walk(folder):
        for path in (Path(where, name) for name in sorted(folders + files)):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                yield path
