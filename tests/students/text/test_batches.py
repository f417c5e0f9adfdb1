import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from students.text.batches import budget_batches, collate
from students.text.tokens import PairFormat, tokenise


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 100), max_size=60), st.integers(1, 400), st.sampled_from([1, 8]), st.booleans()
)
def test_every_pair_is_in_one_batch_within_the_budget(lengths, budget, multiple, padded):
    batches = budget_batches(lengths, budget, multiple=multiple, padded=padded)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        width = -(-max(lengths[i] for i in batch) // multiple) * multiple
        tokens = len(batch) * width if padded else sum(lengths[i] for i in batch)
        assert tokens <= budget or len(batch) == 1
    flat = [lengths[i] for b in batches for i in b]
    assert flat == sorted(flat, reverse=True)


def test_rows_are_bounded_and_the_order_is_stable():
    batches = budget_batches([5, 9, 5, 9, 5], 1000, max_pairs=2)
    assert [b.tolist() for b in batches] == [[1, 3], [0, 2], [4]]


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_padded_batches_equal_the_tokenizers(architecture):
    tokenizer = tiny_models.tokenizer_for(architecture)
    queries, passages = tiny_models.sentences(12, 3, 6), tiny_models.sentences(12, 4, 30)
    form = PairFormat.of(tokenizer, 24)
    each = np.arange(12)
    batch = collate(form, tokenise(tokenizer, queries), tokenise(tokenizer, passages), each, each, multiple=8)
    real = tokenizer(
        queries,
        passages,
        truncation=True,
        max_length=24,
        padding=True,
        pad_to_multiple_of=8,
        return_tensors="pt",
    )
    assert torch.equal(batch.ids, real["input_ids"])
    assert torch.equal(batch.mask, real["attention_mask"])
    assert (batch.types is None) == ("token_type_ids" not in real)
    if batch.types is not None:
        assert torch.equal(batch.types, real["token_type_ids"])
    assert batch.n_tokens == int(real["attention_mask"].sum())
    assert batch.n_pairs == 12


def test_packed_rows_know_their_boundaries():
    tokenizer = tiny_models.wordpiece()
    form = PairFormat.of(tokenizer, 24)
    queries, passages = ["red", "blue green"], ["water", "the city of music"]
    each = np.arange(2)
    batch = collate(
        form,
        tokenise(tokenizer, queries),
        tokenise(tokenizer, passages),
        each,
        each,
        layout="packed",
        multiple=16,
        position_start=3,
    )
    real = [tokenizer(q, p) for q, p in zip(queries, passages, strict=True)]
    n = [len(r["input_ids"]) for r in real]
    assert batch.boundaries.tolist() == [0, n[0], n[0] + n[1], 16]
    assert batch.ids[0, : sum(n)].tolist() == real[0]["input_ids"] + real[1]["input_ids"]
    assert batch.types[0, : sum(n)].tolist() == real[0]["token_type_ids"] + real[1]["token_type_ids"]
    assert batch.positions[0, : sum(n)].tolist() == [*range(3, 3 + n[0]), *range(3, 3 + n[1])]
    assert (batch.n_pairs, batch.n_tokens, batch.packed) == (2, sum(n), True)
