"""Find the blocks that do not match their checksums, and what they held.

DuckDB checks a block when it reads it, and an error ends the statement. So this module reads table by table, column by
column and row group by row group to find what a block held. It reads indexes by looking up their keys. A look-up does
not touch the index of a table with one row; there it tries to insert the row again, inside a transaction that is rolled
back.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import duckdb

from labelstore.errors import StoreDamaged, StoreError
from labelstore.store.label_store import LabelStore, damaged_at
from labelstore.store.relations import OWNERS
from labelstore.upkeep.verify.blocks import mismatches
from labelstore.upkeep.verify.findings import Finding

ROW_GROUP = 122_880  # rows that DuckDB stores, and reads, together
LOOKUPS = 5_000  # largest number of keys looked up in an index
HINT = "put back a copy of the file, or `msft import-store FOLDER --store NEW` from an archive"


@dataclass
class Block:
    """A damaged block: its place, and what cannot be read because of it."""

    location: int
    columns: dict[str, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )  # table -> columns, indexes
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)  # table -> first and last row
    owners: dict[str, list[str]] = field(default_factory=dict)  # table -> what the rows belong to

    def finding(self) -> Finding:
        parts = []
        for table, columns in sorted(self.columns.items()):
            where = ""
            if table in self.rows:
                where = " rows {:,} to {:,}".format(*self.rows[table])
            of = self.owners.get(table)
            owner = f" of {', '.join(of[:5])}{' …' if len(of) > 5 else ''}" if of else ""
            parts.append(f"{table} ({', '.join(columns)}){where}{owner}")
        held = (
            "; ".join(parts)
            or "an index, or nothing (run `msft verify` again when no other process has the store open)"
        )
        return Finding(
            "block",
            f"byte {self.location}",
            f"is cut short or does not match its checksum; it held {held}",
            HINT,
        )


def damaged_blocks(store: LabelStore) -> list[Block]:
    """Read everything once, and list the blocks that cannot be read.

    Raises:
        StoreError, StoreDamaged: the file cannot be opened at all.
    """
    blocks: dict[int, Block] = {}
    with store.as_it_is() as con:
        size, n = con.execute("SELECT block_size, total_blocks FROM pragma_database_size()").fetchall()[0]
        suspects = mismatches(store.path, int(size), int(n))
        if suspects is not None and not suspects:
            return []
        for table, columns in _tables(con).items():
            location = _failure(functools.partial(_read, con, table, columns))
            if location is None:
                continue
            for column in columns:
                _note_rows(con, blocks, table, column)
            _take(blocks, location, table, "where its columns lie")  # unless a column was found there
        for table, column in _indexed(con):
            _take(
                blocks, _failure(functools.partial(_look_up, con, table, column)), table, f"index on {column}"
            )
        for block in blocks.values():
            for table, rows in block.rows.items():
                owners: list[str] = []
                if _failure(functools.partial(_name_owners, con, table, rows, owners)) is None and owners:
                    block.owners[table] = owners
    left = set(suspects or ()) - blocks.keys()
    if left:
        try:
            _probe_indexes(store, blocks)
        except (StoreError, StoreDamaged):  # another process keeps the store open
            blocks |= {location: Block(location) for location in left}
    return sorted(blocks.values(), key=lambda block: block.location)


def _take(blocks: dict[int, Block], location: int | None, table: str, held: str) -> None:
    """Note what a block held, unless the block is known."""
    if location is not None and location not in blocks:
        blocks[location] = Block(location)
        blocks[location].columns[table].append(held)


def _failure(work: Callable[[], None]) -> int | None:
    """Return the location of the damaged block that ends `work`; None if it succeeds."""
    try:
        work()
    except duckdb.Error as error:
        location = damaged_at(error)
        if location is None:
            raise
        return location
    return None


def _tables(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table, column in con.execute(
        """SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND database_name = current_database()
             AND table_name IN (SELECT table_name FROM duckdb_tables() WHERE database_name = current_database())
           ORDER BY table_oid, column_index"""
    ).fetchall():
        found.setdefault(table, []).append(column)
    return found


def _read(
    con: duckdb.DuckDBPyConnection, table: str, columns: list[str], rows: tuple[int, int] | None = None
) -> None:
    sums = ", ".join(f'bit_xor(hash("{column}"))' for column in columns)
    where = f" WHERE rowid BETWEEN {rows[0]} AND {rows[1]}" if rows else ""
    con.execute(f'SELECT {sums} FROM "{table}"{where}').fetchall()


def _note_rows(con: duckdb.DuckDBPyConnection, blocks: dict[int, Block], table: str, column: str) -> None:
    """Note a column's damaged blocks with their rows, row group by row group."""
    count: list[int] = []
    _failure(lambda: count.extend(con.execute(f'SELECT count(*) FROM "{table}"').fetchall()[0]))
    for first in range(0, sum(count), ROW_GROUP):
        last = min(first + ROW_GROUP, sum(count)) - 1
        location = _failure(functools.partial(_read, con, table, [column], (first, last)))
        if location is not None:
            block = blocks.setdefault(location, Block(location))
            if column not in block.columns[table]:
                block.columns[table].append(column)
            low, high = block.rows.get(table, (first, last))
            block.rows[table] = (min(low, first), max(high, last))


