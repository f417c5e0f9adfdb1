"""Lists of the store for exports: what int8 is calibrated on, and what export and student both score."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.errors import DataMissing, MsftError
from labelstore.evaluation import measures as measuring
from labelstore.store import lookup
from msft.rankings import kendall_tau
from students.jobs.candidates import CandidateLists, Tick, candidates, lists

if TYPE_CHECKING:
    import duckdb

Note = Callable[[str], None]

MEASURE = "nDCG@10"
CALIBRATION_QUERIES, CALIBRATION_DEPTH = 60, 5  # 300 pairs, as many as NNCF takes
MAX_QUERIES = 50
DEPTH = 100
ENOUGH_FOR_SPEED = 500  # pairs, so that the first batches do not count


@dataclass(frozen=True)
class Sample:
    """Candidates, and their judgments if the store has them."""

    dataset: str
    run: str
    lists: CandidateLists
    qrels: measuring.Qrels | None


def sample(
    con: "duckdb.DuckDBPyConnection", dataset: str | None, run: str | None, note: Note | None
) -> Sample | None:
    """Choose the first queries of a run for the check: the named run, or the first run over judged queries.

    Raises:
        MsftError: a named dataset or run is not found.
    """
    from labelstore.evaluation.systems import qrels

    if dataset is None and run is None:
        found = con.execute(
            """SELECT d.name, r.name FROM runs r JOIN datasets d USING (dataset)
               WHERE r.kind IN ('first_stage', 'imported')
               ORDER BY d.qrels_hash IS NULL, d.role <> 'test', r.run LIMIT 1"""
        ).fetchall()
        if not found:
            if note is not None:
                note("the store has no run: the export's scores are not compared with the student's")
            return None
        dataset, run = found[0]
    of = lookup.pick_dataset(con, dataset)
    source = lookup.pick_run(con, of, run)
    judged = qrels(con, of) if of.qrels_hash else None
    chosen = _queries(con, source, judged)
    if not chosen:
        raise MsftError(f"{source.name} over {of.name} has no judged query", hint="--dataset D --run RUN")
    if note is not None:
        note(f"comparing scores on {len(chosen)} queries of {source.name} over {of.name}")
    return Sample(of.name, source.name, lists(con, candidates(con, source, DEPTH, chosen)), judged)


def _queries(
    con: "duckdb.DuckDBPyConnection", source: lookup.Run, judged: measuring.Qrels | None
) -> list[int]:
    """Choose the keys of the run's first queries; only judged ones if the dataset has judgments."""
    found = con.execute(
        "SELECT DISTINCT query, query_id FROM candidates JOIN queries USING (query) WHERE run = ? ORDER BY query_id",
        [source.run],
    ).fetchall()
    return [query for query, _ in found if judged is None or query in judged.judged][:MAX_QUERIES]


