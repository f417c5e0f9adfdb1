"""Store teacher labels set-wise: teachers, labelings, permutations, requests, calls, quarantine.

The import of labels and the merge of a job's journal both use this module. Every function takes the writing connection of the
caller's transaction, and relations (tables, views or registered frames) with *text ids*. All are safe to repeat: rows whose
content key exists are kept and counted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb

from labelstore.errors import BadInput
from labelstore.labels import teacher_key as keys
from labelstore.provenance.record import Job
from labelstore.store.label_store import next_id

USABLE = ("ok", "repaired")  # statuses of permutations that are rankings


@dataclass(frozen=True)
class Teacher:
    """A row of `teachers`."""

    name: str
    engine: str
    model: str | None = None
    revision: str | None = None
    prompt: str | None = None
    prompt_hash: str | None = None
    sampling: Mapping[str, Any] | None = None
    input_price: float | None = None
    output_price: float | None = None
    licence: str | None = None
    key: str | None = None  # of a teacher that msft asks itself

    @property
    def teacher_key(self) -> str:
        if self.key is not None:
            return self.key
        model = self.name if self.model is None else self.model
        return keys.imported(model, self.revision, self.engine, self.prompt_hash, self.sampling)

    def record(self) -> dict[str, Any]:
        """Return the row as JSON takes it, with its key; `Teacher(**record)` is the same row."""
        return {**vars(self), "sampling": dict(self.sampling or {}), "key": self.teacher_key}


def store_teacher(con: duckdb.DuckDBPyConnection, teacher: Teacher) -> int:
    """Return a teacher's surrogate key; insert the teacher if its content key is new."""
    found = con.execute(
        "SELECT teacher FROM teachers WHERE teacher_key = ?", [teacher.teacher_key]
    ).fetchall()
    if found:
        return int(found[0][0])
    key = next_id(con, "teachers", "teacher")
    con.execute(
        "INSERT INTO teachers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            key,
            teacher.teacher_key,
            teacher.name,
            teacher.model,
            teacher.revision,
            teacher.engine,
            teacher.prompt,
            teacher.prompt_hash,
            None if teacher.sampling is None else json.dumps(dict(teacher.sampling), sort_keys=True),
            teacher.input_price,
            teacher.output_price,
            teacher.licence,
        ],
    )
    return key


@dataclass(frozen=True)
class NewLabeling:
    """A row of `labelings` before it has a key."""

    name: str
    teacher: int
    dataset: int
    strategy: str
    depth: int
    origin: str
    run: int | None = None
    first_stage: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reliable_depth: int | None = None
    licence: str | None = None
    origin_hash: str | None = None


def store_labeling(con: duckdb.DuckDBPyConnection, job: Job, new: NewLabeling) -> int:
    """Return a labeling's surrogate key; insert it if its name is new, or raise the depth of a known one.

    Raises:
        BadInput: the name belongs to a labeling of another teacher, dataset, run or strategy.
    """
    found = con.execute(
        """SELECT l.labeling, l.teacher, l.dataset, l.run, l.strategy, t.name, d.name
           FROM labelings l JOIN teachers t USING (teacher) JOIN datasets d ON d.dataset = l.dataset
           WHERE l.name = ?""",
        [new.name],
    ).fetchall()
    if found:
        key, teacher, dataset, run, strategy, teacher_name, dataset_name = found[0]
        if (teacher, dataset, run, strategy) != (new.teacher, new.dataset, new.run, new.strategy):
            raise BadInput(
                f"there is a labeling {new.name!r} already: {teacher_name} over {dataset_name}, {strategy}",
                hint="choose another name with --name",
            )
        con.execute(
            "UPDATE labelings SET depth = ? WHERE labeling = ? AND depth < ?", [new.depth, key, new.depth]
        )
        return int(key)
    key = next_id(con, "labelings", "labeling")
    con.execute(
        "INSERT INTO labelings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            key,
            new.name,
            new.teacher,
            new.dataset,
            new.run,
            new.first_stage,
            new.strategy,
            json.dumps(dict(new.parameters), sort_keys=True),
            new.depth,
            new.reliable_depth,
            new.licence,
            new.origin,
            new.origin_hash,
            job.job,
        ],
    )
    return key


