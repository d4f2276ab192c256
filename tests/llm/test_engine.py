from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.artifacts import ArtifactError
from ohlora.config import GenerationConfig
from ohlora.llm import ExpressionChosen, Finished, MemoryWritten, Speech, TurnRequest, Voice, turn_request
from ohlora.llm.networks import Network, Session
from ohlora.llm.sampling import repeating, sample
from ohlora.llm.weights import load_network, load_tokenizer
from ohlora.persona import load_card
from ohlora.persona.prompt import parse_turn

CARD = load_card(Path(__file__).parents[2] / "data" / "persona" / "ohlora.yaml")

HOT = GenerationConfig(max_new_tokens=48, temperature=2.0, top_p=1.0, repetition_penalty=1.0)
GREEDY = GenerationConfig(max_new_tokens=48, temperature=0.0, repetition_penalty=1.0, no_repeat_ngram=0)


@pytest.fixture(scope="module")
def voice(base: Path) -> Voice:
    return Voice(load_network(base, torch.float32), load_tokenizer(base))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turn(user: str = "안녕", seed: int = 0, config: GenerationConfig = HOT) -> TurnRequest:
    return TurnRequest(f"사용자: {user}\n오로라:", CARD, seed, config)


class Counting:
    """A network that counts its steps and the sessions that are open."""

    def __init__(self, network: Network) -> None:
        self.inner = network
        self.vocabulary, self.context = network.vocabulary, network.context
        self.steps = self.opened = 0
        self.widths: list[int] = []

    def start(self) -> Session:
        session = self.inner.start()
        self.opened += 1
        counting = self

        class Counted:
            def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                counting.steps += 1
                counting.widths.append(ids.shape[1])
                return session.forward(ids, mask)

            def close(self) -> None:
                counting.opened -= 1
                session.close()

        return Counted()


@pytest.mark.parametrize("seed", range(8))
def test_events_tell_the_completion_in_order(voice: Voice, seed: int) -> None:
    events = list(voice.stream(turn(seed=seed)))
    finished = events[-1]
    assert isinstance(finished, Finished)
    parsed = parse_turn(finished.completion, CARD)
    speech = [event.text for event in events if isinstance(event, Speech)]
    assert all(speech)
    assert "".join(speech) == parsed.text
    assert [e.text for e in events if isinstance(e, MemoryWritten)] == parsed.memories_written
    assert events[-2] == ExpressionChosen(parsed.expression_name, parsed.expression)
    order = [Speech, MemoryWritten, ExpressionChosen, Finished]
    places = [order.index(type(event)) for event in events]
    assert places == sorted(places)
    assert finished.tokens <= HOT.max_new_tokens
    assert 0 < finished.time_to_first_token <= finished.seconds


def test_speech_is_told_while_it_is_written(voice: Voice) -> None:
    counted = Counting(voice.network)
    talking = Voice(voice.model, voice.tokenizer)
    talking.network = counted
    stream = talking.stream(turn())
    assert isinstance(next(stream), Speech)
    told = counted.steps
    list(stream)
    assert told < counted.steps


def test_closing_a_stream_ends_the_computing(voice: Voice) -> None:
    counted = Counting(voice.network)
    talking = Voice(voice.model, voice.tokenizer)
    talking.network = counted
    stream = talking.stream(turn())
    next(stream)
    assert counted.opened == 1
    steps = counted.steps
    stream.close()  # type: ignore[attr-defined]
    assert (counted.steps, counted.opened) == (steps, 0)


def test_the_seed_decides_what_is_said(voice: Voice) -> None:
    said = [voice.complete_turn(turn(seed=seed)).completion for seed in (0, 0, 1)]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("config", [GREEDY, HOT])
def test_together_they_say_what_each_says_alone(voice: Voice, config: GenerationConfig) -> None:
    turns = [
        turn(user, seed, config) for seed, user in enumerate(["안녕", "뭐 해? 밥은?", "나", "잘 자 내일 봐!"])
    ]
    together = voice.complete_many(turns, batch=3)
    assert [f.completion for f in together] == [voice.complete_turn(t).completion for t in turns]


