"""Make the starting models and lists of `benchmarks.train`, and count the model FLOPs of a training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.collate import texts
from benchmarks.real_lists import Ranked, judged, permutations, write_view

SHAPES = ("minilm", "tiny", "electra-base", "qwen3-tiny", "qwen3-0.6b")
DECODERS = {  # shape: the sizes of a Qwen3
    "qwen3-tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                   "head_dim": 8, "intermediate_size": 64, "vocab_size": 800},
    "qwen3-0.6b": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
                   "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936},
}  # fmt: skip
SEED = 42
PASSAGE_TOKENS, QUERY_TOKENS = 75, 8  # MS MARCO's means in WordPiece tokens; here a word is a token


@dataclass(frozen=True)
class Work:
    """The training on one collection, the same for all trainers.

    Attributes:
        base: folder of the model that all start from, head included.
        lists: training lists in order, ``per_step`` in each optimiser step; all of one length.
        view: the same lists as a view folder, in another order.
        held_out: lists to measure the loss on.
        dropout: dropout of hidden states and attention probabilities, in every trainer.
    """

    name: str
    base: Path
    lists: list[Ranked]
    view: Path
    held_out: list[Ranked]
    per_step: int
    lr: float
    max_length: int
    dropout: float
    device: str
    scratch: Path

    @property
    def n_pairs(self) -> int:
        return sum(len(one.passages) for one in self.lists)

    @property
    def steps(self) -> list[list[Ranked]]:
        """Return the lists of each optimiser step."""
        return [self.lists[i : i + self.per_step] for i in range(0, len(self.lists), self.per_step)]


def in_training_order(view: Path, lists: Sequence[Ranked], seed: int) -> list[Ranked]:
    """Order a view's lists as the first epoch of a recipe with this seed takes them."""
    from students.train.lists import epoch_order, stream_key
    from students.train.view_folder import read_view

    key = stream_key(read_view(view).view_hash, seed, 0, "1:kd")
    return [lists[i] for i in epoch_order(len(lists), key)]


def make_lists(
    name: str, *, data: Path, base: Path, per_list: int, n_lists: int, n_held: int
) -> tuple[list[Ranked], list[Ranked]]:
    """Make lists to train on and lists to hold out: real ones, or ``made-up`` texts of MS MARCO's lengths.

    dl19-passage trains on RankZephyr's rankings of DL19's candidates and holds out those of DL21's. nfcorpus has judged
    passages of training queries beside random ones. A list has ``per_list`` passages.
    """
    if name == "made-up":
        made = _made_up(base, per_list, n_lists + n_held)
        return made[:n_lists], made[n_lists:]
    if name == "nfcorpus":
        made = judged(data / name, n_lists + n_held, per_list, seed=0)
        return made[:n_lists], made[n_lists:]
    rng = np.random.default_rng(0)
    other = "dl21-passage" if name == "dl19-passage" else "dl19-passage"
    return (
        _sampled(permutations(data / name, "zephyr"), per_list, n_lists, rng),
        _sampled(permutations(data / other, "zephyr"), per_list, n_held, rng),
    )


