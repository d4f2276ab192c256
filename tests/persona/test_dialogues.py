from __future__ import annotations

import json
import re
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ohlora.config import Config, load_config
from ohlora.persona import (
    Card,
    CardError,
    DialogueError,
    DialogueRow,
    import_original_csv,
    load_card,
    load_dialogues,
    parse_turn,
    render_prompt,
)
from ohlora.persona.dialogues import (
    check_against_card,
    dated,
    normalise,
    run,
    said_on,
    select,
    with_history,
)
from ohlora.persona.similarity import near_duplicates
from ohlora.persona_config import PersonaConfig
from ohlora.stage import Journal, Report

ROOT = Path(__file__).resolve().parents[2]
DAY = date(2025, 12, 1)  # of the committed settings
HEADER = "data_type,input_data,output_data,output_message,memory\n"


def row(**change: Any) -> dict[str, Any]:
    return {
        "id": "x1", "group": "g", "user": "밥 먹었어?", "reply": "응!", "expression": "joy", "split": "train",
        "eyes": 0.6, "mouth": 0.5, "pose": -5, "reason": "반가워서", "register": "반말",
    } | change  # fmt: skip


def write(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "rows.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class TestCommittedRows:
    def test_size_of_splits(self, rows: list[DialogueRow]) -> None:
        count = Counter(r.split for r in rows)
        assert len(rows) >= 2500
        assert len({normalise(r.user) for r in rows}) >= 1800
        assert count["valid"] >= 200
        assert count["test"] >= 300

    def test_every_expression_is_well_represented(self, card: Card, rows: list[DialogueRow]) -> None:
        count = Counter(r.expression for r in rows)
        assert set(count) == set(card.expressions)
        assert min(count.values()) >= 90

    def test_memories_are_read_and_written(self, rows: list[DialogueRow]) -> None:
        assert sum(bool(r.memories_written) for r in rows) >= 110
        assert sum(bool(r.memories_read) for r in rows) >= 90

    def test_keys_and_expressions_are_of_the_card(self, card: Card, rows: list[DialogueRow]) -> None:
        check_against_card(rows, card)

    def test_replies_are_short(self, rows: list[DialogueRow]) -> None:
        assert max(len(r.reply) for r in rows) <= 90

    def test_no_near_duplicate_across_splits(self, rows: list[DialogueRow]) -> None:
        train = [normalise(r.user) for r in rows if r.split == "train"]
        valid = [normalise(r.user) for r in rows if r.split == "valid"]
        test = [normalise(r.user) for r in rows if r.split == "test"]
        assert near_duplicates(train, valid + test, 0.85) == []
        assert near_duplicates(valid, test, 0.85) == []

    def test_no_reply_is_used_twice(self, rows: list[DialogueRow]) -> None:
        assert [reply for reply, n in Counter(r.reply for r in rows).items() if n > 1] == []


class TestLoading:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"mood": "good"}, "mood: Extra inputs"),
            ({"reply": ""}, "reply: "),
            ({"user": "두\n줄"}, "user: .*one trimmed line"),
            ({"reply": "나 {나이}살"}, "reply: .*holds '{나이}'"),
            ({"eyes": 1.2}, "eyes: "),
            ({"register": "사투리"}, "register: "),
            ({"reply": "[이름: 민수] 응"}, "reply: .*square brackets"),
            ({"split": "dev"}, "split: "),
            ({"memories_written": ["이름 민수"]}, "memories_written: .*'키: 값'"),
            ({"memories_written": ["이름: 가", "나이: 1", "고향: 나"]}, "memories_written: "),
        ],
    )
    def test_bad_row_names_file_line_and_problem(
        self, tmp_path: Path, change: dict[str, Any], problem: str
    ) -> None:
        path = write(tmp_path, row(), "", row(id="x2", user="다른 말") | change)
        with pytest.raises(DialogueError, match=rf"rows\.jsonl, line 3: {problem}"):
            load_dialogues(path)

    def test_line_that_is_no_json(self, tmp_path: Path) -> None:
        with pytest.raises(DialogueError, match=r"line 1: Invalid JSON"):
            load_dialogues(write(tmp_path, "{"))

    def test_double_id(self, tmp_path: Path) -> None:
        path = write(tmp_path, row(), row(user="다른 말"))
        with pytest.raises(DialogueError, match=r"line 2: id 'x1' occurs already in .*line 1"):
            load_dialogues(path)

    def test_double_exchange(self, tmp_path: Path) -> None:
        path = write(tmp_path, row(), row(id="x2", user="밥 먹었어"))
        with pytest.raises(DialogueError, match=r"line 2: the same exchange stands in .*line 1"):
            load_dialogues(path)

    def test_group_that_spans_splits(self, tmp_path: Path) -> None:
        path = write(tmp_path, row(), row(id="x2", user="다른 말", split="test"))
        with pytest.raises(DialogueError, match=r"line 2: group 'g' is in test, but in train since .*line 1"):
            load_dialogues(path)

    def test_question_that_leaks_into_another_split(self, tmp_path: Path) -> None:
        leak = row(id="x2", group="h", user="밥 먹었어!!", reply="아니.", split="test")
        path = write(tmp_path, row(), leak)
        with pytest.raises(DialogueError, match=r"line 2: user text of test occurs in train already"):
            load_dialogues(path)

    def test_missing_and_empty_files(self, tmp_path: Path) -> None:
        with pytest.raises(DialogueError, match="cannot be read"):
            load_dialogues(tmp_path / "none.jsonl")
        with pytest.raises(DialogueError, match="holds no rows"):
            load_dialogues(write(tmp_path, ""))

    def test_row_outside_of_the_card(self, card: Card) -> None:
        with pytest.raises(DialogueError, match=r"row x1: unknown expression 'bored'"):
            check_against_card([DialogueRow(**row(expression="bored"))], card)
        with pytest.raises(DialogueError, match=r"row x1: memory key '비밀번호'"):
            check_against_card([DialogueRow(**row(memories_read=["비밀번호: 1"]))], card)


