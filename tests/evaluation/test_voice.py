from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ohlora.config import load_config
from ohlora.evaluation.voice import is_turn, loops, reply_metrics, score
from ohlora.llm import bases, sft
from ohlora.persona import dialogues
from ohlora.persona.card import Card, load_card
from ohlora.persona.expressions import fallback_expression
from ohlora.stage import Journal

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(ROOT / "data/persona/ohlora.yaml")


def test_figures_of_good_replies(card: Card) -> None:
    label = next(iter(card.expressions.values())).label
    figures = reply_metrics([f" 안녕! ({label} 654)", f" 잘 지냈어? [이름: 민수] ({label} 604)"], card)
    assert figures == {
        "empty_rate": 0.0,
        "format_rate": 1.0,
        "repetition_rate": 0.0,
        "hangul_rate": 1.0,
        "reply_characters": pytest.approx((len("안녕!") + len("잘 지냈어?")) / 2),
    }


def test_figures_of_bad_replies(card: Card) -> None:
    figures = reply_metrics(["", " (없는표정) hello", "난 네가 좋아 난 네가 좋아", "…"], card)
    assert figures["empty_rate"] == 0.5
    assert figures["format_rate"] == 0.0
    assert figures["repetition_rate"] == 0.25
    assert 0 < figures["hangul_rate"] < 1


@pytest.mark.parametrize(
    ("text", "loop"), [("하하하", False), ("정말정말정말", True), ("가 나 다 가 나", True)]
)
def test_loops(text: str, loop: bool) -> None:
    assert loops(text) is loop


def test_expression_must_come_last(card: Card) -> None:
    label = card.expressions[fallback_expression("안녕", card)].label
    assert is_turn(f" 안녕 ({label} 654)", card)
    assert not is_turn(f" ({label} 654) 안녕", card)


def test_scores_a_trained_adapter_on_held_out_rows(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = load_config(
        ROOT,
        "smoke",
        [
            "voice.scratch={hidden_size: 32, layers: 2, heads: 2, context: 256, seed: 0}",
            "generation.max_new_tokens=8",
            f"persona.card={ROOT / 'data/persona/ohlora.yaml'}",
            f"persona.dialogues={ROOT / 'data/persona/dialogues.jsonl'}",
        ],
    )
    base, rows, voice, journal = (
        tmp_path / "base",
        tmp_path / "rows",
        tmp_path / "voice",
        Journal(tmp_path / "j"),
    )
    bases.run(config, {}, {"output": base}, journal)
    dialogues.run(config, {"persona": ROOT / "data/persona"}, {"output": rows}, journal)
    report = sft.train(config, {"base": base, "dialogues": rows}, {"output": voice}, journal)
    inputs = {"dialogues": rows, "base_llm": base, "persona": ROOT / "data/persona"}
    figures = score(voice, inputs, config)
    assert figures["bits_per_character"] == pytest.approx(report.metrics["bits_per_character"], rel=1e-3)
    assert figures == score(voice, inputs, config)  # seeded
    shutil.rmtree(rows)
