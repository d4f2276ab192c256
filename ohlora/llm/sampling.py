"""Which token comes next, given logits, what is allowed, and what was written before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ohlora.config import GenerationConfig

NUCLEUS = 64
"""So many tokens are tried as the nucleus before all are sorted."""


def sample(
    logits: torch.Tensor,
    written: Sequence[int],
    generator: torch.Generator,
    config: GenerationConfig,
    allowed: np.ndarray | None = None,
    free: bool = True,
) -> int:
    """Draw the next token.

    Args:
        logits: float32 [vocabulary]; not changed.
        written: tokens of this completion so far. Only they are penalised (CTRL, arXiv:1909.05858) and barred
            from repeating (`no_repeat_ngram`): what the person said and what she remembers must stay easy to
            say.
        generator: CPU generator.
        config: temperature, nucleus (arXiv:1904.09751), least share of the likeliest (min-p,
            arXiv:2407.01082, before the temperature counts), penalty and repetition.
        allowed: bool [vocabulary], at least one; None allows everything.
        free: whether this is speech. What is not (memories, expression) is the likeliest, and may repeat.
    """
    if allowed is not None:
        logits = logits.masked_fill(~torch.from_numpy(allowed), -torch.inf)
    if not free or not written:
        return _draw(logits, generator, config if free else config.model_copy(update={"temperature": 0.0}))
    logits = logits.clone()
    if config.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(written)))
        scores = logits[seen]
        penalty = config.repetition_penalty
        logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    barred = repeating(written, config.no_repeat_ngram)
    if barred:
        rest = logits.clone()
        rest[sorted(barred)] = -torch.inf
        if rest.max() > -torch.inf:  # the format comes first
            logits = rest
    return _draw(logits, generator, config)


def repeating(written: Sequence[int], length: int) -> set[int]:
    """Tokens that would complete a run of `length` tokens which was written before; 0 bars nothing.

    >>> repeating([5, 6, 7, 5, 6], 3)
    {7}
    """
    if length < 1 or len(written) < length:
        return set()
    tail = list(written[len(written) - length + 1 :])
    return {
        written[i + length - 1]
        for i in range(len(written) - length + 1)
        if list(written[i : i + length - 1]) == tail
    }


def _draw(logits: torch.Tensor, generator: torch.Generator, config: GenerationConfig) -> int:
    if config.temperature == 0:
        return int(logits.argmax())
    if config.min_p:
        logits = logits.masked_fill(logits < logits.max() + math.log(config.min_p), -torch.inf)
    probabilities = torch.softmax(logits / config.temperature, dim=-1)
    # the nucleus is nearly always among the few likeliest, and sorting the whole vocabulary takes longer
    likeliest, order = probabilities.topk(min(NUCLEUS, len(probabilities)))
    if likeliest.sum() < config.top_p:
        likeliest, order = probabilities.sort(descending=True)
    outside = likeliest.cumsum(0) - likeliest >= config.top_p
    outside[0] = False  # the likeliest token stays, even with top_p = 0
    likeliest[outside] = 0
    return int(order[torch.multinomial(likeliest, 1, generator=generator)])
