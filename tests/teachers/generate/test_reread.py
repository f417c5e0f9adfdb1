"""`msft teachers reread`: replies that an older parser read otherwise, read by today's, in real stores."""

import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import forked
import pytest
from typer.testing import CliRunner

from benchmarks.labelling_store import make
from cli.main import app
from labelstore.errors import DataMissing, MsftError
from labelstore.store.job_lock import labeling_alone
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify
from teachers.engines.base import Completion, Request
from teachers.generate.job import Labelled, generate
from teachers.generate.plan import Settings
from teachers.generate.reread import Done, reread
from teachers.generate.stored_replies import changed_readings
from teachers.prompts import replies
from teachers.prompts.replies import Parsed
from tests.helpers.scripted_engine import ScriptedEngine

LABELS = "rankzephyr@first"


def old_parse(text: str, n: int, **options: Any) -> Parsed:
    """A parser as one was: a bare list in brackets loses its best, an array is not read, two names are a ranking."""
    names = [int(a or b) - 1 for a, b in re.findall(r"\[(\d+)\]|(?<![\[\d])(\d+)(?=\s*>|\])", text)]
    order = list(dict.fromkeys(k for k in names if 0 <= k < n))
    if len(order) < min(2, n):
        return Parsed(None, replies.WRONG_FORMAT, n)
    missing = [k for k in range(n) if k not in order]
    if not missing and len(names) == n and text.startswith("[") and text.endswith("]"):
        return Parsed(tuple(order), replies.OK)
    return Parsed((*order, *missing), replies.REPAIRED, len(missing))


def old_first(logprobs: Any, n: int) -> tuple[Parsed, tuple[float | None, ...]]:
    scores = tuple(logprobs.get("ABCDEFGHIJKLMNOPQRST"[k]) for k in range(n))
    named = sorted((k for k in range(n) if scores[k] is not None), key=lambda k: -(scores[k] or 0.0))
    missing = [k for k in range(n) if scores[k] is None]
    return Parsed((*named, *missing), replies.REPAIRED if missing else replies.OK, len(missing)), scores


@contextmanager
def an_older_parser() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replies, "parse", old_parse)
        patch.setattr(replies, "from_logprobs", old_first)
        yield


