"""Write and read a training view's folder: Parquet, a manifest, a card. Training needs this folder and no database.

``queries.parquet``   query int32 (0..n-1, row order), query_id, text
``passages.parquet``  passage int32 (0..n-1, row order), doc_id, text (title joined), text_hash uint64
``lists.parquet``     one row a list: list int32, query int32, then lists that are aligned with each other:
                      passages int32, labels int16, ranks int16, scores float32 (null without scores),
                      weights float32, relevances int16 (human judgment, -1 unjudged); split string (train | valid)
``manifest.json``     kind, sources, parameters, counts of what was left out and why, file hashes
``README.md``         a dataset card, so that ``datasets.load_dataset(folder, "lists")`` reads the folder

The folder's name is the content hash of its rows: text ids, texts' hashes and labels in a canonical order. It does not depend
on surrogate keys, times, Parquet's encoding or DuckDB's version, and `content_hash` computes it again from the folder alone.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labelstore.errors import BadInput, DataMissing
from labelstore.store import foreign
from labelstore.store.keys import content_key, file_hash
from labelstore.store.lookup import FULL_TEXT
from msft.host.permissions import as_umask

FORMAT = 1
FILES = ("queries.parquet", "passages.parquet", "lists.parquet")
_PAIRS_PER_GROUP = 1_000_000
_HASHED = {
    "queries.parquet": ["query_id", "text"],
    "passages.parquet": ["doc_id", "text_hash"],
    "lists.parquet": ["query", "passages", "labels", "ranks", "scores", "weights", "relevances", "split"],
}
_LISTS = pa.schema(
    [
        ("list", pa.int32()),
        ("query", pa.int32()),
        ("passages", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int16())),
        ("ranks", pa.list_(pa.int16())),
        ("scores", pa.list_(pa.float32())),
        ("weights", pa.list_(pa.float32())),
        ("relevances", pa.list_(pa.int16())),
        ("split", pa.string()),
    ]
)
Progress = Callable[[int, int | None], None]


def write_rows(
    con: duckdb.DuckDBPyConnection, kind: str, folder: Path, progress: Progress | None = None
) -> dict[str, int]:
    """Write the three Parquet files from the temporary tables that ``views/sql/finish.sql`` leaves.

    Returns:
        n_lists, n_pairs, n_queries, n_passages.
    """
    _copy(
        con,
        """SELECT n.number AS query, q.query_id, q.text FROM numbered_queries n JOIN queries q USING (query)
           ORDER BY n.number""",
        folder / "queries.parquet",
    )
    _copy(
        con,
        f"""SELECT n.number AS passage, d.doc_id, {FULL_TEXT} AS text, d.text_hash
            FROM numbered_passages n JOIN documents d USING (document) ORDER BY n.number""",
        folder / "passages.parquet",
    )
    n_lists, n_pairs = _write_lists(con, kind, folder / "lists.parquet", progress)
    n_queries, n_passages = con.execute(
        "SELECT (SELECT count(*) FROM numbered_queries), (SELECT count(*) FROM numbered_passages)"
    ).fetchall()[0]
    return {"n_lists": n_lists, "n_pairs": n_pairs, "n_queries": n_queries, "n_passages": n_passages}


def _copy(con: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    target = str(path).replace("'", "''")
    con.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 100000)")


def _write_lists(
    con: duckdb.DuckDBPyConnection, kind: str, path: Path, progress: Progress | None
) -> tuple[int, int]:
    """Write pairs in order as one row per list. The join to passage numbers is one gather per batch."""
    lists = con.sql(
        """SELECT number, query_number, CASE WHEN valid THEN 'valid' ELSE 'train' END AS split, n
           FROM numbered_lists JOIN (SELECT list, count(*) AS n FROM pairs GROUP BY list) USING (list)
           ORDER BY number"""
    ).to_arrow_table()
    sizes = lists["n"].to_numpy().astype(np.int64)
    ends = np.cumsum(sizes)
    numbers = _passage_numbers(con)
    has_scores = con.execute("SELECT count(score) > 0 FROM pairs").fetchall()[0][0]
    reader = con.sql(
        """SELECT document, label, rank, score, weight, relevance FROM pairs JOIN numbered_lists USING (list)
           ORDER BY number, place"""
    ).to_arrow_reader(_PAIRS_PER_GROUP)
    done = 0
    with pq.ParquetWriter(path, _LISTS, compression="zstd") as writer:
        for table in _whole_lists(reader, ends):
            stop = int(np.searchsorted(ends, (ends[done - 1] if done else 0) + table.num_rows)) + 1
            offsets = pa.array(np.concatenate([[0], np.cumsum(sizes[done:stop])]).astype(np.int32))
            part = lists.slice(done, stop - done)
            ranks = table["rank"].to_numpy()
            if (
                kind == "distillation"
            ):  # left-out passages leave no gap in the ranks: losses compare ranks with list lengths
                starts = np.repeat(offsets.to_numpy()[:-1], sizes[done:stop])
                ranks = (np.arange(table.num_rows) - starts + 1).astype(np.int16)
            flat = {
                "passages": pa.array(numbers[table["document"].to_numpy()]),
                "labels": table["label"],
                "ranks": pa.array(ranks.astype(np.int16)),
                "weights": table["weight"],
                "relevances": table["relevance"],
            }
            columns = {name: _nested(offsets, values) for name, values in flat.items()}
            scores = table["score"]
            columns["scores"] = (
                _scores(offsets, scores) if has_scores else pa.nulls(part.num_rows, pa.list_(pa.float32()))
            )
            columns["list"] = part["number"].cast(pa.int32()).combine_chunks()
            columns["query"] = part["query_number"].cast(pa.int32()).combine_chunks()
            columns["split"] = part["split"].combine_chunks()
            writer.write_table(pa.table([columns[f.name] for f in _LISTS], schema=_LISTS))
            done = stop
            if progress is not None:
                progress(done, len(sizes))
    return len(sizes), int(ends[-1]) if len(ends) else 0


def _nested(offsets: pa.Array, values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pa.ListArray.from_arrays(
        offsets, values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    )


def _scores(offsets: pa.Array, scores: pa.ChunkedArray) -> pa.Array:
    """Score lists, null for a list in which any score is missing."""
    missing = np.add.reduceat(scores.is_null().to_numpy().astype(np.int64), offsets.to_numpy()[:-1]) > 0
    values = scores.fill_null(0.0).combine_chunks()
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(missing))


def _passage_numbers(con: duckdb.DuckDBPyConnection) -> Any:
    """Make an array from surrogate document key to passage number."""
    (top,) = con.execute("SELECT coalesce(max(document), 0) FROM numbered_passages").fetchall()[0]
    numbers = np.full(top + 1, -1, dtype=np.int32)
    found = con.sql("SELECT document, number FROM numbered_passages").to_arrow_table()
    numbers[found["document"].to_numpy()] = found["number"].to_numpy()
    return numbers


def _whole_lists(reader: pa.RecordBatchReader, ends: Any) -> Iterator[pa.Table]:
    """Cut batches at the ends of lists: the tail of an unfinished list waits for the next batch."""
    held: list[pa.RecordBatch] = []
    start = 0  # pairs yielded so far
    waiting = 0
    for batch in reader:
        held.append(batch)
        waiting += batch.num_rows
        if waiting < _PAIRS_PER_GROUP:
            continue
        last = int(np.searchsorted(ends, start + waiting, side="right"))
        whole = (int(ends[last - 1]) if last else 0) - start
        if whole <= 0:
            continue
        table = pa.Table.from_batches(held)
        yield table.slice(0, whole)
        held = table.slice(whole).to_batches()
        start, waiting = start + whole, waiting - whole
    if waiting:
        yield pa.Table.from_batches(held)


def content_hash(folder: Path, kind: str) -> str:
    """Compute the view's hash from the rows in its folder: column by column, batch by batch.

    Raises:
        BadInput: a file is not a Parquet file or lacks a column.
    """
    columns: dict[str, str] = {}
    for name, wanted in _HASHED.items():
        try:
            file = pq.ParquetFile(folder / name)
            digests = {column: _Digest() for column in wanted}
            for batch in file.iter_batches(columns=wanted):
                for column in wanted:
                    digests[column].add(batch.column(column))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise BadInput(
                f"{folder / name} cannot be read: {str(error).splitlines()[0]}",
                hint="build the view again: `msft views build`",
            ) from error
        columns |= {f"{name}/{column}": digest.hex() for column, digest in digests.items()}
    return content_key("view", {"format": FORMAT, "kind": kind, "columns": columns})


class _Digest:
    """A running hash over a column's values, the same for any split into batches."""

    def __init__(self) -> None:
        self._parts = [hashlib.blake2b(digest_size=16) for _ in range(3)]

    def add(self, values: pa.Array) -> None:
        valid, lengths, content = self._parts
        if isinstance(values, pa.ListArray | pa.LargeListArray):
            valid.update(_bytes(values.is_valid()))
            lengths.update(_bytes(values.value_lengths().fill_null(0)))
            content.update(_bytes(values.flatten()))
        elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            binary = values.cast(pa.large_binary())
            sizes = pa.compute.binary_length(binary)
            lengths.update(_bytes(sizes))
            start, stop = _span(binary)
            content.update(memoryview(binary.buffers()[2])[start:stop] if stop > start else b"")
        else:
            content.update(_bytes(values))

    def hex(self) -> str:
        return "".join(part.hexdigest() for part in self._parts)


