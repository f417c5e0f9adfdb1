"""Each contract over a real socket: what its clients send, what they read, and its errors."""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tiny_models
from served import WordScorer, serving_app

from students.rerank.reranker import Reranker
from students.serve import contracts
from students.serve.app import Limits, create_app, create_app_of
from students.serve.models import Model, sigmoid

LIMITS = Limits(texts=20, characters=2000, body=50_000, bodies=500_000, waiting=500)
INFO = {"max_input_length": 12}


def model(name: str, **more: Any) -> Model:
    return Model(name, WordScorer(more.pop("shift", 2.0)), INFO | {"model_id": name}, **more)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    models = [model("words"), model("fused", weight=0.25), model("other", shift=0.0)]
    with serving_app(create_app_of(models, LIMITS, round_seconds=0.02)) as address:
        yield address


def post(url: str, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}{path}", content=content, headers=headers, timeout=30)


THREE = ["one two", "one two three four", "one"]  # raw scores 0, 2, -1
ORDER = [1, 0, 2]

# Requests as clients sent them, word for word: name -> path and body. The clients are those of November 2026.
GOLDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere.ClientV2": ("/v2/rerank", {"model": "words", "query": "q", "documents": THREE, "top_n": 2}),
    "cohere.Client": (
        "/v1/rerank",
        {"model": "words", "query": "q", "documents": [THREE[0], THREE[1], {"text": THREE[2]}], "top_n": 2, "return_documents": True},
    ),
    "langchain_cohere.CohereRerank": (
        "/v2/rerank",
        {"model": "words", "query": "q", "documents": THREE, "top_n": 2, "max_tokens_per_doc": None},
    ),
    "langchain_community JinaRerank": ("/v1/rerank", {"query": "q", "documents": THREE, "model": "words", "top_n": 2}),
    "llama_index CohereRerank": ("/v2/rerank", {"model": "words", "query": "q", "documents": THREE, "top_n": 2}),
    "llama_index JinaRerank": ("/v1/rerank", {"query": "q", "documents": THREE, "model": "words", "top_n": 2}),
    "mteb OpenAIAPIRerankWrapper": ("/v1/rerank", {"model": "words", "query": "q", "documents": THREE, "top_n": 2}),
    "vLLM, /rerank": ("/rerank", {"model": "words", "query": "q", "documents": THREE, "top_n": 2}),
}  # fmt: skip


@pytest.mark.parametrize("client", GOLDEN)
def test_requests_of_clients_are_answered_best_first(url: str, client: str) -> None:
    path, body = GOLDEN[client]
    answer = post(url, path, body, authorization="Bearer k")
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [row["index"] for row in results] == ORDER[:2]
    assert [row["relevance_score"] for row in results] == pytest.approx([sigmoid(2), sigmoid(0)])
    texts = [row.get("document", {}).get("text") for row in results]
    assert texts == ([None, None] if path == "/v2/rerank" else [THREE[1], THREE[0]])


