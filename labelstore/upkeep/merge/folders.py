"""Copy folders of views and students that this store lacks from another store's companion folder."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labelstore.files.work_folder import set_aside, work_folder
from labelstore.store import foreign
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.merge.maps import Maps
from labelstore.upkeep.verify.folders import student_problems, view_problems


@dataclass(frozen=True)
class Copy:
    """A folder that this store lacks.

    Attributes:
        content: the hash of the view or the weights. kind: the view's kind; None for a student.
    """

    name: str
    source: Path
    target: Path
    content: str
    kind: str | None

    def problems(self) -> list[str]:
        """List the faults of the folder there and of the place here; links are not followed."""
        for root in (
            self.source.parent.parent,
            self.source.parent,
            self.target.parent.parent,
            self.target.parent,
        ):
            if root.is_symlink():
                return [f"{root} is a link, which is not followed"]
        if self.target.is_symlink():
            return [f"{self.target} is a link, which is not followed"]
        for odd in foreign.odd_files(self.source):
            return [f"{odd} is a link, or neither file nor folder"]
        if self.kind is None:
            return student_problems(self.source, self.content)
        return view_problems(self.source, self.content, self.kind)

    def run(self) -> None:
        """Copy the folder; it appears whole or not at all. An existing folder is renamed to NAME.aside-N."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(self.target.parent) as work:
            shutil.copytree(self.source, work / "copy", symlinks=True)
            if self.target.exists():  # this store names it nowhere, so it may be the user's own
                set_aside(self.target)
            (work / "copy").rename(self.target)


def lacking(maps: Maps, store: LabelStore, other: LabelStore) -> Iterator[Copy]:
    """List the folders to copy: of new views and students, and of known ones whose folder is missing."""
    for name, kind, view_hash, folder in maps.rows(
        "SELECT name, kind, view_hash, folder FROM msft_theirs.views ORDER BY view"
    ):
        if not (store.files / folder).is_dir():
            yield Copy(f"view {name}", other.files / folder, store.files / folder, view_hash, kind)
    for there, name, folder, weights_hash, fresh in maps.rows(
        """SELECT s.name, m.name, s.folder, s.weights_hash, m.fresh FROM msft_theirs.students s
           JOIN m_students m ON m.other = s.student ORDER BY s.student"""
    ):
        target = store.files / (folder if name == there else f"students/{name}")
        if (fresh and student_problems(target, weights_hash)) or not target.is_dir():
            yield Copy(f"student {name}", other.files / folder, target, weights_hash, None)
