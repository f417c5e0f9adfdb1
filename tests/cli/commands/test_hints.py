"""Hints name commands that list what they say, and an analysis that finds nothing says what the store has."""

import re
import shlex
from pathlib import Path

import pytest
from shelves import Shelf, Small, fill, msft

from labelstore.store.label_store import LabelStore, next_id


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = fill(Shelf(LabelStore(tmp_path_factory.mktemp("hints") / "s.duckdb")))
    with small.store.write() as con:
        con.execute(
            "INSERT INTO minings VALUES (?, 'hard-ones', ?, '{}', 1, 0, 0, 'x', NULL)",
            [next_id(con, "minings", "mining"), small.dataset],
        )
        con.execute(
            "INSERT INTO views VALUES (1, 'some-view', 'contrastive', '', '{}', 1, 'ab', 'views/ab', 0, 0, NULL, NULL)"
        )
    return small


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("students show cl-studnt", "cl-student"),
        ("students rerank cl-studen", "cl-student"),
        ("negatives show hard-one", "hard-ones"),
        ("views show some-vew", "some-view"),
        ("teachers show oracle@bm2", "oracle@bm25"),
        ("teachers remove orcle@bm25", "oracle@bm25"),
        ("data show toy/tst", "toy/test"),
        ("runs export bm255", "bm25"),
        ("eval --dataset toi/test", "toy/test"),
        ("sql @denoisin", "denoising"),
        ("compare bm25 cl-studnt@bm25", "cl-student@bm25"),
    ],
)  # fmt: skip
def test_the_command_that_a_hint_names_lists_the_thing(small: Small, words: str, near: str) -> None:
    done = msft(small.store, *shlex.split(words), code=4)
    named = re.search(r"hint: did you mean .*? list them with `msft ([^`]+)`", done.err)
    assert named, done.err
    assert near in msft(small.store, *shlex.split(named[1])).out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("@denoising", ["dataset=dl19 (the default)", "--param dataset= toy/test", "--param labels= oracle@bm25"]),
        ("@denoising --param dataset=toy/test --param run=bm52", ["run=bm52", "--param run= bm25 | cl-student@bm25 | short"]),
        ("@denoising --param dataset=toy/test --param relevant=5", ["relevant=5", "--param relevant= 0 | 1 | 2"]),
        ("@negative_scores --param negatives=soft", ["negatives=soft", "--param negatives= hard-ones"]),
        ("@agreement --param labels=oracle", ["labels=oracle", "--param labels= oracle@bm25"]),
        ("@position_bias --param labels=x", ["labels=x", "--param labels= oracle@bm25"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["table", "json"])
def test_an_analysis_that_finds_nothing_says_what_there_is(
    small: Small, words: str, says: list[str], form: str
) -> None:
    done = msft(small.store, "sql", *words.split(), "--format", form)
    assert "found nothing" in done.err
    for said in says:
        assert said in done.err


def test_an_analysis_that_finds_something_says_nothing(small: Small) -> None:
    assert "found nothing" not in msft(small.store, "sql", "@denoising", "--param", "dataset=toy/test").err
    assert "found nothing" not in msft(small.store, "sql", "SELECT 1 WHERE false").err


def test_an_empty_store_is_told_what_makes_the_first(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "s.duckdb")
    with store.write():
        pass
    for words, makes in (("students show x", "msft students train"), ("views show x", "msft views build"),
                         ("data show x", "msft data add x")):  # fmt: skip
        assert makes in msft(store, *words.split(), code=4).err
