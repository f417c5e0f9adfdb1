"""Describe the routes in OpenAPI 3.1, and as a page that loads nothing: no script, no font, no request."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata
from typing import Any

from students.serve.contracts import Limits

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_MODEL: Schema = {**_TEXT, "description": "The name of a served model; by default the first."}
_DOCUMENTS: Schema = {
    "type": "array",
    "items": {"anyOf": [_TEXT, {"type": "object", "required": ["text"], "properties": {"text": _TEXT}}]},
}
_FIRST_STAGE: Schema = {
    "type": "array",
    "items": {"type": "number"},
    "description": "The first stage's score of each text, for a server that fuses (`serve --fuse`).",
}
_CUT: Schema = {
    "type": "integer",
    "minimum": -1,
    "description": "Cut each text so that its pair has at most this many tokens; -1 stands for the model's limit.",
}
_RAW: Schema = {"type": "boolean", "default": True, "description": "False gives the model's raw scores."}
_USAGE: Schema = {
    "type": "object",
    "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
}


def _object(required: Sequence[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


_RESULTS = _list(
    _object(
        ["index", "relevance_score"],
        index={"type": "integer"},
        relevance_score={"type": "number"},
        document=_object(["text"], text=_TEXT),
    )
)
_RERANK = {
    "model": _MODEL,
    "query": _TEXT,
    "documents": _DOCUMENTS,
    "top_n": {"type": "integer", "description": "The results to return, best first; by default all."},
    "truncate_prompt_tokens": _CUT,
    "max_tokens_per_doc": {"type": "integer", "minimum": 1, "description": "Cut each document to this."},
    "use_activation": _RAW,
    "scores": _FIRST_STAGE,
}
_QUESTION = {"query": "what is fusion?", "documents": ["Nuclei join.", "Sand is dry."]}

# path -> (summary, request, answer, example, the form of an error)
_ROUTES: dict[str, tuple[str, Schema, Schema, Mapping[str, Any], Schema]] = {
    "/rerank": (
        "Rank texts, as text-embeddings-inference does",
        _object(
            ["query", "texts"],
            query=_TEXT,
            texts=_list(_TEXT),
            raw_scores={"type": "boolean", "default": False},
            return_text={"type": "boolean", "default": False},
            truncate={"type": "boolean", "default": True},
            model=_MODEL,
            scores=_FIRST_STAGE,
        ),
        _list(_object(["index", "score"], index={"type": "integer"}, score={"type": "number"}, text=_TEXT)),
        {"query": _QUESTION["query"], "texts": _QUESTION["documents"]},
        _object(["error", "error_type"], error=_TEXT, error_type=_TEXT),
    ),
    "/v1/rerank": (
        "Rank documents, as Jina, vLLM and Cohere's first version do",
        _object(["query", "documents"], **_RERANK, return_documents={"type": "boolean", "default": True}),
        _object(["results"], id=_TEXT, model=_TEXT, results=_RESULTS, usage=_USAGE),
        _QUESTION | {"top_n": 1},
        _object(["error", "detail"], error={"type": "object"}, detail=_TEXT),
    ),
    "/v2/rerank": (
        "Rank documents, as Cohere does",
        _object(["query", "documents"], **_RERANK, return_documents={"type": "boolean", "default": False}),
        _object(["results"], id=_TEXT, results=_RESULTS, meta={"type": "object"}, usage=_USAGE),
        _QUESTION | {"top_n": 1},
        _object(["message"], id=_TEXT, message=_TEXT),
    ),
    "/score": (
        "Score pairs, as vLLM does: one query with each document, or each query with its document",
        _object(
            ["queries", "documents"],
            model=_MODEL,
            queries={"anyOf": [_TEXT, _list(_TEXT)]},
            documents={"anyOf": [_TEXT, _list(_TEXT)]},
            truncate_prompt_tokens=_CUT,
            use_activation=_RAW,
        ),
        _object(
            ["data"],
            id=_TEXT,
            model=_TEXT,
            usage=_USAGE,
            data=_list(
                _object(["index", "score"], index={"type": "integer"}, object=_TEXT, score={"type": "number"})
            ),
        ),
        {"queries": _QUESTION["query"], "documents": _QUESTION["documents"]},
        _object(["error", "detail"], error={"type": "object"}, detail=_TEXT),
    ),
}
_ALIASES = {"/v1/score": "/score"}
_READING = {
    "/health": "Tell whether the server answers: 200, or 503",
    "/info": "Describe a model (?model=NAME, by default the first) and the limits",
    "/v1/models": "List the served models",
    "/metrics": "Count requests, pairs and seconds, for Prometheus",
    "/openapi.json": "Describe the routes",
    "/docs": "Show this page",
}


def document(models: Sequence[str], limits: Limits) -> dict[str, Any]:
    """Make the OpenAPI document of a server."""
    paths: dict[str, Any] = {path: {"post": _operation(path, *route)} for path, route in _ROUTES.items()}
    paths |= {alias: {"post": _operation(alias, *_ROUTES[path])} for alias, path in _ALIASES.items()}
    paths |= {
        path: {"get": {"summary": summary, "responses": {"200": {"description": "the answer"}}}}
        for path, summary in _READING.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "msft students serve",
            "version": metadata.version("msft"),
            "description": (
                f"Re-ranking by {', '.join(models)}. A request has at most {limits.texts:,} texts of "
                f"{limits.characters:,} characters and {limits.body:,} bytes. Texts that are longer than the model's limit "
                "are cut. Equal scores keep the order given."
            ),
        },
        "paths": paths,
    }


def _operation(
    path: str, summary: str, request: Schema, answer: Schema, example: Mapping[str, Any], error: Schema
) -> dict[str, Any]:
    def content(schema: Schema) -> dict[str, Any]:
        return {"application/json": {"schema": schema}}

    refused = {
        "400": "not JSON, or nothing to rank",
        "404": "the model is not served",
        "413": "too large",
        "422": "a wrong form",
        "429": "too much is waiting",
        "424" if path == "/rerank" else "500": "the model failed",
    }
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": request, "example": dict(example)}},
        },
        "responses": {
            "200": {"description": "the answer", "content": content(answer)},
            **{code: {"description": why, "content": content(error)} for code, why in refused.items()},
        },
    }


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --muted: #5b6068; --line: #dddbd4; --paper: #fcfcfa; --sunken: #f3f2ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e5e1; --muted: #a2a7af; --line: #33373d; --paper: #15171a; --sunken: #101214; } }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink); font: 0.95rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 0.4rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 0.2rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
code, pre { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 0.86em; } pre { background: var(--sunken); padding: 0.7rem 0.9rem; border-radius: 6px; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; width: 100%; } th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.7rem 0.25rem 0; border-bottom: 1px solid var(--line); font-weight: 400; } th { color: var(--muted); }
.quiet { color: var(--muted); } .method { color: var(--muted); margin-right: 0.4rem; } div.wide { overflow-x: auto; }
"""


