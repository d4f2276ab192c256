from __future__ import annotations

from datetime import date
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ohlora.llm import fit_prompt
from ohlora.persona import load_card, render_prompt

CARD = load_card(Path(__file__).parents[2] / "data" / "persona" / "ohlora.yaml")
DAY = date(2025, 11, 1)
MEMORIES = ["이름: 민수", "취미: 등산", "사는 곳: 부산"]
HISTORY = [(f"질문 {i}", f"대답 {i}") for i in range(4)]
EXAMPLES = [("뭐 했어?", "놀았어."), ("지금 뭐 해?", "네 생각.")]


def fit(limit: int, user: str = "뭐 해?") -> str:
    # one token per character
    return fit_prompt(CARD, MEMORIES, HISTORY, user, len, limit, DAY, EXAMPLES)


def test_what_fits_is_left_alone() -> None:
    assert fit(10_000) == render_prompt(CARD, MEMORIES, HISTORY, "뭐 해?", DAY, examples=EXAMPLES)


def test_old_turns_go_before_new_ones_then_examples_then_memories() -> None:
    whole = len(fit(10_000))
    shorter = fit(whole - 1)
    assert "질문 0" not in shorter
    assert "질문 1" in shorter
    assert "부산" in shorter
    shown = len(render_prompt(CARD, MEMORIES, [], "뭐 해?", DAY, examples=EXAMPLES))
    assert "질문" not in fit(shown)
    assert "놀았어" in fit(shown)
    assert "놀았어" not in fit(shown - 1)
    assert "네 생각" in fit(shown - 1)
    bare = len(render_prompt(CARD, MEMORIES, [], "뭐 해?", DAY))
    assert fit(bare) == render_prompt(CARD, MEMORIES, [], "뭐 해?", DAY)
    assert fit(bare - 1) == render_prompt(CARD, MEMORIES[:2], [], "뭐 해?", DAY)


@given(
    st.integers(60, 400),
    st.text(st.sampled_from("가나다 :[](){}\n오로라사용자기억"), min_size=1, max_size=500),
)
def test_it_fits_and_ends_in_the_persons_last_words(limit: int, user: str) -> None:
    prompt = fit(limit, user)
    assert len(prompt) <= limit
    assert prompt.endswith("\n오로라:")
    alone = render_prompt(CARD, [], [], user, DAY, look_up=False)
    said = prompt.split("\n")[-2]
    if len(alone) <= limit:
        assert said == alone.split("\n")[-2]
    else:
        assert said.startswith("사용자: …")


def test_a_limit_below_everything_leaves_the_last_character() -> None:
    assert fit(1, "안녕하세").split("\n")[-2] == "사용자: …세"


def test_facts_stay_longer_than_memories_and_go_before_what_is_said() -> None:
    asked = "MBTI가 뭐야"
    with_facts, without = (
        len(render_prompt(CARD, [], [], asked, DAY, look_up=look)) for look in (True, False)
    )
    assert "설정: MBTI: ENTJ" in fit(with_facts, asked)
    assert "기억" not in fit(with_facts, asked)
    assert fit(with_facts - 1, asked) == fit(without, asked)
    assert fit(without, asked).endswith(f"\n사용자: {asked}\n오로라:")
