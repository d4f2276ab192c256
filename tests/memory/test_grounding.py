from __future__ import annotations

import pytest

from ohlora.memory import is_grounded

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
