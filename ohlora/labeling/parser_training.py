"""Stage `parser`: train the face parser on portraits with masks, judge it on held-out identities.

Notable:
- Cross entropy on class shares with rare classes weighed up a little, plus Dice; the weights' moving average
  is the model; learning rate and batches are functions of (seed, step), and the state is saved every minute,
  so that a killed training goes on where it was.
- Portraits nobody drew a mask for (photos, generated ones) join in when a teacher is set: FaceXFormer parses
  them, and the parser learns its eleven classes as soft targets.
- What is judged is the model folder as it was written, not the network in memory.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ohlora.artifacts import sha256_file
from ohlora.attributes import FaceClass
from ohlora.config import Config, LabelingConfig, RuntimeConfig, state_dir
from ohlora.corpus.portraits import MANIFEST as CORPUS_MANIFEST
from ohlora.corpus.portraits import CorpusError, Portraits
from ohlora.labeling.augmentation import augment
from ohlora.labeling.parser import (
    Parser,
    as_input,
    autocast_dtype,
    build_network,
    load_network,
    pick_device,
    save,
    settings_of,
)
from ohlora.labeling.pictures import bars, overlay, sheet
from ohlora.labeling.segmentation import (
    CLASSES,
    class_shares,
    class_weights,
    each_mean_iou,
    iou_metrics,
    soft_cross_entropy,
    soft_dice_loss,
)
from ohlora.labeling.teacher import Teacher, distillation_loss
from ohlora.stage import Journal, Report

LOG_EVERY = 10  # steps
SAVE_EVERY_S = 60.0
WARM_UP = 0.05  # of the steps
SETTLED = 0.75  # share of portraits that are not warped in the last part of a training
WATCHED = 32  # held-out portraits that are scored during training
WATCHES = 5  # how often


@dataclass(frozen=True)
class Examples:
    """What the parser learns from; portraits without a mask have the teacher's opinion instead."""

    images: NDArray[np.uint8]  # [n, h, w, 3]
    masks: NDArray[np.uint8]  # [n, h, w] of FaceClass
    identity: NDArray[np.int64]  # [n]
    unlabeled: NDArray[np.uint8]  # [m, h, w, 3]
    opinions: NDArray[np.uint8]  # [m, 11, t, t] the teacher's probabilities in 255ths

    @classmethod
    def of(cls, portraits: Portraits, teacher: Teacher | None = None) -> Examples:
        """Portraits with a mask, and those without one as the teacher sees them.

        Raises:
            CorpusError: no portrait has a mask.
        """
        known = portraits.has_mask
        if not known.any():
            raise CorpusError("no portrait has a mask to train the parser on; render some: corpus.render")
        others = portraits.images[~known] if teacher else portraits.images[:0]
        opinions = teacher.opinions(others) if teacher else np.empty((0, 11, 1, 1), np.uint8)
        return cls(
            portraits.images[known], portraits.masks[known], portraits.identity[known], others, opinions
        )