def _sampled(ranked: list[Ranked], per_list: int, n: int, rng: np.random.Generator) -> list[Ranked]:
    """Make n rankings of passages sampled from longer ones. A query can occur again with another sample."""
    long_enough = [one for one in ranked if len(one.passages) >= per_list]
    made = []
    for i in rng.permutation(-(-n // len(long_enough)) * len(long_enough))[:n] % len(long_enough):
        one = long_enough[i]
        places = np.sort(rng.choice(len(one.passages), per_list, replace=False))
        made.append(Ranked(one.query, [one.passages[k] for k in places]))
    return made


def _made_up(base: Path, per_list: int, n: int) -> list[Ranked]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    asked = texts(tokenizer, n, QUERY_TOKENS, 0.4, seed=1)
    found = texts(tokenizer, n * per_list, PASSAGE_TOKENS, 0.48, seed=2)
    return [Ranked(asked[i], found[i * per_list : (i + 1) * per_list]) for i in range(n)]


def make_view(folder: Path, lists: list[Ranked]) -> Path:
    """Write the lists as a view without validation lists, because no trainer validates."""
    return write_view(folder, lists)


# ------------------------------------------------------------------------------------------------- the models
def make_base(shape: str, folder: Path, dropout: float) -> Path:
    """Make a model's folder: MiniLM with a new head, or random weights in a shape and a tokenizer of synthetic words."""
    if shape == "minilm":
        from students.model.encoder import CrossEncoder

        encoder = CrossEncoder.load(
            "minilm", device="cpu", seed=0, hidden_dropout=dropout, attention_dropout=dropout
        )
        return encoder.save(folder)
    if shape in DECODERS:
        return _make_decoder(DECODERS[shape], folder)
    from transformers import ElectraConfig, ElectraForSequenceClassification

    size = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    words = 30_522
    if shape == "tiny":
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        words = 800
    config = ElectraConfig(
        **size, vocab_size=words, embedding_size=size["hidden_size"], num_labels=1, max_position_embeddings=512,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ElectraForSequenceClassification(config)
    with torch.no_grad():  # with the usual initial weights all scores are nearly equal
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and (shape == "tiny" or "classifier" in name) and "embeddings" not in name:
                weights.mul_(4.0)
    model.save_pretrained(folder)
    _tokenizer(words).save_pretrained(folder)
    return folder


def _make_decoder(sizes: dict[str, int], folder: Path) -> Path:
    """Make a Qwen3 with a head of one output and random weights, and a tokenizer of words without separators."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

    vocabulary = _tokenizer(min(sizes["vocab_size"], 30_522)).get_vocab()
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = Qwen3Config(**sizes, num_labels=1, pad_token_id=0, max_position_embeddings=4096)
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def _tokenizer(size: int) -> Any:
    """Make BERT's tokenizer over synthetic words of one token each."""
    from transformers import BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = (a + b + c + d for a in letters for b in letters for c in letters for d in letters)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *(next(words) for _ in range(size - len(special)))]
    return BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=512)


# ---------------------------------------------------------------------------------------------------- figures
def pair_lengths(work: Work) -> np.ndarray:
    """Count the real tokens of every pair after truncation, special tokens included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.base)
    if tokenizer.cls_token_id is None:  # a decoder, whose texts stand in a frame
        from students.model.encoder import CrossEncoder
        from students.text.frames import Framing

        encoder = CrossEncoder.load(
            work.base, max_length=work.max_length, device="cpu", framing=Framing("plain")
        )
        queries = encoder.tokenise([one.query for one in work.lists for _ in one.passages])
        passages = encoder.tokenise([text for one in work.lists for text in one.passages])
        return encoder.form.lengths(queries.lengths, passages.lengths)
    return np.array(
        [
            len(ids)
            for one in work.lists
            for ids in tokenizer(
                [one.query] * len(one.passages), one.passages, truncation=True, max_length=work.max_length
            )["input_ids"]
        ]
    )


def model_flops(config: Any, lengths: np.ndarray) -> float:
    """Count the FLOPs of the matrix products of a forward and a backward pass over pairs of these lengths.

    A product of (a, b) and (b, c) is 2abc; the backward pass has two products for each one of the forward pass. Per
    layer and token this makes 2 (4h² + 2hi) for the projections and the feed-forward, and 4hL for a token's attention
    to L others. Embeddings, norms, softmax, the head and recomputation do not count. All layers count in full, although
    ours skips parts of the last one (`computed_share`).
    """
    h, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    lengths = np.asarray(lengths, dtype=np.float64)
    dense = 2 * (4 * h * h + 2 * h * inner) * lengths.sum()
    attention = 4 * h * (lengths**2).sum()
    return float(3 * layers * (dense + attention))


def training_flops(config: Any, lengths: np.ndarray, *, adapters: bool = False) -> float:
    """Count the FLOPs of the products of a forward and a backward pass that must be computed, as `model_flops` does.

    Decoders have a gate beside the feed-forward, fewer heads of keys and values, and causal attention, of which half
    counts. With adapters alone the weights of the base have no gradients, so the backward pass costs as much as the
    forward; the adapters' own products, some percent, do not count.
    """
    if not hasattr(config, "num_key_value_heads"):
        return model_flops(config, lengths)
    lengths = np.asarray(lengths, dtype=np.float64)
    h, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    dense = 2 * (h * (2 * queries + 2 * keys) + 3 * h * inner) * lengths.sum()
    attention = 4 * queries * (lengths**2).sum() / 2
    backward_dense = dense if adapters else 2 * dense
    return float(config.num_hidden_layers * (dense + backward_dense + 3 * attention))


def computed_share(config: Any, lengths: np.ndarray) -> float:
    """Compute the share of `model_flops` that remains if the last layer computes only keys, values and first tokens."""
    h, inner, n_pairs = config.hidden_size, config.intermediate_size, len(lengths)
    lengths = np.asarray(lengths, dtype=np.float64)
    spared = (
        2 * (2 * h * h + 2 * h * inner) * (lengths.sum() - n_pairs) + 4 * h * (lengths**2 - lengths).sum()
    )
    return 1 - float(3 * spared) / model_flops(config, lengths)


def first_token_flops(config: Any, lengths: Sequence[int]) -> float:
    """Count the FLOPs of the products of a forward with first tokens alone in the last layer (`students.cpu.bert`).

    It counts as `model_flops` does. The last layer's query attends to the states themselves and mixes them.
    """
    h, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = np.asarray(lengths, dtype=np.float64)
    whole = 2 * (4 * h * h + 2 * h * inner) * tokens.sum() + 4 * h * (tokens**2).sum()
    last = 4 * h * config.num_attention_heads * tokens.sum() + 2 * (4 * h * h + 2 * h * inner) * len(tokens)
    return float((layers - 1) * whole + last)


def held_out_loss(folder: Path, work: Work) -> float:
    """Compute RankNet (natural logarithm, mean over pairs of passages) of a saved model on the held-out lists.

    It uses only transformers, in fp32, so that the measure is the same for every trainer.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = (
        AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval().to(work.device)
    )
    tokenizer = AutoTokenizer.from_pretrained(work.base)

    def score(one: Ranked) -> torch.Tensor:
        encoded = tokenizer(
            [one.query] * len(one.passages), one.passages,
            truncation=True, max_length=work.max_length, padding=True, return_tensors="pt",
        )  # fmt: skip
        logits: torch.Tensor = model(**encoded.to(work.device)).logits[:, 0]
        return logits

    return ranknet(work.held_out, score)


@torch.inference_mode()
def ranknet(lists: Sequence[Ranked], score: Any) -> float:
    """Compute the mean of softplus(s_j − s_i) over pairs with label i above label j; score maps a list to (n,)."""
    terms = []
    for one in lists:
        s = score(one).float().cpu()
        y = torch.tensor(one.labels)
        above = y[:, None] > y[None, :]
        terms.append(torch.nn.functional.softplus(s[None, :] - s[:, None])[above])
    return float(torch.cat(terms).mean())
