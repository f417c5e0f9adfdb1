"""`msft data add dl20` and `msft eval --dataset dl20` where there is no network: with the dataset at hand, and without."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from registered_datasets import Qrels, Queries, register

from cli.main import run

__all__ = ["register"]  # a fixture


def msft(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def dl20(register: Callable[..., None]) -> None:
    register("msmarco-passage")
    register(
        "msmarco-passage/trec-dl-2020/judged",
        Queries(("1", "james bond"), ("2", "the number seven")),
        Qrels(("1", "007", 3), ("1", "9", 0), ("2", "7", 2)),
    )


@pytest.mark.usefixtures("dl20")
def test_a_dataset_at_hand_is_added_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "s.duckdb")]
    assert msft("data", "add", "dl20", *store, "--format", "json") == 0
    steps = {row["step"]: row for row in json.loads(capsys.readouterr().out)}
    assert (steps["documents"]["read"], steps["documents"]["kept"], steps["documents"]["rejected"]) == (
        3,
        2,
        1,
    )
    assert "empty passage: 1" in steps["documents"]["reasons"]
    assert msft("eval", "--dataset", "dl20", *store, "--format", "json") == 0
    captured = capsys.readouterr()
    values = {row["measure"]: row for row in json.loads(captured.out)}
    assert set(values) == {"nDCG@10", "AP(rel=2)", "RR(rel=2)@10", "R(rel=2)@100"}
    assert values["nDCG@10"]["value"] == 1.0
    assert (values["nDCG@10"]["system"], values["nDCG@10"]["n_queries"]) == ("bm25s", 2)
    assert "dl20 has no run yet" in captured.err


@pytest.mark.usefixtures("dl20")
def test_eval_adds_what_the_store_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "s.duckdb")]
    assert msft("eval", "--dataset", "dl20", *store, "--format", "json") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 4
    assert "adding msmarco-passage/trec-dl-2020/judged from ir_datasets" in captured.err


def test_without_it_the_way_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], register: Callable[..., None]
) -> None:
    class Unreachable(Qrels):
        def qrels_iter(self):  # type: ignore[no-untyped-def]
            raise RuntimeError("All download sources failed", ["NameResolutionError"])

    register("msmarco-passage")
    register("msmarco-passage/trec-dl-2020/judged", Queries(("1", "who")), Unreachable())
    for command in (["data", "add", "dl20"], ["eval", "--dataset", "dl20"]):
        assert msft(*command, "--store", str(tmp_path / "s.duckdb")) == 4
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "msmarco-passage/trec-dl-2020/judged neither on disk nor within reach" in captured.err
        assert "hint: msft data add dl20 --from FOLDER" in captured.err
    assert not (tmp_path / "s.duckdb").exists()
