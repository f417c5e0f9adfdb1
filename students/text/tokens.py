"""Tokenise each text once, and join pairs exactly as the tokenizer would.

A cross-encoder reads ``[CLS] query [SEP] passage [SEP]``. Tokenising that text again for every pair and every epoch
would leave a GPU waiting. So each text is tokenised once, alone, and a pair is two slices of integers between special
tokens. `PairFormat` reproduces the tokenizer's pair truncation (``longest_first``), so ids, token types and lengths
equal ``tokenizer(query, passage, truncation=True, max_length=…)``. `PairFormat.of` checks this on samples. In a text frame
(`students.text.frames`) the passage is cut first.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from students.errors import ExitCode, StudentError
from students.text.frames import frame_of

Progress = Callable[[int, int | None], None]
Ints = NDArray[np.int64]

_CHUNK = 4096  # texts handed to the tokenizer at once: enough for its threads, small enough for memory


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts without special tokens: text i is ``ids[starts[i] : starts[i] + lengths[i]]``."""

    ids: NDArray[Any]  # unsigned integers, all texts' tokens; may be memory-mapped
    starts: Ints  # (n,)
    lengths: Ints  # (n,)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> NDArray[Any]:
        start = int(self.starts[index])
        return np.asarray(self.ids[start : start + int(self.lengths[index])])

    def take(self, numbers: NDArray[Any]) -> "Tokens":
        """Copy the ids of these texts, in this order."""
        lengths = self.lengths[numbers]
        starts = _starts(lengths)
        within = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        return Tokens(self.ids[np.repeat(self.starts[numbers], lengths) + within], starts, lengths)


def id_type(tokenizer: Any) -> type[np.uint16] | type[np.uint32]:
    """Choose the smallest unsigned integer type that holds every id of the tokenizer."""
    return np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32


def tokenise(tokenizer: Any, texts: Sequence[str], progress: Progress | None = None) -> Tokens:
    """Tokenise each text alone, without special tokens and without truncation.

    Fast tokenizers use all cores with their own threads; ``TOKENIZERS_PARALLELISM=false`` turns that off.
    """
    parts: list[NDArray[Any]] = []
    lengths = np.zeros(len(texts), dtype=np.int64)
    dtype = id_type(tokenizer)
    for first in range(0, len(texts), _CHUNK):
        for offset, ids in enumerate(_encode(tokenizer, list(texts[first : first + _CHUNK]))):
            lengths[first + offset] = len(ids)
            parts.append(np.asarray(ids, dtype=dtype))
        if progress is not None:
            progress(min(first + _CHUNK, len(texts)), len(texts))
    ids_flat = np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
    return Tokens(ids_flat, _starts(lengths), lengths)


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if getattr(tokenizer, "is_fast", False):
        backend = tokenizer.backend_tokenizer
        if (
            backend.truncation is not None or backend.padding is not None
        ):  # left over from a call with options
            backend.no_truncation()
            backend.no_padding()
        return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    encoded = tokenizer(texts, add_special_tokens=False, truncation=False, padding=False, verbose=False)
    return list(encoded["input_ids"])


def _starts(lengths: Ints) -> Ints:
    starts = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts


@dataclass(frozen=True)
class Joined:
    """n pairs, one after the other, without padding."""

    ids: Ints  # (T,) token ids with special tokens
    types: Ints  # (T,) token types
    lengths: Ints  # (n,) tokens of each pair; their sum is T
    n_truncated: int  # pairs that were cut to the limit


