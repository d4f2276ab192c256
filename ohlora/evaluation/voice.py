"""Scorer of a voice: are the facts right, does the turn hold, and does she still surprise nobody?

It is the quick form of our voice test (`ohlora.evaluation.voice_test`): an even part of the probes and of the
held-out test split, sampled with the settings that serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch

from ohlora.artifacts import ArtifactError
from ohlora.config import Config, GenerationConfig
from ohlora.evaluation import (
    intervals,
    voice_expression,
    voice_judges,
    voice_probes,
    voice_test,
)
from ohlora.evaluation.intervals import Figure, bootstrap
from ohlora.evaluation.voice_expression import read_expressions
from ohlora.evaluation.voice_judges import letters
from ohlora.evaluation.voice_probes import Probe, Probes
from ohlora.evaluation.voice_test import Ask, Plan, Result, Said, asks, judge, spread
from ohlora.llm.engine import TurnRequest, Voice, turn_request
from ohlora.llm.likelihood import encode, log_likelihoods, read_rows
from ohlora.llm.precision import uses_bfloat16
from ohlora.memory import ExampleFinder
from ohlora.persona.card import Card, load_card
from ohlora.persona.dialogues import CARD_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PARTS = (intervals, voice_expression, voice_judges, voice_probes, voice_test)
"""Modules that the score depends on: a change of one means to score again."""

BATCH = 16  # turns in one pass; more only fill it with padding

Progress = Callable[[Sequence[Any], str], Any]


def silently(items: Sequence[Any], _title: str) -> Sequence[Any]:
    """Iterate without a bar."""
    return items


def score(model_folder: Path, inputs: dict[str, Path], config: Config) -> dict[str, float]:
    """Judge an adapter with the quick test, on top of `inputs["base_llm"]`.

    Args:
        model_folder: an adapter.
        inputs: `dialogues` (the stage's folder), `base_llm`, `probes`, and `examples`.
        config: settings.

    Returns:
        Figures of `ohlora.evaluation.voice_test` by name, without their intervals: `facts_right`,
        `parse_rate`, `bits_per_character`, `memory_f1`, `expression_macro_f1` and the others; without speed.

    Raises:
        ArtifactError: a folder is missing or corrupt, or the adapter belongs to another base.
        ProbeError: the probes are.
    """
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    voice = Voice.load_pair(
        inputs["base_llm"], model_folder, config.runtime.device, engine=config.generation.engine
    )
    plan = Plan.of(config.voice_test, quick=True)
    return examine(str(model_folder), voice, inputs, config, plan).metrics


def examine(
    name: str,
    voice: Voice,
    inputs: dict[str, Path],
    config: Config,
    plan: Plan,
    on: date | None = None,
    progress: Progress = silently,
) -> Result:
    """Ask, judge and count.

    Args:
        name: of the voice, for the report.
        voice: who answers.
        inputs: `dialogues`, `probes` and, where the voice is shown any, `examples`.
        config: settings; `generation` is used as serving does.
        plan: how much.
        on: the day of the test; the day of the rows (`persona.today`) when not given.
        progress: iterates with a bar.
    """
    on = on or config.persona.day
    card = load_card(inputs["dialogues"] / CARD_FILE)
    probes = Probes.load(inputs["probes"])
    rows = spread(read_rows(inputs["dialogues"], "test"), plan.held_out)
    finder = None
    if config.examples.shown and "examples" in inputs:
        finder = ExampleFinder.load(inputs["examples"], config.examples, config.runtime.device)
    questions = asks(probes, card, plan, on, finder)
    own: list[Ask] = []
    if plan.own_replies:
        own = [Ask("held_out", Probe(id=row["id"], user=row["user"]), row["prompt"]) for row in rows]
    taken = finder.taken if finder else frozenset()
    said = answer(voice, [*questions, *own], card, config.generation, plan.seed, on, progress, taken)
    judged = [
        judge(a, s, card, probes, on, config.memory.own_words)
        for a, s in zip([*questions, *own], said, strict=True)
    ]
    figures = voice_test.figures_of_replies(judged, card, trained_replies(inputs["dialogues"]))
    held_out = read_expressions(voice, rows, card)
    figures |= voice_test.figures_of_expressions(held_out)
    if own:
        answered = judged[len(questions) :]
        figures |= voice_test.figures_of_own_expressions(answered, [row["expression"] for row in rows])
    mixed = uses_bfloat16(config.runtime, voice.model.device)
    if plan.timed:
        timed = spread([a for a in questions if a.sample == 0], plan.timed)
        figures |= time_replies(voice, timed, card, config.generation, plan.seed)
    figures["bits_per_character"] = surprise(voice.model, voice.tokenizer, rows, mixed)
    return Result(name, judged, held_out, figures)


def surprise(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]], mixed: bool
) -> Figure:
    """Bits per character of the written answers."""
    examples = encode(tokenizer, rows)
    bits = -log_likelihoods(model, examples, mixed=mixed).double().numpy() / math.log(2)
    characters = np.array([e.characters for e in examples])
    return bootstrap(lambda i: float(bits[i].sum() / characters[i].sum()), len(rows))


def trained_replies(dialogues: Path) -> frozenset[str]:
    """Letters of the replies that training saw.

    Raises:
        ArtifactError: the stage `dialogues` has not run.
    """
    path = dialogues / "train.parquet"
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; run stage dialogues first")
    return frozenset(letters(reply) for reply in pq.read_table(path, columns=["reply"])["reply"].to_pylist())


def answer(
    voice: Voice,
    questions: Sequence[Ask],
    card: Card,
    config: GenerationConfig,
    seed: int,
    on: date,
    progress: Progress,
    taken: frozenset[str] = frozenset(),
) -> list[Said]:
    """Answer every prompt with a seed of its own, in batches of similar length."""
    turns = [
        turn_request(ask.prompt, ask.probe.user, card, _seed(seed, ask), config, on, taken, ask.likeness)
        for ask in questions
    ]
    order = sorted(range(len(turns)), key=lambda i: len(turns[i].prompt))
    said: dict[int, Said] = {}
    for start in progress(range(0, len(order), BATCH), "replies"):
        chosen = order[start : start + BATCH]
        for i, done in zip(chosen, voice.complete_many([turns[i] for i in chosen], BATCH), strict=True):
            said[i] = Said(done.completion, done.reason, done.tokens)
    return [said[i] for i in range(len(turns))]


def time_replies(
    voice: Voice, questions: Sequence[Ask], card: Card, config: GenerationConfig, seed: int
) -> dict[str, Figure]:
    """Speed of turns of the network alone, answered one after the other.

    Where the card holds her words, serving is faster.

    Returns:
        `tokens_per_second` over all turns, `first_token_seconds` and `reply_seconds` (medians), and
        `slowest_reply_seconds`.
    """
    turns = [TurnRequest(ask.prompt, card, _seed(seed, ask), config) for ask in questions]
    if turns:
        voice.complete_turn(turns[0])  # what is made once is not a reply's time
    done = [voice.complete_turn(turn) for turn in turns]
    seconds, first = np.array([d.seconds for d in done]), np.array([d.time_to_first_token for d in done])
    tokens = np.array([d.tokens for d in done])
    count = len(done)
    slowest = float(seconds.max()) if count else math.nan
    return {
        "tokens_per_second": bootstrap(lambda i: float(tokens[i].sum() / seconds[i].sum()), count),
        "first_token_seconds": bootstrap(lambda i: float(np.median(first[i])), count),
        "reply_seconds": bootstrap(lambda i: float(np.median(seconds[i])), count),
        "slowest_reply_seconds": Figure(slowest, math.nan, math.nan, count),
    }


def _seed(seed: int, ask: Ask) -> int:
    return voice_test.seed_of(seed, ask.kind, ask.probe.id, ask.sample)
