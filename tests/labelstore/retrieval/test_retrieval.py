"""First stages: bm25s against the formula and against Anserini, odd characters, caches, reuse, errors."""

import json
import math
import random
import re
import subprocess
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import ir_measures
import pytest

from labelstore import retrieval
from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import BadInput, DataMissing, MsftError, UsageError
from labelstore.evaluation import scores as evaluation
from labelstore.files import lines as formats
from labelstore.retrieval import anserini, colbert
from labelstore.retrieval.bm25s import LUCENE_STOP_WORDS, Analyser, Bm25s
from labelstore.retrieval.common import batches
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore

ODD = 'caf\u00e9 \u2028 tab\there \u0085 "quoted" \\backslash <b>&amp; \U0001f600 東京 naïve/field:term^2~ (AND OR) *'


def make_store(
    folder: Path, documents: list[tuple[str, str | None, str]], queries: list[tuple[str, str]]
) -> LabelStore:
    source = folder / "source"
    source.mkdir(exist_ok=True)
    (source / "docs.jsonl").write_text(
        "".join(
            json.dumps({"doc_id": d, "title": title, "text": text}) + "\n" for d, title, text in documents
        ),
        encoding="utf-8",
    )
    (source / "queries.tsv").write_text("".join(f"{q}\t{text}\n" for q, text in queries), encoding="utf-8")
    store = LabelStore(folder / "own.duckdb")
    add_folder(store, source, NewDataset(name="own"))
    return store


def candidates(store: LabelStore, run: str) -> dict[str, list[tuple[str, float]]]:
    with store.read() as con:
        rows = con.execute(
            "SELECT query_id, doc_id, score FROM ranked WHERE run = ? ORDER BY query_id, rank", [run]
        ).fetchall()
    found: dict[str, list[tuple[str, float]]] = {}
    for query_id, doc_id, score in rows:
        found.setdefault(query_id, []).append((doc_id, score))
    return found


@pytest.fixture
def words() -> tuple[list[tuple[str, str | None, str]], list[tuple[str, str]]]:
    rng = random.Random(3)
    vocabulary = [f"word{chr(97 + n)}" for n in range(26)]
    documents = [
        (f"d{n:03d}", f"Title {vocabulary[n % 26]}" if n % 2 else None, " ".join(rng.choices(vocabulary, k=rng.randint(3, 30))))
        for n in range(120)
    ]  # fmt: skip
    queries = [(f"q{n}", " ".join(rng.sample(vocabulary, 3))) for n in range(12)]
    return documents, queries


def test_the_analysis_is_lucenes() -> None:
    analyse = Analyser()
    assert analyse("The Running dogs' owner's U.S.A. 3.14 state-of-the-art e-mail o'neill's 1,000 snake_case") == [
        "run", "dog", "owner", "u.s.a", "3.14", "state", "art", "e", "mail", "o'neil", "1,000", "snake_cas",
    ]  # fmt: skip
    assert not set(analyse(" ".join(LUCENE_STOP_WORDS)))
    assert Analyser("none")("running dogs") == ["running", "dogs"]
    assert Analyser("german")("Häuser") == Analyser("german")("Haus")
    with pytest.raises(UsageError, match="klingon"):
        Analyser("klingon")


def test_bm25s_is_the_formula(
    tmp_path: Path, words: tuple[list[tuple[str, str | None, str]], list[tuple[str, str]]]
) -> None:
    documents, queries = words
    store = make_store(tmp_path, documents, queries)
    run = retrieval.retrieve(store, "own", Bm25s(k1=1.2, b=0.75, language="none"), depth=7)
    assert (run.name, run.kind, run.system, run.depth, run.n_queries) == (
        "bm25s",
        "first_stage",
        "bm25s",
        7,
        12,
    )
    texts = {d: re.findall(r"\w+", f"{title or ''} {text}".lower()) for d, title, text in documents}
    average = sum(map(len, texts.values())) / len(texts)
    for query_id, query in queries:
        expected = {}
        for doc_id, tokens in texts.items():
            tf = Counter(tokens)
            expected[doc_id] = sum(
                math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
                * tf[term]
                / (tf[term] + 1.2 * (1 - 0.75 + 0.75 * len(tokens) / average))
                for term in query.split()
                if (df := sum(term in other for other in texts.values()))
            )
        best = sorted(((d, s) for d, s in expected.items() if s > 0), key=lambda item: -item[1])[:7]
        found = candidates(store, "bm25s")[query_id]
        assert [s for _, s in found] == pytest.approx([s for _, s in best], rel=1e-5)
        assert all(score == pytest.approx(expected[doc_id], rel=1e-5) for doc_id, score in found)


