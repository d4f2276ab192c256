"""Training pairs of the memory: a memory, a message, and how much the one helps to answer the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

NEEDED, UNNEEDED = 0.75, 0.25
"""From which score on a memory should be recalled, up to which it should not; between, either is right."""

Split = Literal["train", "valid", "test"]


class PairError(ValueError):
    """Pair data does not hold; the message names file, line and problem."""


class Pair(BaseModel):
    """One row of `pairs.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: str = Field(min_length=1, description="키: 값")
    message: str = Field(min_length=1, description="what the person says")
    score: float = Field(ge=0, le=1, description="0 unrelated to 1 exactly what is needed")
    split: Split

    @property
    def key(self) -> str:
        return memory_key(self.memory)


def memory_key(memory: str) -> str:
    """The part before the colon."""
    return memory.partition(":")[0].strip()


def load_pairs(path: Path) -> list[Pair]:
    """Read and check a JSON Lines file of pairs.

    Raises:
        PairError: the file is missing, a line does not parse, a split is empty, or keys or messages leak
            between splits.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PairError(f"{path} cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pairs.append(Pair.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise PairError(f"{path}, line {number}: {key}: {problem['msg']}") from error
    check_splits(pairs, str(path))
    return pairs


def check_splits(pairs: Sequence[Pair], source: str) -> None:
    """Refuse a memory key or a message that occurs in more than one split, and a missing split."""
    for split in ("train", "valid", "test"):
        if not any(pair.split == split for pair in pairs):
            raise PairError(f"{source} holds no {split} pairs")
    for what in ("key", "message"):
        seen: dict[str, str] = {}
        for pair in pairs:
            value = getattr(pair, what)
            first = seen.setdefault(value, pair.split)
            if first != pair.split:
                raise PairError(f"{source}: {what} {value!r} is in {first} and in {pair.split}")


def of_split(pairs: Iterable[Pair], split: Split) -> list[Pair]:
    return [pair for pair in pairs if pair.split == split]
