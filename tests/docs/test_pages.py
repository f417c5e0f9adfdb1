"""Every command and Python block of the pages runs, in order, in a folder of its own; what a mark skips is parsed."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pages
import parsing
import pytest
from folders import FOLDERS
from runner import Done, Shell
from word_model import word_model

GUIDE, FROM_DOCUMENTS = "search-engine.md", "from-documents.md"


def page_ids() -> list[object]:
    """A test for each page that runs something, with what it needs."""
    found = []
    for path in pages.all_pages():
        page = pages.read(path)
        if page.to_run and page.name not in (GUIDE, FROM_DOCUMENTS):
            found.append(pytest.param(path, id=page.name, marks=[pytest.mark.needs(n) for n in page.needs]))
    return found


def run_page(path: Path, folder: Path) -> list[tuple[pages.Command, Done]]:
    page = pages.read(path)
    FOLDERS[page.folder](folder)
    done = []
    with Shell(folder) as shell:
        for command in page.to_run:
            ended = shell.python(command.line) if command.python else shell.run(command.line, command.words)
            assert ended.code == command.code, f"{command.where}: {command.line}\n{ended.out}\n{ended.err}"
            assert "Traceback" not in ended.err, f"{command.where}: {command.line}\n{ended.err}"
            done.append((command, ended))
    return done


@pytest.mark.test_all
@pytest.mark.parametrize("path", page_ids())
def test_a_pages_commands_run(path: Path, tmp_path: Path) -> None:
    assert run_page(path, tmp_path)


@pytest.mark.test_all
def test_the_guide_from_documents_alone_ends_with_a_verdict(tmp_path: Path) -> None:
    """A small model of words answers in the place of the chat model; nothing else is replaced but the length of the training."""
    FOLDERS["documents"](tmp_path / "passages")
    passages = [
        json.loads(line)["text"]
        for line in (tmp_path / "passages" / "mysearch" / "docs.jsonl").read_text().splitlines()
    ]
    (here := tmp_path / "page").mkdir()
    with word_model(passages, "Qwen/Qwen3-4B") as small, word_model(passages, "Qwen/Qwen3-32B") as strong:
        done = run_page(pages.ROOT / "docs" / "guides" / FROM_DOCUMENTS, here)
    steps = [command.words[:2] for command, _ in done if command.words]
    for step in (
        ("data", "add"), ("queries", "generate"), ("queries", "filter"), ("teachers", "generate"), ("negatives", "check"),
        ("students", "train"), ("data", "sheet"), ("teachers", "judge"), ("teachers", "agreement"), ("compare", "ranker"),
    ):  # fmt: skip
        assert step in steps
    assert steps[-1] == ("compare", "ranker")
    assert len(small.asked) > len(strong.asked) > 0
    with Shell(here) as shell:

        def rows(*words: str) -> list[dict[str, object]]:
            ended = shell.run("", (*words, "--store", str(here / "mysearch.duckdb"), "--format", "json"))
            assert ended.code == 0, ended.err
            return json.loads(ended.out)

        last = [command.words for command, _ in done if command.words][-1]
        verdicts = rows(*last)
        counts = rows(
            "sql",
            """SELECT (SELECT count(*) FROM generated_queries) AS queries, (SELECT count(*) FROM negative_verdicts) AS verdicts,
                      (SELECT count(grade) FROM judge_grades) AS grades, (SELECT count(*) FROM judgments) AS judgments""",
        )
        assert rows("verify") == []
    assert {row["verdict"] for row in verdicts} <= {"better", "worse", "equivalent", "inconclusive"}
    assert {row["system"] for row in verdicts} == {"ranker", "ranker+bm25s"}
    assert counts[0]["judgments"] == 20, "no machine judgment became a human one"
    assert all(counts[0][name] > 100 for name in ("queries", "verdicts", "grades"))


@pytest.mark.test_all
@pytest.mark.needs("shared")
def test_the_guide_leads_from_a_query_log_to_a_verdict(tmp_path: Path) -> None:
    done = run_page(pages.ROOT / "docs" / "guides" / GUIDE, tmp_path)
    said = {command.line: ended for command, ended in done}
    store = tmp_path / "mysearch.duckdb"
    verdicts = [line for line in said if line.startswith("msft compare")]
    assert verdicts
    with Shell(tmp_path) as shell:

        def rows(*words: str) -> list[dict[str, object]]:
            ended = shell.run("", (*words, "--store", str(store), "--format", "json"))
            assert ended.code == 0, ended.err
            return json.loads(ended.out)

        verdict = {row["system"]: row for row in rows(*shlex.split(verdicts[0], comments=True)[1:])}
        judged = rows("sql", "SELECT count(*) AS n FROM judgments WHERE dataset = 'mysearch/log'")
        sources = rows("sql", "SELECT DISTINCT objective, made_from, teacher FROM student_sources")
        labels = rows("sql", "SELECT labeling, lists, ok FROM labeling_quality")
    assert {row["verdict"] for row in verdict.values()} <= {"better", "worse", "equivalent", "inconclusive"}
    assert all(row["baseline"] == "bm25s" and row["n_queries"] == 75 for row in verdict.values())
    # No judgment went into the student: its labels come from the offline teacher alone.
    assert judged == [{"n": 0}]
    assert {row["objective"] for row in sources} == {"kd"}
    assert "minilm" in {row["teacher"] for row in sources}
    # The log's labels, and those of the test queries: the teacher's own row in the table.
    assert {row["labeling"]: (row["lists"], row["ok"]) for row in labels} == {
        "labels": (150, 150),
        "more": (1000, 1000),
        "labels@mysearch/test": (75, 75),
    }
    # What a bi-encoder's order teaches in a minute, fused with BM25, helps: by .02 to .04 over settings and seeds.
    assert verdict["ranker+bm25s"]["difference"] > 0
    assert set(verdict) == {"ranker", "ranker+bm25s"}
    served = [ended for line, ended in said.items() if line.startswith("curl")]
    assert [sorted(row) for row in json.loads(served[0].out)] == [["index", "score"]] * 2
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


@pytest.mark.parametrize("path", pages.all_pages(), ids=lambda path: path.name)
def test_every_command_parses(path: Path) -> None:
    page = pages.read(path)
    for command in page.commands:
        if command.python:
            compile(command.line, command.where, "exec")
            continue
        words = list(command.words) if command.words is not None else pages.msft_words(command.line)
        if words:
            try:
                parsing.parse(words)
            except Exception as error:  # noqa: BLE001 - typer's errors have no public base over its versions
                pytest.fail(f"{command.where}: {command.line}\n{getattr(error, 'message', None) or error}")


@pytest.mark.parametrize("path", pages.all_pages(), ids=lambda path: path.name)
def test_every_command_that_a_text_mentions_exists(path: Path) -> None:
    wrong = []
    for mention, where in pages.read(path).mentions:
        try:
            words = shlex.split(mention)[1:]
        except ValueError:
            words = mention.split()[1:]
        problem = parsing.check_mention([w for w in words if w not in ("…", "...")])
        if problem:
            wrong.append(f"{where}: `{mention}`: {problem}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", pages.all_pages(), ids=lambda path: path.name)
def test_links_within_the_project_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in _anchors(there)):
            broken.append(target)
    assert broken == []


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


GENERATED = [
    "README.md",
    *sorted(f"docs/reference/{p.name}" for p in (pages.ROOT / "docs/reference").glob("*.md")),
]


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_current(name: str) -> None:
    spec = importlib.util.spec_from_file_location("generate", pages.ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = generate
    spec.loader.exec_module(generate)
    held = (pages.ROOT / name).read_text("utf-8")
    assert held == generate.PAGES[name](), "`make docs` writes it anew"


# --------------------------------------------------------------------------------------- the marks and the parser itself
def test_marks_say_what_is_run_and_what_is_parsed() -> None:
    text = """# Page
