"""Which expression does a reply show? Any list of replies, by their tags, a voice or the fallback policy."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ohlora.attributes import Expression
from ohlora.errors import UserError, read_text_file
from ohlora.evaluation.intervals import Figure, bootstrap, macro_f1_figure, pearson
from ohlora.persona.card import Card
from ohlora.persona.expressions import expression_of, fallback_expression
from ohlora.persona.prompt import (
    EmptyReply,
    TurnError,
    parse_completion,
    parse_turn,
    render_prompt,
    sanitize,
)

REPLY_COLUMNS = ("reply", "completion", "text", "output_message", "answer")
MESSAGE_COLUMNS = ("user", "prompt", "message", "question")
TRUTH_COLUMNS = ("expression", "eyes", "mouth", "pose")
GREETING = "안녕"
_BRACKETS = re.compile(r"[(\[]([^()\[\]]*)[)\]]")


class RepliesError(UserError, ValueError):
    """A file of replies cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Row:
    """A reply of a file, and what it should show where the file says so."""

    line: int
    reply: str
    truth: str | None = None  # name of the card's expression
    truth_values: Mapping[str, float] | None = None  # of eyes, mouth (0 to 1), pose (degrees)
    problem: str = ""
    message: str = ""  # what the reply answers, where the file says so


@dataclass(frozen=True)
class Scored:
    """A row with the expression that its reply shows."""

    row: Row
    name: str
    expression: Expression | None  # None of a bad row
    source: str  # "turn": an exact turn, "tag": a tag in other text, "voice", "policy", or "bad"