def _indexed(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    return [
        (table, columns[0])
        for table, columns in con.execute(
            """SELECT table_name, constraint_column_names FROM duckdb_constraints()
               WHERE constraint_type IN ('PRIMARY KEY', 'UNIQUE') AND database_name = current_database()
               ORDER BY ALL"""
        ).fetchall()
    ]


def _probe_indexes(store: LabelStore, blocks: dict[int, Block]) -> None:
    """Check blocks that only writing touches: the index, not the checksum, must refuse a repeated row."""
    with store.write(transaction=False) as con:
        indexed = _indexed(con)
        for table, column in indexed:
            others = {c for t, c in indexed if t == table and c != column}
            _take(
                blocks, _failure(functools.partial(_insert_again, con, table, column, others)), table, column
            )


def _insert_again(con: duckdb.DuckDBPyConnection, table: str, column: str, others: set[str]) -> None:
    """Try to insert a row whose `column` is taken and whose other keys are free; nothing is kept."""
    kinds = con.execute(
        """SELECT column_name, data_type FROM duckdb_columns()
           WHERE table_name = ? AND NOT internal AND database_name = current_database() ORDER BY column_index""",
        [table],
    ).fetchall()
    free = {"VARCHAR": '"{0}" || chr(0)', "INTEGER": '(SELECT max("{0}") + 1 FROM "{1}")'}
    values = [free[kind].format(name, table) if name in others else f'"{name}"' for name, kind in kinds]
    con.execute("BEGIN")
    try:
        con.execute(f'INSERT INTO "{table}" SELECT {", ".join(values)} FROM "{table}" LIMIT 1')
    except duckdb.ConstraintException:
        pass
    finally:
        with suppress(duckdb.Error):
            con.execute("ROLLBACK")


def _look_up(con: duckdb.DuckDBPyConnection, table: str, column: str) -> None:
    keys = con.execute(f'SELECT "{column}" FROM "{table}" LIMIT {LOOKUPS}').fetchall()
    for (key,) in keys:
        con.execute(f'SELECT 1 FROM "{table}" WHERE "{column}" = ?', [key]).fetchall()


def _name_owners(
    con: duckdb.DuckDBPyConnection, table: str, rows: tuple[int, int], owners: list[str]
) -> None:
    if table in OWNERS:
        name, join = OWNERS[table]
        found = con.execute(
            f"""SELECT DISTINCT {name} FROM {table} t {join}
                WHERE t.rowid BETWEEN {rows[0]} AND {rows[1]} AND {name} IS NOT NULL ORDER BY 1"""
        ).fetchall()
        owners += [owner for (owner,) in found]
