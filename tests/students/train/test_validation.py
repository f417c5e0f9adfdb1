"""Validation's measures are the usual ones, on lists that never train and never change."""

import ir_measures
import numpy as np
import pytest
import tiny_views
from hypothesis import given, settings
from hypothesis import strategies as st

from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.train import validation
from students.train.steps import Task
from students.train.view_folder import read_view


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 9)), min_size=2, max_size=25))
def test_ndcg_is_trec_evals(rows):
    grades = np.array([grade for grade, _ in rows])
    scores = np.array([s for _, s in rows]) + 0.01 * np.arange(len(rows))  # no ties
    run = {"q": {str(i): float(s) for i, s in enumerate(scores)}}
    qrels = {"q": {str(i): int(g) for i, g in enumerate(grades) if g >= 0} or {"x": 0}}
    (expected,) = ir_measures.iter_calc([ir_measures.nDCG @ 10], qrels, run)
    assert validation.ndcg(scores, grades) == pytest.approx(expected.value, abs=1e-6)


def test_tied_scores_get_what_they_would_on_average():
    assert validation.ndcg(np.zeros(2), np.array([1, 0])) == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert validation.ndcg(np.zeros(3), np.array([0, -1, 0])) == 0.0


def held(tmp_path, tiny, objective: str, max_pairs: int = 1000, **settings):
    kind = {"cl": "contrastive", "kd": "distillation"}[objective]
    view = read_view(tiny_views.write(tmp_path / "v", kind, n_lists=40, n_valid=30, size=8))
    encoder = CrossEncoder.load(tiny("bert"), precision="fp32", device="cpu", max_length=32)
    (stage,) = make_recipe({"regime": objective, **settings}).stages
    task = Task.of(
        stage.objectives[0], view, encoder.tokenise(view.queries.to_pylist()),
        encoder.tokenise(view.passages.to_pylist()),
    )  # fmt: skip
    return validation.choose_lists([task], stage, 42, max_pairs)


def test_the_lists_are_those_of_the_validation_split_bounded_and_the_same_each_time(tmp_path, tiny):
    (one,) = held(tmp_path, tiny, "kd", valid_lists=7)
    (again,) = held(tmp_path, tiny, "kd", valid_lists=7)
    assert one.n_lists == 7
    assert one.drawn.rows.tolist() == again.drawn.rows.tolist()
    assert one.lists is one.task.view.valid
    (few,) = held(tmp_path, tiny, "kd", max_pairs=17)
    assert (few.n_lists, len(few.drawn.rows)) == (2, 16)
    (least,) = held(tmp_path, tiny, "kd", max_pairs=3)
    assert least.n_lists == 1, "one list is always measured"


def test_measures_follow_the_scores(tmp_path, tiny):
    held_lists = held(tmp_path, tiny, "kd")
    best = validation.measure(held_lists, lambda task, lists, drawn: lists.labels[drawn.rows])
    assert best["valid_nDCG@10"] == pytest.approx(1.0)
    assert best["valid_tau"] == pytest.approx(1.0)
    worst = validation.measure(held_lists, lambda task, lists, drawn: -lists.labels[drawn.rows])
    assert worst["valid_tau"] == pytest.approx(-1.0)
    assert worst["valid_loss"] > best["valid_loss"]
    flat = validation.measure(held_lists, lambda task, lists, drawn: np.zeros(len(drawn.rows), np.float32))
    assert flat["valid_spread"] == 0.0
    assert flat["valid_loss"] == pytest.approx(np.log(2))


def test_contrastive_lists_have_no_tau(tmp_path, tiny):
    values = validation.measure(
        held(tmp_path, tiny, "cl"), lambda task, lists, drawn: lists.labels[drawn.rows]
    )
    assert "valid_tau" not in values
    assert values["valid_nDCG@10"] == pytest.approx(1.0)
