"""`msft eval`: measure runs, labels and students per query; `msft compare` gives the verdicts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics, fitted, latex, render
from cli.output.origins import with_origins
from cli.output.render import Format
from students.rerank.machines import Machines

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, Any]

ABOUT = {
    "p_value": "two-sided paired t-test against the first stage, of the first measure",
    "queries": "judged queries",
    "judged": "share of the top 10 that is judged",
    "depth": "candidates per query",
    "recall": "recall of the candidates, which no re-ranking can exceed",
}
FOR_PEOPLE = (Format.table, Format.md, Format.latex)


@dataclass(frozen=True)
class Beside:
    """Options for systems that are measured beside first stages and students."""

    fuse: Annotated[bool, "Also measure each student interpolated with its first stage."] = False
    fuse_on: Annotated[
        str | None, "The dataset whose queries choose the weight of --fuse; by default a dev set."
    ] = None
    teacher: Annotated[
        bool, "Let the students' offline teachers label the queries, and measure them too."
    ] = True
    untrained: Annotated[
        bool | None,
        typer.Option(
            "--untrained/--no-untrained",
            help="Measure the base that each student began from, with --untrained also an encoder, whose head is"
            " random numbers until it is trained; by default only a base that ranks as it is.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class On:
    """What the measures rest on."""

    judge: Annotated[
        str | None,
        "Measure by an LLM judge's grades: JUDGING, or JUDGING+human for human grades where there are any; by default"
        " human judgments alone. Such values are not stored.",
    ] = None
    calibrate: Annotated[
        str | None,
        "A dataset in which people judged some of the queries: estimate what they would find on all that --judge saw,"
        " with 95 % intervals.",
    ] = None
    exclude_self: Annotated[
        bool,
        "Leave out passages that have their query's id (always done for ArguAna and Quora); such values are not stored.",
    ] = False
    protocol: Annotated[
        str,
        "standard; positives-in adds relevant passages that the first stage missed (sentence-transformers' default);"
        " found-only leaves their judgments out. Values of the last two are not stored.",
    ] = "standard"


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(app, "eval", example="msft eval --dataset dl20 --measure nDCG@10 --fuse", lists=True)(evaluate)


def evaluate(
    context: Context,
    dataset: Annotated[list[str] | None, "A dataset; repeatable; by default the only one."] = None,
    run: Annotated[list[str] | None, "A first stage; repeatable; by default all."] = None,
    student: Annotated[list[str] | None, "A student; repeatable; by default all."] = None,
    labels: Annotated[list[str] | None, "A labeling; repeatable; by default all."] = None,
    measure: Annotated[
        list[str] | None,
        "A measure in ir-measures' names; repeatable; by default the literature's for the dataset.",
    ] = None,
    depth: Annotated[int, "Candidates per query that students re-rank."] = 100,
    beside: Beside = Beside(),
    suite: Annotated[
        str | None, "dl, beir, nano-beir, bright, or a file of datasets; adds the macro mean."
    ] = None,
    rerank: Annotated[bool, "Let students re-rank first what they have not re-ranked yet."] = True,
    machines: Machines = Machines(),
    on: On = On(),
) -> None:
    """Measure first stages, teachers and students side by side.

    Students re-rank first what they have not re-ranked yet. Every value is stored per query and reused. p_value is from
    the two-sided paired t-test against the first stage; `msft compare` has the tests that support a claim.
    The last line says what to use, by these tests after Holm's correction.
    """
    from cli.workflows import offline_teachers
    from labelstore.errors import PartlyDone
    from labelstore.evaluation import advice
    from labelstore.evaluation.systems import Basis
    from students.jobs import evaluate as job

    machines.check()
    _check_calibrated(on)
    talk = job.Talk(diagnostics.note, diagnostics.warn, diagnostics.progress)
    if beside.teacher and rerank and not labels and not suite:
        offline_teachers.label_tests(context.store, dataset, student, run, depth, talk)
    done = job.evaluate(
        context.store,
        dataset or (),
        runs=run,
        students=student,
        labels=labels,
        measures=measure or (),
        depth=depth,
        fuse=job.Beside((beside.fuse_on or True) if beside.fuse else False, beside.untrained),
        suite=suite,
        rerank=machines if rerank else False,
        basis=Basis(on.judge, on.exclude_self, on.protocol),
        talk=talk,
    )
    rows = with_origins(context.store, done.rows)
    if on.calibrate is not None:
        _print_calibrated(context, on, rows)
        return
    _print(rows, context.format)
    _warn_of_leaks(context, done.rows)
    if on.judge is None:
        _note_grades(context, done.rows)
    else:
        diagnostics.note(f"judge: {on.judge}; these are grades of an LLM, see msft teachers agreement")
    if on.protocol != "standard":
        diagnostics.note(f"protocol {on.protocol}: these values are not stored, and no advice rests on them")
    for each in advice.from_rows(done.rows) if on.protocol == "standard" else ():
        sentence = each.sentence(fused=beside.fuse)
        diagnostics.note(sentence if on.judge is None else f"by the judge {on.judge}: {sentence}")
    if done.missing:
        raise PartlyDone(
            f"{len(done.missing)} of {done.n_datasets} datasets are missing: {', '.join(done.missing)}",
            hint=f"msft data add {done.missing[0]} --from FOLDER",
        )


def _check_calibrated(on: On) -> None:
    from labelstore.errors import UsageError

    if on.calibrate is not None and (on.judge is None or on.judge.endswith("+human") or on.exclude_self):
        raise UsageError(
            "--calibrate corrects the grades of a judge alone", hint="--judge JUDGING --calibrate DATASET"
        )


def _print_calibrated(context: Context, on: On, rows: "Sequence[Row]") -> None:
    """Print what people would find, by the judge's grades and theirs, of the systems that were measured."""
    from labelstore.judgments.agreement import calibrated

    with context.store.read() as con:
        found = calibrated(
            con, on.judge or "", on.calibrate or "", list(dict.fromkeys(r["measure"] for r in rows))
        )
    measured = {row["system"] for row in rows}
    fitted.listed([row for row in found if row["system"] in measured], context.format, keys=("system",))
    diagnostics.note(
        f"estimates of what people would find, from {on.judge} and the judgments of {on.calibrate}; right if people judged a"
        " random sample of the queries"
    )


