"""Did the person say it? A small voice sometimes notes a name that nobody mentioned, or the wrong word.

A noted value counts as said when it shares two characters in a row with what was said (or is a single one
that occurs). Values of some keys are put in her own words ("졸려 죽겠어" is `상태: 졸림`); those keys are let
through. A greeting says nothing about anybody, and who somebody is is not what she likes: of "나는 민수야.
떡볶이를 좋아해." `좋아하는 음식: 민수` is not kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence

from ohlora.memory.store import canonical, parse_memory

_LETTERS = re.compile(r"[^0-9a-z가-힣ㄱ-ㅎㅏ-ㅣ]")
_CLAUSES = re.compile(r"[.!?~,;\n…]+|(?<=[인는은]데)\s+|\s+그리고\s+")
_GREETINGS = frozenset(
    {"안녕", "안뇽", "안녕하세요", "하이", "헬로", "반가워", "반갑다", "ㅎㅇ", "hi", "hello"}
)
_INTRODUCTION = re.compile(
    r"(?:나|나는|난|내\s*이름은?|저|저는|전|제\s*이름은?)\s+"
    r"(?P<who>\S+?)(?:이라고\s*해|라고\s*해|이야|야|인데|이에요|예요|입니다)"
)
_LIKINGS = ("좋아하는", "싫어하는", "최애", "취미")  # how keys of what somebody likes begin


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
    liking = canonical(key).startswith(_LIKINGS)
    return bool(letters) and any(
        part in text for message in said for text in _evidence(message, letters, liking) for part in parts
    )


def _evidence(message: str, value: str, liking: bool) -> Iterator[str]:
    """The letters of a message, without clauses on which a memory with this value cannot rest.

    "난 떡볶이야" alone may answer what somebody likes; beside another clause it says who she is.
    """
    text = unicodedata.normalize("NFKC", message).lower()
    clauses = [clause for part in _CLAUSES.split(text) if (clause := part.strip())]
    telling = [clause for clause in clauses if _letters(clause) not in _GREETINGS]
    if len(telling) == len(clauses) and not (liking and len(telling) > 1):
        yield _letters(text)  # in one piece: a value may go over a comma
        return
    for clause in telling:
        found = _INTRODUCTION.fullmatch(clause) if liking and len(telling) > 1 else None
        if found is None or _letters(found["who"]) != value:
            yield _letters(clause)


def _letters(text: str) -> str:
    return _LETTERS.sub("", canonical(text))
