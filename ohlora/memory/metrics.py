"""How good is an encoder at finding the memory that a message needs? Pure functions on cosines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr, spearmanr

from ohlora.memory.encoder import Embedder
from ohlora.memory.pairs import NEEDED, UNNEEDED, Pair, memory_key

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Similarities:
    """Cosines of every message of a split with every memory of it; each text was embedded once."""

    pairs: Sequence[Pair]
    messages: list[str]
    memories: list[str]
    cosines: Floats  # [messages, memories]

    @classmethod
    def of(cls, embedder: Embedder, pairs: Sequence[Pair]) -> Similarities:
        """Embed the texts of labelled pairs."""
        messages = list(dict.fromkeys(pair.message for pair in pairs))
        memories = list(dict.fromkeys(pair.memory for pair in pairs))
        queries, passages = embedder.embed(messages, kind="query"), embedder.embed(memories, kind="passage")
        return cls(pairs, messages, memories, queries @ passages.T)

    @property
    def of_pairs(self) -> Floats:
        """Cosine of each labelled pair: float32 [n]."""
        row = {message: i for i, message in enumerate(self.messages)}
        column = {memory: i for i, memory in enumerate(self.memories)}
        return self.cosines[[row[p.message] for p in self.pairs], [column[p.memory] for p in self.pairs]]

    @property
    def targets(self) -> Floats:
        """Labelled score of each pair: float32 [n]."""
        return np.array([pair.score for pair in self.pairs], dtype=np.float32)


def evaluate(similarities: Similarities, threshold: float) -> dict[str, float]:
    """Every figure of one split: agreement with the labels, detection at the threshold, top-1 accuracy."""
    cosines, targets = similarities.of_pairs, similarities.targets
    return {
        **agreement(cosines, targets),
        **detection(*decided(cosines, targets), threshold),
        "top1_accuracy": top1_accuracy(similarities),
    }


def agreement(cosines: Floats, targets: Floats) -> dict[str, float]:
    """Correlation and error of cosines against the labelled scores."""
    constant = np.ptp(cosines) == 0 or np.ptp(targets) == 0  # a correlation is not defined then
    return {
        "pearson": 0.0 if constant else float(pearsonr(cosines, targets).statistic),
        "spearman": 0.0 if constant else float(spearmanr(cosines, targets).statistic),
        "mse": float(np.mean((cosines - targets) ** 2)),
        "mae": float(np.mean(np.abs(cosines - targets))),
    }


def detection(cosines: Floats, positive: npt.NDArray[np.bool_], threshold: float) -> dict[str, float]:
    """Precision, recall and F1 of "recall what reaches the threshold"; 0 where nothing is recalled."""
    recalled = cosines >= threshold
    true_positives = float(np.sum(recalled & positive))
    precision = true_positives / max(float(recalled.sum()), 1.0)
    recall = true_positives / max(float(positive.sum()), 1.0)
    f1 = 2 * precision * recall / (precision + recall) if true_positives else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def decided(cosines: Floats, targets: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Cosines of the pairs whose score leaves no doubt, and whether their memory is needed."""
    sure = (targets >= NEEDED) | (targets <= UNNEEDED)
    return cosines[sure], targets[sure] >= NEEDED


def calibrate(similarities: Similarities) -> float:
    """The threshold that serves these pairs best; see `best_threshold`."""
    return best_threshold(*decided(similarities.of_pairs, similarities.targets))


def best_threshold(cosines: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """The threshold of greatest F1, half way to the next lower cosine so that it has a margin.

    Raises:
        ValueError: there is no positive pair to calibrate on.
    """
    if not positive.any():
        raise ValueError("no positive pair to calibrate the threshold on")
    order = np.argsort(-cosines, kind="stable")
    ranked, hits = cosines[order].astype(np.float64), np.cumsum(positive[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + positive.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # a threshold cannot part equal cosines
    best = int(np.argmax(f1))
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 0.1
    return float((ranked[best] + below) / 2)


def top1_accuracy(similarities: Similarities) -> float:
    """Share of messages whose nearest memory, among all memories of the split, has a key that was asked for.

    Keys count, not values: two people's `취미` answer the same question. Messages that need no memory are
    left out; 0.0 when all are.
    """
    wanted: dict[str, set[str]] = {}
    for pair in similarities.pairs:
        if pair.score >= NEEDED:
            wanted.setdefault(pair.message, set()).add(pair.key)
    nearest = [similarities.memories[column] for column in similarities.cosines.argmax(axis=1)]
    hits = [
        memory_key(memory) in wanted[message]
        for message, memory in zip(similarities.messages, nearest, strict=True)
        if message in wanted
    ]
    return float(np.mean(hits)) if hits else 0.0