def remove_empty(con: duckdb.DuckDBPyConnection, job: Job) -> None:
    """Remove a job's labeling if it is empty, since the job failed before its first answer."""
    con.execute(
        """DELETE FROM labelings WHERE job = ? AND labeling NOT IN (
               SELECT labeling FROM permutations UNION ALL SELECT labeling FROM labeling_calls
               UNION ALL SELECT labeling FROM quarantine)""",
        [job.job],
    )


def make_documents(con: duckdb.DuckDBPyConnection, collection: int, ids: str) -> int:
    """Add unknown ids as documents without text, and return their number.

    Args:
        ids: relation with a column doc_id.
    """
    first = next_id(con, "documents", "document")
    (made,) = con.execute(
        f"""INSERT INTO documents
            SELECT ? + row_number() OVER (ORDER BY doc_id) - 1, ?, doc_id, NULL, NULL, NULL, 0
            FROM (SELECT DISTINCT doc_id FROM {ids}) ANTI JOIN
                 (SELECT doc_id FROM documents WHERE collection = ?) USING (doc_id)""",
        [first, collection, collection],
    ).fetchall()[0]
    return int(made)


@dataclass(frozen=True)
class Stored:
    """What :func:`store_permutations` did: lists that are new, known, replaced, or kept although the new order differs."""

    new: int
    same: int
    replaced: int
    differing: int

    @property
    def changed(self) -> bool:
        return self.new > 0 or self.replaced > 0


# A permutation by its text ids: rank, doc_id, grade and the score's bits, in rank order; independent of surrogate keys.
_ITEM_TEXT = """concat_ws(' ', i.rank, d.doc_id, i.grade, coalesce((i.score::FLOAT)::BIT::VARCHAR, '-'),
                          coalesce(i.initial_rank::VARCHAR, '-'))"""
_PERMUTATION_HASH = f"md5(string_agg({_ITEM_TEXT}, chr(10) ORDER BY i.rank))"


def store_permutations(
    con: duckdb.DuckDBPyConnection, labeling: int, lists: str, items: str, *, replace: bool = False
) -> Stored:
    """Merge permutations into a labeling; a known permutation with the same items changes nothing.

    Documents must be known (:func:`make_documents`), queries too. A NULL ``text_hash`` is pinned to the
    document's current text, if the store has it.

    Args:
        lists: relation (query_id, status, repairs, n_calls, tokens_in, tokens_out, disagreement, settled).
        items: relation (query_id, rank, doc_id, initial_rank, grade, score, text_hash).
        replace: replace a query's other order; otherwise the old one stays and is counted as differing.

    Raises:
        BadInput: an id is unknown, or a list repeats a passage or rank; nothing is written then.
    """
    collection = _collection_of(con, labeling)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE new_items AS
            SELECT q.query, i.rank, d.document, i.initial_rank, i.grade, i.score,
                   coalesce(i.text_hash, d.text_hash) AS text_hash, i.query_id, i.doc_id
            FROM {items} i
            LEFT JOIN (SELECT query, query_id FROM queries WHERE collection = {collection}) q USING (query_id)
            LEFT JOIN (SELECT document, doc_id, text_hash FROM documents WHERE collection = {collection}) d
                   USING (doc_id)"""
    )
    _check_items(con)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE new_lists AS
            SELECT q.query, l.status, l.repairs, l.n_calls, l.tokens_in, l.tokens_out, l.disagreement, l.settled,
                   coalesce(h.content_hash, md5('')) AS content_hash
            FROM {lists} l
            JOIN (SELECT query, query_id FROM queries WHERE collection = {collection}) q USING (query_id)
            LEFT JOIN (SELECT i.query, {_PERMUTATION_HASH} AS content_hash
                       FROM new_items i JOIN documents d USING (document) GROUP BY i.query) h USING (query)"""
    )
    con.execute(
        """CREATE OR REPLACE TEMP TABLE old_lists AS
           SELECT p.permutation, query, p.content_hash = n.content_hash AND p.status = n.status AS same
           FROM permutations p JOIN new_lists n USING (query) WHERE p.labeling = ?""",
        [labeling],
    )
    n_new, same, other = con.execute(
        """SELECT (SELECT count(*) FROM new_lists), count(*) FILTER (WHERE same), count(*) FILTER (WHERE NOT same)
           FROM old_lists"""
    ).fetchall()[0]
    n_new -= same + other
    if replace and other:
        for table in ("permutation_items", "permutations"):
            con.execute(
                f"DELETE FROM {table} WHERE permutation IN (SELECT permutation FROM old_lists WHERE NOT same)"
            )
        con.execute("DELETE FROM old_lists WHERE NOT same")
    if n_new or replace:
        _insert_permutations(con, labeling)
    for table in ("new_items", "new_lists", "old_lists"):
        con.execute(f"DROP TABLE {table}")
    return Stored(n_new, same, other if replace else 0, 0 if replace else other)


