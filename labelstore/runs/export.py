"""List the runs, and write one as a TREC run."""

from collections.abc import Iterable
from typing import IO, Any

import duckdb

from labelstore.store import lookup
from labelstore.store.label_store import LabelStore


# ------------------------------------------------------------------------------------------------------ out
def listed(con: duckdb.DuckDBPyConnection, dataset: lookup.Dataset | None = None) -> list[dict[str, Any]]:
    """Every run with its counts, for `runs list`."""
    found = con.execute(
        f"""SELECT d.name AS dataset, r.name AS run, r.kind, r.system, s.name AS source, r.depth,
                   r.n_queries AS queries, r.n_candidates AS candidates, r.content_hash
            FROM runs r JOIN datasets d USING (dataset) LEFT JOIN runs s ON s.run = r.source_run
            {"WHERE r.dataset = ?" if dataset else ""} ORDER BY d.dataset, r.run""",
        [dataset.dataset] if dataset else [],
    )
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def write_trec(
    store: LabelStore,
    dataset: lookup.Dataset,
    run: lookup.Run,
    out: IO[str],
    *,
    header: Iterable[str] = (),
    tag: str | None = None,
) -> int:
    """Write a run as a TREC run, queries in the store's order, and return its number of lines.

    Args:
        header: lines of an ir_metadata header, without the leading ``# ``.
        tag: last field; the run's name when None.
    """
    name = "-".join((tag or run.name).split())
    for line in header:
        out.write(f"# {line}".rstrip() + "\n")
    n = 0
    with store.read() as con:
        rows = con.execute(
            """SELECT q.query_id || ' Q0 ' || d.doc_id || ' ' || c.rank || ' ' || c.score::VARCHAR || ' ' || ?
               FROM candidates c JOIN queries q USING (query) JOIN documents d ON d.document = c.document
               WHERE c.run = ? ORDER BY c.query, c.rank""",
            [name, run.run],
        )
        while block := rows.fetchmany(50_000):
            out.write("\n".join(line for (line,) in block) + "\n")
            n += len(block)
    return n
