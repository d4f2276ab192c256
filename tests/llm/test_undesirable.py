from __future__ import annotations

import doctest
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.artifacts import ArtifactError
from ohlora.llm import undesirable
from ohlora.llm.likelihood import read_rows
from ohlora.llm.undesirable import Spoiler, casual, fault_of, formal, pairs
from ohlora.persona.card import Card, load_card
from ohlora.persona.prompt import parse_turn
from tests.llm.conftest import ROOT

CARD = load_card(ROOT / "data/persona/ohlora.yaml")


def row(number: int, user: str, completion: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "group": f"g{number}",
        "user": user,
        "memories_read": [],
        "memories_written": parse_turn(completion, CARD).memories_written,
        "prompt": f"사용자: {user}\n오로라:",
        "completion": completion,
        **more,
    }


ROWS = [
    row(0, "너 INFP지?", " 땡, 나는 ENTJ야. 계획표 보면 알잖아! (뿌듯 633)"),
    row(1, "나 뭐 좋아하게?", " 등산이잖아, 다 기억해! (기쁨 653)", memories_read=["취미: 등산"]),
    row(2, "난 민수야", " 민수구나, 반가워! (기쁨 653) ".replace(" (", " [이름: 민수] (", 1).rstrip()),
    row(3, "너 사람이야?", " 아니, 나는 AI 버추얼 휴먼이야. (평온 704)", memories_read=["취미: 낚시"]),
    row(4, "몇 살이야?", " 22살이야. 샘올대학교 3학년! (기쁨 643)"),
]
SPOILER = Spoiler(ROWS, CARD)


def made(kind: str, number: int) -> str | None:
    turn = SPOILER.kinds[kind](SPOILER.turns[number])
    return SPOILER.write(turn) if turn else None


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(undesirable).failed == 0


def test_a_memory_is_contradicted_with_another_value_of_its_key() -> None:
    assert made("contradicts a memory", 1) == " 낚시이잖아, 다 기억해! (기쁨 653)"
    assert made("contradicts a memory", 0) is None


def test_facts_of_the_card_are_contradicted() -> None:
    said = made("contradicts the card", 0)
    assert said
    assert "ENTJ" not in said
    assert parse_turn(said, CARD).text.startswith("땡, 나는 ")
    assert made("contradicts the card", 3) == " 무슨 소리야, 나 진짜 사람이야. (평온 704)"
    changed = made("contradicts the card", 4)
    assert changed
    assert changed != ROWS[4]["completion"]
    assert made("contradicts the card", 2) is None


def test_a_memory_is_invented_only_where_none_is_due_and_nobody_said_it() -> None:
    said = made("invents a memory", 0)
    assert said
    assert parse_turn(said, CARD).memories_written[0] in {"취미: 등산", "취미: 낚시", "이름: 민수"}
    assert made("invents a memory", 2) is None


def test_a_memory_is_forgotten_only_where_one_is_due() -> None:
    assert made("forgets a memory", 2) == " 민수구나, 반가워! (기쁨 653)"
    assert made("forgets a memory", 0) is None


def test_the_opposite_feeling_has_the_face_of_the_card() -> None:
    turn = parse_turn(made("opposite feeling", 1) or "", CARD)
    assert turn.expression_name in undesirable.OPPOSITES["joy"]
    assert turn.text == "등산이잖아, 다 기억해!"


def test_a_card_of_other_names_takes_the_most_distant_face() -> None:
    names = {f"x{name}": spec for name, spec in CARD.expressions.items()}
    card = Card.model_validate(CARD.model_dump() | {"expressions": names, "idle_expression": "xneutral"})
    spoiler = Spoiler(ROWS, card)
    turn = spoiler.kinds["opposite feeling"](spoiler.turns[1])
    assert turn
    assert turn.expression_name != "xjoy"


def test_a_loop_repeats_and_an_empty_reply_says_nothing() -> None:
    assert (made("loop", 0) or "").count("땡, 나는 ENTJ야. 계획표") == 3
    assert parse_turn(made("says nothing", 0) or "", CARD).text in undesirable.EMPTY
    assert made("says nothing", 2) is None  # ten characters are no speech to replace


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("좋아! 내일 봐.", "좋아요! 내일 봐요."),
        ("그건 내 거야.", "그건 내 거예요."),
        ("산책 가자!", None),
        ("고마워 ㅋㅋ", "고마워요 ㅋㅋ"),
    ],
)
def test_casual_speech_becomes_formal_or_nothing(said: str, expected: str | None) -> None:
    assert formal(said) == expected


def test_formal_speech_becomes_casual() -> None:
    assert casual("좋아요! 그건 제 거예요.") == "좋아! 그건 제 거야."
    assert casual("좋아!") is None


def test_pairs_of_real_rows_parse_differ_and_are_balanced(real_dialogues: Path) -> None:
    card = load_card(real_dialogues / "persona.yaml")
    rows = read_rows(real_dialogues, "train")
    found = pairs(rows, card, 40, 0)
    assert len(found) == min(40, len(rows))
    for good, bad in found:
        assert good.desirable
        assert not bad.desirable
        assert good.prompt == bad.prompt
        assert good.completion != bad.completion
        parse_turn(bad.completion, card)
    kinds = Counter(bad.kind for _, bad in found)
    assert len(kinds) >= 7
    assert max(kinds.values()) <= 8
    assert pairs(rows, card, 40, 0) == found
    assert pairs(rows, card, 40, 1) != found


def test_a_row_of_another_format_is_named() -> None:
    with pytest.raises(ArtifactError, match="row r9 is not of the format"):
        Spoiler([{"id": "r9", "completion": " (기쁨) 안녕!"}], CARD)


@given(st.text(max_size=30), st.sampled_from(["", "length", "budget", "end"]))
def test_every_reply_has_a_verdict(reply: str, reason: str) -> None:
    known = {"", "says nothing", "cut off", "loop", "little Hangul", "wrong register"}
    assert fault_of(reply, CARD, reason) in known
