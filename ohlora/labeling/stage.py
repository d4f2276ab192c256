"""Stage `labels`: what the models and the formulas say about every portrait, and who is kept.

Writes `labels.parquet` (one row per portrait in the corpus's order; null is unknown), `calibration.json` and
pictures. Columns: `identity`, `split`, `variant`; the nine attributes as the networks read them, in the
units of `Attributes`, and `<name>_z` against the train split; `formula_<name>`, the formula `ours` brought to
the same units; `ours_…`, `original_1_…` and `original_2_…` as measured, in their own units; `kept`, whether
gender and quality pass the filters. The report holds every source against the renderer's truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ohlora.attributes import ATTRIBUTE_NAMES, CONDITION_NAMES, FaceClass
from ohlora.config import Config
from ohlora.corpus.portraits import Portraits
from ohlora.labeling.calibration import CALIBRATED, Calibration, fit, scales_of
from ohlora.labeling.filters import passes
from ohlora.labeling.formulas import ALGORITHMS
from ohlora.labeling.parser import Parser
from ohlora.labeling.pictures import agreement, histograms, overlay, sheet
from ohlora.labeling.scoring import ShardJob, conditions, gather, jobs, score_shards
from ohlora.stage import Journal, Report

LABELS = "labels.parquet"
SHOWN = 8  # portraits in a picture

Columns = Mapping[str, NDArray[Any]]


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Label the portraits of `inputs["corpus"]` with the models in `parser`, `filters` and `properties`.

    Shards that somebody scored already, a killed run or a cluster, are taken as they are.

    Raises:
        CorpusError, ArtifactError: the corpus or a model is missing or corrupt.
    """
    work = jobs(config, inputs, Path())
    for _ in journal.progress(score_shards(work, config.runtime.threads), "labels", len(work)):
        pass
    return merge(config, work, outputs["output"])


def merge(config: Config, done: Sequence[ShardJob], out: Path) -> Report:
    """Calibrate, standardise and filter what was scored, and write the stage's output.

    Args:
        config: settings.
        done: jobs of all shards in the corpus's order, each with its file.
        out: folder to write.
    """
    out.mkdir(parents=True, exist_ok=True)
    columns = gather(done)
    train, test = columns["split"] == "train", columns["split"] == "test"
    ours, truth = conditions(columns, "ours_"), conditions(columns, "truth_")
    clean = train & ~(columns["truth_quality"] == 0)
    calibration = fit(_at(ours, clean), {name: truth[name][clean] for name in CALIBRATED})
    formula = calibration.raw(ours)
    raw = {name: columns[name].astype(np.float32) for name in ATTRIBUTE_NAMES}
    calibration = calibration.model_copy(update={"scales": scales_of(_at(raw, train))})
    calibration.save(out)
    kept = passes(raw, config.filters)
    table: dict[str, Any] = {name: columns[name] for name in ("identity", "split", "variant")}
    table |= raw
    table |= {f"{name}_z": values for name, values in calibration.scores(raw).items()}
    table |= {f"formula_{name}": formula[name] for name in CONDITION_NAMES}
    for algorithm in ALGORITHMS:
        table |= {f"{algorithm}_{k}": v for k, v in conditions(columns, f"{algorithm}_").items()}
    table["kept"] = kept
    pq.write_table(pa.table({name: pa.array(v, from_pandas=True) for name, v in table.items()}), out / LABELS)

    judged = test if test.any() else train
    histograms(raw, out / "histograms.png")
    sources = {"network": _at({name: raw[name] for name in CONDITION_NAMES}, judged)}
    sources |= {a: _at(conditions(columns, f"{a}_"), judged) for a in reversed(ALGORITHMS)}
    agreement(sources, _at(truth, judged), out / "agreement.png")
    draw(done, columns, test, out)

    metrics: dict[str, float] = {"portraits": float(len(kept)), "kept": float(kept.sum())}
    for name in CONDITION_NAMES:
        metrics[f"{name}_correlation"] = correlation(raw[name][judged], truth[name][judged])
        metrics[f"{name}_formula_correlation"] = correlation(formula[name][judged], truth[name][judged])
        metrics[f"{name}_mae"] = _mean(np.abs(raw[name][judged] - truth[name][judged]))
        metrics[f"{name}_unknown"] = float(np.isnan(raw[name]).mean())
        metrics[f"{name}_formula_unknown"] = float(np.isnan(formula[name]).mean())
    return Report(
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        notes=_notes(config, calibration, kept),
        pictures={
            "Attributes of all portraits": "histograms.png",
            "Values against the truth, held-out identities": "agreement.png",
            "Held-out portraits and their masks": "overlays.png",
            "Lowest IoU first": "worst.png",
        },
        tables={
            "Correlation with the truth on held-out identities": compare(columns, judged),
            "IoU on held-out identities": iou_table(columns, test),
        },
    )


