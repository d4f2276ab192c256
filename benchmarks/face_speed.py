"""How fast is a frame of our face beside the full-width StyleGAN's, and how fast do both train?

python benchmarks/face_speed.py --threads 2

Prints tables and one JSON line. Frames are drawn at 256 x 256, one at a time, in turns, so that whatever
else the machine does meets both alike. Training runs whole steps on the committed sample; StyleGAN's weights
are random, which costs the same time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ohlora.attributes import Expression
from ohlora.config import Config, load_config
from ohlora.corpus.portraits import Portraits
from ohlora.gan.data import TrainingSet, conditions_of
from ohlora.gan.face import Face
from ohlora.gan.stylegan import StyleGANConfig, StyleGenerator
from ohlora.gan.training import Device, Distillation
from ohlora.gan.variants.base import adversarial
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.method import Bench, new_stylegan

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "data/starters/face"


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def frames(model: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a frame, drawn in turns: name -> median and 95th percentile."""
    face = Face.load(model)
    wide = StyleGenerator(StyleGANConfig()).eval().requires_grad_(False)
    z = torch.randn(1, wide.config.z_dim, generator=torch.Generator().manual_seed(0))
    yaws = [30 * step / rounds - 15 for step in range(rounds)]
    times: dict[str, list[float]] = {"ours": [], "StyleGAN": []}
    with torch.inference_mode():
        face.render(Expression(eyes=0.7, mouth=0.2, pose=0.0))
        wide(z)
        for yaw in yaws:
            expression = Expression(eyes=0.7, mouth=0.2, pose=yaw)
            times["ours"].append(seconds(lambda expression=expression: face.render(expression)))
            times["StyleGAN"].append(seconds(lambda: wide(z)))
    return {
        name: {
            "median_ms": round(1000 * statistics.median(values), 1),
            "p95_ms": round(1000 * statistics.quantiles(values, n=20)[-1], 1),
        }
        for name, values in times.items()
    }


def training(config: Config, steps: int) -> dict[str, float]:
    """Portraits a second of whole training steps at full resolution: name -> rate."""
    portraits = Portraits.load(ROOT / config.corpus.sample)
    conditions = conditions_of(portraits, None, "truth")
    few = config.variants.model_copy(
        update={"base": config.variants.base.model_copy(update={"batch_size": 4, "growth": 0.0})}
    )
    distillation = Distillation(
        config.face.model_copy(update={"growth": [0.0, 0.0]}),
        TrainingSet(portraits, conditions, config.face.persona_share, None, config.face.repainted),
        Device.choose(config),
    )
    data = PortraitSet(portraits, conditions, portraits.truth["quality"] > 0.5, 256)
    wide = adversarial(few, new_stylegan(StyleGANConfig(), 0), data, Bench(torch.device("cpu")))
    wide.step_number = 1  # not a step with the R1 penalty, which comes once in `r1_every`
    trained = {
        "distillation of ours": (distillation.step, config.face.batch_size),
        "adversarial training of StyleGAN": (wide.step, few.base.batch_size),
    }
    rates = {}
    for name, (step, batch) in trained.items():
        step()
        count = steps if batch == config.face.batch_size else max(1, steps // 5)
        rates[name] = round(batch * count / sum(seconds(step) for _ in range(count)), 2)
    return rates


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=60, help="frames of each generator")
    arguments.add_argument(
        "--steps", type=int, default=10, help="of distillation; a fifth of it for StyleGAN"
    )
    arguments.add_argument("--model", type=Path, default=STARTER, help="folder of kind face")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    drawn = frames(options.model, options.rounds)
    print(f"256 x 256, {options.threads} threads\n{'a frame':<34} {'median ms':>9} {'p95 ms':>9}")
    for name, row in drawn.items():
        print(f"{name:<34} {row['median_ms']:>9.1f} {row['p95_ms']:>9.1f}")
    rates = training(load_config(ROOT), options.steps)
    print(f"{'training':<34} {'images/s':>9}")
    for name, rate in rates.items():
        print(f"{name:<34} {rate:>9.2f}")
    result = {"benchmark": "face_speed", "threads": options.threads, "frames": drawn, "training": rates}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
