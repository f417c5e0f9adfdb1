"""`msft students train`: train a student by a regime over views of the store, on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics, fitted, render
from cli.parameters import given

if TYPE_CHECKING:
    from students.jobs.plan import Sources

STAGE_COLUMNS = (
    "student", "stage", "objective", "loss", "view", "steps", "pairs", "seconds", "weights_moved", "best_step",
    "best_value", "stopped_by", "lists_skipped", "truncated_pairs",
)  # fmt: skip

ABOUT_STAGES = {
    "pairs": "query-passage pairs trained on",
    "weights_moved": "how far the weights moved, relative to their length",
    "best_value": "validation measure of the kept step",
    "lists_skipped": "lists without a target",
    "truncated_pairs": "pairs cut at max_length",
}


@dataclass(frozen=True)
class Names:
    """The names of the data that the views are made from."""

    datasets: Annotated[
        tuple[str, ...], typer.Option("--dataset", help="Datasets with judgments.", show_default=False)
    ] = ()
    runs: Annotated[
        tuple[str, ...],
        typer.Option("--run", help="Runs to draw negatives from, if none were mined."),
    ] = ()
    negatives: Annotated[tuple[str, ...], "Mined negatives (cl)."] = ()
    labels: Annotated[tuple[str, ...], "Labelings to distil (kd)."] = ()


@dataclass(frozen=True)
class Settings:
    """Settings that replace those of the recipe; None keeps the recipe's value."""

    lr: Annotated[float | None, "The peak learning rate of every stage."] = None
    epochs: Annotated[float | None, "The epochs of every stage."] = None
    max_steps: Annotated[int | None, "The most steps of every stage."] = None
    max_minutes: Annotated[float | None, "The most minutes of every stage."] = None
    lists: Annotated[int | None, typer.Option("--batch", help="Lists (queries) per step.")] = None
    group_size: Annotated[int | None, "Passages sampled per list."] = None
    loss: Annotated[str | None, "The loss of every stage; by default lce (cl) and ranknet (kd)."] = None
    seed: Annotated[int | None, "The seed of samples, order, new head and dropout."] = None
    max_length: Annotated[int | None, "The most tokens per pair."] = None
    precision: Annotated[str | None, "auto, fp32 or bf16."] = None
    long: Annotated[
        str | None,
        "Passages beyond max_length: first cuts them; max and mean score windows over the whole passage.",
    ] = None
    frame: Annotated[
        str | None,
        "A decoder's text frame: qwen3-reranker, mxbai-rerank-v2, bge-gemma, plain, or a text with {query} and {passage}.",
    ] = None
    lora: Annotated[
        str | None,
        "Train LoRA adapters and the head in place of all weights: r=32[,alpha=64,dropout=0.1,targets=q_proj,v_proj].",
    ] = None
    instruction: Annotated[str | None, "Replaces the instruction of a decoder's text frame."] = None


@dataclass(frozen=True)
class ViewParameters:
    """Parameters of the views; None keeps the view's default."""

    valid_fraction: Annotated[
        float | None, "The share of queries held out for validation [1 %, or up to 20 % for 50 lists]."
    ] = None
    per_query: Annotated[int | None, "Negatives per list in the view (cl)."] = None
    positives: Annotated[
        str | None, "each, one or all judged positives; generated: also those of generated queries (cl)."
    ] = None
    graded: Annotated[
        bool, "Use the grades of all positives of a query in one list (cl, with an order loss)."
    ] = False
    retrieved: Annotated[
        bool | None,
        "Use only positives that the negatives' runs rank, or all [only those if fewer than half are] (cl).",
    ] = None
    judged_first: Annotated[bool, "Put passages judged relevant at the top of the teacher's lists (kd)."] = (
        False
    )
    stratified: Annotated[int | None, "Passages per list, spread over the teacher's whole order (kd)."] = None
    easy: Annotated[int | None, "Random passages added at the bottom of each list."] = None
    max_lists: Annotated[int | None, "The most lists per view."] = None
    allow_overlap: Annotated[bool, "Train even on queries that a test set has."] = False


