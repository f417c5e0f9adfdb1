"""Decoders as students: the head of a causal model's answers, the last token's score, and what cannot be one."""

import numpy as np
import pytest
import tiny_decoders
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from students.errors import StudentError
from students.model import packed_attention as packed
from students.model.decoder import is_decoder
from students.model.encoder import CrossEncoder
from students.model.head import HeadStart
from students.rerank.reranker import Reranker
from students.text.batches import collate
from students.text.frames import Framing, frame_of

QWEN = Framing("qwen3-reranker")
FRAMES = {"gemma": "bge-gemma"}
QUERY = "what is volcano energy"
PASSAGES = [*tiny_models.sentences(12, seed=4), "", "14 (water)"]


def load(folder, framing: Framing = QWEN, **options):
    return CrossEncoder.load(
        folder, **{"precision": "fp32", "device": "cpu", "max_length": 400, "framing": framing} | options
    )


@pytest.mark.parametrize("kind", sorted(tiny_decoders.CONFIGS))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("answers", [("yes", "no"), ("1", "0"), ("Yes",)])
def test_the_score_before_training_is_the_causal_models_difference_of_logits(tmp_path, kind, tied, answers):
    folder = tiny_decoders.make(kind, tmp_path / "m", tie_word_embeddings=tied)
    encoder = load(folder, Framing(FRAMES.get(kind, "qwen3-reranker"), answers=answers))
    causal, plain = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    signs = dict(zip(plain.convert_tokens_to_ids(list(answers)), (1, -1), strict=False))
    for passage, score in zip(PASSAGES, encoder.score(QUERY, PASSAGES), strict=True):
        ids = torch.tensor(encoder.tokenizer([QUERY], [passage])["input_ids"])
        with torch.no_grad():
            logits = causal(ids).logits[0, -1]
        assert score == pytest.approx(
            sum(sign * float(logits[i]) for i, sign in signs.items()), abs=1e-4, rel=1e-5
        )


def test_the_output_weights_are_found_in_one_of_several_files(tmp_path):
    whole = load(tiny_decoders.make("qwen3", tmp_path / "one")).score(QUERY, PASSAGES)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    np.testing.assert_array_equal(load(tmp_path / "many").score(QUERY, PASSAGES), whole)


