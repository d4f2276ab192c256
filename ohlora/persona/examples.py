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

from ohlora.artifacts import ArtifactError, verify, write_manifest
from ohlora.persona.dialogues import DialogueRow, normalise
from ohlora.persona_config import ExamplesConfig

KIND = "examples"
_VERSION = 2

_PAIRS = "pairs.jsonl"
_VECTORS = "vectors.safetensors"
_TAKEN = "taken.txt"
_NEIGHBOURS = "neighbours.json"
_LONGEST = 60  # characters of a message or a reply that is shown
_LOOKED_AT = 64  # nearest pairs from which those with different replies are taken
_BLOCK = 256  # messages compared at a time
_WITNESSES = 5  # messages of either kind that tell how one leans
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
    """What is near to a message."""

    places: list[int]  # of pairs, the nearest first
    ties: int = 1  # how many of the first are as near as the nearest
    leaning: float = 0.0  # this and the next: see `Likeness`
    to_facts: tuple[float, ...] = ()


class Likeness(NamedTuple):
    """What messages of the data that are like it tell of a message."""

    leaning: float  # how much nearer it is to messages that ask for a fact than to others, in cosine
    everyday: tuple[str, ...]  # messages of the data that ask for none
    to_facts: tuple[float, ...] = ()  # how near it is to messages that ask for each fact, in cosine


class FactMessages(NamedTuple):
    """Which messages ask for a fact of the card: the pairs', and vectors of others that the card holds."""

    of_pairs: npt.NDArray[np.bool_]  # [n]
    asking: npt.NDArray[np.float32]  # [k, d]
    others: npt.NDArray[np.float32]  # [l, d]
    asked: npt.NDArray[np.int64]  # [k]: number of the fact that each of `asking` asks for


class Examples:
    """Messages with what she answered, and the vectors by which they are found."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        vectors: npt.NDArray[np.float32],
        taken: Iterable[str] = (),
        facts: FactMessages | None = None,
    ) -> None:
        """Take what `near` looks through.

        Args:
            pairs: n messages and replies.
            vectors: unit vectors of the messages, float32 [n, d].
            taken: `normalise` of all replies of the training split, which her voice does not say again whole.
            facts: which messages ask for a fact; without them no message leans to any.
        """
        self.pairs = list(pairs)
        # any may ask for one: then none is known to be everyday
        self._facts = facts or FactMessages(
            np.ones(len(pairs), bool), vectors[:0], vectors[:0], np.empty(0, np.int64)
        )
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

        To a message that leans to those which ask for a fact, only pairs that ask for one are near. Where
        pairs are left out, which fact a message may ask for is not looked up.

        Args:
            vectors: of m messages, float32 [m, d].
            settings: how many at most, and from which cosine on.
            but: a message and a reply for each of the m; pairs with either are left out.
        """
        found: list[Near] = []
        for start in range(0, len(vectors), _BLOCK):
            block = vectors[start : start + _BLOCK]
            of_facts = self._of_facts(block) if but is None else [(0.0, ())] * len(block)
            for cosines, (leaning, to_facts) in zip(block @ self._vectors.T, of_facts, strict=True):
                if leaning > 0.0:  # what is said to others of a like wording leads her away from the fact
                    cosines = np.where(self._facts.of_pairs, cosines, -np.inf)
                near = self._near(cosines, settings, but[len(found)] if but else None)
                found.append(near._replace(leaning=leaning, to_facts=to_facts))
        return found

    def _of_facts(self, vectors: npt.NDArray[np.float32]) -> list[tuple[float, tuple[float, ...]]]:
        """How m messages lean, and how near they are to the messages that ask for each fact.

        Of either kind the nearest `_WITNESSES` count, of a fact two: one alone may be there by chance.
        """
        asking, others = self._kinds
        leaning = np.zeros(len(vectors), np.float32)
        if len(asking) and len(others):
            leaning = _nearest(vectors @ asking.T, _WITNESSES) - _nearest(vectors @ others.T, _WITNESSES)
        cosines, asked = vectors @ self._facts.asking.T, self._facts.asked
        to_facts = np.zeros((len(vectors), int(asked.max(initial=-1)) + 1), np.float32)
        for number in np.unique(asked):
            to_facts[:, number] = _nearest(cosines[:, asked == number], 2)
        return [(float(one), tuple(map(float, each))) for one, each in zip(leaning, to_facts, strict=True)]

    @cached_property
    def _kinds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Vectors of messages that ask for a fact, and of those that ask for none."""
        of_pairs, asking, others, _ = self._facts
        return np.vstack([self._vectors[of_pairs], asking]), np.vstack([self._vectors[~of_pairs], others])

    @cached_property
    def everyday(self) -> tuple[str, ...]:
        """Messages of pairs that ask for no fact."""
        asked = zip(self.pairs, self._facts.of_pairs, strict=True)
        return tuple(dict.fromkeys(message for (message, _), asks in asked if not asks))

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
        asked = zip(self.pairs, self._facts.of_pairs.tolist(), strict=True)
        lines = [json.dumps([*pair, asks], ensure_ascii=False) + "\n" for pair, asks in asked]
        (folder / _PAIRS).write_text("".join(lines), encoding="utf-8")
        vectors = {"vectors": self._vectors, "asking": self._facts.asking, "others": self._facts.others}
        half = {name: np.ascontiguousarray(held, np.float16) for name, held in vectors.items()}
        save_file({**half, "asked": self._facts.asked}, folder / _VECTORS)
        (folder / _TAKEN).write_text("".join(f"{text}\n" for text in sorted(self.taken)), encoding="utf-8")
        files = [_PAIRS, _VECTORS, _TAKEN]
        settings = {"encoder": encoder, "version": _VERSION}
        write_manifest(folder, KIND, files=files, settings=settings, provenance=provenance)

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Read a folder.

        Raises:
            ArtifactError: it is missing or corrupt, or of an older version.
        """
        if verify(folder, KIND).settings.get("version") != _VERSION:
            raise ArtifactError(f"{folder} is of an older version; run again: ohlora run --force examples")
        lines = [json.loads(line) for line in (folder / _PAIRS).read_text(encoding="utf-8").splitlines()]
        held = load_file(folder / _VECTORS)
        asked = held.pop("asked")
        held = {name: half.astype(np.float32) for name, half in held.items()}
        of_pairs = np.array([asks for _, _, asks in lines], bool)
        taken = (folder / _TAKEN).read_text(encoding="utf-8").splitlines()
        facts = FactMessages(of_pairs, held["asking"], held["others"], asked)
        return cls([(message, reply) for message, reply, _ in lines], held["vectors"], taken, facts)


def _nearest(cosines: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.float32]:
    """Mean of so many largest of each row."""
    count = min(most, cosines.shape[1])
    largest = np.partition(cosines, cosines.shape[1] - count, axis=1)[:, -count:]
    return np.asarray(largest.mean(axis=1), np.float32)


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
