"""The character card: one YAML file of facts about her, as a frozen model that rejects unknown keys."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ohlora.attributes import Expression
from ohlora.errors import UserError

if TYPE_CHECKING:
    from ohlora.persona.examples import Likeness
    from ohlora.persona.facts import FactFinder
    from ohlora.persona.intents import IntentFinder

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Month = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$")]

Speech = Literal["반말", "존댓말"]

MAX_HEADER = 40
KEY_FORBIDDEN = set("[](){}:;\n")
REPLY_FORBIDDEN = set("[](){}\n")
RESERVED_KEYS = {"사용자", "오로라", "기억", "설정"}
PLACEHOLDERS = ("age", "school_year")
FACT_FIELDS = ("name", "romanized_name", "gender", "identity", "name_origin", "power", "mbti", "speech")
FACT_PLACEHOLDERS = (*PLACEHOLDERS, *FACT_FIELDS, "born_year", "born_month", "born_day")
GRADUATE = "졸업생"
CRISIS_LEAST = 0.4  # probability: what is missed is far worse than what is taken in vain
BOUNDARY_LEAST = 0.4  # probability: what is missed is worse than what is declined in vain
FACT_LEAST = 0.7
FACT_MARGIN = 0.15  # a fact is told only if no other is nearly as likely to be meant: see IntentFinder.find
# where messages of the data that are like it tell of a message, too (`Likeness`); chosen on messages that are
# not in the card, see docs/voice.md
LIKENED_LEAST, LIKENED_MARGIN = 0.4, 0.1
NATS_PER_COSINE = 80.0  # what it is worth to be nearer to messages that ask for a fact
SCORE_PER_COSINE = 4.0  # what it is worth for a fact that messages which ask for it are near

_SCHOOL_YEAR = re.compile(r"\{school_year\}학년")
_BRACED = re.compile(r"\{([^{}]*)\}|[{}]")


class CardError(UserError, ValueError):
    """The card is missing or does not parse; the message names the file, the key and the problem."""


class ExpressionSpec(BaseModel):
    """One expression: how the tag in a reply reads, what the face shows, and which words speak for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Text = Field(description="tag in the reply, in the person's language")
    eyes: float = Field(ge=0, le=1, description="eye openness, 0 closed to 1 wide")
    mouth: float = Field(ge=0, le=1, description="mouth openness, 0 closed to 1 wide")
    pose: float = Field(ge=-35, le=35, description="yaw in degrees, positive to the image's right")
    cues: list[Text] = Field([], description="words of a reply that speak for this expression")

    @property
    def expression(self) -> Expression:
        """The face's condition in the units of `Attributes`."""
        return Expression(eyes=self.eyes, mouth=self.mouth, pose=self.pose)


class School(BaseModel):
    """A school and when it was attended. Korean school years begin in the month of entry, March."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text
    subject: str = Field("", description="what is studied there")
    entered: Month = Field(description="year and month, e.g. 2022-03")
    left: Month | None = Field(None, description="last month; None where it follows from `years`")
    years: int = Field(4, gt=0, description="school years to the degree")
    years_off: int = Field(0, ge=0, description="years of leave so far")

    def year(self, on: date) -> int | None:
        """School year, 1 to `years`, on a day; None before the entry and after the end."""
        begun = _months(on) - _months(date.fromisoformat(f"{self.entered}-01"))
        if begun < 0 or (self.left and _months(on) > _months(date.fromisoformat(f"{self.left}-01"))):
            return None
        year = max(1, begun // 12 + 1 - self.years_off)
        return year if year <= self.years else None


class Fact(BaseModel):
    """What she reads in her prompt when somebody asks for it. With `replies` she then says one of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    says: Text = Field(
        max_length=60, description="`키: 값`, with {age}, {school_year}, {born_year} or fields as {mbti}"
    )
    asked: list[Text] = Field(min_length=1, description="questions and false claims that are about it")
    replies: list[Text] = Field(
        [], description="what she says then, true of a question and a false claim alike"
    )

    @model_validator(mode="after")
    def _sayable(self) -> Self:
        for reply in self.replies:
            if REPLY_FORBIDDEN & set(_BRACED.sub("", reply)):
                raise ValueError(f"reply {reply!r} holds a bracket or a line break")
        return self


