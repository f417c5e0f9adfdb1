"""`msft data`: add and list datasets, and write sheets to judge them on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command, group
from cli.output import diagnostics, fitted

if TYPE_CHECKING:
    from labelstore.datasets.add import Added
    from labelstore.datasets.staging import Progress as Tick

LAYOUTS = ("folder", "hub", "triples")
LISTED = (
    "dataset", "collection", "role", "queries", "judged_queries", "judgments", "passages", "runs", "ir_datasets_id",
)  # fmt: skip
data_app = group("Datasets: documents, queries, judgments.")

DatasetOption = Annotated[str | None, typer.Option("--dataset", help="The dataset; by default the only one.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(data_app, name="data")


@dataclass(frozen=True)
class Source:
    """What is to be added, and from where."""

    dataset: Annotated[
        str, typer.Argument(help="An alias (dl19, dl20, dev …), an ir_datasets id, or a new name.")
    ]
    folder: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A folder with docs.jsonl, queries.tsv, qrels.txt (each may be .gz or .zst), or a dataset of BEIR, MTEB or"
            " NanoBEIR.",
        ),
    ] = None
    qrels: Annotated[
        Path | None, "A file of judgments; the dataset then has only the queries judged in it."
    ] = None
    collection: Annotated[str | None, "The collection whose documents it shares with other datasets."] = None
    role: Annotated[
        str | None, "train, dev or test; views leave out training queries that a test set has."
    ] = None
    update: Annotated[bool, "Accept changed texts as new versions, and changed queries and judgments."] = (
        False
    )
    splits: Annotated[
        bool, typer.Option("--splits", help="Add DATASET/SPLIT for each of the folder's qrels/SPLIT.tsv.")
    ] = False
    layout: Annotated[
        str | None,
        "folder, hub (tables in Parquet or JSON lines), or triples: --from is a file with a query, positives and"
        " negatives in each JSON line. By default what the folder holds.",
    ] = None
    skip_bad_lines: Annotated[
        int,
        typer.Option(
            "--skip-bad-lines", help="Lines of passages and queries that may be left out as unreadable."
        ),
    ] = 0

    @property
    def kind(self) -> str:
        """The layout: the given one, or what the folder holds."""
        from labelstore.datasets import from_folder, from_hub

        if self.splits:
            return "splits"
        if self.layout or self.folder is None or self.qrels is not None or not self.folder.is_dir():
            return self.layout or "folder"
        if self.role is None and from_folder.is_beir(self.folder):
            return "splits"
        return "hub" if from_hub.is_hub_folder(self.folder) else "folder"


@command(
    data_app,
    "add",
    example="msft data add nfcorpus/train --from nfcorpus --qrels qrels.train.txt.gz",
    lists=True,
)
def add(context: Context, source: Source) -> None:
    """Add a dataset: from a folder, or from ir_datasets by its id or alias.

    A folder in BEIR's layout becomes a dataset for each split of its judgments, and the folder of a Hub's dataset (BEIR,
    MTEB, NanoBEIR) too. Its candidates, such as NanoBEIR's bm25, become runs.
    """
    _check_source(source)
    with diagnostics.progress("documents", unit="passages") as tick:
        done = _add(context, source, tick)
    fitted.listed([row for added in done for row in _told(added)], context.format, keys=("step",))


def _add(context: Context, source: Source, tick: "Tick") -> "list[Added]":
    from labelstore.datasets.add_dataset import add_dataset, add_splits

    of: dict[str, Any] = {"collection": source.collection, "update": source.update, "progress": tick}
    if source.folder is not None and source.kind == "triples":
        from cli.workflows.triples import add_triples

        return [add_triples(context.store, source.dataset, source.folder, role=source.role, **of)]
    if source.folder is not None and source.kind == "hub":
        from cli.workflows.hub_folder import add_hub_folder

        return add_hub_folder(context.store, source.dataset, source.folder, role=source.role, **of)
    of["skip_bad_lines"] = source.skip_bad_lines
    if source.folder is not None and source.kind == "splits":
        return add_splits(context.store, source.dataset, source.folder, **of)
    return [
        add_dataset(
            context.store, source.dataset, source.folder, qrels=source.qrels, role=source.role,
            note=diagnostics.note, **of,
        )
    ]  # fmt: skip


def _check_source(source: Source) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: the message names them.
    """
    from labelstore.errors import UsageError

    if source.layout not in (None, *LAYOUTS):
        raise UsageError(f"layout {source.layout!r} is not known", hint=f"--layout {' | '.join(LAYOUTS)}")
    folder, qrels, skip = source.folder, source.qrels, source.skip_bad_lines
    if source.layout in ("hub", "triples") and (folder is None or qrels is not None or source.splits or skip):
        what = "one file" if source.layout == "triples" else "one folder"
        raise UsageError(
            f"--layout {source.layout} takes queries, passages and judgments from {what}",
            hint=f"msft data add {source.dataset} --from {'FILE' if source.layout == 'triples' else 'FOLDER'}"
            f" --layout {source.layout}, without --qrels, --splits, --skip-bad-lines",
        )
    if source.splits and (folder is None or qrels is not None or source.role is not None):
        raise UsageError(
            "--splits takes judgments and roles from a folder's split names",
            hint=f"msft data add {source.dataset} --from FOLDER --splits, without --qrels and --role",
        )
    if skip < 0 or (skip and folder is None):
        raise UsageError(
            f"--skip-bad-lines {skip}: expected 0 or more lines of a folder's files", hint="--from FOLDER"
        )


