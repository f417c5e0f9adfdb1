"""Fuse a student with its first stage: w · student + (1 - w) · first stage, each scaled to 0..1 within a query.

The weight is chosen on validation queries, never on the queries under test: those of a dev set over the same collection,
otherwise those of the student's training views. Without either it is 0.5, and a note says so.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import measures as measuring
from labelstore.evaluation import scores as evaluation
from labelstore.evaluation import systems
from labelstore.evaluation.measures import Qrels, Ranking
from labelstore.provenance import record as provenance
from labelstore.runs import write as runs
from labelstore.store import foreign, keys, lookup
from labelstore.store.label_store import LabelStore

WEIGHTS = tuple(round(0.05 * i, 2) for i in range(21))
UNTUNED = 0.5
DEPTH = 100  # candidates of a validation query
MAX_QUERIES = 200  # validation queries that are scored at most, chosen by a hash of their ids

Pair = tuple[int, int]  # (query, document)
Score = Callable[[lookup.Run, Sequence[int], int], pl.DataFrame]
"""(run, queries, depth) -> the student's scores as columns query, document, score."""


@dataclass(frozen=True)
class Validation:
    """Validation queries for the weight: judged, not under test, with the first stage over them."""

    dataset: lookup.Dataset
    run: lookup.Run
    queries: tuple[int, ...]
    why: str  # as told to the user


def validation(
    con: duckdb.DuckDBPyConnection,
    files: Path,
    of: lookup.Dataset,
    first_stage: lookup.Run,
    student: lookup.Student,
    named: str | None = None,
) -> Validation | None:
    """Find the validation queries for fusing `student` with `first_stage` on dataset `of`; None without such queries.

    Queries whose normalised text `of` has are left out.

    Args:
        files: the store's companion folder with the student's views.
        named: a dataset that the user chose.

    Raises:
        UsageError: the named dataset is under test.
        DataMissing: the named dataset has no judgments, or no run of that first stage.
    """
    if named is not None and lookup.dataset(con, named).dataset == of.dataset:
        raise UsageError(f"{named} is under test: a weight fixed on it would be fitted to the answer")
    return _find_validation(con, files, first_stage, student, named, [of.dataset])


def validation_for_use(
    con: duckdb.DuckDBPyConnection,
    files: Path,
    first_stage: lookup.Run,
    student: lookup.Student,
    named: str | None = None,
) -> Validation | None:
    """Find the validation queries for a student in use; queries of the collection's test sets are left out.

    Raises:
        UsageError: the named dataset is a test set.
        DataMissing: the named dataset has no judgments, or no run of that first stage.
    """
    tests = con.execute(
        """SELECT t.dataset, t.name FROM datasets t JOIN datasets d ON d.collection = t.collection
           WHERE t.role = 'test' AND d.dataset = ?""",
        [first_stage.dataset],
    ).fetchall()
    if named in [name for _, name in tests]:
        raise UsageError(
            f"{named} is a test set: what is fitted on it can no longer be measured on it",
            hint="name a dataset of role dev or train",
        )
    return _find_validation(con, files, first_stage, student, named, [dataset for dataset, _ in tests])


def _find_validation(
    con: duckdb.DuckDBPyConnection,
    files: Path,
    first_stage: lookup.Run,
    student: lookup.Student,
    named: str | None,
    barred: Sequence[int],
) -> Validation | None:
    """Find validation queries outside of the barred datasets: the named set, a dev set, or those held out in training."""
    if named is not None:
        chosen = lookup.dataset(con, named)
        run = _same_first_stage(con, chosen, first_stage)
        queries = _judged(con, chosen, barred)
        if run is None or not queries:
            raise DataMissing(
                f"{named} has {'no run by ' + first_stage.name if run is None else 'no judged queries that are not under test'}",
                hint=f"msft retrieve --dataset {named} --retriever bm25s --name {first_stage.name}",
            )
        return Validation(chosen, run, _sample(con, queries), f"dataset {named}, as asked")
    for chosen in _datasets(con, first_stage, "dev", barred):
        run, queries = _same_first_stage(con, chosen, first_stage), _judged(con, chosen, barred)
        if run is not None and queries:
            return Validation(chosen, run, _sample(con, queries), f"dataset {chosen.name} (role dev)")
    held_out = _held_out_texts(con, files, student)
    for chosen in _datasets(con, first_stage, "train", barred) if held_out else []:
        run = _same_first_stage(con, chosen, first_stage)
        held = _queries_with(con, chosen, held_out)
        queries = [q for q in _judged(con, chosen, barred) if q in held]
        if run is not None and queries:
            return Validation(
                chosen, run, _sample(con, queries), f"validation queries of {student.name} in {chosen.name}"
            )
    return None


