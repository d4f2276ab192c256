"""The one text format of training and inference: a plain prompt, a turn with a tag, and the parsers of turns.

    22살 3학년 AI 오로라의 반말 수다              header of the card, optional
    설정: MBTI: ENTJ                            facts of the card that the message asks for, optional
    기억: 이름: 민수; 취미: 등산                  memories, optional
    참고: 나 누구게 → 민수잖아!                   what she answered to messages like this one, optional
    사용자: 안녕                                 earlier turns, optional
    오로라: 왔구나!
    사용자: 나 누군지 기억해?
    오로라: 당연하지, 민수잖아! [기분: 좋음] (기쁨 654)

The completion starts with the space after `오로라:`; no special token of any base model is used. It is the
reply, up to two memories to write, and the expression: label, then one digit each for eyes, mouth and pose.
The reply comes first, so that it can be shown before the rest is there; the expression comes last, so that
it depends on what was said. `parse_turn` takes exactly this format, `parse_completion` makes the best of any
text.

Whatever a person, a memory or an earlier reply says is data: it cannot start a line, a role, a tag or a
memory. Her role is the card's name.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING

from ohlora.attributes import Expression
from ohlora.persona.card import Card
from ohlora.persona.expressions import expression_of, fallback_expression

if TYPE_CHECKING:
    from ohlora.persona.dialogues import DialogueRow

USER = "사용자"
SHE = "오로라"
MEMORY = "기억"
FACTS = "설정"
EXAMPLE = "참고"
ANSWERED = "→"
STOP_SEQUENCES: tuple[str, ...] = (*(f"\n{role}:" for role in (USER, SHE, MEMORY, FACTS, EXAMPLE)), "\n")
"""Generation ends at any of these; a reply is one line, so the last one covers cards of other names."""

TURN_FORMAT = 4
"""Version of prompts and completions; an adapter that was trained on another one is not continued."""

MAX_MEMORIES_WRITTEN = 2
MAX_MEMORY_VALUE = 40
REPLY_FORBIDDEN = "[]\ufffd"
VALUE_FORBIDDEN = "[];\ufffd"

EYE_LEVELS = 9  # steps from closed to wide, also of the mouth
POSE_STEP = 8.0  # degrees
POSE_CENTRE = 4
POSE_LEVELS = 8
JOINER = "\u200d"  # holds an emoji of several parts together; str.isprintable does not count it

_COLON = r"[:∶ː꞉˸։׃᛬⁚]"  # full-width ones are folded before; these only look like one
_BRACKETS = str.maketrans(dict.fromkeys("[{【〔〖⟦", "(") | dict.fromkeys("]}】〕〗⟧", ")"))
_URL = re.compile(r"(?:https?|ftp)\s*:\s*//\S*|\bwww\.\S+", re.IGNORECASE)
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_UNCLOSED_MEMORY = re.compile(r"\[[^\[\]]*:[^\[\]]*$")
_PARENTHESISED = re.compile(r"\(([^()]*)\)")
_UNCLOSED_TAG = re.compile(r"\(([^()]*)$")
_REPEATED_MARK = re.compile(r"([!?.,~…])\1{2,}")
_REPEATED_CHARACTER = re.compile(r"(\S)\1{5,}")
_SPECIAL_TOKEN = re.compile(r"<[/|]?[a-zA-Z_|]+[|]?>|#{2,}|\*{1,}|[`\"“”]")
_HAS_WORD = re.compile(r"[0-9A-Za-z가-힣ㄱ-ㅎㅏ-ㅣ]")


@lru_cache(maxsize=8)
def _role_marker(name: str) -> re.Pattern[str]:
    roles = "|".join(map(re.escape, sorted({USER, SHE, MEMORY, FACTS, EXAMPLE, name})))
    return re.compile(rf"({roles})\s*{_COLON}+\s*")


class EmptyReply(ValueError):
    """Nothing that she could say is left of a completion."""


class TurnError(ValueError):
    """A text is not exactly a turn; the message says where it departs."""


@dataclass(frozen=True)
class ParsedTurn:
    """A completion, taken apart."""

    text: str
    memories_written: list[str]  # `키: 값`
    expression_name: str
    expression: Expression


@dataclass(frozen=True)
class TurnGrammar:
    """What constrained decoding needs to know of a turn, as plain data.

    A turn is ` REPLY[ [KEY: VALUE]]{0,2} (LABEL EMP)`. Characters of REPLY and VALUE are printable
    (`str.isprintable`, or U+200D inside an emoji) and none of the forbidden ones; both hold a Latin letter, a
    digit or Hangul, and neither a double space nor one at an end. In REPLY an opening parenthesis is never
    followed by a label: there the tag begins.
    """

    labels: tuple[str, ...]
    memory_keys: tuple[str, ...]
    most_memories: int
    longest_value: int  # characters
    digits: tuple[str, str, str]  # allowed digits of eyes, mouth and pose
    reply_forbidden: str
    value_forbidden: str


def expression_levels(expression: Expression) -> tuple[int, int, int]:
    """The nearest levels of eyes (0..9), mouth (0..9) and pose (0..8, 4 is frontal), clipped.

    >>> expression_levels(Expression(eyes=0.62, mouth=0.5, pose=-5))
    (6, 5, 3)
    """
    values = (
        expression.eyes * EYE_LEVELS,
        expression.mouth * EYE_LEVELS,
        expression.pose / POSE_STEP + POSE_CENTRE,
    )
    eyes, mouth, pose = (
        min(most, max(0, math.floor(value + 0.5)))
        for value, most in zip(values, (EYE_LEVELS, EYE_LEVELS, POSE_LEVELS), strict=True)
    )
    return eyes, mouth, pose


def expression_of_levels(eyes: int, mouth: int, pose: int) -> Expression:
    """The continuous expression of three levels: eyes/9, mouth/9 and (pose - 4) * 8 degrees."""
    return Expression(eyes=eyes / EYE_LEVELS, mouth=mouth / EYE_LEVELS, pose=(pose - POSE_CENTRE) * POSE_STEP)


def turn_grammar(card: Card) -> TurnGrammar:
    """The grammar of turns of a card."""
    return TurnGrammar(
        labels=tuple(card.labels),
        memory_keys=tuple(card.memory_keys),
        most_memories=MAX_MEMORIES_WRITTEN,
        longest_value=MAX_MEMORY_VALUE,
        digits=("0123456789", "0123456789", "012345678"),
        reply_forbidden=REPLY_FORBIDDEN,
        value_forbidden=VALUE_FORBIDDEN,
    )


def sanitize(text: str, name: str = SHE) -> str:
    """Text that is safe inside a prompt line: no line break, role marker, square bracket or hidden character.

    Idempotent. Hangul written as single jamo is composed first, so that `사용자:` cannot hide in it.

    Args:
        text: what somebody wrote.
        name: her role in the prompt, the card's name.
    """
    marker = _role_marker(name)
    return _until_stable(
        _fold(text).translate(_BRACKETS),
        lambda t: unicodedata.normalize("NFC", " ".join(marker.sub(r"\1 ", t).split())),
    )


def render_prompt(
    card: Card,
    memories: Sequence[str],
    history: Sequence[tuple[str, str]],
    user: str,
    on: date | None = None,
    look_up: bool = True,
    examples: Sequence[tuple[str, str]] = (),
) -> str:
    """The prompt of one turn, ending in `오로라:` without a space.

    Args:
        card: gives the header line and the facts that `user` asks for.
        memories: `키: 값` strings, best first.
        history: earlier turns as (user, reply), oldest first.
        user: what the person says now.
        on: the day on which it is said, for her age and school year; None for today.
        look_up: give the facts of the card that `user` asks for.
        examples: what was answered to messages like this one as (user, reply), the most like it last.
    """
    facts = card.facts_for(user, on or date.today()) if look_up else []
    header = card.filled(card.header, on or date.today())
    lines = [header] if header else []
    for kind, texts in ((FACTS, facts), (MEMORY, memories)):
        known = [text for text in (sanitize(t, card.name).replace(";", ",") for t in texts) if text]
        if known:
            lines.append(f"{kind}: {'; '.join(known)}")
    for said, answered in examples:
        question, reply = (_said(text, card).replace(ANSWERED, " ") for text in (said, answered))
        lines.append(f"{EXAMPLE}: {question} {ANSWERED} {reply}")
    for said, answered in history:
        lines += [f"{USER}: {_said(said, card)}", f"{card.name}: {_said(answered, card)}"]
    lines += [f"{USER}: {_said(user, card)}", f"{card.name}:"]
    return "\n".join(lines)


def render_completion(row: DialogueRow, card: Card, on: date | None = None) -> str:
    """What the model shall write after the prompt: ` reply [키: 값] (label EMP)`, without an end token.

    Args:
        row: gives the reply, the memories to write and the expression.
        card: gives the label and fills the placeholders of the reply.
        on: the day on which it is said; None for today.
    """
    memories = "".join(f" [{memory}]" for memory in row.memories_written)
    levels = "".join(map(str, expression_levels(row.face)))
    label = card.expressions[row.expression].label
    return f" {card.filled(row.reply, on or date.today())}{memories} ({label} {levels})"


def parse_turn(text: str, card: Card) -> ParsedTurn:
    """Read a completion that is exactly of the format; nothing is tolerated.

    Raises:
        TurnError: the text departs from the format; the message says where.
    """
    if not text.startswith(" "):
        raise TurnError("a turn starts with a space")
    tag = re.search(r" \(([^()\[\]]*) ([0-9])([0-9])([0-8])\)\Z", text)
    if tag is None or tag.group(1) not in card.labels:
        raise TurnError(f"a turn ends in ' (LABEL EMP)' with a label of the card, not in {text[-20:]!r}")
    reply, *bracketed = text[1 : tag.start()].split(" [")
    if len(bracketed) > MAX_MEMORIES_WRITTEN:
        raise TurnError(f"{len(bracketed)} memories; at most {MAX_MEMORIES_WRITTEN} may be written")
    memories = [_exact_memory(part, card) for part in bracketed]
    _require_line("the reply", reply, REPLY_FORBIDDEN)
    for label in card.labels:
        if f"({label}" in reply:
            raise TurnError(f"the reply holds '({label}', which begins the tag")
    eyes, mouth, pose = (int(tag.group(i)) for i in (2, 3, 4))
    return ParsedTurn(reply, memories, card.labels[tag.group(1)], expression_of_levels(eyes, mouth, pose))


def parse_completion(text: str, card: Card) -> ParsedTurn:
    """Take a raw completion apart into speech, memories and expression, whatever the model wrote.

    Only the first line that says anything counts, up to the first role marker. A tag with digits decides the
    expression, or else the first known label or name in brackets with the card's values for it; without any
    the fallback policy does. Memories of unknown keys, without or with overlong values and beyond the second
    are dropped. Never returns an empty text.

    Raises:
        EmptyReply: nothing to say is left.
    """
    line = _first_turn(text, card)
    names = _names(card)
    memories: list[str] = []
    tags: list[tuple[str, Expression | None]] = []

    def bracketed(match: re.Match[str]) -> str:
        body = match.group(1).strip()
        memory = _memory(body, card)
        if tag := _tag(body, names):
            tags.append(tag)
        elif memory and memory not in memories and len(memories) < MAX_MEMORIES_WRITTEN:
            memories.append(memory)
        return " "

    line = _BRACKETED.sub(bracketed, line)
    line = _UNCLOSED_MEMORY.sub(" ", line)  # cut off by the token limit
    if (cut := _UNCLOSED_TAG.search(line)) and (tag := _tag(cut.group(1), names)):  # likewise
        tags.append((tag[0], None))
        line = line[: cut.start()]
    tags = [tag for body in _PARENTHESISED.findall(line) if (tag := _tag(body, names))] or tags
    speech = _clean(line, names, card.name)
    if not _HAS_WORD.search(speech):
        raise EmptyReply("the completion holds no speech")
    name, expression = next(
        (tag for tag in reversed(tags) if tag[1] is not None),
        tags[0] if tags else (fallback_expression(speech, card), None),
    )
    return ParsedTurn(speech, memories, name, expression or expression_of(name, card))


def _names(card: Card) -> dict[str, str]:
    """What may stand for an expression in a tag -> its name."""
    return {name: name for name in card.expressions} | card.labels


def _tag(body: str, names: dict[str, str]) -> tuple[str, Expression | None] | None:
    """Name and, with three proper digits, values of the tag in a pair of brackets; None if it is no tag."""
    body = body.strip()
    name = body.rstrip("0123456789")
    digits = body[len(name) :]
    name = name.rstrip()
    if name not in names:
        return (names[body], None) if body in names else None
    if len(digits) != 3 or int(digits[2]) > POSE_LEVELS:
        return names[name], None
    eyes, mouth, pose = map(int, digits)
    return names[name], expression_of_levels(eyes, mouth, pose)


def _require_line(what: str, text: str, forbidden: str) -> None:
    if text != " ".join(text.split()):
        raise TurnError(f"{what} has a double space or one at an end, or is more than one line")
    for c in text:
        if c in forbidden or not (c.isprintable() or c == JOINER):
            raise TurnError(f"{what} holds {c!r}")
    if not _HAS_WORD.search(text):
        raise TurnError(f"{what} says nothing")


def _exact_memory(part: str, card: Card) -> str:
    if not part.endswith("]"):
        raise TurnError(f"memory '[{part}' does not end in ']'")
    memory = part[:-1]
    key, colon, value = memory.partition(": ")
    if not colon or key not in card.memory_keys:
        raise TurnError(f"memory {memory!r} has no key of the card")
    _require_line(f"the value of {key}", value, VALUE_FORBIDDEN)
    if len(value) > MAX_MEMORY_VALUE:
        raise TurnError(f"the value of {key} has {len(value)} characters; at most {MAX_MEMORY_VALUE}")
    return memory


def _visible(text: str) -> str:
    """Drop control, format, surrogate, private and unassigned characters; line breaks become spaces."""
    return "".join(
        " " if c.isspace() else c for c in text if c.isspace() or not unicodedata.category(c).startswith("C")
    ).replace("�", "")


def _fold(text: str) -> str:
    """Visible, composed text with full-width punctuation as ASCII.

    Not NFKC as a whole: it would take the letters of `ㅋㅋ` for the jamo of a syllable.
    """
    folded = []
    for c in unicodedata.normalize("NFC", _visible(text)):
        plain = unicodedata.normalize("NFKC", c) if unicodedata.category(c).startswith(("P", "S")) else c
        folded.append(plain if len(plain) == 1 and plain.isascii() else c)
    return "".join(folded)


def _said(text: str, card: Card) -> str:
    """Sanitised speech in which an expression tag has lost its brackets."""
    names = _names(card)

    def bare(match: re.Match[str]) -> str:
        return match.group(1).strip() if _tag(match.group(1), names) else match.group(0)

    return _until_stable(sanitize(text, card.name), lambda t: _PARENTHESISED.sub(bare, t))


def _first_turn(text: str, card: Card) -> str:
    role = _role_marker(card.name)
    own = re.compile(rf"^\s*(?:{re.escape(card.name)}\s*{_COLON}+\s*)+")
    lines: list[str] = []
    for part in text.splitlines():
        line = own.sub("", _fold(part))  # some completions repeat the role they were given
        marker = role.search(_BRACKETED.sub(lambda m: " " * len(m.group(0)), line))
        if marker:
            line = line[: marker.start()]
        lines.append(line)
        # A tag or a memory alone on its line belongs to the reply that follows.
        if marker or _HAS_WORD.search(_PARENTHESISED.sub("", _BRACKETED.sub("", line))):
            break
    return " ".join(lines)


def _memory(body: str, card: Card) -> str | None:
    key, colon, value = body.partition(":")
    key, value = " ".join(key.split()), sanitize(value, card.name).replace(";", ",").strip(" ,")
    if not colon or key not in card.memory_keys or not 0 < len(value) <= MAX_MEMORY_VALUE:
        return None
    return f"{key}: {value}" if _HAS_WORD.search(value) else None


def _clean(line: str, names: dict[str, str], name: str) -> str:
    marker = _role_marker(name)

    def untagged(match: re.Match[str]) -> str:
        body = match.group(1)
        return " " if not body.strip() or _tag(body, names) else match.group(0)

    def once(text: str) -> str:
        text = _URL.sub(" ", text)
        text = _SPECIAL_TOKEN.sub(" ", text)
        text = _PARENTHESISED.sub(untagged, text)
        text = _balanced(text)
        text = marker.sub(r"\1 ", text)
        text = _REPEATED_MARK.sub(r"\1\1", text)
        text = _REPEATED_CHARACTER.sub(r"\1\1\1", text)
        text = re.sub(r"\s+([!?.,~…])", r"\1", text)
        return " ".join(text.split()).lstrip(":;,.-–—·>|/ ").rstrip(":;-–—·<|/ ")

    return unicodedata.normalize("NFC", _until_stable(line, once))


def _until_stable(text: str, change: Callable[[str], str]) -> str:
    """Apply a change until nothing changes: what one removal brings together is removed as well.

    Ends, because no change in this module lengthens a text and each takes marks away.
    """
    previous = None
    while previous != text:
        previous, text = text, change(text)
    return text


def _balanced(line: str) -> str:
    """Drop square and curly brackets, and parentheses without a partner."""
    keep: list[str | None] = list(line)
    opened: list[int] = []
    for i, c in enumerate(line):
        if c in "[]{}":
            keep[i] = None
        elif c == "(":
            opened.append(i)
        elif c == ")":
            if opened:
                opened.pop()
            else:
                keep[i] = None
    for i in opened:
        keep[i] = None
    return "".join(c for c in keep if c is not None)
