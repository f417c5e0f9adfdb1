"""`msft teachers generate`: label a run with a teacher."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli.command import Context, command
from cli.output import diagnostics, fitted
from cli.parameters import After
from labelstore.labels.currency import CURRENCY
from teachers.generate.settings import Settings

if TYPE_CHECKING:
    from teachers.generate.job import Labelled
    from teachers.generate.single.settings import Asking
    from teachers.scheduling.figures import Figures

AnySettings = TypeVar("AnySettings", bound="Settings | Asking")
BaseUrls = Annotated[
    tuple[str, ...], typer.Option("--base-url", help="An OpenAI-compatible server; repeatable.")
]
EngineArg = Annotated[
    tuple[str, ...], "KEY=VALUE for vllm.LLM, e.g. tensor_parallel_size=2.", After("base_urls")
]

_EXAMPLE = "msft teachers generate --model rankzephyr --dataset dl19 --run bm25 --dry-run"


@dataclass(frozen=True)
class Options(Settings):
    """The settings of the job. On the command line two of them have other names."""

    base_urls: BaseUrls = ()
    constrained: Annotated[
        bool | None,
        typer.Option(
            "--constrained/--free",
            help="Let the model write only unused identifiers and the separator; the default for vllm and ray.",
            show_default=False,
        ),
    ] = None


def add_generate(app: typer.Typer) -> None:
    """Add `generate` to the group of teachers' commands."""

    @command(app, "generate", example=_EXAMPLE, lists=True)
    def generate(
        context: Context,
        options: Options,
        engine_arg: EngineArg = (),
        dry_run: Annotated[
            bool,
            "Only forecast calls, tokens, cost and time.",
            After("limit"),
        ] = False,
    ) -> None:
        """Label a run's candidates with a teacher; run the command again to go on where it stopped."""
        from teachers.generate.job import generate as label

        settings = with_engine_arguments(options, engine_arg)
        if dry_run:
            from teachers.generate.dry_run import forecast

            row = forecast(context.store, settings, note=diagnostics.note).row()
            fitted.listed([row], context.format)
            return
        _tell_of_padded_keys()
        with asking_progress("labelling", "queries") as progress:
            result = label(context.store, settings, note=diagnostics.note, progress=progress)
        fitted.listed([summary(result)], context.format)
        raise_if_left(result)


def _tell_of_padded_keys() -> None:
    for name in ("MSFT_API_KEY", "OPENAI_API_KEY"):
        value = os.environ.get(name, "")
        if value != value.strip():
            diagnostics.warn(
                f"{name} begins or ends with white space or a line break; it is sent without them"
            )


def with_engine_arguments(settings: AnySettings, engine_arg: tuple[str, ...]) -> AnySettings:
    """Add the arguments that `--engine-arg` gives for vllm.LLM.

    Raises:
        UsageError: one is not KEY=VALUE.
    """
    from msft.key_values import json_value, key_values

    given = key_values("--engine-arg", engine_arg, "tensor_parallel_size=2", json_value)
    return replace(settings, engine_arguments=given)


@contextmanager
def asking_progress(what: str, unit: str) -> Iterator[Callable[[int, int, "Figures", float | None], None]]:
    """Yield the function that shows a job's progress: done, total, figures, and the cost so far."""
    with diagnostics.progress(what, unit=unit) as bar:
        yield lambda done, total, figures, cost: bar(done, total, **_shown(figures, cost))


def _shown(figures: "Figures", cost: float | None) -> dict[str, object]:
    """Select the figures of the progress line. Zeros are left out, except the number of calls."""
    always: dict[str, object] = {"calls": figures.calls}
    sometimes: dict[str, object] = {
        "resumed": figures.resumed,
        "repaired": figures.repaired,
        "retried": figures.retried,
        "quarantined": figures.quarantined,
    }
    shown = always | {key: value for key, value in sometimes.items() if value}
    shown["tokens/s"] = round(figures.tokens_per_second)
    if cost is not None:
        shown[f"spent {CURRENCY}"] = cost
    return shown


def summary(result: "Labelled") -> dict[str, Any]:
    """Make the one row that a job prints."""
    figures = result.figures
    return {
        "labels": result.plan.name,
        "queries": result.queries,
        "labelled": result.labelled,
        "quarantined": result.quarantined,
        "left": result.left,
        "calls": figures.calls,
        "resumed": figures.resumed,
        "repaired": figures.repaired,
        "retried": figures.retried,
        "tokens_in": figures.tokens_in,
        "tokens_out": figures.tokens_out,
        "cost": result.cost,
        "currency": None if result.cost is None else CURRENCY,
        "seconds": round(figures.seconds, 2),
        "tokens_per_second": round(figures.tokens_per_second, 1),
        "occupancy": round(figures.occupancy, 3),
        "overhead_share": round(figures.overhead_share, 4),
        "drifted": result.drifted,
        "stopped_by": figures.stopped,
    }


def raise_if_left(result: "Labelled") -> None:
    """End with exit code 6 if queries are left without labels.

    Raises:
        PartlyDone: queries are left without labels.
    """
    error = result.partly_done()
    if error is not None:
        raise error