class Training:
    """A network, its average over time and the optimiser; one step at a time."""

    def __init__(self, config: LabelingConfig, runtime: RuntimeConfig, examples: Examples) -> None:
        self.config, self.examples = config, examples
        self.settings = settings_of(config)
        self.device = pick_device(runtime.device)
        self.dtype = autocast_dtype(runtime, self.device)
        with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator
            torch.manual_seed(config.seed)
            network = build_network(self.settings, config.encoder_weights)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), config.learning_rate, weight_decay=0.01)
        self.weights = class_weights(_frequency(examples.masks)).to(self.device)
        _, person, counts = np.unique(examples.identity, return_inverse=True, return_counts=True)
        share = 1 / np.sqrt(counts[person])  # a person with many portraits does not drown the others
        self.share = share / share.sum()
        self.step_number = 0
        self.continued = False

    def start_from(self, folder: Path) -> bool:
        """Continue a trained parser; False, and nothing changed, if it has another shape than the settings.

        Raises:
            ArtifactError: the folder is missing or corrupt.
        """
        network, settings, _ = load_network(folder)
        if settings != self.settings:
            return False
        self.network.load_state_dict(network.state_dict())
        self.average.load_state_dict(network.state_dict())
        self.continued = True
        return True

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine; a continued parser's is lower."""
        peak = self.config.learning_rate * (self.config.continued_speed if self.continued else 1.0)
        warm = max(1, round(WARM_UP * self.config.steps))
        if step < warm:
            return peak * (step + 1) / warm
        share = (step - warm) / max(1, self.config.steps - warm)
        return peak * max(0.01, 0.5 * (1 + math.cos(math.pi * share)))

    def plain(self, step: int) -> float:
        """Share of portraits that are not warped: none, later most, and outlines become as sharp as theirs.

        Touvron et al. 2019 (arXiv:1906.06423) close the gap between augmented and real pictures likewise.
        """
        return SETTLED if step >= self.config.settle_from * self.config.steps else 0.0

    def step(self) -> dict[str, float]:
        """Train one batch; returns its losses."""
        config, step = self.config, self.step_number
        rng = np.random.default_rng([config.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        guests = round(config.batch_size * config.teacher_share) if len(self.examples.unlabeled) else 0
        rows = rng.choice(len(self.share), max(1, config.batch_size - guests), p=self.share)
        images, masks = augment(
            as_input(self.examples.images[rows], config.resolution),
            torch.from_numpy(self.examples.masks[rows]),
            generator,
            self.plain(step),
        )
        shares = class_shares(masks, config.resolution).to(self.device)
        opinions = None
        if guests:
            picked = rng.integers(len(self.examples.unlabeled), size=guests)
            more, opinions = augment(
                as_input(self.examples.unlabeled[picked], config.resolution),
                torch.from_numpy(self.examples.opinions[picked]).float() / 255,
                generator,
            )
            images = torch.cat([images, more])
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.network(images.to(self.device, memory_format=torch.channels_last))
        logits, guest_logits = logits.float().split([len(rows), guests])
        cross_entropy = soft_cross_entropy(logits, shares, self.weights)
        dice = soft_dice_loss(logits, shares)
        losses = {"cross_entropy": cross_entropy, "dice_loss": dice}
        if opinions is not None:
            losses["distillation"] = distillation_loss(guest_logits, opinions.to(self.device))
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        self._average()
        return {name: loss.item() for name, loss in losses.items()}

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, self.step_number / (self.step_number + 9))
        new = self.network.state_dict()
        for name, old in self.average.state_dict().items():
            if old.is_floating_point():
                old.lerp_(new[name], 1 - decay)
            else:
                old.copy_(new[name])

    def save(self, path: Path) -> None:
        """Write the whole state at once: a kill leaves the old file or the new one."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        body = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(body, draft, {"step": json.dumps(self.step_number)})
        draft.replace(path)

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint; False, and nothing changed, if there is none that fits."""
        if not path.is_file():
            return False
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        try:
            with safe_open(path, "pt") as f:
                step = int((f.metadata() or {})["step"])
                for key in f.keys():  # noqa: SIM118 - not a dict
                    part, _, rest = key.partition(".")
                    parts[part][rest] = f.get_tensor(key)
        except (SafetensorError, KeyError, ValueError):
            return False
        own = {k: v.shape for k, v in self.network.state_dict().items()}
        if any(own != {k: v.shape for k, v in parts[part].items()} for part in ("network", "average")):
            return False
        self.network.load_state_dict(parts["network"])
        self.average.load_state_dict(parts["average"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["optimizer"].items():
            index, _, rest = key.partition(".")
            moments.setdefault(int(index), {})[rest] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step_number = step
        return True


def _frequency(masks: NDArray[np.uint8]) -> Tensor:
    """Share of each class of all pixels, float32 [classes]."""
    counts = np.zeros(CLASSES)
    for mask in masks:
        counts += np.bincount(mask.reshape(-1), minlength=CLASSES)
    return torch.from_numpy(counts / counts.sum()).float()


def fit(
    training: Training, journal: Journal, watched: Portraits | None = None, checkpoint: Path | None = None
) -> nn.Module:
    """Train to the last step; returns the averaged network in `eval()`.

    Args:
        training: what to train.
        journal: where curves and the progress bar go.
        watched: a few held-out portraits whose IoU is logged on the way.
        checkpoint: file that the state is saved to once a minute.
    """
    steps, saved = training.config.steps, time.monotonic()
    window: list[dict[str, float]] = []
    for _ in journal.progress(range(training.step_number, steps), "parser"):
        window.append(training.step())
        number = training.step_number
        if number % LOG_EVERY == 0 or number == steps:
            curve = {key: float(np.mean([row[key] for row in window])) for key in window[0]}
            if watched is not None and number % (LOG_EVERY * max(1, steps // (WATCHES * LOG_EVERY))) == 0:
                parser = Parser(training.average, training.settings, training.device, "")
                found = iou_metrics(watched.masks, parser.masks(watched.images))
                curve["held_out_mean_iou"] = found["mean_iou"]
            journal.log(number, **curve)
            window.clear()
        if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY_S:
            training.save(checkpoint)
            saved = time.monotonic()
    return training.average.eval()


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train the parser on the train split of `inputs["corpus"]`, judge it on the test split.

    Raises:
        CorpusError: the corpus is corrupt, or lacks train or test portraits with masks.
        NetworkError: the configuration does not make a network.
        ArtifactError: the parser to continue from, or the teacher, is missing or corrupt.
    """
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    started = time.monotonic()
    portraits = Portraits.load(inputs["corpus"])
    test = portraits.select((portraits.split == "test") & portraits.has_mask)
    teacher = (
        Teacher.load(config.labeling.teacher, config.runtime.device) if config.labeling.teacher else None
    )
    examples = Examples.of(portraits.select("train"), teacher)
    training = Training(config.labeling, config.runtime, examples)
    notes = [f"{len(examples.images)} portraits of {len(np.unique(examples.identity))} people."]
    if teacher:
        notes.append(f"The teacher parsed {len(examples.unlabeled)} portraits that have no mask.")
    start = ""
    if config.labeling.start:
        folder = Path(config.labeling.start)
        if training.start_from(folder):
            start = load_network(folder)[2]
            notes.append(f"Continued from {config.labeling.start}, digest {start[:12]}.")
        else:
            notes.append(
                f"{config.labeling.start} has another shape than the settings: started from scratch."
            )
    name = fingerprint(config, inputs["corpus"], start)
    checkpoint = state_dir(config, Path()) / "checkpoints" / "parser" / name / "state.safetensors"
    if training.resume(checkpoint):
        notes.append(f"Resumed at step {training.step_number} from a checkpoint.")
    watched = test.select(_spread(len(test), WATCHED))
    network = fit(training, journal, watched, checkpoint)
    out = outputs["output"]
    provenance = {
        "profile": config.profile,
        "steps": config.labeling.steps,
        "batch_size": config.labeling.batch_size,
        "seed": config.labeling.seed,
        "portraits": len(examples.images),
        "identities": len(np.unique(examples.identity)),
        "corpus": sha256_file(inputs["corpus"] / CORPUS_MANIFEST),
        "start": start,
        "teacher": teacher.digest if teacher else "",
        "licence": "Apache-2.0",
    }
    save(network, training.settings, out, provenance)
    checkpoint.unlink(missing_ok=True)

    parser = Parser.load(out, config.runtime.device)
    predicted = parser.masks(test.images)
    metrics = judge(test, predicted)
    return Report(
        metrics={**metrics, "held_out_portraits": float(len(test)), "seconds": time.monotonic() - started},
        pictures=draw(test.images, test.masks, predicted, out),
        tables={"IoU on held-out identities": iou_table(metrics)},
        notes=notes,
    )


def fingerprint(config: Config, corpus: Path, start: str) -> str:
    """Names a training: the same settings and start on the same data continue the same checkpoint."""
    settings = config.labeling.model_dump_json(exclude={"runner", "workers", "cluster"})
    body = [settings, start, sha256_file(corpus / CORPUS_MANIFEST)]
    return hashlib.sha256("\n".join(body).encode()).hexdigest()[:16]


def judge(test: Portraits, predicted: NDArray[np.uint8]) -> dict[str, float]:
    """IoU of predicted masks uint8 [n, h, w] of portraits: of all, and of those without and with defects."""
    metrics = iou_metrics(test.masks, predicted)
    quality = test.truth["quality"]
    for name, chosen in (("clean", quality >= 0.5), ("defects", quality < 0.5)):
        if chosen.any():
            metrics[f"mean_iou_{name}"] = iou_metrics(test.masks[chosen], predicted[chosen])["mean_iou"]
    return metrics


def iou_table(metrics: dict[str, float]) -> list[dict[str, str | float]]:
    names = [(c.name.lower(), f"iou_{c.name.lower()}") for c in FaceClass]
    return [{"class": name, "iou": round(metrics[key], 4)} for name, key in names if key in metrics]


def draw(
    images: NDArray[np.uint8], truth: NDArray[np.uint8], predicted: NDArray[np.uint8], folder: Path
) -> dict[str, str]:
    """Write overlays of a few portraits, of the worst ones, and IoU by class. Title -> file."""
    each = each_mean_iou(truth, predicted)
    for name, chosen in (("overlays.png", _spread(len(images), 8)), ("worst.png", np.argsort(each)[:8])):
        sheet(
            [[images[i], overlay(images[i], predicted[i]), overlay(images[i], truth[i])] for i in chosen],
            [f"IoU {each[i]:.2f}" for i in chosen],
            folder / name,
        )
    metrics = iou_metrics(truth, predicted)
    bars({row["class"]: float(row["iou"]) for row in iou_table(metrics)}, "IoU", folder / "iou.png")  # type: ignore[misc]
    return {
        "Held-out portraits, predictions, truth": "overlays.png",
        "Worst held-out portraits, worst first": "worst.png",
        "IoU by class on held-out identities": "iou.png",
    }


def _spread(count: int, most: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.intp))
