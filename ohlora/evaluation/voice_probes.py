"""What a voice is asked: probes of facts, refusals, memory and variety that no training row contains.

Probes are data (`data/probes`), one JSON Lines file a kind. What a reply must or must not say may name
`{age}`, `{next_age}` and `{school_year}`, which are filled for the day of the test.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ohlora.errors import UserError
from ohlora.persona.card import Card

FactKind = Literal["paraphrase", "contradiction", "trap"]

_UNITS = ["", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉"]
_NAMED = ["", "하나", "둘", "셋", "넷", "다섯", "여섯", "일곱", "여덟", "아홉"]
_TENS = ["", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔"]
_DIGITS = ["", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구"]


class ProbeError(UserError, ValueError):
    """A probe file is missing or a line of it does not hold; the message names file and line."""


class Probe(BaseModel):
    """One message to answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    user: str = Field(min_length=1)


class Answerable(Probe):
    """A message whose answer must hold one of some strings and none of others; compared by `says`."""

    expect_any: list[str] = Field(min_length=1)
    forbid: list[str]


class FactProbe(Answerable):
    """A question about her: asked in other words, with a false claim, or with something to fall for."""

    category: str
    kind: FactKind


class RefusalProbe(Probe):
    """A message that must be declined, or a harmless one that must not."""

    category: str
    must_decline: bool


class CarryOverProbe(Answerable):
    """A question that only the turns before it answer."""

    history: list[tuple[str, str]] = Field(min_length=1)


class RecallProbe(Answerable):
    """A question that a memory answers."""

    memories: list[str] = Field(min_length=1)


class WantedMemory(BaseModel):
    """A memory that should be written: one of the keys, with a value that overlaps one of the values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: list[str] = Field(min_length=1)
    values: list[str] = Field(min_length=1)


class WritingProbe(Probe):
    """A message and what is worth remembering of it; often nothing."""

    memories: list[WantedMemory]


class Cues(BaseModel):
    """Strings by which a reply that declines is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    declining: dict[str, list[str]]  # `general`, and by category
    refusing: list[str]  # what a reply to a harmless message must not hold

    def of(self, category: str) -> list[str]:
        """What declines in a category."""
        return [*self.declining["general"], *self.declining.get(category, [])]


@dataclass(frozen=True)
class Probes:
    """All probes."""

    facts: tuple[FactProbe, ...]
    refusals: tuple[RefusalProbe, ...]
    carry_over: tuple[CarryOverProbe, ...]
    recall: tuple[RecallProbe, ...]
    memory_writing: tuple[WritingProbe, ...]
    variety: tuple[Probe, ...]
    cues: Cues

    @classmethod
    def load(cls, folder: Path) -> Probes:
        """Read a folder of probes.

        Raises:
            ProbeError: a file is missing, a line does not parse, or an id occurs twice.
        """
        probes = cls(
            facts=_read(folder / "facts.jsonl", FactProbe),
            refusals=_read(folder / "refusals.jsonl", RefusalProbe),
            carry_over=_read(folder / "carry_over.jsonl", CarryOverProbe),
            recall=_read(folder / "recall.jsonl", RecallProbe),
            memory_writing=_read(folder / "memory_writing.jsonl", WritingProbe),
            variety=_read(folder / "variety.jsonl", Probe),
            cues=_cues(folder / "cues.yaml"),
        )
        seen: set[str] = set()
        for probe in probes.all:
            if probe.id in seen:
                raise ProbeError(f"{folder}: the id {probe.id!r} occurs twice")
            seen.add(probe.id)
        return probes

    @property
    def all(self) -> tuple[Probe, ...]:
        """Every probe."""
        groups: tuple[tuple[Probe, ...], ...] = (
            self.facts,
            self.refusals,
            self.carry_over,
            self.recall,
            self.memory_writing,
            self.variety,
        )
        return tuple(probe for group in groups for probe in group)


def filled(strings: Sequence[str], card: Card, on: date) -> list[str]:
    """Strings with their placeholders filled for a day; an age or a school year is spelt in several ways.

    Of somebody who attends no school on that day, `{school_year}학년` becomes 졸업.
    """
    age, year = card.age(on), card.school_year(on)
    result: list[str] = []
    for text in strings:
        if text == "{age}":
            result += spelt_age(age)
        elif text == "{next_age}":
            result += spelt_age(age + 1)
        elif "{school_year}" in text:
            words = [str(year), _DIGITS[year]] if year else []
            result += [text.replace("{school_year}", word) for word in words] or ["졸업"]
        else:
            result.append(text)
    return result


def spelt_age(age: int) -> list[str]:
    """How an age below 100 may be said.

    >>> spelt_age(22)
    ['22살', '22세', '만22', '22개', '22이', '22야', '스물둘', '스물두']
    """
    tens, unit = divmod(age, 10)
    named = _TENS[tens % 10] + _NAMED[unit]
    counted = _TENS[tens % 10] + _UNITS[unit]
    if age == 20:
        counted = "스무"
    spelt = [f"{age}살", f"{age}세", f"만{age}", f"{age}개", f"{age}이", f"{age}야", named, counted]
    return list(dict.fromkeys(spelt))


T = TypeVar("T", bound=Probe)


def _read(path: Path, kind: type[T]) -> tuple[T, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"{path} cannot be read: {error}; restore it with: git checkout {path}") from error
    probes = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                probes.append(kind.model_validate(json.loads(line)))
            except (ValidationError, json.JSONDecodeError) as error:
                raise ProbeError(f"{path}, line {number}: {error}") from error
    if not probes:
        raise ProbeError(f"{path} holds no probes")
    return tuple(probes)


def _cues(path: Path) -> Cues:
    try:
        cues = Cues.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise ProbeError(f"{path} cannot be read: {error}") from error
    if "general" not in cues.declining:
        raise ProbeError(f"{path}: declining has no list `general`")
    return cues
