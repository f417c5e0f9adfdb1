"""`msft mcp` with the SDK's own client: tools are listed, questions answered, writing refused."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import report_store

from cli.main import run
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.needs("mcp")

TOOLS = {"tables", "sql", "status", "compare", "explain"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    return report_store.make(tmp_path_factory.mktemp("mcp") / "toy.duckdb")


def ask(store: LabelStore, name: str, **arguments: Any) -> tuple[bool, Any]:
    """Whether the tool failed, and what it said."""
    from mcp.client.client import Client

    from cli.workflows.mcp_server import make

    async def asked() -> Any:
        async with Client(make(store)) as client:
            return await client.call_tool(name, arguments)

    result = asyncio.run(asked())
    text = result.content[0].text if result.content else ""
    if result.is_error:
        return True, text
    return False, json.loads(text)


@pytest.mark.test_all
def test_a_process_lists_its_tools_and_answers_over_stdio(store: LabelStore) -> None:
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters

    root = str(Path(__file__).resolve().parents[3])
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "cli.main", "mcp", "--store", str(store.path)], cwd=root
    )

    async def asked() -> tuple[set[str], Any]:
        async with Client(server) as client:
            tools = await client.list_tools()
            answer = await client.call_tool("sql", {"query": "SELECT count(*) AS n FROM runs"})
            with store.write() as con:  # the store is free between calls
                con.execute("UPDATE collections SET name = name")
            return {tool.name for tool in tools.tools}, answer

    tools, answer = asyncio.run(asked())
    assert tools == TOOLS
    assert json.loads(answer.content[0].text) == {"rows": [{"n": 7}], "cut": False}


def test_questions_in_sql_are_answered_within_a_limit(store: LabelStore) -> None:
    failed, answer = ask(store, "sql", query="SELECT query_id FROM result_queries ORDER BY ALL", limit=3)
    assert not failed
    assert len(answer["rows"]) == 3
    assert answer["cut"] is True
    _, listed = ask(store, "tables")
    named = {table["name"]: table for table in listed["tables"]}
    assert "query_id" in named["ranked"]["columns"]
    assert named["results"]["about"].startswith("Evaluations by name")
    assert "label_quality" in listed["analyses"]
    _, rows = ask(store, "sql", query="@label_quality")
    assert {row["labeling"] for row in rows["rows"]} == {"oracle@bm25", "train-labels"}


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM qrels",
        "CREATE TABLE t (x INTEGER)",
        "COPY (SELECT 1) TO '/tmp/mcp-was-here.csv'",
        "ATTACH '/tmp/mcp-other.duckdb'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT 1; DROP TABLE runs",
        "SET enable_external_access = true",
    ],
)
def test_writing_and_files_are_refused(store: LabelStore, query: str) -> None:
    before = store.path.read_bytes()
    failed, said = ask(store, "sql", query=query)
    assert failed
    assert said
    assert store.path.read_bytes() == before
    assert not Path("/tmp/mcp-was-here.csv").exists()


def test_comparisons_are_those_of_the_command_and_measure_nothing(store: LabelStore) -> None:
    from labelstore.evaluation import comparison

    failed, rows = ask(store, "compare", systems=["bm25", "kd-12"], dataset="toy/test", measure="nDCG@10")
    assert not failed, rows
    rows = rows if isinstance(rows, list) else [rows]
    (expected,) = comparison.compare(store, ["bm25", "kd-12"], ["toy/test"], measures=["nDCG@10"])
    assert rows[0]["verdict"] == expected["verdict"] == "better"
    assert rows[0]["difference"] == pytest.approx(expected["difference"])
    before = store.path.read_bytes()
    failed, said = ask(store, "compare", systems=["bm25", "kd-12"], dataset="toy/test", measure="P@3")
    assert failed
    assert "msft eval" in said
    assert store.path.read_bytes() == before


def test_a_query_is_explained(store: LabelStore) -> None:
    failed, found = ask(store, "explain", dataset="toy/test", query_id="q2", top=2)
    assert not failed, found
    assert found["query"].startswith("query 2")
    assert [row["relevance"] for row in found["judgments"]] == [3, 2, 1, 0]
    assert {row["rank"] for row in found["ranked"]} == {1, 2}
    assert {row["system"] for row in found["values"]} >= {"bm25", "kd-12@bm25"}


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("explain", {"dataset": "toy/tset", "query_id": "q1"}, "toy/test"),
        ("explain", {"dataset": "toy/test", "query_id": "nobody"}, "no query 'nobody'"),
        ("compare", {"systems": ["absent", "bm25"], "dataset": "toy/test"}, "absent"),
        ("sql", {"query": "SELECT nothing FROM nowhere"}, "nowhere"),
    ],
)
def test_errors_name_what_is_wrong(
    store: LabelStore, tool: str, arguments: dict[str, Any], says: str
) -> None:
    failed, said = ask(store, tool, **arguments)
    assert failed
    assert says in said
    assert "Traceback" not in said


def test_a_store_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["mcp", "--store", str(tmp_path / "no.duckdb")])
    assert ended.value.code == 4
    assert "store not found" in capsys.readouterr().err
