"""A file that the user names appears whole or not at all; what cannot be written is named, and no device is replaced."""

import gc
import os
import stat
from pathlib import Path

import made_store
import pyarrow.parquet as pq
import pytest

from cli.main import run
from labelstore.errors import MsftError, UsageError
from labelstore.files.whole_file import appearing

pytestmark = pytest.mark.test_all  # every command that writes a file, towards every bad target

FULL, NULL = os.makedev(1, 7), os.makedev(1, 3)


def code_of(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        run(words)
    code = int(ended.value.code or 0)
    del ended
    gc.collect()  # an error's frames hold the store's connection
    return code


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.duckdb"
    made_store.make(path)
    return path


WRITERS = {
    "a run": ["runs", "export", "first", "--dataset", "c/test", "-o", "{}"],
    "labels": ["teachers", "export", "{labels}", "-o", "{}"],
    "labels in columns": ["teachers", "export", "{labels}", "--layout", "parquet", "-o", "{}"],
    "a page": ["report", "-o", "{}"],
    "rows": ["sql", "SELECT 1", "-o", "{}.csv"],
    "rows in columns": ["sql", "SELECT 1", "-o", "{}.parquet"],
}


def command(writer: str, target: Path | str, store: Path) -> list[str]:
    words = [word.replace("{}", str(target)).replace("{labels}", "teacher@first") for word in WRITERS[writer]]
    return [*words, "--store", str(store), "-q"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("target", ["file/x", "/proc/nowhere/x", "x" * 300, "loop"])
def test_what_cannot_be_written_is_named(store, tmp_path, monkeypatch, capsys, writer, target):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    for name in ("loop", "loop.csv", "loop.parquet"):
        Path(name).symlink_to(name)
    assert code_of(command(writer, target, store)) == 1
    err = capsys.readouterr().err
    assert f"error: {target}" in err
    assert "cannot be written" in err
    assert "hint: " in err
    assert ".part" not in err
    assert Path("file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device takes root")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_device_is_written_to_and_never_replaced(store, tmp_path, capsys, writer):
    for device, code in ((NULL, 0), (FULL, 1)):
        target = tmp_path / f"device{code}"
        words = command(writer, target, store)
        path = Path(words[words.index("-o") + 1])
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, device)
            path.open("w").close()
        except PermissionError:
            pytest.skip("this machine lets nobody make devices")
        assert code_of(words) == code, capsys.readouterr().err
        assert stat.S_ISCHR(path.stat().st_mode)
    assert "there is no room in" in capsys.readouterr().err


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_followed(store, tmp_path, writer):
    words = command(writer, tmp_path / "link", store)
    link, real = Path(words[words.index("-o") + 1]), tmp_path / "deep" / "real"
    link.symlink_to(real)
    assert code_of(words) == 0
    assert link.is_symlink()
    assert real.stat().st_size > 0
    if "columns" in writer:
        assert pq.read_table(real).num_rows
    assert [path.name for path in real.parent.iterdir()] == ["real"]


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("old")

    def write() -> None:
        with appearing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(MsftError if isinstance(error, OSError) else type(error)):
        write()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]


@pytest.mark.parametrize("name", [".", "folder", "folder/deep"])
def test_a_folder_is_no_file(tmp_path, name):
    (tmp_path / "folder/deep").mkdir(parents=True)
    with pytest.raises(UsageError, match="is a folder"), appearing(tmp_path / name):
        pytest.fail("it was opened")
