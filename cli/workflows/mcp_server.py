"""Serve the store to agents by the Model Context Protocol (`msft mcp`): read-only SQL, compare, explain a query."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from labelstore.errors import UsageError
from msft.errors import MsftError

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from labelstore.store.label_store import LabelStore

Row = dict[str, Any]
MOST_ROWS = 1000
_ABOUT = (
    "One msft store: documents, queries, judgments, runs, LLM labels, students and evaluations of re-rankers. Begin with"
    " `tables`, ask with `sql` (DuckDB), test differences with `compare`, look at one query with `explain`. Nothing here"
    " changes the store."
)
_SYSTEMS = """
    SELECT r.system, r.kind, r.first_stage, r.measure, q.value FROM result_queries q JOIN results r
      ON r.dataset = q.dataset AND r.system = q.system AND r.measure = q.measure
    WHERE q.dataset = ? AND q.query_id = ? ORDER BY r.measure, q.value DESC, r.system"""
_RANKED = """
    SELECT k.run, k.kind, k.rank, k.doc_id, k.score, j.relevance, d.title, left(d.text, 300) AS text
    FROM ranked k JOIN datasets ds ON ds.name = k.dataset
    LEFT JOIN documents d ON d.collection = ds.collection AND d.doc_id = k.doc_id
    LEFT JOIN judgments j ON j.dataset = k.dataset AND j.query_id = k.query_id AND j.doc_id = k.doc_id
    WHERE k.dataset = ? AND k.query_id = ? AND k.rank <= ? ORDER BY k.kind, k.run, k.rank"""


class ReadOnly:
    """A store that cannot be written."""

    def __init__(self, store: "LabelStore") -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def write(self, *_: Any, **__: Any) -> Iterator[None]:
        """Refuse.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "this server only reads, and a value that was not measured yet would have to be stored",
            hint="run msft eval --dataset DATASET in a shell",
        )
        yield


def make(store: "LabelStore") -> "MCPServer[Any]":
    """Make the server with its tools. The store is open only while a tool reads."""
    from mcp.server.mcpserver import MCPServer

    server: MCPServer[Any] = MCPServer("msft", instructions=_ABOUT, version=metadata.version("msft"))
    for tool in (_tables(store), _sql(store), _status(store), _compare(store), _explain(store)):
        server.tool()(_told(tool))
    return server


def run(store: "LabelStore") -> None:
    """Serve over stdin and stdout until the client leaves."""
    make(store).run("stdio")


def _told(tool: Callable[..., Any]) -> Callable[..., Any]:
    """Turn msft's errors into errors of the tool, with their hints."""

    @wraps(tool)
    def told(*arguments: Any, **named: Any) -> Any:
        from mcp.server.mcpserver.exceptions import ToolError

        try:
            return tool(*arguments, **named)
        except MsftError as error:
            raise ToolError(
                f"{error.message} (hint: {error.hint})" if error.hint else error.message
            ) from error

    return told


def _asked(store: "LabelStore", query: str, limit: int) -> Row:
    from labelstore.analyses import ask
    from labelstore.analyses.plain_values import plain

    answer = ask.run(store, query, limit=min(max(limit, 1), MOST_ROWS))
    rows = [dict(zip(answer.names, map(plain, row), strict=True)) for block in answer.blocks for row in block]
    return {"rows": rows, "cut": answer.cut}


def _tables(store: "LabelStore") -> Callable[..., Any]:
    def tables() -> Row:
        """List the tables and views of the store with their columns, and the analyses that `sql` takes as @NAME."""
        from labelstore.analyses import ask

        with store.read() as con:
            rows = con.execute(
                """SELECT c.table_name, coalesce(t.comment, v.comment), list(c.column_name ORDER BY c.column_index)
                   FROM duckdb_columns() c LEFT JOIN duckdb_tables() t ON t.table_name = c.table_name
                   LEFT JOIN duckdb_views() v ON v.view_name = c.table_name
                   WHERE NOT c.internal GROUP BY ALL ORDER BY 1"""
            ).fetchall()
        return {
            "tables": [{"name": name, "about": about, "columns": columns} for name, about, columns in rows],
            "analyses": ask.shipped(),
        }

    return tables


def _sql(store: "LabelStore") -> Callable[..., Any]:
    def sql(query: str, limit: int = 100) -> Row:
        """Run one reading SQL statement (DuckDB's dialect), or a shipped analysis as @NAME.

        `cut` tells whether rows beyond the limit (at most 1000) were left out. The views results, result_queries, ranked,
        judgments, labels and student_sources have text ids.
        """
        return _asked(store, query, limit)

    return sql


def _status(store: "LabelStore") -> Callable[..., Any]:
    def status() -> list[Row]:
        """List what the store has: collections, datasets, runs, labels, views, students, evaluations, jobs."""
        from labelstore.upkeep import status as listing

        with store.read() as con:
            return listing.rows(con)

    return status


def _compare(store: "LabelStore") -> Callable[..., Any]:
    def compare(
        systems: list[str], dataset: str, measure: str | None = None, margin: float | None = None
    ) -> list[Row]:
        """Compare systems with the first one: difference, intervals, corrected p-values and a verdict.

        A verdict is better, worse, equivalent (within the margin) or inconclusive. An inconclusive verdict does not show that two systems are equally good.
        Patterns such as 'student-s*' name several systems; students that differ only in their seed are one. Only values
        that were measured before can be compared.
        """
        from labelstore.analyses.plain_values import plain
        from labelstore.evaluation import comparison

        rows = comparison.compare(
            cast("LabelStore", ReadOnly(store)),
            systems,
            [dataset],
            measures=[measure] if measure else None,
            margin=comparison.MARGIN if margin is None else margin,
        )
        return [{name: plain(value) for name, value in row.items()} for row in rows]

    return compare


def _explain(store: "LabelStore") -> Callable[..., Any]:
    def explain(dataset: str, query_id: str, top: int = 5) -> Row:
        """Show one query: its text, its judgments, every system's value, and the top passages of every run."""
        from labelstore.analyses.plain_values import plain
        from labelstore.store import lookup
        from labelstore.store.rows import fetch

        with store.read() as con:
            of = lookup.dataset(con, dataset)
            texts = con.execute(
                "SELECT text FROM dataset_query_texts WHERE dataset = ? AND query_id = ?", [of.name, query_id]
            ).fetchall()
            if not texts:
                raise UsageError(
                    f"{of.name} has no query {query_id!r}",
                    hint=f"SELECT query_id, text FROM dataset_query_texts WHERE dataset = '{of.name}'",
                )
            judged = fetch(
                con,
                """SELECT doc_id, relevance FROM judgments WHERE dataset = ? AND query_id = ?
                   ORDER BY relevance DESC, doc_id""",
                [of.name, query_id],
            )
            values = fetch(con, _SYSTEMS, [of.name, query_id])
            ranked = fetch(con, _RANKED, [of.name, query_id, min(max(top, 1), 50)])
        found = {"query": texts[0][0], "judgments": judged, "values": values, "ranked": ranked}
        return cast("Row", plain(found))

    return explain
