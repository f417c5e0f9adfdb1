"""`msft runs`: list, import, export."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command, group
from cli.commands.data import DatasetOption, _announce, _reasons
from cli.output import diagnostics, fitted, render

if TYPE_CHECKING:
    from labelstore.runs.import_run import Imported

runs_app = group("Runs: rankings in and out as TREC files.")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(runs_app, name="runs")


@command(runs_app, "list", example="msft runs list --dataset dl19", lists=True)
def list_runs(context: Context, dataset: DatasetOption = None) -> None:
    """List the runs."""
    from labelstore.runs import export
    from labelstore.store import lookup

    with context.store.read() as con:
        of = lookup.dataset(con, dataset) if dataset else None
        rows = export.listed(con, of)
    columns = ["dataset", "run", "kind", "system", "source", "depth", "queries", "candidates", "content_hash"]
    empty = lookup.none_yet("runs", of.name if of else "")
    fitted.listed(
        rows, context.format, keys=("run",) if of else ("dataset", "run"), columns=columns, empty=empty
    )


@command(runs_app, "import", example="msft runs import bm25.run.gz --dataset dl19 --name bm25", lists=True)
def import_run(
    context: Context,
    file: Annotated[
        list[Path],
        typer.Argument(
            help="TREC runs, or rankings of ColBERT or MS MARCO (query_id doc_id rank [score]), plain, .gz or .zst."
        ),
    ],
    dataset: DatasetOption = None,
    name: Annotated[str | None, "The run's name; by default the file's."] = None,
    skip_unknown: Annotated[bool, "Leave out unknown queries and passages, and print how many."] = False,
    replace: Annotated[bool, "Overwrite a run of the same name."] = False,
) -> None:
    """Import runs as first stages; their scores give the ranks. Each file is one run."""
    from labelstore.errors import UsageError
    from labelstore.runs import import_run as importing
    from labelstore.store import lookup

    if name is not None and len(file) > 1:
        raise UsageError(
            f"--name {name} cannot name {len(file)} runs", hint="leave it out: each run has its file's name"
        )
    store = context.store
    with store.read() as con:
        of = lookup.pick_dataset(con, dataset)
    _announce(dataset, of.name)
    rows = []
    for one in file:
        imported = importing.import_run(
            store, one, of.name, name, skip_unknown=skip_unknown, replace=replace,
            note=diagnostics.note,
        )  # fmt: skip
        if not imported.new:
            diagnostics.note(f"{one}: the store already has this run; nothing is changed")
        rows.append(_imported(imported, of.name))
    fitted.listed(rows, context.format, keys=("run",))


def _imported(imported: "Imported", dataset: str) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "run": imported.run.name,
        "system": imported.run.system,
        "read": imported.n_read,
        "kept": imported.run.n_candidates,
        "rejected": imported.n_read - imported.run.n_candidates,
        "reasons": _reasons(imported.drops),
        "queries": imported.run.n_queries,
        "depth": imported.run.depth,
    }


class Metadata(StrEnum):
    """Where to write the ir_metadata of an exported run."""

    beside = "beside"
    inside = "inside"
    none = "none"


@command(runs_app, "export", example="msft runs export bm25 --dataset dl19 -o bm25.run.gz")
def export_run(
    context: Context,
    run: Annotated[str, typer.Argument(help="The run's name.")],
    dataset: DatasetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write (.gz and .zst compress it); by default stdout."
        ),
    ] = None,
    ir_metadata: Annotated[
        Metadata | None,
        typer.Option(
            help="Where PRIMAD metadata goes: beside the file as YAML (the default with -o), inside it as comment lines"
            " (which trec_eval does not read), or none.",
            show_default=False,
        ),
    ] = None,
    actor: Annotated[str | None, "Who made the run, for the metadata."] = None,
) -> None:
    """Export a run as a TREC run, with what made it as ir_metadata (PRIMAD)."""
    from labelstore.runs import export

    export.export_run(
        context.store,
        run,
        output,
        dataset=dataset,
        ir_metadata=ir_metadata,
        actor=actor,
        stdout=render.stream(),
        note=diagnostics.note,
    )
