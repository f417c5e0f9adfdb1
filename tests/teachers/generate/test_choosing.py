"""Labels by setwise and pairwise calls: a perfect teacher's head, forecasts, resumption after SIGKILL, and what is refused."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest

from benchmarks.labelling_store import make
from labelstore.errors import UsageError
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify
from teachers.engines.base import Completion, Request
from teachers.generate.dry_run import forecast
from teachers.generate.job import Labelled, generate
from teachers.generate.reread import reread
from teachers.generate.settings import Settings
from teachers.journal import segments as journal
from tests.helpers.scripted_engine import ScriptedEngine

SETTINGS: dict[str, Any] = {"model": "someone/chat", "canaries": 0, "strategy": "setwise"}
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 4, length=lambda k: [100, 30, 4, 1][k], passages=120)


def shown(request: Request) -> list[int]:
    """The numbers at the ends of the passages, in the order shown."""
    text = request.messages[-1]["content"]
    return [int(line.rstrip('"').rstrip(".").split()[-1]) for line in text.split("\n") if line.startswith("Passage ") and '"' in line]  # fmt: skip


def perfect(request: Request) -> str:
    """Name the passage with the largest number."""
    numbers = shown(request)
    return f"Passage {request.identifiers[numbers.index(max(numbers))]}"


def run(store: LabelStore, engine: ScriptedEngine | None = None, **settings: Any) -> Labelled:
    return generate(store, Settings(**(SETTINGS | settings)), engine=engine or ScriptedEngine(perfect))


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


HEADS = """SELECT p.query, list(d.doc_id ORDER BY i.rank)[:10] FROM permutation_items i JOIN permutations p USING (permutation)
           JOIN documents d ON d.document = i.document GROUP BY p.query ORDER BY p.query"""
TRUTH = """SELECT c.query, list('d' || document ORDER BY document DESC)[:10] FROM candidates c GROUP BY c.query ORDER BY c.query"""


@pytest.mark.parametrize(
    "chosen",
    [{}, {"sort": "bubble"}, {"children": 5}, {"strategy": "pairwise"}, {"strategy": "pairwise", "sort": "bubble", "depth": 30}],
    ids=lambda chosen: "-".join(map(str, chosen.values())) or "setwise",
)  # fmt: skip
def test_a_perfect_teachers_head_is_found_within_the_forecast(
    store: LabelStore, chosen: dict[str, Any]
) -> None:
    said = forecast(store, Settings(**(SETTINGS | chosen))).row()
    result = run(store, **chosen)
    assert result.labelled == 4
    assert said["calls_least"] <= result.figures.calls <= said["calls_most"]
    if "depth" not in chosen:
        assert rows(store, HEADS) == rows(store, TRUTH)
    assert rows(store, "SELECT reliable_depth FROM labelings") == [(10,)]
    assert rows(store, "SELECT query, settled FROM permutations ORDER BY query")[:2] == [(0, 10), (1, 10)]
    assert rows(store, "SELECT DISTINCT status FROM calls") == [("ok",)]
    assert not verify(store).findings
    assert reread(store, "chat@first").changes == []


def test_all_pairs_store_points_and_how_far_the_orders_disagree(store: LabelStore) -> None:
    def biased(request: Request) -> str:
        numbers = shown(request)
        return "Passage A" if sum(numbers) % 4 == 0 else perfect(request)

    run(store, ScriptedEngine(biased), strategy="pairwise", sort="all", depth=30)
    found = rows(store, "SELECT query, n_calls, disagreement FROM permutations ORDER BY query")
    assert [(query, calls) for query, calls, _ in found] == [(0, 870), (1, 870), (2, 12), (3, 0)]
    assert 0.2 < found[0][2] < 0.8
    scores = rows(
        store,
        "SELECT count(score), max(score) FROM permutation_items JOIN permutations USING (permutation) WHERE query = 1",
    )
    assert scores[0][0] == 30
    assert scores[0][1] <= 29


def likelihoods(request: Request) -> Completion:
    """Log-probabilities of the labels, which grow with the passages' numbers."""
    numbers = shown(request)
    logs = {name: (number - 200) / 10 for name, number in zip(request.identifiers, numbers, strict=True)}
    return Completion(
        ticket=0,
        text=max(logs, key=lambda name: logs[name]),
        finish_reason="length",
        tokens_in=50,
        tokens_out=1,
        logprobs=logs,
    )


@pytest.mark.parametrize("chosen", [{}, {"sort": "bubble", "children": 7}, {"strategy": "pairwise"}])
def test_the_likelihood_of_labels_finds_a_perfect_teachers_head_with_one_token_a_call(
    store: LabelStore, chosen: dict[str, Any]
) -> None:
    asked: list[Request] = []

    def noted(request: Request) -> Completion:
        asked.append(request)
        return likelihoods(request)

    said = forecast(store, Settings(**(SETTINGS | chosen), logprobs=True)).row()
    result = run(store, ScriptedEngine(noted), logprobs=True, **chosen)
    assert said["calls_least"] <= result.figures.calls <= said["calls_most"]
    assert rows(store, HEADS) == rows(store, TRUTH)
    assert {(r.max_tokens, r.spelling, r.prefix) for r in asked} == {(1, "cased", " Passage:")}
    assert rows(store, "SELECT count(*) FROM calls WHERE scores IS NULL") == [(0,)]
    assert not verify(store).findings
    assert reread(store, "chat@first").changes == []


