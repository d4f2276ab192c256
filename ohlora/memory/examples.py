"""The dialogue rows that her voice is shown, found by a sentence encoder.

Messages are embedded by an encoder of their own (`ohlora.memory.retriever`): what helps to answer a message
is another question than which memory it needs. A folder of examples holds it as well, so that neither a
product nor a test needs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ohlora.artifacts import ArtifactError, read_manifest
from ohlora.memory.encoder import Embedder, Encoder
from ohlora.persona.examples import Examples, Likeness
from ohlora.persona_config import ExamplesConfig

ENCODER = "encoder"


class Found(NamedTuple):
    """What the data tell of a message."""

    shown: list[tuple[str, str]]  # messages and replies for the prompt, the most like it last
    likeness: Likeness | None


class ExampleFinder:
    """Finds what was answered to messages like one, for the prompt of the voice and for the card's words."""

    def __init__(self, examples: Examples, encoder: Embedder, settings: ExamplesConfig) -> None:
        self.examples = examples
        self.settings = settings
        self._encoder = encoder

    @classmethod
    def load(cls, folder: Path, settings: ExamplesConfig, device: str = "auto") -> ExampleFinder:
        """Load a folder of the stage `examples`.

        Raises:
            ArtifactError: it is missing or corrupt, or its vectors are of another encoder.
        """
        examples = Examples.load(folder)
        encoder = Encoder.load(folder / ENCODER, device)
        made_by = read_manifest(folder).settings["encoder"]
        if made_by != encoder.digest:
            raise ArtifactError(
                f"{folder}: the vectors are of the encoder {made_by[:12]}…, {ENCODER} is another; "
                "make them again: ohlora run --force examples"
            )
        return cls(examples, encoder, settings)

    @property
    def taken(self) -> frozenset[str]:
        """`normalise` of the replies that the voice does not say again whole."""
        return self.examples.taken

    def ready(self) -> Likeness:
        """Of no message yet, so that what is learnt from the everyday ones is learnt before the first."""
        return Likeness(0.0, self.examples.everyday)

    def find(self, message: str, seed: int) -> Found:
        """What to show for a message, and what the messages like it tell of it.

        Args:
            message: what the person says.
            seed: of the choice among the near ones; the same shows the same.
        """
        return self.find_many([message], [seed])[0]

    def find_many(self, messages: Sequence[str], seeds: Sequence[int]) -> list[Found]:
        """`find` of several messages, each with its seed."""
        if not self.settings.shown:
            return [Found([], None) for _ in messages]
        distinct = list(dict.fromkeys(messages))
        near = dict(
            zip(distinct, self.examples.near(self._encoder.embed(distinct), self.settings), strict=True)
        )
        return [
            Found(
                self.examples.shown(near[message], self.settings, seed),
                Likeness(near[message].leaning, self.examples.everyday, near[message].to_facts),
            )
            for message, seed in zip(messages, seeds, strict=True)
        ]
