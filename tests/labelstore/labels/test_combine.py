"""Labelings combined: orders against a reference in plain Python, what is left out, what is refused, whose calls they are."""

import random
import statistics
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from label_files import line, rows, take
from scipy.stats import kendalltau

from benchmarks.labelling_store import make
from labelstore.errors import DataMissing, MsftError, UsageError
from labelstore.labels.combine import METHODS, combine
from labelstore.provenance.lineage import lineage, text
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.verify import verify
from teachers.errors import TeacherError
from teachers.generate.job import generate
from teachers.generate.reread import reread
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

pytestmark = pytest.mark.test_all

INITIAL = [f"d{n}" for n in range(12)]
Lists = dict[str, list[tuple[str, float]]]  # query -> (doc_id, score), best first; equal scores are ties


def label_lines(teacher: str, lists: Lists, **more: Any) -> list[dict[str, Any]]:
    made = []
    for query_id, items in lists.items():
        groups: dict[float, list[str]] = {}
        for doc_id, score in items:
            groups.setdefault(score, []).append(doc_id)
        docs, scores = [d for d, _ in items], [s for _, s in items]
        made.append(
            line(query_id, docs, teacher=teacher, scores=scores, tie_groups=list(groups.values()), **more)
        )
    return made


def drawn(seed: int, queries: int = 4, gaps: bool = True) -> Lists:
    rng = random.Random(seed)
    made = {}
    for q in range(queries):
        shown = rng.sample(INITIAL, rng.randint(6, 12) if gaps else 12)
        scored = [(d, float(rng.randint(0, 8))) for d in shown]
        made[f"q{q}"] = sorted(scored, key=lambda item: -item[1])
    return made


def reference(parts: list[list[tuple[str, float]]], by: str) -> list[tuple[str, float]]:
    """One query's combined list, worked out passage by passage."""
    union = sorted({d for part in parts for d, _ in part})
    n = len(union)
    found = {}
    for doc_id in union:
        places, fused, scaled = [], 0.0, []
        for part in parts:
            scores = dict(part)
            if doc_id not in scores:
                places.append((len(part) + 1 + n) / 2)
                scaled.append(0.0)
                continue
            mine, all_scores = scores[doc_id], list(scores.values())
            above, tied = sum(s > mine for s in all_scores), all_scores.count(mine)
            places.append(above + (tied + 1) / 2)
            fused += 1 / (60 + places[-1])
            low, high = min(all_scores), max(all_scores)
            scaled.append((mine - low) / (high - low) if high > low else 0.5)
        found[doc_id] = {
            "borda": (n - statistics.mean(places)) / (n - 1),
            "median": (n - statistics.median(places)) / (n - 1),
            "rrf": fused,
            "mean-score": statistics.mean(scaled),
        }[by]
    return sorted(found.items(), key=lambda item: (-round(item[1], 9), item[0]))


def parts(store: LabelStore, file: Callable[..., Path], *drawings: Lists, **more: Any) -> list[str]:
    names = []
    for k, lists in enumerate(drawings):
        done = take(store, file(*label_lines(f"T{k}", lists, **more), name=f"labels{k}.jsonl"))
        names += [x.name for x in done.labelings]
    return names


def listed(store: LabelStore, name: str) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for query_id, doc_id, score in rows(
        store,
        f"SELECT query_id, doc_id, score FROM labels WHERE labeling = '{name}' ORDER BY query_id, rank",
    ):
        found.setdefault(query_id, []).append((doc_id, score))
    return found


