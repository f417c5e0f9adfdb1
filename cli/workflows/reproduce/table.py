"""Compare the study's table with the store's values, and test whether one stage is on par with two."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.output import diagnostics, fitted, latex, render
from cli.output.render import Format
from cli.workflows.reproduce.plan import Plan
from cli.workflows.reproduce.spec import FirstStage, Spec, TestSet, Training

if TYPE_CHECKING:
    from labelstore.store.label_store import LabelStore

Row = dict[str, Any]
Value = dict[tuple[str, str, str, str], float]  # (student or "", run, dataset, measure) -> value
Arm = tuple[str, str, str]  # (base, regime, variant): the seeds of an arm share these
Place = tuple[Arm, str]  # an arm over a first stage

_OF_VERDICT = ("ci90_low", "ci90_high", "p_holm", "tost_p", "margin", "margin_showable", "verdict")
COLUMNS = (
    "student", "regime", "first_stage", "dataset", "measure", "value", "published", "status", "difference", "setting",
    "seeds", "sd", "by_seed", "single_stage", "single_difference", "ci90_low", "ci90_high", "p_holm", "tost_p", "margin",
    "margin_showable", "verdict", "weights_moved", "measured_on", "why",
)  # fmt: skip

QUESTIONS = {
    "two-stages": "Is a single contrastive stage on par with two?",
    "all": "Is a single contrastive stage on par with each other training?",
}
ABOUT = {
    "status": "run, partly or missing",
    "difference": "the regime's value less that of a single contrastive stage",
    "verdict": "better and worse after Holm's correction; equivalent within the margin",
    "seeds": "trainings that a value is the mean of",
    "ci90_low": "lower end of the 90 % interval of the difference",
    "p_holm": "p after Holm's correction",
    "tost_p": "p of the test of equivalence",
    "margin_showable": "smallest margin that these queries could show",
    "weights_moved": "how far the least trained stage moved the weights",
}


def values(store: "LabelStore", spec: Spec) -> Value:
    """Read the values of the grid's cells that the store holds for the present rankings and judgments."""
    if not store.exists:
        return {}
    with store.read() as con:
        found = con.execute(
            """SELECT coalesce(s.name, ''), coalesce(src.name, r.name), d.name, e.measure, e.value
               FROM evaluations e JOIN datasets d USING (dataset) JOIN runs r ON r.run = e.run
               LEFT JOIN runs src ON src.run = r.source_run LEFT JOIN students s ON s.student = r.student
               WHERE e.run_hash = r.content_hash AND e.qrels_hash = d.qrels_hash
                 AND (r.kind IN ('first_stage', 'imported') OR r.kind = 'student' AND r.depth = least(?, src.depth))
               ORDER BY e.evaluation""",
            [spec.depth],
        ).fetchall()
    return {(student, run, dataset, measure): value for student, run, dataset, measure, value in found}


def arms(spec: Spec) -> dict[Arm, list[Training]]:
    """Group the trainings by base, regime and variant; a group has one training per seed."""
    found: dict[Arm, list[Training]] = {}
    for training in spec.trainings:
        found.setdefault((training.base, training.recipe.regime, training.variant), []).append(training)
    return found


def rows(spec: Spec, plan: Plan, held: Value, verdicts: dict[tuple[Arm, str, str], Row]) -> list[Row]:
    """Make a row for each test set and measure: first stages, then students."""
    made = []
    for test_set in spec.test_sets:
        for stage in spec.first_stages:
            for measure in test_set.measures:
                made.append(_row(spec, plan, held, None, [], stage, test_set, measure))
                for arm, trainings in arms(spec).items():
                    row = _row(spec, plan, held, arm, trainings, stage, test_set, measure)
                    if measure == test_set.measures[0]:
                        row |= verdicts.get((arm, stage.name, test_set.name), {})
                    made.append(row)
    return [{name: row.get(name) for name in COLUMNS} for row in made]


