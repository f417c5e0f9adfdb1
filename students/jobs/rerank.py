"""The bridge between the store and the learning: candidates out, scores back as a run; students in and out.

Every job here reads what it needs, closes the store, works, and merges in one short transaction. Training is in
:mod:`students.jobs.train`; registered students and their rows are in :mod:`students.jobs.register`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from labelstore import lookup, provenance
from labelstore.errors import DataMissing, UsageError
from labelstore.runs import store_run
from labelstore.store import LabelStore
from students.errors import StudentError

if TYPE_CHECKING:
    import duckdb

    from students.rerank import Reranker

DEFAULT_DEPTH = 100

Tick = Callable[[int, int | None], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Lists:
    """The candidates of a run that a student is to score, in (query, rank) order.

    Attributes:
        query: query key of each list. texts: (query text, passage texts) of each list.
        documents: document keys of each list, aligned with its texts.
    """

    query: list[int]
    texts: list[tuple[str, list[str]]]
    documents: list[list[int]]

    @property
    def n_pairs(self) -> int:
        return sum(map(len, self.documents))


def student_folder(store: LabelStore, student: lookup.Student) -> Path:
    """Where a student's weights lie: its folder is relative to ``<store>.files/`` unless absolute.

    Raises:
        DataMissing: if the folder is gone.
    """
    folder = store.files / student.folder
    if not (folder / "config.json").is_file():
        raise DataMissing(
            f"the folder of student {student.name!r} is not at {folder}",
            hint="put it back, or register a copy with `msft students add FOLDER --name NAME`",
        )
    return folder


def rerank_run(
    store: LabelStore,
    *,
    student: str,
    dataset: str | None = None,
    run: str | None = None,
    depth: int = DEFAULT_DEPTH,
    name: str | None = None,
    precision: str = "auto",
    batch_tokens: int | None = None,
    replace: bool = False,
    reranker: "Reranker | None" = None,
    progress: Tick | None = None,
    note: Note | None = None,
) -> lookup.Run:
    """Re-rank the top `depth` of a run with a student and store the result as a run (kind student).

    A run over a run is a cascade: `run` may itself be a student's. The same student, weights, source, depth and
    precision again returns the run that is there without scoring anything.

    Args:
        dataset, run: by name; the only one that fits where they are None.
        name: of the new run; default STUDENT@RUN, with ``-topN`` when `depth` cuts deeper than the default does.
        reranker: one that is loaded already, to save loading it for each of many runs.
        progress: called with (pairs scored, pairs).

    Raises:
        DataMissing: a name that is not there, or a candidate whose text the store does not hold.
        UsageError: if `depth` is below 1, or the name is another run's.
        StudentError: if the model gives a score that is not finite.
    """
    from students.rerank import Reranker, resolve_precision

    if depth < 1:
        raise UsageError(f"depth is {depth}", hint="--depth 100")
    with store.read() as con:
        found = lookup.student(con, student)
        of = lookup.pick_dataset(con, dataset)
        source = lookup.pick_run(con, of, run)
        _say(note, f"re-ranking {source.name} over {of.name} with {found.name}", dataset, run)
        depth = min(depth, source.depth)
        parameters = {
            "depth": depth,
            "precision": resolve_precision(precision),
            "max_length": found.max_length,
            "weights_hash": found.weights_hash,
            "source_hash": source.content_hash,
        }
        runs = lookup.runs(con, of)
        for other in runs:
            if (
                other.student == found.student
                and other.parameters == parameters
                and name in (None, other.name)
            ):
                _say(note, f"{other.name} is that already: nothing to score")
                return other
        name = name or _run_name(found, source, depth, runs)
        if not replace and any(other.name == name for other in runs):
            raise UsageError(f"{of.name} has a run {name!r} already", hint="--name NAME, or --replace")
        lists = candidates(con, source, depth)
    folder = student_folder(store, found)
    clock = provenance.Clock()
    if reranker is None:
        reranker = Reranker.load(
            folder, precision=precision, max_length=found.max_length, batch_tokens=batch_tokens
        )
    frame = _frame(lists, reranker.scores(lists.texts, progress=progress))
    with store.write() as con, provenance.recorded_in(con, "students.rerank", clock) as job:
        con.register("reranked", frame.to_arrow())
        made = store_run(
            con,
            job,
            dataset=of.dataset,
            name=name,
            kind="student",
            system=f"student:{found.name}",
            relation="reranked",
            source_run=source.run,
            student=found.student,
            parameters=parameters,
            replace=replace,
        )
        job.count(con, "rerank", f"{of.name}/{name}", lists.n_pairs)
        return made


def candidates(con: "duckdb.DuckDBPyConnection", source: lookup.Run, depth: int) -> Lists:
    """The top `depth` candidates of a run with their texts, as lists in query order.

    Raises:
        DataMissing: naming the first candidates whose text the store does not hold.
    """
    frame = con.sql(
        f"""SELECT c.query, c.document, q.text AS query_text, q.query_id, d.doc_id, d.passage
            FROM (SELECT query, rank, document FROM candidates WHERE run = ? AND rank <= ?) c
            JOIN queries q USING (query)
            JOIN (SELECT document, doc_id, CASE WHEN text IS NOT NULL THEN {lookup.FULL_TEXT} END AS passage
                  FROM documents) d USING (document)
            ORDER BY q.query_id, c.rank""",
        params=[source.run, depth],
    ).pl()
    absent = frame.filter(pl.col("passage").is_null())
    if len(absent):
        first = absent.row(0, named=True)
        raise DataMissing(
            f"run {source.name}: the store has no text of {len(absent):,} of {len(frame):,} candidates,"
            f" first {first['doc_id']} of query {first['query_id']}",
            hint="add the collection with its passages: msft data add DATASET --from FOLDER",
        )
    grouped = frame.group_by("query", maintain_order=True).agg("query_text", "passage", "document")
    return Lists(
        grouped["query"].to_list(),
        [
            (texts[0], passages)
            for texts, passages in zip(grouped["query_text"], grouped["passage"].to_list(), strict=True)
        ],
        grouped["document"].to_list(),
    )


def _frame(lists: Lists, scores: "Sequence[object]") -> pl.DataFrame:
    """Rows (query, document, score, rank) with ranks by score, ties in the source's order."""
    import numpy as np

    query = np.repeat(np.array(lists.query, dtype=np.int32), [len(d) for d in lists.documents])
    document = np.array([d for row in lists.documents for d in row], dtype=np.int32)
    score = np.concatenate([np.asarray(row, dtype=np.float32) for row in scores] or [np.empty(0, np.float32)])
    if not np.isfinite(score).all():
        bad = int((~np.isfinite(score)).sum())
        raise StudentError(
            f"the model gave {bad:,} scores that are not finite",
            hint="its training diverged, or --precision bf16 overflows: try --precision fp32",
        )
    rank = np.concatenate(
        [np.argsort(np.argsort(-np.asarray(row), kind="stable"), kind="stable") + 1 for row in scores]
        or [np.empty(0, np.int64)]
    )
    return pl.DataFrame({"query": query, "document": document, "score": score, "rank": rank.astype(np.int32)})


def _run_name(student: lookup.Student, source: lookup.Run, depth: int, runs: list[lookup.Run]) -> str:
    name = f"{student.name}@{source.name}"
    if depth != min(DEFAULT_DEPTH, source.depth):
        name += f"-top{depth}"
    taken = {run.name for run in runs}
    if name not in taken:
        return name
    number = next(n for n in range(2, len(taken) + 3) if f"{name}-{n}" not in taken)
    return f"{name}-{number}"


def _say(note: Note | None, message: str, *given: str | None) -> None:
    """Tell what was chosen; with `given`, only when one of the choices was not the caller's."""
    if note is not None and (not given or None in given):
        note(message)
