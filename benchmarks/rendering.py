"""What does a portrait cost, step by step? Prints a table and one JSON line.

python benchmarks/rendering.py --people 8

CPU seconds of one process, all its threads together, of a picture with its mask; a person's hair is grown
once for all of her portraits.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import mitsuba
import numpy as np

from ohlora.corpus import meshes, renderer
from ohlora.corpus.parameters import sample_look, sample_moment
from ohlora.corpus.rendering import MOMENTS
from ohlora.corpus.template import load_template

STEPS = (
    (meshes, "_person", "grow hair, paint skin (once a person)"),
    (renderer, "build_scene", "pose and dress the meshes"),
    (renderer, "first_hit", "mask, colours and normals (Embree)"),
    (renderer, "_upload", "hand meshes to Mitsuba"),
    (mitsuba, "load_dict", "build Mitsuba's ray tracer"),
    (mitsuba, "render", "trace paths"),
    (renderer, "_denoised", "denoise"),
    (renderer, "_subsurface", "light under the skin"),
    (renderer, "paint_background", "paint the background"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=8, help=f"each with {MOMENTS} portraits")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--samples-per-pixel", type=int, default=4)
    arguments = parser.parse_args()
    mitsuba.set_variant("scalar_rgb")
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    load_template()
    spent: dict[str, float] = defaultdict(float)
    running: list[str] = []

    def timed(function: Callable[..., Any], title: str) -> Callable[..., Any]:
        def wrapper(*given: Any, **named: Any) -> Any:
            start = time.process_time()
            running.append(title)
            try:
                return function(*given, **named)
            finally:
                running.pop()
                seconds = time.process_time() - start
                spent[title] += seconds
                if running:  # a step inside another is not counted twice
                    spent[running[-1]] -= seconds

        return wrapper

    for module, name, title in STEPS:
        setattr(module, name, timed(getattr(module, name), title))

    jobs = []
    for seed in range(arguments.seed, arguments.seed + arguments.people):
        look = sample_look(np.random.default_rng([seed, 0]))
        jobs += [sample_moment(look, np.random.default_rng([seed, 1 + k])) for k in range(MOMENTS)]
    start, clock = time.process_time(), time.perf_counter()
    for parameters in jobs:
        renderer.render_portrait(parameters, arguments.resolution, arguments.samples_per_pixel)
    total, wall = time.process_time() - start, time.perf_counter() - clock
    spent["the rest"] = total - sum(spent.values())
    for title, seconds in spent.items():
        print(f"{title:<42}{seconds / len(jobs):8.3f} s")
    print(f"{'a portrait, CPU seconds':<42}{total / len(jobs):8.3f} s")
    print(f"{'a portrait, wall seconds':<42}{wall / len(jobs):8.3f} s")
    row = {title: round(seconds / len(jobs), 4) for title, seconds in spent.items()}
    row |= {
        "portraits": len(jobs),
        "cpu_s": round(total / len(jobs), 4),
        "wall_s": round(wall / len(jobs), 4),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
