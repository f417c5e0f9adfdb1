"""A list that is empty says so in one line on stderr, with the command that makes its first thing."""

from pathlib import Path

import pytest
from shelves import Shelf, msft

from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    store = LabelStore(tmp_path_factory.mktemp("empty") / "s.duckdb")
    with store.write():
        return store


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("data list", "the store has no datasets yet; make the first with `msft data add DATASET`"),
        ("runs list", "the store has no runs yet; make the first with `msft retrieve --dataset DATASET --retriever bm25s`"),
        ("negatives list", "the store has no negatives yet; make the first with `msft negatives mine --dataset DATASET --run RUN`"),
        ("views list", "the store has no views yet; make the first with `msft views build --kind contrastive --dataset DATASET`"),
        ("students list", "the store has no students yet; make the first with `msft students train --regime cl --dataset DATASET`"),
        ("status --stale", "nothing was left"),
        ("clean", "nothing was left"),
    ],
)  # fmt: skip
def test_an_empty_list_says_so(empty: LabelStore, words: str, says: str) -> None:
    done = msft(empty, *words.split())
    assert (done.out, done.err) == ("", f"{says}\n")
    done = msft(empty, *words.split(), "--format", "json")
    assert (done.out, done.err) == ("[]\n", f"{says}\n")
    quiet = msft(empty, *words.split(), "-q")
    assert (quiet.out, quiet.err) == ("", "")


def test_an_empty_store_has_a_status(empty: LabelStore) -> None:
    done = msft(empty, "status")
    assert done.out == ""
    assert done.err.endswith("the store has no datasets yet; make the first with `msft data add DATASET`\n")


def test_a_store_without_labels_says_so_before_the_registry(empty: LabelStore) -> None:
    done = msft(empty, "teachers", "list")
    assert done.err == (
        "the store has no labels yet; make the first with `msft teachers generate --model MODEL --dataset DATASET`;"
        " the teachers below are those that --model knows by name\n"
    )
    assert "rankzephyr" in done.out
    assert msft(empty, "teachers", "list", "--registry").err == ""


def test_a_dataset_without_runs_and_labels_is_named(tmp_path: Path) -> None:
    shelf = Shelf(LabelStore(tmp_path / "s.duckdb"))
    shelf.dataset("own/test", shelf.collection("own", ["d1"]), {"q1": "what"}, {"q1": {"d1": 1}})
    for words, makes in (
        ("runs list", "retrieve --dataset own/test --retriever bm25s"),
        ("teachers list", "teachers generate --model MODEL --dataset own/test"),
    ):
        done = msft(shelf.store, *words.split(), "--dataset", "own/test")
        assert done.out == ""
        assert done.err.startswith("own/test has no ")
        assert f"make the first with `msft {makes}`" in done.err
        assert (
            "did you mean own/test" in msft(shelf.store, *words.split(), "--dataset", "own/tst", code=4).err
        )
