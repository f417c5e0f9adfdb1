"""Text frames of decoders: tokenised apart from the texts, written into the tokenizer, and never cut."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_decoders
import tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from students.errors import StudentError
from students.text.frames import Frame, Framing, answer_ids, frame_of, framed, named, of_base, shipped
from students.text.tokens import PairFormat, tokenise, tokenizer_key

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures/frames/qwen3-reranker.json"


def joined(tokenizer, query: str, passage: str, max_length: int = 1000) -> list[int]:
    form = PairFormat.of(tokenizer, max_length)
    first = np.zeros(1, dtype=np.int64)
    return form.join(tokenise(tokenizer, [query]), tokenise(tokenizer, [passage]), first, first).ids.tolist()


def test_a_pair_in_the_frame_of_qwen3_reranker_has_the_ids_of_the_golden_file():
    golden = json.loads(GOLDEN.read_text("utf-8"))
    plain = tiny_decoders.tokenizer()
    ids = [plain.convert_tokens_to_ids(token) for token in golden["tokens"]]
    made = framed(plain, named("qwen3-reranker"))
    assert joined(made, golden["query"], golden["passage"]) == ids
    assert made(golden["query"], golden["passage"])["input_ids"] == ids


@pytest.mark.parametrize("name", sorted(shipped()))
@pytest.mark.parametrize("query", ["what is water", " 14 (energy)", "a\nb", "<|im_end|> red", ""])
def test_a_saved_tokenizer_joins_as_the_students_one(tmp_path, name, query):
    made = framed(tiny_decoders.tokenizer(), named(name))
    passage = "the river, in the city.\nIt is long"
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert frame_of(again) == frame_of(made) == named(name)
    assert again(query, passage)["input_ids"] == joined(again, query, passage) == joined(made, query, passage)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("qwen3-reranker", "<Instruct>: {i}\n<Query>: {q}\n<Document>: {d}"),
        ("bge-gemma", "A: {q}\nB: {d}"),
        ("plain", "{i}\nquery: {q} passage: {d}"),
    ],
)
def test_a_texts_first_token_is_that_of_the_whole_prompt(name, whole):
    """A byte-level tokenizer has other tokens for a word after a space."""
    plain = tiny_decoders.tokenizer()
    made = framed(plain, named(name).changed(Framing(instruction="" if name == "bge-gemma" else "rank")))
    prompt = whole.format(i="rank", q="water energy", d="red river")
    ids = plain(prompt)["input_ids"]
    mine = joined(made, "water energy", "red river")
    assert any(mine[at : at + len(ids)] == ids for at in range(len(mine)))


def test_another_instruction_takes_the_place_of_the_first_one_and_keeps_the_texts_tokens():
    plain = tiny_decoders.tokenizer()
    frame = named("qwen3-reranker")
    one, two = (frame.changed(Framing(instruction=text)) for text in ("rank {query} of water", "music"))
    again = framed(framed(plain, one), two)
    assert joined(again, "red", "blue") == joined(framed(plain, two), "red", "blue")
    assert joined(again, "red", "blue") != joined(framed(plain, one), "red", "blue")
    assert tokenizer_key(again) == tokenizer_key(framed(plain, one)) != tokenizer_key(plain)
    assert framed(again, frame)("red", "blue") == framed(plain, frame)("red", "blue")


@pytest.mark.parametrize("max_length", [100, 120, 200])
@pytest.mark.parametrize(("n_query", "n_passage"), [(3, 500), (60, 20), (500, 3), (500, 500), (1, 1)])
def test_only_the_passage_is_cut_then_the_query_and_never_the_frame(max_length, n_query, n_passage):
    made = framed(tiny_decoders.tokenizer(), named("qwen3-reranker"))
    form = PairFormat.of(made, max_length)
    ids = joined(made, "what " * n_query, "water " * n_passage, max_length)
    before, between, after = (list(part) for part in (form.before, form.between, form.after))
    assert len(ids) <= max_length
    assert ids[: len(before)] == before
    assert ids[-len(after) :] == after
    inner = ids[len(before) : -len(after)]
    at = next(i for i in range(len(inner)) if inner[i : i + len(between)] == between)
    kept_query, kept_passage = at, len(inner) - at - len(between)
    full_query = len(tokenise(made, ["what " * n_query])[0])
    full_passage = len(tokenise(made, ["water " * n_passage])[0])
    if full_query <= form.room * 3 // 4:
        assert kept_query == full_query
    assert kept_query + kept_passage == min(full_query + full_passage, form.room)
    assert kept_passage >= min(full_passage, form.room // 4)


@pytest.mark.parametrize("prefix_space", [True, False])
def test_a_tokenizer_with_a_bos_and_its_own_space_keeps_both(prefix_space):
    """In Llama's way: a BOS before every text, and perhaps a space that the tokenizer adds."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    plain = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", add_bos_token=True
    )
    made = framed(plain, named("q: {query} p: {passage}!"))
    ids = made("ab", "c")["input_ids"]
    text = "".join(made.convert_ids_to_tokens(ids)).replace("Ġ", " ")
    assert ids[0] == 0
    assert ids.count(0) == 1
    assert text.replace(" ", "") == "<s>q:abp:c!"
    assert ": ab" in text
    assert ": c" in text
    assert joined(made, "ab", "c") == ids