@pytest.mark.parametrize("by", METHODS)
@pytest.mark.parametrize("n_parts", [2, 3])
def test_orders_and_scores_are_those_of_the_reference(
    store: LabelStore, file: Callable[..., Path], by: str, n_parts: int
) -> None:
    lists = [drawn(seed) for seed in range(n_parts)]
    done = combine(store, parts(store, file, *lists), by=by, name="all")
    assert (done.lists, done.left_out, done.stored.new) == (4, 0, 4)
    for query_id, items in listed(store, "all").items():
        wanted = reference([one[query_id] for one in lists], by)
        assert [doc_id for doc_id, _ in items] == [doc_id for doc_id, _ in wanted]
        assert [score for _, score in items] == pytest.approx([score for _, score in wanted], abs=1e-6)
    tied = rows(
        store,
        """SELECT count(*) FROM labels a JOIN labels b USING (labeling, query_id)
           WHERE labeling = 'all' AND (a.score = b.score) <> (a.grade = b.grade)""",
    )
    assert tied == [(0,)], "equal scores are ties"
    assert not [finding for finding in verify(store).findings if "text" not in finding.problem]


def test_ties_keep_the_first_stages_order(store: LabelStore, file: Callable[..., Path]) -> None:
    there = [("d2", 3.0), ("d10", 2.0), ("d1", 1.0)]
    lists = {"q0": there}, {"q0": [(d, s) for (d, _), (_, s) in zip(there[::-1], there, strict=True)]}
    combine(store, parts(store, file, *lists, initial=["d10", "d1", "d2"]), by="borda", name="all")
    assert [doc_id for doc_id, _ in listed(store, "all")["q0"]] == ["d10", "d1", "d2"]
    assert rows(store, "SELECT grade, initial_rank FROM labels WHERE labeling = 'all' ORDER BY rank") == [
        (3, 1), (3, 2), (3, 3)
    ]  # fmt: skip


def test_disagreement_is_one_minus_the_mean_tau_of_the_parts(
    store: LabelStore, file: Callable[..., Path]
) -> None:
    lists = [drawn(seed, gaps=False) for seed in (3, 4, 5)]
    combine(store, parts(store, file, *lists), by="borda", name="all")
    stored = dict(
        rows(
            store,
            """SELECT q.query_id, disagreement FROM permutations JOIN queries q USING (query)
               JOIN labelings USING (labeling) WHERE name = 'all'""",
        )
    )
    for query_id, value in stored.items():
        taus = [
            kendalltau([dict(a[query_id])[d] for d in INITIAL], [dict(b[query_id])[d] for d in INITIAL]).statistic
            for a, b in combinations(lists, 2)
        ]  # fmt: skip
        assert value == pytest.approx(1 - statistics.mean(taus), abs=1e-6)


def test_a_query_that_a_part_lacks_is_left_out_and_counted(
    store: LabelStore, file: Callable[..., Path]
) -> None:
    first, second = drawn(1, 4), drawn(2, 3)
    said: list[str] = []
    done = combine(store, parts(store, file, first, second), by="rrf", name="all", note=said.append)
    assert (done.lists, done.left_out) == (3, 1)
    assert said == ["1 of 4 queries left out: not ranked by T1@first, e.g. q3"]
    assert rows(store, "SELECT n_in, n_kept FROM filters WHERE step = 'combined lists'") == [(4, 3)]
    assert rows(store, "SELECT reason, n, example FROM drops WHERE step = 'combined lists'") == [
        ("not ranked by T1@first", 1, "q3")
    ]


def test_again_it_is_made_anew_from_what_its_parts_hold(store: LabelStore, file: Callable[..., Path]) -> None:
    names = parts(store, file, drawn(1), drawn(2, 3))
    combine(store, names, by="borda", name="all")
    before = rows(store, "SELECT name, labeling, origin_hash FROM labelings WHERE name = 'all'")
    again = combine(store, names, by="borda", name="all")
    assert (again.stored.same, again.stored.changed) == (3, False)
    assert rows(store, "SELECT name, labeling, origin_hash FROM labelings WHERE name = 'all'") == before
    other = drawn(7, 4)
    take(store, file(*label_lines("T1", other)), replace=True)
    third = combine(store, names, by="borda", name="all")
    assert (third.stored.new, third.stored.replaced) == (1, 3)
    assert rows(store, "SELECT origin_hash FROM labelings WHERE name = 'all'") != [before[0][2:]]


