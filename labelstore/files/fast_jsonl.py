"""Read a JSONL file of documents in blocks, several times as fast as the reference reader, if it has the common form.

Common form: an object a line, the id a string of printable ASCII, the text a string. Arrow's parser is as strict as
the reference on that (types, UTF-8, surrogates, repeated keys); this module checks the rest.
Anything else raises `UnusualForm`. Then `jsonl.read_documents` reads the file, or refuses it and names the line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from labelstore.files import jsonl
from labelstore.files import lines as formats
from labelstore.store import keys

BLOCK = 8 << 20  # bytes; a longer object is not common
_TEXT_KEYS = ("text", "contents")
_NOT_IN_IDS = "[\\x00-\\x20\\x7f]"
SCHEMA = pa.schema([("line", pa.int64()), ("doc_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("text_hash", pa.uint64())])  # fmt: skip


class UnusualForm(Exception):
    """The file is not in the common form."""


class _Watched:
    """The file's bytes as Arrow reads them, with counts of lines and of lines that begin an object."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._last = b"\n"
        self.lines = 0
        self.objects = 0
        self.closed = False

    def read(self, n: int = -1) -> bytes:
        block = self._file.read(n)
        if block:
            self.lines += block.count(b"\n")
            self.objects += block.count(b"\n{") + (self._last == b"\n" and block.startswith(b"{"))
            if b"\x00" in block:
                raise UnusualForm
            self._last = block[-1:]
        elif self._last != b"\n":
            self.lines += 1
            self._last = b"\n"
        return block

    def close(self) -> None:
        self._file.close()
        self.closed = True


def batches(path: Path) -> Iterator[tuple[int, pa.RecordBatch, list[tuple[int, str]]]]:
    """Yield batches of (documents read, rows as in `SCHEMA`, (line, doc_id) of those without any text).

    Raises:
        UnusualForm: the file has another form, even at its end; discard all batches then.
        DataMissing: the file is not found.
    """
    id_key, text_key = _keys(path)
    others = [key for key in jsonl.DOC_KEYS[: jsonl.DOC_KEYS.index(id_key)] + _TEXT_KEYS if key != text_key]
    wanted = pa.schema([(key, pa.string()) for key in (id_key, text_key, "title", *others)])
    watched = _Watched(formats.open_bytes(path))
    n = 0
    try:
        reader = pyarrow.json.open_json(
            watched,
            read_options=pyarrow.json.ReadOptions(block_size=BLOCK),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=wanted, unexpected_field_behavior="ignore"
            ),
        )
        for batch in reader:
            batch.validate(full=True)
            ids, texts = batch.column(id_key), batch.column(text_key)
            if (
                ids.null_count
                or texts.null_count
                or any(batch.column(key).null_count < batch.num_rows for key in others)
                or not pc.all(pc.string_is_ascii(ids)).as_py()
                or not pc.all(pc.greater(pc.binary_length(ids), 0)).as_py()
                or pc.any(pc.match_substring_regex(ids, _NOT_IN_IDS)).as_py()
                or any(
                    pc.any(pc.match_substring(batch.column(key), "\x00")).as_py()
                    for key in (text_key, "title")
                )
            ):
                raise UnusualForm
            yield batch.num_rows, *_rows(n, ids, texts, batch.column("title"))
            n += batch.num_rows
    except (pa.ArrowException, *formats.DAMAGED) as error:
        raise UnusualForm from error
    finally:
        watched.close()
    if not n == watched.lines == watched.objects:  # blank lines, or objects that do not stand one on a line
        raise UnusualForm


def _keys(path: Path) -> tuple[str, str]:
    """Find the names of the id and of the text in the first line."""
    try:
        with formats.open_bytes(path) as file:
            first = json.loads(file.readline(BLOCK))
    except (ValueError, RecursionError, *formats.DAMAGED) as error:
        raise UnusualForm from error
    if not isinstance(first, dict):
        raise UnusualForm
    id_key = next((key for key in jsonl.DOC_KEYS if key in first), None)
    text_key = next((key for key in _TEXT_KEYS if key in first), None)
    if id_key is None or text_key is None:
        raise UnusualForm
    return id_key, text_key


def _rows(before: int, ids: Any, texts: Any, titles: Any) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    held, own = texts.to_pylist(), titles.to_pylist()
    hashes = [keys.text_hash(title, text) for title, text in zip(own, held, strict=True)]
    empty = [k for k, text in enumerate(held) if (not text or text.isspace()) and not (own[k] or "").strip()]
    titles = pc.if_else(pc.equal(titles, ""), pa.scalar(None, pa.string()), titles)
    lines = pa.array(range(before + 1, before + len(held) + 1), pa.int64())
    batch = pa.record_batch([lines, ids, titles, texts, pa.array(hashes, pa.uint64())], schema=SCHEMA)
    if not empty:
        return batch, []
    without = [(before + k + 1, ids[k].as_py()) for k in empty]
    kept = pa.array([True] * len(held)).to_numpy(zero_copy_only=False)
    kept[empty] = False
    return batch.filter(pa.array(kept)), without
