"""The sentence encoder at work: texts in, unit vectors out.

Mean pooling over tokens and L2 normalisation, as multilingual-e5 was trained (Wang et al. 2024,
arXiv:2402.05672), with its `query: ` and `passage: ` prefixes where the base model knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ohlora.artifacts import ArtifactError, Manifest, verify

Kind = Literal["query", "passage"]
DEFAULT_MAX_LENGTH = 64

# These classes append a pooler that sentence encoders do not use, randomly initialised where weights lack it.
_WITH_POOLER = {"bert", "roberta", "xlm-roberta", "camembert"}


class Embedder(Protocol):
    """What the store and the metrics need of an encoder."""

    @property
    def digest(self) -> str:
        """Names the weights: embeddings of different digests are not comparable."""

    def embed(self, texts: Sequence[str], kind: Kind = "query") -> npt.NDArray[np.float32]:
        """Unit vectors, float32 [n, d]."""


class Encoder:
    """A transformer, its tokenizer and how its texts are prefixed. Inference only."""

    def __init__(
        self,
        model: Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dimension: int,  # length of an embedding
        prefixes: dict[str, str],  # by kind of text
        max_length: int = DEFAULT_MAX_LENGTH,  # tokens; what is longer is cut
        digest: str = "",
        threshold: float | None = None,  # least cosine of a memory to recall, calibrated in training
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dimension = dimension
        self.prefixes = prefixes
        self.max_length = max_length
        self.digest = digest
        self.threshold = threshold

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Encoder:
        """Load a merged memory model, or an untuned base encoder.

        Raises:
            ArtifactError: the folder is neither, or a file is missing or corrupt.
        """
        manifest = verify(folder)
        if manifest.kind not in {"memory", "base-encoder"}:
            raise ArtifactError(
                f"{folder} holds a {manifest.kind!r} model, expected 'memory' or 'base-encoder'"
            )
        if manifest.kind == "memory" and not manifest.settings.get("merged"):
            raise ArtifactError(
                f"{folder} is an adapter; merge it with its base by ohlora.memory.merge first"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Module = load_network(folder)
        return cls(model.to(device).eval(), load_tokenizer(folder), **encoder_settings(manifest))

    @torch.no_grad()
    def embed(
        self, texts: Sequence[str], kind: Kind = "query", batch_size: int = 64
    ) -> npt.NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: n strings.
            kind: `query` for what the person says, `passage` for a memory.
            batch_size: texts at a time; texts of like length share a batch, to save padding.

        Returns:
            float32 [n, d], each row of length 1.
        """
        self.model.eval()
        device = next(self.model.parameters()).device
        embeddings = np.zeros((len(texts), self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens = self.tokenizer(
                [self.prefixes[kind] + texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(device)
            hidden = self.model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).last_hidden_state
            embeddings[rows] = mean_pool(hidden, tokens["attention_mask"]).float().cpu().numpy()
        return embeddings


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over real tokens, normalised: [n, t, d] and [n, t] to [n, d]."""
    mask = attention_mask[..., None].to(hidden.dtype)
    return normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1)


def network_kwargs(folder: Path) -> dict[str, Any]:
    """Arguments with which a base loads as the bare encoder in float32."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    pooler = {"add_pooling_layer": False} if config.model_type in _WITH_POOLER else {}
    return {"dtype": torch.float32, "use_safetensors": True, **pooler}


def load_network(folder: Path) -> PreTrainedModel:
    """The encoder of a folder that was verified, in float32.

    Raises:
        ArtifactError: transformers cannot load it.
    """
    logging.disable_progress_bar()  # a second of loading needs no bar
    try:
        return AutoModel.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **network_kwargs(folder)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder} does not load as an encoder: {error}") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that was verified."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def encoder_settings(manifest: Manifest) -> dict[str, Any]:
    """Keyword arguments of `Encoder` from a manifest.

    Raises:
        ArtifactError: the manifest lacks one.
    """
    settings = manifest.settings
    try:
        return {
            "dimension": int(settings["dimension"]),
            "prefixes": dict(settings["prefixes"]),
            "max_length": int(settings.get("max_length", DEFAULT_MAX_LENGTH)),
            "threshold": settings.get("threshold"),
            "digest": manifest.digest,
        }
    except KeyError as error:
        raise ArtifactError(f"model.json of a {manifest.kind} model lacks the setting {error}") from error
