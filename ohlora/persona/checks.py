"""Do the card and the dialogues hold? Every problem with file and line, and the figures of a datasheet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ohlora.persona.card import Card, unknown_placeholders
from ohlora.persona.dialogues import (
    SPLITS,
    DialogueError,
    DialogueRow,
    check_row,
    check_splits,
    normalise,
    read_rows,
)
from ohlora.persona.prompt import TurnError, parse_turn, render_completion, sanitize
from ohlora.persona.register import polite_sentences
from ohlora.persona.similarity import near_duplicates
from ohlora.persona_config import PersonaChecks

_SOME_DAY = date(2025, 12, 1)  # any day will do: what is checked does not depend on it
_EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2764]")


@dataclass(frozen=True)
class Finding:
    """One problem of the data."""

    place: str  # file and line
    message: str
    is_error: bool = True  # or else only worth a look

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def check_file(
    path: Path | str, card: Card, settings: PersonaChecks
) -> tuple[list[DialogueRow], list[Finding]]:
    """Read a JSON Lines file and check all of it; lines that are no rows are findings too.

    Raises:
        DialogueError: the file cannot be read.
    """
    rows, places, problems = read_rows(path)
    findings = [Finding(place, message) for place, message in problems]
    if not rows:
        findings.append(Finding(str(path), "holds no rows"))
    return rows, findings + check_rows(rows, places, card, settings)


def check_rows(
    rows: Sequence[DialogueRow], places: Sequence[str], card: Card, settings: PersonaChecks
) -> list[Finding]:
    """Check rows that parse: one by one, against each other and as a whole.

    Args:
        rows: the rows.
        places: file and line of each.
        card: expressions, memory keys and the register.
        settings: what is too long, too similar or too frequent.
    """
    findings = []
    for row, place in zip(rows, places, strict=True):
        findings += [Finding(place, message) for message in _of_row(row, card, settings)]
    try:
        check_splits(rows, places)
    except DialogueError as error:
        place, _, message = str(error).partition(": ")
        findings.append(Finding(place, message))
    findings += _across_splits(rows, places, settings.similarity)
    findings += _repeated_replies(rows, places)
    findings += _balance(rows, places, card, settings)
    return findings


def measure(rows: Sequence[DialogueRow], card: Card) -> list[dict[str, Any]]:
    """The figures of a datasheet: one record per figure, with a column per split and one for all."""
    figures: dict[str, Any] = {
        "rows": len,
        "unique user messages": lambda part: len({normalise(r.user) for r in part}),
        "groups": lambda part: len({r.group for r in part}),
        "that write a memory": lambda part: sum(bool(r.memories_written) for r in part),
        "that read a memory or hint": lambda part: sum(bool(r.memories_read) for r in part),
        "with earlier turns": lambda part: sum(bool(r.history) for r in part),
        "that say age or school year": lambda part: sum("{" in r.reply for r in part),
        "replies with an emoji": lambda part: sum(bool(_EMOJI.search(r.reply)) for r in part),
        "replies that end in a question": lambda part: sum(r.reply.rstrip().endswith("?") for r in part),
        "characters of a reply, mean": lambda part: round(_mean([len(r.reply) for r in part]), 1),
        "characters of a reply, most": lambda part: max((len(r.reply) for r in part), default=0),
        "characters of a message, mean": lambda part: round(_mean([len(r.user) for r in part]), 1),
    }
    for name, spec in card.expressions.items():
        figures[f"{name} ({spec.label})"] = lambda part, name=name: sum(r.expression == name for r in part)
    parts = {split: [row for row in rows if row.split == split] for split in SPLITS} | {"all": list(rows)}
    return [
        {"figure": name, **{split: figure(part) for split, part in parts.items()}}
        for name, figure in figures.items()
    ]


def openings(rows: Sequence[DialogueRow]) -> list[tuple[str, int]]:
    """First words of the replies without marks, the most frequent first."""
    return Counter(_first_word(row.reply) for row in rows).most_common()


def _of_row(row: DialogueRow, card: Card, settings: PersonaChecks) -> Iterator[str]:
    yield from check_row(row, card)
    if len(row.reply) > settings.reply_characters:
        yield f"the reply has {len(row.reply)} characters; at most {settings.reply_characters}"
    if row.register != card.speech:
        yield f"register {row.register} is not the card's, {card.speech}"
    replies = [row.reply, *(answered for _, answered in row.history)]
    polite = [sentence for reply in replies for sentence in polite_sentences(reply)]
    if row.register == "반말" and polite:
        yield f"polite ending in casual speech: {polite[0]!r}"
    if row.register == "존댓말" and not polite_sentences(row.reply):
        yield f"no polite ending in polite speech: {row.reply!r}"
    said = [row.user, *(said for said, _ in row.history), *row.memories_read, *row.memories_written]
    for text in said:
        if "{" in text or "}" in text:
            yield f"a brace in {text!r}: placeholders are filled in her replies only"
    for reply in replies:
        if unknown := unknown_placeholders(reply):
            yield f"unknown placeholder {unknown[0]!r} in {reply!r}"
        filled = card.filled(reply, _SOME_DAY)
        if sanitize(filled, card.name) != filled:
            yield f"a role marker, bracket or hidden character in {reply!r}"
    if row.expression in card.expressions:
        try:
            parse_turn(render_completion(row, card, _SOME_DAY), card)
        except TurnError as error:
            yield f"is no turn of the format: {error}"


def _across_splits(rows: Sequence[DialogueRow], places: Sequence[str], similarity: float) -> list[Finding]:
    """Near-duplicate user messages in two splits; equal ones are found by `check_splits`."""
    findings = []
    numbers = {split: [i for i, row in enumerate(rows) if row.split == split] for split in SPLITS}
    for first, second in (("train", "valid"), ("train", "test"), ("valid", "test")):
        left, right = numbers[first], numbers[second]  # type: ignore[index]
        texts = [[normalise(rows[i].user) for i in part] for part in (left, right)]
        for i, j, ratio in near_duplicates(texts[0], texts[1], similarity):
            one, other = left[i], right[j]
            if ratio < 1:
                findings.append(
                    Finding(
                        places[other],
                        f"{rows[other].user!r} of {second} is nearly {rows[one].user!r} of {first} "
                        f"({ratio:.2f}; {places[one]})",
                    )
                )
    return findings


def _repeated_replies(rows: Sequence[DialogueRow], places: Sequence[str]) -> list[Finding]:
    first: dict[str, str] = {}
    findings = []
    for row, place in zip(rows, places, strict=True):
        key = normalise(row.reply)
        if key in first:
            findings.append(Finding(place, f"the reply {row.reply!r} stands in {first[key]} too", False))
        first.setdefault(key, place)
    return findings


def _balance(
    rows: Sequence[DialogueRow], places: Sequence[str], card: Card, settings: PersonaChecks
) -> list[Finding]:
    if not rows:
        return []
    file = places[0].rpartition(", line")[0] or places[0]
    findings = []
    count = Counter(row.expression for row in rows)
    for name in card.expressions:
        share = count[name] / len(rows)
        if not settings.expression_least <= share <= settings.expression_most:
            bounds = f"{settings.expression_least:.0%} to {settings.expression_most:.0%}"
            findings.append(Finding(file, f"expression {name} has {share:.1%} of the rows; wanted {bounds}"))
    word, times = openings(rows)[0]
    if times / len(rows) > settings.opening_most:
        findings.append(
            Finding(
                file,
                f"{times / len(rows):.1%} of the replies open with {word!r}; "
                f"at most {settings.opening_most:.0%}",
            )
        )
    missing = [split for split in SPLITS if not any(row.split == split for row in rows)]
    findings += [Finding(file, f"holds no {split} rows") for split in missing]
    return findings


def _first_word(text: str) -> str:
    return text.split()[0].strip("!?,.~…'")


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
