"""SIGKILL in the middle of generating queries from real passages: the same queries, and no completed call repeated."""

from pathlib import Path
from typing import Any

import pytest

from labelstore.datasets.add_dataset import add_dataset
from labelstore.generated import filter as filtering
from labelstore.generated import tests as measured
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify
from teachers.journal import segments as journal
from tests.faults.test_kill_generate import kills, rows, start

pytestmark = [pytest.mark.test_all, pytest.mark.needs("shared")]

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
QUERIES = 1000

SCRIPTED = """
import hashlib, sys
from labelstore.store.label_store import LabelStore
from tests.helpers.scripted_engine import ScriptedEngine
from teachers.generate.single.queries import generate
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import Wanted

store, asked = LabelStore(sys.argv[1]), open(sys.argv[2], "a", buffering=1)

class Counting(ScriptedEngine):
    def submit(self, requests):
        super().submit(requests)
        for request in requests:
            asked.write(request.key + "\\n")

def reply(request):
    words = request.messages[-1]["content"].split("Passage: ")[1].split()
    return "what is known about " + " ".join(sorted(set(words))[:3]) + " " + request.key[:6]

engine = Counting(reply, delay=lambda request: (int(request.key[:4], 16) % 10) * float(sys.argv[3]), capacity=16)
made = generate(store, Wanted("rankzephyr", "nfcorpus", 1000), Asking(), engine=engine)
print(made.stored.queries)
"""

CONTENT = "SELECT query_id, text, doc_id, prompt_hash, kept FROM generated_queries ORDER BY query_id"


def collection(path: Path) -> LabelStore:
    store = LabelStore(path)
    add_dataset(store, "nfcorpus", SHARED / "nfcorpus", role="test")
    return store


SLOW, FAST = "0.08", "0"  # seconds in a step of the delay of a reply


def check(tmp_path: Path, number: int, seed: int) -> None:
    whole, store = collection(tmp_path / "whole.duckdb"), collection(tmp_path / "killed.duckdb")
    human = rows(store, "SELECT name, qrels_hash FROM datasets ORDER BY name")
    reference = start(SCRIPTED, str(whole.path), str(tmp_path / "reference"), FAST)
    output, errors = reference.communicate()
    assert output.strip() == str(QUERIES), errors
    asked = tmp_path / "asked"
    done: dict[str, Any] = kills(store, number, seed, 0.15, SCRIPTED, str(asked), SLOW)
    assert done, "the kills came in the middle of the work"
    output, errors = start(SCRIPTED, str(store.path), str(asked), FAST).communicate()
    assert output.strip() == str(QUERIES), errors
    killed = rows(
        store, "SELECT count(*) FROM provenance WHERE kind = 'queries.generate' AND status <> 'done'"
    )
    assert killed == [(number,)], "each kill ended a job in the middle of its calls"
    assert rows(store, CONTENT) == rows(whole, CONTENT)
    assert rows(store, "SELECT count(*), count(DISTINCT request) FROM calls") == [(QUERIES, QUERIES)]
    stored = dict(rows(store, "SELECT call_key, reply FROM calls"))
    assert {key: stored.get(key) for key in done} == {key: reply for key, (_, reply) in done.items()}
    sent = asked.read_text().split()
    assert len(sent) - len(set(sent)) <= 16 * (number + 1), "only what was in flight at a kill is sent again"
    assert not journal.segments(store.files / "journal")
    filtering.apply(
        store, "nfcorpus/synthetic", [measured.leaks(), measured.length(3, 30), measured.copied()]
    )
    assert rows(store, "SELECT count(*) FROM generated_queries WHERE len(passed) + len(failed) > 0") == [
        (QUERIES,)
    ]
    assert [
        r for r in rows(store, "SELECT name, qrels_hash FROM datasets ORDER BY name") if r[0] == "nfcorpus"
    ] == human
    assert verify(store).findings == []


def test_a_thousand_queries_killed_at_random_points(tmp_path: Path) -> None:
    check(tmp_path, 3, seed=3)


@pytest.mark.slow
def test_a_thousand_queries_killed_at_twenty_random_points(tmp_path: Path) -> None:
    check(tmp_path, 20, seed=4)
