"""Archives of others: links, paths, wrong types, counts that lie and bombs are refused by name; a kill is taken up."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_store
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.archive import export_store, import_store
from labelstore.upkeep.verify.verify import verify

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    store = made_store.make(folder / "s.duckdb")
    (store.files / "students" / "left").mkdir(parents=True)
    (store.files / "students" / "left" / "config.json").write_text("{}")
    export_store(store, folder / "archive")
    return folder / "archive"


@pytest.fixture
def archive(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "archive")
    return tmp_path / "archive"


def refused(archive: Path, match: str) -> None:
    """Importing it is an error with a hint, in seconds, and leaves nothing."""
    to = archive.parent / "to"
    to.mkdir(exist_ok=True)
    began = time.process_time()
    with pytest.raises((BadInput, DataMissing), match=match) as raised:
        import_store(archive, LabelStore(to / "s.duckdb"))
    assert raised.value.hint
    assert time.process_time() - began < 10
    assert os.listdir(to) == []


def edit(archive: Path, change: Edit) -> None:
    path = archive / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "place", ["qrels.parquet", "manifest.json", "open.sql", "files/students/left/config.json", "files/students/x", "files/journal"]
)  # fmt: skip
@pytest.mark.parametrize("odd", ["link", "dangling", "fifo"])
def test_a_link_or_pipe_anywhere_is_refused(archive: Path, place: str, odd: str) -> None:
    path, secret = archive / place, archive.parent / "secret"
    if path.is_file():
        shutil.copy(path, secret)
        path.unlink()
    else:
        secret.mkdir()
    if odd == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(secret if odd == "link" else archive.parent / "nothing")
    refused(archive, "link, or neither file nor folder|has no manifest.json")


@pytest.mark.parametrize(
    "file", ["../qrels.parquet", "/etc/passwd", "sub/qrels.parquet", "./qrels.parquet", "runs.parquet", "", None, 7, ["qrels.parquet"],
             "qrels.parquet\x00", "http://localhost/qrels.parquet", "*.parquet"],
)  # fmt: skip
def test_a_file_that_is_not_its_tables_is_refused(archive: Path, file: Any) -> None:
    shutil.copy(archive / "qrels.parquet", archive.parent / "qrels.parquet")
    edit(archive, lambda m: m["tables"]["qrels"].update(file=file))
    refused(archive, "'qrels' names the file .*, expected TABLE.parquet")


@pytest.mark.parametrize("table", ["../x", "a b", "x; DROP TABLE qrels", "", "quе́ries", "a'b"])
def test_a_table_that_cannot_be_one_is_refused(archive: Path, table: str) -> None:
    edit(archive, lambda m: m["tables"].update({table: m["tables"]["qrels"] | {"file": f"{table}.parquet"}}))
    refused(archive, "expected TABLE.parquet")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows", "3"), ("rows", -1), ("rows", 1.0), ("rows", True), ("rows", None), ("rows", [1]), ("rows", {"n": 1}),
        ("hash", 5), ("hash", None), ("hash", ["a"]), ("hash", "0" * 64), ("rows", 10**30), ("rows", 4),
    ],
)  # fmt: skip
def test_rows_and_hashes_of_other_types_or_that_lie_are_refused(archive: Path, key: str, value: Any) -> None:
    edit(archive, lambda m: m["tables"]["qrels"].update({key: value}))
    refused(archive, "qrels")


@pytest.mark.parametrize(
    "manifest",
    [
        "null", "[]", "7", '"x"', "{}", '{"format": 1}', "[" * 100_000, '{"format": 1, "schema_version": 1, "tables": []}',
        '{"format": [1], "schema_version": {}, "verify_hash": "", "tables": {"a": 1}}', "\ufeff{}", "NaN",
        '{"format": 1, "schema_version": 1, "verify_hash": 5, "tables": {"qrels": {}}}',
    ],
)  # fmt: skip
def test_a_manifest_of_another_shape_is_refused(archive: Path, manifest: str) -> None:
    (archive / "manifest.json").write_text(manifest)
    refused(archive, "manifest|schema version")


@pytest.mark.parametrize("described", [[], None, "qrels.parquet", 7, {"rows": 1}])
def test_a_table_described_as_something_else_is_refused(archive: Path, described: Any) -> None:
    edit(archive, lambda m: m["tables"].update(qrels=described))
    refused(archive, "qrels")


def put(archive: Path, table: str, rows: pa.Table, **options: Any) -> None:
    """A table's file with other rows, and a manifest that fits it."""
    file = archive / f"{table}.parquet"
    pq.write_table(rows, file, **options)
    edit(archive, lambda m: m["tables"][table].update(rows=rows.num_rows, hash=file_hash(file)))


