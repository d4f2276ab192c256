"""Did the person say it? A small voice sometimes notes a name that nobody mentioned.

A noted value counts as said when it shares two characters in a row with what was said (or is a single one
that occurs). Values of some keys are put in her own words ("졸려 죽겠어" is `상태: 졸림`); those keys are let
through.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ohlora.memory.store import canonical, parse_memory

_LETTERS = re.compile(r"[^0-9a-z가-힣ㄱ-ㅎㅏ-ㅣ]")


def is_grounded(memory: str, said: Sequence[str], own_words: Collection[str] = ()) -> bool:
    """Whether `키: 값` rests on what the person said.

    Args:
        memory: what the voice wants to keep.
        said: messages of the person that the voice saw.
        own_words: keys whose values need not be quoted.

    Raises:
        MemoryFormatError: `memory` is not of the form `키: 값`.
    """
    key, value = parse_memory(memory)
    if canonical(key) in {canonical(k) for k in own_words}:
        return True
    letters = _letters(value)
    parts = {letters[i : i + 2] for i in range(len(letters) - 1)} or {letters}
    return bool(letters) and any(part in text for text in map(_letters, said) for part in parts)


def _letters(text: str) -> str:
    return _LETTERS.sub("", canonical(text))
