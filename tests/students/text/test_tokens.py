import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from students.errors import StudentError
from students.text.tokens import PairFormat, Tokens, text_key, tokenise, tokenizer_key


@pytest.fixture(scope="module", params=tiny_models.ARCHITECTURES)
def tokenizer(request):
    return tiny_models.tokenizer_for(request.param)


def pairs_of(joined):
    ends = np.cumsum(joined.lengths)
    return [joined.ids[e - n : e].tolist() for e, n in zip(ends, joined.lengths, strict=True)]


@pytest.mark.parametrize("max_length", [8, 9, 16, 31, 64, 512])
def test_joined_ids_equal_the_tokenizers_own(tokenizer, max_length):
    queries = [*tiny_models.sentences(40, 1, 30), "", "What is (1) é?", "rank"]
    passages = [*tiny_models.sentences(40, 2, 60), "water energy", "", "naïve — 14.5%\n\ttabs  and   spaces "]
    form = PairFormat.of(tokenizer, max_length)
    q, p = tokenise(tokenizer, queries), tokenise(tokenizer, passages)
    each = np.arange(len(queries))
    joined = form.join(q, p, each, each)
    real = tokenizer(queries, passages, truncation=True, max_length=max_length, return_token_type_ids=True)
    assert pairs_of(joined) == real["input_ids"]
    ends = np.cumsum(joined.lengths)
    if form.has_types:
        assert [joined.types[e - n : e].tolist() for e, n in zip(ends, joined.lengths, strict=True)] == real[
            "token_type_ids"
        ]
    assert form.lengths(q.lengths, p.lengths).tolist() == [len(x) for x in real["input_ids"]]
    whole = tokenizer(queries, passages)["input_ids"]
    assert joined.n_truncated == sum(len(x) > max_length for x in whole)


@pytest.mark.test_all
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(6, 48))
def test_truncation_equals_longest_first(n_query, n_passage, max_length):
    tokenizer = tokenizer_of_words()
    query, passage = " ".join(["rank"] * n_query), " ".join(["water"] * n_passage)
    form = PairFormat.of(tokenizer, max_length)
    joined = form.join(
        tokenise(tokenizer, [query]), tokenise(tokenizer, [passage]), np.array([0]), np.array([0])
    )
    assert (
        joined.ids.tolist()
        == tokenizer([query], [passage], truncation=True, max_length=max_length)["input_ids"][0]
    )


_WORDS = None


def tokenizer_of_words():
    global _WORDS
    _WORDS = _WORDS or tiny_models.wordpiece()
    return _WORDS


def test_repeated_and_reordered_texts_are_joined_by_index():
    tokenizer = tokenizer_of_words()
    form = PairFormat.of(tokenizer, 32)
    q, p = tokenise(tokenizer, ["red", "blue"]), tokenise(tokenizer, ["water city", "river", "music"])
    query, passage = np.array([1, 0, 1, 0]), np.array([2, 2, 0, 1])
    joined = form.join(q, p, query, passage)
    texts = [("blue", "music"), ("red", "music"), ("blue", "water city"), ("red", "river")]
    assert pairs_of(joined) == [tokenizer(a, b)["input_ids"] for a, b in texts]


def test_no_pairs_and_empty_texts():
    tokenizer = tokenizer_of_words()
    form = PairFormat.of(tokenizer, 32)
    nothing = tokenise(tokenizer, [])
    assert len(nothing) == 0
    assert len(form.join(nothing, nothing, np.zeros(0, int), np.zeros(0, int)).ids) == 0
    empty = tokenise(tokenizer, [""])
    assert (
        form.join(empty, empty, np.array([0]), np.array([0])).ids.tolist()
        == tokenizer([""], [""])["input_ids"][0]
    )


def test_a_limit_without_room_is_refused():
    with pytest.raises(StudentError, match="max_length 4 leaves no room"):
        PairFormat.of(tokenizer_of_words(), 4)


def test_a_tokenizer_that_truncates_on_the_left_is_refused():
    tokenizer = tiny_models.wordpiece()
    tokenizer.truncation_side = "left"
    with pytest.raises(StudentError, match="own tokens"):
        PairFormat.of(tokenizer, 16)


def test_tokenising_does_not_inherit_options_from_an_earlier_call():
    tokenizer = tiny_models.wordpiece()
    tokenizer("rank " * 50, truncation=True, max_length=5, padding="max_length")
    assert tokenise(tokenizer, ["rank " * 50, "a"]).lengths.tolist() == [50, 1]


def test_keys_follow_content():
    one, two = tiny_models.wordpiece(), tiny_models.byte_level(roberta=True)
    assert tokenizer_key(one) == tokenizer_key(tiny_models.wordpiece()) != tokenizer_key(two)
    before = tokenizer_key(one)
    one("rank", "water", truncation=True, max_length=5, padding="max_length")
    assert tokenizer_key(one) == before
    assert text_key("a") != text_key("a ")
    assert 0 <= text_key("\ud800") < 1 << 64


def test_tokens_are_slices():
    tokens = Tokens(np.arange(6, dtype=np.uint16), np.array([0, 2, 2]), np.array([2, 0, 4]))
    assert [tokens[i].tolist() for i in range(3)] == [[0, 1], [], [2, 3, 4, 5]]
