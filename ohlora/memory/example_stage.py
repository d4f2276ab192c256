"""Stage `examples`: the rows that her voice may be shown, embedded, and the neighbours of each row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ohlora.artifacts import sha256_file
from ohlora.config import Config
from ohlora.memory.adapter import merge
from ohlora.memory.encoder import Encoder
from ohlora.memory.examples import ENCODER
from ohlora.persona.card import load_card
from ohlora.persona.dialogues import DialogueRow, load_rows, normalise, select
from ohlora.persona.examples import Examples, FactMessages, may_be_shown, save_neighbours, seed_of
from ohlora.persona.facts import words_said
from ohlora.persona_config import ExamplesConfig
from ohlora.stage import Journal, Report

_BLOCK = 512  # messages embedded between two steps of the progress bar


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Embed the messages of the rows and find the neighbours of each.

    Writes the pairs that may be shown with their vectors, the encoder, and `neighbours.json`: of each row the
    places of its nearest pairs, without itself and its own reply; of most train rows a prototype comes first.
    With them go the messages of the card, which tell those that ask for a fact from others.

    Raises:
        ArtifactError: the base encoder or its adapter is missing or corrupt, or they do not belong together.
        CardError, DialogueError: the data do not hold.
    """
    out = outputs["output"]
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    path = Path(config.persona.dialogues)
    card_path = Path(config.persona.card)
    card = load_card(card_path)
    rows = select(load_rows(path, card), config.persona.limit)
    merge(inputs["base"], inputs["retriever"], out / ENCODER)
    encoder = Encoder.load(out / ENCODER, config.runtime.device)

    asking = card.asking_facts
    others = card.asking_no_fact if asking else ()
    texts = {row.user for row in rows}.union((message for message, _ in asking), others)
    messages = sorted(texts, key=lambda text: (len(text), text))
    blocks = [messages[at : at + _BLOCK] for at in range(0, len(messages), _BLOCK)]
    # float16 at once, so that training and serving compare the same vectors
    embedded = [encoder.embed(block).astype(np.float16) for block in journal.progress(blocks, "examples")]
    vectors = dict(zip(messages, np.concatenate(embedded).astype(np.float32), strict=True))

    pairs = list({(row.user, row.reply): None for row in rows if may_be_shown(row)})

    def vectors_of(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([vectors[text] for text in texts], np.float32).reshape(len(texts), encoder.dimension)

    placed = vectors_of([message for message, _ in pairs])
    day = config.persona.day
    says = [bool(words_said(card.facts_for(message, day), reply)) for message, reply in pairs]
    asked_for = np.array([number for _, number in asking], np.int64)
    of_card = vectors_of([message for message, _ in asking]), vectors_of(others), asked_for
    facts = FactMessages(np.array(says, bool), *of_card)
    examples = Examples(pairs, placed, {normalise(row.reply) for row in rows if row.split == "train"}, facts)
    asked = np.array([vectors[row.user] for row in rows], np.float32)
    found = examples.near(asked, config.examples, but=[(row.user, row.reply) for row in rows])
    near = {row.id: each.places for row, each in zip(rows, found, strict=True)}
    cosines = [float(vectors[row.user] @ placed[near[row.id][0]]) for row in rows if near[row.id]]
    edited = _put_prototypes_first(rows, near, examples, asked, config.examples)
    examples.save(out, encoder.digest, {"profile": config.profile, "dialogues_sha256": sha256_file(path)})
    save_neighbours(out, near)
    counts = np.array([len(found) for found in near.values()])
    nearest = [(row.user, pairs[near[row.id][0]]) for row in rows if near[row.id]]
    return Report(
        metrics={
            "pairs": float(len(pairs)),
            "rows_with_examples": float((counts > 0).mean()),
            "examples_of_a_row": float(counts.mean()),
            "rows_with_a_prototype": edited / max(1, len(rows)),
            "pairs_that_say_a_fact": float(np.mean(says)) if says else 0.0,
            "cosine_of_the_nearest": float(np.median(cosines)) if cosines else 0.0,
        },
        tables={
            "Nearest": [
                {"message": message, "nearest": other, "answered": reply}
                for message, (other, reply) in nearest[:: max(1, len(nearest) // 12)][:12]
            ]
        },
        notes=[
            f"{given} is not {inputs[name]}: a change of it does not make this stage stale"
            for given, name in ((path, "rows"), (card_path, "card"))
            if given.resolve() != inputs[name].resolve()
        ],
    )


def _put_prototypes_first(
    rows: Sequence[DialogueRow],
    near: dict[str, list[int]],
    examples: Examples,
    asked: npt.NDArray[np.float32],
    settings: ExamplesConfig,
) -> int:
    """Put a prototype before the neighbours of a share of the train rows; held-out rows stay as served."""
    chosen = [
        at
        for at, row in enumerate(rows)
        if row.split == "train" and random.Random(seed_of(row.id)).random() < settings.prototypes
    ]
    own = [(rows[at].user, rows[at].reply) for at in chosen]
    count = 0
    for at, place in zip(chosen, examples.prototypes(asked[chosen], own), strict=True):
        if place is not None:
            others = [other for other in near[rows[at].id] if not examples.same_reply(place, other)]
            near[rows[at].id] = [place, *others][: settings.pool]
            count += 1
    return count
