"""Rows come by the names of their columns."""

import duckdb
import pytest

from labelstore.store.rows import columns, fetch, named


@pytest.mark.parametrize(
    ("sql", "parameters", "expected"),
    [
        ("SELECT 1 AS a, 'x' AS \"in\"", [], [{"a": 1, "in": "x"}]),
        ("SELECT range AS n FROM range(?) ORDER BY n", [3], [{"n": 0}, {"n": 1}, {"n": 2}]),
        ("SELECT NULL AS nothing WHERE ?", [False], []),
        ("SELECT ? AS list", [[1, None]], [{"list": [1, None]}]),
    ],
)
def test_every_row_has_every_column(
    sql: str, parameters: list[object], expected: list[dict[str, object]]
) -> None:
    con = duckdb.connect()
    assert fetch(con, sql, parameters) == expected
    cursor = con.execute(sql, parameters)
    assert named(columns(cursor), cursor.fetchmany(10)) == expected


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        named(("a", "b"), [(1, 2), (1,)])
