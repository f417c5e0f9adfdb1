"""Run a SQL statement over the store, or one of the analyses in ``analyses/``; read tables as data frames."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from labelstore.analyses import result_file
from labelstore.errors import BadInput, UsageError
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.label_store import ANYWHERE, LabelStore, damaged_at

_BLOCK = 1000  # rows of one fetch

_READS = {"SELECT", "EXPLAIN", "MULTI"}  # MULTI: a PIVOT
_WRITES = {"INSERT", "UPDATE", "DELETE", "MERGE_INTO", "CREATE", "CREATE_FUNC", "ALTER", "DROP", "ANALYZE"}
_FILES = {"COPY", "COPY_DATABASE", "EXPORT", "ATTACH", "DETACH"}
_CLOSED = re.compile(
    r"disabled (by|through) configuration|configuration has been locked|Function with name getenv"
    r"|Table with name \S*[/\\.]|exists in the \w+ extension"
)
_FILES_HINT = "--files allows access to files; -o FILE writes the result; --write changes the store"


def shipped() -> dict[str, str]:
    """List the analyses that come with msft: name -> first comment line."""
    found = {}
    for file in files("labelstore").joinpath("analyses").iterdir():
        if file.name.endswith(".sql"):
            found[file.name.removesuffix(".sql")] = file.read_text("utf-8").splitlines()[0].lstrip("- ")
    return dict(sorted(found.items()))


def text_of(query: str) -> str:
    """Return the SQL itself, or the SQL of ``@NAME``.

    Raises:
        DataMissing: the analysis is not found.
    """
    if not query.startswith("@"):
        return query
    name = query[1:]
    if name not in shipped():
        raise lookup.missing("analysis", name, list(shipped()), "msft sql --list")
    return files("labelstore").joinpath("analyses", f"{name}.sql").read_text("utf-8")


@dataclass
class Answer:
    """The result of a statement: blocks of rows, read one at a time.

    Attributes:
        cut: after the last block, whether rows were left out.
        n_rows: rows read so far.
    """

    names: list[str]
    blocks: Iterable[list[tuple[Any, ...]]] = ()
    cut: bool = False
    n_rows: int = 0


@contextmanager
def asked(
    store: LabelStore,
    query: str,
    *,
    files: bool = False,
    limit: int = 0,
    parameters: Mapping[str, str] | None = None,
) -> Iterator[Answer]:
    """Run a reading statement; its rows stream inside, and the store is open for reading until the end.

    Args:
        files: allow it to read and write files beside the store.
        limit: rows at most; 0 is all.
        parameters: what ``getvariable('NAME')`` gives in it.

    Raises:
        UsageError: for an empty query, or one that does what was not allowed.
        BadInput: what DuckDB says is wrong, in one line.
    """
    sql = text_of(query)
    with store.read(reach=_reach(files)) as con, _explaining():
        yield _answer(con, sql, limit, parameters or {}, False, files)


def run(
    store: LabelStore,
    query: str,
    *,
    write: bool = False,
    files: bool = False,
    limit: int = 0,
    parameters: Mapping[str, str] | None = None,
) -> Answer:
    """Run a statement and hold all of its rows; the store is free again afterwards.

    Args:
        write: allow it to change the store; it is then one transaction and a job in `provenance`.
        files, limit, parameters: as in :func:`asked`.

    Raises:
        UsageError, BadInput: as :func:`asked`.
    """
    if not write:
        with asked(store, query, files=files, limit=limit, parameters=parameters) as answer:
            answer.blocks = list(answer.blocks)
        return answer
    sql = text_of(query)
    with store.write(reach=_reach(files)) as con, provenance.recorded_in(con, "sql"), _explaining():
        answer = _answer(con, sql, limit, parameters or {}, write, files)
        answer.blocks = list(answer.blocks)
    return answer


def sql(store: LabelStore, query: str, *, parameters: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Run a reading SQL statement and return its result as a polars data frame.

    Args:
        query: SQL, or ``@NAME`` for an analysis that comes with msft (`msft sql --list`).
        parameters: values that the query reads with ``getvariable('NAME')``.

    Returns:
        A column for each column of the result; a second column ``x`` is named ``x_2``.

    Raises:
        UsageError: the statement would change the store or touch files.
        BadInput: DuckDB refuses the statement; the message is its first line.
        DataMissing: the store or the analysis is not found.
    """
    text = text_of(query)
    with store.read() as con, _explaining():
        _prepare(con, text, parameters or {}, write=False, files=False)
        relation = con.sql(text)
        names = _unique(relation.columns)
        frame = pl.DataFrame(relation.to_arrow_table().rename_columns(names))
        sums = [name for name, kind in zip(names, relation.types, strict=True) if kind == "HUGEINT"]
        return frame.cast(dict.fromkeys(sums, pl.Int128))  # Arrow has them as decimals


