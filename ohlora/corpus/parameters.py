"""What a portrait shows, as numbers: the look of a person and one moment of it; and how both are drawn.

Colours of the subject are linear RGB reflectances in 0..1, background colours are sRGB in 0..1.
"""

from __future__ import annotations

from enum import StrEnum
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
    "nose/nose-scale-horiz": (0.26, "decr", "incr"),
    "nose/nose-scale-vert": (0.20, "decr", "incr"),
    "nose/nose-scale-depth": (0.16, "decr", "incr"),
    "nose/nose-hump": (0.20, "decr", "incr"),
    "nose/nose-point": (0.24, "down", "up"),
    "nose/nose-width2": (0.24, "decr", "incr"),
    "nose/nose-volume": (0.20, "decr", "incr"),
    "nose/nose-flaring": (0.18, "decr", "incr"),
    "mouth/mouth-scale-horiz": (0.24, "decr", "incr"),
    "mouth/mouth-upperlip-volume": (0.28, "decr", "incr"),
    "mouth/mouth-lowerlip-volume": (0.28, "decr", "incr"),
    "mouth/mouth-cupidsbow": (0.24, "decr", "incr"),
    "mouth/mouth-trans": (0.14, "down", "up"),
    "mouth/mouth-angles": (0.16, "down", "up"),
    "chin/chin-width": (0.26, "decr", "incr"),
    "chin/chin-height": (0.20, "decr", "incr"),
    "chin/chin-prominent": (0.24, "decr", "incr"),
    "chin/chin-jaw-drop": (0.18, "decr", "incr"),
    "head/head-fat": (0.22, "decr", "incr"),
    "head/head-scale-horiz": (0.14, "decr", "incr"),
    "head/head-scale-vert": (0.14, "decr", "incr"),
    "forehead/forehead-scale-vert": (0.18, "decr", "incr"),
    "forehead/forehead-temple": (0.18, "decr", "incr"),
    "eyebrows/eyebrows-trans": (0.14, "down", "up"),
    "eyebrows/eyebrows-angle": (0.18, "down", "up"),
    "cheek/{}-cheek-bones": (0.24, "decr", "incr"),
    "cheek/{}-cheek-volume": (0.24, "decr", "incr"),
    "eyes/{}-eye-scale": (0.14, "decr", "incr"),
    "eyes/{}-eye-corner2": (0.24, "down", "up"),
    "eyes/{}-eye-trans": (0.14, "in", "out"),
    "eyes/{}-eye-height2": (0.18, "decr", "incr"),
    "ears/{}-ear-scale": (0.14, "decr", "incr"),
    "ears/{}-ear-wing": (0.18, "decr", "incr"),
}
HEAD_SHAPES = ("oval", "round", "square", "diamond", "triangular", "invertedtriangular", "rectangular")

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


class HairStyle(StrEnum):
    """Silhouettes; the fringe is chosen apart."""

    LONG = "long"
    LAYERED = "layered"
    BOB = "bob"
    PONYTAIL = "ponytail"
    BUN = "bun"
    PIXIE = "pixie"
    CURLS = "curls"
    SIDE_PART = "side_part"
    CROP = "crop"
    SLICK = "slick"
    CREW = "crew"


FALLING_STYLES = frozenset({HairStyle.LONG, HairStyle.LAYERED, HairStyle.BOB})


class Fringe(StrEnum):
    NONE = "none"
    FULL = "full"
    SIDE = "side"
    CURTAIN = "curtain"


# Two lists of styles, in the proportions in which they look natural together. Who draws from which is a
# toss-up, so that hair says nothing about gender.
LONGER_STYLES: dict[HairStyle, float] = {
    HairStyle.LONG: 0.30,
    HairStyle.LAYERED: 0.16,
    HairStyle.BOB: 0.16,
    HairStyle.PONYTAIL: 0.11,
    HairStyle.BUN: 0.08,
    HairStyle.PIXIE: 0.11,
    HairStyle.CURLS: 0.08,
}
SHORTER_STYLES: dict[HairStyle, float] = {
    HairStyle.SIDE_PART: 0.27,
    HairStyle.CROP: 0.25,
    HairStyle.SLICK: 0.14,
    HairStyle.CREW: 0.14,
    HairStyle.CURLS: 0.10,
    HairStyle.LAYERED: 0.10,
}
FRINGES: dict[HairStyle, tuple[float, float, float, float]] = {  # none, full, side, curtain
    HairStyle.LONG: (0.40, 0.25, 0.10, 0.25),
    HairStyle.LAYERED: (0.25, 0.15, 0.20, 0.40),
    HairStyle.BOB: (0.35, 0.40, 0.15, 0.10),
    HairStyle.PONYTAIL: (0.50, 0.20, 0.15, 0.15),
    HairStyle.BUN: (0.55, 0.20, 0.10, 0.15),
    HairStyle.PIXIE: (0.30, 0.15, 0.55, 0.0),
}