def test_ties_at_the_cut_follow_document_order_and_no_zero_is_a_candidate(tmp_path: Path) -> None:
    documents = [(f"d{n}", None, "same words here" if n < 8 else "other things") for n in range(12)]
    store = make_store(tmp_path, documents, [("q1", "same"), ("q2", "the of"), ("q3", "absent")])
    notes: list[str] = []
    run = retrieval.retrieve(store, None, Bm25s(), depth=5, note=notes.append)
    assert [d for d, _ in candidates(store, run.name)["q1"]] == ["d0", "d1", "d2", "d3", "d4"]
    assert retrieval.retrieve(store, "own", Bm25s(), depth=100, name="deep").n_candidates == 8
    assert any("2 of 3 queries found no passage" in note for note in notes)
    with store.read() as con:
        counted = con.execute(
            "SELECT n_in, n_kept FROM filters WHERE step = 'queries' AND subject = 'bm25s'"
        ).fetchall()
        assert counted == [(3, 1)]
        assert con.execute("SELECT reason, n FROM drops WHERE subject = 'bm25s'").fetchall() == [
            ("no passage found", 2)
        ]


def test_the_index_is_kept_and_follows_the_texts(tmp_path: Path) -> None:
    store = make_store(tmp_path, [("d1", None, "apple pie"), ("d2", None, "pear cake")], [("q1", "apple")])
    first = retrieval.retrieve(store, "own", Bm25s(), depth=5)
    notes: list[str] = []
    assert retrieval.retrieve(store, "own", Bm25s(), depth=5, note=notes.append) == first
    assert notes == ["the store already has run bm25s over own"]
    retrieval.retrieve(store, "own", Bm25s(), depth=1, name="shallow", note=notes.append)
    assert "bm25s index over own: reused" in notes
    with pytest.raises(BadInput, match="another run named 'bm25s'"):
        retrieval.retrieve(store, "own", Bm25s(k1=2.0), depth=5)
    (tmp_path / "source" / "docs.jsonl").write_text(
        json.dumps({"doc_id": "d3", "text": "apple apple apple"}) + "\n"
    )
    add_folder(store, tmp_path / "source", NewDataset(name="own"))
    with pytest.raises(BadInput):
        retrieval.retrieve(store, "own", Bm25s(), depth=5)
    again = retrieval.retrieve(store, "own", Bm25s(), depth=5, replace=True)
    assert [d for d, _ in candidates(store, again.name)["q1"]] == ["d3", "d1"]
    assert len(list((store.files / "indexes").glob("bm25s-*"))) == 1, (
        "the index over the earlier texts is removed"
    )


def test_the_store_is_free_while_a_retriever_works(tmp_path: Path) -> None:
    store = make_store(tmp_path, [("d1", None, "apple pie")], [("q1", "apple")])

    class Slow(Bm25s):
        def search(self, corpus, depth, progress, note):  # type: ignore[no-untyped-def]
            done = threading.Event()

            def write() -> None:
                with LabelStore(store.path, lock_wait=0).write() as con:
                    con.execute("UPDATE collections SET licence = 'free'")
                done.set()

            writer = threading.Thread(target=write)
            writer.start()
            writer.join()
            assert done.is_set()
            return super().search(corpus, depth, progress, note)

    assert retrieval.retrieve(store, "own", Slow(), depth=1).n_candidates == 1


@pytest.mark.parametrize(
    ("make", "depth", "error", "says"),
    [
        (lambda: Bm25s(k1=-1), 5, UsageError, "k1"),
        (lambda: Bm25s(b=1.5), 5, UsageError, "b is 1.5"),
        (lambda: Bm25s(k1=float("nan")), 5, UsageError, "k1"),
        (lambda: Bm25s(), 0, UsageError, "depth"),
        (lambda: anserini.Anserini(language="english"), 5, UsageError, "two letters"),
    ],
)
def test_what_cannot_be_leaves_no_trace(
    tmp_path: Path, make, depth: int, error: type[MsftError], says: str
) -> None:  # type: ignore[no-untyped-def]
    store = make_store(tmp_path, [("d1", None, "apple")], [("q1", "apple")])
    with pytest.raises(error, match=says):
        retrieval.retrieve(store, "own", make(), depth=depth)
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM runs").fetchall() == [(0,)]


def test_queries_that_all_miss_store_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path, [("d1", None, "apple")], [("q1", "zebra")])
    with pytest.raises(BadInput, match="none of the 1 queries"):
        retrieval.retrieve(store, "own", Bm25s(), depth=5)
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM provenance WHERE kind = 'retrieve'").fetchall() == [(0,)]


