"""`msft verify`: a sound store has no finding; each kind of damage has one, by name, with a hint."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import made_store
import pytest

from benchmarks.labelling_store import make as make_labelled
from labelstore.errors import StoreDamaged
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore
from labelstore.store.relations import REFERENCES, TARGETS, UNIQUE
from labelstore.upkeep.verify.blocks import HEADERS, mismatches
from labelstore.upkeep.verify.damage import damaged_blocks
from labelstore.upkeep.verify.digest import content_hash
from labelstore.upkeep.verify.findings import Finding
from labelstore.upkeep.verify.verify import verify
from labelstore.views import build as views
from labelstore.views import folder as export
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

BLOCK = 262_144


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with runs, labels, a distillation and a contrastive view, and a student's folder."""
    made = made_store.make(tmp_path_factory.mktemp("template") / "s.duckdb", unheld=(50,))
    views.build(made, "distillation", labels=["teacher@first"], name="kd", allow_overlap=True)
    views.build(made, "contrastive", datasets=["c/train"], runs=["first"], name="cl", per_query=5, depth=30)
    made_store.add_student(made, "none")
    with made.write() as con:
        con.execute("COMMIT; CHECKPOINT; BEGIN")
    return made.path.parent


@pytest.fixture
def store(template: Path, tmp_path: Path) -> LabelStore:
    """A store of its own."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return LabelStore(tmp_path / "s.duckdb")


def found(store: LabelStore) -> list[tuple[str, str]]:
    return [(finding.what, finding.name) for finding in verify(store).findings]


def hash_of(store: LabelStore) -> str:
    with store.read() as con:
        return content_hash(con)


def change(store: LabelStore, sql: str) -> None:
    with store.write() as con:
        con.execute(sql)


@pytest.mark.test_all
def test_a_sound_store_has_no_finding_and_a_hash_that_repeats(store: LabelStore) -> None:
    first, second = verify(store), verify(store)
    assert first.findings == []
    assert first.hash is not None
    assert (first.hash, first.unchecked) == (second.hash, [])


@pytest.mark.test_all
def test_the_hash_knows_content_and_neither_keys_nor_times_nor_jobs(tmp_path: Path) -> None:
    one = made_store.make(tmp_path / "one.duckdb")
    two = made_store.make(tmp_path / "two.duckdb", offset=7000)
    assert hash_of(one) == hash_of(two)
    hashes = {hash_of(one)}
    for sql in (
        "UPDATE documents SET text_hash = text_hash + 1 WHERE doc_id = 'd3'",
        "DELETE FROM dataset_queries WHERE query = 3",
        "UPDATE runs SET content_hash = 'other' WHERE run = 1",
        "UPDATE permutations SET status = 'repaired' WHERE query = 5",
        "UPDATE permutation_items SET text_hash = 12 WHERE permutation = 1004 AND rank = 2",
        "UPDATE teachers SET teacher_key = 'other'",
        "INSERT INTO quarantine VALUES (1, 3, 0, 'refused', 'no', 1, 1)",
        "INSERT INTO document_versions VALUES (3, 1, NULL, 'before', 5, 1)",
    ):
        change(one, sql)
        hashes.add(hash_of(one))
    assert len(hashes) == 9
    with two.write() as con:
        con.execute("UPDATE provenance SET seconds = 99, started_at = now(), command = 'else'")
        con.execute("UPDATE teachers SET input_price = 7")
    assert hash_of(two) in hashes


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("sql", "what", "name"),
    [
        ("UPDATE documents SET text = 'other' WHERE doc_id = 'd3'", "documents", "c d3"),
        ("UPDATE documents SET title = 'other' WHERE doc_id = 'd4'", "documents", "c d4"),
        ("UPDATE documents SET version = 3 WHERE doc_id = 'd4'", "documents", "c d4"),
        ("UPDATE documents SET text = NULL, version = 0 WHERE doc_id = 'd5'", "documents", "text_hash"),
        ("UPDATE queries SET text = 'other' WHERE query_id = 'q3'", "queries", "c q3"),
        ("UPDATE queries SET normal_hash = 1 WHERE query_id = 'q3'", "queries", "q3"),
        ("UPDATE qrels SET relevance = 2 WHERE dataset = 1 AND query = 3", "qrels", "c/train"),
        ("UPDATE datasets SET qrels_hash = NULL WHERE name = 'c/test'", "qrels", "c/test"),
        ("UPDATE candidates SET score = score + 0.5 WHERE run = 1 AND query = 3 AND rank = 4", "run", "c/train/first"),
        ("UPDATE candidates SET document = 59 WHERE run = 1 AND query = 3 AND rank = 4", "run", "c/train/first"),
        ("DELETE FROM candidates WHERE run = 2 AND query = 100003", "run", "c/test/first"),
        ("UPDATE runs SET depth = 31 WHERE run = 2", "run", "c/test/first"),
        ("UPDATE permutation_items SET grade = 9 WHERE permutation = 1004 AND rank = 2", "labels", "teacher@first q4"),
        ("UPDATE permutation_items SET text_hash = 9 WHERE permutation = 1004 AND rank = 2", "labels", "teacher@first"),
        ("UPDATE labelings SET depth = 5", "labels", "teacher@first"),
        ("UPDATE teachers SET name = 'another'", "teacher", "another"),
        ("DELETE FROM documents WHERE doc_id = 'd20'", "candidates", "c/train/first"),
        ("DELETE FROM queries WHERE query_id = 'q3'", "permutations", "teacher@first"),
        ("DELETE FROM runs WHERE run = 2", "candidates", "run"),
        ("DELETE FROM teachers", "labelings", "teacher"),
        ("UPDATE views SET job = 77 WHERE name = 'kd'", "views", "job"),
        ("INSERT INTO candidates SELECT * FROM candidates WHERE run = 1 AND query = 3", "candidates", "run query rank"),
        ("INSERT INTO qrels SELECT * FROM qrels WHERE dataset = 1", "qrels", "dataset query document"),
        ("INSERT INTO documents SELECT 777, * EXCLUDE (document) FROM documents WHERE doc_id = 'd3'", "documents", "collection doc_id"),
        ("INSERT INTO filters VALUES (1, 'documents', 'a file', 10, 9)", "filter", "data.add job 1 documents a file"),
    ],
)  # fmt: skip
def test_each_fault_is_named(store: LabelStore, sql: str, what: str, name: str) -> None:
    change(store, sql)
    findings = verify(store).findings
    assert (what, name) in [(finding.what, finding.name) for finding in findings]
    assert all(finding.problem and finding.hint for finding in findings)


def test_rows_of_another_collection_are_named(store: LabelStore) -> None:
    with store.write() as con:
        con.execute("INSERT INTO collections VALUES (9, 'else', NULL, NULL, 1)")
        con.execute("UPDATE documents SET collection = 9 WHERE doc_id = 'd20'")
    assert ("candidates", "c/train/first") in found(store)


@pytest.mark.test_all
def test_negatives_are_checked(store: LabelStore) -> None:
    from labelstore.negatives import mine as negatives

    negatives.mine(store, dataset="c/train", runs=["first"], per_query=4, depth=20, name="hard")
    assert found(store) == []
    change(store, "UPDATE negatives SET source_rank = 19 WHERE query = 3 AND source_rank < 19")
    assert ("negatives", "hard") in found(store)


@pytest.mark.test_all
def test_calls_requests_and_canaries_are_checked(tmp_path: Path) -> None:
    store = make_labelled(tmp_path / "s.duckdb", 4, length=lambda k: 25)
    generate(store, Settings(model="rankzephyr", canaries=2), engine=ScriptedEngine(hashed_order))
    assert found(store) == []
    for sql, what in (
        ("UPDATE calls SET attempt = 2 WHERE call = 3", "call"),
        ("UPDATE canaries SET reply = 'other' WHERE reply = (SELECT min(reply) FROM canaries)", "canary"),
        ("DELETE FROM request_passages WHERE request = 2 AND position = 3", "requests"),
        ("DELETE FROM labeling_calls WHERE query = 1 AND step = 0", "labels"),
        ("UPDATE requests SET request_key = 'short' WHERE request = 4", "request"),
    ):
        before = shutil.copy(store.path, tmp_path / "before.duckdb")
        change(store, sql)
        assert what in {kind for kind, _ in found(store)}, sql
        shutil.copy(before, store.path)


@pytest.mark.test_all
def test_evaluations_of_what_was_replaced_are_no_fault_but_told(store: LabelStore) -> None:
    from labelstore.evaluation import scores as evaluation

    evaluation.evaluate(store, "c/test", measures=["nDCG@10"])
    sound = verify(store)
    assert (sound.findings, sound.stale_evaluations) == ([], 0)
    change(store, "UPDATE evaluations SET run_hash = 'of an earlier run' WHERE measure = 'nDCG@10'")
    stale = verify(store)
    assert (stale.findings, stale.stale_evaluations) == ([], 1)
    assert stale.hash != sound.hash
    change(store, "UPDATE evaluations SET value = 0.125 WHERE measure = 'Judged@10'")
    assert "evaluation" in {kind for kind, _ in found(store)}


# ------------------------------------------------------------------------------------------------------- folders
def test_view_folders_are_checked(store: LabelStore) -> None:
    (name, folder), *_ = _views(store)
    edited = folder / "lists.parquet"
    edited.write_bytes(edited.read_bytes().replace(b"train", b"valid", 1))
    shutil.rmtree(_views(store)[1][1])
    stray = store.files / "views" / ("0" * 32)
    stray.mkdir()
    findings = {finding.name: finding for finding in verify(store).findings}
    assert len(findings) == 3
    assert "was changed since it was written" in findings[name].problem
    assert "msft views build --kind" in findings[name].hint
    assert "its folder is not at" in findings[_views(store)[1][0]].problem
    assert "no view of the store names" in findings[stray.name].problem


def test_a_view_whose_rows_are_not_its_hashs_is_named_though_its_manifest_fits(store: LabelStore) -> None:
    name, folder = _views(store)[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    other = _views(store)[1][1]
    shutil.copy(other / "queries.parquet", folder / "queries.parquet")
    manifest["files"]["queries.parquet"] = file_hash(folder / "queries.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (finding,) = verify(store).findings
    assert (finding.what, finding.name) == ("view", name)
    assert "other rows than its hash says" in finding.problem


def _views(store: LabelStore) -> list[tuple[str, Path]]:
    with store.read() as con:
        rows = con.execute("SELECT name || ' ' || view_hash, folder FROM views ORDER BY view").fetchall()
    return [(name, store.files / folder) for name, folder in rows]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"other"), "has the hash"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (shutil.rmtree, "its folder is not at"),
    ],
)
def test_weights_are_checked(store: LabelStore, damage: Callable[[Path], None], says: str) -> None:
    damage(store.files / "students" / "tiny")
    (finding,) = verify(store).findings
    assert (finding.what, finding.name) == ("student", "tiny")
    assert says in finding.problem
    assert "msft merge" in finding.hint


def test_what_killed_processes_left_is_named_and_what_living_ones_use_is_not(store: LabelStore) -> None:
    dead = 2**22 + 7  # above the kernel's highest process id
    left = [
        store.path.parent / f".msft-add-{dead}-0123abcd",
        store.files / "views" / f".building-{dead}-0123abcd",
        store.files / "students" / ".new.adding",
    ]
    for folder in left:
        folder.mkdir(parents=True)
    old = time.time() - 3600
    os.utime(left[-1], (old, old))
    in_use = [
        store.path.parent / f".msft-add-{os.getpid()}-0123abcd",
        store.files / "students" / ".just.adding",
        store.files
        / "students"
        / ".student.0123456789ab",  # an interrupted training: its command continues it
    ]
    for folder in in_use:
        folder.mkdir(parents=True)
    (store.files / "journal").mkdir(exist_ok=True)
    work = store.files / "journal" / f"{'a' * 32}.{dead}.work"
    work.write_bytes(b"")
    findings = verify(store).findings
    assert {finding.what for finding in findings} == {"leftover"}
    assert {finding.name for finding in findings} == {path.name for path in [*left, work]}
    assert all(finding.hint.startswith("rm -rf ") for finding in findings)


# -------------------------------------------------------------------------------------------------------- blocks
def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def blocks(path: Path) -> range:
    return range(HEADERS, path.stat().st_size, BLOCK)


@pytest.mark.test_all
def test_a_flipped_byte_in_any_block_is_one_named_finding(store: LabelStore, tmp_path: Path) -> None:
    """Every block of the file in turn: data, indexes, the catalogue; what a free block holds is nobody's matter."""
    whole = shutil.copy(store.path, tmp_path / "whole.duckdb")
    named = 0
    held: dict[int, str] = {}
    for offset in blocks(store.path):
        shutil.copy(whole, store.path)
        flip(store.path, offset + 200)
        try:
            found_blocks = damaged_blocks(store)
        except StoreDamaged:  # the catalogue: the file cannot be opened
            held[offset] = "catalogue"
            continue
        held[offset] = "; ".join(block.finding().problem for block in found_blocks)
        named += len(found_blocks)
        assert len(found_blocks) <= 1
    shutil.copy(whole, store.path)
    with store.read() as con:
        (used, free) = con.execute("SELECT used_blocks, free_blocks FROM pragma_database_size()").fetchall()[
            0
        ]
    said = " ".join(held.values())
    assert named + list(held.values()).count("catalogue") >= used - free
    for table in ("candidates", "documents", "queries", "runs", "views", "students", "permutations"):
        assert f"{table} (" in said
    assert "labelings (index on name)" in said
    assert "of teacher@first" in said or "of c" in said


