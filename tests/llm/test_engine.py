from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.artifacts import ArtifactError
from ohlora.config import GenerationConfig
from ohlora.llm.engine import REPLACEMENT, Voice, sample
from ohlora.llm.weights import load_network, load_tokenizer

HOT = GenerationConfig(max_new_tokens=40, temperature=2.0, top_p=1.0, repetition_penalty=1.0)
GREEDY = GenerationConfig(max_new_tokens=12, temperature=0.0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def voice(base: Path) -> Voice:
    return Voice(load_network(base, torch.float32), load_tokenizer(base))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scripted(Voice):
    """Says given tokens instead of sampling them."""

    def __init__(self, voice: Voice, ids: list[int]) -> None:
        super().__init__(voice.model, voice.tokenizer)
        self.ids = ids

    def _tokens(self, prompt: str, generator: torch.Generator, config: GenerationConfig) -> Iterator[int]:
        yield from self.ids

    @classmethod
    def saying(cls, voice: Voice, text: str) -> Scripted:
        return cls(
            voice, voice.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )

    def pieces(self, *stop: str) -> list[str]:
        return list(self.stream("", torch.Generator(), GREEDY, stop))


@pytest.mark.parametrize("seed", range(5))
def test_streamed_pieces_join_to_the_completion_without_half_characters(voice: Voice, seed: int) -> None:
    pieces = list(voice.stream("안녕", seeded(seed), HOT))
    assert "".join(pieces) == voice.complete("안녕", seeded(seed), HOT)
    assert all(pieces)
    assert REPLACEMENT not in "".join(pieces)


def test_another_seed_says_something_else(voice: Voice) -> None:
    assert voice.complete("안녕", seeded(0), HOT) != voice.complete("안녕", seeded(1), HOT)


def test_greedy_needs_no_randomness_and_agrees_with_transformers(voice: Voice) -> None:
    ids = torch.tensor([voice.tokenizer("안녕")["input_ids"]])
    reference = voice.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    ours = list(voice._tokens("안녕", torch.Generator(), GREEDY))
    assert ours == [t for t in reference if t != voice.tokenizer.eos_token_id]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("가나뷁쀍漢😊ab (\n"), max_size=20))
def test_any_text_streams_unchanged(voice: Voice, text: str) -> None:
    pieces = Scripted.saying(voice, text).pieces()
    assert "".join(pieces) == text


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(4, 260), max_size=12))
def test_bytes_that_are_no_text_never_become_replacement_characters(voice: Voice, ids: list[int]) -> None:
    assert REPLACEMENT not in "".join(Scripted(voice, ids).pieces())


@pytest.mark.parametrize("stop", ["\n", "\n사용자:", "끝"])
def test_text_ends_before_a_stop_string(voice: Voice, stop: str) -> None:
    assert "".join(Scripted.saying(voice, f"안녕{stop}뒤").pieces(stop)) == "안녕"


def test_what_only_begins_like_a_stop_string_is_said(voice: Voice) -> None:
    pieces = Scripted.saying(voice, "안녕 사용 설명서").pieces("사용자:")
    assert "".join(pieces) == "안녕 사용 설명서"
    assert not any("사용자:".startswith(piece[-1]) and piece != pieces[-1] for piece in pieces)


def test_consumer_is_not_left_in_inference_mode(voice: Voice) -> None:
    stream = voice.stream("안녕", seeded(0), HOT)
    next(stream)
    assert not torch.is_inference_mode_enabled()


def test_a_prompt_longer_than_the_context_keeps_its_end(voice: Voice) -> None:
    assert voice.complete("가" * 500 + "안녕", seeded(0), HOT) == voice.complete(
        "가" * 900 + "안녕", seeded(0), HOT
    )


def test_end_token_ends(voice: Voice) -> None:
    logits = torch.zeros(len(voice.tokenizer))
    logits[voice.tokenizer.eos_token_id] = 100.0
    voice = Voice(voice.model, voice.tokenizer)
    voice._forward = lambda step, cache: (logits, None)  # type: ignore[method-assign]
    assert voice.complete("안녕", seeded(0), HOT) == ""


class TestSample:
    logits = torch.tensor([3.0, 2.0, 1.0, -1.0])

    def draw(self, config: GenerationConfig, written: tuple[int, ...] = ()) -> set[int]:
        generator = seeded(0)
        return {sample(self.logits, written, generator, config) for _ in range(200)}

    def test_nucleus_leaves_out_the_tail(self) -> None:
        assert self.draw(GenerationConfig(temperature=1.0, top_p=1.0)) == {0, 1, 2, 3}
        assert self.draw(GenerationConfig(temperature=1.0, top_p=0.7)) == {0, 1}
        assert self.draw(GenerationConfig(temperature=1.0, top_p=0.0)) == {0}

    def test_zero_temperature_takes_the_likeliest(self) -> None:
        assert self.draw(GenerationConfig(temperature=0.0)) == {0}

    def test_penalty_makes_room_for_what_was_not_said(self) -> None:
        config = GenerationConfig(temperature=0.0, repetition_penalty=2.0)
        assert sample(self.logits, [0], torch.Generator(), config) == 1

    def test_logits_are_left_alone(self) -> None:
        before = self.logits.clone()
        self.draw(GenerationConfig(repetition_penalty=2.0), (0, 3))
        assert torch.equal(self.logits, before)


def test_an_adapter_alone_does_not_load(base: Path, tmp_path: Path) -> None:
    from ohlora.artifacts import write_manifest

    write_manifest(tmp_path, "voice", files=[], settings={"type": "lora"})
    with pytest.raises(ArtifactError, match="merge it"):
        Voice.load(tmp_path)
    with pytest.raises(ArtifactError, match="expected 'voice'"):
        Voice.load(base)
