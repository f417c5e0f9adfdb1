"""Re-rank a run into a run: read candidates, score them with the store closed, and write the scores back.

:mod:`students.jobs.candidates` reads candidates in bounded memory. :mod:`students.jobs.register` registers students.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.provenance import record as provenance
from labelstore.runs.write import NewRun, store_run
from labelstore.store import foreign, lookup
from labelstore.store.label_store import LabelStore
from students.errors import StudentError
from students.jobs.candidates import Candidates, Tick, candidates, score
from students.jobs.export_check import calibration_lists
from students.rerank.machines import Scoring

if TYPE_CHECKING:
    import duckdb

    from students.rerank.pairs import Scores
    from students.rerank.reranker import Reranker

DEFAULT_DEPTH = 100

Note = Callable[[str], None]


def student_folder(store: LabelStore, student: lookup.Student) -> Path:
    """Return the folder of a student's weights.

    Raises:
        DataMissing: the folder is missing.
        BadInput: the folder's path in the store leads outside of it.
    """
    folder = foreign.own_folder(store.files, "student", student.name, student.folder)
    if not (folder / "config.json").is_file():
        raise DataMissing(
            f"the folder of student {student.name!r} is not at {folder}",
            hint=f"{store.missing_hint(student.folder)}, or register a copy: `msft students add FOLDER --name NAME`",
        )
    return folder


def load_reranker(
    store: LabelStore,
    student: str,
    *,
    precision: str = "auto",
    batch_tokens: int | None = None,
    device: str | None = None,
    long: str = "",
    instruction: str = "",
    backend: str = "auto",
    any_size: bool = False,
) -> "Reranker":
    """Load a student of the store, ready to score lists of passages.

    Args:
        student: its name.
        precision: auto (bf16 if the hardware supports it, otherwise fp32), bf16 or fp32; fp32 or int8 for openvino and onnx.
        batch_tokens: tokens of a batch, with padding; by default chosen by the device.
        device: cpu, cuda or cuda:N; by default CUDA if it is available.
        long: first, max or mean: how passages beyond max_length are scored; by default as in training.
        instruction: replaces the one of a decoder's text frame.
        backend: torch (auto), openvino or onnx. The student is exported for the other two; int8 for openvino is
            calibrated on pairs of the store.
        any_size: keep memory bounded for a server.

    Raises:
        DataMissing: the student or its folder is not found.
        StudentError: the precision or `long` is not known, or an encoder is given an instruction (exit code 2).
    """
    from students.rerank.reranker import Reranker

    with store.read() as con:
        found = lookup.student(con, student)
        calibrate = calibration_lists(con) if (backend, precision) == ("openvino", "int8") else None
    return Reranker.load(
        student_folder(store, found),
        precision=precision,
        max_length=found.max_length,
        batch_tokens=batch_tokens,
        device=device,
        long=long,
        instruction=instruction,
        backend=backend,
        any_size=any_size,
        calibrate=calibrate,
    )


@contextmanager
def opened(
    store: LabelStore,
    student: str,
    *,
    n_pairs: int,
    precision: str = "auto",
    scoring: Scoring = Scoring(),
    note: Note | None = None,
) -> Iterator["Reranker"]:
    """Load a student on the machines of the settings, and end their processes afterwards.

    Args:
        n_pairs: how much there is to score: without a number of GPUs, few pairs take one GPU.
    """
    with store.read() as con:
        found = lookup.student(con, student)
    if not scoring.in_torch:
        yield load_reranker(
            store,
            student,
            precision=precision,
            batch_tokens=scoring.batch_tokens,
            long=scoring.long or "",
            instruction=scoring.instruction or "",
            backend=scoring.backend,
        )
        return
    folder = student_folder(store, found)
    with opened_folder(
        folder, max_length=found.max_length, n_pairs=n_pairs, precision=precision, scoring=scoring, note=note
    ) as reranker:
        yield reranker


@contextmanager
def opened_folder(
    folder: Path,
    *,
    max_length: int,
    n_pairs: int,
    precision: str = "auto",
    scoring: Scoring = Scoring(),
    note: Note | None = None,
) -> Iterator["Reranker"]:
    """Load a model's folder, as :func:`opened` loads a student."""
    options: dict[str, Any] = {
        "precision": precision,
        "max_length": max_length,
        "batch_tokens": scoring.batch_tokens,
        "long": scoring.long or "",
        "instruction": scoring.instruction or "",
    }
    if scoring.engine == "ray":
        from students.rerank.ray_workers import on_cluster

        with on_cluster(folder, scoring.workers or 2, note=note, **options) as reranker:
            yield reranker
        return
    from students.rerank.gpus import on_gpus
    from students.rerank.reranker import Reranker

    n = scoring.n_gpus(n_pairs)
    if n > 1:
        _say(note, f"{n} GPUs score, with a process each")
    with on_gpus(folder, n, note=note, **options) if n > 1 else Reranker.load(folder, **options) as reranker:
        yield reranker


def check_depth(depth: int) -> None:
    """Refuse a depth below 1."""
    if depth < 1:
        raise UsageError(f"depth is {depth}: expected at least 1", hint="--depth 100")