def test_a_combination_can_be_combined(store: LabelStore, file: Callable[..., Path]) -> None:
    names = parts(store, file, drawn(1), drawn(2), drawn(3))
    combine(store, names[:2], by="borda", name="two", note=None)
    done = combine(store, ["two", names[2]], by="mean-score", name="three")
    assert done.lists == 4
    with pytest.raises(UsageError, match="one of its own parts"):
        combine(store, ["two", names[2]], by="borda", name="two")


def refused(store: LabelStore, names: list[str], **more: Any) -> UsageError:
    before = rows(store, "SELECT count(*) FROM labelings")
    with pytest.raises(UsageError) as caught:
        combine(store, names, **{"by": "borda", "name": "all", **more})
    assert rows(store, "SELECT count(*) FROM labelings") == before
    return caught.value


def test_labelings_of_different_runs_are_refused(store: LabelStore, file: Callable[..., Path]) -> None:
    names = parts(store, file, drawn(1), drawn(2))
    other = take(store, file(*label_lines("T0", drawn(3), first_stage="splade"))).labelings[0].name
    error = refused(store, [*names, other])
    assert error.message == (
        f"{names[0]} orders the run first, and {other} the run splade: only labelings of one run can be combined"
    )
    assert error.hint == f"leave {other} out"
    assert "msft teachers generate --run first" in (refused(store, [names[0], other]).hint or "")
    nameless = label_lines("T9", drawn(4))
    for one in nameless:
        del one["first_stage"]
    unknown = take(store, file(*nameless)).labelings[0].name
    assert "not known which run" in refused(store, [names[0], unknown]).message


def test_what_cannot_be_combined_is_refused_with_a_hint(store: LabelStore, file: Callable[..., Path]) -> None:
    names = parts(store, file, drawn(1), drawn(2))
    bare = [
        {key: value for key, value in one.items() if key != "scores"} for one in label_lines("T2", drawn(3))
    ]
    unscored = take(store, file(*bare)).labelings[0].name
    error = refused(store, [names[0], unscored], by="mean-score")
    assert f"{unscored} has no score for" in error.message
    assert "--by borda" in (error.hint or "")
    assert "at least two" in refused(store, names[:1]).message
    assert "named twice" in refused(store, [names[0], names[0]]).message
    assert "borda | rrf | mean-score | median" in (refused(store, names, by="mean").hint or "")
    assert "made in another way" in refused(store, names, name=unscored).message
    combine(store, names, by="borda", name="kept")
    assert "made in another way" in refused(store, names, by="rrf", name="kept").message
    assert "made in another way" in refused(store, [names[0], unscored], name="kept").message
    with pytest.raises(DataMissing, match="no labeling named 'nothing'"):
        combine(store, [names[0], "nothing"], by="borda")


def test_parts_that_share_no_query_are_refused(store: LabelStore, file: Callable[..., Path]) -> None:
    first, second = drawn(1, 2), {"q5": drawn(2, 1)["q0"]}
    assert "share no query" in refused(store, parts(store, file, first, second)).message


# ------------------------------------------------------------------------------------------- calls, of asked teachers
@pytest.fixture
def asked(tmp_path: Path) -> LabelStore:
    """Three labelings of a run: two of one teacher, which share answers, and one of another with prices."""
    store = make(tmp_path / "asked.duckdb", 3, length=lambda k: [40, 25, 12][k], passages=60)
    for name, more in {
        "one": {"input_price": 1.0, "output_price": 2.0},
        "same": {"strategy": "single", "input_price": 1.0, "output_price": 2.0},
        "other": {"model": "rankvicuna", "input_price": 3.0, "output_price": 4.0},
    }.items():
        settings = Settings(**{"model": "rankzephyr", "canaries": 0, "name": name, **more})  # type: ignore[arg-type]
        generate(store, settings, engine=ScriptedEngine(hashed_order))
    return store


