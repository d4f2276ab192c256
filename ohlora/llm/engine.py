"""How tokens are produced: a sampling loop over a key-value cache that streams text.

transformers' `generate` takes no generator of random numbers and streams by callback from a thread; this loop
is seeded by what is passed in, is pulled by its consumer, and stops when the consumer stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ohlora.artifacts import ArtifactError, verify
from ohlora.config import GenerationConfig
from ohlora.llm.precision import inference_dtype
from ohlora.llm.weights import KIND, load_adapted, load_network, load_tokenizer, pick_device
from ohlora.persona.prompt import STOP_SEQUENCES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

REPLACEMENT = "\ufffd"  # what a tokenizer decodes half a character to


class Voice:
    """A language model that completes prompts. Stateless between calls."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.context: int = model.config.max_position_embeddings
        self._ends = {tokenizer.eos_token_id}

    @classmethod
    def load(cls, folder: Path, device: str = "auto", precision: str = "auto") -> Voice:
        """Load a merged model folder.

        Args:
            folder: what `ohlora.llm.merge` wrote.
            device: `auto`, `cpu` or `cuda`.
            precision: `auto`, `float32` or `bfloat16`.

        Raises:
            ArtifactError: the folder is damaged, or holds an adapter that was not merged with its base.
        """
        manifest = verify(folder, KIND)
        if not manifest.settings.get("merged"):
            raise ArtifactError(f"{folder} holds an adapter alone; merge it with its base first")
        target = pick_device(device)
        model = load_network(folder, inference_dtype(precision, target))
        return cls(model.to(target), load_tokenizer(folder))  # type: ignore[arg-type]

    @classmethod
    def load_pair(cls, base: Path, adapter: Path, device: str = "auto", precision: str = "auto") -> Voice:
        """Load a base and an adapter, folded together in memory.

        Raises:
            ArtifactError: a folder is damaged or the two do not belong together.
        """
        target = pick_device(device)
        model, tokenizer = load_adapted(base, adapter, inference_dtype(precision, target))
        return cls(model.to(target), tokenizer)  # type: ignore[arg-type]

    def complete(
        self,
        prompt: str,
        generator: torch.Generator,
        config: GenerationConfig,
        stop: Sequence[str] = STOP_SEQUENCES,
    ) -> str:
        """The whole completion of `stream`."""
        return "".join(self.stream(prompt, generator, config, stop))

    def stream(
        self,
        prompt: str,
        generator: torch.Generator,
        config: GenerationConfig,
        stop: Sequence[str] = STOP_SEQUENCES,
    ) -> Iterator[str]:
        """Complete a prompt piece by piece.

        A piece never ends within a character or within what may become a stop string; none is empty.

        Args:
            prompt: plain text; names of special tokens in it are read as text.
            generator: CPU generator; the same seed, weights and prompt give the same text.
            config: sampling; temperature 0 is greedy and leaves the generator alone.
            stop: the text ends before the first of these.
        """
        pending = ""
        for text in self._text(self._tokens(prompt, generator, config)):
            pending += text
            cut = min((at for at in (pending.find(s) for s in stop) if at >= 0), default=-1)
            if cut >= 0:
                if cut:
                    yield pending[:cut]
                return
            held = max((_overlap(pending, s) for s in stop), default=0)
            if len(pending) > held:
                yield pending[: len(pending) - held]
                pending = pending[len(pending) - held :]
        if pending:
            yield pending

    def _tokens(self, prompt: str, generator: torch.Generator, config: GenerationConfig) -> Iterator[int]:
        ids: list[int] = self.tokenizer(prompt, split_special_tokens=True)["input_ids"]
        # of a prompt that is too long its end counts: the person's last words
        ids = ids[-max(1, self.context - config.max_new_tokens) :]
        step = torch.tensor([ids], device=self.model.device)
        cache: Any = None
        written: list[int] = []
        for _ in range(min(config.max_new_tokens, self.context)):
            logits, cache = self._forward(step, cache)
            token = sample(logits, written, generator, config)
            if token in self._ends:
                return
            written.append(token)
            yield token
            step = torch.tensor([[token]], device=self.model.device)

    # Not a context manager around the loop: its effect would leak to whoever consumes the iterator.
    @torch.inference_mode()
    def _forward(self, step: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Logits after the last token: float32 [vocabulary] on the CPU, and the grown cache."""
        output = self.model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1].float().cpu(), output.past_key_values

    def _text(self, tokens: Iterator[int]) -> Iterator[str]:
        """Tokens as whole characters.

        Hangul outside the vocabulary arrives as three byte tokens, which decode to U+FFFD one by one; text is
        therefore the difference that new tokens make to the decoding of the last ones, once it is complete.
        Bytes that never become a character are dropped.
        """
        ids: list[int] = []
        start = read = 0  # ids[start:read] is context that was given out, ids[read:] waits
        for token in tokens:
            ids.append(token)
            whole = self._decode(ids[start:])
            if whole.endswith(REPLACEMENT):
                continue
            text = whole[len(self._decode(ids[start:read])) :].replace(REPLACEMENT, "")
            start, read = read, len(ids)
            if text:
                yield text
        rest = self._decode(ids[start:])[len(self._decode(ids[start:read])) :].replace(REPLACEMENT, "")
        if rest:
            yield rest

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def sample(
    logits: torch.Tensor, written: Sequence[int], generator: torch.Generator, config: GenerationConfig
) -> int:
    """Draw the next token.

    Args:
        logits: float32 [vocabulary]; not changed.
        written: tokens of this completion so far. Only they are penalised (CTRL, arXiv:1909.05858): what the
            person said and what she remembers must stay easy to say.
        generator: CPU generator.
        config: temperature, nucleus (arXiv:1904.09751) and penalty.
    """
    if written and config.repetition_penalty != 1:
        logits = logits.clone()
        seen = torch.tensor(sorted(set(written)))
        scores = logits[seen]
        penalty = config.repetition_penalty
        logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if config.temperature == 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / config.temperature, dim=-1).sort(descending=True)
    outside = probabilities.cumsum(0) - probabilities >= config.top_p
    outside[0] = False  # the likeliest token stays, even with top_p = 0
    probabilities[outside] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
