"""Stage `preference`: KTO (arXiv:2402.01306) on written and undesirable replies, after fine-tuning.

- KTO needs no pairs and no judge: a reply is wanted or not. Wanted ones were written; others are made from
  them by rules (`ohlora.llm.undesirable`). Her own samples are sorted by readers or rules
  (`ohlora.llm.own_replies`).
- The reference is the fine-tuned model, as a second, frozen adapter. Switching the adapter off would make it
  the base, and the loss would then pull her back to a model that never was her.
- What her own samples shall not change is held by `preference.retention` (`ohlora.llm.retention`).
- Held-out rows decide: the weights with the best held-out loss are kept, the fine-tuned ones included, and
  none that find the written replies less likely than `MOST_LOSS` allows.
- With `preference.steps: 0` the fine-tuned adapter is passed on as it is.
"""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from torch.nn.functional import kl_div
from transformers.trainer_callback import PrinterCallback
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.utils import use_adapter

from ohlora.artifacts import MANIFEST, ArtifactError, Manifest, sha256_file, verify
from ohlora.config import Config, PreferenceConfig, state_dir
from ohlora.llm.likelihood import Example, bits_per_character, encode, log_likelihoods, read_rows
from ohlora.llm.own_replies import OwnReplies, read_own_replies
from ohlora.llm.precision import trains_in_bfloat16
from ohlora.llm.retention import next_words, retained
from ohlora.llm.sft import spread
from ohlora.llm.training import SAVE_EVERY_S, Progress, Recorder, Trained, ordered_batches, trainer_arguments
from ohlora.llm.undesirable import Preference, pairs
from ohlora.llm.weights import (
    check_pair,
    load_tokenizer,
    load_trainable,
    pick_device,
    save_voice,
)
from ohlora.persona.card import load_card
from ohlora.persona.dialogues import CARD_FILE
from ohlora.stage import Journal, Report

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CURVES = "preference.png"
MOST_LOSS = 0.02  # share by which held-out bits per character may rise
FIGURES = (
    "loss",
    "learning_rate",
    "kl",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "retention",
)


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Make the adapter of `artifacts/preference` from the one of the stage `voice`.

    Raises:
        ArtifactError: base, adapter or dialogues are missing, damaged or do not belong together.
        TrainingError: the loss is not finite.
    """
    started = time.monotonic()
    folder, dialogues, settings = outputs["output"], inputs["dialogues"], config.preference
    folder.mkdir(parents=True, exist_ok=True)
    base_manifest, start = check_pair(inputs["base"], inputs["voice"])
    if settings.steps == 0:
        pass_on(inputs["voice"], folder, start)
        return Report(notes=[f"preference.steps is 0: the fine-tuned adapter {start.digest[:12]} as it is."])
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    full = start.settings["type"] == "full"
    device = pick_device(config.runtime.device)
    mixed = trains_in_bfloat16(config.runtime, device, full)
    tokenizer = load_tokenizer(inputs["base"])
    dtype = torch.bfloat16 if mixed and not full else torch.float32
    network: Any = load_trainable(inputs["base"], inputs["voice"], start, dtype).to(device)
    limit = min(config.voice.max_length, network.config.max_position_embeddings)

    card = load_card(dialogues / CARD_FILE)
    rows = read_rows(dialogues, "train")
    own = read_own_replies(Path(settings.samples), card, rows) if settings.samples else OwnReplies()
    needed = settings.steps * settings.batch_size // 2
    few = -(-needed // 4)
    made = pairs(rows, card, few if settings.retention else max(needed, len(own.wanted)), settings.seed)
    held = pairs(read_rows(dialogues, "valid"), card, settings.evaluate_rows, settings.seed)
    held += own.held[: settings.evaluate_rows]
    if not made or not held:
        raise ArtifactError("no undesirable reply could be made from the dialogues' train or valid rows")
    # Written turns keep her declining and remembering where no retention does; of made-up faults a quarter is
    # enough where she has her own: at a rate at which she learns from those, they cost likelihood.
    desirable = [*(good for good, _ in made), *own.wanted]
    faults = max(needed - len(own.unwanted), few)
    undesirable = [*(bad for _, bad in made[:faults]), *own.unwanted]
    wanted, unwanted = (encode_all(tokenizer, part, limit) for part in (desirable, undesirable))
    kinds = Counter(reply.kind for reply in undesirable)

    test = encode(tokenizer, spread(read_rows(dialogues, "test"), config.voice.evaluate_rows), limit)
    held_out = HeldOut(tokenizer, held, limit, settings, mixed)
    test_before = bits_per_character(network, test, mixed=mixed)
    before = held_out.remember(network)
    trained = Trained(network, settings.learning_rate)
    trained.keep_if_best(before.loss)

    turns = retained(rows, own, card, settings)
    held_to = encode_all(tokenizer, turns, limit)

    name = fingerprint(config, base_manifest, start, dialogues, own)
    checkpoint = state_dir(config, Path()) / "checkpoints" / "preference" / name / "state.safetensors"
    notes = [
        f"{len(wanted)} desirable replies, {len(own.wanted)} of them by or for her own samples, and "
        f"{len(unwanted)} undesirable ones: "
        + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        + "."
    ]
    if settings.samples:
        notes.append(f"{settings.samples}: a change of this file does not make this stage stale.")
    if turns:
        parts = Counter(turn.kind for turn in turns)
        notes.append("Held to what it was on " + ", ".join(f"{n} {kind}" for kind, n in parts.items()) + ".")

    def evaluate(step: int) -> float:
        now = held_out.measure(network)
        journal.log(step, **{f"valid_{key}": value for key, value in now.figures().items()})
        return now.loss if now.bits <= before.bits * (1 + MOST_LOSS) else math.inf

    first = fit(trained, tokenizer, wanted, unwanted, config, journal, mixed, evaluate, checkpoint, held_to)
    if first:
        notes.append(f"Resumed at step {first} from a checkpoint.")
    progress = trained.progress
    trained.take_best()
    if progress.stopped:
        notes.append(f"Ended early at step {progress.step}: best at step {progress.best_step}.")
    if progress.best_step == 0:
        notes.append("No step was better on held-out rows than fine-tuning alone: its weights are kept.")
    nats = held_out.likelihoods(network)
    after = held_out.compare(nats)
    save_voice(
        network,
        tokenizer,
        folder,
        base_manifest,
        {
            **{key: value for key, value in start.provenance.items() if key != "licence"},
            "preference": settings.model_dump(mode="json"),
            "fine_tuned": start.digest,
        },
    )
    checkpoint.unlink(missing_ok=True)
    plot_curves(progress, folder / CURVES)
    last = progress.curves[-1]
    return Report(
        metrics={
            "bits_per_character": bits_per_character(network, test, mixed=mixed),
            "bits_per_character_before": test_before,
            **{f"valid_{key}": value for key, value in after.figures().items()},
            **{f"valid_{key}_before": value for key, value in before.figures().items()},
            "kl": last["kl"],
            "steps": float(progress.step),
            "best_step": float(progress.best_step),
            "rows_cut": float(sum(e.cut > 0 for e in [*wanted, *unwanted])),
            "seconds": time.monotonic() - started,
        },
        pictures={"Rewards, KL and held-out loss": CURVES},
        tables={
            "Held-out margin by kind": held_out.by_kind(nats),
            "Undesirable replies": [
                {
                    "message": good.prompt.splitlines()[-2],
                    "written": good.completion,
                    "kind": bad.kind,
                    "undesirable": bad.completion,
                }
                for good, bad in spread(made, 18)
            ],
        },
        notes=notes,
    )


@dataclass(frozen=True)
class Measured:
    """How a network takes the held-out rows."""

    loss: float  # KTO's, with no KL term: 1 where nothing was learnt, 0 at best
    bits: float  # per character of the written replies
    margin: float  # nats per token by which the written reply is likelier than the undesirable one
    preferred: float  # share of rows whose written reply is likelier per token
    reward_margin: float  # of KTO: beta * (log ratio of the written - log ratio of the undesirable)

    def figures(self) -> dict[str, float]:
        """The figures of a report."""
        return {
            "kto_loss": self.loss,
            "bits_per_character": self.bits,
            "margin": self.margin,
            "preferred_share": self.preferred,
            "reward_margin": self.reward_margin,
        }


class HeldOut:
    """Held-out rows with a written and an undesirable reply each."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        held: Sequence[tuple[Preference, Preference]],
        limit: int,
        settings: PreferenceConfig,
        mixed: bool,
    ) -> None:
        self.kinds = [bad.kind for _, bad in held]
        self.good = encode_all(tokenizer, [good for good, _ in held], limit)
        self.bad = encode_all(tokenizer, [bad for _, bad in held], limit)
        self.beta, self.mixed = settings.beta, mixed
        self.reference = torch.zeros(2, len(held))

    def remember(self, network: Any) -> Measured:
        """Take a network as the reference, and compare it with itself."""
        self.reference = self.likelihoods(network)
        return self.compare(self.reference)

    def likelihoods(self, network: Any) -> torch.Tensor:
        """Nats of the written and the undesirable replies, float32 [2, rows]."""
        return log_likelihoods(network, [*self.good, *self.bad], mixed=self.mixed).reshape(2, -1)

    def measure(self, network: Any) -> Measured:
        """Compare a network with the reference."""
        return self.compare(self.likelihoods(network))

    def compare(self, nats: torch.Tensor) -> Measured:
        """Compare the nats of a network, float32 [2, rows], with the reference's."""
        good, bad = self.beta * (nats - self.reference)
        margins = self.margins(nats)
        return Measured(
            loss=(2 - torch.sigmoid(good) - torch.sigmoid(-bad)).mean().item(),
            bits=-nats[0].sum().item() / math.log(2) / sum(e.characters for e in self.good),
            margin=margins.mean().item(),
            preferred=(margins > 0).float().mean().item(),
            reward_margin=(good - bad).mean().item(),
        )

    def margins(self, nats: torch.Tensor) -> torch.Tensor:
        """Difference of the mean nats per token of each row, float32 [rows]."""
        tokens = [[len(e.input_ids) - e.prompt_tokens for e in part] for part in (self.good, self.bad)]
        good, bad = nats / torch.tensor(tokens)
        return good - bad

    def by_kind(self, nats: torch.Tensor) -> list[dict[str, Any]]:
        """Margins before and after, float32 [2, rows], by what is wrong with the undesirable reply."""
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        old, new = self.margins(self.reference), self.margins(nats)
        for kind, one, other in zip(self.kinds, old.tolist(), new.tolist(), strict=True):
            found[kind].append((one, other))
        return [
            {
                "kind": kind,
                "rows": len(both),
                "margin before": round(sum(b for b, _ in both) / len(both), 3),
                "margin after": round(sum(a for _, a in both) / len(both), 3),
                "preferred before": round(sum(b > 0 for b, _ in both) / len(both), 3),
                "preferred after": round(sum(a > 0 for _, a in both) / len(both), 3),
            }
            for kind, both in sorted(found.items())
        ]


