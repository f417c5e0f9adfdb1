"""Windows over long passages: they cover every token, overlap, and the first one is what FirstP scores."""

import numpy as np
import pytest
import tiny_decoders
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from students.errors import StudentError
from students.text.frames import framed, named
from students.text.tokens import PairFormat, tokenise
from students.text.windows import Windows, aggregate, check_mode

FORMS = {
    "bert": PairFormat.of(tiny_models.wordpiece(), 24),
    "decoder": PairFormat.of(framed(tiny_decoders.tokenizer(), named("qwen3-reranker")), 100),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FORMS)), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), min_size=1)
)
def test_windows_cover_the_passage_and_each_fits(kind, pairs):
    form = FORMS[kind]
    queries, passages = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
    windows = Windows.of(form, "max", queries, passages)
    _, width = form.truncated(queries, passages)
    for i, n in enumerate(passages):
        starts = windows.start[windows.owner == i]
        assert starts[0] == 0
        assert starts[-1] + width[i] == n
        if len(starts) > 1:
            steps = np.diff(starts)
            assert (steps > 0).all()
            assert (steps < max(width[i], 2)).all()
    few = np.flatnonzero(passages <= width)
    assert (np.bincount(windows.owner)[few] == 1).all()


def test_a_window_is_joined_from_its_first_token_on():
    tokenizer = tiny_models.wordpiece()
    form = PairFormat.of(tokenizer, 10)
    words = ["water", "energy", "river", "city", "music", "study", "cell", "rank", "query", "model"]
    queries, passages = tokenise(tokenizer, ["the"]), tokenise(tokenizer, [" ".join(words), "red"])
    windows = Windows.of(form, "max", np.array([1, 1]), passages.lengths)
    query = np.zeros(len(windows.owner), dtype=np.int64)
    joined = form.join(queries, passages, query, windows.owner, windows.start)
    ends = np.cumsum(joined.lengths)
    texts = [tokenizer.decode(joined.ids[e - n : e]) for e, n in zip(ends, joined.lengths, strict=True)]
    assert texts == [
        "[CLS] the [SEP] water energy river city music study [SEP]",
        "[CLS] the [SEP] study cell rank query model [SEP]".replace("study", "music study"),
        "[CLS] the [SEP] red [SEP]",
    ]
    assert joined.n_truncated == 0


@pytest.mark.parametrize(("mode", "expected"), [("max", [5.0, -1.0, 2.0]), ("mean", [3.0, -1.0, 1.5])])
def test_scores_of_windows_become_scores_of_pairs_with_gradients_for_those_that_count(mode, expected):
    scores = torch.tensor([1.0, 2.0, -1.0, 5.0, 3.0, 1.0, -9.0], requires_grad=True)
    owner = torch.tensor([0, 2, 1, 0, 0, 2, 0])
    made = aggregate(scores, owner, 3, mode)
    assert made.tolist() == expected
    made.sum().backward()
    counts = {"max": [0, 1, 1, 1, 0, 0, 0], "mean": [1 / 3, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 2, 0]}[mode]
    torch.testing.assert_close(scores.grad, torch.tensor(counts, dtype=torch.float32))


def test_some_pairs_windows_are_taken_and_numbered_anew():
    windows = Windows.of(FORMS["bert"], "mean", np.array([2, 2, 2]), np.array([50, 3, 40]))
    some = windows.take(np.array([0, 2]))
    assert some.owner.max() == 1
    np.testing.assert_array_equal(some.start, windows.start[windows.owner != 1])


def test_an_unknown_mode_is_refused():
    with pytest.raises(StudentError, match="long 'last' is not known") as raised:
        check_mode("last")
    assert raised.value.exit_code == 2
