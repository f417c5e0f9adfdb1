"""The page on trust names every command once, with what it may read and write, and no command that does not exist."""

import re

import pages
import pytest
from parsing import all_commands

PAGE = (pages.ROOT / "docs/explanation/trust.md").read_text("utf-8")
_ROW = re.compile(r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def rows(page: str) -> dict[str, tuple[str, str]]:
    """Command with its options -> what it reads and writes."""
    table = page.split("## What each command may read and write")[1].split("| network |")[0]
    found: dict[str, tuple[str, str]] = {}
    for commands, reads, writes in _ROW.findall(table):
        for command in re.findall(r"`([^`]+)`", commands):
            assert command not in found, f"{command} stands there twice"
            found[command] = (reads, writes)
    return found


def lacking(page: str) -> set[str]:
    """Commands that the page does not name."""
    return {name.removeprefix("msft ") for name, _ in all_commands()} - set(rows(page))


def test_every_command_is_in_the_table() -> None:
    assert lacking(PAGE) == set()


def test_every_row_names_a_command_and_options_that_exist() -> None:
    known = {name.removeprefix("msft "): command for name, command in all_commands()}
    for row in rows(PAGE):
        name, _, options = row.partition(" --")
        assert name in known
        if options:
            assert any(f"--{options}" in parameter.opts for parameter in known[name].params), row


@pytest.mark.parametrize("command", ["status", "data show", "teachers reread", "students serve"])
def test_a_command_that_lacks_is_noticed(command: str) -> None:
    assert lacking(PAGE.replace(f"`{command}`", "`x`")) == {command}