class Hair(Frozen):
    style: HairStyle = HairStyle.LONG
    fringe: Fringe = Fringe.NONE
    color: Colour = Field(description="at mid length")
    tint: Colour = Field(description="second colour towards the tips")
    tint_amount: Fraction = 0.0
    length: Fraction = Field(0.5, description="0 the shortest, 1 the longest of the style")
    part: float = Field(0.0, ge=-0.3, le=0.3, description="x of the parting on the template, dm")
    wave: Fraction = 0.0


class Glasses(Frozen):
    width: float = Field(0.36, ge=0.25, le=0.45, description="of a lens, dm")
    height: float = Field(0.28, ge=0.18, le=0.42, description="of a lens, dm")
    squareness: Fraction = Field(0.5, description="0 round, 1 angular")
    thickness: float = Field(0.012, ge=0.004, le=0.03, description="radius of the frame, dm")
    color: Colour = (0.02, 0.02, 0.02)


class Earrings(Frozen):
    size: float = Field(0.04, ge=0.015, le=0.16, description="radius, dm")
    hoop: bool = False
    color: Colour = (0.80, 0.60, 0.30)


class Collar(StrEnum):
    CREW = "crew"
    V = "v"
    HIGH = "high"
    SHIRT = "shirt"


class Light(Frozen):
    """A key light, its opposite rim and an even fill."""

    azimuth: float = Field(30.0, ge=-75, le=75, description="degrees, positive from the image's right")
    height: float = Field(3.0, ge=0, le=6, description="of the key above the face, dm")
    size: float = Field(2.6, ge=0.5, le=5, description="half side of the key, dm; small is hard")
    contrast: float = Field(1.0, ge=0.3, le=1.6, description="key over fill, 1 is the usual portrait")
    warmth: Signed = Field(0.0, description="of the key, -1 cool to 1 warm")
    rim: Fraction = Field(0.5, description="strength of the light from behind")


class Pattern(StrEnum):
    CLOUDS = "clouds"
    BANDS = "bands"
    BOKEH = "bokeh"
    ROOM = "room"


class Background(Frozen):
    top: Colour
    bottom: Colour
    glow: Colour = Field(description="colour of soft bands and clouds")
    glow_amount: Fraction = 0.0
    pattern: Pattern = Field(Pattern.CLOUDS, description="what the glow paints")


