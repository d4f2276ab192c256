"""Stage `parser`: a segmentation network that finds the face classes in a portrait.

Notable: the network works at a coarse resolution but learns the *shares* of the classes in each coarse
pixel, so that its upsampled logits place outlines between pixels; eyes are ten pixels wide, half a pixel is
an expression. Held-out identities judge it, and what is judged is the model folder as it was written, not
the one in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ohlora.artifacts import ArtifactError, sha256_file, verify, write_manifest
from ohlora.attributes import FaceClass
from ohlora.config import Config, LabelingConfig, RuntimeConfig
from ohlora.corpus.portraits import MANIFEST as CORPUS_MANIFEST
from ohlora.corpus.portraits import Portraits
from ohlora.errors import UserError
from ohlora.labeling.augmentation import augment
from ohlora.labeling.pictures import overlay, sheet
from ohlora.labeling.segmentation import (
    CLASSES,
    class_shares,
    class_weights,
    confusion,
    intersection_over_union,
    iou_metrics,
    soft_cross_entropy,
    soft_dice_loss,
)
from ohlora.stage import Journal, Report

KIND = "labeler"
WEIGHTS = "parser.safetensors"
LOG_EVERY = 10  # steps
PARSE_BATCH = 16  # images at a time; bounds the memory of the upsampled logits


class NetworkError(UserError, ValueError):
    """The settings do not make a network."""


@dataclass(frozen=True)
class ParserSettings:
    """What the loader needs to build the network; `settings` of `model.json`."""

    architecture: str  # class of segmentation_models_pytorch
    encoder: str
    encoder_depth: int  # stages of the encoder; the coarsest is 2**-depth of the resolution
    decoder_channels: tuple[int, ...]  # of each decoder stage, coarse to fine; empty: the library's own
    resolution: int  # pixels, input and logits


def build_network(settings: ParserSettings, encoder_weights: str | None = None) -> nn.Module:
    """float32 [n, 3, r, r] in [-1, 1] -> logits float32 [n, classes, r, r].

    Raises:
        NetworkError: no such architecture or encoder, or they do not go together.
    """
    import segmentation_models_pytorch as smp  # takes seconds, and only those who build a network need it

    options: dict[str, Any] = {"encoder_depth": settings.encoder_depth}
    if settings.decoder_channels:
        options["decoder_channels"] = settings.decoder_channels
    try:
        network: nn.Module = smp.create_model(
            settings.architecture,
            encoder_name=settings.encoder,
            encoder_weights=encoder_weights,
            classes=CLASSES,
            **options,
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise NetworkError(
            f"labeling.architecture {settings.architecture!r} with encoder {settings.encoder!r}: {error}"
        ) from error
    return network


class Parser:
    """A trained face parser, always in `eval()`."""

    def __init__(
        self, network: nn.Module, settings: ParserSettings, device: torch.device, digest: str
    ) -> None:
        self.network = network.to(device).eval()
        self.settings = settings
        self.device = device
        self.digest = digest  # of the manifest

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Parser:
        """Load a model folder of kind `labeler`.

        Raises:
            ArtifactError: a file is missing or corrupt, or the weights are of another network.
        """
        manifest = verify(folder, KIND)
        try:
            values = {**manifest.settings, "decoder_channels": tuple(manifest.settings["decoder_channels"])}
            settings = ParserSettings(**values)
            network = build_network(settings)
            stored = load_file(folder / WEIGHTS)
            network.load_state_dict(
                {name: w.float() if w.is_floating_point() else w for name, w in stored.items()}
            )
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{folder}: settings or weights do not make a parser: {error}") from error
        return cls(network, settings, pick_device(device), manifest.digest)

    @torch.no_grad()
    def masks(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Parse images uint8 [n, h, w, 3] into masks uint8 [n, h, w] of `FaceClass`.

        Raises:
            ValueError: not an array of RGB images.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 [n, h, w, 3], got {images.dtype} {images.shape}")
        masks = np.empty(images.shape[:3], dtype=np.uint8)
        for start in range(0, len(images), PARSE_BATCH):
            batch = as_input(images[start : start + PARSE_BATCH], self.settings.resolution)
            logits = self.network(batch.to(self.device)).float()
            fine = F.interpolate(logits, images.shape[1:3], mode="bilinear", align_corners=False)
            masks[start : start + PARSE_BATCH] = fine.argmax(1).to(torch.uint8).cpu().numpy()
        return masks


def as_input(images: NDArray[np.uint8], resolution: int) -> Tensor:
    """Images uint8 [n, h, w, 3] -> float32 [n, 3, resolution, resolution] in [-1, 1], antialiased."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if pixels.shape[2:] == (resolution, resolution):
        return pixels
    return F.interpolate(pixels, (resolution, resolution), mode="bilinear", antialias=True).clamp(-1, 1)


