"""Stage `filters`: train the gender and the quality classifiers on folds of people, calibrate and judge them.

Each fold's network never sees the people of its fold; what it says about them, the out-of-fold predictions,
fits the scaling of the probabilities. Held-out people, whom no network saw, judge the ensemble as it was
written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ohlora.artifacts import sha256_file
from ohlora.config import Config, FiltersConfig
from ohlora.corpus.portraits import MANIFEST as CORPUS_MANIFEST
from ohlora.corpus.portraits import Portraits
from ohlora.errors import UserError
from ohlora.labeling.classifier import CHANNELS, TASKS, Classifier
from ohlora.labeling.filter_data import (
    Examples,
    draw,
    examples,
    from_bytes,
    gender_batch,
    person_weights,
    quality_batch,
)
from ohlora.labeling.filter_report import judge
from ohlora.labeling.filters import FILTER_BATCH, Filters, save
from ohlora.labeling.folds import assign_folds
from ohlora.labeling.parser import autocast_dtype, pick_device
from ohlora.labeling.reliability import Scaling, area_under_roc, fit_scaling
from ohlora.stage import Journal, Report

LOG_EVERY = 10  # steps
WARM_UP = 0.15  # share of the steps
WEIGHT_DECAY = 0.01
MOST_GRADIENT = 5.0


class FilterError(UserError, RuntimeError):
    """The corpus cannot teach the filters."""


@dataclass(frozen=True)
class Start:
    """What a training continues, or why it does not."""

    filters: Filters | None
    note: str


def find_start(config: FiltersConfig, held_out: NDArray[np.int64]) -> Start:
    """The filters to continue from, unless their shape differs or they know people that are held out here.

    Args:
        config: the section; `start` names a model folder.
        held_out: identities [k] of the test split.

    Raises:
        ArtifactError: `start` is no intact model folder.
    """
    if not config.start:
        return Start(None, "")
    filters = Filters.load(Path(config.start), "cpu")
    if filters.resolution != config.resolution or len(filters.networks[TASKS[0]]) != config.folds:
        return Start(None, f"{config.start} has another shape than the settings: started from scratch.")
    if met := len(set(held_out.tolist()) & set(filters.folds)):
        return Start(
            None,
            f"{config.start} was trained on {met} of the people held out here: started from scratch.",
        )
    return Start(filters, f"Continued from {config.start}, digest {filters.digest[:12]}.")


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train on the train split of `inputs["corpus"]`, judge on its test split.

    Raises:
        CorpusError: the corpus is corrupt, or lacks train or test portraits.
        FilterError: there are no women, no men or no clean pictures to learn from.
        FoldError: it has fewer people than folds.
        ArtifactError: the filters to continue from are missing or corrupt.
    """
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    settings = config.filters
    portraits = Portraits.load(inputs["corpus"])
    training = portraits.select("train")
    start = find_start(settings, np.unique(portraits.identity[portraits.split == "test"]))
    data = examples(training, settings.resolution, settings.steps * settings.batch_size // 2, settings.seed)
    folds = assign_folds(
        data.identity,
        (2 * np.nan_to_num(data.gender) + np.nan_to_num(data.clean)).astype(np.int64),
        settings.folds,
        settings.seed,
        start.filters.folds if start.filters else None,
    )
    networks, scaling, fold_table = fit(data, folds, config, start.filters, journal)
    out = outputs["output"]
    everyone = {**(start.filters.folds if start.filters else {}), **folds}
    filters = Filters(networks, scaling, settings.resolution, torch.device("cpu"), everyone)
    provenance = {
        "profile": config.profile,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "portraits": len(training),
        "identities": len(folds),
        "corpus": sha256_file(inputs["corpus"] / CORPUS_MANIFEST),
        "start": start.filters.digest if start.filters else "",
        "licence": "Apache-2.0",
    }
    save(filters, out, provenance)
    del data
    report = judge(Filters.load(out, config.runtime.device), inputs["corpus"], settings, out)
    report.tables = {"Folds, on people that their network never saw": fold_table, **report.tables}
    report.notes += [note for note in (start.note, *_poor_folds(fold_table)) if note]
    return report


def fit(
    data: Examples, folds: dict[int, int], config: Config, start: Filters | None, journal: Journal
) -> tuple[dict[str, list[Classifier]], dict[str, Scaling], list[dict[str, Any]]]:
    """Train the network of every task and fold, and fit the scalings to what they say out of fold.

    Args:
        data: portraits of the train split.
        folds: identity -> fold.
        config: all settings.
        start: filters to continue.
        journal: gets the curves.

    Returns:
        Networks and scaling of each task, and rows of a table of the folds.

    Raises:
        FilterError: there are no women, no men or no clean pictures.
    """
    settings = config.filters
    fold_of = np.array([folds[int(i)] for i in data.identity])
    table: list[dict[str, Any]] = [
        {"fold": k, "people": list(folds.values()).count(k), "portraits": int((fold_of == k).sum())}
        for k in range(settings.folds)
    ]
    networks: dict[str, list[Classifier]] = {}
    scaling: dict[str, Scaling] = {}
    curve = Curve(journal)
    plan = [(task, fold) for task in TASKS for fold in range(settings.folds)]
    logits: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.float32]] = []
    for task, fold in journal.progress(plan, "filters: folds", len(plan)):
        question = (gender_question if task == "gender" else quality_question)(data, fold_of == fold)
        network = fit_network(
            task,
            question.batch,
            config,
            seed=settings.seed + 1000 * TASKS.index(task) + fold,
            start=start.networks[task][fold] if start else None,
            on_step=functools.partial(curve.add, task),
        )
        networks.setdefault(task, []).append(network)
        logits.append(say(network, task, question.unseen()))
        labels.append(question.unseen_labels)
        value = area_under_roc(logits[-1], labels[-1])
        table[fold][f"{task} AUROC"] = round(value, 4) if np.isfinite(value) else None
        if fold == settings.folds - 1:
            pooled = np.concatenate(labels)
            both = 0 < pooled.sum() < len(pooled)
            scaling[task] = fit_scaling(np.concatenate(logits), pooled) if both else Scaling()
            logits, labels = [], []
    return networks, scaling, table