def fuse(
    store: LabelStore,
    of: lookup.Dataset,
    student_run: lookup.Run,
    score: Score,
    measure: str,
    *,
    on: str | None = None,
    note: Callable[[str], None] | None = None,
) -> lookup.Run:
    """Fuse a student's run with its first stage into a run STUDENT+FIRST_STAGE; it is stored and reused while it fits.

    Args:
        student_run: a run of kind student.
        score: called to score validation queries that no stored run has.
        measure: canonical name of the measure that the weight maximises.
        on: the validation dataset, by name.
    """
    with store.read() as con:
        if student_run.source_run is None or student_run.student is None:
            raise UsageError(f"run {student_run.name} re-ranks nothing: there is nothing to fuse it with")
        first_stage = lookup.run_by_id(con, student_run.source_run)
        student = _student(con, student_run.student)
        found = validation(con, store.files, of, first_stage, student, on)
        name = f"{student.name}+{first_stage.name}"
        known = {r.name: r for r in lookup.runs(con, of, ("fused",))}
    origin = {
        "student_run": student_run.content_hash,
        "first_stage": first_stage.content_hash,
        "scaling": "min-max",
        "measure": measure,
        "validation": None if found is None else found.dataset.name,
        "validation_hash": None if found is None else _validation_hash(found),
    }
    held = known.get(name)
    if held is not None and {key: held.parameters.get(key) for key in origin} == origin:
        return held
    clock = provenance.Clock()
    weight, value = UNTUNED, None
    if found is None:
        why = (
            f"no validation queries with judgments and a {first_stage.name} run over them:"
            f" the weight is {UNTUNED}, not tuned (--fuse-on DATASET names some)"
        )
    else:
        weight, value = _fit(store, found, student, student_run.depth, score, measure)
        why = f"weight {weight:.2f} from {len(found.queries)} queries, {found.why}: {measure} {value:.4f}"
    if note:
        note(f"{name}: {why}")
    parameters = {
        **origin,
        "weight": weight,
        "validation_value": value,
        "n_validation_queries": 0 if found is None else len(found.queries),
        "depth": student_run.depth,
    }
    return _store_fused(store, clock, of, name, student, student_run, first_stage, parameters)


@dataclass(frozen=True)
class Weight:
    """A student's share in a fusion, and what it was fixed on."""

    weight: float
    why: str


def weight_for_use(
    store: LabelStore, student: str, run: str, score: Score, *, on: str | None = None
) -> Weight:
    """Fix a student's weight for use outside of the store: on validation queries, by their dataset's first measure.

    Args:
        run: the first stage's name; requests bring the scores of its system.
        score: called to score validation queries that no stored run has.
        on: the validation dataset, by name.

    Raises:
        DataMissing: the student, the run or validation queries are not found.
        UsageError: the named dataset is a test set.
    """
    with store.read() as con:
        own = lookup.student(con, student)
        first_stage = first_stage_named(con, run)
        found = validation_for_use(con, store.files, first_stage, own, on)
        measure = "" if found is None else evaluation.default_measures(found.dataset)[0]
    if found is None:
        raise DataMissing(
            f"no validation queries to fix the weight of {student} and {run}: expected judged queries of a dev set, or"
            f" held-out training queries, with a run by {run}",
            hint="name a dataset with --fuse-on DATASET, or give the weight with --fuse-weight 0.5",
        )
    weight, value = _fit(store, found, own, min(found.run.depth, DEPTH), score, measure)
    return Weight(weight, f"{len(found.queries)} queries, {found.why}: {measure} {value:.4f}")


def first_stage_named(con: duckdb.DuckDBPyConnection, name: str) -> lookup.Run:
    """Find a first stage by name, over any dataset.

    Raises:
        DataMissing: the first stage is not found.
    """
    found = con.execute(
        "SELECT run, name FROM runs WHERE kind IN ('first_stage', 'imported') ORDER BY run"
    ).fetchall()
    key = next((run for run, own in found if own == name), None)
    if key is None:
        names = list(dict.fromkeys(own for _, own in found))
        raise lookup.missing("first stage", name, names, "msft runs list", "msft retrieve --dataset DATASET")
    return lookup.run_by_id(con, key)


def _store_fused(
    store: LabelStore,
    clock: provenance.Clock,
    of: lookup.Dataset,
    name: str,
    student: lookup.Student,
    student_run: lookup.Run,
    first_stage: lookup.Run,
    parameters: dict[str, Any],
) -> lookup.Run:
    """Fuse by ``parameters["weight"]`` and keep the run in the place of an earlier one."""
    with store.read() as con:
        frame = interpolate(_scores(con, student_run), _scores(con, first_stage), parameters["weight"])
    with provenance.recorded(store, "eval.fuse", clock) as job, store.write() as con:
        con.register("fused", frame.to_arrow())
        new = runs.NewRun(
            of.dataset, name, "fused", f"fused:{student.name}", parameters, first_stage.run, student.student
        )
        made = runs.store_run(con, job, new, "fused", replace=True)
        # the same ranking from another weight or other validation queries: the record says what is true now
        con.execute("UPDATE runs SET parameters = ? WHERE run = ?", [json.dumps(parameters), made.run])
    return made


