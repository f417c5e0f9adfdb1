"""Words that have to be read twice stay out of code, messages and pages; every option's help is a sentence."""

import re

import pages
import pytest
from parsing import all_commands

ENDINGS = (".py", ".md", ".sql", ".toml", ".jinja", ".yml", ".yaml", ".cff")
# Spelt so that this file does not have them either.
RIDDLES = re.compile(r"un(?:)asked|there\sis\snone|takes\sof\sitself", re.IGNORECASE)
FOLDERS = ("msft", "labelstore", "teachers", "students", "cli", "benchmarks", "docs", "tests", ".github")


def texts() -> list[tuple[str, str]]:
    files = [f for f in pages.ROOT.iterdir() if f.is_file()]
    for folder in FOLDERS:
        files += (pages.ROOT / folder).rglob("*")
    return [(str(f), f.read_text("utf-8")) for f in files if f.suffix in ENDINGS]


def test_no_text_has_a_riddle() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if RIDDLES.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["never int8 Un_asked", "None where There_ is none.", "what X takes_ of itself"]
)
def test_a_riddle_is_noticed(text: str) -> None:
    assert RIDDLES.search(text.replace("_", ""))


def test_every_options_help_is_a_sentence_with_a_noun() -> None:
    """A help begins with a capital, a value or an option, and never with a bare preposition."""
    wrong = []
    for name, command in all_commands():
        for parameter in command.params:
            help = getattr(parameter, "help", None)
            if help is None or parameter.name == "help":
                continue
            if not help.endswith((".", "…")) or re.match(r"(Of|Per|In|On|For|Whose|…) ", help):
                wrong.append(f"{name} {parameter.opts}: {help}")
    assert wrong == []


def test_every_commands_help_begins_with_a_verb() -> None:
    no_verbs = {
        "The",
        "A",
        "An",
        "All",
        "One",
        "What",
        "Which",
        "How",
        "Labels",
        "Labelings",
        "Negatives",
        "Views",
        "Students",
    }
    wrong = [name for name, command in all_commands() if (command.help or "The").split()[0] in no_verbs]
    assert wrong == []
