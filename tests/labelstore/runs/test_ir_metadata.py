"""Runs out with what made them: PRIMAD beside the file or inside, and back as the same run."""

import gzip
from pathlib import Path

import ir_measures
import made_store
import pytest
import pytrec_eval
import yaml

from labelstore.evaluation import scores as evaluation
from labelstore.runs import export, import_run, ir_metadata
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore

COMPONENTS = ["platform", "research goal", "implementation", "method", "actor", "data"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    made = made_store.make(tmp_path_factory.mktemp("made") / "s.duckdb")
    evaluation.evaluate(made, "c/test", measures=["nDCG@10"])
    return made


def written(store: LabelStore, path: Path, *, inside: bool) -> dict:
    """Export c/test/first; returns its metadata."""
    with store.read() as con:
        of = lookup.dataset(con, "c/test")
        run = lookup.run(con, of, "first")
        content = ir_metadata.metadata(con, of, run, "A. Person")
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w") as out:
        export.write_trec(store, of, run, out, header=ir_metadata.header(content) if inside else [])
    return content


def test_all_six_components_are_there_and_nothing_is_empty(store: LabelStore, tmp_path: Path) -> None:
    content = written(store, tmp_path / "first.run", inside=False)
    assert [key for key in content if key in COMPONENTS] == COMPONENTS
    assert content["tag"] == "first"
    assert content["implementation"]["executable"]["cmd"]
    assert content["platform"]["hardware"]["cpu"]["number of cores"] > 0
    assert any(line.startswith("duckdb==") for line in content["platform"]["software"]["libraries"]["python"])
    assert content["method"]["retrieval"] == [{"name": "first", "method": "made", "kind": "first_stage"}]
    assert content["research goal"]["evaluation"]["reported measures"][0] == "nDCG@10"
    assert content["data"]["test collection"]["name"] == "c"
    assert content["actor"]["name"] == "A. Person"
    assert yaml.safe_load(ir_metadata.text(content)) == content


def test_the_header_is_read_as_ir_metadata_tools_read_it(store: LabelStore, tmp_path: Path) -> None:
    """As repro_eval's MetadataHandler does: the marker is the first line, `#` is stripped, the rest is YAML."""
    path = tmp_path / "first.run"
    content = written(store, path, inside=True)
    lines = path.read_text().splitlines(keepends=True)
    assert lines[0] == "# ir_metadata.start\n"
    end = lines.index("# ir_metadata.end\n")
    assert yaml.safe_load("".join(line.strip("#") for line in lines[1:end])) == content
    assert not any(line.startswith("#") for line in lines[end + 1 :])


@pytest.mark.parametrize("name", ["first.run", "first.run.gz"])
def test_a_run_with_a_header_comes_back_as_the_same_run(store: LabelStore, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    written(store, path, inside=True)
    back = import_run.import_run(store, path, "c/test", f"back-{name}")
    with store.read() as con:
        assert back.run.content_hash == lookup.run(con, lookup.dataset(con, "c/test"), "first").content_hash
    assert back.n_read == 120


def test_readers_of_trec_evals_kind_take_the_plain_run_and_refuse_the_header(
    store: LabelStore, tmp_path: Path
) -> None:
    """Why the metadata lies beside the run unless asked for."""
    plain, inside = tmp_path / "plain.run", tmp_path / "inside.run"
    written(store, plain, inside=False)
    written(store, inside, inside=True)
    assert len(list(ir_measures.read_trec_run(str(plain)))) == 120
    assert len(pytrec_eval.parse_run(plain.open())) == 4
    with pytest.raises(ValueError):
        list(ir_measures.read_trec_run(str(inside)))
    with pytest.raises(ValueError):
        pytrec_eval.parse_run(inside.open())


def test_where_it_lies() -> None:
    for name in ("bm25.run", "bm25.run.gz", "bm25.run.zst"):
        assert ir_metadata.beside(Path("out") / name) == Path("out/bm25.run.ir_metadata.yaml")
