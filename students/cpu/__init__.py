"""The fast forward of BERT, ELECTRA and RoBERTa on a CPU, for scoring and for training.

Why it exists: most users train and re-rank on a CPU, and the libraries that are faster than transformers there only score.
Here scoring and training run the same forward, so a student is scored by what it was trained with.

What it was measured against, in turns over the same 344 real pairs (MiniLM, two threads; pairs per second relative to
this forward): OpenVINO .91 of its bf16 and .81 of its fp32, onnxruntime .37. OpenVINO's bf16 also ranks less like fp32: Kendall's
tau is .950, here .998. `python -m benchmarks.rerank` and `python -m benchmarks.train` measure it again.

How to leave it out: let `FusedEncoder.supports` return False. Training, `students/rerank/reranker.py` and
`teachers/engines/bi_encoder.py` then run every model through transformers, as they do on a GPU and for all other
architectures. Training alone leaves it out with ``compile = true``.

The door: other rooms use `FusedEncoder` and `LearningEncoder` from `bert`, the threads of
`workers`, the dropout's generator from `operations`, and `capabilities`, which alone calls private functions of torch.
Whoever changes the weights of a model that learns calls `CrossEncoder.refresh` afterwards.
"""