def _tell_of_depths(rows: "Sequence[Row]") -> None:
    """Say which measures reach beyond the lists that were measured."""
    found = {
        (row["measure"], row["depth"])
        for row in rows
        if (cut := row["measure"].rpartition("@")[2]).isdigit()
        and row["depth"] is not None
        and int(cut) > row["depth"]
    }
    for measure, depth in sorted(found):
        name, _, cut = measure.rpartition("@")
        # Only where the cut changes neither a divisor nor an ideal is it the measure of the lists' length.
        is_other = name.partition("(")[0] in ("R", "RR", "Success")
        meant = f"so it is {name}@{depth}" if is_other else f"though up to rank {cut} could"
        diagnostics.note(f"{measure} over lists of {depth}: nothing below rank {depth} counts, {meant}")


def _warn_of_leaks(context: Context, rows: "Sequence[Row]") -> None:
    """Warn of students that were trained on the queries they are measured on (`--allow-overlap`)."""
    from labelstore.views import leakage

    students = {row["system"].partition("@")[0] for row in rows if row["kind"] == "student"}
    with context.store.read() as con:
        found = leakage.warnings(con, sorted(students), sorted({row["dataset"] for row in rows}))
    for warning in found:
        diagnostics.warn(warning)


def _note_grades(context: Context, rows: "Sequence[Row]") -> None:
    from labelstore.evaluation import grades

    datasets = dict.fromkeys(row["dataset"] for row in rows)
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    with context.store.read() as con:
        for said in grades.told(con, datasets, measures):
            diagnostics.note(said)


def _print(rows: "Sequence[Row]", format: Format) -> None:
    if rows and format in FOR_PEOPLE:
        if format is Format.latex:
            render.text(latex.scores(rows))
        else:
            fitted.rows(wide(rows), format, keys=("system",), about=ABOUT)
        _tell_of_depths(rows)
    elif rows:
        render.rows(rows, format)
    elif format not in FOR_PEOPLE:
        columns = [
            "dataset",
            "system",
            "kind",
            "first_stage",
            "measure",
            "value",
            "n_queries",
            "p_value",
            "judge",
        ]
        render.rows(rows, format, columns)


def wide(rows: "Sequence[Row]") -> list[Row]:
    """Turn scores into the table for people: a row for each system, a column for each measure.

    The first measure has its p-value beside it. `recall` is the candidates' recall at the re-ranked depth, which no
    re-ranking can exceed. `judged` is Judged@10.
    """
    table: dict[tuple[Any, ...], Row] = {}
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    for row in rows:
        key = (row["dataset"], row["system"], row["kind"], row["first_stage"])
        line = table.setdefault(
            key,
            {
                "dataset": row["dataset"],
                "system": row["system"],
                "kind": row["kind"],
                "first_stage": row["first_stage"] if row["kind"] != "first_stage" else None,
                **dict.fromkeys(measures),
                "p_value": None,
                "queries": row["n_queries"],
                "judged": row["judged"],
                "depth": row["depth"],
                "recall": row["recall"],
                **({"judge": row["judge"]} if row.get("judge") is not None else {}),
                **{name: row[name] for name in ("protocol", "queries_by") if name in row},
            },
        )
        line[row["measure"]] = row["value"]
        if row["measure"] == measures[0] or (line["p_value"] is None and row["p_value"] is not None):
            line["p_value"] = row["p_value"]
    return list(table.values())