@dataclass(frozen=True)
class PairFormat:
    """The special tokens that a tokenizer puts around a pair, and its length limit.

    A pair is ``before query between passage after``, with the token types of the five parts. ``max_length`` counts all
    five. With ``passage_first`` only the passage is cut, and a query beyond three quarters of the room.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int]
    max_length: int
    pad_id: int
    has_types: bool  # whether the model takes token_type_ids
    pad_type: int = 0
    passage_first: bool = False

    @classmethod
    def of(cls, tokenizer: Any, max_length: int) -> "PairFormat":
        """Read the special tokens from the tokenizer, and check on samples that joining equals tokenising the pair.

        Raises:
            StudentError: the limit leaves no room for text, or the tokenizer does not tokenise the two texts
                independently, so their ids cannot be reused.
        """
        frame = _frame(tokenizer)
        made = cls(
            *frame,
            max_length=max_length,
            pad_id=int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0),
            has_types="token_type_ids" in tokenizer.model_input_names,
            pad_type=int(getattr(tokenizer, "pad_token_type_id", 0) or 0),
            passage_first=frame_of(tokenizer) is not None,
        )
        if made.room < 2:
            raise StudentError(
                f"max_length {max_length} leaves no room for a query and a passage beside "
                f"{made.n_special} special tokens",
                hint=f"give --max-length (recipe: max_length) of at least {made.n_special + 13}",
                exit_code=ExitCode.USAGE,
            )
        made._prove(tokenizer)
        return made

    @property
    def n_special(self) -> int:
        """Count the special tokens in a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    @property
    def room(self) -> int:
        """Count the tokens left for query and passage together."""
        return self.max_length - self.n_special

    def truncated(self, query_lengths: Ints, passage_lengths: Ints) -> tuple[Ints, Ints]:
        """Compute how many tokens of each query and passage are kept, from their full lengths.

        ``longest_first``: the longer text is cut until both are equally long. Then each gets half of the room. An odd
        token goes to the longer text, or to the passage if both were equally long.
        """
        if self.passage_first:
            most = np.maximum(self.room * 3 // 4, self.room - passage_lengths)
            kept = np.minimum(query_lengths, most)
            return kept, np.minimum(passage_lengths, self.room - kept)
        short, long = np.minimum(query_lengths, passage_lengths), np.maximum(query_lengths, passage_lengths)
        kept_long = np.maximum(short, self.room - short)
        halves = short + kept_long > self.room
        kept_short = np.where(halves, self.room // 2, short)
        kept_long = np.where(halves, self.room - self.room // 2, kept_long)
        fits = query_lengths + passage_lengths <= self.room
        kept_short, kept_long = np.where(fits, short, kept_short), np.where(fits, long, kept_long)
        swapped = query_lengths > passage_lengths
        return np.where(swapped, kept_long, kept_short), np.where(swapped, kept_short, kept_long)

    def lengths(self, query_lengths: Ints, passage_lengths: Ints) -> Ints:
        """Count the tokens of each pair after truncation, special tokens included."""
        return np.minimum(query_lengths + passage_lengths, self.room) + self.n_special

    def join(
        self, queries: Tokens, passages: Tokens, query: Ints, passage: Ints, start: Ints | None = None
    ) -> Joined:
        """Join the ids of the pairs (query[i], passage[i]), one pair after the other, without a Python loop over pairs.

        Args:
            start: the first token that is taken of each passage (`students.text.windows`).
        """
        full_q, full_p = queries.lengths[query], passages.lengths[passage]
        n_q, n_p = self.truncated(full_q, full_p)
        lengths = n_q + n_p + self.n_special
        starts = _starts(lengths)
        ids = np.empty(int(lengths.sum()), dtype=np.int64)
        types = np.empty(len(ids), dtype=np.int64)
        for k, token in enumerate(self.before):
            ids[starts + k], types[starts + k] = token, self.types[0]
        at = starts + len(self.before)
        _copy(ids, types, at, queries, query, n_q, self.types[1])
        at = at + n_q
        for k, token in enumerate(self.between):
            ids[at + k], types[at + k] = token, self.types[2]
        at = at + len(self.between)
        _copy(ids, types, at, passages, passage, n_p, self.types[3], start)
        at = at + n_p
        for k, token in enumerate(self.after):
            ids[at + k], types[at + k] = token, self.types[4]
        cut = int(np.count_nonzero((n_q < full_q) | ((n_p < full_p) if start is None else False)))
        return Joined(ids, types, lengths, cut)

    def _prove(self, tokenizer: Any) -> None:
        """Compare pairs with the tokenizer's, at this limit and at two that cut them.

        Raises:
            StudentError: they differ.
        """
        short, long = "What is it?", "Rocks, (2) sand & clay: 14.5 % é — a naïve list of words. "
        # The tokenizer makes further pairs of what it cuts off, and their number grows with the square of the lengths.
        limits = {self.n_special + 9: long, self.n_special + 12: long, self.max_length: long * 4}
        if self.passage_first:  # the tokenizer cuts the longer text first
            (length,) = tokenise(tokenizer, [long * 4]).lengths
            limits = {self.n_special + 2 * int(length): long * 4}
        for limit, passage in sorted(limits.items()):
            samples = [(short, passage), (passage, short), (passage, passage), (short, short), ("a", "b")]
            pairs = [list(texts) for texts in zip(*samples, strict=True)]
            queries, passages = (tokenise(tokenizer, texts) for texts in pairs)
            each = np.arange(len(samples))
            joined = PairFormat(**{**self.__dict__, "max_length": limit}).join(queries, passages, each, each)
            ends = np.cumsum(joined.lengths)
            real = tokenizer(*pairs, truncation=True, max_length=limit, verbose=False)
            for i in range(len(samples)):
                mine = joined.ids[ends[i] - joined.lengths[i] : ends[i]].tolist()
                kinds = joined.types[ends[i] - joined.lengths[i] : ends[i]].tolist()
                theirs = list(real["input_ids"][i])
                if mine != theirs or (self.has_types and kinds != list(real["token_type_ids"][i])):
                    raise StudentError(
                        f"{type(tokenizer).__name__} does not build a pair from its two texts' own tokens "
                        f"(max_length {limit}: {theirs} against {mine})",
                        hint="use a model with a fast BERT-, RoBERTa- or ModernBERT-style tokenizer that truncates "
                        "on the right",
                    )


def _copy(
    ids: Ints,
    types: Ints,
    at: Ints,
    source: Tokens,
    text: Ints,
    n: Ints,
    kind: int,
    start: Ints | None = None,
) -> None:
    """Write n[i] tokens of text[i], from start[i] on, to ids[at[i]:], for all i at once."""
    total = int(n.sum())
    if total == 0:
        return
    within = np.arange(total) - np.repeat(_starts(n), n)
    target = np.repeat(at, n) + within
    begin = source.starts[text] if start is None else source.starts[text] + start
    ids[target] = source.ids[np.repeat(begin, n) + within]
    types[target] = kind


def _frame(
    tokenizer: Any,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, int, int, int, int]]:
    """Find the special tokens around and between two texts, and the token types of the five parts."""
    query, passage = (_encode(tokenizer, [text])[0] for text in ("one two", "three four five"))
    encoded = tokenizer("one two", "three four five", return_token_type_ids=True, verbose=False)
    ids, kinds = list(encoded["input_ids"]), list(encoded["token_type_ids"])
    first = _find(ids, query, 0)
    second = _find(ids, passage, first + len(query)) if first >= 0 else -1
    if first < 0 or second < 0 or not query or not passage:
        raise StudentError(
            f"{type(tokenizer).__name__} does not put a query and a passage one after the other",
            hint="use a model with a BERT-, RoBERTa- or ModernBERT-style tokenizer",
        )
    end_q, end_p = first + len(query), second + len(passage)
    parts = [(0, first), (first, end_q), (end_q, second), (second, end_p), (end_p, len(ids))]
    types = [kinds[a] if a < b else 0 for a, b in parts]
    return (
        tuple(ids[:first]),
        tuple(ids[end_q:second]),
        tuple(ids[end_p:]),
        (types[0], types[1], types[2], types[3], types[4]),
    )


def _find(ids: list[int], part: list[int], start: int) -> int:
    for at in range(start, len(ids) - len(part) + 1):
        if ids[at : at + len(part)] == part:
            return at
    return -1


def tokenizer_key(tokenizer: Any) -> str:
    """Compute a 128-bit hex key of everything that determines a text's ids: the serialised fast tokenizer, or its vocabulary."""
    if getattr(tokenizer, "is_fast", False):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for frame in (
            "truncation",
            "padding",
            "post_processor",
        ):  # settings left by earlier calls, which do not change a text's ids
            state.pop(frame, None)
        content = json.dumps(state, sort_keys=True)
    else:
        content = repr(
            (type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs)
        )
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def text_key(text: str) -> int:
    """Compute the unsigned 64-bit hash of a text as the tokenizer sees it."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )
