"""Measure first stages, teachers and students side by side (`msft eval`).

Missing parts are made first: the dataset from ir_datasets, a first stage, students' rankings, fused rankings.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import polars as pl

from labelstore import retrieval
from labelstore.datasets import catalog
from labelstore.datasets.add_dataset import add_dataset
from labelstore.datasets.from_ir_datasets import knows
from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import fusion, protocols, suites, systems
from labelstore.evaluation import measures as measuring
from labelstore.evaluation import scores as evaluation
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from students.jobs.bases.rank import base_runs, choose
from students.jobs.candidates import Tick, candidates, score
from students.jobs.protocols.rows import rows as by_protocol
from students.jobs.rerank import DEFAULT_DEPTH, check_depth, load_reranker, rerank_run
from students.rerank.machines import Machines, Scoring

Row = dict[str, Any]
Pending = list[tuple[str, lookup.Run]]


def _silent(message: str) -> None:
    """Ignore a message."""


def _no_progress(label: str, total: int | None, unit: str) -> AbstractContextManager[Tick]:
    """Show no progress."""
    return nullcontext(lambda done, total=None: None)


@dataclass(frozen=True)
class Talk:
    """Where a job's messages and progress go; by default nowhere.

    Attributes:
        note: called with what was chosen or done.
        warn: called with warnings, such as values that cannot be kept. None: such a case is an error.
        progress: called with a label, the total (None if unknown) and a unit. Returns a context manager, whose
            value is called with (done, total).
    """

    note: Callable[[str], None] = _silent
    warn: Callable[[str], None] | None = None
    progress: Callable[[str, int | None, str], AbstractContextManager[Tick]] = _no_progress


@dataclass(frozen=True)
class Beside:
    """What is measured beside first stages, teachers and students.

    Attributes:
        fuse: also measure each student interpolated with its first stage. The weight is chosen on the queries of a
            dev set, or of the dataset named here.
        untrained: whether the base that a student began from has a row of its own. None: if it is a re-ranker as it is,
            or a student. True: also if it is an encoder, whose head is drawn from the seed. Its scores are kept.
    """

    fuse: bool | str = False
    untrained: bool | None = None


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation.

    Attributes:
        rows: a flat row for each dataset, system and measure: dataset, system, kind (first_stage, teacher, student,
            base, untrained, fused), first_stage, measure, judge (None: human judgments), value, n_queries, p_value
            (two-sided paired t-test against the first stage), base (the system of a student's base), base_p_value, regime, judged (Judged@10), depth, recall (at that depth).
        missing: datasets of the suite that are neither in the store nor in ir_datasets.
        n_datasets: number of datasets requested.
    """

    rows: list[Row]
    missing: list[str]
    n_datasets: int


def evaluate(
    store: LabelStore,
    datasets: str | Sequence[str] = (),
    *,
    runs: Sequence[str] | None = None,
    students: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    measures: Sequence[str] = (),
    depth: int = DEFAULT_DEPTH,
    fuse: bool | str | Beside = False,
    suite: str | None = None,
    rerank: bool | Machines = True,
    basis: systems.Basis = systems.Basis(),
    talk: Talk = Talk(),
) -> Evaluated:
    """Measure first stages, labelings and students; values are kept per query in the store and reused.

    Args:
        datasets: names; by default the only one.
        runs: first stages; by default every one. A dataset without a run is retrieved with bm25s.
        students: by default every one. Missing rankings are made first.
        labels: labelings; by default every one.
        measures: names of ir-measures; by default those that the literature uses for the dataset.
        depth: candidates per query that students re-rank, at least 1.
        fuse: also measure each student interpolated with its first stage. The weight is chosen on the queries of a dev
            set, or of the dataset named here. `Beside(fuse=…, untrained=…)` also says which bases have a row.
        suite: dl, beir, nano-beir, bright, or a file of datasets; adds the macro mean. It replaces `datasets`.
        rerank: False measures only existing rankings. `Machines(gpus=2)` says where students re-rank.
        basis: an LLM judge instead of the human judgments, whether passages with their query's id are left out, and the
            protocol. Values by another basis than the usual one are not kept.
        talk: where messages and progress go, e.g. ``Talk(note=print)``.

    Raises:
        DataMissing: a name is not found, or a dataset has no judgments.
        UsageError: both `suite` and `datasets` are given, the depth is below 1, or a measure is unknown.
    """
    check_depth(depth)
    machines = rerank if isinstance(rerank, Machines) else Machines()
    machines.check()
    beside = fuse if isinstance(fuse, Beside) else Beside(fuse)
    protocols.check(basis.protocol, judge=basis.judge, fuse=beside.fuse)
    present, missing = _present(store, _names(store, datasets, suite, talk), suite, talk)
    chosen = choose(store, students, beside.untrained, talk)
    rows: list[Row] = []
    for name in present:
        wanted = _measures(store, name, measures, basis.judge)
        ensure_first_stage(store, name, depth, talk)
        over = first_stages(store, name, runs)
        if rerank:
            rerank_pending(
                store, name, pending(store, name, chosen.students, over, depth), depth, talk, machines
            )
        began = base_runs(store, name, chosen.bases, over, depth, machines if rerank else None, talk)
        if beside.fuse:
            fuse_students(store, name, students, over, wanted[0], beside.fuse, talk)
        if basis.protocol != protocols.STANDARD:
            rows += by_protocol(
                store, name, over, chosen.students, wanted, depth, basis.protocol, talk.note, began
            )
            continue
        rows += evaluation.evaluate(
            store,
            name,
            runs=runs,
            labelings=labels,
            students=chosen.students,
            measures=wanted,
            base_runs=began,
            kinds=systems.KINDS if beside.fuse else tuple(k for k in systems.KINDS if k != "fused"),
            exclude_self=basis.exclude_self,
            judge=basis.judge,
            note=talk.note,
            warn=talk.warn,
        )
    if suite:
        rows += suites.macro_means(suite, rows, present + missing)
        rows = suites.with_names(suite, rows, basis.protocol, depth)
    return Evaluated(rows, missing, len(present) + len(missing))


