"""How surprised is she by the right answer? Bits per character of held-out completions.

Counted per character, not per token, so that bases with different vocabularies compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import torch

from ohlora.artifacts import ArtifactError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

IGNORED = -100  # label that torch's cross entropy skips


@dataclass(frozen=True)
class Example:
    """One exchange as tokens: the prompt with its begin token, then the completion with its end token."""

    input_ids: list[int]
    labels: list[int]  # IGNORED over the prompt
    characters: int  # of the completion


def read_rows(dialogues: Path, split: str) -> list[dict[str, Any]]:
    """Rows of one split of the stage `dialogues`.

    Raises:
        ArtifactError: the stage has not run.
    """
    path = dialogues / f"{split}.parquet"
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; run stage dialogues first")
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def encode(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]], max_length: int | None = None
) -> list[Example]:
    """Tokenise `prompt` and `completion` of each row on their own, as generation will see them.

    Tokenised together, a merge across the border would train tokens that no prompt ends in. Beyond
    `max_length` the beginning of the prompt is cut, so that the answer and its end are always learnt.
    """
    examples = []
    for row in rows:
        prompt = tokenizer(row["prompt"], split_special_tokens=True)["input_ids"]
        answer = tokenizer(row["completion"], add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        answer = [*answer, tokenizer.eos_token_id]
        if max_length is not None:
            answer = answer[: max_length - 1]
            prompt = prompt[-(max_length - len(answer)) :]
        examples.append(
            Example(prompt + answer, [IGNORED] * len(prompt) + answer, len(row["completion"].strip()))
        )
    return examples


def bits_per_character(
    model: PreTrainedModel, examples: Sequence[Example], batch_size: int = 16, mixed: bool = False
) -> float:
    """Mean bits per character of the completions, their end token included, teacher-forced.

    Args:
        model: put into eval mode for the duration.
        examples: at least one.
        batch_size: examples of similar length are batched together.
        mixed: compute in bfloat16 where autocast does.
    """
    return sum(bits_of_each(model, examples, batch_size, mixed)) / sum(e.characters for e in examples)


@torch.no_grad()
def bits_of_each(
    model: PreTrainedModel, examples: Sequence[Example], batch_size: int = 16, mixed: bool = False
) -> list[float]:
    """Bits of each completion, as in `bits_per_character`, in the order of the examples."""
    was_training, device = model.training, model.device
    model.eval()
    bits = [0.0] * len(examples)
    ordered = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    for start in range(0, len(ordered), batch_size):
        chosen = ordered[start : start + batch_size]
        batch = [examples[i] for i in chosen]
        width = max(len(e.input_ids) for e in batch)
        # padded on the right: causal attention never looks there, and labels skip it
        ids = torch.tensor([e.input_ids + [0] * (width - len(e.input_ids)) for e in batch], device=device)
        labels = torch.tensor([e.labels + [IGNORED] * (width - len(e.labels)) for e in batch], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16) if mixed else nullcontext():
            logits = model(input_ids=ids).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        for i, loss in zip(chosen, losses.view(len(batch), -1).double().sum(1).tolist(), strict=True):
            bits[i] = loss / math.log(2)
    model.train(was_training)
    return bits
