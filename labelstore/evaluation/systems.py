"""The systems of a dataset: first stages, teachers' labelings and students, with their rankings and the judgments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import bases
from labelstore.evaluation.measures import Qrels, Ranking
from labelstore.store import keys, lookup

KINDS = ("first_stage", "teacher", *bases.KINDS, "student", "fused")  # the order in which they are shown
CEILING_DEPTH = 100  # depth of a first stage's recall, or the run's depth if that is smaller
_KIND_OF_RUN = {"imported": "first_stage"}
_OWN = """SELECT q.query, d.document FROM queries q
          JOIN documents d ON d.collection = q.collection AND d.doc_id = q.query_id"""
_USABLE = ("ok", "repaired")  # permutations of other statuses are not rankings


@dataclass(frozen=True)
class System:
    """Something that ranked a dataset: a run, or a teacher's labeling."""

    name: str
    kind: str  # one of KINDS
    run: int | None
    labeling: int | None
    first_stage: str | None  # the name; of a first stage its own
    source_run: int | None  # runs.run that it re-ranked, if the store has it
    student: str | None
    regime: str | None
    depth: int  # candidates per query that it ordered
    ranking_hash: str

    @property
    def key(self) -> tuple[int | None, int | None]:
        return self.run, self.labeling


def systems(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[System]:
    """List all systems over a dataset: first stages, teachers' labelings, students' and fused runs."""
    return [*_run_systems(con, of), *_labeling_systems(con, of)]


def _run_systems(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[System]:
    found = con.execute(
        """SELECT r.run, r.name, r.kind, r.source_run, src.name, s.name, s.regime, r.content_hash, r.depth,
                  try_cast(json_extract_string(r.parameters, '$.depth') AS INTEGER)
           FROM runs r LEFT JOIN runs src ON src.run = r.source_run LEFT JOIN students s ON s.student = r.student
           WHERE r.dataset = ? ORDER BY r.run""",
        [of.dataset],
    ).fetchall()
    students = [(row[5], row[4]) for row in found if row[2] == "student"]
    of_bases = [(row[2], _alone(row[1], row[4])) for row in found if row[2] in bases.KINDS]
    made = []
    for run, name, kind, source, source_name, student, regime, content_hash, held, asked in found:
        kind = _KIND_OF_RUN.get(kind, kind)
        own_name = name
        if kind == "student" and student and students.count((student, source_name)) == 1:
            own_name = student
        if kind in bases.KINDS and of_bases.count((kind, _alone(name, source_name))) == 1:
            own_name = _alone(name, source_name)
        first_stage = source_name or (name if kind == "first_stage" else None)
        depth = min(held, asked or held) if source else min(held, CEILING_DEPTH)
        made.append(
            System(own_name, kind, run, None, first_stage, source, student, regime, depth, content_hash)
        )
    return made


def _alone(run: str, source: str | None) -> str:
    """Return a base's name without the first stage that its run re-ranks."""
    return run.rpartition(f"@{source}")[0] or run


def _labeling_systems(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[System]:
    found = con.execute(
        """SELECT l.labeling, l.name, coalesce(r.name, l.first_stage), coalesce(r.run, named.run), l.depth
           FROM labelings l LEFT JOIN runs r ON r.run = l.run
           LEFT JOIN runs named ON named.dataset = l.dataset AND named.name = l.first_stage
           WHERE l.dataset = ? ORDER BY l.labeling""",
        [of.dataset],
    ).fetchall()
    hashes: dict[int, list[tuple[str, str]]] = {labeling: [] for labeling, *_ in found}
    for labeling, query_id, content_hash in con.execute(
        """SELECT p.labeling, q.query_id, p.content_hash
           FROM permutations p JOIN labelings l USING (labeling) JOIN queries q USING (query)
           WHERE l.dataset = ? AND p.status IN (SELECT unnest(?::VARCHAR[])) ORDER BY q.query_id, p.content_hash""",
        [of.dataset, list(_USABLE)],
    ).fetchall():
        hashes[labeling].append((query_id, content_hash))
    return [
        System(
            name, "teacher", None, labeling, first_stage, source, None, None, depth,
            keys.rows_key("labeling-ranking", hashes[labeling]),
        )
        for labeling, name, first_stage, source, depth in found
        if hashes[labeling]
    ]  # fmt: skip


HUMAN = "+human"  # after a judging's name: human grades where there are any, the judge's elsewhere


@dataclass(frozen=True)
class Basis:
    """What measures rest on: the human judgments, unless an LLM judge is named.

    Attributes:
        judge: a judging, or ``JUDGING+human``; None: human judgments alone.
        exclude_self: leave out passages that have their query's id.
        protocol: one of `labelstore.evaluation.protocols`.
    """

    judge: str | None = None
    exclude_self: bool = False
    protocol: str = "standard"


def qrels(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, judge: str | None = None) -> Qrels:
    """Read the dataset's judgments, or those of an LLM judge.

    Args:
        judge: as in :class:`Basis`.

    Raises:
        DataMissing: there are no judgments, or no such judging.
        UsageError: the judging is over another dataset.
    """
    return _human(con, of) if judge is None else _by_judge(con, of, judge)


def _by_judge(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, judge: str) -> Qrels:
    name = judge.removesuffix(HUMAN)
    judging = lookup.judging(con, name)
    if judging.dataset != of.dataset:
        raise UsageError(
            f"the judging {name} is not over {of.name}",
            hint=f"msft teachers judge --dataset {of.name} --run RUN judges it",
        )
    rows = con.execute(
        """SELECT g.query, g.document, coalesce(CASE WHEN ? THEN r.relevance END, g.grade) FROM llm_judgments g
           LEFT JOIN qrels r ON r.dataset = ? AND r.query = g.query AND r.document = g.document
           WHERE g.judging = ? AND g.grade IS NOT NULL
           UNION SELECT query, document, relevance FROM qrels WHERE dataset = ? AND ? ORDER BY ALL""",
        [judge.endswith(HUMAN), of.dataset, judging.judging, of.dataset, judge.endswith(HUMAN)],
    ).fetchall()
    if not rows:
        raise DataMissing(
            f"the judging {name} holds no grade",
            hint="run its `msft teachers judge` again with --retry-quarantined",
        )
    judged: dict[int, dict[str, int]] = {}
    for query, document, grade in rows:
        judged.setdefault(query, {})[str(document)] = grade
    return Qrels(judged, keys.rows_key("judge", rows))


def _human(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> Qrels:
    found = con.execute(
        "SELECT query, document, relevance FROM qrels WHERE dataset = ? ORDER BY query", [of.dataset]
    ).fetchall()
    if not found or of.qrels_hash is None:
        raise DataMissing(
            f"{of.name} has no judgments to evaluate against",
            hint=f"add them with msft data add {of.name} --qrels FILE (TREC qrels)",
        )
    judged: dict[int, dict[str, int]] = {}
    for query, document, relevance in found:
        judged.setdefault(query, {})[str(document)] = relevance
    return Qrels(judged, of.qrels_hash)


def ranking(con: duckdb.DuckDBPyConnection, of: System, exclude_self: bool = False) -> Ranking:
    """Read the system's ranking, by query and rank. `exclude_self` leaves out passages with their query's id."""
    values: list[Any]
    if of.run is not None:
        sql, values = "SELECT query, document, rank FROM candidates WHERE run = ?", [of.run]
    else:
        sql = """SELECT p.query, i.document, i.rank FROM permutation_items i JOIN permutations p USING (permutation)
                 WHERE p.labeling = ? AND p.status IN (SELECT unnest(?::VARCHAR[]))"""
        values = [of.labeling, list(_USABLE)]
    if exclude_self:
        sql = f"SELECT * FROM ({sql}) r ANTI JOIN ({_OWN}) o USING (query, document)"
    columns = con.execute(f"{sql} ORDER BY query, rank", values).fetchnumpy()
    return Ranking(*(np.asarray(columns[name]) for name in ("query", "document", "rank")))


def select(
    con: duckdb.DuckDBPyConnection,
    of: lookup.Dataset,
    runs: Sequence[str] | None = None,
    labelings: Sequence[str] | None = None,
    students: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    base_runs: Sequence[int] | None = None,
) -> list[System]:
    """Select the systems that the options name, and the first stages of chosen re-rankings.

    Args:
        base_runs: the runs of students' bases. None: all.

    Raises:
        DataMissing: a name is not found, or no system fits.
    """
    known = systems(con, of)
    for name in runs or ():
        lookup.run(con, of, name)
    for name in students or ():
        lookup.student(con, name)
    for name in labelings or ():
        if lookup.labeling(con, name).dataset != of.dataset:
            raise UsageError(f"labeling {name!r} is not over {of.name}", hint="msft teachers list")
    keys_of_runs = {lookup.run(con, of, name).run for name in runs or ()}

    def fits(system: System) -> bool:
        over = runs is None or system.run in keys_of_runs or system.first_stage in runs
        if system.kind == "teacher" and system.labeling is not None and labelings is not None:
            return system.name in labelings
        if system.student is not None and students is not None:
            return system.student in students and over
        if system.kind in bases.KINDS and base_runs is not None:
            return system.run in base_runs and over
        return over

    chosen = [s for s in known if s.kind in kinds and fits(s)]
    if not chosen:
        raise DataMissing(
            f"nothing has ranked {of.name} yet",
            hint=f"msft retrieve --dataset {of.name} --retriever bm25s --depth 100, or msft runs import",
        )
    return chosen
