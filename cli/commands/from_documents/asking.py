"""The options of commands that ask a model about single passages, and what they print while it answers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cli.commands.teachers_generate import BaseUrls
from cli.parameters import After
from labelstore.labels.currency import CURRENCY
from teachers.generate.single.settings import Asking

if TYPE_CHECKING:
    from teachers.scheduling.figures import Figures


@dataclass(frozen=True)
class AskingOptions(Asking):
    """The settings of the job. On the command line one of them has another name."""

    base_urls: BaseUrls = ()


DryRun = Annotated[bool, "Only forecast calls, tokens, cost and time.", After("max_cost")]


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
