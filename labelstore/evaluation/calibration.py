"""Calibrate a student: map its logits to probabilities of relevance, by a map that never changes an order.

Platt's map is a logistic curve with two parameters (Platt 1999, with his targets); the isotonic one is the best
nondecreasing step function, joined by lines. Errors are measured on queries that the map was not fitted on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from labelstore.errors import BadInput, UsageError
from labelstore.store import lookup

METHODS = ("platt", "isotonic")
FOLDS = 5
BINS = 10
LEAST_QUERIES = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """A nondecreasing map from logit to probability.

    Attributes:
        parameters: of platt `slope` and `intercept`; of isotonic `logits` and their `probabilities`, to be joined by lines.
    """

    method: str
    parameters: Mapping[str, Any]

    def __call__(self, logit: float) -> float:
        return float(self.of(np.array([logit]))[0])

    def of(self, logits: Floats) -> Floats:
        """Map many logits. Rounding to 12 places keeps the map nondecreasing where floats are not exact."""
        given = self.parameters
        if self.method == "platt":
            mapped = special.expit(given["slope"] * logits + given["intercept"])
        else:
            mapped = np.interp(logits, given["logits"], given["probabilities"])
        return np.asarray(np.round(mapped, 12), dtype=np.float64)


@dataclass(frozen=True)
class Pairs:
    """Scored and judged pairs of validation queries.

    Attributes:
        query: the query of each pair, any integers.
        relevant: whether the passage is relevant.
    """

    query: NDArray[np.int64]
    logits: Floats
    relevant: NDArray[np.bool_]


@dataclass(frozen=True)
class Bin:
    """A tenth of the pairs, by predicted probability."""

    predicted: float
    observed: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """A fitted map with its errors on held-out queries.

    Attributes:
        ece_before, ece: expected calibration error of the logits' sigmoid, and of the map.
        before, after: reliability of the two.
        none_below: if the best probability of a list is below, the list holds nothing relevant, and this is right for
            `none_precision` of such lists. None: no bound is.
    """

    map: Map
    n_queries: int
    n_pairs: int
    n_relevant: int
    ece_before: float
    ece: float
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]
    none_below: float | None
    none_precision: float


def calibrate(pairs: Pairs, method: str, none_precision: float) -> Calibration:
    """Fit a map on all pairs; measure it by fitting it without each fifth of the queries in turn.

    Raises:
        UsageError: the method is unknown, or the precision is not between 0 and 1.
        BadInput: there are too few queries, only one class, or scores that do not rise with relevance.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r} is not known", hint=f"--method {' | '.join(METHODS)}")
    if not 0 < none_precision <= 1:
        raise UsageError(
            f"--none-precision is {none_precision:g}: expected a share above 0, at most 1",
            hint="--none-precision 0.9",
        )
    queries = np.unique(pairs.query)
    n_relevant = int(pairs.relevant.sum())
    if len(queries) < LEAST_QUERIES or not 0 < n_relevant < len(pairs.relevant):
        raise BadInput(
            f"{len(queries)} queries with {n_relevant:,} relevant of {len(pairs.relevant):,} pairs: expected at least"
            f" {LEAST_QUERIES} queries, and pairs of both kinds",
            hint="judge more queries, or score more candidates with --depth",
        )
    held_out = _held_out(pairs, method, queries)
    before = special.expit(pairs.logits)
    bins = {name: _bins(p, pairs.relevant) for name, p in (("before", before), ("after", held_out))}
    return Calibration(
        fit(pairs.logits, pairs.relevant, method),
        len(queries),
        len(pairs.relevant),
        n_relevant,
        ece(bins["before"]),
        ece(bins["after"]),
        bins["before"],
        bins["after"],
        _none_below(pairs, held_out, none_precision),
        none_precision,
    )


def fit(logits: Floats, relevant: NDArray[np.bool_], method: str) -> Map:
    """Fit a map.

    Raises:
        BadInput: scores do not rise with relevance.
    """
    return _platt(logits, relevant) if method == "platt" else _isotonic(logits, relevant)


