"""`msft teachers judge` from store to store: every grade has its call, none is a filler, and the qrels stay as they are."""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import made_store
import numpy as np
import pytest

from labelstore.datasets.add_dataset import add_dataset
from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.evaluation import scores as evaluation
from labelstore.judgments.agreement import agreement, calibrated
from labelstore.runs.import_run import import_run
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import qrels_hash
from labelstore.upkeep.merge.job import merge_stores
from labelstore.upkeep.remove import plan, remove
from labelstore.upkeep.verify.verify import verify
from msft.rankings import kendall_tau
from teachers.engines.base import Completion, Request
from teachers.errors import TeacherError
from teachers.generate.single.judge import Judging, bill, judge
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import WantedGrades
from teachers.prompts import passages
from tests.helpers.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.test_all

DEPTH = 5
SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """Each query's run has 30 passages, of which the first twelve are judged: the number of the passage modulo 4."""
    store = made_store.make(tmp_path / "s.duckdb", n_documents=60, n_queries=8, depth=30)
    with store.write() as con:
        con.execute("DELETE FROM qrels WHERE dataset = 1")
        con.execute(
            "INSERT INTO qrels SELECT 1, query, document, document % 4 FROM candidates WHERE run = 1 AND rank <= 12"
        )
        con.execute("UPDATE datasets SET qrels_hash = ? WHERE dataset = 1", [qrels_hash(con, 1)])
        made_store.add_run(con, 1, "second", 0, list(range(8)), 60, 20, 1, 9, step=5)
    return store


def passage_of(request: Request) -> int:
    return int(re.findall(r"Passage: .*?number (\d+)", request.messages[-1]["content"])[-1])


def copying(request: Request) -> str:
    return f"##final score: {passage_of(request) % 4}"


def run(
    store: LabelStore,
    reply: Callable[[Request], Any] = copying,
    engine: ScriptedEngine | None = None,
    settings: Asking = Asking(),
    **wanted: Any,
) -> Judging:
    given = {
        "model": "rankzephyr",
        "dataset": "c/train",
        "runs": ("first", "second"),
        "depth": DEPTH,
        "name": "j",
    } | wanted
    return judge(store, WantedGrades(**given), settings, engine=engine or ScriptedEngine(reply))


def rows(store: LabelStore, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql, list(values)).fetchall()


HUMAN = "SELECT name, qrels_hash FROM datasets ORDER BY name"


def test_every_grade_has_its_call_and_the_qrels_stay(store: LabelStore) -> None:
    human = rows(store, HUMAN), rows(store, "FROM qrels ORDER BY ALL")
    made = run(store)
    assert made.graded == made.pooled.count.kept == made.judged.new
    assert made.left == made.quarantined == 0
    traced = rows(
        store,
        """SELECT g.query_id, g.doc_id, g.grade, c.reply, g.prompt, p.text_hash = d.text_hash, q.query_id
           FROM judge_grades g JOIN calls c USING (call_key) JOIN requests r USING (request) JOIN queries q USING (query)
           JOIN request_passages p USING (request) JOIN documents d ON d.document = p.document AND d.doc_id = g.doc_id""",
    )
    assert len(traced) == made.graded
    for query_id, doc_id, grade, reply, prompt, pinned, asked in traced:
        assert grade == int(doc_id[1:]) % 4
        assert reply == f"##final score: {grade}"
        assert prompt == "umbrela@1"
        assert pinned
        assert asked == query_id
    assert (rows(store, HUMAN), rows(store, "FROM qrels ORDER BY ALL")) == human
    assert verify(store).findings == []


def test_passages_and_queries_that_read_alike_have_their_own_grades(store: LabelStore) -> None:
    long = "word " * 400
    with store.write() as con:
        for n, text in (
            (3, long + "one"),
            (4, long + "two"),
            (6, "the same number 6"),
            (7, "the same number 6"),
        ):
            con.execute(
                "UPDATE documents SET text = ?, text_hash = ? WHERE document = ?",
                [text, keys.text_hash(None, text), n],
            )
        con.execute("UPDATE queries SET text = 'one query', text_hash = 1, normal_hash = 1 WHERE query < 3")
    made = run(store, lambda request: "##final score: 2")
    assert made.graded == made.pooled.count.kept
    assert rows(store, "SELECT count(*), count(DISTINCT call) FROM llm_judgments") == [
        (made.graded, made.graded)
    ]
    assert run(store, engine=(engine := ScriptedEngine(copying))).left == 0
    assert engine.answered == 0


