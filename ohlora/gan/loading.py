"""Any face model by its folder: what the manifest says decides which class reads it."""

from __future__ import annotations

from pathlib import Path

import torch

from ohlora.artifacts import ArtifactError, read_manifest
from ohlora.gan.face import KIND as FACE
from ohlora.gan.face import Face
from ohlora.gan.variant_face import KIND as VARIANT
from ohlora.gan.variant_face import VariantFace

AnyFace = Face | VariantFace


def load_face(folder: Path | str, device: str | torch.device = "cpu") -> AnyFace:
    """Read a model folder of kind `face` or `face-variant`.

    Raises:
        ArtifactError: it holds something else, or a file is missing or corrupt.
    """
    kind = read_manifest(Path(folder)).kind
    if kind == FACE:
        return Face.load(folder, device)
    if kind == VARIANT:
        return VariantFace.load(folder, device)
    raise ArtifactError(f"{folder} holds a {kind!r} model, expected {FACE!r} or {VARIANT!r}")
