"""The report of the image-generation test: JSON, CSV, Markdown, plots and grids in one folder."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import CONDITION_NAMES
from ohlora.evaluation.generation_test import Latent, Result, leakage
from ohlora.evaluation.original_test import (
    BEST_OF_ORIGINAL,
    CORRELATION_AT_LEAST,
    GRID,
    MAE_AT_MOST,
    OriginalResult,
)
from ohlora.evaluation.steadiness import MOVING
from ohlora.evaluation.witness import Artist, draw
from ohlora.gan.pictures import save_grid, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JSON, MARKDOWN, TABLE, ORIGINAL_TABLE = "face_test.json", "face_test.md", "latents.csv", "original.csv"
PICTURES = {
    "Correlation of each attribute over latents": "correlations.png",
    "Requested against seen": "requested_seen.png",
    "What a request changes": "leakage.png",
    "Oh-LoRA and unpicked latents": "unpicked.png",
    "The least obedient latents": "worst.png",
}
UNPICKED, WORST = 6, 4  # latents in the grids
TILE = 112  # pixels
POINTS = 1500  # at most in a scatter plot
COLOR = "#6b5bd2"

TARGETS: dict[str, tuple[float, bool]] = {  # metric -> target, and whether more is better
    **{f"{name}_correlation_mean": (0.95, True) for name in MOVING},
    **{f"{name}_correlation_p5": (0.9, True) for name in MOVING},
    **{f"{name}_correlation_mean": (0.9, True) for name in CONDITION_NAMES[3:]},
    **{f"{name}_mae_z": (0.35, False) for name in MOVING},
    "original_pass_share": (0.95, True),
    "original_test_pass_share": (0.95, True),
    "identity_ratio": (0.9, True),
    "female_share": (0.99, True),
}

NOTES = (
    "Correlations and errors compare what was asked with what the independent judge sees; no figure can be "
    "better than the judge, whose own correlation with the truth of renders it has never seen is listed; of "
    "what is measured under the parser's mask, the measurement's.",
    "Renders of one person, the reference of the identity ratio, are of people of the train split: the judge "
    "learned from the others. Drawn people show the same spread of expressions.",
    "Kernel and Fréchet distance: cubic kernel and Gaussians on the judge's penultimate features, "
    "standardised by the held-out portraits of women without defect. No training loss uses them. The judge "
    "learned from those portraits, so renders of other people are not at zero either: compare with "
    "`kid_renders`.",
    "`original_pass_share` applies the original's six thresholds to our pictures, `original_test_pass_share` "
    "to its own 50 labels.",
)


@dataclass(frozen=True)
class Examination:
    """Everything about one face model."""

    name: str
    metrics: dict[str, float]
    result: Result
    original: OriginalResult | None
    notes: tuple[str, ...] = ()


def write(examination: Examination, face: Artist, folder: Path) -> dict[str, str]:
    """Write the whole report.

    Returns:
        Title -> picture, relative to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result, original = examination.result, examination.original
    rows = [row(latent) for latent in result.latents]
    body: dict[str, Any] = {
        "model": examination.name,
        "metrics": examination.metrics,
        "targets": {name: target for name, (target, _) in TARGETS.items()},
        "units": result.units.table(),
        "leakage": {
            name: dict(zip(CONDITION_NAMES, map(float, values), strict=True))
            for name, values in zip(CONDITION_NAMES, leakage(result.latents), strict=True)
        },
        "latents": rows,
        "notes": [*NOTES, *examination.notes],
    }
    write_csv(folder / TABLE, rows)
    if original is not None:
        write_csv(folder / ORIGINAL_TABLE, original.table())
        body["original_test"] = {
            "latents": original.table(),
            "best_seed": original.seeds[original.best],
            "pass_share": original.pass_share,
            "clamped_of_50": original.clamped,
            "asked_z": original.used,
        }
    (folder / JSON).write_text(json.dumps(_plain(body), indent=2) + "\n", encoding="utf-8")
    (folder / MARKDOWN).write_text(markdown(examination), encoding="utf-8")
    correlations(result.latents, folder / "correlations.png")
    requested_seen(result.latents, folder / "requested_seen.png")
    leaks(result.latents, folder / "leakage.png")
    unpicked = [None, *(latent.seed for latent in result.latents[:UNPICKED])]
    draw_grid(face, unpicked, folder / "unpicked.png")
    draw_grid(face, [latent.seed for latent in result.worst[:WORST]], folder / "worst.png")
    return dict(PICTURES)


