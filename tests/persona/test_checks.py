from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ohlora.cli import app
from ohlora.persona import Card, DialogueError, DialogueRow
from ohlora.persona.checks import check_file, check_rows, measure, openings
from ohlora.persona_config import PersonaChecks

ROOT = Path(__file__).resolve().parents[2]
ANY = PersonaChecks(expression_least=0, expression_most=1, opening_most=1)


def row(**change: Any) -> dict[str, Any]:
    return {
        "id": "x1", "group": "g", "split": "train", "user": "밥 먹었어?", "reply": "응, 떡볶이!",
        "expression": "joy", "eyes": 0.6, "mouth": 0.5, "pose": -5, "reason": "맛있어서", "register": "반말",
    } | change  # fmt: skip


def findings(card: Card, *changes: dict[str, Any], settings: PersonaChecks = ANY) -> list[str]:
    rows = [DialogueRow(**row(**change)) for change in changes]
    found = check_rows(rows, [f"file, line {i}" for i in range(1, len(rows) + 1)], card, settings)
    return [str(f) for f in found if "holds no" not in f.message]


def test_committed_rows_hold(card: Card) -> None:
    rows, found = check_file(ROOT / "data/persona/dialogues.jsonl", card, PersonaChecks())
    assert found == []
    assert len(rows) >= 2500


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"reply": "응, 먹었어요."}, "line 1: polite ending in casual speech: '먹었어요'"),
        ({"history": [("안녕", "안녕하세요")]}, "polite ending"),
        ({"reply": "응" + "어" * 90}, "the reply has 91 characters; at most 90"),
        ({"register": "존댓말"}, "register 존댓말 is not the card's, 반말"),
        ({"expression": "bored"}, "unknown expression 'bored'"),
        ({"memories_read": ["비밀번호: 1"]}, "memory key '비밀번호'"),
        ({"memories_read": ["오늘 날씨: 비"]}, None),
        ({"memories_written": ["오늘 날씨: 비"]}, "memory key '오늘 날씨'"),
        ({"user": "{age}살이야?"}, "a brace in '{age}살이야\\?'"),
        ({"history": [("몇 살", "{나이}살")]}, "unknown placeholder '{나이}'"),
        ({"reply": "오로라: 응"}, "role marker"),
        ({"reply": "나 (기쁨에 겨워) 응"}, "begins the tag"),
        ({"reply": "{age}살, {school_year}학년!"}, None),
    ],
)
def test_rows_one_by_one(card: Card, change: dict[str, Any], problem: str | None) -> None:
    found = findings(card, change)
    if problem is None:
        assert found == []
    else:
        assert any(re.search(problem, f) for f in found), found


def test_near_duplicates_across_splits_are_errors(card: Card) -> None:
    other = {"id": "x2", "group": "h", "split": "test", "reply": "아직!"}
    found = findings(card, {"user": "오늘 점심 뭐 먹었어?"}, other | {"user": "오늘 점심 뭐 먹었니?"})
    assert found == [
        "file, line 2: '오늘 점심 뭐 먹었니?' of test is nearly '오늘 점심 뭐 먹었어?' of train "
        "(0.88; file, line 1)"
    ]
    assert "occurs in train already" in findings(card, {}, other)[0]
    assert findings(card, {"user": "오늘 점심 뭐 먹었어?"}, other | {"user": "내일 비 온대?"}) == []


def test_balance(card: Card) -> None:
    strict = PersonaChecks(expression_least=0, expression_most=0.6, opening_most=0.6)
    changes = [{"id": f"x{i}", "user": f"{i}번 질문"} for i in range(3)]
    found = findings(card, *changes, settings=strict)
    assert "file: expression joy has 100.0% of the rows; wanted 0% to 60%" in found
    assert "file: 100.0% of the replies open with '응'; at most 60%" in found


def test_bad_lines_are_all_listed_with_their_line(card: Card, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [row(), {"id": "x2"}, row(id="x3", user="뭐 해?", eyes=2)]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    found = [str(f) for f in check_file(path, card, ANY)[1]]
    assert any(f.startswith(f"{path}, line 2: group: Field required") for f in found)
    assert any(f.startswith(f"{path}, line 3: eyes: ") for f in found)
    with pytest.raises(DialogueError, match="cannot be read"):
        check_file(tmp_path / "none.jsonl", card, ANY)


def test_figures(card: Card) -> None:
    rows = [
        DialogueRow(**row()),
        DialogueRow(**row(id="x2", user="밥 먹었어!", reply="응? 😀", split="test")),
    ]
    figures = {record["figure"]: record for record in measure(rows, card)}
    assert figures["rows"] == {"figure": "rows", "train": 1, "valid": 0, "test": 1, "all": 2}
    assert figures["unique user messages"]["all"] == 1
    assert figures["replies with an emoji"]["test"] == 1
    assert figures["joy (기쁨)"]["all"] == 2
    assert openings(rows) == [("응", 2)]


class TestCommand:
    def check(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["persona", "check", *arguments])

    def test_committed_data_hold(self) -> None:
        result = self.check()
        assert result.exit_code == 0, result.output
        assert "unique user messages" in result.output

    def test_errors_are_printed_and_exit_with_one(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row(reply="응, 먹었어요.")), encoding="utf-8")
        result = self.check("--dialogues", str(path))
        assert result.exit_code == 1
        assert "line 1: polite ending in casual speech" in result.output

    def test_unknown_key_of_a_card_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "card.yaml"
        path.write_text(
            (ROOT / "data/persona/ohlora.yaml").read_text(encoding="utf-8") + "\nshoe_size: 240\n"
        )
        result = self.check("--card", str(path))
        assert result.exit_code == 1
        assert "unknown key 'shoe_size'" in result.output


def test_questions_are_train_messages_that_a_fact_answers(tmp_path: Path) -> None:
    rows = [
        row(user="너 MBTI가 뭐야", reply="나 ENTJ야!"),
        row(id="x2", user="오늘 뭐 먹지", reply="난 칼국수!"),
        row(id="x3", group="claim", user="너 INFP라며", reply="아니, ENTJ야.", split="test"),
        row(id="x4", user="MBTI 다시 말해 줘", reply="ENTJ야.", history=[["안녕", "안녕!"]]),
    ]
    path, out = tmp_path / "rows.jsonl", tmp_path / "new" / "questions.csv"
    path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    result = CliRunner().invoke(app, ["persona", "questions", "--dialogues", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_text(encoding="utf-8").split() == ["prompt", "너", "MBTI가", "뭐야"]
    folder = CliRunner().invoke(
        app, ["persona", "questions", "--dialogues", str(path), "--out", str(tmp_path)]
    )
    assert folder.exit_code == 1
    assert "is a folder" in folder.output
