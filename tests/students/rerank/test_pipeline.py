"""On a GPU texts are tokenised, collated and scored as a pipeline; here the same pipeline runs on the CPU."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_store
import numpy as np
import pytest
import tiny_models

from labelstore.store import lookup
from students.jobs import candidates as jobs
from students.rerank import reranker as rerankers
from students.rerank.pipeline import DeviceTime, Done, ahead, in_flight
from students.rerank.reranker import Reranker
from students.text import token_cache, token_file
from students.text.token_cache import TokenCache


def test_ahead_keeps_the_order_works_in_another_thread_and_ends_early() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(threading.get_ident())
            yield number

    assert list(ahead(source(), lambda n: n * n, 3)) == [n * n for n in range(100)]
    assert threading.get_ident() not in taken
    taken.clear()
    some = ahead(source(), lambda n: n, 2)
    assert [next(some) for _ in range(3)] == [0, 1, 2]
    some.close()
    assert len(taken) <= 6

    def broken(n: int) -> int:
        if n == 4:
            raise ValueError("four")
        return n

    got: list[int] = []
    with pytest.raises(ValueError, match="four"):
        got.extend(ahead(source(), broken, 2))


def test_the_devices_waits_are_the_gaps_between_batches() -> None:
    spans = [(0.0, 2.0), (2.5, 3.5), (3.5, 4.0), (5.0, 6.0)]
    launched: list[int] = []

    def launch(number: int) -> Done:
        launched.append(number)
        return Done(np.array([number], dtype=np.float32), *spans[number])

    time = DeviceTime()
    found = []
    for item, scores in in_flight(((f"b{n}", n) for n in range(4)), launch, time):
        found.append((item, float(scores[0]), len(launched)))
    assert found == [("b0", 0.0, 3), ("b1", 1.0, 4), ("b2", 2.0, 4), ("b3", 3.0, 4)], (
        "read behind the launches"
    )
    assert (time.busy, time.waited) == (4.5, 1.5)
    assert time.share_waited == 0.25


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, reranker: Reranker) -> Reranker:
    monkeypatch.setattr(Reranker, "in_blocks", property(lambda self: self.pipelined))
    reranker.pipelined = True
    return reranker


@pytest.mark.parametrize("long", ["first", "max"])
def test_blocks_of_lists_get_the_scores_of_one_call(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    queries, passages = tiny_models.sentences(12, 3, 9), tiny_models.sentences(40, 4, 60)
    given = [(query, passages[3 * i : 3 * i + i % 6]) for i, query in enumerate(queries)]
    options: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "max_length": 24,
        "batch_tokens": 200,
        "long": long,
    }
    whole = Reranker.load(tiny("electra"), **options).scores(given)
    monkeypatch.setattr(rerankers, "BLOCK_PAIRS", 7)
    reranker = as_on_a_gpu(monkeypatch, Reranker.load(tiny("electra"), **options))
    ticks: list[int] = []
    blocks = reranker.scores(given, lambda done, _: ticks.append(done))
    assert [len(one) for one in blocks] == [len(texts) for _, texts in given]
    np.testing.assert_allclose(np.concatenate(blocks), np.concatenate(whole), atol=2e-6)
    assert ticks == sorted(ticks)
    assert reranker.device_time.busy > 0
    assert 0 <= reranker.device_time.share_waited < 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_is_scored_block_by_block_and_known_texts_are_not_tokenised(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    store = made_store.make(tmp_path / "s.duckdb")
    with store.read() as con:
        found = jobs.candidates(con, lookup.run(con, lookup.dataset(con, "c/test"), "first"), 30)
        lists = jobs.lists(con, found)
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "max_length": 48}
    whole = np.concatenate(Reranker.load(tiny("bert"), **options).scores(lists.texts))
    reranker = Reranker.load(tiny("bert"), **options)
    tokenised: list[str] = []
    if cached:
        texts = [query for query, _ in lists.texts] + [p for _, passages in lists.texts for p in passages][5:]
        TokenCache(store.files / "tokens", reranker.encoder.tokenizer).tokens(texts)
    for module in (token_cache, token_file):
        real = module.tokenise
        monkeypatch.setattr(
            module, "tokenise", lambda t, some, *_, real=real: (tokenised.extend(some), real(t, some))[1]
        )
    np.testing.assert_allclose(jobs.score(store, reranker, found), whole, atol=2e-6)
    first = len(tokenised)
    blocks: list[int] = []
    planned = Reranker._planned
    monkeypatch.setattr(
        Reranker, "_planned", lambda self, pairs: (blocks.append(len(pairs.query)), planned(self, pairs))[1]
    )
    scores = jobs.score(store, as_on_a_gpu(monkeypatch, reranker), found, block_bytes=800)
    np.testing.assert_allclose(scores, whole, atol=2e-6)
    assert len(blocks) > 1, "the first lists are scored before the last texts are read"
    assert sum(blocks) == found.n_pairs
    assert (first <= 5) is cached


def test_lists_are_complete_when_their_last_passage_is_there() -> None:
    found = jobs.Candidates(
        None, np.array([2, 3, 1]), type("T", (), {"key": np.arange(5)}), np.array([0, 1, 1, 2, 3, 4])
    )  # type: ignore[arg-type]
    assert [found.complete(n) for n in range(6)] == [0, 0, 2, 2, 5, 6]
