"""The options of commands that ask a model about single passages, and what they print while it answers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelstore.labels.currency import CURRENCY
from teachers.generate.single.settings import Asking

if TYPE_CHECKING:
    from teachers.scheduling.figures import Figures


@dataclass(frozen=True)
class AskingOptions(Asking):
    """The settings of the job. On the command line one of them has another name."""

    base_urls: Annotated[
        tuple[str, ...],
        typer.Option("--base-url", help="An OpenAI-compatible server; repeatable."),
    ] = ()


def shown(figures: "Figures", cost: float | None) -> dict[str, object]:
    """Select the figures of the progress line; zeros are left out, except the number of calls."""
    found: dict[str, object] = {"calls": figures.calls}
    sometimes = {"resumed": figures.resumed, "retried": figures.retried, "quarantined": figures.quarantined}
    found |= {key: value for key, value in sometimes.items() if value}
    if cost is not None:
        found[f"spent {CURRENCY}"] = cost
    return found


def summary(figures: "Figures", cost: float | None) -> dict[str, Any]:
    """Make the part of a job's row that says what its calls took."""
    return {
        "calls": figures.calls,
        "resumed": figures.resumed,
        "retried": figures.retried,
        "tokens_in": figures.tokens_in,
        "tokens_out": figures.tokens_out,
        "cost": cost,
        "currency": None if cost is None else CURRENCY,
        "seconds": round(figures.seconds, 2),
        "stopped_by": figures.stopped,
    }
