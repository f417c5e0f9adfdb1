"""`msft negatives check`: a cheap model sees every negative, a strong one what the cheap one flagged, and `mine --denoise` uses both."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import made_store
import pytest

from labelstore.datasets.add_dataset import add_dataset
from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.negatives.mine import mine
from labelstore.runs.import_run import import_run
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import qrels_hash
from labelstore.upkeep.merge.job import merge_stores
from labelstore.upkeep.remove import plan, remove
from labelstore.upkeep.verify.verify import verify
from teachers.engines.base import Completion, Request
from teachers.errors import TeacherError
from teachers.generate.single.check import Checked, bills, check
from teachers.generate.single.settings import Asking
from teachers.generate.single.wanted import WantedVerdicts
from teachers.prompts import passages
from tests.helpers.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.test_all

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
CHEAP, STRONG = "rankzephyr", "gpt-4o"
WIDE = "gpt-4o-mini"  # whole passages fit its context


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """Each query's run has 30 passages, of which 15 are mined as negatives."""
    store = made_store.make(tmp_path / "s.duckdb", n_documents=60, n_queries=8, depth=30)
    mine(store, dataset="c/train", runs=["first"], depth=20, per_query=15, name="hard")
    return store


def shown(request: Request) -> list[str]:
    """The negatives of a prompt, in order."""
    return re.findall(r"^Doc \(\d+\): (.*)$", request.messages[-1]["content"].split("<documents>")[-1], re.M)


def number(text: str) -> int:
    return int(re.findall(r"number (\d+)", text)[-1])


def reply(better: list[int], worse: Sequence[int] = ()) -> str:
    lists = [", ".join(f"Doc ({k})" for k in found) for found in (better, worse)]
    return f"<thinking></thinking><preference></preference><verdict><better>[{lists[0]}]</better><worse>[{lists[1]}]</worse></verdict>"


def by(better: Callable[[str], bool], worse: Callable[[str], bool] = lambda text: False) -> ScriptedEngine:
    """A model that judges each negative by its text, and keeps what it was asked."""

    def answer(request: Request) -> str:
        texts = shown(request)
        engine.asked.append((request.messages[-1]["content"], texts))
        good = [k for k, text in enumerate(texts, 1) if better(text)]
        return reply(good, [k for k, text in enumerate(texts, 1) if worse(text) and k not in good])

    engine: Any = ScriptedEngine(answer)
    engine.asked = []
    return engine


def run(store: LabelStore, *models: ScriptedEngine, settings: Asking = Asking(), **wanted: Any) -> Checked:
    given = (
        {"model": CHEAP, "window": 4, "name": "v"} | ({"then": STRONG} if len(models) > 1 else {}) | wanted
    )
    return check(store, "hard", WantedVerdicts(**given), settings, engines_given=models)


def rows(store: LabelStore, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql, list(values)).fetchall()


VERDICTS = "SELECT query_id, doc_id, verdict, strong_verdict, flagged, call_key, strong_call_key FROM negative_verdicts ORDER BY ALL"


def thirds(text: str) -> bool:
    return number(text) % 3 == 0


def ninths(text: str) -> bool:
    return number(text) % 9 == 0


