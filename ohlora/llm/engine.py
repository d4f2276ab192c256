"""How she answers: a decoding loop that streams a turn as events, for one prompt or for several at once.

Every turn is of the format (`ohlora.llm.turn_mask`), so it is never tried again. transformers' `generate`
takes no generator of random numbers and streams by callback from a thread; this loop is seeded by what is
passed in, is pulled by its consumer, and stops computing when the consumer stops. What multiplies the weights
is exchangeable (`ohlora.llm.networks`).
"""

from __future__ import annotations

import codecs
import re
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ohlora.artifacts import ArtifactError, verify
from ohlora.config import GenerationConfig
from ohlora.llm.events import Event, ExpressionChosen, Finished, MemoryWritten, Reason, Speech
from ohlora.llm.networks import Network, choose_engine, network_for
from ohlora.llm.precision import inference_dtype
from ohlora.llm.sampling import sample
from ohlora.llm.turn_mask import Mask, TokenTable, TurnAutomaton, TurnState
from ohlora.llm.weights import KIND, load_adapted, load_network, load_tokenizer, pick_device
from ohlora.persona.card import Card
from ohlora.persona.dialogues import normalise
from ohlora.persona.prompt import (
    STOP_SEQUENCES,
    TurnGrammar,
    parse_turn,
    turn_grammar,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ohlora.persona.examples import Likeness

_LEAST_TAKEN = 6  # letters from which on a reply is not said again; below that everybody says `응, 좋아!`
_CONSIDERED = 64  # likeliest tokens among which another word is looked for
_MARKS = re.compile(r"[.!?~]+")
_SENTENCE_END = re.compile(r"(?<=[.!?~]) (?=\S)")


@dataclass(frozen=True)
class TurnRequest:
    """What a turn is made from."""

    prompt: str  # of `render_prompt`; names of special tokens in it are read as text
    card: Card  # whose labels and memory keys the turn may use
    seed: int  # the same seed, weights, engine and prompt give the same turn
    config: GenerationConfig
    reply: str = ""  # her words, where they are not the network's to choose: see `Card.words_for`
    taken: frozenset[str] = frozenset()  # `normalise` of replies that the network does not say again whole
    said: frozenset[str] = frozenset()  # the same of what she has said in this chat


def turn_request(
    prompt: str,
    message: str,
    card: Card,
    seed: int,
    config: GenerationConfig,
    on: date | None = None,
    taken: frozenset[str] = frozenset(),
    likeness: Likeness | None = None,
    said: Sequence[str] = (),
) -> TurnRequest:
    """The request for an answer to a message, as it is served and tested.

    Args:
        prompt: of `render_prompt`, with the message in it.
        message: what the person says; the card may hold her words for it.
        card: whose turn it is.
        seed: of the sampling, and of the choice among the card's replies.
        config: sampling; without `boundaries` and `facts` the network alone answers.
        on: the day on which it is said; None for today.
        taken: `normalise` of replies that the network does not say again whole.
        likeness: what messages of the data that are like this one tell of it.
        said: what she has said in this chat; she does not say it again whole while she has other words.
    """
    day = on or date.today()
    reply = card.words_for(message, seed, day, config.boundaries, config.facts, likeness, said)
    return TurnRequest(prompt, card, seed, config, reply, taken, frozenset(map(normalise, said)))


class Voice:
    """A language model that answers prompts. Stateless between calls; streams do not disturb each other."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        engine: str = "transformers",
        keep_model: bool = True,  # False frees what the engine has copied
    ) -> None:
        self.network: Network = network_for(model, engine)
        self.tokenizer = tokenizer
        self.context = self.network.context
        self.model: Any = model if keep_model or choose_engine(engine, model) == "transformers" else None
        self._automata: dict[TurnGrammar, TurnAutomaton] = {}
        self._ends = {tokenizer.eos_token_id}

    @classmethod
    def load(cls, folder: Path, device: str = "auto", precision: str = "auto", engine: str = "auto") -> Voice:
        """Load a merged model folder.

        Args:
            folder: what `ohlora.llm.merge` wrote.
            device: `auto`, `cpu` or `cuda`.
            precision: `auto`, `float32` or `bfloat16`, of the transformers engine.
            engine: `auto`, `transformers` or `openvino`.

        Raises:
            ArtifactError: the folder is damaged, or holds an adapter that was not merged with its base.
            ValueError: the engine cannot run this model here.
        """
        manifest = verify(folder, KIND)
        if not manifest.settings.get("merged"):
            raise ArtifactError(f"{folder} holds an adapter alone; merge it with its base first")
        target = pick_device(device)
        model: Any = load_network(folder, inference_dtype(precision, target))
        return cls(model.to(target), load_tokenizer(folder), engine, keep_model=False)

    @classmethod
    def load_pair(
        cls, base: Path, adapter: Path, device: str = "auto", precision: str = "auto", engine: str = "auto"
    ) -> Voice:
        """Load a base and an adapter, folded together in memory; `model` is kept for measurements.

        Raises:
            ArtifactError: a folder is damaged or the two do not belong together.
            ValueError: the engine cannot run this model here.
        """
        target = pick_device(device)
        model, tokenizer = load_adapted(base, adapter, inference_dtype(precision, target))
        moved: Any = model
        return cls(moved.to(target), tokenizer, engine)

    def count(self, text: str) -> int:
        """Tokens of a prompt, the begin token included."""
        return len(self._encode(text))

    def prompt_limit(self, config: GenerationConfig) -> int:
        """Most tokens of a prompt that leave room for a whole answer."""
        return max(1, min(config.max_prompt_tokens, self.context - self._budget(config)))

    def prepare(self, card: Card, config: GenerationConfig) -> None:
        """Build what the first turn of a card would have to wait for.

        Raises:
            ConstraintError: the tokenizer or `max_new_tokens` does not allow a turn.
        """
        TurnState(self.automaton(card), self._budget(config))

    def stream(self, turn: TurnRequest) -> Iterator[Event]:
        """Answer one prompt: `Speech` (one or more), `MemoryWritten`, `ExpressionChosen`, `Finished`.

        Closing the iterator ends the computing.

        Raises:
            ConstraintError: the tokenizer or `max_new_tokens` does not allow a turn.
        """
        for events in self._decode([turn]):
            yield from events

    def complete_turn(self, turn: TurnRequest) -> Finished:
        """The last event of `stream`."""
        return self.complete_many([turn])[0]

    def complete_many(self, turns: Sequence[TurnRequest], batch: int = 8) -> list[Finished]:
        """Answer several prompts, `batch` of them in one pass.

        Each turn has its own seed, so that its text does not depend on its neighbours (up to rounding of the
        arithmetic, which padding changes).
        """
        finished: list[Finished] = []
        order = sorted(range(len(turns)), key=lambda i: len(turns[i].prompt))  # little padding
        for start in range(0, len(order), batch):
            group = [turns[i] for i in order[start : start + batch]]
            ends: list[Finished | None] = [None] * len(group)
            for events in self._decode(group, ends):
                del events
            finished += [end for end in ends if end is not None]
        return [finished[order.index(i)] for i in range(len(order))]

    def complete(
        self,
        prompt: str,
        generator: torch.Generator,
        config: GenerationConfig,
        stop: Sequence[str] = STOP_SEQUENCES,
    ) -> str:
        """What the network writes when nothing holds it to the format: to see what it has learnt.

        Args:
            prompt: plain text; names of special tokens in it are read as text.
            generator: CPU generator; the same seed, weights and prompt give the same text.
            config: sampling; temperature 0 is greedy and leaves the generator alone.
            stop: the text ends before the first of these.
        """
        written: list[int] = []
        text = ""
        for token in self._tokens(prompt, generator, config):
            written.append(token)
            text = self._decoded(written)
            if any(s in text for s in stop):
                break
        return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]

    def automaton(self, card: Card) -> TurnAutomaton:
        """The states of a turn of a card in this vocabulary; built once."""
        grammar = turn_grammar(card)
        if grammar not in self._automata:
            self._automata[grammar] = TurnAutomaton(grammar, self._table)
        return self._automata[grammar]

    @cached_property
    def _table(self) -> TokenTable:
        return TokenTable.of(self.tokenizer, self.network.vocabulary)

    def _decode(
        self, turns: Sequence[TurnRequest], ends: list[Finished | None] | None = None
    ) -> Iterator[list[Event]]:
        """Events of each step; with several turns they are mixed, and `ends` tells the last of each.

        What must come next is written without asking the network, which reads it with the next step. So rows
        of a step may differ in length: the shorter ones are padded on the left, as prompts are.
        """
        unread = [self._encode(turn.prompt, self.context - self._budget(turn.config)) for turn in turns]
        rows = [self._row(turn) for turn in turns]
        pad = self.tokenizer.pad_token_id or 0
        mask = torch.empty(len(turns), 0, dtype=torch.long)
        if events := [event for row in rows for event in row.begin()]:
            yield events
        session = self.network.start()
        try:
            while True:
                unread = [ids + row.unread() for ids, row in zip(unread, rows, strict=True)]
                longest = max(map(len, unread))
                step = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in unread])
                seen = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in unread])
                mask = torch.cat([mask, seen], dim=1)
                logits = session.forward(step, mask)
                unread = [[] for _ in rows]
                events = []
                for i, row in enumerate(rows):
                    if row.state.done:
                        continue
                    events += row.take(logits[i])
                    if ends is not None and row.state.done and isinstance(events[-1], Finished):
                        ends[i] = events[-1]
                if events:
                    yield events
                if all(row.state.done for row in rows):
                    return
        finally:
            session.close()

    def _tokens(self, prompt: str, generator: torch.Generator, config: GenerationConfig) -> Iterator[int]:
        ids = self._encode(prompt, self.context - self._budget(config))
        step, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
        written: list[int] = []
        session = self.network.start()
        try:
            for _ in range(self._budget(config)):
                token = sample(session.forward(step, mask)[0], written, generator, config)
                if token in self._ends:
                    return
                written.append(token)
                yield token
                step = torch.tensor([[token]])
                mask = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], dim=1)
        finally:
            session.close()

    def _row(self, turn: TurnRequest) -> _Row:
        words: list[int] = []
        if turn.reply:
            text = f" {turn.reply}"  # with the format's own space, as in the turns of training
            words = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return _Row(turn, self.automaton(turn.card), self._budget(turn.config), words)

    def _budget(self, config: GenerationConfig) -> int:
        return min(config.max_new_tokens, self.context // 2)

    def _encode(self, prompt: str, limit: int | None = None) -> list[int]:
        """Tokens of a prompt; of one beyond the limit its end counts, the person's last words.

        `fit_prompt` shortens prompts where that hurts less; here only the network's context is kept.
        """
        ids: list[int] = self.tokenizer(prompt, split_special_tokens=True)["input_ids"]
        return ids if limit is None else ids[-max(1, limit) :]

    def _decoded(self, ids: list[int]) -> str:
        """Text of tokens; bytes that are no character are dropped."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).replace("\ufffd", "")


class _Row:
    """One turn of a batch, being written."""

    def __init__(
        self,
        turn: TurnRequest,
        automaton: TurnAutomaton,
        budget: int,
        words: Sequence[int] = (),
    ) -> None:
        self.state = TurnState(automaton, budget)
        self.written: list[int] = []
        self._turn = turn
        self._texts = automaton.tokens.texts
        self._generator = torch.Generator().manual_seed(turn.seed % 2**63)
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._told = 0  # characters of the text that events have told
        self._spoken = False  # whether the speech is complete
        self._words = list(words)  # tokens to write before any is chosen
        self._worded = bool(words)  # whether they are all that she says
        self._read = 0  # tokens that the network has seen
        self._start = time.perf_counter()
        self._first = 0.0
        self._allowed = self.state.allowed()

    def begin(self) -> list[Event]:
        """Write what comes before anything is chosen."""
        return self._forced()

    def take(self, logits: torch.Tensor) -> list[Event]:
        """Choose the next token, and write what must follow it.

        Args:
            logits: float32 [vocabulary].

        Returns:
            what can be told now.
        """
        allowed = self._allowed
        if self.state.speaking:
            if self._worded and (ending := self.state.ending()).any():
                allowed = ending
            elif self._turn.taken or self._turn.said:
                allowed = self._untaken(logits, allowed)
        token = sample(
            logits, self.written, self._generator, self._turn.config, allowed, free=self.state.speaking
        )
        return self._write(token) + self._forced()

    def _untaken(self, logits: torch.Tensor, allowed: Mask) -> Mask:
        """Of what is allowed the tokens that lead away from a reply which is not said again.

        A first sentence that is one may stand with its mark, if words follow it. Where the likeliest word
        after a sentence is the next one of such a reply, the sentence is all that she says: to leave a reply
        at its last word breaks the grammar, and what the network likes less seldom follows from the sentence.
        Where it is too late for that, she takes another word in time.
        """
        said, later = normalise(self._text), bool(_SENTENCE_END.search(self._text.lstrip()))
        open_ended = _MARKS.fullmatch(self._text.rstrip()[-1:]) is None
        between = not open_ended and len(said) >= _LEAST_TAKEN
        taken = self._is_taken(said)
        if not (later or between or taken):
            return allowed
        scores = logits.masked_fill(~torch.from_numpy(allowed), -torch.inf)
        away = []
        likeliest = scores.topk(min(_CONSIDERED, len(scores))).indices.tolist()
        for token in likeliest:
            piece = self._texts[token].decode(errors="ignore")
            after = normalise(self._text + piece)
            ends = not later and open_ended and _MARKS.fullmatch(piece)  # the sentence, not yet the reply
            goes_on = after != said or piece.isspace() or ends or not taken
            goes_away = after == said or not (self._begins_taken(after) if between else self._is_taken(after))
            if allowed[token] and goes_on and goes_away:
                away.append(token)
            along = between and not (goes_away or taken) and token == likeliest[0]
            if along and (ending := self.state.ending()).any():
                return ending
        untaken = np.zeros_like(allowed)
        untaken[away] = True
        return untaken if away else allowed

    def _is_taken(self, said: str) -> bool:
        return len(said) >= _LEAST_TAKEN and (said in self._turn.taken or said in self._turn.said)

    def _begins_taken(self, said: str) -> bool:
        in_order = _in_order(self._turn.taken)
        place = bisect_left(in_order, said)
        next_one = in_order[place : place + 1]
        return any(reply.startswith(said) for reply in (*next_one, *self._turn.said))

    def unread(self) -> list[int]:
        """The tokens that the network has not seen yet; counted as seen from now on."""
        fresh = self.written[self._read :]
        self._read = len(self.written)
        return fresh

    def _forced(self) -> list[Event]:
        """Write the words that are set, then whatever the format leaves no choice about."""
        events: list[Event] = []
        while not self.state.done:
            if self._words and self._allowed[self._words[0]]:
                token = self._words.pop(0)
            elif self._allowed.sum() == 1:
                token = int(self._allowed.argmax())
                self._words.clear()
            else:
                self._words.clear()  # the budget ends the speech sooner, or the format does not allow them
                break
            events += self._write(token)
        return events

    def _write(self, token: int) -> list[Event]:
        self.state.accept(token)
        self.written.append(token)
        self._text += self._characters.decode(self._texts[token])
        events = self._tell()
        if events and not self._first:
            self._first = time.perf_counter() - self._start
        if self.state.done:
            return events + self._end()
        self._allowed = self.state.allowed()
        return events

    def _tell(self) -> list[Event]:
        events: list[Event] = []
        if not self._spoken:
            # speech holds no bracket, so the first one ends it; a space may be the one before the bracket
            whole = self._text
            cut = next((at for at, c in enumerate(whole) if c in "[("), -1)
            self._spoken = cut >= 0
            speech = (whole[:cut] if self._spoken else whole).rstrip(" ")
            start = max(1, self._told)  # the format's own space comes first
            if len(speech) > start:
                events.append(Speech(speech[start:]))
                self._told = len(speech)
        if self._spoken:
            while (close := self._text.find("]", self._told)) >= 0:
                opened = self._text.index("[", self._told)
                events.append(MemoryWritten(self._text[opened + 1 : close]))
                self._told = close + 1
        return events

    def _end(self) -> list[Event]:
        turn = parse_turn(self._text, self._turn.card)
        reason: Reason = "budget" if self.state.cut else "end"
        seconds = time.perf_counter() - self._start
        return [
            ExpressionChosen(turn.expression_name, turn.expression),
            Finished(self._text, reason, len(self.written), seconds, self._first),
        ]


@lru_cache(maxsize=4)  # there is one set for all turns of a product
def _in_order(texts: frozenset[str]) -> list[str]:
    return sorted(texts)
