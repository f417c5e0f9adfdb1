"""The HTTP contracts: read each one's request, write its answer and its errors.

    TEI      POST /rerank      {"query", "texts", "raw_scores", "return_text", "truncate"} -> [{"index", "score"}, …]
    JINA     POST /v1/rerank   {"model", "query", "documents", "top_n", "return_documents"} -> {"results": […], "usage"}
    COHERE   POST /v2/rerank   {"model", "query", "documents", "top_n"} -> {"results": […], "meta"}
    SCORE    POST /score       {"model", "queries", "documents"} -> {"data": [{"index", "score"}, …], "usage"}

TEI is text-embeddings-inference's; JINA is also vLLM's and that of Cohere's first version; SCORE is vLLM's. Keys that a
contract does not have are ignored, as the servers that set these contracts do.
"""

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Given = Mapping[str, Any]
Lists = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Limits:
    """Limits of one request and of all waiting requests."""

    texts: int = 1000  # per request
    characters: int = 100_000  # per text
    body: int = 16_000_000  # bytes per request
    bodies: int = 64_000_000  # bytes of all requests being read or waiting; one request takes at most half
    waiting: int = 20_000  # pairs that wait, all requests together
    seconds_to_send: float = 30.0  # for a client to send its body


class Refused(Exception):
    """A refused request, with its code and the message for the client."""

    def __init__(self, code: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.code, self.kind, self.message = code, kind, message


@dataclass(frozen=True)
class Asked:
    """A valid request.

    Attributes:
        lists: (query, texts); a re-ranking has one, /score may have many.
        first_stage: the first stage's scores of the texts, for a server that fuses.
        raw: give the model's scores as they are.
        return_texts: give each text with its score.
        top: results to return; None returns all.
        truncate: False refuses pairs that are longer than the model's limit.
        pair_tokens, text_tokens: cut pairs and texts to this many tokens.
    """

    lists: Lists
    model: str | None = None
    first_stage: list[float] | None = None
    raw: bool = False
    return_texts: bool = False
    top: int | None = None
    truncate: bool = True
    pair_tokens: int | None = None
    text_tokens: int | None = None

    @property
    def texts(self) -> list[str]:
        return self.lists[0][1]


@dataclass(frozen=True)
class Scored:
    """The answer to a request.

    Attributes:
        model: the name of the model that scored.
        ranked: (index, value) of the first list's texts, best first.
        values: a value for each pair, in the order of the request.
        tokens: of all pairs that were scored. 0 if the contract has no usage.
        none_relevant: whether no text is relevant, by the model's calibration; None if it has no bound.
    """

    model: str
    ranked: list[tuple[int, float]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    tokens: int = 0
    none_relevant: bool | None = None

    @property
    def meta(self) -> dict[str, Any]:
        return {} if self.none_relevant is None else {"none_relevant": self.none_relevant}


@dataclass(frozen=True)
class Contract:
    """How requests are read and answered.

    Attributes:
        usage: whether an answer counts tokens.
    """

    name: str
    parse: Callable[[Given, Limits], Asked]
    answer: Callable[[Asked, Scored], Any]
    error: Callable[[Refused], tuple[int, dict[str, Any]]]
    usage: bool = True


def decode(body: bytes) -> Given:
    """Read a JSON object.

    Raises:
        Refused: the body is not JSON (400), or not an object (422).
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "Validation", f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise Refused(422, "Validation", "the body is not a JSON object")
    return given


# ------------------------------------------------------------------------------------------------------- requests
def _tei(given: Given, limits: Limits) -> Asked:
    query, texts = given.get("query"), given.get("texts")
    if not isinstance(query, str):
        raise Refused(422, "Validation", "query must be a string")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(422, "Validation", "texts must be a list of strings")
    if given.get("truncation_direction", "Right") not in ("Right", "right"):
        raise Refused(422, "Validation", "truncation_direction must be Right")
    asked = Asked(
        [(query, texts)],
        model=_string(given, "model"),
        first_stage=_scores(given, len(texts)),
        raw=_flag(given, "raw_scores", False),
        return_texts=_flag(given, "return_text", False),
        truncate=_flag(given, "truncate", True),
    )
    return _within(asked, limits, "texts")


def _jina(given: Given, limits: Limits) -> Asked:
    return _documents(given, limits, return_documents=True, least_top=0)


def _cohere(given: Given, limits: Limits) -> Asked:
    return _documents(given, limits, return_documents=False, least_top=1)


def _documents(given: Given, limits: Limits, *, return_documents: bool, least_top: int) -> Asked:
    query, documents = given.get("query"), given.get("documents")
    if not isinstance(query, str):
        raise Refused(422, "Validation", "query must be a string")
    if given.get("rank_fields") not in (None, [], ["text"]):
        raise Refused(422, "Validation", 'rank_fields is not supported: send each document\'s text as "text"')
    if not isinstance(documents, list):
        raise Refused(422, "Validation", "documents must be a list")
    texts = [_text(document) for document in documents]
    top = _integer(given, "top_n", least_top)
    asked = Asked(
        [(query, texts)],
        model=_string(given, "model"),
        first_stage=_scores(given, len(texts)),
        raw=not _flag(given, "use_activation", True),
        return_texts=_flag(given, "return_documents", return_documents),
        top=top or None,
        pair_tokens=_pair_tokens(given),
        text_tokens=_integer(given, "max_tokens_per_doc", 1),
    )
    return _within(asked, limits, "documents")


def _score(given: Given, limits: Limits) -> Asked:
    queries = _strings(given, "queries", "text_1")
    documents = _strings(given, "documents", "text_2")
    if len(queries) == 1:
        lists = [(queries[0], documents)]
    elif len(queries) == len(documents):
        lists = [(query, [document]) for query, document in zip(queries, documents, strict=True)]
    else:
        raise Refused(
            400,
            "Validation",
            f"{len(queries)} queries and {len(documents)} documents: give one query, or as many as documents",
        )
    asked = Asked(
        lists,
        model=_string(given, "model"),
        raw=not _flag(given, "use_activation", True),
        pair_tokens=_pair_tokens(given),
    )
    return _within(asked, limits, "documents")


def _text(document: Any) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise Refused(422, "Validation", 'documents must be strings, or objects with a string "text"')
    return text


def _strings(given: Given, name: str, older: str) -> list[str]:
    value = given.get(name, given.get(older))
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise Refused(422, "Validation", f"{name} must be a string or a list of strings")
    return [_text(item) for item in value]


def _string(given: Given, name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(422, "Validation", f"{name} must be a string")
    return value


def _flag(given: Given, name: str, default: bool) -> bool:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refused(422, "Validation", f"{name} must be true or false")
    return value


def _integer(given: Given, name: str, least: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Refused(422, "Validation", f"{name} is {value!r}: expected a whole number of at least {least}")
    return value


def _pair_tokens(given: Given) -> int | None:
    """Read truncate_prompt_tokens; -1 stands for the model's limit, where pairs are cut anyway."""
    value = _integer(given, "truncate_prompt_tokens", -1)
    if value == 0:
        raise Refused(422, "Validation", "truncate_prompt_tokens is 0: expected -1 or at least 1")
    return None if value == -1 else value


def _scores(given: Given, n: int) -> list[float] | None:
    """Read the first stage's scores, an own extension of the contracts."""
    value = given.get("scores")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != n:
        raise Refused(422, "Validation", f"scores must be a list with a number for each of the {n} texts")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise Refused(422, "Validation", "scores must be finite numbers")
    try:
        numbers = [float(v) for v in value]
    except OverflowError:
        numbers = [math.inf]
    if not all(map(math.isfinite, numbers)):
        raise Refused(422, "Validation", "scores must be finite numbers")
    return numbers


def _within(asked: Asked, limits: Limits, name: str) -> Asked:
    """Refuse what is empty, too large or not text."""
    n_texts = sum(len(texts) for _, texts in asked.lists)
    queries = [query for query, _ in asked.lists]
    if not n_texts or not all(query.strip() for query in queries):
        raise Refused(400, "Empty", f"`{name}` cannot be empty" if not n_texts else "`query` cannot be empty")
    if n_texts > limits.texts:
        raise Refused(413, "Validation", f"{n_texts} {name}, the limit is {limits.texts}")
    every = [*queries, *(text for _, texts in asked.lists for text in texts)]
    longest = max(map(len, every))
    if longest > limits.characters:
        raise Refused(413, "Validation", f"a text of {longest} characters, the limit is {limits.characters}")
    for text in every:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Refused(422, "Tokenizer", "a text holds half a surrogate pair") from error
    return asked


# -------------------------------------------------------------------------------------------------------- answers
def _tei_answer(asked: Asked, scored: Scored) -> list[dict[str, Any]]:
    return [
        {"index": index, **({"text": asked.texts[index]} if asked.return_texts else {}), "score": value}
        for index, value in scored.ranked
    ]


def _results(asked: Asked, scored: Scored) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "relevance_score": value,
            **({"document": {"text": asked.texts[index]}} if asked.return_texts else {}),
        }
        for index, value in scored.ranked[: asked.top]
    ]