<!-- docs: folder small -->
<!-- docs: skip [msft teachers] needs a GPU -->
<!-- docs: run msft status -->
```sh
export MSFT_STORE=a.duckdb
msft data list   # what is there
$ msft teachers generate \\
    --model rankzephyr
msft sql "SELECT 1 | 2" --format json
```
Text with `msft eval --dataset D`.
<!-- docs: run msft status -->
```python
msft = 1
print(msft)
```
<!-- docs: skip needs a GPU -->
```python
gpu = 1
```
<!-- docs: exit 6 -->
```
msft teachers generate --model x --max-calls 1
msft sql "SELECT 1" | head
```
"""
    page = pages.read(Path("page.md"), text)
    assert [(c.line, c.skipped, c.code, c.hidden) for c in page.commands] == [
        ("export MSFT_STORE=a.duckdb", None, 0, False),
        ("msft data list   # what is there", None, 0, False),
        ("msft status", None, 0, True),
        ("msft teachers generate --model rankzephyr", "needs a GPU", 0, False),
        ('msft sql "SELECT 1 | 2" --format json', None, 0, False),
        ("msft status", None, 0, True),
        ("msft = 1\nprint(msft)\n", None, 0, False),
        ("gpu = 1\n", "needs a GPU", 0, False),
        ("msft teachers generate --model x --max-calls 1", None, 0, False),
        ('msft sql "SELECT 1" | head', None, 6, False),
    ]
    assert page.commands[1].words == ("data", "list")
    assert [c.python for c in page.commands] == [False] * 6 + [True] * 2 + [False] * 2
    assert page.commands[-1].words is None
    assert page.mentions == [("msft eval --dataset D", "page.md:12")]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- docs: skip -->\n```\nmsft status\n```",
        "<!-- docs: skp needs a GPU -->\n```\nmsft status\n```",
        "<!-- docs: skip needs a GPU -->\nno block",
        "```sh\nmsft status",
        "<!-- docs: exit 3 -->\n```python\nprint()\n```",
    ],
)
def test_a_mark_that_means_nothing_fails(text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md"):
        pages.read(Path("page.md"), text)


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["eval", "--dtaset", "x"],
        ["eval", "--depth", "many"],
        ["data", "add"],
        ["data", "sow"],
    ],
)
def test_the_parser_refuses_what_msft_refuses(words: list[str]) -> None:
    with pytest.raises(Exception):  # noqa: B017 - typer's errors have no public base over its versions
        parsing.parse(words)
    if words != ["data", "add"] and "many" not in words:
        assert parsing.check_mention(words)


def test_the_shell_reports_a_failure(tmp_path: Path) -> None:
    with Shell(tmp_path) as shell:
        assert shell.run("export MSFT_STORE=none.duckdb", None).code == 0
        ended = shell.run("", ("data", "list"))
        assert ended.code == 4
        assert "none.duckdb" in ended.err
        assert shell.run("msft data list | cat; exit 3", None).code == 3


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ("print(shared)\nraise ValueError('no')", "ValueError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("assert shared == 2", "AssertionError"),
        ("x = (", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit"),
    ],
)
def test_a_python_block_that_fails_fails_and_blocks_share_their_names(
    block: str, word: str, tmp_path: Path
) -> None:
    with Shell(tmp_path) as shell:
        assert shell.python("shared = 1\nprint('told')").out == "told\n"
        assert shell.python("assert shared == 1\nfrom pathlib import Path; Path('here').touch()").code == 0
        assert (tmp_path / "here").exists()
        ended = shell.python(block)
    assert ended.code == 1
    assert word in ended.err
    with Shell(tmp_path) as other:
        assert other.python("shared").code == 1  # another page does not see these names
