"""Parse the replies behind labelings again with the current parser, and find those with a different result.

A labeling depends on the calls that its permutations were merged from. A combined one depends on its parts instead. A generated labeling also depends, for each
quarantined query, on all calls of its teacher for that query. The store is released after every :data:`CHUNK` calls.
"""

import json
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any

import duckdb

from labelstore.store.label_store import LabelStore
from teachers.engines.base import Sampling
from teachers.errors import TeacherError
from teachers.generate.calling.reading import read_text
from teachers.generate.calling.records import engine_reason
from teachers.generate.calling.teacher import Teacher
from teachers.prompts import replies
from teachers.prompts import template as prompts

CHUNK = 20_000

RESTING = """
    resting AS (
        SELECT labeling, query, call FROM labeling_calls
        WHERE labeling NOT IN (SELECT labeling FROM labelings WHERE origin = 'combined')
        UNION ALL
        SELECT z.labeling, z.query, c.call
        FROM (SELECT DISTINCT labeling, query FROM quarantine WHERE query IS NOT NULL) z
        JOIN labelings l ON l.labeling = z.labeling AND l.origin = 'generated'
        JOIN requests r ON r.teacher = l.teacher AND r.query = z.query
        JOIN calls c USING (request))"""


@dataclass(frozen=True)
class Change:
    """A stored reply with a different result now."""

    call: int
    before: str  # stored status
    parsed: replies.Parsed


@dataclass
class Scanned:
    """The result of parsing stored replies again.

    Attributes:
        unknown: prompts that this version does not know; replies to them were not parsed.
    """

    n_read: int = 0
    changes: list[Change] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


def scan(store: LabelStore, labeling: int | None = None) -> Scanned:
    """Parse the replies behind a labeling (or all labelings) again; nothing is written."""
    done = Scanned()
    last = -1
    while True:
        with store.read() as con:
            teachers, unknown = teachers_of_replies(con)
            rows = con.execute(
                f"""WITH {RESTING}
                    SELECT c.call, r.teacher, c.status, c.reply, c.parsed, c.scores, c.finish_reason, r.n_passages
                    FROM calls c JOIN requests r USING (request)
                    WHERE c.call > ? AND c.call IN (SELECT call FROM resting WHERE labeling = coalesce(?, labeling))
                    ORDER BY c.call LIMIT {CHUNK}""",
                [last, labeling],
            ).fetchall()
        if not rows:
            return done
        last = rows[-1][0]
        for call, teacher, status, reply, parsed, scores, finish, n in rows:
            if teacher not in teachers:
                done.unknown.add(unknown[teacher])
                continue
            now = reading(teachers[teacher], status, reply, scores, finish, n)
            if now is None:
                continue
            done.n_read += 1
            if (now.status, identifiers(now)) != (status, parsed):
                done.changes.append(Change(call, status, now))


def reading(
    teacher: Teacher,
    status: str,
    reply: str | None,
    scores: list[float | None] | None,
    finish: str | None,
    n: int,
) -> replies.Parsed | None:
    """Parse a stored reply again; None if there is no reply to parse: an engine error, or scores."""
    if teacher.reading in ("scores", "answers", "labels") or (
        status == replies.ENGINE_ERROR and finish is None
    ):
        return None
    if teacher.reading == "first":
        if scores is None:
            return None
        known = {ascii_uppercase[k]: score for k, score in enumerate(scores) if score is not None}
        return replies.from_logprobs(known, n)[0]
    if reply is None:
        return None
    return read_text(teacher, reply, engine_reason(finish), n)


def identifiers(parsed: replies.Parsed) -> list[int] | None:
    """Return the order in the form of ``calls.parsed``."""
    return None if parsed.order is None else [position + 1 for position in parsed.order]


def teachers_of_replies(con: duckdb.DuckDBPyConnection) -> tuple[dict[int, Teacher], dict[int, str]]:
    """Return the teachers whose replies can be parsed, and the unknown prompts of the others, by surrogate key."""
    found: dict[int, Teacher] = {}
    unknown: dict[int, str] = {}
    for key, teacher_key, engine, prompt, sampling in con.execute(
        "SELECT teacher, teacher_key, engine, prompt, sampling FROM teachers"
    ).fetchall():
        if engine == "imported":  # its prompt is unknown, and its replies name passages by numbers
            found[key] = Teacher(teacher_key, "", prompts.template("listwise"), Sampling())
            continue
        if engine == "combined":  # it was never asked
            continue
        drawn: dict[str, Any] = json.loads(sampling or "{}")
        for beside in ("examples", "batch"):  # part of the teacher's key, and not of its sampling
            drawn.pop(beside, None)
        how = str(
            drawn.pop("reading", "text" if prompt is not None else "scores")
        )  # without a prompt the teacher scores pairs
        teacher = Teacher(teacher_key, "", None, Sampling(**drawn), reading=how)
        if how != "scores":
            try:
                teacher = replace(teacher, template=prompts.template(prompt))
            except TeacherError:
                unknown[key] = prompt
                continue
        found[key] = teacher
    return found, unknown


@dataclass(frozen=True)
class ChangedReading:
    """A labeling with stored replies that have a different result now."""

    labeling: str
    n_replies: int
    n_queries: int


def changed_readings(store: LabelStore) -> tuple[list[ChangedReading], set[str]]:
    """Return labelings with replies that have a different result now, and the prompts that could not be checked."""
    scanned = scan(store)
    if not scanned.changes:
        return [], scanned.unknown
    with store.read() as con:
        found = con.execute(
            f"""WITH {RESTING}
                SELECT l.name, count(DISTINCT call), count(DISTINCT query)
                FROM resting JOIN labelings l USING (labeling) WHERE call IN (SELECT unnest(?))
                GROUP BY l.name ORDER BY l.name""",
            [[change.call for change in scanned.changes]],
        ).fetchall()
    return [ChangedReading(*row) for row in found], scanned.unknown


def affected(con: duckdb.DuckDBPyConnection, changes: list[Change]) -> dict[str, list[int]]:
    """Return, by labeling, the queries that depend on changed replies."""
    found: dict[str, list[int]] = {}
    for name, query in con.execute(
        f"""WITH {RESTING}
            SELECT DISTINCT l.name, query FROM resting JOIN labelings l USING (labeling)
            WHERE call IN (SELECT unnest(?)) ORDER BY ALL""",
        [[change.call for change in changes]],
    ).fetchall():
        found.setdefault(name, []).append(query)
    return found
