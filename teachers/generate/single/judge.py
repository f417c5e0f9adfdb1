"""Judge passages by an LLM (`msft teachers judge`): the top of runs, grade by grade, apart from what people said."""

from dataclasses import dataclass
from functools import partial

import duckdb

from labelstore.errors import PartlyDone, UsageError
from labelstore.judgments import store as judgments
from labelstore.judgments.pool import Pool, pool
from labelstore.judgments.store import Judged
from labelstore.labels.write import store_teacher
from labelstore.provenance import record as provenance
from labelstore.store.job_lock import judging_alone
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Completion, Engine
from teachers.generate import make_engine as engines
from teachers.generate.dry_run import Bill
from teachers.generate.single import forecast
from teachers.generate.single.ask import Build, Done, Job, Note, Progress, best_calls
from teachers.generate.single.asked import Asked, asked
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import WantedGrades
from teachers.prompts import single, single_replies

READING = "grade"
DEFAULT_PROMPT = "umbrela@1"
MOST_SAMPLES = 99
ASKED = "CREATE OR REPLACE TEMP TABLE asked AS SELECT query, [document] AS documents FROM pool"

# Of each passage's samples, a call with the grade that most of them gave; the lower grade of equals. A passage waits until all
# its samples have a call, and has no grade if none of them can be read.
MAJORITY = """
    CREATE OR REPLACE TEMP TABLE best AS
    WITH sampled AS (
        SELECT *, CASE WHEN status IN ('ok', 'repaired') THEN scores[1] END AS vote FROM best
        QUALIFY count(*) OVER (PARTITION BY query, documents) = ?
    ), counted AS (SELECT *, count(vote) OVER (PARTITION BY query, documents, vote) AS votes FROM sampled)
    SELECT DISTINCT ON (query, documents) * EXCLUDE (vote, votes) FROM counted
    ORDER BY query, documents, votes DESC, vote NULLS LAST, sample"""


@dataclass(frozen=True)
class Judging:
    """The result of a job: what was pooled, what is graded now, and what the calls took."""

    name: str
    pooled: Pool
    judged: Judged
    done: Done

    @property
    def graded(self) -> int:
        return sum(self.judged.grades.values())

    @property
    def quarantined(self) -> int:
        return sum(n for n, _ in self.judged.without.values()) + len(self.done.unrenderable)

    @property
    def left(self) -> int:
        return self.pooled.count.kept - self.graded - self.quarantined

    def partly_done(self) -> PartlyDone | None:
        """Return the error for the end (exit code 6) if pairs are left, because of a limit or in quarantine."""
        if self.left > 0:
            return PartlyDone(
                f"{self.done.figures.stopped or 'an interruption'} ended the job: {self.graded:,} of {self.pooled.count.kept:,} pairs of"
                f" {self.name} are judged and can be used",
                hint="run the same command again to continue",
            )
        if self.quarantined:
            return PartlyDone(
                f"{self.quarantined:,} of {self.pooled.count.kept:,} pairs of {self.name} have no grade,"
                f" {self.graded:,} do: a reply without a grade is never a 0",
                hint=f"see them with msft sql \"SELECT * FROM judge_grades WHERE judging = '{self.name}' AND grade IS NULL\";"
                " try again with --retry-quarantined",
            )
        return None


def judge(
    store: LabelStore,
    wanted: WantedGrades,
    settings: Asking,
    *,
    engine: Engine | None = None,
    build: Build = engines.build,
    note: Note = lambda message: None,
    progress: Progress | None = None,
) -> Judging:
    """Judge the pooled passages until each has a grade, is in quarantine, or a limit is reached.

    Raises:
        MsftError, TeacherError: a setting is wrong (nothing is written), or the engine fails (completed calls are kept, and
            the same command goes on from there).
    """
    pooled, model, name = _plan(store, wanted, settings, engine.name if engine is not None else None, note)
    if engine is None and build is engines.build:
        engines.require(model)
    fill = partial(_ask, wanted)
    collection = pooled.of.collection_name
    asking = Job(store, model, collection, read, fill, True, engine, build, note, progress, wanted.samples)
    with judging_alone(store, name), provenance.recorded(store, "teachers.judge") as job:
        try:
            done = asking.run(job)
        finally:
            judged = _store(store, wanted, model, name, job)
        result = Judging(name, pooled, judged, done)
        job.partial = result.partly_done() is not None
    return result


def bill(
    store: LabelStore, wanted: WantedGrades, settings: Asking, *, note: Note = lambda message: None
) -> Bill:
    """Forecast the calls of a judging; nothing is written."""
    pooled, model, name = _plan(store, wanted, settings, None, note)
    job = {"judging": name, "passages": pooled.count.kept}
    fill = partial(_ask, wanted)
    return forecast.bill(
        store, model, pooled.of.collection_name, fill, samples=wanted.samples, note=note, job=job
    )


def _plan(
    store: LabelStore, wanted: WantedGrades, settings: Asking, engine_name: str | None, note: Note
) -> tuple[Pool, Asked, str]:
    ident = single.ident(wanted.prompt or DEFAULT_PROMPT, single.JUDGE)
    if not 1 <= wanted.samples <= MOST_SAMPLES:
        raise UsageError(f"--samples {wanted.samples}: expected 1 to {MOST_SAMPLES}", hint="--samples 3")
    if wanted.samples > 1 and settings.temperature == 0:
        raise UsageError(
            f"--samples {wanted.samples}: at --temperature 0 all samples are one reply",
            hint="--temperature 0.7",
        )
    with store.read() as con:
        pooled = _pool(con, wanted)
    if wanted.dataset is None:
        note(
            f"judging the top {wanted.depth} of {', '.join(run.name for run in pooled.runs)} over {pooled.of.name}"
        )
    model = asked(
        wanted.model, single.prompt(ident), READING, settings, seed=wanted.seed, engine_name=engine_name
    )
    name = wanted.name or f"{model.row.name}@{pooled.of.name}"
    with store.read() as con:
        judgments.check_name(con, name, pooled.of.dataset, model.row.teacher_key, wanted.samples)
    return pooled, model, name


def _ask(wanted: WantedGrades, con: duckdb.DuckDBPyConnection) -> None:
    _pool(con, wanted)
    con.execute(ASKED)


def read(completion: Completion, n: int) -> tuple[str, list[float | None] | None]:
    """Read a reply: its status, and its grade as the passage's score."""
    found = single_replies.read_grade(completion.text or "", completion.finish_reason)
    return found.status, None if found.grade is None else [float(found.grade)]


def _pool(con: duckdb.DuckDBPyConnection, wanted: WantedGrades) -> Pool:
    return pool(con, wanted.dataset, wanted.runs, wanted.depth, judged=not wanted.unjudged)


def _store(store: LabelStore, wanted: WantedGrades, model: Asked, name: str, job: provenance.Job) -> Judged:
    """Take the grades of the calls that the store has into the judging."""
    with store.write() as con:
        pooled = _pool(con, wanted)
        con.execute(ASKED)
        best_calls(con, model.row.teacher_key, wanted.samples)
        if wanted.samples > 1:
            con.execute(MAJORITY, [wanted.samples])
        if not con.execute("SELECT 1 FROM best LIMIT 1").fetchall():
            return Judged(name)  # the job failed before its first answer
        teacher = store_teacher(con, model.row)
        key = judgments.store_judging(
            con, job, name, pooled.of.dataset, teacher, judgments.parameters(pooled, wanted.samples)
        )
        return judgments.store_grades(con, job, key, name)
