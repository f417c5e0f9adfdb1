"""Scores of one forward pass: a tiny T5 (monoT5, duoT5) and a tiny causal model, against transformers pair by pair."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny_qwen
import tiny_t5

from benchmarks.labelling_store import make
from labelstore.errors import UsageError
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Request, Sampling
from teachers.engines.forward import ForwardEngine
from teachers.errors import TeacherError
from teachers.generate.job import generate
from teachers.generate.settings import Settings

pytestmark = pytest.mark.test_all


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5.make(tmp_path_factory.mktemp("models") / "tiny-t5")


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 2, length=lambda k: (9, 4)[k], passages=20, words=8)


@pytest.fixture(scope="module")
def expected(t5: Path) -> Any:
    """Log-odds of true against false for one prompt, computed alone and without padding."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(t5).eval()
    own = AutoTokenizer.from_pretrained(t5)
    yes, no = own.convert_tokens_to_ids(["▁true", "▁false"])

    def odds(prompt: str) -> float:
        ids = [*own(prompt, add_special_tokens=False)["input_ids"], own.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        return float(logits[yes] - logits[no])

    return odds


def items(store: LabelStore, name: str) -> list[tuple[str, str, float]]:
    with store.read() as con:
        return con.execute(
            """SELECT q.text, d.text, i.score FROM labelings l JOIN permutations p USING (labeling) JOIN queries q USING (query)
               JOIN permutation_items i USING (permutation) JOIN documents d USING (document) WHERE l.name = ?
               ORDER BY q.query, i.rank""",
            [name],
        ).fetchall()


def test_monot5_scores_are_those_of_transformers_whatever_stands_beside_them(
    t5: Path, store: LabelStore, expected: Any
) -> None:
    done = generate(store, Settings(model=str(t5), name="mono", max_in_flight=3))
    assert (done.plan.engine, done.labelled, done.figures.calls) == ("transformers", 2, 13)
    found = items(store, "mono")
    for query, text, score in found:
        assert score == pytest.approx(expected(f"Query: {query} Document: {text} Relevant:"), abs=5e-3)
    assert [s for _, _, s in found[:9]] == sorted((s for _, _, s in found[:9]), reverse=True)
    assert max(s for _, _, s in found) - min(s for _, _, s in found) > 0.1, "the control: the scores differ"


def test_duot5_scores_are_the_mean_probability_of_a_passage_over_the_others_in_both_orders(
    t5: Path, store: LabelStore, expected: Any
) -> None:
    import math

    done = generate(
        store, Settings(model=str(t5), prompt="duot5@1", strategy="pairwise", sort="all", name="duo", limit=1)
    )
    assert done.figures.calls == 9 * 8
    found = items(store, "duo")
    query, texts = found[0][0], [text for _, text, _ in found]

    def first_is_better(a: str, b: str) -> float:
        odds = expected(f"Query: {query} Document0: {a} Document1: {b} Relevant:")
        return 1 / (1 + math.exp(-odds))

    for _, text, score in found:
        others = [other for other in texts if other != text]
        wanted = sum((first_is_better(text, o) + 1 - first_is_better(o, text)) / 2 for o in others)
        assert score == pytest.approx(wanted, abs=1e-3)
    assert sum(score for _, _, score in found) == pytest.approx(9 * 8 / 2, abs=1e-3)


def test_a_causal_model_gives_its_last_tokens_logits(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_qwen.make(tmp_path / "qwen")
    engine = ForwardEngine(str(folder), Sampling(logprobs=20), batch=4)
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    yes, no = engine.tokenizer.convert_tokens_to_ids(["yes", "no"])
    rng = Random(3)
    prompts = [[rng.randint(10, 200) for _ in range(rng.randint(1, 40))] for _ in range(11)]
    engine.submit(
        [
            Request(key=str(k), token_ids=ids, identifiers=("yes", "no"), spelling="exact", ticket=k)
            for k, ids in enumerate(prompts)
        ]
    )
    done: dict[int, Any] = {}
    while len(done) < len(prompts):
        done |= {c.ticket: c.logprobs for c in engine.poll(0.0)}
    for k, ids in enumerate(prompts):
        with torch.no_grad():
            wanted = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert done[k] == pytest.approx({"yes": float(wanted[yes]), "no": float(wanted[no])}, abs=1e-4)


def test_it_reads_scores_and_writes_no_replies(t5: Path, store: LabelStore) -> None:
    with pytest.raises(UsageError, match="reads scores from one forward pass"):
        generate(store, Settings(model=str(t5), prompt="rankgpt@1", engine="transformers"))
    with pytest.raises(UsageError, match="scores one passage a call"):
        generate(store, Settings(model=str(t5), strategy="sliding"))


def test_a_folder_without_safetensors_is_refused_with_a_hint(t5: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(t5, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(TeacherError, match="transformers cannot load") as caught:
        ForwardEngine(str(folder), Sampling(logprobs=20))
    assert caught.value.exit_code == 4
    assert "safetensors" in (caught.value.hint or "")
