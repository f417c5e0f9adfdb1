"""Merge documents, queries and judgments into the store, and count what was read, kept, new, and rejected with reasons.

First a source (`from_folder`, `from_ir_datasets`) is read into a `staging.Staging` file beside the store, which stays free. Then
everything is checked and merged set-wise in one transaction. Bad input does not change the store, and adding the same data
twice changes nothing.
"""

from dataclasses import dataclass
from typing import Any

import duckdb

from labelstore.datasets import catalog
from labelstore.datasets.staging import NO_TEXT, UNJUDGED, ReadCounts, Staging
from labelstore.errors import BadInput, UsageError
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore, Undo, next_id
from labelstore.store.row_hashes import qrels_hash
from labelstore.store.rows import fetch, first_row


@dataclass(frozen=True)
class NewDataset:
    """What `data add` adds.

    Attributes:
        name: the dataset's name.
        collection: the corpus; None: from the catalogue or the name.
        role: train, dev or test; None: from the catalogue or the name.
        update: take a new text for a known id as a new version, and other queries or judgments for a known dataset.
        judged_only: the dataset has only the queries that are judged.
        source: where the data comes from, as the store records it.
        ir_datasets_id: the id in ir_datasets, if it has one.
    """

    name: str
    collection: str | None = None
    role: str | None = None
    update: bool = False
    judged_only: bool = False
    source: str | None = None
    ir_datasets_id: str | None = None


@dataclass
class Added:
    """The result of an add."""

    dataset: str
    collection: str
    role: str
    steps: list[ReadCounts]
    changed: bool
    notes: list[str]


def merge_dataset(store: LabelStore, stage: Staging, request: NewDataset) -> Added:
    """Check a finished staging file against the store and merge it: one transaction, or nothing.

    Raises:
        BadInput: a known id has another text, or a known dataset other judgments (without `update`); the message has
            file:line.
        UsageError: the dataset belongs to another collection.
    """
    with store.write(reach=[stage.path]) as con:
        con.execute(f"ATTACH '{str(stage.path).replace(chr(39), chr(39) * 2)}' AS staged (READ_ONLY)")
        with provenance.recorded_in(con, "data.add", stage.clock) as job:
            added = _add_staged(con, job, stage, request)
            if not added.changed:
                raise Undo
    return added


@dataclass(frozen=True)
class _Place:
    """Where a source goes: a collection, and the dataset if it is there already."""

    collection: int
    collection_name: str
    is_new: bool
    dataset: int | None
    role: str | None


def _add_staged(
    con: duckdb.DuckDBPyConnection, job: provenance.Job, stage: Staging, request: NewDataset
) -> Added:
    """Merge an attached staging file, step by step."""
    place = _place(con, job, request)
    changed, notes, steps = place.is_new, list[str](), stage.steps
    if documents := steps.get("documents"):
        documents.n_new, documents.n_updated = _add_documents(
            con, job, place, documents.source, request.update
        )
        changed |= bool(documents.n_new or documents.n_updated)
    if queries := steps.get("queries"):
        wanted = _wanted_queries(con, queries, request.judged_only)
        queries.n_new, queries.n_updated = _add_queries(con, place, wanted, queries.source, request.update)
        changed |= bool(queries.n_new or queries.n_updated)
        members = _members(con, place, wanted)
    else:
        members = _members(con, place, "staged.judgments" if request.judged_only else None)
    (n_members,) = first_row(con, f"SELECT count(*) FROM {members}")
    judged = None
    if judgments := steps.get("qrels"):
        _drop_unknown_queries(con, judgments, members)
        changed |= _add_judged_ids(con, place, members)
        judged = _judged(con, place, members)
        notes += _without_text(con, judged)
    if not n_members and set(steps) == {"documents"}:
        notes.append(f"{request.name} has passages and no queries yet: `msft queries generate` makes some")
    elif not n_members:
        raise BadInput(
            f"{request.source or request.name}: it has no query to keep",
            hint="put queries.tsv into the folder, or name a collection that holds the queries of the qrels",
        )
    role = request.role or place.role or catalog.role(request.name, judged is not None)
    dataset = place.dataset or _new_dataset(con, job, place, request, role)
    if place.role not in (None, role):
        con.execute("UPDATE datasets SET role = ? WHERE dataset = ?", [role, dataset])
    changed |= place.role != role
    changed |= _replace(con, dataset, request, "dataset_queries", "query", members)
    if judgments and judged:
        changed |= _replace(con, dataset, request, "qrels", "query, document, relevance", judged)
        judgments.n_new = judgments.n_kept if place.dataset is None else 0
        con.execute(
            "UPDATE datasets SET qrels_hash = ? WHERE dataset = ?", [qrels_hash(con, dataset), dataset]
        )
        unjudged = n_members - first_row(con, f"SELECT count(DISTINCT query) FROM {judged}")[0]
        if unjudged:
            notes.append(
                f"{unjudged:,} of {n_members:,} queries have no judgment; --qrels FILE keeps the judged ones alone"
            )
    done = [steps[name] for name in ("documents", "queries", "qrels") if name in steps]
    for step in done:
        job.count(con, step.step, step.source, step.n_read, step.drops)
    return Added(request.name, place.collection_name, role, done, changed, notes)


