from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

from ohlora.artifacts import ArtifactError, verify, write_manifest
from ohlora.config import Config, load_config
from ohlora.evaluation.memory import score
from ohlora.memory import Encoder, merge
from ohlora.memory.adapter import add_lora, load_adapted, save_adapter
from ohlora.memory.bases import build_scratch_bert
from ohlora.memory.batching import MessageBatches, OncePerText
from ohlora.memory.encoder import load_network
from ohlora.memory.training import build, train
from ohlora.stage import Journal, Report

ROOT = Path(__file__).parents[2]
CONFIG = load_config(ROOT, "smoke", ["memory.epochs=8", "memory.learning_rate=0.005", "memory.batch_size=8"])
KEYS = {
    "train": {"이름": ["내 이름?", "나 누구?"], "직업": ["일 힘들다", "출근 싫다"]},
    "valid": {"취미": ["심심해", "주말에 뭐 하지"], "나이": ["나 몇 살?", "내 나이?"]},
    "test": {"고향": ["집에 가고 싶다", "어디 출신이게"], "꿈": ["미래가 걱정돼", "나중에 뭐 될까"]},
}
TEXTS = ["내 이름?", "나 몇 살이게?", "어디 출신이게"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    build_scratch_bert(folder / "base")
    (folder / "pairs").mkdir()
    rows = [
        {"memory": f"{key}: 값", "message": message, "score": float(key == asked), "split": split}
        for split, keys in KEYS.items()
        for asked, messages in keys.items()
        for message in messages
        for key in keys
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "pairs" / "pairs.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def report(work: Path) -> Report:
    inputs = {"base": work / "base", "pairs": work / "pairs"}
    return train(CONFIG, inputs, {"output": work / "out"}, Journal(work / "out"))


def loss_curve(work: Path) -> list[float]:
    points = map(json.loads, (work / "out" / "metrics.jsonl").read_text().splitlines())
    return [point["loss"] for point in points if "loss" in point]


def test_training_lowers_the_loss_and_reports_both_encoders(work: Path, report: Report) -> None:
    losses = loss_curve(work)
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])
    assert {"pearson", "mse", "mae", "top1_accuracy", "threshold", "base_pearson", "valid_f1"} <= set(
        report.metrics
    )
    (table,) = report.tables.values()
    assert [(row["encoder"], row["split"]) for row in table] == [
        ("untuned base", "valid"),
        ("untuned base", "test"),
        ("tuned", "valid"),
        ("tuned", "test"),
    ]
    for picture in report.pictures.values():
        assert (work / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_the_adapter_says_what_it_is(work: Path, report: Report) -> None:
    manifest = verify(work / "out", "memory")
    assert manifest.settings["type"] == "full"
    assert manifest.base == {"name": "scratch-bert", "sha256": verify(work / "base").digest}
    assert manifest.settings["threshold"] == report.metrics["threshold"]


def test_the_merged_model_embeds_as_the_adapter_on_its_base(
    work: Path, report: Report, tmp_path: Path
) -> None:
    merge(work / "base", work / "out", tmp_path / "merged")
    merged, pair = Encoder.load(tmp_path / "merged", "cpu"), load_adapted(work / "base", work / "out", "cpu")
    assert merged.embed(TEXTS) == pytest.approx(pair.embed(TEXTS), abs=2e-3)
    base = Encoder.load(work / "base", "cpu")
    assert np.abs(merged.embed(TEXTS) - base.embed(TEXTS)).max() > 0.01
    assert merged.threshold == report.metrics["threshold"]


def test_the_scorer_repeats_the_figures_of_training(work: Path, report: Report) -> None:
    figures = score(work / "out", {"base_encoder": work / "base", "pairs": work / "pairs"}, CONFIG)
    for name in ("pearson", "mse", "mae", "top1_accuracy", "f1"):
        assert figures[name] == pytest.approx(report.metrics[name], abs=5e-3)  # weights are rounded on disk


def test_a_set_threshold_wins_over_the_calibrated_one(work: Path, report: Report) -> None:
    config: Config = load_config(ROOT, "smoke", ["memory.threshold=1.0"])
    figures = score(work / "out", {"base_encoder": work / "base", "pairs": work / "pairs"}, config)
    assert figures["recall"] == 0.0


def test_an_adapter_alone_is_no_encoder(work: Path, report: Report) -> None:
    with pytest.raises(ArtifactError, match="is an adapter"):
        Encoder.load(work / "out", "cpu")


def test_another_base_is_refused(work: Path, report: Report, tmp_path: Path) -> None:
    other = shutil.copytree(work / "base", tmp_path / "other")
    manifest = verify(other)
    write_manifest(
        other, "base-encoder", files=list(manifest.files), settings={**manifest.settings, "name": "x"}
    )
    with pytest.raises(ArtifactError, match="was trained on base 'scratch-bert'"):
        merge(other, work / "out", tmp_path / "merged")


def test_corrupt_weights_are_refused(work: Path, report: Report, tmp_path: Path) -> None:
    broken = shutil.copytree(work / "out", tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="is corrupt"):
        merge(work / "base", broken, tmp_path / "merged")


def test_a_seed_draws_the_first_weights_of_an_adapter(work: Path) -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        model = add_lora(load_network(work / "base"), rank=4, seed=seed)
        return [p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_lora_weights_merge_into_what_they_do(work: Path, tmp_path: Path) -> None:
    base = verify(work / "base")
    model = add_lora(load_network(work / "base"), rank=4, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_adapter(model, tmp_path / "lora", base=base, settings={"threshold": 0.1}, provenance={})
    manifest = verify(tmp_path / "lora", "memory")
    assert manifest.settings["type"] == "lora"
    settings = (tmp_path / "lora" / "adapter_config.json").read_text()
    assert str(tmp_path) not in settings
    modules = json.loads(settings)["target_modules"]
    assert modules == sorted(modules)  # equal weights have equal digests
    assert all(
        t.dtype == torch.float16 for t in load_file(tmp_path / "lora" / "adapter_model.safetensors").values()
    )

    merge(work / "base", tmp_path / "lora", tmp_path / "merged")
    merged = Encoder.load(tmp_path / "merged", "cpu")
    plain = Encoder.load(work / "base", "cpu")
    wrapped = Encoder(model, plain.tokenizer, dimension=plain.dimension, prefixes=plain.prefixes)
    assert merged.embed(TEXTS) == pytest.approx(wrapped.embed(TEXTS), abs=2e-3)
    assert np.abs(merged.embed(TEXTS) - plain.embed(TEXTS)).max() > 0.01


def test_weights_that_do_not_fit_are_an_artifact_error(work: Path, report: Report, tmp_path: Path) -> None:
    odd = shutil.copytree(work / "out", tmp_path / "odd")
    save_file({"a": torch.zeros(1)}, odd / "model.safetensors")
    manifest = verify(work / "out")
    write_manifest(odd, "memory", files=["model.safetensors"], settings=manifest.settings, base=manifest.base)
    with pytest.raises(ArtifactError, match="does not fit its base"):
        merge(work / "base", odd, tmp_path / "merged")


def test_batches_hold_every_row_once_and_keep_messages_together() -> None:
    dataset = Dataset.from_dict({"message": [m for m in "abcdef" for _ in range(4)]})
    sampler = MessageBatches(dataset, batch_size=8, seed=3)
    first = list(sampler)
    assert sorted(row for batch in first for row in batch) == list(range(24))
    assert all(len({row // 4 for row in batch}) == 2 for batch in first)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert len(sampler) == len(first) == 3


def test_encoding_texts_once_changes_neither_loss_nor_gradient(work: Path) -> None:
    model = build(CONFIG.memory, work / "base", "cpu")
    columns = [["안녕", "안녕", "잘 가"], ["이름: 민수", "직업: 화가", "이름: 민수"]]
    labels = torch.tensor([1.0, 0.0, 0.5])
    results = []
    for loss in (CosineSimilarityLoss(model), OncePerText(model, CosineSimilarityLoss(model))):
        model.zero_grad()
        value = loss([model.preprocess(column) for column in columns], labels)
        value.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((value.item(), gradients))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert len(results[0][1]) == len(results[1][1]) > 0
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-6)