class TestOriginalCsv:
    def csv(self, folder: Path, *lines: str) -> Path:
        path = folder / "rows.csv"
        path.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
        return path

    def test_columns_become_a_row(self, tmp_path: Path, card: Card) -> None:
        path = self.csv(
            tmp_path,
            "valid,[취미: 체스] 나 이름 바꿨어,[이름: 가온] 헉 진짜?,헉 진짜?,[이름: 가온]",
            'valid,"오늘, 뭐 해?",[상태: 쉬는 중] 쉬고 있어,,',
        )
        first, second = import_original_csv(path, card)
        assert first.user == "나 이름 바꿨어"
        assert first.reply == "헉 진짜?"
        assert first.memories_read == ["취미: 체스"]
        assert first.memories_written == ["이름: 가온"]
        assert (first.expression, first.split) == ("surprise", "valid")
        assert (first.face, first.reason) == (card.expressions["surprise"].expression, "")
        assert first.register == card.speech
        assert (second.user, second.reply) == ("오늘, 뭐 해?", "쉬고 있어")
        assert second.memories_written == ["상태: 쉬는 중"]

    def test_unanswered_rows_are_left_out(self, tmp_path: Path, card: Card) -> None:
        path = self.csv(tmp_path, "train,안녕,반가워,,", "valid,잘 지내?,,,")
        assert [r.user for r in import_original_csv(path, card)] == ["안녕"]

    def test_groups_never_leak_and_all_splits_appear(self, tmp_path: Path, card: Card) -> None:
        lines = [f"train,질문 {i % 60}번이야,대답 {i}번이야,," for i in range(120)]
        rows = import_original_csv(self.csv(tmp_path, *lines), card)
        assert len(rows) == 120
        splits: dict[str, set[str]] = {}
        for r in rows:
            splits.setdefault(r.group, set()).add(r.split)
        assert all(len(s) == 1 for s in splits.values())
        assert {s for group in splits.values() for s in group} == {"train", "valid", "test"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("data_type,input_data\n", "line 1: column output_data, output_message, memory is missing"),
            (HEADER + "dev,안녕,응,,\n", "line 2: data_type 'dev' is not train or valid"),
            (HEADER + "train,[이름: 가온],응,,\n", "line 2: input_data holds no question"),
            (HEADER + "valid,안녕,,,\n", "holds no answered rows"),
            (HEADER + f"valid,안녕,{'응' * 201},,\n", "line 2: reply: "),
        ],
    )
    def test_errors(self, tmp_path: Path, card: Card, text: str, message: str) -> None:
        path = tmp_path / "rows.csv"
        path.write_text(text.replace("응" * 201, "응아" * 101), encoding="utf-8")
        with pytest.raises(DialogueError, match=message):
            import_original_csv(path, card)


class TestSelection:
    @pytest.mark.parametrize("limit", [8, 24, 100])
    def test_limit_holds_and_keeps_every_expression(self, rows: list[DialogueRow], limit: int) -> None:
        chosen = select(rows, limit)
        count = Counter(r.split for r in chosen)
        assert count["train"] == limit
        assert 0 < count["valid"] <= limit // 2
        assert 0 < count["test"] <= limit // 2
        assert len({r.expression for r in chosen if r.split == "train"}) == 8

    def test_same_choice_whatever_the_order(self, rows: list[DialogueRow]) -> None:
        assert {r.id for r in select(rows, 30)} == {r.id for r in select(rows[::-1], 30)}

    def test_zero_takes_all(self, rows: list[DialogueRow]) -> None:
        assert select(rows, 0) == rows

    def test_history_is_added_to_train_rows_only(self, card: Card, rows: list[DialogueRow]) -> None:
        changed = with_history(rows, 0.5, card)
        gained = [new for old, new in zip(rows, changed, strict=True) if new.history != old.history]
        assert {r.split for r in gained} == {"train"}
        bare = sum(r.split == "train" and not r.history for r in rows)
        assert 0.4 < len(gained) / bare < 0.6
        turns = {(r.user, r.reply) for r in rows if r.split == "train"}
        assert all(turn in turns for r in gained for turn in r.history)

    def test_no_history_without_a_share(self, card: Card, rows: list[DialogueRow]) -> None:
        assert with_history(rows, 0.0, card) == rows


