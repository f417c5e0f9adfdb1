"""`msft negatives`: mine, list, show."""

from typing import Annotated

import typer

from cli.command import Context, command, group
from cli.commands.views import DatasetOption, RunsOption, SeedOption, _count_rows
from cli.output import diagnostics, render

negatives_app = group("Hard negatives: mined from runs, with evidence.")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(negatives_app, name="negatives")


@command(
    negatives_app,
    "mine",
    example="msft negatives mine --dataset nfcorpus/train --run bm25s --depth 200 --per-query 99",
    lists=True,
)
def mine(
    context: Context,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    name: Annotated[str | None, typer.Option("--name", help="How commands call the negatives.")] = None,
    strategy: Annotated[str, typer.Option(help="uniform: drawn; top: the best ranked.")] = "uniform",
    depth: Annotated[int, typer.Option(help="Worst rank that is taken.")] = 200,
    min_rank: Annotated[int, typer.Option(help="Best rank that is taken: 11 skips the first ten.")] = 1,
    per_query: Annotated[int, typer.Option(help="Negatives per query at most.")] = 99,
    at_least: Annotated[int, typer.Option(help="Leave out queries with fewer.")] = 1,
    share: Annotated[
        list[float] | None,
        typer.Option("--share", help="Share of each --run, in their order; equal by default."),
    ] = None,
    min_relevance: Annotated[int, typer.Option(help="Lowest grade that counts as positive.")] = 1,
    reference: Annotated[
        str, typer.Option(help="With several positives, compare with the best or the worst of them.")
    ] = "best",
    absolute_margin: Annotated[
        float | None, typer.Option(help="A negative scores at least so much below the positive.")
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="… at least this share of the positive's score below it.")
    ] = None,
    max_score: Annotated[float | None, typer.Option(help="Highest score of a negative.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest score of a negative.")] = None,
    scores: Annotated[
        str | None, typer.Option("--scores", help="Margins and limits by this run's scores (a re-ranker's).")
    ] = None,
    denoise: Annotated[
        str | None,
        typer.Option("--denoise", help="A labeling: what it ranks above the positive is no negative."),
    ] = None,
    denoise_action: Annotated[
        str, typer.Option("--denoise-action", help="drop, relabel (as positive) or downweight.")
    ] = "drop",
    denoise_weight: Annotated[float, typer.Option(help="The weight under downweight.")] = 0.1,
    max_repairs: Annotated[int, typer.Option(help="Do not denoise by permutations with more repairs.")] = 10,
    include_positives: Annotated[
        bool, typer.Option("--include-positives", help="Keep ranked positives too, as label 1.")
    ] = False,
    seed: SeedOption = 42,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite negatives of that name that differ.")
    ] = False,
) -> None:
    """Mine hard negatives for judged queries; each is stored with its rank, score and the teacher's rank."""
    from labelstore.negatives import mine as negatives

    mined = negatives.mine(
        context.store,
        dataset=dataset,
        runs=run or (),
        name=name,
        seed=seed,
        denoise_labels=denoise,
        scores=scores,
        replace=replace,
        note=diagnostics.note,
        strategy=strategy,
        depth=depth,
        min_rank=min_rank,
        per_query=per_query,
        at_least=at_least,
        shares=tuple(share) if share else None,
        min_relevance=min_relevance,
        reference=reference,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        max_score=max_score,
        min_score=min_score,
        denoise=denoise_action,
        denoise_weight=denoise_weight,
        max_repairs=max_repairs,
        include_positives=include_positives,
    )
    diagnostics.note(
        f"negatives {mined.mining.name}: {mined.mining.n_negatives:,}"
        + ("" if mined.new else ", the same as are there already")
    )
    render.rows(_count_rows("negatives", mined.mining.name, mined.counts), context.format)


@command(negatives_app, "list", example="msft negatives list --format json", lists=True)
def list_negatives(context: Context) -> None:
    """All minings, newest first."""
    from labelstore.negatives import mine as negatives

    with context.store.read() as con:
        rows = negatives.listed(con)
    render.rows(rows, context.format)


@command(negatives_app, "show", example="msft negatives show NEG --query 1037798", lists=True)
def show_negatives(
    context: Context,
    name: Annotated[str, typer.Argument(help="The negatives' name.")],
    query: Annotated[str | None, typer.Option("--query", help="Only this query_id.")] = None,
    limit: Annotated[int, typer.Option("--limit", help="Rows at most.")] = 20,
) -> None:
    """Negatives with the evidence for each: source, rank, score, the teacher's rank."""
    from labelstore.negatives import mine as negatives
    from labelstore.store import lookup

    with context.store.read() as con:
        mining = lookup.mining(con, name)
        rows = negatives.shown(con, mining, query, limit)
    if len(rows) < mining.n_negatives and query is None:
        diagnostics.note(f"{len(rows):,} of {mining.n_negatives:,} rows; --limit shows more")
    render.rows(rows, context.format)
