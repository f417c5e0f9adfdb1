"""Label the test queries with the students' offline teachers, so that an evaluation has a row for each teacher.

An offline teacher scores pairs on this machine (an embedding model, a cross-encoder) without a price per call. It
labels the candidates that the students re-rank, with the same share of the first stage as in the training labels. An
LLM costs money or hours, so only `msft teachers generate` asks it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.output import diagnostics

if TYPE_CHECKING:
    import duckdb

    from labelstore.store import lookup
    from labelstore.store.label_store import LabelStore
    from students.jobs.evaluate import Talk
    from teachers.generate.settings import Settings

_TEACHERS = """
    SELECT DISTINCT ON (t.teacher, l.parameters) l.name, t.teacher, t.teacher_key,
           CASE WHEN t.name = 'minilm' THEN t.name ELSE coalesce(t.model, t.name) END, t.engine,
           l.parameters ->> 'fuse', coalesce((l.parameters ->> 'fuse_weight')::DOUBLE, 0.5)
    FROM stages g JOIN students s USING (student) JOIN view_sources o ON o.view = g.view AND o.kind = 'labeling'
    JOIN labelings l ON l.labeling = o.source JOIN teachers t USING (teacher)
    WHERE t.engine IN ('bi-encoder', 'cross-encoder') AND l.origin = 'generated'
      AND (? IS NULL OR list_contains(?, s.name))
    ORDER BY l.labeling"""


@dataclass(frozen=True)
class OfflineTeacher:
    """A teacher that students learnt from, in the form that `teachers generate` takes."""

    labels: str  # the labeling that the students learnt from
    teacher: int
    teacher_key: str
    model: str
    engine: str
    fused: str | None  # how, as the labeling's parameters say it
    fuse_weight: float


def label_tests(
    store: "LabelStore",
    datasets: Sequence[str] | None,
    students: Sequence[str] | None,
    runs: Sequence[str] | None,
    depth: int,
    talk: "Talk",
) -> None:
    """Label the queries of the judged datasets with the students' offline teachers, unless already labelled.

    If a teacher is not available (its model is gone), a warning names it and its row is missing.

    Args:
        datasets, students, runs: names as `msft eval` takes them.
    """
    from labelstore.errors import MsftError
    from labelstore.store import lookup
    from students.jobs import evaluate as job

    if not store.exists:
        return
    with store.read() as con:
        known = teachers(con, students)
        names = list(datasets or [lookup.pick_dataset(con, None).name]) if known else []
    for name in names:
        own = job.ensure_dataset(store, name, talk)
        job.ensure_first_stage(store, own, depth, talk)
        over = job.first_stages(store, own, runs)
        with store.read() as con:
            of = lookup.dataset(con, own)
            asked = [
                (teacher, run)
                for teacher in known
                for run in over
                if of.qrels_hash is not None and not _labelled(con, teacher, of, run, min(depth, run.depth))
            ]
        for teacher, run in asked:
            with (
                store.read() as con
            ):  # a name that was free can be taken by the labels over another first stage
                settings = _settings(con, teacher, of, run, min(depth, run.depth))
            try:
                _label(store, teacher, settings)
            except MsftError as error:
                hint = f" ({error.hint})" if error.hint else ""
                diagnostics.warn(f"no row for the teacher of {teacher.labels}: {error.message}{hint}")


def teachers(con: "duckdb.DuckDBPyConnection", students: Sequence[str] | None) -> list[OfflineTeacher]:
    """List the offline teachers that the students (None: all) learnt from, one for each teacher and share."""
    chosen = list(students) if students is not None else None
    return [OfflineTeacher(*row) for row in con.execute(_TEACHERS, [chosen, chosen]).fetchall()]


def _labelled(
    con: "duckdb.DuckDBPyConnection", own: OfflineTeacher, of: "lookup.Dataset", run: "lookup.Run", depth: int
) -> bool:
    """Check whether all queries of the run have this teacher's labels, to the requested depth."""
    found = con.execute(
        """SELECT count(DISTINCT p.query) FROM labelings l JOIN permutations p USING (labeling)
           WHERE l.teacher = ? AND l.dataset = ? AND l.run = ? AND l.depth >= ?
             AND l.parameters ->> 'fuse' IS NOT DISTINCT FROM ?
             AND coalesce((l.parameters ->> 'fuse_weight')::DOUBLE, 0.5) = ? GROUP BY l.labeling""",
        [own.teacher, of.dataset, run.run, depth, own.fused, own.fuse_weight],
    ).fetchall()
    return any(n >= run.n_queries for (n,) in found)


def _settings(
    con: "duckdb.DuckDBPyConnection", own: OfflineTeacher, of: "lookup.Dataset", run: "lookup.Run", depth: int
) -> "Settings":
    from teachers.generate.calling.fusing import FUSIONS
    from teachers.generate.settings import Settings

    name = f"{own.labels}@{of.name}"
    taken = con.execute("SELECT run, depth FROM labelings WHERE name = ?", [name]).fetchall()
    if taken and taken[0] != (run.run, depth):
        name = f"{name}@{run.name}@{depth}"
    by = {text: by for by, text in FUSIONS.items()}
    return Settings(
        model=own.model, dataset=of.name, run=run.name, depth=depth, engine=own.engine, fuse=own.fused is not None,
        fuse_by=by.get(own.fused or "", "ranks"), fuse_weight=own.fuse_weight, name=name,
    )  # fmt: skip


def _label(store: "LabelStore", own: OfflineTeacher, settings: "Settings") -> None:
    """Label, unless the model has changed since the students learnt from it.

    Raises:
        UsageError: the model has changed.
        MsftError: as `teachers generate`.
    """
    from labelstore.errors import UsageError
    from teachers.generate.job import generate
    from teachers.generate.plan import plan

    if plan(store, settings).row.teacher_key != own.teacher_key:
        raise UsageError(f"{own.model} is another model now than when it made the labels")
    diagnostics.note(
        f"{settings.dataset}: the teacher of {own.labels} ({own.model}) labels {settings.run} to depth {settings.depth},"
        " so that its row stands beside its students'; --no-teacher leaves it out"
    )
    with diagnostics.progress(f"{own.model} over {settings.run}", unit="queries") as bar:
        generate(
            store, settings, note=diagnostics.note,
            progress=lambda done, total, figures, cost: bar(done, total),
        )  # fmt: skip
