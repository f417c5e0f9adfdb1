"""An answer in a passage's last window counts with max and mean, in training and re-ranking; `first` is as before."""

import json

import made_store
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
import tiny_views
from shelves import msft

from students.errors import StudentError
from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.rerank.reranker import Reranker
from students.train.run import train
from students.train.view_folder import file_hash, read_view

pytestmark = pytest.mark.test_all

MAX_LENGTH = 24


def late_view(folder):
    """A view whose passages begin with forty words that say nothing."""
    tiny_views.write(folder, "distillation", n_lists=40, n_valid=4, longest=4, size=4)
    table = pq.read_table(folder / "passages.parquet")
    filler = "the of and in to " * 8
    texts = [filler + text for text in table["text"].to_pylist()]
    changed = table.set_column(table.column_names.index("text"), "text", pa.array(texts))
    pq.write_table(changed, folder / "passages.parquet")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"]["passages.parquet"] = file_hash(folder / "passages.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def recipe(base, **settings):
    return make_recipe(
        {
            "base": str(base), "regime": "kd", "max_length": MAX_LENGTH, "lr": 5e-3, "lists": 6, "epochs": 0,
            "max_steps": 3, "precision": "fp32", "keep": "last", "hidden_dropout": 0.0, "attention_dropout": 0.0,
        }
        | settings
    )  # fmt: skip


def lists_of(folder):
    view = read_view(folder)
    queries, passages = view.queries.to_pylist(), view.passages.to_pylist()
    held = view.train
    for i in range(len(held)):
        rows = slice(held.starts[i], held.starts[i + 1])
        yield queries[held.query[i]], [passages[p] for p in held.passage[rows]], held.labels[rows]


@pytest.mark.test_all
@pytest.mark.parametrize("mode", ["max", "mean"])
def test_a_trained_student_finds_an_answer_in_the_last_window(tiny, tmp_path, mode):
    view = late_view(tmp_path / "view")
    result = train(recipe(tiny("bert"), long=mode, max_steps=150), [view], tmp_path / "out")
    found = {}
    for how in (mode, "first"):
        reranker = Reranker.load(result.folder, precision="fp32", device="cpu", long=how)
        lists = list(lists_of(view))
        scores = reranker.scores([(query, texts) for query, texts, _ in lists])
        found[how] = np.mean(
            [s.argmax() == labels.argmax() for s, (*_, labels) in zip(scores, lists, strict=True)]
        )
    assert found[mode] > 0.7
    assert found["first"] < 0.5
    assert CrossEncoder.load(result.folder, device="cpu").long == mode


@pytest.mark.parametrize("settings", [{}, {"memory_tokens": 200, "gradient_cache": "always"}])
def test_training_by_windows_does_not_depend_on_the_pieces(tiny, tmp_path, settings):
    view = late_view(tmp_path / "view")
    options = {"long": "max", "batch_tokens": 100} | settings
    one, two = (
        [
            (row["measure"], row["value"])
            for row in train(recipe(tiny("bert"), log_every=1, **o), [view], tmp_path / name).log
            if row["measure"] in ("loss", "grad_norm")
        ]
        for name, o in (("one", {"long": "max"}), ("two", options))
    )
    assert len(one) == 6
    for (name, a), (_, b) in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4), name


def test_scores_of_windows_are_those_of_their_texts(tiny):
    words = [tiny_models.WORDS[i % 40] for i in range(7, 67)]
    encoder = CrossEncoder.load(tiny("bert"), precision="fp32", device="cpu", max_length=MAX_LENGTH)
    room = encoder.form.room - 1
    step = room - room // 4
    starts = sorted({min(i * step, 60 - room) for i in range(4)})
    each = encoder.score("rank", [" ".join(words[s : s + room]) for s in starts])
    passages = [" ".join(words), "water"]
    first = encoder.score("rank", passages)
    assert first[0] == pytest.approx(each[0], abs=1e-5)
    for mode, expected in (("max", each.max()), ("mean", np.sort(each)[-3:].mean())):
        encoder.long = mode
        (scores,) = Reranker(encoder).scores([("rank", passages)])
        assert scores[0] == pytest.approx(expected, abs=1e-5)
        assert scores[1] == pytest.approx(first[1], abs=1e-5)
        np.testing.assert_allclose(encoder.score("rank", passages), scores, atol=1e-5)


@pytest.mark.parametrize("long", ["first", ""])
def test_first_has_the_very_bits_of_a_student_without_the_setting(tiny, long):
    lists = [("what is water", tiny_models.sentences(30, seed=1, longest=60)), ("rank", ["a"] * 2)]
    plain = Reranker.load(tiny("bert"), precision="fp32", device="cpu", max_length=MAX_LENGTH)
    other = Reranker.load(tiny("bert"), precision="fp32", device="cpu", max_length=MAX_LENGTH, long=long)
    for a, b in zip(plain.scores(lists), other.scores(lists), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not other.changed


def test_the_store_re_ranks_by_windows_and_tells_the_runs_apart(tiny, tmp_path):
    store = made_store.make(tmp_path / "s.duckdb")
    msft(store, "students", "add", str(tiny("bert")), "--name", "s", "--max-length", "12")
    options = ["--dataset", "c/test", "--run", "first", "--depth", "5", "--precision", "fp32"]
    for mode in ("first", "max"):
        msft(store, "students", "rerank", "s", *options, "--long", mode, "--name", f"by-{mode}")
    refused = msft(store, "students", "rerank", "s", *options, "--long", "last", code=2)
    assert "first | max | mean" in refused.err
    with store.read() as con:
        found = dict(
            con.execute(
                "SELECT r.name, list(score ORDER BY query, document) FROM candidates c JOIN runs r USING (run)"
                " WHERE r.kind = 'student' GROUP BY ALL"
            ).fetchall()
        )
        parameters = dict(con.execute("SELECT name, parameters FROM runs WHERE kind = 'student'").fetchall())
    assert all(b >= a for a, b in zip(found["by-first"], found["by-max"], strict=True))
    assert found["by-first"] != found["by-max"]
    assert json.loads(parameters["by-max"])["long"] == "max"
    assert "long" not in json.loads(parameters["by-first"])


def test_an_unknown_mode_in_a_recipe_is_refused(tiny):
    with pytest.raises(StudentError, match="long must be one of first, max, mean"):
        recipe(tiny("bert"), long="last")
