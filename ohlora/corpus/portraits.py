"""The one storage format of portraits: Parquet shards with a manifest, and `Portraits` in memory.

A folder holds `portraits-00000.parquet`, … and `portraits.json` with the SHA-256 of each shard. A row is an
image (WebP), a mask (PNG of `FaceClass` indices), who and where it came from, its split, the counterfactual
set it belongs to, the parameters it was rendered from and its ground truth.

Format 2 has more columns than format 1, which is still read: what it lacks is unknown (nan, -1, "").
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ohlora.artifacts import sha256_file
from ohlora.attributes import ATTRIBUTE_NAMES
from ohlora.corpus.brightness import background_brightness
from ohlora.corpus.lengths import hair_length
from ohlora.errors import UserError

MANIFEST = "portraits.json"
FORMAT = 2
READABLE_FORMATS = (1, 2)
ROWS_PER_SHARD = 128
MEASURED_AT_ONCE = 64  # portraits; bounds the memory of copies
WEBP_QUALITY = 92
DEFECT_NAMES: tuple[str, ...] = ("blur", "noise", "exposure", "melt")  # strengths in 0..1, 0 is none
TRAIT_NAMES: tuple[str, ...] = ("age", "glasses", "earrings")  # years; 1 worn, 0 not
TRUTH_NAMES: tuple[str, ...] = (*ATTRIBUTE_NAMES, "pitch", "roll", "smile", *TRAIT_NAMES, *DEFECT_NAMES)
MEASURED = ("hair_length", "background_mean", "background_std")  # told by mask and picture
PERSONA_IDENTITY = 0
MASKLESS_VARIANTS = ("generated", "photo")  # their masks say background everywhere, for want of better

SCHEMA = pa.schema(
    [
        ("image", pa.binary()),  # WebP, RGB
        ("mask", pa.binary()),  # PNG, uint8 FaceClass
        ("identity", pa.int64()),  # 0 is Oh-LoRA
        ("seed", pa.int64()),  # of the look
        ("moment", pa.int64()),  # number of the portrait within its identity
        ("variant", pa.string()),  # persona, sample, rendered, generated or photo
        ("split", pa.string()),  # train or test
        ("set", pa.int64()),  # counterfactual set: equal in all but `swept`; -1 is none
        ("swept", pa.string()),  # name of the attribute that the set sweeps; "" is none
        ("parameters", pa.string()),  # JSON of PortraitParameters; "" where none are known
        *((name, pa.float32()) for name in TRUTH_NAMES),
    ]
)
_SINCE_FORMAT_2: dict[str, Any] = {
    "set": -1,
    "swept": "",
    "parameters": "",
    **dict.fromkeys((*TRAIT_NAMES, *DEFECT_NAMES), float("nan")),
}


class CorpusError(UserError, RuntimeError):
    """A folder of portraits is missing, incomplete or corrupt; the message says what to do."""


@dataclass(frozen=True)
class Portraits:
    """Decoded portraits; all arrays share their first axis n."""

    images: NDArray[np.uint8]  # [n, h, w, 3] RGB
    masks: NDArray[np.uint8]  # [n, h, w] FaceClass
    truth: dict[
        str, NDArray[np.float32]
    ]  # name of TRUTH_NAMES -> [n], units of ohlora.attributes; nan is unknown
    identity: NDArray[np.int64]  # [n], 0 is Oh-LoRA
    split: NDArray[np.str_]  # [n] "train" or "test"
    sets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # [n], -1 is none
    swept: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))  # [n], "" is none
    variant: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))  # [n], see SCHEMA

    def __post_init__(self) -> None:
        """Arrays that were not given say "none" for every portrait."""
        n = len(self.identity)
        for name, none in (("sets", -1), ("swept", ""), ("variant", "")):
            if len(getattr(self, name)) != n:
                object.__setattr__(self, name, np.full(n, none))

    @property
    def has_mask(self) -> NDArray[np.bool_]:
        """Whether the mask says what is where, bool [n]; it does not for photos and generated pictures."""
        return ~np.isin(self.variant, MASKLESS_VARIANTS)

    def __len__(self) -> int:
        return len(self.identity)

    @classmethod
    def load(cls, folder: Path, shard: str | None = None) -> Portraits:
        """Read and check a folder of portraits, or one of the shards that its manifest names.

        Raises:
            CorpusError: a file is missing or its SHA-256 differs from the manifest.
        """
        table = read_table(folder, shard)
        if not table.num_rows:
            raise CorpusError(f"{folder} holds no portraits; run: ohlora stage corpus")
        try:
            images = np.stack([decode_image(b) for b in table["image"].to_pylist()])
            masks = np.stack([decode_mask(b) for b in table["mask"].to_pylist()])
        except (OSError, ValueError) as error:
            raise CorpusError(
                f"{folder}: a picture does not decode: {error}; run: ohlora stage corpus"
            ) from error
        variant = np.array(table["variant"].to_pylist(), np.str_)
        truth = {name: table[name].to_numpy().astype(np.float32) for name in TRUTH_NAMES}
        known = np.flatnonzero(~np.isin(variant, MASKLESS_VARIANTS))
        for name, values in measured(images, masks, known).items():
            truth[name][known] = values
        return cls(
            images=images,
            masks=masks,
            truth=truth,
            identity=table["identity"].to_numpy(),
            split=np.array(table["split"].to_pylist()),
            sets=table["set"].to_numpy(),
            swept=np.array(table["swept"].to_pylist(), np.str_),
            variant=variant,
        )

    def select(self, which: Literal["train", "test"] | NDArray[Any]) -> Portraits:
        """The portraits of a split, of a boolean mask [n] or at indices [k].

        Raises:
            CorpusError: nothing is selected.
        """
        index = np.flatnonzero(self.split == which) if isinstance(which, str) else np.arange(len(self))[which]
        if not len(index):
            raise CorpusError(f"no portrait is selected by {which!r} among {len(self)}")
        return Portraits(
            images=self.images[index],
            masks=self.masks[index],
            truth={name: values[index] for name, values in self.truth.items()},
            identity=self.identity[index],
            split=self.split[index],
            sets=self.sets[index],
            swept=self.swept[index],
            variant=self.variant[index],
        )

    def resized(self, resolution: int) -> Portraits:
        """Images by area averaging, masks by nearest pixel, to [n, resolution, resolution]."""
        if self.images.shape[1:3] == (resolution, resolution):
            return self
        size = (resolution, resolution)
        box, nearest = Image.Resampling.BOX, Image.Resampling.NEAREST
        resample = box if resolution < self.images.shape[1] else Image.Resampling.BICUBIC
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, resample)) for i in self.images])
        masks = np.stack([np.asarray(Image.fromarray(m).resize(size, nearest)) for m in self.masks])
        return replace(self, images=images, masks=masks)


def measured(
    images: NDArray[np.uint8], masks: NDArray[np.uint8], rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """The truths that a mask and its picture tell: what shards say of them is older than their definitions.

    Args:
        images: uint8 [n, h, w, 3].
        masks: uint8 [n, h, w] of `FaceClass`.
        rows: which to measure, int [k].

    Returns:
        `hair_length`, `background_mean` and `background_std`, float64 [k] each; nan where there is none.
    """
    found: dict[str, NDArray[np.float64]] = {name: np.empty(len(rows)) for name in MEASURED}
    for start in range(0, len(rows), MEASURED_AT_ONCE):
        part = slice(start, start + MEASURED_AT_ONCE)
        shown, masked = images[rows[part]], masks[rows[part]]
        mean, std = background_brightness(shown, masked)
        for name, values in zip(MEASURED, (hair_length(masked), mean, std), strict=True):
            found[name][part] = values
    return found


def remeasured(table: pa.Table) -> pa.Table:
    """The same rows with the truths that `measured` gives, where a portrait has a mask."""
    variant = np.array(table["variant"].to_pylist(), np.str_)
    known = np.flatnonzero(~np.isin(variant, MASKLESS_VARIANTS))
    truth = {name: table[name].to_numpy().astype(np.float32) for name in MEASURED}
    for start in range(0, len(known), MEASURED_AT_ONCE):  # decoded, a corpus is fifty times its size
        rows = known[start : start + MEASURED_AT_ONCE]
        images = np.stack([decode_image(table["image"][int(row)].as_py()) for row in rows])
        masks = np.stack([decode_mask(table["mask"][int(row)].as_py()) for row in rows])
        for name, values in measured(images, masks, np.arange(len(rows))).items():
            truth[name][rows] = values
    for name, values in truth.items():
        column = pa.array(values, SCHEMA.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """WebP of an RGB image uint8 [h, w, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return buffer.getvalue()


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """RGB image uint8 [h, w, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """PNG of a mask uint8 [h, w]."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """Mask uint8 [h, w]."""
    return np.asarray(Image.open(io.BytesIO(data)))


def split_of(identity: int, test_fraction: float) -> str:
    """Split of an identity: a hash decides, so that it never changes when portraits are added.

    Oh-LoRA herself is always in `train`: nobody else can stand in for her.
    """
    if identity == PERSONA_IDENTITY:
        return "train"
    digest = hashlib.sha256(f"split {identity}".encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") / 2**32 < test_fraction else "train"


def with_splits(table: pa.Table, test_fraction: float) -> pa.Table:
    """The same rows, split again by identity."""
    splits = pa.array([split_of(i, test_fraction) for i in table["identity"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("split"), "split", splits)


def write(folder: Path, table: pa.Table, provenance: dict[str, Any]) -> None:
    """Write rows as shards and a manifest; shards of an earlier write are removed.

    Args:
        table: rows of `SCHEMA`.
        provenance: where they came from: generator, settings, licence; JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = _filled(table.cast(SCHEMA))
    (folder / MANIFEST).unlink(missing_ok=True)  # an interrupted write is no valid folder
    for old in folder.glob("portraits-*.parquet"):
        old.unlink()
    files = {}
    for number, start in enumerate(range(0, table.num_rows, ROWS_PER_SHARD)):
        name = f"portraits-{number:05d}.parquet"
        pq.write_table(table.slice(start, ROWS_PER_SHARD), folder / name, compression="zstd")
        files[name] = sha256_file(folder / name)
    manifest = {"format": FORMAT, "count": table.num_rows, "files": files, "provenance": provenance}
    (folder / MANIFEST).write_text(
        json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of portraits.

    Raises:
        CorpusError: there is none, or it does not parse.
    """
    path = folder / MANIFEST
    restore = f"restore it with: git checkout {folder}, or make it again with: ohlora stage corpus"
    if not path.is_file():
        raise CorpusError(f"{folder} is not a folder of portraits: {MANIFEST} is missing; {restore}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] not in READABLE_FORMATS or not isinstance(manifest["files"], dict):
            readable = " or ".join(map(str, READABLE_FORMATS))
            raise ValueError(f"format {manifest['format']!r}, this version reads {readable}")
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path} does not parse: {error}; {restore}") from error
    return dict(manifest)


def read_table(folder: Path, shard: str | None = None) -> pa.Table:
    """Rows of a folder of portraits, pictures still encoded, after every hash was checked.

    Args:
        folder: of portraits.
        shard: read this one of the manifest's files only.

    Raises:
        CorpusError: a shard is missing, corrupt, or has other columns.
    """
    manifest = read_manifest(folder)
    restore = f"restore it with: git checkout {folder}, or make it again with: ohlora stage corpus"
    tables = []
    if shard is not None and shard not in manifest["files"]:
        raise CorpusError(f"{folder / MANIFEST} names no shard {shard}; {restore}")
    for name, expected in manifest["files"].items():
        if shard is not None and name != shard:
            continue
        path = folder / name
        if Path(name).name != name:
            raise CorpusError(f"{folder / MANIFEST} names a file outside its folder: {name}")
        if not path.is_file():
            raise CorpusError(f"{path} is missing; {restore}")
        actual = sha256_file(path)
        if actual != expected:
            raise CorpusError(
                f"{path} is corrupt: SHA-256 {actual[:12]}…, expected {expected[:12]}…; {restore}"
            )
        table = pq.read_table(path)
        if manifest["format"] == 1:
            table = _upgraded(table)
        if table.schema.names != SCHEMA.names:
            raise CorpusError(f"{path} has columns {table.schema.names}, expected {SCHEMA.names}; {restore}")
        tables.append(_filled(table.cast(SCHEMA)))
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def _upgraded(table: pa.Table) -> pa.Table:
    """Rows of format 1 with the columns that came with format 2, in their order, all unknown."""
    for name, unknown in _SINCE_FORMAT_2.items():
        if name not in table.schema.names:
            values = pa.array([unknown] * table.num_rows, SCHEMA.field(name).type)
            table = table.append_column(name, values)
    known = [name for name in SCHEMA.names if name in table.schema.names]
    return table.select([*known, *(name for name in table.schema.names if name not in known)])


def _filled(table: pa.Table) -> pa.Table:
    """The same rows with "none" instead of null in the columns that came with format 2."""
    for name, none in _SINCE_FORMAT_2.items():
        column = table[name]
        if column.null_count:
            index = table.schema.get_field_index(name)
            table = table.set_column(index, SCHEMA.field(name), column.fill_null(none))
    return table
