"""Batches in which texts repeat, and a loss that encodes each text once.

The pairs are part of a cross product: few memories, a handful of pairs to every message. Batches that keep a
message's pairs together hold half as many different texts or fewer, and encoding is all the time of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss
from torch import Tensor


class MessageBatches(DefaultBatchSampler):
    """Batches of whole messages: groups of rows with the same `message`, in a new random order each epoch."""

    def __init__(self, dataset: Dataset, batch_size: int, drop_last: bool = False, **options: Any) -> None:
        super().__init__(range(len(dataset)), batch_size=batch_size, drop_last=drop_last, **options)
        groups: dict[str, list[int]] = {}
        for row, message in enumerate(dataset["message"]):
            groups.setdefault(message, []).append(row)
        self.groups = list(groups.values())

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed or 0) + self.epoch)
        order = torch.randperm(len(self.groups), generator=generator).tolist()
        rows = [row for group in order for row in self.groups[group]]
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        yield from batches[: len(self)]


class OncePerText(torch.nn.Module):
    """A pair loss of sentence-transformers whose repeated texts are encoded once."""

    def __init__(self, model: SentenceTransformer, loss: CosineSimilarityLoss | CoSENTLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Loss of a batch: one dictionary of token tensors [n, t] per column, labels float [n]."""
        embeddings = [self._embed(features) for features in sentence_features]
        return self.loss.compute_loss_from_embeddings(embeddings, labels)

    def _embed(self, features: dict[str, Tensor]) -> Tensor:
        """[n, t] tokens to [n, d] embeddings."""
        ids = features["input_ids"]
        distinct, place = ids.unique(dim=0, return_inverse=True)
        rows = torch.arange(len(ids), device=ids.device)
        first = rows.new_full((len(distinct),), len(ids)).scatter_reduce(0, place, rows, "amin")
        tokens = {
            name: value[first] if isinstance(value, Tensor) and len(value) == len(ids) else value
            for name, value in features.items()
        }
        embeddings: Tensor = self.model(tokens)["sentence_embedding"]
        return embeddings[place]