def _place(con: duckdb.DuckDBPyConnection, job: provenance.Job, request: NewDataset) -> _Place:
    """Find the dataset and the collection, or make the collection."""
    existing = con.execute(
        "SELECT d.dataset, d.role, c.name FROM datasets d JOIN collections c USING (collection) WHERE d.name = ?",
        [request.name],
    ).fetchall()
    dataset, role, held = existing[0] if existing else (None, None, None)
    name = request.collection or held or catalog.collection(request.name)
    if held not in (None, name):
        raise UsageError(
            f"dataset {request.name} is there over collection {held}",
            hint=f"leave --collection out, or choose another name than {request.name} for the dataset",
        )
    found = con.execute("SELECT collection FROM collections WHERE name = ?", [name]).fetchall()
    if found:
        return _Place(found[0][0], name, False, dataset, role)
    entry = catalog.find(request.name)
    key = next_id(con, "collections", "collection")
    con.execute(
        "INSERT INTO collections VALUES (?, ?, ?, ?, ?)",
        [key, name, request.source, entry.licence if entry else None, job.job],
    )
    return _Place(key, name, True, dataset, role)


def _add_documents(
    con: duckdb.DuckDBPyConnection, job: provenance.Job, place: _Place, source: str, update: bool
) -> tuple[int, int]:
    """Merge the staged passages; how many are new, and how many have another text than before."""
    con.execute(
        """CREATE TEMP TABLE known AS
           SELECT d.document, d.doc_id, s.line, d.text IS NULL AS unheld,
                  d.text IS NOT NULL AND d.text_hash <> s.text_hash AS differs
           FROM documents d JOIN staged.docs s USING (doc_id) WHERE d.collection = ?""",
        [place.collection],
    )
    n, line, doc_id = first_row(
        con, "SELECT count(*), min(line), arg_min(doc_id, line) FROM known WHERE differs"
    )
    if n and not update:
        raise BadInput(
            f"{source}:{line}: {doc_id} has another text than in {place.collection_name}"
            + (f"; {n} passages in all" if n > 1 else ""),
            hint="take the new text as a new version with --update; labels stay with the text they were given for",
        )
    if n:
        con.execute(
            """INSERT INTO document_versions
               SELECT d.document, d.version, d.title, d.text, d.text_hash, ? FROM documents d
               WHERE d.document IN (SELECT document FROM known WHERE differs)""",
            [job.job],
        )
    n_known, fills = first_row(con, "SELECT count(*), count(*) FILTER (unheld) FROM known")
    if n or fills:
        con.execute(
            """UPDATE documents SET title = s.title, text = s.text, text_hash = s.text_hash,
                      version = documents.version + 1
               FROM known k JOIN staged.docs s USING (doc_id)
               WHERE k.document = documents.document AND (k.unheld OR k.differs)"""
        )
    (n_staged,) = first_row(con, "SELECT count(*) FROM staged.docs")
    if n_staged > n_known:
        con.execute(
            """INSERT INTO documents
               SELECT (? + row_number() OVER (ORDER BY line) - 1)::INTEGER, ?, doc_id, title, text, text_hash, 1
               FROM staged.docs ANTI JOIN known USING (doc_id)""",
            [next_id(con, "documents", "document"), place.collection],
        )
    con.execute("DROP TABLE known")
    return n_staged - n_known + fills, n