def _poor_folds(table: list[dict[str, Any]]) -> list[str]:
    return [
        f"Fold {row['fold']} could not judge the {task} filter: too few people."
        for task in TASKS
        for row in table
        if row[f"{task} AUROC"] is None
    ]


@dataclass(frozen=True)
class Question:
    """One task on one fold: batches of people to learn from, pictures of the others to answer."""

    batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # size -> views, labels float32 [size]
    unseen: Callable[[], Tensor]  # uint8 [k, 12, r, r]
    unseen_labels: NDArray[np.float32]  # [k]


def gender_question(data: Examples, unseen: NDArray[np.bool_]) -> Question:
    """Woman or man: half of each batch are women. Unseen pictures are the clean ones.

    Where the others lack women or men, in a corpus of a few people, the network learns from everyone and has
    no unseen pictures.

    Raises:
        FilterError: there are no women, or no men, at all.
    """
    women, men = data.gender == 1, data.gender == 0
    if not women.any() or not men.any():
        raise FilterError(
            f"the corpus has {women.sum()} portraits of women and {men.sum()} of men to learn from; "
            "the gender filter needs both: raise corpus.limit or corpus.render"
        )
    if not (women & ~unseen).any() or not (men & ~unseen).any():
        unseen = np.zeros_like(unseen)
    women_rows, men_rows = np.flatnonzero(women & ~unseen), np.flatnonzero(men & ~unseen)
    weights = person_weights(data.identity)
    asked = np.flatnonzero(unseen & np.isfinite(data.gender) & (data.clean != 0))

    def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        half = size // 2
        rows = [draw(women_rows, weights, half, generator), draw(men_rows, weights, size - half, generator)]
        labels = torch.cat([torch.ones(half), torch.zeros(size - half)])
        return gender_batch(data, torch.cat(rows), generator), labels

    return Question(batch, lambda: data.views[torch.from_numpy(asked)], data.gender[asked])


