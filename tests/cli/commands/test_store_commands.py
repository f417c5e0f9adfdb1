"""`msft sql` and `msft status` as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import made_store
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.main import run


def msft(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command in this process."""
    with pytest.raises(SystemExit) as ended:
        run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made_store.make(tmp_path / "s.duckdb")
    return tmp_path / "s.duckdb"


def test_sql_prints_rows_in_each_format(path: Path, capsys) -> None:
    query = "SELECT name, role, name FROM datasets ORDER BY name"
    code, out, _ = msft(capsys, "sql", query, "--store", path, "--format", "json")
    assert code == 0
    assert json.loads(out)[1] == {"name": "c/train", "role": "train", "name_2": "c/train"}
    _, out, _ = msft(capsys, "sql", query, "--store", path, "--format", "csv")
    assert out.splitlines()[0] == "name,role,name_2"
    code, out, _ = msft(capsys, "sql", "SELECT 1 AS x WHERE false", "--store", path)
    assert (code, out.split()) == (0, ["x", "-"])


def test_sql_error_is_one_line_with_a_hint(path: Path, capsys) -> None:
    code, out, err = msft(capsys, "sql", "SELECT nme FROM datasets", "--store", path)
    assert code == 1
    assert out == ""
    assert len(err.strip().splitlines()) == 2
    assert err.startswith("error: SQL: Binder Error")
    assert "hint:" in err
    code, _, err = msft(capsys, "sql", "SELEC 1", "--store", path)
    assert code == 1
    assert len(err.strip().splitlines()) == 2


def test_sql_reads_only_unless_told(path: Path, capsys) -> None:
    for statement in ("DELETE FROM qrels", "DROP TABLE qrels", "CREATE TABLE x (a INT)"):
        code, _, err = msft(capsys, "sql", statement, "--store", path)
        assert code == 2
        assert "--write" in err
    code, *_ = msft(capsys, "sql", "DELETE FROM qrels WHERE relevance = 1", "--write", "--store", path)
    assert code == 0
    _, out, _ = msft(capsys, "sql", "SELECT count(*) AS n FROM qrels", "--store", path, "--format", "json")
    assert json.loads(out) == [{"n": 0}]
    _, out, _ = msft(
        capsys, "sql", "SELECT kind FROM provenance ORDER BY job", "--store", path, "--format", "csv"
    )
    assert out.split() == ["kind", "data.add", "sql"]


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_sql_writes_its_rows_to_a_file(path: Path, capsys, ending: str) -> None:
    file = path.parent / f"o.{ending}"
    query = "SELECT n, n::VARCHAR AS n FROM range(25000) t(n)"
    assert msft(capsys, "sql", query, "-o", file, "--limit", 20001, "--store", path)[:2] == (0, "")
    _, out, _ = msft(capsys, "sql", f"SELECT count(*), max(n) FROM '{file}'", "--files", "--store", path)
    assert out.split()[-2:] == ["20001", "20000"]
    for other in ("o.txt", "o", "o.csv.gz"):
        assert msft(capsys, "sql", query, "-o", path.parent / other, "--store", path)[0] == 2
    code, _, err = msft(capsys, "sql", query, "-o", f"/proc/nowhere/o.{ending}", "--store", path)
    assert code == 1
    assert "cannot be written" in err