class Look(Frozen):
    """What stays the same in every portrait of one person."""

    seed: int = Field(ge=0, description="of strands, freckles and the background's clouds")
    female: Fraction = Field(description="0 male, 1 female; shapes between blend")
    age: float = Field(24.0, ge=18, le=60, description="years")
    asian: Fraction = Field(description="share of the asian shape")
    african: Fraction = Field(0.0, description="share of the african shape; the rest is caucasian")
    shape: dict[str, Signed] = Field(default={}, description="names of FACE_SHAPE")
    head: str = Field("oval", description="one of HEAD_SHAPES")
    head_amount: Fraction = 0.0
    skin: Fraction = Field(description="0 deep, .5 tan, 1 fair")
    freckles: Fraction = 0.0
    makeup: Fraction = Field(0.0, description="eye shadow, liner and blush")
    lips: Colour
    iris: Colour
    hair: Hair
    brows: Fraction = Field(0.5, description="how thick, 0 thin to 1 bushy")
    glasses: Glasses | None = None
    earrings: Earrings | None = None
    clothes: Colour
    collar: Collar = Collar.CREW
    neckline: Fraction = Field(0.35, description="depth of the neckline")
    light: Light = Light()
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
    """Draw a person: 60 % women; hair, clothes, glasses and light are independent of gender."""
    female = float(rng.random() < 0.6)
    african, asian, _ = rng.dirichlet([0.35, 0.9, 0.75])
    age = float(18 + 42 * rng.beta(1.1, 1.9))
    fair = 0.30 * asian + 0.42 * (1 - asian - african) - 0.42 * african
    lips = np.array([0.60, 0.19, 0.19]) if female else np.array([0.56, 0.27, 0.22])
    skin = float(np.clip(0.52 + fair + rng.normal(0, 0.12), 0, 1))
    lips = lips * (0.45 + 0.55 * skin)
    metal = rng.random() < 0.4
    return Look(
        seed=int(rng.integers(1 << 31)),
        female=female,
        age=age,
        asian=float(asian),
        african=float(african),
        shape={name: float(np.clip(rng.normal(0, sd), -1, 1)) for name, (sd, _, _) in FACE_SHAPE.items()},
        head=HEAD_SHAPES[rng.integers(len(HEAD_SHAPES))],
        head_amount=float(rng.uniform(0, 0.5)),
        skin=skin,
        freckles=float(rng.choice([0.0, rng.uniform(0.2, 1.0)], p=[0.8, 0.2])),
        makeup=float(rng.uniform(0.15, 0.9) if rng.random() < 0.15 + 0.6 * female else 0.0),
        lips=_colour(lips * np.exp(rng.normal(0, 0.08, 3) + rng.normal(0, 0.1))),
        iris=IRISES[rng.choice(len(IRISES), p=[0.4, 0.25, 0.1, 0.15, 0.1])],
        hair=_sample_hair(female, age, rng),
        brows=float(np.clip(rng.normal(0.65 - 0.3 * female, 0.2), 0, 1)),
        glasses=_sample_glasses(rng) if rng.random() < 0.18 else None,
        earrings=Earrings(
            size=float(rng.choice([rng.uniform(0.02, 0.045), rng.uniform(0.07, 0.15)])),
            hoop=bool(rng.random() < 0.4),
            color=(0.85, 0.62, 0.30) if metal else (0.75, 0.76, 0.80),
        )
        if rng.random() < 0.10 + 0.25 * female
        else None,
        clothes=_colour(rng.uniform(0.02, 0.5, 3) * 0.6 + rng.uniform(0.01, 0.4)),
        collar=list(Collar)[rng.choice(4, p=[0.4, 0.2, 0.2, 0.2])],
        neckline=float(rng.uniform(0.2, 0.5)),
        light=Light(
            azimuth=float(rng.choice([-1, 1]) * rng.uniform(8, 58)),
            height=float(rng.uniform(1.2, 4.6)),
            size=float(np.exp(rng.uniform(np.log(1.0), np.log(4.0)))),
            contrast=float(rng.uniform(0.75, 1.4)),
            warmth=float(rng.uniform(-0.7, 0.9)),
            rim=float(rng.uniform(0, 1)),
        ),
        background=_sample_background(rng),
    )


def _sample_hair(female: float, age: float, rng: np.random.Generator) -> Hair:
    if rng.random() < VIVID_SHARE * (age < 45):
        base = np.array(VIVID_HAIR[rng.integers(len(VIVID_HAIR))])
    else:
        share = np.array(NATURAL_SHARE)
        share[-1] *= 0.3 if age < 40 else 6.0  # grey
        base = np.array(list(NATURAL_HAIR.values())[rng.choice(len(share), p=share / share.sum())])
    color = np.clip(base * np.exp(rng.normal(0, 0.12, 3) * 0.4 + rng.normal(0, 0.15)), 0.01, 0.9)
    heads = (female > 0.5) != (rng.random() < 0.5)  # a toss-up for women and for men
    styles = LONGER_STYLES if heads else SHORTER_STYLES
    style = list(styles)[rng.choice(len(styles), p=list(styles.values()))]
    fringe = list(Fringe)[rng.choice(4, p=FRINGES[style])] if style in FRINGES else Fringe.NONE
    return Hair(
        style=style,
        fringe=fringe,
        color=_colour(color),
        tint=_colour(color * np.exp(rng.normal(0.15, 0.15, 3))),
        tint_amount=float(rng.uniform(0, 0.5)),
        length=float(rng.uniform(0, 1)),
        part=float(rng.choice([-0.2, -0.1, 0.0, 0.1, 0.2])),
        wave=float(rng.choice([0, rng.uniform(0.2, 1.0)])),
    )


def _sample_glasses(rng: np.random.Generator) -> Glasses:
    dark = rng.random() < 0.6
    return Glasses(
        width=float(rng.uniform(0.33, 0.40)),
        height=float(rng.uniform(0.24, 0.36)),
        squareness=float(rng.uniform(0, 1)),
        thickness=float(rng.uniform(0.006, 0.018)),
        color=_colour(np.full(3, rng.uniform(0.01, 0.05)) if dark else rng.uniform(0.1, 0.6, 3)),
    )


