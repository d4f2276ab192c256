from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ohlora.memory.pairs import PairError, load_pairs

ROWS: list[dict[str, Any]] = [
    {"memory": "이름: 민수", "message": "내 이름?", "score": 1.0, "split": "train"},
    {"memory": "직업: 화가", "message": "일 힘들다", "score": 0.5, "split": "valid"},
    {"memory": "취미: 낚시", "message": "심심해", "score": 0.0, "split": "test"},
]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_are_read(tmp_path: Path) -> None:
    pairs = load_pairs(write(tmp_path, ROWS))
    assert [pair.key for pair in pairs] == ["이름", "직업", "취미"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 1.5}, "line 4: score"),
        ({"split": "dev"}, "line 4: split"),
        ({"extra": 1}, "line 4: extra"),
        ({"memory": "이름: 지영", "message": "새 질문"}, "key '이름' is in train and in test"),
        ({"memory": "나이: 9", "message": "내 이름?"}, "message '내 이름\\?' is in train and in test"),
    ],
)
def test_bad_rows_name_line_and_problem(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(PairError, match=message):
        load_pairs(write(tmp_path, [*ROWS, {**ROWS[2], **change}]))


def test_a_split_must_not_be_empty(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="no valid pairs"):
        load_pairs(write(tmp_path, [ROWS[0], ROWS[2]]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="cannot be read"):
        load_pairs(tmp_path / "none.jsonl")


def test_committed_pairs_hold() -> None:
    path = Path(__file__).parents[2] / "data" / "memory" / "pairs.jsonl"
    if not path.is_file():
        pytest.skip("a checkout without data")
    assert len(load_pairs(path)) > 100
