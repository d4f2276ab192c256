"""Which expression does a voice give to a reply that is written already?

The voice reads the prompt and the written reply with its memories, and goes on greedily: what it writes is
the tag, if it has learnt to write one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ohlora.attributes import Expression
from ohlora.evaluation.voice_test import HeldOut
from ohlora.persona.card import Card
from ohlora.persona.expressions import expression_of, fallback_expression
from ohlora.persona.prompt import expression_of_levels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ohlora.llm.engine import Voice

TAG_TOKENS = 10  # at most, with the bracket
_TAG = re.compile(r"^\s*\(?\s*([^()\d]+?)\s*(\d)(\d)([0-8])")
_TAG_AT = re.compile(r"\s*\([^()]*\)\s*$")


def read_expressions(
    voice: Voice, rows: Sequence[Mapping[str, Any]], card: Card, batch_size: int = 16
) -> list[HeldOut]:
    """The expressions that a voice gives to the written replies of a split.

    Args:
        voice: reads and writes with the engine that serves.
        rows: of the stage `dialogues`, with prompt, completion, reply, expression, eyes, mouth and pose.
        card: knows the labels.
        batch_size: rows of similar length are read together.
    """
    prefixes = [_prefix(voice.tokenizer, row) for row in rows]
    tails = [""] * len(rows)
    ordered = sorted(range(len(rows)), key=lambda i: len(prefixes[i]))
    for start in range(0, len(ordered), batch_size):
        chosen = ordered[start : start + batch_size]
        for i, tail in zip(chosen, _go_on(voice, [prefixes[i] for i in chosen]), strict=True):
            tails[i] = tail
    return [_held_out(row, tail, card) for row, tail in zip(rows, tails, strict=True)]


def _prefix(tokenizer: PreTrainedTokenizerFast, row: Mapping[str, Any]) -> list[int]:
    """Tokens of the prompt and of the completion up to its tag, cut where the whole has a border.

    Tokenised on its own, the text before the tag could end in a token that no training row has there.
    """
    prompt: list[int] = tokenizer(row["prompt"], split_special_tokens=True)["input_ids"]
    completion = row["completion"]
    tag = _TAG_AT.search(completion)
    at = tag.start() if tag else len(completion)
    answer = tokenizer(
        completion, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    spans = zip(answer["input_ids"], answer["offset_mapping"], strict=True)
    kept = [token for token, (_, end) in spans if end <= at]
    return prompt + kept


def _go_on(voice: Voice, prefixes: Sequence[list[int]]) -> list[str]:
    """What the engine writes next, greedily, without anything that holds it to the format."""
    width = max(map(len, prefixes))
    end, padding = voice.tokenizer.eos_token_id, voice.tokenizer.pad_token_id or 0
    step = torch.tensor([[padding] * (width - len(p)) + p for p in prefixes])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prefixes])
    written: list[list[int]] = [[] for _ in prefixes]
    session = voice.network.start()
    try:
        for _ in range(TAG_TOKENS):
            tokens = session.forward(step, mask).argmax(dim=-1)
            for row, token in zip(written, tokens.tolist(), strict=True):
                row.append(token)
            if all(end in row for row in written):
                break
            step, mask = tokens[:, None], torch.cat([mask, torch.ones(len(prefixes), 1).long()], dim=1)
    finally:
        session.close()
    ended = [row[: row.index(end)] if end in row else row for row in written]
    return [str(voice.tokenizer.decode(row, skip_special_tokens=True)) for row in ended]


def _held_out(row: Mapping[str, Any], tail: str, card: Card) -> HeldOut:
    match = _TAG.match(tail)
    tagged = match is not None and match.group(1) in card.labels
    if tagged:
        assert match is not None
        seen_name = card.labels[match.group(1)]
        eyes, mouth, pose = (int(match.group(i)) for i in (2, 3, 4))
        seen = expression_of_levels(eyes, mouth, pose)
    else:
        seen_name = fallback_expression(row["reply"], card)
        seen = expression_of(seen_name, card)
    written = Expression(eyes=row["eyes"], mouth=row["mouth"], pose=row["pose"])
    return HeldOut(row["user"], row["reply"], row["expression"], written, seen_name, seen, tagged)
