"""`msft report`: the store as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from cli.command import Context, command
from cli.output import diagnostics, render


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    command(app, "report", example="msft report -o report.html", lists=True)(report)


def report(
    context: Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("report.html"),
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="Repeatable; default: every one that was measured or labelled."),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure", help="Repeatable, the first leads; default: the literature's, as measured."
        ),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option("--queries", help="Queries in the explorer; default: 100, or what fits 5 MB."),
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts/--no-texts", help="Whether passages' texts are in it (mind their terms).")
    ] = True,
) -> None:
    """Write what the store knows as one HTML file that needs no network.

    Leaderboard with intervals, effectiveness against cost, per-query differences, learning curves, label quality,
    lineage, and a query explorer. Nothing is measured anew: `msft eval` does that.
    """
    from labelstore.errors import UsageError
    from labelstore.report import page

    if queries is not None and queries < 1:
        raise UsageError(f"--queries {queries}: at least 1")
    written = page.write(
        context.store,
        output,
        datasets=dataset or (),
        measures=measure or (),
        n_queries=queries,
        texts=texts,
        note=diagnostics.note,
    )
    render.rows(written.rows, context.format, ["section", "dataset", "shown", "note"])
    diagnostics.note(f"{written.path}: {written.n_bytes / 1e6:.2f} MB, open it in a browser")
