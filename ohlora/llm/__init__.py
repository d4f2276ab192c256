"""How does she learn to talk, and how are turns produced? Base models, fine-tuning, generation."""

from ohlora.llm.engine import TurnRequest, Voice, turn_request
from ohlora.llm.events import Event, ExpressionChosen, Finished, MemoryWritten, Speech
from ohlora.llm.prompt_budget import fit_prompt
from ohlora.llm.weights import merge

__all__ = [
    "Event",
    "ExpressionChosen",
    "Finished",
    "MemoryWritten",
    "Speech",
    "TurnRequest",
    "Voice",
    "fit_prompt",
    "merge",
    "turn_request",
]
