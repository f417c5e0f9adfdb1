"""First stages: from a dataset to a run of candidates.

``bm25s`` runs in this process, ``bm25`` is Anserini, ``colbert`` is PyLate in an environment of its own.
"""

from typing import Any

import duckdb

from labelstore.errors import BadInput, UsageError
from labelstore.provenance import record as provenance
from labelstore.retrieval import scripts
from labelstore.retrieval.by_name import make_retriever
from labelstore.retrieval.common import Corpus, Note, Progress, Ranking, Retriever, read_corpus, silent
from labelstore.runs.write import NewRun, store_run
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore


def retrieve(
    store: LabelStore,
    dataset: str | None = None,
    retriever: Retriever | str = "bm25s",
    depth: int = 100,
    name: str | None = None,
    replace: bool = False,
    progress: Progress = silent,
    note: Note = silent,
    **options: Any,
) -> lookup.Run:
    """Rank a dataset's queries over its collection and store the run.

    The store is read, left alone while the retriever works, and written in one transaction. A run of that name that
    was made by the same retriever with the same parameters over the same texts and queries is returned as it is.

    Args:
        dataset: its name; None picks the only one.
        retriever: bm25s, bm25 or colbert with `options`, or a retriever that is made already.
        depth: passages per query, at least 1.
        name: the run's name; by default the retriever's system.
        replace: overwrite a run of that name that differs.
        progress: called with (texts done, total or None).
        note: called with what was chosen or left out.
        options: of a retriever that is given by its name, see :func:`labelstore.retrieval.by_name.make_retriever`.

    Returns:
        The stored run: name, depth, number of queries and candidates, content hash.

    Raises:
        UsageError: the depth is not positive, or an option does not belong to the retriever.
        DataMissing: if the dataset, passages, queries or what the retriever needs are not there.
        BadInput: if a run of that name is there and differs.
    """
    if depth < 1:
        raise UsageError(f"depth is {depth}", hint="give a number from 1 up, e.g. --depth 100")
    retriever = _made(retriever, options)
    with store.read() as con:
        of = lookup.pick_dataset(con, dataset)
        if dataset is None:
            note(f"dataset {of.name}: the only one")
        corpus = read_corpus(con, store, of)
        name = name or ("bm25" if retriever.system == "anserini" else retriever.system)
        runs = lookup.runs(con, of)
    hashes = {"collection_hash": corpus.content, "queries_hash": corpus.queries_hash}
    wanted = {**retriever.parameters, "depth": depth, **hashes}
    held = _held(runs, of, name, retriever.system, wanted, replace)
    if held is not None:
        note(f"the store already has run {name} over {of.name}")
        return held
    clock = provenance.Clock()
    ranking = retriever.search(corpus, depth, progress, note)
    without = _unanswered(of, corpus, ranking, retriever.system)
    new = NewRun(of.dataset, name, "first_stage", retriever.system, {**wanted, **ranking.parameters})
    with store.write() as con, provenance.recorded_in(con, "retrieve", clock) as job:
        _count(con, job, name, corpus, ranking, without)
        con.register("retrieved", ranking.rows.to_arrow())
        run = store_run(con, job, new, "retrieved", replace=replace)
        con.unregister("retrieved")
    _note_gaps(corpus, without, retriever.system, note)
    return run


def _made(retriever: Retriever | str, options: dict[str, Any]) -> Retriever:
    if isinstance(retriever, str):
        return make_retriever(retriever, **options)
    if options:
        raise UsageError(
            f"{', '.join(options)}: options of a retriever that is made already", hint="make it with them"
        )
    return retriever


def _held(
    runs: list[lookup.Run],
    of: lookup.Dataset,
    name: str,
    system: str,
    wanted: dict[str, Any],
    replace: bool,
) -> lookup.Run | None:
    """Return the run of that name if it was made in the same way.

    Raises:
        BadInput: it was made in another way, and `replace` is not given.
    """
    held = next((run for run in runs if run.name == name), None)
    if held is not None and held.system == system and wanted.items() <= held.parameters.items():
        return held
    if held is not None and not replace:
        raise BadInput(
            f"{of.name} has another run named {name!r} ({held.system}, depth {held.depth})",
            hint="choose another name with --name RUN, or overwrite the run with --replace",
        )
    return None


def _unanswered(of: lookup.Dataset, corpus: Corpus, ranking: Ranking, system: str) -> list[str]:
    """Return the texts of the queries without a passage.

    Raises:
        BadInput: no query has one.
    """
    answered = set(ranking.rows["query"].unique().to_list())
    without = [text for query, text in corpus.queries if query not in answered]
    if answered:
        return without
    unsegmented = scripts.language(without[0]) if system == "bm25s" else None
    raise BadInput(
        f"none of the {len(without)} queries of {of.name} found a passage, e.g. {without[0]!r}"
        + (": bm25s does not segment this script" if unsegmented else ""),
        hint=f"msft retrieve --dataset {of.name} --retriever bm25 --language {unsegmented}"
        if unsegmented
        else f"are the queries and {of.collection_name} in one language? `msft data show {of.name}`",
    )


def _count(
    con: duckdb.DuckDBPyConnection,
    job: provenance.Job,
    name: str,
    corpus: Corpus,
    ranking: Ranking,
    without: list[str],
) -> None:
    drops = {"no passage found": (len(without), without[0] if without else None)}
    job.count(con, "queries", name, len(corpus.queries), drops)
    n_rows = len(ranking.rows) + sum(n for n, _ in ranking.drops.values())
    job.count(con, "run", name, n_rows, ranking.drops)


def _note_gaps(corpus: Corpus, without: list[str], system: str, note: Note) -> None:
    """Note queries without a passage, and queries that bm25s reads in whole clauses."""
    if without:
        note(f"{len(without)} of {len(corpus.queries)} queries found no passage, e.g. {without[0]!r}")
    written = [code for _, text in corpus.queries if (code := scripts.language(text)) not in (None, "ko")]
    if written and system == "bm25s":
        note(
            f"{len(written)} of {len(corpus.queries)} queries are in a script that bm25s does not segment: whole"
            f" clauses are its words; --retriever bm25 --language {written[0]} does"
        )