def row(latent: Latent) -> dict[str, Any]:
    """One latent as a row of a table."""
    figures: dict[str, Any] = {"seed": latent.seed}
    figures |= {f"{name}_correlation": r for name, r in latent.z.correlation.items()}
    figures |= {f"{name}_mae_z": error for name, error in latent.z.mae.items()}
    figures |= {
        "passes_original": latent.z.passes_original,
        "passes": latent.passes(),
        "identity_within": latent.within,
        "outside_change": latent.outside.expression,
        "outside_change_pose": latent.outside.pose,
    }
    return figures | {task: float(values.mean()) for task, values in latent.probabilities.items()}


def markdown(examination: Examination) -> str:
    """The report as a page."""
    metrics, original = examination.metrics, examination.original
    people = len(examination.result.latents)
    lines = [f"# Image-generation test: {examination.name}", "", f"{people} sampled people, none picked.", ""]
    lines += _rows_of_attributes(metrics)
    lines += ["", "| Figure | Value | Renders | Target |", "| --- | --- | --- | --- |"]
    for name, value in metrics.items():
        apart = ("judge_", "instrument_", *(f"{a}_" for a in CONDITION_NAMES))
        if name.startswith(apart) or name.endswith("_renders"):
            continue
        renders = metrics.get(f"{name}_renders")
        lines.append(
            f"| {name} | {value:.4g} | {'' if renders is None else f'{renders:.4g}'} | {_target(name)} |"
        )
    if original is not None:
        lines += ["", "## The original's test", "", *_original(original)]
    lines += ["", "## z units", "", *_units(examination.result)]
    lines += ["", "## Notes", "", *(f"- {note}" for note in (*NOTES, *examination.notes)), ""]
    lines += [f"![{title}]({name})\n" for title, name in PICTURES.items()]
    return "\n".join(lines) + "\n"


def _rows_of_attributes(metrics: Mapping[str, float]) -> list[str]:
    lines = [
        "| Attribute | Correlation, mean | 5th percentile | Error (z) | Error (raw) | Read off renders |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in CONDITION_NAMES:
        cells = [
            f"{metrics[f'{name}_{kind}']:.3f}"
            for kind in ("correlation_mean", "correlation_p5", "mae_z", "mae")
        ]
        judge = metrics.get(f"judge_{name}_correlation", math.nan)
        own = metrics.get(f"instrument_{name}_correlation", judge)
        lines.append(f"| {name} | {' | '.join(cells)} | {own:.3f} |")
    for name in CONDITION_NAMES:
        if f"instrument_{name}_correlation" in metrics:
            mean, low, own = (
                metrics.get(f"judge_{name}_correlation{kind}", math.nan) for kind in ("_mean", "_p5", "")
            )
            unseen = metrics.get(f"instrument_{name}_unseen", math.nan)
            lines += [
                "",
                f"{name} is measured under the parser's mask, which shows it in {1 - unseen:.1%} of the "
                f"pictures. The judge says {mean:.3f} (5th percentile {low:.3f}), and reads renders with "
                f"{own:.3f}.",
            ]
    return lines


def _units(result: Result) -> list[str]:
    lines = [
        "z = (raw - mean) / deviation of the training people's labels.",
        "",
        "| Attribute | Mean | Deviation | Our requests from | to |",
        "| --- | --- | --- | --- | --- |",
    ]
    for cells in result.units.table():
        name, *figures = cells.values()
        lines.append(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in figures)} |")
    return lines


