"""The bi-encoder engine: the plain model's embeddings, whoever shares the batch, each text embedded once."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from students.errors import StudentError
from teachers.engines.base import Request
from teachers.engines.bi_encoder import CPU_CHUNK, BiEncoderEngine, Embedded, Vectors
from teachers.errors import TeacherError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("embedders")
    for architecture in tiny_models.ARCHITECTURES:
        tiny_models.make(architecture, root / architecture)
    return {architecture: root / architecture for architecture in tiny_models.ARCHITECTURES}


def vectors(embedded: list[Embedded]) -> Vectors:
    return np.stack([own.vector for own in embedded])


def plain(folder: Path, texts: list[str], *, first_token: bool = False, max_length: int = 512) -> Vectors:
    """transformers' own forward, a text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    made = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state[0]
            made.append(torch.nn.functional.normalize(hidden[0] if first_token else hidden.mean(0), dim=0))
    return torch.stack(made).numpy()


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
@pytest.mark.parametrize("first_token", [False, True])
def test_embeddings_are_the_models_own(
    folders: dict[str, Path], tmp_path: Path, architecture: str, first_token: bool
) -> None:
    folder = folders[architecture]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    mode = "pooling_mode_cls_token" if first_token else "pooling_mode_mean_tokens"
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({mode: True}))
    texts = ["", *tiny_models.sentences(40, seed=4, longest=60)]
    engine = BiEncoderEngine(str(folder), precision="fp32", max_length=30)
    found = engine.embed(texts)
    engine.close()
    expected = plain(folder, texts, first_token=first_token, max_length=30)
    np.testing.assert_allclose(vectors(found), expected, atol=2e-6)
    assert max(own.n_tokens for own in found) == 30


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_text_is_embedded_alike_whoever_shares_its_batch(folders: dict[str, Path], precision: str) -> None:
    engine = BiEncoderEngine(str(folders["bert"]), precision=precision)
    texts = tiny_models.sentences(200, seed=5)
    together = vectors(engine.embed(texts))
    backwards = vectors(engine.embed(texts[::-1]))[::-1]
    alone = np.concatenate([vectors(engine.embed([text])) for text in texts[:30]])
    engine.close()
    np.testing.assert_allclose(together, backwards, atol=1e-6)
    np.testing.assert_allclose(together[:30], alone, atol=1e-6)


@pytest.fixture
def engine(folders: dict[str, Path]) -> Iterator[BiEncoderEngine]:
    own = BiEncoderEngine(str(folders["bert"]), precision="fp32", capacity=8, remembered_bytes=4 * 64 * 30)
    yield own
    own.close()


def requests(queries: list[str], passages: list[list[str]]) -> list[Request]:
    return [
        Request(key=str(k), query=query, passages=shown, ticket=k)
        for k, (query, shown) in enumerate(zip(queries, passages, strict=True))
    ]


def test_scores_are_cosines_and_each_passage_is_embedded_once(engine: BiEncoderEngine) -> None:
    texts = tiny_models.sentences(20, seed=6)
    asked = requests(["a query", "water energy", "a query"], [texts[:12], texts[8:], texts[::-1]])
    engine.submit(asked)
    assert engine.poll(0.0) == [], "with more on its way nothing is embedded in small batches"
    done = {completion.ticket: completion for completion in engine.poll(0.5)}
    assert engine.n_embedded == 20 + 3
    for request in asked:
        query, *shown = vectors(engine.embed([request.query, *request.passages]))
        assert done[request.ticket].scores == pytest.approx([float(query @ own) for own in shown], abs=1e-6)
        assert done[request.ticket].tokens_in > len(request.passages)


def test_what_is_remembered_is_bounded_and_changes_no_score(engine: BiEncoderEngine) -> None:
    most = engine._most_known
    texts = tiny_models.sentences(3 * most, seed=7, longest=9)

    def scores(shown: list[str]) -> list[float]:
        engine.submit(requests(["a query"], [shown]))
        (completion,) = engine.poll(1.0)
        assert completion.scores is not None
        return list(completion.scores)

    first = scores(texts)
    assert len(engine._known) == most
    before = engine.n_embedded
    assert scores(texts[-most // 2 :]) == first[-most // 2 :]
    assert engine.n_embedded == before + 1, "the query alone"
    assert scores(texts) == pytest.approx(first, abs=1e-6)
    assert all(own.vector.base is None for own in engine._known.values()), "no row keeps its batch alive"


@pytest.mark.parametrize("per_query", [1, 20, 100])
def test_a_round_is_small_so_that_an_interruption_loses_little(
    engine: BiEncoderEngine, per_query: int
) -> None:
    texts = [f"passage {n}" for n in range(40 * per_query)]
    shown = [texts[n * per_query : (n + 1) * per_query] for n in range(40)]
    engine.submit(requests([f"q{n}" for n in range(40)], shown))
    done, rounds = 0, 0
    while completions := engine.poll(0.5):
        done, rounds = done + len(completions), rounds + 1
        assert sum(len(shown[c.ticket]) + 1 for c in completions) <= CPU_CHUNK + per_query + 1
    assert done == 40
    assert rounds == pytest.approx(40 * (per_query + 1) / CPU_CHUNK, abs=2)


def test_a_full_engine_answers_at_once(engine: BiEncoderEngine) -> None:
    engine.submit(requests(["q"] * 8, [["a passage"]] * 8))
    assert len(engine.poll(0.0)) == 8


def test_what_is_no_embedding_model_is_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(TeacherError, match="no embedding model"):
        BiEncoderEngine(str(tmp_path))
    with pytest.raises(StudentError, match="precision"):
        BiEncoderEngine(str(folders["bert"]), precision="int4")