def test_damage_is_a_finding_and_leaves_the_rest_checked(store: LabelStore) -> None:
    """Must show: one flipped byte in a used block, one edited view file, one missing weight file: three findings."""
    with store.read() as con:
        ((block,),) = con.execute(
            "SELECT DISTINCT block_id FROM pragma_storage_info('candidates') WHERE block_id >= 0"
        ).fetchall()
    flip(store.path, HEADERS + block * BLOCK + 100)
    name, folder = _views(store)[0]
    edited = folder / "passages.parquet"
    edited.write_bytes(edited.read_bytes()[:-1] + b"?")
    (store.files / "students" / "tiny" / "model.safetensors").unlink()
    done = verify(store)
    assert [finding.what for finding in done.findings] == ["block", "view", "student"]
    assert "candidates (" in done.findings[0].problem
    assert done.findings[0].name == f"byte {HEADERS + block * BLOCK}"
    assert "import-store" in done.findings[0].hint
    assert done.findings[1].name == name
    assert done.hash is not None, "the hash is over content keys, which can all be read"
    assert "references" in done.unchecked


@pytest.mark.parametrize("table", ["views", "students"])
def test_folders_are_checked_though_the_table_that_names_them_is_damaged(
    store: LabelStore, table: str
) -> None:
    with store.read() as con:
        ((block,),) = con.execute(
            f"SELECT DISTINCT block_id FROM pragma_storage_info('{table}') WHERE block_id >= 0"
        ).fetchall()
    _, folder = _views(store)[0]
    flip(store.path, HEADERS + block * BLOCK + 100)
    edited = folder / "passages.parquet"
    edited.write_bytes(edited.read_bytes()[:-1] + b"?")
    (store.files / "students" / "tiny" / "model.safetensors").unlink()
    done = verify(store)
    assert sorted(finding.what for finding in done.findings) == ["block", "student", "view"]
    assert done.hash is None