def _row(
    spec: Spec, plan: Plan, held: Value, arm: Arm | None, trainings: Sequence[Training],
    stage: FirstStage, test_set: TestSet, measure: str,
) -> Row:  # fmt: skip
    base, regime, variant = arm or ("", "", "")
    names = [t.name for t in trainings] or [""]
    found = [held.get((name, stage.run, test_set.dataset, measure)) for name in names]
    there = [value for value in found if value is not None]
    value = sum(there) / len(there) if len(there) == len(names) else None
    published = spec.published.get((base, regime, stage.name, test_set.name, measure))
    row: Row = {
        "student": base or None,
        "regime": regime or None,
        "first_stage": stage.name,
        "dataset": test_set.name,
        "measure": measure,
        "value": value,
        "published": published,
        "status": "missing" if value is None else "run",
        "difference": value - published if value is not None and published is not None else None,
        "setting": variant or None,
        "seeds": len(there) if arm else None,
        "sd": statistics.stdev(there) if len(there) > 1 else None,
        "by_seed": _by_seed(trainings, found),
        "measured_on": f"{test_set.dataset}, {stage.run}" + (f": {spec.note}" if spec.note else ""),
    }
    if value is None:
        keys = [
            ("data", test_set.dataset),
            ("run", test_set.dataset, stage.run),
            *(("student", n) for n in names if n),
        ]
        row["why"] = next((why for key in keys if (why := plan.why(key))), "not run yet")
    return row


def _by_seed(trainings: Sequence[Training], values: Sequence[float | None]) -> str | None:
    """Write the value of each seed: ``1: 0.41, 2: 0.43``; None for a first stage."""
    pairs = [(t.recipe.seed, value) for t, value in zip(trainings, values, strict=False) if value is not None]
    return ", ".join(f"{seed}: {value:.4f}" for seed, value in pairs) or None


def verdicts(store: "LabelStore", spec: Spec, held: Value) -> dict[tuple[Arm, str, str], Row]:
    """Compare each regime of several stages (or each other regime) with the single contrastive stage, by the headline measure.

    The comparisons over one test set are one family. Each verdict has the distance of the regime's least moved stage
    over its seeds, because a stage that learnt nothing leaves a regime of one stage.
    """
    from labelstore.evaluation import comparison

    moved = least_moved(store)
    found: dict[tuple[Arm, str, str], Row] = {}
    for test_set in spec.test_sets:
        measure = test_set.measures[0]
        names = {
            (arm, stage.name): [f"{t.name}@{stage.run}" for t in trainings]
            for arm, trainings in arms(spec).items()
            for stage in spec.first_stages
            if all((t.name, stage.run, test_set.dataset, measure) in held for t in trainings)
        }
        pairs = {
            place: single
            for place in names
            if ((spec.verdicts == "all" and place[0][1] != "cl") or len(place[0][1].split(",")) > 1)
            and (single := _single_stage(place, names)) is not None
        }
        if not pairs:
            continue
        wanted = [place for place in names if place in pairs or place in pairs.values()]
        board = comparison.measure_systems(
            store, test_set.dataset, [name for place in wanted for name in names[place]], [measure]
        )
        group_of = {f"{s.student}@{s.first_stage}": c.name for c in board.groups for s in c.systems}
        compared = comparison.compare_pairs(
            board,
            [(group_of[names[two][0]], group_of[names[one][0]]) for two, one in pairs.items()],
            margin=spec.margin,
        )
        for (two, one), row in zip(pairs.items(), compared, strict=True):
            found[(*two, test_set.name)] = {
                "single_stage": one[0][1],
                "single_difference": row["difference"],
                **{name: row[name] for name in _OF_VERDICT},
                "weights_moved": min(moved[t.name] for t in arms(spec)[two[0]]),
            }
    return found


def least_moved(store: "LabelStore") -> dict[str, float]:
    """Measure for each student the relative distance of the weights in the stage that moved them least."""
    if not store.exists:
        return {}
    with store.read() as con:
        found = con.execute(
            "SELECT s.name, min(g.weights_moved) FROM students s JOIN stages g USING (student) GROUP BY 1"
        ).fetchall()
    return dict(found)


def _single_stage(place: Place, there: Mapping[Place, list[str]]) -> Place | None:
    """Find the contrastive training of the same base and first stage, with the same variant or none."""
    (base, _, variant), stage = place
    singles: list[Place] = [((base, "cl", v), stage) for v in (variant, "")]
    return next((single for single in singles if single in there), None)


