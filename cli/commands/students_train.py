"""`msft students train`: a regime over views of the store, on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics, render

STAGE_COLUMNS = (
    "student", "stage", "objective", "loss", "view", "steps", "pairs", "seconds", "weights_moved", "best_step",
    "best_value", "stopped_by", "lists_skipped", "truncated_pairs",
)  # fmt: skip
Several = Annotated[
    list[str] | None, typer.Option("--dataset", help="Datasets with judgments.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """Add `train` to the group of students."""
    command(
        app,
        "train",
        example="msft students train --regime cl --base minilm --dataset nfcorpus/train --negatives hard",
        lists=True,
    )(train)


def train(
    context: Context,
    regime: Annotated[
        str | None, typer.Option("--regime", help="cl, kd, cl,kd, kd,cl or longer; cl+kd for both at once.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="Hugging Face id, folder, minilm | electra | roberta …, or student:NAME."
        ),
    ] = None,
    dataset: Several = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="Runs that negatives are drawn from, where none were mined."),
    ] = None,
    negatives: Annotated[list[str] | None, typer.Option("--negatives", help="Mined negatives (cl).")] = None,
    labels: Annotated[list[str] | None, typer.Option("--labels", help="Labelings to distil (kd).")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The student's name; default BASE-REGIME-KEY.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="A TOML file, or a shipped recipe's name.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate of every stage.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Epochs of every stage.")] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", help="Steps of every stage at most.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", help="Minutes of every stage at most.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Lists (queries) per step.")] = None,
    group_size: Annotated[int | None, typer.Option("--group-size", help="Passages sampled per list.")] = None,
    loss: Annotated[
        str | None, typer.Option("--loss", help="Loss of every stage; default lce (cl), ranknet (kd).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of samples, order, new head and dropout.")
    ] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Tokens per pair.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="auto, fp32 or bf16.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of a recipe: KEY=VALUE, e.g. clip=10."),
    ] = None,
    valid_fraction: Annotated[
        float | None, typer.Option("--valid-fraction", help="Share of queries kept for validation.")
    ] = None,
    per_query: Annotated[
        int | None, typer.Option("--per-query", help="Negatives per list in the view (cl).")
    ] = None,
    retrieved: Annotated[
        bool, typer.Option("--retrieved", help="Only positives that the negatives' runs rank (cl).")
    ] = False,
    stratified: Annotated[
        int | None,
        typer.Option("--stratified", help="Passages per list, across the teacher's whole order (kd)."),
    ] = None,
    easy: Annotated[
        int | None, typer.Option("--easy", help="Random passages at the bottom of each list.")
    ] = None,
    max_lists: Annotated[int | None, typer.Option("--max-lists", help="Lists per view at most.")] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Train on queries of test sets all the same.")
    ] = False,
) -> None:
    """Train a student from the store's judgments (cl), its LLM rankings (kd), or both, stage after stage.

    Several datasets, negatives and labelings make one view, across collections. The same command continues a training
    that was interrupted. The store is open only before and after.
    """
    from students.jobs.register import stage_rows
    from students.jobs.train import Sources, train_student

    given = {
        "lr": lr,
        "epochs": epochs,
        "max_steps": max_steps,
        "max_minutes": max_minutes,
        "lists": batch,
        "group_size": group_size,
        "loss": loss,
        "seed": seed,
        "max_length": max_length,
        "precision": precision,
    }
    settings = {key: value for key, value in given.items() if value is not None} | _settings(set_ or [])
    view_parameters = {
        key: value
        for key, value in (
            ("valid_fraction", valid_fraction),
            ("per_query", per_query),
            ("retrieved", retrieved or None),
            ("stratified", stratified),
            ("easy", easy),
            ("max_lists", max_lists),
            ("allow_overlap", allow_overlap or None),
        )
        if value is not None
    }
    with diagnostics.progress("training", unit="pairs") as tick:
        student = train_student(
            context.store,
            regime=regime,
            base=base,
            sources=Sources(dataset or (), run or (), negatives or (), labels or (), view_parameters),
            name=name,
            recipe=recipe if recipe is None or not Path(recipe).suffix else Path(recipe),
            settings=settings,
            progress=tick,
            note=diagnostics.note,
        )
    render.rows(stage_rows(context.store, student.name), context.format, STAGE_COLUMNS)


def _settings(pairs: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as TOML has values: ``clip=10``, ``schedule="cosine"``; bare words are text.

    Raises:
        UsageError: without ``=``.
    """
    import tomllib

    from labelstore.errors import UsageError

    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {pair}: no KEY=VALUE", hint="--set clip=10 --set schedule=cosine")
        try:
            found[key.strip()] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value
    return found