@pytest.mark.test_all
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("kind", ["rows", "bytes"])
def test_a_file_that_unfolds_beyond_reason_is_refused_before_it_is_read(
    archive: Path, codec: str, kind: str
) -> None:
    if kind == "rows":
        column = pa.array([1], pa.int32()).take(pa.array([0] * 3_000_000))
        rows = pa.table({"dataset": column})
        put(archive, "qrels", rows, compression=codec)
    else:
        one = pa.array(["x" * 30_000_000])
        rows = pa.table({f"c{k}": one for k in range(10)})
        put(archive, "qrels", rows, compression=codec, use_dictionary=False)
    if kind == "bytes" and codec in ("none", "snappy"):
        refused(archive, "does not fit its table|unfolds")  # as large as it says, so it is looked at
    else:
        refused(archive, "unfolds .* which no store does")


@pytest.mark.parametrize(("length", "n"), [(1_000_000, 3_000), (10_000, 300_000), (30_000_000, 100)])
@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_a_text_that_a_dictionary_repeats_is_refused_before_it_is_kept(
    archive: Path, length: int, n: int, kind: pa.DataType
) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array(["x" * length], kind))
    put(archive, "documents", pa.table({"document": range(n), "text": texts}))
    refused(archive, "documents.parquet unfolds .* which no store does")


@pytest.mark.parametrize(
    "rows",
    [
        pa.table({"dataset": ["x"]}),
        pa.table({"dataset": [1], "more": [2]}),
        pa.table({"dataset": [1], "query": [99], "document": [99], "relevance": [10**12]}),
        pa.table({"dataset": [[1]], "query": [1], "document": [1], "relevance": [1]}),
        pa.table({"dataset": pa.array([None], pa.int32())}),
    ],
)
def test_rows_that_are_not_the_tables_are_refused(archive: Path, rows: pa.Table) -> None:
    put(archive, "qrels", rows)
    refused(archive, "does not fit its table")


@pytest.mark.parametrize("damage", ["foot", "middle", "no parquet", "empty"])
def test_a_file_that_is_no_parquet_is_refused(archive: Path, damage: str) -> None:
    file = archive / "qrels.parquet"
    data = {"no parquet": b"a" * 400, "empty": b""}.get(damage)
    if data is None:
        data = bytearray(file.read_bytes())
        for k in range(*{"foot": (len(data) - 60, len(data) - 8), "middle": (4, len(data) // 2)}[damage]):
            data[k] ^= 0x55
    file.write_bytes(data)
    edit(archive, lambda m: m["tables"]["qrels"].update(hash=file_hash(file)))
    refused(archive, "qrels|candidates|verify hash")


_KILLED = """
import os, pathlib, signal, sys
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.archive import import_store
left = int(sys.argv[3])
plain = pathlib.Path.rename
def rename(self, target):
    global left
    if str(target).endswith(("s.files", "s.duckdb")):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    return plain(self, target)
pathlib.Path.rename = rename
import_store(pathlib.Path(sys.argv[1]), LabelStore(pathlib.Path(sys.argv[2]) / "s.duckdb"))
"""


@pytest.mark.test_all
@pytest.mark.parametrize("renames", [0, 1])
@pytest.mark.parametrize("times", [1, 2])
def test_a_kill_before_either_rename_leaves_what_a_rerun_takes_up(
    archive: Path, renames: int, times: int
) -> None:
    to = archive.parent / "to"
    to.mkdir()
    for _ in range(times):
        killed = subprocess.run([sys.executable, "-c", _KILLED, archive, to, str(renames)], check=False)
        assert killed.returncode == -signal.SIGKILL
    store = LabelStore(to / "s.duckdb")
    assert not store.exists
    import_store(archive, store)
    assert [f for f in verify(store).findings if f.what == "leftover"] == []
    assert sorted(os.listdir(to)) == ["s.duckdb", "s.files"]
    assert os.listdir(store.files) == ["students"]


@pytest.mark.parametrize("change", ["another archive", "no mark", "mark is a link"])
def test_what_another_left_is_not_taken_for_a_half_done_import(archive: Path, change: str) -> None:
    to = archive.parent / "to"
    to.mkdir()
    subprocess.run([sys.executable, "-c", _KILLED, archive, to, "1"], check=False)
    mark = to / "s.files" / ".msft-import"
    text = mark.read_text()
    mark.unlink()
    if change == "another archive":
        mark.write_text("0" * 32)
    elif change == "mark is a link":
        (to / "elsewhere").write_text(text)
        mark.symlink_to(to / "elsewhere")
    (to / "s.files" / "precious").write_text("of the user")
    with pytest.raises(UsageError, match="files of one"):
        import_store(archive, LabelStore(to / "s.duckdb"))
    assert (to / "s.files" / "precious").read_text() == "of the user"
