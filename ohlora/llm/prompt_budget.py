"""A prompt that fits: what is dropped first when there is more to remember than a prompt may hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date

from ohlora.persona.card import Card
from ohlora.persona.prompt import render_prompt

CUT = "…"


def fit_prompt(
    card: Card,
    memories: Sequence[str],
    history: Sequence[tuple[str, str]],
    user: str,
    count: Callable[[str], int],
    limit: int,
    on: date | None = None,
    examples: Sequence[tuple[str, str]] = (),
) -> str:
    """`render_prompt`, shortened to `limit` tokens.

    Earlier turns go first, the oldest before the others, then examples and memories, the least fitting
    before the others, then facts of the card. What the person says now stays; only if it alone is too
    long, its beginning gives way to `…`.

    Args:
        card, memories, history, user, on, examples: as `render_prompt` takes them.
        count: tokens of a prompt.
        limit: most tokens; a limit that holds no word of the message still leaves its last character.
    """

    def shortest(said: str) -> str:
        return render_prompt(card, [], [], said, on, look_up=False)

    kept, turns, shown = list(memories), list(history), list(examples)
    while count(prompt := render_prompt(card, kept, turns, user, on, examples=shown)) > limit and (
        turns or shown or kept
    ):
        if turns:
            turns.pop(0)
        elif shown:
            shown.pop(0)
        else:
            kept.pop()
    if count(prompt) <= limit or count(prompt := shortest(user)) <= limit:
        return prompt
    low, high = 1, len(user)  # characters kept: `low` is taken, `high` is too many
    while high - low > 1:
        middle = (low + high) // 2
        if count(shortest(CUT + user[-middle:])) <= limit:
            low = middle
        else:
            high = middle
    return shortest(CUT + user[-low:])