def table(store: LabelStore, name: str) -> pl.DataFrame:
    """Read a whole table or view of the store as a polars data frame.

    Args:
        name: as in `docs/reference/schema.md`. The views (ranked, judgments, labels, results …) carry text ids.

    Raises:
        DataMissing: the store has no such table or view.
    """
    with store.read() as con:
        known = [row[0] for row in con.execute("SELECT table_name FROM information_schema.tables").fetchall()]
    if name not in known:
        raise lookup.missing("table", name, known, 'msft sql "SHOW TABLES"')
    return sql(store, f'SELECT * FROM "{name}"')


def save(
    store: LabelStore,
    query: str,
    path: Path,
    *,
    files: bool = False,
    limit: int = 0,
    parameters: Mapping[str, str] | None = None,
) -> None:
    """Write the result of a reading query to a file; see :mod:`labelstore.analyses.result_file`.

    Args:
        files, limit, parameters: as in :func:`asked`.

    Raises:
        UsageError: for a file's ending that is none of ours, or a query that does more than to read the store.
        BadInput: as :func:`asked`.
    """
    result_file.check(path)
    if path.suffix != ".parquet":
        with asked(store, query, files=files, limit=limit, parameters=parameters) as answer:
            result_file.write_text(answer.names, answer.blocks, path)
        return
    sql = text_of(query)
    with store.read(reach=_reach(files)) as con, _explaining():
        _prepare(con, sql, parameters or {}, False, files)
        found = con.sql(sql)
        if found is None:
            raise UsageError("the query gives no rows", hint="leave -o out, or give a query such as SELECT")
        result_file.write_parquet(found, _unique(found.columns), limit, path)


def _reach(files: bool) -> Sequence[Path]:
    return ANYWHERE if files else ()


@contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        if damaged_at(error) is not None:
            raise
        raise _explained(error) from error


def _prepare(
    con: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, str], write: bool, files: bool
) -> None:
    """Set the variables, look at the statements, and lock the settings."""
    for key, value in parameters.items():
        if not key.isidentifier():
            raise UsageError(f"--param {key}: not a name", hint="--param dataset=dl19")
        con.execute(f"SET VARIABLE {key} = ?", [_value(value)])
    _check(con, sql, write, files)
    con.execute("SET lock_configuration = true")


def _answer(
    con: duckdb.DuckDBPyConnection,
    sql: str,
    limit: int,
    parameters: Mapping[str, str],
    write: bool,
    files: bool,
) -> Answer:
    _prepare(con, sql, parameters, write, files)
    cursor = con.execute(sql)
    answer = Answer(_unique([column[0] for column in cursor.description or []]))
    if answer.names:
        answer.blocks = _blocks(cursor, limit, answer)
    return answer


def _blocks(cursor: duckdb.DuckDBPyConnection, limit: int, answer: Answer) -> Iterator[list[tuple[Any, ...]]]:
    left = limit
    while block := cursor.fetchmany(_BLOCK):
        answer.n_rows += len(block)
        if limit and len(block) > left:
            answer.cut = True
            yield block[:left]
            return
        left -= len(block)
        yield block


def _check(con: duckdb.DuckDBPyConnection, sql: str, write: bool, files: bool) -> None:
    """Check each statement's type before any of them runs.

    Raises:
        UsageError: a type is not allowed, or the query has no statement.
    """
    statements = con.extract_statements(sql)
    if not statements:
        raise UsageError("the query holds no statement", hint='msft sql "SELECT * FROM results", or --list')
    allowed = _READS | (_WRITES if write else set()) | (_FILES if files else set())
    for statement in statements:
        try:
            kind = statement.type.name
        except ValueError:  # a type that duckdb's Python module has no name for, such as UPDATE EXTENSIONS
            kind = statement.query.split(maxsplit=1)[0].upper()
        if kind not in allowed:
            raise _refused(kind)


def _refused(kind: str) -> UsageError:
    if kind in _WRITES:
        return UsageError(f"{kind} would change the store", hint="allow it with --write")
    if kind in _FILES:
        return UsageError(f"{kind} would read or write files", hint=_FILES_HINT)
    return UsageError(
        f"statements of type {kind} are not allowed in msft sql",
        hint="list the names with SHOW TABLES and DESCRIBE TABLE; set a variable with --param NAME=VALUE",
    )


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _unique(names: list[str]) -> list[str]:
    """Make column names unique: a second ``name`` is ``name_2``."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _explained(error: duckdb.Error) -> BadInput | UsageError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    more = next((line for line in lines[1:] if line.startswith(("Did you mean", "Candidate"))), None)
    if "read-only" in message:
        return UsageError("this statement would change the store", hint="allow it with --write")
    if _CLOSED.search(message):
        return UsageError(f"SQL: {message}", hint=_FILES_HINT)
    hint = 'msft sql "SHOW TABLES" and "DESCRIBE TABLE" tell the names; labelstore/schema.sql says what they hold'
    return BadInput(f"SQL: {message}", hint=f"{more} {hint}" if more else hint)
