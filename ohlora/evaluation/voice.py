"""Scores of a voice on exchanges that no training saw: how likely the right answer is, and what she says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from ohlora.config import Config
from ohlora.llm.engine import Voice
from ohlora.llm.likelihood import bits_per_character, encode, read_rows
from ohlora.llm.precision import uses_bfloat16
from ohlora.persona.card import Card, load_card
from ohlora.persona.dialogues import CARD_FILE
from ohlora.persona.prompt import EmptyReply, TurnError, parse_completion, parse_turn

REPLIES = 12
"""Prompts that are answered; few, because the gate waits for them."""
SEED = 20

_LOOP = re.compile(r"(\S.{1,}?)\1\1")


def score(model_folder: Path, inputs: dict[str, Path], config: Config) -> dict[str, float]:
    """Judge an adapter on the test split of `inputs["dialogues"]`, on top of `inputs["base_llm"]`.

    Returns:
        `bits_per_character` of the written answers, and the figures of `reply_metrics` over sampled replies.

    Raises:
        ArtifactError: a folder is missing or corrupt, or the adapter belongs to another base.
    """
    rows = read_rows(inputs["dialogues"], "test")
    card = load_card(inputs["dialogues"] / CARD_FILE)
    voice = Voice.load_pair(inputs["base_llm"], model_folder, config.runtime.device)
    mixed = uses_bfloat16(config.runtime, voice.model.device)
    bits = bits_per_character(voice.model, encode(voice.tokenizer, rows), mixed=mixed)
    generator = torch.Generator().manual_seed(SEED)
    chosen = rows[:: max(1, len(rows) // REPLIES)][:REPLIES]
    replies = [voice.complete(row["prompt"], generator, config.generation) for row in chosen]
    return {"bits_per_character": bits, **reply_metrics(replies, card)}


def reply_metrics(completions: Sequence[str], card: Card) -> dict[str, float]:
    """Shares of raw completions, 0 to 1, and their mean length.

    Returns:
        `empty_rate`: nothing to say is left after parsing;
        `format_rate`: is exactly a turn of the format;
        `repetition_rate`: the speech loops;
        `hangul_rate`: of the letters of all speech, how many are Hangul;
        `reply_characters`: mean length of what is said.
    """
    speech, empty = [], 0
    for completion in completions:
        try:
            speech.append(parse_completion(completion, card).text)
        except EmptyReply:
            empty += 1
    letters = [c for text in speech for c in text if c.isalpha()]
    count = len(completions)
    return {
        "empty_rate": empty / count,
        "format_rate": sum(is_turn(c, card) for c in completions) / count,
        "repetition_rate": sum(map(loops, speech)) / count,
        "hangul_rate": sum("가" <= c <= "힣" or "ㄱ" <= c <= "ㅣ" for c in letters) / max(1, len(letters)),
        "reply_characters": sum(map(len, speech)) / max(1, len(speech)),
    }


def is_turn(completion: str, card: Card) -> bool:
    """Whether the strict parser takes a raw completion."""
    try:
        parse_turn(completion, card)
    except TurnError:
        return False
    return True


def loops(text: str) -> bool:
    """Whether something of two or more characters comes three times in a row, or two words come twice.

    >>> loops("정말 정말 좋아"), loops("정말정말정말 좋아"), loops("난 네가 좋아 난 네가")
    (False, True, True)
    """
    words = text.split()
    pairs = list(pairwise(words))
    return _LOOP.search(text) is not None or len(set(pairs)) < len(pairs)
