"""`msft eval`: from runs and labels to per-query scores, side by side; `msft compare` gives the verdicts."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics, render
from cli.output.render import Format
from cli.workflows import before_evaluation as reranking

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, Any]

FOR_PEOPLE = (Format.table, Format.md, Format.latex)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(app, "eval", example="msft eval --dataset dl20 --measure nDCG@10 --fuse", lists=True)(evaluate)


def evaluate(
    context: Context,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Repeatable; default: the only one.")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="First stage; repeatable; default: every one.")
    ] = None,
    student: Annotated[
        list[str] | None, typer.Option("--student", help="Repeatable; default: every one.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", help="Labeling; repeatable; default: every one.")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure", help="ir-measures name; repeatable; default: the literature's for the dataset."
        ),
    ] = None,
    depth: Annotated[int, typer.Option("--depth", help="Candidates per query that students re-rank.")] = 100,
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Also each student interpolated with its first stage.")
    ] = False,
    fuse_on: Annotated[
        str | None,
        typer.Option("--fuse-on", help="Dataset whose queries fix the weight; default: a dev one."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="dl, beir, or a file of datasets; adds the macro mean.")
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank/--no-rerank", help="Whether students re-rank what they have not yet.")
    ] = True,
    exclude_self: Annotated[
        bool,
        typer.Option(
            "--exclude-self",
            help="Leave a passage with its query's id out of the ranking, as ArguAna and Quora always do; such values are not kept.",
        ),
    ] = False,
) -> None:
    """Measure first stages, teachers and students side by side.

    Students re-rank what they have not re-ranked yet. Every value is kept per query in the store and reused. p_value
    is the two-sided paired t-test against the first stage; `msft compare` has the tests that support a claim.
    """
    from labelstore.errors import DataMissing, PartlyDone, UsageError
    from labelstore.evaluation import measures as measuring
    from labelstore.evaluation import scores as evaluation
    from labelstore.evaluation import suites, systems
    from labelstore.store import lookup

    if suite and dataset:
        raise UsageError("--suite names the datasets: leave --dataset out")
    if depth < 1:
        raise UsageError(f"--depth {depth}: at least 1")
    store = context.store
    if suite:
        names = suites.datasets(suite)
    elif dataset:
        names = list(dict.fromkeys(dataset))
    else:
        with store.read() as con:
            names = [lookup.pick_dataset(con, None).name]
        diagnostics.note(f"dataset {names[0]}, the only one")
    rows: list[Row] = []
    lacking: list[str] = []
    for number, name in enumerate(names):
        try:
            own = reranking.ensure_dataset(store, name)
        except DataMissing as error:
            if not suite:
                raise
            diagnostics.warn(f"{error} ({error.hint})")
            lacking.append(name)
            continue
        names[number] = own
        with store.read() as con:
            of = lookup.dataset(con, own)
            measures = (
                [measuring.canonical(m) for m in measure] if measure else evaluation.default_measures(of)
            )
            # before any work: there must be something to measure against, that the measures can take
            measuring.check_grades(measures, systems.qrels(con, of))
        reranking.ensure_first_stage(store, own, depth)
        over = reranking.first_stages(store, own, run)
        if rerank:
            reranking.rerank_pending(store, own, reranking.pending(store, own, student, over, depth), depth)
        if fuse:
            reranking.fuse(store, own, student, over, measures[0], fuse_on)
        kinds = systems.KINDS if fuse else tuple(k for k in systems.KINDS if k != "fused")
        rows += evaluation.evaluate(
            store,
            own,
            runs=run,
            labelings=labels,
            students=student,
            measures=measures,
            kinds=kinds,
            exclude_self=exclude_self,
            note=diagnostics.note,
            warn=diagnostics.warn,
        )
    if suite:
        rows += suites.macro_means(suite, rows, names)
    render.rows(
        wide(rows) if context.format in FOR_PEOPLE else rows,
        context.format,
        _columns(rows, context),
    )
    if lacking:
        raise PartlyDone(
            f"{len(lacking)} of {len(names)} datasets are missing: {', '.join(lacking)}",
            hint=f"msft data add {lacking[0]} --from FOLDER",
        )


def _columns(rows: "Sequence[Row]", context: Context) -> list[str] | None:
    if context.format in FOR_PEOPLE or rows:
        return None
    return ["dataset", "system", "kind", "first_stage", "measure", "value", "n_queries", "p_value"]


def wide(rows: "Sequence[Row]") -> list[Row]:
    """A row for each system, a column for each measure: the form for reading.

    The first measure has its p-value beside it. recall is that of the candidates at the depth that was ordered: what
    no re-ranking can exceed; judged is Judged@10.
    """
    table: dict[tuple[Any, ...], Row] = {}
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    for row in rows:
        key = (row["dataset"], row["system"], row["kind"], row["first_stage"])
        line = table.setdefault(
            key,
            {
                "dataset": row["dataset"],
                "system": row["system"],
                "kind": row["kind"],
                "first_stage": row["first_stage"] if row["kind"] != "first_stage" else None,
                **dict.fromkeys(measures),
                "p_value": None,
                "queries": row["n_queries"],
                "judged": row["judged"],
                "depth": row["depth"],
                "recall": row["recall"],
            },
        )
        line[row["measure"]] = row["value"]
        if row["measure"] == measures[0] or (line["p_value"] is None and row["p_value"] is not None):
            line["p_value"] = row["p_value"]
    return list(table.values())
