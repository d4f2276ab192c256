from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ohlora.artifacts import ArtifactError
from ohlora.cli import app
from ohlora.evaluation.express import (
    RepliesError,
    Row,
    agreement,
    express,
    read_replies,
    read_with_voice,
    table,
)
from ohlora.persona.card import Card, load_card

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(ROOT / "data/persona/ohlora.yaml")


@pytest.mark.parametrize(
    ("reply", "name", "source", "pose"),
    [
        (" 왔구나! (기쁨 655)", "joy", "turn", 8.0),
        ("왔구나! (슬픔 654)", "sad", "turn", 0.0),
        ("(화남) 하지 마", "angry", "tag", -14.0),
        ("하지 마, 화나", "angry", "policy", -14.0),
        ("...", "thinking", "policy", 20.0),
    ],
)
def test_tag_first_then_policy(card: Card, reply: str, name: str, source: str, pose: float) -> None:
    scored = express(Row(1, reply), card)
    assert (scored.name, scored.source) == (name, source)
    assert scored.expression is not None
    assert scored.expression.pose == pytest.approx(pose)


@given(text=st.text(max_size=60))
def test_every_text_gets_an_expression_of_the_card(card: Card, text: str) -> None:
    scored = express(Row(1, text), card)
    assert scored.name in card.expressions
    assert scored.expression is not None


def test_tables_json_lines_and_text(card: Card, tmp_path: Path) -> None:
    tsv = tmp_path / "r.tsv"
    tsv.write_text(
        "id\treply\texpression\teyes\n1\t좋아!\t기쁨\t0.6\n2\t음\t없음\t\n3\t\t\t\n", encoding="utf-8"
    )
    rows = read_replies(tsv, card)
    assert (rows[0].truth, rows[0].truth_values) == ("joy", {"eyes": 0.6})
    assert "unknown expression '없음'" in rows[1].problem
    assert rows[2].problem == "no reply"
    lines = tmp_path / "r.jsonl"
    lines.write_text('"안녕"\n{"reply": "응", "pose": "x"}\n{"x": 1}\n{oh\n[1]\n', encoding="utf-8")
    rows = read_replies(lines, card)
    assert rows[0].reply == "안녕"
    assert [bool(row.problem) for row in rows] == [False, True, True, True, True]
    text = tmp_path / "r.txt"
    text.write_text("안녕\n\n(기쁨) 좋아\n", encoding="utf-8")
    assert [(row.line, row.reply) for row in read_replies(text, card)] == [(1, "안녕"), (3, "(기쁨) 좋아")]


def test_unusable_files_are_refused(card: Card, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    with pytest.raises(RepliesError, match="cannot be read"):
        read_replies(path, card)
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(RepliesError, match="--column"):
        read_replies(path, card)
    with pytest.raises(RepliesError, match="no column 'c'"):
        read_replies(path, card, "c")
    assert read_replies(path, card, "b")[0].reply == "2"
    path.write_text("reply\n", encoding="utf-8")
    with pytest.raises(RepliesError, match="holds no replies"):
        read_replies(path, card)
    path.write_bytes("reply\n안녕".encode("cp949"))
    with pytest.raises(RepliesError, match="UTF-8"):
        read_replies(path, card)


def test_agreement_with_the_truth(card: Card) -> None:
    rows = [
        Row(1, "가 (기쁨 652)", "joy", {"pose": -16.0}),
        Row(2, "나 (슬픔 654)", "joy", {"pose": 0.0}),
        Row(3, "다 (슬픔 656)", "sad", {"pose": 16.0}),
        Row(4, "라 (기쁨 652)"),
        Row(5, "", problem="no reply"),
    ]
    figures = agreement([express(row, card) for row in rows])
    assert set(figures) == {"macro_f1", "pose_correlation"}
    assert figures["macro_f1"].value == pytest.approx(2 / 3)
    assert figures["pose_correlation"].value == pytest.approx(1.0)
    assert agreement([express(rows[3], card)]) == {}
    assert [row["problem"] for row in table([express(r, card) for r in rows])] == [""] * 4 + ["no reply"]


def test_a_voice_reads_what_has_no_tag(card: Card, tiny_product: Path) -> None:
    """An untrained voice writes no tags: then the policy stays, and tags are never overruled."""
    scored = [express(Row(1, "하지 마 [x"), card), express(Row(2, "좋아 (슬픔 654)", message="안녕"), card)]
    read = read_with_voice(scored, tiny_product / "voice", card)
    assert read[1] == scored[1]
    assert read[0].source in ("policy", "voice")
    if read[0].source == "policy":
        assert read[0] == scored[0]
    with pytest.raises(ArtifactError):
        read_with_voice(scored, tiny_product / "memory", card)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    replies, out = tmp_path / "r.csv", tmp_path / "deep/out.csv"
    replies.write_text("reply,expression\n좋아! (기쁨 654),joy\n싫어,없음\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["express", "--replies", str(replies), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "line 3 is not scored" in done.output
    assert "macro_f1 1.000" in done.output
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["expression"] for row in rows] == ["joy", ""]
    missing = CliRunner().invoke(app, ["express", "--replies", str(tmp_path / "no.csv")])
    assert missing.exit_code == 1
