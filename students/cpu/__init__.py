"""The fast forward of BERT, ELECTRA, RoBERTa and XLM-R on a CPU, for scoring and for training.

Why it exists: most users train and re-rank on a CPU. Libraries that are faster than transformers there can only score.
This forward scores and trains, so a student is scored by the same operations that it was trained with.

What it was measured against: the same 344 real pairs (MiniLM, two threads), in pairs per second relative to this
forward. OpenVINO reaches .91 of its bf16 and .81 of its fp32, onnxruntime .37. OpenVINO's bf16 also ranks less like
fp32: Kendall's tau is .950, here .998. `python -m benchmarks.rerank` and `python -m benchmarks.train` repeat the
measurement.

How to leave it out: let `FusedEncoder.supports` return False. Training, `students/rerank/reranker.py` and
`teachers/engines/bi_encoder.py` then run every model through transformers, as they do on a GPU and for all other
architectures. A training leaves it out with ``compile = true``.

The interface: other rooms use `FusedEncoder` and `LearningEncoder` from `bert`, the threads of `workers`, and the
dropout's generator from `operations`. Only `capabilities` calls private functions of torch. Code that changes the
weights of a model in training must call `CrossEncoder.refresh` afterwards.
"""
