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
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ohlora.attributes import FaceClass
from ohlora.corpus.brightness import background_brightness
from ohlora.corpus.counterfactuals import set_number, sweepable, swept
from ohlora.corpus.defects import DEFECTS_VERSION, Defect, draw_defect
from ohlora.corpus.lengths import hair_length
from ohlora.corpus.parameters import Look, PortraitParameters, sample_look, sample_moment
from ohlora.corpus.portraits import (
    DEFECT_NAMES,
    FORMAT,
    PERSONA_IDENTITY,
    SCHEMA,
    TRAIT_NAMES,
    decode_image,
    encode_image,
    encode_mask,
    split_of,
)
from ohlora.corpus.renderer import GENERATOR_VERSION, render_portrait
from ohlora.lifeline import die_with_parent

MOMENTS = 4  # portraits per person
FIRST_RENDERED_IDENTITY = 100_000  # below it are those of the committed sample
DEFECT_STREAM, SET_STREAM = (
    100_000,
    200_000,
)  # second seeds, apart from looks (0), moments (1, …)
CALM_YAW = 12.0  # degrees; the most that the common moment of a counterfactual set turns
FIRST_SET_MOMENT = 10_000  # numbers of portraits in sets, apart from a person's other portraits


@dataclass(frozen=True)
class Job:
    """One portrait to render."""

    identity: int
    seed: int  # of the look
    moment: int
    variant: str
    parameters: PortraitParameters
    set: int = -1  # counterfactual set
    swept: str = ""  # attribute that the set sweeps
    defect: Defect | None = None  # added after rendering


@dataclass(frozen=True)
class Settings:
    resolution: int  # pixels per side
    samples_per_pixel: int
    test_fraction: float


def person_jobs(
    seed: int, identity: int, variant: str, moments: int = MOMENTS, defects: float = 0.0
) -> list[Job]:
    """Jobs of one new person, a function of the arguments alone.

    Args:
        seed: of the look, the moments and the defects.
        identity: number of the person.
        variant: where the portraits come from, a value of the column.
        moments: how many portraits.
        defects: share of them that get a quality defect.
    """
    look = sample_look(np.random.default_rng([seed, 0]))
    jobs = []
    for k in range(moments):
        parameters = sample_moment(look, np.random.default_rng([seed, 1 + k]))
        defect = draw_defect(defects, np.random.default_rng([seed, DEFECT_STREAM, k]))
        jobs.append(Job(identity, seed, k, variant, parameters, defect=defect))
    return jobs


def set_jobs(
    parameters: PortraitParameters,
    identity: int,
    seed: int,
    variant: str,
    attributes: Sequence[str],
    steps: int,
) -> list[Job]:
    """Jobs of the counterfactual sets of one person, one set for each attribute.

    Args:
        parameters: what the members of every set have in common.
        identity: number of the person.
        seed: of the look.
        variant: where the portraits come from.
        attributes: of `CONDITION_NAMES`.
        steps: members of a set.

    Raises:
        ValueError: an attribute cannot be swept, or there are too few steps.
    """
    jobs: list[Job] = []
    for attribute in sweepable(attributes):
        number = set_number(identity, attribute)
        for p in swept(parameters, attribute, steps):
            moment = FIRST_SET_MOMENT + len(jobs)
            jobs.append(Job(identity, seed, moment, variant, p, set=number, swept=attribute))
    return jobs


def person_set_jobs(
    seed: int, identity: int, variant: str, attributes: Sequence[str], steps: int
) -> list[Job]:
    """The counterfactual sets of the person that `person_jobs` draws with the same seed."""
    look = sample_look(np.random.default_rng([seed, 0]))
    moment = sample_moment(look, np.random.default_rng([seed, SET_STREAM]), CALM_YAW)
    return set_jobs(moment, identity, seed, variant, attributes, steps)


