"""`msft negatives` and `msft views`: hard negatives and training views, with counts of what was left out."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command, group
from cli.output import diagnostics, render

if TYPE_CHECKING:
    from labelstore.store.sql_steps import Filter

views_app = group("Training views: built from the store, content-addressed folders.")

DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="The dataset; the only one where there is one.")
]
DatasetsOption = Annotated[
    list[str] | None, typer.Option("--dataset", help="May be given several times; default: the sources' own.")
]
RunsOption = Annotated[
    list[str] | None,
    typer.Option("--run", help="May be given several times; the only first stage where there is one."),
]
NegativesOption = Annotated[
    list[str] | None, typer.Option("--negatives", help="Mined negatives (contrastive).")
]
LabelsOption = Annotated[list[str] | None, typer.Option("--labels", help="Labelings (distillation).")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the sample.")]
OverlapOption = Annotated[
    bool, typer.Option("--allow-overlap", help="Train on queries that stand in a test set all the same.")
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


@command(
    views_app,
    "build",
    example="msft views build --kind distillation --labels rankzephyr-7b@bm25 --name kd",
    lists=True,
)
def build(
    context: Context,
    kind: Annotated[str, typer.Option("--kind", help="contrastive, distillation or rerank.")],
    dataset: DatasetsOption = None,
    run: RunsOption = None,
    negatives: NegativesOption = None,
    labels: LabelsOption = None,
    name: Annotated[str | None, typer.Option("--name", help="How commands call the view.")] = None,
    depth: Annotated[
        int | None, typer.Option(help="Deepest rank taken [contrastive from a run: 200].")
    ] = None,
    per_query: Annotated[
        int | None, typer.Option(help="Negatives per list [99]; 0 takes all (contrastive).")
    ] = None,
    positives: Annotated[
        str | None, typer.Option(help="each makes a list of its own, one is drawn, or all stand in one list.")
    ] = None,
    max_positives: Annotated[int | None, typer.Option(help="Lists per query at most (contrastive).")] = None,
    min_relevance: Annotated[int | None, typer.Option(help="Lowest grade that counts as positive.")] = None,
    retrieved: Annotated[
        bool, typer.Option("--retrieved", help="Only positives that the negatives' runs rank (contrastive).")
    ] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="Put the runs' scores into the lists (contrastive).")
    ] = False,
    max_repairs: Annotated[
        int | None, typer.Option(help="Take repaired permutations up to so many repairs [10] (distillation).")
    ] = None,
    min_passages: Annotated[
        int | None, typer.Option(help="Leave out shorter lists [2] (distillation).")
    ] = None,
    stratified: Annotated[
        int | None, typer.Option(help="Passages per list, across the teacher's whole order (distillation).")
    ] = None,
    easy: Annotated[
        int | None, typer.Option(help="Random passages at the bottom of each list [0] (not rerank).")
    ] = None,
    max_lists: Annotated[int | None, typer.Option(help="Lists at most, drawn by the seed.")] = None,
    valid_fraction: Annotated[
        float | None, typer.Option(help="Queries held out for validation [0.01].")
    ] = None,
    seed: SeedOption = 42,
    allow_overlap: OverlapOption = False,
) -> None:
    """Build a training view; the same parameters over the same content give the view that is there."""
    from labelstore.views import build as views
    from labelstore.views import folder as export

    given: dict[str, Any] = {
        "depth": depth,
        "positives": positives,
        "max_positives": max_positives,
        "min_relevance": min_relevance,
        "retrieved": retrieved or None,
        "scores": scores or None,
        "max_repairs": max_repairs,
        "min_passages": min_passages,
        "stratified": stratified,
        "easy": easy,
        "max_lists": max_lists,
        "valid_fraction": valid_fraction,
        "per_query": per_query,
        "allow_overlap": allow_overlap or None,
    }
    parameters = {key: value for key, value in given.items() if value is not None}
    if per_query == 0:
        parameters["per_query"] = None
    with diagnostics.progress("lists", unit="lists") as tick:
        view = views.build(
            context.store,
            kind,
            datasets=dataset or (),
            runs=run or (),
            negatives=negatives or (),
            labels=labels or (),
            name=name,
            seed=seed,
            progress=tick,
            note=diagnostics.note,
            **parameters,
        )
    folder = views.folder_of(context.store, view)
    manifest = export.read_manifest(folder)
    diagnostics.note(f"view {view.name}: {folder}")
    render.rows([_view_row(manifest, str(folder))], context.format)


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
    """All views, newest first."""
    from labelstore.views import build as views

    with context.store.read() as con:
        rows = views.listed(con)
    render.rows(rows, context.format)


@command(views_app, "show", example="msft views show kd", lists=True)
def show_view(
    context: Context,
    view: Annotated[str, typer.Argument(help="The view's name or hash.")],
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL that made it instead.")] = False,
) -> None:
    """What each step of a view took and left out, with reasons; --sql prints the SQL that made it."""
    from labelstore.store import lookup
    from labelstore.views import build as views

    with context.store.read() as con:
        found = lookup.view(con, view)
        text = con.execute("SELECT sql FROM views WHERE view = ?", [found.view]).fetchall()[0][0]
        rows = views.counted(con, found)
    if sql:
        render.text(text)
        return
    diagnostics.note(
        f"{found.name}: {found.kind}, {found.n_lists:,} lists, {found.n_pairs:,} pairs, {found.view_hash}"
    )
    render.rows(rows, context.format)


@command(views_app, "export", example="msft views export kd -o kd-view")
def export_view(
    context: Context,
    view: Annotated[str, typer.Argument(help="The view's name or hash.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder, or a file for --layout.")],
    layout: Annotated[
        str, typer.Option(help="folder, or JSONL rows: triplet, n-tuple, labeled-pair, labeled-list.")
    ] = "folder",
    scores: Annotated[bool, typer.Option("--scores", help="Put the teacher's scores in the rows.")] = False,
) -> None:
    """Copy a view's folder (Parquet; Hugging Face reads it), or write its lists in a sentence-transformers layout."""
    from labelstore.store import lookup
    from labelstore.views import build as views
    from labelstore.views import folder as export
    from labelstore.views import sentence_transformers as layouts

    with context.store.read() as con:
        found = lookup.view(con, view)
    folder = views.folder_of(context.store, found)
    if layout == "folder":
        export.copy_folder(folder, output)
        diagnostics.note(f"{found.name}: copied to {output}")
        return
    n = layouts.write(folder, layout, output, scores=scores)
    diagnostics.note(f"{found.name}: {n:,} rows to {output}")
