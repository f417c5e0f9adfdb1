"""The bill beforehand against the bill afterwards; and noticing that a model is no longer the one it was."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Completion, Request
from teachers.generate.dry_run import Bill, forecast
from teachers.generate.job import Labelled, generate
from teachers.generate.settings import Settings
from teachers.scheduling.forecast import forecast as pure_forecast
from teachers.strategies.by_name import strategy
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

LENGTHS = [100, 95, 40, 25, 20, 5, 1, 60]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.tiny_mistral import make as make_model

    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 16, length=lambda k: LENGTHS[k % 8], words=40)


class Tokenised(ScriptedEngine):
    """Replies from a script, prompts with the model's own tokenizer, under vLLM's name."""

    name = "vllm"

    def __init__(self, model: Path, reply: Any = hashed_order) -> None:
        from transformers import AutoTokenizer

        super().__init__(reply)
        self.tokenizer = AutoTokenizer.from_pretrained(model)


def both(store: LabelStore, model: Path, **settings: Any) -> tuple[Bill, Labelled]:
    own = Settings(model=str(model), canaries=0, **settings)
    beforehand = forecast(store, own)
    return beforehand, generate(store, own, engine=Tokenised(model))


@pytest.mark.test_all
@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "sliding"},
        {"strategy": "sliding", "window": 10, "stride": 4},
        {"strategy": "single"},
        {"strategy": "full"},
        {"strategy": "full", "depth": 30},
        {"strategy": "tournament"},
        {"strategy": "single", "samples": 3},
    ],
)
def test_calls_and_tokens_are_as_forecast(store: LabelStore, model: Path, settings: dict[str, Any]) -> None:
    beforehand, afterwards = both(store, model, **settings)
    own, figures = beforehand.forecast, afterwards.figures
    assert beforehand.exact_tokens
    assert own.calls_least == own.calls_most == figures.calls
    assert figures.tokens_in == pytest.approx(own.tokens_in, rel=0.01)
    if settings["strategy"] in ("single", "full") and "samples" not in settings:
        assert figures.tokens_in == own.tokens_in, "these windows do not depend on replies"
    assert 0 < figures.tokens_out <= own.tokens_out_most


@pytest.mark.test_all
def test_top_down_stays_within_what_it_stated(store: LabelStore, model: Path) -> None:
    beforehand, afterwards = both(store, model, strategy="top-down")
    own = beforehand.forecast
    assert own.calls_least < own.calls_most
    assert own.calls_least <= afterwards.figures.calls <= own.calls_most


@pytest.mark.test_all
def test_a_dry_run_writes_nothing_and_a_rerun_costs_nothing(store: LabelStore, model: Path) -> None:
    before = store.path.read_bytes()
    own = Settings(model=str(model), canaries=0, input_price=2.0, output_price=10.0)
    first = forecast(store, own)
    assert store.path.read_bytes() == before
    assert first.cost_most == pytest.approx(
        (2.0 * first.forecast.tokens_in + 10.0 * first.forecast.tokens_out_most) / 1e6
    )
    assert first.seconds is None, "no rate has been measured"
    part = generate(store, Settings(model=str(model), canaries=0, max_calls=40), engine=Tokenised(model))
    rest = forecast(store, own)
    assert rest.forecast.calls_most == first.forecast.calls_most - part.figures.calls
    assert rest.tokens_per_second is not None
    assert rest.seconds is not None
    generate(store, own, engine=Tokenised(model))
    done = forecast(store, own)
    assert (done.forecast.queries, done.forecast.calls_most, done.forecast.tokens_in) == (0, 0, 0)
    again = forecast(store, Settings(model=str(model), canaries=0, name="other"))
    assert again.forecast.recorded == first.forecast.calls_most
    assert again.forecast.calls_most == 0


def test_a_sample_stands_for_all_within_its_error() -> None:
    lengths = [20 + (k * 37) % 81 for k in range(2000)]

    def render(number: int, window: Any) -> Request:
        return Request(
            key=f"{number}", n_prompt_tokens=sum(50 + (number * 7 + i) % 60 for i in window), max_tokens=9
        )

    whole = pure_forecast(strategy("sliding"), lengths, render, sample=10_000)
    part = pure_forecast(strategy("sliding"), lengths, render, sample=200)
    assert whole.tokens_in_error == 0
    assert part.calls_most == whole.calls_most
    assert 0 < part.tokens_in_error < 0.02 * whole.tokens_in
    assert abs(part.tokens_in - whole.tokens_in) < 4 * part.tokens_in_error


@pytest.mark.test_all
@pytest.mark.needs("shared")
def test_sliding_on_real_text_is_within_one_percent(tmp_path: Path, shared: Path, model: Path) -> None:
    from cli.main import app

    source = shared / "dl19-passage"
    for arguments in (
        ["data", "add", "dl19", "--from", str(source)],
        ["runs", "import", str(source / "runs" / "bm25.run.gz"), "--dataset", "dl19", "--name", "bm25"],
    ):
        app([*arguments, "--store", str(tmp_path / "s.duckdb"), "-q"], standalone_mode=False)
    beforehand, afterwards = both(LabelStore(tmp_path / "s.duckdb"), model, limit=15)
    assert beforehand.forecast.calls_most == afterwards.figures.calls == 15 * 9
    assert afterwards.figures.tokens_in == pytest.approx(beforehand.forecast.tokens_in, rel=0.01)


def reversing(request: Request) -> str:
    return " > ".join(reversed(hashed_order(request).split(" > ")))


@pytest.mark.test_all
def test_canaries_notice_another_model(store: LabelStore) -> None:
    notes: list[str] = []

    def start(reply: Any, limit: int) -> Labelled:
        return generate(
            store, Settings(model="rankzephyr", limit=limit), engine=ScriptedEngine(reply), note=notes.append
        )

    assert start(hashed_order, 1).drifted == 0
    assert start(hashed_order, 2).drifted == 0
    assert not any("canaries" in note for note in notes)
    assert start(reversing, 3).drifted == 3
    assert any("3 of 3 canaries" in note for note in notes)
    with store.read() as con:
        found = con.execute(
            "SELECT job, count(*), count(*) FILTER (WHERE drifted), count(DISTINCT request_key) FROM canaries GROUP BY 1 ORDER BY 1"
        ).fetchall()
        assert [(n, drifted, keys) for _, n, drifted, keys in found] == [(3, 0, 3), (3, 0, 3), (3, 3, 3)]
        assert con.execute("SELECT count(*) FROM calls").fetchall()[0][0] > 0


def test_canaries_that_fail_say_nothing(store: LabelStore) -> None:
    notes: list[str] = []

    def reply(request: Request) -> str | Completion:
        return Completion(0, error="no") if len(request.identifiers) < 7 else hashed_order(request)

    result = generate(
        store, Settings(model="rankzephyr", limit=1), engine=ScriptedEngine(reply), note=notes.append
    )
    assert result.labelled == 1
    assert result.drifted == 0
    assert any("3 of 3 canaries failed" in note for note in notes)


def test_canaries_count_towards_tokens(store: LabelStore) -> None:
    engine = ScriptedEngine(hashed_order)
    result = generate(store, Settings(model="rankzephyr", max_tokens=600), engine=engine)
    assert engine.answered == 0
    assert result.labelled <= 2, "only lists of one passage need no call"
    assert result.figures.stopped == "--max-tokens"
