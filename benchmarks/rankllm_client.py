"""Run RankLLM 0.25's OpenAI client over given lists; `benchmarks.teachers` runs this in RankLLM's environment.

    python rankllm_client.py LISTS.json http://127.0.0.1:8000/v1 MODEL

RankLLM imports vLLM, Gemini's client and FAISS before its OpenAI client, which uses none of them. If they are not
installed, empty modules stand in. RankLLM counts tokens by tiktoken's tables, which tiktoken fetches from the network;
without a network a count of characters stands in. The last line of the output is one JSON object: {calls, seconds,
ranked}.
"""

import json
import sys
import time
import types
from pathlib import Path
from unittest.mock import MagicMock


def stand_in(*names: str) -> None:
    """Add empty modules for missing ones that RankLLM imports and its OpenAI client does not use."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            module = types.ModuleType(name)
            module.__getattr__ = lambda attribute: MagicMock()  # type: ignore[method-assign]
            module.__path__ = []  # type: ignore[attr-defined]
            sys.modules[name] = module


class Characters:
    """A tokenizer that counts four characters a token: close enough to decide whether a prompt fits."""

    @staticmethod
    def encode(text: str) -> list[str]:
        return [text[k : k + 4] for k in range(0, len(text), 4)]


def main() -> None:
    lists, url, model = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3]
    import transformers  # noqa: F401  (it looks for these modules too, so it comes before the stand-ins)

    stand_in(
        "vllm", "vllm.outputs", "vllm.sampling_params", "google", "google.generativeai", "faiss", "pyserini"
    )
    import tiktoken

    tiktoken.get_encoding = lambda name: Characters
    from rank_llm.data import Candidate, Query, Request
    from rank_llm.rerank.listwise.rank_gpt import SafeOpenai
    from rank_llm.rerank.rankllm import PromptMode

    reranker = SafeOpenai(
        model=model, context_size=4096, prompt_mode=PromptMode.RANK_GPT, window_size=20, stride=10, keys="none",
        base_url=url.rstrip("/") + "/",
    )  # fmt: skip
    calls = 0
    real = reranker._call_completion

    def counted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        return real(*arguments, **options)

    reranker._call_completion = counted
    requests = [
        Request(
            query=Query(text=row["query"], qid=row["query_id"]),
            candidates=[
                Candidate(docid=doc_id, score=float(-k), doc={"contents": text})
                for k, (doc_id, text) in enumerate(row["passages"])
            ],
        )
        for row in lists
    ]
    began = time.perf_counter()
    results = reranker.rerank_batch(requests, rank_end=100)
    seconds = time.perf_counter() - began
    print(json.dumps({"calls": calls, "seconds": seconds, "ranked": len(results)}))


if __name__ == "__main__":
    main()
