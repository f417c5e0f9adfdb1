"""List a store's content in flat rows, for ``msft status``."""

import json
from typing import Any

import duckdb

from labelstore.store.rows import named

Row = dict[str, Any]
COLUMNS = ("what", "name", "of", "size", "detail", "state")


def rows(con: duckdb.DuckDBPyConnection) -> list[Row]:
    """List collections, datasets, runs, negatives, labelings, views, students, evaluations and unfinished jobs, in order."""
    parts = (_corpora, _rankings, _labelings, _training, _jobs)
    return named(COLUMNS, (row for part in parts for row in part(con)))


def _corpora(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return (
        con.execute(
            """SELECT 'collection', c.name, NULL, count(text_hash),
                  CASE WHEN count(*) > count(text_hash) THEN format('{:,} more ids without text', count(*) - count(text_hash)) END,
                  CASE WHEN count(text_hash) = 0 THEN 'texts missing' ELSE 'held' END
           FROM collections c LEFT JOIN documents d USING (collection) GROUP BY c.name ORDER BY c.name"""
        ).fetchall()
        + con.execute(
            """SELECT 'dataset', d.name, c.name, coalesce(q.n, 0), format('{:,} judgments', coalesce(r.n, 0)), d.role
           FROM datasets d JOIN collections c USING (collection)
           LEFT JOIN (SELECT dataset, count(*) AS n FROM dataset_queries GROUP BY dataset) q USING (dataset)
           LEFT JOIN (SELECT dataset, count(*) AS n FROM qrels GROUP BY dataset) r USING (dataset) ORDER BY d.name"""
        ).fetchall()
    )


def _rankings(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return (
        con.execute(
            """SELECT 'run', r.name, d.name, r.n_candidates, format('{:,} queries, depth {:,}', r.n_queries, r.depth), r.kind
           FROM runs r JOIN datasets d USING (dataset) ORDER BY d.name, r.run"""
        ).fetchall()
        + con.execute(
            """SELECT 'negatives', m.name, d.name, m.n_negatives, format('{:,} queries', m.n_queries), m.parameters->>'strategy'
           FROM minings m JOIN datasets d USING (dataset) ORDER BY m.mining"""
        ).fetchall()
    )


def _labelings(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    found = con.execute(
        """SELECT l.name, d.name, coalesce(p.n, 0), p.statuses, coalesce(c.n, 0), coalesce(q.n, 0), r.n_queries, l.origin
           FROM labelings l JOIN datasets d ON d.dataset = l.dataset LEFT JOIN runs r ON r.run = l.run
           LEFT JOIN (SELECT labeling, sum(n)::BIGINT AS n, to_json(map(list(status), list(n))) AS statuses FROM (
                          SELECT labeling, status, count(*) AS n FROM permutations GROUP BY ALL ORDER BY ALL
                      ) GROUP BY labeling) p ON p.labeling = l.labeling
           LEFT JOIN (SELECT labeling, count(*) AS n FROM labeling_calls GROUP BY labeling) c ON c.labeling = l.labeling
           LEFT JOIN (SELECT labeling, count(*) AS n FROM quarantine GROUP BY labeling) q ON q.labeling = l.labeling
           ORDER BY l.labeling"""
    ).fetchall()
    rows = []
    for name, dataset, permutations, statuses, calls, quarantined, n_queries, origin in found:
        detail = ", ".join(f"{n:,} {status}" for status, n in json.loads(statuses or "{}").items())
        detail += f", {calls:,} calls" if calls else ""
        detail += f", {quarantined:,} in quarantine" if quarantined else ""
        state = "combined" if origin == "combined" else "imported"
        if origin == "generated":
            done = permutations + quarantined
            state = (
                "complete" if n_queries is None or done >= n_queries else f"{done:,} of {n_queries:,} queries"
            )
        rows.append(("labels", name, dataset, permutations, detail or None, state))
    return rows


def _training(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return (
        con.execute(
            """SELECT 'view', name, NULL, n_pairs, format('{:,} lists', n_lists), kind FROM views ORDER BY view"""
        ).fetchall()
        + con.execute(
            """SELECT 'student', s.name, s.base, (SELECT sum(pairs)::BIGINT FROM stages g WHERE g.student = s.student),
                      concat(s.architecture, ', ', (SELECT count(*) FROM stages g WHERE g.student = s.student), ' stages'),
                      s.regime
               FROM students s ORDER BY s.student"""
        ).fetchall()
        + con.execute(
            """SELECT 'evaluations', d.name, NULL, count(*), string_agg(DISTINCT e.measure, ', ' ORDER BY e.measure), NULL
               FROM evaluations e JOIN datasets d USING (dataset) GROUP BY d.name ORDER BY d.name"""
        ).fetchall()
    )


def _jobs(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return con.execute(
        """SELECT 'job', kind, NULL, job, left(command, 80),
                  CASE status WHEN 'running' THEN 'running, or ended without a word' ELSE status END
           FROM provenance WHERE status NOT IN ('done') ORDER BY job DESC LIMIT 10"""
    ).fetchall()
