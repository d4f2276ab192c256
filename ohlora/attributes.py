"""The vocabulary that every room shares: face classes, the nine attributes and an expression.

Indices 0 to 10 of `FaceClass` are those of FaceXFormer's parsing head, so that masks of the original
project and of a FaceXFormer teacher score unchanged. "Left" and "right" are the image's, not the subject's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from pydantic import BaseModel, ConfigDict, Field


class FaceClass(IntEnum):
    """Classes of a mask (`uint8 [h, w]`)."""

    BACKGROUND = 0
    SKIN = 1
    LEFT_BROW = 2
    RIGHT_BROW = 3
    LEFT_EYE = 4
    RIGHT_EYE = 5
    NOSE = 6
    UPPER_LIP = 7
    INNER_MOUTH = 8
    LOWER_LIP = 9
    HAIR = 10
    EARS = 11
    NECK = 12
    CLOTHES = 13


@dataclass(frozen=True, slots=True)
class Attributes:
    """The nine attributes of a portrait, raw. `None` means unknown (an occluded part), never zero."""

    gender: float | None  # probability of female, 0..1
    quality: float | None  # probability of a clean picture, 0..1
    eyes: float | None  # eye openness, 0 (closed) .. 1 (wide)
    mouth: float | None  # mouth openness, 0 (closed) .. 1 (wide)
    pose: float | None  # head yaw in degrees, positive turns towards the image's right
    hair_color: float | None  # mean RGB of hair, 0..255
    hair_length: float | None  # lowest row with more than strands of hair / image height, 0..1
    background_mean: float | None  # mean RGB of the background's upper half, 0..255
    background_std: float | None  # its standard deviation, 0..128


@dataclass(frozen=True, slots=True)
class AttributeScores:
    """The nine attributes as z-scores against a corpus: same fields, another type, never mixed with raw."""

    gender: float | None
    quality: float | None
    eyes: float | None
    mouth: float | None
    pose: float | None
    hair_color: float | None
    hair_length: float | None
    background_mean: float | None
    background_std: float | None


ATTRIBUTE_NAMES: tuple[str, ...] = tuple(Attributes.__dataclass_fields__)

CONDITION_NAMES: tuple[str, ...] = ATTRIBUTE_NAMES[2:]
"""What the generator is conditioned on: all but gender and quality, which only filter the corpus."""


class Expression(BaseModel):
    """What a face shows, in the units of `Attributes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    eyes: float = Field(0.75, ge=0, le=1, description="eye openness, 0 closed to 1 wide")
    mouth: float = Field(0.0, ge=0, le=1, description="mouth openness, 0 closed to 1 wide")
    pose: float = Field(0.0, ge=-35, le=35, description="yaw in degrees, positive to the image's right")
