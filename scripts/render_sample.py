"""Render the committed sample `data/portraits`: Oh-LoRA herself and other people, all seeds written here.

    python scripts/render_sample.py --processes 2

Finished chunks are kept in `.ohlora/render-cache`, so the script continues where it was stopped; the same
seeds give the same pixels. `--publish-first N` writes a preliminary sample once N portraits exist.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from ohlora.artifacts import sha256_file
from ohlora.corpus.geometry import PACKED_HEAD
from ohlora.corpus.parameters import persona_parameters
from ohlora.corpus.portraits import PERSONA_IDENTITY, write
from ohlora.corpus.renderer import GENERATOR_VERSION
from ohlora.corpus.rendering import (
    MOMENTS,
    Job,
    Settings,
    person_jobs,
    person_set_jobs,
    persona_jobs,
    render_cached,
    set_jobs,
)

LOOK = Path("data/persona/look.yaml")
PERSONA_PORTRAITS = 140
PEOPLE = 200
DEFECTS = 0.08  # share of other people's portraits
SWEPT_PEOPLE = 6  # who get counterfactual sets, as she does
SWEPT = ("eyes", "mouth", "pose")
SWEEP_STEPS = 5
FIRST_SEED = 90_001  # people of the stage start at corpus.seed, so the two do not meet
SETTINGS = Settings(resolution=256, samples_per_pixel=4, test_fraction=0.3)


def sample_jobs() -> list[Job]:
    """All portraits; hers are spread among the others, so that a part of them is a sample too."""
    persona = persona_parameters(LOOK)
    hers = persona_jobs(persona, PERSONA_PORTRAITS)
    chunks = -(-PERSONA_PORTRAITS // MOMENTS)
    jobs: list[Job] = []
    done = 0
    for number in range(PEOPLE):
        jobs += person_jobs(FIRST_SEED + number, 1 + number, "sample", defects=DEFECTS)
        due = (number + 1) * chunks // PEOPLE
        jobs += hers[done * MOMENTS : due * MOMENTS]
        done = due
    jobs += set_jobs(persona, PERSONA_IDENTITY, persona.look.seed, "persona", SWEPT, SWEEP_STEPS)
    for number in range(SWEPT_PEOPLE):
        jobs += person_set_jobs(FIRST_SEED + number, 1 + number, "sample", SWEPT, SWEEP_STEPS)
    return jobs


def publish(folder: Path, tables: list[pa.Table], complete: bool) -> None:
    table = pa.concat_tables(tables).sort_by([("identity", "ascending"), ("moment", "ascending")])
    provenance = {
        "generator": "ohlora.corpus.renderer",
        "generator_version": GENERATOR_VERSION,
        "complete": complete,
        "resolution": SETTINGS.resolution,
        "samples_per_pixel": SETTINGS.samples_per_pixel,
        "persona_portraits": PERSONA_PORTRAITS,
        "people": PEOPLE,
        "defects": DEFECTS,
        "swept_people": SWEPT_PEOPLE,
        "swept": list(SWEPT),
        "first_seed": FIRST_SEED,
        "geometry_sha256": sha256_file(PACKED_HEAD),
        "look_sha256": sha256_file(LOOK),
        "licence": "Apache-2.0; drawn from geometry under CC0-1.0",
    }
    write(folder, table, provenance)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("data/portraits"))
    parser.add_argument("--cache", type=Path, default=Path(".ohlora/render-cache"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--publish-first", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    jobs = sample_jobs()
    tables: list[pa.Table] = []
    count, published = 0, False
    with tqdm(total=len(jobs), desc="portraits", mininterval=5) as bar:
        for table, _ in render_cached(jobs, SETTINGS, arguments.cache, arguments.processes):
            tables.append(table)
            count += table.num_rows
            bar.update(table.num_rows)
            if arguments.publish_first and not published and count >= arguments.publish_first:
                publish(arguments.output, tables, complete=False)
                published = True
    publish(arguments.output, tables, complete=True)


if __name__ == "__main__":
    main()