class PreparedTrainer(KTOTrainer):
    """TRL's trainer on rows that are tokenised already, with `encode` as everywhere else.

    TRL would tokenise prompt and completion together, and read names of special tokens in them.
    """

    held_to: Iterator[list[Example]] | None = None
    retention = 0.0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """KTO's loss, and the divergence from the reference on turns that shall stay as they are."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.held_to is None or not model.training:
            return loss
        batch = next(self.held_to)
        network = self.accelerator.unwrap_model(model)
        reference = self.ref_model or network
        with torch.no_grad(), nullcontext() if self.ref_model else use_adapter(network, "ref"):
            before = next_words(reference, batch)
        now = next_words(network, batch)
        moved = kl_div(now, before, reduction="sum", log_target=True) / len(batch)
        self._metrics["train"]["retention"].append(moved.item())
        return loss + self.retention * moved

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset


def fit(
    trained: Trained,
    tokenizer: PreTrainedTokenizerFast,
    wanted: Sequence[Example],
    unwanted: Sequence[Example],
    config: Config,
    journal: Journal,
    mixed: bool,
    evaluate: Any,
    checkpoint: Path | None = None,
    held_to: Sequence[Example] = (),
    save_every_s: float = SAVE_EVERY_S,
) -> int:
    """Train to the last step, or until the held-out loss stops improving; returns the step it went on from.

    Args:
        trained: the fine-tuned network; it is its own reference as it is now.
        tokenizer: for the pad token.
        wanted: written replies.
        unwanted: undesirable ones.
        config: settings.
        journal: where curves and the progress bar go.
        mixed: compute in bfloat16.
        evaluate: held-out loss at a step; lower is better.
        checkpoint: file that the state is saved to, and read from.
        held_to: turns on which it shall stay as it is, as far as `preference.retention` says.
        save_every_s: how often, in seconds.
    """
    settings, half = config.preference, config.preference.batch_size // 2
    network: Any = trained.network
    reference = {name: p.detach().clone() for name, p in trained.parameters.items()}
    adapted = hasattr(network, "peft_config")
    frozen = None if adapted else copy.deepcopy(network).requires_grad_(False)
    if checkpoint:
        trained.resume(checkpoint)
    first = trained.progress.step
    if trained.progress.stopped or first >= settings.steps:
        return first
    good = ordered_batches([len(e.input_ids) for e in wanted], half, settings.steps, settings.seed)
    bad = ordered_batches([len(e.input_ids) for e in unwanted], half, settings.steps, settings.seed)
    batches = [
        [(wanted[i], True) for i in one] + [(unwanted[i], False) for i in other]
        for one, other in zip(good, bad, strict=True)
    ][first:]
    recorder = Recorder(
        trained,
        journal,
        "preference",
        settings.steps,
        settings.seed,
        evaluate,
        settings.evaluate_every,
        settings.patience,
        checkpoint,
        save_every_s,
        FIGURES,
    )
    device = next(iter(trained.parameters.values())).device
    with tempfile.TemporaryDirectory(prefix="ohlora-kto-") as scratch, torch.random.fork_rng():
        trainer = PreparedTrainer(
            model=network,
            ref_model=frozen,
            args=KTOConfig(
                **trainer_arguments(scratch, len(batches), settings.batch_size, settings.seed, device, mixed),
                beta=settings.beta,
                desirable_weight=settings.desirable_weight,
                undesirable_weight=settings.undesirable_weight,
            ),
            train_dataset=Dataset.from_list([row for batch in batches for row in tokens_of(batch)]),
            processing_class=tokenizer,
            optimizers=(trained.optimizer, trained.schedule(settings.steps)),
            callbacks=[recorder],
        )
        if held_to:
            lengths = [len(e.input_ids) for e in held_to]
            order = ordered_batches(lengths, settings.batch_size, settings.steps, settings.seed)[first:]
            trainer.held_to = iter([[held_to[i] for i in rows] for rows in order])
            trainer.retention = settings.retention
        if adapted:  # TRL copies the adapter as it is now, which a checkpoint may have moved on
            with torch.no_grad():
                for name, value in reference.items():
                    network.get_parameter(name.replace(".default.", ".ref.")).copy_(value)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return first


def tokens_of(batch: Sequence[tuple[Example, bool]]) -> list[dict[str, Any]]:
    """A batch as TRL's columns. Each row also gets the completion of the row before it, for the KL term."""
    parts = [(e.input_ids[: e.prompt_tokens], e.input_ids[e.prompt_tokens :]) for e, _ in batch]
    return [
        {
            "prompt_ids": prompt,
            "completion_ids": completion,
            "KL_completion_ids": parts[i - 1][1],
            "label": label,
        }
        for i, ((prompt, completion), (_, label)) in enumerate(zip(parts, batch, strict=True))
    ]


