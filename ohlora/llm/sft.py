"""Stage `voice`: supervised fine-tuning of a base model on her dialogues.

- The loss counts the answer alone; prompts are context.
- A pretrained base gets a low-rank adapter (LoRA, arXiv:2106.09685); one with random weights is trained in
  whole (`settings["trains"]` of the base decides).
- After each epoch the valid split is scored, and the best epoch is what the folder holds.
- Mixed precision where it is faster (`ohlora.llm.precision`).
- Not resumable: a checkpoint of transformers' trainer holds pickles, and the default run takes two minutes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from transformers import TrainerCallback

from ohlora.artifacts import ArtifactError, Manifest, sha256_file, verify, write_manifest
from ohlora.config import Config, VoiceConfig
from ohlora.llm.engine import Voice
from ohlora.llm.likelihood import Example, bits_per_character, encode, read_rows
from ohlora.llm.precision import uses_bfloat16
from ohlora.llm.weights import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_KIND,
    KIND,
    load_network,
    load_tokenizer,
    open_to_all,
    pick_device,
)
from ohlora.stage import Journal, Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SAMPLES = 12
CURVES = "training.png"


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train the adapter of `artifacts/voice` on the stage `dialogues`.

    Raises:
        ArtifactError: base or dialogues are missing or damaged.
    """
    folder, dialogues = outputs["output"], inputs["dialogues"]
    base_manifest = verify(inputs["base"], BASE_KIND)
    rows = {split: read_rows(dialogues, split) for split in ("train", "valid", "test")}
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    tokenizer = load_tokenizer(inputs["base"])
    base = load_network(inputs["base"], torch.float32).to(pick_device(config.runtime.device))  # type: ignore[arg-type]
    examples = {split: encode(tokenizer, part, config.voice.max_length) for split, part in rows.items()}
    mixed = uses_bfloat16(config.runtime, base.device)

    before = bits_per_character(base, examples["test"], mixed=mixed)
    network, recorder = fit(base, tokenizer, examples, base_manifest, config, journal)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(network, tokenizer, folder, base_manifest, config, dialogues)
    plot_curves(recorder, folder / CURVES)
    if hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload()  # what will be served, and faster than base beside adapter
    every = max(1, len(rows["test"]) // SAMPLES)
    samples = sample_replies(network, tokenizer, rows["test"][::every][:SAMPLES], config, journal)
    metrics = {
        "bits_per_character": bits_per_character(network, examples["test"], mixed=mixed),
        "valid_bits_per_character": recorder.best,
        "base_bits_per_character": before,
        "train_loss": mean(loss for _, loss in recorder.losses[-10:]),
        "steps": float(recorder.losses[-1][0]),
        "rows": float(len(rows["train"])),
    }
    return Report(
        metrics=metrics,
        pictures={"Loss of the voice": CURVES},
        tables={"Replies to unseen messages": samples},
    )


class Recorder(TrainerCallback):
    """Curves, progress bar, valid score after each epoch, and the weights of the best one."""

    def __init__(
        self, valid: Sequence[Example], journal: Journal, steps: int, tokens_per_epoch: int, mixed: bool
    ) -> None:
        self.valid, self.journal, self.mixed, self.tokens_per_epoch = valid, journal, mixed, tokens_per_epoch
        self.losses: list[tuple[int, float]] = []  # step, nats per token
        self.scores: list[tuple[int, float]] = []  # step, bits per character
        self.best, self.best_weights = float("inf"), {}  # type: float, dict[str, torch.Tensor]
        self._bar: Iterator[int] = iter(journal.progress(range(steps), "voice", total=steps))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        next(self._bar, None)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, float(logs["loss"])))
            self.journal.log(
                state.global_step,
                loss=float(logs["loss"]),
                learning_rate=float(logs.get("learning_rate", 0.0)),
                tokens=float(state.epoch or 0) * self.tokens_per_epoch,
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        score = bits_per_character(model, self.valid, mixed=self.mixed)
        self.scores.append((state.global_step, score))
        self.journal.log(state.global_step, valid_bits_per_character=score)
        if score < self.best:
            self.best, self.best_weights = score, trainable(model)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        next(self._bar, None)  # closes the bar


def trainable(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copies of the weights that training changes."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def fit(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: dict[str, list[Example]],
    base_manifest: Manifest,
    config: Config,
    journal: Journal,
) -> tuple[Any, Recorder]:
    """Train on `examples["train"]`; returns the network with the weights of the best epoch, in eval mode."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    voice, mixed = config.voice, uses_bfloat16(config.runtime, base.device)
    part = examples["train"]
    if not part or not examples["valid"]:
        raise ArtifactError("the dialogues have no train or no valid rows")
    steps = -(-len(part) // voice.batch_size) * voice.epochs
    recorder = Recorder(
        examples["valid"], journal, max(1, round(steps)), sum(len(e.input_ids) for e in part), mixed
    )
    with tempfile.TemporaryDirectory(prefix="ohlora-sft-") as scratch, torch.random.fork_rng():
        torch.manual_seed(voice.seed)  # peft and the trainer draw from the global generator
        network: Any = base if base_manifest.settings["trains"] == "full" else add_adapter(base, voice)
        trainer = SFTTrainer(
            model=network,
            args=SFTConfig(
                output_dir=scratch,
                # optimisation
                num_train_epochs=voice.epochs,
                per_device_train_batch_size=voice.batch_size,
                learning_rate=voice.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,  # below 1 it is a share of all steps
                weight_decay=0.0,
                max_grad_norm=1.0,
                seed=voice.seed,
                # batches: rows of similar length together, so that little is computed on padding
                train_sampling_strategy="group_by_length",
                max_length=voice.max_length,
                dataset_kwargs={"skip_prepare_dataset": True},
                # device
                use_cpu=base.device.type == "cpu",
                bf16=mixed,
                gradient_checkpointing=False,
                # nothing but what the recorder writes
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(
                {"input_ids": [e.input_ids for e in part], "labels": [e.labels for e in part]}
            ),
            processing_class=tokenizer,
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    network = trainer.accelerator.unwrap_model(trainer.model)
    network.load_state_dict(recorder.best_weights, strict=False)
    return network.eval(), recorder


def add_adapter(base: PreTrainedModel, voice: VoiceConfig) -> Any:
    """Wrap a base with low-rank adapters of the configured shape."""
    from peft import LoraConfig, get_peft_model

    try:
        return get_peft_model(
            base,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=voice.lora_rank,
                lora_alpha=voice.lora_alpha,
                lora_dropout=voice.lora_dropout,
                target_modules=voice.target_modules,
            ),
        )
    except ValueError as error:
        raise ArtifactError(f"voice.target_modules does not fit the base: {error}") from error


def save(
    network: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    base_manifest: Manifest,
    config: Config,
    dialogues: Path,
) -> Manifest:
    """Write the adapter as float16 safetensors (or all weights of a random base) and its manifest."""
    voice = config.voice
    kind = "full" if base_manifest.settings["trains"] == "full" else "lora"
    if kind == "full":
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        weights = {k: v.half().cpu().contiguous() for k, v in get_peft_model_state_dict(network).items()}
        save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        settings = network.peft_config["default"]
        settings.base_model_name_or_path = base_manifest.settings[
            "name"
        ]  # peft would write a path of this machine
        settings.inference_mode = True
        settings.save_pretrained(folder)
        assert (folder / ADAPTER_CONFIG).is_file()
    open_to_all(folder)
    return write_manifest(
        folder,
        KIND,
        files=[p.name for p in folder.iterdir() if p.is_file()],
        settings={"type": kind, "base": base_manifest.settings["name"]},
        base={"name": base_manifest.settings["name"], "sha256": base_manifest.digest},
        provenance={
            "profile": config.profile,
            "training": voice.model_dump(mode="json"),
            "train_sha256": sha256_file(dialogues / "train.parquet"),
            "licence": base_manifest.provenance.get("licence", ""),
        },
    )


def sample_replies(
    network: Any,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[dict[str, Any]],
    config: Config,
    journal: Journal,
) -> list[dict[str, Any]]:
    """Completions of a few prompts beside the answers that were written for them."""
    voice = Voice(network, tokenizer)
    generator = torch.Generator().manual_seed(config.voice.seed)
    return [
        {
            "message": row["user"],
            "memories": "; ".join(row["memories_read"]),
            "written": row["completion"].strip(),
            "sampled": voice.complete(row["prompt"], generator, config.generation).strip(),
        }
        for row in journal.progress(rows, "sample replies")
    ]


def plot_curves(recorder: Recorder, path: Path) -> None:
    """Training loss per step, and the valid score at the end of each epoch."""
    figure, left = plt.subplots(figsize=(7, 3.4), layout="constrained")
    left.plot(*zip(*recorder.losses, strict=True), color="tab:blue")
    left.set(xlabel="step", ylabel="training loss (nats per token)")
    right = left.twinx()
    right.plot(*zip(*recorder.scores, strict=True), "o--", color="tab:red")
    right.set_ylabel("valid bits per character", color="tab:red")
    figure.savefig(path, dpi=110)
    plt.close(figure)
