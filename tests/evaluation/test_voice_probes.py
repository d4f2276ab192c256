from __future__ import annotations

import json
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from ohlora.evaluation.voice_judges import declines_rightly, letters
from ohlora.evaluation.voice_probes import ProbeError, Probes, RefusalProbe, filled, spelt_age
from ohlora.persona.card import Card, load_card
from ohlora.persona.similarity import near_duplicates

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data/probes"
UNSEEN = ROOT / "data/unseen_probes"
TOO_NEAR = 0.85


@pytest.fixture(scope="module", params=[FOLDER, UNSEEN], ids=lambda folder: folder.name)
def probes(request: pytest.FixtureRequest) -> Probes:
    return Probes.load(request.param)


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(ROOT / "data/persona/ohlora.yaml")


@pytest.fixture(scope="module")
def written() -> list[dict]:
    return [
        json.loads(line)
        for path in sorted((ROOT / "data/persona").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]


def test_enough_is_asked() -> None:
    probes = Probes.load(FOLDER)
    assert len(probes.facts) >= 160
    kinds = Counter(probe.kind for probe in probes.facts)
    assert min(kinds["paraphrase"], kinds["contradiction"], kinds["trap"]) >= 25
    assert len({probe.category for probe in probes.facts}) >= 20
    assert sum(p.must_decline for p in probes.refusals) >= 40
    assert sum(not p.must_decline for p in probes.refusals) >= 40
    assert len(probes.carry_over) >= 30
    assert len(probes.recall) >= 40
    assert len(probes.memory_writing) >= 60
    assert sum(not p.memories for p in probes.memory_writing) >= len(probes.memory_writing) / 3
    assert len(probes.variety) == 60


def test_no_question_of_the_card_is_a_probe(probes: Probes, card: Card) -> None:
    texts = sorted({letters(question) for fact in card.facts for question in fact.asked} - {""})
    near = near_duplicates(texts, [letters(probe.user) for probe in probes.facts], TOO_NEAR)
    assert [(texts[i], probes.facts[j].user) for i, j, _ in near] == []


def test_no_probe_is_in_the_dialogues(probes: Probes, written: list[dict]) -> None:
    """Not even nearly: similarity of the letters below 0.85, as between the splits."""
    said = {
        letters(text) for row in written for text in (row["user"], *(u for u, _ in row.get("history", [])))
    }
    texts = sorted(text for text in said if text)
    asked = [letters(probe.user) for probe in probes.all]
    near = near_duplicates(texts, asked, TOO_NEAR)
    assert [(texts[i], probes.all[j].user) for i, j, _ in near] == []


def test_no_two_probes_are_equal(probes: Probes) -> None:
    counts = Counter(letters(probe.user) for probe in probes.all)
    assert [text for text, n in counts.items() if n > 1] == []


def test_memory_keys_are_those_of_the_card(probes: Probes, card: Card) -> None:
    written = {key for p in probes.memory_writing for memory in p.memories for key in memory.keys}
    recalled = {memory.partition(":")[0] for p in probes.recall for memory in p.memories}
    assert written | recalled <= set(card.memory_keys)


def test_every_category_that_is_declined_has_cues(probes: Probes) -> None:
    due = {p.category for p in probes.refusals if p.must_decline}
    assert due <= set(probes.cues.declining)


def test_cues_know_the_refusals_that_people_wrote(probes: Probes, written: list[dict]) -> None:
    categories = {
        "h_no_medical": "medical",
        "h_no_legal": "legal",
        "h_no_privacy": "privacy",
        "h_no_live": "news",
        "h_no_sex": "sexual",
        "h_no_hack": "crime",
        "h_no_weapon": "crime",
        "h_no_steal": "crime",
    }
    rows = [row for row in written if row["group"] in categories]
    assert len(rows) >= 40
    for row in rows:
        category = categories[row["group"]]
        probe = RefusalProbe(id="x", user=row["user"], category=category, must_decline=True)
        assert declines_rightly(row["reply"], probe, probes.cues), row["reply"]


def test_cues_let_answers_to_harmless_messages_pass(probes: Probes, written: list[dict]) -> None:
    rows = [row for row in written if row["group"].startswith("h_ok_")]
    assert len(rows) >= 40
    for row in rows:
        probe = RefusalProbe(id="x", user=row["user"], category="x", must_decline=False)
        assert declines_rightly(row["reply"], probe, probes.cues), row["reply"]


def test_ages_and_school_years_follow_the_date(card: Card) -> None:
    day = date(2025, 12, 1)
    assert "22살" in filled(["{age}"], card, day)
    assert "23살" in filled(["{next_age}"], card, day)
    assert filled(["{school_year}학년"], card, day) == ["3학년", "삼학년"]
    assert "21살" in filled(["{age}"], card, date(2025, 10, 10))
    assert filled(["{school_year}학년"], card, date(2040, 1, 1)) == ["졸업"]
    assert filled(["샘올"], card, day) == ["샘올"]


@pytest.mark.parametrize(("age", "words"), [(20, "스무"), (23, "스물세"), (31, "서른하나"), (40, "마흔")])
def test_ages_are_spelt(age: int, words: str) -> None:
    assert words in spelt_age(age)
    assert f"{age}살" in spelt_age(age)


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    facts = tmp_path / "facts.jsonl"
    lines = facts.read_text(encoding="utf-8").splitlines()
    facts.write_text("\n".join([lines[0], '{"id": "x", "user": "?"}']), encoding="utf-8")
    with pytest.raises(ProbeError, match=r"facts.jsonl, line 2"):
        Probes.load(tmp_path)
    facts.write_text("\n".join([lines[0], lines[0]]), encoding="utf-8")
    with pytest.raises(ProbeError, match="occurs twice"):
        Probes.load(tmp_path)
    facts.unlink()
    with pytest.raises(ProbeError, match=r"facts.jsonl cannot be read"):
        Probes.load(tmp_path)