def test_samples_are_calls_of_their_own_and_the_grade_of_most_counts(store: LabelStore) -> None:
    votes = {0: (1, 3, 3), 1: (2, 0, 1), 2: (None, 2, 2), 3: (None, None, None)}

    def sampled(request: Request) -> str:
        value = votes[passage_of(request) % 4][request.sample]
        return "It depends." if value is None else f"##final score: {value}"

    settings = Asking(temperature=0.7, max_attempts=1)
    made = run(store, sampled, samples=3, settings=settings)
    pooled = made.pooled.count.kept
    assert rows(store, "SELECT count(*), count(DISTINCT request), count(DISTINCT sample) FROM calls") == [
        (3 * pooled, 3 * pooled, 3)
    ]
    expected = {0: 3, 1: 0, 2: 2, 3: None}  # the lowest of three that differ
    for doc_id, grade in rows(store, "SELECT doc_id, grade FROM judge_grades"):
        assert grade == expected[int(doc_id[1:]) % 4]
    engine = ScriptedEngine(sampled)
    assert run(store, engine=engine, samples=3, settings=settings).judged.grades == made.judged.grades
    assert engine.answered == 0
    with pytest.raises(BadInput, match="3 samples"):
        run(store, samples=1, settings=settings)
    assert verify(store).findings == []


def test_a_passage_waits_until_all_its_samples_have_come(store: LabelStore) -> None:
    warm = Asking(temperature=0.7)
    some = run(store, samples=3, settings=replace(warm, max_calls=10))
    assert some.graded == 3
    assert some.left == some.pooled.count.kept - 3
    whole = run(store, samples=3, settings=warm)
    assert whole.graded == whole.pooled.count.kept
    assert rows(store, "SELECT count(*) FROM calls") == [(3 * whole.graded,)]


def test_the_forecast_of_a_judging_counts_samples_and_what_is_recorded(store: LabelStore) -> None:
    wanted = WantedGrades("rankzephyr", "c/train", ("first",), DEPTH, name="j", samples=2)
    warm = Asking(temperature=0.7, input_price=1.0, output_price=2.0)
    before = bill(store, wanted, warm).row()
    assert (before["calls_most"], before["passages"]) == (2 * 8 * DEPTH, 8 * DEPTH)
    assert before["cost_most"] == pytest.approx((before["tokens_in"] + 2 * before["tokens_out_most"]) / 1e6)
    run(store, runs=("first",), samples=2, settings=replace(warm, max_calls=30))
    after = bill(store, wanted, warm).row()
    assert (after["calls_most"], after["recorded"]) == (2 * 8 * DEPTH - 30, 30)


def test_only_what_people_have_not_judged_if_so_named(store: LabelStore) -> None:
    made = run(store, unjudged=True)
    both = rows(store, "SELECT count(*) FROM llm_judgments SEMI JOIN qrels USING (query, document)")
    assert both == [(0,)]
    assert 0 < made.graded < run(store, name="all").graded