def _insert_permutations(con: duckdb.DuckDBPyConnection, labeling: int) -> None:
    first = next_id(con, "permutations", "permutation")
    con.execute(
        """CREATE OR REPLACE TEMP TABLE numbered AS
           SELECT ? + row_number() OVER (ORDER BY query) - 1 AS permutation, n.*
           FROM new_lists n ANTI JOIN old_lists USING (query)""",
        [first],
    )
    con.execute(
        """INSERT INTO permutations
           SELECT permutation, ?, query, status, repairs, n_calls, tokens_in, tokens_out, disagreement, settled,
                  content_hash FROM numbered ORDER BY permutation""",
        [labeling],
    )
    con.execute(
        """INSERT INTO permutation_items
           SELECT n.permutation, i.rank, i.document, i.initial_rank, i.grade, i.score, i.text_hash
           FROM new_items i JOIN numbered n USING (query) ORDER BY n.permutation, i.rank"""
    )
    con.execute("DROP TABLE numbered")


def _check_items(con: duckdb.DuckDBPyConnection) -> None:
    unknown = con.execute(
        """SELECT query_id, doc_id, query IS NULL FROM new_items
           WHERE query IS NULL OR document IS NULL ORDER BY ALL LIMIT 1"""
    ).fetchall()
    if unknown:
        query_id, doc_id, of_query = unknown[0]
        what = f"query {query_id!r}" if of_query else f"passage {doc_id!r} of query {query_id!r}"
        raise BadInput(
            f"{what} is not in the store", hint="add queries and passages with msft data add DATASET"
        )
    for column, what in (("document", "passage"), ("rank", "rank")):
        twice = con.execute(
            f"SELECT query_id, any_value(doc_id), any_value(rank) FROM new_items GROUP BY query_id, {column}"
            " HAVING count(*) > 1 ORDER BY query_id LIMIT 1"
        ).fetchall()
        if twice:
            query_id, doc_id, rank = twice[0]
            raise BadInput(
                f"the list of query {query_id!r} has the {what} of {doc_id!r} (rank {rank}) twice",
                hint="name each passage once in a permutation",
            )


def _collection_of(con: duckdb.DuckDBPyConnection, labeling: int) -> int:
    (collection,) = con.execute(
        "SELECT d.collection FROM labelings l JOIN datasets d USING (dataset) WHERE l.labeling = ?",
        [labeling],
    ).fetchall()[0]
    return int(collection)


