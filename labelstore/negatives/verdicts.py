"""Verdicts of an LLM on mined negatives: what is asked, and what its calls say.

Each call shows a query's best positive and some of its negatives, and says which of these are as good, which are relevant, and
which are neither. With a strong model, it is asked about those alone that the first model flagged. The verdicts are read off the
calls, so they can be made again from the store at any time.
"""

from dataclasses import dataclass, field
from typing import Any

import duckdb

from labelstore.errors import BadInput, DataMissing
from labelstore.provenance.record import Job
from labelstore.store import keys, lookup
from labelstore.store.label_store import next_id
from labelstore.store.rows import fetch
from labelstore.store.sql_steps import Filter, filter_of_pairs

FIRST, STRONG = 1, 2  # stages
FLAGS = {
    "better": 2,
    "relevant": 1,
}  # --flags -> the lowest verdict that is a flag, as it stands in a call's scores
NO_VERDICT = "the reply holds no verdict"

# The pairs of the calls in `best`: all but the first passage of each, which is the positive.
_PAIRS = """(SELECT query, call, status, documents[i] AS document, hashes[i] AS text_hash,
                    CASE WHEN status IN ('ok', 'repaired') THEN scores[i] END AS score
             FROM (SELECT *, unnest(range(2, len(documents) + 1)) AS i FROM best))"""


@dataclass
class Counts:
    """What a stage's verdicts are: passages by verdict, and those without one by reason."""

    queries: int = 0
    passages: int = 0
    better: int = 0
    worse: int = 0
    irrelevant: int = 0
    flagged: int = 0
    unreadable: int = 0
    without: dict[str, tuple[int, str | None]] = field(default_factory=dict)


def ask_all(con: duckdb.DuckDBPyConnection, mining: lookup.Mining, window: int) -> Filter:
    """Make the tables ``to_check`` and ``asked`` of a mining's negatives: `window` beside the positive in a call.

    Raises:
        DataMissing: no negative can be shown beside a positive.
    """
    con.execute(
        """CREATE OR REPLACE TEMP TABLE positive AS
           SELECT DISTINCT ON (r.query) r.query, r.document FROM (
               SELECT query, document, relevance FROM qrels WHERE dataset = ? AND relevance >= ?
               UNION ALL SELECT query, document, 0 FROM query_origins WHERE dataset = ?) r
           JOIN documents d ON d.document = r.document AND trim(d.text) <> ''
           ORDER BY r.query, r.relevance DESC, d.doc_id""",
        [mining.dataset, mining.parameters.get("min_relevance", 1), mining.dataset],
    )
    con.execute(
        """CREATE OR REPLACE TEMP TABLE mined_pairs AS
           SELECT n.query, n.document, p.document AS positive, n.source_rank, d.doc_id,
                  CASE WHEN m.query IS NULL THEN 'its query is not in the dataset any more'
                       WHEN n.label = 1 THEN 'a positive'
                       WHEN p.document IS NULL THEN 'its query has no positive with a text'
                       WHEN d.text IS NULL OR trim(d.text) = '' THEN 'no text in the store' END AS reason
           FROM negatives n JOIN documents d USING (document) LEFT JOIN positive p ON p.query = n.query
           LEFT JOIN dataset_queries m ON m.dataset = ? AND m.query = n.query WHERE n.mining = ?""",
        [mining.dataset, mining.mining],
    )
    con.execute(
        """CREATE OR REPLACE TEMP TABLE to_check AS
           SELECT query, positive, document,
                  row_number() OVER (PARTITION BY query ORDER BY source_rank, doc_id) - 1 AS place
           FROM mined_pairs WHERE reason IS NULL"""
    )
    _ask(con, window)
    count = filter_of_pairs(con, "negatives to check", "mined_pairs")
    if not count.kept:
        why = count.why() or "it is empty"
        raise DataMissing(
            f"{mining.name}: no negative can be checked ({why})",
            hint="add texts or judgments with msft data add --update",
        )
    return count


def ask_flagged(con: duckdb.DuckDBPyConnection, least: int, window: int, *, unknown: bool = False) -> None:
    """Make the tables ``to_check`` and ``asked`` of what the calls in ``best`` flag.

    Args:
        unknown: take pairs without a verdict as well: the most that can be flagged.
    """
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE to_check AS
            SELECT t.query, t.positive, t.document,
                   row_number() OVER (PARTITION BY t.query ORDER BY t.place) - 1 AS place
            FROM to_check t LEFT JOIN {_PAIRS} p USING (query, document)
            WHERE p.score >= ? OR ? AND p.score IS NULL""",
        [least, unknown],
    )
    _ask(con, window)


def _ask(con: duckdb.DuckDBPyConnection, window: int) -> None:
    con.execute(
        """CREATE OR REPLACE TEMP TABLE asked AS
           SELECT query, list_prepend(positive, list(document ORDER BY place)) AS documents
           FROM to_check GROUP BY query, positive, place // ?""",
        [window],
    )


