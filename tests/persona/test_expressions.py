from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from ohlora.persona import Card, DialogueRow, expression_of, fallback_expression


def test_expression_carries_the_numbers_of_the_card(card: Card) -> None:
    face = expression_of("surprise", card)
    spec = card.expressions["surprise"]
    assert (face.eyes, face.mouth, face.pose) == (spec.eyes, spec.mouth, spec.pose)


def test_unknown_expression_names_the_known(card: Card) -> None:
    with pytest.raises(KeyError, match=r"bored.*neutral"):
        expression_of("bored", card)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("헉, 진짜? 몰랐어!", "surprise"),
        ("속상하겠다. 푹 쉬어.", "sad"),
        ("그런 말은 하지 마. 기분 나빠.", "angry"),
        ("음, 글쎄. 생각해 볼게…", "thinking"),
        ("우산 챙겨.", "neutral"),
        ("와서 밥 먹어.", "neutral"),  # one-syllable cue 와 inside a word says nothing
    ],
)
def test_words_decide(card: Card, text: str, name: str) -> None:
    assert fallback_expression(text, card) == name


@given(text=st.text(max_size=80))
def test_any_text_gets_an_expression_of_the_card(card: Card, text: str) -> None:
    assert fallback_expression(text, card) in card.expressions


def test_policy_beats_the_majority_class_on_test_rows(card: Card, rows: list[DialogueRow]) -> None:
    majority = Counter(r.expression for r in rows if r.split == "train").most_common(1)[0][0]
    test = [r for r in rows if r.split == "test"]
    written = [r.expression for r in test]
    policy = [fallback_expression(r.reply, card) for r in test]
    assert accuracy_score(written, policy) > accuracy_score(written, [majority] * len(test))
    assert f1_score(written, policy, average="macro") > 0.35  # of the majority class it is below .08
