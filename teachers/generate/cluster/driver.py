"""``--engine ray``: workers on a Ray cluster, each with an engine, label parts of the queries.

The driver keeps the store and the list of remaining queries. A worker (worker.py) gets a few queries whenever it runs
out, so a slow worker does not delay the others. Workers write the same journal as every engine; the driver merges
closed segments during the job. A lost worker (killed, machine gone, engine broken) is replaced. First its journaled
calls are merged, then its unfinished queries are queued again with their recorded answers, so that no completed call
is made twice.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from labelstore.errors import StoreError
from labelstore.store.label_store import LabelStore
from msft.host import ray_cluster
from teachers.engines.base import Engine
from teachers.errors import ExitCode, MsftError, TeacherError
from teachers.generate import child_process
from teachers.generate.cluster import resources as cluster_resources
from teachers.generate.cluster.worker import Assignment, Part, Report, Worker
from teachers.generate.fill_worklist import answers
from teachers.generate.plan import Plan
from teachers.generate.worklist import Work
from teachers.scheduling.budget import Budget
from teachers.scheduling.figures import Figures, summed

PART = 16  # most queries sent at once
FRUITLESS = 3  # most workers lost in a row without a call, per worker


@dataclass
class Slot:
    """A worker's place: its current actor and the queries it was given.

    Attributes:
        budget: the worker's share; includes what lost actors spent.
        actor: the current actor; None between the loss of one and the start of the next.
        lost: number of lost actors.
        handed: number -> query_id of queries that were sent and are not finished.
        figures: last reported figures of the current actor; `before` has those of earlier actors.
        taken: segments received with the last report.
        ran: whether its work has ended; `final`: whether a report was requested since; `over`: whether it has arrived.
    """

    number: int
    budget: Budget
    actor: Any = None
    lost: int = 0
    handed: dict[int, str] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    before: Figures = field(default_factory=Figures)
    taken: list[str] = field(default_factory=list)
    hungry: bool = False
    ending: bool = False
    ran: bool = False
    final: bool = False
    over: bool = False

    @property
    def server(self) -> str:
        return f"ray{self.number}"


@dataclass
class Driver:
    """Label the queries in the working file.

    Args:
        build: makes the plan's engine in each worker.
        first_canaries: the teacher's first canaries.
        tick: called from time to time with the figures of all workers.
        shared: False: workers do not look for the journal's folder (a cluster without shared disks).
    """

    store: LabelStore
    plan: Plan
    job_key: str
    folder: Path
    work: Work
    build: Callable[[Plan], Engine]
    first_canaries: Mapping[str, str]
    budget: Budget
    note: Callable[[str], None]
    tick: Callable[[Figures], None]
    shared: bool = True
    drifted: int = 0
    _slots: list[Slot] = field(default_factory=list)
    _queue: deque[int] = field(default_factory=deque)
    _adrift: dict[int, str] = field(default_factory=dict)  # queries of lost workers
    _refs: dict[Any, tuple[Slot, str]] = field(default_factory=dict)  # pending calls to actors
    _fruitless: int = 0

    def run(self) -> Figures:
        """Feed the workers until every query is done or the budget is spent.

        Raises:
            MsftError: if Ray is not installed, or workers are lost repeatedly without completing a call.
            UsageError: if the cluster has not enough resources for the workers.
        """
        number = self.plan.settings.workers
        self._queue.extend(self.work.numbers(longest_first=True))
        self._slots = [Slot(k, self.budget.share(number, k)) for k in range(number)]
        with (
            ray_cluster.connected() as ray,
            cluster_resources.locked(self.folder, self.job_key) as token,
        ):
            resources = cluster_resources.per_worker(ray, self.plan)
            self.note(ray_cluster.words(ray, number, resources))
            make = ray.remote(Worker).options(**resources, max_concurrency=5, scheduling_strategy="SPREAD")
            try:
                while not all(slot.over for slot in self._slots):
                    for slot in self._slots:
                        if slot.actor is None and not self._adrift:
                            self._start(make, slot, token)
                    self._step(ray)
            finally:
                for slot in self._slots:
                    if slot.actor is not None:
                        ray.kill(slot.actor)
        return self._figures()

    # ------------------------------------------------------------------------------------------------ the loop
    def _step(self, ray: Any) -> None:
        """Handle finished calls, send queries to workers without work, end workers if nothing is left."""
        ready, _ = ray.wait(list(self._refs), timeout=1.0) if self._refs else ([], [])
        for ref in ready:
            if ref not in self._refs:
                continue  # the call of a worker whose loss another call has already reported
            slot, what = self._refs.pop(ref)
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayError as error:
                self._lose(ray, slot, getattr(error, "cause", None) or error)
            else:
                self._handle(slot, what, answer)
        if self._adrift:
            self._take_up()
        for slot in self._slots:
            self._feed(slot)
        if not (self._queue or self._adrift or any(slot.handed for slot in self._slots)):
            for slot in self._slots:
                self._end(slot)
        self.tick(self._figures())

    def _handle(self, slot: Slot, what: str, answer: Any) -> None:
        if what == "hungry":
            slot.hungry = True
        elif what == "report":
            self._take(slot, answer)
        elif what == "run":  # all queries are done, or its share of the budget is spent
            slot.ran, slot.hungry = True, False

    def _take(self, slot: Slot, report: Report) -> None:
        slot.figures = report.figures
        if report.figures.calls:
            self._fruitless = 0
        for number in report.finished:
            slot.handed.pop(number, None)
        for name, data in report.segments.items():
            cluster_resources.keep(self.folder / name, data)
        self.drifted = max(self.drifted, report.drifted)
        for line in report.notes:
            self.note(line)
        slot.taken = list(report.segments)
        if slot.final and not slot.taken:
            slot.over = True
            self._adrift |= (
                slot.handed
            )  # sent but not begun when its share was spent; other workers may have budget left
            slot.handed = {}
            return
        slot.final = slot.ran
        self._call(slot, "report", slot.taken, not slot.ran)

    def _feed(self, slot: Slot) -> None:
        if not slot.hungry or not self._queue:
            return
        size = max(min(PART, len(self._queue) // (2 * len(self._slots))), 1)
        numbers = [self._queue.popleft() for _ in range(size)]
        tasks = [self.work.task(number) for number in numbers]
        slot.handed |= {task.number: task.query_id for task in tasks}
        slot.hungry = False
        self._call(slot, "feed", Part(tasks, self.work.answers_of(numbers)))

    def _end(self, slot: Slot) -> None:
        if slot.actor is not None and not slot.ending:
            slot.ending = True
            self._call(slot, "end")

    def _call(self, slot: Slot, method: str, *arguments: Any) -> None:
        self._refs[getattr(slot.actor, method).remote(*arguments)] = (
            slot,
            "hungry" if method == "feed" else method,
        )

    # ----------------------------------------------------------------------------------------- workers and losses
    def _start(self, make: Any, slot: Slot, token: str) -> None:
        first = slot.number == 0 and slot.lost == 0
        slot.actor = make.remote(
            Assignment(
                plan=self.plan,
                build=self.build,
                job_key=self.job_key,
                name=f"{slot.server}-{slot.lost}",
                server=slot.server,
                folder=str(self.folder.resolve()) if self.shared else None,
                token=token,
                budget=slot.budget,
                first_canaries=self.first_canaries if first else None,
            )
        )
        for method in ("run", "hungry"):
            self._call(slot, method)
        self._call(slot, "report", [])

    def _lose(self, ray: Any, slot: Slot, error: BaseException) -> None:
        """Drop a lost actor; its queries are queued again later.

        Raises:
            MsftError: if a replacement would fail too: the engine is not installed, the model is not found, or workers
                are lost without completing a call.
        """
        if isinstance(error, MsftError) and error.exit_code in (ExitCode.USAGE, ExitCode.DATA_MISSING):
            raise error
        reason = ray_cluster.reason(error)
        self._fruitless += 1
        if self._fruitless > FRUITLESS * len(self._slots):
            raise TeacherError(
                f"Ray's workers are lost before they complete a call: {reason}",
                hint="see Ray's logs on the worker's machine; completed calls are kept",
                exit_code=ExitCode.TEACHER_ENGINE,
            )
        self.note(f"worker {slot.server} is lost ({reason}): {len(slot.handed)} queries are taken up again")
        ray.kill(slot.actor)  # the process of a broken engine may still be alive
        self._refs = {ref: of for ref, of in self._refs.items() if of[0] is not slot}
        slot.before = summed([slot.before, slot.figures])
        self._adrift |= slot.handed
        slot.actor, slot.handed, slot.taken, slot.figures = None, {}, [], Figures()
        slot.lost += 1
        slot.hungry = slot.ending = slot.ran = slot.final = False

    def _take_up(self) -> None:
        """Merge the journal, then queue the unfinished queries of lost workers again, with their recorded answers."""
        try:
            child_process.merge_small_or_large(self.store, self.folder, self.note)
            with self.store.read() as con:
                left = self._unfinished(con)
                of_queries = f"""SELECT number, query FROM taken_up JOIN queries USING (query_id)
                                 WHERE collection = {self.plan.dataset.collection}"""
                self.work.add_answers(answers(con, self.plan, of_queries))
                for slot in self._slots:
                    if slot.actor is None:
                        self._charge(con, slot)
        except StoreError:
            return  # the store is locked; try again at the next step
        self._adrift = {}
        self._queue.extendleft(sorted(left, reverse=True))

    def _unfinished(self, con: duckdb.DuckDBPyConnection) -> list[int]:
        """Return numbers of lost workers' queries without a permutation that this job did not quarantine."""
        con.execute("CREATE TEMP TABLE adrift (number INTEGER, query_id VARCHAR)")
        con.executemany("INSERT INTO adrift VALUES (?, ?)", list(self._adrift.items()))
        con.execute(
            """CREATE TEMP TABLE taken_up AS
               SELECT number, query_id FROM adrift WHERE query_id NOT IN
                 (SELECT q.query_id FROM labelings l, LATERAL
                    (SELECT query FROM permutations WHERE labeling = l.labeling UNION ALL
                     SELECT z.query FROM quarantine z JOIN provenance p USING (job)
                     WHERE z.labeling = l.labeling AND p.job_key = ?) done JOIN queries q USING (query)
                  WHERE l.name = ?)""",
            [self.job_key, self.plan.name],
        )
        return [number for (number,) in con.execute("SELECT number FROM taken_up").fetchall()]

    def _charge(self, con: duckdb.DuckDBPyConnection, slot: Slot) -> None:
        """Count a slot's lost actors' calls and tokens from the store, because the last report may have missed some."""
        calls, tokens_in, tokens_out = con.execute(
            """SELECT count(*), coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0) FROM calls
               WHERE job_key = ? AND starts_with(server, ? || '@')""",
            [self.job_key, slot.server],
        ).fetchall()[0]
        slot.before.calls, slot.before.tokens_in, slot.before.tokens_out = calls, tokens_in, tokens_out
        slot.budget = self.budget.share(len(self._slots), slot.number)
        slot.budget.spent(calls, tokens_in, tokens_out)

    def _figures(self) -> Figures:
        """Combine the figures of all workers; update the job's budget for the cost."""
        by_slot = [summed([slot.before, slot.figures]) for slot in self._slots]
        total = summed(by_slot)
        total.seconds = max(figures.seconds for figures in by_slot)  # without the time to load the model
        total.engine_seconds /= len(by_slot)
        self.budget.spent(total.calls, total.tokens_in, total.tokens_out)
        return total
