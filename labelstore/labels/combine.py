"""Combine labelings of one run into a new labeling (`msft teachers combine`).

| `by` | a passage's score, higher is better |
|---|---|
| borda | the share of the query's other passages that it beats, by the mean of its ranks |
| median | the same by the median of its ranks |
| rrf | the sum of 1 / (60 + rank) (reciprocal rank fusion) |
| mean-score | the mean of the parts' scores, each scaled to 0..1 within the query |
| cascade | the second part's order of what it ranks, before the first part's order of the rest |

Ranks count from 1, and tied passages share their mean rank. A passage that a part does not rank stands there behind all that
the part ranks, tied with the others (rrf and mean-score: it gets 0 from that part). Equal scores are ties; they keep the first
stage's order. Queries that a part lacks are left out and counted.

The calls of a combined labeling are the calls of its parts, so its cost is theirs; a call that two parts share counts once.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import duckdb
import pyarrow as pa

from labelstore.errors import UsageError
from labelstore.labels import write as labels
from labelstore.provenance import record as provenance
from labelstore.store import keys, lookup
from labelstore.store.job_lock import labeling_alone
from labelstore.store.label_store import LabelStore
from msft.rankings import kendall_tau

Note = Callable[[str], None]

ORIGIN = "combined"  # labelings.origin and strategy, and the teacher's engine
METHODS = ("borda", "rrf", "mean-score", "median")
CASCADE = "cascade"  # of a labeling, and of one that orders the heads of its lists

_BEATEN = "CASE WHEN n > 1 THEN (n - {0}) / (n - 1) ELSE 1.0 END"
_STRENGTH = {
    "borda": _BEATEN.format("avg(place)"),
    "median": _BEATEN.format("median(place)"),
    "rrf": "sum(CASE WHEN ranked THEN 1 / (60 + place) ELSE 0 END)",
    "mean-score": "avg(CASE WHEN ranked THEN scaled ELSE 0 END)",
    CASCADE: "max(CASE WHEN part = 0 THEN n - place WHEN ranked THEN 2 * n - place ELSE 0 END)",
}


@dataclass(frozen=True)
class Combined:
    """A combined labeling after :func:`combine`."""

    name: str
    by: str
    parts: tuple[str, ...]
    lists: int
    left_out: int  # queries that a part lacks
    stored: labels.Stored
    disagreement: float | None  # mean over the lists of 1 - mean Kendall tau of the parts


@dataclass(frozen=True)
class _Made:
    """What the parts say, read while the store is open for reading."""

    parts: list[lookup.Labeling]
    lists: pa.Table
    items: pa.Table
    calls: pa.Table
    n_queries: int
    lacking: dict[str, tuple[int, str | None]]  # reason -> (queries, an example)
    licence: str | None
    depth: int
    origin_hash: str


def combine(
    store: LabelStore, names: Sequence[str], *, by: str, name: str | None = None, note: Note | None = None
) -> Combined:
    """Combine labelings; the same command again makes the labeling anew from what its parts hold now.

    Args:
        by: one of `METHODS`, or `CASCADE`.
        name: the new labeling's name; by default BY@FIRST_STAGE.

    Raises:
        DataMissing: a labeling is not found.
        UsageError: the labelings cannot be combined, or the name belongs to another labeling.
    """
    if by not in (*METHODS, CASCADE):
        raise UsageError(f"no way to combine labels named {by!r}", hint=f"--by {' | '.join(METHODS)}")
    clock = provenance.Clock()
    with store.read() as con:
        parts = _parts(con, names)
        name = name or f"{by}@{_first_stage(con, parts[0])}"
        if name in names:
            raise UsageError(f"{name} is one of its own parts", hint="choose another name with --name")
    with labeling_alone(store, name):
        with store.read() as con:
            _check_name(con, name, by, parts)
            made = _make(con, parts, by)
        say = note or (lambda message: None)
        for reason, (n, example) in made.lacking.items():
            say(f"{n:,} of {made.n_queries:,} queries left out: {reason}, e.g. {example}")
        if not made.lists.num_rows:
            raise UsageError(
                "the labelings share no query, so nothing can be combined",
                hint="see their queries with `msft teachers list` and `msft teachers show LABELS`",
            )
        with store.write() as con, provenance.recorded_in(con, "teachers.combine", clock) as job:
            stored = _store(con, job, name, by, made)
    known = [value for value in made.lists["disagreement"].to_pylist() if value is not None]
    return Combined(
        name,
        by,
        tuple(part.name for part in parts),
        made.lists.num_rows,
        sum(n for n, _ in made.lacking.values()),
        stored,
        sum(known) / len(known) if known else None,
    )


# ------------------------------------------------------------------------------------------------------------ checks
def _parts(con: duckdb.DuckDBPyConnection, names: Sequence[str]) -> list[lookup.Labeling]:
    parts = [lookup.labeling(con, name) for name in names]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        twice = next((name for name in names if list(names).count(name) > 1), None)
        raise UsageError(
            f"{twice} is named twice" if twice else f"{len(names)} labelings: at least two are combined",
            hint="name each part once; `msft teachers list` names the labelings",
        )
    first = parts[0]
    if other := next((part for part in parts if part.dataset != first.dataset), None):
        raise UsageError(
            f"{first.name} and {other.name} are over different datasets",
            hint="combine labelings of one dataset and one run; `msft teachers list` shows both",
        )
    stages = {part.name: _first_stage(con, part) for part in parts}
    if unknown := next((part for part, stage in stages.items() if stage is None), None):
        raise UsageError(
            f"it is not known which run {unknown} orders",
            hint="import it again with --run RUN or --first-stage NAME, and another --name",
        )
    if other_name := next((part for part, stage in stages.items() if stage != stages[first.name]), None):
        same = [part for part, stage in stages.items() if stage == stages[first.name]]
        raise UsageError(
            f"{first.name} orders the run {stages[first.name]}, and {other_name} the run {stages[other_name]}:"
            " only labelings of one run can be combined",
            hint=f"leave {other_name} out"
            if len(same) > 1
            else f"label {stages[first.name]} with that teacher: msft teachers generate --run {stages[first.name]}",
        )
    return parts


def _first_stage(con: duckdb.DuckDBPyConnection, of: lookup.Labeling) -> str | None:
    """Name the run that a labeling orders; the store may not hold the run."""
    return lookup.run_by_id(con, of.run).name if of.run is not None else of.first_stage


def _check_name(con: duckdb.DuckDBPyConnection, name: str, by: str, parts: Sequence[lookup.Labeling]) -> None:
    found = con.execute("SELECT origin, parameters FROM labelings WHERE name = ?", [name]).fetchall()
    if found and (found[0][0] != ORIGIN or json.loads(found[0][1]) != _parameters(by, parts)):
        raise UsageError(
            f"there is a labeling {name!r} already, made in another way",
            hint="choose another name with --name",
        )


def _parameters(by: str, parts: Sequence[lookup.Labeling]) -> dict[str, Any]:
    return {"by": by, "parts": [part.name for part in parts]}


# ---------------------------------------------------------------------------------------------------------- combining
def _make(con: duckdb.DuckDBPyConnection, parts: list[lookup.Labeling], by: str) -> _Made:
    con.execute("CREATE OR REPLACE TEMP TABLE parts (part INTEGER, labeling INTEGER, name VARCHAR)")
    rows = [(k, part.labeling, part.name) for k, part in enumerate(parts)]
    con.executemany("INSERT INTO parts VALUES (?, ?, ?)", rows)
    con.execute(
        """CREATE OR REPLACE TEMP TABLE part_lists AS
           SELECT s.part, s.name, p.* FROM permutations p JOIN parts s USING (labeling)
           WHERE p.status IN ('ok', 'repaired')"""
    )
    n_queries, lacking = _lacking(con)
    con.execute(
        """DELETE FROM part_lists WHERE query NOT IN (
               SELECT query FROM part_lists GROUP BY query HAVING count(*) = (SELECT count(*) FROM parts))"""
    )
    con.execute(
        """CREATE OR REPLACE TEMP TABLE part_items AS
           SELECT l.part, l.name, l.query, i.document, i.initial_rank, i.score, i.text_hash,
                  rank() OVER (PARTITION BY l.part, l.query ORDER BY i.grade DESC)
                  + (count(*) OVER (PARTITION BY l.part, l.query, i.grade) - 1) / 2 AS place
           FROM part_lists l JOIN permutation_items i USING (permutation)"""
    )
    _check_texts(con)
    if by == "mean-score":
        _check_scores(con)
    con.execute(_PLACES)
    con.execute(_CALLS)
    (depth,) = con.execute("SELECT coalesce(max(n), 0) FROM part_places").fetchall()[0]
    return _Made(
        parts=parts,
        lists=_lists(con),
        items=con.sql(_ITEMS.format(_STRENGTH[by])).to_arrow_table(),
        calls=con.sql(
            """SELECT q.query_id, (row_number() OVER (PARTITION BY u.query ORDER BY u.part, u.step) - 1)::INTEGER AS step,
                      c.call_key FROM part_calls u JOIN calls c USING (call) JOIN queries q ON q.query = u.query"""
        ).to_arrow_table(),
        n_queries=n_queries,
        lacking=lacking,
        licence=_licence(con),
        depth=int(depth),
        origin_hash=_origin_hash(con),
    )


# Every passage that a part ranks, in each part: its place, and whether the part ranks it.
_PLACES = """
CREATE OR REPLACE TEMP TABLE part_places AS
WITH known AS (
    SELECT query, document, count(*) OVER (PARTITION BY query) AS n
    FROM (SELECT DISTINCT query, document FROM part_items)
), lengths AS (
    SELECT part, query, count(*) AS length, min(score) AS low, max(score) AS high FROM part_items GROUP BY ALL
)
SELECT l.part, k.query, k.document, k.n, i.place IS NOT NULL AS ranked,
       coalesce(i.place, (l.length + 1 + k.n) / 2) AS place,
       CASE WHEN l.high > l.low THEN (i.score::DOUBLE - l.low) / (l.high::DOUBLE - l.low) ELSE 0.5 END AS scaled
