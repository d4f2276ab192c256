"""Stage `retriever`: fine-tune the sentence encoder so that the messages it finds are answered alike.

An untuned encoder takes messages for alike that share words; whether one reply does for both it cannot know.
Read by somebody, the reply of the message that it finds nearest is worth little more than half of the best
among the near ones. The loss orders cosines by grades (CoSENT: Su 2022, https://kexue.fm/archives/8847),
within a message and across messages, so that a cosine also tells whether anything near fits at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import PreTrainedModel

from ohlora.artifacts import Manifest, sha256_file, verify
from ohlora.config import Config
from ohlora.memory.adapter import add_lora, continue_lora, save_adapter
from ohlora.memory.encoder import Encoder, encoder_settings, load_tokenizer
from ohlora.memory.grades import Ranking, load_grades, rank
from ohlora.memory.training import build, fit
from ohlora.persona.dialogues import load_dialogues
from ohlora.stage import Journal, Report


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train the adapter on the grades over `inputs["base"]`, judge it beside what it started from.

    The grades are of replies of `inputs["rows"]`, the project's own dialogues, whoever the persona is.

    Where training does not order the candidates of valid messages better, what it started from is kept.

    Raises:
        ArtifactError: the base folder or the start is missing or corrupt.
        GradeError: the grades do not hold.
    """
    base_folder, out, settings = inputs["base"], outputs["output"], config.retriever
    base = verify(base_folder, "base-encoder")
    path = inputs["grades"] / Path(settings.grades).name
    graded = load_grades(path, {row.id: row for row in load_dialogues(inputs["rows"])})
    held = {split: [g for g in graded if g.split == split] for split in ("valid", "test")}
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)

    model = build(settings, base_folder, config.runtime.device)
    transformer = cast(Transformer, model[0])
    named = {**encoder_settings(base), "max_length": settings.max_length}
    encoder = Encoder(transformer.model, load_tokenizer(base_folder), **named)

    def ranked() -> dict[str, Ranking]:
        return {split: rank(encoder.embed, messages) for split, messages in held.items()}

    notes: list[str] = []
    start = ""
    if base.settings["trains"] == "lora":
        encoder.model, start, notes = _adapter(transformer.model, base, config)
        transformer.model = encoder.model  # type: ignore[assignment]  # a PeftModel stands in for its base
    before = ranked()
    kept = _trained(encoder.model)
    pairs = [pair for g in graded if g.split == "train" for pair in g.pairs()]
    alike = dict.fromkeys(("query", "passage"), encoder.prefixes["query"])  # both are messages
    fit(model, pairs, alike, settings, config.runtime, journal, settings.continued_speed if start else 1.0)
    after = ranked()
    if not after["valid"].better_than(before["valid"]):
        begun = settings.start if start else "the base"
        notes.append(f"Training did not help on valid messages: {begun} is kept.")
        with torch.no_grad():
            for name, parameter in encoder.model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
        after = before
    save_adapter(
        encoder.model,
        out,
        base=base,
        settings={"max_length": settings.max_length},
        provenance={
            "profile": config.profile,
            "grades_sha256": sha256_file(path),
            "training": settings.model_dump(mode="json"),
            "start": start,
            "licence": str(base.provenance.get("licence", "")),
        },
    )
    return Report(
        metrics={
            "top_grade": after["test"].top,
            "valid_top_grade": after["valid"].top,
            "valid_ndcg": float(np.mean(after["valid"].gains)) if after["valid"].gains else 0.0,
            ("start_top_grade" if start else "base_top_grade"): before["test"].top,
            "mean_grade": after["test"].mean,
            "best_grade": after["test"].best,
            "pairs": float(len(pairs)),
        },
        tables={
            "Mean grade of the nearest reply": _table("start" if start else "untuned base", before, after)
        },
        notes=notes,
    )


def _adapter(model: PreTrainedModel, base: Manifest, config: Config) -> tuple[Any, str, list[str]]:
    """A network with an adapter to train, the digest of what it continues (or nothing), and notes."""
    settings = config.retriever
    if settings.start:
        manifest = verify(Path(settings.start), "memory")
        if manifest.base.get("sha256") == base.digest:
            note = f"Continued from {settings.start}, digest {manifest.digest[:12]}."
            return continue_lora(model, Path(settings.start)), manifest.digest, [note]
        note = f"{settings.start} belongs to another base: started from the base."
        return add_lora(model, settings.lora_rank, settings.seed), "", [note]
    return add_lora(model, settings.lora_rank, settings.seed), "", []


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _table(begun: str, before: dict[str, Ranking], after: dict[str, Ranking]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, ranked in ((begun, before), ("tuned", after)):
        rows += [{"encoder": name, "split": split, "nearest": round(r.top, 3)} for split, r in ranked.items()]
    for split, r in after.items():
        rows.append({"encoder": "any, by chance", "split": split, "nearest": round(r.mean, 3)})
        rows.append({"encoder": "the best of them", "split": split, "nearest": round(r.best, 3)})
    return rows
