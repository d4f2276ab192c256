from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ohlora.persona import Card, CardError, School, load_card

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def values(card_path: Path) -> dict[str, Any]:
    values = yaml.safe_load(card_path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def test_committed_card_is_oh_lora(card: Card) -> None:
    assert (card.name, card.born, card.mbti) == ("오로라", date(2003, 10, 11), "ENTJ")
    assert card.age(date(2025, 12, 1)) == 22
    assert [school.name for school in card.schools] == ["알파고등학교", "샘올대학교"]
    assert Path(ROOT / card.look).is_file()
    assert card.greeting in card.greetings
    assert len(card.expressions) == 8
    assert card.labels["기쁨"] == "joy"


def test_expressions_differ_as_faces(card: Card) -> None:
    faces = {(s.eyes, s.mouth, s.pose) for s in card.expressions.values()}
    assert len(faces) == len(card.expressions)


def test_a_fact_names_fields_that_exist(values: dict[str, Any], tmp_path: Path) -> None:
    values["facts"] = [{"says": "키: {height}cm", "asked": ["키가 몇이야"]}]
    with pytest.raises(CardError, match=r"fact '키: \{height\}cm' holds '\{height\}'; there are: \{age\}"):
        load_card(write(tmp_path, values))


def test_a_card_without_facts_finds_none(card: Card) -> None:
    assert card.model_copy(update={"facts": []}).facts_for("몇 살이야?", date(2025, 12, 1)) == []


def test_card_is_frozen(card: Card) -> None:
    with pytest.raises(ValidationError):
        card.mbti = "INFP"  # type: ignore[misc]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"nobody\.yaml cannot be read"):
        load_card(tmp_path / "nobody.yaml")


def test_unknown_key_is_named(tmp_path: Path, values: dict[str, Any]) -> None:
    path = write(tmp_path, values | {"shoe_size": 240})
    with pytest.raises(CardError, match=r"card\.yaml: unknown key 'shoe_size'"):
        load_card(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"born": "soon"}, "born: "),
        ({"greetings": []}, "greetings: "),
        ({"idle_expression": "bored"}, "idle_expression 'bored' is not one of: neutral"),
        ({"header": "가" * 41}, "header: "),
        ({"header": "사용자: 나"}, "role marker"),
        ({"header": "{name}의 수다"}, "header holds '{name}'"),
        ({"schools": [{"name": "가", "entered": "2022"}]}, r"schools\.0\.entered: "),
        ({"speech": "사투리"}, "speech: "),
        ({"name": "오:로라"}, "colon"),
        ({"memory_keys": {"이[름": "x"}}, "memory key '이\\[름'"),
        ({"memory_keys": {"사용자": "x"}}, "role of the prompt"),
    ],
)
def test_bad_values_are_named(
    tmp_path: Path, values: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CardError, match=message):
        load_card(write(tmp_path, values | change))


def test_eye_openness_above_one_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    values["expressions"]["joy"]["eyes"] = 1.5
    with pytest.raises(CardError, match=r"expressions\.joy\.eyes"):
        load_card(write(tmp_path, values))


def test_two_expressions_with_one_label_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    values["expressions"]["sad"]["label"] = "기쁨"
    with pytest.raises(CardError, match="share the label 기쁨"):
        load_card(write(tmp_path, values))


@pytest.mark.parametrize("text", ["- just\n- a list\n", "a: [1\n", ""])
def test_text_that_is_no_card(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CardError, match=r"card\.yaml"):
        load_card(path)


@pytest.mark.parametrize(
    ("day", "age"), [("2025-10-10", 21), ("2025-10-11", 22), ("2026-10-10", 22), ("2033-01-01", 29)]
)
def test_age_changes_on_her_birthday(card: Card, day: str, age: int) -> None:
    assert card.age(date.fromisoformat(day)) == age


@pytest.mark.parametrize(
    ("day", "year"),
    [
        ("2018-12-31", None),
        ("2019-03-02", 1),
        ("2022-02-28", 3),
        ("2022-03-01", 1),
        ("2023-02-28", 1),
        ("2025-12-01", 3),
        ("2026-12-01", 4),
        ("2027-02-28", 4),
        ("2027-03-01", None),
    ],
)
def test_school_year_follows_the_date(card: Card, day: str, year: int | None) -> None:
    assert card.school_year(date.fromisoformat(day)) == year


def test_without_leave_the_year_counts_from_the_entry() -> None:
    school = School(name="가", entered="2022-03")
    assert [school.year(date(year, 5, 1)) for year in range(2021, 2027)] == [None, 1, 2, 3, 4, None]


def test_placeholders_are_filled_for_a_day(card: Card) -> None:
    text = "{age}살, 샘올대 {school_year}학년이야."
    assert card.filled(text, date(2025, 12, 1)) == "22살, 샘올대 3학년이야."
    assert card.filled(text, date(2030, 12, 1)) == "27살, 샘올대 졸업생이야."