FROM known k JOIN lengths l USING (query)
LEFT JOIN part_items i ON i.part = l.part AND i.query = k.query AND i.document = k.document"""

# The calls that the parts were made from, each once.
_CALLS = """
CREATE OR REPLACE TEMP TABLE part_calls AS
SELECT c.query, c.call, min(p.part) AS part, min_by(c.step, p.part) AS step
FROM labeling_calls c JOIN parts p USING (labeling) SEMI JOIN part_lists l ON l.query = c.query
GROUP BY c.query, c.call"""

_ITEMS = """
WITH scored AS (
    SELECT query, document, n, round({}, 9)::FLOAT AS score FROM part_places GROUP BY query, document, n
), pinned AS (
    SELECT query, document, min_by(initial_rank, part) AS initial_rank, max(text_hash) AS text_hash
    FROM part_items GROUP BY ALL
)
SELECT q.query_id, (row_number() OVER best)::USMALLINT AS rank, d.doc_id, p.initial_rank,
       (s.n + 1 - rank() OVER (PARTITION BY s.query ORDER BY s.score DESC))::USMALLINT AS grade, s.score, p.text_hash
FROM scored s JOIN pinned p USING (query, document) JOIN queries q USING (query) JOIN documents d USING (document)
WINDOW best AS (PARTITION BY s.query ORDER BY s.score DESC, p.initial_rank NULLS LAST, d.doc_id)"""

# A list's counts: calls that the store holds count once, those of parts whose calls it does not hold are added.
_LISTS = """
WITH held AS (
    SELECT u.query, count(*) AS n, sum(c.tokens_in) AS tokens_in, sum(c.tokens_out) AS tokens_out
    FROM part_calls u JOIN calls c USING (call) GROUP BY u.query
), own AS (
    SELECT DISTINCT p.part, c.query FROM labeling_calls c JOIN parts p USING (labeling)
), others AS (
    SELECT query, sum(n_calls) AS n, sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out
    FROM part_lists ANTI JOIN own USING (part, query) GROUP BY query
)
SELECT l.query, q.query_id, max(l.status) AS status, sum(l.repairs)::INTEGER AS repairs,
       (coalesce(any_value(h.n), 0) + coalesce(any_value(o.n), 0))::INTEGER AS n_calls,
       (coalesce(any_value(h.tokens_in), 0) + coalesce(any_value(o.tokens_in), 0))::BIGINT AS tokens_in,
       (coalesce(any_value(h.tokens_out), 0) + coalesce(any_value(o.tokens_out), 0))::BIGINT AS tokens_out,
       min(l.settled)::INTEGER AS settled
