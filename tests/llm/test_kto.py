from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from ohlora.artifacts import ArtifactError, verify
from ohlora.config import PreferenceConfig
from ohlora.llm import kto, sft
from ohlora.llm.kto import encode_all, tokens_of
from ohlora.llm.likelihood import IGNORED, Example, read_rows
from ohlora.llm.own_replies import OwnReplies
from ohlora.llm.retention import retained
from ohlora.llm.undesirable import Preference
from ohlora.llm.weights import load_tokenizer, load_trainable
from ohlora.persona.card import load_card
from ohlora.persona.dialogues import CARD_FILE
from ohlora.stage import Journal, Report
from tests.llm.conftest import ROOT, tiny_config

QUICK = (
    "voice.lora_rank=4",
    "voice.epochs=1.0",
    "voice.batch_size=4",
    "voice.learning_rate=0.01",
    "generation.max_new_tokens=4",
    "preference.steps=8",
    "preference.batch_size=4",
    "preference.learning_rate=0.0005",
    "preference.evaluate_every=4",
    "preference.evaluate_rows=8",
)


@pytest.fixture(scope="module")
def voice(lora_base: Path, real_dialogues: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "voice"
    inputs = {"base": lora_base, "dialogues": real_dialogues}
    sft.train(tiny_config(*QUICK, f"state={out.parent}"), inputs, {"output": out}, Journal(out))
    return out


@pytest.fixture(scope="module")
def held_rows_too(real_dialogues: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained and held out are the same rows: what a network this small learns of some helps no others."""
    folder = tmp_path_factory.mktemp("seen") / "dialogues"
    shutil.copytree(real_dialogues, folder)
    shutil.copy(folder / "valid.parquet", folder / "train.parquet")
    return folder


def run(base: Path, dialogues: Path, voice: Path, folder: Path, *overrides: str) -> tuple[Path, Report]:
    config = tiny_config(*QUICK, f"state={folder / 'state'}", *overrides)
    inputs = {"base": base, "dialogues": dialogues, "voice": voice}
    out = folder / "preference"
    return out, kto.train(config, inputs, {"output": out}, Journal(out))


@pytest.fixture(scope="module")
def preferred(
    lora_base: Path, held_rows_too: Path, voice: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Report]:
    return run(lora_base, held_rows_too, voice, tmp_path_factory.mktemp("kto"))


def test_the_folder_holds_the_adapter_that_was_best(preferred: tuple[Path, Report], voice: Path) -> None:
    folder, report = preferred
    assert report.metrics["best_step"] > 0
    assert report.metrics["valid_kto_loss"] < report.metrics["valid_kto_loss_before"] == 1.0
    manifest = verify(folder, "voice")
    assert manifest.provenance["fine_tuned"] == verify(voice).digest != manifest.digest
    assert set(manifest.files) == {"adapter_model.safetensors", "adapter_config.json"}


def test_report_holds_curves_and_both_kinds(preferred: tuple[Path, Report]) -> None:
    folder, report = preferred
    text = (folder / "metrics.jsonl").read_text()
    assert all(name in text for name in ("rewards_chosen", "rewards_rejected", '"kl"', "valid_margin"))
    assert all((folder / name).stat().st_size > 1000 for name in report.pictures.values())
    assert sum(row["rows"] for row in report.tables["Held-out margin by kind"]) == 8


def test_the_reference_is_the_fine_tuned_model_and_stays(
    lora_base: Path, real_dialogues: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step nothing differs from the reference; with the bare base as reference it would."""
    networks = []
    monkeypatch.setattr(kto, "load_trainable", lambda *a: networks.append(load_trainable(*a)) or networks[0])
    run(lora_base, real_dialogues, voice, tmp_path, "preference.steps=2")
    first, second, *_ = (tmp_path / "preference" / "metrics.jsonl").read_text().splitlines()
    for name in ("rewards_chosen", "rewards_rejected"):
        assert json.loads(first)[name] == 0.0
        assert json.loads(second)[name] != 0.0  # the adapter has moved, the reference has not
    network = networks[0]
    original = load_trainable(lora_base, voice, verify(voice), torch.float32)
    compared = 0
    for name, value in original.named_parameters():
        if ".default." in name:
            reference = network.get_parameter(name.replace(".default.", ".ref."))
            assert torch.equal(reference, value)
            assert not reference.requires_grad
            compared += 1
    assert compared > 0


def test_no_steps_pass_the_adapter_on(
    lora_base: Path, real_dialogues: Path, voice: Path, tmp_path: Path
) -> None:
    folder, report = run(lora_base, real_dialogues, voice, tmp_path, "preference.steps=0")
    assert verify(folder, "voice").digest == verify(voice).digest
    assert "as it is" in report.notes[0]


def test_a_step_that_only_hurts_is_not_kept(
    lora_base: Path, real_dialogues: Path, voice: Path, tmp_path: Path
) -> None:
    overrides = ("preference.learning_rate=1.0", "preference.steps=4", "preference.evaluate_every=1")
    metrics = run(lora_base, real_dialogues, voice, tmp_path, *overrides)[1].metrics
    assert metrics["valid_bits_per_character"] <= 1.02 * metrics["valid_bits_per_character_before"]


def test_written_replies_gain_on_undesirable_ones(base: Path, real_dialogues: Path, tmp_path: Path) -> None:
    """On a network that is trained in whole: low-rank changes of random weights hardly learn anything."""
    inputs = {"base": base, "dialogues": real_dialogues}
    config = tiny_config(*QUICK, "voice.epochs=10", "voice.patience=0", f"state={tmp_path}")
    sft.train(config, inputs, {"output": tmp_path / "voice"}, Journal(tmp_path / "voice"))
    overrides = ("preference.learning_rate=0.001", "preference.steps=40", "preference.patience=0")
    overrides += ("preference.retention=0.01",)  # by a copy of the network here, not by an adapter
    folder, _ = run(base, real_dialogues, tmp_path / "voice", tmp_path, *overrides)
    assert verify(folder, "voice").settings["type"] == "full"
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    margins = [point["rewards_margins"] for point in points if "loss" in point]
    assert margins[0] == 0.0
    assert sum(margins[-8:]) / 8 > 0.1


def test_an_adapter_of_another_base_is_refused(
    base: Path, real_dialogues: Path, voice: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="was trained on base"):
        run(base, real_dialogues, voice, tmp_path)


def test_each_row_gets_the_completion_before_it_for_the_kl_term() -> None:
    batch = [(Example([1, 2, n], [IGNORED, IGNORED, n], 1, [0, 0, 1]), n > 5) for n in (5, 6, 7)]
    rows = tokens_of(batch)
    assert [r["completion_ids"] for r in rows] == [[5], [6], [7]]
    assert [r["KL_completion_ids"] for r in rows] == [[7], [5], [6]]
    assert [r["prompt_ids"] for r in rows] == [[1, 2]] * 3
    assert [r["label"] for r in rows] == [False, True, True]


KILLED = """
import functools, sys
from pathlib import Path
from ohlora.llm import kto
from tests.llm.conftest import Deadly, tiny_config

kto.fit = functools.partial(kto.fit, save_every_s=0)
base, dialogues, voice, out, *overrides = sys.argv[1:]
inputs = {"base": Path(base), "dialogues": Path(dialogues), "voice": Path(voice)}
kto.train(tiny_config(*overrides), inputs, {"output": Path(out)}, Deadly(Path(out)))
"""


def test_a_killed_training_goes_on_to_the_same_weights(
    lora_base: Path, held_rows_too: Path, voice: Path, preferred: tuple[Path, Report], tmp_path: Path
) -> None:
    arguments = [str(path) for path in (lora_base, held_rows_too, voice, tmp_path / "preference")]
    overrides = [*QUICK, f"state={tmp_path / 'state'}"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments, *overrides], cwd=ROOT)
    assert killed.returncode == -9
    folder, report = run(lora_base, held_rows_too, voice, tmp_path)
    assert "Resumed at step 4 from a checkpoint." in report.notes
    assert verify(folder).files == verify(preferred[0]).files  # hashes of the weights


def test_own_replies_teach_the_speech_alone(lora_base: Path) -> None:
    tokenizer = load_tokenizer(lora_base)
    prompt, completion = "사용자: 안녕\n오로라:", " 나야! [이름: 민수] (기쁨 653)"
    whole, speech = encode_all(
        tokenizer,
        [Preference(prompt, completion, True, "written", speech_only=only) for only in (False, True)],
        128,
    )
    start = whole.prompt_tokens
    assert tokenizer.decode(whole.input_ids[start:-1]) == completion
    assert tokenizer.decode(speech.input_ids[start:]) == " 나야!"
    assert len(speech.input_ids) == len(speech.labels) == len(speech.weights)


def test_own_replies_are_trained_on(
    lora_base: Path, real_dialogues: Path, voice: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.csv"
    path.write_text("prompt,reply\n안녕,좋아 좋아좋아좋아좋아 진짜\n", encoding="utf-8")
    _, report = run(lora_base, real_dialogues, voice, tmp_path, f"preference.samples={path}")
    assert any("sampled: loop 1" in note for note in report.notes)
    assert any(f"{path}: a change" in note for note in report.notes)
    with pytest.raises(ArtifactError, match=r"preference\.samples"):
        run(lora_base, real_dialogues, voice, tmp_path, "preference.samples=absent.csv")


def test_retention_holds_other_turns_to_what_they_were(
    lora_base: Path, real_dialogues: Path, voice: Path, tmp_path: Path
) -> None:
    moved = []
    for weight in (1e-6, 100.0):
        run(lora_base, real_dialogues, voice, tmp_path / str(weight), f"preference.retention={weight}")
        lines = (tmp_path / str(weight) / "preference" / "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        moved.append([point["retention"] for point in points if "retention" in point])
    free, held = moved
    assert free[0] == held[0] == pytest.approx(0, abs=1e-5)
    assert len(held) == len(free) == 8
    assert 0 <= sum(held) < 0.5 * sum(free)


def test_retained_turns_are_of_other_messages_and_of_every_kind(real_dialogues: Path) -> None:
    rows, card = read_rows(real_dialogues, "train"), load_card(real_dialogues / CARD_FILE)
    silent = {"memories_read": [], "memories_written": []}
    rows.append(rows[0] | silent | {"id": "no", "user": "번호 좀", "reply": "그건 못 알려 줘."})
    settings = PreferenceConfig(steps=10, batch_size=8, retention=1.0)
    kept = retained(rows, OwnReplies(), card, settings)
    kinds = Counter(turn.kind for turn in kept)
    assert set(kinds) == {"writing a memory", "reading one", "declining", "others"}
    assert max(kinds.values()) <= 20
    own = OwnReplies(wanted=[kept[0]])
    assert kept[0].prompt not in {turn.prompt for turn in retained(rows, own, card, settings)}
    assert retained(rows, OwnReplies(), card, PreferenceConfig()) == []
