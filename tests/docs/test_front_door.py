"""What a newcomer meets first: README, the table of the demo, and the files for those who pick the project up."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pages
import pytest
import yaml

README = (pages.ROOT / "README.md").read_text("utf-8")
TEMPLATES = sorted((pages.ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(name: str) -> Any:
    return yaml.safe_load((pages.ROOT / name).read_text("utf-8"))


def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", pages.ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_short_and_has_its_parts() -> None:
    assert len(README.splitlines()) <= 150
    titles = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    assert titles == [
        "msft", "Sixty seconds", "How the data flows", "On your own data", "From Python", "The report",
        "Beside other tools", "Documentation", "Rooms",
    ]  # fmt: skip
    assert len(re.findall(r"^- \*\*", README, re.MULTILINE)) == 5
    flow = README.partition("## How the data flows")[2].split("```")[1]
    assert len(flow.splitlines()) <= 11
    assert {"rank_llm", "sentence-transformers", "lightning-ir", "PyTerrier"} <= set(
        re.findall(r"\[([\w-]+)\]\(http", README)
    )


def test_every_guide_and_reference_page_is_linked_from_readme() -> None:
    for page in (pages.ROOT / "docs").rglob("*.md"):
        assert f"({page.relative_to(pages.ROOT)})" in README


def test_the_rooms_that_readme_shows_exist() -> None:
    tree = README.partition("<!-- made: rooms -->")[2].split("```")[1]
    package, n = "", 0
    for line in tree.splitlines()[1:]:
        name = line.split("/")[0]
        if not name.startswith(" "):
            package = name
        room = pages.ROOT / package / (name.strip() if name.startswith(" ") else "")
        assert (room / "__init__.py").is_file(), line
        n += 1
    assert n > 30


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (
            [{"system": "a", "kind": "fused", "RR@10": 0.5, "p_value": 0.00123}],
            ["| a | fused with BM25 | .500 | .0012 |"],
        ),
        (
            [
                {"system": "b", "kind": "first_stage", "RR@10": 1.0, "p_value": None},
                {"system": "c", "kind": "student", "RR@10": 0.0, "p_value": 1.0},
            ],
            ["| b | first stage | 1.000 |  |", "| c | student | .000 | 1 |"],
        ),
        ([], []),
    ],
)
def test_the_table_of_the_demo_is_renewed_from_its_rows(
    rows: list[dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(rows))
    made = generate().demo_block(file)
    block = made.partition("<!-- made: demo ")[2].partition("<!-- /made: demo -->")[0]
    assert block.splitlines()[3:] == lines
    outside = re.compile(r"(<!-- made: demo .*?-->\n).*?(<!-- /made)", re.DOTALL)
    assert outside.sub(r"\1\2", made) == outside.sub(r"\1\2", README)


# -------------------------------------------------------------------------------------- for those who pick the project up
def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]["text"]
    assert {"title", "authors", "message", "type"} <= citation.keys()


def test_the_workflow_calls_the_make_targets_that_there_are() -> None:
    targets = set(re.findall(r"^([\w-]+):", (pages.ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    called = set()
    for job in read(".github/workflows/test.yml")["jobs"].values():
        for step in job["steps"]:
            words = step.get("run", "").split()
            called |= set(words[1:]) if words[:1] == ["make"] else set()
    assert {"test", "test-all"} <= called <= targets


def test_the_pre_commit_hooks_run_what_make_lint_runs() -> None:
    lint = (pages.ROOT / "Makefile").read_text("utf-8").partition("\nlint:")[2].split("\n\n")[0]
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    entries = " ".join(hook["entry"] for hook in hooks)
    for tool in re.findall(r"\$\(BIN\)/([\w-]+)", lint):
        assert f".venv/bin/{tool}" in entries
    assert all(hook["language"] == "system" for hook in hooks)  # the development environment's own versions


@pytest.mark.parametrize("path", [t for t in TEMPLATES if t.name != "config.yml"], ids=lambda p: p.stem)
def test_an_issue_template_asks_for_the_status_and_an_input(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = {field["id"]: field for field in form["body"]}
    text = path.read_text("utf-8")
    assert "msft status" in text
    assert len(fields) == len(form["body"])
    if "bug" in form["labels"] or "number" in form["labels"]:
        for name in ("status", "input"):
            assert fields[name]["validations"]["required"] is True
    else:
        assert "example file" in text


def test_there_are_templates_for_faults_numbers_and_ideas() -> None:
    assert {t.stem for t in TEMPLATES} == {"bug", "number", "idea", "config"}
