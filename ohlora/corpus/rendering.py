"""Many portraits: jobs, their ground truth, and rendering on all cores that survives a kill."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ohlora.attributes import FaceClass
from ohlora.corpus.parameters import PortraitParameters, sample_look, sample_moment
from ohlora.corpus.portraits import PERSONA_IDENTITY, SCHEMA, encode_image, encode_mask, split_of
from ohlora.corpus.renderer import GENERATOR_VERSION, render_portrait

MOMENTS = 4  # portraits per person
FIRST_RENDERED_IDENTITY = 100_000  # below it are those of the committed sample


@dataclass(frozen=True)
class Job:
    """One portrait to render."""

    identity: int
    seed: int  # of the look
    moment: int
    variant: str
    parameters: PortraitParameters


@dataclass(frozen=True)
class Settings:
    resolution: int  # pixels per side
    samples_per_pixel: int
    test_fraction: float


def person_jobs(seed: int, identity: int, variant: str, moments: int = MOMENTS) -> list[Job]:
    """Jobs of one new person, a function of the seed alone."""
    look = sample_look(np.random.default_rng([seed, 0]))
    moment = [sample_moment(look, np.random.default_rng([seed, 1 + k])) for k in range(moments)]
    return [Job(identity, seed, k, variant, p) for k, p in enumerate(moment)]


def persona_jobs(persona: PortraitParameters, moments: int) -> list[Job]:
    """Jobs of Oh-LoRA herself: all eye and mouth openings and poses, a friendly mouth, a calm head."""
    jobs = []
    for k in range(moments):
        p = sample_moment(persona.look, np.random.default_rng([persona.look.seed, 1 + k]))
        calm = {"pitch": 0.4 * p.pitch, "roll": 0.4 * p.roll, "smile": 0.35 + 0.3 * p.smile}
        p = p.model_copy(update=calm)
        jobs.append(Job(PERSONA_IDENTITY, persona.look.seed, k, "persona", p))
    return jobs


def rendered_jobs(seed: int, count: int) -> list[Job]:
    """`count` portraits of new people with seeds from `seed` on, four of each."""
    people = range(seed, seed + -(-count // MOMENTS))
    jobs = [person_jobs(s, FIRST_RENDERED_IDENTITY + s, "rendered") for s in people]
    return list(itertools.chain.from_iterable(jobs))[:count]


def ground_truth(
    parameters: PortraitParameters, image: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> dict[str, float]:
    """What is true of a rendered portrait, in the units of `ohlora.attributes`; nan is unknown.

    Gender, eyes, mouth and pose are what was asked for; colours and lengths are measured on the exact mask.

    Args:
        image: uint8 [h, w, 3].
        mask: uint8 [h, w].
    """
    brightness = image.astype(np.float64).mean(-1)
    hair = mask == FaceClass.HAIR
    upper = mask[: len(mask) // 2] == FaceClass.BACKGROUND
    behind = brightness[: len(mask) // 2][upper]
    rows = np.flatnonzero(hair.any(1))
    return {
        "gender": parameters.look.female,
        "quality": 1.0,  # nothing was degraded
        "eyes": parameters.eyes,
        "mouth": parameters.mouth,
        "pose": parameters.yaw,
        "hair_color": float(brightness[hair].mean()) if hair.any() else float("nan"),
        "hair_length": float(rows[-1] + 1) / len(mask) if len(rows) else float("nan"),
        "background_mean": float(behind.mean()) if len(behind) else float("nan"),
        "background_std": float(behind.std()) if len(behind) else float("nan"),
        "pitch": parameters.pitch,
        "roll": parameters.roll,
        "smile": parameters.smile,
    }


def render_rows(jobs: Sequence[Job], settings: Settings) -> pa.Table:
    """Render jobs one after another, rows of `SCHEMA`."""
    rows: list[dict[str, Any]] = []
    for job in jobs:
        image, mask = render_portrait(job.parameters, settings.resolution, settings.samples_per_pixel)
        rows.append(
            {
                "image": encode_image(image),
                "mask": encode_mask(mask),
                "identity": job.identity,
                "seed": job.seed,
                "moment": job.moment,
                "variant": job.variant,
                "split": split_of(job.identity, settings.test_fraction),
                **ground_truth(job.parameters, image, mask),
            }
        )
    return pa.Table.from_pylist(rows, SCHEMA)


def render_cached(
    jobs: Sequence[Job], settings: Settings, cache: Path, processes: int
) -> Iterator[tuple[pa.Table, int]]:
    """Render jobs in chunks of one person each; finished chunks are kept in `cache` and not rendered again.

    A chunk is written under another name and moved into place, so that a kill leaves only whole chunks.

    Args:
        cache: work folder; its subfolder is named by generator version and settings.
        processes: worker processes; 1 renders in this one.

    Yields:
        the rows of a chunk and its number; in the order in which they finish.
    """
    folder = cache / f"v{GENERATOR_VERSION}-{settings.resolution}px-{settings.samples_per_pixel}spp"
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [
        list(group)[start : start + MOMENTS]
        for _, person in itertools.groupby(jobs, key=lambda job: (job.identity, job.seed))
        for group in [list(person)]
        for start in range(0, len(group), MOMENTS)
    ]
    work = [(number, chunk, settings, folder) for number, chunk in enumerate(chunks)]
    if processes == 1 or len(work) == 1:
        results: Iterator[int] = map(_render_chunk, work)
        yield from ((_read_chunk(folder, chunks[number]), number) for number in results)
        return
    with multiprocessing.get_context("spawn").Pool(min(processes, len(work))) as pool:
        for number in pool.imap_unordered(_render_chunk, work):
            yield _read_chunk(folder, chunks[number]), number


def _chunk_path(folder: Path, chunk: Sequence[Job]) -> Path:
    first = chunk[0]
    parameters = hashlib.sha256(
        "".join(job.parameters.model_dump_json() for job in chunk).encode()
    ).hexdigest()
    return folder / f"{first.variant}-{first.identity:06d}-{first.moment:03d}-{parameters[:12]}.parquet"


def _read_chunk(folder: Path, chunk: Sequence[Job]) -> pa.Table:
    return pq.read_table(_chunk_path(folder, chunk)).cast(SCHEMA)


def _render_chunk(work: tuple[int, list[Job], Settings, Path]) -> int:
    number, chunk, settings, folder = work
    path = _chunk_path(folder, chunk)
    if not path.is_file():
        partial = path.with_suffix(f".{os.getpid()}.part")
        pq.write_table(render_rows(chunk, settings), partial, compression="none")
        partial.replace(path)
    return number
