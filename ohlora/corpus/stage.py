"""The stage `corpus`: take the committed sample, render more where that is wanted, say what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ohlora.attributes import ATTRIBUTE_NAMES, FaceClass
from ohlora.config import Config
from ohlora.corpus.portraits import (
    MANIFEST,
    PERSONA_IDENTITY,
    CorpusError,
    decode_image,
    decode_mask,
    encode_image,
    encode_mask,
    read_manifest,
    read_table,
    with_splits,
    write,
)
from ohlora.corpus.renderer import GENERATOR_VERSION
from ohlora.corpus.rendering import Settings, render_cached, rendered_jobs
from ohlora.stage import Journal, Report

SHEET = "sheet.png"
HISTOGRAM = "attributes.png"
SHEET_SEED = 20  # which portraits the contact sheet shows; not picked by eye
RENDER_CACHE = "render-cache"  # in the state folder, where it outlives the output folder


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Write all portraits of the corpus into the output folder.

    Raises:
        CorpusError: the sample is missing, corrupt or of another resolution, or a mask has unknown classes.
    """
    settings = config.corpus
    output = outputs["output"]
    sample = inputs.get("sample", Path(settings.sample))
    table = limited(with_splits(read_table(sample), settings.test_fraction), settings.limit)
    check_pictures(table, settings.resolution)
    table = resized(table, settings.resolution)
    sampled = table.num_rows
    if settings.render:
        table = pa.concat_tables([table, _render(config, journal)])
    provenance: dict[str, Any] = {
        "sample": read_manifest(sample)["files"],
        "sample_portraits": sampled,
        "rendered_portraits": table.num_rows - sampled,
        "rendered_seed": settings.seed,
        "generator_version": GENERATOR_VERSION,
        "samples_per_pixel": settings.samples_per_pixel,
    }
    write(output, table, provenance)
    contact_sheet(table, output / SHEET)
    histograms(table, output / HISTOGRAM)
    return _report(table, sampled)


