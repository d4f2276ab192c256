"""The stage `corpus`: take the committed sample, render more where that is wanted, say what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ohlora.attributes import FaceClass
from ohlora.config import Config, CorpusConfig
from ohlora.corpus.parameters import persona_parameters
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
    remeasured,
    with_splits,
    write,
)
from ohlora.corpus.renderer import GENERATOR_VERSION
from ohlora.corpus.rendering import (
    MOMENTS,
    Job,
    Settings,
    chunks_of,
    persona_jobs,
    render_cached,
    rendered_jobs,
    set_jobs,
)
from ohlora.corpus.summary import attribute_table, contact_sheet, plot_parameters, plot_truths, write_summary
from ohlora.stage import Journal, Report

SHEET = "sheet.png"
HISTOGRAM = "attributes.png"
PARAMETERS = "parameters.png"
SUMMARY = "summary.json"
FIRST_NEW_MOMENT = 1000  # of Oh-LoRA's rendered portraits; below it are those of the sample
RENDER_CACHE = "render-cache"  # in the state folder, where it outlives the output folder


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Write all portraits of the corpus into the output folder: the sample, more folders, rendered ones.

    Beside the shards there are `summary.json` (every column: count, mean, deviation, quantiles, histogram;
    every category: counts), plots of every distribution and a contact sheet of unpicked portraits.

    Raises:
        CorpusError: a folder is missing, corrupt or of another resolution, a mask has unknown classes, or
            the settings ask for sets of people who are not rendered.
    """
    settings = config.corpus
    output = outputs["output"]
    sample = inputs.get("sample", Path(settings.sample))
    jobs = jobs_of(settings, inputs.get("look", Path(settings.look)))
    table = limited(with_splits(read_table(sample), settings.test_fraction), settings.limit)
    parts = [table, *(with_splits(read_table(Path(f)), settings.test_fraction) for f in settings.folders)]
    parts = [part for part in parts if part.num_rows]
    for part in parts:
        check_pictures(part, settings.resolution)
    table = pa.concat_tables([resized(part, settings.resolution) for part in parts])
    sampled = table.num_rows
    if jobs:
        table = pa.concat_tables([table, _render(config, jobs, journal)])
    table = remeasured(table)
    provenance: dict[str, Any] = {
        "sample": read_manifest(sample)["files"],
        "folders": {folder: read_manifest(Path(folder))["files"] for folder in settings.folders},
        "sample_portraits": sampled,
        "rendered_portraits": table.num_rows - sampled,
        "rendered_seed": settings.seed,
        "generator_version": GENERATOR_VERSION,
        "samples_per_pixel": settings.samples_per_pixel,
    }
    write(output, table, provenance)
    contact_sheet(table, output / SHEET)
    plot_truths(table, output / HISTOGRAM)
    plotted = plot_parameters(table, output / PARAMETERS)
    write_summary(table, output / SUMMARY)
    return _report(table, sampled, plotted)


def limited(table: pa.Table, limit: int) -> pa.Table:
    """Portraits of Oh-LoRA, of the training people and of the test people, in their proportions.

    They are spread evenly over each group, so that a few of them are women and men, clean and spoilt.

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
    spread = [g[np.arange(n) * len(g) // n] for g, n in zip(groups, shares, strict=True)]
    index = np.sort(np.concatenate(spread))
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


def jobs_of(settings: CorpusConfig, look: Path) -> list[Job]:
    """What the settings ask to render: new people, their sets, Oh-LoRA and hers.

    Raises:
        CorpusError: more people shall have sets than are rendered, or her look does not parse.
    """
    people = -(-settings.render // MOMENTS)
    if settings.counterfactual_sets > people:
        raise CorpusError(
            f"corpus.counterfactual_sets is {settings.counterfactual_sets}, but corpus.render "
            f"{settings.render} gives {people} people; raise corpus.render to {MOMENTS} for each of them"
        )
    jobs = rendered_jobs(
        settings.seed,
        settings.render,
        settings.defects,
        settings.counterfactual_sets,
        settings.swept,
        settings.sweep_steps,
        settings.women_only,
    )
    if settings.render_persona:
        try:
            persona = persona_parameters(look)
        except ValueError as error:
            raise CorpusError(str(error)) from error
        jobs += persona_jobs(persona, settings.render_persona, FIRST_NEW_MOMENT)
        if settings.counterfactual_sets:
            jobs += set_jobs(
                persona,
                PERSONA_IDENTITY,
                persona.look.seed,
                "persona",
                settings.swept,
                settings.sweep_steps,
            )
    return jobs


def _render(config: Config, jobs: list[Job], journal: Journal) -> pa.Table:
    settings = config.corpus
    size = Settings(settings.resolution, settings.samples_per_pixel, settings.rendered_test_fraction)
    processes = config.runtime.threads or len(os.sched_getaffinity(0))
    chunks: dict[int, pa.Table] = {}
    results = render_cached(jobs, size, Path(config.state) / RENDER_CACHE, processes)
    bar = journal.progress(
        results, f"rendering {len(jobs)} portraits (people and sets)", len(chunks_of(jobs))
    )
    for done, (rows, number) in enumerate(bar):
        chunks[number] = rows
        journal.log(done + 1, rendered=float(sum(t.num_rows for t in chunks.values())))
    rendered = pa.concat_tables([chunks[number] for number in sorted(chunks)])
    return with_splits(rendered, settings.rendered_test_fraction)


def _report(table: pa.Table, sampled: int, plotted: bool) -> Report:
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
        "in_sets": float((table["set"].to_numpy() >= 0).sum()),
        "degraded": float((table["quality"].to_numpy() == 0).sum()),
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
        pictures={
            "Unpicked portraits": SHEET,
            "Ground truth": HISTOGRAM,
            **({"Parameters": PARAMETERS} if plotted else {}),
        },
        tables={"Attributes": attributes},
        notes=[*notes, f"Hashes of the shards are in {MANIFEST}, all distributions in {SUMMARY}."],
    )
