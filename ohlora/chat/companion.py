"""One turn with her: check, recall, prompt, reply, expression, face, remember.

Pure orchestration of the rooms below. One turn at a time: two generations on the same cores are slower than
one after the other, and the second of two messages must see the first in its history.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ohlora.artifacts import ArtifactError
from ohlora.attributes import Expression
from ohlora.chat.message import check_message
from ohlora.chat.product import PERSONA, Product, load_product
from ohlora.config import GenerationConfig
from ohlora.gan import Face
from ohlora.llm import Voice
from ohlora.memory import Embedder, Encoder, MemoryStore, is_grounded
from ohlora.persona import (
    Card,
    CardError,
    EmptyReply,
    ParsedTurn,
    expression_of,
    load_card,
    parse_completion,
    render_prompt,
)

ATTEMPTS = 3
SPEECHLESS = "미안, 방금 말이 꼬였어. 한 번만 다시 말해 줄래?"
SPEECHLESS_EXPRESSION = "thinking"
_KEPT_FACES = 64


class Speaker(Protocol):
    """What a turn needs of the voice."""

    def complete(self, prompt: str, generator: torch.Generator, config: GenerationConfig) -> str:
        """The text that follows the prompt."""


class Portraitist(Protocol):
    """What a turn needs of the face."""

    def render(self, expression: Expression) -> npt.NDArray[np.uint8]:
        """Her face, uint8 [h, w, 3]."""


@dataclass(frozen=True)
class Turn:
    """What she answers and shows."""

    text: str
    expression_name: str
    expression: Expression
    memories_used: list[str]  # `키: 값`, best first
    memories_written: list[str]
    image: npt.NDArray[np.uint8]  # [256, 256, 3], read-only
    seconds: dict[str, float]  # recall, reply, face
    fallback: bool = False  # the voice said nothing usable; the text is a stock line


class Companion:
    """The loaded product. Safe to share between threads."""

    def __init__(
        self,
        product: Product,
        card: Card,
        voice: Speaker,
        encoder: Embedder,
        face: Portraitist,
        store: MemoryStore,
        threshold: float,  # least cosine of a memory that is recalled
    ) -> None:
        self.product = product
        self.card = card
        self.store = store
        self.threshold = threshold
        self._voice = voice
        self._encoder = encoder
        self._face = face
        self._turning = threading.Lock()
        self._drawing = threading.Lock()
        self._faces: OrderedDict[Expression, npt.NDArray[np.uint8]] = OrderedDict()

    @classmethod
    def load(cls, product: Path, database: str = "", device: str = "auto") -> Companion:
        """Load a product folder.

        Args:
            product: folder with `product.json`, `persona.yaml`, `face/`, `voice/` and `memory/`.
            database: SQLAlchemy URL of memories and turns; empty keeps them until the process ends.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            ArtifactError: something is missing or corrupt.
        """
        settings = load_product(product)
        try:
            card = load_card(product / PERSONA)
        except CardError as error:
            raise ArtifactError(str(error)) from error
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = Encoder.load(product / "memory", device)
        threshold = settings.memory.threshold
        if threshold is None:
            threshold = encoder.threshold
        if threshold is None:
            raise ArtifactError(
                f"{product / 'memory'} was saved without a threshold; set memory.threshold or train it again"
            )
        return cls(
            settings,
            card,
            voice=Voice.load(product / "voice", device),
            encoder=encoder,
            face=Face.load(product / "face", device),
            store=MemoryStore(database or "sqlite://", encoder, settings.memory.multi_valued),
            threshold=threshold,
        )

    @property
    def greeting(self) -> str:
        """What she says first."""
        return self.card.greeting

    @property
    def idle_expression(self) -> Expression:
        """What her face shows while she waits."""
        return expression_of(self.card.idle_expression, self.card)

    @property
    def max_message_chars(self) -> int:
        """Longest message that `turn` takes."""
        return self.product.max_message_chars

    def turn(self, session: str, text: str, seed: int | None = None) -> Turn:
        """Answer one message.

        Args:
            session: whose memories and history.
            text: what the person says.
            seed: of the sampled reply; the same seed, memories and history give the same answer.

        Raises:
            MessageError: the message is empty, too long or holds unreadable characters.
        """
        text = check_message(text, self.max_message_chars)
        seconds: dict[str, float] = {}
        with self._turning:
            with _timed(seconds, "recall"):
                memories = self._recall(session, text)
            with _timed(seconds, "reply"):
                history = self.store.history(session, self.product.generation.history_turns)
                prompt = render_prompt(self.card, memories, history, text)
                parsed = self._reply(prompt, secrets.randbits(63) if seed is None else seed)
            fallback = parsed is None
            reply = parsed or self._speechless()
            written = self._remember(session, reply, [text, *(said for said, _ in history)])
            self.store.add_turn(session, text, reply.text, reply.expression_name)
        with _timed(seconds, "face"):
            image = self.face(reply.expression)
        return Turn(
            text=reply.text,
            expression_name=reply.expression_name,
            expression=reply.expression,
            memories_used=memories,
            memories_written=written,
            image=image,
            seconds=seconds,
            fallback=fallback,
        )

    def face(self, expression: Expression) -> npt.NDArray[np.uint8]:
        """Her face with an expression: uint8 [256, 256, 3], read-only. Recent ones are kept."""
        with self._drawing:
            if expression in self._faces:
                self._faces.move_to_end(expression)
                return self._faces[expression]
            image = np.ascontiguousarray(self._face.render(expression))
            image.setflags(write=False)  # everyone gets the same array
            self._faces[expression] = image
            if len(self._faces) > _KEPT_FACES:
                self._faces.popitem(last=False)
            return image

    def memories(self, session: str) -> list[str]:
        """What she remembers of a person as `키: 값`, oldest first."""
        return [memory.text for memory in self.store.all(session)]

    def forget(self, session: str, id: int) -> bool:
        """Delete one memory of a person for good; False when there is none of this id."""
        return self.store.forget(session, id)

    def _recall(self, session: str, text: str) -> list[str]:
        embedding = self._encoder.embed([text], kind="query")[0]
        settings = self.product.memory
        return [r.text for r in self.store.recall(session, embedding, settings.top_k, self.threshold)]

    def _reply(self, prompt: str, seed: int) -> ParsedTurn | None:
        """The first usable of a few completions, each with its own seed; None when there is none."""
        for attempt in range(ATTEMPTS):
            generator = torch.Generator().manual_seed((seed + attempt) % 2**63)
            try:
                completion = self._voice.complete(prompt, generator, self.product.generation)
                return parse_completion(completion, self.card)
            except EmptyReply:
                continue
        return None

    def _remember(self, session: str, reply: ParsedTurn, said: list[str]) -> list[str]:
        """Keep what the voice noted and the person really said."""
        own_words = self.product.memory.own_words
        return [
            self.store.write(session, memory).text
            for memory in reply.memories_written
            if is_grounded(memory, said, own_words)
        ]

    def _speechless(self) -> ParsedTurn:
        known = SPEECHLESS_EXPRESSION in self.card.expressions
        name = SPEECHLESS_EXPRESSION if known else self.card.idle_expression
        return ParsedTurn(SPEECHLESS, [], name, expression_of(name, self.card))


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
