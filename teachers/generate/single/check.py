"""Check mined negatives by an LLM (`msft negatives check`): which of them are as good as the positive after all.

A cheap model is shown every negative; a strong one, if there is one, only what the cheap one flagged. Both answer in calls that are
on record, and the verdicts are made from these.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import duckdb

from labelstore.errors import PartlyDone, UsageError
from labelstore.labels.write import store_teacher
from labelstore.negatives import verdicts
from labelstore.negatives.verdicts import FLAGS, Counts
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.job_lock import checking_alone
from labelstore.store.label_store import LabelStore
from labelstore.store.sql_steps import Filter
from teachers.engines.base import Completion, Engine
from teachers.generate import make_engine as engines
from teachers.generate.dry_run import Bill
from teachers.generate.single import forecast
from teachers.generate.single.ask import Build, Done, Job, Note, Progress, best_calls, run_each
from teachers.generate.single.asked import Asked, asked
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import WantedVerdicts
from teachers.prompts import single
from teachers.prompts.verdicts import read_verdict

READING = "verdict"
DEFAULT_PROMPT = "rlhn@1"
MOST = 99  # negatives in a call


@dataclass(frozen=True)
class Stage:
    """A model's part in a check: what it was asked, and what its verdicts are."""

    model: Asked
    counts: Counts = field(default_factory=Counts)
    to_check: int = 0
    done: Done | None = None

    @property
    def unrenderable(self) -> int:
        return len(self.done.unrenderable) if self.done is not None else 0


@dataclass(frozen=True)
class Checked:
    """The result of a check: negatives offered, and its stages."""

    name: str
    mining: lookup.Mining
    offered: Filter
    stages: tuple[Stage, ...]

    @property
    def flagged(self) -> int:
        """Count the negatives that the last model flags."""
        return self.stages[-1].counts.flagged

    @property
    def unreadable(self) -> int:
        return sum(stage.counts.unreadable for stage in self.stages)

    @property
    def left(self) -> int:
        """Count the negatives that a model was to see and has not answered about."""
        return sum(stage.to_check - stage.counts.passages for stage in self.stages)

    def partly_done(self) -> PartlyDone | None:
        """Return the error for the end (exit code 6) if negatives are left, because of a limit or in quarantine."""
        stopped = next(
            (s.done.figures.stopped for s in self.stages if s.done and s.done.figures.stopped), None
        )
        if self.left and not any(stage.unrenderable for stage in self.stages):
            return PartlyDone(
                f"{stopped or 'an interruption'} ended the job: {self.left:,} negatives of {self.mining.name} wait for a verdict",
                hint="run the same command again to continue",
            )
        if self.unreadable or self.left:
            return PartlyDone(
                f"{self.unreadable + self.left:,} negatives of {self.mining.name} have no verdict: a reply that cannot be read is"
                " none",
                hint="see the replies with msft sql \"SELECT status, reply FROM teacher_calls WHERE prompt LIKE 'rlhn%' AND status"
                " NOT IN ('ok', 'repaired')\"; try again with --retry-quarantined",
            )
        return None


@dataclass(frozen=True)
class _Plan:
    wanted: WantedVerdicts
    mining: lookup.Mining
    collection: str
    name: str
    offered: Filter
    models: tuple[Asked, ...]

    @property
    def least(self) -> int:
        return FLAGS[self.wanted.flags]

    def ask(self, stage: int, con: duckdb.DuckDBPyConnection, unknown: bool = False) -> None:
        """Make the table ``asked`` of a stage; the strong model's is what the first one's calls flag."""
        verdicts.ask_all(con, self.mining, self.wanted.window)
        if stage == verdicts.STRONG:
            best_calls(con, self.models[0].row.teacher_key)
            verdicts.ask_flagged(con, self.least, self.wanted.window, unknown=unknown)

    @property
    def parameters(self) -> str:
        return verdicts.parameters(self.mining, self.wanted.window, self.wanted.flags)


def check(
    store: LabelStore,
    negatives: str,
    wanted: WantedVerdicts,
    settings: Asking,
    *,
    engines_given: Sequence[Engine] = (),
    build: Build = engines.build,
    note: Note = lambda message: None,
    progress: Progress | None = None,
) -> Checked:
    """Check negatives until each has a verdict, is in quarantine, or a limit is reached.

    Args:
        engines_given: replace the engines of the two models (tests).

    Raises:
        MsftError, TeacherError: a setting is wrong (nothing is written), or an engine fails (completed calls are kept, and
            the same command goes on from there).
    """
    made = _plan(store, negatives, wanted, settings, [engine.name for engine in engines_given])
    if not engines_given and build is engines.build:
        for model in made.models:
            engines.require(model)
    asking = [
        Job(
            store,
            model,
            made.collection,
            read,
            partial(made.ask, stage),
            of_query=True,
            engine=engines_given[stage - 1] if engines_given else None,
            build=build,
            note=note,
            progress=progress,
        )
        for stage, model in enumerate(made.models, 1)
    ]
    with checking_alone(store, made.name), provenance.recorded(store, "negatives.check") as job:
        done: list[Done] = []
        try:
            run_each(asking, job, done)
        finally:
            stages = _store(store, made, job, done)
        result = Checked(made.name, made.mining, made.offered, stages)
        job.partial = result.partly_done() is not None
    return result