def test_its_calls_and_its_cost_are_those_of_its_parts(asked: LabelStore) -> None:
    combine(asked, ["one", "other"], by="borda", name="all")
    used = (
        """SELECT call FROM labeling_calls JOIN labelings USING (labeling) WHERE name IN ({}) ORDER BY call"""
    )
    assert rows(asked, used.format("'all'")) == rows(asked, used.format("'one', 'other'"))
    sums = """SELECT sum(n_calls), sum(tokens_in), sum(tokens_out) FROM permutations JOIN labelings USING (labeling)
              WHERE name IN ({})"""
    assert rows(asked, sums.format("'all'")) == rows(asked, sums.format("'one', 'other'"))
    costs = dict(rows(asked, "SELECT labeling, cost FROM labeling_quality"))
    from labelstore.labels.quality import show

    with asked.read() as con:
        shown = {(row["topic"], row["name"]): row["value"] for row in show(con, "all")}
    assert shown["cost", "price"] == pytest.approx(costs["one"] + costs["other"])
    assert not verify(asked).findings


def test_a_call_that_two_parts_share_counts_once(asked: LabelStore) -> None:
    combine(asked, ["one", "same"], by="rrf", name="all")
    (n, distinct, steps) = rows(
        asked,
        """SELECT count(*), count(DISTINCT call), count(DISTINCT (query, step)) FROM labeling_calls
           JOIN labelings USING (labeling) WHERE name = 'all'""",
    )[0]
    assert n == distinct == steps
    assert rows(
        asked,
        "SELECT sum(n_calls) FROM permutations JOIN labelings USING (labeling) WHERE name = 'all'",
    ) == [(n,)]
    both = rows(
        asked,
        "SELECT count(*) FROM labeling_calls JOIN labelings USING (labeling) WHERE name IN ('one', 'same')",
    )
    assert n < both[0][0], "the short lists of both were ranked by the same call"


def test_rereading_leaves_combined_labelings_to_the_next_combine(asked: LabelStore) -> None:
    combine(asked, ["one", "other"], by="borda", name="all")
    with asked.write() as con:  # a reply that today's parser reads otherwise
        con.execute(
            "UPDATE calls SET parsed = list_reverse(parsed) WHERE call = (SELECT min(call) FROM labeling_calls)"
        )
    done = reread(asked, "one")
    assert "all" not in done.labelings
    with pytest.raises(MsftError, match="combined from other labelings"):
        reread(asked, "all")


def test_another_teacher_cannot_continue_a_combined_labeling(asked: LabelStore) -> None:
    combine(asked, ["one", "other"], by="borda", name="all")
    with pytest.raises((MsftError, TeacherError), match="already, with other"):
        generate(
            asked, Settings(model="rankzephyr", canaries=0, name="all"), engine=ScriptedEngine(hashed_order)
        )


def test_the_lineage_of_a_student_goes_through_the_combination_to_its_parts(asked: LabelStore) -> None:
    combine(asked, ["one", "other"], by="borda", name="all")
    with asked.write() as con:
        (key,) = con.execute("SELECT labeling FROM labelings WHERE name = 'all'").fetchall()[0]
        con.execute(
            """INSERT INTO views VALUES (1, 'v', 'distillation', '', '{}', 0, 'h', 'views/h', 3, 9, NULL, NULL)"""
        )
        con.execute("INSERT INTO view_sources VALUES (1, 'labeling', ?, NULL)", [key])
        con.execute(
            """INSERT INTO students (student, name, base, architecture, regime, folder, weights_hash, max_length, seed)
               VALUES (1, 's', 'base', 'bert', 'kd', 'students/s', 'w', 64, 1)"""
        )
        con.execute(
            """INSERT INTO stages VALUES (1, 1, 'kd', 'ranknet', 1, 'h', 'p', 'w', '{}', 1, 1, 0, 0, 1, 0, NULL, NULL, 'end')"""
        )
    with asked.read() as con:
        told = text(lineage(con, "s"))
    places = [
        told.index(what) for what in ("labels all", "labels one", "rankzephyr", "labels other", "rankvicuna")
    ]
    assert places == sorted(places)
    assert "by borda" in told
    with asked.write() as con:
        con.execute("UPDATE labelings SET name = 'renamed' WHERE name = 'other'")
    with asked.read() as con:
        assert "labels other: now not in this store" in text(lineage(con, "s"))
