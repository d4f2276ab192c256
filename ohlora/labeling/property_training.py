"""Stage `properties`: train the property network, judge it on held-out people against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ohlora.artifacts import sha256_file
from ohlora.attributes import CONDITION_NAMES
from ohlora.config import Config, PropertiesConfig
from ohlora.corpus.portraits import MANIFEST as CORPUS_MANIFEST
from ohlora.corpus.portraits import Portraits
from ohlora.errors import UserError
from ohlora.labeling.filter_training import schedule
from ohlora.labeling.parser import autocast_dtype, pick_device
from ohlora.labeling.pictures import scatter, sheet
from ohlora.labeling.properties import Properties, save
from ohlora.labeling.property_data import Examples, boxes_of, draw_batch, examples, scales_of
from ohlora.labeling.property_network import PropertyNetwork
from ohlora.labeling.segmentation import class_weights, soft_cross_entropy
from ohlora.labeling.stage import correlation
from ohlora.stage import Journal, Report

LOG_EVERY = 10  # steps
WEIGHT_DECAY = 0.01
MOST_GRADIENT = 5.0
MASK_WEIGHT = 1.0  # of the masks' cross entropies in the loss
HARD = {"eyes": 2.0}  # weights of attributes in the loss that are not 1
BETA = 0.3  # standard deviations below which errors count squared
WORST = 2  # pictures of each attribute in the sheet
SCATTER, WORST_SHEET = "scatter.png", "worst.png"

Columns = Mapping[str, NDArray[np.float32]]


class PropertyError(UserError, RuntimeError):
    """The corpus cannot teach the property network."""


def find_start(config: PropertiesConfig, held_out: NDArray[np.int64]) -> tuple[Properties | None, str]:
    """The network to continue, and a note; none if its shape differs or it knows people held out here.

    Args:
        config: the section; `start` names a model folder.
        held_out: identities [k] of the test split.

    Raises:
        ArtifactError: `start` is no intact model folder.
    """
    if not config.start:
        return None, ""
    properties = Properties.load(Path(config.start), "cpu")
    if properties.network.resolution != config.resolution:
        return None, f"{config.start} has another shape than the settings: started from scratch."
    if met := len(set(held_out.tolist()) & set(properties.people)):
        return None, f"{config.start} was trained on {met} of the people held out here: started from scratch."
    return properties, f"Continued from {config.start}, digest {properties.digest[:12]}."


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train on the train split of `inputs["corpus"]`, judge on its test split.

    Raises:
        CorpusError: the corpus is corrupt, or lacks train or test portraits.
        PropertyError: no portrait to train on has a mask.
        ArtifactError: the network to continue from is missing or corrupt.
    """
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    settings = config.properties
    portraits = Portraits.load(inputs["corpus"])
    training, test = portraits.select("train"), portraits.select("test")
    start, note = find_start(settings, np.unique(test.identity))
    data = examples(training, settings.resolution)
    if not len(data):
        raise PropertyError("no portrait of the train split has a mask; render some with corpus.render")
    network = fit(data, config, start.network if start else None, journal)
    people = sorted({*data.identity.tolist(), *(start.people if start else ())})
    provenance = {
        "profile": config.profile,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "portraits": len(data),
        "identities": len(np.unique(data.identity)),
        "corpus": sha256_file(inputs["corpus"] / CORPUS_MANIFEST),
        "start": start.digest if start else "",
        "licence": "Apache-2.0",
    }
    out = outputs["output"]
    save(Properties(network, torch.device("cpu"), people), out, provenance)
    report = judge(Properties.load(out, config.runtime.device), test, out)
    if note:
        report.notes.append(note)
    return report


