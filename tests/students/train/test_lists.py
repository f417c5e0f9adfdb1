"""View folders: what cannot be trained from is named; draws depend on view, seed, epoch, list and place alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_views
from hypothesis import given, settings
from hypothesis import strategies as st

from students.errors import StudentError
from students.losses import get
from students.recipes.read import make_recipe
from students.recipes.recipe import Objective
from students.train.lists import draw, stream_key, usable
from students.train.view_folder import assign_views, read_view


def test_a_view_is_read_as_it_was_written(tmp_path):
    folder = tiny_views.write(tmp_path / "v", "distillation", scores=True, n_lists=7, n_valid=2)
    view = read_view(folder)
    rows = pq.read_table(folder / "lists.parquet").to_pylist()
    assert (view.kind, view.name, len(view.train), len(view.valid)) == (
        "distillation",
        "tiny-distillation",
        5,
        2,
    )
    assert view.has_scores
    for lists, wanted in ((view.train, "train"), (view.valid, "valid")):
        for i, row in enumerate(r for r in rows if r["split"] == wanted):
            part = slice(lists.starts[i], lists.starts[i + 1])
            assert lists.query[i] == row["query"]
            for name, column in (
                ("passage", "passages"),
                ("labels",) * 2,
                ("scores",) * 2,
                ("relevances",) * 2,
            ):
                assert getattr(lists, name)[part].tolist() == pytest.approx(row[column])
    assert read_view(tiny_views.write(tmp_path / "w", "distillation")).has_scores is False


def test_one_list_without_scores_takes_them_from_the_view(tmp_path):
    lists = [{"scores": None}]
    view = read_view(tiny_views.write(tmp_path / "v", "distillation", scores=True, lists=lists))
    assert not view.has_scores
    assert int(np.isnan(view.train.scores).sum()) == 6


@pytest.mark.parametrize(
    ("break_it", "says", "code"),
    [
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json", 4),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json:1", 1),
        (lambda f: _change(f, format=2), "view format 2", 3),
        (lambda f: _change(f, kind="rerank"), "nothing to learn from", 2),
        (lambda f: (f / "passages.parquet").unlink(), r"passages\.parquet is missing", 4),
        (lambda f: _flip(f / "lists.parquet"), "not the file that the manifest names", 1),
    ],
)
def test_a_folder_that_cannot_be_trained_from_is_named(tmp_path, break_it, says, code):
    folder = tiny_views.write(tmp_path / "v", "contrastive")
    break_it(folder)
    with pytest.raises(StudentError, match=says) as raised:
        read_view(folder)
    assert raised.value.exit_code == code


def _change(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    folder = tiny_views.write(
        tmp_path_factory.mktemp("v") / "v", "distillation", n_lists=40, n_valid=0, size=9
    )
    return read_view(folder).train


@pytest.fixture(scope="module")
def contrasts(tmp_path_factory):
    several = [{"labels": [1, 0, 1, 0, 1, 0, 0, 0, 0]} for _ in range(40)]
    folder = tmp_path_factory.mktemp("v") / "v"
    return read_view(
        tiny_views.write(folder, "contrastive", n_lists=40, n_valid=0, size=9, lists=several)
    ).train


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True), st.integers(0, 5), st.integers(2, 9)
)
def test_a_lists_draw_has_nothing_to_do_with_its_batch(lists, chosen, epoch, size):
    key = stream_key("view", 42, epoch, "1:kd")
    objective = Objective("kd", group_size=size)
    together = draw(lists, np.array(chosen), objective, key)
    for i, one in enumerate(chosen):
        alone = draw(lists, np.array([one]), objective, key)
        mine = together.local == i
        assert together.rows[mine].tolist() == alone.rows.tolist()
        assert together.tiebreak[mine].tolist() == alone.tiebreak.tolist()
        assert len(set(alone.rows.tolist())) == len(alone.rows) == size


def test_kd_takes_the_teachers_top_and_samples_of_it(lists):
    every = np.arange(40)
    top = draw(lists, every, Objective("kd", depth=4), 1)
    assert np.bincount(top.local).tolist() == [4] * 40
    assert set(lists.labels[top.rows].tolist()) == {8.0, 7.0, 6.0, 5.0}
    counts = np.zeros(9)
    for epoch in range(50):
        some = draw(lists, every, Objective("kd", depth=6, group_size=3), stream_key("v", 1, epoch, "kd"))
        counts += np.bincount(lists.labels[some.rows].astype(int), minlength=9)
    assert counts[:3].tolist() == [0, 0, 0]
    assert np.allclose(counts[3:] / (50 * 40), 0.5, atol=0.05), "each of the top six half the time"


@pytest.mark.parametrize(("number", "size"), [(1, 2), (5, 4), (500, 9)])
def test_in_batch_negatives_are_other_lists_passages_and_never_of_the_lists_query(contrasts, number, size):
    query = contrasts.query.copy()
    query[7] = query[3]  # two lists on one query
    lists, chosen = replace(contrasts, query=query), np.array([3, 7, 12, 30])
    key = stream_key("v", 1, 0, "cl")
    alone = draw(lists, chosen, Objective("cl", group_size=size), key)
    drawn = draw(lists, chosen, Objective("cl", group_size=size, in_batch=number), key)
    assert drawn.rows[~drawn.in_batch].tolist() == alone.rows.tolist()
    assert (np.diff(drawn.local) >= 0).all()
    pool = set(lists.passage[alone.rows].tolist())
    for k, one in enumerate(chosen):
        mine = (drawn.local == k) & drawn.in_batch
        own_rows, _ = lists.rows(np.flatnonzero(query == query[one]))
        free = pool - set(lists.passage[own_rows].tolist())
        added = lists.passage[drawn.rows[mine]].tolist()
        assert len(set(added)) == len(added) == min(number, len(free))
        assert set(added) <= free
        assert set(drawn.query[drawn.local == k].tolist()) == {int(query[one])}
    other = draw(
        lists, chosen, Objective("cl", group_size=size, in_batch=number), stream_key("v", 1, 1, "cl")
    )
    assert sorted(other.rows.tolist()) != sorted(drawn.rows.tolist())


def test_a_list_of_a_positive_alone_teaches_only_with_in_batch_negatives(contrasts):
    lists = replace(contrasts, labels=np.ones_like(contrasts.labels))
    for number, teaches in ((0, False), (3, True)):
        objective = Objective("cl", "lce", group_size=4, in_batch=number)
        assert usable(lists, objective, get("lce")).all() == teaches


def test_cl_takes_one_positive_and_negatives_each_as_often(contrasts):
    positives, negatives = np.zeros(9), np.zeros(9)
    for epoch in range(60):
        drawn = draw(contrasts, np.arange(40), Objective("cl", group_size=4), stream_key("v", 1, epoch, "cl"))
        labels = contrasts.labels[drawn.rows]
        assert np.bincount(drawn.local).tolist() == [4] * 40
        assert np.bincount(drawn.local, labels > 0).tolist() == [1.0] * 40
        places = drawn.rows - contrasts.starts[:-1][drawn.local]
        positives += np.bincount(places[labels > 0], minlength=9)
        negatives += np.bincount(places[labels <= 0], minlength=9)
    assert np.allclose(positives[[0, 2, 4]] / (60 * 40), 1 / 3, atol=0.04)
    assert np.allclose(negatives[[1, 3, 5, 6, 7, 8]] / (60 * 40), 1 / 2, atol=0.04)


@pytest.mark.parametrize(
    ("objective", "loss", "labels", "scores", "fits"),
    [
        ("cl", "lce", [1, 0, 0], None, True),
        ("cl", "lce", [0, 0, 0], None, False),
        ("cl", "lce", [1, 1, 1], None, False),
        ("cl", "ranknet", [1, 1, 1], None, False),
        ("kd", "ranknet", [3, 2, 1], None, True),
        ("kd", "ranknet", [1, 1, 1], None, False),
        ("kd", "margin_mse", [3, 2, 1], [0.3, 0.2, 0.1], True),
        ("kd", "margin_mse", [3, 2, 1], [0.3, None, None], False),
    ],
)
def test_lists_with_nothing_to_learn_are_set_aside(tmp_path, objective, loss, labels, scores, fits):
    kind = {"cl": "contrastive", "kd": "distillation"}[objective]
    change = {"labels": labels} | ({} if scores is None else {"scores": scores})
    folder = tiny_views.write(tmp_path / "v", kind, n_lists=2, n_valid=0, size=3, scores=True, lists=[change])
    found = usable(read_view(folder).train, Objective(objective, depth=3), get(loss))
    assert found.tolist() == [fits, True]


def test_below_the_depth_nothing_counts(tmp_path):
    change = {"labels": [5, 5, 1]}
    folder = tiny_views.write(tmp_path / "v", "distillation", n_lists=1, n_valid=0, size=3, lists=[change])
    train = read_view(folder).train
    assert usable(train, Objective("kd", depth=3), get("ranknet")).tolist() == [True]
    assert usable(train, Objective("kd", depth=2), get("ranknet")).tolist() == [False]


def test_views_go_to_their_stages(tmp_path):
    cl, kd, other = (
        tiny_views.write(tmp_path / name, kind)
        for name, kind in (("c", "contrastive"), ("k", "distillation"), ("o", "distillation"))
    )
    stages = make_recipe({"regime": "cl,kd,cl+kd"}).stages
    assert assign_views(stages, [kd, cl]) == [{"cl": cl}, {"kd": kd}, {"cl": cl, "kd": kd}]
    named = {"cl": cl, "2": other, "3:kd": kd}
    assert assign_views(stages, named) == [{"cl": cl}, {"kd": other}, {"cl": cl, "kd": kd}]
    for folders, says in (
        ([cl], r"stage 2 \(kd\) has no view"),
        ([cl, kd, other], "a second distillation view"),
        ({"cl": cl, "kd": cl}, "learns from a distillation view"),
        ({"cl": tmp_path / "none", "kd": kd}, "not a view folder"),
    ):
        with pytest.raises(StudentError, match=says) as raised:
            assign_views(stages, folders)
        assert raised.value.hint


@pytest.mark.parametrize(
    ("loss", "group", "grades", "positives"),
    [
        ("lambda", 8, [3, 2, 1, 1, 1], 4),
        ("ranknet", 4, [3, 2, 1], 2),
        ("lambda", 8, [2, 1], 2),
        ("lce", 8, [3, 2, 1, 1, 1], 1),
        ("ranknet", 8, [1, 1, 1, 1, 1], 1),
    ],
)
def test_graded_lists_give_several_positives_to_a_loss_that_learns_an_order(
    tmp_path, loss, group, grades, positives
):
    size = 14
    labels = grades + [0] * (size - len(grades))
    view = read_view(
        tiny_views.write(
            tmp_path / "v", "contrastive", n_lists=6, n_valid=0, size=size, lists=[{"labels": labels}] * 6
        )
    )
    drawn = draw(view.train, np.arange(6), Objective("cl", loss=loss, group_size=group), key=3)
    for one in range(6):
        found = view.train.labels[drawn.rows[drawn.local == one]]
        assert len(found) == group
        assert int((found > 0).sum()) == positives
