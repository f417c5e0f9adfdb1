"""The token cache: what the tokenizer gives, once per text, from disk, whatever was killed or written meanwhile."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from students.text import token_cache
from students.text.token_cache import TokenCache
from students.text.tokens import PairFormat, tokenise

TEXTS = tiny_models.sentences(60, 1)


def ids(tokens) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


@pytest.fixture(params=["bert", "roberta"])
def tokenizer(request):
    return tiny_models.tokenizer_for(request.param)


def test_ids_are_the_tokenizers_and_each_text_is_tokenised_once(tokenizer, tmp_path):
    cache = TokenCache(tmp_path, tokenizer)
    ticks: list[tuple[int, int | None]] = []
    some = cache.tokens([*TEXTS[:20], TEXTS[3], TEXTS[3]], progress=lambda *t: ticks.append(t))
    assert ids(some) == ids(tokenise(tokenizer, [*TEXTS[:20], TEXTS[3], TEXTS[3]]))
    assert cache.n_tokenised == 20
    assert ticks[-1] == (20, 20)
    more = cache.tokens(pa.chunked_array([TEXTS[10:30], TEXTS[5:12]]))
    assert ids(more) == ids(tokenise(tokenizer, TEXTS[10:30] + TEXTS[5:12]))
    assert cache.n_tokenised == 30
    again = TokenCache(tmp_path, tokenizer)
    assert ids(again.tokens(TEXTS[:30])) == ids(tokenise(tokenizer, TEXTS[:30]))
    assert again.n_tokenised == 0


def test_segments_are_one_numbering(tokenizer, tmp_path):
    """A view whose texts lie in several segments joins pairs as if they lay in one."""
    cache = TokenCache(tmp_path, tokenizer)
    for first in range(0, 60, 20):
        cache.tokens(TEXTS[first : first + 20])
    together, plain = cache.tokens(TEXTS), tokenise(tokenizer, TEXTS)
    form = PairFormat.of(tokenizer, 32)
    rng = np.random.default_rng(0)
    query, passage = rng.integers(0, 60, 200), rng.integers(0, 60, 200)
    a, b = form.join(together, together, query, passage), form.join(plain, plain, query, passage)
    assert np.array_equal(a.ids, b.ids)
    assert np.array_equal(a.lengths, b.lengths)


def test_large_views_are_tokenised_in_bounded_segments(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "_SEGMENT", 16)
    cache = TokenCache(tmp_path, tokenizer)
    ticks: list[tuple[int, int | None]] = []
    assert ids(cache.tokens(TEXTS, progress=lambda *t: ticks.append(t))) == ids(tokenise(tokenizer, TEXTS))
    n = len(set(TEXTS))
    assert len(list(cache.folder.glob("segment-*"))) == -(-n // 16)
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)
    assert ticks[-1] == (n, n)


def test_tokenizers_do_not_share(tmp_path):
    one, two = (TokenCache(tmp_path, tiny_models.tokenizer_for(name)) for name in ("bert", "roberta"))
    assert ids(one.tokens(TEXTS[:5])) != ids(two.tokens(TEXTS[:5]))
    assert two.n_tokenised == 5
    assert one.folder != two.folder


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=20))
def test_any_text(tmp_path_factory, texts):
    tokenizer = _WORDS
    cache = TokenCache(tmp_path_factory.mktemp("c"), tokenizer)
    assert ids(cache.tokens(texts)) == ids(tokenise(tokenizer, texts))


_WORDS = tiny_models.wordpiece()


def test_a_killed_build_leaves_whole_segments_or_none(tokenizer, tmp_path):
    cache = TokenCache(tmp_path, tokenizer)
    cache.tokens(TEXTS[:10])
    half = cache.folder / ".writing-abc-1"
    half.mkdir()
    (half / "keys.npy").write_bytes(b"torn")
    assert ids(cache.tokens(TEXTS[:20])) == ids(tokenise(tokenizer, TEXTS[:20]))


@pytest.mark.test_all
def test_concurrent_builds_of_the_same_texts(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests/helpers')\n"
        "import tiny_models\nfrom students.text.token_cache import TokenCache\n"
        "tokens = TokenCache(sys.argv[1], tiny_models.wordpiece()).tokens(tiny_models.sentences(3000, 1))\n"
        "print(len(tokens), int(tokens.lengths.sum()))"
    )

    def build(_: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout

    with ThreadPoolExecutor(3) as pool:
        printed = set(pool.map(build, range(3)))
    expected = tokenise(_WORDS, tiny_models.sentences(3000, 1))
    assert printed == {f"3000 {int(expected.lengths.sum())}\n"}
    cache = TokenCache(tmp_path, _WORDS)
    assert ids(cache.tokens(tiny_models.sentences(3000, 1))) == ids(expected)
    assert cache.n_tokenised == 0
    assert not list(cache.folder.glob(".writing-*"))


def test_nothing_to_tokenise(tokenizer, tmp_path):
    cache = TokenCache(tmp_path, tokenizer)
    assert len(cache.tokens([])) == 0
    assert not cache.folder.exists()
