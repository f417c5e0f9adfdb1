"""Import labels: read and repair them while the store is closed, then merge them in one transaction.

A file may hold several labelings, one per teacher and first stage. Lists that cannot be used go to quarantine with
their reason (under their labeling, if any of its lists is good) and are counted. Importing the same file again changes
nothing. Passages that the store lacks become ids without text.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from labelstore.datasets import catalog
from labelstore.errors import BadInput, UsageError
from labelstore.labels import write as labels
from labelstore.labels.label_list import Reader
from labelstore.labels.read_json import detect, read
from labelstore.labels.repair import LACKS_MOST, labeling_name, short_name
from labelstore.labels.staging import LabelsToImport, Staged, stage
from labelstore.provenance import record as provenance
from labelstore.store import keys, lookup
from labelstore.store.label_store import LabelStore, next_id

UNKNOWN_QUERY = "unknown query"
OTHER_TEXT = "query has another text"
SECOND_LIST = "second list for the query"
# What to do about a file of which no list can be taken, by the reason; any other reason speaks of the layout.
_HINTS = {
    "wrong_format": "ask the teacher again for these queries: a reply must rank at least half of its passages, as in [2] > [1] > [3]",
    "truncated": "let the teacher write more tokens and ask it again for these queries",
    "refused": "ask the teacher again for these queries, or another teacher",
    "engine_error": "ask the teacher again for these queries: the file holds error messages where replies should be",
    LACKS_MOST: "give each list at least half of the passages that `initial` names, or leave `initial` out",
}

Drops = dict[str, tuple[int, str | None]]


@dataclass
class Labelled:
    """One labeling after an import."""

    name: str
    teacher: str
    first_stage: str | None
    n_lists: int
    n_new: int
    n_repaired: int
    n_quarantined: int
    depth: int


@dataclass
class Imported:
    """The result of an import: in = kept + dropped, for lists and for the passages that they name."""

    dataset: str
    layout: str
    n_read: int
    labelings: list[Labelled]
    drops: Drops
    passage_drops: Drops
    n_not_held: int
    changed: bool
    notes: list[str] = field(default_factory=list)

    @property
    def n_refused(self) -> int:
        return sum(n for n, _ in self.drops.values())

    @property
    def n_faulty(self) -> int:
        """Count refused lists with a fault; a query's second list is refused without one."""
        return sum(n for reason, (n, _) in self.drops.items() if reason != SECOND_LIST)


class _NothingNew(Exception):
    """Rolls the transaction back: a second import leaves no trace."""

    def __init__(self, imported: Imported) -> None:
        super().__init__()
        self.imported = imported


def import_labels(
    store: LabelStore,
    path: Path,
    request: LabelsToImport,
    reader: Reader,
    progress: Callable[[int, int | None], None] | None = None,
) -> Imported:
    """Read, repair and merge a file of labels.

    Args:
        reader: the rules for replies and lists (the module ``teachers.prompts.replies``).
        progress: called with (lists read, total or None).

    Raises:
        DataMissing: the file, the dataset or the run is not found.
        BadInput: no list of the file can be used, or one contradicts a labeling of the store.
    """
    clock = provenance.Clock()
    layout = request.layout or detect(path)
    if not (request.with_texts and request.dataset is not None):
        with store.read() as con:  # a wrong name should not wait for the file to be read
            of = lookup.pick_dataset(con, request.dataset)
            if request.run is not None:
                lookup.run(con, of, request.run)
    staged = stage(
        read(path, layout, reader.parse, request.replies), request, layout, reader.is_ranking, progress
    )
    origin_hash = keys.file_hash(path)
    try:
        with store.write() as con, provenance.recorded_in(con, "teachers.import", clock) as job:
            imported = _Merge(con, job, path, origin_hash, request, staged, layout).run()
            if not imported.changed:
                raise _NothingNew(imported)
            return imported
    except _NothingNew as nothing:
        return nothing.imported