# -------------------------------------------------------------------------------------------------------- for people
_COMMENT = {Format.md: "### ", Format.latex: "% "}  # the start of a line between tables


def show(spec: Spec, found: Sequence[Row], format: Format) -> None:
    """Print all rows for machines; for people, print the study's table beside the store's, then the verdicts."""
    warned = below_first_stage(spec, found)
    if format in (Format.json, Format.csv):
        render.rows(found, format, COLUMNS)
        for sentence in warned:
            diagnostics.note(sentence)
        return
    if spec.note:
        _say(f"{spec.note}: these values say nothing about the study", format)
        render.write("")
    _write(
        beside(spec, found),
        format,
        ("first_stage", "student", "regime", "setting"),
        "Values of the grid, and those of the study" if spec.published else "Values of the grid",
    )
    each = seed_rows(spec, found)
    if each:
        render.write("")
        _say("Each seed", format)
        render.write("")
        _write(each, format, ("first_stage", "student", "regime", "seed"), "Values of each seed")
    for sentence in warned:
        render.write("")
        _say(sentence, format)
    judged = on_par(spec, found)
    if judged:
        render.write("")
        _say(QUESTIONS[spec.verdicts], format)
        render.write("")
        _write(judged, format, ("student", "regimes", "setting"), "Differences to a single contrastive stage")
        for sentence in hardly_trained(judged):
            render.write("")
            _say(sentence, format)


def _say(sentence: str, format: Format) -> None:
    """Print a sentence between tables: on a terminal within its width, otherwise as a heading or a comment."""
    if format is Format.table:
        render.text(textwrap.fill(sentence, fitted.WIDTH))
    else:
        render.text(f"{_COMMENT[format]}{sentence}")


def _write(rows: Sequence[Row], format: Format, keys: Sequence[str], caption: str) -> None:
    """Print one of the tables, without columns that have no value: in LaTeX with a caption, on a terminal within its width."""
    filled = [name for name in (rows[0] if rows else ()) if any(row.get(name) is not None for row in rows)]
    rows = [{name: row.get(name) for name in filled} for row in rows]
    if format is Format.latex and rows:
        render.text(_latex(rows, caption))
    else:
        fitted.rows(rows, format, keys=keys, about=ABOUT)


def _latex(rows: Sequence[Row], caption: str) -> str:
    """Write one of the tables for a paper: no column that says the same of all, an interval in one cell, the best bold."""
    lines = []
    for row in rows:
        line = {name: value for name, value in row.items() if name not in ("ci90_low", "ci90_high")}
        if "ci90_low" in row:
            low, high = row["ci90_low"], row["ci90_high"]
            line["90 % interval"] = None if low is None else f"{low:+.3f} to {high:+.3f}"
        lines.append(line)
    same = {"status"} if {row.get("status") for row in rows} == {"run"} else set()
    lines = [{name: value for name, value in line.items() if name not in same} for line in lines]
    told = [f"{latex.head(name)}: {meaning}" for name, meaning in ABOUT.items() if name in lines[0]]
    # A value's column is named after its dataset and measure.
    best = [name for name in lines[0] if " " in name and "@" in name]
    return latex.captioned(lines, ". ".join([caption, "; ".join(told)]) if told else caption, best)


def hardly_trained(judged: Sequence[Row]) -> list[str]:
    """Name the comparisons whose second regime has a stage that learnt nothing, so they say nothing about it."""
    from students.train.diagnostics import MOVED_LITTLE

    arms = {
        (row["student"], row["regimes"].partition(" ")[0], row.get("setting")): row["weights_moved"]
        for row in judged
        if row["weights_moved"] < MOVED_LITTLE
    }
    return [
        f"{student} {regime}{f' ({setting})' if setting else ''}: a stage moved the weights by {moved:.0e} of their length,"
        " which is not a training: its verdicts say nothing about what that stage could add"
        for (student, regime, setting), moved in arms.items()
    ]


