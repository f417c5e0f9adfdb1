"""Check figures about other rows: counts, depths, means, the chain of a student's weights."""

from collections.abc import Iterator

import duckdb

from labelstore.upkeep.verify.findings import COPY, EXAMPLES, Finding

_MEAN_TOLERANCE = 1e-9

# (what, SQL for rows of name, figure, stored value, computed value), hint
_CHECKS: tuple[tuple[str, str, str], ...] = (
    (
        "negatives",
        """SELECT m.name, unnest(['queries', 'negatives']), unnest([m.n_queries, m.n_negatives]),
                  unnest([coalesce(n.queries, 0), coalesce(n.negatives, 0)])
           FROM minings m LEFT JOIN (SELECT mining, count(DISTINCT query) AS queries, count(*) AS negatives
                                     FROM negatives GROUP BY mining) n USING (mining)""",
        "`msft negatives mine --replace` with the same options mines again",
    ),
    (
        "documents",
        """SELECT c.name || ' ' || d.doc_id, 'version', d.version,
                  CASE WHEN d.text IS NULL THEN 0 ELSE 1 + coalesce(v.n, 0) END
           FROM documents d JOIN collections c USING (collection)
           LEFT JOIN (SELECT document, count(*) AS n FROM document_versions GROUP BY document) v USING (document)
           WHERE d.version <> CASE WHEN d.text IS NULL THEN 0 ELSE 1 + coalesce(v.n, 0) END""",
        COPY,
    ),
    (
        "requests",
        """SELECT t.name || ' ' || r.request_key, 'passages', r.n_passages, coalesce(p.n, 0)
           FROM requests r JOIN teachers t USING (teacher)
           LEFT JOIN (SELECT request, count(*) AS n FROM request_passages GROUP BY request) p USING (request)
           WHERE r.n_passages <> coalesce(p.n, 0)""",
        COPY,
    ),
    (
        "labels",
        """SELECT l.name || ' ' || q.query_id, 'calls', p.n_calls, coalesce(c.n, 0)
           FROM permutations p JOIN labelings l USING (labeling) JOIN queries q USING (query)
           LEFT JOIN (SELECT labeling, query, count(*) AS n FROM labeling_calls GROUP BY ALL) c
                  ON c.labeling = p.labeling AND c.query = p.query
           WHERE l.origin = 'generated' AND p.n_calls <> coalesce(c.n, 0)""",
        COPY,
    ),
    (
        "labels",
        """SELECT l.name, 'depth', l.depth, max(i.rank)
           FROM labelings l JOIN permutations p USING (labeling) JOIN permutation_items i USING (permutation)
           GROUP BY l.name, l.depth HAVING max(i.rank) > l.depth""",
        COPY,
    ),
    (
        "judging",
        """SELECT concat_ws(' ', j.name, q.query_id, d.doc_id), 'grade', g.grade, c.scores[1]
           FROM llm_judgments g JOIN judgings j USING (judging) JOIN queries q ON q.query = g.query
           JOIN documents d ON d.document = g.document JOIN calls c ON c.call = g.call""",
        COPY,
    ),
    (
        "verdicts",
        """SELECT concat_ws(' ', k.name, q.query_id, d.doc_id), 'verdict', v.verdict,
                  CASE c.scores[p.position] WHEN 2 THEN 'better' WHEN 1 THEN 'worse' WHEN 0 THEN 'irrelevant' END
           FROM verdicts v JOIN checkings k USING (checking) JOIN queries q ON q.query = v.query
           JOIN documents d ON d.document = v.document JOIN calls c ON c.call = v.call
           JOIN request_passages p ON p.request = c.request AND p.document = v.document""",
        COPY,
    ),
    (
        "query filter",
        """SELECT d.name || ' ' || f.kind, unnest(['queries', 'kept']), unnest([f.n_in, f.n_kept]),
                  unnest([coalesce(t.n, 0), coalesce(t.kept, 0)])
           FROM query_filters f JOIN datasets d USING (dataset)
           LEFT JOIN (SELECT filter, count(*) AS n, count(*) FILTER (passed) AS kept FROM query_tests GROUP BY filter) t
                  USING (filter)""",
        COPY,
    ),
    (
        "evaluation",
        """SELECT concat_ws(' ', d.name, coalesce(r.name, l.name), e.measure), 'queries', e.n_queries, coalesce(s.n, 0)
           FROM evaluations e JOIN datasets d USING (dataset) LEFT JOIN runs r ON r.run = e.run
           LEFT JOIN labelings l ON l.labeling = e.labeling
           LEFT JOIN (SELECT evaluation, count(*) AS n FROM query_scores GROUP BY evaluation) s USING (evaluation)""",
        'msft sql --write "DELETE FROM evaluations", then `msft eval` measures again',
    ),
    (
        "evaluation",
        f"""SELECT concat_ws(' ', d.name, coalesce(r.name, l.name), e.measure), 'value', e.value, s.value
            FROM evaluations e JOIN datasets d USING (dataset) LEFT JOIN runs r ON r.run = e.run
            LEFT JOIN labelings l ON l.labeling = e.labeling
            JOIN (SELECT evaluation, avg(value) AS value FROM query_scores GROUP BY evaluation) s USING (evaluation)
            WHERE NOT abs(e.value - s.value) <= {_MEAN_TOLERANCE}""",
        'msft sql --write "DELETE FROM evaluations", then `msft eval` measures again',
    ),
    (
        "filter",
        """SELECT concat_ws(' ', p.kind, 'job', p.job, f.step, f.subject), 'rows in', f.n_in,
                  f.n_kept + coalesce(d.n, 0)
           FROM filters f JOIN provenance p USING (job)
           LEFT JOIN (SELECT job, step, subject, sum(n)::BIGINT AS n FROM drops GROUP BY ALL) d
                  ON d.job = f.job AND d.step = f.step AND d.subject = f.subject""",
        COPY,
    ),
    (
        "student",
        """SELECT s.name || ' stage ' || g.stage, 'weights at its start', g.parent_hash, before.weights_hash
           FROM stages g JOIN students s USING (student)
           JOIN stages before ON before.student = g.student AND before.stage = g.stage - 1""",
        COPY,
    ),
    (
        "student",
        """SELECT s.name || ' stage ' || g.stage, 'view', g.view_hash, v.view_hash
           FROM stages g JOIN students s USING (student) JOIN views v ON v.view = g.view""",
        COPY,
    ),
)


