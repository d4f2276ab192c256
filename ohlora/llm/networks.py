"""The networks that can stand behind the voice: one interface, so that the loop above knows none of them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from ohlora.llm.openvino_network import OpenVINONetwork


class Session(Protocol):
    """A growing key-value cache of some rows."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits after the last token: float32 [n, vocabulary] on the CPU.

        Args:
            ids: int64 [n, t] on the CPU, tokens that the cache does not hold yet.
            mask: int64 [n, cached + t], 0 at padding on the left.
        """

    def close(self) -> None:
        """Give the cache back; the session is not used afterwards."""


class Network(Protocol):
    """Weights, ready to run."""

    vocabulary: int
    context: int  # most tokens of prompt and completion together

    def start(self) -> Session:
        """A session with an empty cache. Sessions do not disturb each other."""


class TransformersNetwork:
    """The reference: transformers' own code, in the precision and on the device of the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.vocabulary: int = model.config.vocab_size
        self.context: int = model.config.max_position_embeddings

    def start(self) -> Session:
        return _TransformersSession(self.model)


class _TransformersSession:
    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache: Any = None

    # Not a context manager around the loop: its effect would leak to whoever consumes the iterator.
    @torch.inference_mode()
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        device = self._model.device
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        return output.logits[:, -1].float().cpu()

    def close(self) -> None:
        self._cache = None


def choose_engine(engine: str, model: Any) -> str:
    """`auto`: OpenVINO where it can run the model (Gemma 3 on a CPU), transformers elsewhere.

    Raises:
        ValueError: OpenVINO is asked for but cannot.
    """
    able = model.config.model_type == "gemma3_text" and model.device.type == "cpu"
    if engine == "auto":
        return "openvino" if able else "transformers"
    if engine == "openvino" and not able:
        raise ValueError(
            f"generation.engine is openvino, which runs gemma3_text on a CPU, not {model.config.model_type} "
            f"on {model.device.type}; set it to auto or transformers"
        )
    return engine


def network_for(model: PreTrainedModel, engine: str = "auto") -> Network:
    """Prepare a model for generation.

    Args:
        model: on its device, in the precision it shall run in; OpenVINO takes float32 and quantises it.
        engine: `auto`, `transformers` or `openvino`.

    Raises:
        ValueError: see `choose_engine`.
    """
    if choose_engine(engine, model) == "openvino":
        return OpenVINONetwork(model)
    return TransformersNetwork(model)
