"""Generate queries from a collection's passages (`msft queries generate`).

The seed draws passages; the model writes a query for each, or several of some styles: a call for each passage and style. Each
query of a reply has its passage as a positive of origin `generated`. A reply that holds no query is in quarantine: its call says
why.
"""

from dataclasses import dataclass
from typing import Any

import duckdb

from labelstore.errors import DataMissing, PartlyDone, UsageError
from labelstore.generated import store as generated
from labelstore.generated.store import NewQuery, Stored
from labelstore.provenance import record as provenance
from labelstore.store import keys, lookup
from labelstore.store.job_lock import dataset_alone
from labelstore.store.label_store import LabelStore
from labelstore.views import leakage
from teachers.engines.base import Completion, Engine
from teachers.generate import make_engine as engines
from teachers.generate.dry_run import Bill
from teachers.generate.single import draw, forecast
from teachers.generate.single.ask import Build, Done, Job, Note, Progress, best_calls, run_each, together
from teachers.generate.single.asked import Asked, asked
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import Wanted
from teachers.prompts import passages, single, single_replies

READING = "query"
DEFAULT_PROMPT, STYLED_PROMPT = "question@1", "queries@1"
EXAMPLES = 3
EXAMPLE_WORDS = 150
NO_QUERY = "the reply holds no query"


@dataclass(frozen=True)
class Generated:
    """The result: passages drawn, styles, replies with a query, those without one by reason, and what is stored now."""

    dataset: str
    drawn: int
    styles: int
    answered: int
    stored: Stored
    done: Done

    @property
    def quarantined(self) -> int:
        without = sum(n for reason, (n, _) in self.stored.drops.items() if reason != leakage.REASON)
        return without + len(self.done.unrenderable)

    @property
    def left(self) -> int:
        """Count passages that were not asked about, once for each style, since a limit ended the job."""
        return self.drawn * self.styles - self.answered - self.quarantined

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
                f"{self.quarantined:,} of {self.drawn * self.styles:,} replies hold no query, {self.answered:,} do",
                hint='see the replies with msft sql "SELECT status, reply FROM teacher_calls WHERE query_id IS NULL AND'
                " status NOT IN ('ok', 'repaired')\"; try again with --retry-quarantined",
            )
        return None


