from __future__ import annotations

import difflib
import json
from collections import Counter
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
    parse_completion,
    render_prompt,
)
from ohlora.persona.dialogues import check_against_card, normalise, run, select, with_history
from ohlora.stage import Journal

ROOT = Path(__file__).resolve().parents[2]
HEADER = "data_type,input_data,output_data,output_message,memory\n"


def row(**change: Any) -> dict[str, Any]:
    return {
        "id": "x1", "group": "g", "user": "밥 먹었어?", "reply": "응!", "expression": "joy", "split": "train"
    } | change  # fmt: skip


def write(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "rows.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class TestCommittedRows:
    def test_size_of_splits(self, rows: list[DialogueRow]) -> None:
        count = Counter(r.split for r in rows)
        assert count["train"] >= 380
        assert count["valid"] >= 35
        assert count["test"] >= 45

    def test_every_expression_is_well_represented(self, card: Card, rows: list[DialogueRow]) -> None:
        count = Counter(r.expression for r in rows)
        assert set(count) == set(card.expressions)
        assert min(count.values()) >= 25

    def test_memories_are_read_and_written(self, rows: list[DialogueRow]) -> None:
        assert sum(bool(r.memories_written) for r in rows) >= 110
        assert sum(bool(r.memories_read) for r in rows) >= 90

    def test_keys_and_expressions_are_of_the_card(self, card: Card, rows: list[DialogueRow]) -> None:
        check_against_card(rows, card)

    def test_replies_are_short(self, rows: list[DialogueRow]) -> None:
        assert max(len(r.reply) for r in rows) <= 70

    def test_no_near_duplicate_across_splits(self, rows: list[DialogueRow]) -> None:
        train = [normalise(r.user) for r in rows if r.split == "train" and not r.history]
        for held in (r for r in rows if r.split != "train" and not r.history):
            matcher = difflib.SequenceMatcher(b=normalise(held.user), autojunk=False)
            for text in train:
                matcher.set_seq1(text)
                assert matcher.quick_ratio() <= 0.85 or matcher.ratio() <= 0.85, (held.user, text)

    def test_no_reply_is_used_twice(self, rows: list[DialogueRow]) -> None:
        assert [reply for reply, n in Counter(r.reply for r in rows).items() if n > 1] == []


class TestLoading:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"mood": "good"}, "mood: Extra inputs"),
            ({"reply": ""}, "reply: "),
            ({"user": "두\n줄"}, "user: .*one trimmed line"),
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


class TestStage:
    def config(self, **change: Any) -> Config:
        config = load_config(ROOT)
        persona = {
            "card": str(ROOT / "data/persona/ohlora.yaml"),
            "dialogues": str(ROOT / "data/persona/dialogues.jsonl"),
        }
        return config.model_copy(update={"persona": config.persona.model_copy(update=persona | change)})

    def stage(self, tmp_path: Path, **change: Any) -> Any:
        inputs, outputs = {"persona": ROOT / "data/persona"}, {"output": tmp_path / "out"}
        return run(self.config(**change), inputs, outputs, Journal(tmp_path / "journal"))

    def test_writes_prompts_and_completions(self, tmp_path: Path, rows: list[DialogueRow]) -> None:
        report = self.stage(tmp_path)
        out = tmp_path / "out"
        card = load_card(out / "persona.yaml")
        tables = {split: pq.read_table(out / f"{split}.parquet").to_pylist() for split in ("train", "test")}
        assert len(tables["train"]) == report.metrics["rows_train"]
        by_id = {r.id: r for r in rows}
        for record in tables["test"]:
            source = by_id[record["id"]]
            expected = render_prompt(card, source.memories_read, source.history, source.user)
            assert record["prompt"] == expected
            assert parse_completion(record["completion"], card).text == source.reply
        assert report.metrics["fallback_expression_accuracy"] > report.metrics["majority_expression_accuracy"]
        assert report.notes == []
        with Image.open(out / "lengths.png") as picture:
            assert picture.size[0] > 300

    def test_limit(self, tmp_path: Path) -> None:
        report = self.stage(tmp_path, limit=24)
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
