"""Store the grades of an LLM judge. They stand in ``llm_judgments``; no function here touches the qrels."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb

from labelstore.errors import BadInput
from labelstore.judgments.pool import Pool
from labelstore.provenance.record import Job
from labelstore.store import keys
from labelstore.store.label_store import next_id

STEP = "judged pairs"
NO_GRADE = "the reply holds no grade"


@dataclass
class Judged:
    """What a judging holds now: grades by value, new ones, and pairs without a grade by reason."""

    name: str
    grades: dict[int, int] = field(default_factory=dict)
    new: int = 0
    without: dict[str, tuple[int, str | None]] = field(default_factory=dict)


def parameters(pooled: Pool, samples: int = 1) -> dict[str, Any]:
    """Return what a judging records of its pool, and of the calls for each passage if there are several."""
    several = {"samples": samples} if samples > 1 else {}
    return {
        **several,
        "scale": "0-3",
        "depth": pooled.depth,
        "runs": {run.name: run.content_hash for run in pooled.runs},
    }


def check_name(
    con: duckdb.DuckDBPyConnection, name: str, dataset: int, teacher_key: str, samples: int = 1
) -> None:
    """Check that a judging of this name is new, or of the same dataset, judge and number of samples.

    Raises:
        BadInput: it has another dataset or judge, or other samples.
    """
    held = con.execute(
        """SELECT d.name, t.name, t.prompt, coalesce((j.parameters->>'samples')::INTEGER, 1) AS samples,
                  j.dataset = ? AND t.teacher_key = ? AND samples = ?
           FROM judgings j JOIN datasets d USING (dataset) JOIN teachers t USING (teacher) WHERE j.name = ?""",
        [dataset, teacher_key, samples, name],
    ).fetchall()
    if held and not held[0][-1]:
        of, judge, prompt, number, _ = held[0]
        raise BadInput(
            f"there is a judging {name} already: {judge} with {prompt} over {of}"
            + (f", {number} samples" if number > 1 else ""),
            hint="choose another name with --name",
        )


def store_judging(
    con: duckdb.DuckDBPyConnection, job: Job, name: str, dataset: int, teacher: int, found: Mapping[str, Any]
) -> int:
    """Return a judging's key; insert it if its name is new, otherwise add the runs that are pooled now."""
    held = con.execute("SELECT judging, parameters FROM judgings WHERE name = ?", [name]).fetchall()
    if not held:
        key = next_id(con, "judgings", "judging")
        con.execute(
            "INSERT INTO judgings VALUES (?, ?, ?, ?, ?, ?)",
            [key, name, dataset, teacher, keys.canonical_json(dict(found)), job.job],
        )
        return key
    key, before = held[0][0], json.loads(held[0][1])
    both = {
        **found,
        "depth": max(found["depth"], before["depth"]),
        "runs": {**before["runs"], **found["runs"]},
    }
    if both != before:
        con.execute("UPDATE judgings SET parameters = ? WHERE judging = ?", [keys.canonical_json(both), key])
    return int(key)


def store_grades(con: duckdb.DuckDBPyConnection, job: Job, judging: int, name: str) -> Judged:
    """Take the grades of the table ``best`` (query, document, text_hash, call, status, scores) into a judging.

    A pair that has a grade keeps it. A reply without a grade is recorded without one, until a later call gives one.
    """
    done = Judged(name)
    usable = "b.status IN ('ok', 'repaired')"
    con.execute(
        """DELETE FROM llm_judgments USING best b WHERE llm_judgments.judging = ? AND llm_judgments.grade IS NULL
            AND llm_judgments.query = b.query AND llm_judgments.document = b.document""",
        [judging],
    )
    ((done.new,),) = con.execute(
        f"""INSERT INTO llm_judgments
            SELECT ?, b.query, b.document, CASE WHEN {usable} THEN b.scores[1]::SMALLINT END, b.status, b.call, b.text_hash
            FROM best b ANTI JOIN (SELECT query, document FROM llm_judgments WHERE judging = ?) known USING (query, document)
            ORDER BY b.query, b.document""",
        [judging, judging],
    ).fetchall()
    rows = con.execute(
        """SELECT g.grade, g.status, count(*), min(q.query_id || ' ' || d.doc_id) FROM llm_judgments g
           JOIN pool USING (query, document) JOIN queries q USING (query) JOIN documents d USING (document)
           WHERE g.judging = ? GROUP BY ALL ORDER BY ALL""",
        [judging],
    ).fetchall()
    for grade, status, n, example in rows:
        if grade is None:
            done.without[f"{NO_GRADE} ({status})"] = (n, example)
        else:
            done.grades[grade] = done.grades.get(grade, 0) + n
    n_in = sum(done.grades.values()) + sum(n for n, _ in done.without.values())
    job.count(con, STEP, name, n_in, done.without)
    return done
