"""How many portraits per second do all labeling models and formulas score? Prints tables and one JSON line.

python benchmarks/labeling_throughput.py --threads 2

Models are loaded once. Without trained ones in artifacts/ or data/starters the default networks are built
with random weights: they are as fast. Times are wall-clock, the best of some rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ohlora.attributes import CONDITION_NAMES
from ohlora.config import Config, load_config
from ohlora.corpus.portraits import decode_image, encode_image
from ohlora.label_cli import LabelError, model_folders
from ohlora.labeling import Labeler, filters, measure, parser, properties
from ohlora.labeling.classifier import CHANNELS, Classifier
from ohlora.labeling.property_data import DEFAULT_BOXES
from ohlora.labeling.property_network import PropertyNetwork
from ohlora.labeling.reliability import Scaling

ROOT = Path(__file__).parents[1]
SIZES = (1, 2, 4, 8, 16, 32)


def random_models(config: Config, folder: Path) -> dict[str, Path]:
    """The default networks with random weights, as model folders."""
    cpu = torch.device("cpu")
    settings = parser.settings_of(config.labeling)
    parser.save(parser.build_network(settings), settings, folder / "parser", {})
    networks = {task: [Classifier(CHANNELS[task]) for _ in range(config.filters.folds)] for task in CHANNELS}
    scaling = {task: Scaling() for task in CHANNELS}
    filters.save(filters.Filters(networks, scaling, config.filters.resolution, cpu), folder / "filters", {})
    scales = dict.fromkeys(CONDITION_NAMES, (0.5, 0.2))
    network = PropertyNetwork(config.properties.resolution, DEFAULT_BOXES, scales)
    properties.save(properties.Properties(network, cpu), folder / "properties", {})
    return {name: folder / name for name in ("parser", "filters", "properties")}


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some rounds, after one that warms up."""
    work()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--size", type=int, default=256)
    arguments.add_argument("--random", action="store_true", help="take random weights")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    config = load_config(ROOT)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (max(SIZES), 16, 16, 3), dtype=np.uint8)
    images = blocks.repeat(options.size // 16, 1).repeat(options.size // 16, 2)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folders = model_folders(config, ROOT)
            weights = "trained"
        except LabelError:
            options.random = True
        if options.random:
            folders, weights = random_models(config, Path(temporary)), "random"
        labeler = Labeler.load(folders, config.runtime.device)
    encoded = [encode_image(image) for image in images]
    masks = labeler.parser.masks(images)
    parts: dict[str, Callable[[], object]] = {
        "decode WebP": lambda: [decode_image(data) for data in encoded],
        "parser": lambda: labeler.parser.masks(images),
        "filters": lambda: labeler.filters.probabilities(images),
        "properties": lambda: labeler.properties.values(images),
        "formulas": lambda: measure(masks, images),
    }

    def everything(count: int) -> None:
        measure(labeler.read(images[:count]).masks, images[:count])

    print(f"{options.size} x {options.size}, {options.threads} threads, {weights} weights")
    print(f"{'part':<14} {'ms per image':>12}")
    cost = {name: 1000 * best(part, options.rounds) / len(images) for name, part in parts.items()}
    for name, value in cost.items():
        print(f"{name:<14} {value:>12.2f}")
    print(f"{'batch':>5} {'ms per image':>12} {'images/s':>9}")
    by_batch = {}
    for count in SIZES:
        by_batch[count] = 1000 * best(lambda count=count: everything(count), options.rounds) / count
        print(f"{count:>5} {by_batch[count]:>12.2f} {1000 / by_batch[count]:>9.1f}")
    largest = by_batch[max(SIZES)]
    result = {
        "benchmark": "labeling_throughput",
        "threads": options.threads,
        "weights": weights,
        "images_per_second": round(1000 / largest, 1),
        "images_per_second_with_decoding": round(1000 / (largest + cost["decode WebP"]), 1),
        "ms_per_image": {name: round(value, 2) for name, value in cost.items()},
        "ms_per_image_by_batch": {str(count): round(value, 2) for count, value in by_batch.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