def test_a_rerun_asks_nothing_and_a_deeper_pool_goes_on(store: LabelStore) -> None:
    first = run(store)
    engine = ScriptedEngine(copying)
    assert run(store, engine=engine).judged.new == 0
    assert engine.answered == 0
    deeper = run(store, engine=engine, depth=8)
    assert engine.answered == deeper.graded - first.graded == deeper.judged.new
    ((parameters,),) = rows(store, "SELECT parameters->>'depth' FROM judgings")
    assert parameters == "8"


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("It is somewhat relevant.", "wrong_format"),
        ("##final score: 7", "wrong_format"),
        ("I'm sorry, I can't judge this.", "refused"),
        (Completion(0, error="no such model", retryable=False), "engine_error"),
        (Completion(0, text="Consider the", finish_reason="length"), "truncated"),
    ],
)
def test_an_unreadable_grade_is_quarantined_and_never_0(store: LabelStore, reply: Any, status: str) -> None:
    def sometimes(request: Request) -> Any:
        bad = replace(reply) if isinstance(reply, Completion) else reply
        return bad if passage_of(request) % 5 == 0 else copying(request)

    made = run(store, sometimes, settings=Asking(max_attempts=2))
    bad = rows(store, "SELECT doc_id, grade, status FROM judge_grades WHERE status NOT IN ('ok', 'repaired')")
    assert bad
    assert {(grade, found) for _, grade, found in bad} == {(None, status)}
    assert all(int(doc[1:]) % 5 == 0 for doc, *_ in bad)
    assert made.quarantined == len(bad)
    assert made.partly_done() is not None
    assert verify(store).findings == []
    again = run(store, settings=Asking(retry_quarantined=True))
    assert again.quarantined == 0
    assert rows(store, "SELECT count(*) FROM llm_judgments WHERE grade IS NULL") == [(0,)]


def test_eval_by_a_judge_is_named_is_not_stored_and_leaves_the_human_values(store: LabelStore) -> None:
    before = evaluation.evaluate(store, "c/train", measures=["nDCG@10"], kinds=("first_stage",))
    stored = rows(store, "SELECT * EXCLUDE (job) FROM evaluations ORDER BY evaluation")
    run(store, lambda request: "##final score: 3" if passage_of(request) == 1 else "##final score: 0")
    by_judge = evaluation.evaluate(store, "c/train", measures=["nDCG@10"], kinds=("first_stage",), judge="j")
    both = evaluation.evaluate(
        store, "c/train", measures=["nDCG@10"], kinds=("first_stage",), judge="j+human"
    )
    assert {row["judge"] for row in before} == {None}
    assert {row["judge"] for row in by_judge} == {"j"}
    assert {row["judge"] for row in both} == {"j+human"}
    values = [{row["system"]: row["value"] for row in found} for found in (before, by_judge, both)]
    assert values[0] != values[1]
    assert values[2]["first"] == pytest.approx(values[0]["first"]), "people judged all of its head"
    assert values[2]["second"] != pytest.approx(values[1]["second"])
    assert evaluation.evaluate(store, "c/train", measures=["nDCG@10"], kinds=("first_stage",)) == before
    assert rows(store, "SELECT * EXCLUDE (job) FROM evaluations ORDER BY evaluation") == stored
    with pytest.raises(UsageError, match="not over c/test"):
        evaluation.evaluate(store, "c/test", measures=["nDCG@10"], judge="j")
    with pytest.raises(DataMissing, match="no judging named 'k'"):
        evaluation.evaluate(store, "c/train", measures=["nDCG@10"], judge="k+human")


def test_wrong_settings_are_refused(store: LabelStore) -> None:
    run(store)
    for match, error, wanted in (
        ("no prompt named 'inpars@1' that can judge", TeacherError, {"prompt": "inpars@1"}),
        ("--depth 0", UsageError, {"depth": 0}),
        ("--samples 0", UsageError, {"samples": 0}),
        ("at --temperature 0 all samples are one reply", UsageError, {"samples": 3}),
        ("no run over c/train", DataMissing, {"runs": ("none",)}),
        ("there is a judging j already", BadInput, {"prompt": "umbrela-basic@1"}),
        ("there is a judging j already", BadInput, {"dataset": "c/test", "runs": ("first",)}),
    ):
        with pytest.raises(error, match=match):
            run(store, **wanted)


def found_rows(store: LabelStore, **options: Any) -> dict[tuple[str, str | None], dict[str, Any]]:
    with store.read() as con:
        return {(row["what"], row["of"]): row for row in agreement(con, "j", **options).rows}


def by_hand(pairs: list[tuple[int, int]]) -> dict[str, float]:
    """Cohen's kappa, plain and weighted, from the definition."""
    n = len(pairs)
    both, one, other = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    found = {}
    for name, weight in (("plain", lambda d: float(d > 0)), ("linear", abs), ("quadratic", lambda d: d * d)):
        observed = sum(weight(abs(a - b)) * both[a, b] for a in range(4) for b in range(4)) / n
        chance = sum(weight(abs(a - b)) * one[a] * other[b] for a in range(4) for b in range(4)) / n**2
        found[name] = 1 - observed / chance
    return found