def read_replies(path: Path, card: Card, column: str | None = None) -> list[Row]:
    """Rows of a CSV, a JSON Lines file, or plain text with one reply a line.

    Args:
        path: `.csv` and `.tsv` are tables with a header, `.jsonl` and `.json` hold an object or a string a
            line, anything else is text. Blank lines of text are left out.
        card: knows the expressions; the truth may be a name or a label of it.
        column: that holds the replies; the first of `REPLY_COLUMNS` when not given.

    Raises:
        RepliesError: the file is missing, is not UTF-8, has no such column or no rows.
    """
    text = read_text_file(path, RepliesError)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = list(_of_table(path, text, "\t" if suffix == ".tsv" else ",", card, column))
    elif suffix in (".jsonl", ".json", ".ndjson"):
        rows = list(_of_json_lines(path, text, card, column))
    else:
        rows = [Row(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise RepliesError(f"{path} holds no replies")
    return rows


def _of_table(path: Path, text: str, delimiter: str, card: Card, column: str | None) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = [name for name in reader.fieldnames or [] if name is not None]
    if column is not None and column not in names:
        raise RepliesError(f"{path} has no column {column!r}; there are: {', '.join(names) or 'none'}")
    found = column or next((name for name in REPLY_COLUMNS if name in names), None)
    if found is None:
        raise RepliesError(
            f"{path} has none of the columns {', '.join(REPLY_COLUMNS)}; name one with --column. "
            f"There are: {', '.join(names) or 'none'}"
        )
    try:
        for record in reader:
            yield _row(reader.line_num, record.get(found), record, card)
    except csv.Error as error:
        raise RepliesError(f"{path}, line {reader.line_num}: {error}") from error


def _of_json_lines(path: Path, text: str, card: Card, column: str | None) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            yield Row(number, "", problem=f"not JSON: {error}")
            continue
        if isinstance(record, str):
            yield Row(number, record)
        elif isinstance(record, dict):
            found = column or next((name for name in REPLY_COLUMNS if name in record), "")
            yield _row(number, record.get(found), record, card)
        else:
            yield Row(number, "", problem="neither an object nor a string")


def _row(line: int, reply: Any, record: Mapping[str, Any], card: Card) -> Row:
    if not isinstance(reply, str) or not reply.strip():
        return Row(line, "", problem="no reply")
    truth = record.get("expression")
    name = None
    if isinstance(truth, str) and truth.strip():
        name = {**{n: n for n in card.expressions}, **card.labels}.get(truth.strip())
        if name is None:
            known = ", ".join(card.expressions)
            return Row(line, reply, problem=f"unknown expression {truth.strip()!r}; the card has: {known}")
    values: dict[str, float] = {}
    for key in TRUTH_COLUMNS[1:]:
        cell = record.get(key)
        if cell is None or cell == "":
            continue
        try:
            values[key] = float(cell)
        except (TypeError, ValueError):
            values[key] = math.nan
        if not math.isfinite(values[key]):
            return Row(line, reply, problem=f"{key} {cell!r} is not a number")
    message = next((str(record[c]) for c in MESSAGE_COLUMNS if record.get(c)), "")
    return Row(line, reply, name, values or None, message=message)


def express(row: Row, card: Card) -> Scored:
    """The expression of one reply: the tag of a turn, else any known tag in it, else the fallback policy."""
    if row.problem:
        return Scored(row, "", None, "bad")
    for text in (row.reply, f" {row.reply.strip()}"):
        try:
            turn = parse_turn(text, card)
        except TurnError:
            continue
        return Scored(row, turn.expression_name, turn.expression, "turn")
    try:
        turn = parse_completion(row.reply, card)
    except EmptyReply:
        name = fallback_expression(row.reply, card)
        return Scored(row, name, expression_of(name, card), "policy")
    return Scored(
        row, turn.expression_name, turn.expression, "tag" if _has_tag(row.reply, card) else "policy"
    )


def read_with_voice(scored: Sequence[Scored], voice: Path, card: Card) -> list[Scored]:
    """Replies without a tag, read by a trained voice instead of the fallback policy.

    The voice is shown the reply after the message that it answers (a greeting where the file names none), and
    writes the tag. Where it writes none, the fallback policy stays.

    Args:
        scored: of `express`.
        voice: merged model folder, e.g. `voice` of a product.
        card: knows the labels.

    Raises:
        ArtifactError: the folder is damaged or holds no merged voice.
    """
    from ohlora.evaluation.voice_expression import read_expressions
    from ohlora.llm.engine import Voice

    reader = Voice.load(voice)
    rows: list[dict[str, Any]] = []
    open_rows = [k for k, s in enumerate(scored) if s.source == "policy"]
    for k in open_rows:
        reply = sanitize(scored[k].row.reply, card.name)
        shown = scored[k].expression
        assert shown is not None
        rows.append(
            {
                "prompt": render_prompt(card, [], [], scored[k].row.message or GREETING),
                "completion": f" {reply}",
                "reply": reply,
                "user": scored[k].row.message,
                "expression": scored[k].name,
                "eyes": shown.eyes,
                "mouth": shown.mouth,
                "pose": shown.pose,
            }
        )
    result = list(scored)
    for k, seen in zip(open_rows, read_expressions(reader, rows, card), strict=True):
        if seen.tagged:
            result[k] = Scored(scored[k].row, seen.seen_name, seen.seen, "voice")
    return result


def _has_tag(reply: str, card: Card) -> bool:
    known = {*card.expressions, *card.labels}
    return any(body.strip().rstrip("0123456789").rstrip() in known for body in _BRACKETS.findall(reply))


def agreement(scored: Sequence[Scored]) -> dict[str, Figure]:
    """Macro-F1 of names and Pearson's correlation of values, of the rows whose truth is known.

    Empty where no row has one.
    """
    figures: dict[str, Figure] = {}
    named = [(s.row.truth or "", s.name) for s in scored if s.expression is not None and s.row.truth]
    if named:
        figures["macro_f1"] = macro_f1_figure([truth for truth, _ in named], [name for _, name in named])
    for key in TRUTH_COLUMNS[1:]:
        pairs = np.array(
            [
                (s.row.truth_values[key], getattr(s.expression, key))
                for s in scored
                if s.expression is not None and s.row.truth_values and key in s.row.truth_values
            ],
            float,
        ).reshape(-1, 2)
        if len(pairs) > 1:
            figures[f"{key}_correlation"] = bootstrap(
                lambda i, p=pairs: pearson(p[i, 0], p[i, 1]),  # type: ignore[misc]
                len(pairs),
            )
    return figures


def table(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Rows for a CSV, every row of the file once."""
    rows = []
    for s in scored:
        e = s.expression
        rows.append(
            {
                "line": s.row.line,
                "reply": s.row.reply,
                "expression": s.name,
                "eyes": "" if e is None else round(e.eyes, 4),
                "mouth": "" if e is None else round(e.mouth, 4),
                "pose": "" if e is None else round(e.pose, 2),
                "source": s.source,
                "problem": s.row.problem,
            }
        )
    return rows
