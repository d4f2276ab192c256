"""Sampled replies sorted by rules."""

from __future__ import annotations

import csv
import doctest
import json
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


def graded(tmp_path: Path, *said: dict[str, str]) -> own_replies.OwnReplies:
    path = tmp_path / "graded.csv"
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, ["prompt", "history", "reply", "grade"])
        writer.writeheader()
        writer.writerows(said)
    return read_own_replies(path, CARD, ROWS)


def test_a_grade_counts_and_no_rule(tmp_path: Path) -> None:
    before = json.dumps([["면접 봤어", "고생했어. 어땠어?"]], ensure_ascii=False)
    found = graded(
        tmp_path,
        {"prompt": "망한 것 같아", "history": before, "reply": "망했구나, 속상하겠다.", "grade": "2"},
        {"prompt": "망한 것 같아", "history": before, "reply": "축하해!", "grade": "0"},
        {"prompt": "망한 것 같아", "history": before, "reply": "그렇구나.", "grade": "1"},
        {"prompt": "너 INFP지?", "reply": "응, INFP야!", "grade": "2"},
    )
    assert [(f.kind, f.desirable, f.speech_only) for f in [*found.wanted, *found.unwanted]] == [
        ("graded: fits", True, True),
        ("graded: fits", True, True),
        ("graded: misses", False, True),
    ]
    assert found.wanted[0].prompt == render_prompt(
        CARD, [], [("면접 봤어", "고생했어. 어땠어?")], "망한 것 같아"
    )
    assert parse_turn(found.unwanted[0].completion, CARD).text == "축하해!"


def test_a_vague_reply_is_wanted_where_she_gave_no_better_one(tmp_path: Path) -> None:
    path = tmp_path / "graded.csv"
    path.write_text(
        "prompt,reply,grade,finish_reason\n"
        "오늘 이사했어,그렇구나.,1,end\n"
        "오늘 이사했어,맛있겠다.,0,end\n"
        "오늘 이사했어,이사하느라 고생했어.,2,written\n"
        "비 온다,그렇구나.,1,end\n"
        "비 온다,우산 챙겨!,2,end\n"
    )
    found = read_own_replies(path, CARD)
    assert [parse_turn(f.completion, CARD).text for f in found.wanted] == [
        "그렇구나.",
        "이사하느라 고생했어.",
        "우산 챙겨!",
    ]
    assert [parse_turn(f.completion, CARD).text for f in found.unwanted] == ["맛있겠다."]


def test_some_graded_messages_are_kept_apart_whole(tmp_path: Path) -> None:
    said = [
        {"prompt": f"오늘 {n}번 넘어졌어", "reply": reply, "grade": grade}
        for n in range(240)
        for reply, grade in (("아팠겠다.", "2"), ("축하해!", "0"))
    ]
    found = graded(tmp_path, *said)
    assert 8 <= len(found.held) <= 40
    assert len(found.wanted) == len(found.unwanted) == 240 - len(found.held)
    apart = {good.prompt for good, _ in found.held}
    assert all(good.desirable and not bad.desirable and good.prompt == bad.prompt for good, bad in found.held)
    assert not apart & {reply.prompt for reply in [*found.wanted, *found.unwanted]}
    assert all(good.completion.startswith(" 아팠겠다.") for good, _ in found.held)
    one_sided = graded(tmp_path, *[row for row in said if row["grade"] == "2"])
    assert one_sided.held == []
    assert len(one_sided.wanted) == len(found.wanted)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"grade": "3"}, r"line 3: the grade is '3', not 0, 1 or 2"),
        ({"grade": "2", "history": "hello"}, r"line 3: the history is no JSON list"),
        ({"grade": "0", "history": '[["a"]]'}, r"line 3: the history is no JSON list"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, bad: dict[str, str], why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        graded(
            tmp_path,
            {"prompt": "안녕", "reply": "안녕!", "grade": "2"},
            {"prompt": "안녕", "reply": "안녕!", **bad},
        )


def test_a_number_counts_as_a_whole() -> None:
    prompt = render_prompt(CARD, [], [], "생일이 언제야?")
    assert fact_words(prompt, "생일은 10월 11일이야.") == ["10월", "11일"]
    assert fact_words(prompt, "생일은 110월 111일이야.") == []
