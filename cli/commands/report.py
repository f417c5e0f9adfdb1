"""`msft report`: write the store's content as one HTML page; `msft mcp`: serve it to agents; `msft help`: pages offline."""

from pathlib import Path
from typing import Annotated

import typer

from cli.command import Context, command
from cli.output import diagnostics, fitted, render


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(app, "report", example="msft report -o report.html", lists=True)(report)
    command(app, "mcp", example="msft mcp --store msft.duckdb")(mcp)
    command(app, "help", example="msft help losses")(show_help)


def report(
    context: Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("report.html"),
    dataset: Annotated[
        list[str] | None, "A dataset; repeatable; by default all that were measured or labelled."
    ] = None,
    measure: Annotated[
        list[str] | None,
        "A measure; repeatable; the first one is the headline; by default those that were measured.",
    ] = None,
    queries: Annotated[
        int | None, "Queries in the explorer; by default 100, or as many as fit in 5 MB."
    ] = None,
    texts: Annotated[
        bool, "Include the passages' texts; check their licence before you pass the page on."
    ] = True,
) -> None:
    """Write the store's content as one HTML file that needs no network.

    It has a leaderboard with intervals, effectiveness against cost, per-query differences, learning curves, label
    quality, lineage, and a query explorer. It shows stored measures; `msft eval` makes new ones.
    """
    from labelstore.errors import UsageError
    from labelstore.report import page

    if queries is not None and queries < 1:
        raise UsageError(f"--queries {queries}: expected 1 or more")
    written = page.write(
        context.store,
        output,
        datasets=dataset or (),
        measures=measure or (),
        n_queries=queries,
        texts=texts,
        note=diagnostics.note,
    )
    fitted.listed(
        written.rows,
        context.format,
        keys=("section", "dataset"),
        columns=["section", "dataset", "shown", "note"],
    )
    diagnostics.note(f"{written.path}: {written.n_bytes / 1e6:.2f} MB, open it in a browser")


def mcp(context: Context) -> None:
    """Serve the store to agents by the Model Context Protocol over stdin and stdout, for reading alone.

    The tools are tables, sql, status, compare and explain.
    """
    from cli.workflows import mcp_server
    from labelstore.errors import DataMissing
    from msft.host import extras

    extras.require("mcp")
    if not context.store.exists:
        raise DataMissing(f"store not found: {context.store_path}", hint="name it with --store")
    mcp_server.run(context.store)


def show_help(
    context: Context,
    topic: Annotated[
        list[str] | None, typer.Argument(help="A topic, or the words of a command.", show_default=False)
    ] = None,
) -> None:
    """Show a page of help, without a network: a topic, or a command's options. Without TOPIC it lists the topics."""
    from cli.app import command_tree
    from cli.workflows import help_topics

    root = command_tree()
    words = list(topic or ())
    if not words:
        render.text(help_topics.topics())
        return
    found = help_topics.find(root, words)
    if found is None or " ".join(words) in help_topics.TOPICS:
        render.text(help_topics.page(" ".join(words), root))
        return
    with typer.Context(found, info_name=" ".join(["msft", *words])) as inner:
        render.text(found.get_help(inner))
