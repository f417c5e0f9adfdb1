"""What `labelstore`, `teachers` and `students` export: names that load on first use, and calls that do what commands do."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import folders
import pages
import polars as pl
import pytest
from runner import Shell

import labelstore
import students
import teachers
from labelstore import LabelStore, add_dataset, compare, export_run, import_run, retrieve, sql, table
from labelstore.errors import BadInput, DataMissing, UsageError
from students import Talk, evaluate

PACKAGES = (labelstore, teachers, students)
NAMES = [(package, name) for package in PACKAGES for name in package.__all__]
HEAVY = ("torch", "transformers", "duckdb", "polars", "numpy")


@pytest.mark.parametrize(("package", "name"), NAMES, ids=lambda v: getattr(v, "__name__", v))
def test_a_public_name_loads_and_is_documented(package: Any, name: str) -> None:
    value = getattr(package, name)
    assert callable(value)
    text = inspect.getdoc(value)
    assert text
    assert text.split("\n")[0][0].isupper()
    assert name in dir(package)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_type_checkers_and_python_see_the_same_names(package: Any) -> None:
    tree = ast.parse(Path(package.__file__).read_text("utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"{package.__name__}.{home}" for name, home in package._HOMES.items()}
    assert sorted(seen) == package.__all__


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_no_public_name_hides_a_room(package: Any) -> None:
    folder = Path(package.__file__).parent
    rooms = {path.stem for path in folder.iterdir()}
    assert not rooms & set(package.__all__)


@pytest.mark.parametrize(
    "line", ["import students", "import teachers", "import labelstore", "from students import *"]
)
def test_an_import_loads_nothing_heavy_until_a_name_is_used(line: str) -> None:
    if line.endswith("*"):
        line = "import students; dir(students); students.__all__"
    code = f"import sys; {line}; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["train", "LabelStor", "_HOME", "nothing"])
@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_an_unknown_name_is_an_attribute_error(package: Any, name: str) -> None:
    if name in {path.name for path in Path(package.__file__).parent.iterdir()}:
        importlib.import_module(f"{package.__name__}.{name}")  # a room: it is a module, never a function
        assert inspect.ismodule(getattr(package, name))
        return
    with pytest.raises(AttributeError, match=f"{package.__name__}.*{name}"):
        getattr(package, name)


def test_the_guide_names_every_public_name() -> None:
    text = (pages.ROOT / "docs" / "guides" / "python.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for package in PACKAGES:
        (row,) = [line for line in rows if line.startswith(f"| `{package.__name__}` |")]
        listed = {part.strip("` ") for part in row.split("|")[2].split(",")}
        assert listed == set(package.__all__)


# ------------------------------------------------------------------------------------------------ calls and commands
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("api")
    folders.small(here)
    store = LabelStore(here / "msft.duckdb")
    for split in ("dev", "test"):
        add_dataset(store, f"m/{split}", here / "mydata", qrels=f"qrels.{split}.txt", collection="m")
    retrieve(store, "m/test", depth=10)
    return here


@pytest.fixture(scope="module")
def store(folder: Path) -> LabelStore:
    return LabelStore(folder / "msft.duckdb")


def rows(folder: Path, *words: str) -> list[dict[str, Any]]:
    with Shell(folder) as shell:
        done = shell.run("", (*words, "--format", "json"))
        assert done.code == 0, done.err
        return json.loads(done.out)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT dataset, run, query_id, doc_id, rank FROM ranked ORDER BY ALL",
        "SELECT count(*) AS n, sum(rank) AS s, avg(score) AS mean FROM ranked",
        "SELECT name, name FROM datasets ORDER BY 1",
        "SELECT NULL AS nothing, [1, 2] AS list WHERE false",
        "@label_quality",
        "FROM judgments LIMIT 3; ",
    ],
)
def test_sql_gives_the_rows_of_the_command(folder: Path, store: LabelStore, query: str) -> None:
    frame = sql(store, query)
    assert isinstance(frame, pl.DataFrame)
    wanted = rows(folder, "sql", query, "--limit", "0")
    assert json.loads(json.dumps(frame.to_dicts())) == wanted


def test_sql_takes_parameters_and_names_repeated_columns_apart(store: LabelStore) -> None:
    query = "SELECT getvariable('k') AS k, 1 AS x, 2 AS x, 3 AS x"
    assert sql(store, query, parameters={"k": "7"}).to_dicts() == [{"k": 7, "x": 1, "x_2": 2, "x_3": 3}]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("DELETE FROM runs", UsageError),
        ("COPY runs TO 'x.csv'", UsageError),
        ("SELECT * FROM read_csv('/etc/passwd')", UsageError),
        ("SELECT 1; DROP TABLE runs", UsageError),
        ("", UsageError),
        ("SELEC 1", BadInput),
        ("SELECT nothing FROM runs", BadInput),
        ("@nothing", DataMissing),
    ],
)
def test_sql_refuses_what_the_command_refuses(store: LabelStore, query: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        sql(store, query)


@pytest.mark.test_all
def test_every_table_and_view_reads_as_a_frame(store: LabelStore) -> None:
    names = sql(store, "SELECT table_name FROM information_schema.tables")["table_name"].to_list()
    assert {"runs", "ranked", "judgments"} <= set(names)
    for name in names:
        frame = table(store, name)
        assert frame.height == sql(store, f'SELECT count(*) AS n FROM "{name}"')["n"][0]


@pytest.mark.parametrize("name", ["rankd", "runs; DROP TABLE runs", 'x" UNION SELECT 1', ""])
def test_a_table_that_is_not_there_is_named(store: LabelStore, name: str) -> None:
    with pytest.raises(DataMissing, match="table"):
        table(store, name)


@pytest.mark.parametrize(
    ("retriever", "options", "message"),
    [
        ("bm26", {}, "bm26"),
        ("bm25s", {"index": "x"}, "--index"),
        ("colbert", {"k1": 2.0}, "colbert"),
        ("bm25", {"device": "cpu"}, "--device"),
    ],
)
def test_a_retriever_by_name_checks_its_options(
    store: LabelStore, retriever: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        retrieve(store, "m/test", retriever, **options)


def test_a_run_leaves_and_comes_back_with_paths_as_text(folder: Path, store: LabelStore) -> None:
    notes: list[str] = []
    n = export_run(store, "bm25s", str(folder / "out.run.gz"), dataset="m/test", note=notes.append)
    assert n == sql(store, "SELECT count(*) AS n FROM ranked WHERE run = 'bm25s'")["n"][0]
    assert (folder / "out.run.gz.yaml").exists() or any("ir_metadata" in note for note in notes)
    back = import_run(store, str(folder / "out.run.gz"), "m/test")
    assert (back.run.name, back.n_read) == ("out", n)
    with pytest.raises(UsageError, match="neither a file nor a stream"):
        export_run(store, "bm25s", dataset="m/test")


@pytest.mark.test_all
def test_evaluate_and_compare_give_the_rows_of_the_commands(folder: Path, store: LabelStore) -> None:
    measures = ["nDCG@10", "RR@10"]
    retrieve(store, "m/test", "bm25s", depth=10, name="other", k1=2.0)
    measured = evaluate(store, "m/test", measures=measures).rows
    asked = [word for measure in measures for word in ("--measure", measure)]
    assert rows(folder, "eval", "--dataset", "m/test", *asked) == json.loads(json.dumps(measured))
    verdicts = compare(store, ["bm25s", "other"], ["m/test"], measures=["nDCG@10"])
    told = rows(folder, "compare", "bm25s", "other", "--dataset", "m/test", "--measure", "nDCG@10")
    assert [{key: row[key] for key in told[0]} for row in verdicts] == told


def test_evaluate_retrieves_and_says_what_it_did(store: LabelStore) -> None:
    notes: list[str] = []
    done = evaluate(store, ["m/dev"], measures=["RR@10"], talk=Talk(note=notes.append))
    assert [row["system"] for row in done.rows] == ["bm25s"]
    assert done.missing == []
    assert any("no run yet" in note for note in notes)
    with pytest.raises(DataMissing):
        evaluate(store, "m/nothing")
    with pytest.raises(UsageError, match="depth"):
        evaluate(store, "m/test", depth=0)
