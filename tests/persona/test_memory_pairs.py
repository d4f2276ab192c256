"""The committed pairs of the memory encoder and the script that crosses them."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ohlora.persona import Card

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_memory_pairs", ROOT / "scripts/make_memory_pairs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source() -> dict[str, Any]:
    source = yaml.safe_load((ROOT / "data/memory/source.yaml").read_text(encoding="utf-8"))
    assert isinstance(source, dict)
    return source


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    lines = (ROOT / "data/memory/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_committed_pairs_are_what_the_source_gives(script: ModuleType, source: dict[str, Any]) -> None:
    committed = (ROOT / "data/memory/pairs.jsonl").read_text(encoding="utf-8")
    assert script.render(script.make_pairs(source)) == committed


def test_size(pairs: list[dict[str, Any]]) -> None:
    assert len(pairs) >= 1400
    assert len({p["memory"] for p in pairs}) >= 70
    assert {p["score"] for p in pairs} == {0.0, 0.5, 1.0}


def test_keys_are_of_the_card_and_never_leak(card: Card, pairs: list[dict[str, Any]]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    messages: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        splits[pair["memory"].partition(":")[0]].add(pair["split"])
        messages[pair["message"]].add(pair["split"])
    assert set(splits) <= set(card.memory_keys)
    assert all(len(s) == 1 for s in splits.values())
    assert all(len(s) == 1 for s in messages.values())


def test_every_memory_has_positives_and_negatives(pairs: list[dict[str, Any]]) -> None:
    positive = Counter(p["memory"] for p in pairs if p["score"] == 1.0)
    negative = Counter(p["memory"] for p in pairs if p["score"] == 0.0)
    assert all(positive[p["memory"]] >= 5 and negative[p["memory"]] >= 5 for p in pairs)


def test_no_pair_twice(pairs: list[dict[str, Any]]) -> None:
    assert len({(p["memory"], p["message"]) for p in pairs}) == len(pairs)


def test_related_key_of_another_split_is_refused(script: ModuleType, source: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(source))
    broken["keys"]["이름"]["related"] = ["가족"]
    with pytest.raises(script.SourceError, match="이름: related keys of another split or none: 가족"):
        script.make_pairs(broken)


def test_memory_with_too_few_messages_is_refused(script: ModuleType, source: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(source))
    broken["keys"]["이름"]["messages"] = []
    with pytest.raises(script.SourceError, match="이름: 민수: 2 messages"):
        script.make_pairs(broken)
