"""Stage `variants`: train the methods that `variants.methods` names, each into a model folder of its own.

All start from one StyleGAN: an imported one (`variants.start`), or one that is trained here first. States of
finished and unfinished trainings lie outside the stage's output until the stage is done, so that a killed run
goes on where it was.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ohlora.artifacts import read_manifest
from ohlora.attributes import CONDITION_NAMES
from ohlora.config import Config, state_dir
from ohlora.corpus import Portraits
from ohlora.gan.data import conditions_of, kept_of
from ohlora.gan.face import MOVING
from ohlora.gan.importing import StyleGAN
from ohlora.gan.pictures import save_grid, sweeps
from ohlora.gan.variant_face import VariantFace
from ohlora.gan.variants.base import find_base, save_base, shape_of, train_base
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.method import Bench
from ohlora.gan.variants.methods import METHODS
from ohlora.gan.variants.persona import find_persona, requested_and_read
from ohlora.gan.variants.readers import GenderReader, PropertyReader
from ohlora.labeling.parser import autocast_dtype, pick_device
from ohlora.stage import Journal, Report

STYLEGAN = "stylegan"  # folder of a base that was trained here
SHEET = "sheet.png"
SNAPSHOTS = "snapshots"
READ_SEEDS = 8  # sampled people of the table
SHEET_SEEDS = 4  # sampled people of a contact sheet
TABLE = "Variants: what the property network reads (it took part in training v2, v3 and directions)"


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """The variants stage.

    Raises:
        CorpusUnusable: the corpus has no usable portrait.
        ArtifactError: the base to start from, or a reader, is missing or corrupt.
        VariantUnusable: the base does not fit.
        TrainingDiverged: a loss is not finite.
    """
    settings = config.variants
    if not settings.methods:
        return Report(notes=["variants.methods is empty: nothing was trained."])
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    folder = outputs["output"]
    device = pick_device(config.runtime.device)
    base = find_base(settings)
    resolution = shape_of(settings).resolution if base is None else base.config.resolution
    portraits = Portraits.load(inputs["corpus"])
    conditions = conditions_of(portraits, inputs.get("labels"), settings.labels)
    data = PortraitSet(portraits, conditions, kept_of(portraits, inputs.get("labels")), resolution)
    reader = PropertyReader.load(inputs["properties"], data.normalisation).to(device)
    gender = GenderReader.load(inputs["filters"]).to(device)
    name = fingerprint(config, portraits, conditions, base, inputs)
    checkpoints = state_dir(config, Path()) / "checkpoints" / "variants" / name
    dtype = autocast_dtype(config.runtime, device) or torch.float32
    bench = Bench(device, dtype, reader, gender, checkpoints, folder / SNAPSHOTS)

    report = Report(notes=[f"{len(data)} portraits, {len(data.hers)} of them Oh-LoRA's."])
    if base is None:
        base, seconds = train_base(data, settings, bench, journal)
        save_base(folder / STYLEGAN, base, settings)
        report.metrics["base_seconds"] = seconds
        report.notes.append(f"The base was trained here and is in {STYLEGAN}.")
    else:
        assert base.manifest is not None
        report.notes.append(f"Started from {settings.start}, digest {base.manifest.digest[:12]}.")
    rows: list[dict[str, Any]] = []
    for method_name in (m for m in METHODS if m in settings.methods):
        method = METHODS[method_name](bench)
        face = method.train(data, base, settings, journal)
        face = find_persona(face, data, reader, settings, journal, method.candidates)
        row = {"method": method_name, **judged(face, reader, data), "seconds": round(method.seconds, 1)}
        rows.append(row)
        provenance = {
            "profile": config.profile,
            "seed": settings.seed,
            "training": name,
            "portraits": len(data),
            "base": "trained here" if base.manifest is None else base.manifest.digest,
            "labels": settings.labels,
            "licence": "Apache-2.0" if base.manifest is None else "that of the base",
        }
        face.save(folder / method_name, provenance)
        loaded = VariantFace.load(folder / method_name, device)
        save_sheet(loaded, folder / method_name / SHEET)
        report.pictures[f"{method_name}: Oh-LoRA and sampled people, eyes, mouth, yaw"] = (
            f"{method_name}/{SHEET}"
        )
        report.metrics |= {
            f"{method_name}_{key}": float(value)
            for key, value in row.items()
            if isinstance(value, float) and np.isfinite(value)
        }
    report.tables[TABLE] = rows
    shutil.rmtree(checkpoints, ignore_errors=True)
    return report


def judged(face: VariantFace, reader: PropertyReader, data: PortraitSet) -> dict[str, float | None]:
    """Correlation and mean error (z-scores) of what was asked and what a reader of labeling sees.

    No verdict: that is the gate's, whose judge took no part in training.
    """
    asked, seen = requested_and_read(face, reader, np.arange(READ_SEEDS), data)
    result: dict[str, float | None] = {}
    for k, attribute in enumerate(CONDITION_NAMES):
        if attribute not in face.controlled and k >= MOVING:
            continue
        a, s = asked[:, k].numpy(), seen[:, k].numpy()
        flat = s.std() < 1e-6
        result[f"{attribute}_correlation"] = 0.0 if flat else round(float(np.corrcoef(a, s)[0, 1]), 4)
        result[f"{attribute}_mae"] = round(float(np.abs(a - s).mean()), 4)
    result["persona_distance"] = face.notes["persona"]["distance"]
    return result


def save_sheet(face: VariantFace, path: Path, size: int = 144) -> None:
    """Oh-LoRA and new people, a row each, under every expression of `sweeps`."""
    rows = []
    for person in [None, *range(SHEET_SEEDS)]:
        latent = None if person is None else face.sample_latent(person)
        conditions = torch.stack([face.conditions(expression, latent) for expression in sweeps()])
        z = face.persona_latent if latent is None else latent
        rows.append(face.images(z.expand(len(conditions), -1), conditions))
    save_grid(rows, path, size)


def fingerprint(
    config: Config,
    portraits: Portraits,
    conditions: np.ndarray,
    base: StyleGAN | None,
    inputs: dict[str, Path],
) -> str:
    """Names the trainings: the same settings, start and readers on the same data continue the same states."""
    settings = config.variants.model_dump(exclude={"methods"})  # one more method trains no other one again
    start = "" if base is None or base.manifest is None else base.manifest.digest
    readers = [read_manifest(inputs[name]).digest for name in ("properties", "filters")]
    digest = hashlib.sha256(repr((settings, config.runtime.precision, start, readers)).encode())
    for array in (portraits.images, portraits.identity, conditions):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
