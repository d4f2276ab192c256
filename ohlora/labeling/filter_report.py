"""How good the filters are on held-out people: figures, tables and pictures.

The gender filter must not look at hair: women with short hair and men with long hair are told apart as well
as the others, or the report shows it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohlora.config import FiltersConfig
from ohlora.corpus.defects import draw_defect
from ohlora.corpus.portraits import DEFECT_NAMES, Portraits, read_table
from ohlora.labeling.classifier import TASKS
from ohlora.labeling.filters import Filters, passes
from ohlora.labeling.pictures import sheet
from ohlora.labeling.reliability import area_under_roc, brier_score, calibration_error, plot
from ohlora.stage import Report

RELIABILITY = "reliability.png"
WORST = 10  # pictures in the sheet of a task
SHORT_HAIR, LONG_HAIR = 0.35, 0.62  # of the parameters' hair.length: above the chin, on the shoulders

Curve = tuple[NDArray[np.floating], NDArray[np.floating]]


@dataclass(frozen=True)
class Asked:
    """Held-out pictures with the true answers to one question."""

    images: NDArray[np.uint8]  # [k, h, w, 3]
    labels: NDArray[np.float32]  # [k] 0 or 1
    groups: NDArray[np.str_]  # [k] what to report apart


def gender_asked(test: Portraits, lengths: NDArray[np.float32]) -> Asked:
    """Clean held-out portraits of known gender; groups say whether the hair is short or long.

    Args:
        test: the held-out portraits.
        lengths: hair length [n] on the scale of `SHORT_HAIR`, NaN is unknown.
    """
    rows = np.flatnonzero(np.isfinite(test.truth["gender"]) & (test.truth["quality"] != 0))
    labels = (test.truth["gender"][rows] >= 0.5).astype(np.float32)
    hair = np.where(lengths[rows] < SHORT_HAIR, "short", np.where(lengths[rows] >= LONG_HAIR, "long", ""))
    return Asked(test.images[rows], labels, hair)


def quality_asked(test: Portraits, seed: int) -> Asked:
    """Held-out clean portraits, one degraded copy of each, and those that the corpus has degraded.

    The groups are the defects' names; "" is clean. The copies are a function of the seed.
    """
    clean = np.flatnonzero(test.truth["quality"] == 1)
    spoilt = np.flatnonzero(test.truth["quality"] == 0)
    rng = np.random.default_rng([seed, 2])
    copies, kinds = [], []
    for row in clean:
        if defect := draw_defect(1.0, rng):
            copies.append(defect.applied(test.images[row]))
            kinds.append(defect.name)
    strengths = np.nan_to_num(np.stack([test.truth[name][spoilt] for name in DEFECT_NAMES], 1))
    own = np.where(strengths.max(1) > 0, np.array(DEFECT_NAMES)[strengths.argmax(1)], "unnamed")
    return Asked(
        np.concatenate([test.images[clean], *([np.stack(copies)] if copies else []), test.images[spoilt]]),
        np.concatenate([np.ones(len(clean)), np.zeros(len(copies) + len(spoilt))]).astype(np.float32),
        np.concatenate([np.full(len(clean), ""), np.array(kinds, np.str_), own]),
    )


def hair_lengths(parameters: Sequence[str], measured: NDArray[np.float32]) -> NDArray[np.float32]:
    """Length of the hair on the scale of the renderer's parameters, NaN is unknown, float32 [n].

    Args:
        parameters: JSON of `PortraitParameters`, "" where none are known.
        measured: lowest hair row over the height; where no parameters are known it sorts portraits into the
            shortest and the longest third, which get 0 and 1.
    """
    answer = np.full(len(measured), np.nan, np.float32)
    for row, text in enumerate(parameters):
        try:
            answer[row] = json.loads(text)["look"]["hair"]["length"]
        except (ValueError, KeyError, TypeError):
            continue
    left = np.isnan(answer) & np.isfinite(measured)
    if left.any():
        low, high = np.quantile(measured[left], [1 / 3, 2 / 3])
        between = np.where(measured >= high, 1.0, (SHORT_HAIR + LONG_HAIR) / 2)
        answer[left] = np.where(measured <= low, 0.0, between)[left] if low < high else np.nan
    return answer


def judge(filters: Filters, corpus: Path, config: FiltersConfig, out: Path) -> Report:
    """Figures of the filters on the test split of a corpus; writes the pictures into `out`."""
    portraits = Portraits.load(corpus)
    held_out = portraits.split == "test"
    test = portraits.select("test")
    parameters = np.array(read_table(corpus)["parameters"].to_pylist(), dtype=object)[held_out]
    lengths = hair_lengths(parameters.tolist(), test.truth["hair_length"])
    asked = {"gender": gender_asked(test, lengths), "quality": quality_asked(test, config.seed)}
    metrics: dict[str, float] = {"held_out_people": float(len(np.unique(test.identity)))}
    curves: dict[str, dict[str, Curve]] = {}
    pictures = {"Calibration on held-out people": RELIABILITY}
    for task in TASKS:
        question = asked[task]
        logits = filters.logits(question.images)[task]
        scaled = filters.scaling[task](logits).mean(0)
        unscaled = (1 / (1 + np.exp(-logits.astype(np.float64)))).mean(0)
        labels = question.labels
        curves[task] = {"as trained": (unscaled, labels), "calibrated": (scaled, labels)}
        metrics |= {
            f"{task}_portraits": float(len(labels)),
            f"{task}_auroc": area_under_roc(scaled, labels),
            f"{task}_accuracy": float(((scaled > 0.5) == (labels > 0.5)).mean()) if len(labels) else np.nan,
            f"{task}_ece": calibration_error(scaled, labels),
            f"{task}_ece_as_trained": calibration_error(unscaled, labels),
            f"{task}_brier": brier_score(scaled, labels) if len(labels) else np.nan,
        }
        groups = gender_groups(question) if task == "gender" else quality_groups(question)
        for name, rows in groups.items():
            metrics[f"{task}_auroc_{name}"] = area_under_roc(scaled[rows], labels[rows])
            metrics[f"{task}_portraits_{name}"] = float(len(rows))
        if len(labels):
            name = f"worst_{task}.png"
            worst = np.argsort(-np.abs(scaled - labels), kind="stable")[:WORST]
            captions = [f"{scaled[i]:.2f}, is {labels[i]:.0f} {question.groups[i]}" for i in worst]
            sheet([[question.images[i]] for i in worst], captions, out / name)
            pictures[f"Where the {task} filter is furthest off"] = name
    plot(curves, out / RELIABILITY)
    return Report(
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        pictures=pictures,
        tables={
            "Filters on held-out people": _auroc_table(metrics),
            "What the thresholds keep of held-out portraits": _kept_table(filters, asked, config),
        },
    )


def gender_groups(question: Asked) -> dict[str, NDArray[np.intp]]:
    """Rows of each comparison: those whose hair misleads against everyone of the other gender, and both."""
    women, short, long = question.labels == 1, question.groups == "short", question.groups == "long"
    return {
        "short_haired_women": np.flatnonzero((women & short) | ~women),
        "long_haired_men": np.flatnonzero(women | (~women & long)),
        "misleading_hair": np.flatnonzero((women & short) | (~women & long)),
    }


def quality_groups(question: Asked) -> dict[str, NDArray[np.intp]]:
    """Rows of each comparison: all clean pictures against those with one kind of defect."""
    kinds = sorted(set(question.groups.tolist()) - {""})
    return {kind: np.flatnonzero((question.groups == "") | (question.groups == kind)) for kind in kinds}


def _auroc_table(metrics: dict[str, float]) -> list[dict[str, Any]]:
    rows = []
    for task in TASKS:
        for key in metrics:
            if key == f"{task}_auroc" or key.startswith(f"{task}_auroc_"):
                group = key.removeprefix(f"{task}_auroc")
                value = metrics[key]
                rows.append(
                    {
                        "filter": task,
                        "among": group.strip("_").replace("_", " ") or "all",
                        "portraits": int(metrics[f"{task}_portraits{group}"]),
                        "AUROC": round(value, 4) if np.isfinite(value) else None,
                    }
                )
    return rows


def _kept_table(filters: Filters, asked: dict[str, Asked], config: FiltersConfig) -> list[dict[str, Any]]:
    gender, quality = asked["gender"], asked["quality"]
    kinds = {
        "women": gender.images[gender.labels == 1],
        "men": gender.images[gender.labels == 0],
        "degraded pictures": quality.images[quality.labels == 0],
    }
    rows = []
    for name, images in kinds.items():
        if len(images):
            kept = passes(filters.probabilities(images), config)
            rows.append({"portraits": name, "count": len(kept), "kept": round(float(kept.mean()), 4)})
    return rows