def encode_all(
    tokenizer: PreTrainedTokenizerFast, replies: Sequence[Preference], limit: int
) -> list[Example]:
    """Replies as tokens; of those with `speech_only` the speech alone, without memories, expression and end.

    A whole turn among the undesirable ones would make its expression less likely, which is right.
    """
    rows = [{"prompt": r.prompt, "completion": r.completion} for r in replies]
    whole, marked = encode(tokenizer, rows, limit), encode(tokenizer, rows, limit, tag_weight=0.0)
    return [
        _speech(marked_one) if reply.speech_only else whole_one
        for reply, whole_one, marked_one in zip(replies, whole, marked, strict=True)
    ]


def _speech(example: Example) -> Example:
    """The example up to the first token whose weight is 0 after the prompt."""
    spoken = example.prompt_tokens + sum(weight > 0 for weight in example.weights) - 1  # but the end token
    return replace(
        example,
        input_ids=example.input_ids[:spoken],
        labels=example.labels[:spoken],
        weights=example.weights[:spoken],
    )


def pass_on(voice: Path, folder: Path, manifest: Manifest) -> None:
    """Copy a model folder, byte for byte."""
    for name in [*manifest.files, MANIFEST]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(voice / name, folder / name)
    verify(folder)


def fingerprint(config: Config, base: Manifest, start: Manifest, dialogues: Path, own: OwnReplies) -> str:
    """Names a training: the same settings and adapter on the same data continue the same checkpoint."""
    body = [
        config.preference.model_dump_json(),
        config.runtime.precision,
        str(config.voice.max_length),
        base.digest,
        start.digest,
        sha256_file(dialogues / "train.parquet"),
        sha256_file(dialogues / CARD_FILE),
        repr(own),
    ]
    return hashlib.sha256("\n".join(body).encode()).hexdigest()[:16]


def plot_curves(progress: Progress, path: Path) -> None:
    """Rewards of both kinds and the KL per step, and the held-out loss."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for key, label in (
        ("rewards/chosen", "reward, desirable"),
        ("rewards/rejected", "reward, undesirable"),
        ("kl", "KL (nats)"),
    ):
        points = [(p["step"], p[key]) for p in progress.curves if key in p]
        left.plot(*zip(*points, strict=True), label=label)
    left.set_xlabel("step")
    left.legend()
    scores = [(step, score) for step, score in progress.scores if math.isfinite(score)]
    right.plot(*zip(*scores, strict=True), "o--", color="tab:red")
    right.set(xlabel="step", ylabel="held-out KTO loss")
    figure.savefig(path, dpi=110)
    plt.close(figure)