def interpolate(student: pl.DataFrame, first_stage: pl.DataFrame, weight: float) -> pl.DataFrame:
    """Fuse the scores of the passages that both have: columns query, document, score, rank.

    Scores are scaled to 0..1 within each query over those passages (all equal: 0.5); ties stand in the first
    stage's order.

    Args:
        student, first_stage: columns query, document, score; the first stage's also rank.
    """

    def scaled(column: str) -> pl.Expr:
        low, high = pl.col(column).min().over("query"), pl.col(column).max().over("query")
        return pl.when(high > low).then((pl.col(column) - low) / (high - low)).otherwise(0.5)

    both = student.select("query", "document", pl.col("score").cast(pl.Float64).alias("own")).join(
        first_stage.select("query", "document", "rank", pl.col("score").cast(pl.Float64).alias("first")),
        on=["query", "document"],
    )
    return (
        both.with_columns((weight * scaled("own") + (1 - weight) * scaled("first")).alias("score"))
        .sort("query", -pl.col("score"), "rank")
        .with_columns(pl.int_range(1, pl.len() + 1).over("query").cast(pl.Int32).alias("rank"))
        .select("query", "document", pl.col("score").cast(pl.Float32), "rank")
    )


def _fit(
    store: LabelStore,
    found: Validation,
    student: lookup.Student,
    depth: int,
    score: Score,
    measure: str,
) -> tuple[float, float]:
    """Choose the weight on validation queries; return it with the measure's mean (see :func:`choose_weight`)."""
    with store.read() as con:
        judged = systems.qrels(con, found.dataset)
        first = _of_validation(_scores(con, found.run), found, depth)
    own = student_scores(store, found, student, depth, score)
    qrels = Qrels({q: judged.judged[q] for q in found.queries}, judged.qrels_hash)

    def values(weight: float) -> np.ndarray:
        fused = interpolate(own, first, weight)
        columns = (fused[name].to_numpy() for name in ("query", "document", "rank"))
        scored = measuring.per_query(Ranking(*columns), qrels, [measure])[measure]
        return np.array([scored[query] for query in sorted(scored)])

    return choose_weight({weight: values(weight) for weight in WEIGHTS})


def student_scores(
    store: LabelStore, found: Validation, student: lookup.Student, depth: int, score: Score
) -> pl.DataFrame:
    """Read or make a student's logits of the validation queries' candidates: columns query, document, score."""
    with store.read() as con:
        own = next(
            (
                _scores(con, r)
                for r in lookup.runs(con, found.dataset, ("student",))
                if r.student == student.student
                and r.source_run == found.run.run
                and r.depth >= depth
                and r.parameters.get("weights_hash") == student.weights_hash
                and not r.parameters.get("probabilities")
            ),
            None,
        )
        first = _of_validation(_scores(con, found.run), found, depth)
    if own is None:
        return score(found.run, found.queries, depth)
    return own.join(first, on=["query", "document"], how="semi")  # the run may be deeper


def _of_validation(scores: pl.DataFrame, found: Validation, depth: int) -> pl.DataFrame:
    """Take the validation queries' candidates to a depth."""
    return scores.filter(pl.col("query").is_in(list(found.queries)) & (pl.col("rank") <= depth))


def choose_weight(values: Mapping[float, np.ndarray]) -> tuple[float, float]:
    """Choose the weight nearest to 0.5 that is within a standard error of the best; return it with its mean.

    The rule of one standard error (Breiman et al. 1984, section 3.4.3), on the paired differences: the best of many
    weights on some hundred queries is mostly luck, and far from 0.5 luck costs most.

    Args:
        values: weight -> the measure on each validation query, queries in one order.
    """
    best = max(values, key=lambda weight: (round(values[weight].mean(), 9), -abs(weight - 0.5)))

    def as_good(weight: float) -> bool:
        lost = values[best] - values[weight]
        return (
            bool(lost.mean() <= lost.std(ddof=1) / math.sqrt(len(lost))) if len(lost) > 1 else weight == best
        )

    chosen = min(filter(as_good, values), key=lambda weight: (abs(weight - 0.5), weight))
    return chosen, float(values[chosen].mean())


