"""Stage `labels`: parse every portrait, measure its attributes, bring them to the units of `Attributes`.

Writes `labels.parquet` (one row per portrait in the corpus's order: `identity`, `split`, the nine attributes,
`<name>_z` scores, `measured_<name>` formula values; null is unknown), `calibration.json` and histograms. The
report compares the three algorithms with the renderer's truth, on true and on predicted masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from ohlora.attributes import CONDITION_NAMES
from ohlora.config import Config
from ohlora.corpus.portraits import Portraits
from ohlora.labeling.calibration import CALIBRATED, fit
from ohlora.labeling.formulas import ALGORITHMS, measure
from ohlora.labeling.parser import Parser
from ohlora.labeling.pictures import histograms
from ohlora.stage import Journal, Report

LABELS = "labels.parquet"
HISTOGRAMS = "histograms.png"
BATCH = 64  # portraits between two moves of the progress bar


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Label the portraits of `inputs["corpus"]` with the parser in `inputs["parser"]`.

    Raises:
        ArtifactError: the parser is missing or corrupt.
    """
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    out = outputs["output"]
    out.mkdir(parents=True, exist_ok=True)
    portraits = Portraits.load(inputs["corpus"])
    parser = Parser.load(inputs["parser"], config.runtime.device)
    images, truth = portraits.images, portraits.truth
    starts = range(0, len(images), BATCH)
    masks = np.concatenate(
        [parser.masks(images[i : i + BATCH]) for i in journal.progress(starts, "labels", len(starts))]
    )
    training, test = portraits.split == "train", portraits.split == "test"

    measured = measure(masks, images)
    calibration = fit(
        {name: values[training] for name, values in measured.items()},
        {name: truth[name][training] for name in CALIBRATED},
    )
    calibration.save(out)
    raw = calibration.raw(measured)
    columns: dict[str, Any] = {"identity": portraits.identity, "split": portraits.split}
    columns |= raw
    columns |= {f"{name}_z": values for name, values in calibration.scores(raw).items()}
    columns |= {f"measured_{name}": values for name, values in measured.items()}
    pq.write_table(
        pa.table({name: pa.array(v, from_pandas=True) for name, v in columns.items()}), out / LABELS
    )
    histograms({name: raw[name] for name in CONDITION_NAMES}, out / HISTOGRAMS)

    metrics: dict[str, float] = {}
    for name in CONDITION_NAMES:
        metrics[f"{name}_correlation"] = correlation(raw[name][test], truth[name][test])
        metrics[f"{name}_mae"] = float(np.nanmean(np.abs(raw[name][test] - truth[name][test])))
        metrics[f"{name}_unknown"] = float(np.isnan(raw[name]).mean())
    lost = [name for name in CALIBRATED if not calibration.curves[name].measured]
    return Report(
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        notes=[f"{name} is unknown for all portraits: the parser finds too few" for name in lost],
        pictures={"Attributes of all portraits": HISTOGRAMS},
        tables={
            "Correlation with the truth, all portraits": compare(
                {"true masks": portraits.masks, "predicted masks": masks}, images, truth
            )
        },
    )


def compare(
    masks: dict[str, NDArray[np.uint8]], images: NDArray[np.uint8], truth: dict[str, NDArray[np.float32]]
) -> list[dict[str, Any]]:
    """Pearson correlation with the truth of each algorithm on each kind of masks uint8 [n, h, w]."""
    rows = []
    for algorithm in ALGORITHMS:
        for kind, some in masks.items():
            measured = measure(some, images, algorithm)
            row: dict[str, Any] = {"algorithm": algorithm, "masks": kind}
            for name in CONDITION_NAMES:
                value = correlation(measured[name], truth[name])
                row[name] = round(value, 3) if np.isfinite(value) else None
            rows.append(row)
    return rows


def correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson correlation over the pairs in which both are known; NaN where it is not defined."""
    known = np.isfinite(a) & np.isfinite(b)
    x, y = a[known].astype(np.float64), b[known].astype(np.float64)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
