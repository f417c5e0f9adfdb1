"""Show lineage: from each student to its stages, their views, the labels in them, and the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from labelstore.store.rows import fetch

MAX_STUDENTS = 40
KINDS = {"dataset": "dataset", "mining": "negatives", "run": "run", "labeling": "labels"}


@dataclass(frozen=True)
class SourceFacts:
    """A source of a view; only labels have a teacher."""

    kind: str
    name: str
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Stage:
    number: int
    objective: str
    loss: str
    facts: tuple[tuple[str, str], ...]
    view: str
    view_facts: tuple[tuple[str, str], ...]
    sources: tuple[SourceFacts, ...]


@dataclass(frozen=True)
class Student:
    name: str
    facts: tuple[tuple[str, str], ...]
    results: tuple[str, ...]
    stages: tuple[Stage, ...]


def students(con: duckdb.DuckDBPyConnection, order: Sequence[str]) -> tuple[list[Student], int]:
    """Collect the students' lineages and count those left out.

    Args:
        order: names, the most interesting first; the others follow as they were made.
    """
    found = fetch(
        con,
        """SELECT name, base, base_revision, architecture, regime, seed, max_length, licence, weights_hash
           FROM students ORDER BY student""",
    )
    place = {name: n for n, name in enumerate(order)}
    found.sort(key=lambda row: place.get(row["name"], len(place)))
    stages, sources, results = _stages(con), _sources(con), _results(con)
    made = [
        Student(
            row["name"],
            facts(
                base=row["base"], revision=row["base_revision"], architecture=row["architecture"], regime=row["regime"],
                seed=row["seed"], length=row["max_length"], licence=row["licence"], weights=row["weights_hash"],
            ),
            tuple(results.get(row["name"], ())),
            tuple(_stage(stage, sources) for stage in stages.get(row["name"], ())),
        )
        for row in found[:MAX_STUDENTS]
    ]  # fmt: skip
    return made, max(0, len(found) - MAX_STUDENTS)


def facts(**named: object) -> tuple[tuple[str, str], ...]:
    """List the known facts as text, with shortened hashes."""
    shown = []
    for name, value in named.items():
        if value is None or value == "":
            continue
        text = (
            f"{value:.4g}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        is_hash = name in ("weights", "hash", "prompt_hash") or (name == "revision" and len(text) >= 32)
        shown.append((name.replace("_", " "), text[:12] if is_hash else text))
    return tuple(shown)


def _stages(con: duckdb.DuckDBPyConnection) -> dict[str, list[dict[str, object]]]:
    grouped: dict[str, list[dict[str, object]]] = {}
    for row in fetch(
        con,
        """SELECT s.name AS student_name, g.*, v.name AS view_name, v.kind AS view_kind, v.n_lists, v.n_pairs, v.seed AS view_seed
           FROM stages g JOIN students s USING (student) LEFT JOIN views v USING (view) ORDER BY s.student, g.stage""",
    ):
        grouped.setdefault(row["student_name"], []).append(row)
    return grouped


def _stage(row: dict[str, object], sources: dict[object, list[SourceFacts]]) -> Stage:
    return Stage(
        int(str(row["stage"])),
        str(row["objective"]),
        str(row["loss"]),
        facts(
            steps=row["steps"], pairs=row["pairs"], seconds=row["seconds"], weights_moved=row["weights_moved"],
            stopped_by=row["stopped_by"], lists_skipped=row["lists_skipped"] or None, weights=row["weights_hash"],
        ),
        str(row["view_name"] or "a folder that this store does not hold"),
        facts(
            kind=row["view_kind"], lists=row["n_lists"], pairs=row["n_pairs"], seed=row["view_seed"], hash=row["view_hash"]
        ),
        tuple(sources.get((row["student_name"], row["stage"]), ())),
    )  # fmt: skip


def _sources(con: duckdb.DuckDBPyConnection) -> dict[object, list[SourceFacts]]:
    """Read the sources of the views by (student, stage): judgments, then negatives and runs, then labels."""
    grouped: dict[object, list[SourceFacts]] = {}
    for row in fetch(
        con,
        """SELECT s.student, s.stage, s.made_from, s.source, s.teacher, s.model, s.revision, t.engine, s.prompt,
                  s.prompt_hash, l.strategy, l.depth, s.licence
           FROM student_sources s LEFT JOIN labelings l ON s.made_from = 'labeling' AND l.name = s.source
           LEFT JOIN teachers t ON t.teacher = l.teacher ORDER BY s.student, s.stage, s.made_from, s.source""",
    ):
        key = (row.pop("student"), row.pop("stage"))
        kind: str = row.pop("made_from")
        name = row.pop("source")
        grouped.setdefault(key, []).append(
            SourceFacts(KINDS.get(kind, kind), name or "replaced since", facts(**row))
        )
    return grouped


def _results(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Write each student's headline values in words."""
    grouped: dict[str, list[str]] = {}
    for student, dataset, first_stage, measure, value in con.execute(
        """SELECT student, dataset, first_stage, measure, value FROM results
           WHERE student IS NOT NULL AND kind = 'student' AND measure NOT LIKE 'Judged%' AND NOT regexp_matches(measure, '^R[(@]')
           ORDER BY student, dataset, first_stage, evaluation"""
    ).fetchall():
        grouped.setdefault(student, []).append(f"{dataset} over {first_stage}: {measure} {value:.3f}")
    return grouped
