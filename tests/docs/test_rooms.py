"""The layout's bounds: a room that a reader takes in at one look, and a short front of each package."""

from pathlib import Path

import pytest

from tests.docs.pages import ROOT

MOST_IN_A_ROOM = 15
MOST_IN_FRONT = 6
SOURCES = (".py", ".sql", ".toml", ".txt", ".jinja", ".html", ".css", ".js")


def crowded(package: Path) -> dict[str, int]:
    """The folders of a package with more source files than the layout allows."""
    held = {
        folder: sum(1 for file in folder.iterdir() if file.suffix in SOURCES)
        for folder in [package, *package.rglob("*/")]
        if folder.is_dir()
    }
    return {
        folder.relative_to(package.parent).as_posix(): n
        for folder, n in held.items()
        if n > (MOST_IN_FRONT if folder == package else MOST_IN_A_ROOM)
    }


PACKAGES = ("msft", "labelstore", "teachers", "students", "cli")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_holds_more_files_than_the_layout_allows(package: str) -> None:
    """Two ideas share a crowded room: give one of them a room of its own, with a line in its `layers` contract."""
    assert crowded(ROOT / package) == {}


def astray(tests: Path, package: Path) -> list[str]:
    """The folders of a package's tests that are not rooms of it."""
    held = {file.parent.relative_to(tests) for file in tests.rglob("test_*.py")}
    return sorted(room.as_posix() for room in held if not (package / room).is_dir())


@pytest.mark.parametrize("package", PACKAGES)
def test_tests_mirror_the_rooms(package: str) -> None:
    """A test lies in the folder of the room that it tests: `tests/labelstore/runs/` for `labelstore/runs/`."""
    assert astray(ROOT / "tests" / package, ROOT / package) == []
    assert crowded(ROOT / "tests" / package) == {}


@pytest.mark.parametrize("room", ["run", "runs/inner", "Runs"])
def test_a_folder_of_tests_that_mirrors_nothing_is_found(tmp_path: Path, room: str) -> None:
    for folder in (tmp_path / "p" / "runs", tmp_path / "tests" / "runs", tmp_path / "tests" / room):
        folder.mkdir(parents=True)
    for folder in (tmp_path / "tests", tmp_path / "tests" / "runs", tmp_path / "tests" / room):
        (folder / "test_one.py").touch()
    assert astray(tmp_path / "tests", tmp_path / "p") == [room]


@pytest.mark.parametrize("suffix", [".py", ".sql", ".jinja"])
def test_a_crowded_room_is_found_whatever_its_files_are(tmp_path: Path, suffix: str) -> None:
    for room, n in (("full", 15), ("crowded", 16)):
        (tmp_path / "p" / room).mkdir(parents=True)
        for k in range(n):
            (tmp_path / "p" / room / f"f{k}{suffix}").touch()
    assert crowded(tmp_path / "p") == {"p/crowded": 16}
