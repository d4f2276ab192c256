from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.chat import MessageError, check_message


@pytest.mark.parametrize("text", ["", "   ", "\n\t ", "\u200b\u200d", "\u3164", "\ufeff \u2800"])
def test_nothing_visible_is_empty(text: str) -> None:
    with pytest.raises(MessageError) as error:
        check_message(text, 100)
    assert error.value.code == "empty"


@pytest.mark.parametrize("text", ["안녕\x00", "\x1b[31m안녕", "안녕\ud800", "\udfff", "\x7f안녕", "\x85"])
def test_control_characters_and_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(MessageError) as error:
        check_message(text, 100)
    assert error.value.code == "bad_text"


def test_the_limit_itself_is_allowed_and_named_when_passed() -> None:
    assert check_message("가" * 1000, 1000) == "가" * 1000
    assert check_message(" " * 50 + "가" * 1000, 1000) == "가" * 1000
    with pytest.raises(MessageError, match="1,000자") as error:
        check_message("가" * 1001, 1000)
    assert error.value.code == "too_long"


@pytest.mark.parametrize("text", ["?", "ㅋㅋ", "😊", "👩‍👩‍👧", "첫 줄\n둘째 줄", "1+1", "<b>굵게</b>"])
def test_what_people_type_passes(text: str) -> None:
    assert check_message(f"  {text}\n", 100) == text


@given(st.text(alphabet=st.characters(), max_size=60))
def test_a_message_that_passes_is_visible_trimmed_and_printable(text: str) -> None:
    try:
        checked = check_message(text, 40)
    except MessageError:
        return
    assert checked == text.strip()
    assert 0 < len(checked) <= 40
    checked.encode("utf-8")
    assert all(c in "\n\r\t" or unicodedata.category(c) != "Cc" for c in checked)


@pytest.mark.parametrize("text", ["", "가" * 9, "\x00"])
def test_refusals_are_in_korean(text: str) -> None:
    with pytest.raises(MessageError, match=r"[가-힣]"):
        check_message(text, 5)
