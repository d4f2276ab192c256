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
from datetime import date
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ohlora.artifacts import ArtifactError
from ohlora.attributes import Expression
from ohlora.chat.message import check_message
from ohlora.chat.product import EXAMPLES, PERSONA, Product, load_product
from ohlora.config import GenerationConfig
from ohlora.gan import load_face
from ohlora.llm import (
    Event,
    ExpressionChosen,
    Finished,
    MemoryWritten,
    Speech,
    TurnRequest,
    Voice,
    fit_prompt,
    turn_request,
)
from ohlora.memory import Embedder, Encoder, ExampleFinder, Found, MemoryStore, is_grounded
from ohlora.persona import Card, CardError, expression_of, load_card

_NOT_AGAIN = 32  # replies of a chat that she does not say again whole
_KEPT_FACES = 64


class Speaker(Protocol):
    """What a turn needs of the voice."""

    def stream(self, turn: TurnRequest) -> Iterator[Event]:
        """Speech, memories, expression and end of one answer."""

    def count(self, text: str) -> int:
        """Tokens of a prompt."""

    def prompt_limit(self, config: GenerationConfig) -> int:
        """Most tokens of a prompt."""


class Prompter(Protocol):
    """What a turn needs of the examples."""

    @property
    def taken(self) -> frozenset[str]:
        """Replies of the data, which are not said again whole."""

    def find(self, message: str, seed: int) -> Found:
        """Messages like this one and what was answered."""


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
    finished: Finished  # how the voice came to its end


TurnEvent = Speech | MemoryWritten | ExpressionChosen | Turn
"""What `Companion.stream_turn` yields, in this order."""


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
        examples: Prompter | None = None,
    ) -> None:
        self.product = product
        self.card = card
        self.store = store
        self.threshold = threshold
        self._voice = voice
        self._encoder = encoder
        self._examples = examples
        self._face = face
        self._turning = threading.Lock()
        self._drawing = threading.Lock()
        self._faces: OrderedDict[Expression, npt.NDArray[np.uint8]] = OrderedDict()

    @classmethod
    def load(cls, product: Path, database: str = "", device: str = "auto") -> Companion:
        """Load a product folder.

        Args:
            product: folder with `product.json`, `persona.yaml`, `face/`, `voice/`, `memory/` and, where the
                voice is shown any, `examples/`.
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
        # what is learnt from the card is learnt now, or the first reply would wait seconds
        card.facts_for("", date.today())
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
        examples = None
        if settings.examples.shown:
            examples = ExampleFinder.load(product / EXAMPLES, settings.examples, device)
        card.words_for("", 0, date.today(), likeness=examples.ready() if examples else None)
        return cls(
            settings,
            card,
            examples=examples,
            voice=_load_voice(product / "voice", device, card, settings.generation),
            encoder=encoder,
            face=load_face(product / "face", device),
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
        *_, turn = self.stream_turn(session, text, seed)
        assert isinstance(turn, Turn)
        return turn

    def stream_turn(self, session: str, text: str, seed: int | None = None) -> Iterator[TurnEvent]:
        """Answer one message while it is being written.

        Yields `Speech` piece by piece, then what is kept as `MemoryWritten`, `ExpressionChosen`, and last the
        whole `Turn` with her face. Closing the iterator before the expression stops the computing, and then
        nothing of the turn is kept. The next turn waits until this iterator is read to its end or closed.

        Args:
            session, text, seed: as `turn` takes them.

        Raises:
            MessageError: at the first step; the message is empty, too long or holds unreadable characters.
        """
        text = check_message(text, self.max_message_chars)
        seconds: dict[str, float] = {}
        pieces: list[str] = []
        noted: list[str] = []
        with self._turning:
            with _timed(seconds, "recall"):
                memories = self._recall(session, text)
            start = time.perf_counter()
            said = [reply for _, reply in self.store.history(session, _NOT_AGAIN)]
            history = self.store.history(session, self.product.generation.history_turns)
            for event in self._voice.stream(self._request(memories, history, said, text, seed)):
                if isinstance(event, Speech):
                    pieces.append(event.text)
                    yield event
                elif isinstance(event, MemoryWritten):
                    noted.append(event.text)
                elif isinstance(event, ExpressionChosen):
                    chosen = event
                else:
                    finished = event
            seconds["reply"] = time.perf_counter() - start
            written = self._remember(session, noted, [text, *(said for said, _ in history)])
            self.store.add_turn(session, text, "".join(pieces), chosen.name)
        yield from map(MemoryWritten, written)
        yield chosen
        with _timed(seconds, "face"):
            image = self.face(chosen.expression)
        yield Turn(
            text="".join(pieces),
            expression_name=chosen.name,
            expression=chosen.expression,
            memories_used=memories,
            memories_written=written,
            image=image,
            seconds=seconds,
            finished=finished,
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

    def _request(
        self,
        memories: list[str],
        history: list[tuple[str, str]],
        said: list[str],
        text: str,
        seed: int | None,
    ) -> TurnRequest:
        settings = self.product.generation
        limit = self._voice.prompt_limit(settings)
        chosen = secrets.randbits(63) if seed is None else seed
        shown, likeness = self._examples.find(text, chosen) if self._examples else Found([], None)
        count = self._voice.count
        prompt = fit_prompt(self.card, memories, history, text, count, limit, examples=shown)
        taken = self._examples.taken if self._examples else frozenset()
        return turn_request(prompt, text, self.card, chosen, settings, None, taken, likeness, said)

    def _remember(self, session: str, noted: list[str], said: list[str]) -> list[str]:
        """Keep what the voice noted and the person really said."""
        own_words = self.product.memory.own_words
        return [
            self.store.write(session, memory).text
            for memory in dict.fromkeys(noted)
            if is_grounded(memory, said, own_words)
        ]


def _load_voice(folder: Path, device: str, card: Card, settings: GenerationConfig) -> Voice:
    try:
        voice = Voice.load(folder, device, engine=settings.engine)
        voice.prepare(card, settings)
    except ValueError as error:
        raise ArtifactError(f"{folder}: {error}") from error
    return voice


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