def _told(added: "Added") -> list[dict[str, object]]:
    """Print the notes of an added dataset, and make its rows."""
    for line in added.notes:
        diagnostics.note(line)
    diagnostics.note(
        f"{added.dataset} ({added.role}) over collection {added.collection}: "
        + ("added" if added.changed else "nothing new, the store is unchanged")
    )
    return [
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
    from labelstore.datasets import add as ingest
    from labelstore.store import lookup

    with context.store.read() as con:
        rows = ingest.datasets(con)
    empty = lookup.none_yet("datasets")
    fitted.listed(rows, context.format, keys=("dataset",), columns=LISTED, empty=empty)


@command(data_app, "show", example="msft data show nfcorpus", lists=True)
def show(
    context: Context,
    dataset: Annotated[str | None, typer.Argument(help="The dataset; by default the only one.")] = None,
) -> None:
    """Show one dataset: counts, grades, measures, origin."""
    from labelstore.datasets import add as ingest
    from labelstore.store import lookup

    with context.store.read() as con:
        of = lookup.pick_dataset(con, dataset)
        rows = ingest.describe(con, of)
    _announce(dataset, of.name)
    fitted.listed(rows, context.format)


@command(
    data_app, "sheet", example="msft data sheet nfcorpus --run bm25s --depth 10 -o sheet.html", lists=True
)
def sheet(
    context: Context,
    dataset: Annotated[str | None, typer.Argument(help="The dataset; by default the only one.")] = None,
    run: Annotated[
        list[str] | None, "A run whose top is judged; repeatable; by default the only first stage."
    ] = None,
    depth: Annotated[int, "Passages per query and run."] = 10,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("sheet.html"),
    judged: Annotated[bool, "Also show passages that people have judged."] = False,
    seed: Annotated[int, "The seed that shuffles queries and passages."] = 42,
) -> None:
    """Write a page to judge passages with the keyboard, in a browser, without a network.

    Keys 0 to 3 grade a passage, U takes a grade back, S saves the grades as TREC qrels. The page does not show which
    system ranked a passage. Grades stay in the browser over a reload.
    """
    from labelstore.judgments.sheet import write_sheet

    made = write_sheet(context.store, dataset, output, runs=run or (), depth=depth, seed=seed, judged=judged)
    _announce(dataset, made.dataset)
    row = {
        "sheet": str(made.path),
        "dataset": made.dataset,
        "queries": made.queries,
        "pooled": made.count.n_in,
        "to_judge": made.count.kept,
        "left_out": _reasons(made.count.drops),
    }
    fitted.listed([row], context.format)
    diagnostics.note(
        f"open {made.path} in a browser; then: msft data add {made.dataset}/judged --qrels FILE"
        f" --collection {made.collection} --role test"
    )


def _announce(asked: str | None, taken: str, what: str = "dataset") -> None:
    if asked is None:
        diagnostics.note(f"{what}: {taken} (the only one)")
