"""Migrate older stores. `schema.sql` is always the newest schema; a migration takes an older file one version further.

The list is append only: a released migration never changes. Each one runs in one transaction with its record, so a
store is at one version or the next, never between. A test migrates a stored file of every released version and compares
the result with a new store.
"""

from dataclasses import dataclass
from importlib.resources import files

import duckdb

from labelstore.errors import StoreError

FIRST_VERSION = 1


@dataclass(frozen=True)
class Migration:
    """One step: the version after it, a name that says what it does, and its SQL."""

    version: int
    name: str
    sql: str


_FROM_DOCUMENTS = """
ALTER TABLE requests ALTER COLUMN query DROP NOT NULL;

CREATE TABLE query_origins (
    query      INTEGER NOT NULL,
    dataset    INTEGER NOT NULL,
    document   INTEGER NOT NULL,
    text_hash  UBIGINT NOT NULL,
    call       BIGINT NOT NULL,
    place      USMALLINT NOT NULL,
    log_probability FLOAT
);
COMMENT ON TABLE query_origins IS 'Where a generated query comes from; its positive is generated, never a human judgment';

CREATE TABLE query_filters (
    filter     INTEGER PRIMARY KEY,
    filter_key VARCHAR NOT NULL UNIQUE,
    dataset    INTEGER NOT NULL,
    kind       VARCHAR NOT NULL,
    parameters JSON NOT NULL,
    active     BOOLEAN NOT NULL,
    n_in       INTEGER NOT NULL,
    n_kept     INTEGER NOT NULL,
    job        INTEGER
);
COMMENT ON TABLE query_filters IS 'A test of generated queries; undone, it stays as a row and takes nothing out';

CREATE TABLE query_tests (
    filter     INTEGER NOT NULL,
    query      INTEGER NOT NULL,
    passed     BOOLEAN NOT NULL,
    value      DOUBLE,
    evidence   VARCHAR
);
COMMENT ON TABLE query_tests IS 'One generated query''s result in a filter';

CREATE TABLE judgings (
    judging    INTEGER PRIMARY KEY,
    name       VARCHAR NOT NULL UNIQUE,
    dataset    INTEGER NOT NULL,
    teacher    INTEGER NOT NULL,
    parameters JSON NOT NULL,
    job        INTEGER
);
COMMENT ON TABLE judgings IS 'An LLM judge over a pool; human judgments are in qrels and nowhere else';

CREATE TABLE llm_judgments (
    judging    INTEGER NOT NULL,
    query      INTEGER NOT NULL,
    document   INTEGER NOT NULL,
    grade      SMALLINT,
    status     VARCHAR NOT NULL,
    call       BIGINT,
    text_hash  UBIGINT NOT NULL
);
COMMENT ON TABLE llm_judgments IS 'One passage''s grade for one query by an LLM judge';

DROP VIEW teacher_calls;
CREATE VIEW teacher_calls AS
    SELECT t.name AS teacher, l.name AS labeling, q.query_id, lc.step, c.attempt, c.sample, c.status, c.reply,
           c.n_missing, c.n_repeated, c.n_out_of_range, c.finish_reason, c.tokens_in, c.tokens_out, c.seconds,
           c.server, c.completed_at, rq.request_key, t.prompt, t.prompt_hash
    FROM calls c JOIN requests rq USING (request) JOIN teachers t ON t.teacher = rq.teacher
    LEFT JOIN queries q ON q.query = rq.query
    LEFT JOIN labeling_calls lc ON lc.call = c.call LEFT JOIN labelings l ON l.labeling = lc.labeling;
COMMENT ON VIEW teacher_calls IS 'Calls with teacher, labeling and query names; labeling NULL for an answer that none uses, query_id NULL where a query was asked for';

CREATE VIEW judge_grades AS
    SELECT j.name AS judging, ds.name AS dataset, t.name AS judge, t.model, t.prompt, t.prompt_hash, q.query_id, d.doc_id,
           g.grade, g.status, c.call_key, g.text_hash = d.text_hash AS text_is_current
    FROM llm_judgments g JOIN judgings j USING (judging) JOIN datasets ds ON ds.dataset = j.dataset
    JOIN teachers t ON t.teacher = j.teacher JOIN queries q ON q.query = g.query JOIN documents d ON d.document = g.document
    LEFT JOIN calls c ON c.call = g.call;
COMMENT ON VIEW judge_grades IS 'Grades of LLM judges by text ids; human ones are in judgments';

CREATE VIEW filtered_out AS
    SELECT dataset, query FROM query_origins ANTI JOIN dataset_queries USING (dataset, query);
COMMENT ON VIEW filtered_out IS 'Generated queries that a filter has taken out of their dataset, by surrogate keys';

CREATE VIEW generated_queries AS
    SELECT ds.name AS dataset, q.query_id, q.text, d.doc_id, t.name AS teacher, t.model, t.prompt, t.prompt_hash,
           c.call_key, c.job_key, o.log_probability, m.query IS NOT NULL AS kept,
           coalesce(f.passed, []) AS passed, coalesce(f.failed, []) AS failed
    FROM query_origins o JOIN datasets ds USING (dataset) JOIN queries q USING (query)
    JOIN documents d ON d.document = o.document JOIN calls c ON c.call = o.call JOIN requests r USING (request)
    JOIN teachers t ON t.teacher = r.teacher
    LEFT JOIN dataset_queries m ON m.dataset = o.dataset AND m.query = o.query
    LEFT JOIN (SELECT x.dataset, s.query, list(x.kind ORDER BY x.filter) FILTER (s.passed) AS passed,
                      list(x.kind ORDER BY x.filter) FILTER (NOT s.passed) AS failed
               FROM query_tests s JOIN query_filters x USING (filter) WHERE x.active GROUP BY ALL) f
           ON f.dataset = o.dataset AND f.query = o.query;
COMMENT ON VIEW generated_queries IS 'Generated queries with passage, prompt, call and the filters that they passed or failed';
"""

