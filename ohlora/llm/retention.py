"""What preference training shall not change: turns of other kinds than her own replies are about.

Taught by her answers about herself alone, she declines and remembers less. So each step also sees written
turns of other kinds, on which the distribution of the fine-tuned model over the next token is the target:
learning without forgetting (arXiv:1606.09282, section 3), by the divergence that RLHF holds a policy with.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from ohlora.config import PreferenceConfig
from ohlora.llm.likelihood import IGNORED, Example
from ohlora.llm.own_replies import OwnReplies, alone, fact_words
from ohlora.llm.undesirable import Preference
from ohlora.persona.card import Card

_DECLINING = re.compile(
    r"안 돼|못 (?:해|하|도와|알려|써|줘)|안 할|싫어|그건 좀|거절|곤란|할 수 없|모르겠|하지 말"
)


def retained(
    rows: Sequence[dict[str, Any]], own: OwnReplies, card: Card, settings: PreferenceConfig
) -> list[Preference]:
    """Written turns on which she shall stay as she is: they say no fact of the card.

    At most as many as training sees, in equal parts those that write a memory, that read one, that decline
    and others. None if `preference.retention` is 0.

    Args:
        rows: of the stage `dialogues`, train split.
        own: her own replies; what they answer is left out.
        card: the persona.
        settings: of the training.
    """
    if not settings.retention:
        return []
    taken = {reply.prompt for reply in [*own.wanted, *own.unwanted]}
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: hashlib.sha256(f"{settings.seed} {row['id']}".encode()).digest()):
        asked = row["prompt"] in taken or alone(row, card) in taken
        if asked or fact_words(row["prompt"], row["reply"]):
            continue
        if row["memories_written"]:
            parts["writing a memory"].append(row)
        elif row["memories_read"]:
            parts["reading one"].append(row)
        else:
            parts["declining" if _DECLINING.search(row["reply"]) else "others"].append(row)
    most = -(-settings.steps * settings.batch_size // max(1, len(parts)))
    return [
        Preference(row["prompt"], row["completion"], True, kind)
        for kind, part in sorted(parts.items())
        for row in part[:most]
    ]


def next_words(network: Any, batch: Sequence[Example]) -> torch.Tensor:
    """Log probabilities of every token of the vocabulary where a completion's tokens are said.

    Returns:
        float32 [tokens of all completions, vocabulary].
    """
    device, width = network.device, max(len(e.input_ids) for e in batch)
    ids = torch.tensor([e.input_ids + [0] * (width - len(e.input_ids)) for e in batch], device=device)
    labels = torch.tensor([e.labels + [IGNORED] * (width - len(e.labels)) for e in batch], device=device)
    logits = network(input_ids=ids).logits[:, :-1][labels[:, 1:] != IGNORED]
    return torch.log_softmax(logits.float(), dim=-1)
