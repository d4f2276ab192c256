"""Stage `memory`: fine-tune the sentence encoder so that a message finds the memory that it needs.

Untuned multilingual-e5 puts every pair of short Korean texts at a cosine near 0.85, so that no threshold
tells a useful memory from a useless one. Training spreads the cosines over the labelled scores. Valid pairs
calibrate the threshold, test pairs judge; keys of test memories never occur in training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ohlora.artifacts import sha256_file, verify
from ohlora.config import Config, EncoderTraining, RuntimeConfig
from ohlora.memory.adapter import add_lora, save_adapter
from ohlora.memory.batching import MessageBatches, OncePerText
from ohlora.memory.encoder import Encoder, encoder_settings, load_tokenizer, network_kwargs
from ohlora.memory.metrics import Similarities, calibrate, evaluate
from ohlora.memory.pairs import NEEDED, UNNEEDED, Pair, load_pairs, of_split
from ohlora.stage import Journal, Report

LOSSES = {"cosine": CosineSimilarityLoss, "cosent": CoSENTLoss}
PICTURE = "cosines.png"


@dataclass(frozen=True)
class Judged:
    """An encoder's figures and what the picture needs."""

    threshold: float
    valid: dict[str, float]
    test: dict[str, float]
    cosines: np.ndarray  # float32 [n] of the test pairs


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train the adapter on `inputs["pairs"]` over `inputs["base"]`, judge it beside the untuned base.

    Raises:
        ArtifactError: the base folder is corrupt.
        PairError: the pairs do not hold.
    """
    base_folder, out = inputs["base"], outputs["output"]
    base = verify(base_folder, "base-encoder")
    path = inputs["pairs"] / Path(config.memory.pairs).name
    pairs = load_pairs(path)
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)

    model = build(config.memory, base_folder, config.runtime.device)
    transformer = cast(Transformer, model[0])
    settings = {**encoder_settings(base), "max_length": config.memory.max_length}
    encoder = Encoder(transformer.model, load_tokenizer(base_folder), **settings)
    before = judge(encoder, pairs)
    if base.settings["trains"] == "lora":
        encoder.model = add_lora(transformer.model, config.memory.lora_rank, config.memory.seed)
        transformer.model = encoder.model  # type: ignore[assignment]  # a PeftModel stands in for its base
    fit(model, of_split(pairs, "train"), encoder.prefixes, config.memory, config.runtime, journal)
    after = judge(encoder, pairs)

    save_adapter(
        encoder.model,
        out,
        base=base,
        settings={"threshold": after.threshold, "max_length": config.memory.max_length},
        provenance={
            "profile": config.profile,
            "pairs_sha256": sha256_file(path),
            "epochs": config.memory.epochs,
            "loss": config.memory.loss,
            "seed": config.memory.seed,
            "licence": str(base.provenance.get("licence", "")),
        },
    )
    plot(before, after, of_split(pairs, "test"), out / PICTURE)
    return Report(
        metrics={
            **after.test,
            "threshold": after.threshold,
            **{f"valid_{name}": value for name, value in after.valid.items()},
            **{f"base_{name}": value for name, value in before.test.items()},
        },
        pictures={"Cosine of test pairs, untuned and tuned": PICTURE},
        tables={"Untuned base and tuned encoder": _table(before, after)},
        notes=_notes(before, after),
    )


def build(settings: EncoderTraining, base: Path, device: str) -> SentenceTransformer:
    """The base as a sentence-transformers model: transformer, mean pooling, normalisation."""
    transformer = Transformer(
        str(base),
        max_seq_length=settings.max_length,
        model_kwargs={**network_kwargs(base), "trust_remote_code": False},
    )
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(
        modules=[transformer, pooling, Normalize()], device=None if device == "auto" else device
    )


def fit(
    model: SentenceTransformer,
    pairs: Sequence[Pair],
    prefixes: dict[str, str],
    settings: EncoderTraining,
    runtime: RuntimeConfig,
    journal: Journal,
    speed: float = 1.0,
) -> None:
    """Train `model` in place; the texts get the prefixes that they have at inference.

    Args:
        model: what `build` made.
        pairs: messages and what they are compared with.
        prefixes: of messages (`query`) and of the others (`passage`).
        settings: of the training.
        runtime: the precision.
        journal: gets the curves.
        speed: times the learning rate.
    """
    dataset = Dataset.from_dict(
        {
            "message": [prefixes["query"] + pair.message for pair in pairs],
            "memory": [prefixes["passage"] + pair.memory for pair in pairs],
            "score": [pair.score for pair in pairs],
        }
    )
    on_gpu = model.device.type == "cuda"
    half = on_gpu and runtime.precision != "float32" and torch.cuda.is_bf16_supported()
    with tempfile.TemporaryDirectory() as scratch:  # the trainer insists on a folder; nothing is kept there
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=scratch,
                use_cpu=not on_gpu,
                bf16=half,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                learning_rate=settings.learning_rate * speed,
                warmup_steps=0.1,
                lr_scheduler_type="linear",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                seed=settings.seed,
                batch_sampler=MessageBatches,
                dataloader_pin_memory=on_gpu,
            ),
            train_dataset=dataset,
            loss=OncePerText(model, LOSSES[settings.loss](model)),
            callbacks=[_Curves(journal)],
        )
        trainer.train()


def judge(encoder: Encoder, pairs: Sequence[Pair]) -> Judged:
    """Calibrate the threshold on valid pairs, then score valid and test with it."""
    valid = Similarities.of(encoder, of_split(pairs, "valid"))
    test = Similarities.of(encoder, of_split(pairs, "test"))
    threshold = calibrate(valid)
    return Judged(
        threshold=threshold,
        valid=evaluate(valid, threshold),
        test=evaluate(test, threshold),
        cosines=test.of_pairs,
    )


def plot(before: Judged, after: Judged, test: Sequence[Pair], path: Path) -> None:
    """Above: cosine against labelled score. Below: cosines of needed and other memories."""
    scores = np.array([pair.score for pair in test])
    jitter = np.random.default_rng(0).uniform(-0.015, 0.015, len(scores))  # labels are few distinct values
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), sharex="col", layout="constrained")
    for column, (name, judged) in enumerate((("untuned base", before), ("tuned", after))):
        top, bottom = axes[:, column]
        top.scatter(judged.cosines, scores + jitter, s=7, alpha=0.4)
        top.set(title=f"{name}: Pearson {judged.test['pearson']:.3f}", ylabel="labelled score")
        groups = [judged.cosines[scores <= UNNEEDED], judged.cosines[scores >= NEEDED]]
        bottom.hist(groups, bins=30, label=["not needed", "needed"])
        bottom.axvline(judged.threshold, color="black", linestyle="--", label="threshold (valid)")
        bottom.set(xlabel="cosine of message and memory", ylabel="test pairs")
        bottom.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _table(before: Judged, after: Judged) -> list[dict[str, Any]]:
    rows = []
    for name, judged in (("untuned base", before), ("tuned", after)):
        for split, figures in (("valid", judged.valid), ("test", judged.test)):
            rounded = {metric: round(value, 4) for metric, value in figures.items()}
            rows.append({"encoder": name, "split": split, "threshold": round(judged.threshold, 4), **rounded})
    return rows


def _notes(before: Judged, after: Judged) -> list[str]:
    if after.test["pearson"] > before.test["pearson"]:
        return []
    return ["The tuned encoder does not correlate better with the labels than its untuned base."]


class _Curves(TrainerCallback):
    """Copies the trainer's log into the journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        curves = {name: logs[name] for name in ("loss", "learning_rate") if logs and name in logs}
        if curves:
            self.journal.log(state.global_step, **curves)
