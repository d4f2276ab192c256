"""What the tests of a face need: somebody who draws, and somebody independent who says what is drawn.

`Sight` is one pass of the judge over pictures: attributes, identity and features at once. Tests put a face
and a judge of their own in place, whose answers are known.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ohlora.attributes import CONDITION_NAMES, Expression
from ohlora.evaluation.judge import JUDGE_BATCH, LIMITS, TARGETS, Judge, fine_images, look

Images = NDArray[np.uint8]

FEATURES = ("whole_features", "eyes_features", "mouth_features")
"""Layers of the judge in front of its answers: the features of the kernel and Fréchet distances."""


class Artist(Protocol):
    """A face model as the tests use it."""

    @property
    def persona_latent(self) -> Tensor:
        """float32 [z]."""

    def sample_latent(self, seed: int) -> Tensor:
        """A new person, float32 [z]."""

    def conditions(self, expression: Expression, latent: Tensor | None = None) -> Tensor:
        """Raw conditions of a person under an expression, float32 [7]; None is Oh-LoRA."""

    def images(self, latents: Tensor, conditions: Tensor, nuisance: Tensor | None = None) -> Images:
        """Pictures uint8 [n, h, w, 3] of latents [n, z] under raw conditions [n, 7]."""


@dataclass(frozen=True)
class Sight:
    """What is seen in pictures; all arrays share their first axis n."""

    attributes: NDArray[np.float64]  # [n, 7] in the order of CONDITION_NAMES, units of Attributes
    gender: NDArray[np.float64]  # [n], probability of a woman
    embeddings: NDArray[np.float32]  # [n, d] of length 1: who it is
    features: NDArray[np.float32]  # [n, f]: what it looks like


Reader = Callable[[Images], Sight]
"""Pictures uint8 [n, h, w, 3] -> what they show."""


def reader(judge: Judge) -> Reader:
    """A judge's attributes, embeddings and penultimate features in one pass."""

    def read(images: Images) -> Sight:
        scores, embeddings, features = [], [], []
        device = next(judge.network.parameters()).device
        with torch.inference_mode(), _listening(judge.network.eval()) as heard:
            for start in range(0, len(images), JUDGE_BATCH):
                fine = fine_images(images[start : start + JUDGE_BATCH], judge.network.resolution)
                score, embedding = judge.network(look(fine, judge.network.resolution).to(device))
                scores.append(score.float().cpu().numpy())
                embeddings.append(embedding.float().cpu().numpy())
                features.append(np.concatenate([heard[name] for name in FEATURES], 1))
        standardised = np.concatenate(scores).astype(np.float64)
        values = {}
        for i, name in enumerate(TARGETS):
            mean, std = judge.scales[name]
            values[name] = np.clip(standardised[:, i] * std + mean, *LIMITS.get(name, (-math.inf, math.inf)))
        return Sight(
            attributes=np.stack([values[name] for name in CONDITION_NAMES], 1),
            gender=values["gender"],
            embeddings=np.concatenate(embeddings),
            features=np.concatenate(features),
        )

    return read


@contextlib.contextmanager
def _listening(network: nn.Module) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The last outputs of the layers `FEATURES`, by name."""
    heard: dict[str, NDArray[np.float32]] = {}

    def listen(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            heard[name] = output.float().cpu().numpy()

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(listen(name)) for name in FEATURES]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def draw(
    face: Artist,
    latent: Tensor | None,
    conditions: NDArray[np.floating],
    nuisance: NDArray[np.floating] | None = None,
) -> Images:
    """Pictures of one person under conditions.

    Args:
        face: who draws.
        latent: float32 [z]; None is Oh-LoRA.
        conditions: raw; [n, 7] in the order of `CONDITION_NAMES`, or [n, 3]: eyes, mouth and pose of a person
            who keeps what is hers.
        nuisance: pitch, roll and smile, [n, 3]; None is how the face usually is.
    """
    asked = torch.from_numpy(np.asarray(conditions, np.float32))
    if asked.shape[1] < len(CONDITION_NAMES):
        own = face.conditions(Expression(), latent).cpu()
        asked = torch.cat([asked, own[asked.shape[1] :].expand(len(asked), -1)], 1)
    z = face.persona_latent if latent is None else latent
    rest = None if nuisance is None else torch.from_numpy(np.asarray(nuisance, np.float32))
    return face.images(z.expand(len(asked), -1), asked, rest)
