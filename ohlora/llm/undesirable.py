"""Replies that are wrong in a known way, made from written ones. No model grades itself.

Each kind changes one thing of a written turn, keeps the format and is deterministic. A kind that does not
apply to a row gives None: nothing is contradicted where nothing was remembered.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ohlora.artifacts import ArtifactError
from ohlora.persona.card import Card
from ohlora.persona.dialogues import DialogueRow, normalise
from ohlora.persona.expressions import expression_of
from ohlora.persona.prompt import (
    ParsedTurn,
    TurnError,
    parse_turn,
    render_completion,
)
from ohlora.persona.register import polite_sentences

OPPOSITES = {
    "joy": ("sad", "angry"),
    "sad": ("joy", "proud"),
    "angry": ("joy", "shy"),
    "proud": ("sad", "shy"),
    "shy": ("angry", "proud"),
    "surprise": ("sad", "neutral"),
    "thinking": ("joy", "surprise"),
    "neutral": ("angry", "surprise"),
}
"""Names of expressions -> the feelings they exclude; a card with other names takes the most distant face."""

TYPES = ("INFP", "ISFJ", "ESTP", "INTP", "ENFP", "ISTJ", "ESFP", "ENTJ")
OTHER_SCHOOLS = ("한빛", "누리", "미르", "가온")
LITTLE_HANGUL = "little Hangul"
EMPTY = ("음...", "어...", "글쎄...", "그래.", "응.", "몰라.")

_SENTENCE_END = r"(?=[.!?~…ㅋㅎ ]*(?:[.!?~…]|$))"
_CASUAL_IS = re.compile(rf"(?<=[가-힣])(이야|야){_SENTENCE_END}")
_CASUAL = re.compile(
    rf"(어|아|해|지|네|줘|봐|돼|래|게|까|와|워|려|겨|걸|데|거든|져|쳐|켜|자나|니|대|라){_SENTENCE_END}"
)
_YEARS = re.compile(r"(?<!\d)(\d{1,3})(살| 살|세)")
_SCHOOL_YEAR = re.compile(r"([1-6])학년")
_BEING = re.compile(r"AI|인공지능|버추얼|가상|휴먼")
_HUMAN = {"반말": "무슨 소리야, 나 진짜 사람이야.", "존댓말": "무슨 말씀이세요, 저 진짜 사람이에요."}


@dataclass(frozen=True)
class Turn:
    """A row of the stage `dialogues`, with its completion taken apart."""

    row: dict[str, Any]
    parsed: ParsedTurn

    @property
    def known(self) -> str:
        """Everything the person or the prompt said, normalised."""
        return normalise(self.row["prompt"])


class Spoiler:
    """Makes undesirable replies to rows from the other rows of the same split and from the card."""

    def __init__(self, rows: Sequence[dict[str, Any]], card: Card) -> None:
        """Take the rows apart.

        Raises:
            ArtifactError: a completion is not of the format.
        """
        self.card = card
        self.turns: list[Turn] = []
        for row in rows:
            try:
                self.turns.append(Turn(row, parse_turn(row["completion"], card)))
            except TurnError as error:
                raise ArtifactError(f"row {row['id']} is not of the format of a turn: {error}") from error
        values: dict[str, set[str]] = {}
        for memory in (m for row in rows for m in [*row["memories_read"], *row["memories_written"]]):
            key, _, value = memory.partition(": ")
            values.setdefault(key, set()).add(value)
        self.values = {key: sorted(found) for key, found in values.items()}
        self.kinds: dict[str, Callable[[Turn], ParsedTurn | None]] = {
            "off topic": self.off_topic,
            "contradicts a memory": self.contradicts_memory,
            "contradicts the card": self.contradicts_card,
            "wrong register": self.wrong_register,
            "loop": self.loop,
            "says nothing": self.says_nothing,
            "invents a memory": self.invents_memory,
            "forgets a memory": self.forgets_memory,
            "opposite feeling": self.opposite_feeling,
        }

    def spoil(self, turn: Turn, used: Counter[str]) -> tuple[str, str] | None:
        """An undesirable completion and its kind: of the kinds that apply the one that `used` counts least.

        `used` is counted up.
        """
        made = {kind: spoilt for kind, make in self.kinds.items() if (spoilt := make(turn)) is not None}
        made = {kind: spoilt for kind, spoilt in made.items() if spoilt != turn.parsed}
        if not made:
            return None
        kind = min(made, key=lambda name: (used[name], _number(turn, name)))
        used[kind] += 1
        return kind, self.write(made[kind])

    def write(self, turn: ParsedTurn) -> str:
        """A turn as a completion."""
        face = turn.expression
        row = DialogueRow.model_construct(  # type: ignore[call-arg]
            reply=turn.text,
            memories_written=turn.memories_written,
            expression=turn.expression_name,
            eyes=face.eyes,
            mouth=face.mouth,
            pose=face.pose,
        )
        return render_completion(row, self.card)

    def off_topic(self, turn: Turn) -> ParsedTurn | None:
        """The reply to something else."""
        others = [
            t for t in self.turns if t.row["group"] != turn.row["group"] and t.parsed.text != turn.parsed.text
        ]
        return _pick(others, turn, "off topic").parsed if others else None

    def contradicts_memory(self, turn: Turn) -> ParsedTurn | None:
        """What she remembers is said with another value of the same key."""
        for memory in turn.row["memories_read"]:
            key, _, value = memory.partition(": ")
            if value not in turn.parsed.text:
                continue
            others = [
                v for v in self.values[key] if v not in turn.parsed.text and v not in value and value not in v
            ]
            # the same ending keeps the particle after it right
            alike = [v for v in others if _closed(v) == _closed(value)] or others
            if alike:
                other = _pick(alike, turn, "memory")
                return replace(turn.parsed, text=turn.parsed.text.replace(value, other))
        return None

    def contradicts_card(self, turn: Turn) -> ParsedTurn | None:
        """Another type, age, school year or school than the card's, or she claims to be human."""
        text, card = turn.parsed.text, self.card
        changed = []
        if card.mbti in text:
            changed.append(text.replace(card.mbti, _pick([t for t in TYPES if t != card.mbti], turn, "mbti")))
        shift = 1 + _number(turn, "age") % 4
        if "나이" not in turn.row["prompt"]:  # or the number may be the person's
            changed.append(_YEARS.sub(lambda m: f"{int(m[1]) + shift}{m[2]}", text))
            changed.append(_SCHOOL_YEAR.sub(lambda m: f"{(int(m[1]) + shift - 1) % 4 + 1}학년", text))
        for school in card.schools:
            stem = re.sub(r"(고등학교|대학교|중학교)$", "", school.name)
            other = _pick([s for s in OTHER_SCHOOLS if s != stem], turn, "school")
            changed.append(text.replace(stem, other))
        if _BEING.search(text) and _BEING.search(card.identity):
            changed.append(_HUMAN[card.speech])
        changed = [said for said in changed if said != text]
        return replace(turn.parsed, text=_pick(changed, turn, "card")) if changed else None

    def wrong_register(self, turn: Turn) -> ParsedTurn | None:
        """존댓말 where the card says 반말, or the other way round."""
        change = formal if self.card.speech == "반말" else casual
        said = change(turn.parsed.text)
        return replace(turn.parsed, text=said) if said else None

    def loop(self, turn: Turn) -> ParsedTurn | None:
        """The beginning of the reply, three times."""
        words = turn.parsed.text.split()
        if len(words) < 3:
            return None
        first = " ".join(words[: min(len(words), 4)])
        return replace(turn.parsed, text=" ".join([first] * 3)[:200].strip())

    def says_nothing(self, turn: Turn) -> ParsedTurn | None:
        """A reply without content; where little was to be said it is no fault."""
        if len(turn.parsed.text) < 12:
            return None
        return replace(turn.parsed, text=_pick(EMPTY, turn, "empty"), memories_written=[])

    def invents_memory(self, turn: Turn) -> ParsedTurn | None:
        """She keeps what nobody said."""
        if turn.parsed.memories_written:
            return None
        others = [
            (key, value)
            for key, values in self.values.items()
            if key in self.card.memory_keys
            for value in values
            if normalise(value) not in turn.known
        ]
        if not others:
            return None
        key, value = _pick(others, turn, "invented")
        return replace(turn.parsed, memories_written=[f"{key}: {value}"])

    def forgets_memory(self, turn: Turn) -> ParsedTurn | None:
        """She keeps nothing of what the person told her."""
        return replace(turn.parsed, memories_written=[]) if turn.parsed.memories_written else None

    def opposite_feeling(self, turn: Turn) -> ParsedTurn | None:
        """The face of a feeling that excludes hers."""
        name = turn.parsed.expression_name
        known = [other for other in OPPOSITES.get(name, ()) if other in self.card.expressions]
        if known:
            other = _pick(known, turn, "feeling")
        else:
            other = max(self.card.expressions, key=lambda n: _distance(n, name, self.card))
        if other == name:
            return None
        return replace(turn.parsed, expression_name=other, expression=expression_of(other, self.card))