class TestDays:
    def settings(self, **change: Any) -> PersonaConfig:
        return PersonaConfig(**{"today": DAY} | change)

    def test_held_out_rows_are_said_today(self, card: Card, rows: list[DialogueRow]) -> None:
        days = dated(rows, card, self.settings(other_dates=1.0))
        assert {day for row, day in days if row.split != "train"} == {DAY}
        assert [row for row, _ in days if row.split != "train"] == [r for r in rows if r.split != "train"]

    def test_rows_that_say_her_age_come_on_several_days(self, card: Card, rows: list[DialogueRow]) -> None:
        days = dated(rows, card, self.settings(date_copies=4))
        for row in rows:
            if row.split == "train" and "{" in row.reply:
                own = [day for r, day in days if r.id.partition("-")[0] == row.id]
                assert len(own) == len(set(own)) == 4
                assert len({day.year for day in own}) >= 3
        assert len({row.id for row, _ in days}) == len(days)
        assert max(day for _, day in days) <= date(2030, 12, 3)

    def test_share_of_other_days(self, card: Card, rows: list[DialogueRow]) -> None:
        days = [d for row, d in dated(rows, card, self.settings(other_dates=0.3)) if row.split == "train"]
        assert 0.26 < sum(day != DAY for day in days) / len(days) < 0.38

    def test_one_day_for_all(self, card: Card, rows: list[DialogueRow]) -> None:
        assert dated(rows, card, self.settings(years_ahead=0)) == [(row, DAY) for row in rows]

    def test_auto_is_today(self) -> None:
        assert PersonaConfig(today="auto").day == date.today()
        assert PersonaConfig(today="2025-12-01").day == DAY


class TestStage:
    def config(self, **change: Any) -> Config:
        config = load_config(ROOT)
        persona = {
            "card": str(ROOT / "data/persona/ohlora.yaml"),
            "dialogues": str(ROOT / "data/persona/dialogues.jsonl"),
        }
        return config.model_copy(update={"persona": config.persona.model_copy(update=persona | change)})

    def stage(self, tmp_path: Path, **change: Any) -> Report:
        inputs, outputs = {"persona": ROOT / "data/persona"}, {"output": tmp_path / "out"}
        return run(self.config(**change), inputs, outputs, Journal(tmp_path / "journal"))

    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
        """What the stage makes of a part of the committed rows."""
        folder = tmp_path_factory.mktemp("dialogues")
        report = self.stage(folder, limit=6000)
        return folder / "out", report

    def test_writes_prompts_and_completions(
        self, whole: tuple[Path, Report], rows: list[DialogueRow]
    ) -> None:
        out, report = whole
        card = load_card(out / "persona.yaml")
        tables = {split: pq.read_table(out / f"{split}.parquet").to_pylist() for split in ("train", "test")}
        assert len(tables["train"]) == report.metrics["rows_train"]
        by_id = {r.id: r for r in rows}
        for record in tables["test"]:
            source = said_on(by_id[record["id"]], card, DAY)
            expected = render_prompt(card, source.memories_read, source.history, source.user, DAY)
            assert (record["prompt"], record["day"]) == (expected, DAY.isoformat())
            assert parse_turn(record["completion"], card).text == source.reply
        for record in tables["train"]:
            turn = parse_turn(record["completion"], card)
            assert (turn.text, turn.expression_name) == (record["reply"], record["expression"])
            assert "{" not in record["prompt"] + record["completion"]
        assert report.metrics["fallback_expression_accuracy"] > report.metrics["majority_expression_accuracy"]
        assert report.notes == []
        with Image.open(out / "lengths.png") as picture:
            assert picture.size[0] > 300

    def test_her_age_is_read_in_the_prompt_not_learnt(self, whole: tuple[Path, Report]) -> None:
        train = pq.read_table(whole[0] / "train.parquet").to_pylist()
        said = Counter()
        for record in train:
            header = record["prompt"].partition("\n")[0]
            ages = re.findall(r"([0-9]{2})살", header)
            assert len(ages) == 1
            if any(memory.startswith("나이:") for memory in record["memories_read"]):
                continue  # whose age the person told her
            if "나이" in record["user"] and (told := re.search(r"([0-9]{2})살", record["reply"])):
                assert told.group(1) == ages[0], record
                said[told.group(1)] += 1
        assert len(said) >= 4

    def test_limit(self, tmp_path: Path) -> None:
        report = self.stage(tmp_path, limit=24, years_ahead=0.0)  # no copies on other days
        assert report.metrics["rows_train"] == 24
        assert report.metrics["rows_valid"] <= 12

    def test_csv_of_a_user(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.csv"
        lines = [f"train,질문 {i}번이야,대답 {i}번이야,," for i in range(80)]
        path.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
        report = self.stage(tmp_path, dialogues=str(path))
        assert sum(report.metrics[f"rows_{s}"] for s in ("train", "valid", "test")) == 80
        assert any("does not make this stage stale" in note for note in report.notes)

    def test_missing_card_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(CardError, match=r"gone\.yaml"):
            self.stage(tmp_path, card=str(tmp_path / "gone.yaml"))