class Boundary(BaseModel):
    """What she declines. With `asked` and `replies` she answers such a message with one of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    says: Text = Field(description="in a sentence, for people who read the card")
    asked: list[Text] = Field([], description="messages that cross it")
    replies: list[Text] = Field([], description="what she then says")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.asked) != bool(self.replies):
            raise ValueError(f"boundary {self.says!r} needs both asked and replies, or neither")
        for reply in self.replies:
            if REPLY_FORBIDDEN & set(reply):
                raise ValueError(f"reply {reply!r} holds a bracket or a line break")
        return self


class Crisis(Boundary):
    """Somebody is in danger of life by their own hand: she never leaves her answer to the network."""

    unlike: list[Text] = Field([], description="messages with the same words that are no crisis")


class Card(BaseModel):
    """Who she is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text
    romanized_name: Text
    gender: Text
    born: date
    identity: Text = Field(description="what kind of being the persona is, and says to be when asked")
    name_origin: Text
    power: Text = Field(description="what the persona can do that others cannot")
    mbti: Text
    occupation: Text
    schools: list[School] = Field([], description="oldest first")
    speech: Speech
    character: list[Text] = Field(min_length=1)
    look: Text = Field(description="path of the look file, from the root of the work tree")
    header: str = Field(
        "",
        max_length=MAX_HEADER,
        description="one line above every prompt, with {age} and {school_year}; empty for none",
    )
    greetings: list[Text] = Field(min_length=1)
    likes: list[Text]
    dislikes: list[Text]
    hobbies: list[Text]
    dreams: list[Text]
    favourite_foods: list[Text]
    family: list[Text]
    habits: list[Text]
    on_rudeness: list[Text]
    boundaries: list[Boundary] = Field(min_length=1, description="what the persona declines")
    harmless: list[Text] = Field([], description="messages that resemble those and cross no boundary")
    crisis: Crisis | None = Field(None, description="what she says when somebody is in danger")
    honesty: list[Text]
    unknowns: list[Text]
    facts: list[Fact] = Field([], description="what she looks up in her card when she is asked")
    small_talk: list[Text] = Field([], description="messages that ask for none of the facts")
    memory_keys: dict[Text, Text] = Field(min_length=1, description="what she may remember -> its meaning")
    hint_keys: dict[Text, Text] = Field({}, description="hints about the moment that a prompt may hold")
    idle_expression: str = Field(description="expression while she waits, and where nothing else fits")
    expressions: dict[Text, ExpressionSpec] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.idle_expression not in self.expressions:
            known = ", ".join(self.expressions)
            raise ValueError(f"idle_expression {self.idle_expression!r} is not one of: {known}")
        labels = [spec.label for spec in self.expressions.values()]
        doubles = sorted({label for label in labels if labels.count(label) > 1})
        if doubles:
            raise ValueError(f"two expressions share the label {', '.join(doubles)}")
        for key in (*self.memory_keys, *self.hint_keys):
            if KEY_FORBIDDEN & set(key) or key in RESERVED_KEYS:
                raise ValueError(f"memory key {key!r} holds a bracket, a colon or is a role of the prompt")
        if KEY_FORBIDDEN & set(self.name):
            raise ValueError(f"name {self.name!r} holds a bracket, a colon or a line break")
        if "\n" in self.header or any(f"{role}:" in self.header for role in RESERVED_KEYS):
            raise ValueError("header must be one line without a role marker")
        if unknown := unknown_placeholders(self.header):
            raise ValueError(f"header holds {unknown[0]!r}; there are: {{age}}, {{school_year}}")
        for fact in self.facts:
            for text in (fact.says, *fact.replies):
                if unknown := unknown_placeholders(text, FACT_PLACEHOLDERS):
                    names = ", ".join(f"{{{name}}}" for name in FACT_PLACEHOLDERS)
                    raise ValueError(f"fact {text!r} holds {unknown[0]!r}; there are: {names}")
        return self

    def age(self, on: date) -> int:
        """Age in full years on a day (만 나이)."""
        return on.year - self.born.year - ((on.month, on.day) < (self.born.month, self.born.day))

    def school_year(self, on: date) -> int | None:
        """School year on a day; None for who attends no school then."""
        years = [year for school in self.schools if (year := school.year(on))]
        return years[-1] if years else None

    def filled(self, text: str, on: date) -> str:
        """A text whose `{age}` and `{school_year}` are what they are on a day.

        Of who attends no school, `{school_year}학년` becomes 졸업생, which takes the same particles.

        >>> # card.filled("{age}살, {school_year}학년이야", date(2025, 12, 1)) -> "22살, 3학년이야"
        """
        if "{" not in text:
            return text
        year = self.school_year(on)
        if year is None:
            text = _SCHOOL_YEAR.sub(GRADUATE, text).replace("{school_year}", GRADUATE)
        return text.replace("{age}", str(self.age(on))).replace("{school_year}", str(year))

    def facts_for(self, message: str, on: date) -> list[str]:
        """The facts that a message asks for, as `키: 값` filled for a day, best first."""
        if not self.facts:
            return []
        asked = tuple(tuple(fact.asked) for fact in self.facts)
        found = _fact_finder(asked, tuple(self.small_talk)).find(message)
        return [self._stated(self.facts[index].says, on) for index, _ in found]

    def words_for(
        self,
        message: str,
        seed: int,
        on: date,
        boundaries: bool = True,
        facts: bool = True,
        likeness: Likeness | None = None,
        said: Collection[str] = (),
    ) -> str:
        """What she says to a message that the card holds her words for; empty where the voice finds them.

        Args:
            message: what the person says.
            seed: chooses among the replies.
            on: the day on which it is said.
            boundaries: answer messages of somebody in danger, and those that cross a boundary.
            facts: answer messages that ask for a fact.
            likeness: what messages of the data that are like it tell of it; None where nobody looked.
            said: what she has said already; of several replies she takes one that is not among it.
        """
        replies = (
            (boundaries and (self._helping(message) or self._declining(message)))
            or (facts and self._telling(message, likeness))
            or []
        )
        stated = [self._stated(reply, on) for reply in replies]
        fresh = [reply for reply in stated if reply not in said] or stated
        return fresh[seed % len(fresh)] if fresh else ""

    def _helping(self, message: str) -> list[str]:
        """Replies to somebody in danger."""
        if self.crisis is None or not self.crisis.asked:
            return []
        crossing = [question for boundary in self.boundaries for question in boundary.asked]
        others = (*self.crisis.unlike, *crossing, *self.harmless, *self.small_talk)
        if not others:
            return []
        found = _intent_finder((tuple(self.crisis.asked),), others).find(message, CRISIS_LEAST)
        return [] if found is None else self.crisis.replies

    def _declining(self, message: str) -> list[str]:
        """Replies of the boundary that a message crosses."""
        asked = tuple(tuple(boundary.asked) for boundary in self.boundaries)
        questions = [question for fact in self.facts for question in fact.asked]
        others = (*questions, *self.small_talk, *self.harmless)
        if not any(asked) or not others:
            return []
        crossed = _intent_finder(asked, others).find(message, least=BOUNDARY_LEAST)
        return [] if crossed is None else self.boundaries[crossed].replies

    def _telling(self, message: str, likeness: Likeness | None) -> list[str]:
        """Replies of the fact that a message asks for."""
        if not any(fact.replies for fact in self.facts):
            return []
        asked = tuple(tuple(fact.asked) for fact in self.facts)
        others = self.asking_no_fact
        if likeness is not None and likeness.everyday:
            finder = _intent_finder(asked, (*others, *likeness.everyday))
            evidence = NATS_PER_COSINE * likeness.leaning
            towards = [SCORE_PER_COSINE * cosine for cosine in likeness.to_facts]
            wanted = finder.find(message, LIKENED_LEAST, LIKENED_MARGIN, evidence, towards)
        elif others:
            wanted = _intent_finder(asked, others).find(message, FACT_LEAST, FACT_MARGIN)
        else:
            return []
        return [] if wanted is None else self.facts[wanted].replies

    @property
    def asking_facts(self) -> list[tuple[str, int]]:
        """The messages of the card that ask for a fact, with its number; none where it tells none."""
        if not any(fact.replies for fact in self.facts):
            return []
        return [(message, number) for number, fact in enumerate(self.facts) for message in fact.asked]

    @property
    def asking_no_fact(self) -> tuple[str, ...]:
        """The messages that the card holds and that ask for none of its facts."""
        crossing = (question for boundary in self.boundaries for question in boundary.asked)
        return (*crossing, *self.small_talk)  # some harmless messages ask for a fact

    def _stated(self, text: str, on: date) -> str:
        """A fact, or a reply that says one, with what the card's fields hold on a day."""
        values = {name: getattr(self, name) for name in FACT_FIELDS}
        values |= {f"born_{part}": getattr(self.born, part) for part in ("year", "month", "day")}
        return _BRACED.sub(lambda m: str(values.get(m.group(1), m.group(0))), self.filled(text, on))

    @property
    def greeting(self) -> str:
        """The first greeting: what she says before the person has said anything."""
        return self.greetings[0]

    @property
    def labels(self) -> dict[str, str]:
        """Tag in a reply -> name of the expression."""
        return {spec.label: name for name, spec in self.expressions.items()}