def fit(data: Examples, config: Config, start: PropertyNetwork | None, journal: Journal) -> PropertyNetwork:
    """Train a network on the examples, from scratch or from the weights of `start`.

    A continued network keeps its areas and scales: they belong to its weights.
    """
    settings = config.properties
    device = pick_device(config.runtime.device)
    dtype = autocast_dtype(config.runtime, device)
    generator = torch.Generator().manual_seed(settings.seed)
    boxes, scales = (start.boxes, start.scales) if start else (boxes_of(data.masks), scales_of(data.truth))
    frequency = torch.stack([share.float().mean((1, 2)) for share in data.shares]).mean(0)
    weights = class_weights(frequency / frequency.sum()).to(device)
    mean = torch.tensor([scales[name][0] for name in CONDITION_NAMES])
    deviation = torch.tensor([scales[name][1] for name in CONDITION_NAMES])
    emphasis = torch.tensor([HARD.get(name, 1.0) for name in CONDITION_NAMES], device=device)
    peak = settings.learning_rate * (settings.continued_speed if start else 1.0)
    with torch.random.fork_rng():  # layers initialise from the global generator
        torch.manual_seed(settings.seed)
        network = PropertyNetwork(settings.resolution, boxes, scales)
    if start:
        network.load_state_dict(start.state_dict())
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=WEIGHT_DECAY)
    window: list[tuple[float, float]] = []
    for step in journal.progress(range(settings.steps), "properties", settings.steps):
        optimizer.param_groups[0]["lr"] = peak * schedule(step, settings.steps)
        batch = draw_batch(data, settings.batch_size, generator)
        wanted = ((batch.truth - mean) / deviation).to(device)
        known = torch.isfinite(wanted)
        pixels = batch.pixels.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            answer = network(pixels)
        errors = F.smooth_l1_loss(
            answer.values.float(), torch.nan_to_num(wanted), reduction="none", beta=BETA
        )
        counted = known * emphasis
        regression = (errors * counted).sum() / counted.sum().clamp(min=1)
        mask = soft_cross_entropy(answer.logits.float(), batch.shares.to(device), weights)
        behind = F.binary_cross_entropy_with_logits(answer.behind, batch.behind.to(device))
        (regression + MASK_WEIGHT * (mask + behind)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MOST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        window.append((regression.item(), mask.item()))
        if len(window) == LOG_EVERY or step == settings.steps - 1:
            errors_mean, mask_mean = np.mean(window, 0)
            journal.log(step, regression=float(errors_mean), mask=float(mask_mean))
            window.clear()
    return network.cpu().eval()


def judge(properties: Properties, test: Portraits, out: Path) -> Report:
    """Correlation and mean absolute error on held-out people; writes the pictures into `out`.

    The figures are of clean portraits; the table has those of degraded ones beside them.
    """
    values = properties.values(test.images)
    clean = test.truth["quality"] != 0  # unknown counts as clean
    metrics: dict[str, float] = {
        "held_out_portraits": float(clean.sum()),
        "held_out_people": float(len(np.unique(test.identity))),
    }
    rows: list[dict[str, Any]] = []
    for name in CONDITION_NAMES:
        value, truth = values[name], test.truth[name]
        error = np.abs(value - truth)
        row: dict[str, Any] = {"attribute": name}
        for kind, some in (("", clean), (", degraded", ~clean)):
            known = np.isfinite(error) & some
            row[f"correlation{kind}"] = _rounded(correlation(value[some], truth[some]))
            row[f"mean error{kind}"] = _rounded(float(error[known].mean()) if known.any() else np.nan)
        row["unknown"] = int((np.isnan(value) & np.isfinite(truth)).sum())
        rows.append(row)
        known = np.isfinite(error) & clean
        metrics[f"{name}_correlation"] = correlation(value[clean], truth[clean])
        metrics[f"{name}_mae"] = float(error[known].mean()) if known.any() else np.nan
        metrics[f"{name}_unknown"] = float((np.isnan(value) & np.isfinite(truth))[clean].mean())
    _draw(values, test, clean, out)
    return Report(
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        pictures={
            "Properties against the truth, held-out people": SCATTER,
            "Worst held-out portraits of each property": WORST_SHEET,
        },
        tables={"Properties against the truth, held-out people": rows},
    )


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _draw(values: Columns, test: Portraits, clean: NDArray[np.bool_], out: Path) -> None:
    scatter({name: (test.truth[name][clean], values[name][clean]) for name in CONDITION_NAMES}, out / SCATTER)
    pictures, captions = [], []
    for name in CONDITION_NAMES:
        error = np.where(clean, np.abs(values[name] - test.truth[name]), np.nan)
        for i in np.argsort(-np.nan_to_num(error, nan=-1.0), kind="stable")[:WORST]:
            pictures.append([test.images[i]])
            captions.append(f"{name} {values[name][i]:.3g}, is {test.truth[name][i]:.3g}")
    sheet(pictures, captions, out / WORST_SHEET, tile=192)