FROM part_lists l JOIN queries q USING (query) LEFT JOIN held h USING (query) LEFT JOIN others o USING (query)
GROUP BY l.query, q.query_id ORDER BY l.query"""


def _lacking(con: duckdb.DuckDBPyConnection) -> tuple[int, dict[str, tuple[int, str | None]]]:
    """Count the queries of all parts, and those that a part lacks, by that part."""
    (n_queries,) = con.execute("SELECT count(DISTINCT query) FROM part_lists").fetchall()[0]
    found = con.execute(
        """SELECT 'not ranked by ' || name, count(*), min(query_id) FROM (
               SELECT a.query, min_by(p.name, p.part) AS name
               FROM (SELECT DISTINCT query FROM part_lists) a CROSS JOIN parts p
               ANTI JOIN part_lists l ON l.query = a.query AND l.part = p.part GROUP BY a.query)
           JOIN queries USING (query) GROUP BY name ORDER BY name"""
    ).fetchall()
    return int(n_queries), {reason: (n, example) for reason, n, example in found}


def _check_texts(con: duckdb.DuckDBPyConnection) -> None:
    found = con.execute(
        """SELECT min(name), max(name), min(doc_id), count(*) OVER () FROM part_items JOIN documents d USING (document)
           WHERE part_items.text_hash IS NOT NULL GROUP BY query, document
           HAVING count(DISTINCT part_items.text_hash) > 1 ORDER BY ALL LIMIT 1"""
    ).fetchall()
    if found:
        one, other, doc_id, n = found[0]
        raise UsageError(
            f"{one} and {other} judged {n:,} passages on different texts, e.g. {doc_id!r}",
            hint="label the updated passages again, under another --name",
        )


def _check_scores(con: duckdb.DuckDBPyConnection) -> None:
    found = con.execute(
        """SELECT name, count(*) FILTER (WHERE score IS NULL), count(*) FROM part_items GROUP BY name
           HAVING count(*) FILTER (WHERE score IS NULL) > 0 ORDER BY name LIMIT 1"""
    ).fetchall()
    if found:
        name, n, total = found[0]
        raise UsageError(
            f"{name} has no score for {n:,} of {total:,} passages, and --by mean-score needs all of them",
            hint="--by borda, rrf or median need ranks alone",
        )


def _lists(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Return the combined lists' counts, with how much the parts disagree on each list."""
    lists = con.sql(_LISTS).to_arrow_table()
    con.execute(
        "SELECT query, list(place ORDER BY document) FROM part_places GROUP BY query, part ORDER BY query, part"
    )
    places: dict[int, list[list[float]]] = {}
    while block := con.fetchmany(1000):
        for query, ranks in block:
            places.setdefault(query, []).append(ranks)
    disagreement = [_disagreement(places[query]) for query in lists["query"].to_pylist()]
    return lists.append_column("disagreement", pa.array(disagreement, pa.float32())).drop_columns(["query"])


