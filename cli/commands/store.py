"""`msft sql` and `msft status`: query the store and show its content."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics, fitted, render
from cli.output.render import Format

if TYPE_CHECKING:
    from labelstore.store.label_store import LabelStore

DEFAULT_LIMIT = 1000
MOST_HELD = 10_000  # rows held in memory, so that the store is closed before they are printed
STATUS_WAIT = 5.0  # seconds to wait for a locked store; after them only the files beside it are shown
_NAMED = ("what", "name")  # the columns that name a row


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(
        app,
        "sql",
        example="msft sql \"SELECT first_stage, regime, value FROM results WHERE measure = 'nDCG@10'\"",
        lists=True,
    )(sql)
    command(app, "status", example="msft status", lists=True)(status)


def sql(
    context: Context,
    query: Annotated[
        str | None,
        typer.Argument(help="SQL, or @NAME for an analysis that comes with msft.", show_default=False),
    ] = None,
    write: Annotated[bool, "Allow the query to change the store."] = False,
    files: Annotated[bool, "Allow the query to read and write files."] = False,
    limit: Annotated[
        int | None, "The most rows to print, 0 for all; by default 1000, or all with -o."
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the rows to this file: .csv, .json or .parquet."),
    ] = None,
    param: Annotated[list[str] | None, "NAME=VALUE; the query reads it with getvariable('NAME')."] = None,
    list_queries: Annotated[
        bool, typer.Option("--list", help="List the analyses that come with msft.")
    ] = False,
) -> None:
    """Ask the store in SQL; --write allows changes, --files allows access to files."""
    from labelstore.analyses import ask as queries
    from labelstore.errors import UsageError
    from msft.key_values import key_values

    if list_queries:
        rows = [{"name": f"@{name}", "answers": about} for name, about in queries.shipped().items()]
        fitted.listed(rows, context.format, keys=("name",))
        return
    if not query:
        raise UsageError("the query is missing", hint='msft sql "SELECT * FROM results", or --list')
    parameters = key_values("--param", param or [], "dataset=dl19")
    limit = limit if limit is not None else 0 if output else DEFAULT_LIMIT
    if limit < 0:
        raise UsageError(f"--limit {limit}: expected 0 or more", hint="--limit 0 prints all rows")
    if output:
        if write:
            raise UsageError(
                "-o cannot be used with --write", hint="run the change first, then a query with -o"
            )
        queries.save(context.store, query, output, files=files, limit=limit, parameters=parameters)
        return
    if write or 0 < limit <= MOST_HELD:
        answer = queries.run(
            context.store, query, write=write, files=files, limit=limit, parameters=parameters
        )
        if answer.names or not write:
            render.streamed(answer.blocks, context.format, answer.names)
    else:
        with queries.asked(context.store, query, files=files, limit=limit, parameters=parameters) as answer:
            render.streamed(answer.blocks, context.format, answer.names)
    if query.startswith("@") and not answer.n_rows:
        from labelstore.analyses import no_rows

        diagnostics.warn(no_rows.why(context.store, query, parameters))
    if answer.cut:
        diagnostics.warn(f"only the first {limit:,} rows are shown; --limit 0 prints all")


def status(
    context: Context,
    stale: Annotated[
        bool, typer.Option("--stale", help="List only what interrupted trainings, builds and imports left.")
    ] = False,
) -> None:
    """Show what is in the store, which jobs are under way (calls in journals, trainings), and the configuration file."""
    if stale:
        _stale(context)
        return
    from labelstore.errors import StoreError
    from labelstore.store import lookup
    from labelstore.store.label_store import LabelStore
    from labelstore.upkeep import status as overview
    from teachers.journal import segments as journal

    store = LabelStore(context.store.path, lock_wait=min(context.store.lock_wait, STATUS_WAIT))
    rows: list[dict[str, Any]] = []
    empty = None
    try:
        with store.read() as con:
            rows += overview.rows(con)
        empty = lookup.none_yet("datasets")
    except StoreError as error:
        if "held by" not in str(error):
            raise
        diagnostics.warn(f"{error}; only journals and trainings beside it are shown")
    for segment in journal.summary(store.files / "journal"):
        calls = ", ".join(f"{n:,} {name}" for name, n in sorted(segment["statuses"].items()))
        damage = [f"{segment['torn_bytes']} bytes torn"] if segment["torn_bytes"] else []
        damage += [f"{segment['damaged_lines']} lines damaged"] if segment["damaged_lines"] else []
        rows.append(
            {
                "what": "journal",
                "name": segment["segment"],
                "of": segment["labels"],
                "size": segment["calls"],
                "detail": ", ".join([part for part in (calls, *damage) if part]) or None,
                "state": "being written" if segment["being_written"] else "waits to be merged",
            }
        )
    for path, reasons in journal.aside(store.files / "journal"):
        of = {row["segment"]: row for row in journal.summary(path.parent)}.get(path.name, {})
        rows.append(
            {
                "what": "journal",
                "name": path.name,
                "of": of.get("labels"),
                "size": of.get("calls"),
                "detail": reasons[0],
                "state": "set aside: msft verify says what to do",
            }
        )
    rows += _trainings(store)
    rows += _settings()
    if context.format is Format.table:
        size = store.path.stat().st_size / 2**20
        diagnostics.note(f"{store.path}: {size:,.1f} MiB, files in {store.files}")
    fitted.listed(rows, context.format, keys=_NAMED, columns=overview.COLUMNS, empty=empty)


def _stale(context: Context) -> None:
    from labelstore.upkeep import stale

    found = stale.stale(context.store)
    rows = [left.row() for left in found]
    fitted.listed(rows, context.format, keys=_NAMED, columns=stale.COLUMNS, empty="nothing was left")
    if any(left.careful for left in found):
        diagnostics.note("msft clean --yes removes it all, and without --yes what no training could continue")
    elif found:
        diagnostics.note("msft clean removes it")


def _settings() -> list[dict[str, Any]]:
    """List what the configuration file sets."""
    from cli.app import command_tree
    from cli.workflows import config_file

    found = config_file.read(command_tree())
    return [
        {
            "what": "setting",
            "name": f"{command} --{option.replace('_', '-')}".strip(),
            "of": str(found.path),
            "size": None,
            "detail": json.dumps(value) if isinstance(value, list | bool) else str(value),
            "state": "default",
        }
        for command, option, value in found.settings
    ]


def _trainings(store: "LabelStore") -> list[dict[str, Any]]:
    """List the trainings that have a working folder: running or interrupted."""
    rows = []
    for log in sorted((store.files / "students").glob(".*/training_log.jsonl")):
        last: dict[str, Any] = {}
        for line in log.read_text("utf-8", errors="replace").splitlines():
            try:
                last = json.loads(line)
            except json.JSONDecodeError:  # the training is still writing this line
                continue
        rows.append(
            {
                "what": "training",
                "name": log.parent.name.lstrip(".").rsplit(".", 1)[0],
                "of": f"stage {last.get('stage', 1)}",
                "size": last.get("pairs", 0),
                "detail": f"step {last.get('step', 0):,}",
                "state": "under way or interrupted",
            }
        )
    return rows
