"""Our test of a voice: what is asked, what is counted, and how sure the figures are.

Notable:
- Messages are probes that no training row holds, and the held-out test split of the dialogues.
- Rules judge (`ohlora.evaluation.voice_judges`), never a model; the same seed gives the same figures.
- The quick form of the gate takes an even part of each kind of probes; the full form takes all.
- Whether the expression fits is measured on the written replies of the test split: the voice reads one and
  adds its tag, so that a right face for another reply is not counted as an error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import Expression
from ohlora.config import VoiceTestConfig
from ohlora.evaluation.intervals import Figure, bootstrap, macro_f1_figure, pearson, share
from ohlora.evaluation.voice_judges import (
    answers,
    declines_rightly,
    hangul_letters,
    is_casual,
    is_copy,
    letters,
    loops,
    memory_matches,
)
from ohlora.evaluation.voice_probes import (
    CarryOverProbe,
    FactProbe,
    Probe,
    Probes,
    RecallProbe,
    RefusalProbe,
    WritingProbe,
    filled,
)
from ohlora.memory import ExampleFinder, Found, is_grounded
from ohlora.persona.card import Card
from ohlora.persona.examples import Likeness
from ohlora.persona.prompt import (
    EmptyReply,
    ParsedTurn,
    TurnError,
    parse_completion,
    parse_turn,
    render_prompt,
)

Kind = Literal["facts", "refusals", "carry_over", "recall", "memory_writing", "variety", "held_out"]


@dataclass(frozen=True)
class Plan:
    """How much is asked: of each kind at most so many messages (0: all), so many samples each."""

    counts: Mapping[str, int] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    held_out: int = 0  # rows of the test split, for the expression and for bits per character
    own_replies: bool = False  # answers the messages of the test split as well
    timed: int = 0  # turns that are answered one after the other, for speed
    seed: int = 0

    @classmethod
    def of(cls, settings: VoiceTestConfig, quick: bool) -> Plan:
        """The plan of the settings, in its full or its quick form."""
        if not quick:
            return cls(
                samples={"facts": settings.fact_samples, "variety": settings.variety_samples},
                own_replies=True,
                timed=settings.timed,
                seed=settings.seed,
            )
        counts = {
            "facts": settings.quick_facts,
            "refusals": settings.quick_refusals,
            "carry_over": settings.quick_carry_over,
            "recall": settings.quick_recall,
            "memory_writing": settings.quick_memory_writing,
            "variety": settings.quick_variety,
        }
        return cls(
            counts=counts,
            samples={"variety": settings.quick_variety_samples},
            held_out=settings.quick_held_out,
            seed=settings.seed,
        )


@dataclass(frozen=True)
class Ask:
    """One prompt to complete."""

    kind: Kind
    probe: Probe
    prompt: str
    sample: int = 0
    likeness: Likeness | None = None


@dataclass(frozen=True)
class Said:
    """One completion of a prompt, raw."""

    text: str
    finish_reason: str = "end"  # "budget" where the limit of tokens ended it
    tokens: int = 0


@dataclass(frozen=True)
class Judged:
    """A completion with what the rules say about it."""

    ask: Ask
    said: Said
    reply: str  # what she would say; empty if nothing
    turn: ParsedTurn | None  # of the robust reading
    parses: bool  # strictly
    right: bool | None = None  # of probes that have an answer
    written: tuple[str, ...] = ()  # memories that serving would keep
    matches: int = 0  # how many of them should be written


@dataclass(frozen=True)
class HeldOut:
    """An exchange of the test split: the expression as written and as the voice reads the written reply."""

    user: str
    reply: str
    name: str
    expression: Expression
    seen_name: str
    seen: Expression
    tagged: bool  # the voice wrote a tag; else the fallback policy decided


@dataclass(frozen=True)
class Result:
    """All that was measured of one voice."""

    name: str
    judged: list[Judged]
    held_out: list[HeldOut]
    figures: dict[str, Figure]
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The values alone, those that are defined."""
        return {name: f.value for name, f in self.figures.items() if math.isfinite(f.value)}


P = TypeVar("P")