def counts(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Find rows with wrong figures: the first few by name, the rest as a number."""
    for what, sql, hint in _CHECKS:
        found = con.execute(
            f"""SELECT *, count(*) OVER () FROM ({sql}) t(name, figure, said, found)
                WHERE said IS DISTINCT FROM found ORDER BY ALL LIMIT {EXAMPLES}"""
        ).fetchall()
        for name, figure, said, counted, _ in found:
            yield Finding(what, name, f"its row says {figure} {said}, its parts say {counted}", hint)
        if found and found[0][-1] > len(found):
            total = found[0][-1]
            problem = f"{total:,} rows in all say another {found[0][1]} than their parts"
            yield Finding(what, f"{total - len(found):,} more", problem, hint)


def texts_pinned(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Find labels and requests that are pinned to a text that the passage never had."""
    for table, label in (
        ("permutation_items", "JOIN permutations p USING (permutation) JOIN labelings o USING (labeling)"),
        ("request_passages", "JOIN requests r USING (request) JOIN teachers o USING (teacher)"),
    ):
        for owner, n, doc_id in con.execute(
            f"""SELECT o.name, count(*), min(d.doc_id) FROM {table} t
                JOIN documents d ON d.document = t.document AND d.text_hash IS NOT NULL {label}
                ANTI JOIN document_versions v ON v.document = t.document AND v.text_hash = t.text_hash
                WHERE t.text_hash IS DISTINCT FROM d.text_hash AND t.text_hash IS NOT NULL AND t.text_hash <> 0
                GROUP BY o.name ORDER BY o.name"""
        ).fetchall():
            yield Finding(
                "labels" if table == "permutation_items" else "requests",
                owner,
                f"{n:,} passages were judged on a text that the store has never held (e.g. {doc_id})",
                "`msft data add --update` with that text first, then with today's; or " + COPY,
            )
