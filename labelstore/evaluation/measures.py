"""Compute measures of ir-measures per query, without a store.

Rankings go to ir-measures with score = -rank, so ties in a system's scores stand in the stored rank order and a
measure is the same on every machine. A judged query that the ranking lacks scores 0 and is counted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np

from labelstore.errors import UsageError

Scores = dict[int, float]  # query -> value

MOST = (
    1_000_000  # of a cut-off or grade: the programs make room for each number below it, and some use 32 bits
)
_LONGEST_NAME = 300
_HINT = "names are ir-measures': nDCG@10, RR@10, RR(rel=2)@10, AP(rel=2), R@100, Judged@10"
_BOUNDS = {"p": (0.0, 1.0), "recall": (0.0, 1.0), "alpha": (0.0, 1.0)}  # of decimal parameters
_HIGHEST_GRADE = {"gdeval": 4}  # its script ends at a higher one
_HIGHEST_GRADE_OF_NDCG = 10_000  # without a cut-off trec_eval's work grows with the square of the grade
_QUERIES_AT_ONCE = 500  # bounds the memory of the nested dicts that ir-measures reads


@dataclass(frozen=True)
class Ranking:
    """A ranking as three arrays of one length, sorted by query, then rank (1 is best)."""

    query: np.ndarray
    document: np.ndarray
    rank: np.ndarray

    def queries(self) -> Iterator[tuple[int, slice]]:
        """Yield each query with the slice of its rows."""
        if not len(self.query):
            return
        starts = np.flatnonzero(np.r_[True, self.query[1:] != self.query[:-1]])
        ends = np.r_[starts[1:], len(self.query)]
        for start, end in zip(starts, ends, strict=True):
            yield int(self.query[start]), slice(int(start), int(end))


@dataclass(frozen=True)
class Qrels:
    """Judgments: query -> document (as text) -> relevance, with the hash that evaluations are kept under."""

    judged: dict[int, dict[str, int]]
    qrels_hash: str


def parse(name: str) -> Any:
    """Parse a measure's name, and check that its program can take the parameters.

    Raises:
        UsageError: ir-measures does not know the name, a parameter is missing or out of bounds, or the measure is not
            a mean over queries.
    """
    if len(name) > _LONGEST_NAME:
        raise UsageError(f"--measure {name[:40]}…: {len(name):,} characters", hint=_HINT)
    try:
        measure = ir_measures.parse_measure(name)
    except (NameError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise UsageError(f"--measure {name}: {error or 'nested too deep'}", hint=_HINT) from error
    _check_parameters(name, measure)
    if not isinstance(measure.aggregator(), ir_measures.measures.MeanAgg):
        raise UsageError(f"--measure {name} is not a mean over queries", hint=_HINT)
    if _provider(measure) is None:
        raise UsageError(
            f"--measure {name}: no installed program computes it with these parameters",
            hint="name a cut-off, as in ERR@20, or pip install 'ir-measures[all]'",
        )
    return measure


def _provider(measure: Any) -> str | None:
    """Find the first program of ir-measures that computes a measure."""
    able = (p.NAME for p in ir_measures.DefaultPipeline.providers if p.is_available() and p.supports(measure))
    return next(able, None)


def _check_parameters(name: str, measure: Any) -> None:
    """Check the parameters that ir-measures only asserts, or that would end the process in its programs."""
    for key in measure.params:
        if key not in measure.SUPPORTED_PARAMS:
            takes = ", ".join(measure.SUPPORTED_PARAMS) or "none"
            raise UsageError(f"--measure {name}: {measure.NAME} has no parameter {key!r}; it takes {takes}")
    for key, info in measure.SUPPORTED_PARAMS.items():
        if key in measure.params:
            wanted = _wanted(key, info, measure.params[key])
            if wanted:
                what = "the cut-off" if key == "cutoff" else key
                raise UsageError(
                    f"--measure {name}: {what} is {measure.params[key]!r}, expected {wanted}", hint=_HINT
                )
        elif info.required:
            what = "a cut-off" if key == "cutoff" else key
            raise UsageError(
                f"--measure {name}: {measure.NAME} needs {what}: {_example(measure)}", hint=_HINT
            )
    low, high = (
        measure["min_rel"] if "min_rel" in measure.SUPPORTED_PARAMS else 0,
        measure.params.get("max_rel"),
    )
    gain = max(measure.params.get("gains", {}).values(), default=0)
    if gain > _highest_grade(measure):
        raise UsageError(
            f"--measure {name} cannot take gains above {_highest_grade(measure):,}, and {gain:,} is one",
            hint="name a cut-off, as in nDCG@10, or smaller gains",
        )
    if high is not None and low >= high:
        raise UsageError(f"--measure {name}: min_rel is {low}, expected less than max_rel, which is {high}")


def _wanted(key: str, info: Any, value: Any) -> str | None:
    """Say what a parameter's value should be; None if the value is allowed."""
    if info.dtype is int:
        low = 0 if key == "min_rel" else 1
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= MOST
        return None if good else f"a whole number from {low} to {MOST:,}"
    if info.dtype is float:
        least, most = _BOUNDS.get(key, (0.0, 100.0))
        good = isinstance(value, float) and least <= value <= most
        return None if good else f"a decimal number from {least} to {most}"
    if info.dtype is dict:
        good = isinstance(value, dict) and all(
            isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MOST
            for pair in value.items()
            for n in pair
        )
        return None if good else f"grades and whole numbers from 0 to {MOST:,}, as in {{1:1,2:3}}"
    return None if info.validate(value) else str(info.choices if info.dtype is str else info.dtype.__name__)


