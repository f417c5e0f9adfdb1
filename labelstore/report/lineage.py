"""Lineage: from each student to its stages, their views, the labels in them, and the prompt behind those."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from labelstore.labels import quality as label_quality

MAX_STUDENTS = 40
KINDS = {"dataset": "dataset", "mining": "negatives", "run": "run", "labeling": "labels"}


@dataclass(frozen=True)
class Source:
    """What a view was made from; the teacher's part is empty but for labels."""

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
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Student:
    name: str
    facts: tuple[tuple[str, str], ...]
    results: tuple[str, ...]
    stages: tuple[Stage, ...]


def students(con: duckdb.DuckDBPyConnection, order: Sequence[str]) -> tuple[list[Student], int]:
    """The students' lineages and how many were left out.

    Args:
        order: names, the most interesting first; the others follow as they were made.
    """
    found = label_quality.rows_of(
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
    """What is known of it, as text; hashes are cut to what tells them apart."""
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
    for row in label_quality.rows_of(
        con,
        """SELECT s.name AS student_name, g.*, v.name AS view_name, v.kind AS view_kind, v.n_lists, v.n_pairs, v.seed AS view_seed
           FROM stages g JOIN students s USING (student) LEFT JOIN views v USING (view) ORDER BY s.student, g.stage""",
    ):
        grouped.setdefault(row["student_name"], []).append(row)
    return grouped


def _stage(row: dict[str, object], sources: dict[object, list[Source]]) -> Stage:
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
        tuple(sources.get(row["view"], ())),
    )  # fmt: skip


def _sources(con: duckdb.DuckDBPyConnection) -> dict[object, list[Source]]:
    """view -> what it was made from: judgments, then negatives and runs, then labels."""
    grouped: dict[object, list[Source]] = {}
    for view, kind, name, *about in con.execute(
        """SELECT vs.view, vs.kind, coalesce(d.name, m.name, l.name, rd.name || '/' || r.name),
                  t.name, t.model, t.revision, t.engine, t.prompt, t.prompt_hash, l.strategy, l.depth, l.licence
           FROM view_sources vs
           LEFT JOIN datasets d ON vs.kind = 'dataset' AND d.dataset = vs.source
           LEFT JOIN minings m ON vs.kind = 'mining' AND m.mining = vs.source
           LEFT JOIN runs r ON vs.kind = 'run' AND r.run = vs.source LEFT JOIN datasets rd ON rd.dataset = r.dataset
           LEFT JOIN labelings l ON vs.kind = 'labeling' AND l.labeling = vs.source
           LEFT JOIN teachers t ON t.teacher = l.teacher ORDER BY vs.view, vs.kind, 3"""
    ).fetchall():
        names = (
            "teacher",
            "model",
            "revision",
            "engine",
            "prompt",
            "prompt_hash",
            "strategy",
            "depth",
            "licence",
        )
        grouped.setdefault(view, []).append(
            Source(
                KINDS.get(kind, kind), name or "replaced since", facts(**dict(zip(names, about, strict=True)))
            )
        )
    return grouped


def _results(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """student -> its headline values in words."""
    grouped: dict[str, list[str]] = {}
    for student, dataset, first_stage, measure, value in con.execute(
        """SELECT student, dataset, first_stage, measure, value FROM results
           WHERE student IS NOT NULL AND kind = 'student' AND measure NOT LIKE 'Judged%' AND NOT regexp_matches(measure, '^R[(@]')
           ORDER BY student, dataset, first_stage, evaluation"""
    ).fetchall():
        grouped.setdefault(student, []).append(f"{dataset} over {first_stage}: {measure} {value:.3f}")
    return grouped
