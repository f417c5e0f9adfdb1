"""Read teacher labels in common layouts; each reader yields a `LabelList` or a `Malformed` per list.

Layouts: ``permutations`` (JSONL), ``trec`` (runs, Rank-DistiLLM's too), ``parquet`` (the same as columns; what msft
exports), ``rankgpt`` (JSONL of retrieved passages plus a JSON list of permutation strings, joined by position),
``rankllm`` (result JSON or JSONL), ``replies`` (JSONL of shown passages with the raw reply), ``conversations``
(training JSON or JSONL with the passages inside the prompt). Malformed lists are yielded with their reason, never
skipped; a fault of the whole file raises.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from labelstore.errors import BadInput, UsageError
from labelstore.files import lines as formats
from labelstore.labels.label_list import BadList, Item, LabelList, Malformed, Parse, Parsed, Worst
from labelstore.labels.read_columns import read_parquet, read_trec
from labelstore.store.keys import text_hash

LAYOUTS = ("permutations", "trec", "parquet", "rankgpt", "rankllm", "replies", "conversations")


def read(path: Path, layout: str | None, parse: Parse, replies: Path | None = None) -> Iterator[Item]:
    """Read all lists of a file.

    Args:
        layout: one of :data:`LAYOUTS`; None: told by the file's first bytes.
        replies: RankGPT's second file.

    Raises:
        DataMissing: a file is not found.
        BadInput: the file has another layout.
        UsageError: the layout is unknown, or `replies` is missing or does not belong to it.
    """
    layout = layout or detect(path)
    if layout not in LAYOUTS:
        raise UsageError(f"no layout named {layout!r}", hint=f"--layout {' | '.join(LAYOUTS)}")
    if (replies is not None) != (layout == "rankgpt"):
        raise UsageError(
            "--replies names RankGPT's second file (the JSON list of permutation strings) and goes with --layout rankgpt",
            hint="msft teachers import marco-train-100k.jsonl --layout rankgpt --replies PERMUTATIONS.json …",
        )
    if layout == "trec":
        return read_trec(path)
    if layout == "parquet":
        return read_parquet(path)
    if layout == "rankgpt" and replies is not None:
        return read_rankgpt(path, replies, parse)
    readers: Mapping[str, Callable[[dict[str, Any], str], Item]] = {
        "permutations": _permutation,
        "rankllm": lambda row, place: _rankllm(row, place, parse),
        "replies": lambda row, place: _reply(row, place, parse),
        "conversations": lambda row, place: _conversation(row, place, parse),
    }
    return _objects(path, readers[layout])


def detect(path: Path) -> str:
    """Tell the layout by the beginning of a file.

    Raises:
        DataMissing: the file is not found.
        BadInput: no layout fits.
    """
    with formats.open_bytes(path) as file:
        magic = file.read(4)
    if magic == b"PAR1":
        return "parquet"
    number, first = next(((n, line) for n, line in formats.lines(path) if line.strip()), (0, b""))
    if not first:
        raise BadInput(
            f"{path}: the file holds no list of labels",
            hint="check that this is the right file, and name its layout with --layout",
        )
    if first.lstrip()[:1] in (b"{", b"["):
        place, row = next(_rows(path), ("", None))
        if isinstance(row, Exception):
            raise BadInput(f"{place}: not JSON: {row}", hint="write one JSON object per line, or one list")
        if isinstance(row, dict):
            for layout, keys in (
                ("permutations", {"permutation"}),
                ("rankgpt", {"retrieved_passages"}),
                ("conversations", {"conversations"}),
                ("rankllm", {"candidates"}),
                ("rankllm", {"hits"}),
                ("replies", {"reply"}),
                ("replies", {"response"}),
            ):
                if keys <= set(row):
                    return layout
    elif len(first.split()) == 6:
        return "trec"
    raise BadInput(
        f"{path}:{number}: no layout of labels begins like this",
        hint=f"--layout {' | '.join(LAYOUTS)}",
    )


# ----------------------------------------------------------------------------------------------- JSON


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of a JSONL file or a JSON list; the value of a broken line is an exception."""
    lines = iter(formats.lines(path))
    head = list(itertools.islice(lines, 1))
    if head and head[0][1].lstrip().startswith(b"["):
        text = b"\n".join(line for _, line in itertools.chain(head, lines))
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise BadInput(
                f"{path}: not one JSON list: {error}", hint="check the file; JSONL needs one object per line"
            ) from error
        for k, row in enumerate(rows, 1):
            yield f"{path.name}, list {k}", row
        return
    for number, line in itertools.chain(head, lines):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            yield place, json.loads(formats.decode(Path(path.name), number, line))
        except (ValueError, RecursionError, BadInput) as error:
            yield place, error