@pytest.mark.parametrize("kind", sorted(tiny_decoders.CONFIGS))
def test_a_saved_student_scores_the_same_in_transformers_padded_on_either_side(tmp_path, kind):
    encoder = load(tiny_decoders.make(kind, tmp_path / "m"), Framing(FRAMES.get(kind, "qwen3-reranker")))
    scores = encoder.score(QUERY, PASSAGES)
    folder = encoder.save(tmp_path / "saved")
    model, tokenizer = (
        auto.from_pretrained(folder) for auto in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(
            [QUERY] * len(PASSAGES), PASSAGES, padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            theirs = model(**batch).logits[:, 0].numpy()
        np.testing.assert_allclose(theirs, scores, atol=1e-4, rtol=1e-4)
    again = CrossEncoder.load(folder, precision="fp32", device="cpu")
    np.testing.assert_array_equal(again.score(QUERY, PASSAGES), scores)
    assert (again.max_length, frame_of(again.tokenizer)) == (400, frame_of(encoder.tokenizer))


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
def test_a_saved_student_scores_the_same_in_sentence_transformers(tmp_path, kind):
    from sentence_transformers import CrossEncoder as Theirs

    encoder = load(tiny_decoders.make(kind, tmp_path / "m"), Framing(FRAMES.get(kind, "qwen3-reranker")))
    folder = encoder.save(tmp_path / "saved")
    theirs = Theirs(str(folder), device="cpu").predict([(QUERY, passage) for passage in PASSAGES])
    np.testing.assert_allclose(theirs, encoder.score(QUERY, PASSAGES), atol=1e-3)


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize(
    ("kind", "window"), [*((kind, None) for kind in sorted(tiny_decoders.CONFIGS)), ("mistral", 5)]
)
def test_packed_scores_and_gradients_equal_the_padded_forward(tmp_path, kind, window, multiple):
    settings = {"sliding_window": window} if kind == "mistral" else {}
    folder = tiny_decoders.make(kind, tmp_path / "m", **settings)
    framing = Framing(FRAMES.get(kind, "qwen3-reranker"))
    weights, results = torch.linspace(-1, 1, len(PASSAGES)), []
    for attention in (None, "packed_varlen"):
        encoder = load(folder, framing, attention=attention).eval()
        each = np.arange(len(PASSAGES))
        batch = collate(
            encoder.form, encoder.tokenise([QUERY]), encoder.tokenise(PASSAGES), 0 * each, each,
            layout=encoder.layout, multiple=multiple, position_start=encoder.position_start,
        )  # fmt: skip
        scores = encoder(batch)
        (scores * weights).sum().backward()
        results.append((scores.detach(), {n: p.grad for n, p in encoder.model.named_parameters()}))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-4)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(("kind", "window", "span"), [("qwen3", None, (-1, 0)), ("mistral", 5, (4, 0))])
def test_pytorchs_kernel_is_told_that_a_decoder_reads_from_left_to_right(
    tmp_path, monkeypatch, kind, window, span
):
    settings = {"sliding_window": window} if window else {}
    encoder = load(tiny_decoders.make(kind, tmp_path / "m", **settings), attention="packed_varlen").eval()
    expected, told = encoder.score(QUERY, PASSAGES), []

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        told.append((window_size, enable_gqa))
        return packed._loop(q, k, v, packed._Segments(cu_q, cu_k, max_q, max_k), 0.0, scale, window_size)

    monkeypatch.setattr(packed, "_attend", packed._kernel)
    monkeypatch.setattr(packed, "_TORCH_VARLEN", kernel)
    np.testing.assert_allclose(encoder.score(QUERY, PASSAGES), expected, atol=1e-6)
    assert set(told) == {(span, True)}


def test_batches_of_a_reranker_do_not_change_a_decoders_scores(tmp_path):
    encoder = load(tiny_decoders.make("qwen3", tmp_path / "m"))
    scores = encoder.score(QUERY, PASSAGES)
    (ours,) = Reranker(encoder, batch_tokens=300).scores([(QUERY, PASSAGES)])
    np.testing.assert_allclose(ours, scores, atol=1e-4)
    each = [encoder.score(QUERY, [passage])[0] for passage in PASSAGES]
    np.testing.assert_allclose(each, scores, atol=1e-4)


def test_a_sequence_classifier_loads_as_it_is(tmp_path):
    folder = tiny_decoders.make("qwen3", tmp_path / "Tiny-Qwen3-Reranker-seq-cls", causal=False)
    encoder = load(folder, Framing())
    assert frame_of(encoder.tokenizer).name == "qwen3-reranker"
    written = load_file(folder / "model.safetensors")["score.weight"]
    torch.testing.assert_close(encoder.model.score.weight.detach(), written, rtol=0, atol=0)


def test_a_causal_model_without_answers_gets_a_new_head(tmp_path):
    folder = tiny_decoders.make("llama", tmp_path / "m")
    heads = [
        load(folder, Framing("plain"), seed=seed, head=HeadStart(scale)).model.score.weight.detach()
        for seed, scale in ((1, 1.0), (1, 3.0), (2, 1.0))
    ]
    torch.testing.assert_close(heads[1], 3 * heads[0])
    assert not torch.equal(heads[0], heads[2])


def test_another_instruction_changes_the_scores_of_a_saved_student(tmp_path):
    encoder = load(tiny_decoders.make("qwen3", tmp_path / "m"))
    folder = encoder.save(tmp_path / "saved")
    other = load(folder, Framing(instruction="retrieve passages on water"))
    assert frame_of(other.tokenizer).instruction == "retrieve passages on water"
    assert not np.allclose(other.score(QUERY, PASSAGES), encoder.score(QUERY, PASSAGES))
    fresh = load(tmp_path / "m", Framing("qwen3-reranker", "retrieve passages on water"))
    np.testing.assert_allclose(other.score(QUERY, PASSAGES), fresh.score(QUERY, PASSAGES), atol=1e-5)


@pytest.mark.parametrize("kind", tiny_models.ARCHITECTURES)
def test_encoders_are_no_decoders(tiny, kind):
    assert not is_decoder(CrossEncoder.load(tiny(kind), device="cpu").model.config)


@pytest.mark.parametrize("causal", [True, False])
def test_a_decoder_without_a_frame_is_refused_with_a_hint(tmp_path, causal):
    folder = tiny_decoders.make("qwen3", tmp_path / "m", causal=causal)
    with pytest.raises(StudentError, match="is a decoder without a text frame") as raised:
        load(folder, Framing())
    assert raised.value.exit_code == 2
    assert "--frame qwen3-reranker" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("framing", "what"),
    [
        (Framing(instruction="rank"), "instruction"),
        (Framing("plain"), "frame"),
        (Framing(answers=("a",)), "answers"),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_an_encoder_takes_no_setting_of_a_decoder(tiny, kind, framing, what):
    with pytest.raises(StudentError, match=f"is an encoder .*{what} is a setting of decoders") as raised:
        load(tiny(kind), framing)
    assert raised.value.exit_code == 2
    assert f"leave {what} out" in (raised.value.hint or "")


def test_answers_of_several_tokens_are_refused(tmp_path):
    with pytest.raises(
        StudentError, match="answer 'relevant it is' of frame 'plain' is 5 tokens, expected 1"
    ):
        load(tiny_decoders.make("qwen3", tmp_path / "m"), Framing("plain", answers=("relevant it is", "no")))


def test_output_weights_with_a_bias_are_refused(tmp_path):
    folder = tiny_decoders.make("qwen3", tmp_path / "m", tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"] = torch.ones(len(weights["lm_head.weight"]))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudentError, match="its output weights have a bias"):
        load(folder)
