from __future__ import annotations

import contextlib
import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ohlora.chat.prompt_list import (
    BAD,
    COLUMNS,
    Answer,
    PromptListError,
    PromptRow,
    UnanswerableError,
    answer_all,
    read_prompts,
)


class Served:
    """A served path that knows everything; raises on what it is told to."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.fails_after = fails_after

    def __call__(self, row: PromptRow, seed: int) -> Answer:
        if not row.prompt.strip():
            raise UnanswerableError("빈 메시지예요.")
        if self.fails_after is not None and len(self.calls) >= self.fails_after:
            raise KeyboardInterrupt
        self.calls.append((row.prompt, seed))
        reply = f'대답, "{row.prompt}" {seed}'
        return Answer(reply, ("이름: 민수",), 0.5, 0.25, -8.0, 12, 0.5, 0.1, "end")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_prompt_is_answered_so_many_times(tmp_path: Path) -> None:
    out = tmp_path / "deep/out.csv"
    served = Served()
    assert answer_all([PromptRow(2, "안녕"), PromptRow(3, "뭐 해")], 2, out, served) == []
    rows = rows_of(out)
    assert [(r["prompt"], r["sample"]) for r in rows] == [
        ("안녕", "0"),
        ("안녕", "1"),
        ("뭐 해", "0"),
        ("뭐 해", "1"),
    ]
    assert tuple(rows[0]) == COLUMNS
    assert rows[0] | {"reply": ""} == {
        "prompt": "안녕",
        "sample": "0",
        "reply": "",
        "memories": "이름: 민수",
        "eyes": "0.5",
        "mouth": "0.25",
        "pose": "-8.0",
        "tokens": "12",
        "seconds": "0.5",
        "time_to_first_token": "0.1",
        "finish_reason": "end",
    }
    assert len({seed for _, seed in served.calls}) == 4


def test_bad_rows_are_reported_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    rows = [PromptRow(2, "안녕"), PromptRow(3, "  "), PromptRow(4, "뭐 해")]
    problems = answer_all(rows, 1, out, Served())
    assert problems == ["line 3, sample 0: 빈 메시지예요."]
    assert [r["finish_reason"] for r in rows_of(out)] == ["end", BAD, "end"]
    assert answer_all(rows, 1, out, Served()) == problems  # also when nothing is left to do


PROMPT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(["\r"], 1, 0, 0)
@example(["a\rb", '\r"'], 2, 1, 7)
@given(st.lists(PROMPT, min_size=1, max_size=4), st.integers(1, 2), st.integers(0, 6), st.integers(0, 200))
def test_a_run_that_was_killed_anywhere_resumes_to_the_same_file(
    tmp_path: Path, prompts: list[str], samples: int, after: int, lost: int
) -> None:
    rows = [PromptRow(n, prompt) for n, prompt in enumerate(prompts)]
    whole, part = tmp_path / "whole.csv", tmp_path / "part.csv"
    for path in (whole, part):
        path.unlink(missing_ok=True)
    answer_all(rows, samples, whole, Served())
    with contextlib.suppress(KeyboardInterrupt):
        answer_all(rows, samples, part, Served(fails_after=after))
    data = part.read_bytes()
    header = data.index(b"\n") + 1
    part.write_bytes(data[: max(header, len(data) - lost)])  # and the disk was full
    answer_all(rows, samples, part, Served())
    assert part.read_bytes() == whole.read_bytes()


def test_results_of_another_list_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    answer_all([PromptRow(2, "안녕")], 2, out, Served())
    with pytest.raises(PromptListError, match="other prompts"):
        answer_all([PromptRow(2, "잘 가")], 2, out, Served())
    with pytest.raises(PromptListError, match="number of samples"):
        answer_all([PromptRow(2, "안녕")], 1, out, Served())
    out.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(PromptListError, match="no result"):
        answer_all([PromptRow(2, "안녕")], 1, out, Served())


def test_prompts_are_read_from_csv_and_text(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text('prompt,memories\n"안녕, 너",이름: 민수; 취미: 등산\n,\n', encoding="utf-8-sig")
    assert read_prompts(table) == [
        PromptRow(2, "안녕, 너", ("이름: 민수", "취미: 등산")),
        PromptRow(3, ""),
    ]
    text = tmp_path / "p.txt"
    text.write_text("안녕\n\n뭐 해\n", encoding="utf-8")
    assert [row.prompt for row in read_prompts(text)] == ["안녕", "뭐 해"]


def test_unusable_lists_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "p.csv"
    with pytest.raises(PromptListError, match="cannot be read"):
        read_prompts(bad)
    bad.write_text("frage\n안녕\n", encoding="utf-8")
    with pytest.raises(PromptListError, match="none of the columns"):
        read_prompts(bad)
    bad.write_text("prompt\n", encoding="utf-8")
    with pytest.raises(PromptListError, match="no prompts"):
        read_prompts(bad)
    bad.write_bytes("prompt\n안녕".encode("cp949"))
    with pytest.raises(PromptListError, match="UTF-8"):
        read_prompts(bad)
