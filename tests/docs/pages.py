"""The commands and Python blocks of a documentation page, in order, with what the page's marks say about them.

Marks are HTML comments (CONTRIBUTING.md tells how they work):

    <!-- docs: folder NAME -->       the page's commands run in that prepared folder (tests/docs/folders.py)
    <!-- docs: needs NAME -->        the page's test needs that (shared, gpu …)
    <!-- docs: parse REASON -->      no command of the page is run, all are parsed
    <!-- docs: skip REASON -->       the next block is parsed, not run; skip [msft teachers] REASON: only such commands
    <!-- docs: run COMMAND -->       run in the place of what was skipped, or before the next block
    <!-- docs: exit N -->            the next block's last command ends with that code
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("", "sh", "bash", "shell", "console")
PYTHON = ("python", "py", "pycon", "python3")
_MARK = re.compile(r"<!--\s*docs:\s*(\w+)\s*(.*?)\s*-->", re.DOTALL)
_FENCE = re.compile(r"^(```+)\s*([\w-]*)\s*$")
_RUN = ("msft ", "export ", "curl ", "python -m students.", "torchrun ")  # other lines are for readers
_PAGE_MARKS = ("folder", "needs", "parse")
_BLOCK_MARKS = ("skip", "run", "exit")


@dataclass(frozen=True)
class Command:
    """One line, or a whole block of Python; only a plain msft command has `words`, not pipes, &, curl, export."""

    line: str
    where: str
    words: tuple[str, ...] | None
    skipped: str | None = None  # why it is only parsed
    code: int = 0
    hidden: bool = False  # from a mark, not shown to readers
    python: bool = False  # `line` is Python


@dataclass
class Page:
    """A page's commands and its own marks; `mentions` are commands within its text."""

    name: str
    folder: str = "small"
    needs: list[str] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    mentions: list[tuple[str, str]] = field(default_factory=list)

    @property
    def to_run(self) -> list[Command]:
        return [c for c in self.commands if c.skipped is None]


def all_pages() -> list[Path]:
    """README, CONTRIBUTING, CHANGELOG, and every page of docs/ and benchmarks/."""
    return [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + [
        page for folder in ("docs", "benchmarks") for page in sorted((ROOT / folder).rglob("*.md"))
    ]


def read(path: Path, text: str | None = None) -> Page:
    """Take a page apart.

    Raises:
        ValueError: for a mark that is unknown, empty or in no place, or a fence without end.
    """
    page = Page(path.name)
    lines = (path.read_text("utf-8") if text is None else text).split("\n")
    pending: list[tuple[str, str]] = []
    everything: str | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        if fence := _FENCE.match(line.strip()):
            end = next((k for k in range(number + 1, len(lines)) if lines[k].strip() == fence[1]), None)
            if end is None:
                raise ValueError(f"{path.name}:{number + 1}: a block without end")
            if fence[2] in (*SHELL, *PYTHON):
                take = _python_block if fence[2] in PYTHON else _block
                page.commands += take(path.name, number + 2, lines[number + 1 : end], pending)
                pending = []
            number = end + 1
            continue
        if line.lstrip().startswith("<!--"):
            last = next((k for k in range(number, len(lines)) if "-->" in lines[k]), number)
            for kind, value in _marks(path.name, number + 1, "\n".join(lines[number : last + 1])):
                if kind == "parse":
                    everything = value
                elif kind == "folder":
                    page.folder = value
                elif kind == "needs":
                    page.needs.append(value)
                else:
                    pending.append((kind, value))
            number = last + 1
            continue
        page.mentions += [
            (found, f"{path.name}:{number + 1}") for found in re.findall(r"`(msft [^`]+)`", line)
        ]
        number += 1
    if pending:
        raise ValueError(f"{path.name}: a mark without a block after it: {pending[0]}")
    if everything is not None:
        page.commands = [replace(c, skipped=c.skipped or everything) for c in page.commands]
    return page


def _marks(name: str, number: int, text: str) -> Iterator[tuple[str, str]]:
    for kind, value in _MARK.findall(text):
        if kind not in (*_PAGE_MARKS, *_BLOCK_MARKS):
            raise ValueError(f"{name}:{number}: no mark {kind!r}")
        if not value:
            raise ValueError(f"{name}:{number}: {kind} without a {'value' if kind != 'skip' else 'reason'}")
        yield kind, " ".join(value.split())


def _block(name: str, first: int, lines: list[str], marks: list[tuple[str, str]]) -> list[Command]:
    skips = [value for kind, value in marks if kind == "skip"]
    instead = [value for kind, value in marks if kind == "run"]
    codes = [int(value) for kind, value in marks if kind == "exit"]
    commands: list[Command] = []
    for number, line in _joined(lines, first):
        commands.append(_command(line, f"{name}:{number}", _reason(line, skips)))
    if codes and commands:
        commands[-1] = replace(commands[-1], code=codes[0])
    stand_ins = [replace(_command(i, f"{name}:{first}", None), hidden=True) for i in instead]
    at = next((k for k, c in enumerate(commands) if c.skipped is not None), 0)
    return commands[:at] + stand_ins + commands[at:]


def _python_block(name: str, first: int, lines: list[str], marks: list[tuple[str, str]]) -> list[Command]:
    """A block of Python as one command; `run` marks run before it."""
    where = f"{name}:{first}"
    if any(kind == "exit" for kind, _ in marks):
        raise ValueError(f"{where}: a Python block has no exit code")
    before = [replace(_command(v, where, None), hidden=True) for kind, v in marks if kind == "run"]
    skipped = next((value for kind, value in marks if kind == "skip"), None)
    return [*before, Command("\n".join(lines) + "\n", where, None, skipped, python=True)]


def _reason(line: str, skips: list[str]) -> str | None:
    for skip in skips:
        found = re.match(r"\[(.+?)\]\s*(.+)", skip)
        if found is None:
            return skip
        if line.startswith(found[1]):
            return found[2]
    return None


def _joined(lines: list[str], first: int) -> Iterator[tuple[int, str]]:
    """The block's commands with their line numbers; lines that end with a backslash go on."""
    held, begin = "", first
    for number, line in enumerate(lines, first):
        held, begin = (
            (held + " " + line.strip(), begin) if held else (line.strip().removeprefix("$ "), number)
        )
        if held.endswith("\\"):
            held = held[:-1].rstrip()
            continue
        if held.startswith(_RUN):
            yield begin, held
        held = ""


def _command(line: str, where: str, skipped: str | None) -> Command:
    plain = line.startswith("msft ") and not re.search(
        r"(^|\s)(\||>|>>|<|&|&&|;)(\s|$)", _without_quotes(line)
    )
    words = tuple(shlex.split(line, comments=True)[1:]) if plain else None
    return Command(line, where, words, skipped)


def _without_quotes(line: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "''", line)


def msft_words(line: str) -> list[str]:
    """The words of the msft command in a line of shell, up to the first operator; empty without a command."""
    if not line.startswith("msft "):
        return []
    words = []
    for word in shlex.split(line, comments=True)[1:]:
        if word in ("|", ">", ">>", "<", "&", "&&", ";"):
            break
        words.append(word)
    return words
