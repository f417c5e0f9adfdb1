"""Comparisons: values equal to scipy, statsmodels and PyTerrier; verdicts; seeds; pooled topics; what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from shelves import DOCS, Ranked, Shelf, Small, fill
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import comparison
from labelstore.evaluation.seed_groups import SeedGroup, find
from labelstore.evaluation.systems import System
from labelstore.labels import staging as label_staging
from labelstore.labels.import_file import import_labels
from labelstore.runs import import_run
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from teachers.prompts import replies

NDCG = "nDCG@10"


def board(scores: dict[str, np.ndarray]) -> comparison.Board:
    """Systems by their scores alone: rows are seeds; a single row is a system without training."""
    scores = {name: np.atleast_2d(rows) for name, rows in scores.items()}
    made = tuple(
        SeedGroup(
            name,
            tuple(
                System(
                    f"{name}{k}", "run", k, None, None, None, name if len(rows) > 1 else None, None, 10, name
                )
                for k in range(len(rows))
            ),
        )
        for name, rows in scores.items()
    )
    values = {name: {NDCG: rows} for name, rows in scores.items()}
    return comparison.Board("made", made, (NDCG,), values, dict.fromkeys(scores, 0))


def many(shelf: Shelf, n_queries: int = 24, n_systems: int = 5) -> dict[str, Ranked]:
    """A dataset with graded judgments and shuffled rankings of growing quality."""
    generator = np.random.default_rng(11)
    collection = shelf.collection("many", DOCS)
    queries = {f"q{i:02d}": f"topic {i}" for i in range(n_queries)}
    qrels = {q: {d: int(g) for d, g in zip(DOCS, generator.integers(0, 4, 12), strict=True)} for q in queries}
    dataset = shelf.dataset("many/test", collection, queries, qrels)
    ranked = {}
    for k in range(n_systems):
        ranked[f"s{k}"] = {
            q: [DOCS[i] for i in np.argsort([-qrels[q][d] * k / 4 + generator.normal(0, 1.5) for d in DOCS])]
            for q in queries
        }
        shelf.run(f"s{k}", dataset, ranked[f"s{k}"])
    return ranked


def query_scores(store: LabelStore, dataset: str, measure: str) -> dict[str, np.ndarray]:
    """What the store holds, by system, in query order."""
    with store.read() as con:
        found = con.execute(
            "SELECT system, list(value ORDER BY query_id) FROM result_queries WHERE dataset = ? AND measure = ? GROUP BY system",
            [dataset, measure],
        ).fetchall()
    return {system: np.array(values) for system, values in found}


def check_against_the_libraries(rows: list[dict[str, Any]], scores: dict[str, np.ndarray]) -> None:
    """Every statistic of the rows from the libraries' own functions on the stored scores, within 1e-9."""
    p_values = []
    for row in rows:
        a, b = scores[row["system"]], scores[row["baseline"]]
        t = stats.ttest_rel(a, b)
        p_values.append(t.pvalue)
        ends90, ends95 = t.confidence_interval(0.90), t.confidence_interval(0.95)
        expected = {
            "value": a.mean(), "baseline_value": b.mean(), "difference": (a - b).mean(), "p_value": t.pvalue,
            "ci90_low": ends90.low, "ci90_high": ends90.high, "ci95_low": ends95.low, "ci95_high": ends95.high,
            "tost_p": ttost_paired(a, b, -row["margin"], row["margin"])[0],
            "effect_size": (a - b).mean() / (a - b).std(ddof=1),
            "margin_shown": max(abs(ends90.low), abs(ends90.high)),
        }  # fmt: skip
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-9), row["system"]
        assert row["test"] == "t"
        assert row["wins"] + row["ties"] + row["losses"] == row["n_queries"] == len(a)
    for name, method in (("p_holm", "holm"), ("p_bh", "fdr_bh")):
        assert [row[name] for row in rows] == pytest.approx(
            multipletests(p_values, method=method)[1], abs=1e-9
        )


