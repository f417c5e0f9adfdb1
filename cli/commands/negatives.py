"""`msft negatives`: mine, list, show."""

from dataclasses import dataclass
from typing import Annotated

import typer

from cli.command import Context, command, group
from cli.commands.views import DatasetOption, RunsOption, SeedOption, _count_rows
from cli.output import diagnostics, render
from cli.parameters import After
from labelstore.negatives.parameters import Parameters

negatives_app = group("Hard negatives: mined from runs, with evidence.")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(negatives_app, name="negatives")


@dataclass(frozen=True)
class Criteria(Parameters):
    """The parameters of a mining. On the command line two of them have other names."""

    shares: Annotated[
        tuple[float, ...],
        typer.Option("--share", help="The share of each --run, in their order; by default equal."),
    ] = ()
    denoise: Annotated[
        str,
        typer.Option(
            "--denoise-action",
            help="What to do with such candidates: drop, relabel (as positive) or downweight.",
        ),
    ] = "drop"


@dataclass(frozen=True)
class Mine:
    """The options of `msft negatives mine`."""

    dataset: DatasetOption = None
    runs: RunsOption = ()
    name: Annotated[str | None, "The name of the mined negatives."] = None
    criteria: Criteria = Criteria()
    scores: Annotated[
        str | None,
        "A run whose scores the margins and limits use, for example a re-ranker's.",
        After("min_score"),
    ] = None
    denoise_labels: Annotated[
        str | None,
        typer.Option(
            "--denoise",
            help="A labeling; candidates that it ranks above the positive are not used as negatives.",
        ),
        After("scores"),
    ] = None
    seed: SeedOption = 42
    replace: Annotated[bool, "Overwrite negatives of the same name."] = False


@command(
    negatives_app,
    "mine",
    example="msft negatives mine --dataset nfcorpus/train --run bm25s --depth 200 --per-query 99",
    lists=True,
)
def mine(context: Context, options: Mine) -> None:
    """Mine hard negatives for judged queries; each is stored with its rank, its score and the teacher's rank."""
    from labelstore.negatives import mine as negatives

    asked = dict(vars(options))
    criteria = vars(asked.pop("criteria"))
    mined = negatives.mine(context.store, note=diagnostics.note, **asked, **criteria)
    diagnostics.note(
        f"negatives {mined.mining.name}: {mined.mining.n_negatives:,}"
        + ("" if mined.new else ", the same as before")
    )
    render.rows(_count_rows("negatives", mined.mining.name, mined.counts), context.format)


@command(negatives_app, "list", example="msft negatives list --format json", lists=True)
def list_negatives(context: Context) -> None:
    """List the mined negatives, newest first."""
    from labelstore.negatives import mine as negatives

    with context.store.read() as con:
        rows = negatives.listed(con)
    render.rows(rows, context.format)


@command(negatives_app, "show", example="msft negatives show NEG --query 1037798", lists=True)
def show_negatives(
    context: Context,
    name: Annotated[str, typer.Argument(help="The negatives' name.")],
    query: Annotated[str | None, "Show only this query_id."] = None,
    limit: Annotated[int, "The most rows to print."] = 20,
) -> None:
    """Show negatives with the evidence for each: source, rank, score and the teacher's rank."""
    from labelstore.negatives import mine as negatives
    from labelstore.store import lookup

    with context.store.read() as con:
        mining = lookup.mining(con, name)
        rows = negatives.shown(con, mining, query, limit)
    if len(rows) < mining.n_negatives and query is None:
        diagnostics.note(f"{len(rows):,} of {mining.n_negatives:,} rows; --limit shows more")
    render.rows(rows, context.format)
