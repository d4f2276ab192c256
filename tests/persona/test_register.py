from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.persona import DialogueRow
from ohlora.persona.register import is_polite, polite_sentences


@pytest.mark.parametrize(
    "sentence",
    ["밥 먹었어요?", "안녕하세요",
     "반갑습니다ㅎㅎ", "그게 뭡니까", "어서 오십시오!", "같이 갑시다", "그렇군요 😀",
     "저는 오로라예요", "가시죠, 네, 그래요"],
)  # fmt: skip
def test_polite_endings(sentence: str) -> None:
    assert is_polite(sentence)


@pytest.mark.parametrize(
    "sentence",
    ["밥 먹었어?", "안녕!", "추우니까", "2003년생이라니까",
     "아니다", "그럴 필요", "제일 중요", "가자", "", "ㅋㅋ", "hello"],
)  # fmt: skip
def test_casual_endings(sentence: str) -> None:
    assert not is_polite(sentence)


def test_every_sentence_is_looked_at_and_quotations_are_not() -> None:
    assert polite_sentences("그래. 알겠습니다! 응") == ["알겠습니다"]
    assert polite_sentences("'안녕하세요'라고 했어?") == []


def test_committed_rows_are_casual(rows: list[DialogueRow]) -> None:
    assert [row.id for row in rows if polite_sentences(row.reply)] == []


@given(text=st.text(max_size=40))
def test_takes_any_text(text: str) -> None:
    for sentence in polite_sentences(text):
        assert is_polite(sentence)
        assert sentence in text
