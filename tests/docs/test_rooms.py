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


@pytest.mark.parametrize("package", ["msft", "labelstore", "teachers", "students", "cli"])
def test_no_room_holds_more_files_than_the_layout_allows(package: str) -> None:
    assert crowded(ROOT / package) == {}


@pytest.mark.parametrize("suffix", [".py", ".sql", ".jinja"])
def test_a_crowded_room_is_found_whatever_its_files_are(tmp_path: Path, suffix: str) -> None:
    for room, n in (("full", 15), ("crowded", 16)):
        (tmp_path / "p" / room).mkdir(parents=True)
        for k in range(n):
            (tmp_path / "p" / room / f"f{k}{suffix}").touch()
    assert crowded(tmp_path / "p") == {"p/crowded": 16}
