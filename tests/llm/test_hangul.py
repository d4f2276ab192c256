from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ohlora.artifacts import ArtifactError
from ohlora.llm.bases import build, character_tokenizer
from ohlora.llm.hangul import hangul_support, require_hangul
from tests.llm.conftest import tiny_config


def latin() -> PreTrainedTokenizerFast:
    """Words of English and an unknown token for everything else."""
    vocabulary = {"<unk>": 0, "<eos>": 1, "hello": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def bytes_only() -> PreTrainedTokenizerFast:
    """Every byte a token, like GPT-2 without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<eos>"])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_a_tokenizer_of_syllables_is_taken() -> None:
    support = require_hangul(character_tokenizer(64), "syllables")
    assert support.share == 1.0
    assert support.tokens_per_syllable < 2


def test_a_tokenizer_without_hangul_is_refused_with_the_share() -> None:
    with pytest.raises(ArtifactError, match=r"cannot write Korean.* 0% of the Hangul"):
        require_hangul(latin(), "english")


def test_a_tokenizer_of_bytes_is_refused_with_the_figures() -> None:
    support = hangul_support(bytes_only())
    assert support.share == 1.0
    assert 3 <= support.tokens_per_syllable < 3.5  # three bytes, and the space before a word
    with pytest.raises(ArtifactError, match=r"byte by byte: 3\.4 tokens a syllable"):
        require_hangul(bytes_only(), "bytes")


def test_a_base_from_a_folder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    latin().save_pretrained(tmp_path / "english")  # there are no weights at all
    with pytest.raises(ArtifactError, match="cannot write Korean"):
        build(tiny_config("voice.base=hub", f"voice.hub_name={tmp_path / 'english'}"), tmp_path / "out")