def _jina_answer(asked: Asked, scored: Scored) -> dict[str, Any]:
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": scored.model,
        "results": _results(asked, scored),
        "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens},
        "meta": {"api_version": {"version": "1"}, **scored.meta},
    }


def _cohere_answer(asked: Asked, scored: Scored) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "model": scored.model,
        "results": _results(asked, scored),
        "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens},
        "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": scored.tokens}, **scored.meta},
    }


def _score_answer(asked: Asked, scored: Scored) -> dict[str, Any]:
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": scored.model,
        "data": [
            {"index": index, "object": "score", "score": value} for index, value in enumerate(scored.values)
        ],
        "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens, "completion_tokens": 0},
    }


# --------------------------------------------------------------------------------------------------------- errors
_TYPES = {401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError", 500: "InternalServerError"}
MODEL_FAILED = 424  # text-embeddings-inference's code; the other contracts have 500


def _tei_error(refused: Refused) -> tuple[int, dict[str, Any]]:
    return refused.code, {"error": refused.message, "error_type": refused.kind}


def _jina_error(refused: Refused) -> tuple[int, dict[str, Any]]:
    """Write the error as vLLM does (`error`), and as Jina does (`detail`)."""
    code = _usual(refused)
    kind = _TYPES.get(code, "BadRequestError")
    error = {"message": refused.message, "type": kind, "param": None, "code": code}
    return code, {"error": error, "detail": refused.message}


def _cohere_error(refused: Refused) -> tuple[int, dict[str, Any]]:
    return _usual(refused), {"id": str(uuid.uuid4()), "message": refused.message}


def _usual(refused: Refused) -> int:
    return 500 if refused.code == MODEL_FAILED else refused.code


TEI = Contract("tei", _tei, _tei_answer, _tei_error, usage=False)
JINA = Contract("jina", _jina, _jina_answer, _jina_error)
COHERE = Contract("cohere", _cohere, _cohere_answer, _cohere_error)
SCORE = Contract("score", _score, _score_answer, _jina_error)
ROUTES: dict[str, Contract] = {
    "/rerank": TEI,
    "/v1/rerank": JINA,
    "/v2/rerank": COHERE,
    "/score": SCORE,
    "/v1/score": SCORE,
}


def of_request(path: str, given: Given) -> Contract:
    """Choose a request's contract by its path. /rerank takes vLLM's form too, which has documents instead of texts."""
    if path == "/rerank" and "documents" in given and "texts" not in given:
        return JINA
    return ROUTES[path]


def of_path(path: str) -> Contract:
    """Choose the contract of an error before the body is known; TEI's for all other routes."""
    return ROUTES.get(path, TEI)


def ranking(values: Sequence[float], order: Sequence[int]) -> list[tuple[int, float]]:
    """Pair indices with their values in the given order."""
    return [(index, values[index]) for index in order]
