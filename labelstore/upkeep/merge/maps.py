"""Map another store's surrogate keys to this store's, and collect contradictions.

The other store is attached as ``msft_theirs``. Each thing gets a temporary table ``m_TABLE(other, own, fresh)``: `own`
is its key here, or the next free key if it is new (`fresh`). Only temporary tables are written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import duckdb

from labelstore.store.label_store import next_id
from labelstore.store.relations import TARGETS

SHOWN = 3  # contradictions of one kind that are shown; the others are counted
RENAME = "--rename-suffix @other takes it in under another name"


@dataclass(frozen=True)
class Contradiction:
    """One name or id with two contents.

    Attributes:
        here, there: the two values.
        hint: what resolves it.
    """

    what: str
    name: str
    here: str
    there: str
    hint: str


class Maps:
    """The maps made so far, and the contradictions.

    Args:
        suffix: appended to the name of whatever comes in under a name that is taken by other content; None: that is
            a contradiction.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, suffix: str | None = None) -> None:
        self.con, self.suffix = con, suffix
        self.contradictions: list[Contradiction] = []
        self.renamed: list[tuple[str, str, str]] = []  # (what, name there, name here)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        found: list[tuple[Any, ...]] = self.con.execute(sql, list(parameters)).fetchall()
        return found

    def map(self, table: str, pairs: str, extra: str = "") -> None:
        """Make ``m_TABLE`` from SQL for (other, own), with own NULL if new, and `extra` columns of the pairs."""
        first = next_id(self.con, table, TARGETS[table])
        self.con.execute(
            f"""CREATE OR REPLACE TEMP TABLE m_{table} AS
                SELECT other, coalesce(own, {first} - 1 + row_number() OVER (PARTITION BY own IS NULL ORDER BY other)) AS own,
                       own IS NULL AS fresh{extra}
                FROM ({pairs})"""
        )

    def keyed(self, table: str, content_key: str) -> None:
        """Make the map of a table whose rows are identified by a content key alone."""
        key = TARGETS[table]
        self.map(
            table,
            f"""SELECT o.{key} AS other, p.{key} AS own FROM msft_theirs.{table} o
                LEFT JOIN {table} p ON p.{content_key} = o.{content_key}""",
        )

    def settled(self, table: str, names: list[tuple[int, str, int | None]]) -> None:
        """Make ``m_TABLE`` with a column `name`, from (other, name, own)."""
        self.con.execute(f"CREATE OR REPLACE TEMP TABLE s_{table} (other INTEGER, name VARCHAR, own INTEGER)")
        if names:
            self.con.executemany(f"INSERT INTO s_{table} VALUES (?, ?, ?)", names)
        self.map(table, f"SELECT * FROM s_{table}", ", name")

    def settle(
        self,
        what: str,
        name: str,
        find: Callable[[str], int | None],
        problems: Callable[[int], list[Contradiction]],
    ) -> tuple[str, int | None]:
        """Choose the name of an incoming row, and find the row that has it here; contradictions are noted.

        Args:
            find: looks up the key of a name here.
            problems: compares an incoming row with the row of a key here.
        """
        own = find(name)
        found = problems(own) if own is not None else []
        if found and self.suffix:
            other_name = name + self.suffix
            own = find(other_name)
            found = problems(own) if own is not None else []
            if not found:
                self.renamed.append((what, name, other_name))
                name = other_name
        self.contradictions += found
        return name, own

    def match_by_name(
        self,
        what: str,
        table: str,
        problems: Callable[["Maps", int, str, int], list[Contradiction]],
        then: Callable[["Maps", int, int | None], None] | None = None,
    ) -> None:
        """Match every row of the other store's `table` with the row that has its name here; make ``m_TABLE``.

        Args:
            what: how messages call a row.
            problems: (maps, other key, name, own key) -> how the two rows contradict each other.
            then: called after each row, with the other key and the own one.
        """
        key, settled = TARGETS[table], []
        for other, name in self.rows(f"SELECT {key}, name FROM msft_theirs.{table} ORDER BY {key}"):
            name, own = self.settle(what, name, self.find(table), partial(problems, self, other, name))
            if then is not None:
                then(self, other, own)
            settled.append((other, name, own))
        self.settled(table, settled)

    def find(self, table: str) -> Callable[[str], int | None]:
        """Look up a key by a name that is unique in its table."""

        def by_name(name: str) -> int | None:
            found = self.rows(f"SELECT {TARGETS[table]} FROM {table} WHERE name = ?", [name])
            return int(found[0][0]) if found else None

        return by_name

    def compared(self, what: str, name: str, sql: str, parameters: Sequence[Any]) -> list[Contradiction]:
        """Make contradictions from SQL for (figure, here, there), where the two differ."""
        return [
            Contradiction(what, name, f"{figure} {here}", f"{figure} {there}", RENAME)
            for figure, here, there in self.rows(sql, parameters)
            if here != there
        ]


def shown(what: str, of: str, rows: Sequence[tuple[Any, ...]], hint: str) -> list[Contradiction]:
    """Make contradictions from (id, here, there, number of them in all)."""
    found = [
        Contradiction(what, f"{of} {name}", short(here), short(there), hint) for name, here, there, _ in rows
    ]
    if rows and rows[0][3] > len(rows):
        found.append(Contradiction(what, f"{of}: {rows[0][3] - len(rows):,} more", "…", "…", hint))
    return found


def short(value: object) -> str:
    """Show a value on one line of bounded length."""
    flat = " ".join(str(value).split())
    return flat if len(flat) <= 120 else flat[:119] + "…"
