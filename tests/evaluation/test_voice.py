from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path

import pytest
import torch

from ohlora.attributes import Expression
from ohlora.config import load_config
from ohlora.evaluation.voice import examine, score, trained_replies
from ohlora.evaluation.voice_judges import letters
from ohlora.evaluation.voice_probes import FactProbe, Probe, Probes, WritingProbe
from ohlora.evaluation.voice_report import FIGURES, JSON, MARKDOWN, PLOT, REPLIES, write
from ohlora.evaluation.voice_test import (
    Ask,
    HeldOut,
    Judged,
    Plan,
    Said,
    asks,
    figures_of_expressions,
    figures_of_replies,
    judge,
    spread,
    table,
)
from ohlora.llm import bases, sft
from ohlora.llm.engine import Voice
from ohlora.persona import dialogues
from ohlora.persona.card import Card, load_card
from ohlora.stage import Journal

ROOT = Path(__file__).parents[2]
PROBES = ROOT / "data/probes"
DAY = date(2025, 12, 1)


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(ROOT / "data/persona/ohlora.yaml")


@pytest.fixture(scope="module")
def probes() -> Probes:
    return Probes.load(PROBES)


def judged(card: Card, probes: Probes, probe: Probe, text: str, kind: str, reason: str = "end") -> Judged:
    return judge(Ask(kind, probe, "?"), Said(text, reason, 5), card, probes, DAY, {"기분"})  # type: ignore[arg-type]


MBTI = FactProbe(
    id="f", user="INFP지?", category="mbti", kind="contradiction", expect_any=["entj"], forbid=["infp야"]
)
WRITING = WritingProbe(id="m", user="나 준서야", memories=[{"keys": ["이름"], "values": ["준서"]}])  # type: ignore[list-item]
QUIET = WritingProbe(id="q", user="안녕", memories=[])


def test_replies_are_judged_by_their_probe(card: Card, probes: Probes) -> None:
    good = judged(card, probes, MBTI, " 땡! 나 ENTJ야. (뿌듯 623)", "facts")
    assert (good.right, good.parses, good.reply) == (True, True, "땡! 나 ENTJ야.")
    bad = judged(card, probes, MBTI, " 응, INFP야 (기쁨 654)", "facts")
    assert (bad.right, bad.parses) == (False, True)
    loose = judged(card, probes, MBTI, "(기쁨) 나 ENTJ야", "facts")
    assert (loose.right, loose.parses) == (True, False)
    silent = judged(card, probes, MBTI, " …", "facts")
    assert (silent.right, silent.parses, silent.turn) == (False, False, None)


def test_figures_count_what_was_judged(card: Card, probes: Probes) -> None:
    rows = [
        judged(card, probes, MBTI, " 땡! 나 ENTJ야. (뿌듯 623)", "facts"),
        judged(card, probes, MBTI, " 응, INFP야 (기쁨 654)", "facts"),
        judged(card, probes, WRITING, " 준서구나! [이름: 준서] (기쁨 654)", "memory_writing"),
        judged(card, probes, QUIET, " 반가워요. [기분: 좋음] (기쁨 654)", "memory_writing"),
        judged(card, probes, Probe(id="v", user="뭐 해"), " 벌써 산책을 다녀왔지 (기쁨 654)", "variety"),
        judged(card, probes, Probe(id="v", user="뭐 해"), " 벌써 산책을 다녀왔지! (기쁨 654)", "variety"),
        judged(card, probes, Probe(id="v", user="뭐 해"), "", "variety", "budget"),
    ]
    figures = figures_of_replies(rows, card, frozenset({letters("벌써 산책을 다녀왔지")}))
    value = {name: figure.value for name, figure in figures.items()}
    assert value["facts_right"] == 0.5
    assert value["facts_right_contradiction"] == 0.5
    assert value["facts_right_of_mbti"] == 0.5
    assert math.isnan(value["facts_right_trap"])
    assert value["parse_rate"] == pytest.approx(6 / 7)
    assert value["empty_rate"] == value["truncated_rate"] == pytest.approx(1 / 7)
    assert value["register_rate"] == pytest.approx(5 / 6)
    assert value["memory_precision"] == 0.5
    assert value["memory_recall"] == 1.0
    assert value["memory_f1"] == pytest.approx(2 / 3)
    assert value["memory_quiet"] == 0.0
    assert value["distinct_rate"] == pytest.approx(2 / 3)
    assert value["variety_copy_rate"] == pytest.approx(2 / 3)
    assert value["copy_rate"] == pytest.approx(2 / 7)
    assert figures["facts_right"].low < 0.5 < figures["facts_right"].high