def _bytes(values: pa.Array) -> Any:
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).data


def _span(binary: pa.Array) -> tuple[int, int]:
    offsets = np.frombuffer(binary.buffers()[1], dtype=np.int64)
    return int(offsets[binary.offset]), int(offsets[binary.offset + len(binary)])


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the card and ``manifest.json`` with the hashes of all files, and flush the folder to disk."""
    (folder / "README.md").write_text(_card(manifest), encoding="utf-8")
    manifest = dict(manifest)
    manifest["files"] = {name: file_hash(folder / name) for name in (*FILES, "README.md")}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, default=str)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    for name in (*FILES, "README.md", "manifest.json"):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def _card(manifest: dict[str, Any]) -> str:
    configs = "\n".join(
        f"- config_name: {name}\n  data_files: {name}.parquet" for name in ("lists", "queries", "passages")
    )
    dropped = (
        "\n".join(f"- {reason}: {n:,}" for reason, n in manifest["counts"]["dropped"].items()) or "- nothing"
    )
    sources = "\n".join(f"- {s['kind']} {s['name']} ({s['hash']})" for s in manifest["sources"])
    return f"""---
configs:
{configs}
---
# {manifest["name"]}

A {manifest["kind"]} view made by msft: {manifest["n_lists"]:,} lists, {manifest["n_pairs"]:,} query-passage pairs.
`lists` names queries and passages by row number; labels, ranks, scores, weights and relevances are aligned with
`passages`. Licence of its labels and texts: {manifest["licence"] or "not known"}.

