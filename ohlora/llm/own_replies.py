"""Replies that she gave herself, sorted by readers or rules: preference training learns from them, too.

A reply that somebody read has a grade. Of the others rules tell some: a small network does not always say the
fact that its prompt shows, and the written reply of the same training row says some words of that fact. So
training sees its own mistakes, and its own right answers, instead of made-up ones; KTO (arXiv:2402.01306)
needs no pairs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
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
from ohlora.persona.facts import holds, words_said
from ohlora.persona.prompt import FACTS, USER, ParsedTurn, TurnError, parse_turn, render_prompt

WRONG_FACT = "wrong fact"
AGREES = "agrees with a false claim"
FITS, MISSES = "graded: fits", "graded: misses"
GRADES = ("0", "1", "2")  # misses, vague or a little odd, fits
WRITTEN = "written"  # in the place of a reason to finish: by a reader
HELD_OUT = 12  # every so many graded messages is kept apart, to tell which step is best

_AGREEING = re.compile(r"(?:(?:응|어|네|예|웅)(?![가-힣])|맞아|맞지|정답|그렇지|인정)")


@dataclass
class OwnReplies:
    """Sampled replies by what readers or rules say of them."""

    wanted: list[Preference] = field(default_factory=list)
    unwanted: list[Preference] = field(default_factory=list)
    held: list[tuple[Preference, Preference]] = field(default_factory=list)
    """A wanted and an unwanted reply to each graded message that is kept apart."""


def read_own_replies(path: Path, card: Card, rows: Sequence[dict[str, Any]] = ()) -> OwnReplies:
    """Sort the replies of a file.

    A reply with a grade goes by it: 2 is wanted, 0 unwanted. 1 is wanted where she gave no better one, and
    else neither: of what she can say to a message, the best is to become likelier. Every `HELD_OUT`th message
    with grades is kept apart, by its hash.

    Without a grade, a reply is unwanted that says nothing, loops, is cut off, is in the wrong register or
    holds little Hangul. If its message is that of a training row whose written reply says a fact of the card,
    it is also unwanted without a word of that fact, or if it begins by agreeing where the written reply does
    not; such a row's written reply is wanted then. A reply with all words of the fact is wanted. Others are
    left out.

    Args:
        path: CSV with the columns `prompt` (what the person said) and `reply`, as `ohlora reply` writes it;
            `finish_reason`, `grade` and `history` (JSON: the turns before, as [person, she]) are read where
            they are there. With `finish_reason` "written" the reply is a reader's own, and not hers.
        card: says which register is wanted.
        rows: of the stage `dialogues`, train split.

    Raises:
        ArtifactError: the file is missing, lacks a column, or has a grade or history that cannot be read.
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
    graded: dict[str, list[Graded]] = defaultdict(list)
    for number, line in enumerate(lines, 2):
        message, reply = line["prompt"] or "", " ".join((line["reply"] or "").split())
        grade = (line.get("grade") or "").strip()
        if grade and grade not in GRADES:
            raise ArtifactError(
                f"preference.samples: {path}, line {number}: the grade is {grade!r}, not 0, 1 or 2"
            )
        if not re.search(r"\w", reply) or set("[]()") & set(reply) or line.get("finish_reason") == "error":
            continue
        if grade:
            history = _history(line.get("history") or "", f"{path}, line {number}")
            prompt, name = render_prompt(card, [], history, message), fallback_expression(reply, card)
            completion = write(ParsedTurn(reply, [], name, expression_of(name, card)))
            hers = line.get("finish_reason") != WRITTEN
            graded[prompt].append(Graded(completion, int(grade), hers))
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
                elif not fault and all(holds(reply, word) for word in words):
                    found.wanted.append(_speech(prompt, write(said), "sampled: right fact"))
        if fault:
            found.unwanted.append(_speech(prompt, write(said), f"sampled: {fault}", desirable=False))
    for prompt, replies in graded.items():
        fitting, missing = by_grade(prompt, replies)
        if not _kept_apart(prompt):
            found.wanted += fitting
            found.unwanted += missing
        elif fitting and missing:
            found.held.append((fitting[0], missing[0]))
    return found


@dataclass(frozen=True)
class Graded:
    """A reply that somebody read."""

    completion: str
    grade: int
    hers: bool  # or else the reader's own


def by_grade(prompt: str, replies: Sequence[Graded]) -> tuple[list[Preference], list[Preference]]:
    """The wanted and the unwanted of the graded replies to one message, her own first."""
    best = max((reply.grade for reply in replies if reply.hers), default=2)
    order = sorted(replies, key=lambda reply: not reply.hers)
    good = [r for r in order if r.grade == 2 or (r.grade == 1 and r.hers and best == 1)]
    fitting = [_speech(prompt, r.completion, FITS) for r in good]
    missing = [_speech(prompt, r.completion, MISSES, desirable=False) for r in order if r.grade == 0]
    return fitting, missing


def _history(text: str, where: str) -> list[tuple[str, str]]:
    """The turns before a message.

    Raises:
        ArtifactError: the text is not a JSON list of pairs of texts.
    """
    try:
        return [(str(person), str(she)) for person, she in json.loads(text or "[]")]
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"preference.samples: {where}: the history is no JSON list of [person, she]: {error}"
        ) from error


def _kept_apart(prompt: str) -> bool:
    said = prompt[prompt.rfind(f"\n{USER}: ") :]  # the prompt's facts and its date may change
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big") % HELD_OUT == 0


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
    return words_said(shown.removeprefix(f"{FACTS}: ").split("; "), reply)


def fact_fault(reply: str, written: str, words: Sequence[str]) -> str:
    """What is wrong with a reply to a message that asks for a fact, or nothing.

    >>> fact_fault("응, 나 INFP야!", "아니, 난 ENTJ야.", ["ENTJ"])
    'agrees with a false claim'
    >>> fact_fault("ENTJ라니까", "난 ENTJ야.", ["ENTJ"])
    ''
    """
    if _AGREEING.match(reply) and not _AGREEING.match(written):
        return AGREES
    return "" if any(holds(reply, word) for word in words) else WRONG_FACT


def _lasting(words: Sequence[str], message: str, card: Card) -> list[str]:
    """Words of facts that are true on every day; none of them where some are not, as her age."""
    days = (card.born + timedelta(days=365 * years) for years in (20, 30))
    shown = [render_prompt(card, [], [], message, day).partition(f"\n{USER}: ")[0] for day in days]
    return list(words) if all(holds(facts, word) for facts in shown for word in words) else []


def _turn_of(row: dict[str, Any], card: Card) -> ParsedTurn:
    try:
        return parse_turn(row["completion"], card)
    except TurnError as error:
        raise ArtifactError(f"row {row['id']} is not of the format of a turn: {error}") from error
