from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ohlora.artifacts import ArtifactError, verify, write_manifest
from ohlora.config import Config, load_config
from ohlora.memory import Encoder, merge
from ohlora.memory.adapter import load_adapted
from ohlora.memory.bases import build_scratch_bert
from ohlora.memory.grades import Candidate, GradedMessage, GradeError, Ranking, load_grades, rank
from ohlora.memory.retriever import train
from ohlora.persona import DialogueRow
from ohlora.stage import Journal, Report

ROOT = Path(__file__).parents[2]
TRAINED = ["retriever.epochs=12", "retriever.learning_rate=0.003", "retriever.batch_size=8"]
# what is about food fits what is about food, whatever words they share
FOOD, SLEEP = (
    ["배고파", "밥 먹자", "라면 끓일까", "치킨 시킬까"],
    ["졸려", "자고 싶다", "눈이 감겨", "하품 나와"],
)


IDS = {message: f"d{at}" for at, message in enumerate((*FOOD, *SLEEP))}
DIALOGUES = {
    IDS[message]: DialogueRow.model_validate(
        {"id": IDS[message], "group": f"g{at}", "split": "train", "user": message, "reply": f"{message}!"}
        | {"expression": "joy", "eyes": 0.5, "mouth": 0.5, "pose": 0.0, "reason": "r"}
    )
    for at, message in enumerate(IDS)
}


def row(message: str, split: str, others: list[str]) -> dict[str, Any]:
    food = message in FOOD
    return {
        "message": message,
        "split": split,
        "candidates": {IDS[other]: 2 if (other in FOOD) == food else 0 for other in others},
    }


ROWS = [
    *(row(message, "train", [m for m in (*FOOD, *SLEEP) if m != message]) for message in FOOD + SLEEP),
    row("잠이 와", "test", [FOOD[1], SLEEP[1]]),
]


def mistaken(base: Path) -> dict[str, Any]:
    """A valid message to which the base puts the wrong one of two candidates nearer."""
    encoder = Encoder.load(base, "cpu")
    for said, food, sleep in product(FOOD, FOOD, SLEEP):
        asked, right, wrong = encoder.embed([f"{said}!", food, sleep])
        if said != food and asked @ right < asked @ wrong - 0.005:
            return {"message": f"{said}!", "split": "valid", "candidates": {IDS[food]: 2, IDS[sleep]: 0}}
    raise AssertionError("the random base puts every message right")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(ROOT, "smoke", TRAINED)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retriever")
    build_scratch_bert(folder / "base")
    write(folder / "grades" / "grades.jsonl", [*ROWS, mistaken(folder / "base")])
    write(folder / "dialogues.jsonl", [row.model_dump(mode="json") for row in DIALOGUES.values()])
    return folder


@pytest.fixture(scope="module")
def report(work: Path, config: Config) -> Report:
    inputs = {"base": work / "base", "grades": work / "grades", "rows": work / "dialogues.jsonl"}
    return train(config, inputs, {"output": work / "out"}, Journal(work / "out"))


def test_messages_that_are_answered_alike_come_near(work: Path, report: Report) -> None:
    trained, base = load_adapted(work / "base", work / "out", "cpu"), Encoder.load(work / "base", "cpu")

    def margin(encoder: Encoder) -> float:
        cosines = encoder.embed(FOOD + SLEEP) @ encoder.embed(FOOD + SLEEP).T
        alike = np.kron(np.eye(2), np.ones((4, 4))).astype(bool)
        return float(cosines[alike & ~np.eye(8, dtype=bool)].mean() - cosines[~alike].mean())

    assert margin(trained) > margin(base) + 0.1
    assert verify(work / "out", "memory").provenance["start"] == ""
    assert report.metrics["valid_top_grade"] == 2.0  # of a message that the base puts wrong
    assert report.metrics["best_grade"] == 2.0
    assert report.metrics["mean_grade"] == 1.0
    assert 0.0 <= report.metrics["top_grade"] <= 2.0
    (table,) = report.tables.values()
    assert table[0] == {"encoder": "untuned base", "split": "valid", "nearest": 0.0}
    assert table[-1] == {"encoder": "the best of them", "split": "test", "nearest": 2.0}


def test_what_does_not_help_on_valid_messages_is_not_kept(work: Path, config: Config, tmp_path: Path) -> None:
    base = Encoder.load(work / "base", "cpu")
    cosines = base.embed(FOOD + SLEEP) @ base.embed(["봄"])[0]
    near, far = ((FOOD + SLEEP)[at] for at in np.argsort(-cosines)[:2])
    # the untuned base is right already, so that nothing can be better; one that is worse is not taken
    valid = {"message": "봄", "split": "valid", "candidates": {IDS[near]: 2, IDS[far]: 0}}
    taught = [
        {"message": m, "split": "train", "candidates": {IDS[near]: 0, IDS[far]: 2}}
        for m in ("봄이다", "봄 왔다", "봄 봄")
    ]
    write(tmp_path / "grades" / "grades.jsonl", [*taught, valid, ROWS[-1]])
    inputs = {"base": work / "base", "grades": tmp_path / "grades", "rows": work / "dialogues.jsonl"}
    report = train(config, inputs, {"output": tmp_path / "out"}, Journal(tmp_path / "out"))
    assert report.notes == ["Training did not help on valid messages: the base is kept."]
    assert report.metrics["valid_top_grade"] == 2.0
    merge(work / "base", tmp_path / "out", tmp_path / "merged")
    kept = Encoder.load(tmp_path / "merged", "cpu")
    assert kept.embed(FOOD) == pytest.approx(base.embed(FOOD), abs=2e-3)


