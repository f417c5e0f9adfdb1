"""`msft merge`: all of both stores and nothing twice, in either order; contradictions change nothing."""

import re
import shutil
from pathlib import Path
from typing import Any

import made_store
import pytest

from benchmarks.labelling_store import make as make_labelled
from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.evaluation import scores as evaluation
from labelstore.negatives import mine as negatives
from labelstore.store import keys, lookup
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import qrels_hash
from labelstore.upkeep.merge.job import Contradictory, MergedStore, merge_stores
from labelstore.upkeep.verify.digest import content_hash
from labelstore.upkeep.verify.verify import verify
from labelstore.views import build as views
from teachers.engines.base import Completion, Request
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

QUERIES = 6


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def change(store: LabelStore, sql: str) -> None:
    with store.write() as con:
        con.execute(sql)


def hash_of(store: LabelStore) -> str:
    with store.read() as con:
        return content_hash(con)


def copy(store: LabelStore, path: Path) -> LabelStore:
    shutil.copy(store.path, path)
    made = LabelStore(path)
    if store.files.is_dir():
        shutil.copytree(store.files, made.files)
    return made


def both_ways(one: LabelStore, two: LabelStore, folder: Path) -> LabelStore:
    """Merge copies in both orders; both come out sound, alike, and complete. Returns the first."""
    folder.mkdir(exist_ok=True)
    first, second = copy(one, folder / "first.duckdb"), copy(two, folder / "second.duckdb")
    assert merge_stores(first, two).new
    assert merge_stores(second, one).new
    assert hash_of(first) == hash_of(second)
    assert verify(first).findings == []
    assert verify(second).findings == []
    assert not merge_stores(first, two).new, "a second time there is nothing new"
    return first


Pair = tuple[LabelStore, LabelStore]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same content twice, under other surrogate keys."""
    folder = tmp_path_factory.mktemp("templates")
    return made_store.make(folder / "one.duckdb"), made_store.make(folder / "two.duckdb", offset=900)


@pytest.fixture
def pair(templates: Pair, tmp_path: Path) -> Pair:
    """Copies of the two."""
    one, two = templates
    return copy(one, tmp_path / "one.duckdb"), copy(two, tmp_path / "two.duckdb")


# -------------------------------------------------------------------------------------------------------- labels
def labelled(path: Path, answer: Any = hashed_order, **settings: Any) -> LabelStore:
    store = make_labelled(path, QUERIES, length=lambda k: 25 + k)
    generate(store, Settings(model="rankzephyr", canaries=2, **settings), engine=ScriptedEngine(answer))
    return store


@pytest.mark.test_all
def test_overlapping_labels_merge_alike_in_either_order_and_keep_every_call(tmp_path: Path) -> None:
    """Must show: each machine has asked the overlap for itself; both answers stay, one of them is the labeling's."""
    one = labelled(tmp_path / "one.duckdb", limit=4)
    two = labelled(tmp_path / "two.duckdb")
    asked = [rows(store, "SELECT call_key FROM calls") for store in (one, two)]
    assert len(asked[0]) == 8
    assert len(asked[1]) == 12
    assert not set(asked[0]) & set(asked[1])
    merged = both_ways(one, two, tmp_path / "both")
    assert sorted(rows(merged, "SELECT call_key FROM calls")) == sorted(asked[0] + asked[1])
    assert rows(merged, "SELECT count(*) FROM requests") == [(12,)]
    assert rows(merged, "SELECT count(*), sum(n_calls) FROM permutations") == [(QUERIES, 12)]
    assert rows(merged, "SELECT count(*), count(DISTINCT (query, step)) FROM labeling_calls") == [(12, 12)]
    assert rows(
        merged,
        """SELECT count(*) FROM (SELECT query FROM labeling_calls u JOIN calls c USING (call)
                                 GROUP BY query HAVING count(DISTINCT c.job_key) > 1)""",
    ) == [(0,)], "a query's answers come from one of the two"
    assert rows(merged, "SELECT count(*) FROM canaries") == [(4,)]


