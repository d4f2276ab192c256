"""Polite or casual? What the ending of a Korean sentence says of its speech level."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|‘[^’]*’|“[^”]*”")
_SENTENCE = re.compile(r"[.!?…~,;]+")
_TAIL = re.compile(r"[^가-힣]+\Z")
_FINAL_B = 17  # index of the final consonant ㅂ among the 28 of a Hangul syllable
_NOUNS_IN_YO = {
    "필요",
    "불필요",
    "중요",
    "담요",
    "민요",
    "동요",
    "수요",
    "소요",
    "개요",
    "주요",
    "고요",
    "강요",
}


def is_polite(sentence: str) -> bool:
    """Whether a sentence ends in an ending of 해요체 or 하십시오체.

    The polite particle 요 (or its playful 세여), 시오, or a syllable in ㅂ before 니다, 니까 or 시다. What
    follows the last Hangul syllable (marks, emoji, ㅋㅋ) does not count, and nouns such as 필요 are none.

    >>> is_polite("밥 먹었어요?"), is_polite("반갑습니다ㅎㅎ"), is_polite("추우니까.")
    (True, True, False)
    """
    words = _TAIL.sub("", sentence).split()
    if not words:
        return False
    word = words[-1]
    if word.endswith(("요", "시오", "세여")):
        return word not in _NOUNS_IN_YO
    if word.endswith(("니다", "니까", "시다")) and len(word) > 2:
        before = ord(word[-3]) - ord("가")
        return 0 <= before < 11172 and before % 28 == _FINAL_B
    return False


def polite_sentences(text: str) -> list[str]:
    """The sentences and clauses of a text that end politely; quotations do not count."""
    parts = (part.strip() for part in _SENTENCE.split(_QUOTED.sub(" ", text)))
    return [part for part in parts if is_polite(part)]