@lru_cache(maxsize=8)  # by value: a copy of a card may have other facts
def _fact_finder(asked: tuple[tuple[str, ...], ...], small_talk: tuple[str, ...]) -> FactFinder:
    from ohlora.persona.facts import FactFinder  # scikit-learn takes half a second, for who is asked only

    return FactFinder(asked, small_talk)


@lru_cache(maxsize=8)
def _intent_finder(asked: tuple[tuple[str, ...], ...], others: tuple[str, ...]) -> IntentFinder:
    from ohlora.persona.intents import IntentFinder

    return IntentFinder(asked, others)


def unknown_placeholders(text: str, known: Collection[str] = PLACEHOLDERS) -> list[str]:
    """Braces and braced words of a text that are no placeholder of a card."""
    return [m.group(0) for m in _BRACED.finditer(text) if m.group(1) not in known]


def load_card(path: Path | str) -> Card:
    """Read a character card.

    Raises:
        CardError: the file is missing, is not YAML, holds an unknown key or a bad value.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"character card {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CardError(f"character card {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise CardError(f"character card {path} must hold keys and values")
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"{path}: unknown key {key!r}")
            else:
                lines.append(f"{path}: {key}: {problem['msg']}" if key else f"{path}: {problem['msg']}")
        raise CardError("\n".join(lines)) from error


def _months(day: date) -> int:
    return day.year * 12 + day.month