def pick_device(device: str) -> torch.device:
    """`auto` is a GPU when there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def autocast_dtype(runtime: RuntimeConfig, device: torch.device) -> torch.dtype | None:
    """bfloat16 where it is asked for or faster, None for float32.

    On a CPU bfloat16 convolutions pay off only with AMX; with AVX-512 alone they took 1.5 times as long.
    """
    if runtime.precision != "auto":
        return torch.bfloat16 if runtime.precision == "bfloat16" else None
    fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else None


def settings_of(config: LabelingConfig) -> ParserSettings:
    return ParserSettings(
        architecture=config.architecture,
        encoder=config.encoder,
        encoder_depth=config.encoder_depth,
        decoder_channels=tuple(config.decoder_channels),
        resolution=config.resolution,
    )


def fit(
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    config: LabelingConfig,
    runtime: RuntimeConfig,
    journal: Journal,
) -> nn.Module:
    """Train a network on portraits uint8 [n, h, w, 3] and their masks uint8 [n, h, w].

    Raises:
        ValueError: there are no portraits, or the configuration does not make a network.
    """
    if not len(images):
        raise ValueError("there are no portraits to train the parser on")
    generator = torch.Generator().manual_seed(config.seed)
    device = pick_device(runtime.device)
    dtype = autocast_dtype(runtime, device)
    with torch.random.fork_rng():  # layers initialise from the global generator
        torch.manual_seed(config.seed)
        network = build_network(settings_of(config), config.encoder_weights)
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.2
    )
    inputs = as_input(images, config.resolution)
    targets = _stored_shares(masks, config.resolution)
    frequency = torch.stack([t.float().mean((1, 2)) for t in targets]).mean(0) / 255
    weights = class_weights(frequency / frequency.sum()).to(device)
    order = _batches(len(images), config.batch_size, generator)
    for step in journal.progress(range(config.steps), "parser", config.steps):
        rows = next(order)
        x, shares = augment(inputs[rows], targets[rows].float() / 255, generator)
        x, shares = x.to(device, memory_format=torch.channels_last), shares.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = network(x)
        cross_entropy = soft_cross_entropy(logits.float(), shares, weights)
        dice = soft_dice_loss(logits.float(), shares)
        (cross_entropy + dice).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % LOG_EVERY == 0 or step == config.steps - 1:
            journal.log(step, cross_entropy=cross_entropy.item(), dice_loss=dice.item())
    return network.eval()


def _stored_shares(masks: NDArray[np.uint8], resolution: int) -> Tensor:
    """Class shares of all masks in 255ths, uint8 [n, classes, r, r], computed once."""
    chunks = [
        (class_shares(torch.from_numpy(masks[i : i + PARSE_BATCH]), resolution) * 255).round().to(torch.uint8)
        for i in range(0, len(masks), PARSE_BATCH)
    ]
    return torch.cat(chunks)


def _batches(count: int, size: int, generator: torch.Generator) -> Any:
    """Endless batches of row numbers; every portrait once before any twice."""
    pending = torch.empty(0, dtype=torch.long)
    while True:
        while len(pending) < size:
            pending = torch.cat([pending, torch.randperm(count, generator=generator)])
        yield pending[:size]
        pending = pending[size:]


def save(network: nn.Module, settings: ParserSettings, folder: Path, provenance: dict[str, Any]) -> None:
    """Write a model folder: weights in half precision (a third of a percent of rounding costs no outline)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (w.half() if w.is_floating_point() else w).cpu().contiguous()
        for name, w in network.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    write_manifest(
        folder,
        KIND,
        files=[WEIGHTS],
        settings={**settings.__dict__, "decoder_channels": list(settings.decoder_channels)},
        provenance=provenance,
    )


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train the parser on the train split of `inputs["corpus"]`, judge it on the test split.

    Raises:
        CorpusError: the corpus is corrupt, or lacks train or test portraits.
        NetworkError: the configuration does not make a network.
    """
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    portraits = Portraits.load(inputs["corpus"])
    training, test = portraits.select("train"), portraits.select("test")
    network = fit(training.images, training.masks, config.labeling, config.runtime, journal)
    out = outputs["output"]
    provenance = {
        "profile": config.profile,
        "steps": config.labeling.steps,
        "batch_size": config.labeling.batch_size,
        "seed": config.labeling.seed,
        "portraits": len(training),
        "identities": len(np.unique(training.identity)),
        "corpus": sha256_file(inputs["corpus"] / CORPUS_MANIFEST),
        "licence": "Apache-2.0",
    }
    save(network, settings_of(config.labeling), out, provenance)

    parser = Parser.load(out, config.runtime.device)
    predicted = parser.masks(test.images)
    metrics = iou_metrics(test.masks, predicted)
    return Report(
        metrics={**metrics, "held_out_portraits": float(len(test))},
        pictures=draw(test.images, test.masks, predicted, out),
        tables={
            "IoU on held-out identities": [
                {"class": c.name.lower(), "iou": round(metrics[f"iou_{c.name.lower()}"], 4)}
                for c in FaceClass
                if f"iou_{c.name.lower()}" in metrics
            ]
        },
    )


def draw(
    images: NDArray[np.uint8], truth: NDArray[np.uint8], predicted: NDArray[np.uint8], folder: Path
) -> dict[str, str]:
    """Write an overlay sheet and the worst portraits; rows: image, prediction, truth. Title -> file."""
    each = np.array(
        [
            np.nanmean(intersection_over_union(confusion(t, p)))
            for t, p in zip(truth[:, None], predicted[:, None], strict=True)
        ]
    )
    spread = np.unique(np.linspace(0, len(images) - 1, min(8, len(images))).astype(int))
    for name, chosen in (("overlays.png", spread), ("worst.png", np.argsort(each)[:8])):
        sheet(
            [[images[i], overlay(images[i], predicted[i]), overlay(images[i], truth[i])] for i in chosen],
            [f"IoU {each[i]:.2f}" for i in chosen],
            folder / name,
        )
    return {
        "Held-out portraits, predictions, truth": "overlays.png",
        "Worst held-out portraits": "worst.png",
    }
