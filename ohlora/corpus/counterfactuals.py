"""Counterfactual sets: the same person, clothes, light and moment, with one attribute swept.

They show what changes when nothing but one attribute does, which no collection of photos can. The attributes
are the generator's seven conditions; each sweep names the parameters that it may touch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from ohlora.attributes import CONDITION_NAMES
from ohlora.corpus.parameters import HairStyle, Look, PortraitParameters
from ohlora.corpus.renderer import paint_background

WIDEST_YAW = 30.0  # degrees; a sweep of the pose goes from minus to plus this
DARKEST_HAIR, LIGHTEST_HAIR = 0.02, 0.70  # mean linear RGB
LENGTH_STYLES = (HairStyle.LONG, HairStyle.LAYERED)  # whose length goes from cheeks to shoulders and below
LONGEST_SEEN = 0.25  # length from which it leaves the picture, and its measured truth stays 1
DARKEST_WALL, LIGHTEST_WALL = 0.12, 0.88  # mean sRGB
PROBE = 64  # pixels per side at which a wall is measured
CLOUDS = 0.7  # most difference between clouds and the rest at the end of a sweep, sRGB


@dataclass(frozen=True)
class Sweep:
    """How one attribute grows with a level, and to which parameters that is confined."""

    apply: Callable[[PortraitParameters, float], PortraitParameters]  # level 0..1
    fields: frozenset[str]  # dotted names in PortraitParameters


def swept(parameters: PortraitParameters, attribute: str, steps: int) -> list[PortraitParameters]:
    """The members of a set: `attribute` from its least to its largest value in equal steps.

    Args:
        parameters: what all have in common.
        attribute: one of `CONDITION_NAMES`.
        steps: how many members, at least 2.

    Raises:
        ValueError: there is no such sweep, or fewer than two steps.
    """
    if attribute not in SWEEPS:
        raise ValueError(f"{attribute!r} cannot be swept; there are: {', '.join(SWEEPS)}")
    if steps < 2:
        raise ValueError(f"a sweep has at least 2 steps, not {steps}")
    return [SWEEPS[attribute].apply(parameters, float(level)) for level in np.linspace(0, 1, steps)]


def set_number(identity: int, attribute: str) -> int:
    """The id of a person's set of an attribute; no two people or attributes share one."""
    return identity * len(CONDITION_NAMES) + CONDITION_NAMES.index(attribute)


def differences(first: BaseModel, second: BaseModel) -> set[str]:
    """Dotted names of the fields in which two parameters differ."""
    return _differing(first.model_dump(), second.model_dump(), "")


def _differing(first: Any, second: Any, prefix: str) -> set[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        found: set[str] = set()
        for key in {*first, *second}:
            found |= _differing(first.get(key), second.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return set() if first == second else {prefix}


def _with_look(parameters: PortraitParameters, **change: Any) -> PortraitParameters:
    """Other fields of the look; validated, since pydantic's own copy is not."""
    look = parameters.look.model_dump()
    for section, values in change.items():
        look[section] = look[section] | values
    return parameters.model_copy(update={"look": Look.model_validate(look)})


def _moment(field: str, low: float, high: float) -> Sweep:
    def apply(parameters: PortraitParameters, level: float) -> PortraitParameters:
        return parameters.model_copy(update={field: low + (high - low) * level})

    return Sweep(apply, frozenset({field}))


def _hair_color(parameters: PortraitParameters, level: float) -> PortraitParameters:
    """Both colours in their own hue, from nearly black to nearly white; equal steps in the logarithm."""
    target = DARKEST_HAIR * (LIGHTEST_HAIR / DARKEST_HAIR) ** level
    colors = {}
    for name in ("color", "tint"):
        color = np.maximum(np.array(getattr(parameters.look.hair, name)), 1e-3)
        grey = np.full(3, target)
        vivid = np.clip(color * target / color.mean(), 0, 0.9)
        colors[name] = tuple(float(c) for c in vivid + level * 0.5 * (grey - vivid))  # light hair is paler
    return _with_look(parameters, hair=colors)


def _hair_length(parameters: PortraitParameters, level: float) -> PortraitParameters:
    """From the shortest to the picture's edge; styles that hardly have a length give way to long hair."""
    style = parameters.look.hair.style
    kept = style if style in LENGTH_STYLES else HairStyle.LONG
    return _with_look(parameters, hair={"length": LONGEST_SEEN * level, "style": kept})


def _background_mean(parameters: PortraitParameters, level: float) -> PortraitParameters:
    """All colours shifted alike, in their hues, until their mean is what is wanted."""
    background = parameters.look.background
    colors = {name: np.array(getattr(background, name)) for name in ("top", "bottom", "glow")}
    mean = (colors["top"].mean() + colors["bottom"].mean()) / 2
    shift = DARKEST_WALL + (LIGHTEST_WALL - DARKEST_WALL) * level - mean
    return _with_look(parameters, background={name: _srgb(color + shift) for name, color in colors.items()})


def _background_std(parameters: PortraitParameters, level: float) -> PortraitParameters:
    """Clouds on a plain wall that become stronger while the mean brightness stays."""
    background = parameters.look.background
    wall = (np.array(background.top) + np.array(background.bottom)) / 2
    wall = np.clip(wall, 0.35, 0.45)
    share = _cloud_share(parameters.look)
    # no colour may clip on the way, or the mean would move
    most = min(CLOUDS, wall.min() / max(share, 1e-3), (1 - wall.max()) / max(1 - share, 1e-3))
    base = _srgb(wall - share * most * level)
    glow = _srgb(wall + (1 - share) * most * level)
    change = {"top": base, "bottom": base, "glow": glow, "glow_amount": 1.0}
    return _with_look(parameters, background=change)


def _cloud_share(look: Look) -> float:
    """Mean share of the clouds in the upper half of the wall: how bright black with white clouds is."""
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    change = {"top": black, "bottom": black, "glow": white, "glow_amount": 1.0}
    clouds = look.background.model_copy(update=change)
    drawn = paint_background(look.model_copy(update={"background": clouds}), PROBE)
    return float(drawn[: PROBE // 2].mean())


def _srgb(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in np.clip(values, 0, 1))
    return red, green, blue


_WALL = ("look.background.top", "look.background.bottom", "look.background.glow")
SWEEPS: dict[str, Sweep] = {
    "eyes": _moment("eyes", 0, 1),
    "mouth": _moment("mouth", 0, 1),
    "pose": _moment("yaw", -WIDEST_YAW, WIDEST_YAW),
    "hair_color": Sweep(_hair_color, frozenset({"look.hair.color", "look.hair.tint"})),
    "hair_length": Sweep(_hair_length, frozenset({"look.hair.length", "look.hair.style"})),
    "background_mean": Sweep(_background_mean, frozenset(_WALL)),
    "background_std": Sweep(_background_std, frozenset({*_WALL, "look.background.glow_amount"})),
}
assert tuple(SWEEPS) == CONDITION_NAMES


def sweepable(attributes: Sequence[str]) -> list[str]:
    """The attributes in the order of `CONDITION_NAMES`, each once.

    Raises:
        ValueError: one of them cannot be swept.
    """
    if unknown := [name for name in attributes if name not in SWEEPS]:
        raise ValueError(f"{', '.join(unknown)} cannot be swept; there are: {', '.join(SWEEPS)}")
    return [name for name in SWEEPS if name in attributes]