@dataclass(frozen=True)
class _Plan:
    wanted: Wanted
    models: tuple[Asked, ...]  # one for each style, since its prompt differs
    collection: int
    collection_name: str
    name: str
    source: str
    documents: list[int]

    def ask(self, con: duckdb.DuckDBPyConnection) -> None:
        """Make the table ``asked``."""
        con.execute(
            "CREATE OR REPLACE TEMP TABLE asked AS SELECT NULL::INTEGER AS query, [unnest(?::INTEGER[])] AS documents",
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
        engines.require(made.models[0])
    asking = [
        Job(
            store,
            model,
            made.collection_name,
            read,
            made.ask,
            of_query=False,
            engine=engine,
            build=build,
            note=note,
            progress=progress,
        )
        for model in made.models
    ]
    with dataset_alone(store, made.name), provenance.recorded(store, "queries.generate") as job:
        done: list[Done] = []
        try:
            run_each(asking, job, done)
        finally:
            answered, stored = _store(store, made, job)
        result = Generated(made.name, len(made.documents), len(made.models), answered, stored, together(done))
        job.partial = result.partly_done() is not None
    return result


def bills(
    store: LabelStore, wanted: Wanted, settings: Asking, *, note: Note = lambda message: None
) -> list[Bill]:
    """Forecast the calls of each style; nothing is written."""
    made = _plan(store, wanted, settings, None, note)
    return [
        forecast.bill(store, model, made.collection_name, made.ask, note=note, job={"dataset": made.name})
        for model in made.models
    ]


def read(completion: Completion, n: int) -> tuple[str, list[float | None] | None]:
    """Read a reply: its status, and the mean log-probability of its tokens if the engine gives it."""
    found = single_replies.read_query(completion.text or "", completion.finish_reason)
    value = completion.mean_logprob
    return found.status, None if value is None or found.text is None else [value]


def _plan(store: LabelStore, wanted: Wanted, settings: Asking, engine_name: str | None, note: Note) -> _Plan:
    if wanted.n < 1:
        raise UsageError(f"--n {wanted.n}: expected at least 1", hint="--n 1500")
    ident, styles = _prompt(wanted)
    sql = draw.sql_of(wanted.documents)
    with store.read() as con:
        collection = lookup.collection(con, wanted.collection)
        ((name,),) = con.execute("SELECT name FROM collections WHERE collection = ?", [collection]).fetchall()
        if wanted.collection is None:
            note(f"collection {name} (the only one)")
        examples = _examples(con, wanted.examples, wanted.seed) if wanted.examples is not None else ()
        models = tuple(
            asked(
                wanted.model,
                single.prompt(ident, examples, style, wanted.per_document),
                READING,
                settings,
                seed=wanted.seed,
                engine_name=engine_name,
                logprobs=wanted.logprobs,
            )
            for style in styles
        )
        own = wanted.name or f"{name}/synthetic"
        source = _source(wanted, models, ident, sql)
        generated.check_name(con, own, collection, source)
        documents = draw.passages(con, wanted, collection, sql)
        if not documents:
            raise DataMissing(
                f"no passage of {name} has a text" + (" and is among --documents" if sql else ""),
                hint=f"add the texts: msft data add {name} --from FOLDER",
            )
    if wanted.stratify is not None:
        documents = draw.stratified(store, documents, wanted, note)
    return _Plan(wanted, models, collection, name, own, source, documents)


def _prompt(wanted: Wanted) -> tuple[str, tuple[str, ...]]:
    """Return the prompt, and the styles of its queries.

    Raises:
        UsageError: a style is unknown, or the prompt has none. TeacherError: the prompt is unknown.
    """
    several = wanted.per_document > 1 or bool(wanted.styles)
    ident = single.ident(wanted.prompt or (STYLED_PROMPT if several else DEFAULT_PROMPT), single.GENERATE)
    if several and not single.PROMPTS[ident].styled:
        raise UsageError(
            f"{ident} asks for one query, without a style",
            hint=f"leave out --prompt, or --prompt {STYLED_PROMPT}",
        )
    if not 1 <= wanted.per_document <= single.MOST_QUERIES:
        raise UsageError(
            f"--per-document {wanted.per_document}: expected 1 to {single.MOST_QUERIES}",
            hint="--per-document 3",
        )
    styles = tuple(dict.fromkeys(wanted.styles)) or ("question",)
    for style in styles:
        if style not in single.STYLES:
            raise UsageError(
                f"--style {style}: there is no such style", hint=f"--style {' | '.join(single.STYLES)}"
            )
    return ident, styles


def _source(wanted: Wanted, models: tuple[Asked, ...], ident: str, sql: str | None) -> str:
    """Describe how a dataset was made: the same description may add to it, another one may not."""
    made = ", ".join(model.row.teacher_key[:8] for model in models)
    chosen = f", passages {keys.content_key('sql', sql)[:8]}" if sql is not None else ""
    if wanted.stratify is not None:
        chosen += f", drawn evenly from {wanted.clusters} clusters by {wanted.stratify}"
    return f"queries by {models[0].row.name} ({made}) with {ident}, seed {wanted.seed}{chosen}"


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


def _store(store: LabelStore, made: _Plan, job: provenance.Job) -> tuple[int, Stored]:
    """Make queries of the calls that the store has; return the number of replies with one, and count what gave none."""
    answered, without = 0, dict[str, tuple[int, str | None]]()
    leaked, example = 0, None
    done = Stored(made.name)
    with store.write() as con:
        made.ask(con)
        for number, model in enumerate(made.models):
            teacher_key = model.row.teacher_key
            best_calls(con, teacher_key)
            replies, found = _read_calls(con, made.wanted.per_document, number, without)
            answered += replies
            stored = generated.store_queries(
                con, job, made.name, made.collection, made.source, found, f"g-{teacher_key[:8]}-"
            )
            done.queries = max(done.queries, stored.queries)
            done.new += stored.new
            more, first = stored.drops.get(leakage.REASON, (0, None))
            leaked, example = leaked + more, example or first
        if leaked:
            done.drops[leakage.REASON] = (leaked, example)
        done.drops |= without
        n_in = done.queries + sum(n for n, _ in done.drops.values())
        job.count(con, generated.STEP, made.name, n_in, done.drops)
    return answered, done


def _read_calls(
    con: duckdb.DuckDBPyConnection, wanted: int, style: int, without: dict[str, tuple[int, str | None]]
) -> tuple[int, list[NewQuery]]:
    """Return the number of replies with a query, and the queries; add the other replies to `without`."""
    found: list[NewQuery] = []
    answered = 0
    rows: list[tuple[Any, ...]] = con.execute(
        """SELECT b.document, d.doc_id, b.text_hash, b.call, b.status, b.reply, split_part(b.finish_reason, ';', 1), b.scores[1]
           FROM best b JOIN documents d ON d.document = b.document ORDER BY d.doc_id"""
    ).fetchall()
    for document, doc_id, text_hash, call, status, reply, reason, value in rows:
        usable = status in ("ok", "repaired")
        texts = single_replies.read_queries(reply or "", wanted, reason).texts if usable else ()
        if not texts:
            n, example = without.get(f"{NO_QUERY} ({status})", (0, doc_id))
            without[f"{NO_QUERY} ({status})"] = (n + 1, example)
            continue
        answered += 1
        for place, text in enumerate(texts, style * wanted + 1):
            found.append(NewQuery(document, doc_id, text_hash, call, text, place, value))
    return answered, found
