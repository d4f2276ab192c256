"""Settings of who she is: the character card, the dialogue rows, and which of them her voice is shown."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field

from ohlora.section import Fraction, Positive, Section


class PersonaChecks(Section):
    """What `ohlora persona check` and the stage `dialogues` refuse."""

    reply_characters: Positive = Field(90, description="longest reply")
    similarity: Fraction = Field(0.85, description="user messages of two splits must be less similar")
    expression_least: Fraction = Field(0.02, description="least share of rows of an expression")
    expression_most: Fraction = Field(0.5, description="largest share of rows of an expression")
    opening_most: Fraction = Field(0.05, description="largest share of replies with the same first word")


class PersonaConfig(Section):
    card: str = Field("data/persona/ohlora.yaml", description="character card: who she is")
    dialogues: str = Field("data/persona/dialogues.jsonl", description="dialogue rows")
    limit: int = Field(
        0, ge=0, description="take only N training rows, copies on other days aside; 0 takes all"
    )
    history: Fraction = Field(0.25, description="share of training rows that get an unrelated earlier turn")
    today: date | Literal["auto"] = Field(
        "auto", description="the day of the rows, for age and school year: a date, or auto for today's"
    )
    other_dates: Fraction = Field(0.3, description="share of training rows that are said on a later day")
    years_ahead: float = Field(5.0, ge=0, le=50, description="how much later at most; 0 for one day for all")
    checks: PersonaChecks = PersonaChecks()
    date_copies: Positive = Field(
        3, description="on how many days a training row that says age or school year is said"
    )

    @property
    def day(self) -> date:
        """The day of the rows."""
        return date.today() if self.today == "auto" else self.today


class ExamplesConfig(Section):
    """Dialogue rows like the message, which the voice reads in its prompt, in training as in serving."""

    shown: int = Field(
        2, ge=0, description="how many at most: the nearest and others by chance; 0 shows none"
    )
    pool: Positive = Field(4, description="among how many of the nearest the others are drawn")
    threshold: float = Field(
        0.8, ge=-1, le=1, description="least cosine of messages; below it a reply hardly ever fits"
    )
    ties: float = Field(
        0.01,
        ge=0,
        description="pairs whose cosine is so little below the best are as near: chance takes one",
    )
    prototypes: Fraction = Field(
        0.9,
        description="share of training rows that see a pair with a like reply as the nearest, if there is",
    )
