"""What the machine refuses is named as what it is; paths of stores that DuckDB cannot take are refused before work."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from labelstore import retrieval
from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import BadInput, DataMissing, MsftError, NoMemory, NoRoom, NotWritable, UsageError
from labelstore.evaluation import scores as evaluation
from labelstore.files import lines as formats
from labelstore.retrieval.bm25s import Bm25s
from labelstore.runs import import_run
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from msft import refusals
from students.jobs.rerank import student_folder

ROOT = Path(__file__).resolve().parents[3]


def fill(store: LabelStore, folder: Path, texts: list[str], queries: list[str]) -> None:
    folder.mkdir()
    lines = [json.dumps({"doc_id": f"d{k}", "text": text}) + "\n" for k, text in enumerate(texts)]
    (folder / "docs.jsonl").write_text("".join(lines))
    (folder / "queries.tsv").write_text("".join(f"q{k}\t{text}\n" for k, text in enumerate(queries)))
    (folder / "qrels.txt").write_text("".join(f"q{k} 0 d{k} 1\n" for k in range(len(queries))))
    (folder / "r.run").write_text("".join(f"q{k} Q0 d{k} 1 1 T\n" for k in range(len(queries))))
    add_folder(store, folder, NewDataset("x"))


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    store = LabelStore(tmp_path / "s.duckdb")
    fill(store, tmp_path / "f", ["cats purr", "dogs bark"], ["cats", "dogs"])
    import_run.import_run(store, tmp_path / "f/r.run", "x", "r")
    return store


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.EROFS, "Read-only file system", "a/b"), NotWritable, "read-only file system"),
        (duckdb.IOException('IO Error: Cannot open file "s": Read-only file system'), NotWritable, "read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), NotWritable, "a/b may not be used"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), NoRoom, "Disk quota exceeded"),
        (RuntimeError("[enforce fail at inline_container.cc] . No space left on device"), NoRoom, "no room"),
        (RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0"), NoRoom, "no room"),
        (OSError("200000 requested and 74968 written"), NoRoom, "no room"),
        (RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed: file write failed"), NoRoom, "no room"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), NoMemory, "too little memory"),
        (OSError(errno.EMFILE, "Too many open files", "a/b"), MsftError, "no more files"),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), MsftError, "no more files"),
        (MemoryError(), NoMemory, "too little memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), NoMemory, "too little memory"),
        (duckdb.OutOfMemoryException("Out of Memory Error: could not allocate"), NoMemory, "too little memory"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a/b"), MsftError, "a/b cannot be used"),
    ],
)  # fmt: skip
def test_an_error_of_the_machine_is_named(error: BaseException, kind: type[MsftError], words: str) -> None:
    named = refusals.explained(error)
    assert type(named) is kind
    assert words in named.message
    assert named.hint


@pytest.mark.parametrize(
    "error", [ValueError("shape"), KeyError("x"), OSError("odd"), BadInput("no", hint="h")]
)
def test_any_other_error_stays_what_it_is(error: BaseException) -> None:
    assert refusals.explained(error) is None


def msft(
    words: list[str], before: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = f"{before} exec '{sys.executable}' -m cli.main " + " ".join(f"'{word}'" for word in words)
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )  # fmt: skip


@pytest.mark.test_all
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a folder read-only takes root")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["eval", "--dataset", "x", "--measure", "P@2"], 0, "the values are not kept"),
        (["retrieve", "--dataset", "x"], 1, "read-only file system"),
        (["data", "add", "y", "--from", "{folder}/f"], 1, "read-only file system"),
        (["negatives", "mine", "--dataset", "x", "--run", "r"], 1, "read-only file system"),
    ],
)
def test_a_read_only_file_system_is_named(
    store: LabelStore, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    mounted = f"mount --bind '{tmp_path}' '{tmp_path}' && mount -o remount,ro,bind '{tmp_path}' || exit 99;"
    words = [word.format(folder=tmp_path) for word in words]
    command = [*words, "--store", str(store.path)]
    inner = f"{mounted} exec '{sys.executable}' -m cli.main " + " ".join(f"'{word}'" for word in command)
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", inner], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "damage" not in done.stderr
    if code == 0:
        assert "1.0000" in done.stdout or "0.5000" in done.stdout


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("before", "environment", "words", "said"),
    [
        ("", {"MSFT_MEMORY": "1MB"}, ["data", "add", "y", "--from", "{folder}/f"], "too little memory"),
        ("", {"MSFT_MEMORY": "much"}, ["status"], "MSFT_MEMORY is 'much'"),
        ("ulimit -f 8;", {}, ["data", "add", "y", "--from", "{folder}/f"], "there is no room"),
        # Too little for DuckDB, and for what numpy is linked against. Beyond these, a library may end the process itself.
        ("ulimit -v 70000;", {}, ["retrieve", "--dataset", "x"], "too little memory"),
        ("ulimit -v 140000;", {}, ["retrieve", "--dataset", "x"], "too little memory"),
    ],
)
def test_a_limit_is_named(
    store: LabelStore, tmp_path: Path, before: str, environment: dict[str, str], words: list[str], said: str
) -> None:
    words = [word.format(folder=tmp_path) for word in words]
    done = msft([*words, "--store", str(store.path)], before, environment)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.test_all
def test_sixty_four_descriptors_are_enough_to_measure(store: LabelStore) -> None:
    done = msft(["eval", "--dataset", "x", "--measure", "P@1", "--store", str(store.path)], "ulimit -n 64;")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["w?hat/s.duckdb", "s?.duckdb", "back\\slash/s.duckdb", "a\\b?c.duckdb"])
def test_a_path_that_duckdb_cannot_take_is_refused_before_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="DuckDB cannot take a path with"):
        LabelStore(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.test_all
@pytest.mark.parametrize("name", ["a[1]", "st*r", "it's", "b{x}", "50%", "ümlaut", "a;b", "with space"])
def test_other_odd_folders_work(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    store = LabelStore(tmp_path / name / "s.duckdb")
    fill(store, tmp_path / "f", ["cats purr", "dogs bark"], ["cats", "dogs"])
    retrieval.retrieve(store, "x", Bm25s(), 5)
    assert evaluation.evaluate(store, "x", measures=["P@1"])[0]["value"] == 1.0


def student(store: LabelStore) -> lookup.Student:
    folder = store.folder("students") / "st"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return lookup.Student(
        **dict.fromkeys(lookup.Student.__dataclass_fields__) | {"name": "st", "folder": "students/st"}
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("link", ["link.duckdb", "other/link.duckdb", "chain.duckdb"])
def test_a_linked_store_is_the_file_that_the_link_leads_to(
    store: LabelStore, tmp_path: Path, link: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "first.duckdb").symlink_to(store.path)
    (tmp_path / link).symlink_to(tmp_path / "first.duckdb")
    found = student(store)
    linked = LabelStore(tmp_path / link)
    assert student_folder(linked, found) == store.files / "students/st"
    with linked.write() as con:
        con.execute("UPDATE datasets SET source = 'elsewhere'")
    assert not list((tmp_path / link).parent.glob("link.duckdb.*"))


@pytest.mark.parametrize("name", ["new.duckdb", "a b.duckdb", "noending"])
def test_a_renamed_store_is_told_the_folder_of_its_old_name(
    store: LabelStore, tmp_path: Path, name: str
) -> None:
    found = student(store)
    store.path.rename(tmp_path / name)
    with pytest.raises(DataMissing, match="is not at") as error:
        student_folder(LabelStore(tmp_path / name), found)
    assert error.value.hint is not None
    assert f"{tmp_path}/s.files holds it" in error.value.hint


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "device"])
def test_a_target_that_is_no_plain_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
        with pytest.raises(UsageError, match="is a folder"), formats.create(target) as out:
            out.write("x")
    elif kind == "link":
        target.symlink_to(tmp_path / "real")
        with formats.create(target) as out:
            out.write("x")
        assert target.is_symlink()
        assert (tmp_path / "real").read_text() == "x"
    elif kind == "fifo":
        os.mkfifo(target)
        reader = subprocess.Popen(["cat", str(target)], stdout=subprocess.PIPE, text=True)
        with formats.create(target) as out:
            out.write("x")
        assert reader.communicate(timeout=10)[0] == "x"
        assert stat.S_ISFIFO(target.stat().st_mode)
    else:
        with formats.create(Path(os.devnull)) as out:
            out.write("x")
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize(
    ("texts", "query", "code"),
    [
        (["東京は日本の首都です", "猫が好き"], "日本の首都", "ja"),
        (["北京是中国的首都", "我们去公园散步"], "公园", "zh"),
        (["ここはカフェテリアです", "犬が走る"], "カフェ", "ja"),
    ],
)
@pytest.mark.parametrize("language", ["english", "none", "german"])
def test_bm25s_says_that_it_does_not_segment_a_script(
    tmp_path: Path, texts: list[str], query: str, code: str, language: str
) -> None:
    store = LabelStore(tmp_path / "s.duckdb")
    fill(store, tmp_path / "f", texts, [query])
    with pytest.raises(BadInput, match="does not segment this script") as error:
        retrieval.retrieve(store, "x", Bm25s(language=language), 5)
    assert error.value.hint == f"msft retrieve --dataset x --retriever bm25 --language {code}"


@pytest.mark.parametrize(
    ("language", "code"), [("ja", "ja"), ("Japanese", "ja"), ("thai", "th"), ("zh", "zh")]
)
def test_a_language_that_bm25s_cannot_segment_names_the_retriever_that_can(language: str, code: str) -> None:
    with pytest.raises(UsageError, match="does not segment") as error:
        Bm25s(language=language)
    assert error.value.hint == f"--retriever bm25 --language {code}"
