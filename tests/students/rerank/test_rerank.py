"""Re-ranking gives the plain forward's scores whatever the batches, and tokenises each text once."""

import numpy as np
import pytest
import tiny_models
import torch

from students.cpu.bert import FusedEncoder
from students.errors import StudentError
from students.model.encoder import CrossEncoder
from students.rerank.reranker import Reranker, resolve_precision
from students.text.batches import collate


def lists(seed: int = 3) -> list[tuple[str, list[str]]]:
    """Lists of uneven lengths, an empty one, and passages that recur across queries."""
    passages = tiny_models.sentences(25, seed, 60)
    queries = tiny_models.sentences(5, seed + 1, 9)
    return [
        (queries[0], passages[:11]),
        (queries[1], []),
        (queries[2], passages[5:25]),
        (queries[3], [passages[7]]),
        (queries[4], [passages[9], passages[9], passages[3]]),
    ]


def plain(encoder: CrossEncoder, query: str, passages: list[str]) -> np.ndarray:
    """transformers' own tokenizer and forward, a pair at a time."""
    scores = []
    with torch.inference_mode():
        for passage in passages:
            inputs = encoder.tokenizer(
                query, passage, truncation=True, max_length=encoder.max_length, return_tensors="pt"
            )
            scores.append(float(encoder.model(**inputs).logits))
    return np.array(scores, dtype=np.float32)


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
@pytest.mark.parametrize("batch_tokens", [60, 4096])
def test_scores_equal_a_plain_forward(tiny, architecture, batch_tokens):
    reranker = Reranker.load(
        tiny(architecture), precision="fp32", max_length=48, batch_tokens=batch_tokens, device="cpu"
    )
    given = lists()
    scores = reranker.scores(given)
    assert [len(s) for s in scores] == [11, 0, 20, 1, 3]
    for (query, passages), got in zip(given, scores, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, plain(reranker.encoder, query, passages), atol=2e-6)
    assert np.ptp(scores[2]) > 2e-3, "scores that are all alike would prove nothing"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_same_call_gives_the_same_bits(tiny, workers):
    torch.set_num_threads(2)
    reranker = Reranker.load(tiny("electra"), precision="fp32", device="cpu", workers=workers)
    first, second = reranker.scores(lists()), reranker.scores(lists())
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.get_num_threads() == 2, "the caller's own thread count is left alone"


def test_each_text_is_tokenised_once(tiny, monkeypatch):
    reranker = Reranker.load(tiny("bert"), precision="fp32", device="cpu")
    seen: list[str] = []
    real = reranker.encoder.tokenise
    monkeypatch.setattr(reranker.encoder, "tokenise", lambda texts: (seen.extend(texts), real(texts))[1])
    given = lists()
    reranker.scores(given)
    assert len(seen) == len(set(seen))
    assert set(seen) == {q for q, _ in given} | {p for _, ps in given for p in ps}


def test_progress_ends_at_the_number_of_pairs(tiny):
    reranker = Reranker.load(tiny("bert"), precision="fp32", device="cpu", batch_tokens=100)
    ticks: list[tuple[int, int | None]] = []
    reranker.scores(lists(), progress=lambda done, total: ticks.append((done, total)))
    assert len(ticks) > 3
    assert [done for done, _ in ticks] == sorted({done for done, _ in ticks})
    assert ticks[-1] == (35, 35)


def test_a_failing_batch_is_an_error_not_a_hole(tiny, monkeypatch):
    reranker = Reranker.load(tiny("bert"), precision="fp32", device="cpu", batch_tokens=100)
    calls = iter(range(1000))

    def fail_once(batch):
        if next(calls) == 2:
            raise RuntimeError("out of memory")
        return torch.zeros(batch.n_pairs)

    monkeypatch.setattr(reranker, "_forward", fail_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        reranker.scores(lists())


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_bf16_stays_near_fp32(tiny, architecture):
    exact = Reranker.load(tiny(architecture), precision="fp32", device="cpu").scores(lists())[2]
    rough = Reranker.load(tiny(architecture), precision="bf16", device="cpu").scores(lists())[2]
    assert np.abs(exact - rough).max() < 0.25 * np.ptp(exact)
    assert not np.array_equal(exact, rough), "bf16 that equals fp32 bit for bit was not bf16"


def test_fused_forward_knows_what_it_can_reproduce(tiny):
    for architecture, expected in (
        ("bert", True),
        ("electra", True),
        ("roberta", True),
        ("modernbert", False),
    ):
        assert FusedEncoder.supports(CrossEncoder.load(tiny(architecture)).model) is expected
    odd = CrossEncoder.load(tiny("bert"))
    odd.model.config.hidden_act = "silu"
    assert not FusedEncoder.supports(odd.model)


def test_the_fused_mask_matters(tiny):
    """Without its mask the fused forward must differ on a batch with padding: the parity test can fail."""
    encoder = CrossEncoder.load(tiny("bert"), device="cpu").eval()
    passages = tiny_models.sentences(6, 1, 30)
    queries = encoder.tokenise(["what is water"])
    batch = collate(
        encoder.form, queries, encoder.tokenise(passages), np.zeros(6, dtype=np.int64), np.arange(6)
    )
    right = FusedEncoder(encoder.model)(batch)
    object.__setattr__(batch, "mask", torch.ones_like(batch.mask))
    assert (FusedEncoder(encoder.model)(batch) - right).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "electra"])
def test_a_servers_reranker_gives_the_same_scores(tiny, architecture):
    """What bounds its memory appends rows of zeros to each product: they must change nothing."""
    plain, served = (
        Reranker.load(tiny(architecture), precision="fp32", device="cpu", any_size=any_size)
        for any_size in (False, True)
    )
    for given in (lists(), lists()[:1], [(lists()[0][0], lists()[0][1][:1])]):
        for expected, got in zip(plain.scores(given), served.scores(given), strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-6)


def test_unknown_precision_and_model():
    with pytest.raises(StudentError) as unknown:
        resolve_precision("fp8")
    with pytest.raises(StudentError, match="int8 is not supported by the backend torch") as refused:
        resolve_precision("int8")
    assert refused.value.exit_code == 2
    assert "--backend openvino" in str(refused.value.hint)
    assert unknown.value.exit_code == 2
    with pytest.raises(StudentError) as absent:
        Reranker.load("no-such/model")
    assert absent.value.exit_code == 4
