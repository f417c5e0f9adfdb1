"""Measure runs and labelings against qrels; per-query scores are stored and reused.

An evaluation is identified by (ranking hash, qrels hash, measure). Existing ones are not computed again. Evaluations of
rankings or judgments that were replaced since are removed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import polars as pl

from labelstore.datasets import catalog
from labelstore.errors import NoRoom, NotWritable
from labelstore.evaluation import bases, significance
from labelstore.evaluation import measures as measuring
from labelstore.evaluation.measures import Scores
from labelstore.evaluation.systems import KINDS, Basis, System, qrels, ranking, select
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore, next_id

Row = dict[str, Any]


def default_measures(of: lookup.Dataset) -> list[str]:
    """List the measures that the literature reports on this dataset; the first orders the systems."""
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
    base_runs: Sequence[int] | None = None,
    exclude_self: bool = False,
    judge: str | None = None,
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
        base_runs: the runs of students' bases. None: all.
        exclude_self, judge: see :func:`scores`.

    Returns:
        rows with dataset, system, kind, first_stage, measure, judge (None: human judgments), value, n_queries, p_value (two-sided paired t-test
        against the first stage; None for a first stage, or if the store lacks it), base (the system that shows a
        student's base before training, if it was measured), base_p_value (the same test against that system), regime,
        judged (Judged@10), depth and recall (of the candidates that were ordered: the ceiling of a re-ranking).

    Raises:
        DataMissing: the dataset has no judgments, or no ranking.
        UsageError: ir-measures does not know a measure.
    """
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        names = [measuring.canonical(m) for m in measures] if measures else default_measures(of)
        chosen = select(con, of, runs, labelings, students, kinds, base_runs)
        began = bases.runs(con, of, [s.student for s in chosen if s.student is not None])
    scored = scores(store, of, chosen, names, Basis(judge, exclude_self), note=note, warn=warn)
    return rows(of, chosen, names, scored, judge, began)


