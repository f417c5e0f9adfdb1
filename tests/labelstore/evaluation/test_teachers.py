"""`msft teachers compare`: values, intervals, verdicts, agreement and cost, each against another way to the same figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from shelves import DOCS, Small, msft

from benchmarks.labelling_store import make
from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import comparison
from labelstore.evaluation.teachers import compare
from labelstore.labels.combine import combine
from labelstore.labels.import_file import import_labels
from labelstore.labels.staging import LabelsToImport
from labelstore.runs import import_run
from labelstore.store.label_store import LabelStore
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from teachers.prompts import replies
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order


@pytest.fixture
def three(small: Small) -> Small:
    """Beside oracle@bm25: a teacher that leaves the order as it is, and one that turns it round."""
    still = {q: list(docs) for q, docs in small.ranked["bm25"].items()}
    small.shelf.labeling("still@bm25", small.dataset, still, run=small.bm25, first_stage="bm25")
    turned = {q: docs[::-1] for q, docs in still.items()}
    small.shelf.labeling("turned@bm25", small.dataset, turned, run=small.bm25, first_stage="bm25")
    return small


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["labeling"]: row for row in rows}


def test_values_and_verdicts_are_those_of_compare(three: Small) -> None:
    names = ["oracle@bm25", "still@bm25", "turned@bm25"]
    rows = compare(three.store, names, measure="nDCG@10")
    assert [row["labeling"] for row in rows] == names, "best first"
    assert {row["baseline"] for row in rows} == {"oracle@bm25"}
    pairs = comparison.compare(three.store, names, ["toy/test"], measures=["nDCG@10"], baseline="oracle@bm25")
    found = by_name(rows)
    assert found["oracle@bm25"]["verdict"] == "baseline"
    for pair in pairs:
        row = found[pair["system"]]
        for key in ("value", "difference", "ci90_low", "ci90_high", "p_holm", "tost_p", "verdict"):
            assert row[key] == pair[key], key
    assert found["still@bm25"]["gain"] == 0.0
    assert found["turned@bm25"]["gain"] < 0 < found["oracle@bm25"]["gain"]


def test_the_interval_is_the_t_interval_of_the_mean(three: Small) -> None:
    (row,) = compare(three.store, ["turned@bm25"], measure="nDCG@10")
    board = comparison.measure_systems(three.store, "toy/test", ["turned@bm25"], ["nDCG@10"])
    values = board.values["turned@bm25"]["nDCG@10"][0]
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (row["ci95_low"], row["ci95_high"]) == pytest.approx((low, high))
    assert row["verdict"] == "baseline"


def test_tau_is_with_the_baseline_whoever_that_is(three: Small) -> None:
    rows = by_name(compare(three.store, baseline="still@bm25"))
    assert (rows["still@bm25"]["tau"], rows["turned@bm25"]["tau"]) == (1.0, -1.0)
    taus = [
        stats.kendalltau(range(12), [three.ranked["better"][q].index(d) for d in DOCS]).statistic
        for q in three.ranked["better"]
    ]
    assert rows["oracle@bm25"]["tau"] == pytest.approx(np.mean(taus))


def test_a_combination_is_compared_with_the_best_of_the_single_ones(three: Small) -> None:
    combine(three.store, ["still@bm25", "turned@bm25"], by="borda", name="both")
    rows = by_name(compare(three.store, ["both", "still@bm25", "turned@bm25"]))
    assert {row["baseline"] for row in rows.values()} == {"still@bm25"}
    assert rows["both"]["strategy"] == "combined"
    assert rows["both"]["disagreement"] == 2.0, "one order is the other turned round"


def test_cost_and_time_are_those_of_the_judged_queries_alone(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 5, length=lambda k: 30, passages=40)
    with store.write() as con:
        con.execute(
            "INSERT INTO qrels SELECT 1, query, document, 1 FROM candidates WHERE query < 3 AND rank < 4"
        )
        con.execute("UPDATE datasets SET qrels_hash = 'h'")
    settings: dict[str, Any] = {"canaries": 0, "input_price": 2.0, "output_price": 5.0}
    generate(store, Settings(model="rankzephyr", name="a", **settings), engine=ScriptedEngine(hashed_order))
    generate(store, Settings(model="rankvicuna", name="b", canaries=0), engine=ScriptedEngine(hashed_order))
    combine(store, ["a", "b"], by="rrf", name="ab")
    combine(store, ["a", "ab"], by="rrf", name="aab")
    rows = by_name(compare(store, ["a", "b", "ab", "aab"], measure="nDCG@10"))
    with store.read() as con:
        calls, tokens_in, tokens_out, seconds = con.execute(
            """SELECT count(*), sum(c.tokens_in), sum(c.tokens_out), sum(c.seconds)
               FROM labeling_calls JOIN labelings USING (labeling) JOIN calls c USING (call)
               WHERE name = 'a' AND query < 3"""
        ).fetchall()[0]
    a = rows["a"]
    assert (
        (a["calls"], a["tokens_in"], a["tokens_out"])
        == (calls, tokens_in, tokens_out)
        == (6, tokens_in, tokens_out)
    )
    assert a["cost"] == pytest.approx((2.0 * tokens_in + 5.0 * tokens_out) / 1e6)
    assert a["seconds_per_query"] == pytest.approx(seconds / 3)
    expected = a["cost"] / (100 * a["gain"]) if a["gain"] > 0 else None
    assert a["cost_per_point"] == (None if expected is None else pytest.approx(expected))
    assert rows["b"]["cost"] is None, "its teacher has no price"
    assert rows["ab"]["cost"] is None
    assert rows["ab"]["calls"] == rows["aab"]["calls"] == 12, "shared calls count once"


def test_labels_without_calls_have_no_cost(three: Small) -> None:
    row = by_name(compare(three.store))["oracle@bm25"]
    shown = ("calls", "tokens_in", "tokens_out", "cost", "seconds_per_query", "cost_per_point")
    assert [row[key] for key in shown] == [None] * 6


def test_a_first_stage_that_the_store_lacks_gives_no_gain(three: Small) -> None:
    three.shelf.labeling("far@other", three.dataset, three.ranked["better"], first_stage="other")
    rows = by_name(compare(three.store))
    assert rows["far@other"]["gain"] is None
    assert rows["far@other"]["cost_per_point"] is None


def test_what_cannot_be_compared_is_refused(three: Small) -> None:
    collection = three.shelf.collection("more", ["x1", "x2"])
    other = three.shelf.dataset("more/test", collection, {"z": "text z"}, {"z": {"x1": 1}})
    three.shelf.labeling("t@more", other, {"z": ["x1", "x2"]})
    with pytest.raises(UsageError, match="over different datasets: more/test, toy/test"):
        compare(three.store, ["still@bm25", "t@more"])
    with pytest.raises(UsageError, match="t@more is not over toy/test"):
        compare(three.store, ["t@more"], dataset="toy/test")
    with pytest.raises(DataMissing, match="no labeling named 'stil@bm25'"):
        compare(three.store, ["stil@bm25"])
    with pytest.raises(UsageError, match="--margin"):
        compare(three.store, ["still@bm25"], margin=0)
    unlabelled = three.shelf.dataset("none/test", collection, {"y": "text y"}, {"y": {"x1": 1}})
    assert unlabelled
    with pytest.raises(DataMissing, match="none/test has no labels"):
        compare(three.store, dataset="none/test")


@pytest.mark.test_all
def test_every_format_has_the_same_rows(three: Small) -> None:
    arguments = ("teachers", "compare", "oracle@bm25", "turned@bm25", "-q")
    rows = json.loads(msft(three.store, *arguments, "--format", "json").out)
    assert [row["labeling"] for row in rows] == ["oracle@bm25", "turned@bm25"]
    for form, mark in (
        ("table", "verdict"),
        ("md", "| verdict |"),
        ("csv", "cost_per_point"),
        ("latex", r"\toprule"),
    ):
        out = msft(three.store, *arguments, "--format", form).out
        assert mark in out
        assert out.index("oracle@bm25") < out.index("turned@bm25")
    done = msft(
        three.store, "teachers", "combine", "oracle@bm25", "turned@bm25", "--by", "mean-score", code=2
    )
    assert "hint: --by borda, rrf or median need ranks alone" in done.err
    done = msft(three.store, "teachers", "combine", "oracle@bm25", "turned@bm25", "--format", "json")
    assert json.loads(done.out)[0]["labeling"] == "borda@bm25"


BM25 = (
    "gpt-3.5-turbo-top100-t1", "gpt-3.5-turbo-top100-t4", "rankvicuna-7b-aug-top100-t2", "flan-t5-xxl.setwise.bubblesort.c3",
    "flan-t5-xxl.listwise.likelihood.r5", "Llama-3.1-8B-Instruct.listwise.generation", "rankmistral100-full",
)  # fmt: skip


@pytest.mark.test_all
@pytest.mark.needs("shared")
def test_dl19s_real_labelings_combined_against_the_best_single_one(tmp_path: Path, shared: Path) -> None:
    """The table of benchmarks/results/teachers.md: nine teachers and three combinations of the seven over bm25."""
    source = shared / "dl19-passage"
    store = LabelStore(tmp_path / "s.duckdb")
    add_folder(store, source, NewDataset("dl19"))
    import_run.import_run(store, source / "runs" / "bm25.run.gz", "dl19", "bm25")
    import_labels(store, source / "permutations.jsonl.gz", LabelsToImport("dl19"), replies)
    single = [f"{teacher}@bm25" for teacher in BM25]
    far = ["gpt-4o@pisa-bm25-100", "rankzephyr-7b@pisa-bm25-100"]
    for by in ("borda", "rrf", "median"):
        assert combine(store, single, by=by, name=by).lists == 43
    with pytest.raises(UsageError, match="only labelings of one run"):
        combine(store, [*single, *far], by="borda", name="all")
    rows = compare(store, [*single, *far, "borda", "rrf", "median"])
    assert len(rows) == 12
    own = next(row for row in rows if row["verdict"] == "baseline")
    assert own["value"] == max(row["value"] for row in rows if row["strategy"] != "combined")
    assert {row["verdict"] for row in rows} <= {"baseline", "better", "worse", "equivalent", "inconclusive"}
    for by in ("borda", "rrf", "median"):
        row = by_name(rows)[by]
        assert row["value"] > np.median([r["value"] for r in rows if r["labeling"] in single])
        assert row["gain"] > 0
