"""Calibrate a student on judged validation queries (`msft students calibrate`)."""

from typing import Any

import numpy as np
import polars as pl

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import calibration, fusion, systems
from labelstore.evaluation import measures as measuring
from labelstore.evaluation import scores as evaluation
from labelstore.provenance import record as provenance
from labelstore.runs.write import NewRun, store_run
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from students.jobs.evaluate import Talk, scorer
from students.jobs.rerank import DEFAULT_DEPTH, check_depth


def calibrate_student(
    store: LabelStore,
    name: str,
    dataset: str,
    *,
    run: str | None = None,
    depth: int = DEFAULT_DEPTH,
    method: str = "platt",
    relevant_from: int | None = None,
    none_precision: float = 0.9,
    precision: str = "auto",
    talk: Talk = Talk(),
) -> dict[str, Any]:
    """Fit the map from logit to probability and keep it in the store; returns one row about it.

    Candidates without a judgment count as not relevant, as in an evaluation.

    Args:
        dataset: judged queries that the student was not tested on. Queries whose text a test set has are left out.
        run: the first stage whose candidates are scored; by default the only one.
        relevant_from: the lowest grade that counts as relevant; by default that of the dataset's measures.
        none_precision: the share of lists called "nothing relevant" that must hold nothing relevant.

    Raises:
        UsageError: the dataset is a test set, or a setting is wrong.
        DataMissing: a name, a run or judged queries are not found.
        BadInput: the queries are too few, or the scores do not rise with relevance.
    """
    check_depth(depth)
    with store.read() as con:
        student = lookup.student(con, name)
        source = lookup.pick_run(con, lookup.dataset(con, dataset), run)
        found = fusion.validation_for_use(con, store.files, source, student, dataset)
        if found is None:
            raise DataMissing(f"{dataset} has no judged queries", hint=f"msft data show {dataset}")
        level = relevant_from or measuring.relevance_level(evaluation.default_measures(found.dataset))
        judged = systems.qrels(con, found.dataset).judged
    clock = provenance.Clock()
    depth = min(depth, found.run.depth)
    own = fusion.student_scores(store, found, student, depth, scorer(store, name, precision, talk))
    pairs = calibration.Pairs(
        own["query"].to_numpy().astype(np.int64),
        own["score"].to_numpy().astype(np.float64),
        np.array(
            [
                judged[query].get(str(document), 0) >= level
                for query, document in zip(own["query"].to_list(), own["document"].to_list(), strict=True)
            ],
            dtype=np.bool_,
        ),
    )
    made = calibration.calibrate(pairs, method, none_precision)
    with store.write() as con, provenance.recorded_in(con, "students.calibrate", clock) as job:
        calibration.store(
            con, student, made, dataset=found.dataset.name, run=found.run.name, depth=depth, relevant_from=level,
            job=job.job,
        )  # fmt: skip
    return {
        "student": name,
        "method": method,
        "dataset": found.dataset.name,
        "run": found.run.name,
        "queries": made.n_queries,
        "pairs": made.n_pairs,
        "relevant": made.n_relevant,
        "ece_before": made.ece_before,
        "ece": made.ece,
        "none_below": made.none_below,
        "none_precision": made.none_precision,
    }


def probability_run(store: LabelStore, logits: lookup.Run, *, replace: bool = False) -> lookup.Run:
    """Store a student's run with probabilities as scores, in the same order; an equal run is returned.

    Args:
        logits: a run of the student, as `rerank_run` stores it.

    Raises:
        DataMissing: the student is not calibrated for its weights of today.
        UsageError: the run was made with other settings than the calibration, or another run has the name.
    """
    name = f"{logits.name}-probabilities"
    with store.read() as con:
        sql = "SELECT name FROM students WHERE student = ?"
        ((student,),) = con.execute(sql, [logits.student]).fetchall()
        of = lookup.student(con, student)
        found = calibration.of_student(con, of)
        if found is None:
            raise DataMissing(
                f"{student} is not calibrated for its weights of today",
                hint=f"msft students calibrate {student} --dataset DEV",
            )
        changed = [key for key in ("long", "instruction") if key in logits.parameters]
        if changed or logits.parameters.get("weights_hash") != of.weights_hash:
            raise UsageError(
                f"{logits.name} was made with other {' and '.join(changed) or 'weights'} than the calibration of {student}",
                hint=f"leave them out, or calibrate again: msft students calibrate {student}",
            )
        parameters = logits.parameters | {"probabilities": found.settings(), "logits": logits.content_hash}
        ((dataset,),) = con.execute(
            "SELECT name FROM datasets WHERE dataset = ?", [logits.dataset]
        ).fetchall()
        known = {run.name: run for run in lookup.runs(con, lookup.dataset(con, dataset))}
        if name in known and known[name].parameters == parameters:
            return known[name]
        if name in known and not replace:
            raise UsageError(f"{dataset} has a run {name!r} already", hint="give --replace")
        rows = con.execute(
            "SELECT query, document, score, rank FROM candidates WHERE run = ? ORDER BY query, rank",
            [logits.run],
        ).fetchnumpy()
    mapped = found.map.of(np.asarray(rows["score"], dtype=np.float64)).astype(np.float32)
    frame = pl.DataFrame({key: np.asarray(values) for key, values in rows.items()}).with_columns(
        pl.Series("score", mapped)
    )
    clock = provenance.Clock()
    with store.write() as con, provenance.recorded_in(con, "students.rerank", clock) as job:
        con.register("mapped", frame.to_arrow())
        new = NewRun(
            logits.dataset, name, "student", logits.system, parameters, logits.source_run, logits.student
        )
        return store_run(con, job, new, "mapped", replace=replace)
