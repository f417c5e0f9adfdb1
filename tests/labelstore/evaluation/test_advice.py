"""Which system to use: the sentence that ends `eval`, and the warnings of export, serve and the card."""

from collections.abc import Callable

import pytest
from shelves import Shelf, msft

from labelstore.evaluation import advice
from labelstore.evaluation import scores as evaluation
from students.jobs.register import warnings_of

DOCS = [f"d{i}" for i in range(30)]
QUERIES = {f"q{i}": f"question number {i}" for i in range(24)}
Place = Callable[[int], int]  # query number -> 0-based place of its relevant passage


def ranked(place: Place) -> dict[str, list[str]]:
    made = {}
    for n, query in enumerate(QUERIES):
        rest = [d for d in DOCS if d != DOCS[n]]
        made[query] = [*rest[: place(n)], DOCS[n], *rest[place(n) :]]
    return made


def measured(shelf: Shelf, systems: dict[str, tuple[str, Place]], role: str = "test") -> list[dict]:
    """Rows of an evaluation: `first` has the passage third, students and fused systems where `systems` says."""
    collection = shelf.collection("c", DOCS)
    qrels = {query: {DOCS[n]: 1} for n, query in enumerate(QUERIES)}
    dataset = shelf.dataset("c/part", collection, QUERIES, qrels, role)
    first = shelf.run("first", dataset, ranked(lambda n: 2 + n % 2))
    keys: dict[str, int] = {}
    for name, (kind, place) in systems.items():
        student = name.partition("+")[0]
        keys.setdefault(student, shelf.student(student) if student not in keys else 0)
        run = f"{student}@first" if kind == "student" else name
        shelf.run(run, dataset, ranked(place), kind, first, keys[student])
    return evaluation.evaluate(shelf.store, "c/part", measures=["RR@10"])


GOOD: Place = lambda n: n % 2  # noqa: E731
BAD: Place = lambda n: 8 + n % 3  # noqa: E731
MIXED: Place = lambda n: 1 if n % 2 else 5  # noqa: E731

CASES = [
    (
        {"ranker": ("student", BAD), "ranker+first": ("fused", GOOD)},
        ["use ranker+first (RR@10 .", "ranker alone is worse than first, p < .001"],
        True,
    ),
    ({"ranker": ("student", GOOD)}, ["use ranker (RR@10 ."], False),
    (
        {"one": ("student", BAD), "two": ("student", BAD), "two+first": ("fused", MIXED)},
        [
            "use first: no student is better on these 24 queries",
            "one, two alone are worse than first, p < .001",
        ],
        True,
    ),
    (
        {"one": ("student", GOOD), "two": ("student", MIXED)},
        ["use one (RR@10", "these queries do not tell two alone from first"],
        False,
    ),
]


@pytest.mark.test_all
@pytest.mark.parametrize(("systems", "parts", "warns"), CASES)
def test_the_sentence_names_what_is_better_and_who_is_worse_alone(
    shelf: Shelf, systems: dict, parts: list[str], warns: bool
) -> None:
    (found,) = advice.from_rows(measured(shelf, systems))
    assert found.sentence().startswith("c/part: use ")
    for part in parts:
        assert part.replace("(RR@10 .", "(RR@10 0.") in found.sentence()
    assert (found.warning() is not None) == warns
    for name in {name.partition("+")[0] for name in systems}:  # each student's own, from the store alone
        with shelf.store.read() as con:
            own = warnings_of(con, name)
        worse = systems[name][1] is BAD
        assert len(own) == worse
        if worse:
            assert own[0].startswith(f"{name} alone is worse than first on c/part: RR@10 0.")
            use = f"use {name}+first" if systems.get(f"{name}+first", ("", BAD))[1] is GOOD else "use first"
            assert use in own[0]


@pytest.mark.test_all
def test_training_data_other_measures_and_stale_values_give_no_warning(shelf: Shelf) -> None:
    measured(shelf, {"ranker": ("student", BAD)}, role="train")
    with shelf.store.read() as con:
        assert warnings_of(con, "ranker") == []


@pytest.mark.test_all
def test_a_replaced_ranking_no_longer_counts(shelf: Shelf) -> None:
    measured(shelf, {"ranker": ("student", BAD)})
    with shelf.store.write() as con:
        con.execute("UPDATE runs SET content_hash = 'other' WHERE kind = 'student'")
    with shelf.store.read() as con:
        assert warnings_of(con, "ranker") == []


@pytest.mark.parametrize("p", [0.0, 0.0004, 0.0234, 0.5, 1.0])
def test_p_values_are_written_as_papers_do(p: float) -> None:
    text = advice._p(p)
    assert "0." not in text.replace("1.000", "")
    assert (text == "p < .001") == (p < 0.001)


@pytest.mark.test_all
def test_eval_ends_with_the_sentence_and_rows_stay_data(shelf: Shelf) -> None:
    measured(shelf, {"ranker": ("student", BAD), "ranker+first": ("fused", GOOD)})
    for form in ("table", "json"):
        done = msft(shelf.store, "eval", "--measure", "RR@10", "--no-rerank", "--format", form)
        assert (
            done.err.strip()
            .splitlines()[-1]
            .startswith(
                "c/part: use first: no student is better on these 24 queries; ranker alone is worse than first, p < .001"
            )
        )
        assert "alone is worse" not in done.out
    assert "alone" not in msft(shelf.store, "eval", "--measure", "RR@10", "--no-rerank", "-q").err