def _platt(logits: Floats, relevant: NDArray[np.bool_]) -> Map:
    n_yes = int(relevant.sum())
    n_no = len(relevant) - n_yes
    target = np.where(relevant, (n_yes + 1) / (n_yes + 2), 1 / (n_no + 2))
    middle, spread = float(logits.mean()), float(logits.std())
    if spread == 0:
        raise BadInput(
            "the scores do not rise with relevance: all are equal", hint="measure the student: msft eval"
        )
    scaled = (logits - middle) / spread

    def loss(given: Floats) -> tuple[float, Floats]:
        z = given[0] * scaled + given[1]
        value = np.logaddexp(0, z) - target * z
        error = special.expit(z) - target
        return float(value.mean()), np.array([(error * scaled).mean(), error.mean()])

    start = np.array([1.0, special.logit(target.mean())])
    slope, intercept = optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    if not slope > 1e-6:
        raise BadInput(
            f"the scores do not rise with relevance (slope {slope:.2g}): no monotone map makes them probabilities",
            hint="measure the student: msft eval",
        )
    return Map("platt", {"slope": slope / spread, "intercept": float(intercept - slope * middle / spread)})


def _isotonic(logits: Floats, relevant: NDArray[np.bool_]) -> Map:
    values, place = np.unique(logits, return_inverse=True)
    n = np.bincount(place).astype(np.float64)
    share = np.bincount(place, weights=relevant.astype(np.float64)) / n
    fitted = optimize.isotonic_regression(share, weights=n).x
    if len(np.unique(np.round(fitted, 12))) < 2:
        raise BadInput(
            "the scores do not rise with relevance: the best nondecreasing map is constant",
            hint="measure the student: msft eval",
        )
    # the ends of each step: the first logit, the last one, and both sides of every rise
    rises = np.flatnonzero(np.diff(fitted) > 0)
    kept = np.unique(np.concatenate([[0], rises, rises + 1, [len(values) - 1]]))
    return Map("isotonic", {"logits": values[kept].tolist(), "probabilities": fitted[kept].tolist()})


def _held_out(pairs: Pairs, method: str, queries: NDArray[np.int64]) -> Floats:
    """Map each pair by a map that was fitted without its query."""
    fold_of = np.searchsorted(queries, pairs.query) % FOLDS
    mapped = np.empty(len(pairs.logits))
    for fold in range(FOLDS):
        rest = fold_of != fold
        mapped[~rest] = fit(pairs.logits[rest], pairs.relevant[rest], method).of(pairs.logits[~rest])
    return mapped


