"""A decoder is trained, stored, re-ranks and is exported as any student is; what it cannot be is said before."""

import json
import shutil

import made_store
import numpy as np
import pytest
import tiny_decoders
import tiny_models
import tiny_views
import torch
from safetensors.torch import load_file
from shelves import msft

from students.errors import StudentError
from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.text.frames import frame_of
from students.train.run import train

pytestmark = pytest.mark.test_all

QUERY, PASSAGES = "what is water", tiny_models.sentences(8, seed=2)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    return [tiny_views.write(folder / "cl", "contrastive"), tiny_views.write(folder / "kd", "distillation")]


def recipe(base, **settings):
    return make_recipe(
        {
            "base": str(base), "regime": "cl", "frame": "qwen3-reranker", "max_length": 130, "lr": 1e-3, "lists": 4,
            "epochs": 0, "max_steps": 3, "precision": "fp32", "keep": "last", "log_every": 1,
        }
        | settings
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "regime"), [("qwen3", "cl"), ("qwen3", "kd"), ("mistral", "cl,kd")])
def test_three_steps_move_all_weights_and_the_student_keeps_its_frame(views, tmp_path, kind, regime):
    base = tiny_decoders.make(kind, tmp_path / "base")
    chosen = recipe(base, regime=regime)
    before = CrossEncoder.load(base, framing=chosen.framing, precision="fp32", device="cpu", max_length=130)
    result = train(chosen, views, tmp_path / "out")
    assert [stage["steps"] for stage in result.stages] == [3] * len(result.stages)
    after = CrossEncoder.load(result.folder, precision="fp32", device="cpu")
    assert frame_of(after.tokenizer) == frame_of(before.tokenizer)
    old, new = before.model.state_dict(), load_file(result.folder / "model.safetensors")
    assert {name for name in new if (old[name] == new[name]).all()} == set()
    assert not np.allclose(before.score(QUERY, PASSAGES), after.score(QUERY, PASSAGES))


@pytest.mark.test_all
def test_a_decoder_learns(views, tmp_path):
    base = tiny_decoders.make("qwen3", tmp_path / "base")
    result = train(recipe(base, regime="kd", max_steps=60, lr=3e-3, valid_every=20), views, tmp_path / "out")
    tau = [row["value"] for row in result.log if row["measure"] == "valid_tau"]
    loss = [row["value"] for row in result.log if row["measure"] == "valid_loss"]
    assert tau[-1] > max(tau[0], 0.9)
    assert loss[-1] < 0.7 * loss[0]


def test_a_decoder_without_a_frame_is_refused_before_a_text_is_tokenised(views, tmp_path):
    base = tiny_decoders.make("qwen3", tmp_path / "base")
    with pytest.raises(StudentError, match="is a decoder without a text frame"):
        train(recipe(base, frame=""), views, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert train(recipe(base), views, tmp_path / "out").stages, "the folder is free for the mended recipe"


@pytest.mark.parametrize("name", ["d", "d/train"])
def test_a_dataset_has_its_own_instruction_in_training(views, tmp_path, name):
    """The table has the effect of the instruction, for the views of that dataset alone."""
    base = tiny_decoders.make("qwen3", tmp_path / "base")
    manifest = json.loads((views[0] / "manifest.json").read_text("utf-8"))
    view = shutil.copytree(views[0], tmp_path / "view")
    sources = [{"kind": "dataset", "name": "d/train", "hash": "x"}]
    (view / "manifest.json").write_text(json.dumps(manifest | {"sources": sources}))
    text = "retrieve passages on music"

    def weights(folder, **settings):
        result = train(recipe(base, **settings), [folder], tmp_path / f"out-{len(list(tmp_path.iterdir()))}")
        return load_file(result.folder / "model.safetensors")["score.weight"], result.folder

    by_table, folder = weights(view, instructions={name: text, "other": "rank"})
    assert torch.equal(by_table, weights(view, instruction=text)[0])
    assert not torch.equal(by_table, weights(views[0], instructions={name: text})[0])
    student = CrossEncoder.load(folder, precision="fp32", device="cpu")
    own = student.form_for(["d/test" if name == "d" else "d/train"]).before
    assert own == student.form_for([name]).before != student.form.before
    mixed = json.dumps(manifest | {"sources": [*sources, {"kind": "dataset", "name": "other", "hash": "y"}]})
    (view / "manifest.json").write_text(mixed)
    with pytest.raises(StudentError, match="one view has datasets with 2 instructions: d/train, other"):
        weights(view, instructions={name: text})


@pytest.mark.parametrize("given", [5, {"d": 3}, {"d": ""}])
def test_instructions_are_a_table_of_texts(given):
    with pytest.raises(StudentError, match="instructions must be a table"):
        make_recipe({"instructions": given})


def ranking(store, run: str) -> list[tuple]:
    with store.read() as con:
        return con.execute(
            """SELECT q.query_id, d.doc_id, c.score FROM candidates c JOIN runs r USING (run)
               JOIN queries q USING (query) JOIN documents d USING (document) WHERE r.name = ? ORDER BY 1, c.rank""",
            [run],
        ).fetchall()


@pytest.mark.test_all
def test_the_store_adds_trains_re_ranks_and_exports_a_decoder(tmp_path):
    """Every command in turn over one store; the export scores as the student in sentence-transformers."""
    from sentence_transformers import CrossEncoder as Theirs

    store = made_store.make(tmp_path / "s.duckdb")
    base = str(tiny_decoders.make("qwen3", tmp_path / "base"))
    refused = msft(store, "students", "add", base, "--name", "untrained", code=2)
    assert "is a decoder without a text frame" in refused.err
    assert "Traceback" not in refused.err
    frame = ["--frame", "qwen3-reranker", "--instruction", "retrieve passages on music"]
    msft(store, "students", "add", base, "--name", "untrained", "--max-length", "150", *frame)
    steps = ["--max-steps", "3", "--batch", "4", "--max-length", "150", "--lr", "1e-3", "--precision", "fp32"]
    for name, start in (("first", [base, *frame]), ("second", ["student:first"])):
        msft(
            store, "students", "train", "--regime", "kd", "--labels", "teacher@first", "--name", name,
            "--base", *start, *steps,
        )  # fmt: skip
    for name in ("untrained", "first", "second"):
        msft(
            store, "students", "rerank", name, "--dataset", "c/test", "--run", "first", "--precision", "fp32",
            "--depth", "10", "--name", f"by-{name}",
        )  # fmt: skip
    orders = {name: ranking(store, f"by-{name}") for name in ("untrained", "first", "second")}
    assert len({tuple(score for *_, score in rows) for rows in orders.values()}) == 3
    msft(store, "students", "export", "second", "-o", str(tmp_path / "exported"))
    kept = json.loads((tmp_path / "exported/tokenizer_config.json").read_text("utf-8"))["msft_frame"]
    assert kept["instruction"] == "retrieve passages on music"
    with store.read() as con:
        texts = {
            table: dict(con.execute(f"SELECT {table[0]}.{key}, text FROM {name} {table[0]}").fetchall())
            for table, name, key in (("queries", "queries", "query_id"), ("documents", "documents", "doc_id"))
        }
    pairs = [(texts["queries"][q], texts["documents"][d]) for q, d, _ in orders["second"]]
    theirs = Theirs(str(tmp_path / "exported"), device="cpu").predict(pairs)
    np.testing.assert_allclose(theirs, [score for *_, score in orders["second"]], atol=1e-3)
