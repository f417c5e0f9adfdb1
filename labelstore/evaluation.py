"""Run or labeling x qrels -> per-query scores, kept in the store and reused while both contents stand.

An evaluation is known by (ranking hash, qrels hash, measure). What is there is not computed again; what belongs to a
ranking or to judgments that have been replaced since is removed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import polars as pl

from labelstore import catalog, keys, lookup, measuring, provenance, significance
from labelstore.errors import DataMissing, NoRoom, NotWritable, UsageError
from labelstore.measuring import Qrels, Ranking, Scores
from labelstore.store import LabelStore, next_id

Row = dict[str, Any]

KINDS = ("first_stage", "teacher", "student", "fused")  # the order in which they are shown
CEILING_DEPTH = 100  # a first stage's recall is shown at this depth, or its own where it is shallower
_KIND_OF_RUN = {"imported": "first_stage"}
_OWN = """SELECT q.query, d.document FROM queries q
          JOIN documents d ON d.collection = q.collection AND d.doc_id = q.query_id"""
_USABLE = ("ok", "repaired")  # permutations of other statuses are not rankings


@dataclass(frozen=True)
class System:
    """Something that ranked a dataset: a run, or a teacher's labeling."""

    name: str
    kind: str  # one of KINDS
    run: int | None
    labeling: int | None
    first_stage: str | None  # its name; a first stage's own
    source_run: int | None  # runs.run that it re-ranked, where the store has it
    student: str | None
    regime: str | None
    depth: int  # candidates per query that it ordered
    ranking_hash: str

    @property
    def key(self) -> tuple[int | None, int | None]:
        return self.run, self.labeling


