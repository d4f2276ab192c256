"""Stage `face_test`: the quick image-generation test of every candidate, one table, and who should challenge.

Candidates are our own face and the model folders that the fine-tuning variants left. The best is the one that
breaks fewest of the gate's floors and, of those, leads in the gate's primary metric; `best.json` names it,
and the package sends it to the gate. `scores.json` has what was measured, under the keys by which the gate
would store it: it need not measure the same again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ohlora.artifacts import MANIFEST, read_manifest
from ohlora.attributes import CONDITION_NAMES
from ohlora.config import Config, GateRule
from ohlora.evaluation.evidence import Evidence, Plan, gather
from ohlora.evaluation.face import figures
from ohlora.evaluation.generation_report import Examination, sweep_row, write, write_csv
from ohlora.evaluation.generation_test import References, generation_test, look_at_renders
from ohlora.evaluation.original_test import Progress, original_test
from ohlora.evaluation.steadiness import MOVING
from ohlora.evaluation.witness import Artist
from ohlora.gan import load_face
from ohlora.gan.face import KIND
from ohlora.gan.pictures import save_grid
from ohlora.gan.variant_face import KIND as VARIANT
from ohlora.stage import Journal, Report

BEST, SCORES = "best.json", "scores.json"
OURS = "ours"  # name of the candidate that is no variant
SHEET, SHEET_LATENTS = "candidates.png", 2
COLUMNS = (
    *(f"{name}_correlation_{kind}" for name in MOVING for kind in ("mean", "p5")),
    *(f"{name}_correlation_mean" for name in CONDITION_NAMES[len(MOVING) :]),
    *(f"{name}_mae_z" for name in MOVING),
    "original_test_pass_share",
    "original_pass_share",
    "pass_share",
    "identity_ratio",
    "diversity_ratio",
    "outside_change",
    "female_share",
    "quality_share",
    "kid",
    "attribute_error",
    "persona_psnr",
)


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Test all candidates.

    Raises:
        CorpusError: the corpus is corrupt. ArtifactError: the judge or a candidate is.
    """
    from ohlora.evaluation import gate  # brings the registry along

    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    out, found = outputs["output"], gather(inputs, config)
    plan = Plan.of(config.face_test, quick=True)
    references = look_at_renders(found, plan.measured)
    folders = candidates(inputs)
    tested: dict[str, dict[str, float]] = {}
    pictures: dict[str, str] = {}
    strips = []
    for name, folder in folders.items():
        face = load_face(folder, config.runtime.device)
        examination = examine_face(name, face, found, plan, journal.progress, references)
        drawn = write(examination, face, out / name)
        pictures |= {f"{name}: {title}": f"{name}/{path}" for title, path in drawn.items()}
        strips += [sweep_row(face, seed) for seed in (None, *plan.seeds[:SHEET_LATENTS])]
        tested[name] = examination.metrics
    save_grid(strips, out / SHEET, 96)
    rows = [{"candidate": name, **headline(metrics)} for name, metrics in tested.items()]
    write_csv(out / "candidates.csv", rows)
    (out / "candidates.md").write_text(comparison(rows), encoding="utf-8")
    rule = config.gate.face
    best = choose(tested, rule)
    verdict = {
        "candidate": best,
        "folder": folders[best].as_posix(),
        "kind": read_manifest(folders[best]).kind,
        "sha256": read_manifest(folders[best]).digest,
        "primary": rule.primary,
        "value": tested[best].get(rule.primary),
        "broken_floors": broken(tested[best], rule),
    }
    (out / BEST).write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    scores = {
        gate.score_key("face", read_manifest(folders[name]).digest, inputs, config): metrics
        for name, metrics in tested.items()
    }
    (out / SCORES).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return Report(
        metrics=tested[best],
        pictures={"Candidates: each as Oh-LoRA and as unpicked people": SHEET, **pictures},
        tables={"candidates": rows},
        notes=[_said(best, verdict, len(tested)), *found.notes],
    )


def candidates(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Name -> model folder: `face`, and each face model in `variants`, if there is such an input."""
    found = {OURS: inputs["face"]}
    if "variants" in inputs:
        for manifest in sorted(inputs["variants"].glob(f"*/{MANIFEST}")):
            if read_manifest(manifest.parent).kind in (KIND, VARIANT):
                found[manifest.parent.name] = manifest.parent
    return found


def examine_face(
    name: str,
    face: Artist,
    found: Evidence,
    plan: Plan,
    progress: Progress[int],
    references: References | None = None,
) -> Examination:
    """Ours, the original's test and the figures of the gate on one face."""
    result = generation_test(face, found, plan, progress, references)
    metrics = figures(face, found.read, result, found.portraits)
    original = None
    if plan.original_latents:
        original = original_test(face, found.read, found.units, plan.original_seeds, progress)
        metrics |= original.metrics()
    return Examination(name, metrics, result, original, found.notes)


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures that candidates are compared in."""
    return {name: metrics.get(name, math.nan) for name in COLUMNS}


def comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """Candidates side by side, a figure per line."""
    names = [str(row["candidate"]) for row in rows]
    lines = [f"| Figure | {' | '.join(names)} |", f"| --- | {' | '.join('---' for _ in names)} |"]
    for figure in COLUMNS:
        cells = ["" if math.isnan(row[figure]) else f"{row[figure]:.4g}" for row in rows]
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def choose(tested: Mapping[str, Mapping[str, float]], rule: GateRule) -> str:
    """The candidate that should challenge: fewest broken floors, then the gate's primary metric."""

    def key(name: str) -> tuple[int, float]:
        value = tested[name].get(rule.primary, math.nan)
        cost = -value if rule.higher_is_better else value
        return len(broken(tested[name], rule)), math.inf if math.isnan(cost) else cost

    return min(tested, key=key)


def broken(metrics: Mapping[str, float], rule: GateRule) -> list[str]:
    """Floors that the figures do not hold, as sentences."""
    from ohlora.evaluation.gate import broken_floors  # brings the registry along

    return broken_floors(metrics, rule.floors)


def _said(best: str, verdict: Mapping[str, Any], count: int) -> str:
    value = verdict["value"]
    text = f"{best} leads {count} candidate{'s' if count > 1 else ''}"
    if value is not None:
        text += f": {verdict['primary']} {value:.4g}"
    return text + (
        f"; it would not pass: {'; '.join(verdict['broken_floors'])}" if verdict["broken_floors"] else ""
    )