def _example(measure: Any) -> str:
    """Show the measure with the parameters that it needs: ``BPM(max_rel=3)@10``."""
    needed = {key: info for key, info in measure.SUPPORTED_PARAMS.items() if info.required}
    lacking = [f"{key}=3" for key in needed if key not in (measure.AT_PARAM, *measure.params)]
    given = [f"{key}={value!r}" for key, value in measure.params.items() if key != measure.AT_PARAM]
    inside = ",".join([*given, *lacking])
    at = measure.params.get(measure.AT_PARAM) or (0.1 if measure.AT_PARAM == "recall" else 10)
    tail = f"@{at}" if measure.AT_PARAM in needed or measure.AT_PARAM in measure.params else ""
    return f"{measure.NAME}{f'({inside})' if inside else ''}{tail}"


def check_grades(measures: Sequence[str], qrels: Qrels) -> None:
    """Check that each measure's program can take the judgments' grades.

    Raises:
        UsageError: a grade is too high for the measure.
    """
    highest = max((grade for documents in qrels.judged.values() for grade in documents.values()), default=0)
    lowest = min((grade for documents in qrels.judged.values() for grade in documents.values()), default=0)
    for name in measures:
        most = _highest_grade(parse(name))
        if highest > most:
            raise UsageError(
                f"--measure {name} cannot take grades above {most:,}, and the judgments hold {highest:,}",
                hint="use --measure nDCG@10, which takes grades up to a million"
                if most < MOST
                else "import judgments with smaller grades",
            )
        if lowest < -MOST:
            raise UsageError(
                f"--measure {name} cannot take grades below {-MOST:,}, and the judgments hold {lowest:,}",
                hint="import judgments with grades nearer to 0",
            )


def _highest_grade(measure: Any) -> int:
    """Find the highest grade, or gain, that a measure's program can take."""
    if measure.NAME == "nDCG" and "cutoff" not in measure.params:
        return _HIGHEST_GRADE_OF_NDCG
    return _HIGHEST_GRADE.get(_provider(measure) or "", MOST)


def canonical(name: str) -> str:
    """Spell a measure's name as evaluations are stored."""
    return str(parse(name))


def relevance_level(measures: Sequence[str]) -> int:
    """Return the grade from which a passage is relevant in these measures: the highest ``rel``, or 1."""
    return max((int(parse(m).params.get("rel", 1)) for m in measures), default=1)


def per_query(ranking: Ranking, qrels: Qrels, measures: Sequence[str]) -> dict[str, Scores]:
    """Compute each measure on each judged query; 0 if the ranking lacks the query.

    Args:
        measures: canonical names.

    Returns:
        measure -> query -> value, every judged query present.

    Raises:
        UsageError: a measure cannot take the judgments' grades, or has no value on a query.
    """
    check_grades(measures, qrels)
    parsed = {parse(name): name for name in measures}
    values: dict[str, Scores] = {name: dict.fromkeys(qrels.judged, 0.0) for name in measures}
    batch: dict[str, dict[str, float]] = {}
    for query, rows in ranking.queries():
        if query not in qrels.judged:
            continue
        documents, ranks = ranking.document[rows].tolist(), ranking.rank[rows].tolist()
        batch[str(query)] = {str(d): -float(r) for d, r in zip(documents, ranks, strict=True)}
        if len(batch) == _QUERIES_AT_ONCE:
            _measure(batch, qrels, parsed, values)
            batch = {}
    if batch:
        _measure(batch, qrels, parsed, values)
    return values


def _measure(
    batch: dict[str, dict[str, float]],
    qrels: Qrels,
    parsed: dict[Any, str],
    values: dict[str, Scores],
) -> None:
    judged = {query: _with_a_grade_of_0(qrels.judged[int(query)]) for query in batch}
    try:
        for metric in ir_measures.iter_calc(list(parsed), judged, batch):
            name, value = parsed[metric.measure], float(metric.value)
            if not math.isfinite(value):
                raise UsageError(
                    f"--measure {name} is {value} on a query: it has no value there",
                    hint=f"leave out {name}, or name another measure: nDCG@10",
                )
            values[name][int(metric.query_id)] = value
    except ZeroDivisionError as error:
        names = ", ".join(parsed.values())
        raise UsageError(
            f"--measure {names}: one has no value on a query: it divides by a count that is 0 there"
            " (Accuracy: by the passages ranked above the cut-off that are not relevant)",
            hint="leave out Accuracy, or choose a larger cut-off: Accuracy@100",
        ) from error


def _with_a_grade_of_0(judged: dict[str, int]) -> dict[str, int]:
    """Add a passage of grade 0 that no system ranks if all grades are negative.

    trec_eval writes outside its memory if a query's highest grade is negative. No measure changes by such a passage.
    """
    return judged if max(judged.values(), default=0) >= 0 else {**judged, "-": 0}


def mean(scores: Scores) -> float:
    """Return the mean over the judged queries (0 without judged queries)."""
    return float(np.mean(list(scores.values()))) if scores else 0.0
