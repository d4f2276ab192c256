"""What a portrait shows, as numbers: the look of a person and one moment of it; and how both are drawn.

Colours of the subject are linear RGB reflectances in 0..1, background colours are sRGB in 0..1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Fraction = Annotated[float, Field(ge=0, le=1)]
Signed = Annotated[float, Field(ge=-1, le=1)]
Colour = tuple[Fraction, Fraction, Fraction]

# Paired targets of the packed head: name -> (standard deviation, suffix below zero, suffix above zero).
FACE_SHAPE: dict[str, tuple[float, str, str]] = {
    "nose/nose-scale-horiz": (0.2, "decr", "incr"),
    "nose/nose-scale-vert": (0.16, "decr", "incr"),
    "nose/nose-hump": (0.16, "decr", "incr"),
    "nose/nose-point": (0.2, "down", "up"),
    "nose/nose-width2": (0.2, "decr", "incr"),
    "nose/nose-volume": (0.16, "decr", "incr"),
    "mouth/mouth-scale-horiz": (0.2, "decr", "incr"),
    "mouth/mouth-upperlip-volume": (0.24, "decr", "incr"),
    "mouth/mouth-lowerlip-volume": (0.24, "decr", "incr"),
    "mouth/mouth-cupidsbow": (0.2, "decr", "incr"),
    "mouth/mouth-trans": (0.12, "down", "up"),
    "chin/chin-width": (0.2, "decr", "incr"),
    "chin/chin-height": (0.16, "decr", "incr"),
    "chin/chin-prominent": (0.2, "decr", "incr"),
    "head/head-fat": (0.144, "decr", "incr"),
    "head/head-scale-horiz": (0.12, "decr", "incr"),
    "head/head-scale-vert": (0.12, "decr", "incr"),
    "forehead/forehead-scale-vert": (0.16, "decr", "incr"),
    "eyebrows/eyebrows-trans": (0.12, "down", "up"),
    "eyebrows/eyebrows-angle": (0.16, "down", "up"),
    "cheek/{}-cheek-bones": (0.2, "decr", "incr"),
    "cheek/{}-cheek-volume": (0.2, "decr", "incr"),
    "eyes/{}-eye-scale": (0.12, "decr", "incr"),
    "eyes/{}-eye-corner2": (0.2, "down", "up"),
    "eyes/{}-eye-trans": (0.12, "in", "out"),
    "eyes/{}-eye-height2": (0.16, "decr", "incr"),
    "ears/{}-ear-scale": (0.12, "decr", "incr"),
    "ears/{}-ear-wing": (0.16, "decr", "incr"),
}

NATURAL_HAIR: dict[str, Colour] = {
    "black": (0.022, 0.018, 0.017),
    "dark_brown": (0.070, 0.038, 0.022),
    "brown": (0.150, 0.078, 0.040),
    "light_brown": (0.330, 0.185, 0.095),
    "blond": (0.740, 0.540, 0.310),
    "platinum": (0.860, 0.770, 0.630),
    "auburn": (0.330, 0.105, 0.045),
    "grey": (0.400, 0.400, 0.410),
}
NATURAL_SHARE = (0.24, 0.16, 0.18, 0.14, 0.12, 0.05, 0.07, 0.04)
VIVID_HAIR: tuple[Colour, ...] = (
    (0.70, 0.26, 0.34),
    (0.16, 0.22, 0.55),
    (0.36, 0.20, 0.52),
    (0.10, 0.38, 0.36),
)
VIVID_SHARE = 0.09
IRISES: tuple[Colour, ...] = (
    (0.10, 0.055, 0.03),
    (0.17, 0.095, 0.045),
    (0.16, 0.15, 0.07),
    (0.10, 0.19, 0.30),
    (0.16, 0.19, 0.21),
)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hair(Frozen):
    color: Colour = Field(description="at mid length")
    tint: Colour = Field(description="second colour towards the tips")
    tint_amount: Fraction = 0.0
    length: Fraction = Field(description="below .35 short, .5 to the chin, 1 below the shoulders")
    bangs: bool = False
    part: float = Field(0.0, ge=-0.3, le=0.3, description="x of the parting on the template, dm")
    wave: Fraction = 0.0


class Background(Frozen):
    top: Colour
    bottom: Colour
    glow: Colour = Field(description="colour of soft bands and clouds")
    glow_amount: Fraction = 0.0
    bands: bool = Field(False, description="wide slanted bands rather than clouds")


class Look(Frozen):
    """What stays the same in every portrait of one person."""

    seed: int = Field(ge=0, description="of strands, freckles and the background's clouds")
    female: Fraction = Field(description="0 male, 1 female; shapes between blend")
    asian: Fraction = Field(description="share of the asian shape, the rest is caucasian")
    shape: dict[str, Signed] = Field(default={}, description="names of FACE_SHAPE")
    skin: Fraction = Field(description="0 tan, 1 fair")
    lips: Colour
    iris: Colour
    hair: Hair
    clothes: Colour
    neckline: Fraction = Field(0.35, description="depth of the neckline")
    light: float = Field(description="azimuth of the key light, degrees, positive from the image's right")
    warmth: Signed = Field(0.0, description="of the key light, -1 cool to 1 warm")
    background: Background


class PortraitParameters(Frozen):
    """One portrait: a look and a moment."""

    look: Look
    eyes: Fraction = Field(0.8, description="eye openness, 0 closed to 1 wide; linear in the gap of the lids")
    mouth: Fraction = Field(0.0, description="mouth openness, 0 closed to 1 wide")
    yaw: float = Field(0.0, ge=-40, le=40, description="degrees, positive towards the image's right")
    pitch: float = Field(0.0, ge=-15, le=15, description="degrees, positive looks up")
    roll: float = Field(0.0, ge=-15, le=15, description="degrees, positive tilts to the image's right")
    smile: Fraction = 0.4


def sample_look(rng: np.random.Generator) -> Look:
    """Draw a person: 65 % women; hair, clothes and light are independent of gender."""
    female = float(rng.random() < 0.65)
    natural = rng.random() >= VIVID_SHARE
    if natural:
        base = np.array(list(NATURAL_HAIR.values())[rng.choice(len(NATURAL_HAIR), p=NATURAL_SHARE)])
    else:
        base = np.array(VIVID_HAIR[rng.integers(len(VIVID_HAIR))])
    color = np.clip(base * np.exp(rng.normal(0, 0.12, 3) * 0.4 + rng.normal(0, 0.15)), 0.01, 0.9)
    hue = rng.uniform(0.08, 0.86, 3)
    top = hue * 0.35 + hue.mean() * 0.65
    bottom = np.clip(top * rng.uniform(0.75, 1.2), 0.02, 0.96)
    lips = np.array([0.60, 0.20, 0.20]) if female else np.array([0.55, 0.29, 0.25])
    length = float(rng.choice([rng.uniform(0.06, 0.34), rng.uniform(0.42, 0.62), rng.uniform(0.62, 1.0)]))
    return Look(
        seed=int(rng.integers(1 << 31)),
        female=female,
        asian=float(np.clip(rng.normal(0.62, 0.25), 0, 1)),
        shape={name: float(np.clip(rng.normal(0, sd), -1, 1)) for name, (sd, _, _) in FACE_SHAPE.items()},
        skin=float(rng.uniform(0.15, 1)),
        lips=_colour(lips * np.exp(rng.normal(0, 0.12, 3))),
        iris=IRISES[rng.choice(len(IRISES), p=[0.4, 0.25, 0.1, 0.15, 0.1])],
        hair=Hair(
            color=_colour(color),
            tint=_colour(color * np.exp(rng.normal(0.15, 0.15, 3))),
            tint_amount=float(rng.uniform(0, 0.5)),
            length=length,
            bangs=bool(rng.random() < 0.4),
            part=float(rng.choice([-0.2, -0.1, 0.0, 0.1, 0.2])),
            wave=float(rng.choice([0, rng.uniform(0.2, 0.8)])),
        ),
        clothes=_colour(rng.uniform(0.02, 0.5, 3) * 0.6 + rng.uniform(0.01, 0.4)),
        neckline=float(rng.uniform(0.2, 0.5)),
        light=float(rng.choice([-1, 1]) * rng.uniform(12, 45)),
        warmth=float(rng.uniform(-0.5, 0.8)),
        background=Background(
            top=_colour(top),
            bottom=_colour(bottom),
            glow=_colour(np.clip(top + rng.normal(0, 0.12, 3) + rng.normal(0, 0.15), 0, 1)),
            glow_amount=float(rng.choice([0.0, rng.uniform(0.2, 1)])),
        ),
    )


def sample_moment(look: Look, rng: np.random.Generator, max_yaw: float = 30.0) -> PortraitParameters:
    """Draw eyes, mouth and pose of one portrait, independently of each other and of the look."""
    return PortraitParameters(
        look=look,
        eyes=max(0.0, float(rng.uniform(-0.08, 1))),  # some are fully closed
        mouth=0.0 if rng.random() < 0.4 else float(rng.uniform(0, 1)),
        yaw=float(rng.triangular(-1, 0, 1) * max_yaw),
        pitch=float(np.clip(rng.normal(0, 2.5), -8, 8)),
        roll=float(np.clip(rng.normal(0, 1.5), -5, 5)),
        smile=float(rng.uniform(0.1, 0.75)),
    )


def sample_parameters(seed: int) -> PortraitParameters:
    """One portrait of one new person, a function of the seed alone."""
    rng = np.random.default_rng(seed)
    return sample_moment(sample_look(rng), rng)


def persona_parameters(path: Path) -> PortraitParameters:
    """Oh-LoRA herself, from the section `look` of a YAML file, with a calm open-eyed expression.

    Raises:
        ValueError: the file is missing or does not describe a look; the message names the field.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; it holds how she looks, restore it with: git checkout {path}")
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "look" not in content:
        raise ValueError(f"{path} has no section 'look'")
    try:
        look = Look.model_validate(content["look"])
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in ("look", *problem["loc"]))
        raise ValueError(f"{path}: {field}: {problem['msg']}") from error
    if unknown := set(look.shape) - set(FACE_SHAPE):
        raise ValueError(f"{path}: look.shape: unknown {sorted(unknown)}; allowed: {', '.join(FACE_SHAPE)}")
    return PortraitParameters(look=look)