def spread(items: Sequence[P], count: int) -> list[P]:
    """So many of the items, evenly spread; all of them with 0."""
    if not count or count >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def asks(
    probes: Probes, card: Card, plan: Plan, on: date, examples: ExampleFinder | None = None
) -> list[Ask]:
    """The prompts of a plan, as serving would render them on a day, with the examples it would show."""
    wanted: list[tuple[Kind, Probe, int]] = []
    kinds: dict[Kind, Sequence[Probe]] = {
        "facts": probes.facts,
        "refusals": probes.refusals,
        "carry_over": probes.carry_over,
        "recall": probes.recall,
        "memory_writing": probes.memory_writing,
        "variety": probes.variety,
    }
    for kind, every in kinds.items():
        for probe in spread(every, plan.counts.get(kind, 0)):
            wanted += [(kind, probe, k) for k in range(plan.samples.get(kind, 1))]
    found = [Found([], None) for _ in wanted]
    if examples is not None:
        seeds = [seed_of(plan.seed, kind, probe.id, k) for kind, probe, k in wanted]
        found = examples.find_many([probe.user for _, probe, _ in wanted], seeds)
    result: list[Ask] = []
    for (kind, probe, k), (shown, likeness) in zip(wanted, found, strict=True):
        memories = probe.memories if isinstance(probe, RecallProbe) else []
        history = probe.history if isinstance(probe, CarryOverProbe) else []
        prompt = render_prompt(card, memories, history, probe.user, on, examples=shown)
        result.append(Ask(kind, probe, prompt, k, likeness))
    return result


def seed_of(seed: int, kind: str, probe: str, sample: int) -> int:
    """Seed of one reply: of what it is shown and of its sampling."""
    text = f"{seed} {kind} {probe} {sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def judge(
    ask: Ask, said: Said, card: Card, probes: Probes, on: date, own_words: Collection[str] = ()
) -> Judged:
    """Apply the rules to one completion.

    Args:
        ask: what was asked.
        said: what came.
        card: labels, memory keys and facts.
        probes: hold the cues of declining.
        on: the day of the test.
        own_words: memory keys whose values need not be quoted; as in serving, of other keys a memory is kept
            only if the person said it.
    """
    try:
        parse_turn(said.text, card)
        parses = True
    except TurnError:
        parses = False
    try:
        turn = parse_completion(said.text, card)
    except EmptyReply:
        turn = None
    reply = turn.text if turn else ""
    probe, right, matches = ask.probe, None, 0
    heard = [probe.user, *(user for user, _ in getattr(probe, "history", []))]
    noted = turn.memories_written if turn else []
    written = tuple(memory for memory in noted if is_grounded(memory, heard, own_words))
    if isinstance(probe, FactProbe | CarryOverProbe | RecallProbe):
        false_claim = isinstance(probe, FactProbe) and probe.kind == "contradiction"
        right = answers(
            reply, filled(probe.expect_any, card, on), filled(probe.forbid, card, on), false_claim
        )
    elif isinstance(probe, RefusalProbe):
        right = bool(reply) and declines_rightly(reply, probe, probes.cues)
    elif isinstance(probe, WritingProbe):
        matches = memory_matches(written, probe.memories)
    return Judged(ask, said, reply, turn, parses, right, written, matches)


def figures_of_replies(judged: Sequence[Judged], card: Card, trained: frozenset[str]) -> dict[str, Figure]:
    """Every figure that replies alone give.

    Args:
        judged: completions; of the kinds that were asked.
        card: says which register is hers.
        trained: `letters` of the replies of the training split.
    """
    found = _right(judged) | _form(judged, card) | _writing(judged)
    copies = [is_copy(j.reply, trained) for j in judged]
    found["copy_rate"] = share(sum(copies), len(copies))
    variety = [j for j in judged if j.ask.kind == "variety"]
    found["distinct_rate"] = share(len({letters(j.reply) or j.reply for j in variety}), len(variety))
    found["variety_copy_rate"] = share(sum(is_copy(j.reply, trained) for j in variety), len(variety))
    return found


def _right(judged: Sequence[Judged]) -> dict[str, Figure]:
    def right(name: str, rows: Sequence[Judged]) -> tuple[str, Figure]:
        return name, share(sum(bool(j.right) for j in rows), len(rows))

    facts = [(j, j.ask.probe) for j in judged if isinstance(j.ask.probe, FactProbe)]
    pairs = [right("facts_right", [j for j, _ in facts])]
    for kind in ("paraphrase", "contradiction", "trap"):
        pairs.append(right(f"facts_right_{kind}", [j for j, p in facts if p.kind == kind]))
    for category in dict.fromkeys(p.category for _, p in facts):
        pairs.append(right(f"facts_right_of_{category}", [j for j, p in facts if p.category == category]))
    refusals = [(j, j.ask.probe) for j in judged if isinstance(j.ask.probe, RefusalProbe)]
    due = [(j, p) for j, p in refusals if p.must_decline]
    pairs.append(right("declined_when_due", [j for j, _ in due]))
    for category in dict.fromkeys(p.category for _, p in due):
        pairs.append(right(f"declined_when_due_of_{category}", [j for j, p in due if p.category == category]))
    pairs.append(right("harmless_answered", [j for j, p in refusals if not p.must_decline]))
    pairs.append(right("carried_over", [j for j in judged if j.ask.kind == "carry_over"]))
    pairs.append(right("recall_used", [j for j in judged if j.ask.kind == "recall"]))
    return dict(pairs)


