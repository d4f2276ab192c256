from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ohlora.llm.bases import END, character_tokenizer
from ohlora.llm.gemma import build_tokenizer
from ohlora.llm.turn_mask import (
    CLOSING,
    SENTENCE_END,
    ConstraintError,
    TokenTable,
    TurnAutomaton,
    TurnState,
    _gpt2_characters,
)
from ohlora.persona import load_card
from ohlora.persona.prompt import parse_turn, turn_grammar

CARD = load_card(Path(__file__).parents[2] / "data" / "persona" / "ohlora.yaml")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Pieces that cross every border of the format, with byte fallback, as Gemma has them."""
    crossing = [
        " (",
        " [",
        "] (",
        "] [",
        "]",
        "(",
        "[",
        "이름",
        "이름:",
        ": ",
        " (기쁨",
        "기쁨 4",
        "44)",
        "4)",
    ]
    words = [
        "안녕",
        " 안녕",
        "안녕!",
        "! ",
        ".",
        "...",
        "민수",
        "가나다라마바사",
        " ",
        "  ",
        "\n",
        "😊",
        "ㅋㅋ",
        "a b",
    ]
    bodies = [text.replace(" ", "▁") for text in [*crossing, *words]]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(bodies)]
    return build_tokenizer(pieces, [0.0] * len(pieces), [False] * len(pieces))


def byte_level() -> PreTrainedTokenizerFast:
    vocabulary = {c: i for i, c in enumerate([*_gpt2_characters(), "Ġ(", "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "(")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


AUTOMATA = {
    name: TurnAutomaton(turn_grammar(CARD), TokenTable.of(tokenizer, len(tokenizer)))
    for name, tokenizer in {
        "characters": character_tokenizer(128),
        "pieces": sentencepiece(),
        "bytes": byte_level(),
    }.items()
}


def write(automaton: TurnAutomaton, budget: int, taste: np.ndarray, seed: int) -> tuple[str, TurnState, int]:
    """A turn of random tokens; `taste` [vocabulary] says how much each is liked."""
    generator = np.random.default_rng(seed)
    state, ids = TurnState(automaton, budget), []
    while not state.done:
        chances = state.allowed() * taste
        assert chances.sum() > 0
        ids.append(int(generator.choice(len(taste), p=chances / chances.sum())))
        state.accept(ids[-1])
    return b"".join(automaton.tokens.texts[i] for i in ids).decode("utf-8"), state, len(ids)


@pytest.mark.parametrize("name", AUTOMATA)
@settings(max_examples=60)
@given(st.integers(32, 150), st.integers(0, 2**32), st.sampled_from(["any", "bytes", "memories", "marks"]))
def test_whatever_is_liked_every_turn_parses_within_its_budget(
    name: str, budget: int, seed: int, liking: str
) -> None:
    automaton = AUTOMATA[name]
    texts = automaton.tokens.texts
    liked = {
        "any": np.ones(len(texts), bool),
        "bytes": np.array([len(text) == 1 for text in texts]),
        "memories": np.array([b"[" in text or text == b" " for text in texts]),
        "marks": np.array([text.isascii() and not text.isalnum() for text in texts]),
    }[liking]
    text, state, tokens = write(automaton, budget, np.where(liked, 1e3, 1.0), seed)
    parse_turn(text, CARD)
    assert tokens <= budget
    assert state.left == budget - tokens


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_speech_that_is_too_long_ends_with_its_sentence(seed: int) -> None:
    automaton = AUTOMATA["characters"]
    taste = np.full(len(automaton.tokens.texts), 1e-9)
    for i, text in enumerate(automaton.tokens.texts):
        if text.decode("utf-8", "replace") in "가나다라. ":
            taste[i] = 1.0
    text, state, _ = write(automaton, 80, taste, seed)
    said = parse_turn(text, CARD).text
    assert state.cut
    assert len(said) > 80 - 32 - CLOSING - 8
    last = said[-CLOSING // 2 :]
    assert not any(mark in last[:-2] for mark in SENTENCE_END) or said[-1] in SENTENCE_END


def test_a_turn_that_ends_by_itself_is_not_cut() -> None:
    automaton = AUTOMATA["characters"]
    state = TurnState(automaton, 100)
    for c in " 안녕! (기쁨 444)":
        assert not state.cut
        token = automaton.tokens.texts.index(c.encode())
        assert state.allowed()[token]
        state.accept(token)
    state.accept(automaton.tokens.end)
    assert state.done
    assert not state.cut


@pytest.mark.parametrize(
    ("written", "next_one"),
    [
        ("", "안"),  # the format's space comes first
        (" ", " "),
        (" ", "("),  # nothing is said yet
        (" !", "\n"),
        (" ! ", "("),
        (" 안녕", "("),
        (" 안녕", "]"),
        (" 안녕 (", "왕"),
        (" 안녕 (기쁨 44", "9"),  # poses are 0 to 8
        (" 안녕 [", "왕"),
        (" 안녕 [이름: ", "]"),
        (" 안녕 [이름: 민수] [나이: 20] ", "["),  # two memories at most
    ],
)
def test_what_the_format_forbids_cannot_be_written(written: str, next_one: str) -> None:
    automaton = AUTOMATA["characters"]
    state = TurnState(automaton, 100)
    for c in written:
        state.accept(automaton.tokens.texts.index(c.encode()))
    token = automaton.tokens.texts.index(next_one.encode())
    assert not state.allowed()[token]
    assert not state.allowed()[automaton.tokens.end]


def test_a_value_is_no_longer_than_the_format_takes() -> None:
    automaton = AUTOMATA["characters"]
    state = TurnState(automaton, 150)
    for c in " 안녕 [이름: " + "가" * 40:
        state.accept(automaton.tokens.texts.index(c.encode()))
    assert {automaton.tokens.texts[i].decode() for i in np.flatnonzero(state.allowed())} == {"]"}


def test_special_tokens_are_never_written() -> None:
    automaton = AUTOMATA["pieces"]
    assert not automaton.tokens.written[:6].any()
    assert not automaton.after(automaton.start)[:6].any()


def test_a_budget_without_room_for_a_turn_is_refused() -> None:
    with pytest.raises(ConstraintError, match=r"max_new_tokens is 10; a turn needs at least \d+"):
        TurnState(AUTOMATA["characters"], 10)


def test_a_tokenizer_that_cannot_write_every_byte_is_refused() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, END: 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")), eos_token=END
    )
    with pytest.raises(ConstraintError, match="byte fallback"):
        TokenTable.of(tokenizer, 4)
