"""Compute every content key again from its rows.

| key | over | derived from |
|---|---|---|
| documents, document_versions `text_hash` | title and text | the row (keys.text_hash) |
| queries `text_hash`, `normal_hash` | text; normalised text | the row (keys.text_hash, keys.normal_hash) |
| datasets `qrels_hash` | (query_id, doc_id, relevance) | qrels (row_hashes.qrels_hash) |
| runs `content_hash` | (query_id, rank, doc_id, score) | candidates (row_hashes.run_hash) |
| minings `content_hash` | rows by text ids and run names | negatives (negatives.content_hash) |
| teachers `teacher_key` | model or revision, prompt hash, sampling, kind | the row (labels.teacher_key) |
| permutations `content_hash` | (rank, doc_id, grade, score, initial rank) | permutation_items (labels.permutation_hashes) |
| requests `request_key` | imported: teacher, query_id, doc_ids shown | the row and request_passages (label_import) |
| | asked: rendered token ids, model revision, sampling | not stored: its form and what it shows are checked |
| calls `call_key` | asked: request, job, attempt, sample; imported: request, reply | the row |
| canaries `reply_hash` | reply | the row (teachers.canary) |
| views `view_hash` | rows by text ids and texts | the folder (export.content_hash) |
| students `weights_hash` | bytes of model.safetensors | the folder (file_hash) |
| provenance `job_key` | random | nothing: it is unique |
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from labelstore.labels import teacher_key
from labelstore.labels import write as labels
from labelstore.negatives import mine as negatives
from labelstore.store import keys
from labelstore.store.row_hashes import qrels_hash, run_facts
from labelstore.upkeep.verify.findings import COPY, EXAMPLES, Finding

BATCH = 50_000  # texts that are hashed at once

Rows = Iterator[tuple[str, Any, Any]]  # (name, stored, computed) of keys that differ


def texts(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Check text hashes of passages, of their earlier versions and of queries."""
    text = "coalesce({0}.title, '') || chr(0) || {0}.text"
    for what, sql in (
        (
            "documents",
            f"""SELECT c.name || ' ' || d.doc_id AS name, d.text_hash AS stored, {text.format("d")} AS message
                FROM documents d JOIN collections c USING (collection) WHERE d.text IS NOT NULL""",
        ),
        (
            "document_versions",
            f"""SELECT d.doc_id || ' version ' || v.version AS name, v.text_hash AS stored, {text.format("v")} AS message
                FROM document_versions v JOIN documents d USING (document)""",
        ),
        (
            "queries",
            """SELECT c.name || ' ' || q.query_id AS name, q.text_hash AS stored, chr(0) || q.text AS message
               FROM queries q JOIN collections c USING (collection)""",
        ),
    ):
        yield from _summed(
            what, "text hash", _differing(con, sql, 8), f"bring its text in again (data add); {COPY}"
        )
    (half,) = con.execute(
        "SELECT count(*) FROM documents WHERE (text IS NULL) <> (text_hash IS NULL)"
    ).fetchall()[0]
    if half:
        yield Finding(
            "documents", "text_hash", f"{half:,} have a text without its hash, or a hash without text", COPY
        )
    yield from _summed("queries", "hash of the normalised text", _normal_hashes(con), COPY)


def _normal_hashes(con: duckdb.DuckDBPyConnection) -> Rows:
    result = con.execute("SELECT query_id, text, normal_hash FROM queries")
    while batch := result.fetchmany(BATCH):
        for query_id, text, stored in batch:
            derived = keys.normal_hash(text)
            if derived != stored:
                yield query_id, stored, derived


def _differing(con: duckdb.DuckDBPyConnection, sql: str, size: int) -> Rows:
    """Find rows of (name, stored, message) whose stored hash is not BLAKE2b of the message's UTF-8 bytes.

    Args:
        size: bytes of the hash; 8 are stored as a number, more as hex.
    """
    for batch in con.sql(sql).to_arrow_reader(BATCH):
        digests = _digests(batch.column("message"), size)
        stored = batch.column("stored")
        if size == 8:
            derived = np.frombuffer(b"".join(digests), dtype="<u8")
            wrong = np.flatnonzero(derived != stored.to_numpy(zero_copy_only=False))
        else:
            derived = np.array([digest.hex() for digest in digests])
            wrong = np.flatnonzero(derived != np.array(stored.to_pylist(), dtype=derived.dtype))
        for k in wrong.tolist():
            yield batch.column("name")[k].as_py(), stored[k].as_py(), derived[k]


def _digests(messages: pa.Array, size: int) -> list[bytes]:
    binary = messages.cast(pa.large_binary())
    offsets = np.frombuffer(binary.buffers()[1], dtype=np.int64)[binary.offset :][: len(binary) + 1].tolist()
    data = memoryview(binary.buffers()[2] or b"")
    blake2b = hashlib.blake2b
    return [blake2b(data[start:stop], digest_size=size).digest() for start, stop in pairwise(offsets)]


def _summed(what: str, key: str, rows: Rows, hint: str) -> Iterator[Finding]:
    """Make findings of the first few rows, and one of the rest."""
    n = 0
    for name, stored, derived in rows:
        n += 1
        if n <= EXAMPLES:
            yield Finding(what, str(name), f"its {key} is {stored}, its content gives {derived}", hint)
    if n > EXAMPLES:
        yield Finding(
            what, f"{n - EXAMPLES:,} more", f"{n:,} in all have another {key} than their content gives", hint
        )


