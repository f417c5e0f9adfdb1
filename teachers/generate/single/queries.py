"""Generate queries from a collection's passages (`msft queries generate`).

The seed draws passages; the model writes a query for each; a reply becomes a query with its passage as a positive of origin
`generated`. A reply that holds no query is in quarantine: its call says why.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from labelstore.errors import BadInput, DataMissing, PartlyDone, UsageError
from labelstore.generated import store as generated
from labelstore.generated.store import NewQuery, Stored
from labelstore.provenance import record as provenance
from labelstore.store import keys, lookup
from labelstore.store.job_lock import dataset_alone
from labelstore.store.label_store import LabelStore
from labelstore.views import leakage
from teachers.engines.base import Completion, Engine
from teachers.generate import make_engine as engines
from teachers.generate.single.ask import Build, Done, Job, Note, Progress, best_calls
from teachers.generate.single.asked import Asked, asked
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import Wanted
from teachers.prompts import passages, single, single_replies

READING = "query"
DEFAULT_PROMPT = "question@1"
EXAMPLES = 3
EXAMPLE_WORDS = 150
NO_QUERY = "the reply holds no query"


@dataclass(frozen=True)
class Generated:
    """The result: passages drawn, those that gave no query by reason, and what is stored now."""

    dataset: str
    drawn: int
    stored: Stored
    done: Done

    @property
    def quarantined(self) -> int:
        without = sum(n for reason, (n, _) in self.stored.drops.items() if reason != leakage.REASON)
        return without + len(self.done.unrenderable)

    @property
    def left(self) -> int:
        """Count passages that were not asked about, since a limit ended the job."""
        leaked = self.stored.drops.get(leakage.REASON, (0, None))[0]
        return self.drawn - self.stored.queries - leaked - self.quarantined

    def partly_done(self) -> PartlyDone | None:
        """Return the error for the end (exit code 6) if passages are left, because of a limit or in quarantine."""
        if self.left > 0:
            return PartlyDone(
                f"{self.done.figures.stopped or 'an interruption'} ended the job: {self.stored.queries:,} queries of {self.drawn:,} passages are"
                f" in {self.dataset}",
                hint="run the same command again to continue",
            )
        if self.quarantined:
            return PartlyDone(
                f"{self.quarantined:,} of {self.drawn:,} passages gave no query, {self.stored.queries:,} did",
                hint='see the replies with msft sql "SELECT status, reply FROM teacher_calls WHERE query_id IS NULL AND'
                " status NOT IN ('ok', 'repaired')\"; try again with --retry-quarantined",
            )
        return None


@dataclass(frozen=True)
class _Plan:
    wanted: Wanted
    asked: Asked
    collection: int
    collection_name: str
    name: str
    source: str
    documents: list[int]

    def ask(self, con: duckdb.DuckDBPyConnection) -> None:
        """Make the table ``asked``."""
        con.execute(
            "CREATE OR REPLACE TEMP TABLE asked AS SELECT NULL::INTEGER AS query, unnest(?::INTEGER[]) AS document",
            [self.documents],
        )


def generate(
    store: LabelStore,
    wanted: Wanted,
    settings: Asking,
    *,
    engine: Engine | None = None,
    build: Build = engines.build,
    note: Note = lambda message: None,
    progress: Progress | None = None,
) -> Generated:
    """Generate queries until every drawn passage has one, is in quarantine, or a limit is reached.

    Raises:
        MsftError, TeacherError: a setting is wrong (nothing is written), or the engine fails (completed calls are kept, and
            the same command goes on from there).
    """
    made = _plan(store, wanted, settings, engine.name if engine is not None else None, note)
    if engine is None and build is engines.build:
        engines.require(made.asked)
    asking = Job(
        store,
        made.asked,
        made.collection_name,
        read,
        made.ask,
        of_query=False,
        engine=engine,
        build=build,
        note=note,
        progress=progress,
    )
    with dataset_alone(store, made.name), provenance.recorded(store, "queries.generate") as job:
        try:
            done = asking.run(job)
        finally:
            stored = _store(store, made, job)
        result = Generated(made.name, len(made.documents), stored, done)
        job.partial = result.partly_done() is not None
    return result


def read(completion: Completion) -> tuple[str, list[float | None] | None]:
    """Read a reply: its status, and the mean log-probability of its tokens if the engine gives it."""
    found = single_replies.read_query(completion.text or "", completion.finish_reason)
    value = completion.mean_logprob
    return found.status, None if value is None or found.text is None else [value]


def _plan(store: LabelStore, wanted: Wanted, settings: Asking, engine_name: str | None, note: Note) -> _Plan:
    if wanted.n < 1:
        raise UsageError(f"--n {wanted.n}: expected at least 1", hint="--n 1500")
    ident = single.ident(wanted.prompt or DEFAULT_PROMPT, single.GENERATE)
    sql = _sql(wanted.documents)
    with store.read() as con:
        collection = lookup.collection(con, wanted.collection)
        ((name,),) = con.execute("SELECT name FROM collections WHERE collection = ?", [collection]).fetchall()
        if wanted.collection is None:
            note(f"collection {name} (the only one)")
        examples = _examples(con, wanted.examples, wanted.seed) if wanted.examples is not None else ()
        model = asked(
            wanted.model,
            single.prompt(ident, examples),
            READING,
            settings,
            seed=wanted.seed,
            engine_name=engine_name,
            logprobs=wanted.logprobs,
        )
        chosen = f", passages {keys.content_key('sql', sql)[:8]}" if sql is not None else ""
        source = f"queries by {model.row.name} ({model.row.teacher_key[:8]}) with {ident}, seed {wanted.seed}{chosen}"
        own = wanted.name or f"{name}/synthetic"
        generated.check_name(con, own, collection, source)
        documents = _draw(con, wanted, collection, sql)
        if not documents:
            raise DataMissing(
                f"no passage of {name} has a text" + (" and is among --documents" if sql else ""),
                hint=f"add the texts: msft data add {name} --from FOLDER",
            )
    return _Plan(wanted, model, collection, name, own, source, documents)


def _sql(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text("utf-8").strip().rstrip(";")
    except (OSError, UnicodeDecodeError) as error:
        raise DataMissing(f"{file} cannot be read: {error}", hint="--documents FILTER.sql") from error


def _draw(con: duckdb.DuckDBPyConnection, wanted: Wanted, collection: int, sql: str | None) -> list[int]:
    """Draw passages with a text, by an order that the seed makes of their ids.

    Raises:
        BadInput: the SQL of --documents fails, or it returns no doc_id.
    """
    chosen = "" if sql is None else f"AND doc_id IN (SELECT chosen.doc_id FROM (\n{sql}\n) AS chosen)"
    try:
        rows = con.execute(
            f"""SELECT document FROM documents
                WHERE collection = ? AND text IS NOT NULL AND trim(text) <> '' {chosen}
                ORDER BY md5(concat(?, ':', doc_id)), doc_id LIMIT ?""",
            [collection, wanted.seed, wanted.n],
        ).fetchall()
    except duckdb.Error as error:
        if sql is None:
            raise
        raise BadInput(
            f"{wanted.documents}: {str(error).splitlines()[0]}",
            hint="write one SELECT that returns doc_id, e.g. SELECT doc_id FROM passages WHERE length(text) > 200",
        ) from error
    return [document for (document,) in rows]


def _examples(con: duckdb.DuckDBPyConnection, name: str, seed: int) -> tuple[tuple[str, str], ...]:
    """Draw judged queries with their best passage; none that a test set has.

    Raises:
        UsageError: the dataset is a test set.
        DataMissing: it has no judged query with a text.
    """
    of = lookup.dataset(con, name)
    generated.refuse_test_set(of.role, of.name)
    leakage.protect(con, allow_overlap=False)
    rows = con.execute(
        """SELECT q.text, d.title, d.text FROM (
             SELECT DISTINCT ON (r.query) r.query, r.document FROM qrels r JOIN documents d USING (document)
             WHERE r.dataset = ? AND r.relevance > 0 AND d.text IS NOT NULL AND trim(d.text) <> ''
             ORDER BY r.query, r.relevance DESC, d.doc_id) p
           JOIN queries q USING (query) JOIN documents d USING (document)
           WHERE q.normal_hash NOT IN (SELECT normal_hash FROM protected)
           ORDER BY md5(concat(?, ':', q.query_id)), q.query_id LIMIT ?""",
        [of.dataset, seed, EXAMPLES],
    ).fetchall()
    if not rows:
        raise DataMissing(
            f"--examples {of.name}: it has no judged query with a relevant passage that the store holds",
            hint="name a dataset with judgments, or --prompt inpars@1, which has its own examples",
        )
    plain = passages.neutraliser()
    return tuple(
        (passages.passage(title, text, plain, EXAMPLE_WORDS), passages.query(query, plain))
        for query, title, text in rows
    )


def _store(store: LabelStore, made: _Plan, job: provenance.Job) -> Stored:
    """Make queries of the calls that the store has, and count what gave none."""
    teacher_key = made.asked.row.teacher_key
    with store.write() as con:
        made.ask(con)
        best_calls(con, teacher_key)
        found, without = _read_calls(con)
        done = generated.store_queries(
            con, job, made.name, made.collection, made.source, found, f"g-{teacher_key[:8]}-"
        )
        done.drops |= without
        answered = len(found) + sum(n for n, _ in without.values())
        job.count(con, generated.STEP, made.name, answered, done.drops)
    return done


def _read_calls(con: duckdb.DuckDBPyConnection) -> tuple[list[NewQuery], dict[str, tuple[int, str | None]]]:
    found: list[NewQuery] = []
    without: dict[str, tuple[int, str | None]] = {}
    rows: list[tuple[Any, ...]] = con.execute(
        """SELECT b.document, d.doc_id, b.text_hash, b.call, b.status, b.reply, split_part(b.finish_reason, ';', 1), b.scores[1]
           FROM best b JOIN documents d USING (document) ORDER BY d.doc_id"""
    ).fetchall()
    for document, doc_id, text_hash, call, status, reply, reason, value in rows:
        text = single_replies.read_query(reply or "", reason).text if status in ("ok", "repaired") else None
        if text is None:
            n, example = without.get(f"{NO_QUERY} ({status})", (0, doc_id))
            without[f"{NO_QUERY} ({status})"] = (n + 1, example)
        else:
            found.append(NewQuery(document, doc_id, text_hash, call, text, log_probability=value))
    return found, without
