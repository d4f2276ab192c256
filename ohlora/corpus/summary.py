"""What a corpus holds: a machine-readable summary, plots of every distribution, contact sheets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ohlora.attributes import ATTRIBUTE_NAMES
from ohlora.corpus.portraits import PERSONA_IDENTITY, TRUTH_NAMES, decode_image

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 20
CATEGORIES = ("split", "variant", "swept")
SHEET_SEED = 20  # which portraits a contact sheet shows; not picked by eye
Column = NDArray[np.float64]


def contact_sheet(
    table: pa.Table, path: Path, count: int = 36, tile: int = 160, seed: int = SHEET_SEED
) -> None:
    """A picture of `count` unpicked portraits: a seeded draw.

    Args:
        table: rows of the storage format, at least one.
        path: PNG or JPEG to write; its folder is made.
        count: portraits, fewer when there are not so many.
        tile: pixels per side of a portrait in the sheet.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(table.num_rows, min(count, table.num_rows), replace=False))
    images = [decode_image(table["image"][int(row)].as_py()) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    tiled(images, int(np.ceil(np.sqrt(len(images)))), tile).save(path, optimize=True)


def tiled(images: list[NDArray[np.uint8]], columns: int, tile: int) -> Image.Image:
    """Images uint8 [h, w, 3] side by side in rows of `columns`, each `tile` pixels wide and high."""
    sheet = Image.new("RGB", (columns * tile, -(-len(images) // columns) * tile))
    for place, image in enumerate(images):
        picture = Image.fromarray(image)
        if picture.size != (tile, tile):
            picture = picture.resize((tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(picture, (place % columns * tile, place // columns * tile))
    return sheet


def flattened(parameters: str) -> dict[str, float | str]:
    """Parameters of a portrait as one level of dotted names; a colour is its mean, a missing part is "none".

    Args:
        parameters: JSON of `PortraitParameters`, or "".
    """
    flat: dict[str, float | str] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                visit(part, f"{name}.{key}" if name else key)
        elif isinstance(value, bool) or value is None:
            flat[name] = {True: "yes", False: "no", None: "none"}[value]
        elif isinstance(value, list):
            numbers = [v for v in value if isinstance(v, int | float)]
            if numbers:
                flat[name] = float(np.mean(numbers))
        else:
            flat[name] = value

    if parameters:
        visit(json.loads(parameters), "")
    flat.pop("look.seed", None)
    return flat


def numeric_columns(table: pa.Table) -> dict[str, Column]:
    """Truths and numeric parameters, each float64 [n]; nan is unknown."""
    columns = {name: table[name].to_numpy().astype(np.float64) for name in TRUTH_NAMES}
    rows = [flattened(text) for text in table["parameters"].to_pylist()]
    for name in sorted({key for row in rows for key, value in row.items() if not isinstance(value, str)}):
        values = [row.get(name) for row in rows]
        columns[f"parameters.{name}"] = np.array(
            [float(v) if isinstance(v, int | float) else np.nan for v in values]
        )
    return columns


def category_counts(table: pa.Table) -> dict[str, dict[str, int]]:
    """How often each value of each column of names occurs, parameters included."""
    counts = {name: Counter(table[name].to_pylist()) for name in CATEGORIES}
    for text in table["parameters"].to_pylist():
        for name, value in flattened(text).items():
            if isinstance(value, str):
                counts.setdefault(f"parameters.{name}", Counter())[value] += 1
    return {name: dict(sorted(values.items())) for name, values in counts.items()}


def statistics(values: Column) -> dict[str, Any]:
    """Count, mean, standard deviation, quantiles and histogram of the known values of a column [n]."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {"known": 0, "unknown": len(values)}
    frequency, edges = np.histogram(known, BINS)
    return {
        "known": len(known),
        "unknown": len(values) - len(known),
        "mean": _rounded(known.mean()),
        "std": _rounded(known.std()),
        "quantiles": {str(q): _rounded(np.quantile(known, q)) for q in QUANTILES},
        "histogram": {"edges": [_rounded(e) for e in edges], "counts": frequency.tolist()},
    }


def summary(table: pa.Table) -> dict[str, Any]:
    """Everything countable about a corpus, as JSON values.

    Keys: `portraits`, `people`, `persona_portraits`, `sets`, `columns` (statistics by column), `categories`
    (counts by column and value), `correlations` (of each pair of attributes that both vary, people without
    Oh-LoRA, whose many portraits would decide them).
    """
    identity = table["identity"].to_numpy()
    sets = table["set"].to_numpy()
    columns = numeric_columns(table)
    return {
        "portraits": table.num_rows,
        "people": len(np.unique(identity)),
        "persona_portraits": int((identity == PERSONA_IDENTITY).sum()),
        "sets": len(np.unique(sets[sets >= 0])),
        "columns": {name: statistics(values) for name, values in columns.items()},
        "categories": category_counts(table),
        "correlations": correlations(columns, identity != PERSONA_IDENTITY),
    }


def correlations(columns: dict[str, Column], rows: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Pearson's correlation of each pair of attributes over some rows, left out where it is not defined."""
    found: dict[str, dict[str, float]] = {}
    for i, first in enumerate(ATTRIBUTE_NAMES):
        for second in ATTRIBUTE_NAMES[i + 1 :]:
            a, b = columns[first][rows], columns[second][rows]
            known = np.isfinite(a) & np.isfinite(b)
            a, b = a[known], b[known]
            if len(a) > 2 and a.std() > 0 and b.std() > 0:
                found.setdefault(first, {})[second] = _rounded(np.corrcoef(a, b)[0, 1])
    return found


def write_summary(table: pa.Table, path: Path) -> None:
    """`summary` as a JSON file."""
    text = json.dumps(summary(table), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def plot_truths(table: pa.Table, path: Path) -> None:
    """A PNG with the distribution of each known truth, Oh-LoRA apart from the others."""
    columns = {name: table[name].to_numpy().astype(np.float64) for name in TRUTH_NAMES}
    _plots(columns, table["identity"].to_numpy() == PERSONA_IDENTITY, path)


def plot_parameters(table: pa.Table, path: Path) -> bool:
    """A PNG with the distribution of each parameter of the renderer; whether there was any to plot."""
    columns = {
        name.removeprefix("parameters."): values
        for name, values in numeric_columns(table).items()
        if name.startswith("parameters.")
    }
    if columns:
        _plots(columns, table["identity"].to_numpy() == PERSONA_IDENTITY, path)
    return bool(columns)


def _plots(columns: dict[str, Column], hers: NDArray[np.bool_], path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    shown = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    across = 5 if len(shown) > 12 else 3
    down = max(1, -(-len(shown) // across))
    figure, axes = plt.subplots(down, across, figsize=(2.6 * across, 1.9 * down), squeeze=False)
    inches = {"left": 0.5 / (2.6 * across), "right": 1 - 0.1 / (2.6 * across)}
    inches |= {"bottom": 0.3 / (1.9 * down), "top": 1 - 0.3 / (1.9 * down)}
    figure.subplots_adjust(**inches, hspace=0.45, wspace=0.3)
    for axis, (name, values) in zip(axes.ravel(), shown.items(), strict=False):
        known = np.isfinite(values)
        low, high = float(values[known].min()), float(values[known].max())
        bins = np.linspace(low, high if high > low else low + 1, BINS + 1)
        everybody, her_own = (np.histogram(values[rows], bins)[0] for rows in (known, known & hers))
        axis.stairs(everybody, bins, fill=True, label="others")
        axis.stairs(her_own, bins, fill=True, label="Oh-LoRA")
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.yaxis.set_major_locator(MaxNLocator(2))
    for axis in axes.ravel()[len(shown) :]:
        axis.set_axis_off()
    if shown:
        axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def attribute_table(table: pa.Table) -> list[dict[str, Any]]:
    """Mean, standard deviation, least and largest value of each attribute, unknown ones left out."""
    rows = []
    for name in ATTRIBUTE_NAMES:
        found = statistics(table[name].to_numpy().astype(np.float64))
        row: dict[str, Any] = {"attribute": name, "known": found["known"]}
        if found["known"]:
            quantiles = found["quantiles"]
            row |= {"mean": found["mean"], "std": found["std"], "min": quantiles["0.0"]}
            row["max"] = quantiles["1.0"]
        rows.append(row)
    return rows


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
