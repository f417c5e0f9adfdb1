"""Run a labelling job (`msft teachers generate`): a teacher labels the candidates of a run.

The store is open three times: to read the job's data, to record its start, and for short merges of the journal.
In between, the job uses only its working file and the journal. It can be killed at any point and started again: every
completed call is on record, and none is made twice.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from labelstore.errors import PartlyDone, StoreError
from labelstore.labels import write as labels
from labelstore.provenance import record as provenance
from labelstore.store.job_lock import labeling_alone
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Engine
from teachers.generate import canary, child_process
from teachers.generate import make_engine as engines
from teachers.generate import merge_journal as merge
from teachers.generate.calls import Labelling, Rendering
from teachers.generate.fill_worklist import fill
from teachers.generate.plan import Plan, Settings, plan
from teachers.generate.worklist import Task, Work
from teachers.journal.segments import Journal
from teachers.scheduling.budget import Budget
from teachers.scheduling.figures import Figures
from teachers.scheduling.scheduler import Scheduler

Note = Callable[[str], None]
Build = Callable[[Plan], Engine]
Progress = Callable[[int, int, Figures, float | None], None]  # queries done, total, figures, cost so far
MERGE_SECONDS = 30.0  # time between merges while the job runs


@dataclass(frozen=True)
class Labelled:
    """The result of a job, and the current state of its labeling."""

    plan: Plan
    figures: Figures
    queries: int  # queries in the job
    labelled: int  # those with a permutation now
    quarantined: int  # those without a permutation after bounded retries
    statuses: dict[str, int]  # number of this labeling's permutations by status
    cost: float | None
    drifted: int = 0  # canaries with an answer that differs from the first one
    aside: int = 0  # journal segments that could not be merged completely

    @property
    def left(self) -> int:
        return self.queries - self.labelled - self.quarantined

    def partly_done(self) -> PartlyDone | None:
        """Return the error for the end (exit code 6) if queries are left, because of the budget or in quarantine."""
        name = self.plan.name
        if self.left and self.figures.stopped:
            return PartlyDone(
                f"{self.figures.stopped} ended the job: {self.labelled:,} of {self.queries:,} queries of {name}"
                " are labelled and can be used",
                hint="run the same command again to continue",
            )
        if self.left and self.aside:
            return PartlyDone(
                f"{self.labelled:,} of {self.queries:,} queries of {self.plan.name} are labelled: of {self.aside:,}"
                " journal segments not everything could be merged",
                hint="see the reason with msft verify, then run the same command again to ask for what is not in the store",
            )
        if self.quarantined:
            return PartlyDone(
                f"{self.quarantined:,} of {self.queries:,} queries of {name} are in quarantine,"
                f" {self.labelled:,} are labelled",
                hint=f"see the reasons with msft teachers show {name}; try them again with --retry-quarantined",
            )
        return None


def generate(
    store: LabelStore,
    settings: Settings,
    *,
    engine: Engine | None = None,
    build: Build = engines.build,
    note: Note = lambda message: None,
    progress: Progress | None = None,
) -> Labelled:
    """Label until every query has its permutation or is quarantined, or the budget is spent.

    Args:
        engine: replaces the engine in the settings (tests, benchmarks).
        build: makes the plan's engine; with ``--engine ray`` in each worker.
        progress: called with queries done, queries in total, figures and the cost so far.

    Raises:
        MsftError: if another process is working on the same labeling.
        MsftError, TeacherError: if the settings are wrong (nothing is written), or the engine fails (completed calls
            are kept, and the same command continues from there).
    """
    made = plan(store, settings, engine_name=engine.name if engine is not None else None)
    if made.head_of is not None:
        note(f"labelling the first {made.depth} of each list of {made.head_of.name}")
    elif settings.dataset is None or settings.run is None:
        note(f"labelling {made.run.name} over {made.dataset.name}")
    if engine is None and build is engines.build and not _known(store, made.name):
        engines.require(made)
    folder = store.folder("journal")
    with labeling_alone(store, made.name):
        return _recorded(store, made, folder, engine, build, note, progress)


def _known(store: LabelStore, name: str) -> bool:
    """Tell whether the store has the labeling, so that perhaps no call is left to make."""
    with store.read() as con:
        return bool(con.execute("SELECT 1 FROM labelings WHERE name = ?", [name]).fetchall())


def _recorded(
    store: LabelStore,
    made: Plan,
    folder: Path,
    engine: Engine | None,
    build: Build,
    note: Note,
    progress: Progress | None,
) -> Labelled:
    settings = made.settings
    before = child_process.merge_small_or_large(store, folder, note)
    if before.calls:
        note(f"merged {before.calls:,} calls that an earlier job left in the journal")
    budget = Budget(
        settings.max_calls,
        settings.max_tokens,
        settings.max_cost,
        made.row.input_price,
        made.row.output_price,
    )
    with provenance.recorded(store, merge.KIND) as job:
        result = _run(_Running(store, made, job, folder, note, progress, budget, Figures()), engine, build)
        job.partial = result.partly_done() is not None
    return result


@dataclass
class _Running:
    """A running job."""

    store: LabelStore
    plan: Plan
    job: provenance.Job
    folder: Path  # of the journal
    note: Note
    progress: Progress | None
    budget: Budget
    figures: Figures
    drifted: int = 0
    aside: int = 0


def _run(running: _Running, engine: Engine | None, build: Build) -> Labelled:
    store = running.store
    with store.write() as con:
        merge.store_labeling(con, running.job, running.plan.header())
    try:
        return _labelled(running, engine, build)
    finally:
        with store.write() as con:
            labels.remove_empty(con, running.job)


def _labelled(running: _Running, engine: Engine | None, build: Build) -> Labelled:
    store, made, folder = running.store, running.plan, running.folder
    with _work(running, folder / f"{running.job.job_key}.{os.getpid()}.work") as (
        work,
        queries,
        first_canaries,
    ):
        if pending := len(work.lengths()):
            if done := queries - pending:
                running.note(f"{done:,} of {queries:,} queries are done or in quarantine already")
            try:
                if made.engine == "ray" and engine is None:
                    _label_on_cluster(running, build, work, first_canaries)
                else:
                    _label_here(running, engine, build, work, first_canaries)
            finally:
                running.aside += child_process.merge_small_or_large(store, folder, running.note).aside
    return _result(running, queries)


def _label_here(
    running: _Running, engine: Engine | None, build: Build, work: Work, first_canaries: Mapping[str, str]
) -> None:
    own = engine if engine is not None else build(running.plan)
    try:
        _label(running, own, work, first_canaries)
    finally:
        if engine is None:
            own.close()


def _label_on_cluster(running: _Running, build: Build, work: Work, first_canaries: Mapping[str, str]) -> None:
    from teachers.generate.cluster.driver import Driver

    tick = _Ticker(running, lambda: None, len(work.lengths()))
    driver = Driver(
        store=running.store,
        plan=running.plan,
        job_key=running.job.job_key,
        folder=running.folder,
        work=work,
        build=build,
        first_canaries=first_canaries,
        budget=running.budget,
        note=running.note,
        tick=tick,
    )
    try:
        running.figures = driver.run()
    finally:
        tick.finish()
    running.drifted = driver.drifted


def _label(running: _Running, engine: Engine, work: Work, first_canaries: Mapping[str, str]) -> None:
    """Ask the canaries, then run every task through the scheduler, with the journal open."""
    made, settings = running.plan, running.plan.settings
    rendering = Rendering(made.teacher, engine.tokenizer, engine.context)
    with Journal(running.folder, running.job.job_key, made.header()) as journal:
        job = Labelling(running.job.job_key, rendering, made.strategy, journal, work, settings.fusion)
        if settings.canaries:
            running.drifted = canary.run_canaries(
                engine, job, settings.canaries, first_canaries, running.budget, running.note
            )
        work.begin()
        tick = _Ticker(running, journal.rotate, len(work.lengths()))
        scheduler: Scheduler[Task] = Scheduler(
            engine,
            job,
            budget=running.budget,
            max_attempts=settings.max_attempts,
            in_order=made.engine
            == "openai-batch",  # its many requests in flight would need every query in memory
            retry_quarantined=settings.retry_quarantined,
            progress=tick,
        )
        running.figures = scheduler.figures
        gc.freeze()  # so that the collector skips the million objects of imported libraries
        try:
            scheduler.run(work.tasks())
        finally:
            gc.unfreeze()
            tick.finish()


class _Ticker:
    """Run after each answer: update the progress line, and from time to time merge in a child if the store is free.

    Args:
        rotate: closes the journal's open segment.
        total: number of queries to label.
    """

    def __init__(self, running: _Running, rotate: Callable[[], None], total: int) -> None:
        self._running, self._rotate, self._total = running, rotate, total
        self._priced = running.plan.row.input_price is not None
        self._store = LabelStore(running.store.path, lock_wait=0.0)
        self._began = time.monotonic()
        self._merging: child_process.Call | None = None

    def __call__(self, figures: Figures) -> None:
        running = self._running
        if running.progress is not None:
            cost = running.budget.cost() if self._priced else None
            running.progress(figures.queries, self._total, figures, cost)
        if self._merging is not None and self._merging.done:
            self.finish()
        if self._merging is None and time.monotonic() - self._began >= MERGE_SECONDS:
            self._rotate()
            self._merging = child_process.Call(merge.merge_journal, self._store, running.folder)
            self._began = time.monotonic()

    def finish(self) -> None:
        """Wait for the running merge. If it found the store locked, the next merge takes the journal."""
        if self._merging is not None:
            with suppress(StoreError):
                merged: merge.MergedJournal = self._merging.result()
                self._running.aside += merged.aside
                for line in merged.notes:
                    self._running.note(line)
        self._merging = None


@contextmanager
def _work(running: _Running, path: Path) -> Iterator[tuple[Work, int, dict[str, str]]]:
    """Yield the working file with the remaining queries, the job's total of queries, and the first canaries."""
    remove_stale(path.parent)
    try:
        if running.plan.run.n_candidates < child_process.LARGE_CANDIDATES:
            queries, first_canaries = filled(running.store, running.plan, path)
        else:
            queries, first_canaries = child_process.Call(filled, running.store, running.plan, path).result()
        work = Work(path, keep=True)
        try:
            yield work, queries, first_canaries
        finally:
            work.close()
    finally:
        path.unlink(missing_ok=True)


