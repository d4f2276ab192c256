"""Model folders: weights as safetensors, everything else as JSON, and a manifest with SHA-256 of each file.

One format from training to the bento: what a stage writes, MLflow stores, git keeps as a starter and a bento
packs is the same folder with the same `model.json`, and nothing loads before its hashes were checked.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ohlora.errors import UserError

MANIFEST = "model.json"


class ArtifactError(UserError, RuntimeError):
    """A model folder is missing, incomplete or not what its manifest says."""


class Manifest(BaseModel):
    """`model.json` of a model folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str  # "labeler", "judge", "face", "voice", "memory", "base-llm", "base-encoder"
    format: int = 1
    settings: dict[str, Any] = {}  # what the loader needs to build the network
    base: dict[str, str] = {}  # of an adapter: name and SHA-256 of the base it was trained on
    provenance: dict[str, Any] = {}  # where it came from: profile, data hashes, package pins, licence
    files: dict[str, str]  # relative path -> SHA-256

    @property
    def digest(self) -> str:
        """SHA-256 that names the weights: over the sorted file hashes and the settings."""
        body = json.dumps([self.kind, self.settings, self.base, sorted(self.files.items())], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_manifest(
    folder: Path,
    kind: str,
    *,
    files: list[str],
    settings: dict[str, Any] | None = None,
    base: dict[str, str] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Manifest:
    """Hash `files` (paths relative to `folder`) and write `model.json` beside them."""
    manifest = Manifest(
        kind=kind,
        settings=settings or {},
        base=base or {},
        provenance=provenance or {},
        files={name: sha256_file(folder / name) for name in sorted(files)},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `model.json` without checking the files it lists.

    Raises:
        ArtifactError: no manifest, or one that does not parse.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is not a model folder: {MANIFEST} is missing")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{path} does not parse: {error}") from error


FORMS: dict[str, tuple[str, ...]] = {"face": ("face", "face-variant")}
"""Kinds of model folders that may serve as a kind; of all others only the kind itself."""


def verify_form(folder: Path, kind: str) -> Manifest:
    """`verify` of a folder that may serve as `kind`: a face is our own or a variant."""
    manifest = read_manifest(folder)
    return verify(folder, manifest.kind if manifest.kind in FORMS.get(kind, ()) else kind)


def verify(folder: Path, kind: str | None = None) -> Manifest:
    """Check every file of a model folder against its manifest and return the manifest.

    Raises:
        ArtifactError: wrong kind, a file is missing, or a SHA-256 differs.
    """
    manifest = read_manifest(folder)
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{folder} holds a {manifest.kind!r} model, expected {kind!r}")
    root = folder.resolve()
    for name, expected in manifest.files.items():
        path = (folder / name).resolve()
        if not path.is_relative_to(root):
            raise ArtifactError(f"{folder / MANIFEST} names a file outside its folder: {name}")
        if not path.is_file():
            raise ArtifactError(f"{folder / name} is missing; run the stage again or roll back")
        actual = sha256_file(path)
        if actual != expected:
            raise ArtifactError(
                f"{folder / name} is corrupt: SHA-256 {actual[:12]}…, expected {expected[:12]}…; "
                "run the stage again or roll back"
            )
    return manifest
