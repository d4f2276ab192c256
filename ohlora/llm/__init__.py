"""How does she learn to talk, and how are tokens produced? Base models, fine-tuning, generation."""

from ohlora.llm.engine import Voice
from ohlora.llm.weights import merge

__all__ = ["Voice", "merge"]
