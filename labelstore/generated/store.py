"""Store generated queries: a training dataset whose positives are the passages that the queries come from.

A query's origin says which call of an LLM made it, from which passage. The positive is of origin `generated` and never stands
in the qrels. A query that a test set has is refused.
"""

from dataclasses import dataclass, field

import duckdb

from labelstore.errors import BadInput, UsageError
from labelstore.provenance.record import Job
from labelstore.store import keys
from labelstore.store.label_store import next_id
from labelstore.store.rows import insert
from labelstore.views import leakage

STEP = "generated queries"


@dataclass(frozen=True)
class NewQuery:
    """A query in a reply.

    Attributes:
        document, text_hash: the passage that was shown, in the version that was shown.
        call: the reply's surrogate key; `place` is the query's place in the reply, from 1.
        log_probability: mean over the reply's tokens, if known.
    """

    document: int
    doc_id: str
    text_hash: int
    call: int
    text: str
    place: int = 1
    log_probability: float | None = None


@dataclass
class Stored:
    """What was stored: the dataset, queries in it now, new ones, and those left out: reason -> (number, example)."""

    dataset: str
    queries: int = 0
    new: int = 0
    drops: dict[str, tuple[int, str | None]] = field(default_factory=dict)


def check_name(con: duckdb.DuckDBPyConnection, name: str, collection: int, source: str) -> None:
    """Check that a dataset can take generated queries: it is new, or it was generated in the same way.

    Raises:
        BadInput: the dataset is there with queries of another origin.
    """
    held = con.execute("SELECT collection, source FROM datasets WHERE name = ?", [name]).fetchall()
    if held and held[0] != (collection, source):
        raise BadInput(
            f"dataset {name} is there with other queries: {held[0][1] or 'added from a file'}, not {source}",
            hint="make another dataset with --name NAME",
        )


def refuse_test_set(role: str, name: str) -> None:
    """Refuse examples from a test set.

    Raises:
        UsageError: the dataset's role is test.
    """
    if role == "test":
        raise UsageError(
            f"--examples {name} is a test set: its queries would leak into what is generated",
            hint="name a dataset of role train or dev",
        )


def store_queries(
    con: duckdb.DuckDBPyConnection,
    job: Job,
    name: str,
    collection: int,
    source: str,
    found: list[NewQuery],
    prefix: str,
) -> Stored:
    """Add queries to a dataset, in the caller's transaction; the same again changes nothing.

    Args:
        prefix: begins the query ids, so that two teachers' queries about a passage differ.
    """
    check_name(con, name, collection, source)
    done = Stored(name)
    leakage.protect(con, allow_overlap=False)
    protected = {value for (value,) in con.execute("SELECT normal_hash FROM protected").fetchall()}
    kept = []
    for query in found:
        if keys.normal_hash(query.text) in protected:
            n, example = done.drops.get(leakage.REASON, (0, query.doc_id))
            done.drops[leakage.REASON] = (n + 1, example)
        else:
            kept.append(query)
    if kept:
        dataset = _dataset(con, job, name, collection, source)
        done.new = _insert(con, dataset, collection, kept, prefix)
        ((done.queries,),) = con.execute(
            "SELECT count(*) FROM query_origins WHERE dataset = ?", [dataset]
        ).fetchall()
    return done


def _dataset(con: duckdb.DuckDBPyConnection, job: Job, name: str, collection: int, source: str) -> int:
    held = con.execute("SELECT dataset FROM datasets WHERE name = ?", [name]).fetchall()
    if held:
        return int(held[0][0])
    dataset = next_id(con, "datasets", "dataset")
    con.execute(
        "INSERT INTO datasets VALUES (?, ?, ?, 'train', NULL, ?, NULL, ?)",
        [dataset, name, collection, source, job.job],
    )
    return dataset


def _insert(
    con: duckdb.DuckDBPyConnection, dataset: int, collection: int, queries: list[NewQuery], prefix: str
) -> int:
    """Insert the queries whose passage has none yet in this dataset, and return their number."""
    held = con.execute("SELECT document, place FROM query_origins WHERE dataset = ?", [dataset]).fetchall()
    known = set(held)
    ids = {
        query_id: (query, text_hash)
        for query_id, query, text_hash in con.execute(
            "SELECT query_id, query, text_hash FROM queries WHERE collection = ? AND starts_with(query_id, ?)",
            [collection, prefix],
        ).fetchall()
    }
    first = next_id(con, "queries", "query")
    rows: list[tuple[object, ...]] = []
    origins: list[tuple[object, ...]] = []
    for query in queries:
        if (query.document, query.place) in known:
            continue
        text, text_hash = query.text, keys.text_hash(None, query.text)
        query_id = f"{prefix}{query.doc_id}" + (f"-{query.place}" if query.place > 1 else "")
        if (
            ids.get(query_id, (0, text_hash))[1] != text_hash
        ):  # it was made from another version of the passage
            query_id += f"-{text_hash:016x}"[:9]
        if query_id not in ids:  # another dataset of the same teacher may have it
            ids[query_id] = first + len(rows), text_hash
            rows.append((ids[query_id][0], collection, query_id, text, text_hash, keys.normal_hash(text)))
        origins.append(
            (
                ids[query_id][0],
                dataset,
                query.document,
                query.text_hash,
                query.call,
                query.place,
                query.log_probability,
            )
        )
    insert(con, "queries", rows)
    insert(con, "query_origins", origins)
    insert(con, "dataset_queries", [(dataset, origin[0]) for origin in origins])
    return len(origins)
