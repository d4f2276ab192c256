"""A face parser: a segmentation network that finds the face classes in a portrait, and its model folder.

Notable:
- The decoder stops at a coarser grid, and a sub-pixel head (Shi et al. 2016, arXiv:1609.05158) answers for
  each pixel from there: outlines as sharp as the masks, without the decoder's most expensive stages.
- For parsing, batch norms are folded into convolutions and memory is laid out channels last; a test holds the
  folded network to the trained one.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ohlora.artifacts import ArtifactError, verify, write_manifest
from ohlora.config import LabelingConfig, RuntimeConfig
from ohlora.errors import UserError
from ohlora.labeling.segmentation import CLASSES

KIND = "labeler"
WEIGHTS = "parser.safetensors"
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
    resolution: int  # pixels of the input
    logit_stride: int = 1  # input pixels per cell of the decoder's last grid, 1, 2 or 4


def build_network(settings: ParserSettings, encoder_weights: str | None = None) -> nn.Module:
    """float32 [n, 3, r, r] in [-1, 1] -> logits float32 [n, classes, r, r].

    Raises:
        NetworkError: no such architecture or encoder, or they do not go together.
    """
    import segmentation_models_pytorch as smp  # takes seconds, and only those who build a network need it

    dropped = {1: 0, 2: 1, 4: 2}[settings.logit_stride]
    name = f"labeling.architecture {settings.architecture!r} with encoder {settings.encoder!r}"
    if dropped and settings.architecture != "Unet":
        raise NetworkError(f"{name}: only Unet can answer on a coarser grid; set labeling.logit_stride to 1")
    options: dict[str, Any] = {"encoder_depth": settings.encoder_depth}
    if settings.decoder_channels:
        wanted = settings.encoder_depth - dropped
        if settings.architecture == "Unet" and len(settings.decoder_channels) != wanted:
            raise NetworkError(
                f"{name}: encoder_depth {settings.encoder_depth} and logit_stride {settings.logit_stride} "
                f"need {wanted} decoder_channels, got {list(settings.decoder_channels)}"
            )
        options["decoder_channels"] = (*settings.decoder_channels, *[8] * dropped)
    try:
        network: nn.Module = smp.create_model(
            settings.architecture,
            encoder_name=settings.encoder,
            encoder_weights=encoder_weights,
            classes=CLASSES,
            **options,
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise NetworkError(f"{name}: {error}") from error
    if dropped:
        decoder: Any = network.decoder
        decoder.blocks = decoder.blocks[:-dropped]
        channels = decoder.blocks[-1].conv2[0].out_channels
        stride = settings.logit_stride
        network.segmentation_head = nn.Sequential(
            nn.Conv2d(channels, CLASSES * stride**2, kernel_size=3, padding=1), nn.PixelShuffle(stride)
        )
    return network


class Parser:
    """A trained face parser, always in `eval()`."""

    def __init__(
        self, network: nn.Module, settings: ParserSettings, device: torch.device, digest: str
    ) -> None:
        fast = folded(network, settings.resolution).to(device)
        self.network = fast.to(memory_format=torch.channels_last)
        self.settings = settings
        self.device = device
        self.digest = digest  # of the manifest

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Parser:
        """Load a model folder of kind `labeler`.

        Raises:
            ArtifactError: a file is missing or corrupt, or the weights are of another network.
        """
        network, settings, digest = load_network(folder)
        return cls(network, settings, pick_device(device), digest)

    @torch.inference_mode()
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
            logits = self.network(batch.to(self.device, memory_format=torch.channels_last)).float()
            if logits.shape[2:] != images.shape[1:3]:
                logits = F.interpolate(logits, images.shape[1:3], mode="bilinear", align_corners=False)
            found = logits.max(1).indices  # several times as fast as argmax, which does not use SIMD
            masks[start : start + PARSE_BATCH] = found.to(torch.uint8).cpu().numpy()
        return masks


@torch.no_grad()
def folded(network: nn.Module, resolution: int) -> nn.Module:
    """A copy in `eval()` whose batch norms are part of the convolutions before them.

    Norms are matched with convolutions by their order in the modules. An encoder that runs them in another
    order would answer something else; it is kept as it is.
    """
    plain = copy.deepcopy(network).eval().cpu()
    network = copy.deepcopy(plain)
    for module in list(network.modules()):
        children = list(module.named_children())
        for (name, before), (norm_name, norm) in pairwise(children):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            inside = isinstance(before, nn.Sequential) and len(before) > 0
            holder, key = (before, str(len(before) - 1)) if inside else (module, name)  # type: ignore[arg-type]
            conv = holder.get_submodule(key)
            if isinstance(conv, nn.Conv2d) and conv.out_channels == norm.num_features:
                setattr(holder, key, fuse_conv_bn_eval(conv, norm))
                # timm's norms carry their activation
                setattr(module, norm_name, getattr(norm, "act", None) or nn.Identity())
    probe = torch.linspace(-1, 1, 3 * resolution**2).reshape(1, 3, resolution, resolution)
    wanted, got = plain(probe), network(probe)
    return network if torch.allclose(wanted, got, rtol=1e-3, atol=1e-3 * float(wanted.std())) else plain


def load_network(folder: Path) -> tuple[nn.Module, ParserSettings, str]:
    """The network of a model folder as it was trained, its settings and the manifest's digest.

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
    return network, settings, manifest.digest


def save(network: nn.Module, settings: ParserSettings, folder: Path, provenance: dict[str, Any]) -> None:
    """Write a model folder: weights in half precision (a thousandth of rounding costs no outline)."""
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
        settings={**asdict(settings), "decoder_channels": list(settings.decoder_channels)},
        provenance=provenance,
    )


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
        logit_stride=config.logit_stride,
    )
