"""A step's plan: every list once an epoch, the same whatever the batch, the processes or the time it is made."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_views
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from students.losses import get, reduce
from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.train.steps import Task, _grouped, _share, plan, targets_of
from students.train.view_folder import read_view


@pytest.fixture(scope="module")
def encoder(tiny) -> CrossEncoder:
    return CrossEncoder.load(tiny("bert"), precision="fp32", device="cpu", max_length=24).eval()


@pytest.fixture(scope="module")
def tasks(encoder, tmp_path_factory) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("views")
    made = {}
    for objective, kind in (("cl", "contrastive"), ("kd", "distillation")):
        odd = [{}, {"labels": [0] * 6}]  # a list without a positive, or without an order
        view = read_view(
            tiny_views.write(folder / kind, kind, n_lists=31, n_valid=3, lists=odd, seed=len(made))
        )
        (stage,) = make_recipe({"regime": objective, "lists": 5, "group_size": 4}).stages
        made[objective] = Task.of(
            stage.objectives[0],
            view,
            encoder.tokenise(view.queries.to_pylist()),
            encoder.tokenise(view.passages.to_pylist()),
        )
    return made


def steps(tasks, encoder, regime, numbers, **options):
    (stage,) = make_recipe({"regime": regime, "lists": 5}).stages
    options = {"batch_tokens": 80, "memory_tokens": 200} | options
    return [plan(tasks, encoder, stage, 42, n, **options) for n in numbers]


@pytest.mark.parametrize("objective", ["cl", "kd"])
def test_an_epoch_sees_every_list_with_a_target_once(tasks, objective):
    task = tasks[objective]
    assert (len(task.train), task.n_skipped) == (27, 1)
    assert task.steps_per_epoch == 6
    epochs = [np.concatenate([task.drawn(42, 1, e * 6 + i)[0] for i in range(6)]).tolist() for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(task.train.tolist())
    assert epochs[0] != epochs[1]
    other_seed = np.concatenate([task.drawn(43, 1, i)[0] for i in range(6)]).tolist()
    other_stage = np.concatenate([task.drawn(42, 2, i)[0] for i in range(6)]).tolist()
    assert len({tuple(epochs[0]), tuple(other_seed), tuple(other_stage)}) == 3


def test_a_step_is_the_same_whenever_it_is_made(tasks, encoder):
    (late,) = steps([tasks["cl"]], encoder, "cl", [9])
    *_, again = steps([tasks["cl"]], encoder, "cl", [0, 3, 9])
    assert late.denominators == again.denominators
    for a, b in zip(late.micro_batches, again.micro_batches, strict=True):
        assert all(torch.equal(x.ids, y.ids) for x, y in zip(a.pieces, b.pieces, strict=True))


@pytest.mark.parametrize("regime", ["cl", "kd", "cl+kd"])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_share_a_step_and_its_loss_adds_up(tasks, encoder, regime, processes):
    chosen = [tasks[name] for name in regime.split("+")]
    whole = 0.0
    for task in chosen:  # by hand
        lists, (picked, drawn) = task.view.train, task.drawn(42, 1, 1)
        batch = encoder.collate(task.queries, task.passages, drawn.query, lists.passage[drawn.rows])
        with torch.no_grad():
            scores = encoder(batch)
        cells, targets = targets_of(lists, drawn, len(picked))
        whole += float(reduce(get(task.objective.loss)(cells.matrix(scores), targets), "list"))
    parts, pairs, tokens = 0.0, 0, []
    for rank in range(processes):
        (step,) = steps(chosen, encoder, regime, [1], rank=rank, processes=processes)
        mine = 0
        for micro in step.micro_batches:
            with torch.no_grad():
                scores = torch.cat([encoder(piece) for piece in micro.pieces])
                parts += float(micro.loss(scores, step.denominators))
            pairs += sum(piece.n_pairs for piece in micro.pieces)
            assert sum(piece.n_tokens for piece in micro.pieces) == micro.n_tokens
            mine += micro.n_tokens
        tokens.append(mine)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert pairs == step.n_pairs
    assert sum(tokens) == step.n_tokens
    if processes == 2:
        assert max(tokens) - min(tokens) <= 6 * 24, "lists are split by tokens"


@pytest.mark.parametrize("processes", [1, 3])
def test_in_batch_negatives_are_scored_with_their_lists_query(tasks, encoder, processes):
    cl = tasks["cl"]
    task = replace(cl, objective=replace(cl.objective, loss="cmnrl", in_batch=7))
    lists, (picked, drawn) = task.view.train, task.drawn(42, 1, 1)
    scores = np.array(
        [
            encoder.score(
                task.view.queries[int(lists.query[picked[k]])].as_py(),
                [task.view.passages[int(lists.passage[row])].as_py()],
            )[0]
            for k, row in zip(drawn.local, drawn.rows, strict=True)
        ]
    )
    cells, targets = targets_of(lists, drawn, len(picked))
    assert int(targets.mask.sum()) == len(picked) * (4 + 7)
    assert targets.positives().sum(1).tolist() == [1] * len(picked)
    whole = float(reduce(get("cmnrl")(cells.matrix(torch.from_numpy(scores)), targets), "list"))
    parts = 0.0
    for rank in range(processes):
        (step,) = steps([task], encoder, "cl", [1], rank=rank, processes=processes)
        for micro in step.micro_batches:
            with torch.no_grad():
                parts += float(
                    micro.loss(torch.cat([encoder(piece) for piece in micro.pieces]), step.denominators)
                )
    assert parts == pytest.approx(whole, rel=1e-5)


def test_pieces_and_micro_batches_keep_their_bounds(tasks, encoder):
    (step,) = steps([tasks["kd"]], encoder, "kd", [0], batch_tokens=60, memory_tokens=250)
    assert len(step.micro_batches) > 1
    for micro in step.micro_batches:
        assert micro.n_tokens <= 250 or len(micro.parts[0].targets.mask) == 1
        assert all(piece.ids.numel() <= 60 or piece.n_pairs == 1 for piece in micro.pieces)


def test_pairs_that_are_cut_are_counted(tasks, encoder):
    (step,) = steps([tasks["kd"]], encoder, "kd", [2])
    by_batches = sum(piece.n_truncated for micro in step.micro_batches for piece in micro.pieces)
    assert step.n_truncated == by_batches > 0


def test_a_step_without_a_term_is_empty(encoder, tmp_path):
    """Sampled groups can be tied although their lists are not."""
    lists = [{"labels": [1, 1, 1, 1, 1, 0]} for _ in range(6)]
    view = read_view(tiny_views.write(tmp_path / "v", "distillation", n_lists=6, n_valid=0, lists=lists))
    (stage,) = make_recipe({"regime": "kd", "lists": 1, "group_size": 2}).stages
    task = Task.of(
        stage.objectives[0], view, encoder.tokenise(view.queries.to_pylist()),
        encoder.tokenise(view.passages.to_pylist()),
    )  # fmt: skip
    made = [plan([task], encoder, stage, 1, n, batch_tokens=99, memory_tokens=999) for n in range(30)]
    assert {step.empty for step in made} == {True, False}
    for step in made:
        assert step.empty == (step.n_skipped == 1) == (not step.micro_batches) == (step.n_pairs == 0)


UNITS = st.lists(
    st.tuples(st.integers(1, 500), st.integers(0, 1), st.integers(0, 9)), max_size=30, unique=True
)


@settings(max_examples=200, deadline=None)
@given(UNITS, st.integers(1, 6))
def test_sharing_is_complete_and_balanced(units, processes):
    shares = [_share(units, rank, processes) for rank in range(processes)]
    assert sorted(u for share in shares for u in share) == sorted(units)
    loads = [sum(u[0] for u in share) for share in shares]
    assert max(loads) - min(loads) <= max((u[0] for u in units), default=0)


@settings(max_examples=200, deadline=None)
@given(UNITS, st.integers(1, 1000))
def test_groups_are_complete_and_bounded(units, most):
    groups = _grouped(units, most)
    assert [u for group in groups for u in group] == units
    assert all(group and (len(group) == 1 or sum(u[0] for u in group) <= most) for group in groups)