def systems(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[System]:
    """All systems over a dataset: first stages, teachers' labelings, students' and fused runs."""
    return [*_run_systems(con, of), *_labeling_systems(con, of)]


def _run_systems(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[System]:
    found = con.execute(
        """SELECT r.run, r.name, r.kind, r.source_run, src.name, s.name, s.regime, r.content_hash, r.depth,
                  try_cast(json_extract_string(r.parameters, '$.depth') AS INTEGER)
           FROM runs r LEFT JOIN runs src ON src.run = r.source_run LEFT JOIN students s ON s.student = r.student
           WHERE r.dataset = ? ORDER BY r.run""",
        [of.dataset],
    ).fetchall()
    students = [(row[5], row[4]) for row in found if row[2] == "student"]
    made = []
    for run, name, kind, source, source_name, student, regime, content_hash, held, asked in found:
        kind = _KIND_OF_RUN.get(kind, kind)
        own_name = name
        if kind == "student" and student and students.count((student, source_name)) == 1:
            own_name = student
        first_stage = source_name or (name if kind == "first_stage" else None)
        depth = min(held, asked or held) if source else min(held, CEILING_DEPTH)
        made.append(
            System(own_name, kind, run, None, first_stage, source, student, regime, depth, content_hash)
        )
    return made


def _labeling_systems(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[System]:
    found = con.execute(
        """SELECT l.labeling, l.name, coalesce(r.name, l.first_stage), coalesce(r.run, named.run), l.depth
           FROM labelings l LEFT JOIN runs r ON r.run = l.run
           LEFT JOIN runs named ON named.dataset = l.dataset AND named.name = l.first_stage
           WHERE l.dataset = ? ORDER BY l.labeling""",
        [of.dataset],
    ).fetchall()
    hashes: dict[int, list[tuple[str, str]]] = {labeling: [] for labeling, *_ in found}
    for labeling, query_id, content_hash in con.execute(
        """SELECT p.labeling, q.query_id, p.content_hash
           FROM permutations p JOIN labelings l USING (labeling) JOIN queries q USING (query)
           WHERE l.dataset = ? AND p.status IN (SELECT unnest(?::VARCHAR[])) ORDER BY q.query_id, p.content_hash""",
        [of.dataset, list(_USABLE)],
    ).fetchall():
        hashes[labeling].append((query_id, content_hash))
    return [
        System(
            name, "teacher", None, labeling, first_stage, source, None, None, depth,
            keys.rows_key("labeling-ranking", hashes[labeling]),
        )
        for labeling, name, first_stage, source, depth in found
        if hashes[labeling]
    ]  # fmt: skip


def qrels(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> Qrels:
    """The dataset's judgments.

    Raises:
        DataMissing: if it has none.
    """
    found = con.execute(
        "SELECT query, document, relevance FROM qrels WHERE dataset = ? ORDER BY query", [of.dataset]
    ).fetchall()
    if not found or of.qrels_hash is None:
        raise DataMissing(
            f"{of.name} has no judgments to evaluate against",
            hint=f"msft data add {of.name} --qrels FILE adds them (TREC qrels)",
        )
    judged: dict[int, dict[str, int]] = {}
    for query, document, relevance in found:
        judged.setdefault(query, {})[str(document)] = relevance
    return Qrels(judged, of.qrels_hash)


def ranking(con: duckdb.DuckDBPyConnection, of: System, exclude_self: bool = False) -> Ranking:
    """The system's ranking, by query and rank; without passages that bear their query's id where asked."""
    values: list[Any]
    if of.run is not None:
        sql, values = "SELECT query, document, rank FROM candidates WHERE run = ?", [of.run]
    else:
        sql = """SELECT p.query, i.document, i.rank FROM permutation_items i JOIN permutations p USING (permutation)
                 WHERE p.labeling = ? AND p.status IN (SELECT unnest(?::VARCHAR[]))"""
        values = [of.labeling, list(_USABLE)]
    if exclude_self:
        sql = f"SELECT * FROM ({sql}) r ANTI JOIN ({_OWN}) o USING (query, document)"
    columns = con.execute(f"{sql} ORDER BY query, rank", values).fetchnumpy()
    return Ranking(*(np.asarray(columns[name]) for name in ("query", "document", "rank")))


def default_measures(of: lookup.Dataset) -> list[str]:
    """What the literature reports on this dataset, first the one that systems are ordered by."""
    return [measuring.canonical(name) for name in catalog.measures(of.ir_datasets_id or of.name)]


def evaluate(
    store: LabelStore,
    dataset: str,
    *,
    runs: Sequence[str] | None = None,
    labelings: Sequence[str] | None = None,
    students: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    exclude_self: bool = False,
    note: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[Row]:
    """Measure systems over a dataset and return a row for each system and measure.

    Args:
        runs: names of runs; these and what re-ranked them. None: all.
        labelings: names of labelings. None: those over the chosen runs, or all.
        students: names of students. None: all.
        measures: ir-measures names. None: the catalog's for this dataset.
        kinds: which kinds of system.
        exclude_self: see :func:`scores`.

    Returns:
        rows with dataset, system, kind, first_stage, measure, value, n_queries, p_value (two-sided paired t-test
        against the first stage; None for a first stage, and where the store lacks it), regime, judged (Judged@10),
        depth and recall (of the candidates that were ordered: the ceiling of a re-ranking).

    Raises:
        DataMissing: if the dataset has no judgments, or nothing has ranked it.
        UsageError: for a measure that ir-measures does not know.
    """
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        names = [measuring.canonical(m) for m in measures] if measures else default_measures(of)
        chosen = select(con, of, runs, labelings, students, kinds)
    scored = scores(store, of, chosen, names, exclude_self=exclude_self, note=note, warn=warn)
    return rows(of, chosen, names, scored)


def select(
    con: duckdb.DuckDBPyConnection,
    of: lookup.Dataset,
    runs: Sequence[str] | None = None,
    labelings: Sequence[str] | None = None,
    students: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
) -> list[System]:
    """The systems that the options name, first stages of chosen re-rankings included.

    Raises:
        DataMissing: for a name that is not there, or if nothing fits.
    """
    known = systems(con, of)
    for name in runs or ():
        lookup.run(con, of, name)
    for name in students or ():
        lookup.student(con, name)
    for name in labelings or ():
        if lookup.labeling(con, name).dataset != of.dataset:
            raise UsageError(f"labeling {name!r} is not over {of.name}", hint="msft teachers list")
    keys_of_runs = {lookup.run(con, of, name).run for name in runs or ()}

    def fits(system: System) -> bool:
        over = runs is None or system.run in keys_of_runs or system.first_stage in runs
        if system.kind == "teacher" and system.labeling is not None and labelings is not None:
            return system.name in labelings
        if system.student is not None and students is not None:
            return system.student in students and over
        return over

    chosen = [s for s in known if s.kind in kinds and fits(s)]
    if not chosen:
        raise DataMissing(
            f"nothing has ranked {of.name} yet",
            hint=f"msft retrieve --dataset {of.name} --retriever bm25s --depth 100, or msft runs import",
        )
    return chosen


def scores(
    store: LabelStore,
    of: lookup.Dataset,
    chosen: Sequence[System],
    measures: Sequence[str],
    exclude_self: bool = False,
    note: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> dict[tuple[System, str], Scores]:
    """Per-query scores of systems, measured where the store lacks them and kept there.

    Beside `measures`, ``Judged@10`` and each system's recall at its depth are measured (see :func:`rows`).

    Args:
        measures: canonical names.
        exclude_self: leave passages that bear their query's id out of its ranking. Where the dataset's protocol says
            so (`catalog.leaves_out_self`) this is always done; elsewhere such values are not kept.
        warn: told why values are not kept where the store cannot be written; an error without it.
    """
    by_protocol = any(
        catalog.leaves_out_self(name) for name in (of.ir_datasets_id or of.name, of.collection_name)
    )
    apart = exclude_self and not by_protocol
    level = measuring.relevance_level(measures)
    wanted = {s: list(dict.fromkeys([*measures, *companions(s, level)])) for s in chosen}
    found: dict[tuple[System, str], Scores] = {}
    todo: dict[System, list[str]] = {}
    with store.read() as con:
        judged = qrels(con, of)
        for system, names in wanted.items():
            held = {} if apart else _stored(con, of, system, names)
            found.update({(system, name): values for name, values in held.items()})
            lacking = [name for name in names if name not in held]
            if lacking:
                todo[system] = lacking
    if todo:
        clock = provenance.Clock()
        fresh: dict[tuple[System, str], Scores] = {}
        for system, names in todo.items():
            with store.read() as con:
                ranked = ranking(con, system, by_protocol or exclude_self)
                tied = _tied_queries(con, system)
            if tied and note:
                note(
                    f"{system.name}: scores tie within the top 10 of {tied} queries; ties stand in the stored order"
                )
            measured = measuring.per_query(ranked, judged, names)
            fresh.update({(system, name): values for name, values in measured.items()})
            absent = len(judged.judged.keys() - set(np.unique(ranked.query).tolist()))
            if absent and note:
                note(
                    f"{system.name}: {absent} of {len(judged.judged)} judged queries are not ranked and score 0"
                )
        found.update(fresh)
        if apart:
            return found
        try:
            with provenance.recorded(store, "eval", clock) as job, store.write() as con:
                _keep(con, job.job, of, fresh, {s: n_missing(con, of, s) for s in todo})
        except (NotWritable, NoRoom) as error:
            if warn is None:
                raise
            warn(f"the values are not kept: {error}")
    return found


def companions(system: System, level: int) -> tuple[str, str]:
    """What is measured beside every measure: how much of the top 10 is judged, and the recall of the candidates."""
    recall = f"R(rel={level})@{system.depth}" if level > 1 else f"R@{system.depth}"
    return "Judged@10", measuring.canonical(recall)


def rows(
    of: lookup.Dataset,
    chosen: Sequence[System],
    measures: Sequence[str],
    scored: dict[tuple[System, str], Scores],
) -> list[Row]:
    """One row per system and measure, grouped by first stage, best first within each kind."""
    by_run = {s.run: s for s in chosen if s.run is not None}
    level = measuring.relevance_level(measures)
    made = []
    for system in _ordered(chosen, measures[0], scored):
        judged, recall = companions(system, level)
        base = by_run.get(system.source_run) if system.source_run is not None else None
        for name in measures:
            values = scored[system, name]
            p_value = None
            if base is not None:
                queries = sorted(values)
                p_value = significance.paired_t(
                    np.array([values[q] for q in queries]), np.array([scored[base, name][q] for q in queries])
                ).p_value
            made.append(
                {
                    "dataset": of.name,
                    "system": system.name,
                    "kind": system.kind,
                    "first_stage": system.first_stage,
                    "measure": name,
                    "value": measuring.mean(values),
                    "n_queries": len(values),
                    "p_value": p_value,
                    "regime": system.regime,
                    "judged": measuring.mean(scored[system, judged]),
                    "depth": system.depth,
                    "recall": measuring.mean(scored[system, recall]),
                }
            )
    return made


def _ordered(
    chosen: Sequence[System], measure: str, scored: dict[tuple[System, str], Scores]
) -> list[System]:
    value = {s: measuring.mean(scored[s, measure]) for s in chosen}
    best = {s.first_stage: value[s] for s in chosen if s.kind == "first_stage"}
    return sorted(
        chosen,
        key=lambda s: (
            s.first_stage not in best,  # over a first stage that is not here: last
            -best.get(s.first_stage, 0.0),
            s.first_stage or "",
            KINDS.index(s.kind) if s.kind in KINDS else len(KINDS),
            -value[s],
            s.name,
        ),
    )


# ------------------------------------------------------------------------------------------------ the store's part
def _where(system: System) -> tuple[str, int | None]:
    return ("run", system.run) if system.run is not None else ("labeling", system.labeling)


def _stored(
    con: duckdb.DuckDBPyConnection, of: lookup.Dataset, system: System, measures: Sequence[str]
) -> dict[str, Scores]:
    column, key = _where(system)
    found: dict[str, Scores] = {}
    for measure, query, value in con.execute(
        f"""SELECT e.measure, s.query, s.value FROM evaluations e JOIN query_scores s USING (evaluation)
            WHERE e.dataset = ? AND e.{column} = ? AND e.run_hash = ? AND e.qrels_hash = ?
              AND e.measure IN (SELECT unnest(?::VARCHAR[]))""",
        [of.dataset, key, system.ranking_hash, of.qrels_hash, list(measures)],
    ).fetchall():
        found.setdefault(measure, {})[query] = value
    return found


def _keep(
    con: duckdb.DuckDBPyConnection,
    job: int,
    of: lookup.Dataset,
    fresh: dict[tuple[System, str], Scores],
    lacking: dict[System, int],
) -> None:
    """Insert evaluations and their query scores; remove those of rankings and judgments that were replaced."""
    for system in {s for s, _ in fresh}:
        remove_stale(con, of, system)
        names = [name for s, name in fresh if s == system]
        for name in _stored(con, of, system, names):  # another process measured it meanwhile
            del fresh[system, name]
    if not fresh:
        return
    first = next_id(con, "evaluations", "evaluation")
    evaluations, keys_column, queries, values = [], [], [], []
    for evaluation, ((system, measure), by_query) in enumerate(fresh.items(), first):
        evaluations.append(
            (
                evaluation, of.dataset, system.run, system.labeling, system.ranking_hash, of.qrels_hash, measure,
                measuring.mean(by_query), len(by_query), lacking[system], job,
            )
        )  # fmt: skip
        keys_column += [evaluation] * len(by_query)
        queries += list(by_query)
        values += list(by_query.values())
    con.executemany("INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", evaluations)
    frame = pl.DataFrame({"evaluation": keys_column, "query": queries, "value": values})
    con.register("fresh_scores", frame.to_arrow())
    con.execute("INSERT INTO query_scores SELECT evaluation, query, value FROM fresh_scores")
    con.unregister("fresh_scores")


def remove_stale(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, system: System) -> None:
    """Remove evaluations of this system whose ranking or judgments are no more what they were."""
    column, key = _where(system)
    stale = f"""SELECT evaluation FROM evaluations WHERE dataset = ? AND {column} = ?
                AND (run_hash <> ? OR qrels_hash <> ?)"""
    values = [of.dataset, key, system.ranking_hash, of.qrels_hash]
    con.execute(f"DELETE FROM query_scores WHERE evaluation IN ({stale})", values)
    con.execute(f"DELETE FROM evaluations WHERE evaluation IN ({stale})", values)


def n_missing(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, system: System) -> int:
    """Judged queries that a system did not rank."""
    ranked = (
        "SELECT query FROM candidates WHERE run = ?"
        if system.run is not None
        else "SELECT query FROM permutations WHERE labeling = ? AND status IN ('ok', 'repaired')"
    )
    sql = f"SELECT count(DISTINCT query) FROM qrels WHERE dataset = ? AND query NOT IN ({ranked})"
    return int(con.execute(sql, [of.dataset, _where(system)[1]]).fetchall()[0][0])


def _tied_queries(con: duckdb.DuckDBPyConnection, system: System, depth: int = 10) -> int:
    """Queries in whose top `depth` two neighbours, or the last one and its successor, have one score."""
    if system.run is None:
        return 0
    return int(
        con.execute(
            """SELECT count(DISTINCT a.query) FROM candidates a JOIN candidates b
               ON b.run = a.run AND b.query = a.query AND b.rank = a.rank + 1 AND b.score = a.score
               WHERE a.run = ? AND a.rank <= ?""",
            [system.run, depth],
        ).fetchall()[0][0]
    )
