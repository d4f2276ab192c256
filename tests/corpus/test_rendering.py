"""Many portraits: resumable after a real kill, the same bytes from the same seed, truth beside each."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ohlora.corpus import PortraitParameters
from ohlora.corpus.defects import Defect
from ohlora.corpus.parameters import sample_parameters
from ohlora.corpus.portraits import DEFECT_NAMES, TRUTH_NAMES, decode_image
from ohlora.corpus.rendering import (
    Job,
    Settings,
    chunks_of,
    ground_truth,
    person_jobs,
    person_set_jobs,
    persona_jobs,
    render_cached,
    rendered_jobs,
    traits,
)

SIZE = Settings(resolution=32, samples_per_pixel=1, test_fraction=0.2)
ATTRIBUTES = ["eyes", "mouth", "pose", "hair_length", "background_mean"]
SCRIPT = f"""
import sys
from pathlib import Path
from ohlora.corpus.rendering import Settings, person_set_jobs, render_cached

if __name__ == "__main__":
    jobs = person_set_jobs(5, 100_005, "rendered", {ATTRIBUTES}, 2)
    for table, number in render_cached(jobs, Settings(32, 1, 0.2), Path(sys.argv[1]), processes=2):
        print(number, flush=True)
"""


def wanted() -> list[Job]:
    return person_set_jobs(5, 100_005, "rendered", ATTRIBUTES, 2)


def test_a_killed_rendering_leaves_no_worker_and_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    script, cache = tmp_path / "render.py", tmp_path / "cache"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, script, cache], stdout=subprocess.DEVNULL)
    while not list(cache.rglob("*.parquet")):  # until the first chunk is there, others are under way
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    chunks = {path: path.stat().st_mtime_ns for path in cache.rglob("*.parquet")}
    assert 1 <= len(chunks) < len(ATTRIBUTES)
    resumed = {number: table for table, number in render_cached(wanted(), SIZE, cache, processes=1)}
    assert sorted(resumed) == list(range(len(ATTRIBUTES)))
    assert all(path.stat().st_mtime_ns == before for path, before in chunks.items())  # not rendered again
    assert not list(cache.rglob("*.part"))
    finished = next(iter(chunks))  # came from a worker process; now from this one, in an empty cache
    number = next(n for n, t in resumed.items() if t["swept"][0].as_py() in swept_of(finished, resumed))
    again = next(render_cached(chunks_of(wanted())[number], SIZE, tmp_path / "other", processes=1))[0]
    assert again.to_pandas().equals(resumed[number].to_pandas())
    assert [path.read_bytes() for path in (tmp_path / "other").rglob("*.parquet")] == [finished.read_bytes()]


def swept_of(path: Path, tables: dict) -> set[str]:
    """The attribute of a chunk file, by the moment in its name."""
    moment = int(path.stem.split("-")[2])
    return {t["swept"][0].as_py() for t in tables.values() if t["moment"][0].as_py() == moment}


def test_half_written_chunks_are_swept_up_and_empty_ones_rendered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ohlora.corpus import rendering

    monkeypatch.setattr(rendering, "render_portrait", flat_portrait)
    jobs = person_jobs(5, 7, "rendered", moments=2)
    first = next(render_cached(jobs, SIZE, tmp_path, processes=1))[0]
    chunk = next(tmp_path.rglob("*.parquet"))
    chunk.write_bytes(b"")
    mine, dead = chunk.with_suffix(f".{os.getpid()}.part"), chunk.with_suffix(".999999999.part")
    mine.touch()
    dead.touch()
    again = next(render_cached(jobs, SIZE, tmp_path, processes=1))[0]
    assert again.to_pandas().equals(first.to_pandas())  # where unknown is equal to unknown
    assert not dead.exists()
    mine.unlink(missing_ok=True)


def flat_portrait(parameters: PortraitParameters, resolution: int, _: int) -> tuple[np.ndarray, np.ndarray]:
    value = int(60 + 100 * parameters.eyes)
    return np.full((resolution, resolution, 3), value, np.uint8), np.zeros((resolution,) * 2, np.uint8)


def test_seeds_decide_everything_and_defects_only_the_defects() -> None:
    assert rendered_jobs(3, 9, 0.5) == rendered_jobs(3, 9, 0.5)
    assert rendered_jobs(3, 9) != rendered_jobs(4, 9)
    clean, degraded = rendered_jobs(3, 40), rendered_jobs(3, 40, 0.5)
    assert [job.parameters for job in clean] == [job.parameters for job in degraded]
    assert not any(job.defect for job in clean)
    assert 8 < sum(job.defect is not None for job in degraded) < 32
    assert rendered_jobs(3, 40, 0.5)[:8] == rendered_jobs(3, 8, 0.5)


def test_sets_come_besides_the_portraits_of_the_first_people() -> None:
    jobs = rendered_jobs(3, 12, 1.0, sets=2, attributes=["eyes"], steps=3)
    assert len(jobs) == 12 + 2 * 3
    assert all(job.defect is None for job in jobs[12:])
    assert {job.identity for job in jobs[12:]} == {100_003, 100_004}
    looks = {job.identity: job.parameters.look for job in jobs[:12]}
    assert all(job.parameters.look == looks[job.identity] for job in jobs[12:])


def test_chunks_are_a_person_or_a_set() -> None:
    jobs = rendered_jobs(3, 10, 0.0, sets=1, attributes=["eyes", "pose"], steps=6)
    chunks = chunks_of(jobs)
    assert [len(chunk) for chunk in chunks] == [4, 4, 2, 6, 6]
    assert [job for chunk in chunks for job in chunk] == jobs
    assert all(len({(job.identity, job.set) for job in chunk}) == 1 for chunk in chunks)


def test_more_portraits_of_her_are_others_than_the_first() -> None:
    her = sample_parameters(1)
    assert persona_jobs(her, 3, first=2)[0] == persona_jobs(her, 3)[2]


def test_the_truth_names_a_defect_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ohlora.corpus import rendering

    monkeypatch.setattr(rendering, "render_portrait", flat_portrait)
    defect = Defect("exposure", 0.8, 1)
    base = person_jobs(5, 7, "rendered", moments=1)[0]
    jobs = [base, Job(7, 5, 1, "rendered", base.parameters, set=9, swept="eyes", defect=defect)]
    table = rendering.render_rows(jobs, SIZE)
    clean, bright = table.to_pylist()
    assert (clean["quality"], bright["quality"]) == (1, 0)
    assert [clean[name] for name in DEFECT_NAMES] == [0] * 4
    assert bright["exposure"] == pytest.approx(0.8)
    assert decode_image(bright["image"]).mean() > decode_image(clean["image"]).mean() + 30
    assert bright["background_mean"] > clean["background_mean"] + 30
    assert (bright["set"], bright["swept"], clean["set"], clean["swept"]) == (9, "eyes", -1, "")
    assert PortraitParameters.model_validate(json.loads(clean["parameters"])) == base.parameters
    assert set(ground_truth(base.parameters, *flat_portrait(base.parameters, 16, 1))) == set(TRUTH_NAMES)


class WithTraits:
    age, glasses, earrings = 41, None, object()


def test_traits_are_unknown_until_the_renderer_has_them() -> None:
    assert traits(WithTraits()) == {"age": 41, "glasses": 0, "earrings": 1}  # type: ignore[arg-type]
    assert all(math.isnan(value) for value in traits(object()).values())  # type: ignore[arg-type]