def low_rank(base: Path) -> None:
    """As if the base were too large to be trained whole."""
    manifest = verify(base)
    settings = {**manifest.settings, "trains": "lora"}
    write_manifest(base, manifest.kind, files=list(manifest.files), settings=settings)


def test_an_adapter_is_continued(work: Path, config: Config, tmp_path: Path) -> None:
    base = shutil.copytree(work / "base", tmp_path / "base")
    low_rank(base)
    inputs = {"base": base, "grades": work / "grades", "rows": work / "dialogues.jsonl"}
    little = config.retriever.model_copy(update={"epochs": 0.1, "learning_rate": 1e-5})
    short = config.model_copy(update={"retriever": little})
    train(short, inputs, {"output": tmp_path / "first"}, Journal(tmp_path / "first"))
    first = verify(tmp_path / "first", "memory")
    assert first.settings["type"] == "lora"
    change = {"start": str(tmp_path / "first"), "continued_speed": 1.0}
    again = config.model_copy(update={"retriever": config.retriever.model_copy(update=change)})
    report = train(again, inputs, {"output": tmp_path / "second"}, Journal(tmp_path / "second"))
    second = verify(tmp_path / "second", "memory")
    assert second.provenance["start"] == first.digest
    assert report.notes[0].endswith(f"digest {first.digest[:12]}.")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert one.keys() == two.keys()
    steps = [float((one[name].float() - two[name].float()).abs().max()) for name in one]
    assert max(steps) > 0.001, (report.metrics, report.notes)
    slow = again.retriever.model_copy(update={"continued_speed": 1e-6, "epochs": 1.0})
    unmoved = again.model_copy(update={"retriever": slow})
    report = train(unmoved, inputs, {"output": tmp_path / "slow"}, Journal(tmp_path / "slow"))
    assert report.notes[1].endswith(f"{tmp_path / 'first'} is kept.")
    kept = load_file(tmp_path / "slow" / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], one[name]) for name in one)
    other = shutil.copytree(base, tmp_path / "other")
    write_manifest(
        other, "base-encoder", files=list(verify(base).files), settings=verify(base).settings | {"name": "x"}
    )
    changed = train(
        again, {**inputs, "base": other}, {"output": tmp_path / "third"}, Journal(tmp_path / "third")
    )
    assert "belongs to another base" in changed.notes[0]
    assert verify(tmp_path / "third").provenance["start"] == ""
    (tmp_path / "first" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is corrupt"):
        train(again, inputs, {"output": tmp_path / "fourth"}, Journal(tmp_path / "fourth"))


def test_grades_of_a_nearest_neighbour() -> None:
    graded = [
        GradedMessage("배고프다", "valid", [Candidate(FOOD[0], 2), Candidate(SLEEP[0], 0)]),
        GradedMessage("잠이 와", "test", [Candidate(FOOD[1], 0), Candidate(SLEEP[1], 2)]),
    ]
    vectors = {m: [1.0, 0.0] for m in (*FOOD, "배고프다")} | {m: [0.0, 1.0] for m in (*SLEEP, "잠이 와")}
    ranking = rank(lambda texts: np.array([vectors[t] for t in texts], np.float32), graded)
    assert ranking == (2.0, 1.0, 2.0, (1.0, 1.0))
    swapped = rank(lambda texts: np.array([vectors[t][:: -1 if "와" in t else 1] for t in texts]), graded)
    assert swapped.top == 1.0
    assert swapped.gains == pytest.approx((1.0, 1 / np.log2(3)))  # the right one comes second
    assert not swapped.better_than(ranking)


@pytest.mark.parametrize(
    ("after", "better"),
    [((0.9, 0.9, 0.9, 0.9), True), ((1.0, 0.5, 0.8, 0.81), False), ((0.75, 0.8, 0.8, 0.8), False)],
)
def test_one_lucky_message_does_not_decide(after: tuple[float, ...], better: bool) -> None:
    before = Ranking(1.0, 1.0, 2.0, (0.8, 0.7, 0.8, 0.8))
    assert Ranking(1.0, 1.0, 2.0, after).better_than(before) is better


def test_without_different_grades_nothing_is_better() -> None:
    graded = [GradedMessage("배고프다", "valid", [Candidate(FOOD[0], 1), Candidate(SLEEP[0], 1)])]
    ranking = rank(lambda texts: np.ones((len(texts), 1), np.float32), graded)
    assert ranking.gains == ()
    assert not ranking.better_than(ranking)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROWS[0], "grade": 1}], "line 1: grade: Extra inputs"),
        ([{**ROWS[0], "candidates": {"d0": 3, "d1": 1}}], r"line 1: candidates\.d0"),
        ([{**ROWS[0], "candidates": {"d0": 1}}], "line 1: candidates: .*at least 2"),
        ([{**ROWS[0], "candidates": {"d0": 1, "x": 1}}], "line 1: there is no row 'x' in the dialogues"),
        (ROWS[:1] * 2, "line 2: message '배고파' is in train, too"),
        (ROWS[:8], "holds no valid messages"),
    ],
)
def test_grades_that_do_not_hold_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(GradeError, match=message):
        load_grades(write(tmp_path / "g" / "grades.jsonl", rows), DIALOGUES)
    with pytest.raises(GradeError, match="cannot be read"):
        load_grades(tmp_path / "absent.jsonl", DIALOGUES)