def shape_weights(look: Look) -> dict[str, float]:
    """Weights of the targets that make this person, without expression."""
    female = look.female
    weights: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        weights[name] = weights.get(name, 0.0) + value

    for gender, share in (("female", female), ("male", 1 - female)):
        for origin, part in (("asian", look.asian), ("caucasian", 1 - look.asian)):
            add(f"macrodetails/{origin}-{gender}-young", part * share)
        add(f"macrodetails/universal-{gender}-young-averagemuscle-averageweight", share)
        add(f"macrodetails/proportions/{gender}-young-averagemuscle-averageweight-idealproportions", share)
    for name, (_, below, above) in FACE_SHAPE.items():
        value = look.shape.get(name, 0.0)
        if (
            name == "eyes/{}-eye-scale"
        ):  # large eyes read as friendly, and give more pixels to what is conditioned
            value += 0.5 + 0.65 * female
        if name == "ears/{}-ear-wing":
            value -= 0.4
        for side in ("l", "r") if "{}" in name else ("",):
            add(f"{name.format(side)}-{above if value > 0 else below}", abs(value))
    for name, value in FEMININE.items():
        add(name, value * female)
    return {name: value for name, value in weights.items() if value}


FEMININE: dict[str, float] = {
    "head/head-oval": 0.35,
    "head/head-scale-horiz-decr": 0.12,
    "forehead/forehead-scale-vert-decr": 0.3,
    "eyes/l-eye-height2-incr": 0.3,
    "eyes/r-eye-height2-incr": 0.3,
    "head/head-age-decr": 0.5,
    "chin/chin-width-decr": 0.25,
    "nose/nose-scale-horiz-decr": 0.3,
    "nose/nose-scale-vert-decr": 0.2,
    "mouth/mouth-upperlip-volume-incr": 0.3,
    "mouth/mouth-lowerlip-volume-incr": 0.3,
}