def _wanted_queries(con: duckdb.DuckDBPyConnection, step: ReadCounts, judged_only: bool) -> str:
    """Make the relation of staged queries to merge; those without a judgment are counted."""
    if not judged_only:
        return "staged.queries"
    con.execute(
        "CREATE TEMP TABLE wanted AS SELECT * FROM staged.queries SEMI JOIN staged.judgments USING (query_id)"
    )
    (n,) = first_row(con, "SELECT count(*) FROM staged.queries ANTI JOIN staged.judgments USING (query_id)")
    step.drop(UNJUDGED, n)
    return "wanted"


def _add_queries(
    con: duckdb.DuckDBPyConnection, place: _Place, wanted: str, source: str, update: bool
) -> tuple[int, int]:
    """Merge a relation of staged queries; how many are new, and how many have another text than before."""
    held = f"(SELECT query_id, text_hash FROM queries WHERE collection = {place.collection})"
    n, line, query_id = first_row(
        con,
        f"""SELECT count(*), min(w.line), arg_min(query_id, w.line)
            FROM {wanted} w JOIN {held} h USING (query_id) WHERE w.text_hash <> h.text_hash""",
    )
    if n and not update:
        raise BadInput(
            f"{source}:{line}: query {query_id} has another text than in {place.collection_name}"
            + (f"; {n} queries in all" if n > 1 else ""),
            hint="take the new text with --update, or keep the two separate with --collection NAME",
        )
    if n:
        con.execute(
            f"""UPDATE queries SET text = w.text, text_hash = w.text_hash, normal_hash = w.normal_hash
                FROM {wanted} w WHERE w.query_id = queries.query_id AND queries.collection = ?
                AND w.text_hash <> queries.text_hash""",
            [place.collection],
        )
    (n_new,) = first_row(con, f"SELECT count(*) FROM {wanted} ANTI JOIN {held} USING (query_id)")
    con.execute(
        f"""INSERT INTO queries
            SELECT (? + row_number() OVER (ORDER BY line) - 1)::INTEGER, ?, query_id, text, text_hash, normal_hash
            FROM {wanted} ANTI JOIN {held} USING (query_id)""",
        [next_id(con, "queries", "query"), place.collection],
    )
    return n_new, n


def _members(con: duckdb.DuckDBPyConnection, place: _Place, named_by: str | None) -> str:
    """Make a table (query, query_id) of the collection's queries that a relation names; without one it is empty."""
    con.execute(
        f"""CREATE TEMP TABLE members AS SELECT query, query_id FROM queries
            {f"SEMI JOIN {named_by} USING (query_id)" if named_by else ""}
            WHERE collection = ? AND ?""",
        [place.collection, named_by is not None],
    )
    return "members"


def _drop_unknown_queries(con: duckdb.DuckDBPyConnection, step: ReadCounts, members: str) -> None:
    """Count the judgments of queries that are not members.

    Raises:
        BadInput: if no judgment is left.
    """
    n, line, query_id = first_row(
        con,
        f"""SELECT count(*), min(line), arg_min(query_id, line)
            FROM staged.judgments ANTI JOIN {members} USING (query_id)""",
    )
    if n == first_row(con, "SELECT count(*) FROM staged.judgments")[0]:
        raise BadInput(
            f"{step.source}:{line or 1}: no judgment names a query that is known"
            + (f" (first: {query_id})" if query_id else ""),
            hint="check that the queries and the qrels belong together",
        )
    step.drop(NO_TEXT, n, f"{step.source}:{line} ({query_id})")


def _add_judged_ids(con: duckdb.DuckDBPyConnection, place: _Place, members: str) -> bool:
    """Add judged passages that the collection does not know, by their ids alone; whether there are any."""
    con.execute(
        f"""CREATE TEMP TABLE unheld AS
            SELECT doc_id, min(line) AS line FROM staged.judgments SEMI JOIN {members} USING (query_id)
            ANTI JOIN (SELECT doc_id FROM documents WHERE collection = ?) USING (doc_id) GROUP BY doc_id""",
        [place.collection],
    )
    (n,) = first_row(con, "SELECT count(*) FROM unheld")
    if n:
        con.execute(
            """INSERT INTO documents
               SELECT (? + row_number() OVER (ORDER BY line) - 1)::INTEGER, ?, doc_id, NULL, NULL, NULL, 0
               FROM unheld""",
            [next_id(con, "documents", "document"), place.collection],
        )
    return n > 0


