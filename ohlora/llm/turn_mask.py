"""Decoding that cannot leave the format of a turn, nor run out of tokens in the middle of it.

The grammar of a turn is a regular language, so it is compiled to an automaton over bytes, and a token is
allowed where the automaton survives its bytes (Willard and Louf, arXiv:2307.09702). It is written here for
what libraries of this kind do not offer: the shortest legal rest is known for every state, and a token is
allowed only if what must follow it still fits the budget. llguidance's `max_tokens`, which was tried, ends a
field after so many tokens even inside a character, and then the text does not parse.

How speech ends when the budget does: in the last `CLOSING` tokens before the limit, it must end at the first
end of a sentence; without one it is cut where the limit falls, at a whole character.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ohlora.persona.prompt import TurnGrammar

DEAD = 0
STAY = 256  # the symbol that pads short tokens
FAR = 1 << 20
CLOSING = 16  # tokens before the limit in which a sentence's end closes the speech
SENTENCE_END = ".!?~…"
FREE_TEXT = [  # code points of speech and values: Latin, Hangul, symbols, emoji and what joins them
    (0x21, 0x7E),
    (0xA1, 0xFF),
    (0x2010, 0x2BFF),
    (0x3001, 0x303F),
    (0x3131, 0x318E),
    (0xAC00, 0xD7A3),
    (0xFE0F, 0xFE0F),
    (0x1F000, 0x1FAFF),
    (0x200D, 0x200D),
]

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class ConstraintError(ValueError):
    """A tokenizer or a budget that turns cannot be written with."""


@dataclass(frozen=True)
class TokenTable:
    """What each token adds to the text."""

    texts: list[bytes]  # empty for tokens that are never written: special ones
    symbols: npt.NDArray[np.int16]  # [vocabulary, longest], padded with STAY
    characters: npt.NDArray[np.int32]  # [vocabulary], characters that begin in the token
    written: Mask  # [vocabulary]
    end: int  # the end token

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, size: int) -> TokenTable:
        """Read the bytes of all tokens.

        Args:
            tokenizer: BPE with byte fallback (SentencePiece's way) or over bytes (GPT-2's way).
            size: rows of the network's output; may exceed the tokenizer.

        Raises:
            ConstraintError: some byte cannot be written, so that not every text can be.
        """
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        over_bytes = "ByteLevel" in json.dumps(backend["decoder"])
        spaced = any(
            step.get("type") == "Replace" and step["content"] == " "
            for step in (backend["decoder"] or {}).get("decoders", [])
        )
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        texts = [b""] * size
        for piece, index in tokenizer.get_vocab().items():
            if index < size and index not in special:
                texts[index] = _gpt2_bytes(piece) if over_bytes else _piece_bytes(piece, spaced)
        missing = (
            set(range(256)) - {text[0] for text in texts if len(text) == 1} - {0xC0, 0xC1, *range(0xF5, 256)}
        )
        if missing:
            raise ConstraintError(
                f"the tokenizer cannot write {len(missing)} single bytes; take a base with byte fallback"
            )
        symbols = np.full((size, max(map(len, texts))), STAY, np.int16)
        for index, text in enumerate(texts):
            symbols[index, : len(text)] = list(text)
        starts = (symbols < STAY) & ((symbols & 0xC0) != 0x80)
        return cls(
            texts,
            symbols,
            starts.sum(1).astype(np.int32),
            np.array([bool(text) for text in texts]),
            int(tokenizer.eos_token_id),
        )


class TurnAutomaton:
    """All states of a turn being written, for one grammar and one vocabulary. Shared between turns."""

    def __init__(self, grammar: TurnGrammar, tokens: TokenTable) -> None:
        self.tokens = tokens
        self.longest_value = grammar.longest_value
        build = _Build(grammar)
        self.start = build.start
        self.final = build.final
        self.table = build.table()
        kinds = np.array(build.kinds)
        self.in_speech = kinds == "speech"
        self.in_value = kinds == "value"
        self.sentence_end = np.isin(np.arange(len(kinds)), build.sentence_ends)
        before = self._before()
        self.spaces: Mask = np.array([text == b" " for text in tokens.texts])
        self.need = self._need(before)
        self.value_need = self._value_need(before)
        self._lengths = (tokens.symbols < STAY).sum(1)
        self._order = np.argsort(-self._lengths, kind="stable")
        self._after = lru_cache(maxsize=512)(self._walk)
        if self.need[self.start] >= FAR:
            raise ConstraintError("the grammar has no complete turn")

    def after(self, state: int) -> npt.NDArray[np.int32]:
        """The state after each token, [vocabulary]; DEAD where a token is not allowed."""
        return self._after(state)

    def _walk(self, state: int) -> npt.NDArray[np.int32]:
        symbols, order = self.tokens.symbols, self._order
        states = np.full(len(symbols), state, np.int32)
        lengths = self._lengths[order]
        for column in range(symbols.shape[1]):
            active = order[: int(np.searchsorted(-lengths, -column, side="left"))]
            active = active[states[active] != DEAD]
            if not len(active):
                break
            states[active] = self.table[states[active], symbols[active, column]]
        states[~self.tokens.written] = DEAD
        states.setflags(write=False)
        return states

    def _before(self) -> dict[int, set[tuple[int, int]]]:
        """State -> the (state, byte) pairs that lead to it."""
        before: dict[int, set[tuple[int, int]]] = {}
        for state, row in enumerate(self.table[:, :STAY].tolist()):
            for byte, target in enumerate(row):
                if target != DEAD:
                    before.setdefault(target, set()).add((state, byte))
        return before

    def _need(self, before: dict[int, set[tuple[int, int]]]) -> npt.NDArray[np.int32]:
        """Tokens that surely suffice from each state to the end, the end token included.

        Every byte is a token, so this many bytes and one are an upper bound, and it falls by at least one
        with each token on the way: a budget that suffices once suffices to the end.
        """
        need = np.full(len(self.table), FAR, np.int32)
        need[self.final] = 1
        queue = deque([self.final])
        while queue:
            state = queue.popleft()
            for previous, _ in before.get(state, ()):
                if need[previous] == FAR:
                    need[previous] = need[state] + 1
                    queue.append(previous)
        return need

    def _value_need(self, before: dict[int, set[tuple[int, int]]]) -> npt.NDArray[np.int32]:
        """Characters that a value still has to begin before it may close; -1 outside of values."""
        need = np.where(self.in_value, FAR, -1).astype(np.int32)
        queue = deque(np.flatnonzero(self.in_value & (self.table[:, ord("]")] != DEAD)).tolist())
        need[list(queue)] = 0
        while queue:  # 0-1 breadth first: a continuation byte begins no character
            state = queue.popleft()
            for previous, byte in before.get(state, ()):
                cost = int(need[state]) + (byte & 0xC0 != 0x80)
                if self.in_value[previous] and cost < need[previous]:
                    need[previous] = cost
                    (queue.append if byte & 0xC0 != 0x80 else queue.appendleft)(previous)
        return need


class TurnState:
    """Where one turn is."""

    def __init__(self, automaton: TurnAutomaton, budget: int) -> None:
        """Start a turn.

        Args:
            automaton: of grammar and vocabulary.
            budget: most tokens, the end token included.

        Raises:
            ConstraintError: no turn is that short.
        """
        least = int(automaton.need[automaton.start]) + CLOSING
        if budget < least:
            raise ConstraintError(f"generation.max_new_tokens is {budget}; a turn needs at least {least}")
        self._automaton = automaton
        self._state = automaton.start
        self._value = 0  # characters of the value being written
        self.left = budget
        self.done = False
        self.cut = False  # whether the budget ended the speech

    @property
    def speaking(self) -> bool:
        """Whether the next token belongs to the reply, or ends it."""
        return bool(self._automaton.in_speech[self._state])

    def allowed(self) -> Mask:
        """Which tokens may come next, [vocabulary]; never none."""
        automaton, state = self._automaton, self._state
        after = automaton.after(state)
        fits = automaton.need[after] <= self.left - 1
        if automaton.in_value[state]:
            room = automaton.longest_value - self._value
            # a token that leaves the value holds the closing bracket as well
            fits &= automaton.tokens.characters + automaton.value_need[after] <= room
        if automaton.sentence_end[state] and self.left - automaton.need[state] <= CLOSING:
            nearer = automaton.sentence_end[after] & (automaton.need[after] < automaton.need[state])
            fits &= ~automaton.in_speech[after] | nearer
        if state == automaton.final:
            fits[automaton.tokens.end] = True
        return fits

    def ending(self) -> Mask:
        """Which of the allowed tokens end the reply, [vocabulary]; if none does, the space before its end."""
        automaton, allowed = self._automaton, self.allowed()
        ends: Mask = allowed & ~automaton.in_speech[automaton.after(self._state)]
        return ends if ends.any() else allowed & automaton.spaces

    def accept(self, token: int) -> None:
        """Append a token that `allowed` allows.

        Raises:
            ValueError: it does not.
        """
        automaton = self._automaton
        if self.speaking and not automaton.in_speech[automaton.after(self._state)[token]]:
            more = automaton.in_speech[automaton.after(self._state)]
            self.cut = not (self.allowed() & more).any()
        self.left -= 1
        if token == automaton.tokens.end and self._state == automaton.final:
            self.done = True
            return
        after = int(automaton.after(self._state)[token])
        if after == DEAD:
            raise ValueError(f"token {token} is not allowed here")
        if automaton.in_value[after]:
            fresh = not automaton.in_value[self._state]
            self._value = (0 if fresh else self._value) + int(automaton.tokens.characters[token])
        self._state = after


class _Build:
    """The states, numbered as they come up."""

    def __init__(self, grammar: TurnGrammar) -> None:
        self.rows: list[dict[int, int]] = []
        self.kinds: list[str] = []
        self.sentence_ends: list[int] = []
        self.state("dead")
        self.final = self.state("end")
        # brackets belong to the format: speech without any can be told before the turn is complete
        speech_marks = {*grammar.reply_forbidden, *"(){}"}
        value_marks = {*grammar.value_forbidden, *"(){}"}
        tag = self.tag(grammar)
        opening = self.state("between")  # a memory has ended and no more may follow
        self.step(opening, " ", after := self.state("between"))
        self.step(after, "(", tag)
        for _ in range(grammar.most_memories):
            first = self.memory(grammar, opening, value_marks)
            opening, after = self.state("between"), self.state("between")
            self.step(opening, " ", after)
            self.step(after, "(", tag)
            self.step(after, "[", first)
        memory = first if grammar.most_memories else DEAD
        self.start = self.state("speech")
        begun = self.state("speech")
        self.step(self.start, " ", begun)
        for state in self.text("speech", begun, speech_marks):
            self.step(state, "(", tag)
            if memory:
                self.step(state, "[", memory)

    def state(self, kind: str) -> int:
        self.rows.append({})
        self.kinds.append(kind)
        return len(self.rows) - 1

    def step(self, state: int, character: str, target: int) -> None:
        self.rows[state][ord(character)] = target

    def _grow(self, state: int, byte: int, kind: str) -> int:
        self.rows[state][byte] = self.state(kind)
        return self.rows[state][byte]

    def spell(self, state: int, words: Iterable[str], then: str, kind: str) -> int:
        """The words from `state` on as a trie, each followed by `then`; returns the state after that."""
        end = self.state(kind)
        for word in words:
            here = state
            spelled = (word + then).encode()
            for byte in spelled[:-1]:
                here = self.rows[here].get(byte) or self._grow(here, byte, kind)
            self.rows[here][spelled[-1]] = end
        return end

    def tag(self, grammar: TurnGrammar) -> int:
        """The expression after `(`, to the final state."""
        start = self.state("tag")
        here = self.spell(start, grammar.labels, " ", "tag")
        for digits in grammar.digits:
            there = self.state("tag")
            for digit in digits:
                self.step(here, digit, there)
            here = there
        self.step(here, ")", self.final)
        return start

    def memory(self, grammar: TurnGrammar, after: int, forbidden: set[str]) -> int:
        """A memory after `[`, to the state `after`."""
        start = self.state("key")
        value = self.spell(start, grammar.memory_keys, ": ", "key")
        self.text("value", value, forbidden)
        for state in self.closers:
            self.step(state, "]", after)
        return start

    def text(self, kind: str, begun: int, forbidden: set[str]) -> list[int]:
        """Words with single spaces between them, one of which says something, from `begun` on.

        Returns:
            the states after a space that follows something said; `closers` are those before such a space.
        """
        silent, silent_space = self.state(kind), self.state(kind)
        said, said_space, ended, ended_space = (self.state(kind) for _ in range(4))
        if kind == "speech":
            self.sentence_ends += [ended, ended_space]
        self.closers = [said, ended]
        self.step(silent, " ", silent_space)
        self.step(said, " ", said_space)
        self.step(ended, " ", ended_space)
        characters = _alphabet(frozenset(forbidden))
        quiet = {"word": said, "mark": silent, "stop": silent}
        loud = {"word": said, "mark": said, "stop": ended}
        for state in (begun, silent, silent_space):
            self.characters(state, characters, quiet, kind)
        for state in (said, said_space, ended_space):
            self.characters(state, characters, loud, kind)
        # an emoji or a laugh after the end of a sentence still belongs to its end
        self.characters(ended, characters, loud | {"mark": ended}, kind)
        return [said_space, ended_space]

    def characters(
        self, state: int, characters: dict[bytes, str], targets: dict[str, int], kind: str
    ) -> None:
        """From `state`, read any of the characters and go to the target of its sort."""
        tree: dict[int, Any] = {}
        for spelled, sort in characters.items():
            node = tree
            for byte in spelled[:-1]:
                node = node.setdefault(byte, {})
            node[spelled[-1]] = targets[sort]
        seen: dict[tuple[tuple[int, int], ...], int] = {}

        def settle(node: dict[int, Any]) -> dict[int, int]:
            return {b: n if isinstance(n, int) else place(settle(n)) for b, n in node.items()}

        def place(row: dict[int, int]) -> int:
            same = tuple(sorted(row.items()))
            if same not in seen:
                seen[same] = self.state(kind)
                self.rows[seen[same]].update(row)
            return seen[same]

        self.rows[state].update(settle(tree))

    def table(self) -> npt.NDArray[np.int32]:
        """[states, 257]: the state after each byte; STAY keeps the state."""
        table = np.zeros((len(self.rows), STAY + 1), np.int32)
        for state, row in enumerate(self.rows):
            for byte, target in row.items():
                table[state, byte] = target
            table[state, STAY] = state
        return table


@lru_cache(maxsize=8)
def _alphabet(forbidden: frozenset[str]) -> dict[bytes, str]:
    """Characters of free text in UTF-8 -> `word`, `stop` (a sentence ends) or `mark`."""
    return {c.encode(): sort for c, sort in _sorted_characters() if c not in forbidden}


def _sorted_characters() -> Iterator[tuple[str, str]]:
    for first, last in FREE_TEXT:
        for c in map(chr, range(first, last + 1)):
            if not (c.isprintable() or c == "\u200d"):
                continue
            if c in SENTENCE_END:
                yield c, "stop"
            elif (c.isascii() and c.isalnum()) or "가" <= c <= "힣" or "ㄱ" <= c <= "ㅣ":
                yield c, "word"
            else:
                yield c, "mark"


def _piece_bytes(piece: str, spaced: bool) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return (piece.replace("▁", " ") if spaced else piece).encode()


@lru_cache(maxsize=1)
def _gpt2_characters() -> dict[str, int]:
    """The printable character that stands for each byte in GPT-2's vocabularies."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _gpt2_bytes(piece: str) -> bytes:
    table = _gpt2_characters()
    return bytes(table[c] for c in piece) if all(c in table for c in piece) else b""
