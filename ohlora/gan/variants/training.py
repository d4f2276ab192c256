"""What all trainings of variants share: seeds, the schedule, and a checkpoint that a kill does not harm.

All randomness is a function of (seed, step, stream) and all state is in the checkpoint, so that a resumed
training gives what an uninterrupted one gives.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ohlora.errors import UserError
from ohlora.gan.pictures import save_grid
from ohlora.gan.stylegan import StyleGenerator
from ohlora.stage import Journal

WEIGHT_DECAY = 0.01  # of fine-tuned weights
LOG_EVERY = 20  # steps between points of a curve
SAVE_EVERY_S = 60.0
COLUMNS = 4  # of a grid of samples


class TrainingDiverged(UserError, RuntimeError):
    """A loss is not finite any more; the message says what to change."""


class Training(ABC):
    """Networks and optimisers, one step at a time."""

    def __init__(self, name: str, steps: int, seed: int) -> None:
        self.name = name  # of the method
        self.steps = steps
        self.seed = seed
        self.step_number = 0
        self.modules: dict[str, nn.Module] = {}  # all that changes, averages included
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.numbers: dict[str, float] = {}  # what else changes

    @abstractmethod
    def step(self) -> dict[str, float]:
        """Train one batch and count it; returns what to log."""

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.step_number >= self.steps

    def rng(self, stream: int) -> np.random.Generator:
        """Randomness of this step; streams are independent."""
        return np.random.default_rng([self.seed, self.step_number, stream])

    def normal(self, stream: int, *shape: int) -> Tensor:
        """Normal numbers of this step, float32, on the CPU."""
        return torch.from_numpy(self.rng(stream).standard_normal(shape, np.float32))

    def picture(self) -> NDArray[np.uint8] | None:
        """What it draws now, uint8 [n, r, r, 3]; None of a training without pictures."""
        return None

    def generator_of(self, stream: int) -> torch.Generator:
        """Torch's generator of this step, on the CPU."""
        return torch.Generator().manual_seed(int(self.rng(stream).integers(2**62)))

    def save(self, path: Path) -> None:
        """Write the whole state at once: a kill leaves the old file or the new one."""
        tensors = {
            f"module/{name}/{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in state.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        metadata = {"step": str(self.step_number), "numbers": json.dumps(self.numbers)}
        save_file({k: v.detach().clone().contiguous().cpu() for k, v in tensors.items()}, draft, metadata)
        draft.replace(path)

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint; False, and nothing changed, if there is none that fits."""
        if not path.is_file():
            return False
        try:
            with safe_open(path, "pt") as f:
                metadata = f.metadata() or {}
                step, numbers = int(metadata["step"]), json.loads(metadata["numbers"])
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, ValueError):
            return False
        modules: dict[str, dict[str, Tensor]] = {name: {} for name in self.modules}
        moments: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in self.optimizers}
        for name, tensor in tensors.items():
            kind, owner, rest = name.split("/", 2)
            if kind == "module" and owner in modules:
                modules[owner][rest] = tensor
            elif kind == "optimizer" and owner in moments:
                index, key = rest.split("/", 1)
                moments[owner].setdefault(int(index), {})[key] = tensor
            else:
                return False
        for name, module in self.modules.items():
            own = {key: value.shape for key, value in module.state_dict().items()}
            if own != {key: value.shape for key, value in modules[name].items()}:
                return False
        for name, module in self.modules.items():
            module.load_state_dict(modules[name])
        for name, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments[name], "param_groups": groups})
        self.step_number, self.numbers = step, numbers
        return True


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rate at a step: 1 at first, 0 after the last one (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters, of a group with a `scale` so many times as high."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def average_decay(decay: float, step: int) -> float:
    """Decay of an averaged model at a step: shorter at first, so that it forgets where it started."""
    return min(decay, (step + 1) / (step + 10))


def trainable(module: nn.Module, names: Iterable[str] | None = None) -> list[nn.Parameter]:
    """Let gradients into the named submodules only (None: into all); returns their parameters."""
    module.requires_grad_(names is None)
    if names is None:
        return list(module.parameters())
    parameters = []
    for name in names:
        part = module.get_submodule(name).requires_grad_(True)
        parameters += list(part.parameters())
    return parameters


def mapping_groups(
    generator: StyleGenerator, names: Iterable[str] | None, scale: float, decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: those of the mapping network's layers apart, if they are faster.

    Args:
        generator: whose named submodules train.
        names: of submodules; None is all.
        scale: learning rate of the mapping network's layers, in those of the rest; see `set_rate`.
        decay: weight decay.
    """
    chosen = trainable(generator, names)
    if scale == 1:
        return [{"params": chosen, "weight_decay": decay}]
    layers = {id(p) for layer in generator.mapping.children() for p in layer.parameters()}
    faster = [p for p in chosen if id(p) in layers]
    rest = [p for p in chosen if id(p) not in layers]
    # the optimizer multiplies decay by the rate; these weights are to shrink no sooner than the others
    return [
        {"params": rest, "weight_decay": decay},
        {"params": faster, "scale": scale, "weight_decay": decay / scale},
    ]


def run_training(
    training: Training,
    journal: Journal,
    checkpoint: Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
    pictures: Path | None = None,
    every: int = 1000,
) -> float:
    """Train to the last step; returns seconds. Curves are logged as `NAME_...`.

    Args:
        training: what to train.
        journal: takes curves and shows progress.
        checkpoint: file of the whole state; training goes on from it.
        save_every_s: seconds between writing it.
        pictures: folder of grids of samples `NAME-STEP.png`.
        every: steps between grids.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    started = saved = time.monotonic()
    if checkpoint is not None:
        training.resume(checkpoint)
    window: list[dict[str, float]] = []
    left = range(training.step_number, training.steps)
    for _ in journal.progress(left, f"variants: {training.name}"):
        if training.is_done:
            break
        window.append(training.step())
        if not all(math.isfinite(value) for value in window[-1].values()):
            raise TrainingDiverged(
                f"variant {training.name}: not finite at step {training.step_number}: {window[-1]}; "
                "lower the learning rate in its section of variants in params.yaml"
            )
        if training.step_number % LOG_EVERY == 0 or training.is_done:
            keys = dict.fromkeys(key for row in window for key in row)
            curve = {key: float(np.mean([row[key] for row in window if key in row])) for key in keys}
            journal.log(training.step_number, **{f"{training.name}_{k}": v for k, v in curve.items()})
            window.clear()
        if pictures is not None and training.step_number % every == 0:
            drawn = training.picture()
            if drawn is not None:
                rows = [drawn[k : k + COLUMNS] for k in range(0, len(drawn), COLUMNS)]
                save_grid(rows, pictures / f"{training.name}-{training.step_number:06d}.png", drawn.shape[1])
        if checkpoint is not None and time.monotonic() - saved > save_every_s:
            training.save(checkpoint)
            saved = time.monotonic()
    if checkpoint is not None:
        training.save(checkpoint)  # a later method may be killed: this one is then done
    return time.monotonic() - started
