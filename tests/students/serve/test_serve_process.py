"""`msft students serve` as a user starts it: a process, a port, clients of every kind, the scores that `rerank` stores."""

import os
import sys

import forked
import httpx
import made_store
import numpy as np
import pytest
import tiny_models

from benchmarks import serve
from benchmarks.serve import KINDS, Good, good_load, mixed_load, serving
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from students.jobs import candidates as jobs
from students.jobs.register import add_student

pytestmark = pytest.mark.test_all

CLIENTS, TURNS = 50, 6


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> LabelStore:
    """40 training queries with 30 candidates each, re-ranked by the command with a tiny student."""
    folder = tmp_path_factory.mktemp("served")
    model = tiny_models.make("electra", folder / "model")
    made = made_store.make(folder / "s.duckdb", n_queries=40, n_documents=150, labels=False)
    add_student(made, str(model), name="tiny", max_length=64)
    done = forked.run(
        [sys.executable, "-m", "cli.main", "students", "rerank", "tiny", "--dataset", "c/train", "--run", "first",
         "--precision", "fp32", "--store", str(made.path)],
        cwd=serve.ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def requests(store) -> list[Good]:
    """The lists of the run and the scores that are stored for them."""
    with store.read() as con:
        found = jobs.candidates(con, lookup.run(con, lookup.dataset(con, "c/train"), "first"), 30)
        lists = jobs.lists(con, found)
        stored = {
            (query, document): score
            for query, document, score in con.execute(
                "SELECT query, document, score FROM candidates JOIN runs USING (run) WHERE kind = 'student'"
            ).fetchall()
        }
    scores = [
        np.array([stored[query, document] for document in documents])
        for query, documents in zip(lists.query, lists.documents, strict=True)
    ]
    assert np.ptp(np.concatenate(scores)) > 5e-3, "scores that are all alike would prove nothing"
    return [Good(query, texts, row) for (query, texts), row in zip(lists.texts, scores, strict=True)]


def test_fifty_clients_of_every_kind_get_the_scores_that_rerank_stored(store, requests):
    with serving("tiny", "fp32", "--store", str(store.path)) as server:
        warm, _ = good_load(server.url, requests, 4, near=1e-5)
        assert (warm.wrong, warm.sent["good"]) == ([], 40)
        first = mixed_load(server.url, requests, CLIENTS, 3, near=1e-5)
        assert first.wrong == []
        before = server.megabytes()
        seen = mixed_load(server.url, requests, CLIENTS, TURNS, near=1e-5)
        assert seen.wrong == []
        assert seen.codes == []
        assert seen.sent == {kind: CLIENTS * TURNS * KINDS.count(kind) // len(KINDS) for kind in set(KINDS)}
        assert len(seen.seconds) == seen.sent["good"] == 150
        assert server.held() == 0, "work or bytes of requests that are over are still held"
        assert server.alive
        after, _ = good_load(server.url, requests, 4, near=1e-5)
        assert after.wrong == []
        # what 50 clients hold at once was there after the first load; twice as much more adds hardly anything
        assert server.megabytes() < before + 25
        with store.write() as con:  # the store is free while the server runs
            con.execute("UPDATE collections SET name = name")
    assert server.process.returncode == 130, "ended by an interrupt"


def test_a_wrong_answer_would_be_seen(store, requests):
    """The comparison itself: a request with another's scores counts as wrong, an unknown route as a wrong code."""
    swapped = [Good(requests[0].query, requests[0].texts, requests[1].scores)]
    with serving("tiny", "fp32", "--store", str(store.path)) as server:
        seen, _ = good_load(server.url, swapped, 1, near=1e-5)
        assert len(seen.wrong) == 1
        lost, _ = good_load(f"{server.url}/nowhere", requests[:1], 1, near=1e-5)
        assert lost.wrong[0].startswith("404")


def test_a_port_in_use_is_said(store):
    with serving("tiny", "fp32", "--store", str(store.path)) as server:
        port = httpx.URL(server.url).port
        done = forked.run(
            [sys.executable, "-m", "cli.main", "students", "serve", "tiny", "--port", str(port), "--store", str(store.path)],
            cwd=serve.ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "hint:" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