OUTSIDE = [
    "COPY qrels TO '{}/x.parquet'", "EXPORT DATABASE '{}/x'", "ATTACH '{}/x.db'", "INSTALL icu", "LOAD json",
    "CREATE SECRET s (TYPE http)", "PRAGMA enable_profiling", "SET profiling_output = '{}/x'", "RESET threads",
    "SELECT * FROM read_csv('{}/in.csv')", "SELECT * FROM read_text('{}/in.csv')", "FROM glob('{}/*')",
    "FROM '{}/in.csv'", "FROM read_blob('/proc/self/environ')", "SELECT getenv('HOME')", "FROM sniff_csv('{}/in.csv')",
    "EXPLAIN ANALYZE COPY qrels TO '{}/x.csv'", "PREPARE p AS COPY qrels TO '{}/x.csv'",
    "CALL enable_logging(storage = 'file', storage_path = '{}/x')", "SELECT 1; COPY qrels TO '{}/x.csv'",
    "FROM enable_logging(storage = 'file', storage_path = '{}/x')", "UPDATE EXTENSIONS", "FROM duckdb_secrets()",
    "WITH a AS (COPY qrels TO '{}/x.csv') SELECT 1", "EXPLAIN ANALYZE LOAD '{}/x.so'", "FROM sqlite_scan('{}/x', 't')",
    "EXPLAIN ANALYZE CREATE SECRET s (TYPE s3)", "FROM query('FROM read_text(''{}/in.csv'')')", "DESCRIBE FROM '{}/in.csv'",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM ''{}/in.csv'''))", "PIVOT '{}/in.csv' ON a USING count(*)",
    "SET VARIABLE a = 1", "USE main", "CHECKPOINT", "IMPORT DATABASE '{}/x'", "PREPARE p AS SELECT 1", "DROP SECRET s",
]  # fmt: skip


@pytest.mark.test_all
@pytest.mark.parametrize("statement", OUTSIDE)
@pytest.mark.parametrize("write", [[], ["--write"]])
def test_sql_touches_nothing_but_the_store(path: Path, capsys, statement: str, write: list[str]) -> None:
    folder = path.parent / "outside"
    folder.mkdir()
    (folder / "in.csv").write_text("a\nsecret\n")
    code, out, err = msft(capsys, "sql", statement.format(folder), *write, "--store", path)
    assert (code, out) == (2, "")
    assert "hint:" in err
    assert [file.name for file in folder.iterdir()] == ["in.csv"]


@pytest.mark.parametrize("word", ["copy", "secret", "load", "attach", "export", "install"])
def test_words_in_a_text_are_no_statements(path: Path, capsys, word: str) -> None:
    explained = f"EXPLAIN SELECT * FROM documents WHERE text LIKE '% {word} %'"
    for query in (explained, f"PIVOT (SELECT '{word} x' AS a) ON a USING count(*)"):
        assert msft(capsys, "sql", query, "--store", path)[0] == 0


@pytest.mark.parametrize("variable", ["path", "frame", "query"])
def test_a_table_is_no_variable_of_the_program(path: Path, capsys, variable: str) -> None:
    frame = pa.table({"a": [1]})  # noqa: F841 - what a replacement scan would find
    for more in ([], ["--files"]):
        code, _, err = msft(capsys, "sql", f"FROM {variable}", *more, "--store", path)
        assert code == 1
        assert "does not exist" in err


@pytest.mark.parametrize("target", ["o.csv", "o.json", "o.parquet"])
def test_files_can_be_joined_into_a_result_where_asked(path: Path, capsys, target: str) -> None:
    (path.parent / "in.csv").write_text("a\nshown\n")
    file = path.parent / target
    query = f"SELECT a, count(*) AS a FROM '{path.parent}/in.csv', qrels GROUP BY a; -- all"
    assert msft(capsys, "sql", query, "-o", file, "--store", path)[0] == 2
    assert not file.exists()
    assert msft(capsys, "sql", query, "-o", file, "--files", "--store", path)[:2] == (0, "")
    _, out, _ = msft(capsys, "sql", f"SELECT a, a_2 > 0 AS some FROM '{file}'", "--files", "--store", path)
    assert out.split()[-2:] == ["shown", "yes"]
    assert msft(capsys, "sql", "DELETE FROM qrels", "-o", file, "--store", path)[0] == 2


def test_sql_reads_files_where_asked(path: Path, capsys) -> None:
    (path.parent / "in.csv").write_text("a\nshown\n")
    code, out, _ = msft(capsys, "sql", f"FROM '{path.parent}/in.csv'", "--files", "--store", path)
    assert (code, out.split()) == (0, ["a", "-----", "shown"])
    assert msft(capsys, "sql", "DELETE FROM qrels", "--files", "--store", path)[0] == 2


LONG = "SELECT n, repeat('x', 8000) AS text, [n, n] AS pair FROM range(60000) t(n)"  # 480 MB


# The peak of the process itself: rusage of a child begins with its parent's.
_MEASURED = """
import re, sys
from cli.main import run
try:
    run(sys.argv[1:])
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


@pytest.mark.test_all
@pytest.mark.parametrize("target", ["csv", "json", "table", "md", "o.csv", "o.json", "o.parquet"])
def test_all_rows_of_a_large_table_take_bounded_memory(path: Path, target: str) -> None:
    file = path.parent / target
    ways = ["-o", str(file)] if "." in target else ["--limit", "0", "--format", target]
    command = ["sql", LONG, *ways, "--store", str(path)]
    with (path.parent / "stdout").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *command],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    peak = int(done.stderr.split()[-1])
    # The process alone takes 150 MB, with all rows 630 MB; DuckDB's chunks of 2,048 rows take 120 to 150 MB here.
    assert peak < 400_000, f"{peak:,} KB"
    if target == "o.parquet":
        assert pq.read_metadata(file).num_rows == 60_000
        return
    written = file if "." in target else path.parent / "stdout"
    with written.open() as lines:
        assert sum("xxxx" in line for line in lines) == 60_000
    written.unlink()  # half a gigabyte


@pytest.mark.parametrize("wide", [1, 300, 1500, 2500])
def test_a_streamed_table_is_as_wide_as_its_widest_cell_so_far(path: Path, capsys, wide: int) -> None:
    query = f"SELECT n, CASE WHEN n = {wide} THEN 'wide cell' ELSE 'a' END AS t, 1 AS z FROM range(3000) t(n)"
    code, out, _ = msft(capsys, "sql", query, "--limit", 0, "--store", path)
    lines = out.splitlines()
    assert (code, len(lines), sum("wide cell" in line for line in lines)) == (0, 3002, 1)
    assert all(line.split()[-1] == "1" for line in lines[2:])


@pytest.mark.parametrize("query", [";", " ", "-- nothing", "/* */ ;;"])
def test_sql_without_a_statement_is_a_usage_error(path: Path, capsys, query: str) -> None:
    assert msft(capsys, "sql", query, "--store", path)[0] == 2


@pytest.mark.parametrize("code_point", [0x1B, 0x07, 0x9B, 0x202E])
def test_control_characters_are_escaped(path: Path, capsys, code_point: int) -> None:
    _, out, _ = msft(capsys, "sql", f"SELECT 'a' || chr({code_point}) || 'b' AS x", "--store", path)
    assert out.split()[-1] == f"a\\u{code_point:04x}b"


def test_a_failed_write_leaves_the_store(path: Path, capsys) -> None:
    code, *_ = msft(capsys, "sql", "DELETE FROM qrels; SELECT nothing", "--write", "--store", path)
    assert code == 1
    _, out, _ = msft(
        capsys, "sql", "SELECT count(*) > 0 AS n FROM qrels", "--store", path, "--format", "json"
    )
    assert json.loads(out) == [{"n": True}]


def test_long_results_are_cut_and_say_so(path: Path, capsys) -> None:
    code, out, err = msft(capsys, "sql", "FROM range(1500) t(n)", "--store", path, "--format", "csv")
    assert code == 0
    assert len(out.splitlines()) == 1001
    assert "first 1,000 rows" in err
    _, out, err = msft(
        capsys, "sql", "FROM range(1500) t(n)", "--store", path, "--limit", 0, "--format", "csv"
    )
    assert len(out.splitlines()) == 1501
    assert "warning" not in err


def test_parameters(path: Path, capsys) -> None:
    _, out, _ = msft(
        capsys,
        "sql",
        "SELECT getvariable('a') || 'x' AS v",
        "--param",
        "a=b",
        "--store",
        path,
        "--format",
        "csv",
    )
    assert out.split() == ["v", "bx"]
    code, *_ = msft(capsys, "sql", "SELECT 1", "--param", "a", "--store", path)
    assert code == 2


def test_status_names_everything(path: Path, capsys) -> None:
    code, out, _ = msft(capsys, "status", "--store", path, "--format", "json")
    assert code == 0
    rows = {(row["what"], row["name"], row["of"]): row for row in json.loads(out)}
    assert rows[("dataset", "c/train", "c")]["size"] == 12
    assert rows[("run", "first", "c/test")]["size"] == 120
    assert rows[("labels", "teacher@first", "c/train")]["detail"] == "10 ok, 1 repaired, 1 wrong_format"
    assert rows[("collection", "c", None)]["state"] == "held"


def test_status_shows_journals(path: Path, capsys) -> None:
    from teachers.journal.segments import Journal

    with Journal(path.with_name("s.files") / "journal", "job", {"labeling": {"name": "t@first"}}) as writer:
        writer.append({"t": "call", "status": "ok"})
        writer.append({"t": "call", "status": "truncated"})
        _, out, _ = msft(capsys, "status", "--store", path, "--format", "json")
    (row,) = [r for r in json.loads(out) if r["what"] == "journal"]
    assert (row["of"], row["size"], row["detail"], row["state"]) == (
        "t@first",
        2,
        "1 ok, 1 truncated",
        "being written",
    )


def test_no_store_is_exit_4(tmp_path: Path, capsys) -> None:
    for command in (["status"], ["sql", "SELECT 1"]):
        code, out, err = msft(capsys, *command, "--store", tmp_path / "none.duckdb")
        assert (code, out) == (4, "")
        assert "msft data add" in err


@pytest.mark.parametrize("group", [[], ["students"], ["teachers"], ["data"], ["views"]])
def test_a_group_without_a_command_shows_its_help(group: list[str], capsys) -> None:
    code, out, err = msft(capsys, *group)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: {' '.join(['msft', *group])}")
    assert msft(capsys, *group, "--help")[1] == out
    assert msft(capsys, *group, "no-such-command")[0] == 2
