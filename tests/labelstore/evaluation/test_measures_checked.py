"""A measure that cannot be computed ends with exit 2 and its reason; no assertion, abort or traceback of a child."""

from pathlib import Path

import made_store
import numpy as np
import pytest

from cli.main import run
from labelstore.errors import UsageError
from labelstore.evaluation import measures as measuring
from labelstore.evaluation.measures import Qrels, Ranking

UNUSABLE = {
    "Success": "needs a cut-off: Success@10",
    "R(rel=2)": "needs a cut-off: R(rel=2)@10",
    "NERR9@5": "needs max_rel: NERR9(max_rel=3)@5",
    "IPrec": "needs recall: IPrec@0.1",
    "RR@0": "the cut-off is 0",
    "Judged@0": "the cut-off is 0",
    "Success@True": "the cut-off is True",
    "R@99999999999": "the cut-off is 99999999999",
    "P@2.5": "the cut-off is 2.5",
    "AP(rel=0)": "rel is 0",
    "Compat(p=1.5)": "p is 1.5",
    "IPrec@7.0": "recall is 7.0",
    "SetF(beta=2)": "beta is 2",
    "nDCG(gains={1:'a'})@10": "gains is",
    "nDCG(depth=3)@10": "no parameter 'depth'",
    "INSQ(min_rel=3,max_rel=2)": "expected less than max_rel",
    "ERR": "no installed program",
    "(" * 250: "--measure (",
    "P" * 2000: "2,000 characters",
}
USABLE = [
    "nDCG@10",
    "RR(rel=2)@10",
    "AP(rel=2)",
    "P@1",
    "Compat(p=0.8)",
    "nDCG(gains={1:0,2:3})@10",
    "IPrec@0.5",
]


def _one(relevance: int) -> tuple[Ranking, Qrels]:
    ranks = np.arange(1, 4)
    return Ranking(np.ones(3, dtype=int), ranks, ranks), Qrels({1: {"1": relevance, "2": 1, "3": 0}}, "h")


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_measure_says_why(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        measuring.parse(name)
    assert UNUSABLE[name] in str(raised.value)


@pytest.mark.parametrize("name", USABLE)
def test_usable_measure_is_computed(name: str) -> None:
    canonical = measuring.canonical(name)
    ranking, qrels = _one(2)
    assert 0 < measuring.per_query(ranking, qrels, [canonical])[canonical][1] <= 1


@pytest.mark.parametrize(
    ("name", "grade"),
    [
        ("ERR@5", 5),
        ("ERR@100", 100),
        ("nDCG(dcg='exp-log2')@3", 7),
        ("nDCG@10", 2_000_000_000),
        ("AP", -(10**9)),
    ],
)
def test_grade_that_a_measure_cannot_take(name: str, grade: int) -> None:
    ranking, qrels = _one(grade)
    with pytest.raises(UsageError, match="cannot take grades"):
        measuring.per_query(ranking, qrels, [measuring.canonical(name)])


def test_measure_without_a_value_on_a_query() -> None:
    ranking, qrels = _one(1)
    with pytest.raises(UsageError, match="Accuracy"):
        measuring.per_query(ranking, qrels, ["Accuracy@2"])


ODD = [
    "P(rel=0)@5", "AP(rel=-1)", "AP(rel=None)", "nDCG(dcg='odd')@10", "nDCG(dcg=2)@10", "RBP(p=2)", "RBP(p=nan)",
    "SetF(beta=nan)", "SetF(beta=inf)", "SetF(beta=-1.0)", "ERR@0", "ERR@1e3", "Compat(p=-0.1)", "IPrec@nan", "RR@-1",
    "Success(rel='x')@5", "P(rel=True)@5", "P(judged_only=1)@5", "nDCG(gains={0:-1})@10", "nDCG(gains=[1])@10",
    "nDCG(gains={1:1000000})", "R@1_000_000_0", "INST(max_rel=0)", "BPM(max_rel=3,T=inf)@10", "NERR8(max_rel=1,min_rel=1)@5",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_parameter_says_why(name: str) -> None:
    with pytest.raises(UsageError, match="--measure") as raised:
        measuring.parse(name)
    assert raised.value.exit_code == 2


GRADES = {
    "all negative": [-3],
    "spam and relevant": [-2, -1, 1],
    "zeros": [0, 0, 0],
    "high": [1_000_000, 999_999],
    "seven": [7, 6],
}
ALLOWED = [
    "AP", "nDCG@10", "nDCG", "nDCG(judged_only=True)@10", "P(judged_only=True,rel=2)@5", "IPrec(judged_only=True)@0.5",
    "Rprec", "Bpref", "infAP", "SetF(beta=2.0)", "SetAP", "RR(judged_only=True)", "Success(rel=5)@1", "Judged@3",
    "ERR@5", "nDCG(dcg='exp-log2')@5", "Compat(p=0.99)", "Accuracy@1", "nDCG(gains={0:3,7:0})@10", "R(rel=7)@1000000",
]  # fmt: skip


@pytest.mark.parametrize("grades", GRADES.values(), ids=GRADES)
def test_any_grades_give_a_value_or_a_reason(grades: list[int]) -> None:
    ranks = np.arange(1, 8)
    ranking = Ranking(np.ones(7, dtype=int), ranks, ranks)
    judged = {1: {str(k): grade for k, grade in enumerate(grades, 1)}, 2: {"1": 1}}
    for _ in range(2):  # trec_eval's memory is dirty the second time
        for name in ALLOWED:
            try:
                found = measuring.per_query(ranking, Qrels(judged, "h"), [measuring.canonical(name)])
            except UsageError:
                continue
            assert all(0 <= value <= 1 for scores in found.values() for value in scores.values()), name


@pytest.mark.parametrize("others", [[1], [0], [2, -1]])
def test_a_query_whose_judgments_are_all_negative_ends_no_process(others: list[int]) -> None:
    ranks = np.arange(1, 4)
    for grades in (others, [-1], [-2, -2], [-1, -3, -2]):
        judged = {1: {str(k): grade for k, grade in enumerate(grades, 1)}}
        ranking = Ranking(np.ones(3, dtype=int), ranks, ranks)
        found = measuring.per_query(ranking, Qrels(judged, "h"), ["AP", "Judged@3"])
        assert found["Judged@3"][1] == pytest.approx(len(grades) / 3)
        assert found["AP"][1] == (1.0 if grades in ([1], [2, -1]) else 0.0)


@pytest.mark.parametrize("name", ["R", "Success@0", "NERR11"])
@pytest.mark.parametrize("command", [["eval"], ["compare", "first", "first"]])
def test_commands_end_with_exit_2(tmp_path: Path, capsys, command: list[str], name: str) -> None:
    made_store.make(tmp_path / "s.duckdb")
    with pytest.raises(SystemExit) as ended:
        run([*command, "--dataset", "c/test", "--measure", name, "--store", str(tmp_path / "s.duckdb")])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"--measure {name}" in err
    assert "--debug" not in err
