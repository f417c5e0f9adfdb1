"""`msft reproduce`: plan the grid of a recipe, run it as far as possible, and show published values beside it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics

if TYPE_CHECKING:
    from cli.workflows.reproduce.plan import Plan
    from cli.workflows.reproduce.spec import Spec
    from cli.workflows.reproduce.tiny import Size
    from labelstore.store.label_store import LabelStore

Row = dict[str, Any]


class Scale(StrEnum):
    """``full`` runs the recipe unchanged; ``tiny`` runs all steps with stand-ins, in minutes on a CPU."""

    full = "full"
    tiny = "tiny"


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(app, "reproduce", example="msft reproduce pezzuti2025 --scale tiny", lists=True)(reproduce)


def reproduce(
    context: Context,
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe with an [evaluate] table: a name (pezzuti2025, pezzuti2025-lr, teachers-2026) or a file."
        ),
    ],
    scale: Annotated[
        Scale, typer.Option("--scale", help="full, or tiny (random models over docstrings, in minutes).")
    ] = Scale.full,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="The folder to work in; the store is FOLDER/reproduce.duckdb; by default RECIPE or RECIPE-tiny.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would run and what is missing.")
    ] = False,
) -> None:
    """Train and test the grid of a study, and print its table beside your own.

    Every step is a command that is printed as it runs. If data or models are missing, the command that gets them is
    printed. Run it again to go on. Each two-stage regime gets a verdict against the single contrastive stage; with
    `verdicts = "all"` in the recipe each other training gets one.
    """
    from cli.workflows.reproduce import plan as plans
    from cli.workflows.reproduce import spec as specs
    from cli.workflows.reproduce import table, tiny
    from labelstore.store.label_store import LabelStore

    spec, size = specs.read(recipe), None
    if scale is Scale.tiny:
        folder, size = folder or Path(f"{Path(recipe).stem}-tiny"), tiny.Size()
        spec = tiny.stand_ins(spec, folder, size)
    store = context.store if folder is None else LabelStore(folder / "reproduce.duckdb")
    if dry_run:
        plan = plans.make(store, spec, prepared=size is not None)
        announce(spec, plan, dry=True)
        table.show(spec, table.rows(spec, plan, table.values(store, spec), {}), context.format)
        return
    rows = run(store, spec, folder, size)
    table.show(spec, rows, context.format)
    table.conclude(rows)
    end(rows)


def run(store: "LabelStore", spec: "Spec", folder: Path | None, size: "Size | None" = None) -> list[Row]:
    """Run every step that can run here and return the rows of the table.

    Args:
        size: size of the stand-ins at tiny scale, which are made in `folder`; None at full scale.
    """
    from cli.workflows.reproduce import plan as plans
    from cli.workflows.reproduce import table, tiny
    from cli.workflows.steps import Steps

    steps = Steps(store.path)
    with steps.environment():
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if size is not None:
                tiny.prepare(store, steps, spec, folder, size)
        plan = plans.make(store, spec, prepared=size is not None)
        announce(spec, plan, dry=False)
        plan = plans.carry_out(plan, steps)
        plan = plans.carry_out(plans.with_evaluations(spec, plan), steps)
        held = table.values(store, spec)
        return table.rows(spec, plan, held, table.verdicts(store, spec, held))


def announce(spec: "Spec", plan: "Plan", *, dry: bool) -> None:
    """Print which steps are done, which will run, what is missing and how to get it."""
    from cli.workflows.reproduce import plan as plans

    if spec.note:
        pairs = [(t.name, t.dataset) for t in spec.test_sets] + [(s.name, s.run) for s in spec.first_stages]
        diagnostics.note(f"{spec.note}: {', '.join(f'{own} for {name}' for name, own in pairs)}")
    reachable = plan.reachable()
    done = [step for step in plan.steps if step.done]
    ready = [step for step in plan.steps if not step.done and step.key in reachable]
    diagnostics.note(
        f"{spec.recipe}: {len(plan.steps)} steps before evaluation, {len(done)} done, {len(ready)} to run,"
        f" {len(plan.steps) - len(done) - len(ready)} that wait for missing data"
    )
    if any(step.key[0] == "student" and not step.done for step in plan.steps) and spec.needs_gpu:
        diagnostics.note(plans.describe_cost(spec))
    kinds = {t.recipe.regime for t in spec.trainings}
    if len(kinds) > 1 and not spec.published and "valid_fraction" not in spec.views:
        diagnostics.note(
            "[evaluate.views] sets no valid_fraction: over few queries regimes then hold out different shares, and no stage that"
            " one has trained serves another; 0.1 is usual"
        )
    if dry:
        for step in [*ready, *plans.evaluations(spec, reachable)]:
            diagnostics.note(f"  $ {step}")
    for (what, how), keys in plan.missing().items():
        diagnostics.note(f"missing: {what}{f', for {len(keys)} steps' if len(keys) > 1 else ''}\n  {how}")


def end(rows: "list[Row]") -> None:
    """Return (exit code 0) if every cell has its value.

    Raises:
        DataMissing: no cell has its value.
        PartlyDone: some cells have no value.
    """
    from labelstore.errors import DataMissing, PartlyDone

    lacking = [row for row in rows if row["status"] == "missing"]
    if not lacking:
        return
    hint = "the steps named above as missing; then the same command goes on"
    if len(lacking) == len(rows):
        raise DataMissing(f"none of the {len(rows)} values could be measured", hint=hint)
    raise PartlyDone(f"{len(lacking)} of {len(rows)} values are missing", hint=hint)