class _Merge:
    """One import, step by step over the writing connection."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        job: provenance.Job,
        path: Path,
        origin_hash: str,
        request: LabelsToImport,
        staged: Staged,
        layout: str,
    ) -> None:
        self.con, self.job, self.path, self.origin_hash = con, job, path, origin_hash
        self.request, self.staged, self.layout = request, staged, layout
        self.changed = False
        self.notes: list[str] = []

    def run(self) -> Imported:
        con, staged = self.con, self.staged
        for name in ("lists", "items", "failed", "texts"):
            con.register(f"import_{name}", getattr(staged, name))
        self.of = self._dataset()
        if self.request.with_texts:
            self._add_texts()
        self._resolve()
        drops = self._drops()
        if self._value("SELECT count(*) FROM taken") == 0:
            self._refuse(drops)
        not_held = self._documents()
        labelings = [labelled for k in range(len(staged.sources)) if (labelled := self._labeling(k))]
        self.job.count(con, "labels", self.path.name, staged.n_read, drops)
        self.job.count(con, "label passages", self.path.name, staged.n_named, staged.passage_drops)
        for name in ("lists", "items", "failed", "texts"):
            con.unregister(f"import_{name}")
        return Imported(
            self.of.name, self.layout, staged.n_read, labelings, drops, staged.passage_drops, not_held,
            self.changed, self.notes,
        )  # fmt: skip

    def _value(self, sql: str, parameters: list[Any] | None = None) -> Any:
        return self.con.execute(sql, parameters or []).fetchall()[0][0]

    def _dataset(self) -> lookup.Dataset:
        """Find the dataset; make it if it is new and the file has the texts."""
        name = self.request.dataset
        known = self.con.execute("SELECT 1 FROM datasets WHERE name = ? OR ir_datasets_id = ?", [name, name])
        if known.fetchall() or not self.request.with_texts or name is None:
            return lookup.pick_dataset(self.con, name)
        collection_name = catalog.collection(name)
        found = self.con.execute(
            "SELECT collection FROM collections WHERE name = ?", [collection_name]
        ).fetchall()
        collection = found[0][0] if found else next_id(self.con, "collections", "collection")
        if not found:
            self.con.execute(
                "INSERT INTO collections VALUES (?, ?, ?, NULL, ?)",
                [collection, collection_name, self.path.name, self.job.job],
            )
        self.con.execute(
            "INSERT INTO datasets VALUES (?, ?, ?, 'train', NULL, ?, NULL, ?)",
            [next_id(self.con, "datasets", "dataset"), name, collection, self.path.name, self.job.job],
        )
        self.notes.append(f"made the training dataset {name} over collection {collection_name}")
        self.changed = True
        return lookup.dataset(self.con, name)

    def _add_texts(self) -> None:
        """Add the file's queries and passages that the store lacks."""
        con, of = self.con, self.of
        con.execute(
            """CREATE OR REPLACE TEMP TABLE file_queries AS
               SELECT coalesce(query_id, 'q' || printf('%016x', normal_hash)) AS query_id,
                      any_value(query_text) AS text, any_value(normal_hash) AS normal_hash
               FROM import_lists WHERE query_text IS NOT NULL AND trim(query_text) <> '' GROUP BY 1"""
        )
        first = next_id(con, "queries", "query")
        texts = con.execute(
            """SELECT f.query_id, f.text, f.normal_hash FROM file_queries f
               ANTI JOIN (SELECT query_id FROM queries WHERE collection = ?) k USING (query_id)
               ANTI JOIN (SELECT q.normal_hash FROM queries q JOIN dataset_queries USING (query) WHERE dataset = ?) n
                      ON n.normal_hash = f.normal_hash AND f.query_id LIKE 'q%' ORDER BY f.query_id""",
            [of.collection, of.dataset],
        ).fetchall()
        rows = [
            [first + k, of.collection, query_id, text.strip(), keys.text_hash(None, text.strip()), normal]
            for k, (query_id, text, normal) in enumerate(texts)
        ]
        if rows:
            con.executemany("INSERT INTO queries VALUES (?, ?, ?, ?, ?, ?)", rows)
        (n_joined,) = con.execute(
            """INSERT INTO dataset_queries
               SELECT ?, q.query FROM queries q JOIN file_queries f ON f.query_id = q.query_id
               WHERE q.collection = ? AND q.query NOT IN (SELECT query FROM dataset_queries WHERE dataset = ?)
               ORDER BY q.query""",
            [of.dataset, of.collection, of.dataset],
        ).fetchall()[0]
        labels.make_documents(con, of.collection, "import_texts")
        (n_texts,) = con.execute(
            """UPDATE documents d SET title = t.title, text = t.text, text_hash = t.text_hash, version = 1
               FROM import_texts t WHERE d.collection = ? AND d.doc_id = t.doc_id AND d.text IS NULL""",
            [of.collection],
        ).fetchall()[0]
        con.execute("DROP TABLE file_queries")
        if n_joined or n_texts:
            self.changed = True
            self.notes.append(f"{n_joined} queries and {n_texts} passages taken from the file")

    def _resolve(self) -> None:
        """Match lists with the dataset's queries: `resolved` has a reason for each that cannot be used, `taken` has the others."""
        self.con.execute(
            f"""CREATE OR REPLACE TEMP TABLE resolved AS
                WITH known AS (
                    SELECT q.query_id, q.normal_hash FROM dataset_queries d JOIN queries q USING (query)
                    WHERE d.dataset = {self.of.dataset}
                ), named AS (
                    SELECT l.* EXCLUDE (query_id), l.query_id AS file_query_id,
                           coalesce(i.query_id, t.query_id) AS query_id,
                           CASE WHEN i.query_id IS NULL AND t.query_id IS NULL THEN '{UNKNOWN_QUERY}'
                                WHEN l.normal_hash <> i.normal_hash THEN '{OTHER_TEXT}' END AS reason
                    FROM import_lists l
                    LEFT JOIN known i ON i.query_id = l.query_id
                    LEFT JOIN (SELECT normal_hash, min(query_id) AS query_id FROM known GROUP BY normal_hash) t
                           ON l.query_id IS NULL AND t.normal_hash = l.normal_hash
                )
                SELECT *, CASE WHEN reason IS NULL AND row_number() OVER (
                              PARTITION BY source, query_id, reason IS NULL ORDER BY list) > 1
                          THEN '{SECOND_LIST}' ELSE reason END AS refused
                FROM named"""
        )
        self.con.execute("CREATE OR REPLACE TEMP TABLE taken AS SELECT * FROM resolved WHERE refused IS NULL")

    def _drops(self) -> Drops:
        """Count refused lists by reason, with an example each."""
        rows = self.con.execute(
            """SELECT reason, count(*), min_by(detail, n) FROM (
                   SELECT refused AS reason, list AS n,
                          place || ' (' || coalesce(file_query_id, query_text, '-') || ')' AS detail
                   FROM resolved WHERE refused IS NOT NULL
                   UNION ALL SELECT reason, row_number() OVER (), detail FROM import_failed)
               GROUP BY reason ORDER BY reason"""
        ).fetchall()
        return {reason: (n, example) for reason, n, example in rows}

    def _refuse(self, drops: Drops) -> None:
        if not drops:
            raise BadInput(
                f"{self.path}: no list of labels in it", hint="is this the right file and --layout?"
            )
        reason, (n, example) = max(drops.items(), key=lambda drop: drop[1][0])
        hint = _HINTS.get(reason, f"name its layout with --layout; it was read as {self.layout}")
        if reason == UNKNOWN_QUERY:
            hint = f"msft data add {self.of.name} --from FOLDER brings queries in"
            hint += "; --with-texts takes them from the file" if not self.request.with_texts else ""
        elif reason == OTHER_TEXT:
            hint = f"are these labels for {self.of.name}? --dataset names another"
        raise BadInput(
            f"{example}: {reason} ({n} of {self.staged.n_read} lists); none can be taken", hint=hint
        )

    def _documents(self) -> int:
        """Add unknown ids that labels name; return how many passages of these labels have no text."""
        self.con.execute(
            """CREATE OR REPLACE TEMP VIEW taken_documents AS
               SELECT DISTINCT doc_id FROM import_items SEMI JOIN taken USING (list)"""
        )
        labels.make_documents(self.con, self.of.collection, "taken_documents")
        n: int = self._value(
            """SELECT count(*) FROM documents d SEMI JOIN taken_documents USING (doc_id)
               WHERE d.collection = ? AND d.text IS NULL""",
            [self.of.collection],
        )
        self.con.execute("DROP VIEW taken_documents")
        return n

    def _labeling(self, k: int) -> Labelled | None:
        source, staged = self.staged.sources[k], self.staged
        n_lists, n_repaired = self.con.execute(
            "SELECT count(*), count(*) FILTER (WHERE status <> 'ok') FROM taken WHERE source = ?", [k]
        ).fetchall()[0]
        if not n_lists:
            return None
        self.con.execute(f"CREATE OR REPLACE TEMP VIEW these AS SELECT * FROM taken WHERE source = {k}")
        teacher = labels.Teacher(
            source.teacher, "imported", licence=self.request.licence or staged.licences[k]
        )
        teacher_key = labels.store_teacher(self.con, teacher)
        run = lookup.run(self.con, self.of, self.request.run) if self.request.run else None
        new = labels.NewLabeling(
            name=self._name(k, teacher_key, None if run is None else run.run),
            teacher=teacher_key,
            dataset=self.of.dataset,
            strategy="imported",
            depth=staged.depths[k],
            origin=self.path.name,
            run=None if run is None else run.run,
            first_stage=source.first_stage,
            parameters={**staged.parameters[k], "layout": self.layout},
            licence=teacher.licence,
            origin_hash=self.origin_hash,
        )
        labeling = labels.store_labeling(self.con, self.job, new)
        self._items_of(run)
        stored = labels.store_permutations(
            self.con, labeling, "these_lists", "these_items", replace=self.request.replace
        )
        if stored.differing:
            raise BadInput(
                f"{new.name} holds another order for {stored.differing} of these queries",
                hint="--name imports them as a labeling of their own; --replace takes the new orders",
            )
        self._replies(teacher_key, labeling)
        n_quarantined = self._quarantine(labeling, k)
        self.changed |= stored.changed
        return Labelled(
            new.name, source.teacher, source.first_stage, n_lists, stored.new + stored.replaced, n_repaired,
            n_quarantined, new.depth,
        )  # fmt: skip

    def _name(self, k: int, teacher: int, run: int | None) -> str:
        """Name the labeling: the given name, otherwise TEACHER@FIRST_STAGE, with the dataset appended if that is taken."""
        source = self.staged.sources[k]
        if self.request.name is not None:
            if len({s for s, (n,) in zip(self.staged.sources, self._counts(), strict=True) if n}) > 1:
                raise UsageError(
                    f"{self.path.name} holds {len(self.staged.sources)} labelings, and --name can name one",
                    hint="leave it out: they are named TEACHER@FIRST_STAGE",
                )
            return self.request.name
        plain = labeling_name(source.teacher, source.first_stage)
        candidates = [plain, f"{plain}@{short_name(self.of.name)}"]
        candidates += [f"{candidates[1]}-{n}" for n in range(2, 1000)]
        for name in candidates:
            found = self.con.execute(
                "SELECT teacher, dataset, run, strategy FROM labelings WHERE name = ?", [name]
            ).fetchall()
            if not found or found[0] == (teacher, self.of.dataset, run, "imported"):
                if name != plain:
                    self.notes.append(f"{plain} is another labeling here, so this one is named {name}")
                return name
        raise UsageError(f"no free name for {plain}", hint="--name gives one")

    def _counts(self) -> list[tuple[int]]:
        n: list[tuple[int]] = self.con.execute(
            """SELECT count(t.list) FROM range(?) s(source) LEFT JOIN taken t USING (source)
               GROUP BY s.source ORDER BY s.source""",
            [len(self.staged.sources)],
        ).fetchall()
        return n

    def _items_of(self, run: lookup.Run | None) -> None:
        """Views `these_lists` and `these_items` with the columns that the store's functions take."""
        self.con.execute(
            """CREATE OR REPLACE TEMP VIEW these_lists AS
               SELECT query_id, status, repairs, n_calls, tokens_in, tokens_out, NULL::FLOAT AS disagreement,
                      settled FROM these"""
        )
        initial = "i.initial_rank"
        join = ""
        if run is not None:
            initial = "coalesce(i.initial_rank, c.rank::USMALLINT)"
            join = f"""LEFT JOIN (SELECT q.query_id, d.doc_id, c.rank FROM candidates c JOIN queries q USING (query)
                       JOIN documents d USING (document) WHERE c.run = {run.run}) c
                       ON c.query_id = l.query_id AND c.doc_id = i.doc_id"""
        self.con.execute(
            f"""CREATE OR REPLACE TEMP VIEW these_items AS
                SELECT l.query_id, i.rank, i.doc_id, {initial} AS initial_rank, i.grade, i.score,
                       NULL::UBIGINT AS text_hash
                FROM import_items i JOIN these l USING (list) {join}"""
        )

    def _replies(self, teacher: int, labeling: int) -> None:
        """Store the file's raw replies as calls, so that their statuses and repairs can be queried."""
        if not self._value("SELECT count(*) FROM these WHERE reply IS NOT NULL"):
            return
        self.con.execute(
            """CREATE OR REPLACE TEMP TABLE replied AS
               SELECT l.*, md5(concat_ws(chr(31), 'msft:imported-request', ?, l.query_id, l.length, shown)) AS request_key,
                      i.parsed
               FROM these l
               JOIN (SELECT list, string_agg(doc_id, chr(31) ORDER BY initial_rank) AS shown,
                            list(initial_rank ORDER BY rank) AS parsed FROM import_items GROUP BY list) i USING (list)
               WHERE l.reply IS NOT NULL""",
            [str(self._value("SELECT teacher_key FROM teachers WHERE teacher = ?", [teacher]))],
        )
        self.con.execute(
            """CREATE OR REPLACE TEMP TABLE replied_calls AS
               SELECT md5(concat_ws(chr(31), 'msft:imported-call', request_key, reply)) AS call_key, request_key,
                      ? AS job_key, 1 AS attempt, 0 AS sample, status, reply, parsed, NULL::FLOAT[] AS scores,
                      missing AS n_missing, repeated AS n_repeated, out_of_range AS n_out_of_range,
                      NULL AS finish_reason, tokens_in, tokens_out, 0.0 AS seconds, 'imported' AS server,
                      now() AS completed_at, query_id, 0 AS step FROM replied""",
            [self.job.job_key],
        )
        self.con.execute(
            """CREATE OR REPLACE TEMP VIEW replied_requests AS
               SELECT request_key, query_id, length AS n_passages, tokens_in AS n_prompt_tokens,
                      NULL AS truncated_words FROM replied"""
        )
        self.con.execute(
            """CREATE OR REPLACE TEMP VIEW replied_passages AS
               SELECT r.request_key, i.initial_rank AS position, i.doc_id, coalesce(d.text_hash, 0) AS text_hash
               FROM replied r JOIN import_items i USING (list)
               JOIN documents d ON d.doc_id = i.doc_id AND d.collection = """
            + str(self.of.collection)
        )
        labels.store_requests(self.con, teacher, self.of.collection, "replied_requests", "replied_passages")
        labels.store_calls(self.con, "replied_calls")
        labels.store_labeling_calls(self.con, labeling, "replied_calls")
        for view in ("replied_requests", "replied_passages"):
            self.con.execute(f"DROP VIEW {view}")
        self.con.execute("DROP TABLE replied_calls")
        self.con.execute("DROP TABLE replied")

    def _quarantine(self, labeling: int, k: int) -> int:
        self.con.execute(
            f"""CREATE OR REPLACE TEMP VIEW refused_lists AS
                SELECT coalesce(query_id, file_query_id) AS query_id, NULL::INTEGER AS step, refused AS reason,
                       place || ': ' || coalesce(file_query_id, query_text, '-') AS detail, 1 AS attempts
                FROM resolved WHERE refused IS NOT NULL AND source = {k}
                UNION ALL
                SELECT query_id, NULL, reason, detail, 1 FROM import_failed WHERE source = {k}"""
        )
        labels.store_quarantine(self.con, self.job, labeling, "refused_lists")
        n: int = self._value("SELECT count(*) FROM refused_lists")
        return n
