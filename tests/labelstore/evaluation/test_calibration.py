"""Calibration: maps never change an order, errors fall on held-out queries, values equal scikit-learn's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from labelstore.errors import BadInput, UsageError
from labelstore.evaluation import calibration
from labelstore.evaluation.calibration import METHODS, Map, Pairs


def made(n_queries: int = 60, depth: int = 30, seed: int = 0, empty: float = 0.3) -> Pairs:
    """Logits that are far too sure: the probability of relevance is sigmoid(0.4 x - 2.5), and nothing in some lists."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(n_queries), depth)
    logits = rng.normal(1.0, 3.0, n_queries * depth)
    nothing = np.repeat(rng.random(n_queries) < empty, depth)
    logits = np.where(nothing, logits - 6, logits)
    relevant = (rng.random(len(logits)) < 1 / (1 + np.exp(2.5 - 0.4 * logits))) & ~nothing
    return Pairs(query, logits.astype(np.float32).astype(np.float64), relevant)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_a_thousand_lists_is_unchanged(method: str) -> None:
    found = calibration.calibrate(made(), method, 0.9).map
    rng = np.random.default_rng(1)
    for n in range(1000):
        logits = rng.normal(0, 10 ** rng.uniform(-6, 3), 20 + n % 30).astype(np.float32).astype(np.float64)
        logits[: n % 5] = logits[-1]  # ties
        rising = np.sort(logits)
        assert (np.diff(found.of(rising)) >= 0).all()
        assert ((found.of(logits) >= 0) & (found.of(logits) <= 1)).all()
        # so that a stable sort by probability, ties in the logits' order, is the logits' order
        by_logit = np.argsort(-logits, kind="stable")
        assert by_logit[np.argsort(-found.of(logits)[by_logit], kind="stable")].tolist() == by_logit.tolist()
    assert found(2.0) == found.of(np.array([2.0]))[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [2, 3])
def test_the_error_falls_on_queries_that_the_map_has_not_seen(method: str, seed: int) -> None:
    own = calibration.calibrate(made(seed=seed), method, 0.9)
    assert own.ece < own.ece_before / 4
    assert own.n_queries == 60
    assert own.n_pairs == sum(b.n for b in own.after) == 1800
    others = made(seed=seed + 100)
    for predicted, low, high in (
        (own.map.of(others.logits), 0.0, 0.05),
        (1 / (1 + np.exp(-others.logits)), 0.2, 1.0),
    ):
        assert low <= calibration.ece(calibration._bins(predicted, others.relevant)) <= high


def test_the_error_is_measured_on_held_out_queries() -> None:
    """On the pairs that it was fitted on, an isotonic map is right in every step, however few they are."""
    pairs = made(12, 10, seed=4, empty=0.0)
    own = calibration.calibrate(pairs, "isotonic", 0.9)
    in_sample = calibration.ece(calibration._bins(own.map.of(pairs.logits), pairs.relevant))
    assert own.ece > in_sample + 0.01


