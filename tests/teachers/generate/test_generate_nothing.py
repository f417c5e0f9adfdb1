"""A labelling job that fails before its first call is answered leaves no labeling behind."""

from collections.abc import Callable
from pathlib import Path

import openai_servers
import pytest

from benchmarks.labelling_store import make
from cli.main import run
from labelstore.errors import BadInput
from teachers.errors import TeacherError
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

SETTINGS = Settings(model="rankzephyr", canaries=0)


def fails(error: BaseException) -> Callable[..., ScriptedEngine]:
    def build(_: object) -> ScriptedEngine:
        raise error

    return build


@pytest.mark.parametrize(
    "error",
    [TeacherError("no server"), OSError("no such library"), KeyboardInterrupt(), BadInput("no model")],
    ids=lambda error: type(error).__name__,
)
def test_a_job_without_an_answer_leaves_no_labeling(tmp_path: Path, error: BaseException) -> None:
    store = make(tmp_path / "s.duckdb", 3)
    with pytest.raises(type(error)):
        generate(store, SETTINGS, build=fails(error))
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM labelings").fetchall() == [(0,)]


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["--base-url", "http://127.0.0.1:1/v1"], ["tiny"]),
        (["--base-url", "{server}", "--prompt", "nothing@1"], ["tiny"]),
        (["--base-url", "{server}"], ["another"]),
        (["--base-url", "{server}", "--context", "50"], ["tiny"]),
        (["--base-url", "{server}", "--run", "nowhere"], ["tiny"]),
        (["--engine", "bi-encoder", "--model", "{folder}"], ["tiny"]),
    ],
)
def test_a_command_that_fails_before_its_first_call_leaves_no_labeling(
    tmp_path: Path, words: list[str], models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = make(tmp_path / "s.duckdb", 3)
    with openai_servers.serving() as server:
        server.models = (200, {}, {"data": [{"id": name} for name in models]})
        filled = [word.format(server=server.url, folder=tmp_path) for word in words]
        plain = ["--model", "tiny", "--engine", "openai", "--prompt", "rankzephyr@1", "--timeout", "5"]
        command = ["teachers", "generate", *plain, *filled, "--name", "l", "--store", str(store.path), "-q"]
        with pytest.raises(SystemExit) as ended:
            run(command)
        assert not server.asked
    assert ended.value.code in (1, 2, 4, 5)
    err = capsys.readouterr().err
    assert "error: " in err
    assert "--debug" not in err
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM labelings").fetchall() == [(0,)]


def test_a_job_that_fails_over_a_labeling_with_content_leaves_it(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 3)
    first = Settings(model="rankzephyr", canaries=0, limit=1)
    generate(store, first, build=lambda _: ScriptedEngine(hashed_order))
    with pytest.raises(TeacherError):
        generate(store, SETTINGS, build=fails(TeacherError("no server")))
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM labelings").fetchall() == [(1,)]
        assert con.execute("SELECT count(*) FROM permutations").fetchall() == [(1,)]