def _objects(path: Path, reader: Callable[[dict[str, Any], str], Item]) -> Iterator[Item]:
    for place, row in _rows(path):
        if not isinstance(row, dict):
            detail = f"not JSON: {row}" if isinstance(row, Exception) else "not a JSON object"
            yield Malformed(place, "malformed line", detail)
            continue
        try:
            yield reader(row, place)
        except BadList as bad:
            reason, detail = bad.args
            yield Malformed(
                place,
                reason,
                detail,
                *(_text_or_none(row.get(k)) for k in ("query_id", "teacher", "first_stage")),
            )


def _text_or_none(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def _text(row: Mapping[str, Any], *names: str) -> str | None:
    return next((t for name in names if (t := _text_or_none(row.get(name))) is not None), None)


def _id(value: Any, what: str) -> str:
    text = _text_or_none(value)
    if text is None:
        raise BadList("malformed line", f"{what} is missing or no text")
    if len(text.split()) != 1:
        raise BadList("malformed line", f"{what} {text[:80]!r} holds white space")
    return text


def _ids(value: Any, what: str) -> list[str]:
    if not isinstance(value, list):
        raise BadList("malformed line", f"{what} is not a list")
    return [_id(item, what) for item in value]


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _permutation(row: dict[str, Any], place: str) -> LabelList:
    """Read ``{query_id, permutation, query?, teacher?, first_stage?, initial?, scores?, tie_groups?, …}``."""
    ranking = _ids(row.get("permutation"), "permutation")
    groups = None
    if row.get("tie_groups") is not None:
        ties = row["tie_groups"]
        if not isinstance(ties, list) or [i for group in ties for i in _ids(group, "tie_groups")] != ranking:
            raise BadList("malformed line", "tie_groups do not spell the permutation")
        groups = [len(group) for group in ties]
    scores = row.get("scores")
    if scores is not None:
        if not isinstance(scores, list) or len(scores) != len(ranking):
            raise BadList("malformed line", f"{len(scores or [])} scores for {len(ranking)} passages")
        scores = [_score(s) for s in scores]
    known = ("method", "source", "split", "example_id", "timestamp", "strategy", "window", "stride")
    without_text = row.get("dropped_without_text")
    return LabelList(
        place=place,
        query_id=_id(row.get("query_id"), "query_id"),
        ranking=ranking,
        query_text=_text(row, "query", "query_text"),
        teacher=_text(row, "teacher", "model"),
        first_stage=_text(row, "first_stage", "run"),
        groups=groups,
        scores=scores,
        initial=None if row.get("initial") is None else _ids(row["initial"], "initial"),
        n_without_text=len(without_text) if isinstance(without_text, list) else 0,
        depth=_whole(row.get("reranked_depth")) or _whole(row.get("depth")),
        settled=_whole(row.get("settled")),
        licence=_text(row, "licence", "license"),
        parameters={key: row[key] for key in known if isinstance(row.get(key), str | int | float)},
    )


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 3.4e38:
        raise BadList("score is not a finite number", f"score {value!r}")
    return float(value)


def _reply(row: dict[str, Any], place: str, parse: Parse) -> LabelList:
    """Read ``{query_id, initial | passages: [doc_id shown …], reply | response: text, model?, …}``."""
    shown = _ids(row.get("initial", row.get("passages", row.get("shown"))), "passages shown")
    reply = row.get("reply", row.get("response"))
    if not isinstance(reply, str):
        raise BadList("malformed line", "no field reply")
    return _replied(
        LabelList(
            place,
            _id(row.get("query_id"), "query_id"),
            [],
            query_text=_text(row, "query"),
            teacher=_text(row, "teacher", "model"),
            first_stage=_text(row, "first_stage", "run"),
            initial=shown,
            reply=reply,
            n_calls=1,
            tokens_in=_whole(row.get("tokens_in")) or 0,
            tokens_out=_whole(row.get("tokens_out")) or 0,
            licence=_text(row, "licence", "license"),
        ),
        parse,
    )


def _replied(found: LabelList, parse: Parse) -> LabelList:
    """Fill in the ranking that a reply states over the passages shown."""
    shown = found.initial or []
    found.parsed = parse(found.reply or "", len(shown))
    if found.parsed.order is not None:
        found.ranking = [shown[i] for i in found.parsed.order]
    return found


def _rankllm(row: dict[str, Any], place: str, parse: Parse) -> LabelList:
    """Read RankLLM's results: ``{query: {qid, text}, candidates: [{docid, score, doc}], …}`` or hits."""
    query = row.get("query")
    hits = row.get("candidates", row.get("hits"))
    if not isinstance(hits, list) or not hits:
        raise BadList("malformed line", "no candidates")
    if isinstance(query, dict):
        query_id, text = _id(query.get("qid"), "qid"), _text(query, "text")
    else:
        query_id, text = (
            _id(hits[0].get("qid") if isinstance(hits[0], dict) else None, "qid"),
            _text(row, "query"),
        )
    texts: dict[str, tuple[str | None, str]] = {}
    ranking = []
    for hit in hits:
        if not isinstance(hit, dict):
            raise BadList("malformed line", "a candidate is not an object")
        doc_id = _id(hit.get("docid"), "docid")
        ranking.append(doc_id)
        content = hit.get("doc", hit.get("content"))
        if isinstance(content, dict):
            body = _text(content, "contents", "content", "text", "passage", "segment", "body")
            if body:
                texts[doc_id] = (_text(content, "title"), body)
        elif isinstance(content, str) and content.strip():
            texts[doc_id] = (None, content)
    found = LabelList(place, query_id, ranking, query_text=text, texts=texts)
    history = row.get("invocations_history") or row.get("ranking_exec_summary") or []
    parsed = [_invocation(call, parse) for call in history if isinstance(call, dict)]
    if parsed:
        found.parsed = Worst(parsed)
        found.n_calls = len(parsed)
        found.tokens_in = sum(_whole(call.get("input_token_count")) or 0 for call in history)
        found.tokens_out = sum(_whole(call.get("output_token_count")) or 0 for call in history)
    return found


def _invocation(call: dict[str, Any], parse: Parse) -> Parsed:
    prompt = call.get("prompt")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    n = _number_shown(text)
    return parse(str(call.get("response") or ""), n)


def _number_shown(prompt: str) -> int:
    """Return the number of passages that a prompt of this family shows, from ``I will provide you with``."""
    _, _, rest = prompt.partition("I will provide you with ")
    digits = rest.split(" ", 1)[0]
    return int(digits) if digits.isdecimal() else 20


def _conversation(row: dict[str, Any], place: str, parse: Parse) -> LabelList:

    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise BadList("malformed line", "no conversations")
    said = {
        str(t.get("from", t.get("role"))): t.get("value", t.get("content"))
        for t in turns
        if isinstance(t, dict)
    }
    prompt = next((said[k] for k in ("human", "user") if isinstance(said.get(k), str)), None)
    reply = next((said[k] for k in ("gpt", "assistant") if isinstance(said.get(k), str)), None)
    if prompt is None or reply is None:
        raise BadList("malformed line", "a human and a gpt turn are wanted")
    query, texts = split(prompt)
    if query is None or len(texts) < 2:
        raise BadList("malformed line", "the prompt does not list passages as [1] …")
    if row.get("doc_ids") is not None:
        ids = _ids(row["doc_ids"], "doc_ids")
        if len(ids) != len(texts):
            raise BadList("malformed line", f"{len(ids)} doc_ids for {len(texts)} passages")
        texts = [(doc_id, text) for doc_id, (_, text) in zip(ids, texts, strict=True)]
    return _replied(
        LabelList(
            place,
            _text(row, "query_id", "qid"),
            [],
            query_text=query,
            teacher=_text(row, "teacher", "model"),
            first_stage=_text(row, "first_stage"),
            initial=[doc_id for doc_id, _ in texts],
            reply=reply,
            n_calls=1,
            parameters={"example_id": str(row["id"])} if "id" in row else {},
            texts={doc_id: (None, text) for doc_id, text in texts},
        ),
        parse,
    )


# -------------------------------------------------------------------------------------------- RankGPT


def read_rankgpt(path: Path, replies: Path, parse: Parse) -> Iterator[Item]:
    """``{query, query_id?, retrieved_passages: [{docid, text, rank?}]}`` per line, and a JSON list of permutations.

    The two are joined by position, so their lengths must agree; a list whose reply does not fit is named.

    Raises:
        BadInput: the second file is not a list of texts, or has another length.
    """
    answers = [value for _, value in _rows(replies)]
    if len(answers) == 1 and isinstance(answers[0], list):
        answers = answers[0]
    n = 0
    for n, (place, row) in enumerate(_rows(path), 1):
        if n > len(answers):
            continue
        try:
            yield _rankgpt(row, answers[n - 1], place, parse)
        except BadList as bad:
            yield Malformed(place, *bad.args)
    if n != len(answers):
        raise BadInput(
            f"{path.name} has {n} lists and {replies.name} {len(answers)} replies: they are joined by position",
            hint="check that the two files are of one release, and whole",
        )


def _rankgpt(row: Any, answer: Any, place: str, parse: Parse) -> LabelList:
    if not isinstance(row, dict):
        raise BadList("malformed line", "not a JSON object")
    if isinstance(answer, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in answer):
        answer = " > ".join(f"[{i}]" for i in answer)
    if not isinstance(answer, str):
        raise BadList("malformed reply", "the permutation at this position is not text")
    hits = row.get("retrieved_passages", row.get("hits"))
    if not isinstance(hits, list) or not all(isinstance(hit, dict) for hit in hits):
        raise BadList("malformed line", "no retrieved_passages")
    shown = [_id(hit.get("docid", hit.get("doc_id")), "docid") for hit in hits]
    texts = {
        doc_id: (_text(hit, "title"), text)
        for doc_id, hit in zip(shown, hits, strict=True)
        if (text := _text(hit, "text", "content")) is not None
    }
    return _replied(
        LabelList(
            place,
            _text(row, "query_id", "qid"),
            [],
            query_text=_text(row, "query"),
            initial=shown,
            reply=answer,
            n_calls=1,
            texts=texts,
        ),
        parse,
    )


_QUERY = re.compile(r"relevance to (?:the search )?query: (.*?)\.?\s*\n", re.S)
_CLOSING = re.compile(r"\n\s*Search Query: ", re.S)
_PASSAGE = re.compile(r"^\[(\d+)\] ?", re.M)


def split(prompt: str) -> tuple[str | None, list[tuple[str, str]]]:
    """Split a prompt into (query, [(doc_id, passage)]); a passage without an id gets one from its text's hash.

    Identifiers must run 1, 2, 3 …: a line inside a passage that begins with another ``[n]`` belongs to the passage.
    """
    found = _QUERY.search(prompt)
    if found is None:
        return None, []
    closing = _CLOSING.search(prompt, found.end() - 1)
    body = prompt[found.end() : closing.start() if closing else len(prompt)]
    starts: list[re.Match[str]] = []
    for mark in _PASSAGE.finditer(body):
        if int(mark[1]) == len(starts) + 1:
            starts.append(mark)
    ends = [mark.start() for mark in starts[1:]] + [len(body)]
    passages = []
    for mark, end in zip(starts, ends, strict=True):
        text = body[mark.end() : end].strip()
        passages.append((f"{text_hash(None, text):016x}", text))
    return found[1].strip(), passages