def test_the_strong_model_sees_only_what_the_cheap_one_flags_and_its_verdict_counts(
    store: LabelStore,
) -> None:
    mined = rows(store, "SELECT query_id, doc_id FROM mined WHERE mining = 'hard' ORDER BY ALL")
    cheap, strong = by(thirds), by(ninths)
    made = run(store, cheap, strong)
    assert sorted(number(text) for _, texts in cheap.asked for text in texts) == sorted(
        int(d[1:]) for _, d in mined
    )
    assert all(len(texts) <= 4 for _, texts in (*cheap.asked, *strong.asked))
    seen = [number(text) for _, texts in strong.asked for text in texts]
    assert sorted(seen) == sorted(int(d[1:]) for _, d in mined if int(d[1:]) % 3 == 0)
    found = {(q, d): row for q, d, *row in rows(store, VERDICTS)}
    assert list(found) == mined
    for (_, doc_id), (verdict, strong_verdict, flagged, call, strong_call) in found.items():
        n = int(doc_id[1:])
        assert verdict == ("better" if n % 3 == 0 else "irrelevant")
        assert strong_verdict == (None if n % 3 else "better" if n % 9 == 0 else "irrelevant")
        assert flagged == (n % 9 == 0)
        assert call is not None
        assert (strong_call is None) == bool(n % 3)
    counts = [stage.counts for stage in made.stages]
    assert (counts[0].passages, counts[0].flagged, counts[1].passages) == (len(mined), len(seen), len(seen))
    assert made.flagged == sum(n % 9 == 0 for n in seen)
    assert made.partly_done() is None
    assert verify(store).findings == []


def test_each_call_shows_the_positive_first_and_is_pinned_to_its_texts(store: LabelStore) -> None:
    cheap = by(thirds)
    run(store, cheap)
    for content, _ in cheap.asked:
        truth = content.split("<ground_truth>\n")[1].split("\n</ground_truth>")[0]
        question = content.split("<question>\n")[1].split("\n</question>")[0]
        assert number(truth) == number(question), "the positive of query i is passage i"
    pinned = rows(
        store,
        """SELECT p.position = 1, r.document IS NOT NULL, p.text_hash = d.text_hash, count(*)
           FROM request_passages p JOIN requests q USING (request) JOIN documents d ON d.document = p.document
           LEFT JOIN qrels r ON r.query = q.query AND r.document = p.document GROUP BY ALL ORDER BY ALL""",
    )
    n = len(cheap.asked)
    assert [row[:3] for row in pinned] == [(False, False, True), (True, True, True)]
    assert (pinned[0][3], pinned[1][3]) == (8 * 15, n)


def test_a_rerun_asks_nothing_and_a_limit_goes_on(store: LabelStore) -> None:
    first = run(store, by(thirds), by(ninths), settings=Asking(max_calls=10))
    assert first.left > 0
    partly = first.partly_done()
    assert partly is not None
    assert "--max-calls" in partly.message
    assert rows(store, "SELECT count(*) FROM calls") == [(10,)]
    assert first.stages[1].done is None, "the strong model waits until the cheap one has seen everything"
    cheap, strong = by(thirds), by(ninths)
    whole = run(store, cheap, strong)
    assert whole.partly_done() is None
    held = rows(store, VERDICTS)
    assert len(cheap.asked) == 8 * 4 - 10
    again = run(store, by(lambda text: True), by(lambda text: True))
    assert [stage.done.figures.calls for stage in again.stages if stage.done] == [0, 0]
    assert rows(store, VERDICTS) == held


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ("Doc (2) is as good as the ground truth.", "wrong_format"),
        ("I'm sorry, I can't compare these.", "refused"),
        (Completion(0, text="<thinking>Doc (1)", finish_reason="length"), "truncated"),
        (Completion(0, error="no such model", retryable=False), "engine_error"),
    ],
)
def test_an_unreadable_reply_is_quarantined_and_no_verdict(store: LabelStore, bad: Any, status: str) -> None:
    def sometimes(request: Request) -> Any:
        if any(number(text) == 21 for text in shown(request)):
            return Completion(**vars_of(bad)) if isinstance(bad, Completion) else bad
        return reply([])

    made = run(store, ScriptedEngine(sometimes), settings=Asking(max_attempts=2))
    without = rows(
        store,
        "SELECT query_id, doc_id, flagged, status FROM negative_verdicts JOIN calls USING (call_key) WHERE verdict IS NULL",
    )
    assert without
    assert {row[2:] for row in without} == {(None, status)}
    assert made.unreadable == len(without)
    assert made.partly_done() is not None
    mined = mine(store, dataset="c/train", runs=["first"], denoise_labels="v", name="clean")
    kept = set(rows(store, "SELECT query_id, doc_id FROM mined WHERE mining = 'clean'"))
    assert not kept & {row[:2] for row in without}, "without a verdict it is left out, and counted"
    assert mined.counts[1].drops["no verdict on it"][0] >= len(without)
    mended = run(store, by(thirds), settings=Asking(retry_quarantined=True))
    assert mended.unreadable == 0
    assert verify(store).findings == []