def store_requests(
    con: duckdb.DuckDBPyConnection, teacher: int, collection: int, requests: str, passages: str
) -> int:
    """Merge requests by request_key and return the number of new ones.

    Args:
        requests: relation (request_key, query_id (NULL where a query is asked for), n_passages, n_prompt_tokens, truncated_words).
        passages: relation (request_key, position, doc_id, text_hash).

    Raises:
        BadInput: a query or passage is not in the collection.
    """
    first = next_id(con, "requests", "request")
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE new_requests AS
            SELECT ? + row_number() OVER (ORDER BY r.request_key) - 1 AS request, r.*, q.query
            FROM (SELECT DISTINCT ON (request_key) * FROM {requests}) r
            ANTI JOIN {_held("requests", "request_key", requests)} known USING (request_key)
            LEFT JOIN (SELECT query, query_id FROM queries WHERE collection = {int(collection)}) q
                   ON q.query_id = r.query_id""",
        [first],
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE new_request_passages AS
            SELECT r.request, p.position, d.document, p.text_hash, p.doc_id
            FROM (SELECT DISTINCT * FROM {passages}) p JOIN new_requests r USING (request_key)
            LEFT JOIN (SELECT document, doc_id FROM documents WHERE collection = {int(collection)}) d
                   ON d.doc_id = p.doc_id"""
    )
    unknown = con.execute(
        """SELECT 'query ' || query_id FROM new_requests WHERE query IS NULL AND query_id IS NOT NULL UNION ALL
           SELECT 'passage ' || doc_id FROM new_request_passages WHERE document IS NULL ORDER BY 1 LIMIT 1"""
    ).fetchall()
    if unknown:
        raise BadInput(
            f"a request names {unknown[0][0]}, which the collection does not have",
            hint="check that this journal was written for this store",
        )
    (made,) = con.execute(
        """INSERT INTO requests SELECT request, request_key, ?, query, n_passages, n_prompt_tokens, truncated_words
           FROM new_requests ORDER BY request""",
        [teacher],
    ).fetchall()[0]
    con.execute(
        """INSERT INTO request_passages SELECT request, position, document, text_hash
           FROM new_request_passages ORDER BY request, position"""
    )
    con.execute("DROP TABLE new_requests")
    con.execute("DROP TABLE new_request_passages")
    return int(made)


def _held(table: str, key: str, new: str) -> str:
    """Find keys of a table that are among the new ones; an anti join with them builds on the new rows only."""
    return f"(SELECT {key} FROM {table} SEMI JOIN (SELECT {key} FROM {new}) USING ({key}))"


_CALL_COLUMNS = (
    "job_key, attempt, sample, status, reply, parsed, scores, n_missing, n_repeated, n_out_of_range, finish_reason,"
    " tokens_in, tokens_out, seconds, server, completed_at"
)


def store_calls(con: duckdb.DuckDBPyConnection, calls: str) -> int:
    """Merge calls by call_key and return the number of new ones.

    Args:
        calls: relation (call_key, request_key, job_key, attempt, sample, status, reply, parsed, scores, n_missing,
            n_repeated, n_out_of_range, finish_reason, tokens_in, tokens_out, seconds, server, completed_at).

    Raises:
        BadInput: a call's request is not in the store.
    """
    orphan = con.execute(
        f"""SELECT c.call_key FROM {calls} c
            ANTI JOIN {_held("requests", "request_key", calls)} known USING (request_key) LIMIT 1"""
    ).fetchall()
    if orphan:
        raise BadInput(f"call {orphan[0][0]} answers a request that is not in the store")
    first = next_id(con, "calls", "call")
    (made,) = con.execute(
        f"""INSERT INTO calls
            SELECT ? + row_number() OVER (ORDER BY c.completed_at, c.call_key) - 1, c.call_key, r.request,
                   {", ".join("c." + name.strip() for name in _CALL_COLUMNS.split(","))}
            FROM (SELECT DISTINCT ON (call_key) * FROM {calls}) c
            JOIN (SELECT request, request_key FROM requests) r USING (request_key)
            ANTI JOIN {_held("calls", "call_key", calls)} known USING (call_key)""",
        [first],
    ).fetchall()[0]
    return int(made)


