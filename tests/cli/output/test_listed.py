"""Lists of things with names of usual length fit 80 columns, lose nothing, and are the same in other formats."""

import csv
import io
import json

import pytest
import usual_names
from shelves import msft

from cli.output import fitted
from cli.output.render import Format
from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    return usual_names.make(tmp_path_factory.mktemp("usual") / "s.duckdb")


LISTS = (
    "data list",
    "runs list",
    f"runs list --dataset {usual_names.TRAIN}",
    "negatives list",
    f"negatives show {usual_names.NEGATIVES} --limit 3",
    "views list",
    "views show msmarco-train-cl",
    "students list",
    "students bases",
    "teachers list",
    "teachers list --registry",
    f"teachers show {usual_names.LABELS}",
    "status",
    "sql --list",
    f"runs remove {usual_names.RUN} --dataset {usual_names.TRAIN}",
)

WITHOUT = ("made", "model")  # a moment is shown to the minute, and a base's model in other formats alone


@pytest.mark.parametrize("words", LISTS)
def test_lists_fit_and_lose_nothing(usual: LabelStore, words: str) -> None:
    code = 2 if "remove" in words else 0
    shown = msft(usual, *words.split(), code=code).out
    assert max(map(len, shown.splitlines())) <= 80, shown
    found = json.loads(msft(usual, *words.split(), "--format", "json", code=code).out)
    assert found
    flat = "".join(shown.split())
    for row in found:
        for name, value in row.items():
            if isinstance(value, str) and name not in WITHOUT:
                assert "".join(value.split()) in flat, (name, value)
    table = list(csv.DictReader(io.StringIO(msft(usual, *words.split(), "--format", "csv", code=code).out)))
    assert [list(row) for row in table] == [list(row) for row in found]


def test_a_list_that_fits_is_a_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    fitted.listed([{"run": "a", "depth": 1}, {"run": "b", "depth": 1}], Format.table, keys=("run",))
    assert capsys.readouterr().out == "run  depth\n---  -----\na        1\nb        1\n"


def test_what_does_not_fit_stands_under_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "run": f"r{n}",
            "system": "s" * 30,
            "of": None if n else "o" * 30,
            "note": "a long note " * 8,
            "n": n,
        }
        for n in range(2)
    ]
    fitted.listed(rows, Format.table, keys=("run",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("system: sss")
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["run", "of", "n"]
    assert [line.split()[0] for line in table if not line.startswith(" ")] == ["run", "---", "r0", "r1"]
    assert all(len(line) <= 80 for line in lines)
