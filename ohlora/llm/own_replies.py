"""Replies that she gave herself, sorted by rules: what preference training learns from besides written ones.

A small network does not always say the fact that its prompt shows. Which of its own replies do so can be told
without a model: the written reply of the same training row says some words of that fact. So training sees its
own mistakes, and its own right answers, instead of made-up ones; KTO (arXiv:2402.01306) needs no pairs.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from ohlora.artifacts import ArtifactError
from ohlora.llm.undesirable import LITTLE_HANGUL, Preference, Spoiler, fault_of
from ohlora.persona.card import Card
from ohlora.persona.dialogues import normalise
from ohlora.persona.expressions import expression_of, fallback_expression
from ohlora.persona.prompt import FACTS, USER, ParsedTurn, TurnError, parse_turn, render_prompt

WRONG_FACT = "wrong fact"
AGREES = "agrees with a false claim"

_AGREEING = re.compile(r"(?:(?:응|어|네|예|웅)(?![가-힣])|맞아|맞지|정답|그렇지|인정)")
_WORD = re.compile(r"[0-9]+[년월일살]?|[A-Za-z][A-Za-z-]+|[가-힣]{2,}")
_SPACE = re.compile(r"\s+")


@dataclass
class OwnReplies:
    """Sampled replies by what the rules say of them."""

    wanted: list[Preference] = field(default_factory=list)
    unwanted: list[Preference] = field(default_factory=list)


def read_own_replies(path: Path, card: Card, rows: Sequence[dict[str, Any]] = ()) -> OwnReplies:
    """Sort the replies of a file.

    A reply is unwanted that says nothing, loops, is cut off, is in the wrong register or holds little Hangul.
    If its message is that of a training row whose written reply says a fact of the card, it is also unwanted
    without a word of that fact, or if it begins by agreeing where the written reply does not; such a row's
    written reply is wanted then. A reply with all words of the fact is wanted. Others are left out.

    Args:
        path: CSV with the columns `prompt` (what the person said) and `reply`, as `ohlora reply` writes it;
            `finish_reason` is read where it is there.
        card: says which register is wanted.
        rows: of the stage `dialogues`, train split.

    Raises:
        ArtifactError: the file is missing, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            lines = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"preference.samples: {path} cannot be read as CSV: {error}") from error
    if lines and not {"prompt", "reply"} <= lines[0].keys():
        raise ArtifactError(f"preference.samples: {path} needs the columns prompt and reply")
    known = {normalise(row["user"]): row for row in reversed(rows) if not row["memories_read"]}
    write = Spoiler([], card).write
    found, corrected = OwnReplies(), set()
    for line in lines:
        message, reply = line["prompt"] or "", " ".join((line["reply"] or "").split())
        if not re.search(r"\w", reply) or set("[]()") & set(reply) or line.get("finish_reason") == "error":
            continue
        fault = fault_of(line["reply"] or "", card, line.get("finish_reason") or "")
        row = known.get(normalise(message))
        if row is None:
            prompt, name = render_prompt(card, [], [], message), fallback_expression(reply, card)
            said = ParsedTurn(reply, [], name, expression_of(name, card))
        else:
            prompt, written = alone(row, card), _turn_of(row, card)
            said = replace(written, text=reply)
            words = _lasting(fact_words(prompt, written.text), message, card)
            if words and fault in ("", LITTLE_HANGUL):  # the fact itself may be in Latin letters
                fault = fact_fault(reply, written.text, words)
                if fault and prompt not in corrected:
                    corrected.add(prompt)
                    found.wanted.append(_speech(prompt, row["completion"], "written"))
                elif not fault and all(_holds(reply, word) for word in words):
                    found.wanted.append(_speech(prompt, write(said), "sampled: right fact"))
        if fault:
            found.unwanted.append(_speech(prompt, write(said), f"sampled: {fault}", desirable=False))
    return found


def _speech(prompt: str, completion: str, kind: str, desirable: bool = True) -> Preference:
    return Preference(prompt, completion, desirable, kind, speech_only=True)


def alone(row: dict[str, Any], card: Card) -> str:
    """The prompt of a row's message in a chat that begins with it."""
    return render_prompt(card, [], [], row["user"], date.fromisoformat(row["day"]))


def fact_words(prompt: str, reply: str) -> list[str]:
    """Words of the prompt's facts that a written reply says, as it says them: without particles.

    >>> fact_words("설정: 생일: 10월 11일; MBTI: ENTJ\\n사용자: 생일 5월이지?", "아니, 10월 11일이야!")
    ['10월', '11일']
    >>> fact_words("설정: 고등학교: 알파고등학교\\n사용자: 고등학교 어디?", "나 알파고 나왔어.")
    ['알파고']
    """
    shown = next((line for line in prompt.splitlines() if line.startswith(f"{FACTS}: ")), "")
    found: list[str] = []
    for fact in shown.removeprefix(f"{FACTS}: ").split("; "):
        for word in _WORD.findall(fact.partition(": ")[2]):
            said = (word[:n] for n in range(len(word), 1, -1) if not word[:n].isdigit())
            longest = next((part for part in said if _holds(reply, part)), None)
            if longest and longest not in found:
                found.append(longest)
    return found


def fact_fault(reply: str, written: str, words: Sequence[str]) -> str:
    """What is wrong with a reply to a message that asks for a fact, or nothing.

    >>> fact_fault("응, 나 INFP야!", "아니, 난 ENTJ야.", ["ENTJ"])
    'agrees with a false claim'
    >>> fact_fault("ENTJ라니까", "난 ENTJ야.", ["ENTJ"])
    ''
    """
    if _AGREEING.match(reply) and not _AGREEING.match(written):
        return AGREES
    return "" if any(_holds(reply, word) for word in words) else WRONG_FACT


def _lasting(words: Sequence[str], message: str, card: Card) -> list[str]:
    """Words of facts that are true on every day; none of them where some are not, as her age."""
    days = (card.born + timedelta(days=365 * years) for years in (20, 30))
    shown = [render_prompt(card, [], [], message, day).partition(f"\n{USER}: ")[0] for day in days]
    return list(words) if all(_holds(facts, word) for facts in shown for word in words) else []


def _turn_of(row: dict[str, Any], card: Card) -> ParsedTurn:
    try:
        return parse_turn(row["completion"], card)
    except TurnError as error:
        raise ArtifactError(f"row {row['id']} is not of the format of a turn: {error}") from error


def _holds(text: str, word: str) -> bool:
    """Whether a text holds a word, whatever the spacing and case; a number only as a whole."""
    before = r"(?<!\d)" if word[:1].isdigit() else ""
    squeezed = _SPACE.sub("", text.lower())
    return re.search(before + re.escape(_SPACE.sub("", word.lower())), squeezed) is not None
