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
from labelstore.store.label_store import LabelStore, next_id
from labelstore.store.row_hashes import qrels_hash
from labelstore.store.rows import fetch


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
    try:
        with store.write() as con:
            con.execute(f"ATTACH '{str(stage.path).replace(chr(39), chr(39) * 2)}' AS staged (READ_ONLY)")
            with provenance.recorded_in(con, "data.add", stage.clock) as job:
                added = _Merge(con, job, stage, request).run()
                if not added.changed:
                    raise _NothingNew(added)
            return added
    except _NothingNew as nothing:
        return nothing.added


class _NothingNew(Exception):
    """Rolls the transaction back: a second add leaves no trace."""

    def __init__(self, added: Added) -> None:
        super().__init__()
        self.added = added


class _Merge:
    """One merge, step by step over the writing connection."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, job: provenance.Job, stage: Staging, request: NewDataset
    ) -> None:
        self.con, self.job, self.stage, self.request = con, job, stage, request
        self.steps = stage.steps
        self.changed = False
        self.notes: list[str] = []
        self.collection = 0
        self.collection_name = request.collection or catalog.collection(request.name)

    def run(self) -> Added:
        existing = self.con.execute(
            """SELECT d.dataset, c.name, d.role FROM datasets d JOIN collections c USING (collection)
               WHERE d.name = ?""",
            [self.request.name],
        ).fetchall()
        if existing and self.request.collection is None:
            self.collection_name = existing[0][1]
        if existing and existing[0][1] != self.collection_name:
            raise UsageError(
                f"dataset {self.request.name} is there over collection {existing[0][1]}",
                hint=f"leave --collection out, or name the dataset otherwise than {self.request.name}",
            )
        self._collection()
        if "documents" in self.steps:
            self._documents(self.steps["documents"])
        self._queries()
        judged = self._judgments()
        role = self._dataset(existing[0] if existing else None, judged)
        steps = [self.steps[name] for name in ("documents", "queries", "qrels") if name in self.steps]
        for step in steps:
            self.job.count(self.con, step.step, step.source, step.n_read, step.drops)
        return Added(self.request.name, self.collection_name, role, steps, self.changed, self.notes)

    def _value(self, sql: str, parameters: list[Any] | None = None) -> Any:
        return self.con.execute(sql, parameters or []).fetchall()[0][0]

    def _collection(self) -> None:
        found = self.con.execute(
            "SELECT collection FROM collections WHERE name = ?", [self.collection_name]
        ).fetchall()
        if found:
            self.collection = found[0][0]
            return
        entry = catalog.find(self.request.name)
        self.collection = next_id(self.con, "collections", "collection")
        self.con.execute(
            "INSERT INTO collections VALUES (?, ?, ?, ?, ?)",
            [
                self.collection,
                self.collection_name,
                self.request.source,
                entry.licence if entry else None,
                self.job.job,
            ],
        )
        self.changed = True

    def _documents(self, step: ReadCounts) -> None:
        con = self.con
        con.execute(
            """CREATE TEMP TABLE known AS
               SELECT d.document, d.doc_id, s.line, d.text IS NULL AS unheld,
                      d.text IS NOT NULL AND d.text_hash <> s.text_hash AS differs
               FROM documents d JOIN staged.docs s USING (doc_id) WHERE d.collection = ?""",
            [self.collection],
        )
        n, line, doc_id = con.execute(
            "SELECT count(*), min(line), arg_min(doc_id, line) FROM known WHERE differs"
        ).fetchall()[0]
        if n and not self.request.update:
            raise BadInput(
                f"{step.source}:{line}: {doc_id} has another text than in {self.collection_name}"
                + (f"; {n} passages in all" if n > 1 else ""),
                hint="--update takes the new text as a new version; labels stay with the text they were given for",
            )
        if n:
            con.execute(
                """INSERT INTO document_versions
                   SELECT d.document, d.version, d.title, d.text, d.text_hash, ? FROM documents d
                   WHERE d.document IN (SELECT document FROM known WHERE differs)""",
                [self.job.job],
            )
        fills = self._value("SELECT count(*) FROM known WHERE unheld")
        if n or fills:
            con.execute(
                """UPDATE documents SET title = s.title, text = s.text, text_hash = s.text_hash,
                          version = documents.version + 1
                   FROM known k JOIN staged.docs s USING (doc_id)
                   WHERE k.document = documents.document AND (k.unheld OR k.differs)"""
            )
        step.n_updated = n
        n_known = self._value("SELECT count(*) FROM known")
        n_staged = self._value("SELECT count(*) FROM staged.docs")
        if n_staged > n_known:
            con.execute(
                """INSERT INTO documents
                   SELECT (? + row_number() OVER (ORDER BY line) - 1)::INTEGER, ?, doc_id, title, text, text_hash, 1
                   FROM staged.docs ANTI JOIN known USING (doc_id)""",
                [next_id(con, "documents", "document"), self.collection],
            )
        con.execute("DROP TABLE known")
        step.n_new = n_staged - n_known + fills
        self.changed |= bool(step.n_new or n)

    def _queries(self) -> None:
        con = self.con
        con.execute(
            "CREATE TEMP TABLE held AS SELECT query, query_id, text, text_hash FROM queries WHERE collection = ?",
            [self.collection],
        )
        step = self.steps.get("queries")
        if step is None:
            con.execute("CREATE TEMP TABLE members AS SELECT query FROM held WHERE false")
            if self.request.judged_only:
                con.execute(
                    """INSERT INTO members SELECT query FROM held
                       WHERE query_id IN (SELECT query_id FROM staged.judgments)"""
                )
            return
        judged = (
            "WHERE query_id IN (SELECT query_id FROM staged.judgments)" if self.request.judged_only else ""
        )
        con.execute(f"CREATE TEMP TABLE wanted AS SELECT * FROM staged.queries {judged}")
        n_staged, n_wanted = (
            self._value(f"SELECT count(*) FROM {table}") for table in ("staged.queries", "wanted")
        )
        step.drop(UNJUDGED, n_staged - n_wanted)
        differing = "FROM wanted w JOIN held h USING (query_id) WHERE w.text_hash <> h.text_hash"
        n, line, query_id = con.execute(
            f"SELECT count(*), min(w.line), arg_min(query_id, w.line) {differing}"
        ).fetchall()[0]
        if n and not self.request.update:
            raise BadInput(
                f"{step.source}:{line}: query {query_id} has another text than in {self.collection_name}"
                + (f"; {n} queries in all" if n > 1 else ""),
                hint="--update takes the new text; --collection NAME keeps the two apart",
            )
        if n:
            con.execute(
                """UPDATE queries SET text = w.text, text_hash = w.text_hash, normal_hash = w.normal_hash
                   FROM wanted w WHERE w.query_id = queries.query_id AND queries.collection = ?
                   AND w.text_hash <> queries.text_hash""",
                [self.collection],
            )
        step.n_updated = n
        con.execute(
            """CREATE TEMP TABLE fresh AS
               SELECT (? + row_number() OVER (ORDER BY line) - 1)::INTEGER AS query, query_id, text, text_hash,
                      normal_hash FROM wanted ANTI JOIN held USING (query_id)""",
            [next_id(con, "queries", "query")],
        )
        con.execute(
            "INSERT INTO queries SELECT query, ?, query_id, text, text_hash, normal_hash FROM fresh",
            [self.collection],
        )
        con.execute("INSERT INTO held SELECT query, query_id, text, text_hash FROM fresh")
        con.execute("CREATE TEMP TABLE members AS SELECT query FROM held SEMI JOIN wanted USING (query_id)")
        step.n_new = self._value("SELECT count(*) FROM fresh")
        self.changed |= bool(step.n_new or n)

    def _judgments(self) -> bool:
        """Put staged judgments by surrogate keys into the temporary table `judged`; unknown passages get ids."""
        con = self.con
        step = self.steps.get("qrels")
        con.execute("CREATE TEMP TABLE judged (query INTEGER, document INTEGER, relevance SMALLINT)")
        if step is None:
            return False
        known = "SELECT query, query_id FROM held SEMI JOIN members USING (query)"
        n, line, query_id = con.execute(
            f"""SELECT count(*), min(line), arg_min(query_id, line)
                FROM staged.judgments ANTI JOIN ({known}) USING (query_id)"""
        ).fetchall()[0]
        if n == self._value("SELECT count(*) FROM staged.judgments"):
            raise BadInput(
                f"{step.source}:{line or 1}: no judgment names a query that is known"
                + (f" (first: {query_id})" if query_id else ""),
                hint="do the queries and the qrels belong together?",
            )
        step.drop(NO_TEXT, n, f"{step.source}:{line} ({query_id})")
        con.execute(
            f"""CREATE TEMP TABLE unheld AS
                SELECT doc_id, min(line) AS line FROM staged.judgments SEMI JOIN ({known}) USING (query_id)
                ANTI JOIN (SELECT doc_id FROM documents WHERE collection = ?) USING (doc_id) GROUP BY doc_id""",
            [self.collection],
        )
        n_unheld = self._value("SELECT count(*) FROM unheld")
        if n_unheld:
            con.execute(
                """INSERT INTO documents
                   SELECT (? + row_number() OVER (ORDER BY line) - 1)::INTEGER, ?, doc_id, NULL, NULL, NULL, 0
                   FROM unheld""",
                [next_id(con, "documents", "document"), self.collection],
            )
            self.changed = True
        con.execute(
            f"""INSERT INTO judged SELECT k.query, d.document, j.relevance
                FROM staged.judgments j JOIN ({known}) k USING (query_id)
                JOIN documents d ON d.collection = ? AND d.doc_id = j.doc_id""",
            [self.collection],
        )
        n_without = self._value(
            "SELECT count(DISTINCT document) FROM judged JOIN documents USING (document) WHERE text IS NULL"
        )
        if n_without:
            self.notes.append(
                f"{n_without:,} judged passages have no text here: they are known by id and left out of views"
            )
        return True

    def _dataset(self, existing: tuple[int, str, str] | None, judged: bool) -> str:
        con, request = self.con, self.request
        n_members = self._value("SELECT count(*) FROM members")
        if not n_members:
            raise BadInput(
                f"{request.source or request.name}: there is no query to keep",
                hint="a folder needs queries.tsv, or the collection must hold the queries that the qrels name",
            )
        role = request.role or (existing[2] if existing else catalog.role(request.name, judged))
        if existing is None:
            dataset = next_id(con, "datasets", "dataset")
            con.execute(
                "INSERT INTO datasets VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
                [
                    dataset,
                    request.name,
                    self.collection,
                    role,
                    request.ir_datasets_id,
                    request.source,
                    self.job.job,
                ],
            )
            self.changed = True
        else:
            dataset = existing[0]
            if role != existing[2]:
                con.execute("UPDATE datasets SET role = ? WHERE dataset = ?", [role, dataset])
                self.changed = True
        self._replace("dataset_queries", "query", "members", dataset, existing is not None)
        if judged:
            self._replace("qrels", "query, document, relevance", "judged", dataset, existing is not None)
            self.steps["qrels"].n_new = self.steps["qrels"].n_kept if existing is None else 0
            con.execute(
                "UPDATE datasets SET qrels_hash = ? WHERE dataset = ?", [qrels_hash(con, dataset), dataset]
            )
        unjudged = n_members - self._value("SELECT count(DISTINCT query) FROM judged")
        if judged and unjudged:
            self.notes.append(
                f"{unjudged:,} of {n_members:,} queries have no judgment; --qrels FILE keeps the judged ones alone"
            )
        return role

    def _replace(self, table: str, columns: str, source: str, dataset: int, known: bool) -> None:
        """Make a dataset's rows in `table` those of `source`.

        Raises:
            BadInput: the dataset has other rows, and `update` is not set.
        """
        con = self.con
        own = f"SELECT {columns} FROM {table} WHERE dataset = {dataset}"
        new = f"SELECT {columns} FROM {source}"
        if known:
            gone = self._value(f"SELECT count(*) FROM ({own} EXCEPT {new})")
            fresh = self._value(f"SELECT count(*) FROM ({new} EXCEPT {own})")
            if not gone and not fresh:
                return
            if self._value(f"SELECT count(*) FROM ({own})") and not self.request.update:
                what = "queries" if table == "dataset_queries" else "judgments"
                raise BadInput(
                    f"dataset {self.request.name} is there with other {what} ({gone:,} would go, {fresh:,} come)",
                    hint="--update replaces them; another name makes another dataset",
                )
            con.execute(f"DELETE FROM {table} WHERE dataset = ?", [dataset])
        con.execute(f"INSERT INTO {table} SELECT ?, {columns} FROM {source} ORDER BY ALL", [dataset])
        self.changed = True


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