def test_answers_have_the_keys_of_their_contract(url: str) -> None:
    body = {"model": "words", "query": "a b", "documents": THREE}
    jina, cohere = (post(url, path, body).json() for path in ("/v1/rerank", "/v2/rerank"))
    score = post(url, "/score", {"queries": "a b", "documents": THREE}).json()
    tokens = sum(2 + n + 3 for n in (2, 4, 1))
    assert jina["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (jina["model"], jina["object"], jina["id"][:7]) == ("words", "list", "rerank-")
    assert cohere["meta"] == {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}}
    assert set(cohere["results"][0]) == {"index", "relevance_score"}
    assert [row["index"] for row in score["data"]] == [0, 1, 2]
    assert [row["score"] for row in score["data"]] == pytest.approx([sigmoid(0), sigmoid(2), sigmoid(-1)])
    assert {row["object"] for row in score["data"]} == {"score"}
    assert score["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    tei = post(url, "/rerank", {"query": "a b", "texts": THREE}).json()
    assert tei == [{"index": i, "score": pytest.approx(sigmoid([0, 2, -1][i]))} for i in ORDER]


@pytest.mark.parametrize(
    ("body", "scores"),
    [
        ({"text_1": "q", "text_2": ["a", "a b c"]}, [-1.0, 1.0]),
        ({"queries": ["q"], "documents": ["a", "a b c"]}, [-1.0, 1.0]),
        ({"queries": ["q", "r"], "documents": ["a", "a b c"]}, [-1.0, 1.0]),
        ({"queries": "q", "documents": "a b c"}, [1.0]),
        ({"queries": "q", "documents": [{"text": "a b"}]}, [0.0]),
    ],
)
def test_score_takes_one_query_or_as_many_as_documents(
    url: str, body: dict[str, Any], scores: list[float]
) -> None:
    for path in ("/score", "/v1/score"):
        found = post(url, path, body | {"use_activation": False}).json()["data"]
        assert [row["score"] for row in found] == scores


@pytest.mark.parametrize(
    ("body", "count", "documents"),
    [
        ({}, 3, True),
        ({"top_n": 0}, 3, True),
        ({"top_n": 1}, 1, True),
        ({"top_n": 9}, 3, True),
        ({"top_n": None, "return_documents": False}, 3, False),
        ({"use_activation": False, "encoding_format": "float", "priority": 3}, 3, True),
    ],
)
def test_jinas_options(url: str, body: dict[str, Any], count: int, documents: bool) -> None:
    results = post(url, "/v1/rerank", {"query": "q", "documents": THREE} | body).json()["results"]
    assert [row["index"] for row in results] == ORDER[:count]
    assert all(("document" in row) == documents for row in results)
    if body.get("use_activation") is False:
        assert [row["relevance_score"] for row in results] == [2.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("options", "raw", "tokens"),
    [
        ({}, [-2.0 + 1, -2.0 + 20], 5 + 12),  # a pair beyond the model's limit counts as that
        ({"truncate_prompt_tokens": -1}, [-1.0, 18.0], 5 + 12),
        ({"truncate_prompt_tokens": 6}, [-1.0, 0.0], 5 + 6),
        ({"truncate_prompt_tokens": 5}, [-1.0, -1.0], 5 + 5),
        ({"max_tokens_per_doc": 3}, [-1.0, 1.0], 5 + 7),
        ({"max_tokens_per_doc": 1, "truncate_prompt_tokens": 10}, [-1.0, -1.0], 5 + 5),
    ],
)
def test_texts_are_cut_to_the_tokens_asked_for(
    url: str, options: dict[str, int], raw: list[float], tokens: int
) -> None:
    body = {"query": "q", "documents": ["a", "b " * 20], "use_activation": False} | options
    answer = post(url, "/v1/rerank", body).json()
    found = {row["index"]: row["relevance_score"] for row in answer["results"]}
    assert [found[0], found[1]] == raw
    assert answer["usage"]["total_tokens"] == tokens
    assert {row["document"]["text"] for row in answer["results"]} >= {"a"}


BAD: list[tuple[Any, int]] = [
    (b"{", 400),
    (b"[]", 422),
    ({}, 422),
    ({"query": "q"}, 422),
    ({"query": "q", "documents": "a"}, 422),
    ({"query": "q", "documents": ["a", 3]}, 422),
    ({"query": "q", "documents": [{"title": "a"}]}, 422),
    ({"query": "q", "documents": [{"text": None}]}, 422),
    ({"query": "q", "documents": []}, 400),
    ({"query": " ", "documents": ["a"]}, 400),
    ({"query": 7, "documents": ["a"]}, 422),
    ({"query": "q", "documents": ["a"], "top_n": -1}, 422),
    ({"query": "q", "documents": ["a"], "top_n": 1.5}, 422),
    ({"query": "q", "documents": ["a"], "top_n": True}, 422),
    ({"query": "q", "documents": ["a"], "return_documents": "yes"}, 422),
    ({"query": "q", "documents": ["a"], "rank_fields": ["title"]}, 422),
    ({"query": "q", "documents": ["a"], "truncate_prompt_tokens": 0}, 422),
    ({"query": "q", "documents": ["a"], "truncate_prompt_tokens": 4}, 400),  # no token is left to the text
    ({"query": "q", "documents": ["a"], "truncate_prompt_tokens": 13}, 400),  # more than the model's limit
    ({"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}, 422),
    ({"query": "q", "documents": ["a"], "model": "absent"}, 404),
    ({"query": "q", "documents": ["a"], "model": 3}, 422),
    ({"query": "q", "documents": ["a"] * 21}, 413),
    ({"query": "q", "documents": ["a" * 2001]}, 413),
    ({"query": "q", "documents": ["\ud800"]}, 422),
    (b" " * 50_001, 413),
]


@pytest.mark.parametrize(("body", "code"), BAD)
def test_errors_have_the_form_of_their_contract(url: str, body: Any, code: int) -> None:
    jina = post(url, "/v1/rerank", body)
    assert jina.status_code == code, jina.text
    assert jina.json()["detail"] == jina.json()["error"]["message"] != ""
    assert jina.json()["error"]["code"] == code
    assert jina.json()["error"]["type"] == {404: "NotFoundError"}.get(code, "BadRequestError")
    cohere = post(url, "/v2/rerank", body)
    assert cohere.status_code == code
    assert set(cohere.json()) == {"id", "message"}
    assert cohere.json()["message"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v2/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, 422),
        ("/score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]}, 400),
        ("/score", {"queries": [], "documents": ["a"]}, 400),
        ("/score", {"queries": "q", "documents": []}, 400),
        ("/score", {"queries": "q", "documents": 3}, 422),
        ("/score", {"queries": {"content": []}, "documents": ["a"]}, 422),
        ("/score", {"queries": ["q", " "], "documents": ["a", "b"]}, 400),
    ],
)
def test_bad_requests_of_one_contract(url: str, path: str, body: Any, code: int) -> None:
    answer = post(url, path, body)
    assert answer.status_code == code, answer.text
    assert post(url, "/v1/rerank", {"query": "q", "documents": ["a"]}).status_code == 200


def test_models_are_chosen_by_name_and_the_first_is_the_default(url: str) -> None:
    body = {"query": "q", "documents": THREE, "use_activation": False}
    best = {
        name: post(url, "/v1/rerank", body | ({"model": name} if name else {})).json()
        for name in (None, "words", "other")
    }
    assert {name: answer["results"][0]["relevance_score"] for name, answer in best.items()} == {
        None: 2.0, "words": 2.0, "other": 4.0,
    }  # fmt: skip
    assert best[None]["model"] == "words"
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    assert [row["id"] for row in listed] == ["words", "fused", "other"]
    assert httpx.get(f"{url}/info", params={"model": "other"}).json()["model_id"] == "other"
    assert httpx.get(f"{url}/info").json()["models"] == ["words", "fused", "other"]
    missing = httpx.get(f"{url}/info", params={"model": "absent"})
    assert (missing.status_code, missing.json()["error_type"]) == (404, "Validation")
    tei = post(url, "/rerank", {"query": "q", "texts": THREE, "model": "other", "raw_scores": True}).json()
    assert tei[0]["score"] == 4.0


# --------------------------------------------------------------------------------------------------------- fusion
def test_scores_are_fused_with_those_of_the_first_stage(url: str) -> None:
    first = [30.0, 10.0, 20.0]
    body = {"model": "fused", "query": "q", "scores": first}
    expected = [
        0.25 * own + 0.75 * base for own, base in zip([1 / 3, 1.0, 0.0], [1.0, 0.0, 0.5], strict=True)
    ]
    order = sorted(range(3), key=lambda i: -expected[i])
    jina = post(url, "/v1/rerank", body | {"documents": THREE}).json()["results"]
    tei = post(url, "/rerank", body | {"texts": THREE}).json()
    assert [row["index"] for row in jina] == [row["index"] for row in tei] == order
    assert [row["relevance_score"] for row in jina] == pytest.approx([expected[i] for i in order])
    assert [row["score"] for row in tei] == pytest.approx([expected[i] for i in order])


def test_fused_ties_keep_the_first_stages_order(url: str) -> None:
    body = {"model": "fused", "query": "q", "documents": ["a b", "c d", "e f"], "scores": [1.0, 1.0, 1.0]}
    rows = post(url, "/v1/rerank", body).json()["results"]
    assert [(row["index"], row["relevance_score"]) for row in rows] == [(0, 0.5), (1, 0.5), (2, 0.5)]


@pytest.mark.parametrize(
    ("model", "scores", "says"),
    [
        ("fused", None, "scores is missing"),
        ("words", [1.0, 2.0], "no effect"),
        ("fused", [1.0], "a number for each of the 2 texts"),
        ("fused", [1.0, "x"], "finite numbers"),
        ("fused", [1.0, True], "finite numbers"),
        ("fused", "3", "must be a list"),
    ],
)
def test_first_stage_scores_are_neither_guessed_nor_ignored(
    url: str, model: str, scores: Any, says: str
) -> None:
    body = {"model": model, "query": "q", "documents": ["a", "b"], "scores": scores}
    answer = post(url, "/v1/rerank", body)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
def test_first_stage_scores_that_are_not_finite_are_refused(url: str, value: str) -> None:
    body = b'{"model": "fused", "query": "q", "documents": ["a"], "scores": [' + value.encode() + b"]}"
    assert post(url, "/v1/rerank", body).status_code == 422


# --------------------------------------------------------------------------------------------- the model's scores
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_scores_and_order_are_the_rerankers_in_every_contract(tiny: Any, architecture: str) -> None:
    reranker = Reranker.load(tiny(architecture), precision="fp32", max_length=48, device="cpu")
    query, texts = "what is water", tiny_models.sentences(15, 3, 60)
    expected = reranker.scores([(query, texts)])[0]
    order = np.argsort(-expected, kind="stable").tolist()
    with serving_app(create_app(reranker, {"model_id": "tiny", "max_input_length": 48}, LIMITS)) as url:
        for path in ("/v1/rerank", "/v2/rerank"):
            answer = post(url, path, {"query": query, "documents": texts, "use_activation": False}).json()
            assert [row["index"] for row in answer["results"]] == order
            found = [row["relevance_score"] for row in answer["results"]]
            assert found == pytest.approx(expected[order].tolist(), abs=1e-5)
        lengths = np.minimum(reranker.pair_lengths(query, texts), 48)
        assert answer["usage"]["total_tokens"] == lengths.sum()
        score = post(url, "/score", {"queries": query, "documents": texts, "use_activation": False}).json()
        assert [row["score"] for row in score["data"]] == pytest.approx(expected.tolist(), abs=1e-5)
        # a pair cut by the server is the pair that a model with that limit reads
        short = Reranker.load(tiny(architecture), precision="fp32", max_length=24, device="cpu")
        body = {"query": query, "documents": texts, "use_activation": False, "truncate_prompt_tokens": 24}
        cut = post(url, "/v1/rerank", body).json()
        values = {row["index"]: row["relevance_score"] for row in cut["results"]}
        wanted = short.scores([(query, texts)])[0].tolist()
        assert [values[i] for i in range(len(texts))] == pytest.approx(wanted, abs=1e-5)
        assert cut["usage"]["total_tokens"] == np.minimum(reranker.pair_lengths(query, texts), 24).sum()


class Broken(WordScorer):
    def scores(self, lists: Any) -> Any:
        raise RuntimeError("the model is ill")


def test_a_failing_model_is_a_failure_of_the_server_outside_of_tei() -> None:
    with serving_app(create_app(Broken(), {"max_input_length": 12}, LIMITS)) as url:
        answers = {
            path: post(url, path, {"query": "q", "texts": ["a"], "documents": ["a"], "queries": "q"})
            for path in contracts.ROUTES
        }
        assert {path: answer.status_code for path, answer in answers.items()} == {
            "/rerank": 424, "/v1/rerank": 500, "/v2/rerank": 500, "/score": 500, "/v1/score": 500,
        }  # fmt: skip
        assert answers["/v1/rerank"].json()["error"]["type"] == "InternalServerError"
        assert "the model is ill" in answers["/v2/rerank"].json()["message"]


def test_relevance_is_mapped_without_a_change_of_order() -> None:
    def coarse(raw: float) -> float:
        return float(math.floor(sigmoid(raw) * 2) / 2)  # a step function, as isotonic maps are

    with serving_app(create_app_of([model("m", relevance=coarse)], LIMITS)) as url:
        rows = post(url, "/v1/rerank", {"query": "q", "documents": THREE}).json()["results"]
    assert [(row["index"], row["relevance_score"]) for row in rows] == [(1, 0.5), (0, 0.5), (2, 0.0)]


# ----------------------------------------------------------------------------------------------------------- docs
def test_the_page_of_the_routes_works_offline(url: str) -> None:
    answer = httpx.get(f"{url}/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for absent in ("http://", "https://", "<script", "src=", "@import"):
        assert absent not in answer.text
    document = httpx.get(f"{url}/openapi.json").json()
    assert set(document["paths"]) == {
        *contracts.ROUTES, "/health", "/info", "/v1/models", "/metrics", "/openapi.json", "/docs",
    }  # fmt: skip
    for path in document["paths"]:
        assert f">{path}<" in answer.text


def test_every_example_of_the_page_is_answered_as_described(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    for path in contracts.ROUTES:
        operation = document["paths"][path]["post"]
        request = operation["requestBody"]["content"]["application/json"]
        answer = post(url, path, request["example"])
        assert answer.status_code == 200
        _check(operation["responses"]["200"]["content"]["application/json"]["schema"], answer.json())
        refused = post(url, path, {"query": 1})
        schema = operation["responses"][str(refused.status_code)]["content"]["application/json"]["schema"]
        _check(schema, refused.json())


def _check(schema: dict[str, Any], value: Any) -> None:
    """The value has the schema's types and required keys."""
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
    }
    assert isinstance(value, kinds[schema["type"]]), (schema, value)
    if schema["type"] == "array":
        for item in value:
            _check(schema["items"], item)
    if schema["type"] == "object":
        assert set(schema.get("required", ())) <= set(value)
        for name, part in schema.get("properties", {}).items():
            if name in value:
                _check(part, value[name])