def scores(
    store: LabelStore,
    of: lookup.Dataset,
    chosen: Sequence[System],
    measures: Sequence[str],
    basis: Basis = Basis(),
    note: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> dict[tuple[System, str], Scores]:
    """Collect per-query scores of systems; missing ones are measured and stored.

    Beside `measures`, ``Judged@10`` and each system's recall at its depth are measured (see :func:`rows`).

    Args:
        measures: canonical names.
        basis: the judge, and whether passages that have their query's id are left out. This is always done if the
            dataset's protocol says so (`catalog.leaves_out_self`); otherwise such values are not stored. Values by an
            LLM judge are never stored: evaluations rest on human judgments alone.
        warn: called with the reason if values cannot be stored; without it that is an error.
    """
    by_protocol = any(
        catalog.leaves_out_self(name) for name in (of.ir_datasets_id or of.name, of.collection_name)
    )
    not_stored = (basis.exclude_self and not by_protocol) or basis.judge is not None
    level = measuring.relevance_level(measures)
    wanted = {s: list(dict.fromkeys([*measures, *companions(s, level)])) for s in chosen}
    found: dict[tuple[System, str], Scores] = {}
    todo: dict[System, list[str]] = {}
    with store.read() as con:
        judged = qrels(con, of, basis.judge)
        for system, names in wanted.items():
            held = {} if not_stored else stored(con, of, system, names)
            found.update({(system, name): values for name, values in held.items()})
            lacking = [name for name in names if name not in held]
            if lacking:
                todo[system] = lacking
    if todo:
        clock = provenance.Clock()
        fresh = _measured(
            store, judged, todo, by_protocol or basis.exclude_self, note or (lambda message: None)
        )
        found.update(fresh)
        if not_stored:
            return found
        try:
            with provenance.recorded(store, "eval", clock) as job, store.write() as con:
                _keep(con, job.job, of, fresh, {s: n_missing(con, of, s) for s in todo})
        except (NotWritable, NoRoom) as error:
            if warn is None:
                raise
            warn(f"the values are not kept: {error}")
    return found


def _measured(
    store: LabelStore,
    judged: measuring.Qrels,
    todo: Mapping[System, Sequence[str]],
    exclude_self: bool,
    note: Callable[[str], None],
) -> dict[tuple[System, str], Scores]:
    """Compute each system's values of its measures."""
    fresh: dict[tuple[System, str], Scores] = {}
    for system, names in todo.items():
        with store.read() as con:
            ranked = ranking(con, system, exclude_self)
            tied = _tied_queries(con, system)
        if tied:
            note(
                f"{system.name}: scores tie within the top 10 of {tied} queries; ties stand in the stored order"
            )
        measured = measuring.per_query(ranked, judged, names)
        fresh.update({(system, name): values for name, values in measured.items()})
        absent = len(judged.judged.keys() - set(np.unique(ranked.query).tolist()))
        if absent:
            note(f"{system.name}: {absent} of {len(judged.judged)} judged queries are not ranked and score 0")
    return fresh


def companions(system: System, level: int) -> tuple[str, str]:
    """Name the measures beside every measure: the judged share of the top 10, and the recall of the candidates."""
    recall = f"R(rel={level})@{system.depth}" if level > 1 else f"R@{system.depth}"
    return "Judged@10", measuring.canonical(recall)


def rows(
    of: lookup.Dataset,
    chosen: Sequence[System],
    measures: Sequence[str],
    scored: dict[tuple[System, str], Scores],
    judge: str | None = None,
    began: Mapping[str, Sequence[int]] | None = None,
) -> list[Row]:
    """Make a row per system and measure, grouped by first stage, best first within each kind.

    Args:
        began: the runs of each student's base (`labelstore.evaluation.bases.runs`).
    """
    by_run = {s.run: s for s in chosen if s.run is not None}
    level = measuring.relevance_level(measures)
    made = []
    for system in _ordered(chosen, measures[0], scored):
        judged, recall = companions(system, level)
        first = by_run.get(system.source_run) if system.source_run is not None else None
        base = base_of(system, chosen, began or {})
        for name in measures:
            values = scored[system, name]
            made.append(
                {
                    "dataset": of.name,
                    "system": system.name,
                    "kind": system.kind,
                    "first_stage": system.first_stage,
                    "measure": name,
                    "value": measuring.mean(values),
                    "n_queries": len(values),
                    "p_value": None if first is None else p_value(values, scored[first, name]),
                    "regime": system.regime,
                    "judged": measuring.mean(scored[system, judged]),
                    "depth": system.depth,
                    "recall": measuring.mean(scored[system, recall]),
                    "judge": judge,
                    "base": None if base is None else base.name,
                    "base_p_value": None if base is None else p_value(values, scored[base, name]),
                }
            )
    return made


def base_of(system: System, chosen: Sequence[System], began: Mapping[str, Sequence[int]]) -> System | None:
    """Find the system that shows a student's base over the same candidates."""
    if system.kind != "student" or system.student is None:
        return None
    own = began.get(system.student, ())
    found = [s for s in chosen if s.run in own and s.source_run == system.source_run]
    return min(found, key=lambda s: (abs(s.depth - system.depth), s.run or 0), default=None)


def p_value(values: Scores, others: Scores) -> float:
    queries = sorted(values)
    return significance.paired_t(
        np.array([values[q] for q in queries]), np.array([others[q] for q in queries])
    ).p_value


def _ordered(
    chosen: Sequence[System], measure: str, scored: dict[tuple[System, str], Scores]
) -> list[System]:
    value = {s: measuring.mean(scored[s, measure]) for s in chosen}
    best = {s.first_stage: value[s] for s in chosen if s.kind == "first_stage"}
    return sorted(
        chosen,
        key=lambda s: (
            s.first_stage not in best,  # systems over a missing first stage come last
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


def stored(
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
        for name in stored(con, of, system, names):  # another process measured it meanwhile
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
    """Remove evaluations of this system whose ranking or judgments have changed."""
    column, key = _where(system)
    stale = f"""SELECT evaluation FROM evaluations WHERE dataset = ? AND {column} = ?
                AND (run_hash <> ? OR qrels_hash <> ?)"""
    values = [of.dataset, key, system.ranking_hash, of.qrels_hash]
    con.execute(f"DELETE FROM query_scores WHERE evaluation IN ({stale})", values)
    con.execute(f"DELETE FROM evaluations WHERE evaluation IN ({stale})", values)


def n_missing(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, system: System) -> int:
    """Count the judged queries that a system did not rank."""
    ranked = (
        "SELECT query FROM candidates WHERE run = ?"
        if system.run is not None
        else "SELECT query FROM permutations WHERE labeling = ? AND status IN ('ok', 'repaired')"
    )
    sql = f"SELECT count(DISTINCT query) FROM qrels WHERE dataset = ? AND query NOT IN ({ranked})"
    return int(con.execute(sql, [of.dataset, _where(system)[1]]).fetchall()[0][0])


def _tied_queries(con: duckdb.DuckDBPyConnection, system: System) -> int:
    """Count queries with two equal neighbouring scores in the top 10, or at its lower edge."""
    if system.run is None:
        return 0
    return int(
        con.execute(
            """SELECT count(DISTINCT a.query) FROM candidates a JOIN candidates b
               ON b.run = a.run AND b.query = a.query AND b.rank = a.rank + 1 AND b.score = a.score
               WHERE a.run = ? AND a.rank <= 10""",
            [system.run],
        ).fetchall()[0][0]
    )