def odd_store(folder: Path) -> LabelStore:
    documents = [
        ("a\u00e9b", "Tokyo", ODD),
        ("x'y;--", None, "plain apple pie"),
        ('q"', None, "nothing to see " + ODD),
    ]
    return make_store(
        folder,
        documents,
        [("q\u00e91", "café 東京"), ("q'2", 'apple AND "pie^2~ field:x (*'), ("q3", ODD.replace("\t", " "))],
    )


def test_odd_characters_are_safe_in_bm25s(tmp_path: Path) -> None:
    store = odd_store(tmp_path)
    retrieval.retrieve(store, "own", Bm25s(), depth=5)
    found = candidates(store, "bm25s")
    assert {d for d, _ in found["q\u00e91"]} == {"a\u00e9b", 'q"'}
    assert next(d for d, _ in found["q'2"]) == "x'y;--"


@pytest.mark.needs("pyserini")
def test_odd_characters_are_safe_in_anserini(tmp_path: Path) -> None:
    store = odd_store(tmp_path)
    run = retrieval.retrieve(store, "own", anserini.Anserini(threads=1), depth=5)
    assert (run.name, run.system) == ("bm25", "anserini")
    found = candidates(store, "bm25")
    assert {d for d, _ in found["q\u00e91"]} == {"a\u00e9b", 'q"'}
    assert next(d for d, _ in found["q'2"]) == "x'y;--"
    assert set(found) == {"q\u00e91", "q'2", "q3"}


@pytest.mark.needs("pyserini")
def test_several_threads_of_anserini_index_all_and_rank_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread reads a file of its own; ties of score are broken by id in both."""
    texts = [f"apple {'pie ' * (n % 4)} number{n}" for n in range(50)]
    found = []
    for threads in (1, 3):
        (folder := tmp_path / str(threads)).mkdir()
        store = make_store(
            folder, [(f"d{n}", None, text) for n, text in enumerate(texts)], [("q1", "apple pie")]
        )
        monkeypatch.setattr(anserini, "BATCH", 7)
        monkeypatch.setattr(anserini, "batches", partial(batches, rows=7))
        assert (
            retrieval.retrieve(store, "own", anserini.Anserini(threads=threads), depth=60).n_candidates == 50
        )
        found.append(candidates(store, "bm25")["q1"])
    assert found[0] == found[1]


@pytest.mark.needs("pyserini")
def test_an_unknown_prebuilt_index_is_named(tmp_path: Path) -> None:
    store = odd_store(tmp_path)
    with pytest.raises(DataMissing, match="no-such-index"):
        retrieval.retrieve(store, "own", anserini.Anserini(index="no-such-index", threads=1), depth=5)


@pytest.mark.needs("pyserini")
def test_a_lucene_index_folder_answers_with_doc_ids(tmp_path: Path) -> None:
    """An index made elsewhere: its ids are the collection's; passages that the store lacks are counted."""
    full = make_store(tmp_path, [(f"{n}", None, f"apple number{n}") for n in range(4)], [("q1", "apple")])
    with full.read() as con:
        con_rows = con.execute("SELECT document, doc_id FROM documents").fetchall()
    assert {str(document - 1) for document, _ in con_rows} == {doc_id for _, doc_id in con_rows}, (
        "ids differ by one"
    )
    retrieval.retrieve(full, "own", anserini.Anserini(threads=1), depth=5)
    (index,) = (full.files / "indexes").glob("anserini-*/lucene")
    # Its ids are surrogate keys 1…4; in this store 1, 2, 3 are passages and 4 is none.
    run = retrieval.retrieve(
        full, "own", anserini.Anserini(index=str(index), threads=1), depth=5, name="foreign"
    )
    assert {d for d, _ in candidates(full, "foreign")["q1"]} == {"1", "2", "3"}
    assert run.parameters["index"] == str(index)
    with full.read() as con:
        assert con.execute("SELECT reason, n, example FROM drops WHERE step = 'run'").fetchall() == [
            ("passage not in the collection", 1, "4")
        ]


def test_without_the_extra_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("ANSERINI_CLASSPATH", raising=False)
    with pytest.raises(DataMissing) as jar:
        anserini.find_jar()
    assert "msft[pyserini]" in str(jar.value.hint)
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(DataMissing, match="is version 17"):
        anserini.find_java()


def test_java_home_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = tmp_path / "bin" / "java"
    new.parent.mkdir()
    new.write_text("#!/bin/sh\necho 'openjdk version \"22\"' >&2\n")
    new.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert anserini.find_java() == new


def test_without_pylate_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(colbert.ENVIRONMENT, str(tmp_path / "nowhere"))
    with pytest.raises(DataMissing) as error:
        colbert.find_python()
    assert error.value.hint == "make setup-colbert"


