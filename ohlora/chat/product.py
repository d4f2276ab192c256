"""The product folder: what the package stage assembles from champions and a bento packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ohlora.artifacts import ArtifactError
from ohlora.config import GenerationConfig, MemoryConfig
from ohlora.persona_config import ExamplesConfig

PRODUCT = "product.json"
PERSONA = "persona.yaml"
EXAMPLES = "examples"


class RecallSettings(BaseModel):
    """How memories are found and kept."""

    model_config = ConfigDict(frozen=True)

    threshold: float | None = None  # None takes what training calibrated
    top_k: int = Field(MemoryConfig.model_fields["top_k"].default, gt=0)
    multi_valued: list[str] = Field(default_factory=lambda: MemoryConfig().multi_valued)
    own_words: list[str] = Field(default_factory=lambda: MemoryConfig().own_words)


class Product(BaseModel):
    """`product.json`. Keys that this version does not know are left alone."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    models: dict[str, dict[str, Any]] = {}  # name -> version and SHA-256, for a person to read
    generation: GenerationConfig = GenerationConfig()
    memory: RecallSettings = RecallSettings()
    examples: ExamplesConfig = ExamplesConfig(shown=0)  # a product from before there were any shows none
    max_message_chars: int = Field(1000, gt=0)


def load_product(folder: Path) -> Product:
    """Read `product.json`.

    Raises:
        ArtifactError: it is missing or does not parse.
    """
    path = folder / PRODUCT
    if not path.is_file():
        raise ArtifactError(f"{folder} is not a product folder: {PRODUCT} is missing; run the stage package")
    try:
        return Product.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{path} does not parse: {error}") from error