def compare(columns: Columns, rows: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Pearson correlation with the truth of each formula on true and predicted masks, and of the network.

    Args:
        columns: of `scoring.score`, [n] each.
        rows: bool [n], which portraits count.
    """
    truth = _at(conditions(columns, "truth_"), rows)
    kinds = [(a, kind, f"{p}{a}_") for a in ALGORITHMS for kind, p in (("true", "true_"), ("predicted", ""))]
    table = []
    for source, kind, prefix in [*kinds, ("network", "-", "")]:
        found = _at(conditions(columns, prefix), rows)
        row: dict[str, Any] = {"source": source, "masks": kind}
        for name in CONDITION_NAMES:
            value = correlation(found[name], truth[name])
            row[name] = round(value, 3) if np.isfinite(value) else None
        table.append(row)
    return table


def iou_table(columns: Columns, rows: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """IoU of each class over the pixels of portraits bool [n], those without a mask left out."""
    table = []
    for c in FaceClass:
        hit, union = (
            float(np.nansum(columns[f"{part}_{c.name.lower()}"][rows])) for part in ("hit", "union")
        )
        if union:
            table.append({"class": c.name.lower(), "iou": round(hit / union, 4)})
    return table


def draw(done: Sequence[ShardJob], columns: Columns, test: NDArray[np.bool_], out: Path) -> None:
    """Write `overlays.png` and `worst.png`: held-out portraits, what the parser sees, what is there."""
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.stack(
            [columns[f"hit_{c.name.lower()}"] / columns[f"union_{c.name.lower()}"] for c in FaceClass]
        )
    known = np.isfinite(each).any(0)
    iou = np.where(known, np.nansum(each, 0) / np.maximum(np.isfinite(each).sum(0), 1), np.nan)
    rows = np.flatnonzero(known & test) if (known & test).any() else np.flatnonzero(known)
    spread = rows[np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int))]
    worst = rows[np.argsort(iou[rows], kind="stable")[:SHOWN]]
    wanted = np.unique(np.concatenate([spread, worst]))
    sizes = [pq.read_metadata(job.out).num_rows for job in done]
    first = np.concatenate([[0], np.cumsum(sizes)])
    pictures: dict[int, list[NDArray[np.uint8]]] = {}
    parser = Parser.load(Path(done[0].parser), done[0].device)
    for number, job in enumerate(done):
        here = wanted[(wanted >= first[number]) & (wanted < first[number + 1])]
        if len(here):
            some = Portraits.load(Path(job.corpus), job.shard).select(here - first[number])
            for row, image, mask, seen in zip(
                here, some.images, some.masks, parser.masks(some.images), strict=True
            ):
                pictures[int(row)] = [image, overlay(image, seen), overlay(image, mask)]
    for name, chosen in (("overlays.png", spread), ("worst.png", worst)):
        sheet([pictures[int(i)] for i in chosen], [f"IoU {iou[i]:.2f}" for i in chosen], out / name)


def correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson correlation over the pairs in which both are known; NaN where it is not defined."""
    known = np.isfinite(a) & np.isfinite(b)
    x, y = a[known].astype(np.float64), b[known].astype(np.float64)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _at(columns: Mapping[str, NDArray[Any]], rows: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    return {name: values[rows] for name, values in columns.items()}


def _mean(values: NDArray[np.float32]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _notes(config: Config, calibration: Calibration, kept: NDArray[np.bool_]) -> list[str]:
    filters = config.filters
    notes = [
        f"{int(kept.sum())} of {len(kept)} portraits are kept: gender of at least {filters.gender_at_least}, "
        f"quality of at least {filters.quality_at_least}."
    ]
    lost = [name for name in CALIBRATED if not calibration.curves[name].measured]
    return notes + [
        f"{name} by formula is unknown for all portraits: the parser finds too few" for name in lost
    ]