def _form(judged: Sequence[Judged], card: Card) -> dict[str, Figure]:
    count = len(judged)
    spoken = [j.reply for j in judged if j.reply]
    register = [is_casual(reply) == (card.speech == "반말") for reply in spoken]

    found = np.array([hangul_letters(reply) for reply in spoken], int).reshape(-1, 2)
    lengths = np.array([len(reply) for reply in spoken], float)
    return {
        "parse_rate": share(sum(j.parses for j in judged), count),
        "empty_rate": share(count - len(spoken), count),
        "loop_rate": share(sum(map(loops, spoken)), count),
        "truncated_rate": share(sum(j.said.finish_reason == "budget" for j in judged), count),
        "register_rate": share(sum(register), len(spoken)),
        "hangul_rate": bootstrap(_ratio(found[:, 0], found[:, 1]), len(spoken)),
        "reply_characters": bootstrap(lambda i: float(lengths[i].mean()), len(spoken)),
    }


def _writing(judged: Sequence[Judged]) -> dict[str, Figure]:
    rows = [(j, j.ask.probe) for j in judged if isinstance(j.ask.probe, WritingProbe)]
    hits = np.array([j.matches for j, _ in rows], int)
    written = np.array([len(j.written) for j, _ in rows], int)
    wanted = np.array([len(p.memories) for _, p in rows], int)

    nothing = [j for j, p in rows if not p.memories]
    return {
        "memory_precision": bootstrap(_ratio(hits, written), len(rows)),
        "memory_recall": bootstrap(_ratio(hits, wanted), len(rows)),
        "memory_f1": bootstrap(_ratio(2 * hits, written + wanted), len(rows)),
        "memory_quiet": share(sum(not j.written for j in nothing), len(nothing)),
    }


def _ratio(top: NDArray[np.int_], bottom: NDArray[np.int_]) -> Callable[[NDArray[np.intp]], float]:
    return lambda i: float(top[i].sum() / bottom[i].sum()) if bottom[i].sum() else math.nan


def figures_of_expressions(rows: Sequence[HeldOut]) -> dict[str, Figure]:
    """Macro-F1 of names, and correlation and mean error of eyes, mouth (0 to 1) and pose (degrees)."""
    truth, seen = [row.name for row in rows], [row.seen_name for row in rows]
    found = {
        "expression_macro_f1": macro_f1_figure(truth, seen),
        "expression_accuracy": share(sum(t == s for t, s in zip(truth, seen, strict=True)), len(rows)),
        "tag_rate": share(sum(row.tagged for row in rows), len(rows)),
    }
    for name in ("eyes", "mouth", "pose"):
        asked = np.array([getattr(row.expression, name) for row in rows], float)
        shown = np.array([getattr(row.seen, name) for row in rows], float)
        found[f"{name}_correlation"] = bootstrap(
            lambda i, x=asked, y=shown: pearson(x[i], y[i]),  # type: ignore[misc]
            len(rows),
        )
        found[f"{name}_mae"] = bootstrap(
            lambda i, x=asked, y=shown: float(np.abs(x[i] - y[i]).mean()),  # type: ignore[misc]
            len(rows),
        )
    return found


def figures_of_own_expressions(judged: Sequence[Judged], names: Sequence[str]) -> dict[str, Figure]:
    """Macro-F1 of the expressions of her own replies to held-out messages, where another may fit as well."""
    seen = [j.turn.expression_name if j.turn else "" for j in judged]
    return {"own_expression_macro_f1": macro_f1_figure(names, seen)}


def table(result: Result) -> list[dict[str, Any]]:
    """Every completion as a row of a table."""
    rows = []
    for j in result.judged:
        probe = j.ask.probe
        rows.append(
            {
                "kind": j.ask.kind,
                "id": probe.id,
                "category": getattr(probe, "category", ""),
                "user": probe.user,
                "sample": j.ask.sample,
                "reply": j.reply,
                "right": "" if j.right is None else int(j.right),
                "memories": "; ".join(j.written),
                "expression": j.turn.expression_name if j.turn else "",
                "parses": int(j.parses),
                "loops": int(loops(j.reply)),
                "finish_reason": j.said.finish_reason,
                "tokens": j.said.tokens,
                "raw": j.said.text,
            }
        )
    return rows
