"""What does she remember? The sentence encoder and its training, the store of memories and turns, recall."""

from ohlora.memory.adapter import merge
from ohlora.memory.encoder import Embedder, Encoder
from ohlora.memory.examples import ExampleFinder, Found
from ohlora.memory.grounding import is_grounded
from ohlora.memory.store import Memory, MemoryStore, Recalled

__all__ = [
    "Embedder",
    "Encoder",
    "ExampleFinder",
    "Found",
    "Memory",
    "MemoryStore",
    "Recalled",
    "is_grounded",
    "merge",
]