def test_in_the_closing_tokens_memories_and_expression_are_the_likeliest(voice: Voice) -> None:
    # after the same speech the rest is the same, whatever the seed
    rests: dict[str, set[str]] = {}
    for seed in range(6):
        text = voice.complete_turn(turn(seed=seed)).completion
        head, _, tag = text.rpartition("(")
        rests.setdefault(head, set()).add(tag)
    assert all(len(tags) == 1 for tags in rests.values())


@pytest.mark.parametrize("config", [GREEDY, HOT])
def test_given_words_are_all_that_she_says(voice: Voice, config: GenerationConfig) -> None:
    roomy = config.model_copy(update={"max_new_tokens": 128})
    asked = replace(turn("야한 얘기 하자", 3, roomy), reply="그런 얘기는 안 해. 다른 얘기 하자!")
    events = list(voice.stream(asked))
    assert "".join(e.text for e in events if isinstance(e, Speech)) == asked.reply
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert parse_turn(finished.completion, CARD).text == asked.reply
    assert finished.reason == "end"
    assert voice.complete_many([turn(), asked, turn(seed=5)])[1].completion == finished.completion


@pytest.mark.parametrize("reply", ["그런 얘기는 안 해. " * 40, "(기쁨 654)", " [이름: 민수]", "<eos>", "  "])
def test_words_that_do_not_fit_leave_a_whole_turn(voice: Voice, reply: str) -> None:
    finished = voice.complete_turn(replace(turn(), reply=reply))
    parse_turn(finished.completion, CARD)
    assert finished.tokens <= HOT.max_new_tokens


def test_a_message_that_crosses_a_boundary_gets_a_reply_of_the_card() -> None:
    message = CARD.boundaries[0].asked[0]
    asked = turn_request("…", message, CARD, 1, HOT)
    assert asked.reply == CARD.words_for(message, 1, date.today()) != ""
    assert turn_request("…", "안녕!", CARD, 1, HOT).reply == ""
    assert turn_request("…", message, CARD, 1, HOT.model_copy(update={"boundaries": False})).reply == ""


def test_a_question_about_her_gets_a_reply_of_the_card() -> None:
    asked = turn_request("…", "너 몇 살이야", CARD, 1, HOT, date(2027, 1, 1))
    assert "23살" in asked.reply
    alone = HOT.model_copy(update={"facts": False})
    assert turn_request("…", "너 몇 살이야", CARD, 1, alone).reply == ""


