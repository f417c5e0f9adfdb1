"""`msft negatives`: mine, check, list, show."""

from dataclasses import dataclass
from typing import Annotated

import typer

from cli.command import Context, command, group
from cli.commands.from_documents.asking import AskingOptions, DryRun, summary
from cli.commands.teachers_generate import EngineArg, asking_progress, with_engine_arguments
from cli.commands.views import DatasetOption, RunsOption, SeedOption, _count_rows
from cli.output import diagnostics, fitted
from cli.parameters import After
from labelstore.negatives.parameters import Parameters
from teachers.generate.single.wanted import WantedVerdicts

LISTED = (
    "negatives", "dataset", "runs", "strategy", "depth", "per_query", "denoise", "queries", "rows", "seed", "made",
)  # fmt: skip
SHOWN = (
    "query_id", "doc_id", "source_run", "source_rank", "source_score", "teacher_rank", "label", "weight", "text",
)  # fmt: skip

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
            help="A labeling, or verdicts of `msft negatives check`: what it ranks above the positive, or they flag, is no"
            " negative. With verdicts, only what they are on is mined.",
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
    fitted.listed(_count_rows("negatives", mined.mining.name, mined.counts), context.format, keys=("step",))


@dataclass(frozen=True)
class Wanted(WantedVerdicts):
    """How negatives are checked. On the command line one setting has another name."""

    then_base_urls: Annotated[
        tuple[str, ...],
        typer.Option(
            "--then-base-url", help="An OpenAI-compatible server of --then; by default that of --base-url."
        ),
        After("then_engine"),
    ] = ()


@command(
    negatives_app,
    "check",
    example="msft negatives check hard --model gpt-4o-mini --then gpt-4o --base-url https://api.openai.com/v1 --dry-run",
    lists=True,
)
def check(
    context: Context,
    negatives: Annotated[str, typer.Argument(help="Mined negatives; `msft negatives mine` makes them.")],
    wanted: Wanted,
    asking: AskingOptions,
    engine_arg: EngineArg = (),
    dry_run: DryRun = False,
) -> None:
    """Ask an LLM which mined negatives are as good as the positive; run the command again to go on where it stopped.

    The model sees a query, its best positive and some of its negatives. With --then, a stronger model sees only what the
    first one flags, and its verdict counts. `msft negatives mine --denoise VERDICTS` then uses the verdicts. A reply
    that cannot be read is in quarantine, and no verdict.
    """
    from labelstore.negatives import verdicts
    from teachers.generate.single import check as checks

    settings = with_engine_arguments(asking, engine_arg)
    if dry_run:
        bills = checks.bills(context.store, negatives, wanted, settings, note=diagnostics.note)
        fitted.listed([bill.row() for bill in bills], context.format)
        return
    with asking_progress("checking", "calls") as progress:
        made = checks.check(
            context.store, negatives, wanted, settings, note=diagnostics.note, progress=progress
        )
    rows = []
    for number, stage in enumerate(made.stages, 1):
        counts = stage.counts
        figures = summary(stage.done.figures, stage.done.cost) if stage.done is not None else {}
        rows.append(
            {
                "verdicts": made.name,
                "stage": number,
                "model": stage.model.row.name,
                "queries": counts.queries,
                "negatives": counts.passages,
                "better": counts.better,
                "worse": counts.worse,
                "irrelevant": counts.irrelevant,
                "flagged": counts.flagged,
                "unreadable": counts.unreadable,
                **figures,
            }
        )
    fitted.listed(rows, context.format, keys=("stage",))
    for reason, (n, example) in made.offered.drops.items():
        diagnostics.note(f"{n:,} negatives are left out: {reason}, e.g. {example}")
    if (partly := made.partly_done()) is not None:
        raise partly
    with context.store.read() as con:
        by_flags = verdicts.flagged_queries(con, made.name)
    flagged = sum(n for flags, n in by_flags.items() if flags)
    diagnostics.note(
        f"{made.flagged:,} false negatives in {flagged:,} queries, {max(by_flags)} at most in one"
    )
    diagnostics.note(f"use them: msft negatives mine --denoise {made.name}")


@command(negatives_app, "list", example="msft negatives list --format json", lists=True)
def list_negatives(context: Context) -> None:
    """List the mined negatives, newest first."""
    from labelstore.negatives import mine as negatives
    from labelstore.negatives import verdicts
    from labelstore.store import lookup

    with context.store.read() as con:
        rows = negatives.listed(con)
        checked = [f"{row['verdicts']} on {row['negatives']}" for row in verdicts.listed(con)]
    empty = lookup.none_yet("negatives")
    fitted.listed(rows, context.format, keys=("negatives",), columns=LISTED, empty=empty)
    if checked:
        diagnostics.note(f'verdicts: {", ".join(checked)}; see `msft sql "FROM negative_verdicts"`')


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
    empty = f"{name} has no negatives" + (f" of query {query}" if query else "")
    fitted.listed(rows, context.format, keys=("query_id", "doc_id"), columns=SHOWN, empty=empty)
