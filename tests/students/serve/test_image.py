"""The image of the server: a linter finds nothing to warn of, what it copies is there, and it builds where Docker is."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import clients
import pytest
from typer.main import get_command

from cli.main import app

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "Dockerfile").read_text("utf-8")

pytestmark = pytest.mark.needs("clients")


def warnings(file: Path) -> int:
    """How many warnings and errors the linter has."""
    done = subprocess.run(
        [str(clients.PYTHON.with_name("dockerfile-doctor")), "--severity", "warning", "--no-color", str(file)],
        capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"Found (\d+) issue", done.stdout)
    return int(found[1]) if found else 0


def test_the_linter_warns_of_nothing_and_would_find_a_fault(tmp_path: Path) -> None:
    assert warnings(ROOT / "Dockerfile") == 0
    bad = tmp_path / "Dockerfile"
    bad.write_text(TEXT.replace("python:3.13-slim-bookworm", "python").replace("USER msft", "USER root"))
    assert warnings(bad) > 0


def test_what_it_copies_is_in_the_checkout_and_passes_dockerignore() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.MULTILINE)
        for name in shlex.split(line)[:-1]
    ]
    assert {"pyproject.toml", "cli", "constraints.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in kept, name


def test_its_command_is_one_of_msft() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", TEXT, re.MULTILINE)
    program, *words = json.loads(entry)
    assert program == "msft"
    command = get_command(app)
    while words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_it_builds_where_docker_is() -> None:
    docker = shutil.which("docker")
    reached = docker and subprocess.run([docker, "version"], capture_output=True).returncode == 0
    if docker and reached:
        for target in ("cpu", "cuda"):
            done = subprocess.run(
                [docker, "build", "-q", "--target", target, str(ROOT)], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    assert {"cpu", "cuda"} <= set(re.findall(r"^FROM \S+ AS (\w+)$", TEXT, re.MULTILINE))
