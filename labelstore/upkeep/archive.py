"""Write a store as a folder of Parquet that any engine reads, and read it back.

``NAME.parquet``    one file a table, columns as in ``schema.sql``: integer keys join the files and mean nothing outside the
                    folder; text ids and content keys are valid everywhere
``manifest.json``   schema version, verify hash, and for each file its rows, its hash, and the meaning and reference of each
                    column
``open.sql``        makes the tables and the readable views (passages, judgments, ranked, labels, results …) in DuckDB
``files/``          the companion folder: views, students, and journal segments that wait to be merged; token caches and
                    indexes are made again when they are needed

Importing makes a new store; ``msft merge`` then unites it with an existing one.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.files.work_folder import work_folder
from labelstore.store import foreign, migrations
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore
from labelstore.store.relations import REFERENCES
from labelstore.upkeep.verify.digest import content_hash

FORMAT = 1
_MARK = ".msft-import"  # marks a companion folder whose store does not exist yet
_NOT_ROWS = (
    duckdb.ConversionException, duckdb.BinderException, duckdb.ConstraintException, duckdb.InvalidInputException,
)  # fmt: skip
_AGAIN = "copy the whole folder again, or export it again where it was made"
_MOST_ROWS_PER_BYTE = 64
_MOST_UNFOLDING = 500
_SMALL = 64 << 20  # bytes that may come out of any file
COMPANIONS = ("views", "students")
_TABLE = re.compile(r"CREATE TABLE (\w+) \(")
_COLUMN = re.compile(r"    (\w+) +\w.*-- (.+)")
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Archived:
    """The content of an archive: rows by table, companion folders and journal segments, the verify hash."""

    folder: Path
    rows: dict[str, int]
    companions: int
    verify_hash: str


def export_store(store: LabelStore, folder: str | Path, progress: Progress | None = None) -> Archived:
    """Write a store as a folder, which appears whole or not at all. Readers may read the store meanwhile.

    Raises:
        UsageError: the folder exists and has files.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already", hint="name a new folder")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with work_folder(folder.absolute().parent) as work:
        beside = work / "archive"
        beside.mkdir()
        with store.read(reach=[beside]) as con:
            tables = _tables(con)
            described = {}
            for n, table in enumerate(tables):
                if progress:
                    progress(n, len(tables))
                described[table] = _write_table(con, table, beside)
            verify_hash = content_hash(con)
        companions = _copy_companions(store.files, beside / "files")
        manifest = {
            "format": FORMAT,
            "schema_version": migrations.CURRENT_VERSION,
            "verify_hash": verify_hash,
            "tables": described,
        }
        _write_text(beside / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        _write_text(beside / "open.sql", _open_sql(tables))
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
    return Archived(folder, {t: d["rows"] for t, d in described.items()}, companions, verify_hash)


def _tables(con: duckdb.DuckDBPyConnection) -> list[str]:
    """List the store's tables in the order of `schema.sql`, without the record of migrations."""
    found = con.execute(
        """SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() AND NOT temporary
           ORDER BY table_oid"""
    ).fetchall()
    return [table for (table,) in found if table != "migrations"]


def _write_table(con: duckdb.DuckDBPyConnection, table: str, folder: Path) -> dict[str, Any]:
    columns = con.execute(
        """SELECT column_name, data_type, comment FROM duckdb_columns()
           WHERE table_name = ? AND database_name = current_database() AND schema_name = 'main' ORDER BY column_index""",
        [table],
    ).fetchall()
    path = folder / f"{table}.parquet"
    values = ", ".join(f"{name}::VARCHAR AS {name}" if kind == "JSON" else name for name, kind, _ in columns)
    con.execute(
        f"COPY (SELECT {values} FROM {table}) TO '{_quoted(path)}' (FORMAT parquet, COMPRESSION zstd)"
    )
    _sync(path)
    (rows,) = con.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
    names = {r.column: f"{r.target}.{r.key}" for r in REFERENCES if r.table == table}
    comments = _comments()
    described = {
        name: {"type": kind, "holds": comments.get((table, name))}
        | ({"names": names[name]} if name in names else {})
        for name, kind, _ in columns
    }
    return {"file": path.name, "rows": rows, "hash": file_hash(path), "columns": described}


def _comments() -> dict[tuple[str, str], str]:
    """Read (table, column) -> its comment in `schema.sql`."""
    found: dict[tuple[str, str], str] = {}
    table = ""
    for line in _schema().splitlines():
        if begins := _TABLE.match(line):
            table = begins[1]
        elif table and (column := _COLUMN.match(line)):
            found[table, column[1]] = column[2]
    return found


def _schema() -> str:
    return files("labelstore").joinpath("schema.sql").read_text("utf-8")


def _open_sql(tables: list[str]) -> str:
    tables_sql = "".join(
        f"CREATE VIEW {table} AS FROM read_parquet('{table}.parquet');\n" for table in tables
    )
    views = _schema()[_schema().index("CREATE VIEW") :]
    return f"-- Run by DuckDB inside this folder: duckdb -init open.sql\n{tables_sql}\n{views}"


def _copy_companions(own: Path, target: Path) -> int:
    """Copy views, students and journal segments, which cannot be made again; working files stay."""
    n = 0
    for kind in COMPANIONS:
        for folder in sorted((own / kind).glob("[!.]*")):
            foreign.check_plain(folder)
            shutil.copytree(folder, target / kind / folder.name)
            n += 1
    for segment in sorted((own / "journal").glob("*.calls")):
        foreign.check_plain(segment)
        (target / "journal").mkdir(parents=True, exist_ok=True)
        shutil.copy2(segment, target / "journal" / segment.name)
        n += 1
    return n


def import_store(folder: str | Path, store: LabelStore, progress: Progress | None = None) -> Archived:
    """Make a new store from an archive; it appears whole or not at all.

    Raises:
        UsageError: the store exists already.
        DataMissing: the folder is not an archive, or lacks a file.
        BadInput: a file was changed, the archive has another version, or the new store's content differs from it.
    """
    folder = Path(folder)
    if store.path.exists():
        raise _taken(store)
    manifest = _read_manifest(folder)
    if store.files.is_symlink() or (
        store.files.is_dir() and any(store.files.iterdir()) and not _half_done(store, manifest)
    ):
        raise _taken(store)
    with work_folder(store.path.absolute().parent) as work:
        beside = LabelStore(work / "store.duckdb")
        _load(beside, folder, manifest, progress)
        companions = _copy_companions(folder / "files", beside.files)
        _appear(beside, store, manifest)
    rows = {table: described["rows"] for table, described in manifest["tables"].items()}
    return Archived(folder, rows, companions, manifest["verify_hash"])


def _taken(store: LabelStore) -> UsageError:
    return UsageError(
        f"there is a store at {store.path} already, or files of one in {store.files}",
        hint="make a new one with --store NEW.duckdb; then unite the two with `msft merge NEW.duckdb`",
    )


def _appear(beside: LabelStore, store: LabelStore, manifest: dict[str, Any]) -> None:
    """Move the store to its place, its folder first; a mark in the folder lets a rerun after a kill recognise it."""
    mark = store.files / _MARK
    if beside.files.exists():
        (beside.files / _MARK).write_text(manifest["verify_hash"], "utf-8")
        if store.files.exists():
            if mark.is_file():
                shutil.rmtree(store.files)
            else:
                store.files.rmdir()
        beside.files.rename(store.files)
    beside.path.rename(store.path)
    mark.unlink(missing_ok=True)


def _half_done(store: LabelStore, manifest: dict[str, Any]) -> bool:
    """Tell whether the folder is from a killed import of this archive."""
    mark = store.files / _MARK
    return mark.is_file() and not mark.is_symlink() and mark.read_text("utf-8") == manifest["verify_hash"]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataMissing(
            f"{folder} is not an archive: it has no manifest.json", hint="make one with `msft export-store`"
        )
    for odd in foreign.odd_files(folder.resolve()):
        raise BadInput(
            f"{odd} is a link, or neither file nor folder",
            hint="put a copy of the file or folder in its place",
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version, tables = manifest["schema_version"], manifest["tables"]
        unsound = (
            manifest["format"] != FORMAT
            or not isinstance(manifest["verify_hash"], str)
            or not isinstance(tables, dict)
            or not tables
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{path}: not the manifest of an archive ({error})", hint="put back a copy of it"
        ) from error
    if unsound:
        raise BadInput(
            f"{path}: not a manifest of format {FORMAT}", hint="import it with the msft that wrote it"
        )
    if version != migrations.CURRENT_VERSION:
        raise BadInput(
            f"{folder} has schema version {version}, and this msft has {migrations.CURRENT_VERSION}",
            hint="import it with the msft that wrote it; opening that store with this one then migrates it",
        )
    for table, described in tables.items():
        _check_file(folder, table, described)
    return dict(manifest)


def _check_file(folder: Path, table: str, described: Any) -> None:
    """Check a table's file against the manifest by its footer and its hash, without reading a row."""
    path = folder / "manifest.json"
    values = described if isinstance(described, dict) else {}
    name, rows, hash_ = values.get("file"), values.get("rows"), values.get("hash")
    if not re.fullmatch(r"\w+", table, re.ASCII) or name != f"{table}.parquet":
        raise BadInput(f"{path}: {table!r} names the file {name!r}, expected TABLE.parquet", hint=_AGAIN)
    if type(rows) is not int or rows < 0 or not isinstance(hash_, str):
        raise BadInput(
            f"{path}: {table} has rows {rows!r} and hash {hash_!r}, expected a number and a text", hint=_AGAIN
        )
    file = folder / name
    if not file.is_file():
        raise DataMissing(f"{file} is missing", hint=_AGAIN)
    if file_hash(file) != hash_:
        raise BadInput(f"{file} was changed since it was written", hint="put back a copy of it")
    try:
        footer = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{file} is not Parquet: {str(error).splitlines()[0]}", hint=_AGAIN) from error
    if footer.num_rows != rows:
        raise BadInput(f"{file} holds {footer.num_rows:,} rows, its manifest says {rows:,}", hint=_AGAIN)
    size = file.stat().st_size
    if rows > size * _MOST_ROWS_PER_BYTE:  # rows of a store differ from each other and never pack so tightly
        raise BadInput(f"{file} unfolds {size:,} bytes to {rows:,} rows, which no store does", hint=_AGAIN)
    packed = sum(footer.row_group(k).total_byte_size for k in range(footer.num_row_groups))
    if packed > size * _MOST_UNFOLDING + _SMALL:
        raise BadInput(f"{file} unfolds {size:,} bytes to {packed:,}, which no store does", hint=_AGAIN)


def _load(store: LabelStore, folder: Path, manifest: dict[str, Any], progress: Progress | None) -> None:
    tables = manifest["tables"]
    with store.write(reach=[folder]) as con:
        known = _tables(con)
        if sorted(known) != sorted(tables):
            raise BadInput(
                f"{folder} holds other tables than a store: {', '.join(sorted(set(known) ^ set(tables)))}",
                hint="import it with the msft that wrote it",
            )
        for n, table in enumerate(known):
            if progress:
                progress(n, len(known))
            file = folder / tables[table]["file"]
            try:
                _check_texts(con, file)
                con.execute(f"INSERT INTO {table} BY NAME FROM read_parquet('{_quoted(file)}')")
            except _NOT_ROWS as error:
                raise BadInput(
                    f"{file} does not fit its table: {str(error).splitlines()[0]}", hint=_AGAIN
                ) from error
        foreign.lock(con)
        foreign.check_rows(con, folder)
        found = content_hash(con)
        if found != manifest["verify_hash"]:
            raise BadInput(
                f"{folder} gives the verify hash {found}, its manifest says {manifest['verify_hash']}",
                hint="put back a copy of the folder, with manifest.json as it was written",
            )


def _check_texts(con: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Check the length of all texts without keeping them: a dictionary in the file can repeat texts without end."""
    columns = con.execute(f"DESCRIBE FROM read_parquet('{_quoted(file)}')").fetchall()
    length_of = {"VARCHAR": "strlen", "BLOB": "octet_length"}
    lengths = [
        f"coalesce(sum({length_of[kind]}({_identifier(name)})), 0)"
        for name, kind, *_ in columns
        if kind in length_of
    ]
    if not lengths:
        return
    (length,) = con.execute(f"SELECT {' + '.join(lengths)} FROM read_parquet('{_quoted(file)}')").fetchall()[
        0
    ]
    size = file.stat().st_size
    if length > size * _MOST_UNFOLDING + _SMALL:
        raise BadInput(f"{file} unfolds {size:,} bytes to {length:,}, which no store does", hint=_AGAIN)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