def vars_of(made: Completion) -> dict[str, Any]:
    return {name: getattr(made, name) for name in ("ticket", "text", "finish_reason", "error", "retryable")}


@pytest.mark.parametrize("action", ["drop", "relabel", "downweight"])
def test_denoising_by_verdicts_moves_exactly_what_is_flagged(store: LabelStore, action: str) -> None:
    before = set(rows(store, "SELECT query_id, doc_id FROM mined WHERE mining = 'hard'"))
    run(store, by(thirds), by(ninths))
    flagged = {pair for pair in before if int(pair[1][1:]) % 9 == 0}
    assert len(flagged) > 8
    made = mine(store, dataset="c/train", runs=["first"], denoise_labels="v", denoise=action, name="clean")
    found = {
        row[:2]: row[2:]
        for row in rows(store, "SELECT query_id, doc_id, label, weight FROM mined WHERE mining = 'clean'")
    }
    assert set(found) == (before - flagged if action == "drop" else before)
    for pair, (label, weight) in found.items():
        assert label == int(action == "relabel" and pair in flagged)
        assert weight == pytest.approx(0.1 if action == "downweight" and pair in flagged else 1)
    counted = {count.step: count for count in made.counts}["denoising"]
    assert sum(n for n, _ in counted.drops.values()) == len(flagged)
    (by_sql,) = rows(store, "SELECT count(*) FROM negative_verdicts WHERE checking = 'v' AND flagged")
    assert by_sql == (len(flagged),)
    assert verify(store).findings == []


def test_queries_with_more_flags_than_allowed_are_left_out_and_counted(store: LabelStore) -> None:
    run(store, by(thirds))
    flags = dict(
        rows(store, "SELECT query_id, count(*) FILTER (flagged) FROM negative_verdicts GROUP BY ALL")
    )
    assert len(set(flags.values())) > 1
    for most in sorted({*flags.values()})[:-1]:
        made = mine(
            store, dataset="c/train", runs=["first"], denoise_labels="v", max_flags=most, name=f"m{most}"
        )
        kept = {q for (q,) in rows(store, "SELECT DISTINCT query_id FROM mined WHERE mining = ?", f"m{most}")}
        assert kept == {q for q, n in flags.items() if n <= most}
        assert made.counts[0].drops["more flags than --max-flags"][0] == len(flags) - len(kept)


def test_relevant_as_flag_takes_those_that_are_less_good_too(store: LabelStore) -> None:
    run(store, by(ninths, thirds), flags="relevant")
    assert {(verdict, flagged) for _, _, verdict, _, flagged, *_ in rows(store, VERDICTS)} == {
        ("better", True),
        ("worse", True),
        ("irrelevant", False),
    }
    run(store, by(ninths, thirds), name="better")
    flagged = rows(
        store, "SELECT DISTINCT verdict FROM negative_verdicts WHERE checking = 'better' AND flagged"
    )
    assert flagged == [("better",)]


