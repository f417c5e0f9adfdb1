"""benchmarks/RESULTS.md is one table of headlines; each page behind it has question, command, table and conclusion."""

import importlib.util
import re
from pathlib import Path

import pages
import pytest

FOLDER = pages.ROOT / "benchmarks"
RESULTS = (FOLDER / "RESULTS.md").read_text("utf-8")
PAGES = sorted((FOLDER / "results").glob("*.md"))
COLUMNS = ["what", "figure", "wanted", "machine", "command", "date"]


def rows() -> list[list[str]]:
    table = RESULTS.partition("| what |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_every_headline_has_a_figure_a_command_and_a_date() -> None:
    assert "| " + " | ".join(COLUMNS) + " |" in RESULTS
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == len(COLUMNS), row
        what, figure, _, _, command, date = row
        assert what
        assert figure
        assert command
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date), row


def test_every_page_is_linked_from_the_table() -> None:
    assert set(re.findall(r"\(results/([\w-]+\.md)\)", RESULTS)) == {path.name for path in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_question_command_table_and_conclusion_in_this_order(path: Path) -> None:
    text = path.read_text("utf-8")
    marks = ["# ", "**Question.** ", "**Command.** ", "\n|---", "**Conclusion.** "]
    places = [text.find(mark) for mark in marks]
    assert -1 not in places
    assert places == sorted(places)
    assert "?" in text[places[1] : places[2]]
    assert "\n|---" not in text[places[4] :]


@pytest.mark.parametrize("path", [FOLDER / "RESULTS.md", *PAGES], ids=lambda path: path.stem)
def test_a_command_names_a_benchmark_a_target_or_a_test_that_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    makefile = (pages.ROOT / "Makefile").read_text("utf-8")
    for name in re.findall(r"benchmarks\.(\w+)", text):
        assert importlib.util.find_spec(f"benchmarks.{name}"), name
    for target in re.findall(r"`make ([\w-]+)", text):
        assert f"\n{target}:" in makefile, target
    for test in re.findall(r"pytest (\S+\.py)", text):
        assert (pages.ROOT / test).is_file(), test


def test_pointers_to_results_in_code_and_pages_lead_to_a_page() -> None:
    """A figure stands in benchmarks/results/; what mentions it names the page."""
    wrong = []
    for folder in ("labelstore", "teachers", "students", "cli", "benchmarks", "docs", "msft"):
        for file in (pages.ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".md", ".toml", ".sql"):
                for found in re.findall(r"benchmarks/results/([\w-]+\.md)", file.read_text("utf-8")):
                    if not (FOLDER / "results" / found).is_file():
                        wrong.append(f"{file}: {found}")
    assert wrong == []