def replies_of(*forms: str) -> Callable[[Request], str]:
    """A reply that depends on nothing but the request: a random order in one of the forms."""

    def reply(request: Request) -> str:
        chance = Random(request.key)
        shown = list(request.identifiers)
        chance.shuffle(shown)
        form = chance.choice(forms)
        if form == "few":
            shown = shown[: max(len(shown) // 4, 2)]
        joined = " > ".join(shown)
        return {
            "plain": " > ".join(f"[{name}]" for name in shown),
            "few": " > ".join(f"[{name}]" for name in shown),
            "bracket": f"[{joined}]",
            "array": f"[{', '.join(shown)}]",
            "refusal": "I'm sorry, I cannot rank these.",
        }[form]

    return reply


def letters(request: Request) -> Completion:
    chance = Random(request.key)
    named = [name for name in request.identifiers if chance.random() < 0.6]
    return Completion(-1, "", "stop", logprobs={name: -chance.random() for name in named})


def run(store: LabelStore, reply: Callable[[Request], Any], **settings: Any) -> Labelled:
    given = {"model": "rankzephyr", "canaries": 0, "max_attempts": 1} | settings
    return generate(store, Settings(**given), engine=ScriptedEngine(reply))


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


ORDERS = """SELECT l.name, q.query_id, p.status, p.repairs, p.n_calls, p.tokens_in, p.tokens_out, p.settled, p.content_hash
            FROM permutations p JOIN labelings l USING (labeling) JOIN queries q USING (query) ORDER BY ALL"""
PINS = """SELECT l.name, q.query_id, i.rank, i.text_hash, i.initial_rank FROM permutation_items i
          JOIN permutations p USING (permutation) JOIN labelings l USING (labeling) JOIN queries q USING (query) ORDER BY ALL"""
SET_ASIDE = "SELECT query_id, step, reason, detail FROM quarantine JOIN queries q USING (query) ORDER BY ALL"
CALLS = """SELECT request_key, status, reply, parsed, n_missing, n_repeated, n_out_of_range, tokens_in, tokens_out
           FROM calls JOIN requests USING (request) ORDER BY ALL"""
EVERYTHING = (
    ORDERS,
    PINS,
    SET_ASIDE,
    CALLS,
    "SELECT labeling, query, step, call FROM labeling_calls ORDER BY ALL",
)


def content(store: LabelStore) -> list[Any]:
    return [rows(store, sql) for sql in EVERYTHING]


def lengths(k: int) -> int:
    return [40, 12, 25, 20, 3, 60][k % 6]


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("forms", "settings"),
    [
        (("plain", "bracket"), {"strategy": "single"}),
        (("plain", "array"), {"strategy": "single"}),
        (("plain", "few", "refusal"), {"strategy": "single"}),
        (("plain", "bracket", "array", "few"), {"strategy": "sliding"}),
        (("bracket",), {"strategy": "sliding", "window": 10, "stride": 4, "passes": 2}),
        (("plain", "plain", "array"), {"strategy": "top-down"}),
        (("plain", "bracket", "array"), {"strategy": "tournament"}),
        (("bracket", "array"), {"strategy": "single", "samples": 3}),
        (("plain", "array"), {"strategy": "full", "depth": 12}),
        (("letters",), {"model": "first", "strategy": "sliding"}),
    ],
)
def test_replies_read_again_and_the_rest_asked_give_what_todays_parser_gives(
    tmp_path: Path, forms: tuple[str, ...], settings: dict[str, Any]
) -> None:
    reply: Callable[[Request], Any] = letters if forms == ("letters",) else replies_of(*forms)
    old, new = (make(tmp_path / f"{name}.duckdb", 12, length=lengths) for name in ("old", "new"))
    with an_older_parser():
        name = run(old, reply, **settings).plan.name
    run(new, reply, **settings)
    assert content(old) != content(new)
    found, _ = changed_readings(old)
    assert [one.labeling for one in found] == [name]

    done = reread(old, name)
    assert done.changes
    assert sum(done.labelings[name].values()) == found[0].n_queries
    assert changed_readings(old) == ([], set())
    assert reread(old, name).changes == []
    engine = ScriptedEngine(reply)
    given = {"model": "rankzephyr", "canaries": 0, "max_attempts": 1} | settings
    generate(old, Settings(**given), engine=engine)
    assert (engine.answered > 0) == (done.labelings[name]["to_ask"] > 0)
    assert rows(old, ORDERS) == rows(new, ORDERS)
    assert rows(old, PINS) == rows(new, PINS)
    assert [row[:3] for row in rows(old, SET_ASIDE)] == [row[:3] for row in rows(new, SET_ASIDE)]
    assert verify(old).findings == []


@pytest.mark.test_all
def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 18, length=lengths)
    with an_older_parser():
        run(store, replies_of("plain", "bracket", "array", "few"))
    before = content(store)
    jobs = rows(store, "SELECT count(*) FROM provenance")
    said = reread(store, LABELS, dry_run=True)
    assert (content(store), rows(store, "SELECT count(*) FROM provenance")) == (before, jobs)
    done = reread(store, LABELS)
    assert (said.n_read, said.statuses, said.labelings) == (done.n_read, done.statuses, done.labelings)
    assert min(done.labelings[LABELS][kind] for kind in ("changed", "quarantined", "to_ask")) > 0, (
        done.labelings
    )


@pytest.mark.test_all
def test_what_was_read_and_what_became_of_it_is_in_provenance(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 12, length=lengths)
    with an_older_parser():
        run(store, replies_of("bracket", "array"), strategy="single")
    done = reread(store, LABELS)
    ((job, status),) = rows(store, "SELECT job, status FROM provenance WHERE kind = 'teachers.reread'")
    assert status == "done"
    filters = rows(store, f"SELECT step, subject, n_in, n_kept FROM filters WHERE job = {job} ORDER BY step")
    counts = done.labelings[LABELS]
    assert filters == [
        (
            "reread lists",
            LABELS,
            sum(counts.values()),
            sum(counts.values()) - counts["quarantined"] - counts["to_ask"],
        ),
        ("reread replies", LABELS, done.n_read, done.n_read - len(done.changes)),
    ]
    assert set(done.statuses) == {"repaired in another order", "wrong_format to repaired"}


