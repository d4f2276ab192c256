"""Scores of a memory encoder on pairs whose keys and messages no training saw."""

from __future__ import annotations

from pathlib import Path

from ohlora.artifacts import ArtifactError
from ohlora.config import Config
from ohlora.memory.adapter import load_adapted
from ohlora.memory.metrics import Similarities, evaluate
from ohlora.memory.pairs import load_pairs, of_split


def score(model_folder: Path, inputs: dict[str, Path], config: Config) -> dict[str, float]:
    """Judge an adapter on the test split of `inputs["pairs"]`, on top of `inputs["base_encoder"]`.

    Returns:
        `pearson`, `spearman`, `mse`, `mae` of cosines against labelled scores; `precision`, `recall` and `f1`
        at the threshold that serves (`memory.threshold`, else the calibrated one); `top1_accuracy`.

    Raises:
        ArtifactError: a folder is missing or corrupt, or the adapter belongs to another base.
        PairError: the pairs do not hold.
    """
    encoder = load_adapted(inputs["base_encoder"], model_folder, config.runtime.device)
    threshold = encoder.threshold if config.memory.threshold is None else config.memory.threshold
    if threshold is None:
        raise ArtifactError(f"{model_folder} was saved without a threshold; run the stage memory again")
    pairs = load_pairs(inputs["pairs"] / Path(config.memory.pairs).name)
    return evaluate(Similarities.of(encoder, of_split(pairs, "test")), threshold)