def limited(table: pa.Table, limit: int) -> pa.Table:
    """The first portraits of Oh-LoRA, of the training people and of the test people, in their proportions.

    Args:
        table: rows with splits.
        limit: how many rows; 0 takes all.

    Raises:
        CorpusError: fewer than three are asked for, so that a group would be empty.
    """
    if not limit or limit >= table.num_rows:
        return table
    if limit < 3:
        raise CorpusError(
            "corpus.limit must be 0 or at least 3: Oh-LoRA, a person to train on, one to test on"
        )
    identity, split = table["identity"].to_numpy(), np.array(table["split"].to_pylist())
    hers = identity == PERSONA_IDENTITY
    groups = [np.flatnonzero(g) for g in (hers, ~hers & (split == "train"), split == "test")]
    groups = [g for g in groups if len(g)]
    shares = [max(1, limit * len(g) // table.num_rows) for g in groups]
    while sum(shares) != limit:  # rounding: the group with the most left over, or the most taken
        left = [len(g) - share for g, share in zip(groups, shares, strict=True)]
        if sum(shares) < limit:
            shares[int(np.argmax(left))] += 1
        else:
            shares[int(np.argmax(shares))] -= 1
    index = np.sort(np.concatenate([g[:n] for g, n in zip(groups, shares, strict=True)]))
    return table.take(pa.array(index))


def check_pictures(table: pa.Table, resolution: int) -> None:
    """Look at the first picture of every identity, and at every mask.

    Raises:
        CorpusError: a picture is smaller than the resolution asked for, or a mask has unknown classes.
    """
    first = np.unique(table["identity"].to_numpy(), return_index=True)[1]
    for row in first:
        height, width = decode_image(table["image"][int(row)].as_py()).shape[:2]
        if height != width or height < resolution:
            raise CorpusError(
                f"portrait {row} has {width}x{height} pixels; corpus.resolution wants {resolution}"
            )
    for row, data in enumerate(table["mask"].to_pylist()):
        if (top := int(decode_mask(data).max())) >= len(FaceClass):
            raise CorpusError(
                f"the mask of portrait {row} has class {top}; the largest is {len(FaceClass) - 1}"
            )


def resized(table: pa.Table, resolution: int) -> pa.Table:
    """The same rows with pictures of another resolution; rows that have it keep their bytes."""
    if decode_mask(table["mask"][0].as_py()).shape[0] == resolution:
        return table
    size = (resolution, resolution)
    images, masks = [], []
    for image, mask in zip(table["image"].to_pylist(), table["mask"].to_pylist(), strict=True):
        small = Image.fromarray(decode_image(image)).resize(size, Image.Resampling.BOX)
        images.append(encode_image(np.asarray(small)))
        small = Image.fromarray(decode_mask(mask)).resize(size, Image.Resampling.NEAREST)
        masks.append(encode_mask(np.asarray(small)))
    table = table.set_column(0, "image", pa.array(images, pa.binary()))
    return table.set_column(1, "mask", pa.array(masks, pa.binary()))


def _render(config: Config, journal: Journal) -> pa.Table:
    settings = config.corpus
    jobs = rendered_jobs(settings.seed, settings.render)
    size = Settings(settings.resolution, settings.samples_per_pixel, settings.test_fraction)
    processes = config.runtime.threads or len(os.sched_getaffinity(0))
    chunks: dict[int, pa.Table] = {}
    total = len({job.identity for job in jobs})
    results = render_cached(jobs, size, Path(config.state) / RENDER_CACHE, processes)
    for done, (rows, number) in enumerate(
        journal.progress(results, "rendering people (4 portraits each)", total)
    ):
        chunks[number] = rows
        journal.log(done + 1, rendered=float(sum(t.num_rows for t in chunks.values())))
    rendered = pa.concat_tables([chunks[number] for number in sorted(chunks)])
    return with_splits(rendered, settings.test_fraction)


def contact_sheet(table: pa.Table, path: Path, count: int = 36, tile: int = 160) -> None:
    """A PNG of `count` unpicked portraits: a seeded draw."""
    rng = np.random.default_rng(SHEET_SEED)
    rows = np.sort(rng.choice(table.num_rows, min(count, table.num_rows), replace=False))
    columns = int(np.ceil(np.sqrt(len(rows))))
    sheet = Image.new("RGB", (columns * tile, -(-len(rows) // columns) * tile))
    for place, row in enumerate(rows):
        picture = Image.fromarray(decode_image(table["image"][int(row)].as_py()))
        corner = (place % columns * tile, place // columns * tile)
        sheet.paste(picture.resize((tile, tile), Image.Resampling.LANCZOS), corner)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def histograms(table: pa.Table, path: Path) -> None:
    """A PNG with the distribution of each of the nine attributes, Oh-LoRA apart from the others."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    hers = table["identity"].to_numpy() == PERSONA_IDENTITY
    figure, axes = plt.subplots(3, 3, figsize=(10, 7.5), layout="constrained")
    for axis, name in zip(axes.ravel(), ATTRIBUTE_NAMES, strict=True):
        values = table[name].to_numpy().astype(float)
        known = np.isfinite(values)
        low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
        bins = np.linspace(low, high if high > low else low + 1, 21)
        axis.hist(
            [values[known & ~hers], values[known & hers]], bins, stacked=True, label=["others", "Oh-LoRA"]
        )
        axis.set_title(name)
    axes[0, 0].legend()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def attribute_table(table: pa.Table) -> list[dict[str, Any]]:
    """Mean, standard deviation, least and largest value of each attribute, unknown ones left out."""
    rows = []
    for name in ATTRIBUTE_NAMES:
        values: NDArray[np.float64] = table[name].to_numpy().astype(np.float64)
        values = values[np.isfinite(values)]
        row = {"attribute": name, "known": len(values)}
        if len(values):
            statistics = {
                "mean": values.mean(),
                "std": values.std(),
                "min": values.min(),
                "max": values.max(),
            }
            row |= {key: round(float(value), 4) for key, value in statistics.items()}
        rows.append(row)
    return rows


def _report(table: pa.Table, sampled: int) -> Report:
    identity, split = table["identity"].to_numpy(), np.array(table["split"].to_pylist())
    attributes = attribute_table(table)
    metrics = {
        "portraits": float(table.num_rows),
        "people": float(len(np.unique(identity))),
        "persona_portraits": float((identity == PERSONA_IDENTITY).sum()),
        "train": float((split == "train").sum()),
        "test": float((split == "test").sum()),
        "sampled": float(sampled),
        "rendered": float(table.num_rows - sampled),
    }
    for row in attributes:
        metrics |= {
            f"{row['attribute']}_{key}": row[key] for key in ("mean", "std", "min", "max") if key in row
        }
    notes = []
    if not (split == "test").any():
        notes.append("No person is held out; raise corpus.limit or corpus.test_fraction.")
    return Report(
        metrics=metrics,
        pictures={"Unpicked portraits": SHEET, "Attributes": HISTOGRAM},
        tables={"Attributes": attributes},
        notes=[*notes, f"Hashes of the shards are in {MANIFEST}."],
    )