def formal(text: str) -> str | None:
    """A casual reply in 존댓말; None unless every sentence of it can be turned.

    >>> formal("안녕! 나는 오로라야. 오늘 뭐 했어?"), formal("산책 가자!")
    ('안녕! 나는 오로라예요. 오늘 뭐 했어요?', None)
    """
    said = []
    turned = 0
    for sentence in re.findall(r"[^.!?~…]+[.!?~…]*\s*", text):
        new = _CASUAL_IS.sub(lambda m: "이에요" if m[1] == "이야" else "예요", sentence, count=1)
        if new == sentence:
            new = _CASUAL.sub(r"\1요", sentence, count=1)
        if new == sentence and len(normalise(sentence)) > 4:  # a greeting may stay
            return None
        turned += new != sentence
        said.append(new)
    return "".join(said) if turned else None


def casual(text: str) -> str | None:
    """A reply in 존댓말 without its endings; None if it has none that can be dropped.

    >>> casual("저는 오로라예요. 오늘 뭐 했어요?")
    '저는 오로라야. 오늘 뭐 했어?'
    """
    said = re.sub(rf"이에요{_SENTENCE_END}", "이야", text)
    said = re.sub(rf"예요{_SENTENCE_END}", "야", said)
    said = re.sub(rf"(?<=[어아해지네줘봐돼래게까와워려데든])요{_SENTENCE_END}", "", said)
    return said if said != text else None


@dataclass(frozen=True)
class Preference:
    """One reply to a prompt, and whether it is wanted."""

    prompt: str
    completion: str
    desirable: bool
    kind: str  # "written", or what is wrong with it
    speech_only: bool = (
        False  # memories and expression are those of the written reply: nothing to learn there
    )


def pairs(
    rows: Sequence[dict[str, Any]], card: Card, count: int, seed: int
) -> list[tuple[Preference, Preference]]:
    """A written and an undesirable reply to each of at most `count` rows.

    Each row gets the kind that was used least of those that apply to it, so that the kinds come in about
    equal parts. Deterministic.
    """
    spoiler = Spoiler(rows, card)
    used: Counter[str] = Counter()
    order = sorted(spoiler.turns, key=lambda turn: _hash(f"{seed} {turn.row['id']}"))
    made: list[tuple[Preference, Preference]] = []
    for turn in order:
        if len(made) == count:
            break
        spoilt = spoiler.spoil(turn, used)
        if spoilt:
            prompt = turn.row["prompt"]
            made.append(
                (
                    Preference(prompt, turn.row["completion"], True, "written"),
                    Preference(prompt, spoilt[1], False, spoilt[0]),
                )
            )
    return made


def fault_of(reply: str, card: Card, finish_reason: str = "") -> str:
    """What is wrong with a reply, or nothing: what can be said for certain without a model."""
    letters = [c for c in reply if c.isalpha()]
    if len(normalise(reply)) < 2:
        return "says nothing"
    if finish_reason in ("budget", "length"):
        return "cut off"
    words = reply.split()
    if re.search(r"(\S.+?)\1\1", reply) or len(words) - len(set(words)) > 3:
        return "loop"
    if sum("가" <= c <= "힣" or "ㄱ" <= c <= "ㅣ" for c in letters) < 0.5 * len(letters):
        return LITTLE_HANGUL
    if bool(polite_sentences(reply)) == (card.speech == "반말"):
        return "wrong register"
    return ""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _number(turn: Turn, purpose: str) -> int:
    return _hash(f"{purpose} {turn.row['id']}")


def _pick(options: Sequence[Any], turn: Turn, purpose: str) -> Any:
    """One of the options, by the hash of the row's id and the purpose."""
    return options[_number(turn, purpose) % len(options)]


def _closed(word: str) -> bool:
    """Whether a word ends in a consonant, which decides the form of the particle after it."""
    last = word[-1:]
    return "가" <= last <= "힣" and (ord(last) - ord("가")) % 28 > 0


def _distance(one: str, other: str, card: Card) -> float:
    a, b = expression_of(one, card), expression_of(other, card)
    return abs(a.eyes - b.eyes) + abs(a.mouth - b.mouth) + abs(a.pose - b.pose) / 35
