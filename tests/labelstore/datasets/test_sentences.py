"""Pseudo-queries out of a collection: which passages give one, how it reads, and that nothing real is repeated."""

import json
from pathlib import Path

import made_store
import pytest

from labelstore.datasets import sentences
from labelstore.datasets.add_dataset import add_dataset
from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.store.label_store import LabelStore

PASSAGES = [
    {
        "doc_id": "titled",
        "title": "Boundary layers in   slip flow.",
        "text": "It was seen. It was measured twice.",
    },
    {
        "doc_id": "short",
        "title": "Slip",
        "text": "Too short. The viscous stress at a porous wall was measured here.",
    },
    {
        "doc_id": "rare",
        "text": "The flow is the flow of the flow. Ablation erodes graphite nozzles. The flow is here now.",
    },
    {
        "doc_id": "other",
        "text": "Überschall strömt über die Düse, дозвуковой поток нет; the flow is the flow of the flow.",
    },
    {"doc_id": "none", "text": "One. Two. Three."},
    {
        "doc_id": "twin",
        "title": "boundary LAYERS in slip flow",
        "text": "Another text of some length stands here.",
    },
]


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    folder = tmp_path / "wings"
    folder.mkdir()
    (folder / "docs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PASSAGES), "utf-8")
    (folder / "queries.tsv").write_text("q1\tA real query of the log\n", "utf-8")
    made = LabelStore(tmp_path / "s.duckdb")
    add_dataset(made, "wings/log", folder, collection="wings", role="train")
    return made


def queries(store: LabelStore, dataset: str) -> dict[str, str]:
    with store.read() as con:
        return dict(
            con.execute(
                "SELECT query_id, text FROM queries JOIN dataset_queries USING (query) JOIN datasets d USING (dataset)"
                " WHERE d.name = ?",
                [dataset],
            ).fetchall()
        )


def test_titles_and_rare_sentences_become_queries_with_counts_in_the_store(store: LabelStore) -> None:
    made = sentences.generate(store)
    found = queries(store, "wings/sentences")
    assert found["s-short"] == "The viscous stress at a porous wall was measured here"
    assert found["s-rare"] == "Ablation erodes graphite nozzles"
    assert found["s-other"] == "Überschall strömt über die Düse, дозвуковой поток нет"
    (title,) = {key for key in found if key in ("s-titled", "s-twin")}
    assert found[title] in ("Boundary layers in slip flow", "boundary LAYERS in slip flow")
    assert set(made.drops) == {"no title or sentence of fitting length", "reads as another query"}
    assert made.n_read == len(PASSAGES) == made.n_queries + sum(n for n, _ in made.drops.values())
    with store.read() as con:
        assert con.execute("SELECT role FROM datasets WHERE name = 'wings/sentences'").fetchall() == [
            ("train",)
        ]
        assert con.execute(
            "SELECT n_in, n_kept FROM filters WHERE step = 'queries from sentences'"
        ).fetchall() == [(6, 4)]


@pytest.mark.test_all
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_seed_draws_the_passages_and_the_same_again_changes_nothing(store: LabelStore, n: int) -> None:
    drawn = {}
    for seed in range(8):
        made = sentences.generate(store, "wings", n=n, seed=seed, name=f"wings/{seed}")
        drawn[seed] = frozenset(queries(store, f"wings/{seed}"))
        assert made.n_queries == len(drawn[seed]) <= n
        assert sentences.generate(store, "wings", n=n, seed=seed, name=f"wings/{seed}").changed is False
    assert len(set(drawn.values())) > 1


@pytest.mark.parametrize("text", ["Ablation erodes graphite nozzles", "ABLATION erodes  graphite nozzles!"])
def test_a_real_query_is_not_generated_again(store: LabelStore, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "judged"
    folder.mkdir()
    (folder / "queries.tsv").write_text(f"t1\t{text}\n", "utf-8")
    (folder / "qrels.txt").write_text("t1 0 rare 1\n", "utf-8")
    add_dataset(store, "wings/test", folder, collection="wings")
    made = sentences.generate(store)
    assert "s-rare" not in queries(store, "wings/sentences")
    assert made.drops["reads as another query"][0] >= 1


@pytest.mark.test_all
def test_what_cannot_be_made_is_said(store: LabelStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="n is 0"):
        sentences.generate(store, n=0)
    with pytest.raises(DataMissing, match="collection ships is not in the store"):
        sentences.generate(store, "ships")
    sentences.generate(store, n=2)
    with pytest.raises(BadInput) as caught:
        sentences.generate(store, n=2, seed=5)
    assert "--name" in str(caught.value.hint)
    other = made_store.make(tmp_path / "other.duckdb")
    assert sentences.generate(other, n=5).n_queries == 5