def _bins(predicted: Floats, relevant: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Divide the pairs into tenths by predicted probability."""
    order = np.argsort(predicted, kind="stable")
    return tuple(
        Bin(float(predicted[part].mean()), float(relevant[part].mean()), len(part))
        for part in np.array_split(order, BINS)
        if len(part)
    )


def ece(bins: Sequence[Bin]) -> float:
    """Compute the expected calibration error: the mean distance of predicted and observed share."""
    return sum(b.n * abs(b.predicted - b.observed) for b in bins) / sum(b.n for b in bins)


def _none_below(pairs: Pairs, predicted: Floats, precision: float) -> float | None:
    """Find the highest bound below which lists hold nothing relevant, right for this share of them."""
    queries, place = np.unique(pairs.query, return_inverse=True)
    best = np.full(len(queries), -np.inf)
    np.maximum.at(best, place, predicted)
    empty = ~(np.bincount(place, weights=pairs.relevant) > 0)
    order = np.argsort(best, kind="stable")
    right = np.cumsum(empty[order]) / np.arange(1, len(order) + 1)
    upper = np.append(best[order][1:], np.inf)
    good = np.flatnonzero((right >= precision) & (upper > best[order]))  # lists of one value fall together
    if not len(good):
        return None
    last = good[-1]
    return float(min(1.0, (best[order][last] + upper[last]) / 2))


# ---------------------------------------------------------------------------------------------------------- the store
@dataclass(frozen=True)
class Stored:
    """A calibration of the store.

    Attributes:
        dataset, run: names: where the validation queries and their candidates came from.
        relevant_from: the lowest grade that counted as relevant.
    """

    map: Map
    dataset: str
    run: str
    depth: int
    relevant_from: int
    n_queries: int
    n_pairs: int
    n_relevant: int
    ece_before: float
    ece: float
    bins: dict[str, list[list[float]]]
    none_below: float | None
    none_precision: float

    def settings(self) -> dict[str, Any]:
        """Return what a model's config.json keeps."""
        return {
            "method": self.map.method,
            **self.map.parameters,
            "dataset": self.dataset,
            "n_queries": self.n_queries,
            "relevant_from": self.relevant_from,
            "ece": self.ece,
            "none_below": self.none_below,
            "none_precision": self.none_precision,
        }


_COLUMNS = """c.method, c.parameters, c.dataset, c.run, c.depth, c.relevant_from, c.n_queries, c.n_pairs, c.n_relevant,
    c.ece_before, c.ece, c.bins, c.none_below, c.none_precision"""


_PLAIN = (
    "dataset", "run", "depth", "relevant_from", "n_queries", "n_pairs", "n_relevant", "ece_before", "ece", "none_below",
    "none_precision",
)  # fmt: skip


def of_student(con: duckdb.DuckDBPyConnection, student: lookup.Student) -> Stored | None:
    """Read a student's calibration; None without one for its weights of today."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM calibrations c WHERE c.student = ? AND c.weights_hash = ?",
        [student.student, student.weights_hash],
    ).fetchall()
    return _stored(rows[0]) if rows else None


def of_all(con: duckdb.DuckDBPyConnection) -> dict[str, Stored]:
    """Read all calibrations that fit their students' weights, by student."""
    rows = con.execute(
        f"""SELECT s.name, {_COLUMNS} FROM calibrations c JOIN students s USING (student)
            WHERE c.weights_hash = s.weights_hash ORDER BY s.name"""
    ).fetchall()
    return {name: _stored(row) for name, *row in rows}


def _stored(row: Sequence[Any]) -> Stored:
    return Stored(
        map=Map(row[0], json.loads(row[1])),
        bins=json.loads(row[11]),
        **dict(zip(_PLAIN, (*row[2:11], *row[12:14]), strict=True)),
    )


def store(
    con: duckdb.DuckDBPyConnection,
    student: lookup.Student,
    made: Calibration,
    *,
    dataset: str,
    run: str,
    depth: int,
    relevant_from: int,
    job: int,
) -> None:
    """Keep a calibration in the place of an earlier one."""
    bins = {
        name: [[b.predicted, b.observed, b.n] for b in found]
        for name, found in (("before", made.before), ("after", made.after))
    }
    con.execute(
        f"INSERT OR REPLACE INTO calibrations VALUES ({', '.join('?' * 17)})",
        [
            student.student, student.weights_hash, made.map.method, json.dumps(dict(made.map.parameters)), dataset, run, depth,
            relevant_from, made.n_queries, made.n_pairs, made.n_relevant, made.ece_before, made.ece, json.dumps(bins),
            made.none_below, made.none_precision, job,
        ],
    )  # fmt: skip


def map_of(settings: Mapping[str, Any]) -> Map:
    """Read the map that a model's config.json keeps.

    Raises:
        BadInput: the settings are not those of a map.
    """
    method = settings.get("method")
    names = {"platt": ("slope", "intercept"), "isotonic": ("logits", "probabilities")}.get(str(method))
    parameters = {name: settings.get(name) for name in names or ()}
    if not names or not all(_numbers(value, method == "isotonic") for value in parameters.values()):
        raise BadInput(
            f"msft_calibration in config.json is no map from logit to probability (method {method!r})",
            hint="export the student again: msft students export",
        )
    made = Map(str(method), parameters)
    rising = (
        made.parameters["slope"] > 0
        if method == "platt"
        else len(made.parameters["logits"]) == len(made.parameters["probabilities"])
        and all(np.diff(made.parameters["logits"]) > 0)
        and all(np.diff(made.parameters["probabilities"]) >= 0)
    )
    if not rising:
        raise BadInput(
            "msft_calibration in config.json would change the order of scores",
            hint="export the student again: msft students export",
        )
    return made


def _numbers(value: Any, several: bool) -> bool:
    if several and not (isinstance(value, list) and value):
        return False
    values = value if several else [value]
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
