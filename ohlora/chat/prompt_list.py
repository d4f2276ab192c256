"""A list of prompts through the served path: read, answered one by one, written as a table that resumes.

Each prompt and sample is a person of its own with no memories but those that its row gives, so that the order
of the rows changes nothing. The n-th row of the result belongs to the n-th prompt and sample; what a killed
run left unfinished is dropped and answered again.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ohlora.errors import UserError, read_text_file

COLUMNS = (
    "prompt",
    "sample",
    "reply",
    "memories",
    "eyes",
    "mouth",
    "pose",
    "tokens",
    "seconds",
    "time_to_first_token",
    "finish_reason",
)
PROMPT_COLUMNS = ("prompt", "user", "message", "question", "input_data")
BAD = "error"  # finish_reason of a row that could not be answered; `reply` then says why


class PromptListError(UserError, ValueError):
    """A list of prompts or a result file cannot be used; the message says what to do."""


class UnanswerableError(ValueError):
    """One row cannot be answered; the message says why."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt of the list."""

    line: int
    prompt: str
    memories: tuple[str, ...] = ()  # `키: 값` that the person has told her before


@dataclass(frozen=True)
class Answer:
    """What the served path said to one prompt."""

    reply: str
    memories: tuple[str, ...]  # written by this turn
    eyes: float
    mouth: float
    pose: float
    tokens: int
    seconds: float
    time_to_first_token: float
    finish_reason: str


Answerer = Callable[[PromptRow, int], Answer]
"""Row and seed -> answer; an `UnanswerableError` says why a row has none."""


def read_prompts(path: Path) -> list[PromptRow]:
    """Prompts of a CSV with a header, or of a text file with one a line.

    A column `memories` may hold `키: 값; 키: 값`. A row without a prompt is kept: it is reported as bad.

    Raises:
        PromptListError: the file is missing, not UTF-8, has no prompt column, or no rows.
    """
    text = read_text_file(path, PromptListError)
    if path.suffix.lower() != ".csv":
        rows = [PromptRow(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        rows = _of_csv(path, text)
    if not rows:
        raise PromptListError(f"{path} holds no prompts")
    return rows


def _of_csv(path: Path, text: str) -> list[PromptRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = [name for name in reader.fieldnames or [] if name is not None]
        column = next((name for name in PROMPT_COLUMNS if name in names), None)
        if column is None:
            raise PromptListError(
                f"{path} has none of the columns {', '.join(PROMPT_COLUMNS)}; the first line must name them"
            )
        rows = []
        for record in reader:
            memories = [part.strip() for part in (record.get("memories") or "").split(";")]
            rows.append(PromptRow(reader.line_num, record.get(column) or "", tuple(m for m in memories if m)))
    except csv.Error as error:
        raise PromptListError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def answer_all(
    rows: Sequence[PromptRow],
    samples: int,
    out: Path,
    answer: Answerer,
    seed: int = 0,
    progress: Callable[[Iterable[tuple[PromptRow, int]], int], Iterable[tuple[PromptRow, int]]] | None = None,
) -> list[str]:
    """Answer every prompt so many times into a CSV; what the file holds already stays.

    Args:
        rows: the prompts.
        samples: answers to each.
        out: CSV of `COLUMNS`, written row by row.
        answer: the served path.
        seed: with the row and the sample it makes the seed of an answer.
        progress: iterates over what is left, given how much that is.

    Returns:
        Problems of single rows, as sentences; such rows are in the file with the finish reason `error`.

    Raises:
        PromptListError: the file holds answers to another list.
    """
    every = [(row, sample) for row in rows for sample in range(samples)]
    done, problems = _resume(out, every)
    todo = every[done:]
    with out.open("a", encoding="utf-8", newline="") as file:
        # all text in quotes: the module leaves a carriage return bare, which ends the row for who reads it
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        if file.tell() == 0:
            writer.writeheader()
        for row, sample in progress(todo, len(todo)) if progress else todo:
            cells: dict[str, object] = dict.fromkeys(COLUMNS, "")
            cells |= {"prompt": row.prompt, "sample": sample}
            try:
                cells |= _cells(answer(row, seed_of(seed, row, sample)))
            except UnanswerableError as error:
                cells |= {"reply": str(error), "finish_reason": BAD}
                problems.append(f"line {row.line}, sample {sample}: {error}")
            writer.writerow(cells)
            file.flush()
    return problems


def seed_of(seed: int, row: PromptRow, sample: int) -> int:
    """Seed of one answer: the same for the same list, wherever a run was interrupted."""
    text = f"{seed} {row.line} {sample} {row.prompt}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:7], "big")


def _cells(answer: Answer) -> dict[str, object]:
    return {
        "reply": answer.reply,
        "memories": "; ".join(answer.memories),
        "eyes": round(answer.eyes, 4),
        "mouth": round(answer.mouth, 4),
        "pose": round(answer.pose, 2),
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 4),
        "time_to_first_token": round(answer.time_to_first_token, 4),
        "finish_reason": answer.finish_reason,
    }


def _resume(out: Path, every: Sequence[tuple[PromptRow, int]]) -> tuple[int, list[str]]:
    """How many answers a file holds already, and its bad rows; an unfinished last row is cut off.

    Raises:
        PromptListError: the file is no result, or one of another list.
    """
    if not out.exists() or out.stat().st_size == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        return 0, []
    text = out.read_bytes().decode("utf-8", errors="replace")
    kept, problems = "", []
    done = -1  # the header
    for record, raw in _records(text):
        if done < 0:
            if record != list(COLUMNS):
                raise PromptListError(f"{out} is no result of ohlora reply; name another --out")
        elif len(record) != len(COLUMNS):
            break
        elif done >= len(every) or record[:2] != [every[done][0].prompt, str(every[done][1])]:
            raise PromptListError(
                f"{out} holds answers to other prompts or another number of samples; name another --out, "
                "or delete it"
            )
        elif record[-1] == BAD:
            problems.append(f"line {every[done][0].line}, sample {record[1]}: {record[2]}")
        kept += raw
        done += 1
    if len(kept) < len(text):
        out.write_bytes(kept.encode("utf-8"))
    return max(done, 0), problems


def _records(text: str) -> Iterator[tuple[list[str], str]]:
    """Records of a CSV that end in a line break, each with the text it stands in."""
    lines = io.StringIO(text, newline="").readlines()
    taken: list[str] = []

    def feed() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    for record in csv.reader(feed()):
        raw = "".join(taken)
        taken.clear()
        if raw.endswith("\n") and raw.count('"') % 2 == 0:
            yield record, raw