def test_agreement_equals_values_computed_by_hand(store: LabelStore) -> None:
    def shifted(request: Request) -> str:
        n = passage_of(request)
        return f"##final score: {min(n % 4 + (n % 3 == 0), 3)}"

    run(store, shifted)
    pairs = rows(
        store,
        "SELECT r.relevance, g.grade FROM llm_judgments g JOIN qrels r USING (query, document) WHERE r.dataset = 1",
    )
    found, expected = found_rows(store), by_hand(pairs)
    assert found["kappa", None]["value"] == pytest.approx(expected["plain"])
    assert found["kappa", "linear weights"]["value"] == pytest.approx(expected["linear"])
    assert found["kappa", "quadratic weights"]["value"] == pytest.approx(expected["quadratic"])
    assert found["kappa", None]["low"] < expected["plain"] < found["kappa", None]["high"]
    for (human, judged), n in Counter(pairs).items():
        assert found["confusion", f"human {human}, judge {judged}"]["value"] == n
    assert sum(row["value"] for (what, _), row in found.items() if what == "confusion") == len(pairs)
    assert found["bias", "all"]["value"] == pytest.approx(np.mean([b - a for a, b in pairs]))
    of_two = [b - a for a, b in pairs if a == 2]
    assert found["bias", "human grade 2"]["value"] == pytest.approx(np.mean(of_two))
    with store.read() as con:
        assert "over-rates" in agreement(con, "j").warnings[0]


def test_a_perfect_judge_agrees_and_orders_systems_alike(store: LabelStore) -> None:
    run(store)
    found = found_rows(store, measure="nDCG@5")
    assert found["same grade", None]["value"] == 1
    assert found["kappa", None]["value"] == pytest.approx(1)
    assert found["bias", "all"]["value"] == 0
    with store.read() as con:
        assert agreement(con, "j").warnings == []
    run(store, unjudged=True, name="k")
    with store.read() as con, pytest.raises(DataMissing, match="no pair of the judging k"):
        agreement(con, "k")


def test_calibrated_values_name_both_and_are_those_of_the_agreement(store: LabelStore) -> None:
    """People judged the first five queries by another dataset; the judge saw all eight."""
    with store.write() as con:
        con.execute(
            "INSERT INTO datasets SELECT 9, 'c/some', collection, 'test', NULL, 'made', 'h', job FROM datasets WHERE dataset = 1"
        )
        con.execute(
            "INSERT INTO dataset_queries SELECT 9, query FROM dataset_queries WHERE dataset = 1 AND query < 5"
        )
        con.execute(
            "INSERT INTO qrels SELECT 9, query, document, relevance FROM qrels WHERE dataset = 1 AND query < 5"
        )
        con.execute("DELETE FROM qrels WHERE dataset = 1")
    run(store, lambda request: f"##final score: {min(passage_of(request) % 4 + passage_of(request) % 2, 3)}")
    with store.read() as con:
        found = {row["system"]: row for row in calibrated(con, "j", "c/some", ["nDCG@10"])}
        told = {
            row["of"]: row
            for row in agreement(con, "j", human="c/some", measure="nDCG@10").rows
            if "calibrated" in row["what"]
        }
        with pytest.raises(DataMissing, match="0 queries of c/test"):
            calibrated(con, "j", "c/test")
    assert set(found) >= {"first", "second"}
    for system, row in found.items():
        assert (row["value"], row["low"], row["high"]) == tuple(
            told[system][k] for k in ("value", "low", "high")
        )
        assert row["low"] < row["value"] < row["high"]
        assert (row["n_queries"], row["n_human"]) == (8, 5)
        assert row["judge"] == "j calibrated on c/some"


