"""The shipped tables of label quality over real labels, against scipy, ir-measures and counting by hand."""

import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import ir_measures
import pytest
from scipy.stats import kendalltau

from labelstore.analyses import ask as query
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.needs("shared")


@pytest.fixture(scope="module")
def source() -> Path:
    return Path(__file__).resolve().parents[4] / "shared" / "data" / "dl19-passage"


@pytest.fixture(scope="module")
def lists(source: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """labeling -> query -> the file's own record."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    with gzip.open(source / "permutations.jsonl.gz", "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            found[f"{record['teacher']}@{record['first_stage']}"][record["query_id"]] = record
    return dict(found)


@pytest.fixture(scope="module")
def table(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `msft sql @label_quality` says, by labeling."""
    from cli.main import app

    path = str(tmp_path_factory.mktemp("quality") / "s.duckdb")
    for arguments in (
        ["data", "add", "dl19", "--from", str(source)],
        ["teachers", "import", str(source / "permutations.jsonl.gz"), "--dataset", "dl19"],
    ):
        app([*arguments, "--store", path, "-q"], standalone_mode=False)
    found = query.sql(LabelStore(path), "@label_quality", parameters={"dataset": "dl19"}).to_dicts()
    assert [row["nDCG@10"] for row in found] == sorted((row["nDCG@10"] for row in found), reverse=True)
    return {row["labeling"]: row for row in found}


@pytest.mark.test_all
def test_all_labelings_of_all_teachers_are_there(
    table: dict[str, dict[str, Any]], lists: dict[str, dict[str, dict[str, Any]]]
) -> None:
    assert set(table) == set(lists)
    assert len(table) == 19
    assert len({row["teacher"] for row in table.values()}) == 9


def test_ndcg_is_that_of_ir_measures(
    table: dict[str, dict[str, Any]], lists: dict[str, dict[str, dict[str, Any]]], source: Path
) -> None:
    with gzip.open(source / "qrels.txt.gz", "rt") as file:
        qrels = list(ir_measures.read_trec_qrels(file.read()))
    for name, own in lists.items():
        run = [
            ir_measures.ScoredDoc(q, d, -float(k))
            for q, record in own.items()
            for k, d in enumerate(record["permutation"])
        ]
        value = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10]
        assert table[name]["nDCG@10"] == pytest.approx(value, abs=1e-9), name


def test_tau_is_over_the_passages_that_both_ranked(
    table: dict[str, dict[str, Any]], lists: dict[str, dict[str, dict[str, Any]]]
) -> None:
    (reference,) = {row["reference"] for row in table.values()}
    assert reference.startswith("rankzephyr")
    for name, own in lists.items():
        shared_passages, taus = 0, []
        for q in own.keys() & lists[reference].keys():
            theirs = {d: k for k, d in enumerate(lists[reference][q]["permutation"])}
            places = [theirs[d] for d in own[q]["permutation"] if d in theirs]
            shared_passages += len(places)
            if len(places) > 1:
                taus.append(kendalltau(range(len(places)), places).statistic)
        row = table[name]
        assert (row["shared_passages"], row["shared_queries"]) == (shared_passages, len(taus)), name
        assert row["tau"] == pytest.approx(sum(taus) / len(taus), abs=1e-9), name


def test_position_bias_counts_neighbours_that_kept_their_order(
    table: dict[str, dict[str, Any]], lists: dict[str, dict[str, dict[str, Any]]]
) -> None:
    """NULL exactly where the file has no first-stage order."""
    for name, own in lists.items():
        kept = total = 0
        for record in own.values():
            place = {d: k for k, d in enumerate(record["permutation"])}
            prior = [d for d in record.get("initial") or [] if d in place]
            kept += sum(place[a] < place[b] for a, b in pairwise(prior))
            total += max(len(prior) - 1, 0)
        expected = kept / total if total else None
        assert table[name]["position_bias"] == (expected and pytest.approx(expected, abs=1e-9)), name
    assert sum(row["position_bias"] is None for row in table.values()) == 8