def compare(
    source: Path, exported: Path, max_length: int, on: Sample, progress: Tick | None = None
) -> dict[str, Any]:
    """Measure how the export's scores differ from the student's fp32 scores, both speeds, and nDCG@10 of both if judged."""
    from students.rerank.reranker import Reranker

    total = 2 * on.lists.n_pairs

    def half(offset: int) -> Tick | None:
        return None if progress is None else lambda done, _: progress(offset + done, total)

    student = Reranker.load(source, precision="fp32", max_length=max_length, device="cpu", long="first")
    began = time.perf_counter()
    ours = student.scores(on.lists.texts, progress=half(0))
    seconds = time.perf_counter() - began
    graph = Reranker.load(exported, max_length=max_length, long="first")
    began = time.perf_counter()
    theirs = graph.scores(on.lists.texts, progress=half(total // 2))
    row: dict[str, Any] = {
        "dataset": on.dataset,
        "run": on.run,
        "pairs": on.lists.n_pairs,
        "student_pairs_per_second": round(on.lists.n_pairs / seconds, 1),
        "export_pairs_per_second": round(on.lists.n_pairs / (time.perf_counter() - began), 1),
    }
    row |= differences(ours, theirs)
    if on.qrels is not None:
        before, after = (_measure(on, on.qrels, scores) for scores in (ours, theirs))
        row |= {
            "measure": MEASURE,
            "student_value": before,
            "export_value": after,
            "value_loss": before - after,
        }
    return row


def slower_than_student(row: dict[str, Any]) -> str:
    """Say that a graph of some hundred pairs or more was slower than the student, if it was."""
    own, graph = row["student_pairs_per_second"], row["export_pairs_per_second"]
    if row["pairs"] < ENOUGH_FOR_SPEED or graph >= own:
        return ""
    return (
        f"on this machine the int8 graph is slower than the student in fp32: {graph:.0f} and {own:.0f} pairs/s;"
        " this is usual on CPUs without instructions for int8 (AVX-512 VNNI, AMX)"
    )


def differences(ours: list[Any], theirs: list[Any]) -> dict[str, float]:
    """Compute the largest and mean absolute difference, the scores' spread for comparison, and Kendall's tau."""
    a, b = np.concatenate(ours), np.concatenate(theirs)
    taus = [
        kendall_tau(np.asarray(x).tolist(), np.asarray(y).tolist())
        for x, y in zip(ours, theirs, strict=True)
        if len(np.unique(x)) > 1  # if all scores are equal, the student gives no order to compare
    ]
    return {
        "max_difference": float(np.abs(a - b).max()),
        "mean_difference": float(np.abs(a - b).mean()),
        "score_deviation": float(a.std()),
        "tau": float(np.mean(taus)) if taus else 1.0,
    }


def _measure(on: Sample, qrels: measuring.Qrels, scores: list[Any]) -> float:
    """Compute nDCG@10 over the sample's judged queries."""
    orders = [np.argsort(-np.asarray(row), kind="stable") for row in scores]
    ranking = measuring.Ranking(
        np.repeat(on.lists.query, [len(o) for o in orders]),
        np.concatenate([np.asarray(d)[o] for d, o in zip(on.lists.documents, orders, strict=True)]),
        np.concatenate([np.arange(1, len(o) + 1) for o in orders]),
    )
    judged = measuring.Qrels({q: qrels.judged[q] for q in on.lists.query}, qrels.qrels_hash)
    values = measuring.per_query(ranking, judged, [MEASURE])
    return measuring.mean(values[MEASURE])


def calibration_lists(
    con: "duckdb.DuckDBPyConnection", dataset: str | None = None, run: str | None = None
) -> list[tuple[str, list[str]]]:
    """Choose lists of a run: of training queries if the store has some, test queries last. Judgments are not read.

    Queries are drawn by a hash of their ids, and passages over the whole depth of the run.

    Raises:
        DataMissing: the store has no run, or passages have no text.
    """
    if dataset is None:
        found = con.execute(
            """SELECT d.name, r.name FROM runs r JOIN datasets d USING (dataset)
               WHERE r.kind IN ('first_stage', 'imported')
               ORDER BY array_position(['train', 'dev', 'test'], d.role) NULLS LAST, r.run LIMIT 1"""
        ).fetchall()
        if not found:
            raise DataMissing(
                "the store has no run, and int8 for OpenVINO is calibrated on a run's pairs",
                hint="msft retrieve --dataset DATASET, or export with --format openvino",
            )
        dataset, run = found[0]
    source = lookup.pick_run(con, lookup.dataset(con, dataset), run)
    queries = con.execute(
        """SELECT query FROM (SELECT DISTINCT query FROM candidates WHERE run = ?) JOIN queries USING (query)
           ORDER BY hash(query_id), query_id LIMIT ?""",
        [source.run, CALIBRATION_QUERIES],
    ).fetchall()
    read = lists(con, candidates(con, source, source.depth, [query for (query,) in queries]))
    return [
        (query, texts[:: max(1, len(texts) // CALIBRATION_DEPTH)][:CALIBRATION_DEPTH])
        for query, texts in read.texts
    ]
