"""The dialogue rows: their schema, their checks, and the stage that renders them for training."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ohlora.attributes import Expression
from ohlora.config import Config
from ohlora.errors import UserError
from ohlora.persona.card import Card, Speech, load_card, unknown_placeholders
from ohlora.persona.expressions import expression_of, fallback_expression
from ohlora.persona.prompt import parse_completion, render_completion, render_prompt
from ohlora.persona_config import ExamplesConfig, PersonaChecks, PersonaConfig
from ohlora.stage import Journal, Report

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ORIGINAL_COLUMNS = ("data_type", "input_data", "output_data", "output_message", "memory")
CARD_FILE = "persona.yaml"
NOTES = 10
"""Findings that a message of the stage names; more would hide the rest of its report."""

_MEMORY = re.compile(r"^[^\[\]:\n]+: [^\[\]\n]+$")
_LEADING_MEMORIES = re.compile(r"^\s*((?:\[[^\[\]]*\]\s*)*)(.*)$", re.DOTALL)
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")


class DialogueError(UserError, ValueError):
    """Dialogue data does not hold; the message names file, line and problem."""


with warnings.catch_warnings():
    # pydantic takes the field `register` for an override of ABCMeta.register, which no row ever calls.
    warnings.filterwarnings("ignore", message='Field name "register"')

    class DialogueRow(BaseModel):
        """One exchange: what the person said, what she knew, what she answered, showed and keeps."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        id: str = Field(min_length=1)
        group: str = Field(min_length=1, description="content group; paraphrases share it, and their split")
        split: Split
        user: str = Field(min_length=1, max_length=500)
        history: list[tuple[str, str]] = Field([], description="earlier turns as (user, reply), oldest first")
        reply: str = Field(min_length=1, max_length=200, description="with {age} and {school_year}")
        memories_read: list[str] = []
        memories_written: list[str] = Field([], max_length=2)
        expression: str = Field(description="name of an expression of the card")
        eyes: float = Field(ge=0, le=1)
        mouth: float = Field(ge=0, le=1)
        pose: float = Field(ge=-35, le=35, description="yaw in degrees")
        reason: str = Field("", max_length=60, description="why this face")
        register: Speech = "반말"

        @property
        def face(self) -> Expression:
            """What her face shows."""
            return Expression(eyes=self.eyes, mouth=self.mouth, pose=self.pose)

        @field_validator("user", "reply")
        @classmethod
        def _one_line(cls, text: str) -> str:
            if text != " ".join(text.split()) or "[" in text or "]" in text:
                raise ValueError("must be one trimmed line without square brackets")
            return text

        @field_validator("reply")
        @classmethod
        def _known_placeholders(cls, text: str) -> str:
            if unknown := unknown_placeholders(text):
                raise ValueError(f"holds {unknown[0]!r}; placeholders are {{age}} and {{school_year}}")
            return text

        @field_validator("memories_read", "memories_written")
        @classmethod
        def _key_value(cls, memories: list[str]) -> list[str]:
            for memory in memories:
                if not _MEMORY.match(memory):
                    raise ValueError(f"memory {memory!r} is not of the form '키: 값'")
            return memories


def load_dialogues(path: Path | str) -> list[DialogueRow]:
    """Read and check a JSON Lines file of dialogue rows.

    Raises:
        DialogueError: the file is missing, a line does not parse, an id occurs twice, or a split leaks.
    """
    rows, places, problems = read_rows(path)
    for place, message in problems:
        raise DialogueError(f"{place}: {message}")
    if not rows:
        raise DialogueError(f"{path} holds no rows")
    check_splits(rows, places)
    return rows


def load_rows(path: Path, card: Card) -> list[DialogueRow]:
    """Rows of a JSON Lines file, or of a CSV in the original's layout.

    Raises:
        DialogueError: the file is missing or does not hold.
    """
    return import_original_csv(path, card) if path.suffix.lower() == ".csv" else load_dialogues(path)


