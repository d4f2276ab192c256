from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ohlora.artifacts import MANIFEST, ArtifactError, read_manifest, verify, write_manifest
from ohlora.llm import Voice, merge
from ohlora.llm.likelihood import IGNORED, bits_per_character, encode, read_rows, tail_start
from ohlora.llm.sft import collate, train
from ohlora.llm.weights import load_adapted, load_network, load_tokenizer
from ohlora.stage import Journal, Report
from tests.llm.conftest import tiny_config

QUICK = (
    "voice.batch_size=4",
    "voice.learning_rate=0.01",
    "voice.epochs=4",
    "voice.evaluate_every=1.0",
    "generation.max_new_tokens=8",
)


def run(base: Path, dialogues: Path, folder: Path, *overrides: str) -> tuple[Path, Report]:
    out = folder / "voice"
    journal = Journal(folder / "journal")
    config = tiny_config(*QUICK, f"state={folder / 'state'}", *overrides)
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
    modules = json.loads(settings)["target_modules"]
    assert modules == sorted(modules)  # equal weights have equal digests
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
    row = {"prompt": "사용자: 안녕\n오로라:", "completion": " 안녕! (기쁨 653)"}
    example = encode(tokenizer, [row])[0]
    said = [label for label in example.labels if label != IGNORED]
    assert tokenizer.decode(said[:-1]) == row["completion"]
    assert said[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.input_ids[1:-1]) == row["prompt"] + row["completion"]
    assert example.characters == len("안녕! (기쁨 653)")


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


