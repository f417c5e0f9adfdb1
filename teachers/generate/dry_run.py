"""Forecast a plan from the store (`msft teachers generate --dry-run`), without a model and without writing."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelstore.labels.currency import CURRENCY
from labelstore.labels.write import Teacher as TeacherRow
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Request
from teachers.errors import TeacherError
from teachers.generate import make_engine as engines
from teachers.generate.calls import Rendering
from teachers.generate.fill_worklist import fill
from teachers.generate.plan import Plan, Settings, plan
from teachers.generate.worklist import Task, Work
from teachers.scheduling import forecast as forecasts
from teachers.scheduling.forecast import Forecast
from teachers.strategies.by_name import Window


@dataclass(frozen=True)
class Bill:
    """The forecast of a model's calls, with their cost and time."""

    teacher: TeacherRow
    forecast: Forecast
    exact_tokens: bool  # counted by the model's tokenizer
    tokens_per_second: float | None  # measured in an earlier job; None without one
    job: Mapping[str, Any]  # what stands before the figures, and after them
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost_most(self) -> float | None:
        row = self.teacher
        if row.input_price is None or row.output_price is None:
            return None
        own = self.forecast
        return (own.tokens_in * row.input_price + own.tokens_out_most * row.output_price) / 1e6

    @property
    def seconds(self) -> float | None:
        if not self.tokens_per_second:
            return None
        return (self.forecast.tokens_in + self.forecast.tokens_out_most) / self.tokens_per_second

    def row(self) -> dict[str, Any]:
        """Return the row for ``--dry-run``."""
        own = self.forecast
        return {
            **self.job,
            "calls_least": own.calls_least,
            "calls_most": own.calls_most,
            "recorded": own.recorded,
            "tokens_in": own.tokens_in,
            "tokens_in_error": own.tokens_in_error,
            "tokens_in_by": "tokenizer" if self.exact_tokens else "guess",
            "tokens_out_most": own.tokens_out_most,
            "cost_most": self.cost_most,
            "currency": None if self.cost_most is None else CURRENCY,
            "tokens_per_second": self.tokens_per_second,
            "minutes": None if self.seconds is None else self.seconds / 60,
            **self.more,
        }


def forecast(
    store: LabelStore, settings: Settings, *, note: Callable[[str], None] = lambda message: None
) -> Bill:
    """Forecast a job; reads the store, writes nothing.

    Raises:
        MsftError, TeacherError: as :func:`teachers.generate.job.generate` for these settings.
    """
    made = plan(store, settings)
    tokenizer = engines.tokenizer(made)
    rendering = Rendering(made.teacher, tokenizer, context_of(made))
    with tempfile.TemporaryDirectory(prefix="msft-forecast-") as folder:
        work = Work(Path(folder) / "work")
        try:
            with store.read() as con:
                fill(con, made, work)
                rate, source = rate_of(con, made.row.teacher_key)
            own = _forecast(made, work, rendering)
        finally:
            work.close()
    if own.unrenderable:
        note(f"{own.unrenderable} queries do not fit the context and would be quarantined")
    tell(note, tokenizer is None and not made.pointwise, source, "--limit 20")
    job = {"labels": made.name, "strategy": made.strategy_name, "queries": own.queries}
    return Bill(made.row, own, tokenizer is not None, rate, job, {"reliable_depth": made.reliable_depth})


def tell(note: Callable[[str], None], guessed: bool, source: str | None, few: str) -> None:
    """Say what a forecast rests on; `few` is the option for a job that measures a rate."""
    if guessed:
        note(
            "the model's tokenizer is not on this machine: tokens are a guess from the text (--tokenizer names one)"
        )
    if source is None:
        note(f"no rate has been measured for this teacher yet: {few} without --dry-run measures one")
    else:
        note(f"time by the rate of {source}")


def _forecast(made: Plan, work: Work, rendering: Rendering) -> Forecast:
    numbers = work.numbers()
    held: list[tuple[int, Task]] = []

    def task(index: int) -> Task:
        if not held or held[0][0] != index:
            held[:] = [(index, work.task(numbers[index]))]
        return held[0][1]

    def render(index: int, window: Window) -> Request | None:
        try:
            return rendering.request(task(index), window)[0]
        except TeacherError:
            return None

    return forecasts.forecast(made.strategy, work.lengths(), render, lambda request: work.known(request.key))


def context_of(made: engines.Plan) -> int | None:
    """Return the model's context from its configuration, if it is on this machine; the engine uses the same limit."""
    if made.context is not None or made.pointwise:
        return made.context
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(made.location, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    limit = getattr(config, "max_position_embeddings", None)
    return int(limit) if limit else None


def rate_of(con: Any, teacher_key: str) -> tuple[float | None, str | None]:
    """Return tokens per second of this teacher's last job of at least 20 calls, first submission to last answer."""
    found = con.execute(
        """SELECT (sum(c.tokens_in) + sum(c.tokens_out))
                    / greatest(epoch(max(c.completed_at)) - epoch(min(c.completed_at)) + min(c.seconds), 1e-3),
                  max(c.completed_at)
           FROM calls c JOIN requests r USING (request) JOIN teachers t USING (teacher)
           WHERE t.teacher_key = ? GROUP BY c.job_key HAVING count(*) >= 20 ORDER BY 2 DESC LIMIT 1""",
        [teacher_key],
    ).fetchall()
    if not found:
        return None, None
    return float(found[0][0]), f"the job that ended {found[0][1]:%Y-%m-%d %H:%M}"
