"""The openai engine against real sockets: bad servers cost no call, bad requests cost no server, keys stay secret."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from openai_servers import Answer, good, serving

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Completion, Request, Sampling
from teachers.engines.breaker import Breaker, retry_after
from teachers.engines.openai import OpenAIEngine
from teachers.errors import TeacherError
from teachers.generate.job import Labelled, generate
from teachers.generate.settings import Settings


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MSFT_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def requests(n: int) -> list[Request]:
    message = "\n".join(f"[{i}] text" for i in range(1, 6))
    return [
        Request(key=str(k), messages=[{"role": "user", "content": f"{message}\nquery {k}"}], max_tokens=30, ticket=k)
        for k in range(n)
    ]  # fmt: skip


def collect(engine: OpenAIEngine, n: int, seconds: float = 30.0) -> dict[int, Completion]:
    done: dict[int, Completion] = {}
    deadline = time.monotonic() + seconds
    while len(done) < n and time.monotonic() < deadline:
        for completion in engine.poll(0.1):
            assert completion.ticket not in done
            done[completion.ticket] = completion
    return done


def ask(urls: list[str], n: int = 10, **options: Any) -> dict[int, Completion]:
    engine = OpenAIEngine("tiny", urls, Sampling(), **options)
    try:
        engine.submit(requests(n))
        return collect(engine, n)
    finally:
        engine.close()


def test_many_servers_share_the_work() -> None:
    def slow(k: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.02)
        return good(body)

    with serving(slow) as one, serving(slow) as two, serving(slow) as three:
        done = ask([one.url, two.url, three.url], 60, in_flight=4)
        assert len(done) == 60
        assert all(c.error is None for c in done.values())
        assert min(len(s.asked) for s in (one, two, three)) > 10
        assert {c.server for c in done.values()} == {f"127.0.0.1:{s.port}" for s in (one, two, three)}
        assert max(s.most_busy for s in (one, two, three)) <= 4


def test_rate_limits_are_waited_out_and_cost_no_attempt() -> None:
    times: list[float] = []

    def limited(k: int, body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return (429, {"Retry-After": "0.6"}, {"error": {"message": "slow down"}}) if k == 1 else good(body)

    with serving(limited) as server:
        done = ask([server.url], 3, in_flight=1)
    assert all(c.error is None for c in done.values())
    assert times[1] - times[0] >= 0.6


@pytest.mark.test_all
@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_a_failing_server_is_left_alone_and_another_takes_over(status: int) -> None:
    with serving(lambda k, body: (status, {}, "broken")) as bad, serving() as fine:
        done = ask([bad.url, fine.url], 40, in_flight=2)
        assert all(c.error is None for c in done.values())
        assert len(done) == 40
        assert len(bad.asked) < 10, "the circuit opened"


def test_a_server_that_hangs_up_is_no_end() -> None:
    with serving(lambda k, body: None if k % 2 else good(body)) as server:
        done = ask([server.url], 10, in_flight=1)
    assert len(done) == 10
    assert all(c.error is None for c in done.values())


@pytest.mark.test_all
def test_a_server_that_comes_back_is_used_again() -> None:
    with serving(lambda k, body: (503, {}, "starting") if k <= 4 else good(body)) as server:
        done = ask([server.url], 10, in_flight=2)
    assert len(done) == 10
    assert all(c.error is None for c in done.values())


@pytest.mark.test_all
def test_when_all_servers_are_gone_the_engine_gives_up() -> None:
    with serving(lambda k, body: (503, {}, "down for good")) as server:
        engine = OpenAIEngine("tiny", [server.url], Sampling(), in_flight=2, patience=0.5)
        engine.submit(requests(2))
        with pytest.raises(TeacherError, match="no server has answered") as caught:
            collect(engine, 2)
        engine.close()
    assert caught.value.exit_code == 5
    assert "down for good" in str(caught.value)


def test_no_reply_in_time_is_the_calls_failure() -> None:
    def hang(k: int, body: dict[str, Any]) -> Answer:
        if k == 1:
            time.sleep(1.5)
        return good(body)

    with serving(hang) as server:
        done = ask([server.url], 4, in_flight=4, timeout=0.5)
    errors = [c for c in done.values() if c.error]
    assert len(errors) == 1
    assert errors[0].error == "no reply in time"
    assert errors[0].retryable


@pytest.mark.parametrize(
    "body",
    ["not json", {"choices": []}, {"choices": [{"message": None}]}, [], {"error": {"message": "oops"}}],
)
def test_an_answer_that_is_none_is_the_calls_failure(body: Any) -> None:
    with serving(lambda k, asked: (200, {}, body)) as server:
        done = ask([server.url], 1)
    assert done[0].error is not None
    assert done[0].text is None


def test_a_rejected_request_is_not_tried_again() -> None:
    with serving(lambda k, body: (400, {}, {"error": {"message": "maximum context length is 10"}})) as server:
        done = ask([server.url], 1)
        assert len(server.asked) == 1
    assert not done[0].retryable
    assert "maximum context length" in (done[0].error or "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}, {"error": {"message": "Incorrect API key provided: sk-abcdefghij"}}), "refused the key"),
        ((429, {}, {"error": {"message": "pay", "code": "insufficient_quota"}}), "quota"),
        ((404, {}, {"error": {"message": "no model tiny"}}), "does not know"),
    ],
)
def test_what_no_request_can_pass_ends_the_job(answer: Answer, words: str) -> None:
    with serving(lambda k, body: answer) as server:
        engine = OpenAIEngine("tiny", [server.url], Sampling(), in_flight=2)
        engine.submit(requests(1))
        with pytest.raises(TeacherError, match=words) as caught:
            collect(engine, 1)
        engine.close()
    assert caught.value.exit_code == 5
    assert "sk-abc" not in str(caught.value)


def test_preflight_names_what_is_wrong() -> None:
    with pytest.raises(TeacherError, match="no server answers"):
        OpenAIEngine("tiny", ["http://127.0.0.1:9/v1"], Sampling())
    with pytest.raises(TeacherError, match="not an http URL"):
        OpenAIEngine("tiny", ["localhost:8000"], Sampling())
    with serving() as server:
        with pytest.raises(TeacherError, match="does not serve") as caught:
            OpenAIEngine("other", [server.url], Sampling())
        assert "tiny" in (caught.value.hint or "")
        engine = OpenAIEngine("tiny", [server.url], Sampling(), in_flight=1)
        assert engine.context == 4096
        engine.close()


def test_keys_come_from_the_environment_and_go_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-strangers")
    with serving() as server:
        ask([server.url], 1)
        assert "Authorization" not in server.headers[0], "OPENAI_API_KEY is for api.openai.com alone"
        monkeypatch.setenv("MSFT_API_KEY", "sk-secret-secret")
        store = make(tmp_path / "s.duckdb", 2)
        credentials = server.url.replace("http://", "http://user:hidden-word@")
        run(store, [server.url, credentials])
        assert {h.get("Authorization") for h in server.headers[1:]} == {
            "Bearer sk-secret-secret", "Basic dXNlcjpoaWRkZW4td29yZA=="
        }  # fmt: skip
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert b"sk-secret" not in data
        assert b"hidden-word" not in data


def run(store: LabelStore, urls: list[str], **settings: Any) -> Labelled:
    return generate(
        store, Settings(model="tiny", engine="openai", base_urls=tuple(urls), canaries=0, **settings)
    )


@pytest.mark.test_all
def test_a_whole_job_over_bad_servers(tmp_path: Path) -> None:
    """One server fails at random, one limits, one is fine; every query is labelled, and nothing is asked twice."""

    def shaky(k: int, body: dict[str, Any]) -> Answer | None:
        return [None, (500, {}, "x"), (429, {"Retry-After": "0.01"}, "y"), good(body)][k % 4]

    store = make(tmp_path / "s.duckdb", 12)
    with (
        serving(shaky) as one,
        serving() as two,
        serving(lambda k, body: (200, {}, "?") if k % 9 == 0 else good(body)) as three,
    ):
        result = run(store, [one.url, two.url, three.url], max_in_flight=4, max_attempts=5)
    assert result.labelled == 12
    with store.read() as con:
        good_calls, distinct = con.execute(
            "SELECT count(*), count(DISTINCT request) FROM calls WHERE status = 'ok'"
        ).fetchall()[0]
        assert good_calls == distinct == 108
        (failed,) = con.execute("SELECT count(*) FROM calls WHERE status = 'engine_error'").fetchall()[0]
        assert failed == result.figures.retried > 0
        counted = con.execute(
            "SELECT DISTINCT finish_reason, tokens_in >= 100 FROM calls WHERE status = 'ok'"
        )
        assert counted.fetchall() == [("stop", True)], "the server's own counts"


def test_first_token_scoring_over_a_server(tmp_path: Path) -> None:
    def letters(k: int, body: dict[str, Any]) -> Answer:
        top = [{"token": letter, "logprob": -i / 10} for i, letter in enumerate("CABDEFGHIJKLMNOPQRST")]
        status, headers, answer = good(body, reply="C")
        answer["choices"][0]["logprobs"] = {"content": [{"token": "C", "top_logprobs": top}]}
        return status, headers, answer

    store = make(tmp_path / "s.duckdb", 2, length=lambda k: 20)
    with serving(letters) as server:
        server.models = (404, {}, "no list")
        result = generate(
            store, Settings(model="first", engine="openai", base_urls=(server.url,), canaries=0, limit=1)
        )
        body = server.asked[0]
    assert result.labelled == 1
    assert body["messages"][-1] == {"role": "assistant", "content": "["}
    assert body["continue_final_message"] is True
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
    with store.read() as con:
        initial = con.execute("SELECT initial_rank FROM permutation_items ORDER BY rank LIMIT 4").fetchall()
    assert initial == [(3,), (1,), (2,), (4,)]


def test_a_text_prompt_goes_to_completions(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 1, length=lambda k: 5)
    with serving() as server:
        server.models = (200, {}, {"data": []})
        result = generate(
            store,
            Settings(model="rankvicuna", engine="openai", base_urls=(server.url,), canaries=0),
        )
        assert result.labelled == 1
        assert server.asked[0]["prompt"].endswith("ASSISTANT:")
        assert "messages" not in server.asked[0]


def test_retry_after_in_both_forms() -> None:
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "-3"}) == 0.0
    assert retry_after({"retry-after": "99999"}) == 600.0
    assert retry_after({}) is None
    for odd in ("soon", "nan", ""):
        assert retry_after({"retry-after": odd}) is None
    later = retry_after({"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=30))})
    assert later is not None
    assert 25 <= later <= 30


def test_the_breaker_opens_probes_and_closes() -> None:
    breaker = Breaker(threshold=3, first_pause=10.0)
    for _ in range(2):
        breaker.failed("no")
    now = time.monotonic()
    assert breaker.allows(now)
    breaker.failed("no")
    assert not breaker.healthy
    assert not breaker.allows(now)
    later = now + 20
    assert breaker.allows(later)
    breaker.asked()
    assert not breaker.allows(later), "one probe at a time"
    breaker.failed("still no")
    assert breaker.opens_in(now) > 14, "the pause grew"
    breaker.asked()
    breaker.succeeded()
    assert breaker.healthy


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    from benchmarks.vllm_server import served

    with served(tmp_path_factory.mktemp("served")) as (url, folder):
        yield url, folder


@pytest.mark.needs("vllm")
def test_a_real_vllm_server(tmp_path: Path, vllm_server: tuple[str, Path]) -> None:
    """Over loopback: single-token scoring, whole rankings under the constraint that the server loaded, free replies."""
    url, folder = vllm_server
    store = make(tmp_path / "s.duckdb", 3, length=lambda k: 12)
    common: dict[str, Any] = {"model": "tiny", "engine": "openai", "base_urls": (url,), "canaries": 0}
    scored = generate(store, Settings(**common, prompt="first", name="scored"))
    bound = generate(store, Settings(**common, name="bound", constrained=True, tokenizer=str(folder)))
    short = generate(
        store,
        Settings(**common, name="short", constrained=True, top=3, tokenizer=str(folder), strategy="single"),
    )
    free = generate(store, Settings(**common, name="free", max_attempts=1))
    assert scored.labelled + scored.quarantined == 3
    assert (bound.labelled, bound.statuses) == (3, {"ok": 3})
    assert (short.labelled, short.statuses) == (3, {"ok": 3})
    assert short.figures.tokens_out < bound.figures.tokens_out / 2
    assert free.quarantined == 3, "a random model does not rank"
    with store.read() as con:
        rows = con.execute(
            """SELECT t.prompt, c.status, c.tokens_in, c.tokens_out, c.seconds, c.server, len(c.scores) FROM calls c
               JOIN requests r USING (request) JOIN teachers t USING (teacher)"""
        ).fetchall()
        settled = con.execute(
            "SELECT DISTINCT settled FROM permutations JOIN labelings USING (labeling) WHERE name = 'short'"
        )
        assert settled.fetchall() == [(3,)]
    assert len(rows) >= 12
    for prompt, status, tokens_in, tokens_out, seconds, server, n_scores in rows:
        assert tokens_in > 300
        assert seconds > 0
        assert server == url.split("/")[2]
        if prompt == "first@1" and status in ("ok", "repaired"):
            assert (tokens_out, n_scores) == (1, 12)


def test_a_server_is_constrained_by_the_models_tokenizer_alone(tmp_path: Path) -> None:
    with serving() as server, pytest.raises(TeacherError, match="tokenizer is not known") as caught:
        run(make(tmp_path / "s.duckdb", 1), [server.url], constrained=True)
    assert "--tokenizer" in (caught.value.hint or "")