def test_a_file_that_cannot_be_opened_is_a_finding(store: LabelStore) -> None:
    for offset in (20, 4096 + 20, HEADERS + 100):
        whole = store.path.read_bytes()
        flip(store.path, offset)
        findings = verify(store).findings
        assert [finding.what for finding in findings] == ["store"], offset
        assert isinstance(findings[0], Finding)
        store.path.write_bytes(whole)


def test_other_commands_name_the_damage_too(store: LabelStore) -> None:
    with store.read() as con:
        ((block,),) = con.execute(
            "SELECT DISTINCT block_id FROM pragma_storage_info('documents') WHERE block_id >= 0"
        ).fetchall()
    flip(store.path, HEADERS + block * BLOCK + 100)
    with (
        pytest.raises(StoreDamaged, match=f"byte {HEADERS + block * BLOCK:,}") as raised,
        store.read() as con,
    ):
        con.execute("SELECT max(text) FROM documents").fetchall()
    assert "msft verify" in (raised.value.hint or "")


def test_blocks_are_read_as_duckdb_writes_them(store: LabelStore) -> None:
    n = len(blocks(store.path))
    assert mismatches(store.path, BLOCK, n) == []
    first, *_, last = blocks(store.path)
    flip(store.path, first + 100)
    assert mismatches(store.path, BLOCK, n) == [first]
    with store.path.open("r+b") as file:
        file.truncate(last + 100)
    assert mismatches(store.path, BLOCK, n) == [first, last]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_file_cut_short_is_named(store: LabelStore, share: float) -> None:
    with store.path.open("r+b") as file:
        file.truncate(int(store.path.stat().st_size * share))
    findings = verify(store).findings
    assert findings
    assert {finding.what for finding in findings} <= {"block", "store"}
    assert all("cut short" in finding.problem for finding in findings)


# ----------------------------------------------------------------------------------------------------- relations
def test_relations_name_columns_that_are_there(store: LabelStore) -> None:
    with store.read() as con:
        columns = set(
            con.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
        )
    assert {(r.table, r.column) for r in REFERENCES} <= columns
    assert {(r.target, r.key) for r in REFERENCES} <= columns
    assert set(TARGETS.items()) <= columns
    assert {(table, column) for table, named in UNIQUE for column in named} <= columns


def test_every_integer_that_names_another_table_is_a_reference() -> None:
    """A column called like a table's key, or said to be one by schema.sql, is checked."""
    from labelstore.upkeep.archive import _comments

    known = {(r.table, r.column) for r in REFERENCES} | {("view_sources", "source")}
    for (table, column), comment in _comments().items():
        target = comment.split(";")[0].split(" ")[0]
        if "." in target and target.split(".")[0] in TARGETS and target.split(".")[1] in TARGETS.values():
            assert (table, column) in known, f"{table}.{column}: {comment}"


def test_the_manifest_that_verify_reads_is_what_export_writes(store: LabelStore) -> None:
    for _, folder in _views(store):
        assert {"n_lists", "n_pairs", "kind"} <= export.read_manifest(folder).keys()
