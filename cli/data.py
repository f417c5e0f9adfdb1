"""`msft data` and `msft runs`: datasets and rankings in and out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import diagnostics, render
from cli.command import Context, command, group

data_app = group("Datasets: documents, queries, judgments.")
runs_app = group("Runs: rankings in and out as TREC files.")

DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="The dataset; the only one where there is one.")
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(data_app, name="data")
    app.add_typer(runs_app, name="runs")


@command(
    data_app,
    "add",
    example="msft data add nfcorpus/train --from nfcorpus --qrels qrels.train.txt.gz",
    lists=True,
)
def add(
    context: Context,
    dataset: Annotated[
        str, typer.Argument(help="An alias (dl19, dl20, dev …), an ir_datasets id, or an own name.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A folder with docs.jsonl, queries.tsv, qrels.txt (each may be .gz or .zst)."
        ),
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="Judgments; the dataset is then the queries judged in this file.")
    ] = None,
    collection: Annotated[str | None, typer.Option(help="The corpus that it shares with others.")] = None,
    role: Annotated[
        str | None, typer.Option(help="train, dev or test; test sets are guarded against leakage.")
    ] = None,
    update: Annotated[
        bool,
        typer.Option("--update", help="Take new texts as new versions, and other queries and judgments."),
    ] = False,
) -> None:
    """Add a dataset: from a folder, or from ir_datasets by its id or alias."""
    from labelstore import catalog
    from labelstore.errors import UsageError
    from labelstore.ingest import Request
    from labelstore.ingest_folder import add_folder
    from labelstore.ingest_irds import add_ir_dataset

    if role is not None and role not in catalog.ROLES:
        raise UsageError(f"--role {role}: no such role", hint=f"--role {'|'.join(catalog.ROLES)}")
    entry = catalog.find(dataset)
    name = entry.name if entry else dataset
    if name != dataset:
        diagnostics.note(f"{dataset} goes by the name {name}")
    request = Request(
        name=name,
        collection=collection,
        role=role,
        update=update,
        judged_only=qrels is not None,
        source=str(folder or qrels) if folder or qrels else None,
        ir_datasets_id=entry.ir_datasets_id if entry else None,
    )
    with diagnostics.progress("documents", unit="passages") as tick:
        if folder is not None or qrels is not None:
            added = add_folder(context.store, folder, request, qrels, progress=tick)
        else:
            added = add_ir_dataset(context.store, request, progress=tick)
    for line in added.notes:
        diagnostics.note(line)
    diagnostics.note(
        f"{added.dataset} ({added.role}) over collection {added.collection}: "
        + ("added" if added.changed else "nothing new, the store is as it was")
    )
    rows = [
        {
            "dataset": added.dataset,
            "collection": added.collection,
            "step": step.step,
            "read": step.n_read,
            "kept": step.n_kept,
            "new": step.n_new,
            "updated": step.n_updated,
            "rejected": step.n_read - step.n_kept,
            "reasons": _reasons(step.drops),
        }
        for step in added.steps
    ]
    render.rows(rows, context.format)


def _reasons(drops: dict[str, tuple[int, str | None]]) -> str | None:
    parts = [
        f"{reason}: {n:,}" + (f", e.g. {example}" if example else "")
        for reason, (n, example) in drops.items()
        if n
    ]
    return "; ".join(parts) or None


@command(data_app, "list", example="msft data list", lists=True)
def list_datasets(context: Context) -> None:
    """List the datasets with their counts."""
    from labelstore import ingest

    with context.store.read() as con:
        rows = ingest.datasets(con)
    render.rows(rows, context.format)


@command(data_app, "show", example="msft data show nfcorpus", lists=True)
def show(
    context: Context,
    dataset: Annotated[
        str | None, typer.Argument(help="The dataset; the only one where there is one.")
    ] = None,
) -> None:
    """Show one dataset: counts, grades, measures, origin."""
    from labelstore import ingest, lookup

    with context.store.read() as con:
        of = lookup.pick_dataset(con, dataset)
        rows = ingest.describe(con, of)
    _announce(dataset, of.name)
    render.rows(rows, context.format)


def _announce(asked: str | None, taken: str, what: str = "dataset") -> None:
    if asked is None:
        diagnostics.note(f"{what}: {taken} (the only one)")


@command(runs_app, "list", example="msft runs list --dataset dl19", lists=True)
def list_runs(context: Context, dataset: DatasetOption = None) -> None:
    """List the runs."""
    from labelstore import lookup, runs

    with context.store.read() as con:
        rows = runs.listed(con, lookup.dataset(con, dataset) if dataset else None)
    columns = ["dataset", "run", "kind", "system", "source", "depth", "queries", "candidates", "content_hash"]
    render.rows(rows, context.format, columns)


@command(runs_app, "import", example="msft runs import bm25.run.gz --dataset dl19 --name bm25", lists=True)
def import_run(
    context: Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="A TREC run, or a ranking of ColBERT or MS MARCO (query_id doc_id rank [score]); .gz and .zst as they are."
        ),
    ],
    dataset: DatasetOption = None,
    name: Annotated[str | None, typer.Option(help="The run's name; the file's where none is given.")] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out unknown queries and passages, with counts.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a run of that name.")] = False,
) -> None:
    """Import a run as a first stage; ranks follow its scores."""
    from labelstore import lookup, runs

    store = context.store
    with store.read() as con:
        of = lookup.pick_dataset(con, dataset)
    _announce(dataset, of.name)
    imported = runs.import_run(
        store, file, of.name, name or _run_name(file), skip_unknown=skip_unknown, replace=replace,
        note=diagnostics.note,
    )  # fmt: skip
    if not imported.new:
        diagnostics.note("the same run is there already; the store is as it was")
    row: dict[str, Any] = {
        "dataset": of.name,
        "run": imported.run.name,
        "system": imported.run.system,
        "read": imported.n_read,
        "kept": imported.run.n_candidates,
        "rejected": imported.n_read - imported.run.n_candidates,
        "reasons": _reasons(imported.drops),
        "queries": imported.run.n_queries,
        "depth": imported.run.depth,
    }
    render.rows([row], context.format)


def _run_name(file: Path) -> str:
    name = file.name
    for ending in (".gz", ".zst", ".txt", ".run", ".trec", ".res"):
        name = name.removesuffix(ending)
    return name


class Metadata(StrEnum):
    """Where the ir_metadata of an exported run goes."""

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
        typer.Option("--output", "-o", help="File, .gz and .zst compressed; stdout where none is given."),
    ] = None,
    ir_metadata: Annotated[
        Metadata | None,
        typer.Option(
            help="PRIMAD metadata: beside the file as YAML (default with -o), inside as comment lines, which readers of"
            " trec_eval's kind refuse, or none.",
            show_default=False,
        ),
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Who made the run, for the metadata.")] = None,
) -> None:
    """Export a run as a TREC run, with what made it as ir_metadata (PRIMAD)."""
    from labelstore import formats, lookup, runs
    from labelstore import ir_metadata as primad
    from labelstore.errors import UsageError

    where = ir_metadata or (Metadata.none if output is None else Metadata.beside)
    if where is Metadata.beside and output is None:
        raise UsageError(
            "there is no file to lay the metadata beside", hint="-o FILE, or --ir-metadata inside"
        )
    store = context.store
    with store.read() as con:
        of = lookup.pick_dataset(con, dataset)
        found = lookup.run(con, of, run)
        content = primad.metadata(con, of, found, actor)
    _announce(dataset, of.name)
    header = primad.header(content) if where is Metadata.inside else []
    if output is None:
        runs.write_trec(store, of, found, render.stream(), header=header)
        return
    with formats.create(output) as out:
        n = runs.write_trec(store, of, found, out, header=header)
    diagnostics.note(f"{output}: {n:,} lines")
    if where is Metadata.beside:
        with formats.create(primad.beside(output)) as out:
            out.write(primad.text(content))
        diagnostics.note(f"{primad.beside(output)}: what made it (ir_metadata)")
