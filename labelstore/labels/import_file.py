"""Import labels: read and repair them while the store is closed, then merge them in one transaction.

A file may hold several labelings, one per teacher and first stage. Lists that cannot be used go to quarantine with
their reason (under their labeling, if any of its lists is good) and are counted. Importing the same file again changes
nothing. Passages that the store lacks become ids without text.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from labelstore.datasets import catalog
from labelstore.errors import BadInput, UsageError
from labelstore.labels import write as labels
from labelstore.labels.label_list import Reader
from labelstore.labels.read_json import detect, read
from labelstore.labels.repair import LACKS_MOST, labeling_name, short_name
from labelstore.labels.staging import LabelSource, LabelsToImport, Staged, stage
from labelstore.provenance import record as provenance
from labelstore.store import keys, lookup
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore, Undo, next_id
from labelstore.store.rows import first_row

UNKNOWN_QUERY = "unknown query"
OTHER_TEXT = "query has another text"
SECOND_LIST = "second list for the query"
# Hints for a file without a usable list, by the reason; any other reason concerns the layout.
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


@dataclass(frozen=True)
class _File:
    """The facts about an imported file that are stored."""

    name: str
    layout: str
    content_hash: str


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
    file = _File(path.name, layout, file_hash(path))
    with store.write() as con, provenance.recorded_in(con, "teachers.import", clock) as job:
        imported = _store_staged(con, job, path, file, request, staged)
        if not imported.changed:
            raise Undo
    return imported


def _store_staged(
    con: duckdb.DuckDBPyConnection,
    job: provenance.Job,
    path: Path,
    file: _File,
    request: LabelsToImport,
    staged: Staged,
) -> Imported:
    """Merge a file that was read, step by step."""
    with _registered(con, staged):
        of, is_new = _dataset(con, job, file.name, request)
        notes = (
            [f"made the training dataset {of.name} over collection {of.collection_name}"] if is_new else []
        )
        if request.with_texts:
            notes += _add_texts(con, of)
        changed = bool(notes)
        resolved = _resolve(con, of)
        drops = _drops(con, resolved)
        sources = [staged.sources[number] for number in _sources(con, resolved)]
        if not sources:
            raise _none_taken(path, file.layout, of, request, staged.n_read, drops)
        if request.name is not None and len(sources) > 1:
            raise UsageError(
                f"{file.name} holds {len(staged.sources)} labelings, and --name can name one",
                hint="leave --name out: they are named TEACHER@FIRST_STAGE",
            )
        not_held = _make_documents(con, of, resolved)
        run = lookup.run(con, of, request.run) if request.run else None
        labelings = []
        for source in sources:
            new = _new_labeling(con, of, file, request, source, run)
            plain = labeling_name(source.teacher, new.first_stage)
            if new.name not in (plain, request.name):
                notes.append(f"{plain} is another labeling here, so this one is named {new.name}")
            labeling = labels.store_labeling(con, job, new)
            these = f"(SELECT * FROM {resolved} WHERE refused IS NULL AND source = {source.number})"
            stored = _store_permutations(con, labeling, new.name, these, run, request.replace)
            changed |= stored.changed
            _store_replies(con, job, of, new.teacher, labeling, these)
            n_quarantined = _quarantine(con, job, labeling, resolved, source.number)
            n_lists, n_repaired = first_row(
                con, f"SELECT count(*), count(*) FILTER (status <> 'ok') FROM {these}"
            )
            labelings.append(
                Labelled(
                    new.name, source.teacher, new.first_stage, n_lists,
                    stored.new + stored.replaced, n_repaired, n_quarantined, new.depth,
                )
            )  # fmt: skip
        job.count(con, "labels", file.name, staged.n_read, drops)
        job.count(con, "label passages", file.name, staged.n_named, staged.passage_drops)
    return Imported(
        of.name, file.layout, staged.n_read, labelings, drops, staged.passage_drops, not_held, changed, notes
    )


@contextmanager
def _registered(con: duckdb.DuckDBPyConnection, staged: Staged) -> Iterator[None]:
    """Register the columns of a file as the relations import_lists, import_items, import_failed and import_texts."""
    for name in ("lists", "items", "failed", "texts"):
        con.register(f"import_{name}", getattr(staged, name))
    yield
    for name in ("lists", "items", "failed", "texts"):
        con.unregister(f"import_{name}")


def _dataset(
    con: duckdb.DuckDBPyConnection, job: provenance.Job, file: str, request: LabelsToImport
) -> tuple[lookup.Dataset, bool]:
    """Find the dataset, and whether it was made: a new one is made if the file has the texts."""
    name = request.dataset
    known = con.execute("SELECT 1 FROM datasets WHERE name = ? OR ir_datasets_id = ?", [name, name])
    if known.fetchall() or not request.with_texts or name is None:
        return lookup.pick_dataset(con, name), False
    collection_name = catalog.collection(name)
    found = con.execute("SELECT collection FROM collections WHERE name = ?", [collection_name]).fetchall()
    collection = found[0][0] if found else next_id(con, "collections", "collection")
    if not found:
        con.execute(
            "INSERT INTO collections VALUES (?, ?, ?, NULL, ?)", [collection, collection_name, file, job.job]
        )
    con.execute(
        "INSERT INTO datasets VALUES (?, ?, ?, 'train', NULL, ?, NULL, ?)",
        [next_id(con, "datasets", "dataset"), name, collection, file, job.job],
    )
    return lookup.dataset(con, name), True


def _add_texts(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[str]:
    """Add the file's queries and passages that the store lacks; return a note if there were any."""
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
    (n_joined,) = first_row(
        con,
        """INSERT INTO dataset_queries
           SELECT ?, q.query FROM queries q JOIN file_queries f ON f.query_id = q.query_id
           WHERE q.collection = ? AND q.query NOT IN (SELECT query FROM dataset_queries WHERE dataset = ?)
           ORDER BY q.query""",
        [of.dataset, of.collection, of.dataset],
    )
    labels.make_documents(con, of.collection, "import_texts")
    (n_texts,) = first_row(
        con,
        """UPDATE documents d SET title = t.title, text = t.text, text_hash = t.text_hash, version = 1
           FROM import_texts t WHERE d.collection = ? AND d.doc_id = t.doc_id AND d.text IS NULL""",
        [of.collection],
    )
    con.execute("DROP TABLE file_queries")
    return [f"{n_joined} queries and {n_texts} passages taken from the file"] if n_joined or n_texts else []


