"""`msft help` tells topics and commands offline, from what the code itself says."""

import pytest
from typer.main import get_command

from cli.main import app, run
from cli.workflows import help_topics
from labelstore.errors import UsageError
from msft.errors import ExitCode
from students.losses import LOSSES

ROOT = get_command(app)


@pytest.mark.parametrize("topic", help_topics.TOPICS)
def test_every_topic_has_a_page(topic: str) -> None:
    text = help_topics.page(topic, ROOT)
    assert len(text.splitlines()) >= 4
    assert all(len(line) <= 130 for line in text.splitlines() if " " in line.strip())


def test_the_pages_are_whole() -> None:
    assert {
        line.split()[0] for line in help_topics.page("losses", ROOT).splitlines() if line[0] != " "
    } == set(LOSSES)
    codes = help_topics.page("exit-codes", ROOT).splitlines()
    assert [int(line.split()[0]) for line in codes] == [int(code) for code in ExitCode]
    commands = help_topics.page("commands", ROOT)
    for name in ("msft students train", "msft eval", "msft data add", "msft help"):
        assert name in commands


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "msft help losses"),
        (["students", "train"], "--regime"),
        (["students"], "calibrate"),
        (["suites"], "NanoMSMARCO"),
    ],
)
def test_the_command_prints_to_stdout(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["help", *words])
    assert ended.value.code == 0
    assert says in capsys.readouterr().out


def test_what_is_neither_is_said() -> None:
    with pytest.raises(UsageError, match="'kittens'") as error:
        help_topics.page("kittens", ROOT)
    assert "losses" in str(error.value.hint)
