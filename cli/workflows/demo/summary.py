"""Show the demo's results: the table, three questions answered in SQL, and the next steps for a real run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import diagnostics, fitted, render
from cli.output.render import Format

if TYPE_CHECKING:
    from cli.workflows.steps import Steps

Row = dict[str, Any]
MEASURE = "RR@10"
_ABOUT = {
    "p_value": "two-sided paired t-test against the first stage, of RR@10",
    "depth": "candidates per query",
    "recall": "recall of the candidates, which no re-ranking can exceed",
}

QUESTIONS = {
    "How good is each regime over its first stage?": f"""
        SELECT regime, first_stage, system, kind, measure, value FROM results
        WHERE measure = '{MEASURE}' AND kind IN ('student', 'fused') ORDER BY value DESC""",
    "What did the teacher do, and how did its calls end?": """
        SELECT teacher, status, count(*) AS calls, sum(tokens_in) AS tokens_in, sum(seconds) AS seconds
        FROM teacher_calls GROUP BY ALL ORDER BY calls DESC""",
    "Which view and labels stand behind each student?": """
        SELECT student, stage, objective, left(view_hash, 8) AS view, made_from, source, teacher
        FROM student_sources ORDER BY student, stage, made_from""",
}

REAL_RUN = """A real run needs, instead of these minutes on a CPU:
  judged queries   msft data add train                                     MS MARCO, by ir_datasets
  a real teacher   msft teachers generate --model rankzephyr --engine vllm  a 7B LLM: one GPU of 24 GB or more
                   msft teachers import FILE                               or LLM rankings that others published
  a full student   msft students train --regime cl,kd --base electra       one GPU, hours
  test collections msft eval --dataset dl19 --dataset dl20 --fuse          TREC Deep Learning"""


def answers(steps: "Steps") -> dict[str, list[Row]]:
    """Answer each question by `msft sql`: question -> rows."""
    return {question: steps.rows("sql", " ".join(sql.split())) for question, sql in QUESTIONS.items()}


def table(rows: Sequence[Row]) -> list[Row]:
    """Make a row per system: RR@10 and its p-value against the first stage, nDCG@10, queries, recall of candidates."""
    lines: dict[str, Row] = {}
    for row in rows:
        line = lines.setdefault(
            row["system"] + row["kind"],
            {
                "dataset": row["dataset"],
                "system": row["system"],
                "kind": row["kind"],
                "first_stage": row["first_stage"],
                "RR@10": None,
                "p_value": None,
                "nDCG@10": None,
                "n_queries": row["n_queries"],
                "depth": row.get("depth"),
                "recall": row.get("recall"),
            },
        )
        line[row["measure"]] = row["value"]
        if row["measure"] == MEASURE:
            line["p_value"] = row["p_value"]
    return sorted(lines.values(), key=lambda line: -(line[MEASURE] or 0))


def show(rows: Sequence[Row], found: dict[str, list[Row]], format: Format) -> None:
    """Print the table. In the formats for people, the questions and answers follow."""
    fitted.rows(table(rows), format, keys=("system",), about=_ABOUT)
    if format not in (Format.table, Format.md):
        return
    for question, answer in found.items():
        render.text(f"\n{'### ' if format is Format.md else ''}{question}\n")
        fitted.rows(answer, format, keys=list(answer[0])[:1] if answer else (), about={})


def conclude(rows: Sequence[Row], minutes: float, folder: Path) -> None:
    """Print how the best system and each student alone compare with the first stage, and the next steps."""
    lines = table(rows)
    first = next(line for line in lines if line["kind"] == "first_stage")
    for line in lines:
        if line["kind"] in ("student", "teacher"):
            diagnostics.note(_verdict(line, first))
    best = next(line for line in lines if line["kind"] in ("student", "fused"))
    diagnostics.note(f"best: {_verdict(best, first)}")
    diagnostics.note(
        f"{minutes:.1f} minutes. The store is {folder / 'demo.duckdb'}: msft report, msft show lineage, msft sql ask it.\n"
        f"{REAL_RUN}"
    )


def _verdict(line: Row, first: Row) -> str:
    difference = line[MEASURE] - first[MEASURE]
    p = line["p_value"]
    significant = p is not None and p < 0.05
    how = "above" if difference > 0 else "below"
    what = {"fused": "student fused with its first stage", "student": "student alone"}.get(
        line["kind"], "teacher"
    )
    return (
        f"{line['system']} ({what}): {MEASURE} {line[MEASURE]:.3f}, {abs(difference):.3f} {how} {first['system']}'s"
        f" {first[MEASURE]:.3f}"
        + (f" (p = {p:.2g}{'' if significant else ', no significant difference'})" if p is not None else "")
    )
