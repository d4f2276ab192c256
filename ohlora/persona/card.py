"""The character card: one YAML file of facts about her, as a frozen model that rejects unknown keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ohlora.attributes import Expression

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

MAX_HEADER = 40
KEY_FORBIDDEN = set("[](){}:;\n")
RESERVED_KEYS = {"사용자", "오로라", "기억"}


class CardError(ValueError):
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


class Card(BaseModel):
    """Who she is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text
    romanized_name: Text
    gender: Text
    age: int = Field(gt=0, lt=200)
    mbti: Text
    university: Text
    major: Text
    speech: Text
    header: str = Field("", max_length=MAX_HEADER, description="one line above every prompt; empty for none")
    greetings: list[Text] = Field(min_length=1)
    likes: list[Text]
    dislikes: list[Text]
    hobbies: list[Text]
    dreams: list[Text]
    favourite_foods: list[Text]
    family: list[Text]
    habits: list[Text]
    on_rudeness: list[Text]
    honesty: list[Text]
    unknowns: list[Text]
    memory_keys: dict[Text, Text] = Field(min_length=1, description="what she may remember -> its meaning")
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
        for key in self.memory_keys:
            if KEY_FORBIDDEN & set(key) or key in RESERVED_KEYS:
                raise ValueError(f"memory key {key!r} holds a bracket, a colon or is a role of the prompt")
        if KEY_FORBIDDEN & set(self.name):
            raise ValueError(f"name {self.name!r} holds a bracket, a colon or a line break")
        if "\n" in self.header or any(f"{role}:" in self.header for role in RESERVED_KEYS):
            raise ValueError("header must be one line without a role marker")
        return self

    @property
    def greeting(self) -> str:
        """The first greeting: what she says before the person has said anything."""
        return self.greetings[0]

    @property
    def labels(self) -> dict[str, str]:
        """Tag in a reply -> name of the expression."""
        return {spec.label: name for name, spec in self.expressions.items()}


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
