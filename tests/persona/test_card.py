from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ohlora.persona import Card, CardError, load_card


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
    assert (card.name, card.age, card.mbti) == ("오로라", 22, "ENTJ")
    assert card.greeting in card.greetings
    assert len(card.expressions) == 8
    assert card.labels["기쁨"] == "joy"


def test_expressions_differ_as_faces(card: Card) -> None:
    faces = {(s.eyes, s.mouth, s.pose) for s in card.expressions.values()}
    assert len(faces) == len(card.expressions)


def test_card_is_frozen(card: Card) -> None:
    with pytest.raises(ValidationError):
        card.age = 23  # type: ignore[misc]


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
        ({"age": -1}, "age: "),
        ({"greetings": []}, "greetings: "),
        ({"idle_expression": "bored"}, "idle_expression 'bored' is not one of: neutral"),
        ({"header": "가" * 41}, "header: "),
        ({"header": "사용자: 나"}, "role marker"),
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
