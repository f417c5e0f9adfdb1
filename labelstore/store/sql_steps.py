"""Run SQL files step by step, and count what each step kept and dropped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import duckdb


@dataclass
class Filter:
    """The count of one step: n_in = kept + the sum of drops (reason -> number, example)."""

    step: str
    n_in: int = 0
    drops: dict[str, tuple[int, str | None]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.n_in - sum(n for n, _ in self.drops.values())

    def why(self) -> str:
        """Say what the step left out, by reason; empty if nothing."""
        return ", ".join(f"{n:,} {reason}" for reason, (n, _) in self.drops.items())


def sql_file(name: str, room: str = "views/sql") -> str:
    """Read ``ROOM/NAME.sql``."""
    return files("labelstore").joinpath(room, f"{name}.sql").read_text("utf-8")


def set_variables(con: duckdb.DuckDBPyConnection, values: Mapping[str, Any]) -> None:
    """Set the variables that the SQL files read with ``getvariable``."""
    for key, value in values.items():
        con.execute(f"SET VARIABLE {key} = ?", [list(value) if isinstance(value, tuple) else value])


def reasons(counts: Sequence[Filter]) -> str:
    """Tell what each step left out, for an error when nothing is left."""
    return "; ".join(
        f"{count.step}: {count.n_in:,} in, " + (count.why() or "none dropped") for count in counts
    )


def filter_of_pairs(con: duckdb.DuckDBPyConnection, step: str, table: str) -> Filter:
    """Count a table of (query, document, reason) as one step: rows with a reason are dropped, and a pair is the example."""
    count = Filter(step)
    for reason, n, example in con.execute(
        f"""SELECT reason, count(*), min(query_id || ' ' || doc_id) FROM (SELECT query, document, reason FROM {table})
            JOIN queries USING (query) JOIN documents USING (document) GROUP BY reason ORDER BY reason"""
    ).fetchall():
        count.n_in += n
        if reason is not None:
            count.drops[reason] = (n, example)
    return count


def filters(con: duckdb.DuckDBPyConnection, steps: Sequence[str]) -> list[Filter]:
    """Read the temporary table ``tally`` as filters, in the order of `steps`."""
    found = {step: Filter(step) for step in steps}
    for step, reason, n, example in con.execute(
        "SELECT step, reason, sum(n)::BIGINT, min(example) FROM tally GROUP BY step, reason ORDER BY ALL"
    ).fetchall():
        if reason is None:
            found[step].n_in = n or 0
        elif n:
            found[step].drops[reason] = (n, example)
    return [f for f in found.values() if f.n_in or f.step == steps[0]]