def _disagreement(places: Sequence[Sequence[float]]) -> float | None:
    """Return 1 - the mean Kendall tau of the parts' orders; None for a single passage."""
    if len(places[0]) < 2:
        return None
    taus = [kendall_tau(one, other) for one, other in combinations(places, 2)]
    return 1 - sum(taus) / len(taus)


def _licence(con: duckdb.DuckDBPyConnection) -> str | None:
    found = con.execute(
        """SELECT DISTINCT coalesce(l.licence, t.licence) AS terms FROM labelings l JOIN teachers t USING (teacher)
           JOIN parts USING (labeling) WHERE terms IS NOT NULL ORDER BY terms"""
    ).fetchall()
    return "; ".join(terms for (terms,) in found) or None


def _origin_hash(con: duckdb.DuckDBPyConnection) -> str:
    """Hash what the parts hold, independent of surrogate keys."""
    found = con.execute(
        """SELECT p.part, p.name, md5(string_agg(l.content_hash, ',' ORDER BY q.query_id))
           FROM parts p LEFT JOIN part_lists l ON l.part = p.part LEFT JOIN queries q ON q.query = l.query
           GROUP BY p.part, p.name ORDER BY p.part"""
    ).fetchall()
    return keys.rows_key("combined-parts", found)


# ------------------------------------------------------------------------------------------------------------ storing
def _store(
    con: duckdb.DuckDBPyConnection, job: provenance.Job, name: str, by: str, made: _Made
) -> labels.Stored:
    first = made.parts[0]
    depths = [part.reliable_depth for part in made.parts]
    labeling = labels.store_labeling(
        con,
        job,
        labels.NewLabeling(
            name=name,
            teacher=_store_teacher(con, by, made),
            dataset=first.dataset,
            strategy=ORIGIN,
            depth=made.depth,
            origin=ORIGIN,
            run=next((part.run for part in made.parts if part.run is not None), None),
            first_stage=_first_stage(con, first),
            parameters=_parameters(by, made.parts),
            reliable_depth=min((depth for depth in depths if depth is not None), default=None),
            licence=made.licence,
            origin_hash=made.origin_hash,
        ),
    )
    con.execute("UPDATE labelings SET origin_hash = ? WHERE labeling = ?", [made.origin_hash, labeling])
    for table in ("lists", "items", "calls"):
        con.register(f"combined_{table}", getattr(made, table))
    gone = con.execute(
        """SELECT p.query FROM permutations p JOIN queries q USING (query)
           WHERE p.labeling = ? AND q.query_id NOT IN (SELECT query_id FROM combined_lists)""",
        [labeling],
    ).fetchall()
    labels.withdraw(con, labeling, [query for (query,) in gone])
    stored = labels.store_permutations(con, labeling, "combined_lists", "combined_items", replace=True)
    labels.store_labeling_calls(con, labeling, "combined_calls")
    for table in ("lists", "items", "calls"):
        con.unregister(f"combined_{table}")
    job.count(con, "combined lists", name, made.n_queries, made.lacking)
    return stored


def _store_teacher(con: duckdb.DuckDBPyConnection, by: str, made: _Made) -> int:
    """Store a teacher that stands for the parts' teachers together."""
    of = "SELECT teacher_key FROM teachers WHERE teacher = ?"
    found = [con.execute(of, [part.teacher]).fetchall()[0][0] for part in made.parts]
    return labels.store_teacher(
        con,
        labels.Teacher(
            name=f"{by} of {len(made.parts)}",
            engine=ORIGIN,
            sampling={"by": by, "teachers": found},
            licence=made.licence,
        ),
    )
