"""Token ids in a file are the tokenizer's, however they were added; what is read back makes the same pairs."""

import numpy as np
import pytest
import tiny_models

from students.text import token_file as module
from students.text.token_file import TokenFile
from students.text.tokens import PairFormat, tokenise


def texts() -> list[str]:
    return ["", *tiny_models.sentences(40, 3, 60), "", "water " * 300]


@pytest.mark.parametrize("at_once", [1, 500, 1 << 20])
def test_ids_and_lengths_are_the_tokenizers(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    tokenizer, given = tiny_models.wordpiece(), texts()
    whole = tokenise(tokenizer, given)
    with TokenFile(tokenizer, len(given), keep=1000, folder=tmp_path) as file:
        file.add(given[:7])
        file.add(given[7:])
        assert not list(tmp_path.iterdir()), "the file has no name that a kill could leave behind"
        assert file.lengths.tolist() == whole.lengths.tolist()
        numbers = np.array([42, 0, 3, 3, 41, 20])
        taken = file.take(numbers)
        assert [taken[i].tolist() for i in range(6)] == [whole[int(n)].tolist() for n in numbers]
        assert len(file.take(np.array([], dtype=np.int64))) == 0
        with pytest.raises(IndexError):
            file.take(np.array([len(given)]))


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("max_length", [16, 17, 64])
def test_what_is_kept_of_long_texts_suffices_for_every_pair(tmp_path, architecture, max_length):
    """Both texts beyond the limit, one of them, none: the ids of the pairs are those of whole texts."""
    tokenizer, given = tiny_models.tokenizer_for(architecture), texts()
    form, whole = PairFormat.of(tokenizer, max_length), tokenise(tokenizer, given)
    query, passage = (part.ravel() for part in np.meshgrid(np.arange(len(given)), np.arange(len(given))))
    expected = form.join(whole, whole, query, passage)
    with TokenFile(tokenizer, len(given), keep=form.room, folder=tmp_path) as file:
        file.add(given)
        each = np.arange(len(query))
        got = form.join(file.take(query), file.take(passage), each, each)
    assert expected.n_truncated > 100
    assert got.n_truncated == expected.n_truncated
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.types, expected.types)
    np.testing.assert_array_equal(got.lengths, expected.lengths)
