"""Import a run file as a first stage."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from labelstore.errors import BadInput
from labelstore.files import lines as formats
from labelstore.files import trec
from labelstore.files.work_folder import work_folder
from labelstore.provenance import record as provenance
from labelstore.runs import checked_lines as run_lines
from labelstore.runs.write import Checked, _keep
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore


@dataclass(frozen=True)
class Imported:
    """The result of an import: the run, whether it is new, the rows read, and the rows left out by reason."""

    run: lookup.Run
    new: bool
    n_read: int
    drops: dict[str, tuple[int, str | None]]


# ------------------------------------------------------------------------------------------------ TREC import
def import_run(
    store: LabelStore,
    path: str | Path,
    dataset: str | None = None,
    name: str | None = None,
    *,
    kind: str = "first_stage",
    system: str | None = None,
    skip_unknown: bool = False,
    replace: bool = False,
    parameters: Mapping[str, Any] | None = None,
    note: Callable[[str], None] | None = None,
) -> Imported:
    """Import a TREC run (plain, gz or zst) over a dataset, in one transaction at the end; the store is free while the file is read.

    Queries that the collection knows from another dataset are left out with a count; the rest must be known.

    Args:
        path: a TREC run, or a ranking of ColBERT or MS MARCO (query_id doc_id rank [score]).
        dataset: whose queries; by default the only one.
        name: the run's name; by default the file's, without its endings.
        system: the name of the ranker; by default the file's tag.
        skip_unknown: leave out unknown queries and passages with counts instead of refusing the file.
        note: called with warnings, e.g. that ranks in the file disagree with its scores.

    Raises:
        BadInput: with file:line, a malformed line, a score that is not finite, or a passage that a query has twice;
            without `skip_unknown` also the first unknown id, with the counts.
    """
    path = Path(path)
    name = name or _run_name(path)
    clock = provenance.Clock()
    tag = first_tag(path)
    damage: list[BadInput] = []
    checker = threading.Thread(target=_check, args=(path, damage), daemon=True)
    checker.start()
    try:
        with work_folder(store.path.parent) as folder:
            staged = run_lines.read(
                store,
                path,
                dataset,
                folder,
                skip_unknown=skip_unknown,
                say=note or (lambda message: None),
            )
            checker.join()
            if damage:
                raise damage[0]
            with store.write() as con, provenance.recorded_in(con, "runs.import", clock) as job:
                con.register("staged_sums", staged.sums)
                _still_known(con, staged)
                con.register("staged_rows", staged.open())
                checked = Checked(
                    sums="(SELECT query, high::HUGEINT * 4294967296 + low AS total, n FROM staged_sums)",
                    depth=staged.depth,
                    rows="SELECT query, rank, document, score FROM staged_rows",
                )
                run = _keep(
                    con, job, staged.dataset.dataset, name, kind, system or tag, None, None,
                    {"file": path.name, **(parameters or {})}, replace, checked,
                )  # fmt: skip
                job.count(con, "run", f"{staged.dataset.name}/{name}", staged.n_read, staged.drops)
                held = con.execute("SELECT job FROM runs WHERE run = ?", [run.run]).fetchall()[0][0]
                if held != job.job:
                    raise _Unchanged(Imported(run, False, staged.n_read, staged.drops))
            return Imported(run, True, staged.n_read, staged.drops)
    except _Unchanged as unchanged:
        return unchanged.imported
    finally:
        checker.join()


def _run_name(file: Path) -> str:
    """Return a file's name without the endings of runs."""
    name = file.name
    for ending in (".gz", ".zst", ".txt", ".run", ".trec", ".res"):
        name = name.removesuffix(ending)
    return name


def _still_known(con: duckdb.DuckDBPyConnection, staged: run_lines.Staged) -> None:
    """Refuse rows whose queries left the dataset, or whose dataset was replaced, while the file was read."""
    now = lookup.dataset(con, staged.dataset.name)
    (gone,) = con.execute(
        "SELECT count(*) FROM staged_sums ANTI JOIN (SELECT query FROM dataset_queries WHERE dataset = ?) USING (query)",
        [now.dataset],
    ).fetchall()[0]
    if gone or (now.dataset, now.collection) != (staged.dataset.dataset, staged.dataset.collection):
        raise BadInput(
            f"{staged.dataset.name} was changed while the run was read", hint="import the run again"
        )


class _Unchanged(Exception):
    """Rolls the transaction back: the same run again leaves no trace."""

    def __init__(self, imported: Imported) -> None:
        super().__init__()
        self.imported = imported


def _check(path: Path, damage: list[BadInput]) -> None:
    try:
        formats.check_intact(path)
    except BadInput as error:
        damage.append(error)


def first_tag(path: Path) -> str:
    """Return the tag of a run's first line, which names the ranker.

    Raises:
        BadInput: the file has no candidate, or its first line is malformed.
    """
    for candidate in trec.read_run(path):
        return candidate.tag
    raise BadInput(f"{path}: there is no candidate in it", hint="is this the right file?")
