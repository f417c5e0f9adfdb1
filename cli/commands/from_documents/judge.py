"""`msft teachers judge` and `msft teachers agreement`: grades of an LLM, and whether to believe them."""

from dataclasses import dataclass
from typing import Annotated

import typer

from cli.command import Context, command
from cli.commands.from_documents.asking import AskingOptions, DryRun, summary
from cli.commands.teachers_generate import EngineArg, asking_progress, with_engine_arguments
from cli.output import diagnostics, fitted
from teachers.generate.single.wanted import WantedGrades


@dataclass(frozen=True)
class Wanted(WantedGrades):
    """What is judged. On the command line one setting has another name."""

    runs: Annotated[
        tuple[str, ...],
        typer.Option("--run", help="A run whose top is judged; repeatable; by default the only first stage."),
    ] = ()


def add_to_teachers(app: typer.Typer) -> None:
    """Add `judge` and `agreement` to the group of teachers' commands."""
    command(
        app,
        "judge",
        example="msft teachers judge --model gpt-4o-mini --dataset dl19 --run bm25 --base-url https://api.openai.com/v1",
        lists=True,
    )(judge)
    command(app, "agreement", example="msft teachers agreement gpt-4o-mini@dl19", lists=True)(agreement)


def judge(
    context: Context,
    wanted: Wanted,
    asking: AskingOptions,
    engine_arg: EngineArg = (),
    dry_run: DryRun = False,
) -> None:
    """Grade the top passages of runs from 0 to 3 by an LLM; run the command again to go on where it stopped.

    The grades are a judging, kept apart from human judgments: only `--judge` measures by it. A reply without a grade is in
    quarantine, never a 0.
    """
    from teachers.generate.single.judge import bill
    from teachers.generate.single.judge import judge as ask

    settings = with_engine_arguments(asking, engine_arg)
    if dry_run:
        fitted.listed([bill(context.store, wanted, settings, note=diagnostics.note).row()], context.format)
        return
    with asking_progress("judging", "passages") as progress:
        made = ask(context.store, wanted, settings, note=diagnostics.note, progress=progress)
    row = {
        "judging": made.name,
        "dataset": made.pooled.of.name,
        "pooled": made.pooled.count.n_in,
        "judged": made.graded,
        **{f"grade_{grade}": made.judged.grades.get(grade, 0) for grade in range(4)},
        "quarantined": made.quarantined,
        "left": max(made.left, 0),
        **summary(made.done.figures, made.done.cost),
    }
    fitted.listed([row], context.format)
    for reason, (n, example) in made.pooled.count.drops.items():
        diagnostics.note(f"{n:,} pairs are left out: {reason}, e.g. {example}")
    if (partly := made.partly_done()) is not None:
        raise partly
    diagnostics.note(f"see how far to believe it: msft teachers agreement {made.name}")


def agreement(
    context: Context,
    judging: Annotated[str, typer.Argument(help="A judging; `msft teachers judge` makes one.")],
    human: Annotated[
        str | None, "The dataset with the human judgments; by default the judging's own."
    ] = None,
    measure: Annotated[
        str | None, "The measure that orders the systems; by default the dataset's first."
    ] = None,
) -> None:
    """Compare an LLM judge with people: kappa, confusion matrix, bias, and the systems' order under both.

    The calibrated values estimate what people would find on all judged queries: the judge's values, corrected on the queries
    that people judged (prediction-powered inference), with 95 % intervals.
    """
    from labelstore.judgments.agreement import agreement as compare
    from teachers import models

    with context.store.read() as con:
        found = compare(con, judging, human=human, measure=measure)
        of_teachers = con.execute(
            """SELECT DISTINCT l.name, t.model FROM labelings l JOIN teachers t USING (teacher) JOIN datasets d USING (dataset)
               WHERE d.name = ? AND t.model IS NOT NULL ORDER BY l.name""",
            [found.dataset],
        ).fetchall()
    fitted.listed(
        [{"judging": judging, **row} for row in found.rows],
        context.format,
        keys=("what", "of"),
        columns=("judging", "what", "of", "value", "low", "high", "n"),
    )
    for line in found.warnings:
        diagnostics.warn(line)
    own = models.family(found.judging.model)
    related = [name for name, model in of_teachers if own is not None and models.family(model) == own]
    if related:
        diagnostics.warn(
            f"the judge is of the family {own}, as the teacher of {', '.join(related[:3])}: judges favour their family"
        )