@dataclass(frozen=True)
class Train:
    """The options of `msft students train`."""

    regime: Annotated[str | None, "cl, kd, cl,kd, kd,cl or longer; cl+kd trains both in one stage."] = None
    base: Annotated[
        str | None, "A short name (`msft students bases`), Hugging Face id, folder, or student:NAME."
    ] = None
    names: Names = Names()
    name: Annotated[str | None, "The student's name; by default BASE-REGIME-KEY."] = None
    recipe: Annotated[
        str | None, "auto (by default), a TOML file, or the name of a recipe that comes with msft."
    ] = None
    minutes: Annotated[float | None, "The minutes that auto plans for [10 on a CPU, 30 on a GPU]."] = None
    dry_run: Annotated[bool, "Print the plan and stop."] = False
    settings: Settings = Settings()
    more: Annotated[
        tuple[str, ...],
        typer.Option("--set", help="Any other setting of a recipe: KEY=VALUE, e.g. clip=10 or kd.loss=kl."),
    ] = ()
    views: ViewParameters = ViewParameters()


def add_to(app: typer.Typer) -> None:
    """Add `train` to the group of students."""
    command(
        app,
        "train",
        example="msft students train --regime cl --base minilm --dataset nfcorpus/train --negatives hard",
        lists=True,
    )(train)


def train(context: Context, options: Train) -> None:
    """Train a student from the store's judgments (cl), its LLM rankings (kd), or both, stage after stage.

    Without --recipe, base, stages, lists, pairs and rates are chosen for this device, the data and the minutes, and the
    plan is printed first. What you give is kept. Several datasets, negatives and labelings make one view, across
    collections. Run the same command again to continue an interrupted training. The store is open only before and after
    the training.
    """
    from msft.key_values import key_values, toml_value
    from students.jobs.plan import Sources
    from students.jobs.register import stage_rows
    from students.jobs.train import train_student

    recipe = options.recipe or "auto"
    sources = Sources(**vars(options.names), view_parameters=given(options.views))
    settings = given(options.settings) | key_values("--set", options.more, "clip=10", toml_value)
    chosen: str | Path = Path(recipe) if Path(recipe).suffix else recipe
    if options.dry_run:
        settings |= {k: v for k, v in (("regime", options.regime), ("base", options.base)) if v is not None}
        _show_plan(context, sources, chosen, settings, options.minutes)
        return
    with diagnostics.progress("training", unit="pairs") as tick:
        student = train_student(
            context.store,
            regime=options.regime,
            base=options.base,
            sources=sources,
            name=options.name,
            recipe=chosen,
            settings=settings,
            minutes=options.minutes,
            progress=tick,
            note=diagnostics.note,
        )
    rows = [{name: row[name] for name in STAGE_COLUMNS} for row in stage_rows(context.store, student.name)]
    fitted.rows(rows, context.format, keys=("stage",), about=ABOUT_STAGES)


def _show_plan(
    context: Context, sources: "Sources", recipe: str | Path, settings: dict[str, Any], minutes: float | None
) -> None:
    """Print the plan of a training as rows.

    Raises:
        DataMissing: an objective has no list to learn from.
    """
    from labelstore.errors import DataMissing
    from students.jobs.plan import plan_training

    plan, _ = plan_training(context.store, sources=sources, recipe=recipe, settings=settings, minutes=minutes)
    for objective, lists in plan.lists.items():
        if not lists.n:
            raise DataMissing(
                f"{objective} has no list to learn from ({lists.names})",
                hint="msft views build with these sources says what it leaves out, and why",
            )
    if context.format is render.Format.table:
        render.text("\n".join(plan.lines))
    else:
        render.rows([choice.row() for choice in plan.choices], context.format)
    if plan.few_pairs is not None:
        diagnostics.note(plan.few_pairs)