@pytest.mark.needs("pyserini", "shared")
def test_the_two_bm25s_agree_on_nfcorpus(tmp_path: Path, shared: Path) -> None:
    store = LabelStore(tmp_path / "nf.duckdb")
    folder = shared / "nfcorpus"
    add_folder(
        store,
        folder,
        NewDataset(name="nfcorpus/test", collection="nfcorpus", judged_only=True),
        folder / "qrels.txt.gz",
    )
    runs = [
        retrieval.retrieve(store, "nfcorpus/test", Bm25s(), depth=100),
        retrieval.retrieve(store, "nfcorpus/test", anserini.Anserini(), depth=100),
    ]
    values = {
        row["system"]: row["value"]
        for row in evaluation.evaluate(store, "nfcorpus/test", measures=["nDCG@10"])
    }
    assert values["bm25s"] == pytest.approx(0.318, abs=0.005)
    assert values["bm25"] == pytest.approx(values["bm25s"], abs=0.01)
    # The stored value is the one that ir-measures gives for the exported ranking.
    with store.read() as con:
        of = lookup.dataset(con, "nfcorpus/test")
        ranked = con.execute(
            "SELECT query_id, doc_id, -rank::DOUBLE FROM ranked WHERE run = 'bm25s'"
        ).fetchall()
        judged = con.execute(
            "SELECT query_id, doc_id, relevance FROM judgments WHERE dataset = ?", [of.name]
        ).fetchall()
    again = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10],
        [ir_measures.Qrel(*j) for j in judged],
        [ir_measures.ScoredDoc(*r) for r in ranked],
    )
    assert again[ir_measures.nDCG @ 10] == pytest.approx(values["bm25s"], abs=1e-9)
    assert runs[0].n_queries == 323 or runs[0].n_queries == len({q for q, *_ in ranked})
    assert formats is not None


MAKE_COLBERT = """
import sys, torch
from transformers import BertConfig, BertModel, BertTokenizerFast
from pylate import models
folder, out, words = sys.argv[1], sys.argv[2], sys.argv[3].split()
open(folder + "/vocab.txt", "w").write("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[Q]", "[D]", *words]))
torch.manual_seed(1)
BertTokenizerFast(folder + "/vocab.txt").save_pretrained(folder)
BertModel(BertConfig(vocab_size=7 + len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=128)).save_pretrained(folder)
models.ColBERT(folder, embedding_size=16, query_length=16, document_length=32, device="cpu").save_pretrained(out)
"""


@pytest.mark.needs("pylate")
def test_colbert_ranks_with_a_model_made_here(tmp_path: Path) -> None:
    """A random ColBERT still matches equal tokens best: the passage that is the query comes first."""
    base, model = tmp_path / "base", tmp_path / "model"
    base.mkdir()
    vocabulary = [f"{a}{b}" for a in "bdfgk" for b in ("alo", "emu", "ira", "oto", "uni")]
    python = colbert.find_python()
    subprocess.run(
        [python, "-c", MAKE_COLBERT, str(base), str(model), " ".join(vocabulary)],
        check=True,
        capture_output=True,
    )
    rng = random.Random(5)
    documents = [(f"d{n}\u00e9", None, " ".join(rng.choices(vocabulary, k=6))) for n in range(40)]
    queries = [(f"q{n}", documents[n * 5][2]) for n in range(6)]
    store = make_store(tmp_path, documents, queries)
    retriever = colbert.Colbert(str(model), device="cpu", threads=1)
    run = retrieval.retrieve(store, "own", retriever, depth=8)
    assert (run.name, run.system, run.n_queries) == ("colbert", "colbert", 6)
    assert run.parameters["pylate"]
    assert run.parameters["index"] in ("exact", "plaid")
    found = candidates(store, "colbert")
    assert sum(found[f"q{n}"][0][0] == f"d{n * 5}\u00e9" for n in range(6)) >= 5
    assert all(
        len(ranked) <= 8 and [s for _, s in ranked] == sorted((s for _, s in ranked), reverse=True)
        for ranked in found.values()
    )
    notes: list[str] = []
    retrieval.retrieve(store, "own", retriever, depth=3, name="again", note=notes.append)
    assert "colbert index over own: reused" in notes
    assert {q: ranked[0] for q, ranked in candidates(store, "again").items()} == {
        q: ranked[0] for q, ranked in found.items()
    }


@pytest.mark.needs("pylate")
def test_a_colbert_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, [("d1", None, "apple")], [("q1", "apple")])
    with pytest.raises(MsftError, match="no/such-colbert"):
        retrieval.retrieve(store, "own", colbert.Colbert("no/such-colbert", threads=1), depth=3)
    assert not list((store.files / "indexes").glob("*colbert*")), "no half-made index is left"