def check_name(
    con: duckdb.DuckDBPyConnection,
    name: str,
    mining: lookup.Mining,
    teachers: tuple[str, str | None],
    parameters: str,
) -> None:
    """Check that verdicts of this name are new, or of the same negatives and models.

    Raises:
        BadInput: they are of others.
    """
    held = con.execute(
        """SELECT k.dataset, t.teacher_key, s.teacher_key, k.parameters::VARCHAR, k.parameters->>'negatives', t.name, s.name
           FROM checkings k JOIN teachers t USING (teacher) LEFT JOIN teachers s ON s.teacher = k.strong WHERE k.name = ?""",
        [name],
    ).fetchall()
    if held and held[0][:4] != (mining.dataset, *teachers, parameters):
        *_, negatives, teacher, strong = held[0]
        models = teacher + (f", then {strong}" if strong else "")
        raise BadInput(
            f"there are verdicts {name} already: on {negatives} by {models}, with other options or another content",
            hint="choose another name with --name",
        )


def store_checking(
    con: duckdb.DuckDBPyConnection,
    job: Job,
    name: str,
    mining: lookup.Mining,
    teachers: tuple[int, int | None],
    parameters: str,
) -> int:
    """Return the key of verdicts; insert their row if the name is new."""
    held = con.execute("SELECT checking FROM checkings WHERE name = ?", [name]).fetchall()
    if held:
        return int(held[0][0])
    key = next_id(con, "checkings", "checking")
    con.execute(
        "INSERT INTO checkings VALUES (?, ?, ?, ?, ?, ?, ?)",
        [key, name, mining.dataset, *teachers, parameters, job.job],
    )
    return key


def parameters(mining: lookup.Mining, window: int, flags: str) -> str:
    """Return what verdicts record: the negatives with their content hash, and how they were asked about."""
    held = {"negatives": mining.name, "hash": mining.content_hash, "window": window, "flags": flags}
    return keys.canonical_json(held)


def store_verdicts(
    con: duckdb.DuckDBPyConnection, job: Job, checking: int, name: str, stage: int, least: int
) -> Counts:
    """Make a stage's verdicts from the calls in ``best``, and count them."""
    con.execute("DELETE FROM verdicts WHERE checking = ? AND stage = ?", [checking, stage])
    con.execute(
        f"""INSERT INTO verdicts
            SELECT ?, query, document, ?, CASE score WHEN 2 THEN 'better' WHEN 1 THEN 'worse' WHEN 0 THEN 'irrelevant' END,
                   score >= ?, status, call, text_hash FROM {_PAIRS} ORDER BY query, document""",
        [checking, stage, least],
    )
    found = Counts()
    (row,) = con.execute(
        """SELECT count(DISTINCT query), count(*), count(*) FILTER (verdict = 'better'), count(*) FILTER (verdict = 'worse'),
                  count(*) FILTER (verdict = 'irrelevant'), count(*) FILTER (flagged), count(*) FILTER (verdict IS NULL)
           FROM verdicts WHERE checking = ? AND stage = ?""",
        [checking, stage],
    ).fetchall()
    (
        found.queries,
        found.passages,
        found.better,
        found.worse,
        found.irrelevant,
        found.flagged,
        found.unreadable,
    ) = row
    found.without = {
        f"{NO_VERDICT} ({status})": (n, example)
        for status, n, example in con.execute(
            """SELECT v.status, count(*), min(q.query_id || ' ' || d.doc_id) FROM verdicts v JOIN queries q USING (query)
               JOIN documents d USING (document) WHERE v.checking = ? AND v.stage = ? AND v.verdict IS NULL
               GROUP BY ALL ORDER BY ALL""",
            [checking, stage],
        ).fetchall()
    }
    job.count(con, f"verdicts of stage {stage}", name, found.passages, found.without)
    return found


def flagged_queries(con: duckdb.DuckDBPyConnection, name: str) -> dict[int, int]:
    """Count queries by their number of flags."""
    rows = con.execute(
        """SELECT n, count(*) FROM (SELECT count(*) FILTER (flagged) AS n FROM final_verdicts
               WHERE checking = (SELECT checking FROM checkings WHERE name = ?) GROUP BY query) GROUP BY n ORDER BY n""",
        [name],
    ).fetchall()
    return dict(rows)


def listed(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """List the verdicts as flat rows, newest first."""
    return fetch(
        con,
        """SELECT k.name AS verdicts, k.parameters->>'negatives' AS negatives, d.name AS dataset, t.name AS model,
                  s.name AS strong_model, k.parameters->>'flags' AS flags, count(v.document) AS passages,
                  count(*) FILTER (v.flagged) AS flagged,
                  count(*) FILTER (v.document IS NOT NULL AND v.flagged IS NULL) AS without
           FROM checkings k JOIN datasets d USING (dataset) JOIN teachers t USING (teacher)
           LEFT JOIN teachers s ON s.teacher = k.strong LEFT JOIN final_verdicts v USING (checking)
           GROUP BY k.checking, k.name, k.parameters, d.name, t.name, s.name ORDER BY k.checking DESC""",
    )