def _judged(con: duckdb.DuckDBPyConnection, place: _Place, members: str) -> str:
    """Make a table (query, document, relevance) of the members' staged judgments."""
    con.execute(
        f"""CREATE TEMP TABLE judged AS SELECT m.query, d.document, j.relevance
            FROM staged.judgments j JOIN {members} m USING (query_id)
            JOIN documents d ON d.collection = ? AND d.doc_id = j.doc_id""",
        [place.collection],
    )
    return "judged"


def _without_text(con: duckdb.DuckDBPyConnection, judged: str) -> list[str]:
    """Note judged passages that are known by their ids alone."""
    (n,) = first_row(
        con,
        f"SELECT count(DISTINCT document) FROM {judged} JOIN documents USING (document) WHERE text IS NULL",
    )
    if not n:
        return []
    return [f"{n:,} judged passages have no text here: they are known by id and left out of views"]


def _new_dataset(
    con: duckdb.DuckDBPyConnection, job: provenance.Job, place: _Place, request: NewDataset, role: str
) -> int:
    dataset = next_id(con, "datasets", "dataset")
    con.execute(
        "INSERT INTO datasets VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
        [dataset, request.name, place.collection, role, request.ir_datasets_id, request.source, job.job],
    )
    return dataset


def _replace(
    con: duckdb.DuckDBPyConnection, dataset: int, request: NewDataset, table: str, columns: str, source: str
) -> bool:
    """Make a dataset's rows in `table` those of `source`; whether they were others.

    Raises:
        BadInput: if the dataset held other rows and no update was requested.
    """
    own = f"SELECT {columns} FROM {table} WHERE dataset = {dataset}"
    new = f"SELECT {columns} FROM {source}"
    n_own, gone, fresh = (
        first_row(con, f"SELECT count(*) FROM ({sql})")[0]
        for sql in (own, f"{own} EXCEPT {new}", f"{new} EXCEPT {own}")
    )
    if not gone and not fresh:
        return False
    if n_own and not request.update:
        what = "queries" if table == "dataset_queries" else "judgments"
        raise BadInput(
            f"dataset {request.name} is there with other {what} ({gone:,} would go, {fresh:,} come)",
            hint="replace them with --update, or choose another name for another dataset",
        )
    con.execute(f"DELETE FROM {table} WHERE dataset = ?", [dataset])
    con.execute(f"INSERT INTO {table} SELECT ?, {columns} FROM {source} ORDER BY ALL", [dataset])
    return True


def datasets(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """List every dataset with its counts, for `data list`."""
    return fetch(
        con,
        """SELECT d.name AS dataset, c.name AS collection, d.role,
                  (SELECT count(*) FROM dataset_queries q WHERE q.dataset = d.dataset) AS queries,
                  (SELECT count(DISTINCT r.query) FROM qrels r WHERE r.dataset = d.dataset) AS judged_queries,
                  (SELECT count(*) FROM qrels r WHERE r.dataset = d.dataset) AS judgments,
                  (SELECT count(*) FROM documents p WHERE p.collection = d.collection AND p.text IS NOT NULL)
                      AS passages,
                  (SELECT count(*) FROM runs r WHERE r.dataset = d.dataset) AS runs,
                  d.ir_datasets_id
           FROM datasets d JOIN collections c USING (collection) ORDER BY d.dataset""",
    )


def describe(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[dict[str, Any]]:
    """Describe a dataset in rows of property and value, for `data show`."""
    row = next(r for r in datasets(con) if r["dataset"] == of.name)
    extra = con.execute(
        """SELECT count(*) FILTER (text IS NULL) AS ids_without_text, avg(length(text)) AS characters_per_passage,
                  max(version) AS newest_version FROM documents WHERE collection = ?""",
        [of.collection],
    ).fetchall()[0]
    grades = con.execute(
        "SELECT relevance, count(*) FROM qrels WHERE dataset = ? GROUP BY ALL ORDER BY ALL", [of.dataset]
    ).fetchall()
    source, licence = con.execute(
        """SELECT d.source, c.licence FROM datasets d JOIN collections c USING (collection) WHERE d.dataset = ?""",
        [of.dataset],
    ).fetchall()[0]
    row |= dict(
        zip(("ids_without_text", "characters_per_passage", "newest_version"), extra, strict=True),
        grades=", ".join(f"{grade}: {n:,}" for grade, n in grades) or None,
        measures=" ".join(catalog.measures(of.name)),
        source=source,
        licence=licence,
        qrels_hash=of.qrels_hash,
    )
    return [{"property": name, "value": value} for name, value in row.items()]
