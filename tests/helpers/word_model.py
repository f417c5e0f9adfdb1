"""A small model behind a chat server on loopback, for pages that need one: it reads prompts, and answers by the words it knows."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openai_servers import Answer, Server, good, serving

SERVED = {"Qwen/Qwen3-4B": 8079, "Qwen/Qwen3-32B": 8078}  # model -> port, as the guide writes them
# Above this share of a query's weight a negative is flagged.
FLAGGED = {"Qwen/Qwen3-4B": 0.6, "Qwen/Qwen3-32B": 0.9}


@contextmanager
def word_model(passages: list[str], model: str) -> Iterator[Server]:
    """Serve a model under a name of the guide; it knows how rare each word of the passages is."""
    n_with = Counter(word for passage in passages for word in set(_words(passage)))

    def weight(text: str, query: str) -> float:
        return sum(1 / n_with[word] for word in set(_words(query)) & set(_words(text)) & set(n_with))

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return good(
            body, _reply([message["content"] for message in body["messages"]], weight, n_with, FLAGGED[model])
        )

    with serving(answer, SERVED[model]) as server:
        server.models = (200, {}, {"data": [{"id": model, "max_model_len": 32_768}]})
        yield server


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _reply(turns: list[str], weight: Any, n_with: Counter[str], flagged: float) -> str:
    shown = "\n".join(turns)
    if "##final score" in shown:
        ((query, passage),) = re.findall(r"^Query: (.*)\nPassage: (.*)$", shown, re.M)
        return f"##final score: {_grade(weight, query, passage)}"
    if "<verdict>" in shown:
        query = shown.split("<question>\n")[1].split("\n</question>")[0]
        listed = re.findall(r"^Doc \((\d+)\): (.*)$", shown.split("<documents>\n")[1], re.M)
        found = ", ".join(f"Doc ({n})" for n, text in listed if _share(weight, query, text) > flagged)
        return f"<thinking></thinking><preference></preference><verdict><better>[{found}]</better><worse>[]</worse></verdict>"
    if re.search(r"(?:Query|Queries):$", shown.rstrip()):
        passage = shown.rsplit("Passage: ", 1)[1].split("\n")[0]
        shared = {
            word for word in _words(passage) if n_with[word] > 1
        }  # so that others' passages may answer too
        ranked = sorted(shared, key=lambda word: (n_with[word], word))
        return " ".join(ranked[:3])
    passages = dict(re.findall(r"^\[(\d+)\] (.*)$", shown, re.M))
    query = re.findall(r"[Qq]uery:? ?(.*)", shown)[-1]
    return " > ".join(f"[{n}]" for n in sorted(passages, key=lambda n: (-weight(passages[n], query), int(n))))


def _grade(weight: Any, query: str, passage: str) -> int:
    """A grade by the share of the query's weight that the passage has."""
    share = _share(weight, query, passage)
    return 3 if share > 0.9 else 2 if share > 0.6 else 1 if share > 0.05 else 0


def _share(weight: Any, query: str, passage: str) -> float:
    return weight(passage, query) / max(weight(query, query), 1e-9)
