"""Import a run file as a first stage."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from labelstore.errors import BadInput
from labelstore.files.run_lines import RunLines, run_lines
from labelstore.files.work_folder import work_folder
from labelstore.provenance import record as provenance
from labelstore.runs.known_ids import KnownIds, copy_ids, known_ids
from labelstore.runs.staged_run import StagedRun, stage_run
from labelstore.runs.write import Checked, NewRun, keep_run
from labelstore.runs.wrong_lines import candidate, unknown_ids
from labelstore.store import lookup
from labelstore.store.interrupts import interruptible
from labelstore.store.label_store import LabelStore, Undo, configure

UNKNOWN_QUERY = "query unknown to the collection"
UNKNOWN_PASSAGE = "passage unknown to the collection"
OTHER_QUERY = "query of another dataset over the collection"

Drops = dict[str, tuple[int, str | None]]


@dataclass(frozen=True)
class Imported:
    """The result of an import: the run, whether it is new, the rows read, and the rows left out by reason."""

    run: lookup.Run
    new: bool
    n_read: int
    drops: Drops


def import_run(
    store: LabelStore,
    path: str | Path,
    dataset: str | None = None,
    name: str | None = None,
    *,
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
        skip_unknown: leave out unknown queries and passages with counts instead of refusing the file.
        note: called with warnings, e.g. that ranks in the file disagree with its scores.

    Raises:
        BadInput: with file:line, a malformed line, a score that is not finite, or a passage that a query has twice;
            without `skip_unknown` also the first unknown id, with the counts.
    """
    path = Path(path)
    name = name or _run_name(path)
    clock = provenance.Clock()
    with work_folder(store.path.parent) as folder:
        lines, known, staged = _read(store, path, dataset, folder, skip_unknown)
        drops = _drops(path, known, staged)
        if staged.n_out_of_order and note:
            n = len(staged.sums)
            note(
                f"{path}: ranks disagree with scores in {staged.n_out_of_order:,} of {n:,} queries; the scores count"
            )
        with store.write() as con, provenance.recorded_in(con, "runs.import", clock) as job:
            checked = _registered(con, known.dataset, staged)
            new = NewRun(
                known.dataset.dataset,
                name,
                "first_stage",
                lines.tag,
                {"file": path.name, **(parameters or {})},
            )
            run = keep_run(con, job, new, checked, replace=replace)
            job.count(con, "run", f"{known.dataset.name}/{name}", staged.n_read, drops)
            is_new = con.execute("SELECT job FROM runs WHERE run = ?", [run.run]).fetchall() == [(job.job,)]
            if not is_new:
                raise Undo
    return Imported(run, is_new, staged.n_read, drops)


def _read(
    store: LabelStore, path: Path, dataset: str | None, folder: Path, skip_unknown: bool
) -> tuple[RunLines, KnownIds, StagedRun]:
    """Look up a file's ids and check its rows, outside the store.

    Raises:
        BadInput: as `run_lines`, `known_ids` and `stage_run`, or an unknown id without `skip_unknown`.
    """
    with _database(folder) as con:
        with ThreadPoolExecutor(1) as other:  # each of the two keeps one core busy
            ids = other.submit(known_ids, store, con, dataset)
            lines = run_lines(path, folder)
        known = ids.result()
        staged = stage_run(con, lines, known, folder / "rows.arrow")
        if staged.first_unknown is not None and not skip_unknown:
            copy_ids(store, con, known)
            n_lines = {"queries": staged.n_query, "passages": staged.n_passage}
            unknown_ids(con, lines, known, staged.first_unknown, staged.n_read, n_lines)
    return lines, known, staged


def _registered(con: duckdb.DuckDBPyConnection, read: lookup.Dataset, staged: StagedRun) -> Checked:
    con.register("staged_sums", staged.sums)
    _refuse_a_changed_dataset(con, read)
    con.register("staged_rows", staged.open())
    return Checked("staged_sums", staged.depth, "SELECT query, rank, document, score FROM staged_rows")


def _run_name(file: Path) -> str:
    """Return a file's name without the endings of runs."""
    name = file.name
    for ending in (".gz", ".zst", ".txt", ".run", ".trec", ".res"):
        name = name.removesuffix(ending)
    return name


@contextmanager
def _database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory that spills into the folder. Joins keep the order of the rows whose ids they look up."""
    with (
        duckdb.connect(":memory:", config={"temp_directory": str(folder / "spill")}) as con,
        interruptible(con),
    ):
        configure(con)
        con.execute("SET disabled_optimizers = 'join_order, build_side_probe_side'")
        con.execute("SET streaming_buffer_size = '64MB'")
        yield con


def _drops(path: Path, known: KnownIds, staged: StagedRun) -> Drops:
    """List the rows left out, by reason.

    Raises:
        BadInput: if nothing else is in the file.
    """
    if not staged.n_kept:
        raise BadInput(
            f"{path}: none of its {staged.n_read:,} lines belongs to a query of {known.dataset.name} with a known"
            " passage",
            hint="check that the run is over this dataset: `msft data list`",
        )
    drops: Drops = {}
    if staged.first_unknown is not None:
        where = f"{path}:{candidate(path, staged.first_unknown).line}"
        drops = {UNKNOWN_QUERY: (staged.n_query, where), UNKNOWN_PASSAGE: (staged.n_passage, where)}
    if staged.n_other:
        drops[OTHER_QUERY] = (staged.n_other, None)
    return drops


def _refuse_a_changed_dataset(con: duckdb.DuckDBPyConnection, read: lookup.Dataset) -> None:
    """Refuse rows whose queries left the dataset, or whose dataset was replaced, while the file was read."""
    now = lookup.dataset(con, read.name)
    (gone,) = con.execute(
        "SELECT count(*) FROM staged_sums ANTI JOIN (SELECT query FROM dataset_queries WHERE dataset = ?) USING (query)",
        [now.dataset],
    ).fetchall()[0]
    if gone or (now.dataset, now.collection) != (read.dataset, read.collection):
        raise BadInput(f"{read.name} was changed while the run was read", hint="import the run again")