Sources:
{sources}

Left out, of {manifest["counts"]["in"]:,}:
{dropped}
"""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a view folder's manifest.

    Raises:
        DataMissing: the folder has no manifest.
        BadInput: this version cannot read the manifest.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataMissing(
            f"{folder} is not a view folder: it has no manifest.json", hint="make one with `msft views build`"
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(
            f"{path}: not JSON ({error})", hint="build the view again: `msft views build`"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadInput(
            f"{path}: not a manifest of format {FORMAT}", hint="build the view again with this msft"
        )
    return manifest


def findings(folder: Path, view_hash: str, kind: str) -> list[str]:
    """List the faults of a view folder; empty if every file and the content hash are as recorded."""
    try:
        manifest = read_manifest(folder)
    except (DataMissing, BadInput) as error:
        return [str(error)]
    wrong = []
    for name, expected in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{path} is missing")
        elif file_hash(path) != expected:
            wrong.append(f"{path} was changed since it was written")
    if manifest.get("view_hash") != view_hash:
        wrong.append(f"{folder / 'manifest.json'} names another view ({manifest.get('view_hash')})")
    if not wrong and content_hash(folder, kind) != view_hash:
        wrong.append(f"{folder} has other rows than its hash says")
    return wrong


def copy_folder(folder: Path, target: Path) -> None:
    """Copy a view folder to a place that does not exist yet (or is an empty folder).

    Raises:
        BadInput: if the target holds files, or the view a link.
    """
    foreign.check_plain(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists already", hint="name a new folder with -o")
    mode = target.stat().st_mode if target.exists() else None
    shutil.copytree(folder, target, dirs_exist_ok=True)
    as_umask(target)  # the store's own folders may be private
    if mode is not None:
        target.chmod(stat.S_IMODE(mode))