@pytest.mark.test_all
def test_labelings_that_share_replies_are_read_anew_together(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 12, length=lengths)
    reply = replies_of("plain", "bracket")
    with an_older_parser():
        run(store, reply, strategy="single")
        run(store, reply, strategy="single", name="again")
    with labeling_alone(store, "again"), pytest.raises(MsftError, match="again is being made"):
        reread(store, LABELS)
    assert set(reread(store, LABELS).labelings) == {LABELS, "again"}
    assert changed_readings(store) == ([], set())
    orders = rows(store, ORDERS)
    assert [row[1:] for row in orders if row[0] == "again"] == [row[1:] for row in orders if row[0] == LABELS]


@pytest.mark.test_all
@pytest.mark.parametrize("at", ["store_readings", "withdraw", "store_permutations", "store_labeling_calls"])
def test_killed_anywhere_it_has_changed_nothing(tmp_path: Path, at: str) -> None:
    store = make(tmp_path / "s.duckdb", 12, length=lengths)
    with an_older_parser():
        run(store, replies_of("plain", "bracket", "few"))
    before = content(store)
    script = f"""
import os, sys
from pathlib import Path
from labelstore.labels import write
from labelstore.store.label_store import LabelStore
from teachers.generate.reread import reread
write.{at} = lambda *a, **k: os.kill(os.getpid(), 9)
reread(LabelStore(Path(sys.argv[1])), {LABELS!r})
"""
    ended = forked.run([sys.executable, "-c", script, str(store.path)], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert content(store) == before
    assert reread(store, LABELS).changes
    assert changed_readings(store) == ([], set())


@pytest.mark.parametrize("error", ["[2] > [1] > [3]", "[3, 2, 1]", "Passage 2 > Passage 1 > Passage 3"])
def test_an_engines_error_is_never_read_as_a_reply(tmp_path: Path, error: str) -> None:
    store = make(tmp_path / "s.duckdb", 2, length=lambda k: 3)
    run(store, lambda request: Completion(-1, error=error, retryable=False))
    assert (reread(store, LABELS).n_read, rows(store, "SELECT count(*) FROM permutations")) == (0, [(0,)])


def imported(store: LabelStore, file: Path, layout: str, *options: str) -> int:
    command = ["teachers", "import", str(file), "--model", "t", "--name", "old", "--layout", layout, *options]
    return CliRunner().invoke(app, [*command, "--store", str(store.path)]).exit_code


def lines(*told: tuple[str, str]) -> str:
    """A file of replies over d1 … d5, a query each."""
    shown = [f"d{k}" for k in range(1, 6)]
    return "".join(json.dumps({"query_id": q, "initial": shown, "reply": reply}) + "\n" for q, reply in told)


@pytest.mark.test_all
@pytest.mark.parametrize(
    "told",
    [
        [("q0", "[2 > 1 > 3 > 5 > 4]"), ("q1", "[3] > [1] > [2] > [4] > [5]"), ("q2", "[1] > [3]")],
        [("q0", "So: [5 > 4 > 1 > 2 > 3]"), ("q1", "[2] > [1] > [0] > [3] > [4]"), ("q2", "[2] > [1] > [3]")],
        [("q3", "[4] > [4] > [2]"), ("q1", "1. [2]\n2. [1]\n3. [3]\n4. [5]\n5. [4]"), ("q5", "[4] [2]")],
    ],
)
def test_imported_replies_keep_their_order_until_they_are_read_again(
    tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    old, new = (make(tmp_path / f"{name}.duckdb", 6) for name in ("old", "new"))
    file = tmp_path / "replies.jsonl"
    file.write_text(lines(*told))
    with an_older_parser():
        assert imported(old, file, "replies") == 0
    imported(new, file, "replies")
    stored = content(old)
    assert stored != content(new)
    assert imported(old, file, "replies") != 0, "an import in another order says so, and changes nothing"
    assert content(old) == stored
    assert [one.labeling for one in changed_readings(old)[0]] == ["old"]
    reread(old, "old")
    assert [rows(old, sql) for sql in (ORDERS, PINS)] == [rows(new, sql) for sql in (ORDERS, PINS)]
    reasons = "SELECT query_id, step, reason FROM quarantine JOIN queries USING (query) ORDER BY ALL"
    assert rows(old, reasons) == rows(new, reasons)
    assert changed_readings(old) == ([], set())
    assert imported(old, file, "replies") in (0, 6)
    assert verify(old).findings == []


@pytest.mark.parametrize("named", [["d2", "d1"], ["d4", "d2", "d9"], ["d0"]])
def test_imported_lists_without_replies_say_so(tmp_path: Path, named: list[str]) -> None:
    store = make(tmp_path / "s.duckdb", 2)
    file = tmp_path / "old labels.jsonl"
    file.write_text(json.dumps({"query_id": "q0", "initial": named, "permutation": named}) + "\n")
    assert imported(store, file, "permutations") == 0
    with pytest.raises(DataMissing) as raised:
        reread(store, "old")
    hint = re.findall(r"`msft (.*)`", raised.value.hint or "")[0]
    again = shlex.split(hint.replace("'old labels.jsonl'", shlex.quote(str(file))))
    assert CliRunner().invoke(app, [*again, "--model", "t", "--store", str(store.path)]).exit_code == 0


@pytest.mark.test_all
def test_verify_tells_it_as_a_notice_with_a_hint_that_works(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 12, length=lengths)
    with an_older_parser():
        run(store, replies_of("plain", "bracket"), strategy="single", name="my labels")
    command = ["--store", str(store.path)]
    said = CliRunner().invoke(app, ["verify", *command])
    assert said.exit_code == 0, said.output
    (hint,) = re.findall(r"`msft (teachers reread .*?)`", said.stderr.replace("\n", " "))
    assert hint == "teachers reread 'my labels'"
    dry = CliRunner().invoke(app, ["teachers", "reread", "my labels", "--dry-run", *command])
    assert (dry.exit_code, "without --dry-run" in dry.stderr) == (0, True)
    done = CliRunner().invoke(app, ["teachers", "reread", "my labels", "--format", "json", *command])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[0]["labeling"] == "my labels"
    assert "reread" not in CliRunner().invoke(app, ["verify", *command]).stderr


@pytest.mark.test_all
def test_lost_orders_end_with_exit_code_6_and_come_back(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 12, length=lengths)
    reply = replies_of("plain", "bracket")
    with an_older_parser():
        run(store, reply)
    done = CliRunner().invoke(app, ["teachers", "reread", LABELS, "--store", str(store.path)])
    assert (done.exit_code, "msft teachers generate" in done.stderr) == (6, True)
    assert len(rows(store, ORDERS)) < 12
    run(store, reply)
    assert len(rows(store, ORDERS)) == 12
    assert rows(store, SET_ASIDE) == []


def test_counts_of_nothing_to_read(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 3, length=lengths)
    run(store, replies_of("plain"))
    assert reread(store, LABELS) == Done(sum(1 for _ in rows(store, "SELECT call FROM calls")), [])
    with pytest.raises(DataMissing, match="no labeling named"):
        reread(store, "other")


def _set(store: LabelStore, change: str) -> None:
    with store.write() as con:
        con.execute(f"UPDATE teachers SET {change}")


@pytest.mark.parametrize("sampling", ["NULL", "'{}'", """'{"reading": "scores"}'"""])
def test_a_teacher_without_a_prompt_has_scores_and_no_reply_to_read(tmp_path: Path, sampling: str) -> None:
    store = make(tmp_path / "s.duckdb", 3, length=lengths)
    run(store, replies_of("plain"))
    _set(store, f"prompt = NULL, sampling = {sampling}")
    assert reread(store, LABELS) == Done(0, [])
    assert changed_readings(store) == ([], set())


@pytest.mark.test_all
def test_a_prompt_that_is_not_known_matters_to_its_own_labeling_alone(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 3, length=lengths)
    run(store, replies_of("plain"))
    run(store, replies_of("plain"), model="rankvicuna", name="other")
    _set(store, "prompt = 'gone@1' WHERE name <> 'rankzephyr'")
    assert reread(store, LABELS).n_read > 0
    assert changed_readings(store)[1] == {"gone@1"}
    with pytest.raises(DataMissing, match="does not know the prompt of other: gone@1"):
        reread(store, "other")
