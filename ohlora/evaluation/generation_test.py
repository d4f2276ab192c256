"""Our image-generation test: does every latent obey in all seven attributes, and stay the same person?

Notable:
- Fresh latents, never those of the training people; figures are over all of them, none is picked.
- Each latent is drawn under a scrambled Sobol set of all seven attributes of its own, so that no attribute
  is confused with another, and read by the independent judge. Correlation and error are per latent, in z
  units (`ohlora.evaluation.units`).
- Identity is the judge's embedding over expressions as rendered people show them, relative to the same
  figure of renders of people whom the judge has never seen either; at her own hair and background.
- The deviation of the background, which the judge cannot read off a picture, and the length of the hair,
  which it reads worse than a mask, are measured by formula under the mask of the face parser, which gives the
  generator no gradient either. What the judge says of them is reported beside it.
- The kernel distance to held-out portraits is on the judge's features, which no training loss has used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from ohlora.attributes import CONDITION_NAMES
from ohlora.evaluation.distances import frechet_distance, kernel_distance, standardised
from ohlora.evaluation.evidence import Evidence, Plan
from ohlora.evaluation.original_test import Agreement, Progress, agreement, correlation, mean_error
from ohlora.evaluation.steadiness import (
    CHANGES,
    MOVING,
    OutsideChange,
    RenderedMoments,
    between,
    identities,
    outside_change,
    outside_change_of_renders,
    reference_rows,
    within,
)
from ohlora.evaluation.units import Units, clean_women
from ohlora.evaluation.witness import Artist, Sight, draw

PASS_AT_LEAST = 0.9  # correlation of ours
RENDERS = 240  # at most so many pictures of each kind of renders are looked at
LEAST_FOR_DISTANCE = 16  # pictures on each side


@dataclass(frozen=True)
class Latent:
    """What was measured of one latent."""

    seed: int | None  # None is Oh-LoRA
    asked: NDArray[np.float64]  # raw, [n, 7]
    seen: NDArray[np.float64]  # raw, [n, 7]
    judged: NDArray[np.float64]  # raw, [n, 7]: what the judge says, also of what is measured
    z: Agreement  # of all seven attributes
    moments: Sight  # of her own pictures
    within: float  # mean cosine of them
    outside: OutsideChange
    probabilities: dict[str, NDArray[np.float32]]  # of the filters, on her own pictures
    inception: NDArray[np.float32] | None

    @property
    def least(self) -> float:
        """The least of the three correlations that make an expression."""
        return min(self.z.correlation[name] for name in MOVING)

    def passes(self, names: Sequence[str] = MOVING) -> bool:
        """Whether the correlations of all the names are high enough for us."""
        return all(self.z.correlation[name] >= PASS_AT_LEAST for name in names)


@dataclass(frozen=True)
class References:
    """The same figures of renders, and features of portraits that the generator has never seen."""

    within: float
    between: float
    outside: OutsideChange
    held_out: NDArray[np.float32]  # features [n, f]
    others: NDArray[np.float32]  # of renders of other people
    judge: dict[str, float]  # attribute -> correlation of the judge with the truth
    instrument: dict[str, float]  # measured attribute -> correlation of the instrument with the truth
    inception: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Result:
    """All that was measured; `metrics` are the figures."""

    latents: list[Latent]
    references: References
    units: Units
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> list[Latent]:
        """Latents from the least obedient on."""
        return sorted(self.latents, key=lambda latent: latent.least)


def sobol(units: Units, count: int, seed: Sequence[int]) -> NDArray[np.float64]:
    """Requests for all seven attributes that fill their ranges evenly: raw [count, 7]."""
    points = qmc.Sobol(len(CONDITION_NAMES), rng=np.random.default_rng(list(seed))).random(
        2 ** (count - 1).bit_length()
    )
    scaled: NDArray[np.float64] = qmc.scale(points[:count], units.low, units.high)
    return scaled


def examine(
    face: Artist, seed: int | None, plan: Plan, evidence: Evidence, moments: RenderedMoments
) -> Latent:
    """Draw and read one latent; of seed None: Oh-LoRA."""
    latent = None if seed is None else face.sample_latent(seed)
    key = [plan.seed, 0 if seed is None else seed]
    asked = sobol(evidence.units, plan.pictures, key)
    drawn = draw(face, latent, asked)
    judged = evidence.read(drawn).attributes
    seen = judged.copy()
    if plan.measured and evidence.instrument is not None:
        for name, values in evidence.instrument(drawn).items():
            seen[:, CONDITION_NAMES.index(name)] = values
    hers = moments.sample(plan.moments, key)
    pictures = draw(face, latent, hers.asked, hers.nuisance)
    sight = evidence.read(pictures)
    return Latent(
        seed=seed,
        asked=asked,
        seen=seen,
        judged=judged,
        z=agreement(evidence.units.z(asked), evidence.units.z(seen)),
        moments=sight,
        within=within(sight.embeddings),
        outside=outside_change(draw(face, latent, CHANGES), evidence.masker),
        probabilities=evidence.filter(pictures) if evidence.filter else {},
        inception=evidence.inception(pictures) if evidence.inception else None,
    )


def look_at_renders(evidence: Evidence, measured: bool) -> References:
    """The reference figures of a corpus.

    Args:
        evidence: who judges what.
        measured: whether to look through the instrument as well.
    """
    portraits = evidence.portraits
    rows = reference_rows(portraits)
    chosen = rows[portraits.identity[rows] <= _last_person(portraits.identity[rows])]
    held = np.flatnonzero((portraits.split == "test") & clean_women(portraits) & (portraits.swept == ""))
    held = _spread(held, min(RENDERS, len(held)))
    seen, unseen = evidence.read(portraits.images[chosen]), _read(evidence, held)
    people = identities(seen.embeddings, portraits.identity[chosen])
    truth = {name: portraits.truth[name][chosen] for name in CONDITION_NAMES}
    judge = {name: _agreeing(truth[name], seen.attributes[:, i]) for i, name in enumerate(CONDITION_NAMES)}
    found = evidence.instrument(portraits.images[chosen]) if measured and evidence.instrument else {}
    instrument = {name: _agreeing(truth[name], values) for name, values in found.items()}
    features = evidence.inception
    both = (features(portraits.images[held]), features(portraits.images[chosen])) if features else None
    return References(
        within=float(np.mean([within(person) for person in people])) if people else math.nan,
        between=between(people),
        outside=outside_change_of_renders(portraits, evidence.masker),
        held_out=unseen,
        others=seen.features,
        judge=judge,
        instrument=instrument,
        inception=both,
    )


def _agreeing(truth: NDArray[np.floating], found: NDArray[np.floating]) -> float:
    """Correlation [n] over what both know; nan of fewer than two."""
    known = np.isfinite(truth) & np.isfinite(found)
    return correlation(truth[known], found[known]) if known.sum() > 1 else math.nan


def _last_person(identity: NDArray[np.integer]) -> int:
    """The largest identity number with which the people up to it have at most `RENDERS` pictures."""
    ordered = np.sort(identity)
    if len(ordered) <= RENDERS:
        return int(ordered[-1])
    smaller = ordered[ordered < ordered[RENDERS]]
    return int(smaller[-1]) if len(smaller) else int(ordered[0])


def _read(evidence: Evidence, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    if not len(rows):
        return np.empty((0, 0), np.float32)
    return evidence.read(evidence.portraits.images[rows]).features


def generation_test(
    face: Artist,
    evidence: Evidence,
    plan: Plan,
    progress: Progress[int],
    references: References | None = None,
) -> Result:
    """Examine fresh latents.

    Args:
        face: who draws.
        evidence: who judges.
        plan: how much is drawn.
        progress: iterates with a bar.
        references: of `look_at_renders`, where several faces are tested with the same evidence.
    """
    references = references or look_at_renders(evidence, plan.measured)
    moments = RenderedMoments(evidence.portraits)
    latents = [
        examine(face, seed, plan, evidence, moments)
        for seed in progress(plan.seeds, "sampled people", plan.latents)
    ]
    result = Result(latents, references, evidence.units)
    return Result(latents, references, evidence.units, _metrics(result, evidence))


def _metrics(result: Result, evidence: Evidence) -> dict[str, float]:
    figures = obedience(result.latents)
    figures |= _steadiness(result)
    figures |= _shares(result, evidence)
    figures |= _distances(result)
    figures |= {f"judge_{name}_correlation": r for name, r in result.references.judge.items()}
    for name, own in result.references.instrument.items():
        figures |= {f"instrument_{name}_correlation": own} | _by_judge(result.latents, name)
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def obedience(latents: Sequence[Latent]) -> dict[str, float]:
    """How well requests are followed: figures over all pictures, over latents, and who passes."""
    asked, seen = np.concatenate([p.asked for p in latents]), np.concatenate([p.seen for p in latents])
    figures: dict[str, float] = {}
    for i, name in enumerate(CONDITION_NAMES):
        each = np.array([latent.z.correlation[name] for latent in latents])
        figures |= {
            f"{name}_correlation": correlation(asked[:, i], seen[:, i]),
            f"{name}_correlation_mean": _mean(each),
            **{f"{name}_correlation_p{p}": _percentile(each, p) for p in (5, 10, 50)},
            f"{name}_mae": mean_error(asked[:, i], seen[:, i]),
            f"{name}_mae_z": _mean([latent.z.mae[name] for latent in latents]),
        }
    return figures | {
        "original_pass_share": float(np.mean([latent.z.passes_original for latent in latents])),
        "pass_share": float(np.mean([latent.passes() for latent in latents])),
        "seven_pass_share": float(np.mean([latent.passes(CONDITION_NAMES) for latent in latents])),
    }


def _by_judge(latents: Sequence[Latent], name: str) -> dict[str, float]:
    """What the judge says of a measured attribute, and the share of pictures in which it was not seen."""
    i = CONDITION_NAMES.index(name)
    unseen = np.mean([np.isnan(latent.seen[:, i]).mean() for latent in latents])
    each = np.array([_agreeing(latent.asked[:, i], latent.judged[:, i]) for latent in latents])
    return {
        f"judge_{name}_correlation_mean": _mean(each),
        f"judge_{name}_correlation_p5": _percentile(each, 5),
        f"instrument_{name}_unseen": float(unseen),
    }


def _percentile(values: NDArray[np.floating], percentile: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, percentile)) if len(known) else math.nan


def leakage(latents: Sequence[Latent]) -> NDArray[np.float64]:
    """Correlation of each requested (row) with each seen (column) attribute over all pictures, [7, 7]."""
    asked, seen = np.concatenate([p.asked for p in latents]), np.concatenate([p.seen for p in latents])
    size = len(CONDITION_NAMES)
    return np.array([[correlation(asked[:, i], seen[:, j]) for j in range(size)] for i in range(size)])


def _steadiness(result: Result) -> dict[str, float]:
    latents, renders = result.latents, result.references
    each = np.array([latent.within for latent in latents])
    apart = between([latent.moments.embeddings for latent in latents])
    return {
        "identity_within": float(each.mean()),
        "identity_between": apart,
        "identity_margin": float(each.mean()) - apart,
        "identity_within_renders": renders.within,
        "identity_between_renders": renders.between,
        "identity_ratio": float(each.mean()) / renders.within,
        "identity_ratio_p5": float(np.percentile(each, 5)) / renders.within,
        "diversity_ratio": (1 - apart) / (1 - renders.between),
        "outside_change": _mean([latent.outside.expression for latent in latents]),
        "outside_change_renders": renders.outside.expression,
        "outside_change_pose": _mean([latent.outside.pose for latent in latents]),
        "outside_change_pose_renders": renders.outside.pose,
    }


def _shares(result: Result, evidence: Evidence) -> dict[str, float]:
    gender = np.concatenate([latent.moments.gender for latent in result.latents])
    figures = {"female_share_judge": float((gender >= 0.5).mean())}
    if evidence.filter is not None:
        for name, task, least in (
            ("female_share", "gender", evidence.female_at_least),
            ("quality_share", "quality", evidence.quality_at_least),
        ):
            found = np.concatenate([latent.probabilities[task] for latent in result.latents])
            figures[name] = float((found >= least).mean())
    return figures


def _distances(result: Result) -> dict[str, float]:
    references = result.references
    drawn = np.concatenate([latent.moments.features for latent in result.latents])
    figures = _distance(drawn, references.held_out, references.others, "")
    if references.inception is not None:
        inception = np.concatenate([p.inception for p in result.latents if p.inception is not None])
        figures |= _distance(inception, *references.inception, "inception_")
    return figures


def _distance(
    drawn: NDArray[np.floating], held: NDArray[np.floating], others: NDArray[np.floating], prefix: str
) -> dict[str, float]:
    if min(len(drawn), len(held)) < LEAST_FOR_DISTANCE:
        return {}
    x, y, r = (standardised(features, held) for features in (drawn, held, others))
    mean, std = kernel_distance(x, y)
    figures = {"kid": mean, "kid_std": std}
    if len(r) < LEAST_FOR_DISTANCE:
        figures["frechet"] = frechet_distance(x, y)
    else:  # its bias depends on the number of pictures: take as many of both
        count = min(len(x), len(r))
        figures["frechet"] = frechet_distance(_spread(x, count), y)
        figures["frechet_renders"] = frechet_distance(_spread(r, count), y)
        figures["kid_renders"] = kernel_distance(r, y)[0]
    return {f"{prefix}{name}": value for name, value in figures.items()}


def _spread(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """So many of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _mean(values: Sequence[float] | NDArray[np.floating]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan
