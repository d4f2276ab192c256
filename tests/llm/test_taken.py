from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ohlora.config import GenerationConfig
from ohlora.llm import TurnRequest, Voice, turn_request
from ohlora.llm.networks import Network, Session
from ohlora.llm.weights import load_network, load_tokenizer
from ohlora.persona import load_card
from ohlora.persona.dialogues import normalise
from ohlora.persona.prompt import parse_turn

CARD = load_card(Path(__file__).parents[2] / "data" / "persona" / "ohlora.yaml")
CONFIG = GenerationConfig(max_new_tokens=96, temperature=1.0, repetition_penalty=1.0, no_repeat_ngram=0)


PROMPT = "사용자: 안녕\n오로라:"


class Parrot:
    """A network that would say one reply, and come to the end where it is kept from that."""

    def __init__(self, network: Network, voice: Voice, reply: str) -> None:
        def tokens(text: str) -> list[int]:
            return voice.tokenizer(text, add_special_tokens=False)["input_ids"]

        self._inner = network
        self._line, self._end = tokens(f" {reply} ("), tokens(" (")
        self._prompt = len(voice.tokenizer(PROMPT)["input_ids"])
        self.vocabulary, self.context = network.vocabulary, network.context

    def start(self) -> Session:
        session, line, end, skip = self._inner.start(), self._line, self._end, self._prompt
        seen: list[int] = []

        class Saying:
            def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                seen.extend(ids[0].tolist())
                written = seen[skip:]
                logits = session.forward(ids, mask).clone()
                logits[:, end] += 25.0
                if len(written) < len(line) and written == line[: len(written)]:
                    logits[:, line[len(written)]] += 50.0
                return logits

            def close(self) -> None:
                session.close()

        return Saying()


@pytest.fixture
def said(base: Path) -> Callable[..., str]:
    """What a voice says that would say a reply, with replies that are taken."""
    voice = Voice(load_network(base, torch.float32), load_tokenizer(base))
    network = voice.network

    def say(reply: str, *taken: str) -> str:
        voice.network = Parrot(network, voice, reply)
        request = TurnRequest(PROMPT, CARD, 0, CONFIG, taken=frozenset(map(normalise, taken)))
        return parse_turn(voice.complete_turn(request).completion, CARD).text

    return say


def test_what_is_not_taken_is_said(said: Callable[..., str]) -> None:
    assert said("오늘도 반가워 정말") == "오늘도 반가워 정말"
    assert said("오늘도 반가워 정말", "오늘도 반가워") == "오늘도 반가워 정말"


def test_a_sentence_that_is_taken_goes_on(said: Callable[..., str]) -> None:
    """With words: marks and pictures alone would not make it another reply."""
    reply = said("오늘도 반가워 정말", "오늘도, 반가워 정말!")
    assert reply.startswith("오늘도 반가워 정말")
    assert len(normalise(reply)) > len(normalise("오늘도 반가워 정말"))


def test_a_first_sentence_that_is_taken_keeps_its_mark(said: Callable[..., str]) -> None:
    """Else a question would go on in the middle."""
    assert said("오늘도 반가워! 정말 좋아", "오늘도 반가워.") == "오늘도 반가워! 정말 좋아"
    reply = said("오늘도 반가워!", "오늘도 반가워")
    assert reply.startswith("오늘도 반가워!")
    assert len(normalise(reply)) > len(normalise("오늘도 반가워"))
    assert not reply.startswith("오늘도 반가워!!")


def test_after_a_first_sentence_another_follows_or_none(said: Callable[..., str]) -> None:
    """The words that came next in such a reply are left at once, not at the last of them."""
    taken = "오늘도 정말 반가워. 내일 또 만나자!"
    assert said(taken, taken) == "오늘도 정말 반가워."
    assert said("오늘도 정말 반가워. 내일 비 온대", taken) == "오늘도 정말 반가워."
    assert said("오늘도 정말 반가워. 우리 얘기하자", taken) == "오늘도 정말 반가워. 우리 얘기하자"
    reply = said(taken, taken, "오늘도 정말 반가워!")  # neither may stand
    assert reply.startswith("오늘도 정말 반가워.")
    assert len(normalise(reply)) > len(normalise("오늘도 정말 반가워"))
    assert not normalise(reply).startswith(normalise("오늘도 정말 반가워 내"))


def test_after_a_short_first_sentence_a_later_one_takes_another_word(said: Callable[..., str]) -> None:
    """So many replies begin with a greeting that nothing usual would be left to say."""
    reply = said("안녕! 정말 반가워", "안녕! 정말 반가워!")
    assert reply.startswith("안녕! 정말 반")
    assert not normalise(reply).startswith(normalise("안녕! 정말 반가워"))


def test_what_she_has_said_in_this_chat_is_in_the_request() -> None:
    taken = frozenset({"하나둘셋"})
    request = turn_request("…", "안녕", CARD, 1, CONFIG, taken=taken, said=["왔구나! 반가워."])
    assert request.taken == taken
    assert request.said == {"왔구나반가워"}


def test_short_replies_are_free(said: Callable[..., str]) -> None:
    assert said("응 그래", "응, 그래!") == "응 그래"