def test_what_nobody_said_is_not_kept(card: Card, probes: Probes) -> None:
    row = judged(card, probes, WRITING, " 반가워! [이름: 서윤] [기분: 좋음] (기쁨 654)", "memory_writing")
    assert row.written == ("기분: 좋음",)
    assert row.matches == 0


def test_figures_of_expressions() -> None:
    def row(name: str, pose: float, seen: str, seen_pose: float) -> HeldOut:
        a = Expression(eyes=pose / 40 + 0.5, mouth=0.5, pose=pose)
        b = Expression(eyes=0.5, mouth=0.5, pose=seen_pose)
        return HeldOut("?", "!", name, a, seen, b, True)

    rows = [row("joy", -8, "joy", -4), row("sad", 8, "sad", 4), row("sad", 16, "joy", 8)]
    value = {name: f.value for name, f in figures_of_expressions(rows).items()}
    assert value["expression_accuracy"] == pytest.approx(2 / 3)
    assert value["expression_macro_f1"] == pytest.approx(2 / 3)
    assert value["pose_correlation"] == pytest.approx(1.0)
    assert value["pose_mae"] == pytest.approx((4 + 4 + 8) / 3)
    assert math.isnan(value["mouth_correlation"])


def test_quick_is_an_even_part_of_full(card: Card, probes: Probes) -> None:
    settings = load_config(ROOT).voice_test
    full = asks(probes, card, Plan.of(settings, quick=False), DAY)
    quick = asks(probes, card, Plan.of(settings, quick=True), DAY)
    assert len(full) >= 800
    assert {a.probe.id for a in quick} < {a.probe.id for a in full}
    assert {a.probe.category for a in quick if isinstance(a.probe, FactProbe)} == {
        p.category for p in probes.facts
    }
    assert all(a.prompt.endswith("오로라:") for a in full)
    recall = next(a for a in full if a.kind == "recall")
    assert "기억: " in recall.prompt
    assert spread([1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert spread([1, 2], 0) == [1, 2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], object]:
    """A tiny voice that was trained for a few steps, with what it is judged on."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("voice")
    config = load_config(
        ROOT,
        "smoke",
        [
            "voice.scratch={hidden_size: 32, layers: 2, heads: 2, context: 384, seed: 0}",
            "generation.max_new_tokens=64",
            "runtime.device=cpu",
            "runtime.threads=1",
            f"persona.card={ROOT / 'data/persona/ohlora.yaml'}",
            f"persona.dialogues={ROOT / 'data/persona/dialogues.jsonl'}",
        ],
    )
    base, rows, voice, journal = folder / "base", folder / "rows", folder / "voice", Journal(folder / "j")
    bases.run(config, {}, {"output": base}, journal)
    dialogues.run(config, {"persona": ROOT / "data/persona"}, {"output": rows}, journal)
    sft.train(config, {"base": base, "dialogues": rows}, {"output": voice}, journal)
    return voice, {"dialogues": rows, "base_llm": base, "probes": PROBES}, config


def test_scores_a_trained_adapter(trained: tuple) -> None:
    voice, inputs, config = trained
    figures = score(voice, inputs, config)
    assert figures == score(voice, inputs, config)  # seeded
    report = json.loads((voice / "model.json").read_text(encoding="utf-8"))
    assert report["kind"] == "voice"
    assert 0 < figures["bits_per_character"] < 20
    for name in ("facts_right", "parse_rate", "empty_rate", "loop_rate", "tag_rate", "expression_macro_f1"):
        assert 0 <= figures[name] <= 1


def test_report_of_a_voice_beside_another(trained: tuple, tmp_path: Path) -> None:
    folder, inputs, config = trained
    voice = Voice.load_pair(inputs["base_llm"], folder, "cpu")
    plan = Plan.of(config.voice_test, quick=True)
    result = examine("challenger", voice, inputs, config, plan, DAY)
    other = examine("champion", voice, inputs, config, plan, DAY)
    assert len(table(result)) == len(result.judged)
    pictures = write([result, other], tmp_path)
    assert list(pictures.values()) == [PLOT]
    for name in (JSON, MARKDOWN, FIGURES, REPLIES, PLOT):
        assert (tmp_path / name).stat().st_size > 0
    body = json.loads((tmp_path / JSON).read_text(encoding="utf-8"))
    assert set(body["voices"]) == {"challenger", "champion"}
    page = (tmp_path / MARKDOWN).read_text(encoding="utf-8")
    assert "| facts_right |" in page
    assert "challenger | champion" in page


def test_training_replies_come_from_the_stage(trained: tuple) -> None:
    inputs = trained[1]
    known = trained_replies(inputs["dialogues"])
    assert known
    assert all(text == letters(text) for text in known)
