"""Define the trainers of `benchmarks.train`; each trains a `Work` from folder to folder, as its users would."""

import contextlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import lightning_peer
from benchmarks.train_lists import SEED, Work, held_out_loss, ranknet


@dataclass(frozen=True)
class Trained:
    """The result of a trainer's training.

    Attributes:
        loop_seconds: seconds of the optimiser steps alone, without loading and saving.
        loss: a function that measures the loss on the held-out lists.
    """

    loop_seconds: float
    loss: Callable[[], float]


Trainer = Callable[[Work], Trained]


def ours(precision: str, *, compiled: bool = False) -> Trainer:
    """Train by `students.train.train`. Reading the view, tokenising, and the weights at start and end all count."""

    def run(work: Work) -> Trained:
        from students.recipes.read import make_recipe
        from students.train.run import train

        recipe = make_recipe(
            {
                "base": str(work.base), "regime": "kd", "seed": SEED, "max_length": work.max_length, "precision": precision,
                "loss": "ranknet", "reduction": "pair", "lists": work.per_step, "lr": work.lr, "schedule": "constant",
                "warmup": 0, "weight_decay": 0.0, "clip": 1.0, "epochs": 1, "keep": "last", "patience": 0,
                "hidden_dropout": work.dropout, "attention_dropout": work.dropout,
                "checkpoint_every": 1_000_000, "compile": compiled,
            }
        )  # fmt: skip
        out = _fresh(work, f"ours-{precision}")
        made = train(recipe, [work.view], out, device="cpu" if work.device == "cpu" else None)
        (stage,) = made.stages
        if stage["pairs"] != work.n_pairs:
            raise RuntimeError(f"trained on {stage['pairs']} pairs, not {work.n_pairs}")
        return Trained(stage["seconds"], lambda: held_out_loss(made.folder, work))

    return run


def sentence_transformers(precision: str, mini_batch: int | None = None) -> Trainer:
    """Train by CrossEncoderTrainer with RankNetLoss. ``mini_batch`` is pairs per forward, by default lists per step."""

    def run(work: Work) -> Trained:
        from datasets import Dataset
        from sentence_transformers import CrossEncoder
        from sentence_transformers.base.sampler import DefaultBatchSampler
        from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
        from sentence_transformers.cross_encoder.losses import RankNetLoss
        from torch.utils.data import SequentialSampler

        def in_order(dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
            return DefaultBatchSampler(
                SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last, **options
            )

        out = _fresh(work, f"st-{precision}")
        model = CrossEncoder(str(work.base), max_length=work.max_length, device=work.device)
        dataset = Dataset.from_dict(
            {
                "query": [one.query for one in work.lists],
                "docs": [one.passages for one in work.lists],
                "labels": [one.labels for one in work.lists],
            }
        )
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(out), num_train_epochs=1, per_device_train_batch_size=work.per_step, batch_sampler=in_order,
            learning_rate=work.lr, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, seed=SEED,
            bf16=precision == "bf16", use_cpu=work.device == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        loss = RankNetLoss(model, reduction_log="natural", mini_batch_size=mini_batch)
        trainer = CrossEncoderTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
        with contextlib.redirect_stdout(None):  # it prints its figures
            result = trainer.train()
        if result.global_step != len(work.steps):
            raise RuntimeError(f"trained {result.global_step} steps, not {len(work.steps)}")
        model.save_pretrained(str(out / "model"))
        return Trained(float(result.metrics["train_runtime"]), lambda: held_out_loss(out / "model", work))

    return run


def lightning_ir(precision: str) -> Trainer:
    """Train by lightning-ir's training step in a plain loop, which costs less than its trainer."""

    def run(work: Work) -> Trained:
        from lightning_ir import TrainBatch
        from lightning_ir.loss import RankNet
        from transformers import AutoTokenizer

        out = _fresh(work, f"lir-{precision}")
        tokenizer = AutoTokenizer.from_pretrained(work.base)
        longest = max(len(ids) - 2 for ids in tokenizer([one.query for one in work.lists])["input_ids"])
        warnings.filterwarnings("ignore", message=".*self.log.*")
        module = lightning_peer.module(
            work.base, work.max_length, query_length=min(longest, work.max_length // 2), same_head=True,
            loss_functions=[RankNet()],
        ).to(work.device)  # fmt: skip
        module.train()
        optimiser = torch.optim.AdamW(module.parameters(), lr=work.lr, weight_decay=0.0)
        began = time.perf_counter()
        for number, lists in enumerate(work.steps):
            batch = TrainBatch(
                queries=[one.query for one in lists],
                docs=[one.passages for one in lists],
                query_ids=[str(i) for i in range(len(lists))],
                targets=torch.tensor([one.labels for one in lists], device=work.device),
            )
            with torch.autocast(torch.device(work.device).type, torch.bfloat16, enabled=precision == "bf16"):
                loss = module.training_step(batch, number)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        module.model.save_pretrained(out / "model")
        module.eval()
        return Trained(
            seconds, lambda: ranknet(work.held_out, lambda one: module.score(one.query, one.passages).scores)
        )

    return run


def _fresh(work: Work, name: str) -> Path:
    """Make an empty folder for one training."""
    folder = work.scratch / work.name / f"{name}-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    return folder
