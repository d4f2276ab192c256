"""The committed card and rows: small, and what the product is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ohlora.persona import Card, DialogueRow, load_card, load_dialogues

ROOT = Path(__file__).resolve().parents[2]

# A busy machine is no failure: no test of this project asserts wall-clock time.
settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session")
def card_path() -> Path:
    return ROOT / "data/persona/ohlora.yaml"


@pytest.fixture(scope="session")
def card(card_path: Path) -> Card:
    return load_card(card_path)


@pytest.fixture(scope="session")
def rows() -> list[DialogueRow]:
    return load_dialogues(ROOT / "data/persona/dialogues.jsonl")
