from __future__ import annotations

import json
from pathlib import Path

import pytest

from ohlora.config import MemoryConfig
from ohlora.memory import is_grounded
from ohlora.memory.store import canonical

SAID = ["나 민수라고 해", "요즘은 롤만 해"]


@pytest.mark.parametrize("memory", ["이름: 민수", "게임: 롤", "이름: 김민수"])
def test_what_was_said_is_kept(memory: str) -> None:
    assert is_grounded(memory, SAID)


@pytest.mark.parametrize("memory", ["이름: 지영", "게임: 테트리스", "사는 곳: 부산", "이름: !!"])
def test_what_nobody_said_is_not(memory: str) -> None:
    assert not is_grounded(memory, SAID)


def test_own_words_need_not_be_quoted() -> None:
    assert is_grounded("상태: 졸림", ["눈이 감겨"], own_words=["상태"])
    assert not is_grounded("상태: 졸림", ["눈이 감겨"])


INTRODUCED = [
    "안녕! 나는 민수야. 떡볶이를 좋아해.",
    "나는 민수야. 그리고 떡볶이를 제일 좋아해",
    "난 민수인데, 떡볶이가 좋아",
    "내 이름은 민수예요 그리고 떡볶이 좋아해요",
]


@pytest.mark.parametrize("message", INTRODUCED)
def test_who_somebody_is_is_not_what_she_likes(message: str) -> None:
    assert not is_grounded("좋아하는 음식: 민수", [message])
    assert is_grounded("좋아하는 음식: 떡볶이", [message])
    assert is_grounded("이름: 민수", [message])
    assert is_grounded("좋아하는 음식: 민수", [message, "민수네 김밥이 제일 좋아"])


def test_an_answer_in_that_form_alone_may_be_what_she_likes() -> None:
    assert is_grounded("좋아하는 음식: 떡볶이", ["난 떡볶이야"])
    assert is_grounded("좋아하는 음식: 떡볶이", ["안녕! 난 떡볶이파야. 오늘도 먹었어"])


def test_a_greeting_says_nothing_about_anybody() -> None:
    assert not is_grounded("시험: 안녕", ["안녕! 나 드디어 시험 끝났어!"])
    assert is_grounded("시험: 드디어 끝났어", ["안녕! 나 드디어 시험 끝났어!"])
    assert is_grounded("고양이: 안녕이", ["안녕! 우리 고양이 이름은 안녕이야"])


def test_a_value_may_go_over_a_comma() -> None:
    assert is_grounded("생일: 3월, 1일", ["내 생일은 3월,1일"])


def test_of_what_was_told_in_the_dialogues_nothing_is_lost() -> None:
    path = Path(__file__).parents[2] / "data" / "persona" / "dialogues.jsonl"
    own_words = MemoryConfig().own_words
    told = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("history"):
            continue
        for memory in row.get("memories_written", []):
            value = canonical(memory.partition(":")[2])
            if any(value[i : i + 2] in canonical(row["user"]) for i in range(len(value) - 1)):
                told += 1
                assert is_grounded(memory, [row["user"]], own_words), (memory, row["user"])
    assert told > 500