@pytest.mark.test_all
def test_parts_of_one_labeling_unite_and_release_each_others_failures(tmp_path: Path) -> None:
    """Two machines label other queries, each failing on those of the other."""

    def failing_on(odd: bool) -> Any:
        def answer(request: Request) -> str | Completion:
            asked = re.search(r"search query: .* (\d+)\.", request.messages[-1]["content"])
            if asked and (int(asked[1]) % 2 == 1) == odd:
                return Completion(request.ticket, error="it is refused", retryable=False)
            return hashed_order(request)

        return answer

    one = labelled(tmp_path / "one.duckdb", failing_on(True))
    two = labelled(tmp_path / "two.duckdb", failing_on(False))
    for store in (one, two):
        assert rows(store, "SELECT count(*) FROM permutations") == [(QUERIES // 2,)]
        assert rows(store, "SELECT count(*) FROM quarantine") == [(QUERIES // 2,)]
    merged = both_ways(one, two, tmp_path / "both")
    assert rows(merged, "SELECT count(*) FROM labelings") == [(1,)]
    assert rows(merged, "SELECT count(*) FROM permutations WHERE status = 'ok'") == [(QUERIES,)]
    assert rows(merged, "SELECT count(*) FROM quarantine") == [(0,)]
    engine = ScriptedEngine(hashed_order)
    assert generate(merged, Settings(model="rankzephyr", canaries=0), engine=engine).labelled == QUERIES
    assert engine.answered == 0


@pytest.mark.test_all
def test_other_answers_to_the_same_query_contradict_and_can_come_in_beside(tmp_path: Path) -> None:
    def reversed_order(request: Request) -> str:
        return " > ".join(f"[{identifier}]" for identifier in reversed(request.identifiers))

    one = labelled(tmp_path / "one.duckdb")
    two = labelled(tmp_path / "two.duckdb", reversed_order, limit=2)
    before = hash_of(one)
    with pytest.raises(Contradictory) as raised:
        merge_stores(one, two)
    found = raised.value.contradictions
    assert {item.what for item in found} == {"labels"}
    assert [item.name for item in found] == ["rankzephyr@first q0", "rankzephyr@first q1"]
    assert all(item.here.startswith("d") and item.here != item.there for item in found)
    assert "--rename-suffix" in (raised.value.hint or "")
    assert hash_of(one) == before
    merged = merge_stores(one, two, rename_suffix="@two")
    assert merged.renamed == [("labels", "rankzephyr@first", "rankzephyr@first@two")]
    assert rows(one, "SELECT l.name, count(*) FROM permutations JOIN labelings l USING (labeling) GROUP BY 1 ORDER BY 1") == [
        ("rankzephyr@first", QUERIES), ("rankzephyr@first@two", 2),
    ]  # fmt: skip
    assert rows(one, "SELECT count(*) FROM calls") == [(12 + 4,)]
    assert verify(one).findings == []
    assert not merge_stores(one, two, rename_suffix="@two").new


def test_labels_given_for_other_texts_contradict(pair: Pair) -> None:
    one, two = pair
    for store, version in ((one, 2), (two, 3)):
        text = made_store.text_of(3, version)
        change(
            store,
            f"""INSERT INTO document_versions SELECT document, 1, title, text, text_hash, 1 FROM documents WHERE doc_id = 'd3';
                UPDATE documents SET version = 2, text = '{made_store.text_of(3, 9)}',
                       text_hash = {keys.text_hash(None, made_store.text_of(3, 9))} WHERE doc_id = 'd3';
                UPDATE permutation_items SET text_hash = {keys.text_hash(None, text)}
                WHERE permutation = (SELECT min(permutation) FROM permutation_items JOIN documents USING (document) WHERE doc_id = 'd3')
                  AND document = (SELECT document FROM documents WHERE doc_id = 'd3')""",
        )  # fmt: skip
    with pytest.raises(Contradictory) as raised:
        merge_stores(one, two)
    assert [item.what for item in raised.value.contradictions] == ["labels"]


@pytest.mark.test_all
def test_a_text_that_one_store_did_not_hold_is_pinned_from_the_other(tmp_path: Path) -> None:
    unheld = made_store.make(tmp_path / "one.duckdb", unheld=(3, 4))
    held = made_store.make(tmp_path / "two.duckdb", offset=900)
    assert rows(unheld, "SELECT count(*) > 0 FROM permutation_items WHERE text_hash IS NULL") == [(True,)]
    merged = both_ways(unheld, held, tmp_path / "both")
    assert rows(merged, "SELECT count(*) FROM permutation_items WHERE text_hash IS NULL") == [(0,)]
    assert rows(merged, "SELECT count(*) FROM documents WHERE text IS NULL OR version <> 1") == [(0,)]


# ------------------------------------------------------------------------------------------------------- corpora
@pytest.mark.test_all
def test_equal_stores_have_nothing_for_each_other_but_their_jobs(pair: Pair) -> None:
    one, two = pair
    before = hash_of(one)
    done = merge_stores(one, two)
    assert {t.table for t in done.taken if t.new} == {"provenance"}
    assert hash_of(one) == before
    assert rows(one, "SELECT kind FROM provenance ORDER BY job") == [("data.add",), ("merge",), ("data.add",)]
    assert rows(one, "SELECT count(*) FROM filters f JOIN provenance USING (job) WHERE kind = 'merge' AND step = 'merge documents' AND n_in = 60 AND n_kept = 0") == [(1,)]  # fmt: skip
    assert not merge_stores(one, two).new


@pytest.mark.test_all
def test_into_a_store_that_is_not_there_yet_it_is_a_copy(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb", unheld=(7,))
    new = LabelStore(tmp_path / "new.duckdb")
    assert merge_stores(new, store).new
    assert hash_of(new) == hash_of(store)
    assert verify(new).findings == []


@pytest.mark.test_all
def test_stores_that_share_nothing_are_both_there(tmp_path: Path) -> None:
    one = made_store.make(tmp_path / "one.duckdb")
    two = make_labelled(tmp_path / "two.duckdb", 3)
    merged = both_ways(one, two, tmp_path / "both")
    assert rows(merged, "SELECT name FROM collections ORDER BY name") == [("c",), ("made",)]
    assert rows(merged, "SELECT count(*) FROM documents") == [(560,)]


def update(store: LabelStore, doc_id: str, text: str) -> None:
    """A new text as `data add --update` stores it."""
    with store.write() as con:
        con.execute(
            """INSERT INTO document_versions SELECT document, version, title, text, text_hash, 1 FROM documents
               WHERE doc_id = ?""",
            [doc_id],
        )
        con.execute(
            "UPDATE documents SET text = ?, text_hash = ?, version = version + 1 WHERE doc_id = ?",
            [text, keys.text_hash(None, text), doc_id],
        )


@pytest.mark.test_all
def test_the_newer_text_wins_where_its_history_holds_the_other(pair: Pair, tmp_path: Path) -> None:
    one, two = pair
    for text in ("second", "third"):
        update(one, "d3", text)
    update(two, "d3", "second")
    update(two, "d4", "of d4")
    merged = both_ways(one, two, tmp_path / "both")
    assert rows(merged, "SELECT doc_id, version, text FROM documents WHERE version > 1 ORDER BY doc_id") == [
        ("d3", 3, "third"), ("d4", 2, "of d4"),
    ]  # fmt: skip
    history = "SELECT doc_id, v.version, v.text FROM document_versions v JOIN documents USING (document) ORDER BY ALL"
    assert rows(merged, history) == [
        ("d3", 1, made_store.text_of(3)), ("d3", 2, "second"), ("d4", 1, made_store.text_of(4)),
    ]  # fmt: skip
    second = LabelStore(tmp_path / "both" / "second.duckdb")
    assert rows(second, history) == rows(merged, history)


@pytest.mark.test_all
def test_histories_that_begin_at_other_texts_unite(pair: Pair, tmp_path: Path) -> None:
    one, two = pair
    update(one, "d3", "second")
    change(two, f"UPDATE documents SET text = 'second', text_hash = {keys.text_hash(None, 'second')} WHERE doc_id = 'd3'; DELETE FROM permutation_items; DELETE FROM permutations; DELETE FROM labelings; DELETE FROM teachers")  # fmt: skip
    update(two, "d3", "third")
    merged = both_ways(one, two, tmp_path / "both")
    assert rows(merged, "SELECT version, text FROM documents WHERE doc_id = 'd3'") == [(3, "third")]
    history = "SELECT v.version, v.text FROM document_versions v ORDER BY 1"
    assert rows(merged, history) == [(1, made_store.text_of(3)), (2, "second")]
    assert rows(LabelStore(tmp_path / "both" / "second.duckdb"), history) == rows(merged, history)


@pytest.mark.parametrize(
    ("sql", "what", "name", "here", "there"),
    [
        ("UPDATE documents SET text = 'other', text_hash = 7 WHERE doc_id = 'd3'", "passage", "c d3", made_store.text_of(3), "other"),
        ("UPDATE queries SET text = 'other', text_hash = 7 WHERE query_id = 'q3'", "query", "c q3", "which maple is number 3", "other"),
        ("UPDATE collections SET licence = 'research only'", None, None, None, None),
        ("UPDATE datasets SET role = 'dev' WHERE name = 'c/test'", "dataset", "c/test", "role test", "role dev"),
        ("UPDATE qrels SET relevance = 2 WHERE dataset = 901 AND document = 903", "judgment", "c/train q3 d3", "grade 1", "grade 2"),
        ("DELETE FROM qrels WHERE dataset = 901 AND document = 903", "dataset", "c/train", "1 judgments that are not there", "0 that are not here"),
        ("UPDATE runs SET content_hash = 'x' WHERE run = 902", "run", "c/test/first", None, "content x"),
        ("UPDATE labelings SET strategy = 'sliding'", "labels", "teacher@first", "teacher over c/train/first, imported {}", "teacher over c/train/first, sliding {}"),
    ],
)  # fmt: skip
def test_contradictions_name_both_values_and_change_nothing(
    pair: Pair,
    sql: str,
    what: str | None,
    name: str | None,
    here: str | None,
    there: str | None,
) -> None:
    one, two = pair
    with two.write() as con:
        con.execute(sql)
        for dataset in (901, 902):
            con.execute(
                "UPDATE datasets SET qrels_hash = ? WHERE dataset = ?", [qrels_hash(con, dataset), dataset]
            )
    before = one.path.read_bytes()
    if what is None:  # a licence that only one of them knows is no contradiction
        merge_stores(one, two)
        assert rows(one, "SELECT licence FROM collections") == [("research only",)]
        return
    with pytest.raises(Contradictory) as raised:
        merge_stores(one, two)
    (found,) = raised.value.contradictions
    assert (found.what, found.name, found.there) == (what, name, there)
    assert here is None or found.here == here
    assert found.hint
    assert one.path.read_bytes() == before


@pytest.mark.test_all
def test_a_suffix_takes_in_a_whole_contradicting_collection(pair: Pair) -> None:
    one, two = pair
    change(two, f"UPDATE documents SET text = 'other', text_hash = {keys.text_hash(None, 'other')} WHERE doc_id = 'd3'; UPDATE permutation_items SET text_hash = {keys.text_hash(None, 'other')} WHERE document = 903")  # fmt: skip
    negatives.mine(two, dataset="c/train", runs=["first"], per_query=4, depth=20, name="hard")
    done = merge_stores(one, two, rename_suffix="@2")
    assert done.renamed == [
        ("collection", "c", "c@2"), ("dataset", "c/train", "c/train@2"), ("dataset", "c/test", "c/test@2"),
        ("labels", "teacher@first", "teacher@first@2"),
    ]  # fmt: skip
    assert verify(one).findings == []
    assert rows(one, "SELECT count(*) FROM ranked WHERE dataset = 'c/train@2'") == [(360,)]
    assert not merge_stores(one, two, rename_suffix="@2").new


@pytest.mark.test_all
def test_negatives_over_a_renamed_run_keep_a_sound_hash(pair: Pair) -> None:
    one, two = pair
    negatives.mine(two, dataset="c/train", runs=["first"], per_query=4, depth=20, name="hard")
    with one.write() as con:
        con.execute("UPDATE candidates SET score = score + 1 WHERE run = 1")
        from labelstore.store.row_hashes import run_hash

        con.execute("UPDATE runs SET content_hash = ? WHERE run = 1", [run_hash(con, 1)])
    done = merge_stores(one, two, rename_suffix="@2")
    assert ("run", "first", "first@2") in done.renamed
    assert rows(one, "SELECT DISTINCT source_run FROM mined WHERE mining = 'hard'") == [("first@2",)]
    assert verify(one).findings == []
    assert not merge_stores(one, two, rename_suffix="@2").new


# ---------------------------------------------------------------------------------------- views, students, results
def with_student(store: LabelStore, name: str, weights: bytes) -> None:
    folder = store.folder("students") / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    with store.write() as con:
        con.execute(
            """INSERT INTO students SELECT coalesce(max(student), 0) + 1, ?, 'base', NULL, 'bert', 'kd', ?, ?, 64, 42,
                                           NULL, NULL, 1 FROM students""",
            [name, f"students/{name}", file_hash(folder / "model.safetensors")],
        )
        ((student, view, view_hash),) = con.execute(
            "SELECT max(student), (SELECT view FROM views), (SELECT view_hash FROM views) FROM students"
        ).fetchall()
        con.execute(
            "INSERT INTO stages VALUES (?, 1, 'kd', 'ranknet', ?, ?, 'a', 'b', '{}', 4, 40, 0, 0, 1, 0.1, NULL, NULL, 'end')",
            [student, view, view_hash],
        )
        con.execute("INSERT INTO training_log VALUES (?, 1, 1, 10, 0.5, 'loss', 0.7)", [student])


@pytest.fixture
def trained(pair: Pair) -> Pair:
    """Two stores that have built the same view, each with a student of its own and one in common."""
    for store, own in zip(pair, ("mine", "yours"), strict=True):
        views.build(store, "distillation", labels=["teacher@first"], name="kd", allow_overlap=True)
        with_student(store, "common", b"the same weights")
        with_student(store, own, own.encode())
        evaluation.evaluate(store, "c/test", measures=["nDCG@10"])
    return pair


@pytest.mark.test_all
def test_views_students_and_evaluations_come_with_their_folders(trained: Pair, tmp_path: Path) -> None:
    one, two = trained
    merged = both_ways(one, two, tmp_path / "both")
    assert rows(merged, "SELECT name FROM students ORDER BY name") == [("common",), ("mine",), ("yours",)]
    assert rows(merged, "SELECT count(*) FROM views") == [(1,)]
    assert rows(merged, "SELECT student, view FROM student_stages ORDER BY 1") == [
        ("common", "kd"), ("mine", "kd"), ("yours", "kd"),
    ]  # fmt: skip
    assert sorted(path.name for path in (merged.files / "students").iterdir()) == ["common", "mine", "yours"]
    assert rows(merged, "SELECT measure, count(*) FROM evaluations GROUP BY 1 ORDER BY 1") == rows(
        one, "SELECT measure, count(*) FROM evaluations GROUP BY 1 ORDER BY 1"
    )
    assert rows(merged, "SELECT count(*) FROM training_log") == [(3,)]


@pytest.mark.test_all
def test_a_lost_folder_comes_back_from_a_store_that_has_it(trained: Pair) -> None:
    one, two = trained
    merge_stores(one, two)
    shutil.rmtree(one.files / "views")
    shutil.rmtree(one.files / "students" / "common")
    assert len(verify(one).findings) == 2
    done = merge_stores(one, two)
    assert (done.new, done.folders) == (False, 2)
    assert verify(one).findings == []


@pytest.mark.test_all
def test_a_damaged_folder_is_not_copied_and_said(trained: Pair) -> None:
    one, two = trained
    (two.files / "students" / "yours" / "model.safetensors").write_bytes(b"torn")
    notes: list[str] = []
    done = merge_stores(one, two, note=notes.append)
    assert done.new
    assert len(notes) == 1
    assert notes[0].startswith("student yours: its folder is not copied")
    assert [finding.name for finding in verify(one).findings] == ["yours"]


@pytest.mark.test_all
def test_students_of_one_name_and_other_weights_contradict(trained: Pair) -> None:
    one, two = trained
    with_student(one, "yours", b"other weights")
    with pytest.raises(Contradictory, match="student yours is weights"):
        merge_stores(one, two)
    assert not (one.files / "students" / "yours@2").exists()
    merge_stores(one, two, rename_suffix="@2")
    assert (one.files / "students" / "yours@2" / "model.safetensors").read_bytes() == b"yours"
    assert verify(one).findings == []


@pytest.mark.test_all
def test_evaluations_of_a_labeling_that_grew_go(tmp_path: Path) -> None:
    one, two = (made_store.make(tmp_path / f"{n}.duckdb", offset=n * 900) for n in (0, 1))
    for store, parity in ((one, 0), (two, 1)):
        change(store, f"""DELETE FROM permutation_items WHERE permutation IN (
                              SELECT permutation FROM permutations JOIN queries q USING (query) WHERE substr(query_id, 2)::INTEGER % 2 = {parity});
                          DELETE FROM permutations WHERE permutation NOT IN (SELECT permutation FROM permutation_items)""")  # fmt: skip
        evaluation.evaluate(store, "c/train", measures=["nDCG@10"])
    count = "SELECT count(*) FROM evaluations WHERE labeling IS NOT NULL"
    assert rows(one, count)[0][0] > 0
    merged = both_ways(one, two, tmp_path / "both")
    assert rows(merged, count) == [(0,)]
    evaluation.evaluate(merged, "c/train", measures=["nDCG@10"])
    assert verify(merged).stale_evaluations == 0


@pytest.mark.test_all
def test_a_job_that_ended_meanwhile_is_told(tmp_path: Path) -> None:
    one = made_store.make(tmp_path / "one.duckdb")
    two = copy(one, tmp_path / "two.duckdb")
    change(one, "UPDATE provenance SET status = 'running', seconds = NULL")
    done = merge_stores(one, two)
    assert rows(one, "SELECT kind, status, seconds FROM provenance WHERE kind = 'data.add'") == [
        ("data.add", "done", 1.0)
    ]
    assert {t.table for t in done.taken if t.changed} == {"provenance"}
    assert not merge_stores(one, two).new


# -------------------------------------------------------------------------------------------------------- errors
def test_wrong_arguments(tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb")
    with pytest.raises(UsageError, match="itself"):
        merge_stores(store, LabelStore(tmp_path / "." / "s.duckdb"))
    with pytest.raises(DataMissing):
        merge_stores(store, LabelStore(tmp_path / "none.duckdb"))
    with pytest.raises(UsageError, match="suffix"):
        merge_stores(store, LabelStore(tmp_path / "none.duckdb"), rename_suffix="/up")


def test_a_store_with_loose_ends_is_refused_whole(tmp_path: Path) -> None:
    one, two = LabelStore(tmp_path / "one.duckdb"), made_store.make(tmp_path / "two.duckdb")
    change(two, "DELETE FROM documents WHERE doc_id = 'd20'")
    with pytest.raises(BadInput, match="name what it has not") as raised:
        merge_stores(one, two)
    assert str(two.path) in (raised.value.hint or "")
    assert rows(one, "SELECT count(*) FROM documents") == [(0,)]


def test_a_merge_tells_what_it_took(tmp_path: Path) -> None:
    done = merge_stores(LabelStore(tmp_path / "new.duckdb"), made_store.make(tmp_path / "s.duckdb"))
    assert isinstance(done, MergedStore)
    taken = {t.table: (t.there, t.new) for t in done.taken}
    assert taken["candidates"] == (480, 480)
    assert taken["permutation_items"] == (120, 120)
    with LabelStore(tmp_path / "new.duckdb").read() as con:
        assert lookup.run(con, lookup.dataset(con, "c/train"), "first").n_candidates == 360