def below_first_stage(spec: Spec, found: Sequence[Row]) -> list[str]:
    """Name the test sets on which every student is below its first stage by more than the margin.

    The regimes of such students differ in how little they learnt, which answers no question.
    """
    told = []
    for test_set in spec.test_sets:
        measure = test_set.measures[0]
        for stage in spec.first_stages:
            here = [
                row for row in found
                if (row["dataset"], row["first_stage"], row["measure"]) == (test_set.name, stage.name, measure)
                and row["value"] is not None
            ]  # fmt: skip
            alone = next((row["value"] for row in here if row["student"] is None), None)
            best = max((row["value"] for row in here if row["student"] is not None), default=None)
            if alone is not None and best is not None and best < alone - spec.margin:
                told.append(
                    f"{test_set.name}: every student is far below {stage.name} ({measure} {best:.3f} at best, and"
                    f" {alone:.3f}): the differences between regimes say little; train on more pairs or better lists first"
                )
    return told


def seed_rows(spec: Spec, found: Sequence[Row]) -> list[Row]:
    """Make a row for each seed of each arm that has several, with all measures."""
    lines: dict[tuple[Any, ...], Row] = {}
    for row in found:
        if not row["seeds"] or row["seeds"] < 2:
            continue
        for text in row["by_seed"].split(", "):
            seed, value = text.split(": ")
            named = {name: row[name] for name in ("first_stage", "student", "regime")}
            named |= {"setting": row["setting"]} if any(t.variant for t in spec.trainings) else {}
            line = lines.setdefault((*named.values(), int(seed)), {**named, "seed": int(seed)})
            line[f"{row['dataset']} {row['measure']}"] = float(value)
    return list(lines.values())


def beside(spec: Spec, found: Sequence[Row]) -> list[Row]:
    """Make a row for each student, regime and first stage, with its values, and the study's on each headline.

    The status is `run`, `missing`, or `partly` if only some test sets have their value.
    """
    headline = {test_set.name: test_set.measures[0] for test_set in spec.test_sets}
    runs = {s.name: s.name if s.run == s.name else f"{s.name} ({s.run})" for s in spec.first_stages}
    lines: dict[tuple[Any, ...], Row] = {}
    for row in found:
        varied = {"setting": row["setting"]} if any(t.variant for t in spec.trainings) else {}
        line = lines.setdefault(
            (row["first_stage"], row["student"], row["regime"], row["setting"]),
            {
                "first_stage": runs[row["first_stage"]],
                "student": row["student"],
                "regime": row["regime"],
                **varied,
                "seeds": row["seeds"],
                "status": row["status"],
            },
        )
        if line["status"] != row["status"]:
            line["status"] = "partly"
        name = f"{row['dataset']} {row['measure']}"
        line[name] = row["value"]
        if spec.published and row["measure"] == headline[row["dataset"]]:
            line |= {
                f"{row['dataset']} study": row["published"],
                f"{row['dataset']} diff": row["difference"],
            }
    return list(lines.values())


def on_par(spec: Spec, found: Sequence[Row]) -> list[Row]:
    """Make a row for each verdict, with the study's difference beside it."""
    published = {
        (row["student"], row["first_stage"], row["dataset"], row["measure"], row["regime"]): row["published"]
        for row in found
    }
    lines = []
    for row in found:
        if row["verdict"] is None:
            continue
        place = (row["student"], row["first_stage"], row["dataset"], row["measure"])
        one = published.get((*place, row["single_stage"]))
        study = row["published"] - one if one is not None and row["published"] is not None else None
        lines.append(
            {
                "dataset": row["dataset"],
                "first_stage": row["first_stage"],
                "student": row["student"],
                "regimes": f"{row['regime']} - {row['single_stage']}",
                **({"setting": row["setting"]} if row["setting"] else {}),
                "measure": row["measure"],
                "difference": row["single_difference"],
                "ci90_low": row["ci90_low"],
                "ci90_high": row["ci90_high"],
                "p_holm": row["p_holm"],
                "tost_p": row["tost_p"],
                "margin_showable": row["margin_showable"],
                "verdict": row["verdict"],
                "weights_moved": row["weights_moved"],
                **({"study": study} if spec.published else {}),
            }
        )
    return lines


def conclude(found: Sequence[Row]) -> None:
    """Print how much of the grid ran."""
    students = [row for row in found if row["student"]]
    alone = [row for row in found if not row["student"]]
    counts = [f"{sum(row['status'] == 'run' for row in part)} of {len(part)}" for part in (students, alone)]
    diagnostics.note(f"values measured: {counts[0]} of students, {counts[1]} of first stages")