def page(made: Mapping[str, Any]) -> str:
    """Render the document as HTML."""
    info = made["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])}</p>",
        '<p class="quiet">The same for programs: <a href="/openapi.json">/openapi.json</a></p>',
    ]
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f'<h2 id="{escape(path)}"><span class="method">{method.upper()}</span><code>{escape(path)}</code></h2>'
                f"<p>{escape(operation['summary'])}.</p>"
            )
            if "requestBody" in operation:
                parts.append(_described(path, operation))
    return "".join([*parts, "</body></html>"])


def _described(path: str, operation: Mapping[str, Any]) -> str:
    request = operation["requestBody"]["content"]["application/json"]
    required = request["schema"]["required"]
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(schema))}</td>"
        f"<td>{'required' if name in required else ''}{escape(_more(schema))}</td></tr>"
        for name, schema in request["schema"]["properties"].items()
    )
    example = json.dumps(request["example"])
    curl = f"curl -s localhost:8080{path} -H 'content-type: application/json' -d '{example}'"
    errors = ", ".join(
        f"{code} {answer['description']}" for code, answer in operation["responses"].items() if code != "200"
    )
    return (
        f'<div class="wide"><table><tr><th>key</th><th>type</th><th></th></tr>{rows}</table></div>'
        f'<pre>{escape(curl)}</pre><p class="quiet">Errors: {escape(errors)}.</p>'
    )


def _kind(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if schema["type"] == "array":
        return (
            f"list of ({_kind(schema['items'])})"
            if "anyOf" in schema["items"]
            else f"list of {_kind(schema['items'])}s"
        )
    if schema["type"] == "object":
        return "object {" + ", ".join(schema.get("properties", {})) + "}"
    return str(schema["type"])


def _more(schema: Schema) -> str:
    default = f"default {json.dumps(schema['default'])}. " if "default" in schema else ""
    return " " + default + schema.get("description", "")
