from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.memory.encoder import Kind
from ohlora.memory.metrics import (
    Similarities,
    agreement,
    best_threshold,
    detection,
    evaluate,
    top1_accuracy,
)
from ohlora.memory.pairs import Pair


class Table:
    """Looks embeddings up."""

    digest = "table"

    def __init__(self, vectors: dict[str, tuple[float, float]]) -> None:
        self.vectors = vectors

    def embed(self, texts: Sequence[str], kind: Kind = "query") -> np.ndarray:
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


PAIRS = [
    Pair(memory="이름: 민수", message="내 이름?", score=1.0, split="test"),
    Pair(memory="직업: 화가", message="내 이름?", score=0.0, split="test"),
    Pair(memory="직업: 화가", message="일 힘들다", score=0.8, split="test"),
    Pair(memory="이름: 민수", message="일 힘들다", score=0.0, split="test"),
]
VECTORS = {
    "이름: 민수": (1.0, 0.0),
    "직업: 화가": (0.0, 1.0),
    "내 이름?": (0.8, 0.6),
    "일 힘들다": (0.8, 0.6),
}


def test_cosines_follow_the_pairs() -> None:
    assert Similarities.of(Table(VECTORS), PAIRS).of_pairs == pytest.approx([0.8, 0.6, 0.6, 0.8])


def test_top1_counts_the_key_of_the_nearest_memory() -> None:
    assert top1_accuracy(Similarities.of(Table(VECTORS), PAIRS)) == 0.5
    assert top1_accuracy(Similarities.of(Table({**VECTORS, "일 힘들다": (0.6, 0.8)}), PAIRS)) == 1.0
    assert top1_accuracy(Similarities.of(Table(VECTORS), [p for p in PAIRS if p.score == 0])) == 0.0


def test_agreement_by_hand() -> None:
    figures = agreement(np.array([0.1, 0.5, 0.9], np.float32), np.array([0.0, 0.5, 1.0], np.float32))
    assert figures["pearson"] == pytest.approx(1.0)
    assert figures["spearman"] == pytest.approx(1.0)
    assert figures["mse"] == pytest.approx(0.02 / 3, rel=1e-4)
    assert figures["mae"] == pytest.approx(0.2 / 3, rel=1e-4)


def test_a_constant_encoder_has_no_correlation() -> None:
    assert agreement(np.full(3, 0.5, np.float32), np.array([0, 0, 1], np.float32))["pearson"] == 0.0


def test_detection_by_hand() -> None:
    cosines = np.array([0.9, 0.6, 0.4, 0.1], np.float32)
    figures = detection(cosines, np.array([True, False, True, False]), threshold=0.5)
    assert figures == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5})
    assert detection(cosines, np.array([True] * 4), threshold=2.0) == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
    }


def test_threshold_parts_the_classes_in_the_middle_of_the_gap() -> None:
    cosines = np.array([0.9, 0.8, 0.2, 0.1], np.float32)
    assert best_threshold(cosines, np.array([True, True, False, False])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no positive"):
        best_threshold(cosines, np.zeros(4, dtype=bool))


@given(
    st.lists(st.tuples(st.integers(-10, 10), st.booleans()), min_size=1, max_size=30).filter(
        lambda rows: any(hit for _, hit in rows)
    )
)
def test_no_threshold_beats_the_best_one(rows: list[tuple[int, bool]]) -> None:
    cosines = np.array([c / 10 for c, _ in rows], np.float32)
    positive = np.array([hit for _, hit in rows])
    best = detection(cosines, positive, best_threshold(cosines, positive))["f1"]
    others = [detection(cosines, positive, t)["f1"] for t in np.linspace(-1.05, 1.05, 43)]
    assert best >= max(others) - 1e-9


def test_evaluate_has_all_figures() -> None:
    figures = evaluate(Similarities.of(Table(VECTORS), PAIRS), threshold=0.7)
    assert figures["precision"] == 0.5
    assert figures["top1_accuracy"] == 0.5
    assert figures["pearson"] == pytest.approx(0.1104, abs=1e-3)