def rankings(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Check content hashes of judgments, runs and minings, with their counts."""
    for dataset, name, stored in con.execute("SELECT dataset, name, qrels_hash FROM datasets").fetchall():
        derived = qrels_hash(con, dataset)
        if derived != stored:
            problem = f"its judgments' hash is {stored}, its rows give {derived}"
            yield Finding(
                "qrels", name, problem, f"`msft data add {name} --update` takes the judgments again"
            )
    for run, name, stored, *figures in con.execute(
        """SELECT r.run, d.name || '/' || r.name, r.content_hash, r.n_queries, r.n_candidates, r.depth
           FROM runs r JOIN datasets d USING (dataset) ORDER BY r.run"""
    ).fetchall():
        derived, *counted = run_facts(con, run)
        hint = "`msft runs import --replace`, `msft retrieve --replace` or `msft students rerank --replace` makes it again"
        if derived != stored:
            yield Finding("run", name, f"its content hash is {stored}, its candidates give {derived}", hint)
        for figure, said, found in zip(("queries", "candidates", "depth"), figures, counted, strict=True):
            if said != found:
                yield Finding("run", name, f"its row says {figure} {said}, its candidates say {found}", hint)
    for mining, name, stored in con.execute("SELECT mining, name, content_hash FROM minings").fetchall():
        derived = negatives.content_hash(con, mining)
        if derived != stored:
            problem = f"its content hash is {stored}, its rows give {derived}"
            yield Finding("negatives", name, problem, "`msft negatives mine --replace` with the same options")


def label_keys(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Check the keys of teachers, permutations, requests, calls and canaries."""
    yield from _summed("teacher", "key", _teacher_keys(con), COPY)
    for labeling, name in con.execute("SELECT labeling, name FROM labelings ORDER BY labeling").fetchall():
        wrong = con.execute(
            f"""SELECT q.query_id, p.content_hash, coalesce(h.content_hash, md5('')) AS derived
                FROM permutations p JOIN queries q USING (query)
                LEFT JOIN ({labels.permutation_hashes(labeling)}) h USING (permutation)
                WHERE p.labeling = ? AND p.content_hash <> derived ORDER BY q.query_id""",
            [labeling],
        ).fetchall()
        rows = ((f"{name} {query_id}", stored, derived) for query_id, stored, derived in wrong)
        yield from _summed("labels", "content hash", rows, COPY)
    for what, key, sql in (("request", "key", _IMPORTED_REQUESTS), ("call", "key", _IMPORTED_CALLS)):
        wrong = con.execute(f"SELECT * FROM ({sql}) WHERE stored <> derived ORDER BY ALL").fetchall()
        yield from _summed(what, key, iter(wrong), COPY)
    yield from _summed("call", "key", _differing(con, _CALLS, 16), COPY)
    yield from _summed("canary", "reply hash", _differing(con, _CANARIES, 16), COPY)
    (n, example) = con.execute(
        "SELECT count(*), min(request_key) FROM requests WHERE NOT regexp_full_match(request_key, '[0-9a-f]{32}')"
    ).fetchall()[0]
    if n:
        yield Finding("request", example, f"{n:,} request keys are not 32 hex digits", COPY)


# The same text that label_import makes of an imported list and its reply.
_IMPORTED_REQUESTS = """
    SELECT t.name || ' ' || q.query_id AS name, r.request_key AS stored,
           md5(concat_ws(chr(31), 'msft:imported-request', t.teacher_key, q.query_id, r.n_passages, s.shown)) AS derived
    FROM requests r JOIN teachers t USING (teacher) JOIN queries q USING (query)
    LEFT JOIN (SELECT p.request, string_agg(d.doc_id, chr(31) ORDER BY p.position) AS shown
               FROM request_passages p JOIN documents d USING (document) GROUP BY p.request) s USING (request)
    WHERE t.engine = 'imported'"""
_IMPORTED_CALLS = """
    SELECT r.request_key || ' attempt ' || c.attempt AS name, c.call_key AS stored,
           md5(concat_ws(chr(31), 'msft:imported-call', r.request_key, c.reply)) AS derived
    FROM calls c JOIN requests r USING (request) WHERE c.server = 'imported'"""
# The text that keys.content_key('call', [request, job, attempt, sample]) hashes.
_CALLS = """
    SELECT r.request_key || ' attempt ' || c.attempt AS name, c.call_key AS stored,
           concat('msft:call:[', to_json(r.request_key), ',', to_json(c.job_key), ',', c.attempt, ',', c.sample, ']') AS message
    FROM calls c JOIN requests r USING (request) WHERE c.server IS DISTINCT FROM 'imported'"""
_CANARIES = "SELECT request_key AS name, reply_hash AS stored, reply AS message FROM canaries"


def _teacher_keys(con: duckdb.DuckDBPyConnection) -> Rows:
    for stored, name, model, revision, engine, prompt_hash, sampling in con.execute(
        "SELECT teacher_key, name, model, revision, engine, prompt_hash, sampling FROM teachers ORDER BY teacher"
    ).fetchall():
        drawn = None if sampling is None else json.loads(sampling)
        derived = teacher_key.possible(name, model, revision, engine, prompt_hash, drawn)
        if stored not in derived:
            yield name, stored, derived[0]
