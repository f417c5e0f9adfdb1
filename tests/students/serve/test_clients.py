"""The clients that people have, unmodified from PyPI, against a served student: the order and the scores of `rerank`.

They live in an environment of their own (make setup-clients), so they move none of msft's packages.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clients
import made_store
import numpy as np
import pytest
import tiny_models

from benchmarks.serve import serving
from students.jobs.register import add_student
from students.jobs.rerank import load_reranker
from students.serve.models import sigmoid

pytestmark = pytest.mark.needs("clients")
QUERY = "which water is high energy"
TEXTS = tiny_models.sentences(9, seed=8, longest=30)

COHERE_V2 = """
client = cohere.ClientV2(api_key="any", base_url=url)
answer = client.rerank(model="tiny", query=query, documents=texts, top_n=top)
result = [(r.index, r.relevance_score) for r in answer.results]
"""
COHERE_V1 = """
client = cohere.Client(api_key="any", base_url=url)
answer = client.rerank(model="tiny", query=query, documents=[{"text": t} for t in texts], top_n=top, return_documents=True)
assert [r.document.text for r in answer.results] == [texts[r.index] for r in answer.results]
result = [(r.index, r.relevance_score) for r in answer.results]
"""
JINA = """
answer = requests.post(url + "/v1/rerank", timeout=60, headers={"Authorization": "Bearer any"}, json={
    "model": "tiny", "query": query, "documents": texts, "top_n": top}).json()
assert answer["usage"]["total_tokens"] > 0
result = [(r["index"], r["relevance_score"]) for r in answer["results"]]
"""
LANGCHAIN = """
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
compressor = CohereRerank(model="tiny", cohere_api_key="any", base_url=url, top_n=top)
documents = [Document(page_content=t, metadata={"index": i}) for i, t in enumerate(texts)]
found = compressor.compress_documents(documents, query)
assert [d.page_content for d in found] == [texts[d.metadata["index"]] for d in found]
result = [(d.metadata["index"], d.metadata["relevance_score"]) for d in found]
"""
LLAMA_INDEX = """
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
reranker = JinaRerank(model="tiny", api_key="any", base_url=url + "/v1", top_n=top)
nodes = [NodeWithScore(node=TextNode(text=t, id_=str(i))) for i, t in enumerate(texts)]
found = reranker.postprocess_nodes(nodes, QueryBundle(query))
result = [(int(n.node.node_id), n.score) for n in found]
"""
MTEB = """
from torch.utils.data import DataLoader
from mteb.models.openai_wrappers import OpenAIAPIRerankWrapper
model = OpenAIAPIRerankWrapper(url, "tiny", modalities=["text"])
together = lambda rows: {"text": [row["text"] for row in rows]}
loaders = [DataLoader([{"text": t} for t in own], batch_size=4, collate_fn=together) for own in ([query] * len(texts), texts)]
scores = model.predict(*loaders, task_metadata=None, hf_split="test", hf_subset="default", show_progress_bar=False)
result = sorted(((i, float(s)) for i, s in enumerate(scores)), key=lambda pair: -pair[1])[:top]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The address of a server, and the scores that `rerank` gives."""
    folder = tmp_path_factory.mktemp("clients")
    store = made_store.make(folder / "s.duckdb", labels=False)
    add_student(store, str(tiny_models.make("bert", folder / "model")), name="tiny", max_length=48)
    scores = load_reranker(store, "tiny", precision="fp32").scores([(QUERY, TEXTS)])[0]
    assert np.ptp(scores) > 5e-3, "scores that are all alike would prove nothing"
    with serving("tiny", "fp32", "--store", str(store.path)) as server:
        yield server.url, scores


@pytest.mark.parametrize("top", [len(TEXTS), 3])
@pytest.mark.parametrize(
    "code", [COHERE_V2, COHERE_V1, JINA, LANGCHAIN, LLAMA_INDEX, MTEB],
    ids=["cohere-v2", "cohere-v1", "jina", "langchain", "llama-index", "mteb"],
)  # fmt: skip
def test_a_client_gets_the_order_and_scores_of_rerank(
    served: tuple[str, Any], tmp_path: Path, code: str, top: int
) -> None:
    url, scores = served
    found = clients.run(code, {"url": url, "query": QUERY, "texts": TEXTS, "top": top}, tmp_path)
    order = np.argsort(-scores, kind="stable")[:top].tolist()
    assert [index for index, _ in found] == order
    wanted = [sigmoid(float(scores[index])) for index in order]
    assert [score for _, score in found] == pytest.approx(wanted, abs=1e-6)


EXAMPLES = [
    block
    for block in clients.blocks(Path(__file__).resolve().parents[3] / "docs/guides/serving.md")
    if "8092" in block
]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_guides_client_examples_run_as_they_stand(
    served: tuple[str, Any], tmp_path: Path, number: int
) -> None:
    url, _ = served
    code = EXAMPLES[number].replace("http://localhost:8092", url).replace('"ranker"', '"tiny"')
    assert clients.run(code + "\nresult = []\n", {}, tmp_path) == []


def test_all_five_examples_are_found() -> None:
    text = "\n".join(EXAMPLES)
    for name in ("requests", "cohere", "langchain_cohere", "jinaai_rerank", "OpenAIAPIRerankWrapper"):
        assert name in text


def test_the_python_guides_classes_rank_as_the_student_does(tiny: Any, tmp_path: Path) -> None:
    """LangChain's document compressor and a ranker of the library rerankers, in the process."""
    page = Path(__file__).resolve().parents[3] / "docs/guides/python.md"
    classes = [b for b in clients.blocks(page) if "BaseDocumentCompressor" in b or "BaseRanker" in b]
    assert len(classes) == 2
    code = (
        "from students import Reranker\n"
        + "\n".join(classes)
        + """
from langchain_core.documents import Document as LangChainDocument
student = Reranker.load(folder, precision="fp32", max_length=48)
(scores,) = student.scores([(query, texts)])
order = sorted(range(len(texts)), key=lambda i: -scores[i])
compressor = StudentCompressor(reranker=student, top_n=4)
found = compressor.compress_documents([LangChainDocument(page_content=t) for t in texts], query)
assert [d.page_content for d in found] == [texts[i] for i in order[:4]]
ranked = StudentRanker(student).rank(query, texts, doc_ids=[f"d{i}" for i in range(len(texts))])
assert [r.document.doc_id for r in ranked.results] == [f"d{i}" for i in order]
assert abs(StudentRanker(student).score(query, texts[0]) - float(scores[0])) < 1e-5
result = [r.score for r in ranked.results]
"""
    )
    given = {"folder": str(tiny("bert")), "query": QUERY, "texts": TEXTS}
    found = clients.run(code, given, tmp_path)
    assert found == sorted(found, reverse=True)
