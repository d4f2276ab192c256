"""What fine-tuning and preference training share: order of rows, schedule, evaluation, checkpoints.

TRL's trainers do the steps; this decides what they see and what is kept of it.

- Batches are a function of (seed, step), and rows of similar length share one, so that little is computed on
  padding. A trainer sees the steps that are left as one pass over rows in this order.
- The state (trained weights, the best ones so far, the optimiser's moments, the curves) is one safetensors
  file that is replaced at once, so that a killed training goes on where it was, to the same weights.
- Training ends early when the held-out score has not improved for a while, and the best weights are kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from ohlora.errors import UserError
from ohlora.stage import Journal

WARM_UP = 0.1  # of the steps
FLOOR = 0.02  # of the peak learning rate, at the last step
SAVE_EVERY_S = 60.0
POOL = 16  # batches of rows that are sorted by length together


def trainer_arguments(
    folder: str, steps: int, batch_size: int, seed: int, device: torch.device, mixed: bool
) -> dict[str, Any]:
    """Arguments that TRL's trainers get alike: one pass in the order of the rows, and no output of their own.

    Args:
        folder: for what the trainer insists on writing.
        steps: that are left.
        batch_size: rows a step.
        seed: of the trainer's own draws.
        device: where the network is.
        mixed: whether to compute in bfloat16.
    """
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "max_grad_norm": 1.0,
        "seed": seed,
        "max_length": None,
        "use_cpu": device.type == "cpu",
        "bf16": mixed,
        "gradient_checkpointing": False,
        # nothing but what the recorder writes
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class TrainingError(UserError, RuntimeError):
    """A training cannot go on; the message says what to change."""


def ordered_batches(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Which rows each step sees.

    Each pass shuffles the rows anew, sorts them by length within pools of a few batches and shuffles the
    batches. The last batch of a pass is filled up with rows from its beginning.

    Args:
        lengths: tokens of each row; at least one row.
        batch_size: rows of a step; with fewer rows than that some come twice in one.
        steps: how many batches.
        seed: the same one gives the same order, however many steps are asked for.

    Returns:
        `steps` lists of `batch_size` indices.
    """
    batches: list[list[int]] = []
    sizes = np.asarray(lengths)
    per_pass = -(-len(sizes) // batch_size)
    for number in range(-(-steps // per_pass)):
        rng = np.random.default_rng([seed, number])
        rows = np.resize(rng.permutation(len(sizes)), per_pass * batch_size)
        pools = [rows[i : i + POOL * batch_size] for i in range(0, len(rows), POOL * batch_size)]
        rows = np.concatenate([pool[np.argsort(sizes[pool], kind="stable")] for pool in pools])
        batches += rows.reshape(per_pass, batch_size)[rng.permutation(per_pass)].tolist()
    return batches[:steps]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the positions of all batches that hold padding, 0 to 1."""
    held = sum(lengths[row] for batch in batches for row in batch)
    computed = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - held / computed


def learning_rate_factor(step: int, steps: int) -> float:
    """Of the peak learning rate at a step (from 0): linear warm-up, then a cosine.

    >>> [round(learning_rate_factor(step, 20), 2) for step in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.51, 0.03]
    """
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass
class Progress:
    """How far a training is and what it has seen; what a checkpoint says beside its tensors."""

    step: int = 0  # steps done
    curves: list[dict[str, float]] = field(default_factory=list)  # per step: step and figures
    scores: list[tuple[int, float]] = field(default_factory=list)  # step, held-out score; lower is better
    best: float = math.inf
    best_step: int = 0
    waited: int = 0  # evaluations since the best one
    samples: list[dict[str, Any]] = field(default_factory=list)  # what she said at each evaluation
    stopped: bool = False  # early


class Trained:
    """The weights that a training changes, their optimiser, and how far it is."""

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        self.network = network
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), learning_rate, weight_decay=0.0)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    def schedule(self, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        """Learning rate of the steps from here to the last one."""
        first = self.progress.step
        return torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(min(first + step, steps - 1), steps)
        )

    def keep_if_best(self, score: float) -> None:
        """Note a held-out score (lower is better), and keep the weights that reached the best one."""
        progress = self.progress
        progress.scores.append((progress.step, score))
        if score < progress.best:
            progress.best, progress.best_step, progress.waited = score, progress.step, 0
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            progress.waited += 1

    def take_best(self) -> None:
        """Put the best weights back."""
        with torch.no_grad():
            for name, value in self.best.items():
                self.parameters[name].copy_(value)

    def blend(self, start: Mapping[str, Tensor], share: float) -> None:
        """Take weights between those it started from and its own: `share` of its own.

        What fine-tuning gave stays for the most part, and so does what it would have forgotten (WiSE-FT,
        arXiv:2109.01903, section 3).
        """
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.lerp_(start[name].to(parameter), 1 - share)

    def save(self, path: Path) -> None:
        """Write the whole state at once: a kill leaves the old file or the new one."""
        tensors: dict[str, torch.Tensor] = {f"network.{k}": v for k, v in self.parameters.items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        body = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(body, draft, {"progress": json.dumps(asdict(self.progress), ensure_ascii=False)})
        draft.replace(path)

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint; False, and nothing changed, if there is none that fits."""
        if not path.is_file():
            return False
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
        try:
            with safe_open(path, "pt") as f:
                progress = Progress(**json.loads((f.metadata() or {})["progress"]))
                for key in f.keys():  # noqa: SIM118 - not a dict
                    part, _, rest = key.partition(".")
                    parts[part][rest] = f.get_tensor(key)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            return False
        if {k: v.shape for k, v in parts["network"].items()} != {
            k: v.shape for k, v in self.parameters.items()
        }:
            return False
        with torch.no_grad():
            for name, value in parts["network"].items():
                self.parameters[name].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, _, rest = key.partition(".")
            moments.setdefault(int(index), {})[rest] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        progress.scores = [(int(step), score) for step, score in progress.scores]
        self.progress, self.best = progress, parts["best"]
        return True


Evaluate = Callable[[int], float]
"""Scores the network at a step on held-out rows; lower is better."""


class Recorder(TrainerCallback):
    """Curves, progress bar, evaluation, early stopping and checkpoints of one training.

    Everything happens in `on_log`, which the trainer calls after each step, so that a checkpoint never misses
    the loss of its last step.
    """

    def __init__(
        self,
        trained: Trained,
        journal: Journal,
        name: str,  # of the progress bar
        steps: int,  # of the whole training
        seed: int,
        evaluate: Evaluate,
        evaluate_every: int,  # steps
        patience: int,  # evaluations without a better score before training ends; 0 never ends it early
        checkpoint: Path | None = None,
        save_every_s: float = SAVE_EVERY_S,
        figures: Sequence[str] = ("loss", "learning_rate"),  # of the trainer's log, that become curves
    ) -> None:
        self.trained, self.journal, self.steps, self.seed = trained, journal, steps, seed
        self.evaluate, self.evaluate_every, self.patience = evaluate, evaluate_every, patience
        self.checkpoint, self.save_every_s, self.figures = checkpoint, save_every_s, figures
        self.first = trained.progress.step
        self.seconds_of_evaluation = 0.0
        self._saved = time.monotonic()
        self._bar: Iterator[int] = iter(
            journal.progress(range(self.first, steps), name, total=steps - self.first)
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        next(self._bar, None)
        # dropout as well is a function of (seed, step)
        torch.manual_seed(
            int(np.random.default_rng([self.seed, self.first + state.global_step]).integers(2**62))
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        progress = self.trained.progress
        progress.step = self.first + state.global_step
        point = {name: float(logs[name]) for name in self.figures if name in logs}
        if not math.isfinite(point["loss"]):
            raise TrainingError(f"the loss at step {progress.step} is not finite; lower the learning rate")
        progress.curves.append({"step": float(progress.step), **point})
        self.journal.log(progress.step, **{name.replace("/", "_"): value for name, value in point.items()})
        last = progress.step == self.steps
        if last or progress.step % self.evaluate_every == 0:
            started = time.monotonic()
            self.trained.keep_if_best(self.evaluate(progress.step))
            self.seconds_of_evaluation += time.monotonic() - started
            if self.patience and progress.waited >= self.patience and not last:
                progress.stopped = control.should_training_stop = True
        due = time.monotonic() - self._saved >= self.save_every_s
        if self.checkpoint and not last and (due or progress.stopped):
            self.trained.save(self.checkpoint)
            self._saved = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trained.progress.step == self.steps:
            next(self._bar, None)  # closes the bar
