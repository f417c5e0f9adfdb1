"""The scheduler keeps the engine full, holds few queries, stays in its budget, and has no say over results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from teachers.engines.base import Completion, Request
from teachers.errors import TeacherError
from teachers.prompts.replies import ENGINE_ERROR, Parsed, parse
from teachers.scheduling.budget import Budget
from teachers.scheduling.job import Answer, Result, scores_by_candidate
from teachers.scheduling.scheduler import Scheduler
from teachers.strategies import by_name as windows
from teachers.strategies.by_name import Steps, Strategy, Window
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order


@dataclass(frozen=True)
class Query:
    name: str
    n: int


@dataclass
class Book:
    """A job that keeps its records in memory."""

    strategy: Strategy
    answers: dict[str, Answer] = field(default_factory=dict)
    finished: dict[str, Result] = field(default_factory=dict)
    gone: dict[str, Answer] = field(default_factory=dict)
    log: list[tuple[str, int, str]] = field(default_factory=list)

    def start(self, task: Query) -> Steps:
        return self.strategy.steps(task.n)

    def calls(self, task: Query) -> int:
        return self.strategy.calls(task.n).most

    def render(self, task: Query, window: Window) -> Request:
        names = [str(i + 1) for i in range(len(window))]
        return Request(key=f"{task.name}:{window}", identifiers=names, n_prompt_tokens=10, max_tokens=5)

    def known(self, request: Request) -> Answer | None:
        return self.answers.get(request.key)

    def receive(
        self, task: Query, step: int, window: Window, request: Request, completion: Completion, attempt: int
    ) -> Answer:
        parsed = (
            parse(completion.text or "", len(window))
            if completion.error is None
            else Parsed(None, ENGINE_ERROR)
        )
        answer = Answer(
            call_key=f"{request.key}/{attempt}",
            status=parsed.status,
            order=list(parsed.order) if parsed.order is not None else None,
            repairs=parsed.repairs,
            tokens_in=10,
            tokens_out=5,
            attempt=attempt,
            retryable=completion.retryable,
        )
        self.answers[request.key] = answer
        self.log.append((task.name, step, parsed.status))
        return answer

    def finish(self, task: Query, result: Result) -> None:
        self.finished[task.name] = result

    def quarantine(self, task: Query, step: int, answer: Answer) -> None:
        self.gone[task.name] = answer


def queries(n: int, length: Callable[[int], int] = lambda k: 100) -> list[Query]:
    return [Query(f"q{k}", length(k)) for k in range(n)]


def label(
    tasks: list[Query],
    *,
    engine: ScriptedEngine | None = None,
    strategy: str = "sliding",
    book: Book | None = None,
    **options: object,
) -> tuple[Book, Scheduler[Query]]:
    book = book or Book(windows.strategy(strategy))
    scheduler: Scheduler[Query] = Scheduler(
        engine or ScriptedEngine(hashed_order), book, backoff=0.001, **options
    )  # type: ignore[arg-type]
    scheduler.run(iter(tasks))
    return book, scheduler


@pytest.mark.parametrize("strategy", ["sliding", "single", "full", "top-down", "tournament"])
def test_results_are_the_strategys_own(strategy: str) -> None:
    tasks = queries(12, lambda k: [100, 95, 25, 20, 5, 1][k % 6])
    book, scheduler = label(tasks, strategy=strategy)
    own = book.strategy
    for task in tasks:

        def reply(window: Window, task: Query = task) -> list[int]:
            request = book.render(task, window)
            parsed = parse(hashed_order(request), len(window))
            assert parsed.order is not None
            return list(parsed.order)

        ranked, asked = windows.run(own, task.n, reply)
        assert book.finished[task.name].ranked == ranked
        assert len(book.finished[task.name].calls) == len(asked)
    assert scheduler.figures.calls == sum(len(r.calls) for r in book.finished.values())


@pytest.mark.parametrize("seed", range(5))
def test_order_of_completion_changes_nothing(seed: int) -> None:
    tasks = queries(20, lambda k: 20 + 7 * k)
    plain, _ = label(tasks, strategy="top-down")
    random = Random(seed)
    shuffled = ScriptedEngine(hashed_order, delay=lambda _: random.random() / 200, capacity=7)
    other, _ = label(tasks, strategy="top-down", engine=shuffled)
    assert [plain.finished[t.name].ranked for t in tasks] == [other.finished[t.name].ranked for t in tasks]
    assert [plain.finished[t.name].calls for t in tasks] == [other.finished[t.name].calls for t in tasks]
    assert plain.log != other.log, "the calls did complete in another order"


def test_steps_number_the_windows_of_a_query() -> None:
    book, _ = label(queries(1))
    assert [step for step, _ in book.finished["q0"].calls] == list(range(9))


def test_the_engine_is_full_while_one_query_is_slow() -> None:
    """One query's replies take 50 times as long as the others': they do not wait for it."""
    levels: list[int] = []

    class Watched(ScriptedEngine):
        def submit(self, requests: object) -> None:
            super().submit(requests)  # type: ignore[arg-type]
            levels.append(len(self._waiting))

    slow = Watched(
        hashed_order, delay=lambda request: 0.05 if request.key.startswith("q0:") else 0.001, capacity=8
    )
    book, scheduler = label(queries(60), engine=slow)
    done_before = [name for name, _, _ in book.log]
    assert done_before.index("q0") > 20, "others were answered while the first query's first call ran"
    assert max(levels) == 8
    assert scheduler.figures.occupancy > 0.9


def test_few_queries_are_held_however_many_there_are() -> None:
    made = 0

    def tasks() -> Iterator[Query]:
        nonlocal made
        for k in range(500):
            made += 1
            assert made - len(book.finished) <= 4 * 8 + 1, "tasks are taken only as they are needed"
            yield Query(f"q{k}", 100)

    book = Book(windows.strategy("sliding"))
    scheduler: Scheduler[Query] = Scheduler(ScriptedEngine(hashed_order, capacity=8), book)
    figures = scheduler.run(tasks())
    assert figures.queries == 500
    assert figures.peak_active <= 16


@dataclass
class Rounds:
    """An engine of so many slots whose replies all take one round; counts the rounds."""

    capacity: int
    waiting: list[Request] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    rounds: int = 0
    name = "rounds"
    concurrent = False

    def submit(self, requests: Sequence[Request]) -> None:
        assert len(self.waiting) + len(requests) <= self.capacity
        self.waiting += requests

    def poll(self, timeout: float) -> list[Completion]:
        self.rounds += 1
        self.order += [request.key for request in self.waiting]
        done = [Completion(r.ticket, text=hashed_order(r), finish_reason="stop") for r in self.waiting]
        self.waiting = []
        return done

    def close(self) -> None:
        pass


def test_the_longest_query_never_ends_the_job_alone() -> None:
    """60 queries of one call, then 4 of nine, 8 slots: 96 calls fill 12 rounds, if the long ones do not come last."""
    tasks = queries(64, lambda k: 100 if k >= 60 else 20)
    ours, in_order, limited = Rounds(8), Rounds(8), Rounds(8)
    # of the 64, twice 8 wait to be started and are looked at: the long ones come into view before the end
    book, _ = label(tasks, engine=ours)
    other, _ = label(tasks, engine=in_order, in_order=True)
    label(tasks, engine=limited, budget=Budget(max_calls=1000))
    assert ours.rounds <= 14
    assert in_order.rounds == limited.rounds == 16
    assert in_order.order == limited.order
    assert {n: r.ranked for n, r in book.finished.items()} == {n: r.ranked for n, r in other.finished.items()}


def test_known_answers_are_not_asked_again() -> None:
    tasks = queries(10)
    first, _ = label(tasks)
    engine = ScriptedEngine(hashed_order)
    kept = Book(first.strategy, answers={k: a for i, (k, a) in enumerate(first.answers.items()) if i % 3})
    again, scheduler = label(tasks, engine=engine, book=kept)
    assert engine.answered == 30
    assert scheduler.figures.resumed == 60
    assert {n: r.ranked for n, r in again.finished.items()} == {
        n: r.ranked for n, r in first.finished.items()
    }


def test_one_answer_serves_equal_requests_in_flight() -> None:
    class Alike(Book):
        def render(self, task: Query, window: Window) -> Request:
            request = super().render(task, window)
            request.key = f"same:{window}"
            return request

    engine = ScriptedEngine(hashed_order, delay=lambda _: 0.005)
    book, scheduler = label(queries(4), engine=engine, book=Alike(windows.strategy("single")))
    assert engine.answered == 1
    assert len({r.ranked for r in book.finished.values()}) == 1
    assert len(book.finished) == 4
    assert scheduler.figures.calls == 1


def failing(times: int, completion: Callable[[], Completion | str]) -> ScriptedEngine:
    seen: dict[str, int] = {}

    def reply(request: Request) -> Completion | str:
        seen[request.key] = seen.get(request.key, 0) + 1
        return completion() if seen[request.key] <= times else hashed_order(request)

    return ScriptedEngine(reply)


@pytest.mark.parametrize(
    "failure", [lambda: "no idea", lambda: Completion(0, error="HTTP 500"), lambda: "I cannot rank these."]
)
def test_failures_are_tried_again_and_then_quarantined(failure: Callable[[], Completion | str]) -> None:
    book, scheduler = label(queries(3, lambda _: 25), engine=failing(2, failure), max_attempts=3)
    assert len(book.finished) == 3
    assert scheduler.figures.retried == 12
    assert scheduler.figures.quarantined == 0
    book, scheduler = label(queries(3, lambda _: 25), engine=failing(3, failure), max_attempts=3)
    assert not book.finished
    assert set(book.gone) == {"q0", "q1", "q2"}
    assert all(answer.attempt == 3 for answer in book.gone.values())
    assert scheduler.figures.calls == 9, "no window after the failed one was asked"


def test_what_cannot_succeed_is_not_tried_again() -> None:
    engine = failing(1, lambda: Completion(0, error="prompt too long", retryable=False))
    book, scheduler = label(queries(2), engine=engine)
    assert scheduler.figures.calls == 2
    assert len(book.gone) == 2


def test_attempts_of_earlier_jobs_count_unless_retried() -> None:
    book, _ = label(queries(1, lambda _: 20), engine=failing(9, lambda: "no"), max_attempts=2)
    engine = failing(1, lambda: "no")
    again = Book(book.strategy, answers=dict(book.answers))
    label(queries(1, lambda _: 20), engine=engine, book=again, max_attempts=2)
    assert engine.answered == 0
    assert "q0" in again.gone
    retried = Book(book.strategy, answers=dict(book.answers))
    label(queries(1, lambda _: 20), engine=engine, book=retried, max_attempts=2, retry_quarantined=True)
    assert "q0" in retried.finished
    assert next(iter(retried.answers.values())).attempt == 4


def test_a_permutation_is_as_good_as_its_worst_call() -> None:
    def reply(request: Request) -> str:
        full = hashed_order(request)
        return full.rpartition(" > ")[0] if request.key.startswith("q1:(80") else full

    book, scheduler = label(queries(2), engine=ScriptedEngine(reply))
    assert book.finished["q0"].status == "ok"
    assert book.finished["q1"].status == "repaired"
    assert book.finished["q1"].repairs == 1
    assert scheduler.figures.repaired == 1


class Unrenderable(Book):
    """No prompt can be made for some queries."""

    bad: tuple[str, ...] = ()

    def render(self, task: Query, window: Window) -> Request:
        if task.name in self.bad:
            raise TeacherError("does not fit the context")
        return super().render(task, window)


def test_a_query_that_cannot_be_shown_is_quarantined_alone() -> None:
    book = Unrenderable(windows.strategy("sliding"))
    book.bad = ("q1", "q7")
    label(queries(20), book=book)
    assert set(book.gone) == {"q1", "q7"}
    assert len(book.finished) == 18


def test_when_nothing_can_be_shown_the_settings_are_to_blame() -> None:
    book = Unrenderable(windows.strategy("sliding"))
    book.bad = tuple(f"q{k}" for k in range(50))
    with pytest.raises(TeacherError, match="does not fit"):
        label(queries(50), book=book)


@pytest.mark.parametrize("limit", [0, 5, 9, 10, 50, 90])
def test_max_calls_is_never_passed_and_leaves_whole_permutations(limit: int) -> None:
    book, scheduler = label(queries(10), budget=Budget(max_calls=limit))
    assert scheduler.figures.calls <= limit
    assert len(book.finished) == limit // 9
    assert scheduler.figures.stopped == (None if limit == 90 else "--max-calls")
    assert scheduler.figures.unfinished == 10 - limit // 9


@pytest.mark.parametrize("limit", [0, 14, 135, 500, 1349, 1350])
def test_max_tokens_is_never_passed(limit: int) -> None:
    engine = ScriptedEngine(hashed_order, delay=lambda _: 0.0005)
    book, scheduler = label(queries(10), engine=engine, budget=Budget(max_tokens=limit))
    spent = scheduler.figures.tokens_in + scheduler.figures.tokens_out
    assert spent <= limit
    assert len(book.finished) >= limit // 135 - 1
    assert (scheduler.figures.stopped is None) == (limit == 1350)


def test_max_cost_counts_both_prices() -> None:
    budget = Budget(max_cost=0.0005, input_price=1.0, output_price=4.0)  # a call costs 0.00003
    book, scheduler = label(queries(10, lambda _: 20), budget=budget)
    assert scheduler.figures.stopped == "--max-cost" or len(book.finished) == 10
    assert budget.cost() <= 0.0005
    book, scheduler = label(
        queries(20, lambda _: 20), budget=Budget(max_cost=0.0005, input_price=1.0, output_price=4.0)
    )
    assert len(book.finished) == 16
    assert scheduler.figures.stopped == "--max-cost"


def test_scores_belong_to_candidates() -> None:
    assert scores_by_candidate((2, 0, 1), [0.3, 0.1, None]) == [0.1, None, 0.3]
    assert scores_by_candidate((3, 4), [0.3, 0.1]) is None
    assert scores_by_candidate((0, 1), None) is None


@pytest.mark.parametrize(("options", "most"), [({"max_active": 1}, 1), ({"lockstep": True}, 30)])
def test_baselines_give_the_same_results(options: dict[str, object], most: int) -> None:
    tasks = queries(30, lambda k: 10 + 3 * k)
    plain, _ = label(tasks)
    other, scheduler = label(tasks, **options)
    assert {n: r.ranked for n, r in plain.finished.items()} == {
        n: r.ranked for n, r in other.finished.items()
    }
    assert scheduler.figures.peak_active == most
