"""A list that is empty says so in one line on stderr, with the command that makes its first thing."""

import json
from pathlib import Path

import pytest
import usual_names
from shelves import Shelf, msft

from cli.commands import data, negatives, teachers, views
from cli.output import latex, render
from cli.output.render import Format
from labelstore.datasets import add
from labelstore.labels import quality
from labelstore.negatives import mine
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.views import build


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    store = LabelStore(tmp_path_factory.mktemp("empty") / "s.duckdb")
    with store.write():
        return store


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    return usual_names.make(tmp_path_factory.mktemp("usual") / "s.duckdb")


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


@pytest.mark.parametrize("words", ["data list", "runs list", "negatives list", "views list", "students list"])
@pytest.mark.parametrize("format", ["csv", "md", "latex"])
def test_an_empty_list_has_its_header_in_the_formats_for_files(
    empty: LabelStore, usual: LabelStore, words: str, format: str
) -> None:
    _same_header(empty, usual, words.split(), format)


def _same_header(empty: LabelStore, full: LabelStore, words: list[str], format: str) -> None:
    keys = list(json.loads(msft(full, *words, "--format", "json").out)[0])
    heads = {
        "csv": ",".join(keys), "md": f"| {' | '.join(keys)} |", "latex": " & ".join(map(latex.escape, keys)) + r" \\",
    }  # fmt: skip
    lines = msft(empty, *words, "--format", format).out.splitlines()
    assert lines[2 if format == "latex" else 0] == heads[format]


@pytest.mark.parametrize("format", [one for one in Format if one is not Format.json])
def test_without_rows_and_columns_nothing_is_printed(
    capsys: pytest.CaptureFixture[str], format: Format
) -> None:
    render.rows([], format)
    assert capsys.readouterr().out == ""


def test_the_columns_of_lists_are_those_of_their_queries(usual: LabelStore) -> None:
    with usual.read() as con:
        mining = lookup.mining(con, usual_names.NEGATIVES)
        view = lookup.view(con, "msmarco-train-cl")
        for rows, columns in (
            (add.datasets(con), data.LISTED),
            (mine.listed(con), negatives.LISTED),
            (mine.shown(con, mining, None, 1), negatives.SHOWN),
            (build.listed(con), views.LISTED),
            (build.counted(con, view), views.SHOWN),
            (quality.labelings(con), teachers.LISTED),
        ):
            assert tuple(rows[0]) == columns


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
        header = msft(shelf.store, *words.split(), "--dataset", "own/test", "--format", "csv").out
        assert header.count("\n") == 1
        assert ",dataset," in f",{header}"
        assert f"make the first with `msft {makes}`" in done.err
        assert (
            "did you mean own/test" in msft(shelf.store, *words.split(), "--dataset", "own/tst", code=4).err
        )
