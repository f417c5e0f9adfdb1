"""`msft views`: build, list and export training views, with counts of the queries and passages left out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command, group
from cli.output import diagnostics, fitted, render
from cli.parameters import After, given

if TYPE_CHECKING:
    import duckdb

    from labelstore.store.lookup import View
    from labelstore.store.sql_steps import Filter

LISTED = ("view", "kind", "lists", "pairs", "seed", "sources", "licence", "view_hash", "made")
SHOWN = ("view", "step", "in", "kept", "reason", "left_out", "example")

views_app = group("Training views: built from the store, content-addressed folders.")

DatasetOption = Annotated[str | None, typer.Option("--dataset", help="The dataset; by default the only one.")]
DatasetsOption = Annotated[
    tuple[str, ...],
    typer.Option("--dataset", help="A dataset; repeatable; by default those of the negatives or labels."),
]
RunsOption = Annotated[
    tuple[str, ...],
    typer.Option("--run", help="A run; repeatable; by default the only first stage."),
]
NegativesOption = Annotated[
    tuple[str, ...], typer.Option("--negatives", help="Mined negatives (contrastive).")
]
LabelsOption = Annotated[tuple[str, ...], typer.Option("--labels", help="Labelings (distillation).")]
SeedOption = Annotated[int, typer.Option("--seed", help="The seed of the random sample.")]
OverlapOption = Annotated[
    bool, typer.Option("--allow-overlap", help="Train even on queries that a test set has.")
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(views_app, name="views")


def _count_rows(what: str, name: str, counts: Iterable["Filter"]) -> list[dict[str, Any]]:
    return [
        {
            what: name,
            "step": count.step,
            "in": count.n_in,
            "kept": count.kept,
            "left_out": count.n_in - count.kept,
            "reasons": "; ".join(f"{reason}: {n:,}" for reason, (n, _) in count.drops.items()) or None,
        }
        for count in counts
    ]


@dataclass(frozen=True)
class Sources:
    """The data that a view is made from."""

    datasets: DatasetsOption = ()
    runs: RunsOption = ()
    negatives: NegativesOption = ()
    labels: LabelsOption = ()


@dataclass(frozen=True)
class Parameters:
    """The parameters of all kinds of views; None keeps the default of the kind."""

    depth: Annotated[int | None, "The deepest rank to take [200 for contrastive views from a run]."] = None
    per_query: Annotated[int | None, "Negatives per list [99]; 0 takes all (contrastive)."] = None
    positives: Annotated[
        str | None,
        "Lists of a query with several positives: each (a list per positive), one (drawn) or all (in one list);"
        " generated: each, and the passages that queries were generated from.",
    ] = None
    max_positives: Annotated[int | None, "The most lists per query (contrastive)."] = None
    min_relevance: Annotated[int | None, "The lowest grade that counts as positive."] = None
    judging: Annotated[
        str | None, "An LLM judge whose grades count where people have not judged (contrastive)."
    ] = None
    graded: Annotated[
        bool, "Put all positives of a query into one list, with their grades (contrastive)."
    ] = False
    retrieved: Annotated[
        bool | None,
        "Use only positives that the negatives' runs rank, or all [only those if fewer than half are] (contrastive).",
    ] = None
    scores: Annotated[bool, "Add the runs' scores to the lists (contrastive)."] = False
    max_repairs: Annotated[
        int | None, "The most repairs of a permutation that is used [10] (distillation)."
    ] = None
    min_passages: Annotated[int | None, "The fewest passages of a list that is used [2] (distillation)."] = (
        None
    )
    judged_first: Annotated[
        bool, "Put passages judged relevant at the top of their lists (distillation)."
    ] = False
    stratified: Annotated[
        int | None, "Passages per list, spread over the teacher's whole order (distillation)."
    ] = None
    easy: Annotated[int | None, "Random passages added at the bottom of each list [0] (not rerank)."] = None
    max_lists: Annotated[int | None, "The most lists, drawn by the seed."] = None
    valid_fraction: Annotated[
        float | None, "The share of queries held out for validation [1 %, or up to 20 % for 50 lists]."
    ] = None
    allow_overlap: Annotated[OverlapOption, After("seed")] = False


@dataclass(frozen=True)
class Build:
    """The options of `msft views build`."""

    kind: Annotated[str, "contrastive, distillation or rerank."]
    sources: Sources = Sources()
    name: Annotated[str | None, "The name of the view."] = None
    parameters: Parameters = Parameters()
    seed: SeedOption = 42


@command(
    views_app,
    "build",
    example="msft views build --kind distillation --labels rankzephyr-7b@bm25 --name kd",
    lists=True,
)
def build(context: Context, options: Build) -> None:
    """Build a training view; equal parameters over equal content return the existing view."""
    from labelstore.views import build as views
    from labelstore.views import folder as export

    parameters = given(options.parameters)
    if options.parameters.per_query == 0:
        parameters["per_query"] = None
    with diagnostics.progress("lists", unit="lists") as tick:
        view = views.build(
            context.store,
            options.kind,
            name=options.name,
            seed=options.seed,
            progress=tick,
            note=diagnostics.note,
            **vars(options.sources),
            **parameters,
        )
    folder = views.folder_of(context.store, view)
    manifest = export.read_manifest(folder)
    diagnostics.note(f"view {view.name}: {folder}")
    fitted.listed([_view_row(manifest, str(folder))], context.format)


def _view_row(manifest: dict[str, Any], folder: str) -> dict[str, Any]:
    counts = manifest["counts"]
    return {
        "view": manifest["name"],
        "kind": manifest["kind"],
        "lists": manifest["n_lists"],
        "pairs": manifest["n_pairs"],
        "queries": manifest["n_queries"],
        "passages": manifest["n_passages"],
        "in": counts["in"],
        "left_out": "; ".join(f"{reason}: {n:,}" for reason, n in counts["dropped"].items()) or None,
        "view_hash": manifest["view_hash"],
        "folder": folder,
    }


@command(views_app, "list", example="msft views list --format json", lists=True)
def list_views(context: Context) -> None:
    """List the views, newest first."""
    from labelstore.store import lookup
    from labelstore.views import build as views

    with context.store.read() as con:
        rows = views.listed(con)
    empty = lookup.none_yet("views")
    fitted.listed(rows, context.format, keys=("view", "view_hash"), columns=LISTED, empty=empty)


def _named(con: "duckdb.DuckDBPyConnection", name: str) -> "View":
    """Look up a view, and say which of several of that name it is."""
    from labelstore.store import lookup

    found = lookup.view(con, name)
    ((same,),) = con.execute("SELECT count(*) FROM views WHERE name = ?", [name]).fetchall()
    if same > 1:
        diagnostics.note(
            f"{same} views are named {name}; this is the newest, {found.view_hash} (msft views list)"
        )
    return found


@command(views_app, "show", example="msft views show kd", lists=True)
def show_view(
    context: Context,
    view: Annotated[str, typer.Argument(help="The view's name or hash.")],
    sql: Annotated[bool, "Print the SQL that made the view."] = False,
) -> None:
    """Show what each step of a view kept and left out, with reasons; --sql prints the SQL that made it."""
    from labelstore.views import build as views

    with context.store.read() as con:
        found = _named(con, view)
        text = con.execute("SELECT sql FROM views WHERE view = ?", [found.view]).fetchall()[0][0]
        rows = views.counted(con, found)
    if sql:
        render.text(text)
        return
    diagnostics.note(
        f"{found.name}: {found.kind}, {found.n_lists:,} lists, {found.n_pairs:,} pairs, {found.view_hash}"
    )
    render.rows(rows, context.format, SHOWN)


@command(views_app, "export", example="msft views export kd -o kd-view")
def export_view(
    context: Context,
    view: Annotated[str, typer.Argument(help="The view's name or hash.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder, or a file for --layout.")],
    layout: Annotated[str, "folder, or JSONL rows: triplet, n-tuple, labeled-pair, labeled-list."] = "folder",
    scores: Annotated[bool, "Add the teacher's scores to the rows."] = False,
) -> None:
    """Copy a view's folder (Parquet, which Hugging Face reads), or write its lists in a sentence-transformers layout."""
    from labelstore.views import build as views
    from labelstore.views import folder as export
    from labelstore.views import sentence_transformers as layouts

    with context.store.read() as con:
        found = _named(con, view)
    folder = views.folder_of(context.store, found)
    if layout == "folder":
        export.copy_folder(folder, output)
        diagnostics.note(f"{found.name}: copied to {output}")
        return
    n = layouts.write(folder, layout, output, scores=scores)
    diagnostics.note(f"{found.name}: {n:,} rows to {output}")
