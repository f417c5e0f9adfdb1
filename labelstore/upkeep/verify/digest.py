"""Compute the verify hash: one hash of a store's content, by text ids and content keys alone.

Two stores with equal content have equal hashes. Surrogate keys, times, jobs, paths, prices, derived values and row order do
not count. Evaluations of rankings or judgments that were replaced are left out, since the next `msft eval` removes them. Also
left out are second names of a view, the training log, and all durations.
"""

import duckdb

from labelstore.evaluation import systems
from labelstore.store import lookup
from labelstore.store.keys import content_key

FORMAT = 1


def content_hash(con: duckdb.DuckDBPyConnection) -> str:
    """Hash the whole content; works on a read-only connection."""
    current_rankings(con)
    parts = {}
    for name, columns, rows in _PARTS:
        row = " || chr(31) || ".join(f"coalesce(({column})::VARCHAR, chr(30))" for column in columns)
        total, n = con.execute(
            f"SELECT coalesce(sum(md5_number_lower({row})), 0), count(*) {rows}"
        ).fetchall()[0]
        if n:
            parts[name] = [f"{int(total):x}", n]
    return content_key("store", {"format": FORMAT, "parts": parts})


def current_rankings(con: duckdb.DuckDBPyConnection) -> None:
    """Make the temporary table current_rankings(dataset, run, labeling, hash), which evaluations may refer to."""
    con.execute(
        "CREATE OR REPLACE TEMP TABLE current_rankings (dataset INTEGER, run INTEGER, labeling INTEGER, hash VARCHAR)"
    )
    for (name,) in con.execute("SELECT name FROM datasets SEMI JOIN evaluations USING (dataset)").fetchall():
        of = lookup.dataset(con, name)
        rows = [(of.dataset, s.run, s.labeling, s.ranking_hash) for s in systems.systems(con, of)]
        if rows:
            con.executemany("INSERT INTO current_rankings VALUES (?, ?, ?, ?)", rows)


CURRENT_EVALUATIONS = """
    FROM evaluations e JOIN datasets d ON d.dataset = e.dataset AND d.qrels_hash = e.qrels_hash
    JOIN current_rankings c ON c.dataset = e.dataset AND c.hash = e.run_hash
         AND c.run IS NOT DISTINCT FROM e.run AND c.labeling IS NOT DISTINCT FROM e.labeling"""

# Sums over a list's rows that depend on each row's place: which text each passage was judged on, or was shown with.
_PINS = """(SELECT permutation, sum(rank::HUGEINT * coalesce(text_hash, 1)) AS pins
            FROM permutation_items GROUP BY permutation)"""
_SHOWN = (
    """(SELECT request, sum(position::HUGEINT * text_hash) AS shown FROM request_passages GROUP BY request)"""
)
_OF_QUERY = "LEFT JOIN queries q USING (query) LEFT JOIN collections c USING (collection)"

_PARTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("collections", ("name", "licence"), "FROM collections"),
    ("documents", ("c.name", "d.doc_id", "d.text_hash"), "FROM documents d JOIN collections c USING (collection)"),
    (
        "document_versions",
        ("name", "doc_id", "text_hash"),
        """FROM (SELECT DISTINCT c.name, d.doc_id, v.text_hash
                 FROM document_versions v JOIN documents d USING (document) JOIN collections c USING (collection))""",
    ),
    ("queries", ("c.name", "q.query_id", "q.text_hash"), "FROM queries q JOIN collections c USING (collection)"),
    (
        "datasets",
        ("d.name", "c.name", "d.role", "d.ir_datasets_id", "d.qrels_hash"),
        "FROM datasets d JOIN collections c USING (collection)",
    ),
    (
        "dataset_queries",
        ("d.name", "q.query_id"),
        "FROM dataset_queries JOIN datasets d USING (dataset) JOIN queries q USING (query)",
    ),
    (
        "runs",
        ("d.name", "r.name", "r.kind", "s.name", "t.name", "r.content_hash"),
        """FROM runs r JOIN datasets d USING (dataset) LEFT JOIN runs s ON s.run = r.source_run
           LEFT JOIN students t ON t.student = r.student""",
    ),
    (
        "minings",
        ("m.name", "d.name", "m.seed", "m.content_hash"),
        "FROM minings m JOIN datasets d USING (dataset)",
    ),
    ("teachers", ("teacher_key",), "FROM teachers"),
    (
        "labelings",
        ("l.name", "t.teacher_key", "d.name", "r.name", "l.strategy", "l.depth"),
        """FROM labelings l JOIN teachers t USING (teacher) JOIN datasets d ON d.dataset = l.dataset
           LEFT JOIN runs r ON r.run = l.run""",
    ),
    (
        "permutations",
        ("l.name", "q.query_id", "p.status", "p.repairs", "p.content_hash", "i.pins"),
        f"""FROM permutations p JOIN labelings l USING (labeling) JOIN queries q ON q.query = p.query
            LEFT JOIN {_PINS} i USING (permutation)""",
    ),
    (
        "quarantine",
        ("l.name", "q.query_id", "z.step", "z.reason", "z.detail"),
        "FROM quarantine z JOIN labelings l USING (labeling) LEFT JOIN queries q ON q.query = z.query",
    ),
    (
        "requests",
        ("r.request_key", "t.teacher_key", "c.name", "q.query_id", "p.shown"),
        f"FROM requests r JOIN teachers t USING (teacher) {_OF_QUERY} LEFT JOIN {_SHOWN} p USING (request)",
    ),
    (
        "calls",
        ("c.call_key", "r.request_key", "c.status", "c.reply", "c.parsed", "c.tokens_in", "c.tokens_out"),
        "FROM calls c JOIN requests r USING (request)",
    ),
    (
        "labeling_calls",
        ("l.name", "q.query_id", "u.step", "c.call_key"),
        """FROM labeling_calls u JOIN labelings l USING (labeling) JOIN queries q ON q.query = u.query
           JOIN calls c ON c.call = u.call""",
    ),
    (
        "canaries",
        ("t.teacher_key", "p.job_key", "k.request_key", "k.reply_hash"),
        "FROM canaries k JOIN teachers t USING (teacher) JOIN provenance p USING (job)",
    ),
    (
        "query_origins",
        ("d.name", "q.query_id", "p.doc_id", "o.text_hash", "c.call_key", "o.place", "o.log_probability"),
        """FROM query_origins o JOIN datasets d USING (dataset) JOIN queries q USING (query)
           JOIN documents p ON p.document = o.document JOIN calls c USING (call)""",
    ),
    (
        "query_tests",
        ("f.filter_key", "d.name", "f.kind", "f.parameters", "f.active", "q.query_id", "t.passed", "t.value", "t.evidence"),
        """FROM query_filters f JOIN datasets d USING (dataset) LEFT JOIN query_tests t USING (filter)
           LEFT JOIN queries q USING (query)""",
    ),
    (
        "judgings",
        ("j.name", "d.name", "t.teacher_key", "j.parameters", "q.query_id", "p.doc_id", "g.grade", "g.status", "c.call_key"),
        """FROM judgings j JOIN datasets d USING (dataset) JOIN teachers t USING (teacher)
           LEFT JOIN llm_judgments g USING (judging) LEFT JOIN queries q USING (query)
           LEFT JOIN documents p ON p.document = g.document LEFT JOIN calls c ON c.call = g.call""",
    ),
    (
        "checkings",
        ("k.name", "d.name", "t.teacher_key", "u.teacher_key", "k.parameters", "q.query_id", "p.doc_id", "v.stage", "v.verdict",
         "v.flagged", "v.status", "c.call_key"),
        """FROM checkings k JOIN datasets d USING (dataset) JOIN teachers t ON t.teacher = k.teacher
           LEFT JOIN teachers u ON u.teacher = k.strong LEFT JOIN verdicts v USING (checking)
           LEFT JOIN queries q ON q.query = v.query LEFT JOIN documents p ON p.document = v.document
           LEFT JOIN calls c ON c.call = v.call""",
    ),
    ("views", ("kind", "view_hash"), "FROM views"),
    ("students", ("name", "regime", "max_length", "weights_hash"), "FROM students"),
    (
        "stages",
        ("s.name", "g.stage", "g.objective", "g.loss", "g.view_hash", "g.parent_hash", "g.weights_hash", "g.steps"),
        "FROM stages g JOIN students s USING (student)",
    ),
    (
        "calibrations",
        ("s.name", "c.weights_hash", "c.method", "c.dataset", "c.run", "c.depth", "c.n_pairs"),
        "FROM calibrations c JOIN students s USING (student)",
    ),
    (
        "evaluations",
        ("d.name", "r.name", "l.name", "e.run_hash", "e.qrels_hash", "e.measure", "printf('%.6f', e.value)", "e.n_queries"),
        f"""{CURRENT_EVALUATIONS} LEFT JOIN runs r ON r.run = e.run LEFT JOIN labelings l ON l.labeling = e.labeling""",
    ),
)  # fmt: skip
