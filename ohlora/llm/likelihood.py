"""How surprised is she by the right answer? Bits per character of held-out completions.

Counted per character, not per token, so that bases with different vocabularies compare.
"""

from __future__ import annotations

import math
import re
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

_TAIL = re.compile(r"(?:\s*\[[^\[\]]*\])*\s*\([^()]*\)\s*$")


@dataclass(frozen=True)
class Example:
    """One exchange as tokens: the prompt with its begin token, then the completion with its end token."""

    input_ids: list[int]
    labels: list[int]  # IGNORED over the prompt
    characters: int  # of the completion
    weights: list[float]  # of each token in the loss: 0 over the prompt
    cut: int = 0  # tokens that did not fit

    @property
    def prompt_tokens(self) -> int:
        return sum(label == IGNORED for label in self.labels)


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
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[dict[str, Any]],
    max_length: int | None = None,
    tag_weight: float = 1.0,
) -> list[Example]:
    """Tokenise `prompt` and `completion` of each row on their own, as generation will see them.

    Tokenised together, a merge across the border would train tokens that no prompt ends in. Beyond
    `max_length` the beginning of the prompt is cut, so that the answer and its end are always learnt;
    `Example.cut` says how much.

    Args:
        tokenizer: a fast one.
        rows: with `prompt` and `completion`.
        max_length: most tokens of both; None cuts nothing.
        tag_weight: weight of the tokens of memories and expression (`tail_start`); a word's is 1.
    """
    examples = []
    for row in rows:
        prompt = tokenizer(row["prompt"], split_special_tokens=True)["input_ids"]
        encoded = tokenizer(
            row["completion"],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        tail = tail_start(row["completion"])
        answer = [*encoded["input_ids"], tokenizer.eos_token_id]
        weights = [tag_weight if end > tail else 1.0 for _, end in encoded["offset_mapping"]] + [1.0]
        full = len(prompt) + len(answer)
        if max_length is not None:
            answer, weights = answer[: max_length - 1], weights[: max_length - 1]
            prompt = prompt[-(max_length - len(answer)) :]
        examples.append(
            Example(
                prompt + answer,
                [IGNORED] * len(prompt) + answer,
                len(row["completion"].strip()),
                [0.0] * len(prompt) + weights,
                full - len(prompt) - len(answer),
            )
        )
    return examples


def tail_start(completion: str) -> int:
    """Where the speech of a completion ends and its memories and expression begin; its length without any.

    >>> completion = " 왔구나, 민수! [이름: 민수] (기쁨 654)"
    >>> completion[tail_start(completion):]
    ' [이름: 민수] (기쁨 654)'
    """
    match = _TAIL.search(completion)
    return match.start() if match else len(completion)


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel, examples: Sequence[Example], batch_size: int = 16, mixed: bool = False
) -> torch.Tensor:
    """Log likelihood of each completion given its prompt, in nats, its end token included.

    Args:
        model: put into eval mode for the duration.
        examples: at least one.
        batch_size: examples of similar length are batched together.
        mixed: compute in bfloat16 where autocast does.

    Returns:
        float32 [len(examples)], on the CPU.
    """
    was_training, device = model.training, model.device
    model.eval()
    result = torch.zeros(len(examples))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [examples[i] for i in chosen]
        width = max(len(e.input_ids) for e in batch)
        # padded on the right: causal attention never looks there, and labels skip it
        ids = torch.tensor([e.input_ids + [0] * (width - len(e.input_ids)) for e in batch], device=device)
        labels = torch.tensor([e.labels + [IGNORED] * (width - len(e.labels)) for e in batch], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16) if mixed else nullcontext():
            logits = model(input_ids=ids).logits
        said = labels[:, 1:] != IGNORED
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1][said].float(), labels[:, 1:][said], reduction="none"
        )
        rows = said.nonzero()[:, 0]
        result[chosen] = -torch.zeros(len(batch), device=device).index_add_(0, rows, losses).cpu()
    model.train(was_training)
    return result


def bits_per_character(
    model: PreTrainedModel, examples: Sequence[Example], batch_size: int = 16, mixed: bool = False
) -> float:
    """Mean bits per character of the completions, their end token included, teacher-forced.

    Arguments as of `log_likelihoods`.
    """
    nats = -log_likelihoods(model, examples, batch_size, mixed).double().sum().item()
    return nats / math.log(2) / sum(e.characters for e in examples)
