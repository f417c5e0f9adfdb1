"""`msft teachers combine CHEAP --refine STRONG`: heads by the strong teacher, tails by the cheap one, calls and cost of both."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai_servers import serving
from shelves import msft

from benchmarks.labelling_store import make
from labelstore.errors import UsageError
from labelstore.labels.combine import combine
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Request
from teachers.generate.dry_run import forecast
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

pytestmark = pytest.mark.test_all

LENGTHS = [40, 25, 6, 1]


def reverse(request: Request) -> str:
    return " > ".join(f"[{name}]" for name in reversed(request.identifiers))


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """A store whose `cheap` labeling turns the first forty of each list round."""
    made = make(tmp_path / "s.duckdb", 4, length=lambda k: LENGTHS[k], passages=60)
    settings = Settings(model="rankzephyr", strategy="full", canaries=0, name="cheap")
    generate(made, settings, engine=ScriptedEngine(reverse))
    return made


def orders(store: LabelStore, name: str) -> dict[str, list[str]]:
    with store.read() as con:
        return dict(
            con.execute(
                """SELECT q.query_id, list(d.doc_id ORDER BY i.rank) FROM labelings l JOIN permutations p USING (labeling)
                   JOIN permutation_items i USING (permutation) JOIN queries q USING (query)
                   JOIN documents d USING (document) WHERE l.name = ? GROUP BY 1""",
                [name],
            ).fetchall()
        )


def totals(store: LabelStore, name: str) -> tuple[Any, ...]:
    with store.read() as con:
        return con.execute(
            """SELECT sum(n_calls), sum(tokens_in), sum(tokens_out),
                      (SELECT count(*) FROM labeling_calls u WHERE u.labeling = l.labeling)
               FROM labelings l JOIN permutations p USING (labeling) WHERE l.name = ? GROUP BY l.labeling""",
            [name],
        ).fetchall()[0]


@pytest.mark.parametrize("top", [5, 10, 100])
def test_only_the_heads_of_the_cheap_order_are_asked(store: LabelStore, top: int) -> None:
    shown: list[int] = []

    def noted(request: Request) -> str:
        shown.append(len(request.identifiers))
        return hashed_order(request)

    settings = Settings(model="rankvicuna", head_of="cheap", depth=top, strategy="full", canaries=0)
    assert generate(store, settings, engine=ScriptedEngine(noted)).plan.name == "rankvicuna@cheap"
    assert sorted(shown) == sorted(min(n, top) for n in LENGTHS if n > 1)
    cheap, head = orders(store, "cheap"), orders(store, "rankvicuna@cheap")
    for query, docs in cheap.items():
        assert sorted(head[query]) == sorted(docs[:top]), "the head of the cheap order, not of the run's"
    combine(store, ["cheap", "rankvicuna@cheap"], by="cascade", name="both")
    assert orders(store, "both") == {q: [*head[q], *docs[top:]] for q, docs in cheap.items()}
    for one, two, both in zip(
        totals(store, "cheap"), totals(store, "rankvicuna@cheap"), totals(store, "both"), strict=True
    ):
        assert both == one + two, "calls and tokens of both"


def test_a_server_refines_a_labeling_and_the_command_says_what_was_saved(store: LabelStore) -> None:
    with serving() as server:
        server.models = (200, {}, {"data": [{"id": "gpt-4o-mini"}]})
        ask = ("combine", "cheap", "--refine", "gpt-4o-mini", "--top", "10", "--name", "both")
        with_server = ("--engine", "openai", "--base-url", server.url)
        done = msft(store, "teachers", *ask, *with_server, "--format", "json")
        asked = len(server.asked)
        # sliding windows of 20 over 40, 25 and 6 passages are 3 + 2 + 1 calls; the heads are one window each
        assert "3 calls in place of 6 over the whole lists: 50% saved, about 0." in done.err
        (row,) = json.loads(done.out)
        assert (row["labeling"], row["by"], row["lists"]) == ("both", "cascade", 4)
        again = msft(store, "teachers", *ask, *with_server, "--format", "json")
        assert len(server.asked) == asked, "nothing is asked twice"
        assert json.loads(again.out)[0]["new"] == 0
    named = msft(store, "teachers", "combine", "cheap", "--refine", "gpt-4o-mini@cheap", "--name", "same")
    assert "50% saved" in named.err
    assert orders(store, "same") == orders(store, "both")
    cost = msft(store, "teachers", "compare", "both", "cheap", code=4)
    assert "judg" in cost.err, "the made store has no judgments"


def test_a_forecast_counts_the_heads(store: LabelStore) -> None:
    row = forecast(store, Settings(model="rankvicuna", head_of="cheap", depth=10)).row()
    assert (row["queries"], row["calls_least"], row["calls_most"]) == (4, 3, 3)


def test_what_is_no_cascade_is_refused(store: LabelStore) -> None:
    generate(
        store, Settings(model="rankvicuna", head_of="cheap", depth=5, canaries=0, name="head"),
        engine=ScriptedEngine(hashed_order),
    )  # fmt: skip
    other = Settings(model="rankvicuna", depth=10, canaries=0, name="other")
    generate(store, other, engine=ScriptedEngine(hashed_order))
    for arguments, says in (
        (("cheap", "other", "--refine", "head"), "heads of one labeling"),
        (("cheap", "--refine", "head", "--by", "rrf"), "--by names another"),
        (("other", "--refine", "head"), "heads of cheap, not those of other"),
        (("cheap", "--refine", "head", "--top", "0"), "below 1"),
    ):
        code = 0 if says == "below 1" else 2  # a labeling has its own heads, so --top is not read
        done = msft(store, "teachers", "combine", *arguments, code=code)
        assert code == 0 or says in done.err, done.err
    msft(store, "teachers", "combine", "cheap", "--refine", "rankvicuna", "--top", "0", code=2)
    with pytest.raises(UsageError, match="--run nowhere: cheap orders the run first"):
        generate(store, Settings(model="rankvicuna", head_of="cheap", run="nowhere"))
    msft(store, "teachers", "combine", "cheap", "--refine", "no-such-teacher", code=4)
