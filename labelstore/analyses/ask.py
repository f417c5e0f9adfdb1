"""Run a SQL statement over the store, or one of the analyses in ``analyses/``; read tables as data frames."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from labelstore.analyses import result_file as query_files
from labelstore.errors import BadInput, UsageError
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore

Row = dict[str, Any]

_READS = {"SELECT", "EXPLAIN", "MULTI"}  # MULTI: a PIVOT
_WRITES = {"INSERT", "UPDATE", "DELETE", "MERGE_INTO", "CREATE", "CREATE_FUNC", "ALTER", "DROP", "ANALYZE"}
_FILES = {"COPY", "COPY_DATABASE", "EXPORT", "ATTACH", "DETACH"}
_HIDES = re.compile(r"\b(copy|export|attach|install|load|secret)\b", re.IGNORECASE)
_CLOSED = re.compile(
    r"disabled (by|through) configuration|configuration has been locked|Function with name getenv"
    r"|Table with name \S*[/\\.]"
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


def run(
    store: LabelStore,
    query: str,
    *,
    write: bool = False,
    files: bool = False,
    limit: int = 0,
    parameters: Mapping[str, str] | None = None,
) -> tuple[list[str], list[Row], bool]:
    """Run a statement.

    Args:
        write: allow it to change the store; it is then one transaction and a job in `provenance`.
        files: allow it to read and write files beside the store.
        limit: rows at most; 0 is all.
        parameters: values that the statement reads with ``getvariable('NAME')``.

    Returns:
        Column names, rows, and whether rows were cut off.

    Raises:
        UsageError: the query is empty, or does something that is not allowed.
        BadInput: DuckDB refuses the statement; the message is its first line.
    """
    sql = text_of(query)
    try:
        if write:
            with store.write() as con, provenance.recorded_in(con, "sql"):
                return _fetch(con, sql, limit, parameters or {}, write, files)
        with store.read() as con:
            return _fetch(con, sql, limit, parameters or {}, write, files)
    except duckdb.Error as error:
        raise _explained(error) from error


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
    try:
        with store.read() as con:
            _prepare(con, text, parameters or {}, write=False, files=False)
            relation = con.sql(text)
            names = _unique(relation.columns)
            frame = pl.DataFrame(relation.to_arrow_table().rename_columns(names))
            sums = [name for name, kind in zip(names, relation.types, strict=True) if kind == "HUGEINT"]
            return frame.cast(dict.fromkeys(sums, pl.Int128))  # Arrow has them as decimals
    except duckdb.Error as error:
        raise _explained(error) from error


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
    store: LabelStore, query: str, path: Path, limit: int = 0, parameters: Mapping[str, str] | None = None
) -> None:
    """Write the result of a reading query to a file; see :mod:`labelstore.analyses.result_file`.

    Raises:
        UsageError: the file's ending is not known, or the query does more than read the store.
    """
    query_files.check(path)
    sql = text_of(query)
    try:
        with store.read() as con:
            names, _, _ = _fetch(
                con,
                f"SELECT * FROM ({sql.rstrip().rstrip(';')}\n) LIMIT 0",
                0,
                parameters or {},
                False,
                False,
            )
            query_files.write(con, sql, names, limit, path)
    except duckdb.Error as error:
        raise _explained(error) from error


def _fetch(
    con: duckdb.DuckDBPyConnection,
    sql: str,
    limit: int,
    parameters: Mapping[str, str],
    write: bool,
    files: bool,
) -> tuple[list[str], list[Row], bool]:
    _prepare(con, sql, parameters, write=write, files=files)
    cursor = con.execute(sql)
    names = _unique([column[0] for column in cursor.description or []])
    if not names:
        return [], [], False
    found = cursor.fetchmany(limit + 1) if limit else cursor.fetchall()
    cut = bool(limit) and len(found) > limit
    return names, [dict(zip(names, row, strict=True)) for row in (found[:limit] if cut else found)], cut


def _prepare(
    con: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, str], *, write: bool, files: bool
) -> None:
    """Set the parameters, check the statement, and take away its access to files."""
    for key, value in parameters.items():
        if not key.isidentifier():
            raise UsageError(f"--param {key}: not a name", hint="--param dataset=dl19")
        con.execute(f"SET VARIABLE {key} = ?", [_value(value)])
    _check(con, sql, write, files)
    if not files:
        con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


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
        kind = statement.type.name
        if kind not in allowed:
            raise _refused(kind)
        if kind in ("EXPLAIN", "MULTI", "CREATE") and not files:
            hidden = _HIDES.search(statement.query)
            if hidden:
                raise UsageError(f"{kind} with {hidden[0]} is not allowed here", hint=_FILES_HINT)


def _refused(kind: str) -> UsageError:
    if kind in _WRITES:
        return UsageError(f"{kind} would change the store", hint="--write allows it")
    if kind in _FILES:
        return UsageError(f"{kind} would read or write files", hint=_FILES_HINT)
    return UsageError(
        f"statements of type {kind} are not allowed in msft sql",
        hint="SHOW TABLES and DESCRIBE TABLE tell the names; --param NAME=VALUE sets a variable",
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
        return UsageError("this statement would change the store", hint="--write allows it")
    if _CLOSED.search(message):
        return UsageError(f"SQL: {message}", hint=_FILES_HINT)
    hint = 'msft sql "SHOW TABLES" and "DESCRIBE TABLE" tell the names; labelstore/schema.sql says what they hold'
    return BadInput(f"SQL: {message}", hint=f"{more} {hint}" if more else hint)
