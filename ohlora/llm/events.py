"""What happens while she answers, in order: speech in pieces, memories, the expression, the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ohlora.attributes import Expression

Reason = Literal["end", "budget"]


@dataclass(frozen=True)
class Speech:
    """A further piece of what she says; whole characters, never empty."""

    text: str


@dataclass(frozen=True)
class MemoryWritten:
    """Something that she wants to remember, `키: 값`."""

    text: str


@dataclass(frozen=True)
class ExpressionChosen:
    """What her face shows."""

    name: str
    expression: Expression


@dataclass(frozen=True)
class Finished:
    """The turn is complete."""

    completion: str  # the whole turn as written
    reason: Reason  # `end`: she had said it all; `budget`: the limit cut or closed her speech
    tokens: int  # the end token included
    seconds: float
    time_to_first_token: float  # seconds


Event = Speech | MemoryWritten | ExpressionChosen | Finished