_CALIBRATIONS = """
CREATE TABLE calibrations (
    student        INTEGER PRIMARY KEY,
    weights_hash   VARCHAR NOT NULL,
    method         VARCHAR NOT NULL,
    parameters     JSON NOT NULL,
    dataset        VARCHAR NOT NULL,
    run            VARCHAR NOT NULL,
    depth          INTEGER NOT NULL,
    relevant_from  INTEGER NOT NULL,
    n_queries      INTEGER NOT NULL,
    n_pairs        BIGINT NOT NULL,
    n_relevant     BIGINT NOT NULL,
    ece_before     DOUBLE NOT NULL,
    ece            DOUBLE NOT NULL,
    bins           JSON NOT NULL,
    none_below     DOUBLE,
    none_precision DOUBLE NOT NULL,
    job            INTEGER
);
COMMENT ON TABLE calibrations IS 'A student''s map from logit to probability of relevance';
DROP VIEW labeling_quality;
CREATE VIEW labeling_quality AS
    WITH items AS (
        SELECT p.labeling, p.permutation,
               CASE WHEN bool_and(i.initial_rank IS NOT NULL)
                    THEN list(i.rank ORDER BY i.initial_rank) END AS moved_to
        FROM permutations p JOIN permutation_items i USING (permutation) GROUP BY ALL
    ), neighbours AS (
        SELECT labeling, moved_to, len(moved_to) - 1 AS n,
               len(list_filter(range(1, len(moved_to)), lambda k: moved_to[k] < moved_to[k + 1])) AS n_kept
        FROM items WHERE len(moved_to) > 1
    ), bias AS (
        SELECT labeling, sum(n_kept) / sum(n) AS position_bias, avg((n_kept = n)::INTEGER) AS untouched
        FROM neighbours GROUP BY labeling
    ), lists AS (
        SELECT labeling, count(*) AS n_lists, count(*) FILTER (WHERE status = 'ok') AS n_ok,
               count(*) FILTER (WHERE status = 'repaired') AS n_repaired, sum(repairs)::BIGINT AS repairs,
               sum(n_calls)::BIGINT AS n_calls, sum(tokens_in)::BIGINT AS tokens_in,
               sum(tokens_out)::BIGINT AS tokens_out, avg(disagreement) AS disagreement
        FROM permutations GROUP BY labeling
    ), failed AS (
        SELECT labeling, count(*) AS n_quarantined FROM quarantine GROUP BY labeling
    )
    SELECT l.name AS labeling, t.name AS teacher, ds.name AS dataset, l.first_stage, l.strategy, l.depth,
           l.reliable_depth, coalesce(n_lists, 0) AS lists, coalesce(n_ok, 0) AS ok, coalesce(n_repaired, 0) AS repaired,
           coalesce(n_quarantined, 0) AS quarantined, coalesce(repairs, 0) AS repairs, b.position_bias, b.untouched,
           disagreement, coalesce(n_calls, 0) AS calls, tokens_in, tokens_out,
           (tokens_in * t.input_price + tokens_out * t.output_price) / 1e6 AS cost,
           CASE WHEN cost IS NOT NULL THEN 'USD' END AS currency, l.licence
    FROM labelings l JOIN teachers t USING (teacher) JOIN datasets ds ON ds.dataset = l.dataset
    LEFT JOIN lists USING (labeling) LEFT JOIN bias b USING (labeling) LEFT JOIN failed USING (labeling);
COMMENT ON VIEW labeling_quality IS 'Labelings by name: statuses, repairs, tokens, cost; position_bias is the share of neighbours in the prior order that kept it (.5 by chance, 1: nothing moved, NULL: prior order unknown), untouched the share of lists left exactly as they were';
"""