def test_tokens_of_memories_and_expression_weigh_more(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    row = {"prompt": "오로라:", "completion": " 왔구나 (웃음)! [이름: 민수] (기쁨 653)"}
    example = encode(tokenizer, [row], tag_weight=3.0)[0]
    heavy = [i for i, weight in zip(example.input_ids, example.weights, strict=True) if weight == 3.0]
    light = [i for i, weight in zip(example.input_ids, example.weights, strict=True) if weight == 1.0]
    assert tokenizer.decode(heavy) == " [이름: 민수] (기쁨 653)"
    assert tokenizer.decode(light[:-1]) == " 왔구나 (웃음)!"
    assert light[-1] == tokenizer.eos_token_id
    assert set(example.weights[: example.prompt_tokens]) == {0.0}


def test_a_heavier_tag_is_learnt_sooner(base: Path, real_dialogues: Path, tmp_path: Path) -> None:
    rows = read_rows(real_dialogues, "train")

    def nats_of_tails(weight: float) -> float:
        overrides = ("voice.epochs=3", f"voice.tag_weight={weight}")
        model, tokenizer = load_adapted(
            base, run(base, real_dialogues, tmp_path / str(weight), *overrides)[0]
        )
        moved = [
            {
                "prompt": r["prompt"] + r["completion"][: tail_start(r["completion"])],
                "completion": r["completion"][tail_start(r["completion"]) :],
            }
            for r in rows
        ]
        return bits_per_character(model, encode(tokenizer, moved))

    assert nats_of_tails(8.0) < nats_of_tails(0.1)


def test_batches_are_padded_on_the_right_and_padding_weighs_nothing() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7], "weights": [0.0, 1.0, 2.0]},
        {"input_ids": [8], "labels": [8], "weights": [1.0]},
    ]
    batch = collate(rows, pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["weights"].tolist() == [[0, 1, 2], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_that_are_cut_are_counted(base: Path, dialogues: Path, tmp_path: Path) -> None:
    report = run(base, dialogues, tmp_path, "voice.epochs=0.25", "voice.max_length=24")[1]
    assert report.metrics["rows_cut"] > 0
    assert "longer than 24 tokens" in report.notes[0]


def test_nothing_is_cut_by_the_default_length(full: tuple[Path, Report]) -> None:
    assert full[1].metrics["rows_cut"] == 0
    assert "none is cut" in full[1].notes[0]


def test_training_continues_an_adapter(
    lora: tuple[Path, Report], lora_base: Path, dialogues: Path, tmp_path: Path
) -> None:
    overrides = ("voice.lora_rank=4", f"voice.start={lora[0]}", "voice.epochs=0.25")
    folder, report = run(lora_base, dialogues, tmp_path, *overrides)
    assert report.metrics["start_bits_per_character"] == pytest.approx(
        lora[1].metrics["bits_per_character"], rel=0.02
    )
    digest = verify(lora[0]).digest
    assert f"digest {digest[:12]}" in " ".join(report.notes)
    assert verify(folder).provenance["start"] == digest


def test_a_blend_lies_between_the_adapter_and_what_training_made_of_it(
    lora: tuple[Path, Report], lora_base: Path, dialogues: Path, tmp_path: Path
) -> None:
    overrides = ("voice.lora_rank=4", f"voice.start={lora[0]}", "voice.epochs=1", "voice.continued_speed=0.2")
    trained, report = run(lora_base, dialogues, tmp_path / "whole", *overrides)
    assert report.metrics["best_step"] > 0
    blended, report = run(lora_base, dialogues, tmp_path / "part", *overrides, "voice.blend=0.25")
    assert any("Kept 25%" in note for note in report.notes)
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (lora[0], trained, blended)]
    for name, start in weights[0].items():
        whole, part = (w[name].float() - start.float() for w in weights[1:])
        assert part.numpy() == pytest.approx(0.25 * whole.numpy(), abs=1e-3)
    assert any((weights[1][name] != start).any() for name, start in weights[0].items())


def test_steps_that_do_not_help_leave_the_adapter_as_it_was(
    lora: tuple[Path, Report], lora_base: Path, dialogues: Path, tmp_path: Path
) -> None:
    overrides = ("voice.lora_rank=4", f"voice.start={lora[0]}", "voice.epochs=1", "voice.learning_rate=1.0")
    folder, report = run(lora_base, dialogues, tmp_path, "voice.continued_speed=1.0", *overrides)
    assert report.metrics["best_step"] == 0
    assert any("its weights are kept" in note for note in report.notes)
    weights = "adapter_model.safetensors"
    assert verify(folder).files[weights] == verify(lora[0]).files[weights]


@pytest.mark.parametrize(
    ("override", "reason"),
    [("voice.lora_rank=8", "another rank"), ("voice.lora_alpha=7", "another rank"), ("", "another base")],
)
def test_an_adapter_that_does_not_fit_is_left_alone(
    lora: tuple[Path, Report], lora_base: Path, dialogues: Path, tmp_path: Path, override: str, reason: str
) -> None:
    base = lora_base
    if not override:
        base = tmp_path / "base"
        shutil.copytree(lora_base, base)
        settings = read_manifest(base).settings | {"name": "another"}
        write_manifest(base, "base-llm", files=list(read_manifest(base).files), settings=settings)
        override = "voice.lora_rank=4"
    overrides = ("voice.lora_rank=4", f"voice.start={lora[0]}", "voice.epochs=0.25", override)
    report = run(base, dialogues, tmp_path, *overrides)[1]
    assert any(reason in note for note in report.notes)
    assert "base_bits_per_character" in report.metrics


def test_an_adapter_of_another_format_of_a_turn_is_left_alone(
    lora: tuple[Path, Report], lora_base: Path, dialogues: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(lora[0], old)
    manifest = read_manifest(old)
    settings = {key: value for key, value in manifest.settings.items() if key != "turn"}
    write_manifest(old, "voice", files=list(manifest.files), settings=settings, base=manifest.base)
    overrides = ("voice.lora_rank=4", f"voice.start={old}", "voice.epochs=0.25")
    report = run(lora_base, dialogues, tmp_path, *overrides)[1]
    assert any("another format of a turn" in note for note in report.notes)


def test_training_ends_early_and_keeps_the_best_weights(base: Path, dialogues: Path, tmp_path: Path) -> None:
    overrides = ("voice.learning_rate=1.0", "voice.epochs=8", "voice.evaluate_every=0.25", "voice.patience=1")
    report = run(base, dialogues, tmp_path, *overrides)[1]
    assert report.metrics["steps"] < 32
    assert report.metrics["best_step"] < report.metrics["steps"]
    assert any("Ended early" in note for note in report.notes)


def test_three_prompts_are_answered_at_each_evaluation(full: tuple[Path, Report]) -> None:
    samples = full[1].tables["Replies over time"]
    assert [sample["step"] for sample in samples] == [4] * 3 + [8] * 3 + [12] * 3 + [16] * 3
    assert len({sample["message"] for sample in samples}) == 3
    lines = (full[0] / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == samples


def test_a_gpt_neox_of_polyglots_layout_takes_the_originals_adapter(dialogues: Path, tmp_path: Path) -> None:
    """Rank 128 and alpha 16 on `query_key_value`; embeddings to spare, and an end token for pad."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from ohlora.llm.bases import build, character_tokenizer

    tokenizer = character_tokenizer(384)
    tokenizer.pad_token = tokenizer.eos_token
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer) + 77,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        rotary_pct=0.5,
        hidden_act="gelu",
        use_parallel_residual=True,
        tie_word_embeddings=False,
        max_position_embeddings=384,
        eos_token_id=tokenizer.eos_token_id,
    )
    source = tmp_path / "polyglot"
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    overrides = (
        "voice.base=hub",
        f"voice.hub_name={source}",
        "voice.lora_rank=128",
        "voice.lora_alpha=16",
        "voice.target_modules=[query_key_value]",
    )
    build(tiny_config(*overrides), tmp_path / "base")
    folder, report = run(tmp_path / "base", dialogues, tmp_path, *overrides)
    assert report.metrics["bits_per_character"] < report.metrics["base_bits_per_character"]
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (
        128,
        16,
        ["query_key_value"],
    )
    assert merge(tmp_path / "base", folder, tmp_path / "merged").settings["merged"] is True


KILLED = """
import functools, sys
from pathlib import Path
from ohlora.llm import sft
from tests.llm.conftest import Deadly, tiny_config

sft.fit = functools.partial(sft.fit, save_every_s=0)
base, dialogues, out, *overrides = sys.argv[1:]
inputs = {"base": Path(base), "dialogues": Path(dialogues)}
sft.train(tiny_config(*overrides), inputs, {"output": Path(out)}, Deadly(Path(out)))
"""


def test_a_killed_training_goes_on_to_the_same_weights(
    lora_base: Path, dialogues: Path, tmp_path: Path
) -> None:
    import signal
    import subprocess

    overrides = ("voice.lora_rank=4", "voice.lora_dropout=0.1", "voice.epochs=2", "voice.evaluate_every=0.75")
    everything = [*QUICK, *overrides, f"state={tmp_path / 'state'}"]
    arguments = [str(lora_base), str(dialogues), str(tmp_path / "voice"), *everything]
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=root)
    assert killed.returncode == -signal.SIGKILL
    folder, report = run(lora_base, dialogues, tmp_path, *overrides)
    whole, expected = run(lora_base, dialogues, tmp_path / "whole", *overrides)
    assert "Resumed at step 4 from a checkpoint." in report.notes
    assert verify(folder).files == verify(whole).files  # hashes of the weights
    assert report.tables["Replies over time"] == expected.tables["Replies over time"]
    assert not list((tmp_path / "state").rglob("*.safetensors"))