def check_against_pyterrier(
    rows: list[dict[str, Any]], rankings: dict[str, pd.DataFrame], qrels: pd.DataFrame, baseline: str
) -> None:
    """PyTerrier's Experiment over the same rankings: means, p-values and Holm's correction within 1e-9."""
    import pyterrier as pt
    from ir_measures import nDCG

    names = [baseline, *(row["system"] for row in rows)]
    topics = qrels[["qid"]].drop_duplicates().assign(query="")
    table = pt.Experiment(
        [rankings[name] for name in names], topics, qrels, [nDCG @ 10],
        names=names, baseline=0, correction="holm", filter_by_qrels=True,
    ).set_index("name")  # fmt: skip
    for row in rows:
        theirs = table.loc[row["system"]]
        ours = (row["value"], row["p_value"], row["p_holm"])
        columns = (NDCG, f"{NDCG} p-value", f"{NDCG} p-value corrected")
        assert ours == pytest.approx([theirs[c] for c in columns], abs=1e-9), row["system"]


def frame(ranked: dict[str, list[str]]) -> pd.DataFrame:
    rows = [(q, "", d, -float(r), r) for q, docs in ranked.items() for r, d in enumerate(docs)]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "score", "rank"])


def qrels_frame(store: LabelStore, dataset: str) -> pd.DataFrame:
    with store.read() as con:
        sql = "SELECT query_id, doc_id, relevance FROM judgments WHERE dataset = ?"
        return pd.DataFrame(con.execute(sql, [dataset]).fetchall(), columns=["qid", "docno", "label"])


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelStore, dict[str, Ranked]]:
    """Five systems over 24 queries."""
    shelf = Shelf(LabelStore(tmp_path_factory.mktemp("graded") / "s.duckdb"))
    return shelf.store, many(shelf)


@pytest.mark.test_all
def test_values_are_scipys_statsmodels_and_pyterriers(graded: tuple[LabelStore, dict[str, Ranked]]) -> None:
    store, ranked = graded
    rows = comparison.compare(store, ["s0", "s1", "s2", "s3", "s4"], ["many/test"], measures=[NDCG])
    assert [(r["system"], r["baseline"]) for r in rows] == [(f"s{k}", "s0") for k in (1, 2, 3, 4)]
    assert {r["verdict"] for r in rows} >= {"better"}
    check_against_the_libraries(rows, query_scores(store, "many/test", NDCG))
    check_against_pyterrier(
        rows, {n: frame(r) for n, r in ranked.items()}, qrels_frame(store, "many/test"), "s0"
    )


