from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ohlora.artifacts import MANIFEST, ArtifactError
from ohlora.config import Config, load_config
from ohlora.memory import ExampleFinder
from ohlora.memory.adapter import save_adapter
from ohlora.memory.bases import build_scratch_bert
from ohlora.memory.encoder import load_network
from ohlora.memory.example_stage import run
from ohlora.persona import dialogues, load_card
from ohlora.persona.dialogues import load_dialogues, normalise
from ohlora.persona.examples import Examples, load_neighbours
from ohlora.persona_config import ExamplesConfig
from ohlora.stage import Journal, Report

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "data/persona/dialogues.jsonl"
CARD = ROOT / "data/persona/ohlora.yaml"
SETTINGS = ExamplesConfig(shown=2, pool=4, threshold=-1.0, ties=0.0)  # random weights put texts anywhere


@pytest.fixture(scope="module")
def config() -> Config:
    persona = [f"persona.card={CARD}", f"persona.dialogues={ROWS}"]
    limits = ["persona.limit=120", "runtime.threads=1", "examples.threshold=-1"]
    return load_config(ROOT, "smoke", [*persona, *limits])


@pytest.fixture(scope="module")
def made(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("examples")
    base = build_scratch_bert(folder / "base")
    save_adapter(load_network(folder / "base"), folder / "adapter", base=base, settings={}, provenance={})
    inputs = {"rows": ROWS, "card": CARD, "base": folder / "base", "retriever": folder / "adapter"}
    return folder / "out", run(config, inputs, {"output": folder / "out"}, Journal(folder / "j"))


def test_only_rows_for_training_are_shown(made: tuple[Path, Report]) -> None:
    folder, report = made
    pairs = Examples.load(folder).pairs
    trained = {(row.user, row.reply) for row in load_dialogues(ROWS) if row.split == "train"}
    assert 20 < len(pairs) == report.metrics["pairs"]
    assert set(pairs) <= trained
    assert report.metrics["rows_with_examples"] == 1.0
    assert report.notes == []


def test_a_message_finds_its_own_row_and_chance_the_other(made: tuple[Path, Report]) -> None:
    finder = ExampleFinder.load(made[0], SETTINGS, "cpu")
    pairs = finder.examples.pairs
    message, reply = pairs[3]
    shown, likeness = finder.find(message, 1)
    assert likeness is not None
    assert likeness.everyday == finder.examples.everyday
    assert shown[-1] == (message, reply)
    assert len(shown) == 2
    assert finder.find(message, 1) == (shown, likeness)
    others = {tuple(finder.find(message, seed).shown) for seed in range(12)}
    assert len(others) == 3  # pool without the nearest
    both = [found.shown for found in finder.find_many([message, pairs[5][0], message], [1, 1, 2])]
    one_by_one = [finder.find(message, 1), finder.find(pairs[5][0], 1), finder.find(message, 2)]
    assert both == [found.shown for found in one_by_one]
    none = ExampleFinder.load(made[0], SETTINGS.model_copy(update={"shown": 0}), "cpu")
    assert none.find_many([message], [1]) == [([], None)]


def test_messages_that_ask_for_a_fact_are_told_from_others(made: tuple[Path, Report]) -> None:
    folder, report = made
    examples, card = Examples.load(folder), load_card(CARD)
    assert 0 < report.metrics["pairs_that_say_a_fact"] < 0.5
    asked = {question for fact in card.facts for question in fact.asked}
    assert 20 < len(examples.everyday) < len(examples.pairs)
    assert not asked & set(examples.everyday)
    finder = ExampleFinder.load(folder, SETTINGS, "cpu")
    leanings = [
        np.mean([finder.find(message, 0).likeness.leaning for message in messages])  # type: ignore[union-attr]
        for messages in (card.facts[7].asked[:20], card.small_talk[:20])
    ]
    assert leanings[0] > leanings[1]  # even with random weights, since these are held


def test_train_rows_see_a_prototype_as_the_nearest_and_held_out_rows_what_is_served(
    made: tuple[Path, Report], config: Config, tmp_path: Path
) -> None:
    folder, report = made
    plain = config.model_copy(update={"examples": config.examples.model_copy(update={"prototypes": 0.0})})
    made_of = {"base": folder.parent / "base", "retriever": folder.parent / "adapter"}
    inputs = {"rows": ROWS, "card": CARD, **made_of}
    none = run(plain, inputs, {"output": tmp_path / "out"}, Journal(tmp_path / "j"))
    assert none.metrics["rows_with_a_prototype"] == 0.0
    served, trained = load_neighbours(tmp_path / "out"), load_neighbours(folder)
    rows = {row.id: row for row in load_dialogues(ROWS)}
    changed = [row for row in served if served[row][0] != trained[row][0]]
    assert 3 < len(changed) <= report.metrics["rows_with_a_prototype"] * len(served) + 0.5
    assert {rows[row].split for row in changed} == {"train"}
    assert all(len(near) <= config.examples.pool for near in trained.values())


def test_prompts_of_training_show_others_than_the_row(
    made: tuple[Path, Report], config: Config, tmp_path: Path
) -> None:
    inputs = {"persona": ROOT / "data/persona", "examples": made[0]}
    dialogues.run(config, inputs, {"output": tmp_path / "out"}, Journal(tmp_path / "j"))
    for split in ("train", "valid", "test"):
        for record in pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist():
            lines = [line for line in record["prompt"].split("\n") if line.startswith("참고: ")]
            assert len(lines) == 2, record
            for line in lines:
                message, reply = line.removeprefix("참고: ").split(" → ")
                assert normalise(message) != normalise(record["user"])
                assert normalise(reply) != normalise(record["reply"])


def test_vectors_of_another_encoder_are_refused(made: tuple[Path, Report], tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    shutil.copytree(made[0], folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["settings"]["encoder"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="make them again: ohlora run --force examples"):
        ExampleFinder.load(folder, SETTINGS, "cpu")
    (folder / "vectors.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is corrupt"):
        ExampleFinder.load(folder, SETTINGS, "cpu")
