"""vLLM's scoring takes a decoder student's folder as it is: no template, the same scores."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_decoders
import tiny_models

from students.model.encoder import CrossEncoder
from students.text.frames import Framing

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.test_all]

QUERY, PASSAGES = "what is volcano energy", [*tiny_models.sentences(10, seed=4), "14 (water)"]
SCORE = """
import json, sys
from vllm import LLM
asked = json.load(sys.stdin)
llm = LLM(asked["folder"], runner="pooling", dtype="float32", enforce_eager=True, max_model_len=400, max_num_seqs=16)
print("SCORES", json.dumps([o.outputs.score for o in llm.score(asked["query"], asked["passages"])]))
"""


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_vllm_scores_an_export_as_the_student_does(tmp_path, kind):
    sizes = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = tiny_decoders.make(kind, tmp_path / "base", **sizes)
    framing = Framing("qwen3-reranker", "retrieve passages on music")
    encoder = CrossEncoder.load(base, framing=framing, precision="fp32", device="cpu", max_length=400)
    folder = encoder.save(tmp_path / "export")
    asked = {"folder": str(folder), "query": QUERY, "passages": PASSAGES}
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCORE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("SCORES ")), None)
    assert line is not None, done.stderr[-3000:]
    theirs = json.loads(line.removeprefix("SCORES "))
    np.testing.assert_allclose(theirs, encoder.score(QUERY, PASSAGES), atol=1e-3)