@pytest.fixture(scope="module")
def dl19(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """TREC DL 2019's real runs and labelings; for tests that need `shared`."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "dl19-passage"
    store = LabelStore(tmp_path_factory.mktemp("dl19") / "dl19.duckdb")
    add_folder(store, folder, NewDataset(name="dl19", collection="msmarco-passage", judged_only=False))
    for path in sorted((folder / "runs").glob("*.run.gz")):
        import_run.import_run(store, path, "dl19", path.name.removesuffix(".run.gz"))
    import_labels(store, folder / "permutations.jsonl.gz", label_staging.LabelsToImport("dl19"), replies)
    return store


@pytest.mark.test_all
@pytest.mark.needs("shared")
def test_dl19s_runs_and_labelings_agree_with_the_libraries(dl19: LabelStore) -> None:
    rows = comparison.compare(dl19, None, ["dl19"], baseline="bm25")
    assert len(rows) == 25
    assert {row["family_size"] for row in rows} == {25}
    check_against_the_libraries(rows, query_scores(dl19, "dl19", NDCG))
    rankings: dict[str, pd.DataFrame] = {}
    with dl19.read() as con:
        for system, query, doc, rank in con.execute(
            """SELECT run, query_id, doc_id, rank FROM ranked UNION ALL
               SELECT labeling, query_id, doc_id, rank FROM labels ORDER BY ALL"""
        ).fetchall():
            rankings.setdefault(system, []).append((query, "", doc, -float(rank), rank))  # type: ignore[arg-type, call-overload]
    frames = {
        name: pd.DataFrame(lines, columns=["qid", "query", "docno", "score", "rank"])
        for name, lines in rankings.items()
    }
    check_against_pyterrier(rows, frames, qrels_frame(dl19, "dl19"), "bm25")
    assert {r["system"] for r in rows if r["verdict"] == "inconclusive"} == {"bm25-rm3"}


@pytest.mark.needs("shared")
def test_rankzephyr_against_gpt_4o_is_no_parity(dl19: LabelStore) -> None:
    names = ["gpt-4o@pisa-bm25-100", "rankzephyr-7b@pisa-bm25-100"]
    (row,) = comparison.compare(dl19, names, ["dl19"], margin=0.01)
    assert row["n_queries"] == 43
    assert row["verdict"] != "equivalent"
    assert row["value"] == pytest.approx(0.714, abs=0.001)
    assert row["baseline_value"] == pytest.approx(0.745, abs=0.001)
    assert row["tost_p"] > 0.5
    assert 0.01 < row["margin_showable"] < row["margin_shown"] < 0.1
    (wide,) = comparison.compare(dl19, names, ["dl19"], margin=0.06)
    assert wide["verdict"] == "equivalent", "the margin that the interval lies within"


def test_two_equal_systems_with_little_variance_are_equivalent() -> None:
    generator = np.random.default_rng(5)
    a = generator.uniform(0.2, 0.9, 43)
    made = board({"a": a, "b": a + generator.normal(0, 0.01, 43), "c": a + generator.normal(0, 0.2, 43)})
    close, wide = comparison.compare_pairs(made, [("b", "a"), ("c", "a")], margin=0.01)
    assert (close["verdict"], wide["verdict"]) == ("equivalent", "inconclusive")
    assert close["tost_p"] < 0.05 < wide["tost_p"]
    assert close["margin_shown"] < 0.01 < wide["margin_shown"]
    assert close["margin_showable"] < 0.01 < wide["margin_showable"]
    (same,) = comparison.compare_pairs(board({"a": a, "b": a.copy()}), [("b", "a")])
    assert (same["verdict"], same["p_value"], same["tost_p"], same["ties"]) == ("equivalent", 1.0, 0.0, 43)


@pytest.mark.parametrize(
    ("low", "high", "p", "difference", "expected"),
    [
        (-0.009, 0.009, 0.9, 0.0, "equivalent"),
        (0.001, 0.009, 0.001, 0.005, "equivalent"),  # different, yet by less than matters
        (-0.01, 0.005, 0.5, -0.002, "inconclusive"),  # an end on the margin is not within it
        (0.005, 0.05, 0.049, 0.03, "better"),
        (-0.05, -0.005, 0.049, -0.03, "worse"),
        (0.005, 0.05, 0.05, 0.03, "inconclusive"),
        (float("nan"), float("nan"), float("nan"), 0.1, "inconclusive"),
    ],
)
def test_the_verdicts_rule(low: float, high: float, p: float, difference: float, expected: str) -> None:
    row = {"ci90_low": low, "ci90_high": high, "margin": 0.01, "p_holm": p, "difference": difference}
    assert comparison.verdict(row) == expected


@pytest.mark.test_all
def test_the_correction_is_within_the_declared_family(graded: tuple[LabelStore, dict[str, Ranked]]) -> None:
    store, _ = graded
    names = ["s0", "s2", "s4"]
    own = comparison.compare(store, names, ["many/test"], measures=[NDCG, "P@5"])
    assert {row["family_size"] for row in own} == {2}
    wide = comparison.compare(store, names, ["many/test"], measures=[NDCG, "P@5"], family="all")
    p_values = [row["p_value"] for row in wide]
    assert [row["p_holm"] for row in wide] == pytest.approx(multipletests(p_values, method="holm")[1])
    pairs = comparison.compare(store, names, ["many/test"], measures=[NDCG], all_pairs=True)
    assert [(r["system"], r["baseline"]) for r in pairs] == [("s2", "s0"), ("s4", "s0"), ("s4", "s2")]


@pytest.mark.test_all
def test_a_judged_query_that_a_run_lacks_scores_zero_in_the_test(small: Small) -> None:
    notes: list[str] = []
    (row,) = comparison.compare(
        small.store, ["oracle@bm25", "short"], ["toy/test"], measures=[NDCG], note=notes.append
    )
    assert (row["n_queries"], row["n_missing"], row["baseline_missing"], row["losses"]) == (6, 1, 0, 1)
    assert row["difference"] == pytest.approx(-row["baseline_value"] / 6, abs=0.1)
    assert notes == ["toy/test: short lacks 1 of 6 judged queries; they score 0"]


# ---------------------------------------------------------------------------------------------------------- names
@pytest.mark.test_all
def test_a_student_over_two_first_stages_is_named_with_one(small: Small) -> None:
    dense = small.shelf.run("dense", small.dataset, small.ranked["bm25"])
    with small.store.read() as con:
        ((student,),) = con.execute("SELECT student FROM students").fetchall()
    small.shelf.run("cl-student@dense", small.dataset, small.ranked["better"], "student", dense, student)
    with pytest.raises(UsageError) as error:
        comparison.compare(small.store, ["bm25", "cl-student"], ["toy/test"])
    assert error.value.hint == "cl-student@bm25 | cl-student@dense"
    names = ["cl-student@dense", "cl-student@bm25"]
    (row,) = comparison.compare(small.store, names, ["toy/test"])
    assert (row["system"], row["baseline"], row["verdict"]) == (names[1], names[0], "equivalent")
    rows = comparison.compare(small.store, ["bm25", "cl-student@*"], ["toy/test"])
    assert {r["system"] for r in rows} == set(names)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small store, for tests that leave it as it is."""
    return fill(Shelf(LabelStore(tmp_path_factory.mktemp("untouched") / "s.duckdb")))


@pytest.mark.parametrize(
    ("names", "options", "error", "says"),
    [
        (["bm25", "bm52"], {}, DataMissing, "bm52"),
        (["bm25"], {}, UsageError, "two systems"),
        (["bm25", "bm25"], {}, UsageError, "two systems"),
        (["bm25", "short"], {"margin": 0.0}, UsageError, "--margin"),
        (["bm25", "short"], {"margin": float("nan")}, UsageError, "--margin"),
        (["bm25", "short"], {"correction": "bonferroni"}, UsageError, "--correction"),
        (["bm25", "short"], {"family": "some"}, UsageError, "--family"),
        (["bm25", "short"], {"measures": ["nDCG@ten"]}, UsageError, "--measure"),
        (["bm25", "short"], {"pooled": True}, UsageError, "two datasets"),
        (["bm25", "short"], {"all_pairs": True, "baseline": "bm25"}, UsageError, "--all"),
        (None, {}, UsageError, "no baseline"),
        (None, {"baseline": "bm52"}, DataMissing, "bm52"),
    ],
)
def test_what_cannot_be_is_refused(
    untouched: Small, names: list[str] | None, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        comparison.compare(untouched.store, names, ["toy/test"], **options)
    assert raised.value.hint  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------- seeds
def trained(small: Small, name: str, seed: int, lr: float = 1e-5) -> None:
    """A student with a recipe, and its run over bm25: the better ranking, worsened at two queries of the seed."""
    student = small.shelf.student(name, "cl", seed)
    recipe = {
        "recipe": {"base": "b", "regime": "cl", "seed": seed, "stages": [{"lr": lr}]},
        "base": "hash",
        "views": {},
    }
    with small.store.write() as con:
        con.execute("UPDATE students SET recipe = ? WHERE name = ?", [json.dumps(recipe), name])
    generator = np.random.default_rng(seed)
    worse = {f"q{k}" for k in generator.choice(6, 2, replace=False)}
    ranked = {q: docs[::-1] if q in worse else docs for q, docs in small.ranked["better"].items()}
    small.shelf.run(f"{name}@bm25", small.dataset, ranked, "student", small.bm25, student)


@pytest.mark.test_all
def test_students_that_differ_by_seed_alone_are_one_system(small: Small) -> None:
    for seed in range(1, 6):
        trained(small, f"new-s{seed}", seed)
    trained(small, "new-high", 1, lr=1e-3)
    with small.store.read() as con:
        of = lookup.dataset(con, "toy/test")
        found = find(con, of, ["bm25", "new-s*", "new-high"])
        assert [(c.name, c.seeds) for c in found] == [("bm25", None), ("new (5 seeds)", 5), ("new-high", 1)]
        assert len(find(con, of, ["bm25", "new-s*"], each_seed=True)) == 6
        assert [c.name for c in find(con, of, ["new-s2"])] == ["new-s2"]
    against = comparison.compare(small.store, None, ["toy/test"], measures=[NDCG], baseline="new-s*")
    assert {r["baseline"] for r in against} == {"new (5 seeds)"}
    (row,) = comparison.compare(small.store, ["bm25", "new-s*"], ["toy/test"], measures=[NDCG])
    assert (row["test"], row["seeds"], row["baseline_seeds"]) == ("bootstrap", 5, None)
    scores = query_scores(small.store, "toy/test", NDCG)
    assert row["value"] == pytest.approx(np.mean([scores[f"new-s{k}@bm25"].mean() for k in range(1, 6)]))
    means = np.mean([scores[f"new-s{k}@bm25"] for k in range(1, 6)], axis=0) - scores["bm25"]
    over_queries = stats.ttest_1samp(means, 0).confidence_interval(0.90)
    assert row["ci90_high"] - row["ci90_low"] != pytest.approx(over_queries.high - over_queries.low, abs=1e-6)


@pytest.mark.test_all
def test_few_seeds_are_said_to_be_few(small: Small) -> None:
    for seed in (1, 2, 3):
        trained(small, f"new-s{seed}", seed)
    notes: list[str] = []
    (row,) = comparison.compare(
        small.store, ["bm25", "new-s*"], ["toy/test"], measures=[NDCG], note=notes.append
    )
    assert (row["system"], row["test"], row["seeds"]) == ("new (3 seeds)", "t", 3)
    assert any("new (3 seeds): fewer than 5 seeds" in note for note in notes)


def test_seeds_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(9)
    base = generator.uniform(0.3, 0.7, 200)
    level = np.array([-0.04, -0.02, 0.0, 0.02, 0.04])[:, None]
    steady = np.tile(base, (5, 1)) + generator.normal(0, 0.01, (5, 200))
    made = board({"base": base, "steady": steady, "unsteady": steady + level})
    first, second = comparison.compare_pairs(made, [("steady", "base"), ("unsteady", "base")], margin=0.01)
    assert first["test"] == second["test"] == "bootstrap"
    assert (first["verdict"], second["verdict"]) == ("equivalent", "inconclusive")
    assert second["margin_showable"] > 0.03 > 0.01 > first["margin_showable"]


# --------------------------------------------------------------------------------------------------------- pooled
@pytest.mark.test_all
def test_pooling_counts_a_shared_topic_once(shelf: Shelf) -> None:
    collection = shelf.collection("toy", DOCS)
    judged = {DOCS[0]: 2}
    one = shelf.dataset(
        "one", collection, {"a1": "What is BM25?", "a2": "old topic"}, {"a1": judged, "a2": judged}
    )
    two = shelf.dataset(
        "two", collection, {"b1": "what is bm25", "b2": "new topic"}, {"b1": judged, "b2": judged}
    )
    for name, docs in (("up", DOCS), ("down", DOCS[::-1])):
        shelf.run(name, one, {"a1": docs, "a2": DOCS})
        shelf.run(name, two, {"b1": docs, "b2": docs})
    notes: list[str] = []
    (row,) = comparison.compare(
        shelf.store, ["up", "down"], ["one", "two"], measures=["RR@10"], pooled=True, note=notes.append
    )
    assert (row["dataset"], row["n_queries"], row["losses"], row["ties"]) == ("one+two", 3, 2, 1)
    assert notes == ["two: 1 of 2 topics stand in an earlier dataset and count there alone"]
    apart = comparison.compare(shelf.store, ["up", "down"], ["one", "two"], measures=["RR@10"])
    assert [(r["dataset"], r["n_queries"]) for r in apart] == [("one", 2), ("two", 2)]


@pytest.mark.test_all
def test_pooling_needs_every_system_everywhere(shelf: Shelf) -> None:
    collection = shelf.collection("toy", DOCS)
    for name in ("one", "two"):
        dataset = shelf.dataset(name, collection, {f"{name}1": name}, {f"{name}1": {DOCS[0]: 1}})
        shelf.run("up", dataset, {f"{name}1": DOCS})
        shelf.run(f"only-{name}", dataset, {f"{name}1": DOCS})
    with pytest.raises(DataMissing, match="only-one, only-two"):
        comparison.compare(shelf.store, ["up", "only-*"], ["one", "two"], pooled=True)