def test_points_of_pairs_are_probabilities_where_the_teacher_gives_likelihoods(store: LabelStore) -> None:
    run(store, ScriptedEngine(likelihoods), strategy="pairwise", sort="all", logprobs=True, depth=12)
    found = rows(
        store,
        """SELECT p.query, list(ltrim(d.doc_id, 'd')::INTEGER ORDER BY i.rank), list(i.score ORDER BY i.rank)
           FROM permutations p JOIN permutation_items i USING (permutation) JOIN documents d USING (document)
           WHERE p.query < 3 GROUP BY 1 ORDER BY 1""",
    )
    for _, numbers, scores in found:
        assert numbers == sorted(numbers, reverse=True)
        wanted = [sum(1 / (1 + math.exp((b - a) / 10)) for b in numbers if b != a) for a in numbers]
        assert scores == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("strategy", ["setwise", "pairwise"])
def test_canaries_show_as_many_passages_as_the_prompt_can(store: LabelStore, strategy: str) -> None:
    engine = ScriptedEngine(lambda request: f"Passage {request.identifiers[0]}")
    assert run(store, engine, strategy=strategy, canaries=3, limit=1).labelled == 1
    assert rows(store, "SELECT count(*) FROM canaries") == [(3,)]


def test_a_rerun_asks_nothing(store: LabelStore) -> None:
    run(store)
    engine = ScriptedEngine(perfect)
    assert run(store, engine).labelled == 4
    assert engine.answered == 0


def test_a_reply_that_names_two_is_tried_again_and_then_quarantined(store: LabelStore) -> None:
    result = run(store, ScriptedEngine(lambda request: "Passage A or Passage B"), limit=2)
    assert result.quarantined == 2
    assert rows(store, "SELECT DISTINCT reason, attempts FROM quarantine") == [("wrong_format", 3)]


KILLED = """
import sys
from labelstore.store.label_store import LabelStore
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine
from tests.teachers.generate.test_choosing import SETTINGS, perfect

store, asked = LabelStore(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
chosen = {"setwise": {}, "pairwise": {"strategy": "pairwise"}, "all": {"strategy": "pairwise", "sort": "all", "depth": 20},
          "pointwise": {"strategy": None, "prompt": "yes-no@1"}}[sys.argv[3]]

def reply(request):
    asked.write(request.key + "\\n")
    if request.spelling:
        from tests.teachers.generate.test_pointwise import answered
        return answered(request)
    return perfect(request)

engine = ScriptedEngine(reply, delay=lambda request: 0.004, capacity=8)
print(generate(store, Settings(**(SETTINGS | chosen)), engine=engine).labelled)
"""


@pytest.mark.test_all
@pytest.mark.parametrize("what", ["setwise", "pairwise", "all", "pointwise"])
def test_after_sigkill_no_completed_call_is_repeated(tmp_path: Path, what: str) -> None:
    store = make(tmp_path / "s.duckdb", 30, length=lambda k: 30 + k, passages=120)
    asked = tmp_path / "asked"
    completed: set[str] = set()
    for wait in (0.3, 0.8, 0.5):
        process = start(store, asked, what)
        until = time.monotonic() + 60
        while time.monotonic() < until and not sum(
            p.stat().st_size for p in journal.segments(store.files / "journal")
        ):
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        completed |= {
            record["request"]
            for path in journal.segments(store.files / "journal")
            for record in journal.read(path)
            if record["t"] == "call"
        }
    assert completed
    output, errors = start(store, asked, what).communicate()
    assert output.strip() == "30", errors
    times = asked.read_text().split()
    assert all(times.count(key) == 1 for key in completed)
    assert rows(store, "SELECT count(*) = count(DISTINCT request) FROM calls") == [(True,)]


def start(store: LabelStore, asked: Path, what: str) -> "subprocess.Popen[str]":
    return forked.Popen(
        [sys.executable, "-c", KILLED, str(store.path), str(asked), what], cwd=ROOT, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "helpers")))},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        ({"prompt": "setwise@1", "strategy": "sliding"}, "asks for the best passage", "--strategy setwise or pairwise"),
        ({"children": 30}, "shows 26 passages", "--children 25"),
        ({"prompt": "pairwise@1"}, "shows 2 passages, and --strategy setwise compares 4", "--children 1"),
        ({"samples": 3}, "--samples does not apply", "leave --samples out"),
        ({"top": 5, "constrained": True}, "are for lists", "leave them out"),
        ({"prompt": "rank-r1@1", "logprobs": True}, "--logprobs does not apply", "leave it out"),
        ({"engine": "transformers"}, "reads scores from one forward pass", "--logprobs"),
        ({"model": "qwen3-reranker-0.6b"}, "--strategy setwise does not apply", "leave it out"),
    ],
)  # fmt: skip
def test_prompts_and_strategies_that_do_not_fit_are_refused(
    store: LabelStore, given: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        generate(store, Settings(**(SETTINGS | given)))
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")


def test_the_prompt_alone_chooses_its_strategy(store: LabelStore) -> None:
    for prompt, strategy in (("setwise@1", "setwise"), ("pairwise@1", "pairwise")):
        assert forecast(store, Settings(model="someone/chat", prompt=prompt)).row()["strategy"] == strategy
