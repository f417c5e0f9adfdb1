"""List the runs, and write one as a TREC run."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import duckdb

from labelstore.errors import UsageError
from labelstore.files import lines
from labelstore.runs import ir_metadata as primad
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.store.rows import fetch


# ------------------------------------------------------------------------------------------------------ out
def listed(con: duckdb.DuckDBPyConnection, dataset: lookup.Dataset | None = None) -> list[dict[str, Any]]:
    """List every run with its counts, for `runs list`."""
    return fetch(
        con,
        f"""SELECT d.name AS dataset, r.name AS run, r.kind, r.system, s.name AS source, r.depth,
                   r.n_queries AS queries, r.n_candidates AS candidates, r.content_hash
            FROM runs r JOIN datasets d USING (dataset) LEFT JOIN runs s ON s.run = r.source_run
            {"WHERE r.dataset = ?" if dataset else ""} ORDER BY d.dataset, r.run""",
        [dataset.dataset] if dataset else [],
    )


METADATA = ("beside", "inside", "none")


def export_run(
    store: LabelStore,
    run: str,
    file: str | Path | None = None,
    *,
    dataset: str | None = None,
    ir_metadata: str | None = None,
    actor: str | None = None,
    stdout: IO[str] | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> int:
    """Export a run as a TREC run, with what made it as ir_metadata (PRIMAD).

    Args:
        run: the run's name.
        file: the file to write; .gz and .zst compress. None: `stdout`.
        dataset: the run's dataset; by default the only one.
        ir_metadata: ``beside`` the file as YAML, ``inside`` as comment lines, or ``none``; by default beside a file.
        actor: who made the run, for the metadata.
        stdout: where the lines go without a file.
        note: called with the files written.

    Returns:
        The number of lines, metadata not counted.

    Raises:
        DataMissing: the dataset or the run is not found.
        UsageError: an unknown place of the metadata, or neither a file nor `stdout`.
    """
    where = ir_metadata or ("none" if file is None else "beside")
    if where not in METADATA:
        raise UsageError(f"ir_metadata {where!r} is not known", hint=f"--ir-metadata {' | '.join(METADATA)}")
    if where == "beside" and file is None:
        raise UsageError("ir_metadata beside a file needs a file", hint="-o FILE, or --ir-metadata inside")
    with store.read() as con:
        of = lookup.pick_dataset(con, dataset)
        found = lookup.run(con, of, run)
        content = primad.metadata(con, of, found, actor)
    if dataset is None:
        note(f"dataset: {of.name} (the only one)")
    header = primad.header(content) if where == "inside" else []
    if file is None:
        if stdout is None:
            raise UsageError("the run has nowhere to go: neither a file nor a stream", hint="-o FILE")
        return write_trec(store, of, found, stdout, header=header)
    path = Path(file)
    with lines.create(path) as out:
        n = write_trec(store, of, found, out, header=header)
    note(f"{path}: {n:,} lines")
    if where == "beside":
        with lines.create(primad.beside(path)) as out:
            out.write(primad.text(content))
        note(f"{primad.beside(path)}: what made it (ir_metadata)")
    return n


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
        tag: the last field; by default the run's name.
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
