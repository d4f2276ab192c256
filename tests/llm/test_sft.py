from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ohlora.artifacts import MANIFEST, ArtifactError, read_manifest, verify, write_manifest
from ohlora.llm import Voice, merge
from ohlora.llm.likelihood import IGNORED, bits_per_character, encode, read_rows
from ohlora.llm.sft import train
from ohlora.llm.weights import load_adapted, load_network, load_tokenizer
from ohlora.stage import Journal, Report
from tests.llm.conftest import tiny_config

QUICK = ("voice.batch_size=4", "voice.learning_rate=0.01", "voice.epochs=4", "generation.max_new_tokens=8")


@pytest.fixture(scope="module")
def lora_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, declared as one that gets a low-rank adapter."""
    folder = tmp_path_factory.mktemp("lora-base")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    manifest = read_manifest(base)
    write_manifest(
        folder, "base-llm", files=list(manifest.files), settings=manifest.settings | {"trains": "lora"}
    )
    return folder


def run(base: Path, dialogues: Path, folder: Path, *overrides: str) -> tuple[Path, Report]:
    out = folder / "voice"
    journal = Journal(folder / "journal")
    config = tiny_config(*QUICK, *overrides)
    return out, train(config, {"base": base, "dialogues": dialogues}, {"output": out}, journal)


@pytest.fixture(scope="module")
def lora(lora_base: Path, dialogues: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    return run(lora_base, dialogues, tmp_path_factory.mktemp("lora"), "voice.lora_rank=4")


@pytest.fixture(scope="module")
def full(base: Path, dialogues: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    return run(base, dialogues, tmp_path_factory.mktemp("full"))


def test_training_a_random_base_halves_the_bits_of_unseen_answers(full: tuple[Path, Report]) -> None:
    metrics = full[1].metrics
    assert metrics["bits_per_character"] < 0.5 * metrics["base_bits_per_character"]


def test_a_low_rank_adapter_learns_too(lora: tuple[Path, Report]) -> None:
    metrics = lora[1].metrics
    assert metrics["bits_per_character"] < 0.97 * metrics["base_bits_per_character"]


def test_report_holds_curve_and_samples(full: tuple[Path, Report]) -> None:
    folder, report = full
    points = [
        json.loads(line) for line in (folder.parent / "journal" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [p["loss"] for p in points if "loss" in p]
    assert len(losses) == 16  # 16 rows, batches of 4, 4 epochs
    assert losses[-1] < losses[0]
    assert points[-1].keys() == {"step", "valid_bits_per_character"}
    assert all((folder / picture).stat().st_size > 1000 for picture in report.pictures.values())
    assert {"message", "written", "sampled"} <= report.tables["Replies to unseen messages"][0].keys()


def test_the_figure_of_the_report_is_that_of_the_saved_folder(
    lora: tuple[Path, Report], lora_base: Path, dialogues: Path
) -> None:
    folder, report = lora
    model, tokenizer = load_adapted(lora_base, folder)
    bits = bits_per_character(model, encode(tokenizer, read_rows(dialogues, "test")))
    assert bits == pytest.approx(report.metrics["bits_per_character"], rel=0.02)  # saved as float16


def test_adapter_is_small_and_names_no_path_of_this_machine(lora: tuple[Path, Report]) -> None:
    settings = (lora[0] / "adapter_config.json").read_text()
    assert json.loads(settings)["base_model_name_or_path"] == "scratch-neox"
    assert str(lora[0].parent.parent) not in settings + (lora[0] / MANIFEST).read_text()
    assert "model.safetensors" not in verify(lora[0], "voice").files


@pytest.mark.parametrize("which", ["lora", "full"])
def test_merged_folder_computes_what_base_and_adapter_do(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(which)[0]
    source = request.getfixturevalue("lora_base" if which == "lora" else "base")
    manifest = merge(source, folder, tmp_path / "merged")
    assert manifest.settings["merged"] is True
    voice = Voice.load(tmp_path / "merged", "cpu", "float32")
    ids = torch.tensor([voice.tokenizer("사용자: 안녕\n오로라:")["input_ids"]])
    with torch.no_grad():
        merged = voice.model(ids).logits
        if which == "lora":
            from peft import PeftModel

            adapted = (
                PeftModel.from_pretrained(load_network(source, torch.float32), folder).eval()(ids).logits
            )
        else:
            adapted = load_network(folder, torch.float32).eval()(ids).logits
        untouched = load_network(source, torch.float32).eval()(ids).logits
    assert torch.allclose(merged, adapted, atol=1e-4)
    assert not torch.allclose(merged, untouched, atol=1e-2)


def test_an_adapter_of_another_base_is_refused(lora: tuple[Path, Report], base: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="was trained on base scratch-neox"):
        merge(base, lora[0], tmp_path / "merged")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_corrupt_files_are_refused(
    lora: tuple[Path, Report], lora_base: Path, tmp_path: Path, file: str
) -> None:
    copy = tmp_path / "voice"
    shutil.copytree(lora[0], copy)
    raw = bytearray((copy / file).read_bytes())
    raw[-1] ^= 1
    (copy / file).write_bytes(raw)
    with pytest.raises(ArtifactError, match="corrupt"):
        merge(lora_base, copy, tmp_path / "merged")


def test_unknown_target_modules_are_named(lora_base: Path, dialogues: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="target_modules"):
        run(lora_base, dialogues, tmp_path, "voice.target_modules=[no_such_layer]")


def test_missing_dialogues_say_which_stage_to_run(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="stage dialogues"):
        run(base, tmp_path, tmp_path)


def test_labels_cover_the_answer_and_its_end_alone(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    row = {"prompt": "사용자: 안녕\n오로라:", "completion": " (기쁨) 안녕!"}
    example = encode(tokenizer, [row])[0]
    said = [label for label in example.labels if label != IGNORED]
    assert tokenizer.decode(said[:-1]) == row["completion"]
    assert said[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.input_ids[1:-1]) == row["prompt"] + row["completion"]
    assert example.characters == len("(기쁨) 안녕!")


def test_too_long_a_row_loses_the_beginning_of_its_prompt(base: Path) -> None:
    row = {"prompt": "가" * 100 + "오로라:", "completion": " 안녕!"}
    example = encode(load_tokenizer(base), [row], 32)[0]
    assert len(example.input_ids) == 32
    assert load_tokenizer(base).decode(example.input_ids[:-1]).endswith("가오로라: 안녕!")


def test_bits_per_character_do_not_depend_on_the_batch(base: Path, dialogues: Path) -> None:
    model = load_network(base, torch.float32)
    examples = encode(load_tokenizer(base), read_rows(dialogues, "train"))
    alone, together = bits_per_character(model, examples, 1), bits_per_character(model, examples, 16)
    assert alone == pytest.approx(together, rel=1e-4)


def test_bits_per_character_of_a_uniform_model(base: Path) -> None:
    model = load_network(base, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    examples = encode(load_tokenizer(base), [{"prompt": "안녕", "completion": " 가나다"}])
    bits = torch.tensor(float(model.config.vocab_size)).log2().item()
    assert bits_per_character(model, examples) == pytest.approx(bits * 5 / 3, rel=1e-4)  # space, 3, end