def test_judgings_merge_and_are_removed_with_their_dataset(store: LabelStore, tmp_path: Path) -> None:
    run(store)
    other = made_store.make(tmp_path / "other.duckdb", n_documents=60, n_queries=8, offset=700, labels=False)
    with other.write() as con:
        con.execute("DELETE FROM qrels")
        con.execute("UPDATE datasets SET qrels_hash = NULL")
        con.execute("DELETE FROM candidates")
        con.execute("DELETE FROM runs")
    merge_stores(other, store)
    grades = "SELECT judging, query_id, doc_id, grade, call_key FROM judge_grades ORDER BY ALL"
    assert rows(other, grades) == rows(store, grades)
    assert not merge_stores(other, store).new
    assert verify(other).findings == []
    remove(store, "dataset", "c/train", plan(store, "dataset", "c/train"))
    assert rows(store, "SELECT (SELECT count(*) FROM judgings), (SELECT count(*) FROM llm_judgments)") == [
        (0, 0)
    ]
    assert verify(store).findings == []


@pytest.mark.needs("shared")
@pytest.mark.test_all
def test_dl19_by_a_judge_that_copies_people_with_planted_errors(tmp_path: Path) -> None:
    """Every tenth grade is one up: kappa, confusion, bias and the order of three real runs are as computed by hand."""
    folder = SHARED / "dl19-passage"
    store = LabelStore(tmp_path / "dl19.duckdb")
    add_dataset(store, "dl19", folder)
    runs = sorted(path for path in (folder / "runs").iterdir() if path.suffix == ".gz")[:3]
    for path in runs:
        import_run(store, path, dataset="dl19", name=path.name.split(".")[0])
    names = tuple(path.name.split(".")[0] for path in runs)
    human = rows(store, HUMAN)
    plain = passages.neutraliser()
    texts = {
        (passages.query(q, plain), passages.passage(title, d, plain)): (query_id, doc_id, grade)
        for q, title, d, query_id, doc_id, grade in rows(
            store,
            """SELECT q.text, d.title, d.text, q.query_id, d.doc_id, r.relevance FROM qrels r JOIN queries q USING (query)
               JOIN documents d USING (document) WHERE d.text IS NOT NULL""",
        )
    }
    rng = Random(1)
    up = {pair: rng.random() < 0.1 for pair in sorted(found[:2] for found in texts.values())}

    def copies(request: Request) -> str:
        shown = request.messages[-1]["content"]
        query, passage = re.findall(r"^Query: (.*)\nPassage: (.*)$", shown, re.M)[0]
        query_id, doc_id, grade = texts.get((query, passage), ("", "", 0))
        return f"##final score: {min(grade + up.get((query_id, doc_id), False), 3)}"

    made = judge(
        store,
        WantedGrades("rankzephyr", "dl19", names, 10, name="j"),
        Asking(),
        engine=ScriptedEngine(copies),
    )
    assert made.graded == made.pooled.count.kept
    pairs = rows(
        store, "SELECT r.relevance, g.grade FROM llm_judgments g JOIN qrels r USING (query, document)"
    )
    assert len(pairs) > 300
    found, expected = found_rows(store), by_hand(pairs)
    assert found["kappa", None]["value"] == pytest.approx(expected["plain"])
    assert found["kappa", "quadratic weights"]["value"] == pytest.approx(expected["quadratic"])
    assert 0.75 < expected["plain"] < 0.95
    assert found["bias", "all"]["value"] == pytest.approx(np.mean([b - a for a, b in pairs]))
    for human_grade, grade in ((h, j) for h in range(4) for j in range(4)):
        n = Counter(pairs)[human_grade, grade]
        assert found["confusion", f"human {human_grade}, judge {grade}"]["value"] == n
    measured = [
        {
            row["system"]: row["value"]
            for row in evaluation.evaluate(store, "dl19", measures=["nDCG@10"], judge=by)
        }
        for by in (None, "j")
    ]
    systems = sorted(measured[0])
    assert len(systems) == 3
    tau = kendall_tau([measured[0][s] for s in systems], [measured[1][s] for s in systems])
    assert found["tau of systems", "nDCG@10"]["value"] == pytest.approx(tau)
    assert not math.isnan(tau)
    assert rows(store, HUMAN) == human
    assert verify(store).findings == []
