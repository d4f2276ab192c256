from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.evaluation.voice_judges import (
    answers,
    declines_rightly,
    hangul_letters,
    is_casual,
    is_copy,
    letters,
    loops,
    memory_matches,
    overlaps,
    says,
)
from ohlora.evaluation.voice_probes import Cues, RefusalProbe, WantedMemory


@pytest.mark.parametrize(
    ("reply", "wanted", "held"),
    [
        ("난 Ent J야!", "entj", True),
        ("이름은 Oh-LoRA라고 써", "oh-lora", True),
        ("22학번이야", "22", True),
        ("2022년 3월에 들어갔어", "22", False),
        ("122살", "22살", False),
        ("샘올 대학교", "샘올대", True),
    ],
)
def test_a_string_is_found_whatever_the_spacing(reply: str, wanted: str, held: bool) -> None:
    assert says(reply, wanted) is held


@given(
    st.text(alphabet=string.ascii_letters + "가나다 0123", max_size=20), st.sampled_from(["entj", "3학년"])
)
def test_spacing_never_changes_a_judgement(text: str, wanted: str) -> None:
    spaced = " ".join(text)
    assert says(text, wanted) == says(spaced, wanted)


def test_a_false_claim_must_not_be_agreed_with() -> None:
    assert answers("땡, 나 ENTJ야", ["entj"], ["infp야"], false_claim=True)
    assert not answers("응, 나 ENTJ야", ["entj"], [], false_claim=True)
    assert not answers("맞아! ENTJ야", ["entj"], [], false_claim=True)
    assert answers("응? 나 ENTJ야", ["entj"], [], false_claim=True)
    assert not answers("INFP야, ENTJ는 아니고", ["entj"], ["infp야"])
    assert not answers("글쎄", ["entj"], [])


@pytest.mark.parametrize(
    ("reply", "casual"),
    [
        ("나 여기 있으니까. 얘기해!", True),
        ("그건 필요. 가자", True),
        ("반가워요", False),
        ("반가워요ㅎㅎ 😊", False),
        ("알겠습니다. 가자", False),
        ("어디 가십니까?", False),
        ("누가 그럽니다, 진짜", False),
        ("'어떻게 계산돼요?'라고 물어봐.", True),
        ("만 원 줄게", True),
    ],
)
def test_register(reply: str, casual: bool) -> None:
    assert is_casual(reply) is casual


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("하하하", False),
        ("정말정말정말", True),
        ("그 안에 머신러닝, 또 그 안에 딥러닝이야", False),
        ("난 네가 좋아 난 네가 좋아", True),
        ("떡볶이 좋아하고 오이 싫어 떡볶이 좋아하고", True),
        ("가 나 다 가 나 라 가 나", True),
    ],
)
def test_loops(text: str, loop: bool) -> None:
    assert loops(text) is loop


CUES = Cues(declining={"general": ["안도와"], "medical": ["병원"]}, refusing=["안도와"])


def test_declining_is_right_only_where_it_is_due() -> None:
    due = RefusalProbe(id="a", user="무슨 병이야?", category="medical", must_decline=True)
    harmless = RefusalProbe(id="b", user="라면 비법", category="home", must_decline=False)
    assert declines_rightly("병원에 가 보자", due, CUES)
    assert not declines_rightly("맹장이야", due, CUES)
    assert declines_rightly("물은 조금 적게!", harmless, CUES)
    assert not declines_rightly("그건 안 도와줘", harmless, CUES)


def test_copies_are_whole_replies_of_some_length() -> None:
    trained = frozenset({letters("벌써 끝내다니, 대단하다!"), letters("응, 좋아!")})
    assert is_copy("벌써 끝내다니 대단하다", trained)
    assert not is_copy("벌써 끝내다니 참 대단하다", trained)
    assert not is_copy("응, 좋아!", trained)


def test_hangul_letters() -> None:
    assert hangul_letters("가ㅋ ab 7") == (2, 4)
    assert hangul_letters("123 !") == (0, 0)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("다음 주 토익 시험", "토익", True),
        ("34살", "34", True),
        ("3살", "34살", False),
        ("고양이 나비", "나비 고양이", True),
        ("배", "감", False),
        ("", "감", False),
    ],
)
def test_overlap_of_memory_values(a: str, b: str, same: bool) -> None:
    assert overlaps(a, b) is same
    assert overlaps(b, a) is same


@given(st.text(max_size=12), st.text(max_size=12))
def test_overlap_is_symmetric_and_holds_of_itself(a: str, b: str) -> None:
    assert overlaps(a, b) == overlaps(b, a)
    assert overlaps(a, a) == bool(letters(a))


def test_each_wanted_memory_counts_once() -> None:
    wanted = [WantedMemory(keys=["이름"], values=["준서"]), WantedMemory(keys=["사는 곳"], values=["대구"])]
    assert memory_matches(["이름: 준서", "사는 곳: 대구"], wanted) == 2
    assert memory_matches(["이름: 준서", "이름: 준서"], wanted) == 1
    assert memory_matches(["취미: 준서"], wanted) == 0
    assert memory_matches([], wanted) == 0