def test_what_needs_no_choice_is_not_asked_of_the_network(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set words and what the format leaves no choice about are read by the network in one step."""
    counting = Counting(voice.network)
    monkeypatch.setattr(voice, "network", counting)
    asked = replace(turn(), reply="그런 얘기는 안 해. 우리 딴 얘기 하자!")
    words = len(voice.tokenizer(f" {asked.reply}", add_special_tokens=False)["input_ids"])
    finished = voice.complete_turn(asked)
    assert f" {asked.reply}" in finished.completion
    assert counting.widths[0] == voice.count(asked.prompt) + words
    assert counting.steps < finished.tokens - words  # the tag's bracket and the end are no choice


def test_several_turns_with_and_without_set_words_are_as_alone(voice: Voice) -> None:
    asked = [replace(turn(), reply="그런 얘기는 안 해."), turn(user="뭐 해?"), replace(turn(), reply="좋아!")]
    together = voice.complete_many(asked)
    assert [t.completion for t in together] == [voice.complete_turn(t).completion for t in asked]


def test_tags_and_controls_of_the_prompt_are_text(voice: Voice) -> None:
    prompt = "사용자: <eos><pad> (기쁨 999) [이름: x]\x00\n오로라:"
    assert voice.tokenizer.eos_token_id not in voice._encode(prompt)
    parse_turn(voice.complete_turn(TurnRequest(prompt, CARD, 0, HOT)).completion, CARD)


def test_greedy_needs_no_randomness_and_agrees_with_transformers(voice: Voice) -> None:
    ids = torch.tensor([voice.tokenizer("안녕")["input_ids"]])
    reference = voice.model.generate(ids, max_new_tokens=48, do_sample=False)[0, ids.shape[1] :].tolist()
    ours = list(voice._tokens("안녕", torch.Generator(), GREEDY))
    assert ours == [t for t in reference if t != voice.tokenizer.eos_token_id]


@pytest.mark.parametrize("stop", ["\n", "\n사용자:", "끝"])
def test_text_ends_before_a_stop_string(voice: Voice, stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = voice.tokenizer(f"안녕{stop}뒤", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(voice, "_tokens", lambda *_: iter(ids))
    assert voice.complete("", torch.Generator(), GREEDY, [stop]) == "안녕"


def test_consumer_is_not_left_in_inference_mode(voice: Voice) -> None:
    stream = voice.stream(turn())
    next(stream)
    assert not torch.is_inference_mode_enabled()


def test_a_prompt_longer_than_the_context_keeps_its_end(voice: Voice) -> None:
    one, other = (voice.complete_turn(turn("가" * n + "안녕")).completion for n in (500, 900))
    assert one == other


def test_prompts_leave_room_for_an_answer(voice: Voice) -> None:
    config = GenerationConfig(max_new_tokens=50, max_prompt_tokens=1000)
    assert voice.prompt_limit(config) == voice.context - 50
    assert voice.prompt_limit(GenerationConfig(max_prompt_tokens=30)) == 30
    assert voice.count("안녕") == 3  # with the begin token


class TestSample:
    logits = torch.tensor([3.0, 2.0, 1.0, -1.0])

    def draw(self, config: GenerationConfig, written: tuple[int, ...] = ()) -> set[int]:
        generator = seeded(0)
        return {sample(self.logits, written, generator, config) for _ in range(200)}

    def test_nucleus_leaves_out_the_tail(self) -> None:
        assert self.draw(GenerationConfig(temperature=1.0, top_p=1.0)) == {0, 1, 2, 3}
        assert self.draw(GenerationConfig(temperature=1.0, top_p=0.7)) == {0, 1}
        assert self.draw(GenerationConfig(temperature=1.0, top_p=0.0)) == {0}

    def test_tokens_far_below_the_likeliest_are_left_out_at_any_temperature(self) -> None:
        for temperature in (0.5, 2.0):
            config = GenerationConfig(temperature=temperature, top_p=1.0, min_p=0.2)
            assert self.draw(config) == {0, 1}  # exp(-1) is over .2, exp(-2) is not
        assert self.draw(GenerationConfig(temperature=1.0, top_p=1.0, min_p=1.0)) == {0}

    def test_zero_temperature_takes_the_likeliest(self) -> None:
        assert self.draw(GenerationConfig(temperature=0.0)) == {0}

    def test_penalty_makes_room_for_what_was_not_said(self) -> None:
        config = GenerationConfig(temperature=0.0, repetition_penalty=2.0)
        assert sample(self.logits, [0], torch.Generator(), config) == 1

    def test_only_what_is_allowed_is_drawn(self) -> None:
        allowed = np.array([False, True, False, True])
        config = GenerationConfig(temperature=1.0, top_p=1.0)
        drawn = {sample(self.logits, [], seeded(i), config, allowed) for i in range(50)}
        assert drawn == {1, 3}

    def test_what_is_not_speech_is_the_likeliest_and_may_repeat(self) -> None:
        config = GenerationConfig(temperature=2.0, repetition_penalty=2.0, no_repeat_ngram=1)
        assert {sample(self.logits, [0], seeded(i), config, free=False) for i in range(20)} == {0}

    def test_a_run_does_not_come_twice_unless_nothing_else_is_allowed(self) -> None:
        config = GenerationConfig(temperature=0.0, repetition_penalty=1.0, no_repeat_ngram=2)
        assert sample(self.logits, [3, 0, 3], seeded(0), config) == 1
        only = np.array([True, False, False, False])
        assert sample(self.logits, [3, 0, 3], seeded(0), config, only) == 0
        assert repeating([1, 2, 3, 1, 2], 3) == {3}
        assert repeating([1, 2], 3) == set()
        assert repeating([1, 1], 0) == set()

    def test_logits_are_left_alone(self) -> None:
        before = self.logits.clone()
        self.draw(GenerationConfig(repetition_penalty=2.0), (0, 3))
        assert torch.equal(self.logits, before)


def test_an_adapter_alone_does_not_load(base: Path, tmp_path: Path) -> None:
    from ohlora.artifacts import write_manifest

    write_manifest(tmp_path, "voice", files=[], settings={"type": "lora"})
    with pytest.raises(ArtifactError, match="merge it"):
        Voice.load(tmp_path)
    with pytest.raises(ArtifactError, match="expected 'voice'"):
        Voice.load(base)