def _present(
    store: LabelStore, names: Sequence[str], suite: str | None, talk: Talk
) -> tuple[list[str], list[str]]:
    """Return the datasets' names in the store, added if necessary, and the names of a suite's missing datasets.

    Raises:
        DataMissing: a dataset is missing, and it is not one of a suite.
    """
    present, missing = [], []
    for name in names:
        try:
            present.append(ensure_dataset(store, name, talk))
        except DataMissing as error:
            if not suite:
                raise
            (talk.warn or talk.note)(f"{error} ({error.hint})")
            missing.append(name)
    return present, missing


def _measures(store: LabelStore, dataset: str, measures: Sequence[str], judge: str | None) -> list[str]:
    """Name the measures, by default the dataset's.

    Raises:
        DataMissing: the dataset has no judgments.
        UsageError: a measure is unknown or does not fit the grades.
    """
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        wanted = [measuring.canonical(m) for m in measures] or evaluation.default_measures(of)
        measuring.check_grades(wanted, systems.qrels(con, of, judge))
    return wanted


def _names(store: LabelStore, datasets: str | Sequence[str], suite: str | None, talk: Talk) -> list[str]:
    if suite and datasets:
        raise UsageError("--suite and --dataset exclude each other", hint="leave --dataset out")
    if suite:
        return suites.datasets(suite)
    if datasets:
        return list(dict.fromkeys([datasets] if isinstance(datasets, str) else datasets))
    with store.read() as con:
        name = lookup.pick_dataset(con, None).name
    talk.note(f"dataset {name}, the only one")
    return [name]


def ensure_dataset(store: LabelStore, name: str, talk: Talk = Talk()) -> str:
    """Return the dataset's name in the store; add it from ir_datasets if the store lacks it.

    Raises:
        DataMissing: ir_datasets does not have it, or cannot download it.
    """
    if store.exists:
        with store.read() as con:
            try:
                return lookup.dataset(con, name).name
            except DataMissing:
                if catalog.find(name) is None and not knows(name):
                    raise  # the error lists similar names, which helps if the user's own name was misspelt
    entry = catalog.find(name)
    ir_id = entry.ir_datasets_id if entry else name
    if ir_id is None:
        raise DataMissing(
            f"dataset {name} is neither in the store nor in ir_datasets",
            hint=f"msft data add {name} --from FOLDER",
        )
    own_name = entry.name if entry else name
    talk.note(f"{own_name} is not in the store: adding {ir_id} from ir_datasets")
    with talk.progress(f"adding {own_name}", None, "passages") as tick:
        return add_dataset(store, own_name, progress=tick).dataset


def ensure_first_stage(store: LabelStore, dataset: str, depth: int, talk: Talk = Talk()) -> None:
    """Retrieve with the embedded BM25 if nothing has ranked the dataset yet."""
    with store.read() as con:
        if systems.systems(con, lookup.dataset(con, dataset)):
            return
    talk.note(f"{dataset} has no run yet: retrieving {depth} passages per query with bm25s")
    with talk.progress("bm25s", None, "texts") as tick:
        retrieval.retrieve(store, dataset, depth=depth, progress=tick, note=talk.note)


def first_stages(store: LabelStore, dataset: str, named: Sequence[str] | None) -> list[lookup.Run]:
    """Find the runs that students re-rank: the named ones, or every first stage."""
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        if named:
            return [lookup.run(con, of, name) for name in named]
        return lookup.runs(con, of, ("first_stage", "imported"))


