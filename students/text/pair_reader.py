"""Turn texts into batches of pairs in the form that one model takes: tokenise, divide into windows, collate."""

from collections.abc import Sequence
from typing import Any

from students.text.batches import Layout, PairBatch, collate
from students.text.frames import frame_of, framed
from students.text.tokens import Ints, PairFormat, Tokens, tokenise
from students.text.windows import Long, Windows, check_mode


class PairReader:
    """The part of a model that reads texts. A model is one in torch, or an exported graph.

    Attributes:
        tokenizer: with the text frame of a decoder. form: the special tokens around a pair, and the limit.
    """

    tokenizer: Any
    form: PairFormat
    max_length: int

    @property
    def config(self) -> Any:
        """The model's configuration."""
        raise NotImplementedError

    @property
    def layout(self) -> Layout:
        """The batch layout that this model needs."""
        return "padded"

    @property
    def position_start(self) -> int:
        """First position id of a packed pair."""
        return 0

    @property
    def multiple(self) -> int:
        """Lengths are padded to a multiple of this. Tensor cores need it, and oneDNN reuses its work if shapes are few."""
        return 8

    @property
    def long(self) -> Long:
        """How passages beyond max_length are scored; it is kept in the student's config."""
        return check_mode(getattr(self.config, "msft_long", "first"))

    @long.setter
    def long(self, mode: Long) -> None:
        if mode != self.long:
            self.config.msft_long = mode

    def form_for(self, datasets: Sequence[str]) -> PairFormat:
        """Return the format of pairs of these datasets: a decoder's frame may have an instruction for them.

        Raises:
            StudentError: the frame has several instructions for them (exit code 2).
        """
        frame = frame_of(self.tokenizer)
        if frame is None:
            return self.form
        chosen = frame.for_datasets(datasets)
        tokenizer = self.tokenizer if chosen == frame else framed(self.tokenizer, chosen)
        return PairFormat.of(tokenizer, self.max_length)

    def windows(self, query_lengths: Ints, passage_lengths: Ints, form: PairFormat | None = None) -> Windows:
        """Divide pairs into windows, from the full lengths of their texts; one window a pair if only the first counts."""
        return Windows.of(form or self.form, self.long, query_lengths, passage_lengths)

    def cuts(self, query_lengths: Ints, passage_lengths: Ints, form: PairFormat | None = None) -> Any:
        """Mark the pairs whose score leaves out tokens, from the full lengths of their texts."""
        form = form or self.form
        if self.long == "first":
            return query_lengths + passage_lengths > form.room
        return form.truncated(query_lengths, passage_lengths)[0] < query_lengths

    def collate(
        self,
        queries: Tokens,
        passages: Tokens,
        query: Any,
        passage: Any,
        start: Any = None,
        form: PairFormat | None = None,
    ) -> PairBatch:
        """Collate the pairs (query[i], passage[i]), or windows of them, into a batch in this model's layout."""
        return collate(
            form or self.form,
            queries,
            passages,
            query,
            passage,
            start,
            layout=self.layout,
            multiple=self.multiple,
            position_start=self.position_start,
        )

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Tokenise texts alone, in memory."""
        return tokenise(self.tokenizer, texts)
