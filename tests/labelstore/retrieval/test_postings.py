"""The index that is built by an external sort is bm25s's own, bit by bit, however small its blocks are."""

from pathlib import Path

import bm25s
import numpy as np
import pytest

from labelstore.retrieval.postings import Postings


def passages(n: int, seed: int) -> list[np.ndarray]:
    """Skewed tokens, as words are: some in most passages, many in one; each tenth passage is empty."""
    rng = np.random.default_rng(seed)
    return [
        np.minimum(rng.zipf(1.3, rng.integers(1, 60)), 700).astype(np.int32) - 1
        if i % 10
        else np.empty(0, np.int32)
        for i in range(n)
    ]


def built(folder: Path, made: list[np.ndarray], block: int, **weights: float) -> bm25s.BM25:
    folder.mkdir()
    postings = Postings(folder, block=block)
    for first in range(0, len(made), 7):
        postings.add(made[first : first + 7])
    postings.write(folder / "index", 700, **weights)
    return bm25s.BM25.load(str(folder / "index"), mmap=True, load_vocab=False)


def test_passages_without_tokens_end_a_block_too(tmp_path: Path) -> None:
    postings = Postings(tmp_path, block=160)
    postings.add([np.empty(0, np.int32)] * 25)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("block", [1, 50, 1_000, 1_000_000])
@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.0), (0.0, 1.0)])
def test_the_index_is_that_of_bm25s(tmp_path: Path, block: int, k1: float, b: float) -> None:
    made = passages(60 if block == 1 else 300, seed=block)
    own = built(tmp_path / "own", made, block, k1=k1, b=b)
    peer = bm25s.BM25(method="lucene", k1=k1, b=b)
    peer.index(
        ([p.tolist() for p in made], {str(t): t for t in range(700)}), create_empty_token=False, show_progress=False
    )  # fmt: skip
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(own.scores[name], peer.scores[name], err_msg=name)
    assert own.scores["num_docs"] == peer.scores["num_docs"]
    np.testing.assert_array_equal(own.get_scores_from_ids([0, 3, 500]), peer.get_scores_from_ids([0, 3, 500]))


def test_passages_without_a_token_make_an_index(tmp_path: Path) -> None:
    own = built(tmp_path / "own", [np.empty(0, np.int32)] * 3, 10, k1=0.9, b=0.4)
    assert own.get_scores_from_ids([5]).tolist() == [0.0, 0.0, 0.0]