def pending(
    store: LabelStore,
    dataset: str,
    students: Sequence[str] | None,
    runs: Sequence[lookup.Run],
    depth: int,
) -> Pending:
    """Find the (student, first stage) pairs without a ranking to `depth`."""
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        names = students or [
            n for (n,) in con.execute("SELECT name FROM students ORDER BY student").fetchall()
        ]
        chosen = [lookup.student(con, name) for name in names]
        done = {(r.student, r.source_run): r.depth for r in lookup.runs(con, of, ("student",))}
    return [
        (student.name, run)
        for student in chosen
        for run in runs
        if done.get((student.student, run.run), -1) < min(depth, run.depth)
    ]


def rerank_pending(
    store: LabelStore,
    dataset: str,
    todo: Pending,
    depth: int,
    talk: Talk = Talk(),
    machines: Machines = Machines(),
) -> None:
    """Announce the missing rankings with their pairs and minutes, then make them, one run at a time."""
    if not todo:
        return
    sizes = [_pairs(store, run, depth) for _, run in todo]
    talk.note(
        f"{dataset}: re-ranking {sum(sizes):,} pairs in {len(todo)} run{'s' if len(todo) > 1 else ''}"
        f" ({_minutes(store, sum(sizes))}); existing rankings are reused"
    )
    for (student, run), size in zip(todo, sizes, strict=True):
        with talk.progress(f"{student} over {run.name}", size, "pairs") as tick:
            rerank_run(
                store, student=student, dataset=dataset, run=run.name, depth=depth,
                scoring=Scoring(machines.gpus, machines.engine, machines.workers), progress=tick, note=talk.note,
            )  # fmt: skip


def _pairs(store: LabelStore, run: lookup.Run, depth: int) -> int:
    with store.read() as con:
        sql = "SELECT count(*) FROM candidates WHERE run = ? AND rank <= ?"
        ((pairs,),) = con.execute(sql, [run.run, depth]).fetchall()
    return int(pairs)


def _minutes(store: LabelStore, pairs: int) -> str:
    """Estimate the time from earlier re-rankings in this store, loading included."""
    with store.read() as con:
        ((done, seconds),) = con.execute(
            """SELECT sum(r.n_candidates), sum(p.seconds) FROM runs r JOIN provenance p USING (job)
               WHERE r.kind IN ('student', 'base', 'untrained') AND p.kind = 'students.rerank' AND p.seconds > 0"""
        ).fetchall()
    if not done:
        return "time unknown until the first one is done"
    minutes = pairs / (done / seconds) / 60
    return f"about {minutes:.0f} min" if minutes >= 1.5 else f"about {minutes * 60:.0f} s"


def fuse_students(
    store: LabelStore,
    dataset: str,
    students: Sequence[str] | None,
    runs: Sequence[lookup.Run],
    measure: str,
    on: str | bool,
    talk: Talk = Talk(),
) -> None:
    """Make a fused run for each student's run over the given first stages.

    Args:
        on: the dataset whose queries fix the weight; True takes a dev set.
    """
    dev = on if isinstance(on, str) else None
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        wanted = {run.run for run in runs}
        keys = {lookup.student(con, name).student for name in students} if students else None
        chosen = [
            r
            for r in lookup.runs(con, of, ("student",))
            if r.source_run in wanted
            and (keys is None or r.student in keys)
            and not r.parameters.get("probabilities")
        ]
    for student_run in chosen:
        fusion.fuse(
            store, of, student_run, _scorer_of(store, student_run, talk), measure, on=dev, note=talk.note
        )


def _scorer_of(store: LabelStore, student_run: lookup.Run, talk: Talk) -> fusion.Score:
    with store.read() as con:
        sql = "SELECT name FROM students WHERE student = ?"
        ((name,),) = con.execute(sql, [student_run.student]).fetchall()
    return scorer(store, name, student_run.parameters.get("precision", "auto"), talk)


def scorer(store: LabelStore, name: str, precision: str = "auto", talk: Talk = Talk()) -> fusion.Score:
    """Return a function that scores validation queries without a stored run."""

    def scored(run: lookup.Run, queries: Sequence[int], depth: int) -> pl.DataFrame:
        with store.read() as con:
            found = candidates(con, run, depth, queries)
        reranker = load_reranker(store, name, precision=precision)
        with talk.progress(f"{name} over validation queries", found.n_pairs, "pairs") as tick:
            scores = score(store, reranker, found, progress=tick)
        return pl.DataFrame(
            {"query": found.query, "document": found.document, "score": scores},
            schema_overrides={"score": pl.Float64},
        )

    return scored
