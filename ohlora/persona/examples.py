"""Examples: what she answers to messages like this one, which her voice reads before it answers.

A voice of a hundred million weights has little at hand of what it was taught once; shown the dialogue rows
that are most like the message, it has good answers to depart from ("retrieve and refine", Weston et al. 2018,
arXiv:1808.04776). Training and serving show them alike, but for two things. In training a row is shown
neither itself nor another row with its reply, so that the voice learns to answer in other words; and the
nearest is mostly a *prototype*, a pair whose reply, too, is like the row's own. Two people answer one message
in different words, and from such examples a voice would learn that they tell little ("Response Generation by
Context-aware Prototype Editing", Wu et al. 2019, section 3, arXiv:1806.07042).

Who embeds a message is the memory's business (`ohlora.memory.examples`); here are pairs and vectors.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from ohlora.artifacts import verify, write_manifest
from ohlora.persona.dialogues import DialogueRow, normalise
from ohlora.persona_config import ExamplesConfig

KIND = "examples"

_PAIRS = "pairs.jsonl"
_VECTORS = "vectors.safetensors"
_TAKEN = "taken.txt"
_NEIGHBOURS = "neighbours.json"
_LONGEST = 60  # characters of a message or a reply that is shown
_LOOKED_AT = 64  # nearest pairs from which those with different replies are taken
_BLOCK = 256  # messages compared at a time
_ALIKE = (0.15, 0.85)  # from and up to which share of common bigrams a reply is another's prototype
# hashed, since there is no vocabulary to keep; of 2^20 places two bigrams hardly share one
_BIGRAMS = HashingVectorizer(
    analyzer="char", ngram_range=(2, 2), binary=True, norm=None, alternate_sign=False, dtype=np.float32
)


def may_be_shown(row: DialogueRow) -> bool:
    """Whether a row says all by itself: no earlier turn, memory or date is behind it, and it is short."""
    return (
        row.split == "train"
        and not (row.history or row.memories_read or "{" in row.reply)
        and max(len(row.user), len(row.reply)) <= _LONGEST
    )


class Near(NamedTuple):
    """The pairs that are near to a message."""

    places: list[int]  # the nearest first
    ties: int = 1  # how many of the first are as near as the nearest


class Examples:
    """Messages with what she answered, and the vectors by which they are found."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        vectors: npt.NDArray[np.float32],
        taken: Iterable[str] = (),
    ) -> None:
        """Take what `near` looks through.

        Args:
            pairs: n messages and replies.
            vectors: unit vectors of the messages, float32 [n, d].
            taken: `normalise` of all replies of the training split, which her voice does not say again whole.
        """
        self.pairs = list(pairs)
        self.taken = frozenset(taken)
        self._vectors = vectors
        self._messages = [normalise(message) for message, _ in pairs]
        self._replies = [normalise(reply) for _, reply in pairs]

    def near(
        self,
        vectors: npt.NDArray[np.float32],
        settings: ExamplesConfig,
        but: Sequence[tuple[str, str]] | None = None,
    ) -> list[Near]:
        """Of each message the pairs that are nearest; their replies differ.

        Args:
            vectors: of m messages, float32 [m, d].
            settings: how many at most, and from which cosine on.
            but: a message and a reply for each of the m; pairs with either are left out.
        """
        found: list[Near] = []
        for start in range(0, len(vectors), _BLOCK):
            for cosines in vectors[start : start + _BLOCK] @ self._vectors.T:
                found.append(self._near(cosines, settings, but[len(found)] if but else None))
        return found

    def _near(
        self, cosines: npt.NDArray[np.float32], settings: ExamplesConfig, but: tuple[str, str] | None
    ) -> Near:
        without = tuple(map(normalise, but)) if but else ("", "")
        found: dict[str, int] = {}  # by reply
        for place in _largest(cosines):
            if cosines[place] < settings.threshold or len(found) == settings.pool:
                break
            if self._messages[place] != without[0] and self._replies[place] != without[1]:
                found.setdefault(self._replies[place], place)
        places = list(found.values())
        return Near(places, sum(bool(cosines[at] >= cosines[places[0]] - settings.ties) for at in places))

    def prototypes(
        self, vectors: npt.NDArray[np.float32], own: Sequence[tuple[str, str]]
    ) -> list[int | None]:
        """For each row the place of the pair whose reply is the best to depart from; None where none is like.

        It is the largest sum of the likeness to the message and of the bigrams that the two replies share
        (Jaccard); a reply that is nearly the row's own leaves nothing to learn.

        Args:
            vectors: of the messages of m rows, float32 [m, d].
            own: message and reply of each; pairs with either are left out.
        """
        if not self.pairs:
            return [None] * len(own)
        found: list[int | None] = []
        for start in range(0, len(own), _BLOCK):
            block = own[start : start + _BLOCK]
            asked = [normalise(reply) for _, reply in block]
            shared = self._shared_bigrams(asked)
            scores = vectors[start : start + _BLOCK] @ self._vectors.T + shared
            scores[(shared < _ALIKE[0]) | (shared > _ALIKE[1])] = -np.inf
            for (message, _), reply, row in zip(block, asked, scores, strict=True):
                without = normalise(message)
                others = (
                    place
                    for place in _largest(row)
                    if self._messages[place] != without and self._replies[place] != reply
                )
                place = next(others, None)
                found.append(place if place is not None and np.isfinite(row[place]) else None)
        return found

    def same_reply(self, one: int, other: int) -> bool:
        """Whether two pairs answer the same."""
        return self._replies[one] == self._replies[other]

    def _shared_bigrams(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Jaccard's index of the bigrams of m texts and of all replies, float32 [m, n]."""
        theirs, sizes = self._bigrams
        asked = _BIGRAMS.transform(texts)
        both = (asked @ theirs.T).toarray()
        either = np.asarray(asked.sum(axis=1)).reshape(-1, 1) + sizes - both
        return np.asarray(both / np.maximum(either, 1), np.float32)

    @cached_property
    def _bigrams(self) -> tuple[csr_matrix, npt.NDArray[np.float32]]:
        theirs = _BIGRAMS.transform(self._replies)
        return theirs, np.asarray(theirs.sum(axis=1)).ravel()

    def shown(self, near: Near, settings: ExamplesConfig, seed: int) -> list[tuple[str, str]]:
        """The pairs that a prompt shows: others of the near by chance, then the nearest or one of its ties.

        Args:
            near: as the method of this name gives it.
            settings: how many at most.
            seed: of the choice.
        """
        if not near.places or not settings.shown:
            return []
        chance = random.Random(seed)
        nearest = near.places[chance.randrange(near.ties)]
        others = [place for place in near.places if place != nearest]
        chosen = chance.sample(others, min(settings.shown - 1, len(others)))
        return [self.pairs[place] for place in (*chosen, nearest)]

    def save(self, folder: Path, encoder: str, provenance: dict[str, str]) -> None:
        """Write the folder that `load` reads.

        Args:
            folder: where to.
            encoder: digest of the encoder that made the vectors.
            provenance: what it was made from.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in self.pairs]
        (folder / _PAIRS).write_text("".join(lines), encoding="utf-8")
        save_file({"vectors": self._vectors.astype(np.float16)}, folder / _VECTORS)
        (folder / _TAKEN).write_text("".join(f"{text}\n" for text in sorted(self.taken)), encoding="utf-8")
        files = [_PAIRS, _VECTORS, _TAKEN]
        write_manifest(folder, KIND, files=files, settings={"encoder": encoder}, provenance=provenance)

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Read a folder.

        Raises:
            ArtifactError: it is missing or corrupt.
        """
        verify(folder, KIND)
        lines = (folder / _PAIRS).read_text(encoding="utf-8").splitlines()
        vectors = load_file(folder / _VECTORS)["vectors"].astype(np.float32)
        taken = (folder / _TAKEN).read_text(encoding="utf-8").splitlines()
        return cls([(message, reply) for message, reply in map(json.loads, lines)], vectors, taken)


def _largest(scores: npt.NDArray[np.float32]) -> list[int]:
    """Places of the largest scores, the largest first; of equal ones the first."""
    count = min(_LOOKED_AT, len(scores))
    places = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, int)
    found: list[int] = places[np.lexsort((places, -scores[places]))].tolist()
    return found


def seed_of(row_id: str) -> int:
    """Seed of what a row is shown."""
    return int.from_bytes(hashlib.sha256(f"examples {row_id}".encode()).digest()[:7], "big")


def save_neighbours(folder: Path, near: dict[str, list[int]]) -> None:
    """Keep which pairs are near to which row, for the prompts of training."""
    (folder / _NEIGHBOURS).write_text(json.dumps(near), encoding="utf-8")


def load_neighbours(folder: Path) -> dict[str, list[int]]:
    """What `save_neighbours` kept."""
    near: dict[str, list[int]] = json.loads((folder / _NEIGHBOURS).read_text(encoding="utf-8"))
    return near