# Gap of the lids over the gap of resting open eyes, and the blink weight that leaves it: measured on masks of
# three faces at 384 px. Above EYES_OPEN the lids widen, up to a gap 1.23 times that at rest.
EYES_OPEN = 0.81
GAP_SHARE = (0.0, 0.149, 0.234, 0.307, 0.468, 0.617, 0.778, 0.894, 1.0)
BLINK = (0.93, 0.80, 0.72, 0.64, 0.50, 0.35, 0.20, 0.10, 0.0)


def expression_weights(parameters: PortraitParameters) -> dict[str, float]:
    """Weights of the face units that make the expression."""
    blink = float(np.interp(parameters.eyes / EYES_OPEN, GAP_SHARE, BLINK))
    widen = max(0.0, parameters.eyes - EYES_OPEN) / (1 - EYES_OPEN)
    mouth = parameters.mouth
    weights = {"unit/jawOpen": 0.65 * mouth, "unit/browInnerUp": 0.15 * widen}
    for side in ("Left", "Right"):
        weights |= {
            f"unit/eyeBlink{side}": blink,
            f"unit/eyeWide{side}": 0.65 * widen,
            f"unit/mouthSmile{side}": parameters.smile,
            f"unit/mouthUpperUp{side}": 0.42 * mouth,
            f"unit/mouthLowerDown{side}": 0.25 * mouth,
        }
    return {name: value for name, value in weights.items() if value}


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (float(v) for v in np.clip(values, 0, 1))
    return red, green, blue