def store_labeling_calls(con: duckdb.DuckDBPyConnection, labeling: int, used: str) -> int:
    """Record the calls that a labeling was made from; they replace the earlier ones of the same queries.

    Args:
        used: relation (query_id, step, call_key).
    """
    collection = _collection_of(con, labeling)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE used_calls AS
            SELECT q.query, u.step, c.call FROM (SELECT DISTINCT query_id, step, call_key FROM {used}) u
            JOIN (SELECT query, query_id FROM queries WHERE collection = {collection}) q USING (query_id)
            JOIN (SELECT call, call_key FROM calls) c USING (call_key)"""
    )
    con.execute(
        "DELETE FROM labeling_calls WHERE labeling = ? AND query IN (SELECT query FROM used_calls)",
        [labeling],
    )
    (made,) = con.execute(
        "INSERT INTO labeling_calls SELECT ?, query, step, call FROM used_calls ORDER BY query, step",
        [labeling],
    ).fetchall()[0]
    con.execute("DROP TABLE used_calls")
    return int(made)


def store_quarantine(con: duckdb.DuckDBPyConnection, job: Job, labeling: int, rows: str) -> int:
    """Record queries (or imported lines) without a permutation, each once.

    :func:`release` takes out queries that got their permutation since.

    Args:
        rows: relation (query_id, step, reason, detail, attempts); query_id may be NULL or unknown.
    """
    collection = _collection_of(con, labeling)
    (made,) = con.execute(
        f"""INSERT INTO quarantine
            SELECT ?, q.query, r.step, r.reason, r.detail, r.attempts, ?
            FROM {rows} r
            LEFT JOIN (SELECT query, query_id FROM queries WHERE collection = {collection}) q USING (query_id)
            ANTI JOIN (SELECT * FROM quarantine WHERE labeling = ?) known
                   ON known.reason = r.reason AND known.detail = r.detail
                  AND known.query IS NOT DISTINCT FROM q.query AND known.step IS NOT DISTINCT FROM r.step""",
        [labeling, job.job, labeling],
    ).fetchall()[0]
    return int(made)


def release(con: duckdb.DuckDBPyConnection, labeling: int) -> int:
    """Take queries with a usable permutation out of the quarantine and return the number of rows."""
    (freed,) = con.execute(
        """DELETE FROM quarantine WHERE labeling = ? AND query IN (
               SELECT query FROM permutations WHERE labeling = ? AND status IN ('ok', 'repaired'))""",
        [labeling, labeling],
    ).fetchall()[0]
    return int(freed)


def withdraw(con: duckdb.DuckDBPyConnection, labeling: int, queries: list[int]) -> None:
    """Take queries out of a labeling: their permutations, the calls that these used, and their places in quarantine."""
    con.execute(
        """CREATE OR REPLACE TEMP TABLE withdrawn AS
           SELECT permutation, query FROM permutations WHERE labeling = ? AND query IN (SELECT unnest(?))""",
        [labeling, queries],
    )
    for table in ("permutation_items", "permutations"):
        con.execute(f"DELETE FROM {table} WHERE permutation IN (SELECT permutation FROM withdrawn)")
    for table in ("labeling_calls", "quarantine"):
        con.execute(
            f"DELETE FROM {table} WHERE labeling = ? AND query IN (SELECT unnest(?))", [labeling, queries]
        )
    con.execute("DROP TABLE withdrawn")


def store_readings(con: duckdb.DuckDBPyConnection, readings: str) -> int:
    """Replace the parsed form of replies, not the replies, and return the number of calls.

    Args:
        readings: relation (call, status, parsed, n_missing, n_repeated, n_out_of_range).
    """
    (n,) = con.execute(
        f"""UPDATE calls SET status = n.status, parsed = n.parsed, n_missing = n.n_missing,
                             n_repeated = n.n_repeated, n_out_of_range = n.n_out_of_range
            FROM {readings} n WHERE calls.call = n.call"""
    ).fetchall()[0]
    return int(n)


def permutation_hashes(labeling: int) -> str:
    """Make SQL that computes (permutation, content_hash) of a labeling again from its items, for `verify`."""
    return f"""SELECT i.permutation, {_PERMUTATION_HASH} AS content_hash
               FROM permutation_items i JOIN permutations p USING (permutation) JOIN documents d USING (document)
               WHERE p.labeling = {int(labeling)} GROUP BY i.permutation"""