def read_rows(path: Path | str) -> tuple[list[DialogueRow], list[str], list[tuple[str, str]]]:
    """The rows of a JSON Lines file, unchecked against each other.

    Returns:
        the rows; the place of each, file and line; (place, problem) of every line that is no row.

    Raises:
        DialogueError: the file cannot be read.
    """
    path = Path(path)
    rows: list[DialogueRow] = []
    places: list[str] = []
    problems: list[tuple[str, str]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            rows.append(DialogueRow.model_validate_json(line))
        except ValidationError as error:
            problems.append((place, _problem(error)))
        else:
            places.append(place)
    return rows, places, problems


def check_splits(rows: Sequence[DialogueRow], places: Sequence[str]) -> None:
    """Refuse double ids, double exchanges, groups that span splits and user texts that occur in two splits.

    Texts are compared normalised. A question may come twice on top of other memories, in its own split only.

    Args:
        rows: the rows.
        places: where each comes from, for the message.
    """
    ids: dict[str, str] = {}
    exchanges: dict[tuple[str, ...], str] = {}
    groups: dict[str, tuple[str, str]] = {}
    texts: dict[str, tuple[str, str]] = {}
    for row, place in zip(rows, places, strict=True):
        if row.id in ids:
            raise DialogueError(f"{place}: id {row.id!r} occurs already in {ids[row.id]}")
        ids[row.id] = place
        exchange = (normalise(row.user), row.reply, *row.memories_read, str(row.history))
        if exchange in exchanges:
            raise DialogueError(f"{place}: the same exchange stands in {exchanges[exchange]}")
        exchanges[exchange] = place
        split, first = groups.setdefault(row.group, (row.split, place))
        if split != row.split:
            raise DialogueError(
                f"{place}: group {row.group!r} is in {row.split}, but in {split} since {first}; "
                "all rows of a group belong to one split"
            )
        split, first = texts.setdefault(normalise(row.user), (row.split, place))
        if split != row.split:
            raise DialogueError(f"{place}: user text of {row.split} occurs in {split} already ({first})")


def check_against_card(rows: Iterable[DialogueRow], card: Card) -> None:
    """Refuse expressions and memory keys that the card does not know.

    Raises:
        DialogueError: names the row and what the card has.
    """
    for row in rows:
        for problem in check_row(row, card):
            raise DialogueError(f"row {row.id}: {problem}")


def check_row(row: DialogueRow, card: Card) -> Iterator[str]:
    """What a row names and the card does not know."""
    if row.expression not in card.expressions:
        yield f"unknown expression {row.expression!r}; the card has: {', '.join(card.expressions)}"
    for memories, keys in (
        (row.memories_read, card.memory_keys | card.hint_keys),
        (row.memories_written, card.memory_keys),
    ):
        for memory in memories:
            key = memory.partition(":")[0]
            if key not in keys:
                yield f"memory key {key!r} is not in the card's memory_keys"


def normalise(text: str) -> str:
    """Letters and digits only, in lower case: what two near-duplicates have in common.

    A text without any, such as `...`, stays as it is.
    """
    return re.sub(r"[^0-9a-z가-힣ㄱ-ㅎㅏ-ㅣ]", "", text.lower()) or text


def import_original_csv(path: Path | str, card: Card) -> list[DialogueRow]:
    """Read a CSV in the original project's column layout.

    Columns: `data_type` (`train`, `valid`), `input_data` (`[키: 값]` of a recalled memory, then the
    question), `output_data` (memories to keep as `[키: 값]`, then the reply), `output_message` (the reply
    alone) and `memory` (the memories alone); the last two may be blank. Rows without an answer are left out.
    The original has no groups, no expressions and no test split: rows with the same question form a group,
    the fallback policy of the card names the expression, and one train group in eight, chosen by hash,
    becomes test (one in ten valid, where no valid row has an answer).

    Raises:
        DialogueError: a column is missing or a row does not hold; the message names file and line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f)
            missing = [column for column in ORIGINAL_COLUMNS if column not in (reader.fieldnames or [])]
            if missing:
                raise DialogueError(f"{path}, line 1: column {', '.join(missing)} is missing")
            records = [(reader.line_num, record) for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DialogueError(f"{path} cannot be read as CSV: {error}") from error

    drafts = [draft for line, record in records if (draft := _draft(path, line, record, card))]
    valid = {draft["group"] for draft in drafts if draft["split"] == "valid"}
    trained = {draft["group"] for draft in drafts if draft["split"] == "train"}
    rows = []
    for draft in drafts:
        line, group = draft.pop("line"), draft["group"]
        if group in trained:
            share = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 40
            held = "test" if share < 5 else "valid" if share < 9 and not valid - trained else "train"
            draft["split"] = held
        try:
            rows.append(DialogueRow.model_validate(draft))
        except ValidationError as error:
            raise DialogueError(f"{path}, line {line}: {_problem(error)}") from error
    if not rows:
        raise DialogueError(f"{path} holds no answered rows")
    return rows


def select(rows: Sequence[DialogueRow], limit: int) -> list[DialogueRow]:
    """At most `limit` train rows and `limit // 2` each of valid and test; 0 takes all.

    Stratified by expression and by whether memories are read or written; deterministic, by the id's hash.
    """
    if not limit:
        return list(rows)
    chosen: set[str] = set()
    for split in SPLITS:
        count = limit if split == "train" else max(1, limit // 2)
        strata: dict[str, dict[tuple[bool, bool], list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in sorted(rows, key=lambda r: hashlib.sha256(r.id.encode()).hexdigest()):
            if row.split == split:
                kind = (bool(row.memories_read), bool(row.memories_written))
                strata[row.expression][kind].append(row.id)
        chosen |= set(_interleave(_interleave(kinds.values()) for kinds in strata.values())[:count])
    return [row for row in rows if row.id in chosen]


def with_history(rows: Sequence[DialogueRow], share: float, card: Card) -> list[DialogueRow]:
    """Put one unrelated earlier turn before a share of the train rows that have none; others stay.

    In a chat nearly every turn has a history, in the data few rows do. The turns are taken from train rows of
    another group that show the idle expression and touch no memory, so that no fact and no grief is dragged
    along. Deterministic, by the hash of the id.
    """
    donors = [
        row
        for row in rows
        if row.split == "train"
        and row.expression == card.idle_expression
        and not (row.memories_read or row.memories_written or row.history)
    ]
    places: dict[str, list[int]] = defaultdict(list)  # of each group's own donors
    for place, donor in enumerate(donors):
        places[donor.group].append(place)
    result = []
    for row in rows:
        digest = hashlib.sha256(f"history {row.id}".encode()).digest()
        chosen = int.from_bytes(digest[:4], "big") < share * 2**32
        own = places.get(row.group, [])
        others = len(donors) - len(own)
        if row.split == "train" and not row.history and chosen and others:
            place = int.from_bytes(digest[4:8], "big") % others
            for skipped in own:
                place += skipped <= place
            row = row.model_copy(update={"history": [(donors[place].user, donors[place].reply)]})
        result.append(row)
    return result


def dated(rows: Sequence[DialogueRow], card: Card, settings: PersonaConfig) -> list[tuple[DialogueRow, date]]:
    """Each row with the day on which it is said, for her age and school year.

    Valid and test rows are said today. So that the model reads age and school year in the prompt and does not
    learn them by heart, a share `other_dates` of the train rows is said on another day within `years_ahead`
    years, and train rows with a placeholder come `date_copies` times, on different days. Deterministic, by
    the hash of the id.
    """
    today = settings.day
    span = max(1, round(365.25 * settings.years_ahead))
    result = []
    for row in rows:
        if row.split != "train" or not settings.years_ahead:
            result.append((row, today))
            continue
        digest = hashlib.sha256(f"date {row.id}".encode()).digest()
        first = int.from_bytes(digest[:4], "big") % span
        if "{" in row.reply or any("{" in reply for _, reply in row.history):
            result.append((row, today))
            # One in each part of the years: chance would put most of a few copies into the same year.
            step = span / max(1, settings.date_copies - 1)
            for copy in range(1, settings.date_copies):
                ahead = 1 + round((copy - 1 + first / span) * step)
                copied = row.model_copy(update={"id": f"{row.id}-{copy}"})
                result.append((copied, today + timedelta(days=ahead)))
        elif int.from_bytes(digest[4:8], "big") < settings.other_dates * 2**32:
            result.append((row, today + timedelta(days=1 + first)))
        else:
            result.append((row, today))
    return result


def said_on(row: DialogueRow, card: Card, on: date) -> DialogueRow:
    """The row with its placeholders filled, in its reply and in its history."""
    history = [(said, card.filled(answered, on)) for said, answered in row.history]
    return row.model_copy(update={"reply": card.filled(row.reply, on), "history": history})


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Stage `dialogues`: checked rows with prompt and completion, one Parquet per split, and the card.

    Writes `train.parquet`, `valid.parquet`, `test.parquet` (columns of `DialogueRow` without `split` and
    `history`, and `prompt`, `completion` and the `day` they are said on), `persona.yaml` and a picture of the
    lengths into the output folder. Prompts show the examples of `inputs["examples"]`, where it is given.

    Raises:
        CardError, DialogueError: the data do not hold.
    """
    folder = outputs["output"]
    folder.mkdir(parents=True, exist_ok=True)
    card_path, rows_path = Path(config.persona.card), Path(config.persona.dialogues)
    card = load_card(card_path)
    every, notes = _checked(rows_path, card, config.persona.checks)
    chosen = with_history(select(every, config.persona.limit), config.persona.history, card)
    days = dated(chosen, card, config.persona)
    rows = [said_on(row, card, day) for row, day in days]
    shown = _shown(rows, inputs.get("examples"), config.examples)
    records = [
        _record(row, card, day, examples) for row, (_, day), examples in zip(rows, days, shown, strict=True)
    ]

    for split in SPLITS:
        part = [record for row, record in zip(rows, records, strict=True) if row.split == split]
        if not part:
            raise DialogueError(f"{rows_path} holds no {split} rows")
        _write_table(part, folder / f"{split}.parquet")
    shutil.copyfile(card_path, folder / CARD_FILE)

    notes += [
        f"{path} is outside of {inputs['persona']}: a change of it does not make this stage stale"
        for path in (card_path, rows_path)
        if not path.resolve().is_relative_to(inputs["persona"].resolve())
    ]
    _plot_lengths(records, folder / "lengths.png")
    return Report(
        metrics=_metrics(rows, card),
        pictures={"Lengths of prompts and completions": "lengths.png"},
        tables={
            "Rows by split and expression": _by_expression(rows, card),
            "Examples": _examples(rows, card),
        },
        notes=notes,
    )


def _checked(path: Path, card: Card, settings: PersonaChecks) -> tuple[list[DialogueRow], list[str]]:
    """Rows of a file that hold, and notes.

    A CSV was written by others for another format: what cannot be used is refused, what only falls short of
    this project's rules is noted.
    """
    from ohlora.persona.checks import check_file, check_rows  # they build on this module

    if path.suffix.lower() == ".csv":
        rows = import_original_csv(path, card)
        check_against_card(rows, card)
        findings = check_rows(rows, [f"{path}, row {row.id}" for row in rows], card, settings)
        notes = [str(finding) for finding in findings[:NOTES]]
        return rows, notes + ([f"{path}: {len(findings) - NOTES} more"] if len(findings) > NOTES else [])
    rows, findings = check_file(path, card, settings)
    errors = [str(finding) for finding in findings if finding.is_error]
    if errors:
        more = [f"and {len(errors) - NOTES} more; `ohlora persona check` lists them"]
        raise DialogueError("\n".join(errors[:NOTES] + (more if len(errors) > NOTES else [])))
    return rows, [str(finding) for finding in findings[:NOTES]]


def _interleave(queues: Iterable[list[str]]) -> list[str]:
    """One of each queue in turn, the longest first."""
    ordered = sorted(queues, key=len, reverse=True)
    return [q[i] for i in range(max(map(len, ordered), default=0)) for q in ordered if i < len(q)]


def _shown(
    rows: Sequence[DialogueRow], folder: Path | None, settings: ExamplesConfig
) -> list[list[tuple[str, str]]]:
    """The examples of each row; none without the output of the stage `examples`."""
    from ohlora.persona.examples import Examples, Near, load_neighbours, seed_of  # it builds on this module

    if folder is None:
        return [[] for _ in rows]
    examples, near = Examples.load(folder), load_neighbours(folder)

    def of(row: DialogueRow) -> Near:  # a copy that is said on another day has the neighbours of its row
        return Near(near.get(row.id) or near.get(row.id.rpartition("-")[0], []))

    return [examples.shown(of(row), settings, seed_of(row.id)) for row in rows]


def _record(row: DialogueRow, card: Card, day: date, examples: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return row.model_dump(exclude={"split", "history"}) | {
        "prompt": render_prompt(card, row.memories_read, row.history, row.user, day, examples=examples),
        "completion": render_completion(row, card, day),
        "day": day.isoformat(),
    }


def _write_table(records: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa  # here, because serving imports this room and needs neither tables nor plots
    import pyarrow.parquet as pq

    texts, numbers = ("id", "group", "user", "reply", "expression"), ("eyes", "mouth", "pose")
    table = pa.Table.from_pylist(
        records,
        schema=pa.schema(
            [(name, pa.string()) for name in texts]
            + [(name, pa.float64()) for name in numbers]
            + [(name, pa.string()) for name in ("reason", "register")]
            + [(name, pa.list_(pa.string())) for name in ("memories_read", "memories_written")]
            + [(name, pa.string()) for name in ("prompt", "completion", "day")]
        ),
    )
    pq.write_table(table, path)


def _metrics(rows: Sequence[DialogueRow], card: Card) -> dict[str, float]:
    test = [row for row in rows if row.split == "test"]
    hits = sum(fallback_expression(row.reply, card) == row.expression for row in test)
    majority = Counter(row.expression for row in rows if row.split == "train").most_common(1)[0][0]
    majority_hits = sum(row.expression == majority for row in test)
    return {
        **{f"rows_{split}": float(sum(row.split == split for row in rows)) for split in SPLITS},
        "groups": float(len({row.group for row in rows})),
        "rows_reading_memory": float(sum(bool(row.memories_read) for row in rows)),
        "rows_writing_memory": float(sum(bool(row.memories_written) for row in rows)),
        "rows_with_history": float(sum(bool(row.history) for row in rows)),
        "reply_characters_mean": sum(len(row.reply) for row in rows) / len(rows),
        "reply_characters_max": float(max(len(row.reply) for row in rows)),
        "fallback_expression_accuracy": hits / len(test),
        "majority_expression_accuracy": majority_hits / len(test),
    }


def _by_expression(rows: Sequence[DialogueRow], card: Card) -> list[dict[str, Any]]:
    count = Counter((row.expression, row.split) for row in rows)
    return [
        {"expression": name, "label": spec.label, **{split: count[name, split] for split in SPLITS}}
        for name, spec in card.expressions.items()
    ]


def _examples(rows: Sequence[DialogueRow], card: Card) -> list[dict[str, Any]]:
    examples = [row for row in rows if row.split == "train"][:: max(1, len(rows) // 8)][:8]
    return [
        {
            "prompt": render_prompt(card, row.memories_read, row.history, row.user),
            "completion": render_completion(row, card),
        }
        for row in examples
    ]


def _plot_lengths(records: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    # Labels in ASCII: the machine may have no Hangul font.
    lengths = [[len(record[part]) for record in records] for part in ("prompt", "completion")]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=30, label=["prompt", "completion"])
    axes.set(xlabel="characters", ylabel="rows", title=f"{len(records)} dialogue rows")
    axes.legend()
    figure.savefig(path, dpi=110)


def _draft(path: Path, line: int, record: dict[str, str | None], card: Card) -> dict[str, Any] | None:
    cells = {column: (record.get(column) or "").strip() for column in ORIGINAL_COLUMNS}
    if cells["data_type"] not in ("train", "valid"):
        raise DialogueError(f"{path}, line {line}: data_type {cells['data_type']!r} is not train or valid")
    read, question = _split_memories(cells["input_data"])
    written, answer = _split_memories(cells["output_data"])
    reply = cells["output_message"] or answer
    written = written or _split_memories(cells["memory"])[0]
    if not reply:
        return None
    if not question:
        raise DialogueError(f"{path}, line {line}: input_data holds no question")
    parsed = _speech(reply, card)
    return {
        "id": f"csv{line:05d}",
        "group": normalise(question),
        "user": question,
        "reply": parsed,
        "expression": (expression := fallback_expression(parsed, card)),
        **expression_of(expression, card).model_dump(),
        "register": card.speech,
        "memories_read": read,
        "memories_written": written[:2],
        "split": cells["data_type"],
        "line": line,
    }


def _speech(reply: str, card: Card) -> str:
    """The reply as it would be said: through the same parser that serving uses."""
    try:
        return parse_completion(reply, card).text
    except ValueError:
        return " ".join(reply.split())


def _split_memories(cell: str) -> tuple[list[str], str]:
    """`[키: 값] … text` as the memories in front and the text on one line."""
    match = _LEADING_MEMORIES.match(cell)
    assert match is not None  # both of its parts may be empty
    memories = []
    for body in _BRACKETED.findall(match.group(1)):
        key, colon, value = (part.strip() for part in body.partition(":"))
        if colon and key and value:
            memories.append(f"{key}: {' '.join(value.split())}")
    return memories, " ".join(_BRACKETED.sub(" ", match.group(2)).split())


def _problem(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        problems.append(f"{key}: {problem['msg']}" if key else problem["msg"])
    return "; ".join(problems)
