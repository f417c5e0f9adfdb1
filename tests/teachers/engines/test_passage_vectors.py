"""Passage vectors on disk: a second engine embeds no passage again, and a damaged or cut file costs rows, no score."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from benchmarks.labelling_store import make
from labelstore.upkeep.verify.verify import verify
from teachers.engines import passage_vectors
from teachers.engines.base import Request
from teachers.engines.bi_encoder import BiEncoderEngine
from teachers.engines.passage_vectors import Embedded, PassageVectors
from teachers.generate import make_engine
from teachers.generate.job import generate
from teachers.generate.settings import Settings

DIGESTS = [bytes([k]) * 16 for k in range(1, 9)]


def made(n: int = 8, dimensions: int = 6) -> dict[bytes, Embedded]:
    vectors = np.random.default_rng(n).normal(size=(n, dimensions)).astype(np.float32)
    return {d: Embedded(v, 3 + k) for k, (d, v) in enumerate(zip(DIGESTS[:n], vectors, strict=True))}


def same(found: dict[bytes, Embedded], wanted: dict[bytes, Embedded]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[d].n_tokens == own.n_tokens and np.array_equal(found[d].vector, own.vector)
        for d, own in wanted.items()
    )


def test_what_one_process_added_another_finds(tmp_path: Path) -> None:
    wanted = made()
    one, beside = PassageVectors(tmp_path / "v", 6), PassageVectors(tmp_path / "v", 6)
    one.add(dict(list(wanted.items())[:5]))
    beside.add(dict(list(wanted.items())[3:]))
    assert same(PassageVectors(tmp_path / "v", 6).find(DIGESTS), wanted)
    assert len(list((tmp_path / "v").glob("*.keys"))) == 2, "each process has its own files"
    assert PassageVectors(tmp_path / "v", 6).find([]) == {}


def test_a_digest_with_zeros_at_its_end_is_found(tmp_path: Path) -> None:
    digest = b"\x01" + bytes(15)
    PassageVectors(tmp_path, 2).add({digest: Embedded(np.ones(2, np.float32), 4)})
    assert list(PassageVectors(tmp_path, 2).find([digest, bytes(16)])) == [digest]


@pytest.mark.parametrize("cut", [1, 23, 24, 25])
@pytest.mark.parametrize("ending", [".f32", ".keys"])
def test_a_file_that_was_cut_short_keeps_its_whole_rows(tmp_path: Path, ending: str, cut: int) -> None:
    wanted = made()
    PassageVectors(tmp_path, 6).add(wanted)
    (file,) = tmp_path.glob(f"*{ending}")
    file.write_bytes(file.read_bytes()[:-cut])
    left = 8 - -(-cut // 24)  # both files have rows of 24 bytes here
    assert same(PassageVectors(tmp_path, 6).find(DIGESTS), dict(list(wanted.items())[:left]))


def test_a_damaged_row_is_not_found(tmp_path: Path) -> None:
    PassageVectors(tmp_path, 6).add(made())
    (file,) = tmp_path.glob("*.f32")
    data = bytearray(file.read_bytes())
    data[2 * 24 + 5] ^= 1
    file.write_bytes(bytes(data))
    assert list(PassageVectors(tmp_path, 6).find(DIGESTS)) == DIGESTS[:2] + DIGESTS[3:]


def test_no_more_is_kept_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage_vectors, "MOST_BYTES", 8 * 48)
    full = PassageVectors(tmp_path, 6)
    full.add(made(5))
    full.add(made(4))
    assert len(PassageVectors(tmp_path, 6).find(DIGESTS)) == 5


def test_a_folder_that_cannot_be_written_keeps_nothing_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    PassageVectors(tmp_path / "file" / "v", 6).add(made())
    assert PassageVectors(tmp_path / "file" / "v", 6).find(DIGESTS) == {}


def test_a_second_engine_embeds_queries_alone_and_gives_the_same_scores(tmp_path: Path) -> None:
    folder = tiny_models.make("bert", tmp_path / "model")
    texts = tiny_models.sentences(30, seed=6)

    def scores(shown: list[str], **options: Any) -> tuple[list[float], int]:
        engine = BiEncoderEngine(str(folder), precision="fp32", vectors=tmp_path / "vectors", **options)
        engine.submit([Request(key="a", query="a query", passages=shown, ticket=0)])
        (completion,) = engine.poll(1.0)
        engine.close()
        assert completion.scores is not None
        return list(completion.scores), engine.n_embedded

    first, n_first = scores(texts[:20])
    again, n_again = scores(texts[::-1])
    assert (n_first, n_again) == (len(set(texts[:20])) + 1, len(set(texts) - set(texts[:20])) + 1)
    assert again[10:] == first[::-1], "to the last bit"
    assert scores(texts, max_length=16)[1] == len(set(texts)) + 1, "of another length they are other vectors"


def test_a_second_labeling_embeds_only_what_is_new_and_a_changed_model_embeds_all(tmp_path: Path) -> None:
    folder = tiny_models.make("bert", tmp_path / "model")
    store = make(tmp_path / "s.duckdb", 10, passages=60, length=lambda k: 20)
    embedded = []

    def label(name: str, depth: int) -> list[tuple[Any, ...]]:
        built: list[Any] = []

        def build(plan: Any) -> Any:
            built.append(make_engine.build(plan))
            return built[0]

        settings = Settings(model=str(folder), engine="bi-encoder", name=name, depth=depth, canaries=0)
        assert generate(store, settings, build=build).labelled == 10
        embedded.append(built[0].n_embedded)
        with store.read() as con:
            return con.execute(
                """SELECT query, document, i.score FROM labelings l JOIN permutations USING (labeling)
                   JOIN permutation_items i USING (permutation) WHERE l.name = ? ORDER BY ALL""",
                [name],
            ).fetchall()

    ten = label("ten", 10)
    twenty = label("twenty", 20)
    assert len(twenty) == 2 * len(ten) == 200
    assert set(ten) < set(twenty), "the same scores to the last bit"
    passages = len({document for _, document, _ in twenty})
    assert sum(embedded) == 2 * 10 + passages, "the queries twice, and each passage once"
    tiny_models.make("bert", folder, seed=8)
    assert set(label("changed", 20)).isdisjoint(twenty)
    assert embedded[-1] == 10 + passages
    assert verify(store).findings == []
