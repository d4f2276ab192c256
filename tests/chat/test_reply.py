from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ohlora.chat import Companion
from ohlora.chat.prompt_list import COLUMNS, PromptRow, UnanswerableError
from ohlora.cli import app
from ohlora.reply_cli import served

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def companion(tiny_product: Path) -> Companion:
    return Companion.load(tiny_product, "", "cpu")


def test_a_reply_is_the_turn_that_a_chat_would_give(companion: Companion) -> None:
    answer = served(companion, PromptRow(1, "안녕"), seed=5)
    turn = companion.turn("somebody", "안녕", seed=5)
    assert answer.reply == turn.text
    assert (answer.eyes, answer.pose) == (turn.expression.eyes, turn.expression.pose)
    assert answer.tokens == turn.finished.tokens
    assert 0 < answer.time_to_first_token <= answer.seconds


def test_no_reply_knows_another(companion: Companion) -> None:
    first = served(companion, PromptRow(1, "나 누구야?", ("이름: 민수",)), seed=7)
    again = served(companion, PromptRow(1, "나 누구야?", ("이름: 민수",)), seed=7)
    timeless = {"seconds": 0.0, "time_to_first_token": 0.0}
    assert dataclasses.replace(first, **timeless) == dataclasses.replace(again, **timeless)
    assert companion.memories("reply-7") == []


def test_what_cannot_be_taken_is_said(companion: Companion) -> None:
    with pytest.raises(UnanswerableError, match="빈 메시지"):
        served(companion, PromptRow(1, " "), seed=1)
    with pytest.raises(UnanswerableError, match="키"):
        served(companion, PromptRow(1, "안녕", ("no colon",)), seed=1)


def test_command(tiny_product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    prompts, out = tmp_path / "p.csv", tmp_path / "out.csv"
    prompts.write_text("prompt\n안녕\n\n뭐 해?\n\x07\n", encoding="utf-8")
    command = ["reply", "--prompts", str(prompts), "--samples", "2", "--out", str(out)]
    command += ["--model", str(tiny_product)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "4 of 6 replies" in done.output
    assert "line 5, sample 0" in done.output
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["finish_reason"] == "error" for row in rows] == [False] * 4 + [True] * 2
    before = out.read_bytes()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert out.read_bytes() == before  # nothing was left to do
    missing = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "none")])
    assert missing.exit_code == 1