def test_the_forecast_bills_both_models(store: LabelStore) -> None:
    prices = Asking(base_urls=("http://127.0.0.1:9/v1",), input_price=1.0, output_price=2.0)
    wanted = WantedVerdicts(
        CHEAP, then=STRONG, window=4, name="v", then_input_price=10.0, then_output_price=20.0
    )
    before = rows(store, "SELECT count(*) FROM provenance")
    first, second = (bill.row() for bill in bills(store, "hard", wanted, prices))
    assert (first["calls_most"], second["calls_most"]) == (8 * 4, 8 * 4)
    assert first["cost_most"] == pytest.approx((first["tokens_in"] + 2 * first["tokens_out_most"]) / 1e6)
    assert second["cost_most"] == pytest.approx(
        10 * (second["tokens_in"] + 2 * second["tokens_out_most"]) / 1e6
    )
    assert rows(store, "SELECT count(*) FROM provenance") == before
    run(store, by(thirds), name="cheap alone")
    first, second = (bill.row() for bill in bills(store, "hard", wanted, prices))
    flagged = dict(
        rows(store, "SELECT query_id, count(*) FILTER (flagged) FROM negative_verdicts GROUP BY ALL")
    )
    assert (first["calls_most"], first["recorded"]) == (0, 32)
    assert second["calls_most"] == sum(-(-n // 4) for n in flagged.values()), "what is flagged is known now"


def test_wrong_settings_and_other_content_under_one_name_are_refused(store: LabelStore) -> None:
    run(store, by(thirds))
    for match, error, wanted in (
        ("no prompt named 'umbrela@1' that can check", TeacherError, {"prompt": "umbrela@1"}),
        ("--window 0", UsageError, {"window": 0}),
        ("--flags good", UsageError, {"flags": "good"}),
        ("the model that was asked first", UsageError, {"then": CHEAP}),
        ("there is no second model", UsageError, {"then_input_price": 1.0}),
        ("there are verdicts v already", BadInput, {"window": 5}),
        ("there are verdicts v already", BadInput, {"flags": "relevant"}),
    ):
        with pytest.raises(error, match=match):
            check(
                store,
                "hard",
                WantedVerdicts(**({"model": CHEAP, "window": 4, "name": "v"} | wanted)),
                Asking(),
                engines_given=[by(thirds)] * 2,
            )
    mine(store, dataset="c/train", runs=["first"], depth=20, per_query=9, name="hard", replace=True)
    with pytest.raises(BadInput, match="there are verdicts v already"):
        run(store, by(thirds))
    with pytest.raises(DataMissing, match="no negatives named"):
        check(store, "soft", WantedVerdicts(CHEAP), Asking(), engines_given=[by(thirds)])
    with pytest.raises(DataMissing, match="no labeling"):
        mine(store, dataset="c/train", runs=["first"], denoise_labels="w", name="n")
    with pytest.raises(UsageError, match="negatives of another dataset"):
        mine(store, dataset="c/test", runs=["first"], denoise_labels="v", name="n")


def test_verdicts_merge_and_are_removed(store: LabelStore, tmp_path: Path) -> None:
    run(store, by(thirds), by(ninths))
    other = made_store.make(tmp_path / "other.duckdb", n_documents=60, n_queries=8, depth=30, offset=700)
    merge_stores(other, store)
    assert rows(other, VERDICTS) == rows(store, VERDICTS)
    assert not merge_stores(other, store).new
    assert verify(other).findings == []
    remove(other, "verdicts", "v", plan(other, "verdicts", "v"))
    assert rows(other, "SELECT (SELECT count(*) FROM checkings), (SELECT count(*) FROM verdicts)") == [(0, 0)]
    remove(store, "dataset", "c/train", plan(store, "dataset", "c/train"))
    assert rows(store, "SELECT (SELECT count(*) FROM checkings), (SELECT count(*) FROM verdicts)") == [(0, 0)]
    for left in (store, other):
        assert verify(left).findings == []


@pytest.mark.needs("shared")
def test_true_positives_hidden_among_dl19s_negatives_are_found_all_of_them_and_no_more(
    tmp_path: Path,
) -> None:
    """A judged positive of each query stays; the others lose their judgment, and are mined as negatives."""
    folder = SHARED / "dl19-passage"
    store = LabelStore(tmp_path / "dl19.duckdb")
    add_dataset(store, "dl19", folder)
    path = folder / "runs" / "bm25.run.gz"
    import_run(store, path, dataset="dl19", name="bm25")
    with store.write() as con:
        con.execute(
            """CREATE TEMP TABLE kept AS SELECT DISTINCT ON (query) query, document FROM qrels JOIN documents USING (document)
               WHERE relevance >= 2 AND text IS NOT NULL ORDER BY query, relevance DESC, doc_id"""
        )
        con.execute(
            """CREATE TEMP TABLE hidden AS SELECT c.query, c.document FROM candidates c JOIN qrels USING (query, document)
               SEMI JOIN kept ON kept.query = c.query ANTI JOIN kept k ON k.query = c.query AND k.document = c.document
               WHERE relevance >= 2 AND rank <= 100"""
        )
        planted = set(
            con.execute(
                "SELECT query_id, doc_id FROM hidden JOIN queries USING (query) JOIN documents USING (document)"
            ).fetchall()
        )
        con.execute("DELETE FROM qrels WHERE (query, document) NOT IN (SELECT (query, document) FROM kept)")
        con.execute("UPDATE datasets SET qrels_hash = ?", [qrels_hash(con, 1)])
    human = rows(store, "SELECT name, qrels_hash FROM datasets")
    mine(
        store,
        dataset="dl19",
        runs=["bm25"],
        depth=100,
        per_query=99,
        strategy="top",
        min_relevance=2,
        name="hard",
    )
    mined = set(rows(store, "SELECT query_id, doc_id FROM mined WHERE mining = 'hard'"))
    planted &= mined
    assert len(planted) > 200
    plain = passages.neutraliser()
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for q, title, d, query_id, doc_id in rows(
        store,
        """SELECT q.text, d.title, d.text, q.query_id, d.doc_id FROM negatives n JOIN queries q USING (query)
           JOIN documents d USING (document)""",
    ):
        pairs.setdefault((passages.query(q, plain), passages.passage(title, d, plain)), []).append(
            (query_id, doc_id)
        )

    def says(is_good: Callable[[tuple[str, str]], bool]) -> ScriptedEngine:
        def answer(request: Request) -> str:
            question = request.messages[-1]["content"].split("<question>\n")[1].split("\n</question>")[0]
            found = [pairs[question, text] for text in shown(request)]
            engine.asked += [pair for own in found for pair in own]
            return reply([k for k, own in enumerate(found, 1) if any(map(is_good, own))])

        engine: Any = ScriptedEngine(answer)
        engine.asked = []
        return engine

    def careless(pair: tuple[str, str]) -> bool:  # finds all, and a tenth of the others in every second query
        return pair in planted or (int(pair[0]) % 2 == 0 and int(pair[1]) % 10 == 0)

    cheap, strong = says(careless), says(planted.__contains__)
    made = check(
        store, "hard", WantedVerdicts(WIDE, then=STRONG, name="v"), Asking(), engines_given=[cheap, strong]
    )
    assert set(cheap.asked) >= mined
    flagged = {pair for pair in mined if careless(pair)}
    assert {query for query, _ in strong.asked} == {query for query, _ in flagged}
    assert set(strong.asked) == flagged > planted
    assert set(rows(store, "SELECT query_id, doc_id FROM negative_verdicts WHERE flagged")) == planted
    assert made.flagged == len(planted)
    mine(
        store,
        dataset="dl19",
        runs=["bm25"],
        depth=100,
        strategy="top",
        min_relevance=2,
        denoise_labels="v",
        denoise="relabel",
        name="moved",
    )
    assert (
        set(rows(store, "SELECT query_id, doc_id FROM mined WHERE mining = 'moved' AND label = 1")) == planted
    )
    assert set(rows(store, "SELECT query_id, doc_id FROM mined WHERE mining = 'moved'")) == mined
    drops = rows(store, "SELECT n FROM drops WHERE subject = 'moved' AND step = 'negatives denoising'")
    assert drops == [(len(planted),)]
    assert rows(store, "SELECT name, qrels_hash FROM datasets") == human
    assert verify(store).findings == []
