"""A parser small enough to train in a test."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ohlora.config import Config, load_config
from ohlora.stage import Report

ROOT = Path(__file__).parents[2]


class Trained(NamedTuple):
    folder: Path
    report: Report
    config: Config


def tiny_config(*overrides: str) -> Config:
    """The smallest parser that still learns drawn faces, in seconds."""
    return load_config(
        ROOT,
        "smoke",
        [
            "labeling.encoder=tu-resnet10t",
            "labeling.encoder_depth=3",
            "labeling.decoder_channels=[24, 16]",
            "labeling.batch_size=4",
            "labeling.steps=120",
            "labeling.learning_rate=0.01",
            "runtime.device=cpu",
            *overrides,
        ],
    )