def _resolve(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> str:
    """Match lists with the dataset's queries: a table with `query_id`, and `refused`, the reason if a list cannot be used."""
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE resolved AS
            WITH known AS (
                SELECT q.query_id, q.normal_hash FROM dataset_queries d JOIN queries q USING (query)
                WHERE d.dataset = {of.dataset}
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
    return "resolved"


def _drops(con: duckdb.DuckDBPyConnection, resolved: str) -> Drops:
    """Count refused lists by reason, with an example each."""
    rows = con.execute(
        f"""SELECT reason, count(*), min_by(detail, n) FROM (
                SELECT refused AS reason, list AS n,
                       place || ' (' || coalesce(file_query_id, query_text, '-') || ')' AS detail
                FROM {resolved} WHERE refused IS NOT NULL
                UNION ALL SELECT reason, row_number() OVER (), detail FROM import_failed)
            GROUP BY reason ORDER BY reason"""
    ).fetchall()
    return {reason: (n, example) for reason, n, example in rows}


def _sources(con: duckdb.DuckDBPyConnection, resolved: str) -> list[int]:
    """List the sources that have a list to use."""
    rows = con.execute(f"SELECT DISTINCT source FROM {resolved} WHERE refused IS NULL ORDER BY source")
    return [source for (source,) in rows.fetchall()]


def _none_taken(
    path: Path, layout: str, of: lookup.Dataset, request: LabelsToImport, n_read: int, drops: Drops
) -> BadInput:
    """Make the error that says why no list can be used, by the most frequent reason."""
    if not drops:
        return BadInput(
            f"{path}: no list of labels in it", hint="check the file, and name its layout with --layout"
        )
    reason, (n, example) = max(drops.items(), key=lambda drop: drop[1][0])
    hint = _HINTS.get(reason, f"name its layout with --layout; it was read as {layout}")
    if reason == UNKNOWN_QUERY:
        hint = f"msft data add {of.name} --from FOLDER brings queries in"
        hint += "; --with-texts takes them from the file" if not request.with_texts else ""
    elif reason == OTHER_TEXT:
        hint = f"are these labels for {of.name}? --dataset names another"
    return BadInput(f"{example}: {reason} ({n} of {n_read} lists); none can be taken", hint=hint)


def _make_documents(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, resolved: str) -> int:
    """Add unknown ids that labels name; return how many passages of these labels have no text."""
    named = f"""(SELECT DISTINCT doc_id FROM import_items
                 SEMI JOIN (SELECT list FROM {resolved} WHERE refused IS NULL) USING (list))"""
    labels.make_documents(con, of.collection, named)
    (n,) = first_row(
        con,
        f"SELECT count(*) FROM documents SEMI JOIN {named} USING (doc_id) WHERE collection = ? AND text IS NULL",
        [of.collection],
    )
    return int(n)


def _new_labeling(
    con: duckdb.DuckDBPyConnection,
    of: lookup.Dataset,
    file: _File,
    request: LabelsToImport,
    named: LabelSource,
    run: lookup.Run | None,
) -> labels.NewLabeling:
    """Describe the labeling of one source; its teacher is stored."""
    licence = request.licence or named.licence
    teacher = labels.store_teacher(con, labels.Teacher(named.teacher, "imported", licence=licence))
    key = (teacher, of.dataset, None if run is None else run.run, "imported")
    return labels.NewLabeling(
        name=request.name or _free_name(con, labeling_name(named.teacher, named.first_stage), of.name, key),
        teacher=teacher,
        dataset=of.dataset,
        strategy="imported",
        depth=named.depth,
        origin=file.name,
        run=None if run is None else run.run,
        first_stage=named.first_stage,
        parameters={**named.parameters, "layout": file.layout},
        licence=licence,
        origin_hash=file.content_hash,
    )


def _free_name(
    con: duckdb.DuckDBPyConnection, plain: str, dataset: str, key: tuple[int, int, int | None, str]
) -> str:
    """Name a labeling TEACHER@FIRST_STAGE, with the dataset appended if another labeling has that name.

    Args:
        key: teacher, dataset, run and strategy of the labeling.
    """
    longer = f"{plain}@{short_name(dataset)}"
    for name in (plain, longer, *(f"{longer}-{n}" for n in range(2, 1000))):
        found = con.execute(
            "SELECT teacher, dataset, run, strategy FROM labelings WHERE name = ?", [name]
        ).fetchall()
        if not found or found[0] == key:
            return name
    raise UsageError(f"no free name for {plain}", hint="give one with --name")


def _store_permutations(
    con: duckdb.DuckDBPyConnection,
    labeling: int,
    name: str,
    these: str,
    run: lookup.Run | None,
    replace: bool,
) -> labels.Stored:
    """Store the lists of a source; the run gives initial ranks that the file lacks.

    Raises:
        BadInput: if the labeling holds another order for a query, without `replace`.
    """
    lists = f"""(SELECT query_id, status, repairs, n_calls, tokens_in, tokens_out, NULL::FLOAT AS disagreement, settled
                 FROM {these})"""
    initial, join = "i.initial_rank", ""
    if run is not None:
        initial = "coalesce(i.initial_rank, c.rank::USMALLINT)"
        join = f"""LEFT JOIN (SELECT q.query_id, d.doc_id, c.rank FROM candidates c JOIN queries q USING (query)
                   JOIN documents d USING (document) WHERE c.run = {run.run}) c
                   ON c.query_id = l.query_id AND c.doc_id = i.doc_id"""
    items = f"""(SELECT l.query_id, i.rank, i.doc_id, {initial} AS initial_rank, i.grade, i.score,
                        NULL::UBIGINT AS text_hash
                 FROM import_items i JOIN {these} l USING (list) {join})"""
    stored = labels.store_permutations(con, labeling, lists, items, replace=replace)
    if stored.differing:
        raise BadInput(
            f"{name} holds another order for {stored.differing} of these queries",
            hint="import them as a separate labeling with --name, or take the new orders with --replace",
        )
    return stored


def _store_replies(
    con: duckdb.DuckDBPyConnection,
    job: provenance.Job,
    of: lookup.Dataset,
    teacher: int,
    labeling: int,
    these: str,
) -> None:
    """Store the file's raw replies as calls, so that their statuses and repairs can be queried."""
    if not first_row(con, f"SELECT count(*) FROM {these} WHERE reply IS NOT NULL")[0]:
        return
    (teacher_key,) = first_row(con, "SELECT teacher_key FROM teachers WHERE teacher = ?", [teacher])
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE replied AS
            SELECT l.*, md5(concat_ws(chr(31), 'msft:imported-request', ?, l.query_id, l.length, shown)) AS request_key,
                   i.parsed
            FROM {these} l
            JOIN (SELECT list, string_agg(doc_id, chr(31) ORDER BY initial_rank) AS shown,
                         list(initial_rank ORDER BY rank) AS parsed FROM import_items GROUP BY list) i USING (list)
            WHERE l.reply IS NOT NULL""",
        [str(teacher_key)],
    )
    con.execute(
        """CREATE OR REPLACE TEMP TABLE replied_calls AS
           SELECT md5(concat_ws(chr(31), 'msft:imported-call', request_key, reply)) AS call_key, request_key,
                  ? AS job_key, 1 AS attempt, 0 AS sample, status, reply, parsed, NULL::FLOAT[] AS scores,
                  missing AS n_missing, repeated AS n_repeated, out_of_range AS n_out_of_range,
                  NULL AS finish_reason, tokens_in, tokens_out, 0.0 AS seconds, 'imported' AS server,
                  now() AS completed_at, query_id, 0 AS step FROM replied""",
        [job.job_key],
    )
    requests = """(SELECT request_key, query_id, length AS n_passages, tokens_in AS n_prompt_tokens,
                          NULL AS truncated_words FROM replied)"""
    passages = f"""(SELECT r.request_key, i.initial_rank AS position, i.doc_id, coalesce(d.text_hash, 0) AS text_hash
                    FROM replied r JOIN import_items i USING (list)
                    JOIN documents d ON d.doc_id = i.doc_id AND d.collection = {of.collection})"""
    labels.store_requests(con, teacher, of.collection, requests, passages)
    labels.store_calls(con, "replied_calls")
    labels.store_labeling_calls(con, labeling, "replied_calls")
    con.execute("DROP TABLE replied_calls")
    con.execute("DROP TABLE replied")


def _quarantine(
    con: duckdb.DuckDBPyConnection, job: provenance.Job, labeling: int, resolved: str, source: int
) -> int:
    """Put a source's refused lists into quarantine; return their number."""
    refused = f"""(SELECT coalesce(query_id, file_query_id) AS query_id, NULL::INTEGER AS step, refused AS reason,
                          place || ': ' || coalesce(file_query_id, query_text, '-') AS detail, 1 AS attempts
                   FROM {resolved} WHERE refused IS NOT NULL AND source = {source}
                   UNION ALL
                   SELECT query_id, NULL, reason, detail, 1 FROM import_failed WHERE source = {source})"""
    labels.store_quarantine(con, job, labeling, refused)
    return int(first_row(con, f"SELECT count(*) FROM {refused}")[0])
