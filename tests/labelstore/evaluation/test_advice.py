"""Which system to use: the sentence that ends `eval`, and the warnings of export, serve and the card."""

import json
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


START = {"base": "r0", "max_length": 64, "layers": 0, "long": "first", "frame": "", "instruction": "", "answers": [],
         "instructions": []}  # fmt: skip
DRAWN = {"seed": 1, "head_scale": 1.0, "head_identity": False}


def with_base(shelf: Shelf, kind: str, base: Place, systems: dict[str, tuple[str, Place]]) -> list[dict]:
    """Rows of an evaluation with the base that all students began from."""
    measured(shelf, systems)
    with shelf.store.write() as con:
        con.execute("UPDATE students SET base_revision = 'r0'")
        con.execute(
            """INSERT INTO stages (student, stage, objective, loss, view_hash, parent_hash, weights_hash, hyperparameters,
                                   steps, pairs, lists_skipped, truncated_pairs, seconds, weights_moved, stopped_by)
               SELECT student, 1, 'cl', 'lce', '', '', weights_hash, '{}', 1, 1, 0, 0, 1, 1, 'steps' FROM students"""
        )
        ((dataset, first),) = con.execute("SELECT dataset, run FROM runs WHERE name = 'first'").fetchall()
    run = shelf.run(f"{kind}-tiny@first", dataset, ranked(base), kind, first)
    with shelf.store.write() as con:
        con.execute(
            "UPDATE runs SET parameters = ? WHERE run = ?",
            [json.dumps({"depth": 30, **START, **(DRAWN if kind == "untrained" else {})}), run],
        )
    return evaluation.evaluate(shelf.store, "c/part", measures=["RR@10"])


BASES = [
    (
        "base", GOOD, {"ranker": ("student", MIXED)},
        ["use the base tiny as it is (RR@10 .", "; the base tiny is better than your student ranker, p < .001"],
    ),
    (
        "base", BAD, {"ranker": ("student", GOOD)},
        ["use ranker (RR@10 .", "; ranker is better than the base tiny, p < .001"],
    ),
    (
        "base", GOOD, {"ranker": ("student", GOOD)},
        ["use ranker (RR@10 .", "; these queries do not tell ranker from the base tiny"],
    ),
    (
        "base", MIXED, {"ranker": ("student", BAD)},
        ["use first: no student is better", "; the base tiny is better than your student ranker, p < .001"],
    ),
    (
        "base", MIXED, {"ranker": ("student", BAD), "ranker+first": ("fused", GOOD)},
        ["use ranker+first (RR@10 .", "; the base tiny is better than your student ranker, p < .001"],
    ),
    (
        "untrained", GOOD, {"ranker": ("student", BAD)},
        ["use first: no student is better", "; the untrained base tiny is better than your student ranker, p < .001"],
    ),
    (
        "untrained", BAD, {"one": ("student", GOOD), "two": ("student", GOOD)},
        ["use one (RR@10 .", "; one, two are better than the untrained base tiny, p < .001"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "base", "systems", "parts"), BASES)
def test_a_student_is_compared_with_the_base_that_it_began_from(
    shelf: Shelf, kind: str, base: Place, systems: dict, parts: list[str]
) -> None:
    rows = with_base(shelf, kind, base, systems)
    (found,) = advice.from_rows(rows)
    for part in parts:
        assert part.replace("(RR@10 .", "(RR@10 0.") in found.sentence()
    assert [row["kind"] for row in rows].count(kind) == 1
    for row in rows:
        assert row["base"] == (f"{kind}-tiny" if row["kind"] == "student" else None)
    for name in {name.partition("+")[0] for name in systems}:  # the card and `serve` read the store alone
        with shelf.store.read() as con:
            said = warnings_of(con, name)
            (own,) = advice.of_student(con, name)
        assert [b.student.verdict for b in own.began] == [
            b.student.verdict for b in found.began if b.student.name == name
        ]
        alone = any("alone is worse than first" in text for text in said)
        beaten = any(f"{name} is worse than the base tiny, which it began from" in text for text in said)
        if systems[name][1] is BAD:
            assert alone
        else:
            assert beaten == (base is GOOD and systems[name][1] is MIXED)


def test_the_sentence_names_fuse_where_it_may_help(shelf: Shelf) -> None:
    (found,) = advice.from_rows(measured(shelf, {"ranker": ("student", BAD)}))
    hint = "; --fuse shows whether a student and first together are better"
    assert found.sentence(fused=False).endswith(hint)
    assert hint not in found.sentence()


def test_fuse_is_not_named_where_students_are_better_alone(shelf: Shelf) -> None:
    (found,) = advice.from_rows(measured(shelf, {"ranker": ("student", GOOD)}))
    assert "--fuse" not in found.sentence(fused=False)


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
                "c/part: use first: no student is better on these 24 queries; ranker alone is worse than first, p < .001;"
                " --fuse shows whether a student and first together are better"
            )
        )
        assert "alone is worse" not in done.out
    assert "alone" not in msft(shelf.store, "eval", "--measure", "RR@10", "--no-rerank", "-q").err
