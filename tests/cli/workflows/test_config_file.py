"""The configuration file sets the store and options; the command line and the environment come before it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import made_store
import pytest
from typer.main import get_command

from cli.main import app
from cli.workflows import config_file
from labelstore.errors import BadInput, UsageError

ROOT = Path(__file__).resolve().parents[3]


def msft(
    folder: Path, *arguments: str, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if key != "MSFT_STORE"}
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments], cwd=folder, capture_output=True, text=True,
        env={**own, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made_store.make(tmp_path / "data/own.duckdb", labels=False)
    (tmp_path / "below").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["msft.toml", "pyproject.toml"])
def test_the_nearest_file_sets_the_store_and_a_commands_options(folder: Path, name: str) -> None:
    text = 'store = "data/own.duckdb"\n[{0}runs.list]\nformat = "json"\n'
    if name == "pyproject.toml":
        text = '[tool.msft]\nstore = "data/own.duckdb"\n[tool.msft.runs.list]\nformat = "json"\n'
    (folder / name).write_text(text.format(""))
    rows = json.loads(msft(folder / "below", "runs", "list").stdout)
    assert {row["run"] for row in rows} == {"first"}
    shown = msft(folder / "below", "runs", "list", "--format", "csv").stdout
    assert shown.startswith("dataset,run,"), "the command line comes first"
    made_store.make(folder / "other.duckdb", labels=False, n_queries=3)
    other = json.loads(msft(folder, "runs", "list", MSFT_STORE=str(folder / "other.duckdb")).stdout)
    assert {row["queries"] for row in other} == {3, 4}, "the environment comes before the file"
    status = json.loads(msft(folder / "below", "status", "--format", "json").stdout)
    settings = {row["name"]: (row["of"], row["detail"]) for row in status if row["what"] == "setting"}
    assert settings == {
        "--store": (str(folder / name), str(folder / "data/own.duckdb")),
        "runs list --format": (str(folder / name), "json"),
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stroe = 'x'", "stroe: no command is named"),
        ("[students.trian]\nminutes = 3", "no command is named 'students trian'"),
        ("[students.train]\nminuts = 3", "msft students train has no option --minuts"),
        ("[students.train]\nminutes = 'soon'", "students.train.minutes is 'soon'"),
        ("[students.train]\nmax_length = true", "expected text or a number"),
        ("[retrieve]\ndepth = [3]", "expected one value"),
        ("[eval]\nmeasure = 'nDCG@10'", "expected a list"),
        ("[eval]\nfuse = 1", "expected true or false"),
        ("store = 3", "store is 3: expected a path"),
        ("[data.add]\nhelp = true", "has no option --help"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "msft.toml").write_text(text)
    config_file.find.cache_clear()
    with pytest.raises(UsageError, match=says) as error:
        config_file.read(get_command(app), tmp_path)
    assert str(tmp_path / "msft.toml") in error.value.message


def test_all_errors_are_named_at_once_and_broken_files_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "msft.toml").write_text("[eval]\nx = 1\n[retrieve]\ny = 2\n")
    config_file.find.cache_clear()
    with pytest.raises(UsageError, match=r"--x.*--y"):
        config_file.read(get_command(app), tmp_path)
    (tmp_path / "msft.toml").write_text("= 1\n")
    config_file.find.cache_clear()
    with pytest.raises(BadInput, match="line 1"):
        config_file.read(get_command(app), tmp_path)
    (tmp_path / "msft.toml").unlink()
    (tmp_path / "pyproject.toml").write_text("= 1\n")  # not msft's: whoever owns it reports it
    config_file.find.cache_clear()
    assert config_file.read(get_command(app), tmp_path).path is None


def test_values_reach_the_command_as_texts_and_switches(tmp_path: Path) -> None:
    (tmp_path / "msft.toml").write_text(
        "[retrieve]\ndepth = 7\n[eval]\nmeasure = ['P@1', 'RR@10']\nfuse = true\n[students.train]\nmax-length = 40\n"
    )
    config_file.find.cache_clear()
    found = config_file.read(get_command(app), tmp_path).defaults
    assert found == {
        "retrieve": {"depth": "7"},
        "eval": {"measure": ["P@1", "RR@10"], "fuse": True},
        "students": {"train": {"max_length": "40"}},
    }
