"""Stage `voice`: supervised fine-tuning of a base model on her dialogues.

- The loss counts the answer alone; prompts are context. Tokens of memories and expression weigh more
  (`voice.tag_weight`): they are few, and each decides more than a word does.
- A pretrained base gets a low-rank adapter (LoRA, arXiv:2106.09685), which can continue a trained one
  (`voice.start`); a base with random weights is trained in whole (`settings["trains"]` of the base decides).
- Held-out rows are scored several times an epoch; training ends early when that stops helping, and the best
  weights are what the folder holds.
- A killed training goes on where it was (`ohlora.llm.training`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ohlora.artifacts import ArtifactError, Manifest, sha256_file, verify
from ohlora.config import Config, VoiceConfig, state_dir
from ohlora.llm.engine import Voice
from ohlora.llm.likelihood import IGNORED, Example, bits_per_character, encode, read_rows
from ohlora.llm.precision import trains_in_bfloat16
from ohlora.llm.training import (
    SAVE_EVERY_S,
    Progress,
    Recorder,
    Trained,
    ordered_batches,
    padding_share,
    trainer_arguments,
)
from ohlora.llm.weights import (
    BASE_KIND,
    DoesNotFit,
    load_adapted,
    load_network,
    load_tokenizer,
    pick_device,
    save_voice,
    take_adapter,
)
from ohlora.stage import Journal, Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SAMPLES = 4  # replies to unseen messages in the report
WATCHED = 3  # prompts that are answered at each evaluation
CURVES, SAMPLES_FILE = "training.png", "samples.jsonl"


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train the adapter of `artifacts/voice` on the stage `dialogues`.

    Raises:
        ArtifactError: base or dialogues are missing or damaged, or `voice.start` is.
        TrainingError: the loss is not finite.
    """
    started = time.monotonic()
    folder, dialogues, voice = outputs["output"], inputs["dialogues"], config.voice
    folder.mkdir(parents=True, exist_ok=True)
    base_manifest = verify(inputs["base"], BASE_KIND)
    full = base_manifest.settings["trains"] == "full"
    rows = {split: read_rows(dialogues, split) for split in ("train", "valid", "test")}
    if not rows["train"] or not rows["valid"] or not rows["test"]:
        raise ArtifactError("the dialogues have no train, no valid or no test rows")
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    device = pick_device(config.runtime.device)
    mixed = trains_in_bfloat16(config.runtime, device, full)
    tokenizer = load_tokenizer(inputs["base"])
    base = load_network(inputs["base"], torch.bfloat16 if mixed and not full else torch.float32).to(device)  # type: ignore[arg-type]
    limit = min(voice.max_length, base.config.max_position_embeddings)
    examples = {
        "train": encode(tokenizer, rows["train"], limit, voice.tag_weight),
        "valid": encode(tokenizer, spread(rows["valid"], voice.evaluate_rows), limit),
        "test": encode(tokenizer, spread(rows["test"], voice.evaluate_rows), limit),
    }
    notes = [cut_note(examples, limit)]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(voice.seed)  # the first weights of an adapter come from the global generator
        network: Any = base if full else add_adapter(base, voice)
    start, speed = "", 1.0
    if voice.start:
        start, note = continue_from(network, Path(voice.start), base_manifest, voice)
        notes.append(note)
        speed = voice.continued_speed if start else 1.0
    before = bits_per_character(network, examples["test"], mixed=mixed)

    trained = Trained(network, voice.learning_rate * speed)
    started_as = {n: p.detach().clone() for n, p in trained.parameters.items()} if start else {}
    name = fingerprint(config, base_manifest, dialogues, start)
    checkpoint = state_dir(config, Path()) / "checkpoints" / "voice" / name / "state.safetensors"
    if trained.resume(checkpoint):
        notes.append(f"Resumed at step {trained.progress.step} from a checkpoint.")
    elif start:  # a few steps that do not help must not replace what they started from
        trained.keep_if_best(bits_per_character(network, examples["valid"], mixed=mixed))
    watched = spread(rows["valid"], WATCHED)

    def evaluate(step: int) -> float:
        score = bits_per_character(network, examples["valid"], mixed=mixed)
        journal.log(step, valid_bits_per_character=score)
        for row in sample_replies(network, tokenizer, watched, config):
            trained.progress.samples.append({"step": step, **row})
        write_samples(trained.progress, folder / SAMPLES_FILE)
        return score

    figures = fit(trained, tokenizer, examples["train"], config, journal, mixed, evaluate, checkpoint)
    progress = trained.progress
    if progress.stopped:
        notes.append(f"Ended early at step {progress.step}: best at step {progress.best_step}.")
    if start and progress.best_step == 0:
        notes.append(f"No step was better on held-out rows than {voice.start}: its weights are kept.")
    trained.take_best()
    valid_bits = progress.best
    if start and progress.best_step and voice.blend < 1:
        trained.blend(started_as, voice.blend)
        valid_bits = bits_per_character(network, examples["valid"], mixed=mixed)
        notes.append(f"Kept {voice.blend:.0%} of what training changed (voice.blend).")
    save_voice(
        network,
        tokenizer,
        folder,
        base_manifest,
        {
            "profile": config.profile,
            "training": voice.model_dump(mode="json", exclude={"candidates"}),
            "train_sha256": sha256_file(dialogues / "train.parquet"),
            "start": start,
        },
    )
    checkpoint.unlink(missing_ok=True)
    plot_curves(progress, folder / CURVES)
    served = load_adapted(inputs["base"], folder)[0].to(device)  # type: ignore[arg-type]
    metrics = {
        "bits_per_character": bits_per_character(served, examples["test"]),
        "valid_bits_per_character": valid_bits,
        ("start_bits_per_character" if start else "base_bits_per_character"): before,
        "train_loss": mean(point["loss"] for point in progress.curves[-10:]),
        "steps": float(progress.step),
        "best_step": float(progress.best_step),
        "rows": float(len(rows["train"])),
        "rows_cut": float(sum(e.cut > 0 for part in examples.values() for e in part)),
        **figures,
    }
    samples = sample_replies(served, tokenizer, spread(rows["test"], SAMPLES), config)
    metrics["seconds"] = time.monotonic() - started
    return Report(
        metrics=metrics,
        pictures={"Loss of the voice": CURVES},
        tables={"Replies to unseen messages": samples, "Replies over time": progress.samples},
        notes=notes,
    )


class WeightedTrainer(SFTTrainer):
    """TRL's trainer with a weight per token, from the column `weights`."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weights = inputs.pop("weights")[:, 1:]
        # TRL's head gives log probabilities [batch, width - 1], zero where a label is ignored
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        loss = -(outputs.log_probs * weights).sum() / weights.sum()
        return (loss, outputs) if return_outputs else loss


def collate(batch: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows as tensors [rows, longest], padded on the right."""
    width = max(len(row["input_ids"]) for row in batch)

    def column(name: str, filler: float) -> torch.Tensor:
        return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in batch])

    return {
        "input_ids": column("input_ids", pad),
        "labels": column("labels", IGNORED),
        "weights": column("weights", 0.0),
        "attention_mask": torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
        ),
    }


def fit(
    trained: Trained,
    tokenizer: PreTrainedTokenizerFast,
    part: Sequence[Example],
    config: Config,
    journal: Journal,
    mixed: bool,
    evaluate: Any,
    checkpoint: Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> dict[str, float]:
    """Train to the last step, or until the held-out score stops improving.

    Args:
        trained: what to train; tells afterwards how it went, with the weights of the last step.
        tokenizer: for the pad token.
        part: train rows.
        config: settings.
        journal: where curves and the progress bar go.
        mixed: compute in bfloat16.
        evaluate: held-out score at a step; lower is better.
        checkpoint: file that the state is saved to.
        save_every_s: how often, in seconds.

    Returns:
        `padding_share` of what was computed, and `tokens_per_second` (without padding and evaluation).
    """
    voice = config.voice
    per_epoch = -(-len(part) // voice.batch_size)
    steps = max(1, round(per_epoch * voice.epochs))
    lengths = [len(e.input_ids) for e in part]
    batches = ordered_batches(lengths, voice.batch_size, steps, voice.seed)
    left = [row for batch in batches[trained.progress.step :] for row in batch]
    if not left or trained.progress.stopped:
        return {"padding_share": padding_share(lengths, batches)}
    recorder = Recorder(
        trained,
        journal,
        "voice",
        steps,
        voice.seed,
        evaluate,
        max(1, round(per_epoch * voice.evaluate_every)),
        voice.patience,
        checkpoint,
        save_every_s,
    )
    pad: int = tokenizer.pad_token_id
    device = next(iter(trained.parameters.values())).device
    done, started = trained.progress.step, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ohlora-sft-") as scratch, torch.random.fork_rng():
        trainer = WeightedTrainer(
            model=trained.network,  # type: ignore[arg-type]
            args=SFTConfig(
                **trainer_arguments(
                    scratch, len(left) // voice.batch_size, voice.batch_size, voice.seed, device, mixed
                ),
                train_sampling_strategy="sequential",
                dataset_kwargs={"skip_prepare_dataset": True},
                remove_unused_columns=False,  # the weights are no input of the network
            ),
            train_dataset=Dataset.from_dict(
                {
                    "input_ids": [part[row].input_ids for row in left],
                    "labels": [part[row].labels for row in left],
                    "weights": [part[row].weights for row in left],
                }
            ),
            data_collator=lambda batch: collate(batch, pad),
            processing_class=tokenizer,
            optimizers=(trained.optimizer, trained.schedule(steps)),
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = time.monotonic() - started - recorder.seconds_of_evaluation
    computed = batches[done : trained.progress.step]
    return {
        "padding_share": padding_share(lengths, batches),
        "tokens_per_second": sum(lengths[row] for batch in computed for row in batch) / seconds,
    }


def add_adapter(base: PreTrainedModel, voice: VoiceConfig) -> Any:
    """Wrap a base with low-rank adapters of the configured shape, float32."""
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


def continue_from(network: Any, folder: Path, base: Manifest, voice: VoiceConfig) -> tuple[str, str]:
    """Give a network the weights of a trained adapter.

    Returns:
        The adapter's digest, empty if it does not fit (nothing changed then), and a note about it.

    Raises:
        ArtifactError: the folder is missing or corrupt.
    """
    try:
        manifest = take_adapter(network, folder, base, voice.lora_alpha)
    except DoesNotFit as reason:
        return "", f"{voice.start} {reason}: started from the base."
    return manifest.digest, f"Continued from {voice.start}, digest {manifest.digest[:12]}."


def fingerprint(config: Config, base: Manifest, dialogues: Path, start: str) -> str:
    """Names a training: the same settings, base and start on the same data continue the same checkpoint."""
    body = [
        config.voice.model_dump_json(exclude={"candidates"}),
        config.runtime.precision,
        base.digest,
        start,
        sha256_file(dialogues / "train.parquet"),
    ]
    return hashlib.sha256("\n".join(body).encode()).hexdigest()[:16]


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many rows, evenly from the whole list.

    >>> spread(range(10), 4)
    [0, 2, 5, 7]
    """
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def cut_note(examples: dict[str, list[Example]], limit: int) -> str:
    """How long rows are, and whether any lost the beginning of its prompt."""
    parts = [e for part in examples.values() for e in part]
    cut, longest = sum(e.cut > 0 for e in parts), max(len(e.input_ids) + e.cut for e in parts)
    if not cut:
        return f"The longest row has {longest} tokens; none is cut."
    return (
        f"{cut} rows are longer than {limit} tokens: their prompts lose the beginning (longest: {longest})."
    )


def sample_replies(
    network: Any, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]], config: Config
) -> list[dict[str, Any]]:
    """Completions of a few prompts beside the answers that were written for them."""
    was_training = network.training
    voice = Voice(network, tokenizer)
    generator = torch.Generator().manual_seed(config.voice.seed)
    samples = [
        {
            "message": row["user"],
            "memories": "; ".join(row["memories_read"]),
            "written": row["completion"].strip(),
            "sampled": voice.complete(row["prompt"], generator, config.generation).strip(),
        }
        for row in rows
    ]
    network.train(was_training)
    return samples


def write_samples(progress: Progress, path: Path) -> None:
    """One JSON line per sample, to be read while training runs."""
    lines = [json.dumps(sample, ensure_ascii=False) for sample in progress.samples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plot_curves(progress: Progress, path: Path) -> None:
    """Training loss per step, and the held-out score at each evaluation."""
    figure, left = plt.subplots(figsize=(7, 3.4), layout="constrained")
    left.plot([p["step"] for p in progress.curves], [p["loss"] for p in progress.curves], color="tab:blue")
    left.set(xlabel="step", ylabel="training loss (weighted nats per token)")
    right = left.twinx()
    right.plot(*zip(*progress.scores, strict=True), "o--", color="tab:red")
    right.set_ylabel("valid bits per character", color="tab:red")
    figure.savefig(path, dpi=110)
    plt.close(figure)