# ------------------------------------------------------------------------------------------------------- look-ups
def _student(con: duckdb.DuckDBPyConnection, key: int) -> lookup.Student:
    ((name,),) = con.execute("SELECT name FROM students WHERE student = ?", [key]).fetchall()
    return lookup.student(con, name)


def _scores(con: duckdb.DuckDBPyConnection, of: lookup.Run) -> pl.DataFrame:
    columns = con.execute(
        "SELECT query, document, rank, score FROM candidates WHERE run = ? ORDER BY query, rank", [of.run]
    ).fetchnumpy()
    return pl.DataFrame({name: np.asarray(values) for name, values in columns.items()})


def _datasets(
    con: duckdb.DuckDBPyConnection, first_stage: lookup.Run, role: str, barred: Sequence[int]
) -> list[lookup.Dataset]:
    """List the judged datasets of a role over the first stage's collection, without the barred ones."""
    found = con.execute(
        """SELECT d.name FROM datasets d JOIN datasets own ON own.collection = d.collection AND own.dataset = ?
           WHERE d.role = ? AND d.qrels_hash IS NOT NULL AND NOT list_contains(?::INTEGER[], d.dataset) ORDER BY d.name""",
        [first_stage.dataset, role, list(barred)],
    ).fetchall()
    return [lookup.dataset(con, name) for (name,) in found]


def _same_first_stage(
    con: duckdb.DuckDBPyConnection, chosen: lookup.Dataset, first_stage: lookup.Run
) -> lookup.Run | None:
    """Find the run of that name, or the only one of the same system with the same parameters."""
    there = lookup.runs(con, chosen, ("first_stage", "imported"))
    by_name = [r for r in there if r.name == first_stage.name]
    by_system = [r for r in there if r.system == first_stage.system]
    return next(iter(by_name or (by_system if len(by_system) == 1 else [])), None)


def _judged(con: duckdb.DuckDBPyConnection, chosen: lookup.Dataset, barred: Sequence[int]) -> list[int]:
    """List the judged queries whose normalised text no barred dataset has."""
    found = con.execute(
        """SELECT DISTINCT r.query FROM qrels r JOIN queries q USING (query)
           WHERE r.dataset = ? AND q.normal_hash NOT IN (
               SELECT t.normal_hash FROM dataset_queries dq JOIN queries t USING (query)
               WHERE list_contains(?::INTEGER[], dq.dataset))
           ORDER BY r.query""",
        [chosen.dataset, list(barred)],
    ).fetchall()
    return [query for (query,) in found]


def _sample(con: duckdb.DuckDBPyConnection, queries: Sequence[int]) -> tuple[int, ...]:
    """Take at most MAX_QUERIES by a hash of their ids, the same in every store."""
    if len(queries) <= MAX_QUERIES:
        return tuple(queries)
    ids = con.execute(
        "SELECT query, query_id FROM queries WHERE query IN (SELECT unnest(?::INTEGER[]))", [list(queries)]
    ).fetchall()
    ordered = sorted(ids, key=lambda row: keys.text_hash(None, row[1]))
    return tuple(sorted(query for query, _ in ordered[:MAX_QUERIES]))


def _held_out_texts(con: duckdb.DuckDBPyConnection, files: Path, student: lookup.Student) -> set[int]:
    """Read the normal hashes of the queries that the student's views held out (split ``valid``)."""
    held: set[int] = set()
    for name, view_hash, folder in con.execute(
        "SELECT v.name, v.view_hash, v.folder FROM stages g JOIN views v USING (view) WHERE g.student = ?",
        [student.student],
    ).fetchall():
        where = foreign.own_folder(files, "view", name, folder, view_hash)
        if not (where / "lists.parquet").is_file():
            continue
        lists = pl.read_parquet(where / "lists.parquet", columns=["query", "split"])
        chosen = lists.filter(pl.col("split") == "valid")["query"].unique()
        queries = pl.read_parquet(where / "queries.parquet", columns=["query", "text"])
        texts = queries.filter(pl.col("query").is_in(chosen.implode()))["text"]
        held |= {keys.normal_hash(text) for text in texts}
    return held


def _queries_with(con: duckdb.DuckDBPyConnection, chosen: lookup.Dataset, hashes: set[int]) -> set[int]:
    found = con.execute(
        """SELECT query FROM dataset_queries JOIN queries USING (query)
           WHERE dataset = ? AND normal_hash IN (SELECT unnest(?::UBIGINT[]))""",
        [chosen.dataset, list(hashes)],
    ).fetchall()
    return {query for (query,) in found}


def _validation_hash(found: Validation) -> str:
    content = [found.dataset.name, found.dataset.qrels_hash, found.run.content_hash, len(found.queries)]
    return keys.content_key("fusion-validation", json.loads(json.dumps(content)))
