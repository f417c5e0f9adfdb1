"""Keys and credentials: neither the record of a command nor a message shows them."""

import pytest

from cli.output import diagnostics
from labelstore.provenance.masks import masked, masked_command


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("http://user:hidden@h:8000/v1", "http://***@h:8000/v1"),
        ("http://hidden@h/v1", "http://***@h/v1"),
        ("--base-url=https://h/v1?sig=hidden&x=1", "--base-url=https://h/v1?***"),
        ("http://u:hidden@with@ats@[::1]:80/v1", "http://***@[::1]:80/v1"),
        ("http://u:hid/den@h/v1", "http://***@h/v1"),
        ("http://u:a space hidden@h", "http://***@h"),
        ("wss://hidden@h", "wss://***@h"),
        ("api_key=hidden", "api_key=***"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
    ],
)
def test_a_command_is_kept_without_credentials(word: str, shown: str) -> None:
    assert masked_command(["msft", word, "-q"]) == f"msft {shown} -q"


@pytest.mark.parametrize("name", ["MSFT_API_KEY", "OPENAI_API_KEY", "MSFT_SERVE_KEY", "HF_TOKEN"])
def test_keys_of_the_environment_are_masked_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, "unusual key!\n")
    assert masked("a unusual key! b") == "a *** b"
    assert masked_command(["msft", "unusual key!"]) == "msft ***"
    monkeypatch.setattr(diagnostics.settings, "debug", True)
    try:
        try:
            raise ValueError("inner unusual key!")
        except ValueError as inner:
            raise RuntimeError("at https://u:pw@host/v1?sig=abc") from inner
    except RuntimeError as error:
        diagnostics.report(error)
    diagnostics.warn("unusual key!")
    said = capsys.readouterr().err
    assert "inner ***" in said
    assert "at https://***@host/v1?***" in said
    assert "unusual key!" not in said.replace('ValueError("inner unusual key!")', "")


def test_placeholders_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSFT_API_KEY", "EMPTY")
    assert masked("EMPTY list") == "EMPTY list"