_RANDOM_NEGATIVES = """
ALTER TABLE negatives ALTER COLUMN source_run DROP NOT NULL;
ALTER TABLE negatives ALTER COLUMN source_score DROP NOT NULL;
CREATE OR REPLACE VIEW mined AS
    SELECT m.name AS mining, ds.name AS dataset, q.query_id, d.doc_id, coalesce(r.name, 'random') AS source_run,
           n.source_rank, n.source_score, n.teacher_rank, n.label, n.weight
    FROM negatives n JOIN minings m USING (mining) JOIN datasets ds USING (dataset)
    JOIN queries q USING (query) JOIN documents d USING (document) LEFT JOIN runs r ON r.run = n.source_run;
COMMENT ON VIEW mined IS 'Negatives by text ids; source_run random and no score for a random passage of the collection';
"""

_VERDICTS = """
CREATE TABLE checkings (
    checking INTEGER PRIMARY KEY,
    name VARCHAR NOT NULL UNIQUE,
    dataset INTEGER NOT NULL,
    teacher INTEGER NOT NULL,
    strong INTEGER,
    parameters JSON NOT NULL,
    job INTEGER
);
COMMENT ON TABLE checkings IS 'An LLM check of mined negatives, by one model or by a cheap and a strong one';

CREATE TABLE verdicts (
    checking INTEGER NOT NULL,
    query INTEGER NOT NULL,
    document INTEGER NOT NULL,
    stage UTINYINT NOT NULL,
    verdict VARCHAR,
    flagged BOOLEAN,
    status VARCHAR NOT NULL,
    call BIGINT NOT NULL,
    text_hash UBIGINT NOT NULL
);
COMMENT ON TABLE verdicts IS 'What a model said of one mined negative beside a positive';

CREATE VIEW final_verdicts AS
    SELECT k.checking, f.query, f.document, f.text_hash, f.verdict, s.verdict AS strong_verdict,
           CASE WHEN f.flagged AND k.strong IS NOT NULL THEN s.flagged ELSE f.flagged END AS flagged,
           f.call, s.call AS strong_call
    FROM checkings k JOIN verdicts f ON f.checking = k.checking AND f.stage = 1
    LEFT JOIN verdicts s ON s.checking = f.checking AND s.query = f.query AND s.document = f.document AND s.stage = 2;
COMMENT ON VIEW final_verdicts IS 'Checked negatives by surrogate keys; flagged by the strong model where there is one, NULL without a readable verdict';

CREATE VIEW negative_verdicts AS
    SELECT k.name AS checking, ds.name AS dataset, k.parameters->>'negatives' AS negatives, q.query_id, d.doc_id,
           v.flagged, v.verdict, v.strong_verdict, t.name AS teacher, u.name AS strong_teacher, c.call_key,
           e.call_key AS strong_call_key, v.text_hash = d.text_hash AS text_is_current
    FROM final_verdicts v JOIN checkings k USING (checking) JOIN datasets ds ON ds.dataset = k.dataset
    JOIN queries q ON q.query = v.query JOIN documents d ON d.document = v.document
    JOIN teachers t ON t.teacher = k.teacher LEFT JOIN teachers u ON u.teacher = k.strong
    JOIN calls c ON c.call = v.call LEFT JOIN calls e ON e.call = v.strong_call;
COMMENT ON VIEW negative_verdicts IS 'Verdicts on mined negatives by text ids, with the calls of both models';
"""