def quality_question(data: Examples, unseen: NDArray[np.bool_]) -> Question:
    """Clean or not: half of each batch are clean portraits, the others copies of portraits with a defect,
    or portraits that the corpus has with one. Where the others have no clean ones, as `gender_question`.

    Raises:
        FilterError: there are no clean portraits at all.
    """
    if not (data.clean == 1).any():
        raise FilterError("no clean portraits to learn from: the truth `quality` is 0 or unknown for all")
    if not (~unseen & (data.clean == 1)).any():
        unseen = np.zeros_like(unseen)
    clean = np.flatnonzero(~unseen & (data.clean == 1))
    spoilt = np.flatnonzero(~unseen & (data.clean == 0))
    copies = np.flatnonzero(~unseen[data.source])
    weights = person_weights(data.identity)
    copy_weights = weights[data.source]

    def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        half = size // 2
        few = (size - half) * len(spoilt) // (len(spoilt) + len(copies))
        parts = [
            data.views[draw(clean, weights, half, generator)],
            data.degraded[draw(copies, copy_weights, size - half - few, generator)],
        ]
        if few:
            parts.append(data.views[draw(spoilt, weights, few, generator)])
        labels = torch.cat([torch.ones(half), torch.zeros(size - half)])
        return quality_batch(torch.cat(parts), generator), labels

    asked = np.flatnonzero(unseen & np.isfinite(data.clean))
    _, first = np.unique(data.source, return_index=True)  # one copy of each
    asked_copies = first[unseen[data.source[first]]]

    def pictures() -> Tensor:
        return torch.cat([data.views[torch.from_numpy(asked)], data.degraded[torch.from_numpy(asked_copies)]])

    return Question(
        batch, pictures, np.concatenate([data.clean[asked], np.zeros(len(asked_copies), np.float32)])
    )


def fit_network(
    task: str,
    batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    config: Config,
    *,
    seed: int,
    start: Classifier | None = None,
    on_step: Callable[[float], None] = lambda loss: None,
) -> Classifier:
    """Train one classifier.

    Args:
        task: one of `TASKS`.
        batch: draws k views float32 [k, channels, r, r] and their labels float32 [k].
        config: all settings.
        seed: of the weights and of everything that is drawn.
        start: weights to continue from, with a lower learning rate.
        on_step: gets the loss of each step.
    """
    settings = config.filters
    device = pick_device(config.runtime.device)
    dtype = autocast_dtype(config.runtime, device)
    generator = torch.Generator().manual_seed(seed)
    peak = settings.learning_rate * (settings.continued_speed if start else 1.0)
    with torch.random.fork_rng():  # layers initialise and dropout draws from the global generator
        torch.manual_seed(seed)
        network = Classifier(CHANNELS[task])
        if start is not None:
            network.load_state_dict(start.state_dict())
        network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=WEIGHT_DECAY)
        for step in range(settings.steps):
            optimizer.param_groups[0]["lr"] = peak * schedule(step, settings.steps)
            view, labels = batch(settings.batch_size, generator)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = network(view.to(device, memory_format=torch.channels_last))
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), MOST_GRADIENT)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            on_step(loss.item())
    return network.cpu().eval()


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine."""
    warm = max(1.0, WARM_UP * steps)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def say(network: Classifier, task: str, view: Tensor) -> NDArray[np.float32]:
    """Logits [k] of views uint8 [k, 12, r, r]."""
    network.eval()
    answers = [
        network(from_bytes(view[i : i + FILTER_BATCH], task)).numpy()
        for i in range(0, len(view), FILTER_BATCH)
    ]
    return np.concatenate([np.empty(0, np.float32), *answers])


class Curve:
    """Averages the losses of a network over `LOG_EVERY` steps and logs them."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.steps = journal, 0
        self.losses: dict[str, list[float]] = {}

    def add(self, task: str, loss: float) -> None:
        self.steps += 1
        window = self.losses.setdefault(task, [])
        window.append(loss)
        if len(window) == LOG_EVERY:
            self.journal.log(self.steps, **{f"{task}_loss": float(np.mean(window))})
            window.clear()
