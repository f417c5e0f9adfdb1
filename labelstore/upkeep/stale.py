"""What killed and interrupted work left beside a store: working files, interrupted trainings, folders without a row."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labelstore.errors import MsftError
from labelstore.store.job_lock import student_alone
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify import folders
from labelstore.views import folder as export

COLUMNS = ("what", "name", "size_mb", "becomes")
GOES = "removed by msft clean"
YES = "removed by msft clean --yes"


@dataclass(frozen=True)
class Stale:
    """Something left.

    Attributes:
        what: leftover, training, view or student. name: the training's student, or the file's name.
        careful: whether it can still be of use, so that only ``--yes`` removes it.
        why: what it is still good for.
    """

    what: str
    name: str
    path: Path
    careful: bool
    why: str

    def row(self) -> dict[str, object]:
        """Make the row that `msft status --stale` prints."""
        return {
            "what": self.what,
            "name": self.name,
            "size_mb": round(_size(self.path) / 1e6, 1),
            "becomes": f"{YES if self.careful else GOES}: {self.why}",
        }


def stale(store: LabelStore) -> list[Stale]:
    """List what was left; the files of living processes are not among it."""
    left = [
        Stale("leftover", path.name, path, False, "a process that has ended left it")
        for path in folders.leftover_files(store)
    ]
    return [*left, *_trainings(store), *_without_row(store)]


def remove(left: Stale) -> None:
    """Remove something left; a link is not followed."""
    if left.path.is_dir() and not left.path.is_symlink():
        shutil.rmtree(left.path)
    else:
        left.path.unlink(missing_ok=True)


def _trainings(store: LabelStore) -> Iterator[Stale]:
    """List the working folders of trainings that are not under way; their command would continue them."""
    for path in sorted((store.files / "students").glob(".*")):
        if not folders.is_training(path):
            continue
        name = path.name.lstrip(".").rpartition(".")[0]
        try:
            with student_alone(store, name):
                yield Stale("training", name, path, True, "its command would continue it")
        except MsftError:  # a process trains it now
            continue


def _without_row(store: LabelStore) -> Iterator[Stale]:
    """List whole view folders that no row names: a build was killed before its row was written."""
    with store.read() as con:
        known = {name for (name,) in con.execute("SELECT folder FROM views").fetchall()}
    for path in sorted((store.files / "views").glob("*")):
        if (
            f"views/{path.name}" in known
            or path.name.startswith(".")
            or path.is_symlink()
            or not path.is_dir()
        ):
            continue
        kind = export.read_manifest(path).get("kind") if (path / "manifest.json").is_file() else None
        if kind in folders.KINDS and not folders.view_problems(path, path.name, kind):
            yield Stale("view", path.name, path, True, "building the view again would take it")


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size if path.exists() else 0
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
