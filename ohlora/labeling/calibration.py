"""From what the formulas measure to the units of `Attributes`, and from those to z-scores.

`eyes`, `mouth` and `pose` are proportions of a face; a monotone curve per attribute, fitted on portraits
whose truth is known (the train split of the renderer's corpus), turns them into openness and degrees. The
other attributes are measured in their units already and pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.optimize import isotonic_regression

from ohlora.attributes import ATTRIBUTE_NAMES
from ohlora.errors import UserError

CALIBRATION = "calibration.json"
CALIBRATED = ("eyes", "mouth", "pose")
KNOTS = 14

Columns = Mapping[str, NDArray[np.float32]]  # attribute name -> [n], NaN is unknown


class CalibrationError(UserError, ValueError):
    """A calibration does not parse, or there is too little truth to fit one."""


class Curve(BaseModel):
    """A non-decreasing, piecewise linear curve; constant beyond its ends; without knots unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: list[float]  # increasing
    truth: list[float]  # non-decreasing, as long as `measured`

    def __call__(self, measured: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values [n] in the truth's units; NaN stays NaN."""
        if not self.measured:
            return np.full(len(measured), np.nan, dtype=np.float32)
        values = np.interp(measured, self.measured, self.truth)
        return np.where(np.isnan(measured), np.nan, values).astype(np.float32)


class Scale(BaseModel):
    """What a z-score is taken against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    std: float  # of the sample (n - 1)


class Calibration(BaseModel):
    """`calibration.json` of the labels stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    curves: dict[str, Curve]
    scales: dict[str, Scale]  # of raw values in the units of `Attributes`
    portraits: int  # how many it was fitted on

    def raw(self, measured: Columns) -> dict[str, NDArray[np.float32]]:
        """All nine attributes [n] in the units of `Attributes`; what was not measured is NaN."""
        count = len(next(iter(measured.values())))
        unknown = np.full(count, np.nan, dtype=np.float32)
        columns = {name: measured.get(name, unknown) for name in ATTRIBUTE_NAMES}
        return {name: self.curves[name](c) if name in self.curves else c for name, c in columns.items()}

    def scores(self, raw: Columns) -> dict[str, NDArray[np.float32]]:
        """z-scores [n] of raw values, for the attributes that have a scale."""
        return {
            name: ((raw[name] - scale.mean) / scale.std).astype(np.float32)
            for name, scale in self.scales.items()
        }

    def save(self, folder: Path) -> None:
        (folder / CALIBRATION).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """Read `calibration.json` of a labels folder.

        Raises:
            CalibrationError: it is missing or does not parse.
        """
        path = folder / CALIBRATION
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise CalibrationError(f"{path} is missing; run: ohlora stage labels") from error
        except ValidationError as error:
            raise CalibrationError(f"{path} does not parse: {error}") from error


def fit(measured: Columns, truth: Columns) -> Calibration:
    """Fit the curves and the z statistics on portraits with known truth.

    Args:
        measured: what `measure` returned, [n] each.
        truth: the same names in the units of `Attributes`, [n] each.

    Returns:
        A calibration; an attribute that fewer than 3 portraits can tell (a parser that finds no eyes) has a
        curve without knots and is unknown from then on, rather than wrong.
    """
    curves = {}
    for name in CALIBRATED:
        try:
            curves[name] = fit_curve(measured[name], truth[name])
        except CalibrationError:
            curves[name] = Curve(measured=[], truth=[])
    unscaled = Calibration(curves=curves, scales={}, portraits=len(measured["eyes"]))
    return unscaled.model_copy(update={"scales": scales_of(unscaled.raw(measured))})


def scales_of(raw: Columns) -> dict[str, Scale]:
    """Mean and deviation of each attribute [n], without the unknown; none where fewer than 2 are known."""
    return {
        name: Scale(mean=float(np.nanmean(values)), std=max(float(np.nanstd(values, ddof=1)), 1e-6))
        for name, values in raw.items()
        if np.isfinite(values).sum() >= 2
    }


def fit_curve(measured: NDArray[np.float32], truth: NDArray[np.float32]) -> Curve:
    """Isotonic regression of truth on the measurement, thinned to a few knots.

    Neighbours in the order of the measurement are averaged into `KNOTS` groups first, so that single
    portraits do not make steps.

    Raises:
        CalibrationError: fewer than 3 portraits have both.
    """
    known = np.isfinite(measured) & np.isfinite(truth)
    x, y = measured[known].astype(np.float64), truth[known].astype(np.float64)
    if len(x) < 3:
        raise CalibrationError(
            f"only {len(x)} portraits have a measurement and a truth; at least 3 are needed"
        )
    order = np.argsort(x, kind="stable")
    groups = np.array_split(order, min(KNOTS, len(x)))
    knots_x = np.array([x[group].mean() for group in groups])
    knots_y = np.array([y[group].mean() for group in groups])
    weights = np.array([len(group) for group in groups], dtype=np.float64)
    at, where = np.unique(knots_x, return_inverse=True)  # ties, e.g. many closed mouths, are one knot
    total = np.bincount(where, weights)
    mean = np.bincount(where, weights * knots_y) / total
    rising = isotonic_regression(mean, weights=total).x
    return Curve(measured=at.tolist(), truth=rising.tolist())
