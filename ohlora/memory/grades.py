"""Graded neighbours: how well what was answered to one message answers another.

What an encoder that finds examples must know is not whether two messages look alike but whether one reply
does for both. Somebody read for each message the replies to some that are near to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.metrics import ndcg_score

from ohlora.errors import UserError
from ohlora.memory.pairs import Pair, Split
from ohlora.persona.dialogues import DialogueRow

BEST = 2

Grade = Literal[0, 1, 2]
"""Misses; vague, or a little odd; fits."""


class GradeError(UserError, ValueError):
    """Grades do not hold; the message names file, line and problem."""


class GradedRow(BaseModel):
    """One row of `grades.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: str = Field(min_length=1, description="what the person says")
    split: Split
    candidates: dict[str, Grade] = Field(
        min_length=2, description="ids of dialogue rows near to it -> how well their reply answers it"
    )


class Candidate(NamedTuple):
    """The message of a dialogue row, and how well its reply answers another message."""

    message: str
    grade: Grade


class GradedMessage(NamedTuple):
    """A message and what is near to it."""

    message: str
    split: Split
    candidates: list[Candidate]

    def pairs(self) -> list[Pair]:
        """The message beside each candidate's, scored by the grade."""
        return [
            Pair(memory=other, message=self.message, score=grade / BEST, split=self.split)
            for other, grade in self.candidates
        ]


class Ranking(NamedTuple):
    """How an encoder orders the candidates of some messages: mean grades."""

    top: float  # of the nearest candidate
    mean: float  # of all, what chance would take
    best: float  # of the best, what no order can exceed
    gains: tuple[float, ...]  # NDCG of each message whose candidates differ in grade; 1 is the best order

    def better_than(self, other: Ranking) -> bool:
        """Whether its orders of the same messages are better by more than the standard error of that.

        The whole order counts, since which candidate comes first changes with one message in a hundred.
        """
        change = np.subtract(self.gains, other.gains)
        count = len(change)
        error = float(change.std(ddof=1)) / count**0.5 if count > 1 else 0.0
        return bool(count and change.mean() > error)


def load_grades(path: Path, rows: Mapping[str, DialogueRow]) -> list[GradedMessage]:
    """Read and check a JSON Lines file of `GradedRow`.

    Args:
        path: of the file.
        rows: the dialogue rows by id.

    Raises:
        GradeError: the file is missing, a line does not parse or names a row that there is not, a split is
            empty, or a message is there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GradeError(f"{path} cannot be read: {error}") from error
    found: list[GradedMessage] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            graded = GradedRow.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise GradeError(f"{path}, line {number}: {key}: {problem['msg']}") from error
        if graded.message in seen:
            raise GradeError(
                f"{path}, line {number}: message {graded.message!r} is in {seen[graded.message]}, too"
            )
        seen[graded.message] = graded.split
        if unknown := [id for id in graded.candidates if id not in rows]:
            raise GradeError(f"{path}, line {number}: there is no row {unknown[0]!r} in the dialogues")
        near = [Candidate(rows[id].user, grade) for id, grade in graded.candidates.items()]
        found.append(GradedMessage(graded.message, graded.split, near))
    for split in ("train", "valid", "test"):
        if not any(graded.split == split for graded in found):
            raise GradeError(f"{path} holds no {split} messages")
    return found


def rank(
    embed: Callable[[Sequence[str]], npt.NDArray[np.float32]], graded: Sequence[GradedMessage]
) -> Ranking:
    """Order the candidates of each message by the cosine of the messages.

    The gain of an order is discounted and normalised ("Cumulated Gain-Based Evaluation of IR Techniques",
    Järvelin and Kekäläinen 2002), with the grade as the gain of a candidate.

    Args:
        embed: unit vectors of texts, float32 [n, d].
        graded: at least one message.
    """
    texts = sorted({text for g in graded for text in (g.message, *(c.message for c in g.candidates))})
    vectors = dict(zip(texts, embed(texts), strict=True))
    tops, gains = [], []
    for each in graded:
        cosines = [float(vectors[each.message] @ vectors[c.message]) for c in each.candidates]
        tops.append(each.candidates[int(np.argmax(cosines))].grade)
        worth = [c.grade for c in each.candidates]
        if min(worth) < max(worth):
            gains.append(float(ndcg_score([worth], [cosines])))
    grades = [[c.grade for c in each.candidates] for each in graded]
    return Ranking(
        top=float(np.mean(tops)),
        mean=float(np.mean([np.mean(g) for g in grades])),
        best=float(np.mean([max(g) for g in grades])),
        gains=tuple(gains),
    )
