"""The suite nano-beir on made-up sets: the values and keys of sentence-transformers' evaluator, with positives in and without."""

import json
from pathlib import Path
from typing import Any

import hub_sets
import pytest
from shelves import msft

from labelstore.datasets import catalog
from labelstore.store.label_store import LabelStore
from students.jobs.register import add_student
from students.jobs.rerank import rerank_run

pytestmark = pytest.mark.test_all
SETS = list(catalog.SUITES["nano-beir"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_sets.make(tmp_path_factory.mktemp("hub"), SETS)


@pytest.fixture(scope="module")
def store(folder: Path, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    made = LabelStore(tmp_path_factory.mktemp("nano") / "s.duckdb")
    msft(made, "data", "add", "nano-beir", "--from", str(folder))
    add_student(made, str(tiny("bert")), name="tiny", max_length=48)
    for name in SETS:
        rerank_run(made, student="tiny", dataset=name, precision="fp32")
    return made


def theirs(folder: Path, model: Path, cache: Path, *, always: bool, monkeypatch: Any) -> dict[str, float]:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderNanoBEIREvaluator

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    short = [name.removeprefix("Nano").lower() for name in SETS]
    evaluator = CrossEncoderNanoBEIREvaluator(
        short, dataset_id=str(folder), always_rerank_positives=always, write_csv=False
    )
    found = evaluator(CrossEncoder(str(model), max_length=48, device="cpu"))
    return {key: float(value) for key, value in found.items()}


@pytest.mark.parametrize(("protocol", "always"), [("positives-in", True), ("found-only", False)])
def test_values_and_keys_equal_sentence_transformers(
    store: LabelStore, folder: Path, tiny: Any, tmp_path: Path, monkeypatch: Any, protocol: str, always: bool
) -> None:
    rows = json.loads(
        msft(store, "eval", "--suite", "nano-beir", "--protocol", protocol, "--format", "json").out
    )
    ours = {row["key"]: row["value"] for row in rows}
    wanted = theirs(folder, tiny("bert"), tmp_path, always=always, monkeypatch=monkeypatch)
    assert ours.keys() == wanted.keys()
    assert {key: pytest.approx(value, abs=1e-6) for key, value in wanted.items()} == ours
    assert len({round(value, 4) for value in ours.values()}) > 20
    assert {row["protocol"] for row in rows} == {protocol}
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM evaluations").fetchall() == [(0,)]


def test_the_standard_protocol_has_mtebs_names_and_counts_every_judgment(store: LabelStore) -> None:
    rows = json.loads(msft(store, "eval", "--suite", "nano-beir", "--format", "json").out)
    by_key = {(row["key"], row["kind"]): row["value"] for row in rows}
    assert 0 < by_key["NanoBEIR/ndcg_at_10", "student"] < 1
    assert {f"{catalog.mteb_task(name)}/mrr_at_10" for name in SETS} <= {key for key, _ in by_key}
    mean = sum(by_key[f"{catalog.mteb_task(name)}/ndcg_at_10", "student"] for name in SETS) / len(SETS)
    assert by_key["NanoBEIR/ndcg_at_10", "student"] == pytest.approx(mean)
    shown = msft(store, "eval", "--suite", "nano-beir", "--protocol", "positives-in").out
    assert "mean(NanoBEIR)" in shown
    assert "positives-in" in shown


def test_what_a_protocol_excludes_is_said(store: LabelStore) -> None:
    for options, says in (
        (["--protocol", "always"], "standard | positives-in | found-only"),
        (["--protocol", "found-only", "--fuse"], "fused systems"),
        (["--protocol", "positives-in", "--judge", "j"], "an LLM judge"),
    ):
        assert says in msft(store, "eval", "--dataset", "NanoNQ", *options, code=2).err