def filled(store: LabelStore, made: Plan, path: Path) -> tuple[int, dict[str, str]]:
    """Fill a working file; return the job's total of queries, and the teacher's first canaries."""
    work = Work(path)
    try:
        with store.read() as con:
            return fill(con, made, work), canary.first_answers(con, made.row.teacher_key)
    finally:
        work.close()


def remove_stale(folder: Path) -> None:
    """Remove the working files of killed jobs; their names end with their process id."""
    for path in folder.glob("*.work"):
        pid = path.stem.rpartition(".")[2]
        if not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)


def _result(running: _Running, queries: int) -> Labelled:
    made, figures, row = running.plan, running.figures, running.plan.row
    asked, values = made.queries()
    with running.store.read() as con:
        statuses = dict(
            con.execute(
                f"""SELECT p.status, count(*) FROM permutations p JOIN labelings l USING (labeling)
                    WHERE l.name = ? AND p.query IN ({asked}) GROUP BY 1 ORDER BY 1""",
                [made.name, *values],
            ).fetchall()
        )
        (quarantined,) = con.execute(
            f"""SELECT count(DISTINCT z.query) FROM quarantine z JOIN labelings l USING (labeling)
                WHERE l.name = ? AND z.query IN ({asked})""",
            [made.name, *values],
        ).fetchall()[0]
    cost = running.budget.cost() if row.input_price is not None and row.output_price is not None else None
    return Labelled(
        made,
        figures,
        queries,
        sum(statuses.values()),
        quarantined,
        statuses,
        cost,
        running.drifted,
        running.aside,
    )