@pytest.mark.parametrize(
    ("base", "frame"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", "qwen3-reranker"),
        ("tomaarsen/Qwen3-Reranker-0.6B-seq-cls", "qwen3-reranker"),
        ("/models/Qwen3-Reranker-8B/", "qwen3-reranker"),
        ("mixedbread-ai/mxbai-rerank-large-v2", "mxbai-rerank-v2"),
        ("BAAI/bge-reranker-v2-gemma", "bge-gemma"),
        ("Qwen/Qwen3-0.6B", None),
        ("mixedbread-ai/mxbai-rerank-base-v1", None),
    ],
)
def test_a_bases_name_says_its_frame(base, frame):
    found = of_base(base)
    assert (found.name if found else None) == frame


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ("qwen4", "frame 'qwen4' is not known"),
        ("rank {query}", "expected {query} once, and then {passage} once"),
        ("{passage} {query}", "expected {query} once"),
        ("{query} {query} {passage}", "expected {query} once"),
    ],
)
def test_a_frame_that_cannot_be_is_refused_with_the_known_ones_or_an_example(frame, says):
    with pytest.raises(StudentError) as raised:
        named(frame)
    assert says in str(raised.value)
    assert raised.value.exit_code == 2
    assert "frame" in (raised.value.hint or "")


@pytest.mark.parametrize("answers", [("yes", "maybe not"), ("xyzzy", "no")])
def test_an_answer_of_several_tokens_is_refused(answers):
    frame = Frame("own", "{query} {passage}", answers=answers)
    with pytest.raises(StudentError, match=r"is \d+ tokens, expected 1") as raised:
        answer_ids(tiny_decoders.tokenizer(), frame)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("answers", [("yes", "no", "perhaps"), ("yes", "yes"), ("", "no")])
def test_answers_are_one_or_two_different_words(answers):
    with pytest.raises(StudentError, match="expected one or two different words"):
        named("plain").changed(Framing(answers=answers))


def test_a_frame_without_a_place_takes_no_instruction():
    with pytest.raises(StudentError, match="frame 'bge-gemma' takes no instruction") as raised:
        named("bge-gemma").changed(Framing(instruction="rank"))
    assert raised.value.exit_code == 2


def test_a_frame_that_ends_with_the_padding_token_is_refused():
    with pytest.raises(StudentError, match="ends with the padding token"):
        framed(tiny_decoders.tokenizer(), named("{query} {passage}<|endoftext|>"))


def test_a_frame_that_leaves_no_room_says_how_much_it_needs():
    made = framed(tiny_decoders.tokenizer(), named("qwen3-reranker"))
    n = PairFormat.of(made, 500).n_special
    with pytest.raises(StudentError, match=f"beside {n} special tokens") as raised:
        PairFormat.of(made, n + 1)
    assert f"at least {n + 13}" in (raised.value.hint or "")


def test_a_tokenizer_with_types_gets_a_frame_without_them():
    made = framed(tiny_models.wordpiece(), named("plain"))
    form = PairFormat.of(made, 64)
    assert not form.has_types
    assert joined(made, "water", "river") == made("water", "river")["input_ids"]