@pytest.mark.parametrize("seed", [0, 5])
def test_values_equal_those_of_scikit_learn(seed: int) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    platt = pytest.importorskip("sklearn.calibration")
    pairs = made(seed=seed)
    grid = np.linspace(-15, 15, 301)
    peer = isotonic.IsotonicRegression(out_of_bounds="clip").fit(pairs.logits, pairs.relevant)
    assert calibration.fit(pairs.logits, pairs.relevant, "isotonic").of(grid) == pytest.approx(
        peer.predict(grid), abs=1e-9
    )
    a, b = platt._sigmoid_calibration(pairs.logits, pairs.relevant.astype(float))
    own = calibration.fit(pairs.logits, pairs.relevant, "platt")
    assert own.of(grid) == pytest.approx(1 / (1 + np.exp(a * grid + b)), abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", ["reversed", "constant"])
def test_scores_that_do_not_rise_with_relevance_are_refused(method: str, wrong: str) -> None:
    pairs = made(empty=0.0)
    logits = -pairs.logits if wrong == "reversed" else np.zeros(len(pairs.logits))
    with pytest.raises(BadInput, match="do not rise with relevance"):
        calibration.calibrate(replace(pairs, logits=logits), method, 0.9)


@pytest.mark.parametrize(("queries", "relevant"), [(9, None), (60, True), (60, False)])
def test_too_little_to_fit_on_is_refused(queries: int, relevant: bool | None) -> None:
    pairs = made(queries)
    if relevant is not None:
        pairs = replace(pairs, relevant=np.full(len(pairs.logits), relevant))
    with pytest.raises(BadInput, match="expected at least 10 queries"):
        calibration.calibrate(pairs, "platt", 0.9)


@pytest.mark.parametrize(
    ("method", "precision", "says"),
    [
        ("spline", 0.9, "spline"),
        ("platt", 0.0, "--none-precision"),
        ("platt", float("nan"), "--none-precision"),
    ],
)
def test_settings_that_cannot_be_are_named(method: str, precision: float, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        calibration.calibrate(made(), method, precision)


@pytest.mark.parametrize("precision", [0.6, 0.9, 1.0])
def test_the_bound_for_nothing_relevant_holds_for_its_share_of_lists(precision: float) -> None:
    pairs = made(400, 10, empty=0.5)
    own = calibration.calibrate(pairs, "platt", precision)
    assert own.none_below is not None

    def share(bound: float, of: Pairs) -> tuple[float, int]:
        best = own.map.of(of.logits).reshape(-1, 10).max(axis=1)
        chosen = best < bound
        empty = ~of.relevant.reshape(-1, 10).any(axis=1)
        return float(empty[chosen].mean()), int(chosen.sum())

    right, n = share(own.none_below, pairs)
    assert n > 20
    assert right >= precision - 0.03  # the bound was set on held-out predictions, which differ a little
    assert share(own.none_below, made(400, 10, seed=9, empty=0.5))[0] >= precision - 0.1
    stricter = calibration.calibrate(pairs, "platt", 1.0).none_below
    assert stricter is not None
    assert stricter <= own.none_below


def test_without_a_list_of_nothing_there_is_no_bound() -> None:
    pairs = made(40, 10, empty=0.0)
    relevant = pairs.relevant | (np.arange(400) % 10 == 0)
    assert calibration.calibrate(replace(pairs, relevant=relevant), "platt", 0.9).none_below is None


# ------------------------------------------------------------------------------------------------ kept in config.json
@pytest.mark.parametrize("method", METHODS)
def test_a_kept_map_is_the_same_map(method: str) -> None:
    own = calibration.calibrate(made(), method, 0.9).map
    kept = json.loads(json.dumps({"method": method, **own.parameters}))
    grid = np.linspace(-20, 20, 101)
    assert calibration.map_of(kept).of(grid).tolist() == own.of(grid).tolist()


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"method": "spline"},
        {"method": "platt", "slope": 1.0},
        {"method": "platt", "slope": "1", "intercept": 0.0},
        {"method": "platt", "slope": float("nan"), "intercept": 0.0},
        {"method": "platt", "slope": -1.0, "intercept": 0.0},
        {"method": "isotonic", "logits": [0.0, 1.0], "probabilities": [0.1]},
        {"method": "isotonic", "logits": [0.0, 1.0], "probabilities": [0.9, 0.1]},
        {"method": "isotonic", "logits": [1.0, 0.0], "probabilities": [0.1, 0.9]},
        {"method": "isotonic", "logits": [], "probabilities": []},
        {"method": "isotonic", "logits": 0.0, "probabilities": 1.0},
    ],
)
def test_a_kept_map_that_is_broken_is_refused(kept: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="msft_calibration"):
        calibration.map_of(kept)


def test_platt_is_the_curve_with_its_parameters() -> None:
    assert Map("platt", {"slope": 2.0, "intercept": -1.0})(0.5) == 0.5