def rerank_run(
    store: LabelStore,
    *,
    student: str,
    dataset: str | None = None,
    run: str | None = None,
    depth: int = DEFAULT_DEPTH,
    name: str | None = None,
    precision: str = "auto",
    scoring: Scoring = Scoring(),
    replace: bool = False,
    progress: Tick | None = None,
    note: Note | None = None,
) -> lookup.Run:
    """Re-rank the top `depth` of a run with a student and store the result as a run (kind student).

    The result is stored in one transaction after everything is scored. Memory is a few numbers per pair
    (`students.jobs.candidates`). `run` may itself be a student's run, which makes a cascade. If a run with the same
    student, weights, source, depth and precision exists, it is returned without scoring.

    Args:
        dataset, run: names; None takes the only one that fits.
        name: name of the new run; by default STUDENT@RUN, with ``-topN`` if `depth` is below the default.
        scoring: where the batches are scored (several GPUs, a Ray cluster), and settings in place of the student's.
        progress: called with (pairs scored, pairs).

    Raises:
        DataMissing: a name is not found, or a candidate has no text in the store.
        UsageError: `depth` is below 1, or another run has the name.
        StudentError: the model gives a score that is not finite.
        BadInput: a text, the source or the student was changed in the meantime.
    """
    check_depth(depth)
    scoring.check()
    with store.read() as con:
        by = lookup.student(con, student)
        of = lookup.pick_dataset(con, dataset)
        source = lookup.pick_run(con, of, run)
        _say(note, f"re-ranking {source.name} over {of.name} with {by.name}", dataset, run)
        depth = min(depth, source.depth)
        runs = lookup.runs(con, of)
        parameters = _parameters(by, source, depth, precision if scoring.in_torch else "fp32")
        if not scoring.changes and (same := _same_run(runs, by, parameters, name)) is not None:
            return _reused(same, note)
        if not replace and not scoring.changes:
            _check_free(name, of, runs)
        found = candidates(con, source, depth)
    clock = provenance.Clock()
    with opened(
        store, student, n_pairs=found.n_pairs, precision=precision, scoring=scoring, note=note
    ) as reranker:
        parameters |= {**reranker.changed, "precision": reranker.precision}
        if scoring.changes and (same := _same_run(runs, by, parameters, name)) is not None:
            return _reused(same, note)
        if not replace:
            _check_free(name, of, runs)
        frame = ranked(store, reranker, of, found, progress)
        if reranker.pipelined:
            _say(note, f"the GPU waited {reranker.device_time.share_waited:.1%} of the time between batches")
    name = name or _run_name(by, source, depth, runs)
    with store.write() as con, provenance.recorded_in(con, "students.rerank", clock) as job:
        _check_unchanged(con, source, by)
        con.register("reranked", frame.to_arrow())
        new = NewRun(of.dataset, name, "student", f"student:{by.name}", parameters, source.run, by.student)
        made = store_run(con, job, new, "reranked", replace=replace)
        job.count(con, "rerank", f"{of.name}/{name}", found.n_pairs)
        return made


def ranked(
    store: LabelStore, reranker: "Reranker", of: lookup.Dataset, found: Candidates, progress: Tick | None
) -> pl.DataFrame:
    """Score candidates of a dataset; returns rows of query, document, score and rank.

    Raises:
        StudentError: the model gives a score that is not finite.
        BadInput: a text was changed in the meantime.
    """
    if "instruction" not in reranker.changed:
        reranker.encoder.form = reranker.encoder.form_for([of.name])
    return _frame(found, score(store, reranker, found, progress=progress))


def _reused(run: lookup.Run, note: Note | None) -> lookup.Run:
    _say(note, f"run {run.name} exists with the same settings: nothing to score")
    return run


def _check_free(name: str | None, of: lookup.Dataset, runs: list[lookup.Run]) -> None:
    if any(run.name == name for run in runs):
        raise UsageError(
            f"{of.name} has a run {name!r} already",
            hint="choose another name with --name, or give --replace",
        )


def _parameters(student: lookup.Student, source: lookup.Run, depth: int, precision: str) -> dict[str, Any]:
    """Say what a re-ranking depends on: a run with the same parameters is the same run."""
    from students.rerank.reranker import resolve_precision

    return {
        "depth": depth,
        "precision": resolve_precision(precision),
        "max_length": student.max_length,
        "weights_hash": student.weights_hash,
        "source_hash": source.content_hash,
    }


def _same_run(
    runs: list[lookup.Run], student: lookup.Student, parameters: dict[str, Any], name: str | None
) -> lookup.Run | None:
    """Find the run that the student made with these parameters."""
    for run in runs:
        if run.student == student.student and run.parameters == parameters and name in (None, run.name):
            return run
    return None


def _frame(found: Candidates, scores: "Scores") -> pl.DataFrame:
    """Make rows (query, document, score, rank), ranked by score; ties keep the source's order."""
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise StudentError(
            f"the model gave {bad:,} scores that are not finite",
            hint="try --precision fp32; if the scores are still not finite, train the student again",
        )
    rank = np.empty(len(scores), dtype=np.int32)
    for last, n in zip(np.cumsum(found.sizes).tolist(), found.sizes.tolist(), strict=True):
        part = slice(last - n, last)
        rank[part][np.argsort(-scores[part], kind="stable")] = np.arange(1, n + 1)
    return pl.DataFrame({"query": found.query, "document": found.document, "score": scores, "rank": rank})


def _check_unchanged(con: "duckdb.DuckDBPyConnection", source: lookup.Run, student: lookup.Student) -> None:
    """Refuse to store the result if the source run or the student was replaced in the meantime."""
    held = con.execute(
        """SELECT (SELECT content_hash FROM runs WHERE run = ?), (SELECT weights_hash FROM students WHERE student = ?)""",
        [source.run, student.student],
    ).fetchall()
    if held != [(source.content_hash, student.weights_hash)]:
        raise BadInput(
            f"{source.name} or {student.name} was replaced or removed during re-ranking",
            hint="run the command again",
        )


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
    """Report a choice; with `given`, only if the caller left one of the choices open."""
    if note is not None and (not given or None in given):
        note(message)
