"""Forecast a job that asks about single passages (`--dry-run`): its calls, tokens, cost and time, without a model."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb

from labelstore.store.label_store import LabelStore
from teachers.engines.base import Request
from teachers.errors import TeacherError
from teachers.generate import make_engine as engines
from teachers.generate.calls import Rendering
from teachers.generate.dry_run import Bill, context_of, rate_of, tell
from teachers.generate.single.ask import ONE_CALL, Note, fill_work, rendered
from teachers.generate.single.asked import Asked
from teachers.generate.worklist import Work
from teachers.scheduling import forecast as forecasts
from teachers.strategies.by_name import Window

Fill = Callable[[duckdb.DuckDBPyConnection], None]


def bill(
    store: LabelStore,
    model: Asked,
    collection: str,
    fill: Fill,
    *,
    samples: int = 1,
    note: Note = lambda message: None,
    job: Mapping[str, Any] | None = None,
) -> Bill:
    """Forecast the calls about what `fill` puts into the table ``asked``; nothing is written.

    Args:
        job: what stands before the figures in the row.
    """
    tokenizer = engines.tokenizer(model)
    rendering = Rendering(model.teacher, tokenizer, context_of(model))
    with tempfile.TemporaryDirectory(prefix="msft-forecast-") as folder:
        work = Work(Path(folder) / "work")
        try:
            with store.read() as con:
                fill(con)
                fill_work(con, work, model.row.teacher_key, samples)
                rate, source = rate_of(con, model.row.teacher_key)
            numbers = work.numbers()

            def render(index: int, window: Window) -> Request | None:
                try:
                    return rendered(rendering, collection, work.task(numbers[index]), samples)[0]
                except TeacherError:
                    return None

            own = forecasts.forecast(
                ONE_CALL, work.lengths(), render, lambda request: work.known(request.key)
            )
        finally:
            work.close()
    if own.unrenderable:
        note(f"{own.unrenderable:,} prompts do not fit the context and would be quarantined")
    tell(note, tokenizer is None, source, "a small job (--max-calls 20)")
    return Bill(
        model.row,
        own,
        tokenizer is not None,
        rate,
        {**(job or {}), "model": model.row.name, "prompt": model.row.prompt},
    )