def bills(
    store: LabelStore,
    negatives: str,
    wanted: WantedVerdicts,
    settings: Asking,
    *,
    note: Note = lambda message: None,
) -> list[Bill]:
    """Forecast both models' calls; nothing is written.

    The strong model's bill is the most: it counts what the first model has flagged, and all that it has not answered about yet.
    """
    made = _plan(store, negatives, wanted, settings, [])
    found = []
    for stage, model in enumerate(made.models, 1):
        fill = partial(made.ask, stage, unknown=True)
        job = {"verdicts": made.name, "stage": stage}
        found.append(forecast.bill(store, model, made.collection, fill, note=note, job=job))
    if len(found) > 1:
        note(
            "stage 2 sees only what stage 1 flags: its figures are the most, as if every negative were flagged"
        )
    return found


def read(completion: Completion, n: int) -> tuple[str, list[float | None] | None]:
    """Read a reply about a positive and n - 1 negatives: its status, and a verdict for each negative."""
    found = read_verdict(completion.text or "", n - 1, completion.finish_reason)
    return found.status, None if found.values is None else [None, *found.values]


def _plan(
    store: LabelStore, negatives: str, wanted: WantedVerdicts, settings: Asking, engine_names: Sequence[str]
) -> _Plan:
    if not 1 <= wanted.window <= MOST:
        raise UsageError(
            f"--window {wanted.window}: expected 1 to {MOST} negatives in a call", hint="--window 20"
        )
    if wanted.flags not in FLAGS:
        raise UsageError(f"--flags {wanted.flags}: expected {' or '.join(FLAGS)}", hint="--flags better")
    ident = single.ident(wanted.prompt or DEFAULT_PROMPT, single.CHECK)
    with store.read() as con:
        mining = lookup.mining(con, negatives)
        ((collection,),) = con.execute(
            "SELECT c.name FROM datasets JOIN collections c USING (collection) WHERE dataset = ?",
            [mining.dataset],
        ).fetchall()
        offered = verdicts.ask_all(con, mining, wanted.window)
    ask: Any = partial(asked, template=single.prompt(ident), reading=READING, seed=wanted.seed)
    names: list[str | None] = [*engine_names, None, None]
    models = [ask(wanted.model, settings=settings, engine_name=names[0])]
    if wanted.then is not None:
        models.append(ask(wanted.then, settings=_of_strong(wanted, settings), engine_name=names[1]))
        if models[0].row.teacher_key == models[1].row.teacher_key:
            raise UsageError(
                f"--then {wanted.then} is the model that was asked first",
                hint="name a stronger model, or leave out --then",
            )
    elif given := [
        f"--{name.replace('_', '-')}" for name in _OF_STRONG if getattr(wanted, name) not in (None, ())
    ]:
        raise UsageError(f"{', '.join(given)}: there is no second model", hint="--then MODEL")
    made = _Plan(wanted, mining, collection, wanted.name or _name(mining, models), offered, tuple(models))
    keys = [model.row.teacher_key for model in models]
    with store.read() as con:
        verdicts.check_name(
            con, made.name, mining, (keys[0], keys[1] if len(keys) > 1 else None), made.parameters
        )
    return made


_OF_STRONG = ("then_engine", "then_base_urls", "then_input_price", "then_output_price")


def _name(mining: lookup.Mining, models: Sequence[Asked]) -> str:
    return f"{'+'.join(model.row.name for model in models)}@{mining.name}"


def _of_strong(wanted: WantedVerdicts, settings: Asking) -> Asking:
    """Return the strong model's settings: its own server and prices, the rest as the first model has it."""
    return replace(
        settings,
        engine=wanted.then_engine or settings.engine,
        base_urls=wanted.then_base_urls or settings.base_urls,
        input_price=wanted.then_input_price,
        output_price=wanted.then_output_price,
        tokenizer=None,
        context=None,
    )


def _store(store: LabelStore, made: _Plan, job: provenance.Job, done: Sequence[Done]) -> tuple[Stage, ...]:
    """Make the verdicts of the calls that the store has."""
    stages = [Stage(model) for model in made.models]
    stages[0] = Stage(made.models[0], to_check=made.offered.kept)
    with store.write() as con:
        made.ask(verdicts.FIRST, con)
        best_calls(con, made.models[0].row.teacher_key)
        if not con.execute("SELECT 1 FROM best LIMIT 1").fetchall():
            return tuple(stages)  # the job failed before its first answer
        teachers = [store_teacher(con, model.row) for model in made.models]
        pair = (teachers[0], teachers[1] if len(teachers) > 1 else None)
        key = verdicts.store_checking(con, job, made.name, made.mining, pair, made.parameters)
        for number, model in enumerate(made.models, 1):
            made.ask(number, con)
            ((to_check,),) = con.execute("SELECT count(*) FROM to_check").fetchall()
            best_calls(con, model.row.teacher_key)
            counts = verdicts.store_verdicts(con, job, key, made.name, number, made.least)
            stages[number - 1] = Stage(
                model, counts, to_check, done[number - 1] if number <= len(done) else None
            )
    return tuple(stages)
