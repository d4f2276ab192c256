"""Sampled replies sorted by rules."""

from __future__ import annotations

import csv
import doctest
from pathlib import Path
from typing import Any

import pytest

from ohlora.artifacts import ArtifactError
from ohlora.llm import own_replies
from ohlora.llm.own_replies import fact_words, read_own_replies
from ohlora.persona.card import load_card
from ohlora.persona.prompt import parse_turn, render_prompt
from tests.llm.conftest import ROOT

CARD = load_card(ROOT / "data/persona/ohlora.yaml")


def row(number: int, user: str, completion: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "user": user,
        "day": "2025-06-01",
        "memories_read": [],
        "completion": completion,
        **more,
    }


ROWS = [
    row(0, "너 INFP지?", " 땡, 나는 ENTJ야. 계획표 보면 알잖아! (뿌듯 633)"),
    row(1, "몇 살이야?", " 22살이야. 샘올대학교 3학년! (기쁨 643)"),
    row(2, "오늘 뭐 먹지", " 비 오니까 칼국수! (기쁨 643)"),
    row(3, "영문 이름 알려 줘", " Oh-LoRA라고 써. (평온 704)"),
]


def sort(tmp_path: Path, *said: tuple[str, str, str]) -> own_replies.OwnReplies:
    path = tmp_path / "replies.csv"
    with path.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([("prompt", "reply", "finish_reason"), *said])
    return read_own_replies(path, CARD, ROWS)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(own_replies).failed == 0


def test_replies_that_fail_a_check_are_unwanted(tmp_path: Path) -> None:
    found = sort(
        tmp_path,
        ("안녕", "안녕! 오늘 뭐 했어?", "end"),
        ("안녕", "안녕하세요! 반갑습니다.", "end"),
        ("안녕", "좋아 좋아좋아좋아좋아 진짜", "end"),
        ("안녕", "나는 오늘 학교에서 친구를", "budget"),
        ("안녕", "the message is too long", "error"),
    )
    assert [f.kind for f in found.unwanted] == [
        "sampled: wrong register",
        "sampled: loop",
        "sampled: cut off",
    ]
    assert all(parse_turn(f.completion, CARD) and "사용자: 안녕" in f.prompt for f in found.unwanted)
    assert found.wanted == []
    with pytest.raises(ArtifactError, match=r"preference\.samples"):
        read_own_replies(tmp_path / "absent.csv", CARD)


def test_a_wrong_fact_is_unwanted_and_the_written_reply_wanted_once(tmp_path: Path) -> None:
    found = sort(
        tmp_path,
        ("너 INFP지?", "응, ENTJ 말고 INFP!", "end"),
        ("너 INFP지 ?", "오늘은 떡볶이 먹을래.", "end"),
        ("너 INFP지?", "아니, ENTJ라니까.", "end"),
    )
    assert [f.kind for f in found.unwanted] == ["sampled: agrees with a false claim", "sampled: wrong fact"]
    assert [(f.kind, f.completion) for f in found.wanted] == [
        ("written", ROWS[0]["completion"]),
        ("sampled: right fact", " 아니, ENTJ라니까. (뿌듯 633)"),
    ]
    assert all("설정: MBTI: ENTJ" in f.prompt for f in [*found.wanted, *found.unwanted])


def test_what_is_true_on_some_days_only_is_not_judged(tmp_path: Path) -> None:
    found = sort(tmp_path, ("몇 살이야?", "31살이야.", "end"), ("몇 살이야?", "22살이야.", "end"))
    assert found == own_replies.OwnReplies()


def test_small_talk_has_no_fact_to_miss(tmp_path: Path) -> None:
    assert sort(tmp_path, ("오늘 뭐 먹지", "난 김밥!", "end")) == own_replies.OwnReplies()


def test_a_fact_in_latin_letters_is_no_lack_of_hangul(tmp_path: Path) -> None:
    found = sort(tmp_path, ("영문 이름 알려 줘", "Oh-LoRA야.", "end"))
    assert [f.kind for f in found.wanted] == ["sampled: right fact"]
    assert found.unwanted == []


def test_a_number_counts_as_a_whole() -> None:
    prompt = render_prompt(CARD, [], [], "생일이 언제야?")
    assert fact_words(prompt, "생일은 10월 11일이야.") == ["10월", "11일"]
    assert fact_words(prompt, "생일은 110월 111일이야.") == []
