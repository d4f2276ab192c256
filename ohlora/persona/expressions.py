"""From a reply to a face: expressions by name, and the policy for replies that do not name theirs."""

from __future__ import annotations

from ohlora.attributes import Expression
from ohlora.persona.card import Card, ExpressionSpec

EXCLAMATION_BONUS = {
    "joy": 0.5,
    "surprise": 0.4,
}  # below the weight of one cue: punctuation only tips the scale
ELLIPSIS_BONUS = {"thinking": 0.5, "sad": 0.4}


def expression_of(name: str, card: Card) -> Expression:
    """What the face shows for an expression of the card.

    Raises:
        KeyError: the card has no such expression.
    """
    if name not in card.expressions:
        raise KeyError(f"unknown expression {name!r}; the card has: {', '.join(card.expressions)}")
    return card.expressions[name].expression


def fallback_expression(text: str, card: Card) -> str:
    """Name of the expression that the words and punctuation of a reply speak for.

    Every cue of the card that occurs in the text counts one, and one more where the text starts with it;
    one-syllable cues such as `와` count only as a word of their own. Exclamation and ellipsis tip the scale.
    Without any evidence it is the card's idle expression. Deterministic; the earlier expression wins a tie.
    """
    scores = {name: _cue_score(text, spec) for name, spec in card.expressions.items()}
    if "!" in text:
        _add(scores, EXCLAMATION_BONUS)
    if "…" in text or "..." in text:
        _add(scores, ELLIPSIS_BONUS)
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0 else card.idle_expression


def _cue_score(text: str, spec: ExpressionSpec) -> float:
    words = {word.strip("!?,.~…") for word in text.split()}
    score = 0.0
    for cue in spec.cues:
        found = cue in words if len(cue) == 1 else cue in text
        if found:
            score += 2.0 if text.lstrip().startswith(cue) else 1.0
    return score


def _add(scores: dict[str, float], bonus: dict[str, float]) -> None:
    for name, value in bonus.items():
        if name in scores:
            scores[name] += value