def _original(original: OriginalResult) -> list[str]:
    count = len(original.latents)
    passing = sum(latent.passes_original for latent in original.latents)
    best = original.latents[original.best]
    lines = [
        f"{passing} of {count} latents pass ({original.pass_share:.1%}); best: seed "
        f"{original.seeds[original.best]}. The original's best of 30 is beside it.",
        "",
        "| | Threshold | Mean | Best | The original's best | Clamped of 50 | Asked (z) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    figures = original.metrics()
    for name in GRID:
        asked = ", ".join(f"{z:.2f}" for z in original.used[name])
        r, error = (figures[f"original_test_{name}_{kind}_mean"] for kind in ("correlation", "mae_z"))
        theirs = BEST_OF_ORIGINAL[name]
        lines += [
            f"| {name} correlation | ≥ {CORRELATION_AT_LEAST[name]} | {r:.3f} "
            f"| {best.correlation[name]:.3f} | {theirs[0]} | {original.clamped[name]} | {asked} |",
            f"| {name} MAE (z) | ≤ {MAE_AT_MOST[name]} | {error:.3f} | {best.mae[name]:.3f} "
            f"| {theirs[1]} | | |",
        ]
    columns = list(original.table()[0])
    lines += ["", f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    return lines + [
        f"| {' | '.join(f'{v:.3f}' if isinstance(v, float) else str(v) for v in cells.values())} |"
        for cells in original.table()
    ]


def _target(name: str) -> str:
    if name not in TARGETS:
        return ""
    value, more = TARGETS[name]
    return f"{'≥' if more else '≤'} {value:g}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with equal keys as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:
    """JSON has no NaN: unknown figures are null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Pictures


def correlations(latents: Sequence[Latent], path: Path) -> None:
    """A box and a dot per latent for each attribute."""
    values = [[latent.z.correlation[name] for latent in latents] for name in CONDITION_NAMES]
    figure, (axis,) = _figure(1, 1, (8, 4))
    axis.axhline(0.9, color="#bbb", linewidth=1)
    axis.boxplot(values, whis=(5, 95), showfliers=False, medianprops={"color": COLOR})
    rng = np.random.default_rng(0)
    for i, each in enumerate(values):
        axis.scatter(i + 1 + rng.uniform(-0.2, 0.2, len(each)), each, s=6, alpha=0.5, color=COLOR)
    axis.set_xticks(range(1, len(values) + 1), [name.replace("_", "\n") for name in CONDITION_NAMES])
    axis.set_ylabel("correlation of a latent")
    axis.set_title("box: quartiles, whiskers: 5th and 95th percentile", fontsize=8)
    figure.savefig(path, dpi=90)


def requested_seen(latents: Sequence[Latent], path: Path) -> None:
    """What was asked for against what the judge sees, over all pictures."""
    asked, seen = np.concatenate([p.asked for p in latents]), np.concatenate([p.seen for p in latents])
    step = max(1, len(asked) // POINTS)
    figure, axes = _figure(2, 4, (11, 5.6))
    for i, (axis, name) in enumerate(zip(axes, CONDITION_NAMES, strict=False)):
        ends = [asked[:, i].min(), asked[:, i].max()]
        axis.plot(ends, ends, color="#bbb")
        axis.scatter(asked[::step, i], seen[::step, i], s=4, alpha=0.4, color=COLOR)
        axis.set_xlabel(f"requested {name}")
        axis.set_ylabel("seen")
    for axis in axes[len(CONDITION_NAMES) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=80)


def leaks(latents: Sequence[Latent], path: Path) -> None:
    """Correlation of each requested with each seen attribute."""
    found = leakage(latents)
    figure, (axis,) = _figure(1, 1, (5.6, 5))
    axis.imshow(found, cmap="PuOr", vmin=-1, vmax=1)
    for (i, j), value in np.ndenumerate(found):
        color = "white" if abs(value) > 0.6 else "black"
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    ticks = range(len(CONDITION_NAMES))
    axis.set_xticks(ticks, CONDITION_NAMES, rotation=45, ha="right", fontsize=7)
    axis.set_yticks(ticks, CONDITION_NAMES, fontsize=7)
    axis.set_xlabel("seen")
    axis.set_ylabel("requested")
    figure.savefig(path, dpi=90)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would touch global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False)))


def draw_grid(face: Artist, seeds: Sequence[int | None], path: Path, size: int = TILE) -> None:
    """A row of eyes, mouth and pose for each latent; of seed None: Oh-LoRA."""
    save_grid([sweep_row(face, seed) for seed in seeds], path, size)


def sweep_row(face: Artist, seed: int | None) -> NDArray[np.uint8]:
    """One person under `ohlora.gan.pictures.sweeps`, uint8 [n, h, w, 3]."""
    asked = np.array([[e.eyes, e.mouth, e.pose] for e in sweeps()])
    return draw(face, None if seed is None else face.sample_latent(seed), asked)