MIGRATIONS: tuple[Migration, ...] = (
    Migration(2, "from_documents", _FROM_DOCUMENTS),
    Migration(3, "add_calibrations_and_currency", _CALIBRATIONS),
    Migration(4, "random_negatives", _RANDOM_NEGATIVES),
    Migration(5, "verdicts_on_negatives", _VERDICTS),
)

CURRENT_VERSION = MIGRATIONS[-1].version if MIGRATIONS else FIRST_VERSION

_RECORDS = """CREATE TABLE migrations (
    version    INTEGER PRIMARY KEY,
    name       VARCHAR NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)"""


def schema_version(con: duckdb.DuckDBPyConnection) -> int | None:
    """Return the store's version; None for an empty DuckDB file.

    Raises:
        StoreError: the file holds tables that are not msft's.
    """
    try:
        row = con.execute("SELECT max(version) FROM migrations").fetchall()
    except duckdb.CatalogException:  # no such table; a list of all tables takes four times as long
        if con.execute("SELECT 1 FROM duckdb_tables() LIMIT 1").fetchall():
            raise StoreError(
                "this DuckDB file holds other tables and is not an msft store",
                hint="name a new file with --store",
            ) from None
        return None
    return int(row[0][0])


def check_not_newer(version: int, path: object) -> None:
    """Refuse a store that a newer msft wrote.

    Raises:
        StoreError: ``version`` is above :data:`CURRENT_VERSION`.
    """
    if version > CURRENT_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, and this msft supports versions up to {CURRENT_VERSION}",
            hint="upgrade msft (pip install -U msft), or use another --store",
        )


def create(con: duckdb.DuckDBPyConnection) -> None:
    """Make the newest schema in an empty file, in one transaction."""
    con.execute("BEGIN")
    con.execute(files("labelstore").joinpath("schema.sql").read_text("utf-8"))
    con.execute(_RECORDS)
    con.execute("INSERT INTO migrations (version, name) VALUES (?, 'create_schema')", [CURRENT_VERSION])
    con.execute("COMMIT")


def migrate(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Bring the store to the newest version; returns the names of the applied migrations."""
    version = schema_version(con)
    if version is None:
        create(con)
        return ["create_schema"]
    applied = []
    for migration in MIGRATIONS:
        if migration.version <= version:
            continue
        con.execute("BEGIN")
        con.execute(migration.sql)
        con.execute(
            "INSERT INTO migrations (version, name) VALUES (?, ?)", [migration.version, migration.name]
        )
        con.execute("COMMIT")
        applied.append(migration.name)
    return applied
