"""Working folders: many processes make, use and remove them at once; what a killed one left is removed."""

import errno
import fcntl
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from labelstore.errors import MsftError
from labelstore.files.work_folder import work_folder

SECONDS = 2.0


def _over_and_over(parent: Path) -> None:
    """Each entry tidies up first, so it meets folders that others have made and not yet locked."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with work_folder(parent) as folder:
            (folder / "work").write_text("mine")
            time.sleep(0)
            assert (folder / "work").read_text() == "mine"


def test_no_process_removes_the_folder_of_another(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("forkserver")
    processes = [fork.Process(target=_over_and_over, args=(tmp_path,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "told", "hint"),
    [
        (errno.ENOLCK, "cannot be locked", "flock"),
        (errno.EAGAIN, "no new folder in .* can be locked", "flock"),
        (errno.EMFILE, "no more files", "ulimit"),
    ],
)
def test_a_lock_that_is_refused_is_told_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: str, hint: str
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(MsftError, match=told) as error, work_folder(tmp_path):
        pass
    assert hint in str(error.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".msft-add-{os.getpid()}-0123abcd"
    left.mkdir()
    (left / "half").write_text("x")
    with work_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []
