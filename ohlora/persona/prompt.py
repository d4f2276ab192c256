"""The one text format of training and inference: a plain prompt, a tagged completion, and its robust parser.

    스물두 살 AI 학생 오로라의 반말 수다          header of the card, optional
    기억: 이름: 민수; 취미: 등산                  memories, optional
    사용자: 안녕                                 earlier turns, optional
    오로라: 왔구나!
    사용자: 나 누군지 기억해?
    오로라: (기쁨) 당연하지, 민수잖아! [기분: 좋음]

The completion starts with the space after `오로라:`; no special token of any base model is used. Whatever a
person, a memory or an earlier reply says is data: it cannot start a line, a role, a tag or a memory. Her
role is the card's name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ohlora.persona.card import Card
from ohlora.persona.expressions import fallback_expression

if TYPE_CHECKING:
    from ohlora.persona.dialogues import DialogueRow

USER = "사용자"
SHE = "오로라"
MEMORY = "기억"
STOP_SEQUENCES: tuple[str, ...] = (f"\n{USER}:", f"\n{SHE}:", f"\n{MEMORY}:", "\n")
"""Generation ends at any of these; a reply is one line, so the last one covers cards of other names."""

TURN_FORMAT = 2
"""Version of what `render_completion` writes; an adapter that speaks another one is not continued."""

MAX_MEMORIES_WRITTEN = 2
MAX_MEMORY_VALUE = 40

_COLON = r"[:∶ː꞉˸։׃᛬⁚]"  # full-width ones are folded before; these only look like one
_BRACKETS = str.maketrans(dict.fromkeys("[{【〔〖⟦", "(") | dict.fromkeys("]}】〕〗⟧", ")"))
_URL = re.compile(r"(?:https?|ftp)\s*:\s*//\S*|\bwww\.\S+", re.IGNORECASE)
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_UNCLOSED_MEMORY = re.compile(r"\[[^\[\]]*:[^\[\]]*$")
_PARENTHESISED = re.compile(r"\(([^()]*)\)")
_REPEATED_MARK = re.compile(r"([!?.,~…])\1{2,}")
_REPEATED_CHARACTER = re.compile(r"(\S)\1{5,}")
_SPECIAL_TOKEN = re.compile(r"<[/|]?[a-zA-Z_|]+[|]?>|#{2,}|\*{1,}|[`\"“”]")
_HAS_WORD = re.compile(r"[0-9A-Za-z가-힣ㄱ-ㅎㅏ-ㅣ]")


@lru_cache(maxsize=8)
def _role_marker(name: str) -> re.Pattern[str]:
    roles = "|".join(map(re.escape, sorted({USER, SHE, MEMORY, name})))
    return re.compile(rf"({roles})\s*{_COLON}+\s*")


class EmptyReply(ValueError):
    """Nothing that she could say is left of a completion."""


@dataclass(frozen=True)
class ParsedReply:
    """A completion, taken apart."""

    expression_name: str
    text: str
    memories_written: list[str]


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


def render_prompt(card: Card, memories: Sequence[str], history: Sequence[tuple[str, str]], user: str) -> str:
    """The prompt of one turn, ending in `오로라:` without a space.

    Args:
        card: gives the header line.
        memories: `키: 값` strings, best first.
        history: earlier turns as (user, reply), oldest first.
        user: what the person says now.
    """
    lines = [card.header] if card.header else []
    facts = [fact for fact in (sanitize(memory, card.name).replace(";", ",") for memory in memories) if fact]
    if facts:
        lines.append(f"{MEMORY}: {'; '.join(facts)}")
    for said, answered in history:
        lines += [f"{USER}: {_said(said, card)}", f"{card.name}: {_said(answered, card)}"]
    lines += [f"{USER}: {_said(user, card)}", f"{card.name}:"]
    return "\n".join(lines)


def render_completion(row: DialogueRow, card: Card) -> str:
    """What the model shall write after the prompt: ` (tag) reply [키: 값]`, without an end token."""
    memories = "".join(f" [{memory}]" for memory in row.memories_written)
    return f" ({card.expressions[row.expression].label}) {row.reply}{memories}"


def parse_completion(text: str, card: Card) -> ParsedReply:
    """Take a raw completion apart into expression, speech and memories, whatever the model wrote.

    Only the first line that says anything counts, up to the first role marker. The first known tag decides
    the expression; without one the fallback policy does. Memories of unknown keys, without or with overlong
    values and beyond the second are dropped. Never returns an empty text.

    Raises:
        EmptyReply: nothing to say is left.
    """
    line = _first_turn(text, card)
    names = {name: name for name in card.expressions} | card.labels
    memories: list[str] = []
    tags: list[str] = []

    def bracketed(match: re.Match[str]) -> str:
        body = match.group(1).strip()
        memory = _memory(body, card)
        if body in names:
            tags.append(names[body])
        elif memory and memory not in memories and len(memories) < MAX_MEMORIES_WRITTEN:
            memories.append(memory)
        return " "

    line = _BRACKETED.sub(bracketed, line)
    line = _UNCLOSED_MEMORY.sub(" ", line)  # cut off by the token limit
    tags = [names[t.strip()] for t in _PARENTHESISED.findall(line) if t.strip() in names] or tags
    speech = _clean(line, names, card.name)
    if not _HAS_WORD.search(speech):
        raise EmptyReply("the completion holds no speech")
    return ParsedReply(tags[0] if tags else fallback_expression(speech, card), speech, memories)


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
    labels = {*card.labels, *card.expressions}

    def bare(match: re.Match[str]) -> str:
        body = match.group(1).strip()
        return body if body in labels else match.group(0)

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


def _clean(line: str, tags: Iterable[str], name: str) -> str:
    marker = _role_marker(name)
    known = {*tags, ""}

    def once(text: str) -> str:
        text = _URL.sub(" ", text)
        text = _SPECIAL_TOKEN.sub(" ", text)
        text = _PARENTHESISED.sub(lambda m: " " if m.group(1).strip() in known else m.group(0), text)
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
