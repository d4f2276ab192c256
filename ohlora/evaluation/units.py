"""z units: attributes in standard deviations of the people that a face model learns from.

`z = (raw - mean) / std`, with mean and standard deviation over the portraits of the corpus's training people
(train split, women, no defect). Oh-LoRA is left out: her many portraits would count one person's hair and
background many times. A request in z units becomes a raw one by the inverse, and is clamped to what
`Attributes` allows (pose: to what an `Expression` does); its z is then that of the clamped value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import CONDITION_NAMES
from ohlora.corpus.portraits import PERSONA_IDENTITY, Portraits

Floats = NDArray[np.float64]

LIMITS: dict[str, tuple[float, float]] = {
    "eyes": (0.0, 1.0),
    "mouth": (0.0, 1.0),
    "pose": (-35.0, 35.0),
    "hair_color": (0.0, 255.0),
    "hair_length": (0.0, 1.0),
    "background_mean": (0.0, 255.0),
    "background_std": (0.0, 128.0),
}
EXPRESSION_RANGE = {"eyes": (0.0, 1.0), "mouth": (0.0, 1.0), "pose": (-28.0, 28.0)}
"""Where fresh requests lie; beyond 28 degrees the corpus has few portraits."""

USUAL = (5.0, 95.0)  # percentiles of the training people between which their other attributes are requested
LEAST_DEVIATION = 1e-6  # of a label that varies


@dataclass(frozen=True)
class Requests:
    """What was asked for, after clamping; all [..., 7] in the order of `CONDITION_NAMES`."""

    raw: Floats
    z: Floats
    clamped: NDArray[np.bool_]  # where the wish lay outside what `Attributes` allows


@dataclass(frozen=True)
class Units:
    """The map between raw attributes and z units; arrays are float64 [7]."""

    mean: Floats
    std: Floats
    low: Floats  # fresh requests lie between these, raw
    high: Floats

    @classmethod
    def of(cls, portraits: Portraits) -> Units:
        """Units of a corpus.

        A label that is unknown or never varies has the middle of its limits as mean and the deviation of a
        uniform distribution over them.
        """
        rows = training_people(portraits)
        mean, std, low, high = (np.empty(len(CONDITION_NAMES)) for _ in range(4))
        for i, name in enumerate(CONDITION_NAMES):
            least, most = LIMITS[name]
            values = portraits.truth[name][rows].astype(np.float64)
            values = values[np.isfinite(values)]
            if len(values) and values.std() > LEAST_DEVIATION:
                mean[i], std[i] = values.mean(), values.std()
                low[i], high[i] = np.clip(np.percentile(values, USUAL), least, most)
            else:
                mean[i], std[i] = (least + most) / 2, (most - least) / np.sqrt(12)
                low[i], high[i] = least, most
            low[i], high[i] = EXPRESSION_RANGE.get(name, (low[i], high[i]))
        return cls(mean, std, low, high)

    def z(self, raw: NDArray[np.floating]) -> Floats:
        """Raw [..., 7] -> z units [..., 7]."""
        return (np.asarray(raw, np.float64) - self.mean) / self.std

    def requests(self, z: NDArray[np.floating]) -> Requests:
        """Wishes in z units [..., 7] as raw requests within the limits."""
        wished = np.asarray(z, np.float64) * self.std + self.mean
        bounds = np.array([LIMITS[name] for name in CONDITION_NAMES])
        raw = np.clip(wished, bounds[:, 0], bounds[:, 1])
        return Requests(raw, self.z(raw), ~np.isclose(raw, wished, rtol=0, atol=1e-9))

    def table(self) -> list[dict[str, float | str]]:
        """One row per attribute, for a report."""
        return [
            {
                "attribute": name,
                "mean": float(self.mean[i]),
                "std": float(self.std[i]),
                "requested_from": float(self.low[i]),
                "requested_to": float(self.high[i]),
            }
            for i, name in enumerate(CONDITION_NAMES)
        ]


def training_people(portraits: Portraits) -> NDArray[np.bool_]:
    """Portraits of women of the train split other than Oh-LoRA, without known defect; bool [n].

    The whole train split, or everything, where that leaves nothing. The generator learns from these people;
    the judge has never seen them.
    """
    train = portraits.split == "train"
    chosen = train & clean_women(portraits) & (portraits.identity != PERSONA_IDENTITY)
    for rows in (chosen, train):
        if rows.any():
            return np.asarray(rows)
    return np.ones(len(portraits), bool)


def clean_women(portraits: Portraits) -> NDArray[np.bool_]:
    """Portraits not known to show a man or a defect; bool [n]."""
    return np.asarray(~(portraits.truth["quality"] == 0) & ~(portraits.truth["gender"] < 0.5))