def persona_jobs(persona: PortraitParameters, moments: int, first: int = 0) -> list[Job]:
    """Jobs of Oh-LoRA herself: all eye and mouth openings and poses, a friendly mouth, a calm head.

    Args:
        persona: her look.
        moments: how many portraits.
        first: number of the first; the number decides what it shows.
    """
    jobs = []
    for k in range(first, first + moments):
        p = sample_moment(persona.look, np.random.default_rng([persona.look.seed, 1 + k]))
        calm = {"pitch": 0.4 * p.pitch, "roll": 0.4 * p.roll, "smile": 0.35 + 0.3 * p.smile}
        p = p.model_copy(update=calm)
        jobs.append(Job(PERSONA_IDENTITY, persona.look.seed, k, "persona", p))
    return jobs


def rendered_jobs(
    seed: int,
    count: int,
    defects: float = 0.0,
    sets: int = 0,
    attributes: Sequence[str] = (),
    steps: int = 5,
    women_only: bool = False,
) -> list[Job]:
    """`count` portraits of new people with seeds from `seed` on, four of each, and their counterfactual sets.

    Args:
        seed: of the first person.
        count: portraits outside of sets.
        defects: share of them that get a quality defect.
        sets: how many of the people, from the first on, get sets besides.
        attributes: what the sets sweep.
        steps: members of a set.
        women_only: skip the seeds that draw a man.

    Raises:
        ValueError: an attribute cannot be swept, or there are too few steps.
    """
    seeds = (s for s in itertools.count(seed) if not women_only or _draws_a_woman(s))
    people = list(itertools.islice(seeds, -(-count // MOMENTS)))
    portraits = [person_jobs(s, FIRST_RENDERED_IDENTITY + s, "rendered", defects=defects) for s in people]
    jobs = list(itertools.chain.from_iterable(portraits))[:count]
    for s in people[:sets]:
        jobs += person_set_jobs(s, FIRST_RENDERED_IDENTITY + s, "rendered", attributes, steps)
    return jobs


def _draws_a_woman(seed: int) -> bool:
    return sample_look(np.random.default_rng([seed, 0])).female == 1.0


def traits(look: Look) -> dict[str, float]:
    """Age in years, glasses and earrings (1 worn, 0 not); nan for what this renderer does not know."""
    unknown = float("nan")
    found = {name: getattr(look, name, unknown) for name in TRAIT_NAMES}
    return {
        name: value if value is unknown or name == "age" else float(bool(value))
        for name, value in found.items()
    }


def ground_truth(
    parameters: PortraitParameters,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    defect: Defect | None = None,
) -> dict[str, float]:
    """What is true of a rendered portrait, in the units of `ohlora.attributes`; nan is unknown.

    Gender, eyes, mouth and pose are what was asked for; colours and lengths are measured on the exact mask,
    in the picture as it is stored, with its defect.

    Args:
        parameters: what was rendered.
        image: uint8 [h, w, 3].
        mask: uint8 [h, w].
        defect: what was done to the image, if anything.
    """
    brightness = image.astype(np.float64).mean(-1)
    hair = mask == FaceClass.HAIR
    mean, std = background_brightness(image[None], mask[None])
    return {
        "gender": parameters.look.female,
        "quality": 1.0 if defect is None else 0.0,
        "eyes": parameters.eyes,
        "mouth": parameters.mouth,
        "pose": parameters.yaw,
        "hair_color": float(brightness[hair].mean()) if hair.any() else float("nan"),
        "hair_length": float(hair_length(mask[None])[0]),
        "background_mean": float(mean[0]),
        "background_std": float(std[0]),
        "pitch": parameters.pitch,
        "roll": parameters.roll,
        "smile": parameters.smile,
        **traits(parameters.look),
        **dict.fromkeys(DEFECT_NAMES, 0.0),
        **({defect.name: defect.strength} if defect else {}),
    }


def render_rows(jobs: Sequence[Job], settings: Settings) -> pa.Table:
    """Render jobs one after another, rows of `SCHEMA`."""
    rows: list[dict[str, Any]] = []
    for job in jobs:
        image, mask = render_portrait(job.parameters, settings.resolution, settings.samples_per_pixel)
        if job.defect:
            image = job.defect.applied(image)
        stored = encode_image(image)
        rows.append(
            {
                "image": stored,
                "mask": encode_mask(mask),
                "identity": job.identity,
                "seed": job.seed,
                "moment": job.moment,
                "variant": job.variant,
                "split": split_of(job.identity, settings.test_fraction),
                "set": job.set,
                "swept": job.swept,
                "parameters": job.parameters.model_dump_json(),
                **ground_truth(job.parameters, decode_image(stored), mask, job.defect),
            }
        )
    return pa.Table.from_pylist(rows, SCHEMA)


def render_cached(
    jobs: Sequence[Job], settings: Settings, cache: Path, processes: int
) -> Iterator[tuple[pa.Table, int]]:
    """Render jobs in chunks of one person or set; finished chunks are kept in `cache` and not rendered again.

    A chunk is written under another name and moved into place, so that a kill leaves only whole chunks. The
    worker processes end with this one, even when it is killed.

    Args:
        jobs: what to render.
        settings: in which size.
        cache: work folder; its subfolder is named by generator version, format and settings.
        processes: worker processes; 1 renders in this one.

    Yields:
        the rows of a chunk and its number; in the order in which they finish.
    """
    size = f"{settings.resolution}px-{settings.samples_per_pixel}spp"
    folder = cache / f"v{GENERATOR_VERSION}-f{FORMAT}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    _sweep_up(folder)
    chunks = chunks_of(jobs)
    work = [(number, chunk, settings, folder) for number, chunk in enumerate(chunks)]
    if processes == 1 or len(work) == 1:
        results: Iterator[int] = map(_render_chunk, work)
        yield from ((_read_chunk(folder, chunks[number]), number) for number in results)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, len(work)), _start_worker, (os.getpid(),)) as pool:
        for number in pool.imap_unordered(_render_chunk, work):
            yield _read_chunk(folder, chunks[number]), number


def chunks_of(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in runs of one person, or of one counterfactual set; a person's others in fours."""
    return [
        group[start : start + length]
        for (_, _, number), run in itertools.groupby(jobs, key=lambda job: (job.identity, job.seed, job.set))
        for group in [list(run)]
        for length in [MOMENTS if number < 0 else len(group)]
        for start in range(0, len(group), length)
    ]


def _start_worker(parent: int) -> None:
    """A worker ends with its parent and uses one core, so that all workers together use all."""
    import drjit
    import mitsuba

    die_with_parent(parent)
    mitsuba.set_variant("scalar_rgb")
    drjit.set_thread_count(1)


def _sweep_up(folder: Path) -> None:
    """Remove what killed processes left half written."""
    for partial in folder.glob("*.part"):
        pid = partial.suffixes[-2].lstrip(".") if len(partial.suffixes) > 1 else ""
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            partial.unlink(missing_ok=True)


def _chunk_path(folder: Path, chunk: Sequence[Job]) -> Path:
    first = chunk[0]
    wanted = "".join(
        f"{job.parameters.model_dump_json()}{job.moment},{job.set},{job.swept},{job.defect}"
        f"{f' v{DEFECTS_VERSION}' if job.defect else ''};"
        for job in chunk
    )
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    return folder / f"{first.variant}-{first.identity:06d}-{first.moment:03d}-{digest[:12]}.parquet"


def _read_chunk(folder: Path, chunk: Sequence[Job]) -> pa.Table:
    return pq.read_table(_chunk_path(folder, chunk)).cast(SCHEMA)


def _is_whole(path: Path) -> bool:
    """Whether a finished chunk is there and readable; a loss of power may have left an empty one."""
    try:
        return bool(pq.read_schema(path).names == SCHEMA.names)
    except (OSError, pa.ArrowInvalid):
        return False


def _render_chunk(work: tuple[int, list[Job], Settings, Path]) -> int:
    number, chunk, settings, folder = work
    path = _chunk_path(folder, chunk)
    if not _is_whole(path):
        partial = path.with_suffix(f".{os.getpid()}.part")
        pq.write_table(render_rows(chunk, settings), partial, compression="none")
        partial.replace(path)
    return number