def _sample_background(rng: np.random.Generator) -> Background:
    hue = rng.uniform(0.08, 0.86, 3)
    top = hue * 0.35 + hue.mean() * 0.65
    bottom = np.clip(top * rng.uniform(0.6, 1.3), 0.02, 0.96)
    return Background(
        top=_colour(top),
        bottom=_colour(bottom),
        glow=_colour(np.clip(top + rng.normal(0, 0.16, 3) + rng.normal(0, 0.2), 0, 1)),
        glow_amount=float(rng.choice([0.0, rng.uniform(0.2, 1)], p=[0.3, 0.7])),
        pattern=list(Pattern)[rng.integers(len(Pattern))],
    )


def sample_moment(look: Look, rng: np.random.Generator, max_yaw: float = 30.0) -> PortraitParameters:
    """Draw eyes, mouth and pose of one portrait, independently of each other and of the look."""
    return PortraitParameters(
        look=look,
        eyes=_sample_eyes(rng),
        mouth=0.0 if rng.random() < 0.4 else float(rng.uniform(0, 1)),
        yaw=float(rng.triangular(-1, 0, 1) * max_yaw),
        pitch=float(np.clip(rng.normal(0, 2.5), -8, 8)),
        roll=float(np.clip(rng.normal(0, 1.5), -5, 5)),
        smile=float(rng.uniform(0.1, 0.75)),
    )


def _sample_eyes(rng: np.random.Generator) -> float:
    """Every openness occurs; three in four are awake, one in twenty is closed."""
    if rng.random() < 0.75:
        return float(rng.uniform(0.6, 1))
    return max(0.0, float(rng.uniform(-0.13, 0.6)))


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
    if look.head not in HEAD_SHAPES:
        raise ValueError(f"{path}: look.head: {look.head!r}; allowed: {', '.join(HEAD_SHAPES)}")
    if unknown := set(look.shape) - set(FACE_SHAPE):
        raise ValueError(f"{path}: look.shape: unknown {sorted(unknown)}; allowed: {', '.join(FACE_SHAPE)}")
    return PortraitParameters(look=look)


def shape_weights(look: Look) -> dict[str, float]:
    """Weights of the targets that make this person, without expression."""
    female = look.female
    weights: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        weights[name] = weights.get(name, 0.0) + value

    # MakeHuman's "young" is 25 and its "old" is 90; features of age come sooner than those.
    old = float(np.clip((look.age - 25) / 65, 0, 1))
    african = min(look.african, 1 - look.asian)
    origins = {"asian": look.asian, "african": african, "caucasian": 1 - look.asian - african}
    for gender, share in (("female", female), ("male", 1 - female)):
        for period, part_of_age in (("young", 1 - old), ("old", old)):
            for origin, part in origins.items():
                add(f"macrodetails/{origin}-{gender}-{period}", part * share * part_of_age)
            add(f"macrodetails/universal-{gender}-{period}-averagemuscle-averageweight", share * part_of_age)
        add(f"macrodetails/proportions/{gender}-young-averagemuscle-averageweight-idealproportions", share)
    add(f"head/head-{look.head}", look.head_amount)
    lined = float(np.clip((look.age - 32) / 28, 0, 1))
    for side in "lr":
        add(f"eyes/{side}-eye-bag-incr", 0.45 * lined)
        add(f"eyes/{side}-eye-height2-decr", 0.12 * lined)
    add("mouth/mouth-laugh-lines-in", 0.45 * lined)
    add("mouth/mouth-angles-down", 0.12 * lined)
    for name, (_, below, above) in FACE_SHAPE.items():
        value = look.shape.get(name, 0.0)
        if (
            name == "eyes/{}-eye-scale"
        ):  # large eyes read as friendly, and give more pixels to what is conditioned
            value += 0.85 + 0.55 * female
        if name == "ears/{}-ear-wing":
            value -= 0.4
        for side in ("l", "r") if "{}" in name else ("",):
            add(f"{name.format(side)}-{above if value > 0 else below}", abs(value))
    for name, value in FEMININE.items():
        add(name, value * female)
    return {name: value for name, value in weights.items() if value}


FEMININE: dict[str, float] = {
    "head/head-oval": 0.40,
    "head/head-scale-horiz-decr": 0.16,
    "chin/chin-height-decr": 0.15,
    "chin/chin-jaw-drop-decr": 0.2,
    "forehead/forehead-scale-vert-decr": 0.3,
    "eyes/l-eye-height2-incr": 0.3,
    "eyes/r-eye-height2-incr": 0.3,
    "head/head-age-decr": 0.4,
    "chin/chin-width-decr": 0.35,
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
